# SPDX-License-Identifier: MIT
"""From the results of the demo job to its pictures, tables and page."""

import csv
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ocnet import report
from ocnet.data import PHOTOS, LookupMosaics, load_photo
from ocnet.engine.attention_pictures import innermost
from ocnet.engine.datasets import build_datasets
from ocnet.engine.demo import (
    FLAT_FACTOR,
    HEADS,
    MIOU_MARGIN,
    OBJECT_CONTEXT,
    DemoOptions,
    Findings,
    head_config,
)
from ocnet.engine.measure import OK, OUT_OF_MEMORY, TOO_LARGE, Measurement
from ocnet.engine.trainer import TrainResult
from ocnet.engine.workload import FORWARD, STEP
from ocnet.evaluation import ClassRow, predict_logits
from ocnet.models import attention_views
from ocnet.ops import attention_rows
from ocnet.report.style import bytes_text, time_text

_SHOWN_MOSAICS = 4
_ATTENTION_MOSAICS = 2
_QUERIES = 3
_SHORT_NAMES = {"immunohistochemistry": "tissue", "hubble_deep_field": "stars"}
_FORM_NAMES = {"fused": "fused (ocnet)", "naive": "plain formula", "sdpa": "torch SDPA"}

# Row and column in the 400 x 600 photograph: the saucer, the inside of the cup, the table.
_PHOTO = "coffee"
_PHOTO_POINTS = np.array([[300, 140], [80, 300], [240, 550]])
_PHOTO_QUERIES = ("the saucer", "the cup's inside", "the table")
_PHOTO_SCALE = 0.48  # 192 x 288 pixels for the network, 48 x 72 features
_COLOUR_SPREAD = 12.0  # distance in CIE Lab at which likeness has fallen to exp(-1/2)


def check_packages() -> None:
    """Raise unless the packages of the extra ``demo`` are there.

    Raises:
        RuntimeError: One is missing.
    """
    for module, package in (("matplotlib", "matplotlib"), ("skimage", "scikit-image")):
        if importlib.util.find_spec(module) is None:
            raise RuntimeError(
                f"demo: {package} must be installed, got none; run: pip install 'ocnet[demo]'"
            )


def write_all(
    options: DemoOptions, results: dict[str, TrainResult], findings: Findings
) -> list[Path]:
    """Write every picture, the per-class table and the page; return their paths, the page last."""
    out = options.out
    names = [_SHORT_NAMES.get(n, n) for n in results[OBJECT_CONTEXT].info.class_names]
    dataset = _validation_set(options)
    _predictions(out / "predictions.png", dataset, results, names)
    _attention(out / "attention.png", dataset, results[OBJECT_CONTEXT], names)
    report.curves_figure(
        out / "curves.png",
        {label: result.history for label, result in results.items()},
        title="Training of both heads",
    )
    _memory(out / "memory.png", findings)
    _speed(out / "speed.png", findings)
    rows = {
        label: result.evaluation.confusion.per_class_table(names)
        for label, result in results.items()
    }
    _class_table(out / "per_class.csv", rows)
    _page(out / "report.html", options, findings, rows)
    written = ("predictions", "attention", "curves", "memory", "speed")
    return [
        *(out / f"{name}.png" for name in written),
        out / "per_class.csv",
        out / "metrics.jsonl",
        out / "report.html",
    ]


def _validation_set(options: DemoOptions) -> LookupMosaics:
    _, dataset = build_datasets(head_config(options, HEADS[OBJECT_CONTEXT]).data)
    if not isinstance(dataset, LookupMosaics):
        raise TypeError(f"demo: data set must be look-up mosaics, got {type(dataset).__name__}")
    return dataset


def _device(result: TrainResult) -> torch.device:
    return next(result.model.parameters()).device


