# SPDX-License-Identifier: MIT
"""What the ops share."""
