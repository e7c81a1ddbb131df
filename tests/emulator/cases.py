# SPDX-License-Identifier: MIT
"""Every case of every primitive."""

from tests.emulator import cases_copies, cases_matrix, cases_tensor, cases_threads, cases_wgmma
from tests.emulator.trials import Case

CASES: list[Case] = [
    case
    for module in (cases_threads, cases_matrix, cases_copies, cases_tensor, cases_wgmma)
    for case in module.CASES
]
