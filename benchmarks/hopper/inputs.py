# SPDX-License-Identifier: MIT
"""Inputs of the kernels; some of them say by their results which part of a kernel is wrong."""

from collections.abc import Callable

import numpy as np

from benchmarks.hopper.library import Call, Floats, Inputs, from_bfloat16, to_bfloat16

_CODES = 256  # integers from 0 on that bfloat16 has


def features(call: Call, seed: int = 0) -> Inputs:
    """Return noise as the activation of a transform leaves it."""
    random = np.random.default_rng(seed)

    def noise(tokens: int, channels: int) -> Floats:
        normal = random.standard_normal((call.images, tokens, channels), np.float32)
        return from_bfloat16(to_bfloat16(np.where(normal > 0, normal, 0.01 * normal)))

    query = noise(call.queries, call.channels)
    key = noise(call.keys, call.channels) if call.keys else query
    return Inputs(query, key, noise(call.key_tokens, call.values))


def uniform(call: Call) -> Inputs:
    """Return queries of zeros: all weights are equal, so only the product with values can be wrong."""
    given = features(call)
    query = np.zeros_like(given.query)
    return Inputs(query, given.key if call.keys else query, given.value)


def selecting(call: Call) -> tuple[Floats, Floats]:
    """Return queries that each see one key alone: query ``i`` the key ``7 i + 3``, around the end."""
    random = np.random.default_rng(1)
    shape = call.images, call.key_tokens, call.channels
    signs = random.choice(np.array([-1.0, 1.0]), shape)
    seen = (7 * np.arange(call.queries) + 3) % call.key_tokens
    return 8.0 * signs[:, seen], signs


def tokens(call: Call) -> Inputs:
    """Return values that are the number of their token (modulo 256): results name what was read."""
    query, key = selecting(call)
    numbers = np.arange(call.key_tokens, dtype=np.float64) % _CODES
    shape = call.images, call.key_tokens, call.values
    return Inputs(query, key, np.broadcast_to(numbers[:, None], shape))


def channels(call: Call) -> Inputs:
    """Return values that are the number of their channel (modulo 256)."""
    query, key = selecting(call)
    numbers = np.arange(call.values, dtype=np.float64) % _CODES
    return Inputs(query, key, np.broadcast_to(numbers, (call.images, call.key_tokens, call.values)))


KINDS: dict[str, Callable[[Call], Inputs]] = {
    "features": features,
    "uniform": uniform,
    "tokens": tokens,
    "channels": channels,
}
