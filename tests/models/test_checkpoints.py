# SPDX-License-Identifier: MIT
"""Weights from every published layout, with a report; what does not fit changes nothing."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ocnet.models import LoadReport, load_checkpoint
from ocnet.models.key_names import common_names
from ocnet.modules import ObjectContext
from tests.models.slim import STRUCTURES, slim
from tests.models.states import assert_equal, clone, filled

State = dict[str, Tensor]


def as_it_is(state: State) -> State:
    return state


def in_module(state: State) -> State:
    return {f"module.{name}": value for name, value in state.items()}


def in_model(state: State) -> State:
    return {f"model.{name}": value for name, value in state.items()}


def compiled(state: State) -> State:
    return {f"module._orig_mod.{name}": value for name, value in state.items()}


def with_counters(state: State) -> State:
    counters = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(3)
        for name in state
        if name.endswith("running_mean")
    }
    return {**state, **counters}


def of_torchs_norms(state: State) -> State:
    """Norms of heads in a Sequential of their own, as openseg builds them with torch's norms."""
    norms = {
        name.removesuffix(".running_mean")
        for name in state
        if name.endswith(".running_mean") and not name.startswith("backbone.")
    }
    found = {}
    for name, value in state.items():
        owner, _, leaf = name.rpartition(".")
        found[f"{owner}.0.{leaf}" if owner in norms else name] = value
    return with_counters(found)


def without(part: str):
    def made(state: State) -> State:
        return {name: value for name, value in state.items() if part not in name}

    return made


def of_older_runs(state: State) -> State:
    """As this package had them before: backbone and heads apart."""
    found = {}
    for name, value in state.items():
        part = "aux_head" if name.startswith("dsn.") else "head"
        in_body = name.startswith(("conv", "bn", "layer"))
        found[f"{'backbone' if in_body else part}.{name}"] = value
    return without("f_query")(found)


LAYOUTS = [
    *((name, as_it_is) for name in STRUCTURES),
    *((name, in_module) for name in STRUCTURES),
    *((name, of_torchs_norms) for name in STRUCTURES if name.startswith(("openseg", "hrnet"))),
    ("resnet101_base_oc", without("f_query")),
    ("resnet101_pyramid_oc", without("f_key")),
    ("resnet101_base_oc", with_counters),
    ("resnet101_asp_oc", compiled),
    ("resnet101_base_oc", of_older_runs),
    ("seg_hrnet_w48_ocr", in_model),
    ("seg_hrnet_w48_ocr", with_counters),
]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_published_layouts_are_loaded_and_come_back(name: str, layout) -> None:
    source, target = filled(name), filled(name)
    written = layout(clone(source))
    report = load_checkpoint(target, written)
    assert report.ok
    assert (report.left, report.unused, report.mismatched) == ((), (), ())
    assert {entry.name for entry in report.loaded} == set(target.state_dict())
    assert_equal(clone(target), clone(source))
    assert_equal(layout(clone(target)), written)


def test_a_file_of_torchs_norms_in_a_network_of_in_place_ones_is_remarked_on() -> None:
    state = clone(filled("openseg_ocr"))
    for norm, advised in (("inplace_abn", True), ("batchnorm", False)):
        target = filled("openseg_ocr", norm=norm)
        report = load_checkpoint(target, in_module(of_torchs_norms(state)))
        assert report.ok
        assert ("norm='batchnorm'" in str(report)) == bool(report.advice) == advised
        assert not load_checkpoint(target, in_module(state)).advice


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "both"])
@pytest.mark.parametrize("ending", ["pth", "legacy", "safetensors"])
def test_files(tmp_path: Path, ending: str, wrapper: str) -> None:
    source, target = filled("openseg_ocr"), filled("openseg_ocr")
    state = OrderedDict(in_module(clone(source)))
    path = tmp_path / f"spatial_ocrnet_latest.{ending}"
    if ending == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        content = {
            "state_dict": {"state_dict": state, "config_dict": {"network": {"factors": [[8, 8]]}}},
            "model": {"epoch": 3, "model": state, "optimizer": {"lr": 0.1}},
            "both": {"model": {"state_dict": state}},
        }[wrapper]
        torch.save(content, path, _use_new_zipfile_serialization=ending != "legacy")
    report = load_checkpoint(target, path)
    assert len(report.renamed) == len(report.loaded)
    assert report.renamed[0].source == "module." + report.renamed[0].name
    assert_equal(clone(target), clone(source))


