#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What the scripts of the top folder do: train a config, score it on val and train, and submit test.
#   RUN     the run folder (runs/<folder and name of the config>)
#   GPUS    processes, one GPU each (1); the batch of the config is shared among them
#   PYTHON  the interpreter (that of .venv, if there is one)
set -euo pipefail
top=$(dirname "$0")/..
config=$1
shift
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python3
  [[ -x $top/.venv/bin/python ]] && PYTHON=$top/.venv/bin/python
fi
RUN=${RUN:-runs/$(basename "$(dirname "$config")")/$(basename "$config" .yaml)}

launch=("$PYTHON")
if ((${GPUS:-1} > 1)); then
  launch=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$GPUS")
fi
"${launch[@]}" "$top/train.py" --config "$config" --train.run_dir="$RUN" "$@"
"$PYTHON" -m ocnet.cli.main eval --run "$RUN" --split val
"$PYTHON" -m ocnet.cli.main eval --run "$RUN" --split train
"$PYTHON" -m ocnet.cli.main submit --run "$RUN" --split test
