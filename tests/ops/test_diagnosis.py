# SPDX-License-Identifier: MIT
"""Mass between classes and entropy of rows, against the matrix itself in float64."""

import math

import pytest
import torch

from ocnet.ops import attention_entropy, attention_mass
from ocnet.ops.oc_attention import reference
from tests.ops.watching import LargestTensor, watch_inside

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def matrix(query: torch.Tensor, key: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    factor = query.shape[1] ** -0.5 if scale is None else scale
    rows, columns = query.double().flatten(2).mT, key.double().flatten(2)
    return torch.softmax(factor * rows @ columns, dim=-1)


def mass_by_hand(weights, labels, key_labels, classes: int) -> torch.Tensor:
    result = torch.full((weights.shape[0], classes, classes), math.nan, dtype=torch.float64)
    for n, (image, rows, columns) in enumerate(
        zip(weights, labels.flatten(1), key_labels.flatten(1), strict=True)
    ):
        for a in range(classes):
            for b in range(classes):
                if (rows == a).any():
                    result[n, a, b] = image[rows == a][:, columns == b].sum(-1).mean()
    return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_mass_is_the_sums_of_the_matrix(dtype: torch.dtype, shared: bool) -> None:
    query = torch.randn(2, 6, 5, 7).to(dtype)
    key = query if shared else torch.randn(2, 6, 4, 3).to(dtype)
    labels = torch.randint(0, 4, (2, 5, 7))
    labels[labels == 2] = 255
    labels[0, 0, 0] = -1
    key_labels = None if shared else torch.randint(0, 4, (2, 4, 3))
    mass = attention_mass(query, key, labels, classes=5, key_labels=key_labels)
    expected = mass_by_hand(
        matrix(query, key), labels, labels if key_labels is None else key_labels, 5
    )
    assert mass.shape == (2, 5, 5)
    assert mass.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(mass.double(), expected, equal_nan=True, rtol=1e-5, atol=1e-6)
    # Classes 2 and 4 have no pixel.
    assert mass[:, [2, 4]].isnan().all()
    assert mass[:, [0, 1, 3]].isfinite().all()


def test_mass_of_labelled_pixels_sums_to_one() -> None:
    query = torch.randn(1, 4, 6, 6)
    labels = torch.arange(36).reshape(1, 6, 6) % 3
    mass = attention_mass(query, query, labels)
    assert mass.shape == (1, 3, 3)
    torch.testing.assert_close(mass.sum(-1), torch.ones(1, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.0, 3.0])
def test_entropy_is_that_of_the_rows(dtype: torch.dtype, scale: float | None) -> None:
    query, key = torch.randn(2, 6, 5, 7).to(dtype), torch.randn(2, 6, 4, 3).to(dtype)
    entropy = attention_entropy(query, key, scale=scale)
    weights = matrix(query, key, scale)
    expected = -torch.special.xlogy(weights, weights).sum(-1).reshape(2, 5, 7)
    assert entropy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # The difference of two numbers as large as a score, each a sum of a few roundings.
    loudest = (1 if scale is None else scale) * float(
        (query.double().flatten(2).abs().mT @ key.double().flatten(2).abs()).max()
    )
    error = (entropy.double() - expected).abs().max()
    assert error <= 16 * torch.finfo(entropy.dtype).eps * (loudest + math.log(12))


def test_entropy_runs_from_one_pixel_to_all() -> None:
    query = 30 * torch.nn.functional.one_hot(torch.arange(16), 16).float().T.reshape(1, 16, 4, 4)
    assert float(attention_entropy(query, query).max()) < 1e-3
    assert torch.allclose(
        attention_entropy(query, query, scale=0.0), torch.tensor(math.log(16)), atol=1e-6
    )


@pytest.mark.parametrize("function", [attention_mass, attention_entropy])
def test_autocast_takes_no_digits(function) -> None:
    query = torch.randn(1, 6, 5, 7)
    arguments = (torch.randint(0, 3, (1, 5, 7)),) if function is attention_mass else ()
    plain = function(query, query, *arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(query, query, *arguments), plain)


def test_diagnosis_keeps_no_graph_and_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.randn(1, 4, 20, 20, requires_grad=True)
    labels = torch.randint(0, 3, (1, 20, 20))
    monkeypatch.setattr(reference, "ROWS", 8)
    inside = watch_inside(reference, monkeypatch)
    with LargestTensor() as around:
        mass = attention_mass(query, query, labels, classes=3, backend="reference")
        entropy = attention_entropy(query, query, backend="reference")
    assert not mass.requires_grad
    assert not entropy.requires_grad
    assert around.numel == query.numel()
    assert inside.numel == 8 * 400


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(1, 3, 3), "labels must be integers, got torch.float32"),
        (torch.zeros(1, 3, 2, dtype=torch.int64), r"labels must have the images and pixels"),
        ([[0]], "labels must be a tensor, got list"),
    ],
)
def test_labels_that_do_not_fit(labels, message: str) -> None:
    query = torch.randn(1, 4, 3, 3)
    with pytest.raises((TypeError, ValueError), match=f"attention_mass: {message}"):
        attention_mass(query, query, labels)


def test_key_labels_must_fit_the_key() -> None:
    query, key = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 2, 2)
    labels = torch.zeros(1, 3, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="key_labels must have the images and pixels of key"):
        attention_mass(query, key, labels)
    with pytest.raises(ValueError, match="classes must be at least 1, got 0"):
        attention_mass(query, query, labels, classes=0)
