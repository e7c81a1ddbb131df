# SPDX-License-Identifier: MIT
"""The Hopper kernels without torch: ladders of checks for their first run, and their variants."""
