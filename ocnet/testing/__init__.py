# SPDX-License-Identifier: MIT
"""Inputs and checks shared by the tests and the benchmarks."""

from ocnet.testing.assertions import assert_as_accurate, assert_same_nonfinite
from ocnet.testing.features import FEATURES
from ocnet.testing.inputs import AttentionCase, AttentionInputs, make_inputs, random_cases
from ocnet.testing.oracle import (
    Results,
    eager_results,
    oracle_results,
    results_of,
    run_op,
    summed_magnitudes,
)
from ocnet.testing.partitions import by_groups, random_partitions, run_partitioned

__all__ = [
    "FEATURES",
    "AttentionCase",
    "AttentionInputs",
    "Results",
    "assert_as_accurate",
    "assert_same_nonfinite",
    "by_groups",
    "eager_results",
    "make_inputs",
    "oracle_results",
    "random_cases",
    "random_partitions",
    "results_of",
    "run_op",
    "run_partitioned",
    "summed_magnitudes",
]
