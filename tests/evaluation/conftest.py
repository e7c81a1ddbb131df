# SPDX-License-Identifier: MIT
"""What the tests of evaluation share."""

import pytest


@pytest.fixture(autouse=True)
def _small_maps(one_thread: None) -> None:
    """Maps are tiny here."""
