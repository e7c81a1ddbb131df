# SPDX-License-Identifier: MIT
"""Inputs and checks shared by the tests and the benchmarks."""

from ocnet.testing.assertions import assert_as_accurate, assert_same_nonfinite
from ocnet.testing.features import FEATURES
from ocnet.testing.inputs import AttentionCase, AttentionInputs, make_inputs, random_cases
from ocnet.testing.oracle import (
    Results,
    eager_results,
    oracle_results,
    run_op,
    summed_magnitudes,
)

__all__ = [
    "FEATURES",
    "AttentionCase",
    "AttentionInputs",
    "Results",
    "assert_as_accurate",
    "assert_same_nonfinite",
    "eager_results",
    "make_inputs",
    "oracle_results",
    "random_cases",
    "run_op",
    "summed_magnitudes",
]
