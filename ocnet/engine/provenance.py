# SPDX-License-Identifier: MIT
"""What a run folder says about how to repeat the run."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from ocnet.engine.config import RunConfig
from ocnet.engine.environment import source_commit, versions
from ocnet.engine.meters import device_name
from ocnet.engine.run import CONFIG_FILE


def write_provenance(path: Path, config: RunConfig, device: torch.device, processes: int) -> None:
    """Write the command that repeats a run, and all that its result depends on beside the config.

    Args:
        path: JSON file to write, in the run folder beside its config.
        config: of the run.
        device: of the run.
        processes: how many share its batches.
    """
    # Into another folder: a repetition must not write over what it is compared with.
    words = ("--config", str(path.with_name(CONFIG_FILE)), f"--train.run_dir={path.parent}-again")
    launcher = (
        "ocnet train" if processes == 1 else f"torchrun --nproc-per-node {processes} train.py"
    )
    facts = {
        "repeat": f"{launcher} {shlex.join(words)}",
        "command": shlex.join(sys.argv),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": config.model.name,
        "device": device_name(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "commit": source_commit(),
        "versions": versions(),
    }
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
