"""The goals in speed and accuracy beside what is measured, as a Markdown table.

    ivdtool benchmark --json figures.json
    python -m benchmarks.targets figures.json

Times are from the file; accuracies are measured here, on the problems of
`../shared/tools/synthetic_stacks.py`.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tests.stacks import StackProblem, load_tool

from ivdtool.benchmark.heatmaps import SIGMA
from ivdtool.candidates import CandidateConfig, find_candidates
from ivdtool.heatmaps import Heatmaps, draw_heatmaps

DATA = Path(__file__).parents[2] / "shared" / "data"
SMALL, MIDDLE, LARGE = "11x256x256", "24x512x512", "24x1024x512"
OURS = {
    "heatmaps": "ivdtool, array overwritten",
    "candidates": "ivdtool",
    "search": "core: paper's cost",
}
PYTHON, LS_CHAIN = "ivdtool, paper's cost", "ivdtool, ls_chain"
MEMSET, COPY = "floor: memset", "floor: copy (NumPy)"
READ = {"NumPy max": "floor: read (NumPy max)", "memcmp": "floor: read (memcmp with itself)"}
COMPONENTS, SCIPY = "papers: threshold, components", "SciPy maximum_filter 3x3"
DILATE = "OpenCV dilate 3x3"
TREE, TREE_CPP = "papers: exhaustive, Python", "exhaustive, C++"
MOST = "at most"
LEAST = "at least"


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        what: is compared.
        asked: the limit.
        bound: MOST or LEAST.
        best: measured at its quickest, or once.
        median: measured in the median; None for accuracies.
        note: what else must be known.
    """

    what: str
    asked: float
    bound: str
    best: float
    median: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the limit is kept."""
        values = [self.best] if self.median is None else [self.best, self.median]
        kept = [v <= self.asked if self.bound == MOST else v >= self.asked for v in values]
        return "yes" if all(kept) else "at its quickest only" if kept[0] else "**no**"


class Figures:
    """The times in a file that `ivdtool benchmark --json` wrote."""

    def __init__(self, path: Path) -> None:
        self.document = json.loads(path.read_text(encoding="utf-8"))
        self.times = {
            (report["stage"], report["case"], timing["name"]): timing
            for report in self.document["reports"]
            for timing in report["timings"]
        }

    def ratio(
        self,
        what: str,
        bound: str,
        asked: float,
        of: tuple[str, str, str],
        to: tuple[str, str, str],
    ) -> Target:
        """The time of one contender over another's; each is stage, case, name."""
        one, other = self.times[of], self.times[to]
        best = one["fastest"] / other["fastest"]
        median = one["microseconds"]["median"] / other["microseconds"]["median"]
        note = "extrapolated" if one["extrapolated"] else ""
        return Target(what, asked, bound, best, median, note)

    def times_slower(self, stage: str, case: str, other: str, asked: float, what: str) -> Target:
        """How many times longer another contender takes than ours, at least."""
        mine = (stage, case, OURS[stage])
        return self.ratio(f"{what}, {case}", LEAST, asked, (stage, case, other), mine)

    def share_of(self, stage: str, case: str, floor: str, asked: float, what: str) -> Target:
        """Our time as a multiple of a floor, at most."""
        mine = (stage, case, OURS[stage])
        return self.ratio(f"{what}, {case}", MOST, asked, mine, (stage, case, floor))


def heatmap_targets(figures: Figures) -> Iterator[Target]:
    for other, asked in (
        ("papers: exp, full frame", 700),
        ("papers: merged pixel by pixel", 7000),
        ("NumPy, window", 3.5),
    ):
        yield figures.times_slower("heatmaps", SMALL, other, asked, other)
    for case, asked in ((SMALL, 1.25), (MIDDLE, 1.1), (LARGE, 1.15)):
        yield figures.share_of("heatmaps", case, MEMSET, asked, "drawn / memset")
    redrawn = "ivdtool, buffer redrawn"
    for case, asked in ((SMALL, 0.2), (MIDDLE, 0.06)):
        one, floor = ("heatmaps", case, redrawn), ("heatmaps", case, MEMSET)
        yield figures.ratio(f"redrawn / memset, {case}", MOST, asked, one, floor)
    rng = np.random.default_rng(0)
    points = rng.uniform(-5, 260, (1, 500, 2))
    drawn = draw_heatmaps(points, np.ones((1, 500)), (256, 256), SIGMA)[0].astype(np.float64)
    rows, cols = np.arange(256)[:, np.newaxis], np.arange(256)
    exact = np.stack(
        [np.exp(-((rows - r) ** 2 + (cols - c) ** 2) / (2 * SIGMA**2)) for r, c in points[0]]
    )
    inside = drawn > 0
    yield Target("error inside the window", 1e-6, MOST, float(np.abs(drawn - exact)[inside].max()))
    yield Target("largest value cut off", 5e-4, MOST, float(exact[~inside].max()))


def candidate_targets(figures: Figures) -> Iterator[Target]:
    for case, asked in ((SMALL, 1.6), (MIDDLE, 1.15), (LARGE, 1.15)):
        for name, floor in READ.items():
            yield figures.share_of("candidates", case, floor, asked, f"found / {name}")
    yield figures.share_of("candidates", SMALL, COPY, 1.0, "found / copy")
    yield figures.times_slower("candidates", SMALL, DILATE, 30, "OpenCV dilate, compare")
    for case, asked in ((SMALL, 250), (MIDDLE, 200), (LARGE, 200)):
        yield figures.times_slower("candidates", case, COMPONENTS, asked, "papers' stage")
    for case in (MIDDLE, LARGE):
        yield figures.times_slower("candidates", case, SCIPY, 200, "SciPy maximum_filter")
    for size, asked in ((SMALL, 35), (MIDDLE, 10)):
        case = f"{size}, a third above threshold"
        for name, floor in READ.items():
            yield figures.share_of("candidates", case, floor, asked, f"found / {name}")
    case = f"{SMALL}, a third above threshold"
    yield figures.times_slower("candidates", case, SCIPY, 15, "SciPy maximum_filter")
    for noise, asked in ((0.01, 0.025), (0.0, 1e-5)):
        yield Target(f"position, rms px at {noise:.0%} noise", asked, MOST, position_error(noise))


