# SPDX-License-Identifier: MIT
"""Weights that this package writes."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from ocnet.models import create, load_checkpoint
from ocnet.models.weights import SCALE_KEY, read_metadata, save_weights, scale_kind
from tests.models.states import assert_equal, clone, filled


class Wrapped(nn.Module):
    """As DistributedDataParallel names its parameters."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_round_trip(tmp_path: Path, layout: torch.memory_format) -> None:
    source, target = filled("tiny_base_oc").to(memory_format=layout), filled("tiny_base_oc")
    path = tmp_path / "weights.safetensors"
    save_weights(source, path, {"name": "tiny_base_oc", "note": "é"})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert read_metadata(path) == {"name": "tiny_base_oc", "note": "é"}
    assert load_checkpoint(target, str(path)).ok
    assert_equal(clone(target), clone(source))


def test_an_overwritten_file_is_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    for _ in range(2):
        source = filled("tiny_local")
        save_weights(source, path, {})
    target = filled("tiny_local")
    load_checkpoint(target, path)
    assert_equal(clone(target), clone(source))
    assert read_metadata(path) == {}


def test_wrapper_prefixes_are_stripped_on_both_sides(tmp_path: Path) -> None:
    source, target = filled("tiny_base_oc"), filled("tiny_base_oc")
    path = tmp_path / "w.safetensors"
    save_weights(Wrapped(source), path, {})
    assert all(not n.startswith("module.") for n in safetensors.torch.load_file(path))
    load_checkpoint(Wrapped(target), path)
    assert_equal(clone(target), clone(source))


def test_metadata_must_be_text(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="metadata must map text to text, got 'classes': 5"):
        save_weights(create("tiny_local"), tmp_path / "w", {"classes": 5})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        save_weights(create("tiny_local"), tmp_path / "folder", {})
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_signs_of_scales_are_not_lost_unseen(tmp_path: Path) -> None:
    """Plain batch norm uses the sign of a weight, the in-place norms its magnitude."""
    path = tmp_path / "weights.safetensors"
    plain = create("tiny_local", 5, norm="batchnorm")
    inplace = create("tiny_local", 5, norm="inplace_abn")
    save_weights(plain, path, {SCALE_KEY: scale_kind(plain)})
    assert load_checkpoint(inplace, path).ok
    with torch.no_grad():
        plain.layers[1][1].weight[3] = -0.5
    save_weights(plain, path, {SCALE_KEY: scale_kind(plain)})
    before = clone(inplace)
    with pytest.raises(ValueError, match=r"no negative weights .* in layers.1.1; build"):
        load_checkpoint(inplace, path)
    assert_equal(clone(inplace), before)
    # What was trained with magnitudes may have any sign, and so may what says nothing.
    save_weights(plain, path, {SCALE_KEY: scale_kind(inplace)})
    assert load_checkpoint(inplace, path).ok
    save_weights(plain, path, {})
    assert load_checkpoint(inplace, path).ok
