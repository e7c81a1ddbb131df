# SPDX-License-Identifier: MIT
"""The Hopper forward kernel without torch: a ladder of checks for its first run, and its variants."""
