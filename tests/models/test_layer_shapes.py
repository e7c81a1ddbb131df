# SPDX-License-Identifier: MIT
"""Shapes of every layer of every published network, and the published numbers of tokens in them.

After a change that is meant: python -m tests.models.layer_shapes <names>.
"""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ocnet.models import create
from tests.models.layer_shapes import FOLDER, SIZES, table
from tests.models.slim import STRUCTURES

PUBLISHED = tuple(name for name in STRUCTURES if name != "resnet101_local")
# Layer that has one value for each token, by network, and tokens for SIZES.
TOKENS = {
    "resnet101_base_oc": ("context.2.stages.0.f_value", (9_409, 33_153)),
    "resnet101_pyramid_oc": ("context.stages.0.f_value", (9_409, 33_153)),
    "resnet101_asp_oc": ("context.2.context.2.stages.0.f_value", (2_304, 8_192)),
    "openseg_base_oc": ("oc_module.stages.0.f_value", (9_409, 33_153)),
    "openseg_asp_oc": ("context.2.context.2.stages.0.f_value", (2_304, 8_192)),
    # 64 groups of 169 and 561.
    "openseg_isa": ("isa_head.2.stages.0.long_range_sa.f_value", (64 * 169, 64 * 561)),
    # 19 regions.
    "openseg_ocr": ("spatial_ocr_head.object_context_block.f_down.0", (19, 19)),
}
# Images, and the map at stride 8.
MAPS = {
    (769, 769): (97, 97),
    (1024, 2048): (129, 257),
    (768, 1536): (97, 193),
    (512, 1024): (65, 129),
    (1025, 2049): (129, 257),
    (520, 520): (66, 66),
    (473, 473): (60, 60),
}


@pytest.fixture
def shape_table(request: pytest.FixtureRequest) -> str:
    """The table of a network, printed."""
    text = table(request.param)
    print(text)
    return text


@pytest.mark.parametrize("shape_table", PUBLISHED, indirect=True)
def test_tables(shape_table: str) -> None:
    name = shape_table.partition(":")[0]
    assert shape_table == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def test_no_table_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(PUBLISHED)


@pytest.mark.parametrize("name", TOKENS)
def test_tokens(name: str) -> None:
    layer, tokens = TOKENS[name]
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{layer} ")]
    shapes = [tuple(map(int, shape.split("x"))) for shape in line.split(" ")[2:]]
    assert len(shapes) == len(SIZES)
    assert tuple(math.prod(shape[1:]) for shape in shapes) == tokens


def test_tokens_of_the_advice_for_small_gpus() -> None:
    with FakeTensorMode():
        model = create("resnet101_base_oc", sizes=[2]).eval()
        seen = []
        model.context[2].stages[0].f_value.register_forward_hook(
            lambda _, __, out: seen.append(tuple(out.shape[2:]))
        )
        with torch.no_grad():
            for size in SIZES:
                model(torch.empty(1, 3, *size))
    assert seen == [(48, 48), (64, 128)]


@pytest.mark.parametrize("name", ["resnet101_baseline", "openseg_fcn"])
@pytest.mark.parametrize("size", MAPS, ids=str)
def test_maps_at_stride_8(name: str, size: tuple[int, int]) -> None:
    with FakeTensorMode(), torch.no_grad():
        model = create(name).eval()
        features = (
            model.body.features(model, torch.empty(1, 3, *size))
            if model.flat
            else model.backbone(torch.empty(1, 3, *size))
        )
    assert [tuple(x.shape) for x in features] == [(1, c, *MAPS[size]) for c in (1024, 2048)]
