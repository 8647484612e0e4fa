"""Figures laid out for people and programs: tables, JSON, CSV."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ivdtool import __version__
from ivdtool.discs import disc_name
from ivdtool.evaluation import CaseScore, Summary
from ivdtool.files import atomic_write
from ivdtool.metadata import ModelInfo
from ivdtool.scoring import Evaluation

__all__ = [
    "describe_evaluation",
    "describe_model",
    "format_table",
    "plain",
    "write_cases",
    "write_csv",
    "write_discs",
    "write_figures",
    "write_summaries",
]

LABEL_AWARE = (
    "images", "discs", "found_pct", "precision_pct", "identified_pct", "shifted", "perfect_images",
    "l2_mean", "l2_std", "l2_median", "l2_p95", "si_mean", "si_std",
)  # fmt: skip
PAPERS = ("paper_dtt_mean", "paper_dtt_std", "paper_fnr_pct", "paper_fpr_pct")
LEVEL = (
    "discs", "found_pct", "precision_pct", "mislabelled_pct", "l2_mean", "l2_median", "l2_p95",
    "si_mean", *PAPERS,
)  # fmt: skip


def describe_evaluation(evaluation: Evaluation) -> str:
    """Return the tables of an evaluation: label-aware figures, the papers', then by level."""
    groups, levels = evaluation.groups, evaluation.levels
    tables = [
        ("right label within 5 mm in the sagittal plane", groups, LABEL_AWARE),
        ("as in the papers: nearest point superior-inferior, labels ignored", groups, PAPERS),
        ("by level", levels, LEVEL),
    ]
    blocks = [
        f"{title}\n" + format_table({name: _row(own, columns) for name, own in rows.items()})
        for title, rows, columns in tables
    ]
    notes = []
    if evaluation.reliability is not None:
        notes.append(
            f"confidence: expected calibration error {evaluation.reliability.ece:.3f} "
            f"over {evaluation.reliability.count} discs"
        )
    if missing := evaluation.missing:
        more = " ..." if len(missing) > 8 else ""
        notes.append(
            f"no prediction, so all missed: {len(missing)} of {len(evaluation.images)} images: "
            f"{' '.join(missing[:8])}{more}"
        )
    return "\n\n".join(blocks + (["\n".join(notes)] if notes else []))


def _row(summary: Summary, columns: Sequence[str]) -> dict[str, float | str]:
    """The columns, with the interval of the share found beside it."""
    row: dict[str, float | str] = {}
    for name in columns:
        row[name] = getattr(summary, name)
        if name == "found_pct":
            low, high = summary.intervals.get(name, (math.nan, math.nan))
            row["(95 % interval)"] = "" if math.isnan(low) else f"{low:.1f}..{high:.1f}"
    return row


