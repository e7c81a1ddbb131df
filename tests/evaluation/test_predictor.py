# SPDX-License-Identifier: MIT
"""What comes out for a picture, against the published testers restated in NumPy."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ocnet.evaluation import InferenceOptions, Predictor, predict_logits
from ocnet.evaluation.options import Blend, Border, Merge, Mode
from tests.evaluation import restated
from tests.evaluation.restated import Array, Pixels, Places, Result, asking

CLASSES = 4


# Double precision, and some hundred operations on numbers of size 10 at most.
CLOSE: dict[str, float] = {"rtol": 1e-11, "atol": 1e-11}


def picture(height: int, width: int) -> Array:
    return np.random.default_rng(height * 100 + width).normal(size=(3, height, width))


def logits(model: nn.Module, image: Array, options: InferenceOptions, **settings: Any) -> Array:
    predictor = Predictor(model, options, num_classes=CLASSES, **settings)
    result = predictor.logits(torch.from_numpy(image))
    classes = predictor.classes(torch.from_numpy(image))
    assert result.shape == (CLASSES, *image.shape[1:])
    assert classes.dtype == torch.int64
    assert torch.equal(classes, result.argmax(0))
    merged: Array = result.numpy()
    return merged


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("border", ["shift", "pad"])
@pytest.mark.parametrize("blend", ["count", "gaussian"])
@pytest.mark.parametrize(
    ("tile", "overlap", "stride"),
    [
        ((8, 12), 0.0, (8, 12)),
        ((8, 12), 0.5, (4, 6)),
        ((9, 12), 2 / 3, (3, 4)),
        ((9, 9), 1 / 3, (6, 6)),
    ],
)
@pytest.mark.parametrize("size", [(19, 27), (8, 12), (5, 30), (6, 7)])
def test_tiles_are_blended_as_pixel_by_pixel(
    size: tuple[int, int],
    tile: tuple[int, int],
    overlap: float,
    stride: tuple[int, int],
    blend: Blend,
    border: Border,
    batch: int,
) -> None:
    model, image = Places(), picture(*size)
    options = InferenceOptions("slide", tile, overlap, border, blend, tile_batch=batch)
    ask = asking(Places())
    expected = restated.slide(
        lambda piece: restated.zoom(ask(piece), tile), image, tile, stride, border, blend
    )
    np.testing.assert_allclose(logits(model, image, options), expected, **CLOSE)
    assert {shape[2:] for shape in model.seen} == {tile}
    assert max(shape[0] for shape in model.seen) <= batch


@pytest.mark.parametrize("scale", [0.5, 1.5, 1.3])
def test_tiles_of_a_resized_picture(scale: float) -> None:
    image, tile, ask = picture(19, 26), (9, 8), asking(Places())
    options = InferenceOptions("slide", tile, 0.5, blend="gaussian", scales=(scale,))
    seen = restated.scaled(image, scale)
    look = restated.slide(
        lambda piece: restated.zoom(ask(piece), tile), seen, tile, (4, 4), blend="gaussian"
    )
    expected = restated.zoom(look, (19, 26))
    np.testing.assert_allclose(logits(Places(), image, options), expected, **CLOSE)


@pytest.mark.parametrize("border", ["shift", "pad"])
def test_tiles_do_not_matter_to_a_network_of_single_pixels(border: Border) -> None:
    # Without overlap every weight is 1 and nothing is rounded: equal to the last bit.
    image = torch.randn(3, 21, 16)
    options = InferenceOptions("slide", (7, 8), border=border)
    result = Predictor(Pixels(), options, num_classes=CLASSES).logits(image)
    assert torch.equal(result, predict_logits(Pixels(), image))
    # Of overlapping tiles each pixel has the weights' rounding, and no more.
    options = InferenceOptions("slide", (7, 8), 0.5, border=border, blend="gaussian")
    result = Predictor(Pixels(), options, num_classes=CLASSES).logits(image)
    whole = predict_logits(Pixels(), image)
    assert (result - whole).abs().max() <= 4 * torch.finfo(torch.float32).eps * whole.abs().max()


@pytest.mark.parametrize("size", [(16, 24), (15, 33)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.75, 1.0, 1.25), (0.5, 1.75)])
def test_mean_logits_are_ocnets(
    size: tuple[int, int], flip: bool, scales: tuple[float, ...]
) -> None:
    # Three tiles and more along the columns: mirrored ones begin at the other side.
    image, tile = picture(*size), (16, 12)
    options = InferenceOptions("ocnet", tile, scales=scales, flip=flip)
    expected = restated.ocnet(asking(Places()), image, scales, tile, flip)
    np.testing.assert_allclose(logits(Places(), image, options), expected, **CLOSE)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("size", "shown"), [((20, 31), (16, 25)), ((13, 11), (19, 16))])
def test_sum_logits_are_opensegs(size: tuple[int, int], shown: tuple[int, int], flip: bool) -> None:
    image, ask, scales = picture(*size), asking(Places()), (0.5, 1.0, 1.5)
    padded = np.zeros((3, *(-(-length // 8) * 8 for length in shown)))
    padded[:, : shown[0], : shown[1]] = restated.zoom(image, shown)
    total = np.zeros(1)
    for scale in scales:
        total = total + restated.zoom(ask(restated.scaled(padded, scale)), padded.shape[1:])
        if flip:
            mirrored = ask(restated.scaled(padded[:, :, ::-1], scale))
            total = total + restated.zoom(mirrored, padded.shape[1:])[:, :, ::-1]
    cut = np.ascontiguousarray(total[:, : shown[0], : shown[1]].transpose(1, 2, 0))
    expected = cv2.resize(cut, size[::-1], interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)
    options = InferenceOptions(
        scales=scales, flip=flip, merge="sum_logits", resize_short=16, pad_multiple=8
    )
    # OpenCV's weights are single precision.
    tolerance = 8 * np.finfo(np.float32).eps * np.abs(total).max()
    np.testing.assert_allclose(logits(Places(), image, options), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("mode", "border"), [("ocnet", "shift"), ("slide", "pad")])
@pytest.mark.parametrize("size", [(16, 24), (13, 30)])
def test_exp_logits_are_hrnets(
    size: tuple[int, int], mode: Mode, border: Border, flip: bool
) -> None:
    # On Cityscapes whole up to scale 1 and tiles side by side, elsewhere tiles that share a third.
    cityscapes = mode == "ocnet"
    image, scales, tile = picture(*size), (0.5, 1.0, 1.75), (9, 12)
    expected = restated.hrnet(
        asking(Places()),
        image,
        scales,
        flip,
        tile=tile,
        stride=tile if cityscapes else (6, 8),
        border=border,
        whole_up_to=1.0 if cityscapes else 0.0,
    )
    options = InferenceOptions(
        mode,
        tile,
        0.0 if cityscapes else 1 / 3,
        border,
        scales=scales,
        flip=flip,
        merge="exp_logits",
    )
    np.testing.assert_allclose(logits(Places(), image, options), expected, **CLOSE)


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_mean_probabilities_sum_to_one(mode: Mode) -> None:
    image, scales, tile = picture(14, 18), (0.5, 1.0, 1.5), (9, 12)
    options = InferenceOptions(mode, tile, scales=scales, flip=True, merge="mean_probabilities")
    total = restated.hrnet(
        asking(Places()),
        image,
        scales,
        True,
        tile=tile,
        stride=tile,
        border="shift",
        whole_up_to=9.0 if mode == "whole" else 0.0,
        final=restated.softmax,
    )
    result = logits(Places(), image, options)
    np.testing.assert_allclose(result, total / len(scales), **CLOSE)
    np.testing.assert_allclose(result.sum(0), np.ones((14, 18)), rtol=1e-12)


@pytest.mark.parametrize("merge", ["mean_logits", "exp_logits"])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_the_mirror_swaps_left_and_right_classes(merge: Merge, mode: Mode) -> None:
    image, order, tile = picture(10, 15), [0, 2, 1, 3], (6, 7)
    options = InferenceOptions(mode, tile, flip=True, merge=merge)
    result = logits(Places(), image, options, mirror_pairs=((1, 2),))
    ask = asking(Places())
    if merge == "exp_logits":
        whole = 1.0 if mode == "whole" else 0.0
        expected = restated.hrnet(
            ask,
            image,
            (1.0,),
            True,
            tile=tile,
            stride=tile,
            border="shift",
            whole_up_to=whole,
            order=order,
        )
    else:

        def seen(shown: Array) -> Array:
            if mode == "whole":
                return restated.zoom(ask(shown), (10, 15))
            return restated.slide(lambda piece: restated.zoom(ask(piece), tile), shown, tile, tile)

        expected = (seen(image) + seen(image[:, :, ::-1])[order, :, ::-1]) / 2
    np.testing.assert_allclose(result, expected, **CLOSE)


@pytest.mark.parametrize("pairs", [((0, 1), (1, 2)), ((0, 4),), ((-1, 2),), ((2, 2),)])
def test_mirror_pairs_name_each_class_once(pairs: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(ValueError, match="mirror_pairs must have classes 0 to 3, each once"):
        Predictor(Pixels(), num_classes=CLASSES, mirror_pairs=pairs)


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_mirroring_changes_nothing_for_a_network_that_mirrors(mode: Mode) -> None:
    # (a + a) / 2 is a, to the last bit.
    image = torch.randn(3, 14, 16)
    once = InferenceOptions(mode, (7, 8))
    twice = InferenceOptions(mode, (7, 8), flip=True)
    expected = Predictor(Pixels(), once, num_classes=CLASSES).logits(image)
    assert torch.equal(Predictor(Pixels(), twice, num_classes=CLASSES).logits(image), expected)


def test_every_scale_runs_at_its_own_size() -> None:
    # OCNet's first release showed the network the picture at scale 1 where 0.75 was asked for.
    model = Places()
    options = InferenceOptions("ocnet", (16, 16), scales=(0.75, 1.0, 1.25))
    Predictor(model, options, num_classes=CLASSES).logits(torch.randn(3, 16, 32))
    assert model.seen[:2] == [(1, 3, 12, 24), (1, 3, 16, 32)]
    assert model.seen[2:] == [(1, 3, 16, 16)] * 6  # 20 x 40


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"resize_short": 12}, (12, 24)),
        ({"resize_short": 12, "pad_multiple": 16}, (16, 32)),
        ({"resize_long": 30}, (15, 30)),
        ({"resize_long": 30, "pad_multiple": 30}, (30, 30)),
        ({"resize_to": (7, 9)}, (7, 9)),
        ({"resize_to": (7, 9), "scales": (2.0,)}, (14, 18)),
        ({"pad_multiple": 8}, (24, 40)),
        ({"pad_multiple": 20}, (20, 40)),
        ({"pad_multiple": 8, "scales": (0.5,)}, (12, 20)),
    ],
)
def test_pictures_are_resized_then_padded_then_scaled(
    options: dict[str, Any], seen: tuple[int, int]
) -> None:
    model, image = Places(), picture(20, 40)
    result = logits(model, image, InferenceOptions(**options))
    assert set(model.seen) == {(1, 3, *seen)}
    size = options.get("resize_to", (20, 40))
    if "resize_short" in options:
        size = (12, 24)
    if "resize_long" in options:
        size = (15, 30)
    shown = restated.zoom(image, size)
    multiple = options.get("pad_multiple", 1)
    padded = np.zeros((3, *(-(-length // multiple) * multiple for length in size)))
    padded[:, : size[0], : size[1]] = shown
    ask = asking(Places())
    scores = restated.zoom(ask(restated.zoom(padded, seen)), padded.shape[1:])
    expected = restated.zoom(scores[:, : size[0], : size[1]], (20, 40))
    np.testing.assert_allclose(result, expected, **CLOSE)


def test_the_default_is_predict_logits_to_the_last_bit() -> None:
    image = torch.randn(3, 17, 22)
    predictor = Predictor(Places(), num_classes=CLASSES)
    expected = predict_logits(Places(), image)
    assert torch.equal(predictor.logits(image), expected)
    assert torch.equal(predictor.classes(image), expected.argmax(0))
    # And so is what is asked for in a longer way.
    longer = Predictor(
        Places(), InferenceOptions(resize_to=(17, 22), pad_multiple=1), num_classes=CLASSES
    )
    assert torch.equal(longer.logits(image), expected)
    assert torch.equal(longer.classes(image), expected.argmax(0))


@pytest.mark.parametrize("options", [InferenceOptions(), InferenceOptions(flip=True)])
def test_several_pictures_of_one_size(options: InferenceOptions) -> None:
    model, images = Places(), torch.randn(3, 3, 8, 10)
    predictor = Predictor(model, options, num_classes=CLASSES)
    together = predictor.classes(images)
    assert model.seen == ([(3, 3, 8, 10)] if options.plain else [(1, 3, 8, 10)] * 6)
    assert torch.equal(together, torch.stack([predictor.classes(image) for image in images]))


class Constant(nn.Module):
    """The same logits everywhere, in a dtype; a layer that is frozen, and a trace of the modes."""

    def __init__(self, values: list[float], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.values = torch.tensor(values, dtype=dtype)
        self.frozen = nn.BatchNorm2d(1).eval()
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Result:
        self.modes.append(self.training or self.frozen.training)
        shape = (len(images), len(self.values), *images.shape[2:])
        return Result(self.values.view(-1, 1, 1).expand(shape))


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_16_bit_logits_are_added_up_in_32_bits(mode: Mode) -> None:
    model = Constant([256.0, 1.0], torch.bfloat16)
    options = InferenceOptions(mode, (4, 4), scales=(1.0, 0.5, 2.0), flip=True, merge="sum_logits")
    result = Predictor(model, options, num_classes=2).logits(torch.randn(1, 8, 8))
    assert result.dtype == torch.float32
    assert torch.equal(result[1], torch.full((8, 8), 6.0))


@pytest.mark.parametrize("options", [InferenceOptions(), InferenceOptions("slide", (4, 4))])
def test_every_layer_is_left_in_its_mode(options: InferenceOptions) -> None:
    model = Constant([0.0, 1.0])
    Predictor(model, options, num_classes=2).classes(torch.randn(1, 8, 8))
    assert not any(model.modes)
    assert model.training
    assert not model.frozen.training


def test_a_model_that_fails_is_left_in_its_mode_too() -> None:
    class Failing(nn.Module):
        def forward(self, images: Tensor) -> Result:
            raise RuntimeError("no")

    model = Failing()
    with pytest.raises(RuntimeError, match="no"):
        Predictor(model, InferenceOptions(flip=True), num_classes=2).logits(torch.zeros(1, 2, 2))
    assert model.training


def test_any_function_will_do() -> None:
    predictor = Predictor(
        lambda images: Result(torch.cat([images, -images], 1)),
        InferenceOptions(flip=True),
        num_classes=2,
    )
    image = torch.randn(1, 5, 6)
    assert torch.equal(predictor.classes(image), (image[0] < 0).long())


def test_autocast_does_not_round_sums() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))

    def network(images: Tensor) -> Result:
        result = model(images)
        assert result.dtype == torch.bfloat16
        return Result(result)

    image = torch.randn(3, 12, 12)
    options = InferenceOptions("slide", (6, 6), 0.5, scales=(1.0, 1.5), merge="exp_logits")
    with torch.autocast("cpu", torch.bfloat16):
        result = Predictor(network, options, num_classes=4).logits(image)
    exact = Predictor(
        lambda images: (
            Result(network(images).main.double()) if torch.is_autocast_enabled("cpu") else None
        ),
        options,
        num_classes=4,
    )
    with torch.autocast("cpu", torch.bfloat16):
        expected = exact.logits(image)
    assert result.dtype == torch.float32
    error = (result - expected).abs().max() / expected.abs().max()
    assert error < 16 * torch.finfo(torch.float32).eps


def test_equal_scores_go_to_the_first_class_and_nan_before_all() -> None:
    options = InferenceOptions(flip=True)
    for values in ([1.0, 3.0, 3.0], [2.0, float("nan"), 5.0], [float("-inf")] * 3):
        image = torch.randn(1, 3, 3)
        classes = Predictor(Constant(values), options, num_classes=3).classes(image)
        assert torch.equal(classes, torch.tensor(values).argmax().expand(3, 3))


@pytest.mark.parametrize("options", [InferenceOptions(), InferenceOptions(scales=(0.5,))])
def test_a_network_of_other_classes_is_refused(options: InferenceOptions) -> None:
    predictor = Predictor(Pixels(5), options, num_classes=CLASSES)
    with pytest.raises(ValueError, match="main must have 4 channels, one per class, got 5"):
        predictor.classes(torch.randn(3, 4, 4))


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        Predictor(Pixels(), num_classes=0)
    predictor = Predictor(Pixels(), num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"image must be \(C, H, W\), got \(1, 3, 4, 4\)"):
        predictor.logits(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"\(C, H, W\) or \(N, C, H, W\), got \(4, 4\)"):
        predictor.classes(torch.zeros(4, 4))
