# SPDX-License-Identifier: MIT
"""Frozen tile sizes of the Triton kernels on groups; ocnet/ops/oc_attention/configs.py explains them.

Groups are read through pointers. Other GPUs than those of compute capability 9.x read whole maps so
too, and take the same tiles with few exceptions. On 9.x descriptors write to shared memory without a
register; here every row of a tile is an address, and a tile that no pipeline brings in passes through
registers, so slices are narrower and columns fewer.
``tests/ops/test_triton_partition_compile.py`` compiles the rows with Triton 3.6 and 3.9; what "spills"
below was seen there, in one of them or both.
"""

from ocnet.ops.oc_attention import configs
from ocnet.ops.oc_attention.configs import Few, FewKernel, Kernel, Math, Row, Table, Tile

_WHOLE_16 = configs.table("half", True, (3, 9))

_HOPPER_16: Table = {
    "forward": (
        *_WHOLE_16["forward"][:3],
        # 64 columns spill
        Row(256, 256, Tile(128, 32, 256, 256, 256, warps=8, stages=3)),
        # all 512 output channels beside 64 rows spill
        Row(128, 512, Tile(64, 64, 128, 512, 256, warps=8, stages=3)),
        # scores are computed once; 64 columns need 237568 B
        Row(256, 512, Tile(64, 32, 256, 512, 512, warps=8, stages=3)),
        # kept whole: slices would be read again in every step
        Row(512, 512, Tile(64, 32, 512, 512, 256, warps=8, stages=2)),
    ),
    "value": (
        *_WHOLE_16["value"][:2],
        # 64 rows that keep all 512 output channels spill
        Row(256, 512, Tile(128, 64, 256, 512, 256, warps=8, stages=2)),
        Row(512, 512, Tile(64, 32, 512, 512, 512, warps=8, stages=2)),
    ),
    "query": (
        *_WHOLE_16["query"][:4],
        # both kept tiles whole: slices spill
        Row(256, 512, Tile(64, 32, 256, 512, 256, warps=8, stages=2)),
        Row(512, 256, Tile(64, 32, 512, 256, 512, warps=8, stages=2)),
        Row(512, 512, Tile(64, 16, 512, 512, 512, warps=8, stages=1)),
    ),
    "key": (
        # 128 columns spill
        Row(64, 64, Tile(128, 64, 64, 64, 64, warps=8, stages=3, out_v=64)),
        # three stages spill
        Row(128, 128, Tile(128, 64, 128, 128, 128, warps=8, stages=2, out_v=128)),
        _WHOLE_16["key"][2],
        # 64 columns spill
        Row(256, 256, Tile(64, 32, 256, 256, 256, warps=8, stages=3, out_v=256)),
        Row(256, 512, Tile(64, 32, 256, 512, 256, warps=8, stages=2)),
        # 32 columns spill
        Row(512, 256, Tile(64, 16, 512, 256, 512, warps=8, stages=2)),
        Row(512, 512, Tile(64, 16, 512, 512, 512, warps=8, stages=1)),
    ),
    "both": (
        *_WHOLE_16["both"][:3],
        # four warps spill
        Row(256, 64, Tile(64, 32, 256, 64, 256, warps=8, stages=2)),
        _WHOLE_16["both"][3],
        # wider slices spill
        Row(128, 512, Tile(64, 64, 128, 64, 128, warps=8, stages=3)),
        Row(256, 512, Tile(64, 64, 256, 64, 256, warps=8, stages=3)),
        # 32 columns spill
        Row(512, 128, Tile(64, 16, 512, 128, 512, warps=8, stages=2)),
        Row(512, 512, Tile(64, 32, 512, 64, 512, warps=8, stages=1)),
    ),
}

_WHOLE_TF32 = configs.table("tf32", True, (3, 9))
# 64 columns beside 256 sums spill
_HALF_COLUMNS = Tile(64, 32, 64, 64, 256, warps=8, stages=2)
_HOPPER_TF32: Table = {
    **_WHOLE_TF32,
    "key": (
        *_WHOLE_TF32["key"][:1],
        Row(128, 512, Tile(64, 64, 64, 64, 128, warps=8, stages=2)),
        Row(512, 512, _HALF_COLUMNS),
    ),
    "both": (
        *_WHOLE_TF32["both"][:1],
        Row(64, 512, _HALF_COLUMNS),
        Row(128, 256, _HALF_COLUMNS),
        Row(512, 128, _HALF_COLUMNS),
        # wider slices spill
        Row(512, 512, Tile(64, 32, 32, 32, 256, warps=8, stages=2)),
    ),
}

