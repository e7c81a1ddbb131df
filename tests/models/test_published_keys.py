# SPDX-License-Identifier: MIT
"""State dicts of the published networks: names, in order, numbers of entries, and of parameters."""

from collections.abc import Sequence

import pytest
import torch

from ocnet.models import create

# Entries of the state and parameters, of 19 classes, where the published ones were counted.
COUNTED = {
    "resnet101_baseline": (538, 52_072_403),
    "resnet101_base_oc": (568, 57_722_854),
    "resnet101_pyramid_oc": (622, 62_584_294),
    "resnet101_asp_oc": (599, 62_542_182),
    "openseg_base_oc": (580, 57_987_302),
    "openseg_asp_oc": (609, 62_477_414),
    "openseg_isa": (601, 59_167_718),
    "openseg_ocr": (588, 57_988_838),
    "openseg_asp_ocr": (612, 67_256_166),
}
# Of these, with so many classes, the parameters are known to a tenth of a million.
ROUNDED = {("seg_hrnet_w48_ocr", 19): 70.4, ("seg_hrnet_w48_ocr", 59): 70.4}


def norm(name: str) -> list[str]:
    return [f"{name}.{key}" for key in ("weight", "bias", "running_mean", "running_var")]


def conv(name: str, bias: bool = True) -> list[str]:
    return [f"{name}.weight", *([f"{name}.bias"] if bias else [])]


def pair(name: str, bias: bool = True, nested: bool = False) -> list[str]:
    """A convolution and its norm."""
    return conv(f"{name}.0", bias) + norm(f"{name}.1.0" if nested else f"{name}.1")


def pairs(name: str, bias: bool = True, nested: bool = False) -> list[str]:
    """Two of them."""
    end = ".0" if nested else ""
    return pair(name, bias, nested) + conv(f"{name}.2", bias) + norm(f"{name}.3{end}")


def block(name: str, convs: int, shortcut: bool) -> list[str]:
    found = []
    for i in range(1, convs + 1):
        found += [f"{name}.conv{i}.weight", *norm(f"{name}.bn{i}")]
    return found + (pair(f"{name}.downsample", bias=False) if shortcut else [])


def resnet(start: str = "", stem: str = "") -> list[str]:
    found = []
    for i in (1, 2, 3):
        found += [f"{start}{stem}conv{i}.weight", *norm(f"{start}{stem}bn{i}")]
    for layer, count in ((1, 3), (2, 4), (3, 23), (4, 3)):
        for i in range(count):
            found += block(f"{start}layer{layer}.{i}", 3, i == 0)
    return found


def hrnet(start: str = "") -> list[str]:
    found = []
    for i in (1, 2):
        found += [f"{start}conv{i}.weight", *norm(f"{start}bn{i}")]
    for i in range(4):
        found += block(f"{start}layer1.{i}", 3, i == 0)
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        transition = f"{start}transition{stage - 1}"
        found += pair(f"{transition}.0", bias=False) if stage == 2 else []
        found += pair(f"{transition}.{stage - 1}.0", bias=False)
        for module in range(modules):
            p = f"{start}stage{stage}.{module}"
            for branch in range(stage):
                for i in range(4):
                    found += block(f"{p}.branches.{branch}.{i}", 2, False)
            for i in range(stage):
                for j in range(stage):
                    bridge = f"{p}.fuse_layers.{i}.{j}"
                    found += pair(bridge, bias=False) if j > i else []
                    for k in range(i - j):
                        found += pair(f"{bridge}.{k}", bias=False)
    return found


def shared_block(p: str) -> list[str]:
    found = pair(f"{p}.f_key") + pair(f"{p}.f_query")
    return found + conv(f"{p}.f_value") + conv(f"{p}.W")


def separate_block(p: str) -> list[str]:
    found = pairs(f"{p}.f_key") + pairs(f"{p}.f_query")
    return found + conv(f"{p}.f_value") + conv(f"{p}.W")


def branches(p: str, bias: bool) -> list[str]:
    found = []
    for i in (2, 3, 4, 5):
        found += pair(f"{p}.conv{i}", bias)
    return found + pair(f"{p}.conv_bn_dropout", bias)


def dsn(name: str, last: int, bias: bool = True, class_bias: bool = True) -> list[str]:
    return pair(name, bias) + conv(f"{name}.{last}", class_bias)


def object_attention(p: str, bias: bool = True, nested: bool = False) -> list[str]:
    p = f"{p}.object_context_block"
    found = pairs(f"{p}.f_pixel", bias, nested) + pairs(f"{p}.f_object", bias, nested)
    return found + pair(f"{p}.f_down", bias, nested) + pair(f"{p}.f_up", bias, nested)


def ocr(p: str, bias: bool = True, nested: bool = False) -> list[str]:
    return object_attention(p, bias, nested) + pair(f"{p}.conv_bn_dropout", bias, nested)


def asp_ocr(p: str) -> list[str]:
    return pair(f"{p}.context") + object_attention(f"{p}.context.2") + branches(p, True)


