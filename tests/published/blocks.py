# SPDX-License-Identifier: MIT
"""The published context blocks and heads, from their formulas. ``p`` is where a block's names begin."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.published.layers import State, attend, cells, resize


def object_context(s: State, p: str, x: Tensor, scale: int, shared: bool) -> Tensor:
    size = tuple(x.shape[-2:])
    if scale > 1:
        x = F.max_pool2d(x, scale, scale)
    value = s.conv(f"{p}f_value", x)
    if shared:
        # One transform, run twice: its running statistics move twice.
        query, key = s.conv_abn(f"{p}f_key", x), s.conv_abn(f"{p}f_key", x)
    else:
        query, key = s.two_layers(f"{p}f_query", x), s.two_layers(f"{p}f_key", x)
    context = s.conv(f"{p}W", attend(query, key, value))
    return resize(context, size) if scale > 1 else context


def contexts(s: State, p: str, x: Tensor, sizes: Sequence[int], shared: bool) -> Tensor:
    return sum(
        object_context(s, f"{p}stages.{i}.", x, size, shared) for i, size in enumerate(sizes)
    )


def base_oc(s: State, p: str, x: Tensor, sizes: Sequence[int], shared: bool) -> Tensor:
    context = contexts(s, p, x, sizes, shared)
    return s.conv_abn(f"{p}conv_bn_dropout", torch.cat([context, x], 1))


def base_oc_context(s: State, p: str, x: Tensor, sizes: Sequence[int], shared: bool) -> Tensor:
    context = contexts(s, p, x, sizes, shared)
    if shared:
        return s.conv_abn(f"{p}conv_bn_dropout", context)
    return s.abn(f"{p}conv_bn_dropout.0", context)


def dilated(s: State, p: str, x: Tensor, context: Tensor, dilations: Sequence[int]) -> Tensor:
    branches = [context, s.conv_abn(f"{p}conv2", x)]
    branches += [s.conv_abn(f"{p}conv{3 + i}", x, dilation) for i, dilation in enumerate(dilations)]
    return s.conv_abn(f"{p}conv_bn_dropout", torch.cat(branches, 1))


def asp_oc(s: State, p: str, x: Tensor, dilations: Sequence[int], shared: bool) -> Tensor:
    context = base_oc_context(s, f"{p}context.2.", s.conv_abn(f"{p}context", x), (2,), shared)
    return dilated(s, p, x, context, dilations)


def pyramid_oc(s: State, p: str, x: Tensor, sizes: Sequence[int]) -> Tensor:
    parts = [s.conv_abn(f"{p}up_dr", x)]
    for i, size in enumerate(sizes):
        q = f"{p}stages.{i}."
        value = s.conv(f"{q}f_value", x)
        query, key = s.conv_abn(f"{q}f_key", x), s.conv_abn(f"{q}f_key", x)
        rows = []
        for down in cells(x.shape[2], size):
            across = [(..., down, columns) for columns in cells(x.shape[3], size)]
            rows.append(torch.cat([attend(query[c], key[c], value[c]) for c in across], 3))
        parts.append(s.conv(f"{q}W", torch.cat(rows, 2)))
    return s.conv_abn(f"{p}conv_bn_dropout", torch.cat(parts, 1))


def attention_unit(s: State, p: str, x: Tensor) -> Tensor:
    value = s.conv(f"{p}f_value", x)
    query, key = s.two_layers(f"{p}f_query", x), s.two_layers(f"{p}f_key", x)
    return s.conv_abn(f"{p}W", attend(query, key, value))


def interlaced(s: State, p: str, x: Tensor, factor: tuple[int, int]) -> Tensor:
    """Gather far pixels, attend, gather near ones, attend; padding takes part."""
    (dh, dw), (n, _, h, w) = factor, x.shape
    more_h, more_w = -h % dh, -w % dw
    top, left = more_h // 2, more_w // 2
    x = F.pad(x, (left, more_w - left, top, more_h - top))
    groups = torch.cat([x[:, :, a::dh, b::dw] for a in range(dh) for b in range(dw)])
    groups = attention_unit(s, f"{p}long_range_sa.", groups)
    x = x.new_zeros(n, groups.shape[1], h + more_h, w + more_w)
    for i, group in enumerate(groups.split(n)):
        mask = torch.zeros(x.shape[2:], dtype=torch.bool)
        mask[i // dw :: dh, i % dw :: dw] = True
        x = x.masked_scatter(mask, group)
    blocks = [
        (slice(i, i + dh), slice(j, j + dw))
        for i in range(0, x.shape[2], dh)
        for j in range(0, x.shape[3], dw)
    ]
    patches = torch.cat([x[:, :, rows, columns] for rows, columns in blocks])
    patches = attention_unit(s, f"{p}short_range_sa.", patches).split(n)
    wide = x.shape[3] // dw
    lines = [torch.cat(patches[i : i + wide], 3) for i in range(0, len(patches), wide)]
    return torch.cat(lines, 2)[:, :, top : top + h, left : left + w]


def isa(s: State, p: str, x: Tensor, factors: Sequence[tuple[int, int]]) -> Tensor:
    found = [interlaced(s, f"{p}stages.{i}.", x, factor) for i, factor in enumerate(factors)]
    first = s.conv_abn(f"{p}up_conv", x) if len(factors) > 1 else x
    return s.conv_abn(f"{p}conv_bn", torch.cat([first, *found], 1))


def gather(features: Tensor, logits: Tensor) -> Tensor:
    weights = logits.flatten(2).exp()
    weights = weights / weights.sum(2, keepdim=True)
    return torch.einsum("nkl,ncl->nck", weights, features.flatten(2)).unsqueeze(3)


def object_attention(s: State, p: str, x: Tensor, regions: Tensor) -> Tensor:
    p = f"{p}object_context_block."
    query, key = s.two_layers(f"{p}f_pixel", x), s.two_layers(f"{p}f_object", regions)
    return s.conv_abn(f"{p}f_up", attend(query, key, s.conv_abn(f"{p}f_down", regions)))


def ocr(s: State, p: str, x: Tensor, logits: Tensor) -> Tensor:
    context = object_attention(s, p, x, gather(x, logits))
    return s.conv_abn(f"{p}conv_bn_dropout", torch.cat([context, x], 1))


def asp_ocr(s: State, p: str, x: Tensor, logits: Tensor, dilations: Sequence[int]) -> Tensor:
    features = s.conv_abn(f"{p}context", x)
    context = object_attention(s, f"{p}context.2.", features, gather(features, logits))
    return dilated(s, p, x, context, dilations)


def psp(s: State, p: str, x: Tensor) -> Tensor:
    size = tuple(x.shape[-2:])
    parts = []
    for i, count in enumerate((1, 2, 3, 6)):
        mean = F.adaptive_avg_pool2d(x, count)
        mean = s.abn(f"{p}stages.{i}.2", s.conv(f"{p}stages.{i}.1", mean))
        parts.append(resize(mean, size))
    return s.conv_abn(f"{p}bottleneck", torch.cat([*parts, x], 1))


def decoder(s: State, p: str, context: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
    size = tuple(fine.shape[-2:])
    # CE2P does not say corners, which is torch for without.
    coarse = resize(s.conv_abn(f"{p}conv1", context), size, corners=False)
    x = s.two_layers(f"{p}conv3", torch.cat([coarse, s.conv_abn(f"{p}conv2", fine)], 1))
    return s.conv(f"{p}conv4", x), x


def edge(s: State, p: str, layers: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    size = tuple(layers[0].shape[-2:])
    features = [s.conv_abn(f"{p}conv{i}", x) for i, x in enumerate(layers, start=1)]
    logits = [resize(s.conv(f"{p}conv4", x), size) for x in features]
    return (
        s.conv(f"{p}conv5", torch.cat(logits, 1)),
        torch.cat([resize(x, size) for x in features], 1),
    )
