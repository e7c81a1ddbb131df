# SPDX-License-Identifier: MIT
"""What the backward kernels must give, in float64 and row by row, and where they do not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.hopper.backward_library import Inputs, Results, Variant
from benchmarks.hopper.library import WHOLE, Call, Floats
from benchmarks.hopper.reference import find_wrong, groups_of

_ROUNDED = 2.0**-8  # of a number of bfloat16, at most
# Of a sum of fp32, whose products are exact, and of out + residual. Exponents are as near as that to
# those of float64, where scores are at most some hundreds.
_SUMMED = 2.0**-14
_LEAST = 2.0**-126
_SLICE = 256  # values of a launch
_LOG2E = float(np.log2(np.e))

Rows = NDArray[np.int64]
Places = NDArray[np.bool_] | slice
Three = tuple[Floats, Floats, Floats]  # of Sums
Sample = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class Sums:
    """Rows of a gradient.

    Attributes:
        rows: Which tokens.
        exact: ``(images, rows, channels)``.
        rounded: The same sums of the magnitudes of what kernels round to 16 bits.
        summed: The same of magnitudes of all that is added up before.
    """

    rows: Rows
    exact: Floats
    rounded: Floats
    summed: Floats


@dataclass(frozen=True)
class Expected:
    """Numbers ``(images, queries, 2)`` with how far they may be off, and rows of gradients by name."""

    numbers: Floats
    number_bounds: Floats
    gradients: Mapping[str, Sums]


def expect(
    call: Call, inputs: Inputs, wanted: Sequence[str], sample: Sample | None = None
) -> Expected:
    """Compute gradients of the rows that ``sample`` chooses of so many tokens; of all without it."""
    terms = inputs.grad_out * inputs.context
    last = terms[..., (call.values - 1) // _SLICE * _SLICE :]  # its numbers are those that stay
    numbers = np.stack((inputs.lse * _LOG2E, last.sum(axis=2)), axis=2)
    magnitude = np.abs(last).sum(axis=2)
    bounds = np.stack((np.abs(inputs.lse) * 2.0**-21 + 2.0**-20, magnitude * _SUMMED), axis=2)
    sums = {}
    for name in wanted:
        tokens = call.queries if name == "grad_query" else call.key_tokens
        rows = np.arange(tokens) if sample is None else np.asarray(sample(tokens))
        sums[name] = _gradient(name, call, inputs, terms.sum(axis=2), rows)
    return Expected(numbers, bounds + _LEAST, sums)


def _gradient(name: str, call: Call, inputs: Inputs, delta: Floats, rows: Rows) -> Sums:
    width = call.values if name == "grad_value" else call.channels
    parts = [np.zeros((call.images, len(rows), width)) for _ in range(3)]
    sides: list[Callable[[_Image, Rows, Places], Three]] = [_OF[name]]
    if name == "grad_query" and not call.keys:
        sides.append(_as_key)
    groups = groups_of(call)
    for image in range(call.images):
        of_image = _Image(call, inputs, delta, image)
        for group in np.unique(groups[rows] if call.partition != WHOLE else [0]):
            here: Places = slice(None)
            others: Places = slice(None)
            if call.partition != WHOLE:
                here, others = groups[rows] == group, groups == group
            for side in sides:
                for total, part in zip(parts, side(of_image, rows[here], others), strict=True):
                    total[image, here] += part
    return Sums(rows, *parts)


class _Image:
    """One image of a call."""

    def __init__(self, call: Call, inputs: Inputs, delta: Floats, image: int) -> None:
        self.scale = call.scale
        self.query, self.key = inputs.query[image], inputs.key[image]
        self.value, self.grad_out = inputs.value[image], inputs.grad_out[image]
        self.lse, self.delta = inputs.lse[image], delta[image]
        self.context = np.abs(inputs.grad_out[image] * inputs.context[image]).sum(axis=1)


def _as_query(of: _Image, rows: Rows, keys: Places) -> Three:
    """Return the gradients of queries."""
    grads, value, key = of.grad_out[rows], of.value[keys], of.key[keys]
    weights = np.exp(of.query[rows] @ key.T * of.scale - of.lse[rows, None])
    mean, context = of.delta[rows, None], of.context[rows, None]
    return _summed(of.scale, weights, (grads, value), mean, context, key)


def _as_key(of: _Image, rows: Rows, queries: Places) -> Three:
    """Return the gradients of keys."""
    grads, value, query = of.grad_out[queries], of.value[rows], of.query[queries]
    weights = np.exp(of.key[rows] @ query.T * of.scale - of.lse[queries])
    return _summed(of.scale, weights, (value, grads), of.delta[queries], of.context[queries], query)


def _summed(
    scale: float,
    weights: Floats,
    pair: tuple[Floats, Floats],
    delta: Floats,
    context: Floats,
    tokens: Floats,
) -> Three:
    """Return scale * (weights * (product of the pair - delta)) tokens, and it of magnitudes."""
    product = pair[0] @ pair[1].T
    of_magnitudes = np.abs(pair[0]) @ np.abs(pair[1]).T + context
    size = np.abs(tokens)
    return (
        scale * (weights * (product - delta)) @ tokens,
        scale * (weights * (np.abs(product) + np.abs(delta))) @ size,
        scale * (weights * of_magnitudes) @ size,
    )


def _of_values(of: _Image, rows: Rows, queries: Places) -> Three:
    grads = of.grad_out[queries]
    weights = np.exp(of.key[rows] @ of.query[queries].T * of.scale - of.lse[queries])
    magnitude = weights @ np.abs(grads)
    return weights @ grads, magnitude, magnitude


_OF = {"grad_query": _as_query, "grad_key": _as_key, "grad_value": _of_values}


@dataclass(frozen=True)
class Verdict:
    """How right a pass is; ``reason`` is empty where it is."""

    errors: Mapping[str, float]  # relative, in the Frobenius norm
    reason: str


def judge(variant: Variant, results: Results, expected: Expected) -> Verdict:
    """Compare results with what was expected, element by element."""
    queries = expected.numbers.shape[1]
    numbers = results.numbers
    wanted, bounds = np.zeros_like(numbers), np.zeros_like(numbers)
    wanted[:, :queries], bounds[:, :queries] = expected.numbers, expected.number_bounds
    errors = {}
    reasons = [find_wrong("lse (0) and delta (1)", numbers, wanted, bounds)]
    for name, sums in expected.gradients.items():
        given = results.gradients[name][:, sums.rows]
        bound = _roundings(variant, name) * _ROUNDED * sums.rounded + _SUMMED * sums.summed
        reasons.append(find_wrong(name, given, sums.exact, bound + _LEAST))
        size = float(np.linalg.norm(sums.exact))
        errors[name] = float(np.linalg.norm(given - sums.exact)) / max(size, _LEAST)
    return Verdict(errors, "; ".join(filter(None, reasons)))


def _roundings(variant: Variant, name: str) -> int:
    """Return how often what makes a gradient is rounded: weights, their gradients, the result."""
    return 2 + (variant.hands_weights if name != "grad_value" else 0)
