#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Base-OC on Cityscapes: train, score on val and on train, and make the submission for the test server.
# Overrides of the config go behind it: ./run_base_oc.sh --data.root=elsewhere --train.steps=100
here=$(dirname "$0")
exec "$here/tools/train_score_submit.sh" "$here/configs/cityscapes/resnet101_base_oc.yaml" "$@"