def position_error(noise: float) -> float:
    rng = np.random.default_rng(2)
    points = rng.uniform(12, 20, (1, 1500, 2))
    values = np.float32(0.9) * draw_heatmaps(points, np.ones((1, 1500)), (32, 32), SIGMA)[0]
    values += rng.normal(0, noise, values.shape).astype(np.float32)
    heatmaps = Heatmaps(values, tuple(range(len(values))), 1, (1.0, 1.0))
    found = find_candidates(heatmaps, CandidateConfig(max_candidates=1))
    return float(np.sqrt(np.mean(np.sum((found.positions - points[0]) ** 2, axis=1))))


def search_targets(figures: Figures) -> Iterator[Target]:
    for choices, asked in ((2, 2e4), (3, 1e6), (4, 1e7)):
        case = f"V=11 K={choices}"
        yield figures.times_slower("search", case, TREE, asked, "papers' tree")
        of, to = ("search", case, TREE), ("search", case, PYTHON)
        yield figures.ratio(f"the same, called from Python, {case}", LEAST, asked, of, to)
    case = "V=11 K=4"
    yield figures.times_slower("search", case, TREE_CPP, 1e4, "the tree in C++")
    largest, smallest = (
        ("search", "V=23 K=6", OURS["search"]),
        ("search", "V=11 K=2", OURS["search"]),
    )
    yield figures.ratio("V=23 K=6 / V=11 K=2", MOST, 12, largest, smallest)
    plain = ("search", case, OURS["search"])
    for name, asked in (
        ("core: with margins", 2.5),
        ("core: 16 best", 8.0),
        ("core: discs in order or missing", 18.0),
    ):
        yield figures.ratio(f"{name} / plain, {case}", MOST, asked, ("search", case, name), plain)
    ours = ("search", case, LS_CHAIN)
    yield figures.ratio(
        f"ls_chain / papers' tree, {case}", LEAST, 1e6, ("search", case, TREE), ours
    )
    yield figures.ratio(f"ls_chain / paper's cost, {case}", MOST, 20, ours, plain)
    for name, asked in (
        ("V=23 K=6, 40 problems", 200),
        ("V=23 K=6, 40 problems with 15 % missing, the hardest", 3000),
    ):
        of, to = ("search", name, LS_CHAIN), ("search", name, PYTHON)
        yield figures.ratio(f"ls_chain / paper's cost, {name}", MOST, asked, of, to)
    overhead = figures.times["search", "V=11 K=2", "ivdtool, nothing to search"]
    yield Target(
        "a call from Python, us", 3.0, MOST, overhead["fastest"], overhead["microseconds"]["median"]
    )


def stack_targets(stacks: ModuleType) -> Iterator[Target]:
    """On the problems that the targets were set with: V=24, in processor time of the thread."""
    plain, mean, optimal = [], {}, True
    for scenario in ("clean", "missing"):
        taken = []
        for seed in range(40):
            problem = StackProblem(stacks, 24, 6, scenario, 5000 + seed)
            plain.append(least_seconds(problem.solve_paper, 20))
            taken.append(least_seconds(problem.solve_ls_chain, 3))
            optimal &= problem.solve_ls_chain().optimal
        mean[scenario] = (float(np.mean(taken)), max(taken))
    unit = float(np.mean(plain))
    name = "ls_chain / paper's cost, V=24 K=6, synthetic stacks"
    note = "all optimal" if optimal else "not all optimal"
    yield Target(f"{name}, mean of 40", 200, MOST, mean["clean"][0] / unit, note=note)
    yield Target(
        f"{name}, 15 % missing, worst of 40", 3000, MOST, mean["missing"][1] / unit, note=note
    )
    for discs, limits in (
        (24, {"clean": 0.97, "missing": 0.97, "shift": 0.97, "anchor": 0.97}),
        (11, {"clean": 0.98, "shift": 0.98, "missing": 0.90, "anchor": 0.85}),
    ):
        for scenario, asked in limits.items():
            problems = [StackProblem(stacks, discs, 4, scenario, 61_000 + i) for i in range(300)]
            right = float(np.mean([problem.share_right() for problem in problems]))
            yield Target(f"discs right, V={discs} K=4, {scenario}, 300 cases", asked, LEAST, right)


def least_seconds(solve: Callable[[], Any], repetitions: int) -> float:
    taken = []
    for _ in range(repetitions):
        started = time.thread_time()
        solve()
        taken.append(time.thread_time() - started)
    return min(taken)


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if 0.001 <= value < 1e4 else f"{value:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("figures", type=Path)
    figures = Figures(parser.parse_args().figures)
    stacks = load_tool(DATA, "synthetic_stacks")
    print("| | asked | at its quickest | median | met |\n|---|---|---|---|---|")
    for targets in (heatmap_targets, candidate_targets, search_targets):
        for target in targets(figures):
            print_line(target)
    for target in stack_targets(stacks):
        print_line(target)


def print_line(target: Target) -> None:
    sign = "≤" if target.bound == MOST else "≥"
    note = f" ({target.note})" if target.note else ""
    print(
        f"| {target.what}{note} | {sign} {number(target.asked)} | {number(target.best)}"
        f" | {number(target.median)} | {target.verdict} |"
    )


if __name__ == "__main__":
    main()
