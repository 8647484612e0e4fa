"""Benchmarks run, and their figures laid out: tables, JSON, a plot."""

import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ivdtool import __version__
from ivdtool.benchmark.candidates import candidate_cases
from ivdtool.benchmark.heatmaps import heatmap_cases
from ivdtool.benchmark.pipeline import start_up_cases, time_stages
from ivdtool.benchmark.search import EXHAUSTIVE, OURS, search_cases
from ivdtool.benchmark.timing import Spread, Timing, measure, optional
from ivdtool.errors import UsageError
from ivdtool.files import atomic_write

__all__ = ["STAGES", "Report", "format_report", "plot_search", "run_benchmarks", "write_reports"]

STAGES = ("heatmaps", "candidates", "search", "pipeline")
LIBRARIES = ("numpy", "scipy", "skimage", "cv2", "torch")

ROUNDS = 15
SECONDS = 10.0  # per case, about


@dataclass(frozen=True)
class Report:
    """The times of one case.

    Attributes:
        stage: one of `STAGES`, or start-up, which comes with the pipeline.
        case: what was done.
        timings: one per contender, or per stage of the pipeline.
        missing: contenders left out, and why.
        size: numbers that describe the case.
    """

    stage: str
    case: str
    timings: list[Timing]
    missing: tuple[str, ...] = ()
    size: dict[str, float] = field(default_factory=dict)


def run_benchmarks(stages: Sequence[str] = STAGES, quick: bool = False) -> Iterator[Report]:
    """Run the benchmarks of some stages; `quick` takes small sizes and few rounds, for tests.

    Raises:
        IvdtoolError: a wrong answer, no model.
    """
    rounds, seconds = (2, 0.2) if quick else (ROUNDS, SECONDS)
    makers = {
        "heatmaps": heatmap_cases,
        "candidates": candidate_cases,
        "search": search_cases,
        "pipeline": lambda _: start_up_cases(),
    }
    for stage in stages:
        if stage == "pipeline":
            for name, timings in time_stages(quick):
                yield Report(stage, name, timings)
        for case in makers[stage](quick):
            timings = measure(case, rounds, seconds)
            yield Report(case.stage, case.name, timings, case.missing, dict(case.size))


def format_report(report: Report) -> str:
    """Return a table: median time, and ratio to the first line's (pipeline: share of the total)."""
    ratio = "share of total" if report.stage == "pipeline" else "times the first"
    width = max(len(timing.name) for timing in report.timings)
    head = f"{report.stage}, {report.case}"
    lines = [
        f"{head:<{width + 2}}  {'median':>10}  {ratio:>15}  {'min':>9} {'max':>9}  {'rounds':>6}"
    ]
    for timing in report.timings:
        spread = timing.ratio
        time = ("~" if timing.extrapolated else "") + _duration(timing.microseconds.median)
        lines.append(
            f"  {timing.name:<{max(width, len(head) - 2)}}  {time:>10}"
            f"  {_number(spread.median):>15}"
            f"  {_number(spread.minimum):>9} {_number(spread.maximum):>9}  {timing.rounds:>6}"
        )
    if any(timing.extrapolated for timing in report.timings):
        lines.append("  ~ extrapolated from a part of the task")
    return "\n".join(lines + [f"  left out: {why}" for why in report.missing])


def _duration(microseconds: float) -> str:
    for unit, size in (("y", 3.156e13), ("d", 8.64e10), ("h", 3.6e9), ("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{_number(microseconds / size)} {unit}"
    return f"{_number(microseconds)} us"


def _number(value: float) -> str:
    return f"{value:.3g}" if 0.01 <= value < 1e4 else f"{value:.1e}"


def write_reports(reports: Sequence[Report], path: Path) -> None:
    """Write all figures as JSON, with the versions they were measured with.

    Raises:
        UsageError: the file cannot be written.
    """
    modules = {name: optional(name) for name in LIBRARIES}
    document: dict[str, Any] = {
        "ivdtool": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "libraries": {n: str(m.__version__) for n, m in modules.items() if m is not None},
        "reports": [asdict(report) for report in reports],
    }
    text = json.dumps(document, indent=2) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def plot_search(reports: Sequence[Report], path: Path) -> None:
    """Draw search time over the number of combinations; extrapolated points are hollow.

    Raises:
        UsageError: matplotlib is not installed, or no search was measured.
    """
    if optional("matplotlib") is None:
        raise UsageError("the plot needs matplotlib: pip install 'ivdtool[benchmark]'")
    searches = [report for report in reports if report.stage == "search"]
    if not searches:
        raise UsageError("the plot shows the search; name it among the stages")
    figure = optional("matplotlib.figure").Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, marker in zip((*OURS, *EXHAUSTIVE), "osD^v", strict=True):
        points = [
            (report.size["combinations"], timing.microseconds, timing.extrapolated)
            for report in searches
            if "combinations" in report.size
            for timing in report.timings
            if timing.name == name
        ]
        colour = axes.plot([], [], marker, label=name)[0].get_color()
        for extrapolated in (False, True):
            own = [(n, spread) for n, spread, e in points if e == extrapolated]
            _draw_points(axes, own, marker, colour, "none" if extrapolated else colour)
    axes.plot([], [], "k^", fillstyle="none", label="hollow: extrapolated")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="combinations, K to the power of V",
        ylabel="seconds per search",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_points(
    axes: Any, points: Sequence[tuple[float, Spread]], marker: str, colour: Any, face: Any
) -> None:
    if not points:
        return
    n, spreads = zip(*points, strict=True)
    median = np.array([spread.median for spread in spreads]) * 1e-6
    low = median - np.array([spread.minimum for spread in spreads]) * 1e-6
    high = np.array([spread.maximum for spread in spreads]) * 1e-6 - median
    axes.errorbar(
        n, median, (low, high), fmt=marker, color=colour, markerfacecolor=face, linewidth=1
    )
