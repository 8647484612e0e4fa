"""The report of an evaluation: a folder to read (Markdown, pictures) and to compute with."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ivdtool import __version__
from ivdtool.diagrams import check_matplotlib, new_figure, save_figure
from ivdtool.discs import disc_name
from ivdtool.errors import UsageError
from ivdtool.evaluation import CaseScore, Summary
from ivdtool.files import atomic_write
from ivdtool.label_files import LabelPoints, read_labels
from ivdtool.overlay import OverlayPoint, write_overlay
from ivdtool.plane import plane_through
from ivdtool.preprocessing import PreprocessingConfig, prepare_image
from ivdtool.reliability import Reliability
from ivdtool.reports import write_cases, write_discs, write_figures, write_summaries
from ivdtool.scoring import Evaluation, ScoredImage, read_truth
from ivdtool.volumes import read_volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["HEADINGS", "worst_images", "write_report"]

HEADINGS = {
    "images": "images",
    "discs": "discs",
    "found_pct": "found %",
    "precision_pct": "precision %",
    "identified_pct": "identified % (20 mm)",
    "mislabelled_pct": "other label there %",
    "shifted": "shifted images",
    "shifted_pct": "level-shift rate %",
    "perfect_images": "perfect images",
    "l2_mean": "L2 mean",
    "l2_std": "L2 std",
    "l2_median": "L2 median",
    "l2_p95": "L2 95th pct",
    "si_mean": "SI mean",
    "si_std": "SI std",
    "paper_dtt_mean": "DTT mean",
    "paper_dtt_std": "DTT std",
    "paper_fnr_pct": "FNR %",
    "paper_fpr_pct": "FPR %",
}
FOUND = (
    "images", "discs", "found_pct", "precision_pct", "identified_pct", "shifted", "shifted_pct",
    "perfect_images",
)  # fmt: skip
DISTANCES = ("discs", "l2_mean", "l2_std", "l2_median", "l2_p95", "si_mean", "si_std")
PAPERS = ("discs", "paper_dtt_mean", "paper_dtt_std", "paper_fnr_pct", "paper_fpr_pct")
LEVELS = ("discs", "found_pct", "precision_pct", "mislabelled_pct", "l2_median", "l2_p95")

MEANINGS = """\
- **found**: the prediction of the same label lies within 5 mm. Its share of the annotated discs is
  the recall, and the identification rate at 5 mm.
- **precision**: share of the predictions with a disc of the same label within 5 mm.
- **identified (20 mm)**: the nearest prediction has the right label and lies within 20 mm.
- **shifted**: at least half of the annotated discs of an image have a prediction of another label
  within 5 mm. The level-shift rate is the share of such images.
- **perfect**: every annotated disc found, and no other prediction.
- **L2**, **SI**: mm in the sagittal plane, and along superior-inferior alone, from an annotated
  disc to the prediction of the same label, however far that is.
- **DTT, FNR, FPR**: as Azad et al. 2021 define them (section 4.1): distance along superior-inferior
  to the nearest prediction whatever its label; discs that are 5 mm or more from all predictions,
  and predictions that are so from all discs, both in per cent of the discs. They do not see a
  column that is off by a level.
- Distances leave the left-right axis out, since a point's place on it is a convention. Labels that
  are marked unknown or uncertain count for nothing; an image without a prediction counts as all
  missed.
