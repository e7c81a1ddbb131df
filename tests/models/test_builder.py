# SPDX-License-Identifier: MIT
"""Networks by name: names, options, norms, initial weights, and what all of them return."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ocnet.models import Logits, Segmentor, create, names
from ocnet.models.recipes import ALIASES
from ocnet.modules import (
    ABN,
    ISA,
    InPlaceABN,
    InPlaceABNSync,
    ObjectContext,
    SyncABN,
    norm_names,
)
from tests.models.slim import STRUCTURES, attends, awake, slim

HEADS = ("baseline", "base_oc", "pyramid_oc", "asp_oc", "local")
NAMES = {
    *(f"resnet{depth}_{head}" for depth in (18, 50, 101) for head in HEADS),
    *(f"tiny_{head}" for head in HEADS),
    *(
        f"{body}_{h}"
        for body in ("resnet18", "resnet50", "tiny")
        for h in ("isa", "ocr", "asp_ocr")
    ),
    *(f"openseg_{head}" for head in ("base_oc", "asp_oc", "isa", "ocr", "asp_ocr", "fcn")),
    *("hrnet_w48", "hrnet_w48_ocr", "hrnet_w48_ocr_b", "hrnet_w48_asp_ocr", "seg_hrnet_w48_ocr"),
    *("ce2p", "ce2p_asp_oc"),
}
WITHOUT_AUX = ("resnet101_baseline", "hrnet_w48")
# Networks whose main logits need the auxiliary ones, or that always have them.
NEEDED = ("_ocr", "_ocr_b", "ce2p", "ce2p_asp_oc")
LEFT_SMALL = ("resnet101", "ce2p", "seg_")


def test_names() -> None:
    assert set(names()) == NAMES
    assert len(names()) == len(NAMES)
    assert set(ALIASES.values()) <= NAMES
    assert set(ALIASES).isdisjoint(NAMES)


def test_published_names_are_understood() -> None:
    with torch.device("meta"):
        one, other = create("resnet101_base_oc_dsn"), create("resnet101_base_oc")
    assert type(one) is type(other)
    assert list(one.state_dict()) == list(other.state_dict())


@pytest.mark.parametrize("body", ["resnet18", "resnet50", "resnet101", "tiny"])
def test_the_control_has_the_parameters_of_base_oc(body: str) -> None:
    with torch.device("meta"):
        networks = [create(f"{body}_{head}", 7) for head in ("base_oc", "local")]
    shapes = [{n: v.shape for n, v in net.named_parameters()} for net in networks]
    assert shapes[0] == shapes[1]
    has_context = [any(isinstance(m, ObjectContext) for m in net.modules()) for net in networks]
    assert has_context == [True, False]


@pytest.mark.parametrize("name", sorted(NAMES))
def test_logits_of_every_network(name: str) -> None:
    classes, size = 4, (73, 101)
    # Shapes alone, without numbers: ResNet-101 in no time.
    with FakeTensorMode():
        model = create(name, classes, in_channels=2)
        images = torch.empty(2, 2, *size)
        for training in (True, False):
            result = model.train(training)(images)
            assert isinstance(result, Logits)
            given = [x for x in (result.aux, result.main) if x is not None]
            (shape,) = {tuple(x.shape) for x in given}
            assert shape[:2] == (2, classes)
            assert (shape[2:] == size) == model.upsamples
            assert (result.edge is not None) == name.startswith("ce2p")
        with_aux = result.aux is not None
        model.aux_in_eval = False
        assert (model(images).aux is not None) == (with_aux and name.endswith(NEEDED))


@pytest.mark.parametrize("name", STRUCTURES)
def test_result_is_a_tuple_with_the_auxiliary_logits_first(name: str) -> None:
    model = slim(name).eval()
    aux, main, edge = result = model(torch.randn(1, 3, 65, 65))
    assert aux is result.aux
    assert main is result.main
    assert edge is result.edge
    assert (aux is None) == (name in WITHOUT_AUX)
    small = name.startswith(LEFT_SMALL)
    assert (main.shape[-2:] != (65, 65)) == small


@pytest.mark.parametrize("size", [(33, 45), (8, 71), (17, 16)], ids=str)
@pytest.mark.parametrize("name", STRUCTURES)
def test_any_size_in_both_layouts(name: str, size: tuple[int, int]) -> None:
    model = awake(slim(name)).double().eval()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    want = model(images).main
    assert bool(want.isfinite().all())
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    got = last(images.contiguous(memory_format=torch.channels_last)).main
    # Sums in other orders, in double, through a hundred layers.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10 * float(want.detach().abs().max()))
    one = model(images[:1]).main
    torch.testing.assert_close(one, want[:1], rtol=0, atol=1e-10 * float(want.detach().abs().max()))


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_parameter_learns(name: str) -> None:
    model = awake(slim(name, dropout=0.0)).double().train()
    result = model(torch.randn(2, 3, 65, 65, dtype=torch.float64))
    sum((x.square().mean() for x in result if x is not None), torch.zeros(())).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert [n for n, grad in grads.items() if grad is None] == []
    # Biases before a norm learn nothing, but for what rounding makes of it.
    assert [n for n, grad in grads.items() if grad.dim() == 4 and not grad.any()] == []


@pytest.mark.parametrize("name", STRUCTURES)
def test_context_begins_at_zero_where_it_was_published_so(name: str) -> None:
    zero = [n for n, p in slim(name).named_parameters() if p.dim() == 4 and not p.any()]
    # Object context begins at nothing; ISA does not, as its second step would see nothing.
    begins = {"resnet101_pyramid_oc": 4, "ce2p_asp_oc": 1, "resnet101_local": 1}
    wanted = begins.get(name, 1 if name.endswith(("base_oc", "asp_oc")) else 0)
    assert len(zero) == wanted
    assert all(n.endswith(".W.weight") for n in zero)


def test_norms_of_the_published_networks() -> None:
    model = slim("resnet101_base_oc")
    norms = {n: m for n, m in model.named_modules() if isinstance(m, ABN)}
    assert all(isinstance(m, InPlaceABNSync) and m.scale_mode == "abs_eps" for m in norms.values())
    heads = {n: m for n, m in norms.items() if n.startswith(("context", "dsn"))}
    assert {(m.activation, m.activation_param, m.relu_after) for m in heads.values()} == {
        ("leaky_relu", 0.01, False)
    }
    bodies = {n: m for n, m in norms.items() if n not in heads}
    assert {m.activation for m in bodies.values()} == {"identity"}
    assert {m.relu_after for n, m in bodies.items() if "downsample" not in n} == {True}
    assert {m.relu_after for n, m in bodies.items() if "downsample" in n} == {False}
    assert {m.momentum for n, m in norms.items() if "f_key" not in n} == {0.1}
    assert not any("num_batches_tracked" in n for n in model.state_dict())
    assert {m.layer for m in norms.values()} == set(norms)


def test_nothing_activates_before_the_pyramid_nor_in_its_auxiliary_head() -> None:
    for activation in ("leaky_relu", "relu"):
        model = slim("resnet101_pyramid_oc", activation=activation)
        for norm in (model.layer5[1], model.dsn[1]):
            assert norm.activation == "identity"
            assert not norm.relu_after
        assert model.context.up_dr[1].relu_after == (activation == "relu")


ACTIVATIONS = {
    ("openseg_ocr", None): ("leaky_relu", False),
    ("openseg_ocr", "inplace_abn"): ("leaky_relu", False),
    ("openseg_ocr", "batchnorm"): ("relu", False),
    ("hrnet_w48_ocr", "syncbn"): ("relu", False),
    ("seg_hrnet_w48_ocr", None): ("relu", False),
    ("seg_hrnet_w48_ocr", "inplace_abn"): ("identity", True),
    ("resnet101_asp_oc", "batchnorm"): ("leaky_relu", False),
}


@pytest.mark.parametrize(("name", "norm"), ACTIVATIONS)
def test_activations_of_heads_are_the_published_ones(name: str, norm: str | None) -> None:
    model = slim(name, norm=norm)
    heads = [
        m for n, m in model.named_modules() if (isinstance(m, ABN) and "head" in n) or "dsn" in n
    ]
    found = {(m.activation, m.relu_after) for m in heads if isinstance(m, ABN)}
    assert found == {ACTIVATIONS[name, norm]}


def test_norm_of_the_hrnet_repository_is_torchs() -> None:
    norms = [m for m in slim("seg_hrnet_w48_ocr").modules() if isinstance(m, ABN)]
    assert {type(m) for m in norms} == {SyncABN}


@pytest.mark.parametrize("norm", norm_names())
def test_norms_can_be_chosen(norm: str) -> None:
    model = slim("openseg_isa", norm=norm)
    norms = [m for m in model.modules() if isinstance(m, ABN)]
    assert all(isinstance(m, InPlaceABN) == norm.startswith("inplace") for m in norms)
    assert model(torch.randn(2, 3, 33, 33)).main.shape == (2, 4, 33, 33)


def test_options() -> None:
    model = create(
        "tiny_base_oc",
        5,
        in_channels=1,
        backend="reference",
        sizes=(1, 2),
        aux=True,
        channels=24,
        key_channels=8,
        value_channels=12,
        dropout=0.3,
    )
    blocks = [m for m in model.modules() if isinstance(m, ObjectContext)]
    assert [(b.scale, b.backend) for b in blocks] == [(1, "reference"), (2, "reference")]
    assert blocks[0].f_key[0].weight.shape == (8, 24, 1, 1)
    assert blocks[0].f_value.weight.shape == (12, 24, 1, 1)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout2d)} == {0.3}
    outputs = model(torch.randn(2, 1, 32, 32))
    assert outputs.aux.shape == outputs.main.shape == (2, 5, 8, 8)
    with torch.device("meta"):
        assert create("resnet18_base_oc", 5, aux=False).dsn is None
        assert create("resnet18_base_oc", 5).cls.in_channels == 128
        assert create("openseg_isa").cls_head.out_channels == 19


def test_isa_with_several_factors() -> None:
    model = slim("openseg_isa", factors=((8, 8), (4, 6))).eval()
    (isa,) = [m for m in model.modules() if isinstance(m, ISA)]
    assert [stage.down_factor for stage in isa.stages] == [(8, 8), (4, 6)]
    assert "isa_head.2.up_conv.0.weight" in model.state_dict()
    assert model(torch.randn(1, 3, 65, 41)).main.shape == (1, 4, 65, 41)


def test_the_backend_reaches_every_op() -> None:
    for name in STRUCTURES:
        model = slim(name, backend="reference")
        ops = [m for m in model.modules() if hasattr(m, "backend") and not isinstance(m, ABN)]
        assert bool(ops) == attends(name)
        assert {m.backend for m in ops} <= {"reference"}


def test_an_unknown_name_is_answered_with_the_nearest_ones() -> None:
    with pytest.raises(
        ValueError, match=r"create: name must be one of .*names\(\), got '"
    ) as error:
        create("resnet18_baseoc", 5)
    assert "the nearest are resnet18_base_oc, resnet101_base_oc, " in str(error.value)
    with pytest.raises(ValueError, match="the nearest are openseg_isa, "):
        create("openseg_issa")
    with pytest.raises(ValueError, match=r"got '%%%'; none is near it$"):
        create("%%%", 5)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("tiny_local", {"sizes": (2,)}, "sizes must be left out for tiny_local, whose options are"),
        ("resnet18_baseline", {"key_channels": 8}, "options are channels, dropout, got 8"),
        ("tiny_base_oc", {"channels": 0}, "channels must be at least 1, got 0"),
        ("tiny_base_oc", {"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ("tiny_local", {"value_channels": 8}, "value_channels must equal key_channels"),
        ("tiny_local", {"activation": "elu"}, "activation must be relu or leaky_relu, got 'elu'"),
        ("tiny_local", {"backbone_activation": "no"}, "backbone_activation must be relu or"),
        ("tiny_asp_oc", {"dilations": (1, 2)}, r"dilations must be three, got \(1, 2\)"),
        ("ce2p", {"context": "none"}, "context must be one of psp, asp_oc, got 'none'"),
        ("tiny_ocr", {"checkpoint_backbone": True}, "checkpoint_backbone must be left at False"),
        ("tiny_ocr", {"norm": "instance"}, "norm must be one of batchnorm"),
    ],
)
def test_options_that_do_not_fit_are_refused(name: str, options, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        create(name, 5, **options)
    with pytest.raises(TypeError, match="num_classes must be an integer, got '5'"):
        create("tiny_local", "5")


def test_images_are_checked() -> None:
    model = create("tiny_base_oc", 5)
    with pytest.raises(ValueError, match=r"Segmentor: images must have shape \(N, 3, H, W\), got"):
        model(torch.zeros(2, 1, 32, 32))
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\)"):
        model(torch.zeros(3, 32, 32))
    with pytest.raises(TypeError, match=r"Segmentor: images must be floating, got torch\.uint8"):
        model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("name", STRUCTURES)
def test_copies_and_pickles_compute_the_same(name: str) -> None:
    model = awake(slim(name)).eval()
    images = torch.randn(1, 3, 33, 33)
    want = model(images).main
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(twin, Segmentor)
        assert torch.equal(twin(images).main, want)


@pytest.mark.parametrize("name", ["resnet101_base_oc", "openseg_isa", "hrnet_w48_ocr", "ce2p"])
def test_the_backbone_can_be_computed_again(name: str) -> None:
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = awake(slim(name, dropout=0.0, checkpoint_backbone=recompute)).double().train()
        result = model(torch.randn(2, 3, 49, 33, dtype=torch.float64))
        sum((x.square().mean() for x in result if x is not None), torch.zeros(())).backward()
        results.append(
            [result.main.detach(), *(p.grad for p in model.parameters()), *model.buffers()]
        )
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)