_WHOLE_FLOAT32 = configs.table("float32", True, (3, 9))
# 32 columns spill
_FEW_COLUMNS = Tile(64, 16, 32, 32, 256, warps=8, stages=2)
_HOPPER_FLOAT32: Table = {
    **_WHOLE_FLOAT32,
    "forward": (Row(32, 512, _FEW_COLUMNS), *_WHOLE_FLOAT32["forward"]),
    "query": (
        *_WHOLE_FLOAT32["query"][:1],
        Row(128, 512, _WHOLE_FLOAT32["query"][1].tile),
        Row(512, 512, _FEW_COLUMNS),
    ),
    "both": (
        *_WHOLE_FLOAT32["both"][:1],
        Row(128, 512, _FEW_COLUMNS),
        Row(512, 64, _FEW_COLUMNS),
        # 256 sums spill
        Row(512, 512, Tile(64, 16, 32, 32, 128, warps=8, stages=2)),
    ),
}

_WHOLE_PORTABLE_16 = configs.table("half", False, (3, 9))
_PORTABLE_16: Table = {
    **_WHOLE_PORTABLE_16,
    "query": (
        # 128 rows spill in Triton 3.9
        Row(16, 32, Tile(64, 64, 16, 32, 16, warps=8, stages=2)),
        *_WHOLE_PORTABLE_16["query"],
    ),
    "both": (
        *_WHOLE_PORTABLE_16["both"][:2],
        Row(256, 64, _WHOLE_PORTABLE_16["both"][2].tile),
        # rows that are kept whole spill in Triton 3.9
        Row(256, 128, Tile(64, 32, 64, 64, 256, warps=8, stages=2)),
        *_WHOLE_PORTABLE_16["both"][2:],
    ),
}

_HOPPER: dict[Math, Table] = {"half": _HOPPER_16, "tf32": _HOPPER_TF32, "float32": _HOPPER_FLOAT32}

# Whole groups on chip, two-byte elements, compute capability 9.x, up to 256 channels. Eight warps, whose
# registers allow one program on a multiprocessor: four spill with all 256 output channels, and in Triton
# 3.9 with half of them. So do blocks of 64 + 32 keys and of 64 + 64.
_WIDEST_BLOCKS = Few(64, 128, 64, warps=8, stages=1)
FEW: dict[FewKernel, tuple[Few, ...]] = {
    "few": (
        Few(64, 32, 0, warps=8, stages=1),
        Few(64, 64, 0, warps=8, stages=1),
        Few(64, 128, 32, warps=8, stages=1),
        _WIDEST_BLOCKS,
    ),
    # In Triton 3.9 blocks of 128 spill at some widths with four warps, and at others with eight.
    "few_query": configs.FEW["few_query"][:2],
}


def few_keys(kernel: FewKernel, math: Math, hopper: bool, e: int, ev: int, keys: int) -> Few | None:
    """Return the tile that keeps groups of up to so many tokens on chip, or ``None``."""
    tile = configs.few_keys(FEW[kernel], math, hopper, e, ev, keys)
    # Too few values for their eight warps: that spills in Triton 3.9.
    if tile == _WIDEST_BLOCKS and (configs.padded(e), configs.padded(ev)) == (256, 64):
        return None
    return tile


def table(math: Math, hopper: bool, version: tuple[int, int]) -> Table:
    """Return the tiles of one kind of products on one kind of GPU."""
    if hopper:
        return _HOPPER[math]
    return _PORTABLE_16 if math == "half" else configs.table(math, hopper, version)


def choose(
    kernel: Kernel, math: Math, hopper: bool, version: tuple[int, int], e: int, ev: int
) -> Tile:
    """Return the tile of a call on groups; the arguments are those for whole maps."""
    return configs.fit(kernel, table(math, hopper, version)[kernel], e, ev)
