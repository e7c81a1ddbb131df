# SPDX-License-Identifier: MIT
"""The registered calls, as the OCNet family makes them.

Sizes follow the published crops: a 769-pixel crop at stride 8 has 97 x 97 tokens, a Cityscapes image at
stride 8 has 128 x 256.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ocnet.engine.abn_workload import ABNWorkload
from ocnet.engine.gather_workload import GatherWorkload
from ocnet.engine.partition_workload import PartitionWorkload
from ocnet.engine.workload import Call, Workload


@dataclass(frozen=True)
class Case:
    """One registered call.

    Attributes:
        name: Its name in rows and on the command line.
        network: Where the call comes from.
        sizes: The call; device and dtype are filled in by :meth:`on`.
        cuda: Dtypes it is measured in on a GPU.
        cpu: Dtypes it is measured in on the CPU; empty where one call takes many seconds there.
        short: Whether the short table has it.
    """

    name: str
    network: str
    sizes: Call
    cuda: tuple[str, ...] = ("bfloat16",)
    cpu: tuple[str, ...] = ()
    short: bool = True

    def on(self, device: str) -> list[Call]:
        """Return the workloads of this case on ``"cpu"`` or ``"cuda"``, one for each dtype."""
        dtypes = self.cuda if device == "cuda" else self.cpu
        return [self.sizes.on(device, dtype) for dtype in dtypes]


def _tokens_last(N: int, H: int, W: int, E: int = 256, Ev: int = 256) -> Workload:
    return Workload(N, H, W, E=E, Ev=Ev, layout="channels_last")


def _regions(N: int, H: int, W: int, keys: int) -> Workload:
    """Return OCR's call: every pixel attends to one feature for each class."""
    return Workload(N, H, W, Hk=1, Wk=keys, shared=False, layout="channels_last")


def _pyramid(N: int, H: int, W: int) -> PartitionWorkload:
    """Return Pyramid-OC's call: four scales, each with maps of its own, keys that are queries."""
    return PartitionWorkload(N, H, W)


def _isa(
    partition: str, N: int, H: int, W: int, layout: str = "channels_last"
) -> PartitionWorkload:
    """Return a step of ISA: padded maps, query and key from transforms of their own."""
    return PartitionWorkload(
        N, H, W, partition=partition, sizes=(8, 8), shared=False, layout=layout
    )


_TRAINED = ("bfloat16", "float16", "float32")
_ON_CPU = ("float32", "bfloat16")


def _norm(
    network: str,
    sizes: tuple[int, int, int, int],
    residual: bool = False,
    short: bool = False,
    cuda: tuple[str, ...] = _ON_CPU[::-1],
) -> list[Case]:
    """Return a layer's calls in both layouts."""
    n, c, h, w = sizes
    name = f"abn-{c}-{h}" + ("" if h == w else f"x{w}") + ("-residual" if residual else "")
    cases = []
    for layout, end in (("channels_last", ""), ("nchw", "-nchw")):
        call = ABNWorkload(n, h, w, C=c, residual=residual, layout=layout)
        cases.append(Case(f"{name}-n{n}{end}", network, call, cuda, _ON_CPU, short))
    return cases


