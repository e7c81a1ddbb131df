# SPDX-License-Identifier: MIT
"""Tensor maps that were asked for before (csrc/common/tensor_map_cache.h)."""

from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.native

# Address, element, axes and swizzle, then sizes, strides in bytes and box sides of four axes.
REQUEST = [1 << 20, 0, 3, 0, *(64, 9, 8, 7), *(0, 128, 2048, 16384), *(64, 4, 3, 2)]
CHANGES = {
    "address": (0, 2 << 20),
    "element": (1, 2),
    "axes": (2, 2),
    "swizzle": (3, 1),
    **{f"size {axis}": (4 + axis, 6) for axis in range(4)},
    **{f"stride {axis}": (8 + axis, 4096) for axis in range(4)},
    **{f"box {axis}": (12 + axis, 8) for axis in range(4)},
}
MISALIGNED = [REQUEST[0] + 8, *REQUEST[1:]]


def _at(index: int) -> list[int]:
    return [(index + 1) << 10, *REQUEST[1:]]


def test_an_equal_request_is_not_encoded_again(emulator):
    cache = emulator.TensorMapCache(4)
    expected = emulator.encode_tensor_map(REQUEST)
    assert cache.get(REQUEST) == (expected, True)
    assert cache.get(list(REQUEST)) == (expected, False)


@pytest.mark.parametrize("field", CHANGES)
def test_requests_differ_in_every_field(emulator, field):
    cache = emulator.TensorMapCache(4)
    first, _ = cache.get(REQUEST)
    index, number = CHANGES[field]
    changed = [number if i == index else old for i, old in enumerate(REQUEST)]
    expected = emulator.encode_tensor_map(changed)
    assert expected != first
    assert cache.get(changed) == (expected, True)
    assert cache.get(REQUEST) == (first, False)


def test_the_oldest_makes_way(emulator):
    cache = emulator.TensorMapCache(3)
    assert [cache.get(_at(index))[1] for index in (0, 1, 2, 0, 1, 2)] == [True] * 3 + [False] * 3
    cache.get(_at(3))
    assert [cache.get(_at(index))[1] for index in (1, 2, 3)] == [False] * 3
    assert cache.get(_at(0))[1]
    assert cache.get(_at(1))[1]
    assert not cache.get(_at(3))[1]


def test_a_refusal_is_not_kept(emulator):
    cache = emulator.TensorMapCache(1)
    cache.get(REQUEST)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="get: tensor map must have data aligned to 16"):
            cache.get(MISALIGNED)
        with pytest.raises(RuntimeError, match="cached: tensor map must have data aligned to 16"):
            emulator.cached_tensor_map(MISALIGNED)
    assert not cache.get(REQUEST)[1]


def test_threads_share_it(emulator):
    cache = emulator.TensorMapCache(8)
    requests = [_at(index % 8) for index in range(4000)]
    expected = [emulator.encode_tensor_map(request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(cache.get, requests))
    assert [words for words, _ in found] == expected
    assert sum(encoded for _, encoded in found) == 8


def test_kernels_get_what_was_asked_for(emulator):
    requests = [_at(index) for index in range(600)]
    for request in requests + requests[-3:]:
        assert emulator.cached_tensor_map(request) == emulator.encode_tensor_map(request)
