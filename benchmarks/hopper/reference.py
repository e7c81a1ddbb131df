# SPDX-License-Identifier: MIT
"""What the kernels must give, in float64, and where they do not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.hopper.library import WHOLE, Call, Floats, Inputs, Results

# Weights and results are rounded by 2^-8 of themselves at most; a quarter more than twice that is
# left for sums, exponentials and the order of things. Scores are sums in fp32.
_ROUNDING = 1.25 * 2.0**-7
_LSE = 4e-3
_ATOM = 8  # rows of an atom of the swizzle
_LINE = 64  # channels of a line


@dataclass(frozen=True)
class Expected:
    """Results of some rows in float64.

    Attributes:
        rows: Which tokens.
        out: ``(images, rows, values)``.
        magnitude: The same sums, of magnitudes.
        lse: ``(images, rows)``.
    """

    rows: NDArray[np.int64]
    out: Floats
    magnitude: Floats
    lse: Floats


def expect(call: Call, inputs: Inputs, rows: Sequence[int] | None = None) -> Expected:
    """Compute the rows asked for; all of them where none is named."""
    chosen = np.arange(call.queries) if rows is None else np.asarray(rows)
    shape = call.images, len(chosen), call.values
    found = Expected(chosen, np.empty(shape), np.empty(shape), np.empty(shape[:2]))
    groups = groups_of(call)
    for group in np.unique(groups[chosen]):
        here = np.flatnonzero(groups[chosen] == group)
        keys = np.flatnonzero(groups == group) if call.partition != WHOLE else slice(None)
        for image in range(call.images):
            scores = inputs.query[image, chosen[here]] @ inputs.key[image, keys].T * call.scale
            top = scores.max(axis=1, keepdims=True)
            weights = np.exp(scores - top)
            total = weights.sum(axis=1, keepdims=True)
            value = inputs.value[image, keys]
            found.out[image, here] = weights @ value / total
            found.magnitude[image, here] = weights @ np.abs(value) / total
            found.lse[image, here] = (top + np.log(total))[:, 0]
    return found


def groups_of(call: Call) -> NDArray[np.int64]:
    """Return the group of each query."""
    if call.partition == WHOLE:
        return np.zeros(call.queries, np.int64)
    rows, columns = call.partition[:4], call.partition[4:]
    down, across = _axis_groups(*rows), _axis_groups(*columns)
    return (down[:, None] * columns[1] + across[None, :]).reshape(-1)


def _axis_groups(size: int, count: int, step: int, stride: int) -> NDArray[np.int64]:
    positions = np.arange(size)
    return positions % stride if stride > 1 else np.minimum(positions // step, count - 1)


@dataclass(frozen=True)
class Verdict:
    """How right a call's results are; ``reason`` is empty where they are."""

    error: float  # relative, in the Frobenius norm
    lse_error: float
    reason: str


def judge(results: Results, expected: Expected) -> Verdict:
    """Compare results with what was expected, element by element."""
    out, lse = results.out[:, expected.rows], results.lse[:, expected.rows]
    bound = _ROUNDING * expected.magnitude + 1e-6
    reasons = [find_wrong("out", out, expected.out, bound)]
    if results.residual is not None:
        whole = out + results.residual[:, expected.rows]
        reasons.append(find_wrong("out + residual", whole, expected.out, bound))
        unrounded = np.abs(results.residual[:, expected.rows])
        nothing = np.zeros_like(out)
        reasons.append(find_wrong("residual", unrounded, nothing, np.abs(out) * 2.0**-8 + 1e-6))
    lse_bound = np.full_like(lse, _LSE)[..., None]
    reasons.append(find_wrong("lse", lse[..., None], expected.lse[..., None], lse_bound))
    error = float(np.linalg.norm(out - expected.out) / np.linalg.norm(expected.out))
    lse_error = float(np.abs(lse - expected.lse).max())
    return Verdict(error, lse_error, "; ".join(filter(None, reasons)))


def find_wrong(name: str, given: Floats, wanted: Floats, bound: Floats) -> str:
    """Say where elements are further from what is wanted than they may be; nothing if none is."""
    wrong = ~(np.abs(given - wanted) <= bound)  # NaN is wrong
    return f"{name}: {describe(wrong, given, wanted)}" if wrong.any() else ""


def describe(wrong: NDArray[np.bool_], given: Floats, wanted: Floats) -> str:
    """Say where elements are wrong: an error of a descriptor shows as whole atoms, lines or tiles."""
    image, row, channel = (int(place) for place in np.argwhere(wrong)[0])
    rows = np.asarray(wrong.any(axis=(0, 2)))
    channels = np.asarray(wrong.any(axis=(0, 1)))
    places = [tuple(map(int, place)) for place in np.argwhere(wrong)[:: max(1, wrong.sum() // 6)]]
    examples = ", ".join(
        f"({i}, {r}, {c}) {given[i, r, c]:.4g} for {wanted[i, r, c]:.4g}" for i, r, c in places[:6]
    )
    not_finite = int((~np.isfinite(given)).sum())
    parts = [
        f"{wrong.mean():.1%} wrong, {not_finite} not finite",
        f"first at image {image}, row {row}, channel {channel}",
        f"rows {_ranges(rows)}",
        f"atoms of 8 rows {_ranges(_any_of(rows, _ATOM))}",
        f"rows of an atom {_ranges(_any_of(rows, _ATOM, across=True))}",
        f"lines of 64 channels {_ranges(_any_of(channels, _LINE))}",
        f"channels of a line {_ranges(_any_of(channels, _LINE, across=True))}",
        f"(image, row, channel): {examples}",
    ]
    return "; ".join(parts)


def _any_of(flags: NDArray[np.bool_], size: int, *, across: bool = False) -> NDArray[np.bool_]:
    padded = np.zeros(-(-len(flags) // size) * size, bool)
    padded[: len(flags)] = flags
    return np.asarray(padded.reshape(-1, size).any(axis=0 if across else 1))


def _ranges(flags: NDArray[np.bool_]) -> str:
    """Return where flags are set, as ``0-3, 8``."""
    if flags.all():
        return "all"
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    spans = [(int(a), int(b) - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    words = [f"{a}" if a == b else f"{a}-{b}" for a, b in spans[:8]]
    return ", ".join(words) + (", ..." if len(spans) > 8 else "")
