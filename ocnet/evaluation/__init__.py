# SPDX-License-Identifier: MIT
"""How good a network is: one confusion matrix over a data set, and what follows from it."""

from ocnet.evaluation.evaluator import Evaluation, GroupAccuracy, evaluate
from ocnet.evaluation.inference import classify_picture, predict_logits, reduce_picture
from ocnet.evaluation.metrics import ClassRow, ConfusionMatrix, write_class_table
from ocnet.evaluation.options import InferenceOptions
from ocnet.evaluation.predictor import Predictor
from ocnet.evaluation.submission import write_submission, zip_submission

__all__ = [
    "ClassRow",
    "ConfusionMatrix",
    "Evaluation",
    "GroupAccuracy",
    "InferenceOptions",
    "Predictor",
    "classify_picture",
    "evaluate",
    "predict_logits",
    "reduce_picture",
    "write_class_table",
    "write_submission",
    "zip_submission",
]