def _predictions(
    path: Path, dataset: LookupMosaics, results: dict[str, TrainResult], names: Sequence[str]
) -> None:
    samples = [dataset[i] for i in range(min(_SHOWN_MOSAICS, len(dataset)))]
    images = torch.stack([sample.image for sample in samples])
    predictions = {
        label: predict_logits(result.model, images.to(_device(result))).argmax(1).cpu().numpy()
        for label, result in results.items()
    }
    report.predictions_figure(
        path,
        images[:, 0].numpy(),
        torch.stack([sample.label for sample in samples]).numpy(),
        predictions,
        names,
        title=f"The first {len(samples)} validation mosaics, and what each head makes of them",
        ignore_index=dataset.ignore_index,
    )


def _attention(
    path: Path, dataset: LookupMosaics, result: TrainResult, names: Sequence[str]
) -> None:
    rows = []
    for index in range(len(dataset)):
        points = query_points(dataset[index].label, dataset.flat_mask(index), _QUERIES)
        if len(points) == _QUERIES:
            rows.append(_mosaic_row(dataset, index, points, result, names))
        if len(rows) == _ATTENTION_MOSAICS:
            break
    photo = load_photo(_PHOTO)
    rows += [_photo_row(photo, result), _colour_row(photo)]
    report.attention_figure(
        path, rows, title="Where a pixel looks: query crosses and their attention maps"
    )


def query_points(label: Tensor, flat: Tensor, count: int) -> Tensor:
    """Choose query pixels: the deepest inside the flat part of each class, then of the textured.

    Args:
        label: Classes ``(H, W)``.
        flat: Where there is no texture, ``(H, W)`` bool.
        count: How many pixels to choose at most.

    Returns:
        ``(P, 2)`` int64 rows and columns. At least one is flat, or there are none at all.
    """
    found: list[tuple[float, int, int]] = []
    for kind in (flat, ~flat):
        regions = [(label == number) & kind for number in np.unique(label.numpy()).tolist()]
        depths = [innermost(region.numpy()) for region in regions if bool(region.any())]
        found += sorted(depths, reverse=True)
        if not found:
            break
    return torch.tensor([[row, column] for _, row, column in found[:count]], dtype=torch.int64)


def _mosaic_row(
    dataset: LookupMosaics, index: int, points: Tensor, result: TrainResult, names: Sequence[str]
) -> report.AttentionRow:
    sample, flat = dataset[index], dataset.flat_mask(index)
    image = sample.image[None].to(_device(result))
    maps = attention_views(result.model, image, points)[0].maps[0].float().cpu()
    near = [
        torch.linspace(0, size - 1, cells).round().long()
        for size, cells in zip(flat.shape, maps.shape[-2:], strict=True)
    ]
    label_at, flat_at = (full[near[0]][:, near[1]] for full in (sample.label, flat))
    captions = []
    for weights, (row, column) in zip(maps, points.tolist(), strict=True):
        number = int(sample.label[row, column])
        on_class = float(weights[label_at == number].sum())
        on_texture = float(weights[(label_at == number) & ~flat_at].sum())
        kind = "flat" if bool(flat[row, column]) else "textured"
        captions.append(
            f"{kind} {names[number]}: {on_class:.0%} on {names[number]},\n"
            f"{on_texture:.0%} on its texture"
        )
    return report.AttentionRow(
        sample.image[0].numpy(),
        points.numpy(),
        maps.numpy(),
        f"validation mosaic {index}\n(trained network)",
        captions,
    )


def _photo_row(photo: NDArray[np.uint8], result: TrainResult) -> report.AttentionRow:
    small = _smaller(photo)
    points = torch.from_numpy((_PHOTO_POINTS * _PHOTO_SCALE).astype(np.int64))
    image = result.info.picture_transform(small)[None].to(_device(result))
    maps = attention_views(result.model, image, points)[0].maps[0].float().cpu().numpy()
    return report.AttentionRow(
        photo, _PHOTO_POINTS, maps, "photograph, grey\n(trained network)", _PHOTO_QUERIES
    )


