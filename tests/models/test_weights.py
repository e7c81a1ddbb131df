# SPDX-License-Identifier: MIT
"""Weights in files, from wherever they come."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ocnet.models import create
from ocnet.models.weights import (
    SCALE_KEY,
    load_state,
    load_weights,
    read_metadata,
    save_weights,
    scale_kind,
)
from ocnet.modules import ObjectContext

SHARED = "head.context.2.stages.0.f_key."


def network() -> nn.Module:
    """A network whose every tensor has its own numbers."""
    model = create("tiny_base_oc", 5, aux=True, backend="reference")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.uniform_(0.5, 1)
    return model


def clone(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_round_trip(tmp_path: Path, layout: torch.memory_format) -> None:
    source, target = network().to(memory_format=layout), network()
    path = tmp_path / "weights.safetensors"
    save_weights(source, path, {"name": "tiny_base_oc", "note": "é"})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert read_metadata(path) == {"name": "tiny_base_oc", "note": "é"}
    report = load_weights(target, str(path))
    assert report.ok
    assert str(report) == "all names and shapes fit"
    assert_equal(clone(target), clone(source))


def test_an_overwritten_file_is_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for _ in range(2):
        source = network()
        save_weights(source, path, {})
    target = network()
    load_weights(target, path)
    assert_equal(clone(target), clone(source))
    assert read_metadata(path) == {}


class Wrapped(nn.Module):
    """As DistributedDataParallel names its parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_wrapper_prefixes_are_stripped_on_both_sides(tmp_path: Path) -> None:
    source, target = network(), network()
    save_weights(Wrapped(source), tmp_path / "w", {})
    assert all(not n.startswith("module.") for n in safetensors.torch.load_file(tmp_path / "w"))
    load_weights(Wrapped(target), tmp_path / "w")
    assert_equal(clone(target), clone(source))
    target = network()
    load_state(target, Wrapped(source).state_dict())
    assert_equal(clone(target), clone(source))
    target = network()
    load_state(target, {"module._orig_mod." + n: v for n, v in clone(source).items()})
    assert_equal(clone(target), clone(source))


def test_counters_of_other_batch_norms_are_ignored() -> None:
    source, target = network(), network()
    counters = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(3)
        for name in clone(source)
        if name.endswith("running_mean")
    }
    assert load_state(target, {**clone(source), **counters}).ok
    assert_equal(clone(target), clone(source))
    norm = nn.Sequential(nn.BatchNorm2d(3))
    state = {name: value for name, value in clone(norm).items() if "num" not in name}
    assert load_state(norm, state).ok


def published(model: nn.Module) -> dict[str, Tensor]:
    """The flat layout of the published code, where the shared transform has two names."""
    flat = {}
    for name, value in clone(model).items():
        flat["module." + name.partition(".")[2]] = value
        if "f_key" in name:
            flat["module." + name.partition(".")[2].replace("f_key", "f_query")] = value.clone()
    return flat


def test_published_layout() -> None:
    source = create("resnet18_base_oc", 3)
    target = create("resnet18_base_oc", 3)
    state = published(source)
    assert len(state) == len(source.state_dict()) + 6
    assert "module.context.2.stages.0.f_query.1.running_var" in state
    assert "module.dsn.3.weight" in state
    load_state(target, state)
    assert_equal(clone(target), clone(source))


def test_pretrained_backbone_leaves_heads_alone() -> None:
    source, target = create("resnet18_baseline", 3), create("resnet18_baseline", 3)
    file = {**clone(source.backbone), "fc.weight": torch.ones(2, 512), "fc.bias": torch.ones(2)}
    heads = clone(target.head)
    report = load_state(target, file, strict=False)
    assert report.unexpected == ("fc.weight", "fc.bias")
    assert all(name.startswith("head.") for name in report.missing)
    assert len(report.missing) == len(heads)
    assert_equal(clone(target.backbone), clone(source.backbone))
    assert_equal(clone(target.head), heads)


def unfit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = dict(state)
    del state["head.cls.bias"]
    state["head.extra"] = torch.ones(2)
    state["backbone.layers.0.0.weight"] = torch.ones(32, 1, 3, 3)
    return state