CASES = (
    Case("tiny-24", "the network of ocnet demo, wider", _tokens_last(1, 24, 24), cpu=("float32",)),
    Case("base-97-n1", "Base-OC", _tokens_last(1, 97, 97), _TRAINED, _ON_CPU),
    Case("base-97-n1-nchw", "Base-OC", Workload(1, 97, 97), cpu=("float32",)),
    Case("base-97-n2", "Base-OC", _tokens_last(2, 97, 97)),
    Case("base-97-n3", "Base-OC", _tokens_last(3, 97, 97)),
    Case("base-97-n4", "Base-OC", _tokens_last(4, 97, 97)),
    Case("base-97-n8", "Base-OC", _tokens_last(8, 97, 97), _TRAINED),
    Case("base-97-v512-n4", "Base-OC, wide values", _tokens_last(4, 97, 97, Ev=512)),
    Case("pooled-48-n1", "Base-OC, pooled by 2", _tokens_last(1, 48, 48), cpu=_ON_CPU),
    Case("pooled-48-n8", "Base-OC, pooled by 2", _tokens_last(8, 48, 48)),
    Case("pooled-49-n8", "Base-OC, pooled by 2", _tokens_last(8, 49, 49)),
    Case("whole-128x256", "Base-OC, whole image", _tokens_last(1, 128, 256)),
    Case("whole-129x257", "Base-OC, whole image", _tokens_last(1, 129, 257)),
    Case("whole-128x256-v512", "Base-OC, wide values", _tokens_last(1, 128, 256, Ev=512)),
    Case(
        "asp-48-n8",
        "ASP-OC, pooled by 2",
        _tokens_last(8, 48, 48, E=128),
    ),
    Case("asp-48-n1", "ASP-OC", _tokens_last(1, 48, 48, E=128), cpu=("float32",)),
    Case("asp-97-n1", "ASP-OC", _tokens_last(1, 97, 97, E=128), cpu=_ON_CPU),
    Case("asp-97-n4", "ASP-OC", _tokens_last(4, 97, 97, E=128)),
    Case("pyramid-97-n1", "Pyramid-OC", _pyramid(1, 97, 97), cpu=_ON_CPU),
    Case("pyramid-97-n4", "Pyramid-OC", _pyramid(4, 97, 97)),
    Case("pyramid-129x257", "Pyramid-OC, whole image", _pyramid(1, 129, 257), cpu=("float32",)),
    # 97 and 129 x 257, padded
    Case("isa-long-104-n4", "ISA, long range", _isa("strided", 4, 104, 104), cpu=_ON_CPU),
    Case("isa-short-104-n4", "ISA, short range", _isa("blocks", 4, 104, 104), cpu=_ON_CPU),
    Case(
        "isa-long-104-n4-nchw",
        "ISA, long range",
        _isa("strided", 4, 104, 104, layout="nchw"),
        cpu=("float32",),
    ),
    Case(
        "isa-long-136x264",
        "ISA, long range, whole image",
        _isa("strided", 1, 136, 264),
        cpu=("float32",),
    ),
    Case(
        "isa-short-136x264",
        "ISA, short range, whole image",
        _isa("blocks", 1, 136, 264),
        cpu=("float32",),
    ),
    Case("ocr-97-k19-n4", "OCR, Cityscapes", _regions(4, 97, 97, 19), cpu=("float32",)),
    Case("ocr-97-k150-n4", "OCR, ADE20K", _regions(4, 97, 97, 150)),
    Case("ocr-97-k171-n4", "OCR, COCO-Stuff", _regions(4, 97, 97, 171), cpu=("float32",)),
    Case("ocr-128x256-k19", "OCR, whole image", _regions(1, 128, 256, 19)),
    Case(
        "gather-97-k19-n1",
        "OCR's regions, Cityscapes",
        GatherWorkload(1, 97, 97),
        cpu=_ON_CPU,
    ),
    Case(
        "gather-97-k150-n1",
        "OCR's regions, ADE20K",
        GatherWorkload(1, 97, 97, K=150),
        cpu=("float32",),
    ),
    Case("gather-97-k19-n4", "OCR's regions, Cityscapes", GatherWorkload(4, 97, 97), _TRAINED),
    Case("gather-97-k150-n4", "OCR's regions, ADE20K", GatherWorkload(4, 97, 97, K=150)),
    Case("gather-97-k171-n4", "OCR's regions, COCO-Stuff", GatherWorkload(4, 97, 97, K=171)),
    Case("gather-128x256-k19", "OCR's regions, whole image", GatherWorkload(1, 128, 256)),
    *_norm("ResNet, stem", (32, 64, 112, 112), short=True),
    *_norm("ResNet-50, stage 1", (32, 256, 56, 56)),
    *_norm("ResNet-50, stage 1, end of a block", (32, 256, 56, 56), residual=True, short=True),
    *_norm("ResNet-50, stage 2", (32, 512, 28, 28)),
    *_norm("ResNet-50, stage 3", (32, 1024, 14, 14)),
    *_norm("ResNet-50, stage 4", (8, 2048, 7, 7)),
    *_norm("ResNet-50, stage 4, a small batch", (2, 2048, 7, 7), cuda=()),
    *_norm("64 channels at stride 8 of a whole image", (8, 64, 128, 256)),
    *_norm("Base-OC, transform", (2, 512, 97, 97)),
    *_norm("ResNet-101 at stride 8, stage 4", (2, 2048, 65, 129), short=True),
)

QUICK = ("tiny-24",)


def select(names: Sequence[str], device: str, quick: bool) -> list[Case]:
    """Return the cases asked for, or all that ``device`` has.

    Raises:
        ValueError: A name is not registered, or the case is not measured on this device.
    """
    known = {case.name: case for case in CASES if case.on(device)}
    if not names:
        return [known[name] for name in QUICK] if quick else list(known.values())
    for name in names:
        if name not in known:
            raise ValueError(
                f"benchmarks: --cases must be of {', '.join(known)} on {device}, got {name}"
            )
    return [known[name] for name in names]
