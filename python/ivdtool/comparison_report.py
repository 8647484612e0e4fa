"""A comparison of methods laid out: Markdown, CSV, JSON, a diagram."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ivdtool import __version__
from ivdtool.comparison import SEARCHES, Comparison, Run
from ivdtool.diagrams import new_figure, save_figure
from ivdtool.evaluation import Summary
from ivdtool.files import atomic_write
from ivdtool.report_folder import HEADINGS, MEANINGS
from ivdtool.reports import format_table, plain, write_cases, write_csv, write_discs

__all__ = ["Row", "Spread", "describe_comparison", "tabulate", "write_comparison"]

FIGURES = (
    "paper_dtt_mean", "paper_dtt_std", "paper_fnr_pct", "paper_fpr_pct",
    "found_pct", "precision_pct", "shifted", "l2_median", "l2_p95",
)  # fmt: skip
CHANGES = (
    "paper_dtt_mean", "paper_fnr_pct", "paper_fpr_pct", "found_pct", "precision_pct", "shifted",
    "l2_median", "l2_p95",
)  # fmt: skip
PANELS = ("found_pct", "shifted_pct", "paper_fnr_pct", "paper_fpr_pct", "l2_p95")
SEARCH_COLOURS = {True: "#0072b2", False: "#d55e00"}

NOTES = """\
- Rows **with search** choose among a method's candidates by the skeleton search; rows **without**
  take what the method has by its own means: the highest peak of each heatmap, the names that follow
  from the order of counted discs, the classifier's candidates, the walk from template to template.
  The networks of both papers were published with the search, the other methods without.
