# SPDX-License-Identifier: MIT
"""Pictures and the HTML page of a run, drawn from plain arrays.

Nothing here imports torch. Pictures need matplotlib (``pip install 'ocnet[viz]'``), the page does not.
"""

from ocnet.report.attention import AttentionRow, attention_figure, regions_figure
from ocnet.report.contact_sheet import contact_sheet
from ocnet.report.curves import curves_figure
from ocnet.report.errors import error_figure
from ocnet.report.html import Section, Table, write_page
from ocnet.report.predictions import predictions_figure
from ocnet.report.scaling import Panel, Series, scaling_figure

__all__ = [
    "AttentionRow",
    "Panel",
    "Section",
    "Series",
    "Table",
    "attention_figure",
    "contact_sheet",
    "curves_figure",
    "error_figure",
    "predictions_figure",
    "regions_figure",
    "scaling_figure",
    "write_page",
]