class Planted:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_only_tensors_are_unpickled(tmp_path: Path) -> None:
    target = filled("tiny_local")
    before = clone(target)
    path = tmp_path / "planted.pth"
    torch.save({"state_dict": clone(target), "extra": Planted(tmp_path / "written")}, path)
    with pytest.raises(ValueError, match="source must be a safetensors file, or one of torch with"):
        load_checkpoint(target, path)
    assert not (tmp_path / "written").exists()
    assert_equal(clone(target), before)


def imagenet(state: State, start: str) -> State:
    """The file of the backbone that OCNet begins with."""
    file = {
        n.removeprefix(start): v
        for n, v in state.items()
        if re.match(rf"{start}(layer[1-4]|resinit)\.|{start}(conv|bn)\d", n)
    }
    file = {name.removeprefix("resinit."): value for name, value in file.items()}
    return {**file, "fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}


BACKBONES = [name for name in STRUCTURES if not name.startswith(("hrnet", "seg_"))]


@pytest.mark.parametrize("name", BACKBONES)
def test_a_pretrained_backbone_leaves_heads_as_they_are(name: str, tmp_path: Path) -> None:
    source, target = filled(name), filled(name)
    start = "backbone." if name.startswith("openseg") else ""
    path = tmp_path / "resnet18-imagenet.pth"
    torch.save(imagenet(clone(source), start), path)
    before = clone(target)
    report = load_checkpoint(target, path)
    assert report.ok
    body = {entry.name for entry in report.loaded}
    parts = tuple(f"{child}." for child in target.backbone_children)
    assert body == {n for n in before if n.startswith(parts)}
    assert {entry.name for entry in report.left} == set(before) - body
    assert [entry.name for entry in report.unused] == ["fc.weight", "fc.bias"]
    after, wanted = clone(target), clone(source)
    assert_equal(after, {n: (wanted if n in body else before)[n] for n in after})
    assert "2 in the file alone:\n  fc.weight 1000x512" in str(report)


@pytest.mark.parametrize("name", ["hrnet_w48_ocr", "seg_hrnet_w48_ocr"])
def test_the_pretrained_hrnet_leaves_heads_as_they_are(name: str) -> None:
    source, target = filled(name), filled(name)
    start = "backbone." if name.startswith("hrnet") else ""
    file = {
        n.removeprefix(start): v
        for n, v in clone(source).items()
        if n.startswith((f"{start}conv1.", f"{start}conv2.", f"{start}bn", f"{start}layer1"))
        or n.startswith((f"{start}stage", f"{start}transition"))
    }
    for extra in ("incre_modules.0.0.conv1", "downsamp_modules.0.0", "final_layer.0", "classifier"):
        file[f"{extra}.weight"] = torch.ones(2, 2)
    report = load_checkpoint(target, file)
    assert len(report.unused) == 4
    assert all(e.name.startswith(target.backbone_children) for e in report.loaded)
    body = {entry.name for entry in report.loaded}
    got, wanted = clone(target), clone(source)
    assert_equal({n: got[n] for n in body}, {n: wanted[n] for n in body})


def test_hrnet_without_ocr_gives_its_head_to_the_auxiliary_one() -> None:
    source, target = filled("seg_hrnet_w48_ocr"), filled("seg_hrnet_w48_ocr")
    file = {
        n.replace("aux_head.", "last_layer."): v
        for n, v in clone(source).items()
        if not n.startswith(("ocr", "conv3x3_ocr", "cls_head"))
    }
    report = load_checkpoint(target, file, strict=False)
    assert {e.name.partition(".")[0] for e in report.left} == {
        "conv3x3_ocr",
        "ocr_distri_head",
        "cls_head",
    }
    assert torch.equal(target.aux_head[0].weight, source.aux_head[0].weight)
    with pytest.raises(ValueError, match="are missing in it"):
        load_checkpoint(target, file)


def common_resnet(state: State, start: str) -> State:
    """torchvision's and timm's names; the stem is one convolution, and what follows it is narrower."""
    file = imagenet(state, start)
    file = {n: v for n, v in file.items() if not re.match(r"(conv|bn)[23]\.", n)}
    file["conv1.weight"] = torch.full((64, 3, 7, 7), 2.0)
    for key in ("weight", "bias", "running_mean", "running_var"):
        file[f"bn1.{key}"] = torch.full((64,), 2.0)
    file["layer1.0.conv1.weight"] = file["layer1.0.conv1.weight"][:, :64].clone()
    file["layer1.0.downsample.0.weight"] = torch.full((256, 64, 1, 1), 2.0)
    return with_counters(file)


def test_a_common_resnet18_has_no_first_shortcut() -> None:
    source, target = filled("resnet101_base_oc"), filled("resnet101_base_oc")
    file = common_resnet(clone(source), "")
    file = {n: v for n, v in file.items() if not n.startswith("layer1.0.downsample.")}
    report = load_checkpoint(target, file)
    assert "layer1.0.downsample.1.weight" in {entry.name for entry in report.left}
    assert torch.equal(target.layer1[0].conv2.weight, source.layer1[0].conv2.weight)


def test_the_loss_that_the_hrnet_repository_saves_is_not_used() -> None:
    source, target = filled("seg_hrnet_w48_ocr"), filled("seg_hrnet_w48_ocr")
    report = load_checkpoint(
        target, {**in_model(clone(source)), "loss.criterion.weight": torch.ones(4)}
    )
    assert [entry.name for entry in report.unused] == ["loss.criterion.weight"]
    assert_equal(clone(target), clone(source))


@pytest.mark.parametrize("name", ["resnet101_base_oc", "openseg_isa"])
def test_common_resnets_give_all_but_the_stem(name: str) -> None:
    source, target = filled(name, size=50), filled(name, size=50)
    start = "backbone." if name.startswith("openseg") else ""
    before, wanted = clone(target), clone(source)
    report = load_checkpoint(target, common_resnet(wanted, start))
    loaded = {entry.name for entry in report.loaded}
    stem = {n for n in before if re.match(rf"{start}(resinit\.)?(conv|bn)\d\.", n)}
    behind = {f"{start}layer1.0.conv1.weight", f"{start}layer1.0.downsample.0.weight"} & set(before)
    layers = {n for n in before if n.startswith(f"{start}layer") and n not in behind}
    layers = {n for n in layers if re.match(rf"{start}layer[1-4]", n)}
    assert loaded == layers
    assert stem | behind <= {entry.name for entry in report.left}
    after = clone(target)
    assert_equal(after, {n: (wanted if n in loaded else before)[n] for n in after})


def test_narrow_deep_stems_are_other_stems() -> None:
    source, target = filled("resnet101_base_oc"), filled("resnet101_base_oc")
    file = timm_deep(clone(source), "")
    for name in [name for name in file if name.startswith(("conv1.", "bn1."))]:
        half = file[name].shape[0] // 2 if file[name].dim() else 0
        file[name] = file[name][:half].clone() if half else file[name]
    file["layer1.0.downsample.0.weight"] = torch.ones(64, 64, 1, 1)
    before = clone(target)
    report = load_checkpoint(target, file)
    assert {"conv1.weight", "bn3.running_var"} <= {entry.name for entry in report.left}
    for name in ("conv1.weight", "conv3.weight", "bn2.bias", "layer1.0.conv1.weight"):
        assert torch.equal(target.state_dict()[name], before[name])
    assert torch.equal(target.layer2[0].conv1.weight, source.layer2[0].conv1.weight)


def timm_deep(state: State, start: str) -> State:
    names = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3", "bn2": "conv1.4",
             "conv3": "conv1.6", "bn3": "bn1"}  # fmt: skip
    found = {}
    for name, value in imagenet(state, start).items():
        owner, _, leaf = name.rpartition(".")
        found[f"{names.get(owner, owner)}.{leaf}"] = value
    return with_counters(found)


