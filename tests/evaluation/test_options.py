# SPDX-License-Identifier: MIT
"""Options: what is refused, and what they are said to mean."""

from typing import Any

import pytest

from ocnet.evaluation import InferenceOptions


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"mode": "tiles"}, "mode must be one of whole, slide, ocnet, got 'tiles'"),
        ({"border": "wrap"}, "border must be one of shift, pad, got 'wrap'"),
        ({"blend": "mean"}, "blend must be one of count, gaussian, got 'mean'"),
        ({"merge": "max"}, "merge must be one of mean_logits, .*, got 'max'"),
        ({"tile": (0, 4)}, r"tile must be rows and columns, each at least 1, got \(0, 4\)"),
        ({"tile": (4,)}, r"tile must be rows and columns, each at least 1, got \(4,\)"),
        ({"resize_to": (4, -1)}, r"resize_to must be rows and columns, .*, got \(4, -1\)"),
        ({"tile_batch": 0}, "tile_batch must be at least 1, got 0"),
        ({"resize_short": 0}, "resize_short must be at least 1, got 0"),
        ({"resize_long": 0}, "resize_long must be at least 1, got 0"),
        ({"resize_long": 4, "resize_to": (4, 4)}, "resize_long must be None where .*, got 4"),
        ({"resize_short": 4, "resize_long": 4}, "resize_short must be None where .*, got 4"),
        ({"pad_multiple": 0}, "pad_multiple must be at least 1, got 0"),
        ({"overlap": 1.0}, "overlap must be at least 0 and below 1, got 1.0"),
        ({"overlap": -0.1}, "overlap must be at least 0 and below 1, got -0.1"),
        ({"scales": ()}, r"scales must be one or more numbers above 0, got \(\)"),
        ({"scales": (1.0, 0.0)}, r"scales must be one or more numbers above 0, got \(1.0, 0.0\)"),
        ({"scales": (float("nan"),)}, "scales must be one or more numbers above 0"),
        ({"resize_short": 4, "resize_to": (4, 4)}, "resize_short must be None where .*, got 4"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^InferenceOptions: {complaint}"):
        InferenceOptions(**options)


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({}, True),
        ({"mode": "ocnet"}, True),
        ({"merge": "sum_logits"}, True),
        ({"tile": (3, 3), "tile_batch": 4, "overlap": 0.5}, True),
        ({"mode": "slide"}, False),
        ({"merge": "exp_logits"}, False),
        ({"merge": "mean_probabilities"}, False),
        ({"flip": True}, False),
        ({"scales": (1.0, 1.0)}, False),
        ({"scales": (0.5,)}, False),
        ({"resize_short": 5}, False),
        ({"resize_long": 5}, False),
        ({"resize_to": (5, 5)}, False),
        ({"pad_multiple": 8}, False),
    ],
)
def test_plain_is_one_look_at_the_picture_as_it_is(options: dict[str, Any], plain: bool) -> None:
    assert InferenceOptions(**options).plain is plain


def test_ocnet_slides_above_scale_1_only() -> None:
    scales = (0.5, 1.0, 1.25)
    assert [InferenceOptions("ocnet").slides(scale) for scale in scales] == [False, False, True]
    assert [InferenceOptions("slide").slides(scale) for scale in scales] == [True] * 3
    assert [InferenceOptions("whole").slides(scale) for scale in scales] == [False] * 3
