"""Folders compared and figures laid out: tables, JSON, CSV."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ivdtool.bids import find_images
from ivdtool.discs import disc_name
from ivdtool.errors import InputError
from ivdtool.evaluation import CaseScore, Summary, score_case, summarise
from ivdtool.files import NIFTI_SUFFIXES, atomic_write, nifti_stem
from ivdtool.labels import LABEL_SUFFIXES, LabelPoints, read_labels
from ivdtool.metadata import ModelInfo
from ivdtool.volumes import read_volume

__all__ = [
    "describe_model",
    "evaluate_folder",
    "figures",
    "format_table",
    "write_cases",
    "write_figures",
]


def evaluate_folder(
    predictions: Path, dataset: Path, split: str | None, by: str = "region"
) -> dict[str, Summary]:
    """Score label files against a BIDS data set; an image without one counts as all missed.

    Args:
        predictions: folder tree of label files named after their images.
        dataset: BIDS data set with participants.tsv and derivatives/labels.
        split: only this split.
        by: column of participants.tsv that makes the groups.

    Returns:
        The summary of ``all`` images and of each group, by name.

    Raises:
        InputError: no image matches, or a label file is unusable.
    """
    found = _label_files(predictions)
    scores: list[CaseScore] = []
    for image in find_images(dataset):
        row = image.participant
        if image.labels is None or (split is not None and row.get("split") != split):
            continue
        reference = read_labels(image.labels)
        ignored = (reference.unknown | reference.uncertain) - {0}
        if not set(reference.points) - ignored:
            continue
        stem = nifti_stem(image.path)
        predicted = read_labels(found[stem]) if stem in found else LabelPoints({})
        affine = read_volume(image.path, volume=0).affine
        group = row.get(by) or "unknown"
        scores.append(score_case(stem, group, predicted.points, reference.points, ignored, affine))
    if not scores:
        raise InputError(f"{dataset}: no labelled image" + (f" of split {split}" if split else ""))
    groups = {"all": summarise(scores)}
    for group in sorted({score.group for score in scores}):
        groups[group] = summarise([score for score in scores if score.group == group])
    return groups


def figures(summary: Summary) -> dict[str, float]:
    """Return the figures of a summary by name, without its cases."""
    return {
        field.name: getattr(summary, field.name)
        for field in fields(summary)
        if field.name != "cases"
    }


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out rows of figures under their names, one row per line."""
    columns = list(next(iter(rows.values())))
    lines = [["group", *columns]]
    lines += [[name, *(_number(row[column]) for column in columns)] for name, row in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns) + 1)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def write_figures(groups: Mapping[str, Summary], path: Path) -> None:
    """Write the figures of all groups and the scores of all cases as JSON."""
    document = {
        "groups": {name: _plain(figures(summary)) for name, summary in groups.items()},
        "cases": [asdict(case) for case in groups["all"].cases],
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def write_cases(summary: Summary, path: Path) -> None:
    """Write one CSV row per image."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["case", "group", "discs", "missed", "false", "mislabelled", "shifted", "l2_mean_mm"]
        )
        for case in summary.cases:
            mean = sum(case.l2_mm) / len(case.l2_mm) if case.l2_mm else math.nan
            writer.writerow(
                [
                    case.case,
                    case.group,
                    len(case.labels),
                    case.missed,
                    case.false,
                    case.mislabelled,
                    int(case.shifted),
                    f"{mean:.3f}",
                ]
            )


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
        "network": f"{info.network.get('name')} {info.network.get('arguments')}",
        "input": f"{preprocessing.spacing_mm} mm pixels, {slab}, "
        f"{preprocessing.normalisation} normalisation",
        "candidates": str(info.candidates),
        "search": str(info.search),
    }
    lines = [info.name] + [f"  {key:<12} {value}" for key, value in facts.items()]
    for title, table in (("training", info.training), ("accuracy", info.accuracy)):
        lines += [title] + [f"  {key:<12} {value}" for key, value in table.items()]
    return "\n".join(lines)


def _label_files(folder: Path) -> dict[str, Path]:
    """Image stem to label file, over a folder tree."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.nii*")):
        if not path.name.endswith(NIFTI_SUFFIXES):
            continue
        stem = nifti_stem(path)
        for suffix in LABEL_SUFFIXES:
            if stem.endswith(suffix):
                found.setdefault(stem.removesuffix(suffix), path)
    return found


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _plain(row: Mapping[str, float]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