@pytest.mark.parametrize("name", ["resnet101_base_oc", "openseg_ocr"])
def test_timms_deep_stem_is_ours(name: str) -> None:
    source, target = filled(name), filled(name)
    start = "backbone." if name.startswith("openseg") else ""
    file = timm_deep(clone(source), start)
    assert "conv1.6.weight" in file
    report = load_checkpoint(target, file)
    stem = f"{start}{'resinit.' if start else ''}"
    wanted, got = clone(source), clone(target)
    for name_ in (f"{stem}conv3.weight", f"{stem}bn3.running_var", f"{stem}bn1.weight"):
        assert torch.equal(got[name_], wanted[name_])
    assert not any(entry.name.startswith((f"{stem}conv", f"{stem}bn")) for entry in report.left)


def test_weights_go_from_one_code_to_the_other() -> None:
    """Backbones of OCNet and of openseg have the same weights."""
    source, target = filled("openseg_fcn"), filled("resnet101_baseline")
    body = {n: v for n, v in in_module(clone(source)).items() if "backbone." in n}
    load_checkpoint(target, body)
    assert torch.equal(target.conv1.weight, source.backbone.resinit.conv1.weight)
    assert torch.equal(target.layer4[1].bn2.bias, source.backbone.layer4[1].bn2.bias)