def interlaced(p: str) -> list[str]:
    found = []
    for unit in (f"{p}.long_range_sa", f"{p}.short_range_sa"):
        found += pairs(f"{unit}.f_key", bias=False) + pairs(f"{unit}.f_query", bias=False)
        found += conv(f"{unit}.f_value", bias=False) + pair(f"{unit}.W", bias=False)
    return found


def ce2p(context: Sequence[str]) -> list[str]:
    found = [*resnet(), *context]
    for i in (1, 2, 3):
        found += pair(f"edge_layer.conv{i}", bias=False)
    found += conv("edge_layer.conv4") + conv("edge_layer.conv5")
    found += pair("layer6.conv1", bias=False) + pair("layer6.conv2", bias=False)
    found += pairs("layer6.conv3", bias=False) + conv("layer6.conv4")
    return found + pair("layer7", bias=False) + conv("layer7.3")


def psp(p: str) -> list[str]:
    found = []
    for i in range(4):
        found += conv(f"{p}.stages.{i}.1", bias=False) + norm(f"{p}.stages.{i}.2")
    return found + pair(f"{p}.bottleneck", bias=False)


def oc_asp(p: str) -> list[str]:
    found = pair(f"{p}.context") + shared_block(f"{p}.context.2.stages.0")
    return found + pair(f"{p}.context.2.conv_bn_dropout") + branches(p, False)


OPENSEG = resnet("backbone.", "resinit.")
FINE = hrnet("backbone.")
KEYS = {
    "resnet101_baseline": [*resnet(), *pair("layer5"), *conv("layer6")],
    "resnet101_base_oc": [
        *resnet(), *pair("context"), *shared_block("context.2.stages.0"),
        *pair("context.2.conv_bn_dropout"), *conv("cls"), *dsn("dsn", 3),
    ],
    "resnet101_pyramid_oc": [
        *resnet(), *pair("layer5"),
        *(key for i in range(4) for key in shared_block(f"context.stages.{i}")),
        *pair("context.conv_bn_dropout"), *pair("context.up_dr"), *conv("cls"), *dsn("dsn", 3),
    ],
    "resnet101_asp_oc": [
        *resnet(), *pair("context"), *oc_asp("context.2"), *conv("cls"), *dsn("dsn", 3),
    ],
    "openseg_base_oc": [
        *OPENSEG, *pair("oc_module_pre"), *separate_block("oc_module.stages.0"),
        *pair("oc_module.conv_bn_dropout"), *conv("cls"), *dsn("dsn", 2),
    ],
    "openseg_asp_oc": [
        *OPENSEG, *pair("context"), *pair("context.2.context"),
        *separate_block("context.2.context.2.stages.0"),
        *norm("context.2.context.2.conv_bn_dropout.0"), *branches("context.2", False),
        *conv("cls"), *dsn("dsn", 2),
    ],
    "openseg_isa": [
        *OPENSEG, *pair("isa_head", bias=False), *interlaced("isa_head.2.stages.0"),
        *pair("isa_head.2.conv_bn", bias=False), *conv("cls_head"),
        *dsn("dsn_head", 3, bias=False),
    ],
    "openseg_ocr": [
        *OPENSEG, *pair("conv_3x3"), *ocr("spatial_ocr_head"), *conv("head"), *dsn("dsn_head", 3),
    ],
    "openseg_asp_ocr": [
        *OPENSEG, *asp_ocr("asp_ocr_head"), *conv("head"), *dsn("dsn_head", 3),
    ],
    "openseg_fcn": [
        *OPENSEG, *dsn("cls_head", 3, class_bias=False), *dsn("dsn_head", 3, class_bias=False),
    ],
    "hrnet_w48": [*FINE, *dsn("cls_head", 3, class_bias=False)],
    "hrnet_w48_ocr": [
        *FINE, *pair("conv3x3"), *ocr("ocr_distri_head"), *conv("cls_head"), *dsn("aux_head", 2),
    ],
    "hrnet_w48_ocr_b": [
        *FINE, *pair("conv3x3"), *ocr("ocr_distri_head"), *conv("cls_head"), *dsn("aux_head", 2),
    ],
    "hrnet_w48_asp_ocr": [
        *FINE, *asp_ocr("asp_ocr_head"), *conv("cls_head", bias=False),
        *dsn("aux_head", 2, class_bias=False),
    ],
    "seg_hrnet_w48_ocr": [
        *hrnet(), *pair("conv3x3_ocr"), *ocr("ocr_distri_head", False, True), *conv("cls_head"),
        *dsn("aux_head", 3),
    ],
    "ce2p": ce2p(psp("layer5")),
    "ce2p_asp_oc": ce2p(oc_asp("layer5")),
}  # fmt: skip


@pytest.mark.parametrize("name", KEYS)
def test_keys(name: str) -> None:
    with torch.device("meta"):
        model = create(name)
    assert list(model.state_dict()) == KEYS[name]


