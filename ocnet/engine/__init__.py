# SPDX-License-Identifier: MIT
"""Training and everything around it: typed config, the loop, checkpoints, runs on disk."""