def unfit(state: State) -> State:
    state = dict(state)
    del state["cls.bias"]
    state["extra"] = torch.ones(2)
    state["conv1.weight"] = torch.ones(64, 1, 3, 3)
    return state


def test_what_does_not_fit_is_listed_and_nothing_is_written(tmp_path: Path) -> None:
    target, path = filled("resnet101_base_oc"), tmp_path / "weights.safetensors"
    before = clone(target)
    safetensors.torch.save_file(unfit(clone(filled("resnet101_base_oc"))), path)
    with pytest.raises(
        ValueError, match="load_checkpoint: source must fit the network, got "
    ) as error:
        load_checkpoint(target, path)
    lines = str(error.value).splitlines()
    assert lines[0].endswith(
        "of which 1 are missing in it, 1 are not in the network, 1 are of another shape"
    )
    assert lines[2:] == [
        "1 left as they were:",
        "  cls.bias 4",
        "1 in the file alone:",
        "  extra 2",
        "1 of another shape:",
        "  conv1.weight (file 64x1x3x3, network 64x3x3x3)",
    ]
    assert_equal(clone(target), before)


def test_what_fits_is_loaded_without_strict() -> None:
    source, target = filled("resnet101_base_oc"), filled("resnet101_base_oc")
    before = clone(target)
    report = load_checkpoint(target, unfit(clone(source)), strict=False)
    assert not report.ok
    kept = {"cls.bias", "conv1.weight"}
    after, wanted = clone(target), clone(source)
    assert_equal(after, {n: (before if n in kept else wanted)[n] for n in after})
    assert kept.isdisjoint(entry.name for entry in report.loaded)
    (mismatch,) = report.mismatched
    assert (mismatch.name, mismatch.given, mismatch.wanted) == (
        "conv1.weight", (64, 1, 3, 3), (64, 3, 3, 3),
    )  # fmt: skip


def test_other_classes_for_fine_tuning() -> None:
    source, target = filled("openseg_isa"), filled("openseg_isa", num_classes=7)
    with pytest.raises(ValueError, match="4 are of another shape"):
        load_checkpoint(target, clone(source))
    report = load_checkpoint(target, clone(source), strict=False)
    assert {entry.name for entry in report.mismatched} == {
        f"{head}.{leaf}" for head in ("cls_head", "dsn_head.3") for leaf in ("weight", "bias")
    }


