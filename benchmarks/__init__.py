# SPDX-License-Identifier: MIT
"""Registered benchmarks; README.md in this folder says how they are run and read."""