"""


def write_report(evaluation: Evaluation, folder: Path, worst: int = 6) -> None:
    """Write the report into a folder, made if it does not exist; an older report is replaced.

    The folder gets report.md, figures.json (everything), groups.csv, levels.csv, cases.csv,
    discs.csv, reliability.png, levels.png, and pictures of the worst images in worst/.

    Args:
        evaluation: what to report.
        folder: where to.
        worst: how many images to show.

    Raises:
        InputError: one of the worst images is unreadable.
        UsageError: the folder cannot be written, or matplotlib is not installed.
    """
    check_matplotlib()
    pictures = folder / "worst"
    try:
        pictures.mkdir(parents=True, exist_ok=True)
        for old in pictures.glob("[0-9][0-9]*-*.png"):
            old.unlink()
    except OSError as error:
        raise UsageError(f"{folder}: cannot write the report: {error.strerror}") from error
    shown = {}
    for number, own in enumerate(worst_images(evaluation, worst), start=1):
        name = f"{number:02d}-{own.score.case}.png"
        draw_comparison(own, pictures / name)
        shown[f"worst/{name}"] = own.score
    _draw_levels(evaluation.levels, folder / "levels.png")
    reliability = folder / "reliability.png"
    if evaluation.reliability is not None:
        _draw_reliability(evaluation.reliability, reliability)
    else:
        reliability.unlink(missing_ok=True)
    write_figures(evaluation, folder / "figures.json")
    write_summaries(evaluation.groups, folder / "groups.csv")
    write_summaries(evaluation.levels, folder / "levels.csv")
    write_cases(evaluation, folder / "cases.csv")
    write_discs(evaluation, folder / "discs.csv")
    with atomic_write(folder / "report.md") as temporary:
        temporary.write_text(_markdown(evaluation, shown), encoding="utf-8")


def worst_images(evaluation: Evaluation, count: int) -> list[ScoredImage]:
    """Return the images with most missed and false discs; among equals by the largest distance."""

    def badness(own: ScoredImage) -> tuple[float, float, str]:
        score = own.score
        return -(score.missed + score.false), -max(score.l2_mm, default=math.inf), score.case

    return sorted(evaluation.images, key=badness)[:count]


def draw_comparison(own: ScoredImage, path: Path) -> None:
    """Draw truth and prediction onto the sagittal slab in which the annotated spine lies.

    Raises:
        InputError: the image or a label file is unreadable.
        UsageError: `path` cannot be written.
    """
    volume = read_volume(own.image.path, volume=0)
    truth, ignored = read_truth(own.image)
    predicted = LabelPoints({}) if own.prediction is None else read_labels(own.prediction)
    world = list(truth.points.values())
    plane = plane_through(volume, world)
    slab = prepare_image(volume, PreprocessingConfig(size_multiple=1), plane)
    found = {disc.label: disc.found for disc in own.score.discs}
    right = {prediction.label: prediction.right for prediction in own.score.predictions}
    crosses = [
        OverlayPoint(row, col, disc_name(label) + ("?" if label in ignored else ""),
                     right=found.get(label))
        for label, (row, col, _) in zip(truth.points, slab.grid.world_to_pixel(world), strict=True)
    ]  # fmt: skip
    dots = []
    for label, point in predicted.points.items():
        row, col, _ = slab.grid.world_to_pixel(point[np.newaxis])[0]
        confidence = predicted.confidence.get(label)
        dots.append(OverlayPoint(row, col, disc_name(label), confidence, right.get(label)))
    score = own.score
    title = f"{score.case}: {score.missed} of {len(score.discs)} missed, {score.false} false"
    write_overlay(path, slab.pixels, slab.grid.spacing_mm, dots, title, crosses)


# --- diagrams


def _draw_reliability(reliability: Reliability, path: Path) -> None:
    """Share of right discs over their confidence, and how many there are of each."""
    figure = new_figure(5, 6)
    upper, lower = figure.subplots(2, height_ratios=(3, 1), sharex=True)
    filled = [own for own in reliability.bins if own.count]
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="as it should be")
    upper.bar(
        [own.low for own in filled],
        [own.right for own in filled],
        width=1 / len(reliability.bins),
        align="edge",
        color="#56b4e9",
        edgecolor="white",
        label="share of right discs",
    )
    upper.plot(
        [own.confidence for own in filled],
        [own.right for own in filled],
        "o",
        color="#d55e00",
        label="at the mean confidence",
    )
    upper.set(ylabel="right", xlim=(0, 1), ylim=(0, 1.02))
    upper.set_title(
        f"expected calibration error {reliability.ece:.3f}, {reliability.count} discs", fontsize=10
    )
    upper.legend(loc="upper left", fontsize=8)
    lower.bar(
        [own.low for own in reliability.bins],
        [own.count for own in reliability.bins],
        width=1 / len(reliability.bins),
        align="edge",
        color="0.6",
        edgecolor="white",
    )
    lower.set(xlabel="confidence", ylabel="discs")
    save_figure(figure, path)


def _draw_levels(levels: Mapping[str, Summary], path: Path) -> None:
    """Share found and median distance of every level, with their intervals."""
    annotated = {name: own for name, own in levels.items() if own.discs}
    figure = new_figure(max(5, 0.45 * len(annotated) + 1.5), 5)
    upper, lower = figure.subplots(2, sharex=True)
    _draw_figure(upper, annotated, "found_pct", "found, %", "#009e73")
    _draw_figure(lower, annotated, "l2_median", "median L2, mm", "#0072b2")
    upper.set_ylim(0, 105)
    lower.set_ylim(0, None)
    labels = [f"{name}\n{own.discs}" for name, own in annotated.items()]
    lower.set_xticks(range(len(annotated)), labels, fontsize=7)
    lower.set_xlabel("disc, and how many were annotated")
    figure.suptitle("with 95 % intervals where there are several subjects", fontsize=9)
    save_figure(figure, path)


def _draw_figure(
    axes: "Axes", levels: Mapping[str, Summary], name: str, title: str, colour: str
) -> None:
    for x, own in enumerate(levels.values()):
        value = getattr(own, name)
        low, high = own.intervals.get(name, (value, value))
        axes.plot([x, x], [low, high], color=colour, linewidth=3, alpha=0.4)
        axes.plot([x], [value], "o", color=colour)
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)


# --- Markdown


def _markdown(evaluation: Evaluation, shown: Mapping[str, CaseScore]) -> str:
    total = evaluation.groups["all"]
    split = f", split {evaluation.split}" if evaluation.split else ""
    subjects = len({own.score.subject for own in evaluation.images})
    sections = [
        "# Evaluation of disc labels",
        f"`{evaluation.predictions}` against `{evaluation.dataset}`{split}: {total.images} images "
        + f"of {subjects} subjects, {total.discs} annotated discs. "
        + f"Written by ivdtool {__version__}.",
    ]
    if evaluation.missing:
        names = ", ".join(f"`{name}`" for name in evaluation.missing)
        sections.append(f"**Without a prediction**, and so all missed: {names}.")
    if evaluation.warnings:
        sections += ["Warnings:", "\n".join(f"- {warning}" for warning in evaluation.warnings)]
    if total.intervals:
        sections.append(
            f"In brackets: 95 % intervals, percentiles of {evaluation.resamples} bootstrap samples "
            f"(subjects drawn with replacement, seed {evaluation.seed}). With few subjects they "
            "come out too narrow, and where all are right they have no width at all."
        )
    sections += [
        "## Right label within 5 mm",
        _table(evaluation.groups, FOUND),
        "### Distances to the disc of the same label, mm",
        _table(evaluation.groups, DISTANCES),
        "## As in the papers: nearest point, label ignored",
        _table(evaluation.groups, PAPERS),
        "## By level",
        "![share found and distance by level](levels.png)",
        _table(evaluation.levels, LEVELS),
    ]
    if evaluation.reliability is not None:
        sections += ["## Confidence", *_reliability_text(evaluation.reliability)]
    if shown:
        sections += [
            "## Worst images",
            "Crosses are the truth, named on the left (`?`: counts for nothing); dots the "
            + "predictions, named on the right with their confidence. Red: missed, or not right; "
            + "white dots: the truth is not known.",
        ]
    for number, (picture, score) in enumerate(shown.items(), start=1):
        sections += [f"### {number}. {score.case}", _describe_case(score), f"![]({picture})"]
    sections += ["## What the words mean", MEANINGS.rstrip()]
    return "\n\n".join(sections) + "\n"


def _reliability_text(reliability: Reliability) -> list[str]:
    rows = [
        f"| {own.low:.1f} to {own.high:.1f} | {own.count} "
        f"| {own.confidence:.3f} | {own.right:.3f} |"
        for own in reliability.bins
        if own.count
    ]
    return [
        f"Expected calibration error {reliability.ece:.3f} over {reliability.count} predicted "
        + "discs: the distance between confidence and share of right ones, averaged over ten bins "
        + "by how many discs are in them.",
        "![reliability](reliability.png)",
        "\n".join(["| confidence | discs | mean | right |", "|---|---|---|---|", *rows]),
    ]


def _describe_case(score: CaseScore) -> str:
    text = f"{score.missed} of {len(score.discs)} discs missed, {score.false} predicted wrongly"
    if score.shifted:
        text += f"; the column is off by {score.offset:+d} in label"
    elif score.mislabelled:
        text += f"; {score.mislabelled} discs carry another label"
    if score.l2_mm:
        text += f"; largest distance {max(score.l2_mm):.1f} mm"
    return text + "."


def _table(rows: Mapping[str, Summary], columns: Sequence[str]) -> str:
    lines = [
        "| | " + " | ".join(HEADINGS[name] for name in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for group, summary in rows.items():
        cells = " | ".join(_cell(summary, name) for name in columns)
        lines.append(f"| {group.replace(':', ' ')} | {cells} |")
    return "\n".join(lines)


def _cell(summary: Summary, name: str) -> str:
    value = getattr(summary, name)
    if isinstance(value, int):
        return str(value)
    if math.isnan(value):
        return ""
    digits = 1 if name.endswith("_pct") else 2
    text = f"{value:.{digits}f}"
    low, high = summary.intervals.get(name, (math.nan, math.nan))
    return text if math.isnan(low) else f"{text} [{low:.{digits}f}, {high:.{digits}f}]"