@pytest.mark.parametrize("name", COUNTED)
def test_counts(name: str) -> None:
    with torch.device("meta"):
        model = create(name)
    entries, parameters = COUNTED[name]
    assert len(model.state_dict()) == entries
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(("name", "classes"), ROUNDED)
def test_published_sizes_in_millions(name: str, classes: int) -> None:
    with torch.device("meta"):
        model = create(name, classes)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(millions, 1) == ROUNDED[name, classes]


SHAPES = {
    "resnet101_base_oc": {
        "context.0.weight": (512, 2048, 3, 3),
        "context.2.stages.0.f_query.0.weight": (256, 512, 1, 1),
        "context.2.stages.0.f_value.weight": (256, 512, 1, 1),
        "context.2.stages.0.W.weight": (512, 256, 1, 1),
        "context.2.conv_bn_dropout.0.weight": (512, 1024, 1, 1),
        "dsn.0.weight": (512, 1024, 3, 3),
        "dsn.3.weight": (19, 512, 1, 1),
    },
    "resnet101_pyramid_oc": {
        "context.stages.3.f_value.weight": (512, 512, 1, 1),
        "context.up_dr.0.weight": (2048, 512, 1, 1),
        "context.conv_bn_dropout.0.weight": (512, 4096, 1, 1),
    },
    "resnet101_asp_oc": {
        "context.2.context.0.weight": (256, 512, 3, 3),
        "context.2.context.2.stages.0.f_key.0.weight": (128, 256, 1, 1),
        "context.2.context.2.stages.0.f_value.weight": (256, 256, 1, 1),
        "context.2.context.2.conv_bn_dropout.0.weight": (256, 256, 1, 1),
        "context.2.conv2.0.weight": (256, 512, 1, 1),
        "context.2.conv5.0.weight": (256, 512, 3, 3),
        "context.2.conv_bn_dropout.0.weight": (512, 1280, 1, 1),
    },
    "openseg_asp_oc": {
        "context.2.context.2.stages.0.f_value.weight": (128, 256, 1, 1),
        "context.2.context.2.stages.0.W.weight": (256, 128, 1, 1),
    },
    "openseg_isa": {
        "isa_head.2.stages.0.long_range_sa.f_value.weight": (512, 512, 1, 1),
        "isa_head.2.conv_bn.0.weight": (512, 1024, 1, 1),
    },
    "openseg_asp_ocr": {
        "asp_ocr_head.context.0.weight": (256, 2048, 3, 3),
        "asp_ocr_head.conv_bn_dropout.0.weight": (256, 1280, 1, 1),
        "head.weight": (19, 256, 1, 1),
    },
    "hrnet_w48_ocr_b": {
        "conv3x3.0.weight": (256, 720, 3, 3),
        "aux_head.0.weight": (256, 720, 3, 3),
        "ocr_distri_head.object_context_block.f_pixel.0.weight": (128, 256, 1, 1),
    },
    "hrnet_w48_asp_ocr": {
        "asp_ocr_head.conv4.0.weight": (256, 720, 3, 3),
        "aux_head.0.weight": (512, 720, 3, 3),
    },
    "seg_hrnet_w48_ocr": {
        "aux_head.0.weight": (720, 720, 1, 1),
        "conv3x3_ocr.0.weight": (512, 720, 3, 3),
        "stage4.2.fuse_layers.3.0.2.0.weight": (384, 48, 3, 3),
    },
    "ce2p": {
        "layer5.stages.0.1.weight": (512, 2048, 1, 1),
        "layer5.bottleneck.0.weight": (512, 4096, 3, 3),
        "layer6.conv2.0.weight": (48, 256, 1, 1),
        "layer6.conv3.0.weight": (256, 304, 1, 1),
        "layer7.0.weight": (256, 1024, 1, 1),
        "edge_layer.conv4.weight": (2, 256, 3, 3),
        "edge_layer.conv5.weight": (2, 6, 1, 1),
    },
    "ce2p_asp_oc": {"layer5.conv_bn_dropout.0.weight": (512, 1280, 1, 1)},
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_that_tell_networks_apart(name: str) -> None:
    with torch.device("meta"):
        state = create(name).state_dict()
    assert {key: tuple(state[key].shape) for key in SHAPES[name]} == SHAPES[name]


DILATIONS = {
    "resnet101_base_oc": ((1, 1), (1, 1), (2, 2), (4, 4)),
    "openseg_base_oc": ((1, 1), (1, 1), (1, 2), (2, 4)),
    "ce2p": ((1, 1), (1, 1), (1, 1), (2, 2)),
}


@pytest.mark.parametrize("name", DILATIONS)
def test_dilations_of_the_first_and_the_other_blocks(name: str) -> None:
    with torch.device("meta"):
        model = create(name)
    start = "backbone." if name.startswith("openseg") else ""
    for number, (first, others) in enumerate(DILATIONS[name], start=1):
        layer = model.get_submodule(f"{start}layer{number}")
        rates = [block.conv2.dilation for block in layer]
        assert rates == [(first, first), *[(others, others)] * (len(layer) - 1)]
        assert all(block.conv2.padding == block.conv2.dilation for block in layer)
