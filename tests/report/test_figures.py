# SPDX-License-Identifier: MIT
"""Pictures from plain arrays: what is drawn, and what is refused."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from ocnet import report
from ocnet.report import style
from ocnet.report.attention import AttentionRow
from ocnet.report.curves import smoothed
from ocnet.report.scaling import Panel, Series


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_report_needs_no_torch() -> None:
    code = (
        "import sys, ocnet.report; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_matplotlib_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = tmp_path / "curves.png"
    with pytest.raises(RuntimeError, match=r"matplotlib must be installed.*ocnet\[viz\]"):
        report.curves_figure(path, {}, title="")
    assert not path.exists()


def test_labels_outside_the_classes_are_white() -> None:
    labels = np.array([[0, 1], [-1, 255]])
    painted = style.paint_labels(labels, 2)
    assert np.allclose(painted[0], style.class_colours(2))
    assert np.all(painted[1] == 1)


def test_class_colours_stay_distinct_past_the_palette() -> None:
    colours = style.class_colours(19)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    # The last of the palette is black, whose darker shades are black too.
    others = [i for i in range(19) if i % 8 != 7]
    assert (distances[np.ix_(others, others)] + np.eye(len(others)) > 0.05).all()


def test_predictions_count_right_pixels_without_the_ignored(
    tmp_path: Path, drawn: list[Any]
) -> None:
    images = np.random.default_rng(0).random((1, 4, 5))
    truth = np.zeros((1, 4, 5), int)
    truth[0, 0] = 255
    guess = np.zeros((1, 4, 5), int)
    guess[0, :2] = 1  # the ignored row, and one of the three that count
    path = tmp_path / "p.png"
    report.predictions_figure(path, images, truth, {"net": guess}, ["a", "b"], title="t")
    assert "67% right" in texts(drawn[0])
    assert {"image", "truth", "net", "its errors", "a", "b"} <= set(texts(drawn[0]))
    assert np.asarray(Image.open(path)).std() > 0


def test_predictions_refuse_label_maps_of_another_size(tmp_path: Path) -> None:
    images, labels = np.zeros((2, 4, 4)), np.zeros((2, 4, 4), int)
    with pytest.raises(ValueError, match=r"net must have shape \(2, 4, 4\), got \(2, 4, 5\)"):
        report.predictions_figure(
            tmp_path / "p.png", images, labels, {"net": np.zeros((2, 4, 5))}, ["a"], title=""
        )


def attention_row(queries: int, side: int = 8) -> AttentionRow:
    maps = np.zeros((queries, 4, 4))
    maps[:, 1, 2] = 0.5
    maps[:, 3, 0] = 0.5
    points = np.array([[0, side - 1]] * queries)
    return AttentionRow(np.zeros((side, 2 * side, 3)), points, maps, "row", ["caption"] * queries)


def test_attention_states_the_peak_over_uniform(tmp_path: Path, drawn: list[Any]) -> None:
    report.attention_figure(tmp_path / "a.png", [attention_row(2), attention_row(2)], title="t")
    assert texts(drawn[0]).count("max 8x uniform") == 4  # 0.5 where 1/16 is uniform
    assert texts(drawn[0]).count("caption") == 4


def test_attention_refuses_rows_that_differ(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must all have 2 points"):
        report.attention_figure(tmp_path / "a.png", [attention_row(2), attention_row(3)], title="t")


def test_curves_say_what_was_not_recorded(tmp_path: Path, drawn: list[Any]) -> None:
    records = [{"step": float(i), "loss": 1.0 / i} for i in range(1, 9)]
    records[-1]["miou"] = 0.625
    report.curves_figure(tmp_path / "c.png", {"one": records, "two": records[:4]}, title="t")
    assert texts(drawn[0]).count("not recorded") == 2  # learning rate and throughput
    assert "0.62" in texts(drawn[0])


def test_smoothing_keeps_straight_lines_and_averages_noise() -> None:
    line = np.arange(200.0)
    assert np.allclose(smoothed(line)[5:-5], line[5:-5])
    noise = np.random.default_rng(0).normal(size=400)
    assert smoothed(noise).std() < 0.5 * noise.std()
    assert len(smoothed(np.ones(1))) == 1


def panel(**series: Series) -> Panel:
    return Panel("cost", "MiB", lambda value: f"{value:g} MiB", series)


def test_line_end_labels_never_touch(tmp_path: Path, drawn: list[Any]) -> None:
    close = {name: Series([10, 100], [1.0, 50.0 + i]) for i, name in enumerate("abcd")}
    report.scaling_figure(tmp_path / "s.png", [panel(**close)], {10: "", 100: ""}, title="t")
    axis = drawn[0].axes[0]
    places = sorted(text.get_position()[1] for text in axis.texts)
    assert len(places) == 4
    assert min(np.diff(places)) >= 0.1
    assert 0 <= places[0] < places[-1] <= 1


def test_what_did_not_fit_is_a_cross_at_its_prediction(tmp_path: Path, drawn: list[Any]) -> None:
    known = Series([10], [4.0], missing={100: 400.0})
    unknown = Series([10], [2.0], missing={100: None})
    sizes = {10: "small", 100: "large"}
    report.scaling_figure(tmp_path / "s.png", [panel(a=known, b=unknown)], sizes, title="t")
    assert {"would need 400 MiB", "out of memory", "a\n4 MiB at small"} <= set(texts(drawn[0]))
    crosses = [line for line in drawn[0].axes[0].lines if line.get_marker() == "X"]
    assert crosses[0].get_ydata() == [400.0]


def test_a_panel_without_any_value_is_drawn(tmp_path: Path) -> None:
    report.scaling_figure(tmp_path / "s.png", [panel(a=Series([], []))], {10: "x"}, title="t")
    assert (tmp_path / "s.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (3 << 20, "3.0 MiB"), (5 << 40, "5.0 TiB")],
)
def test_bytes_text(count: int, text: str) -> None:
    assert style.bytes_text(count) == text


@pytest.mark.parametrize(
    ("time", "text"), [(0.0123, "12 us"), (1.26, "1.3 ms"), (456.7, "457 ms"), (2345, "2.35 s")]
)
def test_time_text(time: float, text: str) -> None:
    assert style.time_text(time) == text
