# SPDX-License-Identifier: MIT
"""From values of label files to classes and back, against loops over pixels."""

import numpy as np
import pytest

from ocnet.data import LabelMap

MIXED = LabelMap({0: 255, 3: 1, 4: 1, 9: 0, 700: 2})


def looked_up(classes: dict[int, int], raw: np.ndarray) -> list[int]:
    return [classes[int(value)] for value in raw.ravel()]


def test_identity_keeps_classes_and_the_ignore_value() -> None:
    labels = LabelMap.identity(3)
    assert dict(labels.classes) == {0: 0, 1: 1, 2: 2, 255: 255}
    raw = np.array([[0, 2, 255], [1, 1, 0]], dtype=np.uint8)
    np.testing.assert_array_equal(labels.decode(raw, "a.png"), raw)


def test_listed_numbers_values_in_their_order() -> None:
    labels = LabelMap.listed((7, 8, 3), ignored=(*range(10), 255))
    assert dict(labels.classes) == {
        **dict.fromkeys((0, 1, 2, 4, 5, 6, 9, 255), 255),
        **{7: 0, 8: 1, 3: 2},
    }
    assert dict(LabelMap.listed((5,)).classes) == {5: 0, 255: 255}
    assert dict(LabelMap.listed(range(2), ignored=()).classes) == {0: 0, 1: 1}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_decode_looks_every_pixel_up(dtype: type) -> None:
    values = [0, 3, 4, 9] + ([] if dtype is np.uint8 else [700])
    raw = np.random.default_rng(0).choice(values, (5, 7)).astype(dtype)
    decoded = MIXED.decode(raw, "a.png")
    assert decoded.dtype == np.uint8
    assert decoded.shape == (5, 7)
    assert decoded.ravel().tolist() == looked_up(dict(MIXED.classes), raw)


def test_classes_beyond_eight_bits_are_uint16() -> None:
    labels = LabelMap({1: 300, 2: 0, 0: 255})
    raw = np.array([[0, 1, 2]], dtype=np.uint8)
    decoded = labels.decode(raw, "a.png")
    assert decoded.dtype == np.uint16
    assert decoded.tolist() == [[255, 300, 0]]
    back = LabelMap({300: 1, 2: 0}).encode(np.array([[1, 0]]))
    assert back.dtype == np.uint16
    assert back.tolist() == [[300, 2]]


def test_unknown_values_are_counted() -> None:
    raw = np.array([[0, 5, 5], [9, 8, 3]], dtype=np.uint8)
    assert MIXED.unknown(raw) == {5: 2, 8: 1}
    assert MIXED.unknown(np.array([[0, -1], [-1, 5]])) == {-1: 2, 5: 1}
    assert MIXED.unknown(np.zeros((0, 4), dtype=np.uint8)) == {}
    assert MIXED.unknown(np.array([[3, 700]])) == {}


def test_decode_refuses_unknown_values() -> None:
    raw = np.array([[0, 5, 5], [9, 65535, 3]], dtype=np.uint16)
    complaint = r"only the values 0, 3, 4, 9 and 700, got 5, 65535 \(3 pixels\) in some/a\.png"
    with pytest.raises(ValueError, match=complaint):
        MIXED.decode(raw, "some/a.png")
    with pytest.raises(ValueError, match=r"got -1 \(1 pixels\)"):
        MIXED.decode(np.array([[-1, 0]]), "a.png")
    many = np.arange(20, 40).reshape(4, 5)
    with pytest.raises(
        ValueError, match=r"got 20, 21, 22, 23, 24, 25, 26, 27, \.\.\. \(20 pixels\)"
    ):
        MIXED.decode(many, "a.png")


def test_encode_takes_the_smallest_value_of_a_class() -> None:
    encoded = MIXED.encode(np.array([[1, 0], [2, 1]]))
    assert encoded.tolist() == [[3, 9], [700, 3]]
    labels = LabelMap.listed((7, 8, 3), ignored=(0, 255))
    classes = np.array([[0, 1, 2]], dtype=np.uint8)
    back = labels.encode(classes)
    assert back.dtype == np.uint8
    assert back.tolist() == [[7, 8, 3]]
    np.testing.assert_array_equal(labels.decode(back, ""), classes)


@pytest.mark.parametrize("wrong", [3, 255, -1])
def test_encode_refuses_what_is_no_class(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"classes must be in 0 to 2, got {wrong}$"):
        MIXED.encode(np.array([[0, wrong]]))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([4], "4"),
        ([0, 1], "0 and 1"),
        ([0, 1, 2], "0 to 2"),
        ([*range(34), 255], "0 to 33 and 255"),
        ([0, 1, 255], "0, 1 and 255"),
        ([9, 3, 4, 5, 11, 12], "3 to 5, 9, 11 and 12"),
    ],
)
def test_allowed_values_in_words(values: list[int], words: str) -> None:
    assert LabelMap(dict.fromkeys(values, 0)).allowed() == words


@pytest.mark.parametrize("value", [-1, 65536])
def test_values_that_no_file_can_hold(value: int) -> None:
    with pytest.raises(ValueError, match=f"values must be 0 to 65535, got {value}"):
        LabelMap({value: 0})


def test_negative_classes() -> None:
    with pytest.raises(ValueError, match=r"classes must be 0 or more \(or 255\), got -1"):
        LabelMap({0: -1})