def test_what_does_not_fit_is_reported_and_nothing_is_written(tmp_path: Path) -> None:
    target, path = network(), tmp_path / "weights.safetensors"
    before = clone(target)
    safetensors.torch.save_file(unfit(clone(network())), path)
    with pytest.raises(ValueError, match="load_weights: path must fit the network, got ") as error:
        load_weights(target, path)
    assert str(error.value).splitlines()[1:] == [
        "1 missing in the file:",
        "  head.cls.bias",
        "1 not in the network:",
        "  head.extra",
        "1 of another shape:",
        "  backbone.layers.0.0.weight (file (32, 1, 3, 3), network (32, 3, 3, 3))",
    ]
    assert_equal(clone(target), before)


def test_what_fits_is_loaded_without_strict(tmp_path: Path) -> None:
    source, target, path = network(), network(), tmp_path / "weights.safetensors"
    before = clone(target)
    safetensors.torch.save_file(unfit(clone(source)), path)
    report = load_weights(target, path, strict=False)
    assert not report.ok
    kept = {"head.cls.bias", "backbone.layers.0.0.weight"}
    after, wanted = clone(target), clone(source)
    for name in after:
        assert torch.equal(after[name], (before if name in kept else wanted)[name])


def test_long_reports_are_cut() -> None:
    with pytest.raises(ValueError, match="load_state: state must fit the network") as error:
        load_state(network(), {})
    text = str(error.value)
    assert f"{len(network().state_dict())} missing in the file:" in text
    assert len(text.splitlines()) == 11
    assert text.endswith(f"and {len(network().state_dict()) - 8} more")


@pytest.mark.parametrize("wrap", [lambda block: block, Wrapped], ids=["bare", "wrapped"])
def test_a_block_on_its_own(wrap: Callable[[nn.Module], nn.Module]) -> None:
    source, target = ObjectContext(4, 3, 3), ObjectContext(4, 3, 3)
    state = clone(source)
    state["f_query.0.weight"] = state["f_key.0.weight"].clone()
    load_state(wrap(target), state)
    assert_equal(clone(target), clone(source))


@pytest.mark.parametrize("strict", [True, False])
def test_two_transforms_are_refused(strict: bool) -> None:
    target = network()
    before, state = clone(target), clone(network())
    query = SHARED.replace("f_key", "f_query") + "0.weight"
    state[query] = state[SHARED + "0.weight"] + 1
    with pytest.raises(ValueError, match="one transform"):
        load_state(target, state, strict=strict)
    assert_equal(clone(target), before)
    assert query in state


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="load_weights: path must name a file, got "):
        load_weights(network(), tmp_path / "absent")
    (tmp_path / "text").write_text("no tensors here")
    with pytest.raises(ValueError, match="load_weights: path must name a safetensors file, got "):
        load_weights(network(), tmp_path / "text")


def test_metadata_must_be_text(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="metadata must map text to text, got 'classes': 5"):
        save_weights(network(), tmp_path / "w", {"classes": 5})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        save_weights(network(), tmp_path / "folder", {})
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_signs_of_scales_are_not_lost_unseen(tmp_path: Path) -> None:
    """Plain batch norm uses the sign of a weight, the in-place norms its magnitude."""
    path = tmp_path / "weights.safetensors"
    plain = create("tiny_local", 5)
    inplace = create("tiny_local", 5, norm="inplace_abn")
    save_weights(plain, path, {SCALE_KEY: scale_kind(plain)})
    assert load_weights(inplace, path).ok
    with torch.no_grad():
        plain.backbone.layers[1][1].weight[3] = -0.5
    save_weights(plain, path, {SCALE_KEY: scale_kind(plain)})
    before = clone(inplace)
    with pytest.raises(ValueError, match=r"no negative weights .* in backbone.layers.1.1; build"):
        load_weights(inplace, path)
    assert_equal(clone(inplace), before)
    # What was trained with magnitudes may have any sign, and so may what says nothing.
    save_weights(plain, path, {SCALE_KEY: scale_kind(inplace)})
    assert load_weights(inplace, path).ok
    save_weights(plain, path, {})
    assert load_weights(inplace, path).ok