def _colour_row(photo: NDArray[np.uint8]) -> report.AttentionRow:
    """Attend by colour alone: no network, so what the map shows is the op and the picture.

    With ``q = (c, 1)`` and ``k = (c, -|c|^2 / 2)`` the score ``<q, k>`` is ``-|c_q - c_k|^2 / 2`` up
    to a term that the softmax over keys cancels.
    """
    small = cv2.cvtColor(_smaller(photo).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    colour = torch.from_numpy(small).permute(2, 0, 1)[None] / _COLOUR_SPREAD
    ones = torch.ones_like(colour[:, :1])
    query = torch.cat([colour, ones], 1)
    key = torch.cat([colour, -0.5 * colour.square().sum(1, keepdim=True)], 1)
    points = torch.from_numpy((_PHOTO_POINTS * _PHOTO_SCALE).astype(np.int64))
    maps = attention_rows(query, key, points, scale=1.0)[0].numpy()
    return report.AttentionRow(
        photo, _PHOTO_POINTS, maps, "photograph, colour\n(no network)", _PHOTO_QUERIES
    )


def _smaller(photo: NDArray[np.uint8]) -> NDArray[np.uint8]:
    size = (round(photo.shape[1] * _PHOTO_SCALE), round(photo.shape[0] * _PHOTO_SCALE))
    small: NDArray[np.uint8] = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    return small


def _memory(path: Path, findings: Findings) -> None:
    saved = _panel(findings, STEP, "kept for backward", "MiB", _saved_mib, None)
    peak = _panel(
        findings,
        STEP,
        "peak of forward and backward, beyond the inputs",
        "MiB",
        _peak_mib,
        lambda measurement: measurement.predicted_bytes / 2**20,
    )
    report.scaling_figure(
        path,
        [saved, peak],
        _sizes(findings.measurements),
        title="Memory of attention over the number of tokens",
        note=_note(findings),
    )


def _speed(path: Path, findings: Findings) -> None:
    panels = [
        _panel(findings, phase, title, "ms", _median_ms, None)
        for phase, title in ((FORWARD, "forward"), (STEP, "forward and backward"))
    ]
    report.scaling_figure(
        path,
        panels,
        _sizes(findings.measurements),
        title="Time of attention over the number of tokens",
        note=f"{_note(findings)}; median, shaded from the 20th to the 80th percentile",
    )


def _saved_mib(measurement: Measurement) -> float | None:
    return None if measurement.saved_bytes is None else measurement.saved_bytes / 2**20


def _peak_mib(measurement: Measurement) -> float | None:
    # Resident memory comes in pages; nothing measurable would have no place on a logarithmic axis.
    return None if not measurement.peak_bytes else measurement.peak_bytes / 2**20


def _median_ms(measurement: Measurement) -> float | None:
    return None if measurement.time is None else measurement.time.p50


def _panel(
    findings: Findings,
    phase: str,
    title: str,
    unit: str,
    value: Callable[[Measurement], float | None],
    predicted: Callable[[Measurement], float] | None,
) -> report.Panel:
    """Collect one quantity of one phase into a panel; what lacked memory becomes a cross."""
    lines = {}
    for form in dict.fromkeys(m.form for m in findings.measurements):
        chosen = [m for m in findings.measurements if (m.form, m.phase) == (form, phase)]
        ran = [(m, v) for m in chosen if m.status == OK and (v := value(m)) is not None]
        times = [m.time for m, _ in ran if m.time is not None] if unit == "ms" else []
        lines[_FORM_NAMES.get(form, form)] = report.Series(
            [m.workload.L for m, _ in ran],
            [v for _, v in ran],
            [time.p20 for time in times],
            [time.p80 for time in times],
            {
                m.workload.L: predicted(m) if predicted is not None else None
                for m in chosen
                if m.status in (OUT_OF_MEMORY, TOO_LARGE)
            },
        )
    text = time_text if unit == "ms" else _mib_text
    return report.Panel(title, unit, text, lines)


def _mib_text(mib: float) -> str:
    return bytes_text(mib * 2**20)


def _sizes(measurements: Sequence[Measurement]) -> dict[int, str]:
    workloads = {m.workload.L: m.workload for m in measurements}
    return {tokens: f"{w.H} x {w.W}" for tokens, w in sorted(workloads.items())}


def _note(findings: Findings) -> str:
    workload = findings.measurements[0].workload
    return (
        f"{findings.device}; {workload.dtype}, batch {workload.N}, {workload.channels} channels, "
        f"shared query and key; 'fused' is the back end '{findings.explanation.chosen}'"
    )


def _class_table(path: Path, rows: dict[str, list[ClassRow]]) -> None:
    columns = [field.name for field in fields(ClassRow)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["head", *columns])
        writer.writeheader()
        for label, table in rows.items():
            for row in table:
                cells = {
                    k: f"{v:.6f}" if isinstance(v, float) else v for k, v in asdict(row).items()
                }
                writer.writerow({"head": label, **cells})


def _page(
    path: Path, options: DemoOptions, findings: Findings, rows: dict[str, list[ClassRow]]
) -> None:
    out = options.out
    steps = head_config(options, HEADS[OBJECT_CONTEXT]).train.steps
    sections = [
        report.Section(
            "What the task is",
            (
                "Each mosaic is cut from real photographs of five surfaces: the left half of each "
                "photograph for training, the right half for validation. A mosaic shows three of the "
                "classes and gives each a grey level that holds for this mosaic only. About half of its "
                "regions are flat: level, no texture. Their class can only be looked up in a textured "
                "region of the same level, however far away.",
                f"Both heads have the same number of parameters and were trained for {steps} steps on "
                "the same mosaics. One gathers context by attention over all pixels, the other from a "
                "5 x 5 neighbourhood.",
            ),
        ),
        report.Section(
            "Predictions",
            ("Image, truth, then each head's labels and its wrong pixels.",),
            out / "predictions.png",
            "Validation mosaics with truth, predictions of both heads and their errors",
        ),
        report.Section(
            "Per class",
            ("Intersection over union on the validation mosaics.",),
            table=_iou_table(rows),
        ),
        report.Section(
            "Where a pixel looks",
            (
                "Rows of the softmax for chosen pixels, computed without the whole matrix. In the "
                "mosaics the queries lie as deep as can be in the flat part of each class, then in textures.",
                "The photograph is shown twice. First through the trained network, which saw only grey "
                "mosaics and knows nothing of cups: its map tells what this network finds alike, no "
                "more. Then by likeness of colour alone, with no network: the op itself.",
                f"Photograph: {PHOTOS[_PHOTO].title}, {PHOTOS[_PHOTO].licence}.",
            ),
            out / "attention.png",
            "Pictures with query crosses and the attention map of each query",
        ),
        report.Section(
            "Training",
            (),
            out / "curves.png",
            "Loss, validation mIoU, learning rate and throughput over the steps",
        ),
        report.Section(
            "What attention costs here",
            (
                "The plain formula stores a weight for every pair of pixels, the fused op does not: "
                "its memory grows with the number of pixels, not with its square. Measured in this run; "
                "a cross marks what did not fit into memory.",
            ),
            out / "memory.png",
            "Memory over tokens for the fused op, the plain formula and torch's own kernel",
        ),
        report.Section(
            "How long it takes",
            (),
            out / "speed.png",
            "Time over tokens for the fused op, the plain formula and torch's own kernel",
        ),
        report.Section(
            "Which back end ran, and why each other did not",
            preformatted=str(findings.explanation),
        ),
    ]
    report.write_page(
        path,
        title="Object context on look-up mosaics",
        lead=findings.sentences(),
        sections=sections,
        footer=(
            f"Seed {options.seed}; {findings.seconds:.0f} s. 'Clearly' means {MIOU_MARGIN:.2f} more mIoU "
            f"and {FLAT_FACTOR:g} times the flat pixels. All numbers are in metrics.jsonl beside this page."
        ),
    )


def _iou_table(rows: dict[str, list[ClassRow]]) -> report.Table:
    columns = list(rows.values())
    return report.Table(
        ["class", *rows, "pixels"],
        [
            [of_class[0].name, *(_fraction(row.iou) for row in of_class), f"{of_class[0].pixels:,}"]
            for of_class in zip(*columns, strict=True)
        ],
    )


def _fraction(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
