# SPDX-License-Identifier: MIT
"""Train on several processes: ``RANK PORT FOLDER RANKS``; each result goes to ``FOLDER/<rank>.pt``."""

import os
import sys
from pathlib import Path

import torch

rank, port, folder, ranks = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
os.environ |= {
    "RANK": str(rank),
    "LOCAL_RANK": str(rank),
    "WORLD_SIZE": ranks,
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": port,
}
torch.set_num_threads(1)

from ocnet.engine import trainer  # noqa: E402
from ocnet.engine.config_files import load_config  # noqa: E402
from ocnet.engine.trainer import train  # noqa: E402
from tests.engine import smooth  # noqa: E402

trainer.build_model = smooth.build_model


class Stop(Exception):
    """Stands for whatever ends a run early."""


def stop(record: dict[str, float]) -> None:
    if record["step"] == 4:
        raise Stop


if "stop" in sys.argv:
    try:
        train(load_config(folder / "config.yaml"), on_step=stop)
    except Stop:
        print("stopped")
else:
    result = train(load_config(folder / "config.yaml"))
    torch.save(
        {
            "weights": dict(result.model.state_dict()),
            "counts": result.evaluation.confusion.counts,
            "losses": [record["loss"] for record in result.history],
        },
        folder / f"{rank}.pt",
    )
    print("trained")