- Slabs lie where the annotated discs do, as in the papers; finding that plane is no part of this.
- `mean ± standard deviation` over seeds, of the figures of whole runs; the latter needs two.
"""


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: of the runs in which the figure is defined, NaN without one.
        sd: sample standard deviation over these, NaN for fewer than two.
    """

    mean: float
    sd: float

    @classmethod
    def over(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of the values that are not NaN."""
        defined = [value for value in values if not math.isnan(value)]
        return cls(
            float(np.mean(defined)) if defined else math.nan,
            float(np.std(defined, ddof=1)) if len(defined) > 1 else math.nan,
        )


@dataclass(frozen=True)
class Row:
    """A method, with or without the skeleton search, on a group of images.

    Attributes:
        method: its name.
        search: whether with the search.
        group: ``all``, or one like ``region:lumbar``.
        figures: those of `Summary.figures` over seeds.
    """

    method: str
    search: bool
    group: str
    figures: Mapping[str, Spread]


def tabulate(comparison: Comparison) -> list[Row]:
    """Return the figures of every group, method and search, in this order."""
    return [
        Row(method, search, group, _over_seeds([own.figures() for own in summaries]))
        for group in _groups(comparison)
        for method in comparison.methods
        for search in SEARCHES
        for summaries in [_summaries(comparison, method, search, group)]
    ]


def _groups(comparison: Comparison) -> list[str]:
    return list(comparison.runs[0].evaluations[True].groups)


def _summaries(comparison: Comparison, method: str, search: bool, group: str) -> list[Summary]:
    return [run.evaluations[search].groups[group] for run in comparison.runs_of(method)]


def _over_seeds(figures: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    return {name: Spread.over([own[name] for own in figures]) for name in figures[0]}


def describe_comparison(comparison: Comparison) -> str:
    """Return the table of all images as text."""
    rows = {
        f"{row.method}, {_search(row.search)}": {
            HEADINGS[name]: _spread(row.figures[name], name) for name in FIGURES
        }
        for row in tabulate(comparison)
        if row.group == "all"
    }
    return format_table(rows, "method")


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write comparison.md, .csv, .json and .png, and each run's figures.

    comparison.csv has a row per method, search and group, runs.csv one per run, search and group.
    Beside the labels that a run has found, cases.csv and discs.csv say how right they are.

    Raises:
        UsageError: the folder cannot be written, or matplotlib is not installed.
    """
    rows = tabulate(comparison)
    for run in comparison.runs:
        for evaluation in run.evaluations.values():
            write_cases(evaluation, evaluation.predictions / "cases.csv")
            write_discs(evaluation, evaluation.predictions / "discs.csv")
    write_csv(folder / "comparison.csv", [_flat(row) for row in rows])
    write_csv(
        folder / "runs.csv",
        [
            {"method": run.method, "seed": run.seed, "search": int(search), "group": group}
            | summary.figures()
            for run in comparison.runs
            for search, evaluation in run.evaluations.items()
            for group, summary in evaluation.groups.items()
        ],
    )
    _draw(comparison, folder / "comparison.png")
    for name, text in (
        ("comparison.json", _json(comparison, rows)),
        ("comparison.md", _markdown(comparison, rows)),
    ):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _flat(row: Row) -> dict[str, str | int | float]:
    flat: dict[str, str | int | float] = {
        "method": row.method,
        "search": int(row.search),
        "group": row.group,
    }
    for name, spread in row.figures.items():
        flat |= {name: spread.mean, f"{name}_sd": spread.sd}
    return flat


def _json(comparison: Comparison, rows: Sequence[Row]) -> str:
    document = {
        "ivdtool": __version__,
        "dataset": str(comparison.dataset),
        "split": comparison.split,
        "minutes": comparison.budget.minutes,
        "steps": comparison.budget.steps,
        "checkpoint": comparison.checkpoint,
        "device": comparison.device,
        "threads": comparison.threads,
        "runs": [
            {
                "method": run.method,
                "seed": run.seed,
                "steps": run.steps,
                "train_seconds": run.train_seconds,
                "seconds_per_training_image": run.seconds_per_image,
                "parameters": run.parameters,
                "milliseconds_per_image": {
                    SEARCHES[search]: comparison.milliseconds[run.method, search]
                    for search in SEARCHES
                },
            }
            for run in comparison.runs
        ],
        "table": [_flat(row) for row in rows],
    }
    return json.dumps(plain(document), indent=1, allow_nan=False) + "\n"


# --- Markdown


def _markdown(comparison: Comparison, rows: Sequence[Row]) -> str:
    everything = comparison.runs[0].evaluations[True].groups
    total = everything["all"]
    seeds = ", ".join(str(seed) for seed in comparison.seeds)
    choice = "the best by val" if comparison.checkpoint == "best.pt" else "the last"
    account = (
        f"`{comparison.dataset}`, split {comparison.split}: {total.images} images, {total.discs} "
        f"annotated discs. Every run: {comparison.budget} of training (validation aside) on split "
        f"train, on {comparison.device} with {comparison.threads} CPU threads; of its checkpoints, "
        f"{choice}. Seeds {seeds}. Written by ivdtool {__version__}."
    )
    sections = [
        "# Comparison of methods",
        account,
        NOTES.rstrip(),
        "![figures by method](comparison.png)",
        "## All images",
        _table([row for row in rows if row.group == "all"], FIGURES),
        "## What the skeleton search changes",
        "With the search minus without, seed by seed.",
        _changes(comparison),
        "## What a method costs",
        _costs(comparison),
    ]
    headings = dict.fromkeys(group.partition(":")[0] for group in everything if group != "all")
    for heading in headings:
        sections.append(f"## By {heading}")
        for group, summary in everything.items():
            if group.startswith(f"{heading}:"):
                name = group.partition(":")[2]
                sections += [
                    f"### {name}: {summary.images} images, {summary.discs} discs",
                    _table([row for row in rows if row.group == group], FIGURES),
                ]
    sections += ["## What the words mean", "Distances in mm.", MEANINGS.rstrip()]
    return "\n\n".join(sections) + "\n"


def _table(rows: Sequence[Row], names: Sequence[str]) -> str:
    return _grid(
        ["method", "skeleton search", *(HEADINGS[name] for name in names)],
        [
            [row.method, _search(row.search), *(_spread(row.figures[n], n) for n in names)]
            for row in rows
        ],
    )


def _changes(comparison: Comparison) -> str:
    lines = []
    for method in comparison.methods:
        pairs = [
            {search: own.groups["all"].figures() for search, own in run.evaluations.items()}
            for run in comparison.runs_of(method)
        ]
        changes = _over_seeds(
            [{name: pair[True][name] - pair[False][name] for name in CHANGES} for pair in pairs]
        )
        lines.append([method, *(_spread(changes[name], name, "+") for name in CHANGES)])
    return _grid(["method", *(HEADINGS[name] for name in CHANGES)], lines)


def _costs(comparison: Comparison) -> str:
    def over(method: str, measure: Callable[[Run], float]) -> Spread:
        return Spread.over([measure(run) for run in comparison.runs_of(method)])

    lines = []
    for method in comparison.methods:
        first = comparison.runs_of(method)[0]
        lines.append(
            [
                method,
                f"{first.parameters:,}",
                str(first.steps),
                str(first.images_per_step) if first.steps else "",
                _spread(over(method, lambda run: run.train_seconds / 60), "minutes"),
                _spread(over(method, lambda run: run.seconds_per_image), "seconds"),
                *(f"{comparison.milliseconds[method, search]:.0f}" for search in SEARCHES),
            ]
        )
    return _grid(
        [
            "method",
            "parameters",
            "steps",
            "images per step",
            "training, min",
            "s per training image",
            "ms per image, with search",
            "ms per image, without",
        ],
        lines,
    )


def _grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def _search(search: bool) -> str:
    return "with" if search else "without"


def _spread(spread: Spread, name: str, sign: str = "") -> str:
    if math.isnan(spread.mean):
        return ""
    digits = 1 if name.endswith("_pct") or name in ("shifted", "minutes") else 2
    text = f"{spread.mean:{sign}.{digits}f}"
    return text if math.isnan(spread.sd) else f"{text} ± {spread.sd:.{digits}f}"


# --- the diagram


def _draw(comparison: Comparison, path: Path) -> None:
    """One panel per figure: a dot per run, a bar at the mean, by whether with the search."""
    methods = comparison.methods
    figure = new_figure(3 * len(PANELS) + 1.5, 0.55 * len(methods) + 1.6)
    for axes, name in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS, strict=True):
        for search, colour in SEARCH_COLOURS.items():
            for y, method in enumerate(methods):
                values = [
                    summary.figures()[name]
                    for summary in _summaries(comparison, method, search, "all")
                ]
                place = y + (-0.15 if search else 0.15)
                axes.plot(
                    values, [place] * len(values), "o", color=colour, alpha=0.5, clip_on=False
                )
                axes.plot([Spread.over(values).mean], [place], "|", color=colour, markersize=16)
        axes.set(xlabel=HEADINGS[name])
        axes.set_xlim(0, max(100, axes.get_xlim()[1]) if name.endswith("_pct") else None)
        axes.grid(alpha=0.3)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    for search, colour in SEARCH_COLOURS.items():
        axes.plot([], [], "o", color=colour, label=f"{_search(search)} skeleton search")
    figure.legend(loc="outside upper center", ncols=2)
    save_figure(figure, path)
