# SPDX-License-Identifier: MIT
"""One name for every tensor, however published codes and wrappers spell it."""

from collections.abc import Collection

# Left by DataParallel, torch.compile, and the module that the HRNet repository trains.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
# Parts of networks that some codes have and others do not: backbones below the network and stems below
# the backbone, and heads of networks that this package saved before their keys were the published ones.
_PARTS = ("backbone.", "resinit.", "head.", "aux_head.")
# The HRNet repository's own renaming, of networks without OCR.
_OLD_AUXILIARY = "last_layer."
_STATISTIC = "running_mean"
_COUNTER = "num_batches_tracked"
# timm's deep stem: one Sequential, and the norm after it.
_TIMM_STEM = {
    "conv1.0": "conv1", "conv1.1": "bn1", "conv1.3": "conv2", "conv1.4": "bn2", "conv1.6": "conv3",
    "bn1": "bn3",
}  # fmt: skip
# What no network here has: layers of classifiers of whole images, and the class weights of the loss that the
# HRNet repository saves with its network.
_NEVER_USED = frozenset(
    ("fc", "last_linear", "classifier", "incre_modules", "downsamp_modules", "final_layer", "loss")
)


def common_names(names: Collection[str]) -> dict[str, str]:
    """Return a common name for each name of a state dict.

    Two state dicts of the same network agree in them where they differ in wrappers (``module.``), in where
    the backbone is (``backbone.resinit.conv1``, ``conv1``), in norms within a ``Sequential`` of their own
    (``1.0.weight``, ``1.weight``), or in timm's spelling of a deep stem.

    Args:
        names: All names of one state dict; how one is spelt can depend on what others there are.
    """
    bare = {name: _without_prefixes(name) for name in names}
    deep = "conv1.6.weight" in bare.values()
    norms = {
        name.removesuffix(f".{_STATISTIC}") for name in bare.values() if name.endswith(_STATISTIC)
    }
    return {name: _respelt(short, norms, deep) for name, short in bare.items()}


def is_counter(name: str) -> bool:
    """Tell a counter of batches, which changes no result."""
    return name.endswith(f".{_COUNTER}")


def is_never_used(common: str) -> bool:
    """Tell by its common name a tensor that published files have and networks do not."""
    return common.partition(".")[0] in _NEVER_USED


def unwrapped(name: str) -> str:
    """Return a name without what wrappers put before it."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _without_prefixes(name: str) -> str:
    name = unwrapped(name)
    if name.startswith(_OLD_AUXILIARY):
        return name.removeprefix(_OLD_AUXILIARY)
    for part in _PARTS:
        name = name.removeprefix(part)
    return name


def _respelt(name: str, norms: Collection[str], deep_stem: bool) -> str:
    owner, dot, leaf = name.rpartition(".")
    if owner in norms:
        while owner.endswith(".0"):
            owner = owner.removesuffix(".0")
    if deep_stem:
        owner = _TIMM_STEM.get(owner, owner)
    return f"{owner}{dot}{leaf}"
