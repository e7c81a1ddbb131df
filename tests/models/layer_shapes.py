# SPDX-License-Identifier: MIT
"""The shapes of what each layer of a network returns, as a table."""

import re
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ocnet.models import create
from ocnet.modules import ABN

FOLDER = Path(__file__).parent / "shapes"
# The crops of training, and a whole image.
SIZES = ((769, 769), (1024, 2048))
_WITHIN = re.compile(r"(^|\.)(layer[1-4]|stage[2-4])\.")
# Layers that return what they are given, and lists that are not called.
_LEFT_OUT = (ABN, nn.Dropout2d, nn.Identity, nn.ModuleList)


def table(name: str) -> str:
    """Return one line for each layer: its name, its kind, and its shapes for ``SIZES``.

    Blocks of a backbone are left to their layer, norms and dropout out.
    """
    columns = [_shapes(name, size) for size in SIZES]
    lines = [f"{name}: images {' '.join(f'{h}x{w}' for h, w in SIZES)}"]
    for layer in columns[0]:
        lines.append(f"{layer} {' '.join(column[layer] for column in columns)}")
    return "\n".join(lines) + "\n"


def _shapes(name: str, size: tuple[int, int]) -> dict[str, str]:
    found: dict[str, str] = {}

    def note(label: str, result: object) -> None:
        if isinstance(result, Tensor):
            result = (result,)
        maps = [x for x in result if isinstance(x, Tensor)]
        found[label] = ",".join("x".join(map(str, x.shape[1:])) for x in maps)

    # Shapes alone, without numbers.
    with FakeTensorMode():
        model = create(name).eval()
        for path, module in model.named_modules():
            if path and not _WITHIN.search(path) and not isinstance(module, _LEFT_OUT):
                label = f"{path} {type(module).__name__}"
                module.register_forward_hook(lambda _, __, out, label=label: note(label, out))
        with torch.no_grad():
            note("network", model(torch.empty(1, 3, *size)))
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in sys.argv[1:]:
        (FOLDER / f"{each}.txt").write_text(table(each), encoding="utf-8")
