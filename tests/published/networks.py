# SPDX-License-Identifier: MIT
"""The published networks, from their descriptions, without dropout. Each returns its outputs in order."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.published import blocks
from tests.published.layers import State, resize

DILATIONS = (1, 2, 3)
SIZES = (1, 2, 3, 6)


def residual(
    s: State, p: str, x: Tensor, stride: int, dilation: int, first: int | None = None
) -> Tensor:
    """Two or three convolutions and a shortcut; which, the names say."""
    first = dilation if first is None else first
    if f"{p}conv3.weight" in s.tensors:
        y = F.relu(s.norm(f"{p}bn1", s.conv(f"{p}conv1", x)))
        y = F.relu(s.norm(f"{p}bn2", s.conv(f"{p}conv2", y, stride, first)))
        y = s.norm(f"{p}bn3", s.conv(f"{p}conv3", y))
    else:
        y = F.relu(s.norm(f"{p}bn1", s.conv(f"{p}conv1", x, stride, first)))
        y = s.norm(f"{p}bn2", s.conv(f"{p}conv2", y, 1, dilation))
    if f"{p}downsample.0.weight" in s.tensors:
        x = s.norm(
            f"{p}downsample.1", F.conv2d(x, s.tensors[f"{p}downsample.0.weight"], None, stride)
        )
    return F.relu(y + x)


def layer(
    s: State, p: str, x: Tensor, stride: int = 1, dilation: int = 1, first: int | None = None
) -> Tensor:
    number = 0
    while f"{p}{number}.conv1.weight" in s.tensors:
        if number == 0:
            x = residual(s, f"{p}0.", x, stride, dilation, first)
        else:
            x = residual(s, f"{p}{number}.", x, 1, dilation)
        number += 1
    return x


def resnet(
    s: State,
    images: Tensor,
    p: str = "",
    stem: str = "",
    strides: Sequence[int] = (1, 2, 1, 1),
    dilations: Sequence[int] = (1, 1, 2, 4),
    first: Sequence[int] = (1, 1, 2, 4),
    ceil: bool = True,
) -> list[Tensor]:
    x = images
    for i, stride in ((1, 2), (2, 1), (3, 1)):
        x = F.relu(s.norm(f"{p}{stem}bn{i}", s.conv(f"{p}{stem}conv{i}", x, stride)))
    x = F.max_pool2d(x, 3, 2, 1, ceil_mode=ceil)
    found = []
    for i in range(4):
        x = layer(s, f"{p}layer{i + 1}.", x, strides[i], dilations[i], first[i])
        found.append(x)
    return found


def openseg_resnet(s: State, images: Tensor) -> list[Tensor]:
    return resnet(s, images, "backbone.", "resinit.", first=(1, 1, 1, 2))


def exchange(s: State, p: str, maps: list[Tensor]) -> list[Tensor]:
    maps = [layer(s, f"{p}branches.{i}.", x) for i, x in enumerate(maps)]
    found = []
    for i, target in enumerate(maps):
        total = torch.zeros_like(target)
        for j, x in enumerate(maps):
            total = total + bridge(s, f"{p}fuse_layers.{i}.{j}.", x, i - j, target)
        found.append(F.relu(total))
    return found


def bridge(s: State, p: str, x: Tensor, steps: int, target: Tensor) -> Tensor:
    """Bring a branch to another, so many steps coarser or, if below zero, finer."""
    if steps < 0:
        return resize(s.norm(f"{p}1", s.conv(f"{p}0", x)), tuple(target.shape[-2:]))
    for k in range(steps):
        x = s.norm(f"{p}{k}.1", s.conv(f"{p}{k}.0", x, 2))
        x = F.relu(x) if k < steps - 1 else x
    return x


def hrnet(s: State, images: Tensor, p: str = "") -> Tensor:
    x = F.relu(s.norm(f"{p}bn1", s.conv(f"{p}conv1", images, 2)))
    x = F.relu(s.norm(f"{p}bn2", s.conv(f"{p}conv2", x, 2)))
    maps = [layer(s, f"{p}layer1.", x)]
    for stage in (2, 3, 4):
        q = f"{p}transition{stage - 1}."
        if stage == 2:
            maps[0] = F.relu(s.norm(f"{q}0.1", s.conv(f"{q}0.0", x := maps[0])))
            last = x
        else:
            last = maps[-1]
        new = f"{q}{stage - 1}.0."
        maps.append(F.relu(s.norm(f"{new}1", s.conv(f"{new}0", last, 2))))
        number = 0
        while f"{p}stage{stage}.{number}.branches.0.0.conv1.weight" in s.tensors:
            maps = exchange(s, f"{p}stage{stage}.{number}.", maps)
            number += 1
    size = tuple(maps[0].shape[-2:])
    return torch.cat([maps[0], *(resize(x, size) for x in maps[1:])], 1)


def dsn(s: State, p: str, x: Tensor, last: int, linear: bool = False) -> Tensor:
    x = s.conv(f"{p}.0", x)
    x = s.norm(f"{p}.1", x) if linear else s.abn(f"{p}.1", x)
    return s.conv(f"{p}.{last}", x)


def baseline(s: State, images: Tensor) -> list[Tensor]:
    x = resnet(s, images)[-1]
    return [s.conv("layer6", s.conv_abn("layer5", x))]


def base_oc(s: State, images: Tensor) -> list[Tensor]:
    *_, early, late = resnet(s, images)
    x = blocks.base_oc(s, "context.2.", s.conv_abn("context", late), (1,), True)
    return [dsn(s, "dsn", early, 3), s.conv("cls", x)]


def pyramid_oc(s: State, images: Tensor) -> list[Tensor]:
    *_, early, late = resnet(s, images)
    x = s.norm("layer5.1", s.conv("layer5.0", late))
    x = blocks.pyramid_oc(s, "context.", x, SIZES)
    return [dsn(s, "dsn", early, 3, linear=True), s.conv("cls", x)]


def asp_oc(s: State, images: Tensor) -> list[Tensor]:
    *_, early, late = resnet(s, images)
    x = blocks.asp_oc(s, "context.2.", s.conv_abn("context", late), DILATIONS, True)
    return [dsn(s, "dsn", early, 3), s.conv("cls", x)]


def local(s: State, images: Tensor) -> list[Tensor]:
    """Not published: the control, a mean over 5 x 5 of the product of two transforms."""
    *_, early, late = resnet(s, images)
    x, p = s.conv_abn("context", late), "context.2.stages.0."
    # Its running statistics move as far as those of its counterpart.
    s.conv_abn(f"{p}f_key", x)
    product = s.conv_abn(f"{p}f_key", x) * s.conv(f"{p}f_value", x)
    context = s.conv(f"{p}W", F.avg_pool2d(F.pad(product, (2, 2, 2, 2)), 5, 1))
    x = s.conv_abn("context.2.conv_bn_dropout", torch.cat([context, x], 1))
    return [dsn(s, "dsn", early, 3), s.conv("cls", x)]


def openseg_base_oc(s: State, images: Tensor) -> list[Tensor]:
    *_, early, late = openseg_resnet(s, images)
    x = blocks.base_oc(s, "oc_module.", s.conv_abn("oc_module_pre", late), (1,), False)
    return whole(images, dsn(s, "dsn", early, 2), s.conv("cls", x))


def openseg_asp_oc(s: State, images: Tensor) -> list[Tensor]:
    *_, early, late = openseg_resnet(s, images)
    x = blocks.asp_oc(s, "context.2.", s.conv_abn("context", late), DILATIONS, False)
    return whole(images, dsn(s, "dsn", early, 2), s.conv("cls", x))


def openseg_isa(s: State, images: Tensor) -> list[Tensor]:
    *_, early, late = openseg_resnet(s, images)
    x = blocks.isa(s, "isa_head.2.", s.conv_abn("isa_head", late), ((8, 8),))
    return whole(images, dsn(s, "dsn_head", early, 3), s.conv("cls_head", x))


def openseg_ocr(s: State, images: Tensor) -> list[Tensor]:
    *_, early, late = openseg_resnet(s, images)
    aux = dsn(s, "dsn_head", early, 3)
    x = blocks.ocr(s, "spatial_ocr_head.", s.conv_abn("conv_3x3", late), aux)
    return whole(images, aux, s.conv("head", x))


def openseg_asp_ocr(s: State, images: Tensor) -> list[Tensor]:
    *_, early, late = openseg_resnet(s, images)
    aux = dsn(s, "dsn_head", early, 3)
    x = blocks.asp_ocr(s, "asp_ocr_head.", late, aux, DILATIONS)
    return whole(images, aux, s.conv("head", x))


def openseg_fcn(s: State, images: Tensor) -> list[Tensor]:
    *_, early, late = openseg_resnet(s, images)
    return whole(images, dsn(s, "dsn_head", early, 3), dsn(s, "cls_head", late, 3))


def hrnet_w48(s: State, images: Tensor) -> list[Tensor]:
    return whole(images, dsn(s, "cls_head", hrnet(s, images, "backbone."), 3))


def hrnet_w48_ocr(s: State, images: Tensor) -> list[Tensor]:
    x = hrnet(s, images, "backbone.")
    aux = dsn(s, "aux_head", x, 2)
    x = blocks.ocr(s, "ocr_distri_head.", s.conv_abn("conv3x3", x), aux)
    return whole(images, aux, s.conv("cls_head", x))


def hrnet_w48_asp_ocr(s: State, images: Tensor) -> list[Tensor]:
    x = hrnet(s, images, "backbone.")
    aux = dsn(s, "aux_head", x, 2)
    x = blocks.asp_ocr(s, "asp_ocr_head.", x, aux, DILATIONS)
    return whole(images, aux, s.conv("cls_head", x))


def seg_hrnet_w48_ocr(s: State, images: Tensor) -> list[Tensor]:
    x = hrnet(s, images)
    aux = dsn(s, "aux_head", x, 3)
    x = blocks.ocr(s, "ocr_distri_head.", s.conv_abn("conv3x3_ocr", x), aux)
    return [aux, s.conv("cls_head", x)]


def ce2p(s: State, images: Tensor) -> list[Tensor]:
    layers = resnet(
        s, images, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), first=(1, 1, 1, 2), ceil=False
    )
    if "layer5.bottleneck.0.weight" in s.tensors:
        x = blocks.psp(s, "layer5.", layers[3])
    else:
        x = blocks.asp_oc(s, "layer5.", layers[3], DILATIONS, True)
    edges, features = blocks.edge(s, "edge_layer.", layers[:3])
    first, x = blocks.decoder(s, "layer6.", x, layers[0])
    x = torch.cat([x, features], 1)
    return [first, s.conv("layer7.3", s.conv_abn("layer7", x)), edges]


def whole(images: Tensor, *logits: Tensor) -> list[Tensor]:
    return [resize(x, tuple(images.shape[-2:])) for x in logits]


NETWORKS: dict[str, Callable[[State, Tensor], list[Tensor]]] = {
    "resnet101_baseline": baseline,
    "resnet101_base_oc": base_oc,
    "resnet101_pyramid_oc": pyramid_oc,
    "resnet101_asp_oc": asp_oc,
    "resnet101_local": local,
    "openseg_base_oc": openseg_base_oc,
    "openseg_asp_oc": openseg_asp_oc,
    "openseg_isa": openseg_isa,
    "openseg_ocr": openseg_ocr,
    "openseg_asp_ocr": openseg_asp_ocr,
    "openseg_fcn": openseg_fcn,
    "hrnet_w48": hrnet_w48,
    "hrnet_w48_ocr": hrnet_w48_ocr,
    "hrnet_w48_ocr_b": hrnet_w48_ocr,
    "hrnet_w48_asp_ocr": hrnet_w48_asp_ocr,
    "seg_hrnet_w48_ocr": seg_hrnet_w48_ocr,
    "ce2p": ce2p,
    "ce2p_asp_oc": ce2p,
}
