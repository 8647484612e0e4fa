"""The benchmark's own machinery; the answers of its contenders are compared in benchmarks/."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ivdtool._core import SearchResult
from ivdtool.benchmark.candidates import candidate_cases
from ivdtool.benchmark.heatmaps import heatmap_cases
from ivdtool.benchmark.report import STAGES, Report, format_report, plot_search
from ivdtool.benchmark.search import search_cases
from ivdtool.benchmark.timing import Case, Contender, Spread, Timing, expect, measure
from ivdtool.candidates import Candidates
from ivdtool.cli import cli
from ivdtool.errors import IvdtoolError, UsageError
from ivdtool.search import Assignment


def test_contenders_take_turns() -> None:
    calls: list[str] = []

    def contender(name: str) -> Contender:
        def run() -> None:
            calls.append(name)
            sum(range(200_000))

        return Contender(name, run)

    timings = measure(Case("search", "x", (contender("a"), contender("b"))), rounds=3, seconds=60)
    order = [name for name, before in zip(calls, ["", *calls], strict=False) if name != before]
    assert order == ["a", "b"] * 4  # a first call each, then the rounds
    assert [timing.rounds for timing in timings] == [3, 3]
    assert timings[0].ratio == Spread(1.0, 1.0, 1.0)
    assert timings[1].ratio.minimum <= timings[1].ratio.median <= timings[1].ratio.maximum


def test_slow_contenders_sit_out() -> None:
    fast = Contender("fast", lambda: None)
    slow = Contender("slow", lambda: sum(range(300_000)), factor=10.0)
    timings = measure(Case("search", "x", (fast, slow)), rounds=5, seconds=0.0)
    assert [timing.rounds for timing in timings] == [3, 3]
    assert [timing.extrapolated for timing in timings] == [False, True]


def test_a_wrong_answer_stops() -> None:
    wrong = Contender("liar", lambda: 5, lambda answer: expect(answer == 4, "should be 4"))
    with pytest.raises(IvdtoolError, match="the task: liar: should be 4"):
        measure(Case("search", "the task", (wrong,)), 1, 1.0)


def test_wrong_answers_are_noticed() -> None:
    """Every check of heatmaps and search must refuse something, and ours of candidates."""
    spoilt = 0
    for case in (
        next(cases(quick=True)) for cases in (heatmap_cases, candidate_cases, search_cases)
    ):
        for contender in case.contenders:
            ours = case.stage != "candidates" or contender.name.startswith("ivdtool")
            if contender.check is None or "redrawn" in contender.name or not ours:
                continue
            with pytest.raises(IvdtoolError):
                contender.check(spoil(contender.run()))
            spoilt += 1
    assert spoilt > 15


def spoil(answer: Any) -> Any:
    """Heatmaps without discs, candidates of other values, a labelling that costs less."""
    if isinstance(answer, Assignment):
        cheaper = {"cost": answer.cost - 1, "labels": (3,)}
        return SimpleNamespace(choice=answer.choice, optimal=answer.optimal, **cheaper)
    if isinstance(answer, SearchResult):
        costs = answer.costs - 1
        return SimpleNamespace(choices=answer.choices, costs=costs, margins=answer.margins)
    if isinstance(answer, Candidates):
        return replace(answer, scores=answer.scores + 1)
    if isinstance(answer, tuple):
        return (answer[0] - 1, answer[1])
    return np.zeros_like(np.asarray(answer))


def timing(name: str, ratio: float, *, extrapolated: bool = False) -> Timing:
    spread = Spread(ratio, ratio, ratio)
    return Timing(name, spread, spread, ratio, 3, extrapolated, checked=True)


def test_the_table() -> None:
    report = Report(
        "search",
        "V=5 K=1",
        [timing("ivdtool", 1.0), timing("tree", 3.2e13, extrapolated=True)],
        missing=("SciPy is not installed",),
    )
    assert format_report(report).splitlines() == [
        "search, V=5 K=1      median  times the first        min       max  rounds",
        "  ivdtool              1 us                1          1         1       3",
        "  tree              ~1.01 y          3.2e+13    3.2e+13   3.2e+13       3",
        "  ~ extrapolated from a part of the task",
        "  left out: SciPy is not installed",
    ]


def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures, plot = tmp_path / "figures.json", tmp_path / "search.png"
    arguments = ["benchmark", "search", "--quick", "--json", str(figures), "--plot", str(plot)]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    assert "V=23 K=2" in done.output
    document = json.loads(figures.read_text(encoding="utf-8"))
    assert document["libraries"]["numpy"] == np.__version__
    sizes = [report["size"] for report in document["reports"]]
    assert {"V": 7, "K": 3, "combinations": 3.0**7} in sizes
    for report in document["reports"]:
        for one in report["timings"]:
            ratio = one["ratio"]
            assert 0 < ratio["minimum"] <= ratio["median"] <= ratio["maximum"]
    with Image.open(plot) as image:
        assert image.size[0] > 500


def test_nonsense_is_refused(tmp_path: Path) -> None:
    for arguments in (["nonsense"], ["heatmaps", "--plot", str(tmp_path / "x.png")]):
        with pytest.raises(UsageError):
            CliRunner().invoke(
                cli, ["benchmark", *arguments], catch_exceptions=False, standalone_mode=False
            )
    with pytest.raises(UsageError, match="search"):
        plot_search([], tmp_path / "x.png")


def test_every_stage_has_a_benchmark() -> None:
    folder = Path(__file__).parents[1] / "benchmarks"
    assert {f"bench_{stage}" for stage in STAGES} <= {
        path.stem for path in folder.glob("bench_*.py")
    }
