# SPDX-License-Identifier: MIT
"""Hard example mining against each code's rule written out with a sorted list of pixels."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ocnet.losses import cross_entropy, ohem_cross_entropy
from tests.losses.restated import EPS, mined, resized

KINDS = ["ocnet", "openseg", "hrnet"]
WEIGHT = [0.5, 2.0, 0.0, 1.5]


def draw(dtype: torch.dtype = torch.float64, first: int = 255) -> tuple[Tensor, Tensor]:
    """Three images, a third of the pixels ignored; pixel 0 has label ``first``."""
    logits = (2 * torch.randn(3, 4, 5, 6, dtype=dtype)).requires_grad_()
    target = torch.randint(0, 4, (3, 5, 6))
    target[torch.rand(target.shape) < 0.3] = 255
    target[0, 0, 0] = first
    return logits, target


def check(
    logits: Tensor,
    target: Tensor,
    kind: str,
    threshold: float,
    min_kept: int,
    weight: list[float] | None = None,
) -> list[int]:
    got = ohem_cross_entropy(
        logits,
        target,
        threshold=threshold,
        min_kept=min_kept,
        kind=kind,
        weight=None if weight is None else torch.tensor(weight),
    )
    want = mined(logits, target, kind, threshold, min_kept, weight)
    loss = want.loss(logits, target)
    # At most 90 terms; each is one log-sum-exp of four numbers.
    torch.testing.assert_close(got, loss, rtol=100 * EPS, atol=0)
    (grad,) = torch.autograd.grad(got, logits)
    (grad_want,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(grad, grad_want, rtol=0, atol=100 * EPS)
    return want.pixels


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("first", [255, 1], ids=["ignored", "labelled"])
@pytest.mark.parametrize("kind", KINDS)
def test_keeps_what_the_code_keeps(kind: str, first: int, weight: list[float] | None) -> None:
    logits, target = draw(first=first)
    n, pixels = int((target != 255).sum()), target.numel()
    counts = set()
    for min_kept, threshold in itertools.product(
        (0, 1, 2, 30, n - 2, n - 1, n, n + 1, n + 2, pixels - 1, pixels, pixels + 1, 10**6),
        (0.0, 0.1, 0.5, 0.7, 1.0),
    ):
        counts.add(len(check(logits, target, kind, threshold, min_kept, weight)))
    assert len(counts) > 5
    assert max(counts) >= n


@pytest.mark.parametrize("kind", KINDS)
def test_ties_are_kept_or_dropped_together(kind: str) -> None:
    # Each probability is 0, 1, or one over the number of classes that share the largest logit.
    _, target = draw()
    logits = torch.randint(0, 2, (3, 4, 5, 6)).double().mul_(-2000).requires_grad_()
    n = int((target != 255).sum())
    for min_kept, threshold in itertools.product(range(0, n + 3), (0.0, 0.3, 0.7, 1.0)):
        check(logits, target, kind, threshold, min_kept, WEIGHT)


def column(chances: list[float], labels: list[int]) -> tuple[Tensor, Tensor]:
    """An image of one row whose pixels have these probabilities of their class (0 where ignored)."""
    p = torch.tensor(chances, dtype=torch.float64)
    target = torch.tensor(labels)
    first = p.where(target != 1, 1 - p)
    logits = torch.stack([first, 1 - first]).log()[None, :, None, :].requires_grad_()
    return logits, target[None, None, :]


def test_the_rules_differ_as_published() -> None:
    logits, target = column([0.9, 0.2, 0.5, 0.8, 0.95], [255, 0, 1, 1, 0])
    for kind, min_kept, kept in (
        ("ocnet", 0, [0.2, 0.5]),
        ("ocnet", 2, [0.2, 0.5]),
        ("ocnet", 3, [0.2, 0.5, 0.8]),
        ("ocnet", 4, [0.2, 0.5, 0.8, 0.95]),
        ("hrnet", 0, [0.2, 0.5]),
        ("hrnet", 2, [0.2, 0.5]),
        ("hrnet", 3, [0.2, 0.5, 0.8]),
        ("hrnet", 4, [0.2, 0.5, 0.8]),
        # The ignored pixel has loss 0 and is the fourth smallest of five.
        ("openseg", 2, [0.2, 0.5]),
        ("openseg", 3, [0.2, 0.5, 0.8]),
        ("openseg", 4, [0.2, 0.5, 0.8, 1.0]),
        ("openseg", 5, [0.2, 0.5, 0.8, 1.0]),
    ):
        got = ohem_cross_entropy(logits, target, threshold=0.6, min_kept=min_kept, kind=kind)
        want = -torch.tensor(kept, dtype=torch.float64).log().mean()
        torch.testing.assert_close(got, want, rtol=1e-14, atol=0, msg=f"{kind} {min_kept}")


def test_weights_normalise_for_ocnet_only() -> None:
    logits, target = column([0.2, 0.5, 0.9], [0, 1, 1])
    a, b = (-torch.tensor([0.2, 0.5], dtype=torch.float64).log()).tolist()
    weight = torch.tensor([2.0, 5.0])
    for kind, want in (("ocnet", (2 * a + 5 * b) / 7), ("hrnet", a + 2.5 * b)):
        got = ohem_cross_entropy(logits, target, min_kept=1, kind=kind, weight=weight)
        assert float(got.detach()) == pytest.approx(want, rel=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_everything_is_the_mean(kind: str) -> None:
    logits, target = draw(first=1)
    got = ohem_cross_entropy(logits, target, threshold=1.0, min_kept=0, kind=kind)
    torch.testing.assert_close(got, cross_entropy(logits, target), rtol=100 * EPS, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_resized_first(kind: str) -> None:
    logits = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 4, (2, 7, 9))
    target[torch.rand(target.shape) < 0.3] = 255
    got = ohem_cross_entropy(logits, target, threshold=0.2, min_kept=40, kind=kind)
    large = resized(logits, 7, 9)
    want = mined(large, target, kind, 0.2, 40).loss(large, target)
    torch.testing.assert_close(got, want, rtol=200 * EPS, atol=0)
    grads = [torch.autograd.grad(loss, logits)[0] for loss in (got, want)]
    torch.testing.assert_close(*grads, rtol=0, atol=200 * EPS)


@pytest.mark.parametrize("min_kept", [0, 1, 10, 10**6])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_learn_from_is_zero(kind: str, min_kept: int) -> None:
    logits = torch.randn(2, 4, 3, 5, requires_grad=True)
    for label, weight in ((255, None), (255, torch.ones(4)), (1, torch.zeros(4))):
        target = torch.full((2, 7, 9), label)
        loss = ohem_cross_entropy(logits, target, min_kept=min_kept, kind=kind, weight=weight)
        assert float(loss.detach()) == 0
        (grad,) = torch.autograd.grad(loss, logits)
        assert torch.equal(grad, torch.zeros_like(logits))


@pytest.mark.parametrize("kind", ["openseg", "hrnet"])
def test_equal_and_certain_pixels_keep_nothing(kind: str) -> None:
    logits = torch.zeros(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    target = torch.ones(1, 3, 3, dtype=torch.int64)
    assert check(logits, target, kind, 0.3, 4) == []
    assert len(check(logits, target, "ocnet", 0.3, 4)) == 9


@pytest.mark.parametrize("where", [0, 7, 89])
@pytest.mark.parametrize("kind", KINDS)
def test_one_pixel(kind: str, where: int) -> None:
    logits, target = draw()
    target.fill_(255).view(-1)[where] = 2
    for min_kept, threshold in itertools.product((0, 1, 2, 89, 90), (0.0, 0.5, 1.0)):
        check(logits, target, kind, threshold, min_kept)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_by_differences(kind: str) -> None:
    logits, target = draw()
    weight = torch.tensor([0.5, 2.0, 1.0, 1.5], dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return ohem_cross_entropy(
            x, target[:1], threshold=0.2, min_kept=8, kind=kind, weight=weight
        )

    # No probability is so close to the threshold that a step of 1e-6 crosses it.
    assert torch.autograd.gradcheck(loss, logits[:1].detach().requires_grad_())


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_matter(kind: str) -> None:
    logits, target = draw(first=2)
    logits = logits.detach()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return ohem_cross_entropy(x, y, threshold=0.3, min_kept=25, kind=kind)

    want = loss(logits, target)
    shifted = logits + torch.randn(3, 1, 5, 6, dtype=torch.float64)
    filled = logits.where((target != 255)[:, None], torch.randn_like(logits))
    order = torch.tensor([2, 0, 3, 1])
    renamed = target.where(target == 255, torch.argsort(order)[target.where(target != 255, 0)])
    images = [0, 2, 1]
    for x, y in (
        (shifted, target),
        (filled, target),
        (logits[:, order], renamed),
        (logits[images], target[images]),
    ):
        torch.testing.assert_close(loss(x, y), want, rtol=100 * EPS, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_narrow_logits_are_mined_wide(kind: str, dtype: torch.dtype) -> None:
    logits, target = draw(torch.float32)
    narrow = logits.detach().to(dtype).requires_grad_()
    arguments: dict[str, Any] = {"threshold": 0.3, "min_kept": 25, "kind": kind}
    want = ohem_cross_entropy(narrow.detach().float(), target, **arguments)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = ohem_cross_entropy(narrow, target, **arguments)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, want)
    loss.backward()
    assert narrow.grad.dtype == dtype


@pytest.mark.parametrize("min_kept", [0, 5, 10**6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_diverged_shows(kind: str, min_kept: int) -> None:
    logits, target = draw(first=1)
    logits = logits.detach()
    logits[target[:, None].expand_as(logits) == 255] = torch.nan
    assert bool(ohem_cross_entropy(logits, target, min_kept=min_kept, kind=kind).isfinite())
    logits[0, 3, 0, 0] = torch.nan
    assert bool(ohem_cross_entropy(logits, target, min_kept=min_kept, kind=kind).isnan())


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.devices: set[torch.device] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func._schema.name.removeprefix("aten::"))
        out = func(*args, **(kwargs or {}))
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, out))
        self.devices |= {x.device for x in leaves if isinstance(x, Tensor) and x.dim() > 0}
        return out


WAITING = {"_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal"}
UNREPEATABLE = {"kthvalue", "cumsum", "scatter_add", "index_put", "bincount", "histc", "median"}


def record(weight: Tensor | None, target: Tensor, kind: str, device: str) -> Recorder:
    logits = torch.randn(2, 4, 5, 6, device=device, requires_grad=True)
    with Recorder() as recorder:
        loss = ohem_cross_entropy(logits, target, min_kept=40, kind=kind, weight=weight)
        loss.backward()
    return recorder


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_waits_for_the_device(kind: str) -> None:
    weight = torch.ones(4, device="meta")
    target = torch.zeros(2, 9, 11, dtype=torch.int64, device="meta")
    recorder = record(weight, target, kind, "meta")
    assert "topk" in recorder.names
    assert not recorder.names & (WAITING | UNREPEATABLE)
    assert recorder.devices == {torch.device("meta")}
    # The labels of CPU tensors are looked at, so there the recorder has something to find.
    cpu = record(torch.ones(4), torch.zeros(2, 9, 11, dtype=torch.int64), kind, "cpu")
    assert cpu.names & WAITING == {"_local_scalar_dense"}


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_in_one_graph(kind: str) -> None:
    def loss(x: Tensor) -> Tensor:
        weight = torch.tensor(WEIGHT, dtype=torch.float64)
        return ohem_cross_entropy(x, target, threshold=0.3, min_kept=25, kind=kind, weight=weight)

    logits, target = draw()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got, want = compiled(logits), loss(logits)
    torch.testing.assert_close(got, want, rtol=8 * EPS, atol=0)
    grads = [torch.autograd.grad(x, logits)[0] for x in (got, want)]
    torch.testing.assert_close(*grads, rtol=0, atol=8 * EPS)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"threshold": -0.1}, "threshold must be 0 to 1, got -0.1"),
        ({"threshold": 1.5}, "threshold must be 0 to 1, got 1.5"),
        ({"threshold": float("nan")}, "threshold must be 0 to 1, got nan"),
        ({"min_kept": -1}, "min_kept must be 0 or more, got -1"),
        ({"kind": "mine"}, "kind must be one of ocnet, openseg, hrnet, got 'mine'"),
        ({"weight": torch.ones(5)}, r"weight must have shape \(4,\), got \(5,\)"),
        ({"ignore_index": 3}, r"target must hold labels in \[0, 4\) or 3, got 255"),
    ],
)
def test_other_arguments_are_refused(arguments: dict[str, Any], match: str) -> None:
    logits, target = draw()
    with pytest.raises(ValueError, match=f"ohem_cross_entropy: {match}"):
        ohem_cross_entropy(logits, target, **arguments)


def test_labels_of_other_kinds() -> None:
    logits, target = draw()
    want = ohem_cross_entropy(logits, target, min_kept=25)
    assert torch.equal(ohem_cross_entropy(logits, target.to(torch.uint8), min_kept=25), want)
    other = target.where(target != 255, -1)
    assert torch.equal(ohem_cross_entropy(logits, other, min_kept=25, ignore_index=-1), want)