def test_another_network_is_refused() -> None:
    target = filled("resnet101_base_oc")
    before = clone(target)
    for other in ("openseg_base_oc", "resnet101_asp_oc", "hrnet_w48"):
        with pytest.raises(ValueError, match="are not in the network"):
            load_checkpoint(target, clone(slim(other)))
    assert_equal(clone(target), before)


def test_half_a_backbone_is_refused() -> None:
    source, target = filled("resnet101_base_oc"), filled("resnet101_base_oc")
    part = {n: v for n, v in clone(source).items() if n.startswith(("conv", "bn", "layer1"))}
    with pytest.raises(ValueError, match="are missing in it"):
        load_checkpoint(target, part)


def test_two_spellings_of_one_tensor_are_refused() -> None:
    target = filled("openseg_fcn")
    state = clone(target)
    state["conv1.weight"] = state["backbone.resinit.conv1.weight"].clone()
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"are both backbone\.resinit\.conv1\.weight of"):
            load_checkpoint(target, state, strict=strict)


def test_long_reports_are_cut() -> None:
    target = filled("tiny_local")
    with pytest.raises(ValueError, match="load_checkpoint: source must fit the network") as error:
        load_checkpoint(target, {})
    text = str(error.value)
    count = len(target.state_dict())
    assert f"{count} left as they were:" in text
    assert len(text.splitlines()) == 12
    assert text.endswith(f"and {count - 8} more")


@pytest.mark.parametrize("wrap", [lambda block: block, nn.Sequential], ids=["bare", "in"])
def test_a_block_on_its_own(wrap) -> None:
    source, target = wrap(ObjectContext(4, 3, 3)), wrap(ObjectContext(4, 3, 3))
    report = load_checkpoint(target, without("f_key")(clone(source)))
    assert report.ok
    assert_equal(clone(target), clone(source))


@pytest.mark.parametrize("strict", [True, False])
def test_two_transforms_are_refused(strict: bool) -> None:
    target = filled("resnet101_base_oc")
    before, state = clone(target), clone(filled("resnet101_base_oc"))
    state["context.2.stages.0.f_query.0.weight"] += 1
    with pytest.raises(ValueError, match="one transform"):
        load_checkpoint(target, state, strict=strict)
    assert_equal(clone(target), before)


def test_dtypes_and_devices_are_those_of_the_network() -> None:
    source, target = filled("tiny_local"), filled("tiny_local").to(torch.bfloat16)
    load_checkpoint(target, {n: v.double() for n, v in clone(source).items()})
    for name, value in target.state_dict().items():
        assert value.dtype == (torch.float32 if "running" in name else torch.bfloat16)
        assert torch.equal(value, source.state_dict()[name].to(value.dtype))


def test_sources_that_are_none_are_refused(tmp_path: Path) -> None:
    model = filled("tiny_local")
    with pytest.raises(FileNotFoundError, match="load_checkpoint: source must name a file, got "):
        load_checkpoint(model, tmp_path / "absent.pth")
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no tensors here")
        with pytest.raises(ValueError, match="load_checkpoint: source must be a safetensors file"):
            load_checkpoint(model, tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(TypeError, match="source must hold tensors by name, got list in "):
        load_checkpoint(model, tmp_path / "list.pth")
    with pytest.raises(TypeError, match="source must be a path or tensors by name, got int"):
        load_checkpoint(model, 3)
    with pytest.raises(TypeError, match="must hold tensors by name, got int for 'epoch'"):
        load_checkpoint(model, {"epoch": 3, **clone(model)})


def test_common_names_of_one_network_are_its_own() -> None:
    for name in STRUCTURES:
        own = slim(name).state_dict()
        assert len(set(common_names(own).values())) == len(own)


def test_a_report_of_nothing_amiss_is_one_line() -> None:
    model = filled("tiny_local")
    report: LoadReport = load_checkpoint(model, in_module(clone(model)))
    count = len(model.state_dict())
    assert str(report) == (
        f"{count} loaded, {count} of them renamed, as module.layers.0.0.weight to layers.0.0.weight"
    )
