# SPDX-License-Identifier: MIT
"""Bad input: one sentence each, in the project's form."""

import pytest
import torch

from ocnet.ops import attention_rows, oc_attention

FORM = r"^[a-z_]+: [a-z_]+ must .*, got .*$"


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


GOOD = (2, 4, 3, 5)
CASES = {
    "rank": ((maps(2, 4, 15), maps(*GOOD), maps(*GOOD)), ValueError, "query must have shape"),
    "batch": ((maps(*GOOD), maps(1, 4, 3, 5), maps(*GOOD)), ValueError, "batch size of query, 2"),
    "value batch": (
        (maps(*GOOD), maps(*GOOD), maps(3, 4, 3, 5)),
        ValueError,
        "value must have the b",
    ),
    "channels": ((maps(*GOOD), maps(2, 6, 3, 5), maps(*GOOD)), ValueError, "channels of query, 4"),
    "positions": (
        (maps(*GOOD), maps(*GOOD), maps(2, 4, 5, 3)),
        ValueError,
        "rows and columns of key",
    ),
    "integers": ((maps(*GOOD, dtype=torch.int64),) * 3, TypeError, "got int64"),
    "mixed": (
        (maps(*GOOD), maps(*GOOD, dtype=torch.float64), maps(*GOOD)),
        TypeError,
        "dtype of query",
    ),
    "devices": (
        (maps(*GOOD), torch.ones(GOOD, device="meta"), maps(*GOOD)),
        ValueError,
        "device of query, cpu, got meta",
    ),
    "no rows": ((maps(2, 4, 0, 5),) * 3, ValueError, "at least one channel, row and column"),
    "no channels": ((maps(2, 0, 3, 5),) * 3, ValueError, "at least one channel"),
    "not a tensor": (
        ([1.0], maps(*GOOD), maps(*GOOD)),
        TypeError,
        "query must be a tensor, got list",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_attention_refuses(name: str) -> None:
    arguments, error, text = CASES[name]
    with pytest.raises(error, match=text) as caught:
        oc_attention(*arguments)
    assert str(caught.value).startswith("oc_attention: ")
    assert " must " in str(caught.value)
    assert ", got " in str(caught.value)


def test_scale_must_be_a_number() -> None:
    with pytest.raises(TypeError, match="scale must be a number"):
        oc_attention(maps(*GOOD), maps(*GOOD), maps(*GOOD), scale=torch.tensor(1.0))


def test_a_scale_of_zero_is_honoured() -> None:
    value = torch.randn(1, 3, 4, 4)
    out = oc_attention(torch.randn(1, 2, 4, 4), torch.randn(1, 2, 4, 4), value, scale=0.0)
    torch.testing.assert_close(out, value.mean((2, 3), keepdim=True).expand_as(out))


@pytest.mark.parametrize(
    ("points", "error", "text"),
    [
        ([(0, 5)], ValueError, r"within 3 x 5 pixels, got \(0, 5\)"),
        ([(-1, 0)], ValueError, r"got \(-1, 0\)"),
        ([(0.5, 1.0)], TypeError, "points must be integers"),
        ([1, 2, 3], ValueError, r"points must have shape \(P, 2\) or \(2, P, 2\)"),
        (torch.zeros(3, 4, 2, dtype=torch.long), ValueError, r"got \(3, 4, 2\)"),
    ],
)
def test_rows_refuse(points, error, text: str) -> None:
    with pytest.raises(error, match=text):
        attention_rows(maps(*GOOD), maps(*GOOD), points)