def format_table(rows: Mapping[str, Mapping[str, float | str]], title: str = "group") -> str:
    """Lay out rows of figures under their names, one row per line; `title` is what rows are."""
    columns = list(next(iter(rows.values())))
    lines = [[title, *columns]]
    lines += [[name, *(_number(row[column]) for column in columns)] for name, row in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def write_figures(evaluation: Evaluation, path: Path) -> None:
    """Write everything as JSON: all figures with their intervals, and every image and disc.

    Raises:
        UsageError: the file cannot be written.
    """
    document = {
        "ivdtool": __version__,
        "predictions": str(evaluation.predictions),
        "dataset": str(evaluation.dataset),
        "split": evaluation.split,
        "resamples": evaluation.resamples,
        "seed": evaluation.seed,
        "groups": {name: _document(own) for name, own in evaluation.groups.items()},
        "levels": {name: _document(own) for name, own in evaluation.levels.items()},
        "reliability": evaluation.reliability and asdict(evaluation.reliability),
        "missing": evaluation.missing,
        "cases": [
            {**_case(own.score), "discs": [asdict(d) for d in own.score.discs],
             "predictions": [asdict(p) for p in own.score.predictions]}
            for own in evaluation.images
        ],
    }  # fmt: skip
    with atomic_write(path) as temporary:
        text = json.dumps(plain(document), indent=1, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def write_cases(evaluation: Evaluation, path: Path) -> None:
    """Write one CSV row per image.

    Raises:
        UsageError: the file cannot be written.
    """
    write_csv(path, [_case(own.score) for own in evaluation.images])


def write_discs(evaluation: Evaluation, path: Path) -> None:
    """Write one CSV row per disc that is in the reference, predicted, or both.

    Raises:
        UsageError: the file cannot be written.
    """
    rows = []
    for own in evaluation.images:
        discs = {disc.label: disc for disc in own.score.discs}
        predictions = {prediction.label: prediction for prediction in own.score.predictions}
        for label in sorted(discs.keys() | predictions.keys()):
            disc, prediction = discs.get(label), predictions.get(label)
            rows.append(
                {
                    "case": own.score.case,
                    "label": label,
                    "name": disc_name(label),
                    "annotated": int(disc is not None),
                    "predicted": int(prediction is not None),
                    "found": int(disc is not None and disc.found),
                    "confidence": prediction and prediction.confidence,
                    "l2_mm": disc and disc.l2_mm,
                    "si_mm": disc and disc.si_mm,
                    "nearest_si_mm": disc and disc.nearest_si_mm,
                    "hit_by": disc and disc.other_label,
                }
            )
    write_csv(path, rows)


def write_summaries(summaries: Mapping[str, Summary], path: Path) -> None:
    """Write one CSV row per group, with the bounds of the intervals.

    Raises:
        UsageError: the file cannot be written.
    """
    rows = []
    for group, summary in summaries.items():
        row: dict[str, Any] = {"group": group}
        for name, value in summary.figures().items():
            row[name] = value
            if name in summary.intervals:
                row[f"{name}_low"], row[f"{name}_high"] = summary.intervals[name]
        rows.append(row)
    write_csv(path, rows)


def _document(summary: Summary) -> dict[str, Any]:
    intervals = {name: list(bounds) for name, bounds in summary.intervals.items()}
    return {**summary.figures(), "intervals": intervals}


def _case(score: CaseScore) -> dict[str, Any]:
    mean = sum(score.l2_mm) / len(score.l2_mm) if score.l2_mm else math.nan
    return {
        "case": score.case,
        "subject": score.subject,
        **score.groups,
        "annotated": len(score.discs),
        "predicted": len(score.predictions),
        "missed": score.missed,
        "false": score.false,
        "mislabelled": score.mislabelled,
        "shifted": int(score.shifted),
        "offset": score.offset,
        "l2_mean_mm": mean,
        "l2_max_mm": max(score.l2_mm, default=math.nan),
        "paper_missed": score.paper_missed,
        "paper_false": score.paper_false,
    }


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows under the union of their columns; what is missing or NaN is left empty.

    Raises:
        UsageError: the file cannot be written.
    """
    table = [{k: _cell(v) for k, v in row.items()} for row in rows]
    columns = list(dict.fromkeys(name for row in table for name in row))
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return value


def describe_model(info: ModelInfo, sha256: str, path: Path) -> str:
    """Return what a model file contains, for people."""
    size = path.stat().st_size / 1e6
    first, last = info.labels[0], info.labels[-1]
    preprocessing = info.preprocessing
    slab = f"slab of {preprocessing.slab_mm} mm"
    if preprocessing.slices is not None:
        slab = f"mean of {preprocessing.slices} slices"
    facts = {
        "file": f"{path.name}, {size:.1f} MB, written by ivdtool {info.ivdtool}",
        "sha256": sha256,
        "discs": f"{disc_name(first)} to {disc_name(last)} (values {first} to {last})",
        "network": " and ".join(
            f"{member.get('name')} {member.get('arguments')}"
            for member in info.network.get("members", [info.network])
        ),
        "input": f"{preprocessing.spacing_mm} mm pixels, {slab}, "
        f"{preprocessing.normalisation} normalisation",
        "candidates": str(info.candidates),
        "search": str(info.search),
        "verdict": "none" if info.judge is None else str(info.judge),
    }
    lines = [info.name] + [f"  {key:<12} {value}" for key, value in facts.items()]
    training = dict(info.training)
    runs = [("run", run) for run in training.pop("runs", [])]
    for title, table in (*runs, ("training", training), ("accuracy", info.accuracy)):
        lines += [title] + [f"  {key:<12} {value}" for key, value in table.items()]
    return "\n".join(lines)


def _number(value: float | str) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def plain(value: Any) -> Any:
    """Return a value as JSON knows it: NaN is null."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
