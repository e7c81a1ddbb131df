# SPDX-License-Identifier: MIT
"""Inputs of the backward kernels; some of them say by their results which part of a kernel is wrong."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks.hopper import inputs as forward
from benchmarks.hopper.backward_library import Inputs
from benchmarks.hopper.library import EQUALISING, Call, Floats, from_bfloat16, to_bfloat16
from benchmarks.hopper.library import Inputs as Operands
from benchmarks.hopper.reference import expect

_CODES = 256  # integers from 0 on that bfloat16 has
_BLOCK = 1024  # queries of whom float64 keeps the scores at once


class Maps(NamedTuple):
    """What is chosen freely; the rest of the inputs follows."""

    operands: Operands
    grad_out: Floats


def saved(call: Call, maps: Maps) -> Inputs:
    """Add what a forward pass keeps for the backward."""
    query, key, value = maps.operands.query, maps.operands.key, maps.operands.value
    context = np.empty((call.images, call.queries, call.values))
    lse = np.empty((call.images, call.queries))
    for first in range(0, call.queries, _BLOCK):
        rows = range(first, min(first + _BLOCK, call.queries))
        found = expect(call, maps.operands, rows)
        context[:, rows], lse[:, rows] = found.out, found.lse
    return Inputs(query, key, value, maps.grad_out, context, lse)


def _noise(call: Call, seed: int) -> Floats:
    normal = np.random.default_rng(seed).standard_normal
    shape = call.images, call.queries, call.values
    return from_bfloat16(to_bfloat16(normal(shape, np.float32).astype(np.float64)))


def features(call: Call) -> Maps:
    """Return noise as the activation of a transform leaves it, and gradients of either sign."""
    return Maps(forward.features(call), _noise(call, 1))


def _numbers(call: Call, tokens: int, width: int, *, of_channels: bool) -> Floats:
    """Return maps whose elements are the number of their token or of their channel."""
    count = np.arange(width if of_channels else tokens, dtype=np.float64) % _CODES
    along = count[None, None, :] if of_channels else count[None, :, None]
    return np.ascontiguousarray(np.broadcast_to(along, (call.images, tokens, width)))


def _selecting(call: Call) -> Operands:
    """Return queries that see one key alone or, where they are the keys, themselves and another.

    So the gradient of a value is the sum of those of few results.
    """
    if call.keys:
        query, key = forward.selecting(call)
    else:
        random = np.random.default_rng(1)
        half = -(-call.queries // 2)
        shape = call.images, half, call.channels
        signs = random.choice(np.array([-4.0, 4.0]), shape)
        query = key = np.concatenate((signs, signs), axis=1)[:, : call.queries]
    return Operands(query, key, forward.features(call).value)


def value_tokens(call: Call) -> Maps:
    """Return gradients of results that are the number of their token: those of values name it."""
    return Maps(_selecting(call), _numbers(call, call.queries, call.values, of_channels=False))


def value_channels(call: Call) -> Maps:
    """Return gradients of results that are the number of their channel."""
    return Maps(_selecting(call), _numbers(call, call.queries, call.values, of_channels=True))


def _naming(call: Call, *, of_channels: bool) -> Maps:
    """Return tokens whose gradients are sums of few others.

    Weights are equal. Value ``j`` is there in channel ``j`` alone, around the end, and the gradient of
    result ``i`` in one channel, of a size that makes up for the weights and the scale: so it asks for more
    of the values of one kind, and the gradient of its query names their keys.
    """
    if not call.equal_weights:
        raise ValueError("inputs that name tokens must have equal weights")
    unit = np.eye(call.values)
    value = unit[np.arange(call.key_tokens) % call.values]
    asked = (7 * np.arange(call.queries) + 3) % call.key_tokens % call.values
    size = 2.0 ** np.ceil(np.log2(call.key_tokens)) / EQUALISING

    def each(maps: Floats) -> Floats:
        return np.ascontiguousarray(np.broadcast_to(maps, (call.images, *maps.shape)))

    def named(tokens: int) -> Floats:
        numbers = _numbers(call, tokens, call.channels, of_channels=of_channels)
        # Every other token: of tokens that are all alike, nothing is left.
        return numbers * (np.arange(tokens) % 2)[:, None] if of_channels else numbers

    query = named(call.queries)
    key = named(call.keys) if call.keys else query
    return Maps(Operands(query, key, each(value)), each(size * unit[asked]))


def key_tokens(call: Call) -> Maps:
    """Return queries and keys that are the number of their token."""
    return _naming(call, of_channels=False)


def key_channels(call: Call) -> Maps:
    """Return queries and keys that are the number of their channel, every other one."""
    return _naming(call, of_channels=True)


KINDS: dict[str, Callable[[Call], Maps]] = {
    "features": features,
    "tokens of values": value_tokens,
    "channels of values": value_channels,
    "tokens of keys": key_tokens,
    "channels of keys": key_channels,
}


def rolled(one: Inputs, images: int) -> Inputs:
    """Return inputs of several images from those of one, whose tokens are moved along in each.

    Attention does not know their order, so what it kept moves with them.
    """

    def each(maps: Floats) -> Floats:
        return np.concatenate([np.roll(maps, 97 * image, axis=1) for image in range(images)])

    query = each(one.query)
    key = query if one.key is one.query else each(one.key)
    others = (each(maps) for maps in (one.value, one.grad_out, one.context, one.lse))
    return Inputs(query, key, *others)
