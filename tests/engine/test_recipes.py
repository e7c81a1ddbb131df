# SPDX-License-Identifier: MIT
"""The shipped recipes against a restatement of what was published."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from ocnet.engine.config import AugmentConfig, RunConfig
from ocnet.engine.config_files import load_config
from ocnet.engine.datasets import dataset_info
from ocnet.models import names

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PATHS = sorted(
    path
    for path in CONFIGS.glob("*/*.yaml")
    if path.parent.name not in ("bases", "mosaics")
)  # fmt: skip
RECIPES = {f"{path.parent.name}/{path.stem}": path for path in PATHS}

# OCNet's dataset/cityscapes.py and criterion.py; openseg and HRNet have the same.
CITYSCAPES_WEIGHTS = [
    0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539, 0.9843,
    1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507,
]  # fmt: skip
RESNET = "pretrained_model/resnet101-imagenet.pth"
HRNET = "pretrained_model/hrnetv2_w48_imagenet_pretrained.pth"


@dataclass(frozen=True)
class Facts:
    """What a recipe says; a crop is rows by columns, ``scales`` smallest, largest, step."""

    data: str
    classes: int
    crop: tuple[int, int]
    batch: int
    steps: int
    lr: float
    decay: float
    input: str
    weights: str
    scales: tuple[float, float, float]
    head_lr: float = 1
    ohem: tuple[str, float, int] | None = None
    train: str = "train"
    schedule: str = "poly"


OPENSEG = (0.5, 2.0, 0.0)
TENTHS = (0.5, 2.1, 0.1)
OCNET_CITY = Facts("cityscapes", 19, (769, 769), 8, 40_000, 0.01, 5e-4, "ocnet", RESNET, TENTHS)
OS_CITY = Facts("cityscapes", 19, (512, 1024), 8, 40_000, 0.01, 5e-4, "openseg", RESNET, OPENSEG)
OS_CITY_H = replace(OS_CITY, steps=80_000, input="openseg_hrnet", weights=HRNET)
HR_CITY = Facts("cityscapes", 19, (512, 1024), 12, 484 * (2975 // 12), 0.01, 5e-4, "imagenet", HRNET, TENTHS)  # fmt: skip
OS_ADE = Facts("ade20k", 150, (520, 520), 16, 150_000, 0.02, 1e-4, "openseg", RESNET, OPENSEG)
OS_ADE_H = replace(OS_ADE, input="openseg_hrnet", weights=HRNET)
OS_COCO = Facts("coco_stuff", 171, (520, 520), 16, 60_000, 1e-3, 1e-4, "openseg", RESNET, OPENSEG, head_lr=10)  # fmt: skip
OS_COCO_H = replace(OS_COCO, input="openseg_hrnet", weights=HRNET)
OS_PASCAL = replace(OS_COCO, data="pascal_context_59", classes=59, steps=30_000)
OS_PASCAL_H = replace(OS_COCO_H, data="pascal_context_59", classes=59)
OS_LIP_H = Facts("lip", 20, (473, 473), 32, 100_000, 7e-3, 5e-4, "openseg_hrnet", HRNET, (0.5, 1.5, 0.0))  # fmt: skip
OS_LIP = replace(OS_LIP_H, input="openseg_lip", weights=RESNET)
CE2P = Facts("lip", 20, (384, 384), 96, 150 * -(-30_462 // 96), 1e-3, 5e-4, "ce2p", RESNET, OPENSEG)
CELEBA = Facts("folder", 19, (512, 512), 16, 150_000, 1e-3, 1e-4, "openseg_hrnet", HRNET, OPENSEG, head_lr=10)  # fmt: skip
MAPILLARY = Facts("folder", 65, (1024, 1024), 16, 500_000, 0.01, 5e-4, "openseg_hrnet", HRNET, OPENSEG, train="training")  # fmt: skip
HR_ADE = Facts("ade20k", 150, (520, 520), 16, 120 * (20_210 // 16), 0.02, 1e-4, "imagenet", HRNET, TENTHS, ohem=("hrnet", 0.9, 131_072))  # fmt: skip
HR_COCO = replace(HR_ADE, data="coco_stuff", classes=171, steps=110 * (9_000 // 16), lr=1e-3, head_lr=10)  # fmt: skip
HR_PASCAL = replace(HR_COCO, data="pascal_context_59", classes=59, steps=200 * (4_998 // 16), ohem=None)  # fmt: skip
HR_LIP = Facts("lip", 20, (473, 473), 40, 150 * (30_462 // 40), 7e-3, 5e-4, "imagenet", HRNET, (0.5, 1.6, 0.1))  # fmt: skip

OCNET_OHEM = ("ocnet", 0.7, 100_000)
OPENSEG_OHEM = ("openseg", 0.7, 100_000)
HRNET_OHEM = ("openseg", 0.9, 100_000)
STAGE = "hrnet_w48_ocr_b_mapillary_trainval"


def stage(facts: Facts, before: str, **changes: object) -> Facts:
    return replace(facts, weights=f"runs/{before}/weights.safetensors", **changes)  # type: ignore[arg-type]


PUBLISHED = {
    "cityscapes/resnet101_baseline": OCNET_CITY,
    "cityscapes/resnet101_base_oc": OCNET_CITY,
    "cityscapes/resnet101_pyramid_oc": OCNET_CITY,
    "cityscapes/resnet101_asp_oc": OCNET_CITY,
    "cityscapes/resnet101_base_oc_ohem": replace(OCNET_CITY, ohem=OCNET_OHEM),
    "cityscapes/resnet101_asp_oc_ohem": replace(OCNET_CITY, ohem=OCNET_OHEM),
    "cityscapes/resnet101_asp_oc_trainval_stage1": replace(
        OCNET_CITY, ohem=OCNET_OHEM, steps=80_000, train="train+val"
    ),
    "cityscapes/resnet101_asp_oc_trainval_stage2": stage(
        OCNET_CITY, "cityscapes/resnet101_asp_oc_trainval_stage1",
        ohem=OCNET_OHEM, steps=100_000, train="train+val", lr=1e-4, schedule="constant",
    ),
    "cityscapes/openseg_fcn": OS_CITY,
    "cityscapes/openseg_base_oc": OS_CITY,
    "cityscapes/openseg_asp_oc": OS_CITY,
    "cityscapes/openseg_isa": OS_CITY,
    "cityscapes/openseg_ocr": OS_CITY,
    "cityscapes/openseg_asp_ocr": OS_CITY,
    "cityscapes/openseg_ocr_trainval_ohem": replace(
        OS_CITY, ohem=OPENSEG_OHEM, steps=120_000, train="train+val"
    ),
    "cityscapes/openseg_ocr_trainval_ohem_coarse": stage(
        OS_CITY, "cityscapes/openseg_ocr_trainval_ohem",
        ohem=OPENSEG_OHEM, steps=100_000, train="train_extra", lr=1e-4,
    ),
    "cityscapes/openseg_ocr_trainval_ohem_coarse_trainval": stage(
        OS_CITY, "cityscapes/openseg_ocr_trainval_ohem_coarse",
        ohem=OPENSEG_OHEM, steps=10_000, train="train+val", lr=1e-4,
    ),
    "cityscapes/hrnet_w48": OS_CITY_H,
    "cityscapes/hrnet_w48_ocr": OS_CITY_H,
    "cityscapes/hrnet_w48_ocr_ohem": replace(OS_CITY_H, ohem=HRNET_OHEM),
    "cityscapes/hrnet_w48_asp_ocr_ohem": replace(OS_CITY_H, ohem=HRNET_OHEM),
    "cityscapes/hrnet_w48_ocr_b": OS_CITY_H,
    f"cityscapes/{STAGE}_ohem": stage(
        OS_CITY_H, "mapillary/hrnet_w48_ocr_b",
        ohem=HRNET_OHEM, steps=120_000, train="train+val", lr=1e-3,
    ),
    f"cityscapes/{STAGE}_coarse_ohem": stage(
        OS_CITY_H, f"cityscapes/{STAGE}_ohem",
        ohem=HRNET_OHEM, steps=50_000, batch=16, train="train_extra", lr=1e-4,
    ),
    f"cityscapes/{STAGE}_coarse_trainval_ohem": stage(
        OS_CITY_H, f"cityscapes/{STAGE}_coarse_ohem",
        ohem=HRNET_OHEM, steps=20_000, train="train+val", lr=1e-4,
    ),
    "cityscapes/seg_hrnet_w48_ocr": HR_CITY,
    "cityscapes/seg_hrnet_w48_ocr_trainval": replace(
        HR_CITY, steps=484 * (3475 // 12), train="train+val"
    ),
    "ade20k/openseg_fcn": OS_ADE,
    "ade20k/openseg_base_oc": OS_ADE,
    "ade20k/openseg_asp_oc": OS_ADE,
    "ade20k/openseg_ocr": OS_ADE,
    "ade20k/openseg_ocr_ohem": replace(OS_ADE, ohem=OPENSEG_OHEM),
    "ade20k/openseg_asp_ocr": OS_ADE,
    "ade20k/hrnet_w48": OS_ADE_H,
    "ade20k/hrnet_w48_ocr_ohem": replace(OS_ADE_H, ohem=HRNET_OHEM),
    "ade20k/seg_hrnet_w48_ocr": HR_ADE,
    "lip/ce2p": CE2P,
    "lip/ce2p_asp_oc": CE2P,
    "lip/openseg_ce2p_asp_oc": OS_LIP,
    "lip/hrnet_w48": OS_LIP_H,
    "lip/hrnet_w48_ocr": OS_LIP_H,
    "lip/seg_hrnet_w48_ocr": HR_LIP,
    "coco_stuff/openseg_fcn": OS_COCO,
    "coco_stuff/openseg_ocr": OS_COCO,
    "coco_stuff/hrnet_w48": OS_COCO_H,
    "coco_stuff/hrnet_w48_ocr": OS_COCO_H,
    "coco_stuff/hrnet_w48_ocr_ohem": replace(OS_COCO_H, ohem=HRNET_OHEM),
    "coco_stuff/seg_hrnet_w48_ocr": HR_COCO,
    "pascal_context/openseg_fcn": OS_PASCAL,
    "pascal_context/openseg_base_oc": OS_PASCAL,
    "pascal_context/openseg_isa": OS_PASCAL,
    "pascal_context/openseg_ocr": OS_PASCAL,
    "pascal_context/openseg_asp_ocr": OS_PASCAL,
    "pascal_context/hrnet_w48": OS_PASCAL_H,
    "pascal_context/hrnet_w48_ocr": OS_PASCAL_H,
    "pascal_context/hrnet_w48_ocr_b": OS_PASCAL_H,
    "pascal_context/seg_hrnet_w48_ocr_59": HR_PASCAL,
    "pascal_context/seg_hrnet_w48_ocr_60": replace(
        HR_PASCAL, data="pascal_context_60", classes=60
    ),
    "mapillary/hrnet_w48_ocr_b": MAPILLARY,
    "celeba/hrnet_w48": CELEBA,
    "celeba/hrnet_w48_ocr": CELEBA,
}  # fmt: skip

# What openseg would mine with, where an experiment asked: base file, threshold, least number.
OPENSEG_MINES = {
    "cityscapes_openseg": (0.7, 100_000),
    "cityscapes_openseg_hrnet": (0.9, 100_000),
    "ade20k_openseg": (0.7, 100_000),
    "ade20k_openseg_hrnet": (0.9, 100_000),
    "coco_stuff_openseg": (0.9, 50_000),
    "coco_stuff_openseg_hrnet": (0.9, 100_000),
    "pascal_context_openseg": (0.7, 50_000),
    "pascal_context_openseg_hrnet": (0.7, 100_000),
}

# First resize of training pictures, by data set and code.
SHORT = {"ade20k": 520, "coco_stuff": 520, "pascal_context": 520, "mapillary": 1024}
SQUARE = {"lip": [473, 473], "celeba": [512, 512]}
HRNET_LONG = {"cityscapes": 2048, "ade20k": 520, "coco_stuff": 520, "pascal_context": 520, "lip": 473}  # fmt: skip


@functools.cache
def recipe(key: str) -> RunConfig:
    return load_config(RECIPES[key])


def code_of(key: str) -> str:
    stem = key.partition("/")[2]
    for prefix, code in (
        ("resnet101_", "ocnet"),
        ("openseg_", "openseg"),
        ("hrnet_", "openseg"),
        ("seg_hrnet_", "hrnet"),
        ("ce2p", "ce2p"),
    ):
        if stem.startswith(prefix):
            return code
    raise AssertionError(stem)


def test_the_recipes_are_those_that_were_published() -> None:
    assert set(RECIPES) == set(PUBLISHED)


@pytest.mark.parametrize("key", RECIPES)
def test_a_recipe_says_what_was_published(key: str) -> None:
    config, facts = recipe(key), PUBLISHED[key]
    augment, loss, optim = config.data.augment, config.loss, config.optim
    mined = (loss.ohem_kind, loss.ohem_threshold, loss.ohem_keep)
    scales = (augment.scale_min, augment.scale_max, augment.scale_step)
    found = Facts(
        config.data.name,
        dataset_info(config.data).num_classes,
        (augment.crop[0], augment.crop[1]),
        config.train.batch_size,
        config.train.steps,
        optim.lr,
        optim.weight_decay,
        config.data.input,
        config.model.weights or "",
        scales,
        head_lr=optim.head_lr,
        ohem=None if loss.ohem == "none" else mined,
        train=config.data.train,
        schedule=optim.schedule,
    )
    assert found == facts
    assert loss.ohem in ("none", "single")
    assert (optim.name, optim.momentum, optim.power) == ("sgd", 0.9, 0.9)
    assert (optim.warmup_steps, optim.clip_norm) == (0, None)
    assert loss.class_weights == (CITYSCAPES_WEIGHTS if facts.data == "cityscapes" else None)
    assert loss.aux_weight == (1.0 if "ce2p" in key else 0.4)
    assert loss.edge_weight == 1.0


@pytest.mark.parametrize("key", RECIPES)
def test_training_samples_are_drawn_as_the_code_does(key: str) -> None:
    dataset, code = key.partition("/")[0], code_of(key)
    augment = recipe(key).data.augment
    drawn = replace(augment, crop=[1, 1], scale_min=1.0, scale_max=1.0, scale_step=0.0)
    plain = AugmentConfig(crop=[1, 1], scale_min=1.0, scale_max=1.0)
    square, short = SQUARE.get(dataset), SHORT.get(dataset)
    expected = {
        "ocnet": replace(plain, flip="after", pad="mean", pad_at="end"),
        "openseg": replace(
            plain,
            resize_short=short,
            resize_to=square,
            aspect_min=0.9,
            aspect_max=1.1,
            interpolation="cubic",
            rounding="down",
            flip="after" if dataset in ("cityscapes", "mapillary") else "before",
            brightness=10,
            pad_at="random",
        ),
        "hrnet": replace(
            plain,
            resize_short=short if dataset in ("ade20k", "coco_stuff") else None,
            resize_to=square,
            resize_long=HRNET_LONG.get(dataset),
            flip="before" if dataset == "lip" else "after",
            pad="black",
        ),
        "ce2p": replace(plain, kind="affine", rotation=30.0, affine_scale=0.25, flip="before"),
    }
    assert drawn == expected[code]


@pytest.mark.parametrize("key", RECIPES)
def test_networks_are_scored_as_the_code_does(key: str) -> None:
    dataset, code = key.partition("/")[0], code_of(key)
    options = recipe(key).eval
    merges = {"ocnet": "mean_logits", "openseg": "sum_logits", "hrnet": "exp_logits"}
    assert options.merge == merges.get(code, "mean_logits")
    assert options.scales == [1.0]
    assert options.blend == "count"
    assert options.flip == ((dataset == "lip" and code != "ce2p") or ("seg_hrnet_w48_ocr_" in key and dataset == "pascal_context"))  # fmt: skip
    assert options.resize_to == (None if code == "ce2p" else SQUARE.get(dataset))
    tiles = (options.mode, options.tile, options.overlap, options.border)
    sizes = (options.resize_short, options.resize_long, options.pad_multiple)
    expected: tuple[int | None, int | None, int | None] = (None, None, None)
    if code == "ocnet" or (code == "hrnet" and dataset == "cityscapes"):
        assert tiles == ("ocnet", [1024, 2048], 0, "shift")
    elif code == "hrnet" and dataset != "lip":
        # The next tile begins where HRNet's does: int(520 * 2 / 3).
        assert tiles == ("slide", [520, 520], 1 / 3, "pad")
        assert int(520 * (1 - options.overlap)) == 346
        expected = (None, 520, None)
    else:
        assert options.mode == "whole"
        if code == "ce2p":
            expected = (None, 384, 384)
        elif dataset in SHORT:
            expected = (SHORT[dataset], None, 8)
    assert sizes == expected


@pytest.mark.parametrize("key", RECIPES)
def test_the_network_is_that_of_the_name(key: str) -> None:
    config = recipe(key)
    stem = key.partition("/")[2]
    assert config.model.name in names()
    assert config.model.norm is None
    assert config.model.options == {}
    named = stem.removeprefix("openseg_") if "ce2p" in stem else stem
    longest = max((name for name in names() if named.startswith(name)), key=len)
    assert config.model.name == longest


@pytest.mark.parametrize("key", RECIPES)
def test_runs_are_written_where_the_config_is_named(key: str) -> None:
    config = recipe(key)
    dataset = key.partition("/")[0]
    assert config.train.run_dir == f"runs/{key}"
    assert config.data.root == f"dataset/{dataset}"
    assert config.data.workers == 4
    assert config.train.log_every in (10, 100)
    assert config.train.seed == (304 if code_of(key) in ("ocnet", "openseg") else 0)
    # At least 3 evaluations, the last of them after the last step.
    assert config.train.steps / config.train.eval_every >= 2
    if code_of(key) in ("hrnet", "ce2p"):
        assert config.train.steps % config.train.eval_every in (0, 4 * config.train.steps // 484)


def test_stages_start_where_others_end() -> None:
    ends = {f"{recipe(key).train.run_dir}/weights.safetensors": key for key in RECIPES}
    for key in RECIPES:
        weights = recipe(key).model.weights or ""
        if weights.startswith("pretrained_model/"):
            continue
        before = recipe(ends[weights])
        assert before.model.name == recipe(key).model.name


@pytest.mark.parametrize("path", sorted((CONFIGS / "bases").glob("*.yaml")), ids=lambda p: p.stem)
def test_bases_are_shared_and_have_none_themselves(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert "base" not in content
    line = f"base: ../bases/{path.name}\n"
    users = [user for user in CONFIGS.glob("*/*.yaml") if line in user.read_text()]
    assert len(users) >= 2
    assert all(path.stem.startswith(user.parent.name) for user in users)
    if path.stem in OPENSEG_MINES:
        loss = content["loss"]
        assert (loss["ohem_threshold"], loss["ohem_keep"]) == OPENSEG_MINES[path.stem]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_begins_with_where_it_is_from(path: Path) -> None:
    codes = ("OCNet", "openseg.pytorch", "HRNet-Semantic-Segmentation", "CE2P")
    first = path.read_text().splitlines()[0]
    assert first.startswith(tuple(f"# {code}" for code in codes))


def test_folders_of_mapillary_and_celeba() -> None:
    mapillary = recipe("mapillary/hrnet_w48_ocr_b").data
    assert (mapillary.train, mapillary.val) == ("training", "validation")
    assert mapillary.label_map == {**{value: value for value in range(65)}, 65: 255}
    assert len(set(mapillary.class_names)) == 65
    assert (mapillary.class_names[13], mapillary.class_names[55]) == ("Road", "Car")
    celeba = recipe("celeba/hrnet_w48").data
    assert celeba.label_map == {}
    assert celeba.class_names[:2] + celeba.class_names[-1:] == ["background", "skin", "cloth"]
