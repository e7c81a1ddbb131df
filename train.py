# SPDX-License-Identifier: MIT
"""``python train.py --config ...`` is ``ocnet train --config ...``."""

import sys

from ocnet.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
