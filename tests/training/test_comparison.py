"""Methods are trained, scored and tabulated; nothing finished is done again."""

import csv
import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ivdtool.comparison
from ivdtool.cli import main
from ivdtool.comparison import TABLE, Budget, Comparison, compare_methods
from ivdtool.comparison_report import Spread, describe_comparison, tabulate, write_comparison
from ivdtool.config import to_toml
from ivdtool.errors import InputError, UsageError
from ivdtool.methods.method import Discs
from ivdtool.methods.registry import Predictor
from ivdtool.training.loop import TrainingConfig
from ivdtool.training.presets import preset_names, read_settings
from ivdtool.training.progress import Progress
from ivdtool.training.run import run_training

BUDGET = Budget(steps=3)
SEEDS = (0, 7)

Compare = Callable[..., Comparison]


@pytest.fixture(scope="module")
def dataset(spines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four spines: one to learn from, one of val, two of test, in two regions by name."""
    folder = tmp_path_factory.mktemp("data") / "spines"
    shutil.copytree(spines, folder)
    rows = ["participant_id\tsplit\tregion"]
    for index, split in enumerate(("train", "val", "test", "test")):
        rows.append(f"sub-{index}\t{split}\t{'upper' if index % 2 else 'lower'}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tiny(spine_config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a network that learns in no time, and little."""
    config = replace(
        spine_config,
        arguments={"stacks": 1, "channels": 16},
        batch=replace(spine_config.batch, rows=64, cols=64),
    )
    path = tmp_path_factory.mktemp("settings") / "tiny.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison") / "new"


@pytest.fixture(scope="module")
def compare(dataset: Path, tiny: Path, folder: Path) -> Compare:
    def call(
        methods: tuple[str, ...] = ("paper-template", str(tiny)),
        seeds: tuple[int, ...] = SEEDS,
        budget: Budget = BUDGET,
        output: Path = folder,
        split: str = "test",
        tell: Callable[[str], None] = lambda line: None,
    ) -> Comparison:
        return compare_methods(
            dataset, methods, seeds, budget, output, split=split, device="cpu", tell=tell
        )

    return call


@pytest.fixture(scope="module")
def comparison(compare: Compare, folder: Path) -> Comparison:
    found = compare()
    write_comparison(found, folder)
    return found


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def row_of(table: list[dict[str, str]], **wanted: str) -> dict[str, str]:
    (row,) = [row for row in table if wanted.items() <= row.items()]
    return row


def test_what_a_comparison_leaves(comparison: Comparison, folder: Path, dataset: Path) -> None:
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        "budget.json", "comparison.csv", "comparison.json", "comparison.md", "comparison.png",
        "runs.csv",
    }  # fmt: skip
    assert comparison.methods == ("paper-template", "tiny")
    assert comparison.seeds == SEEDS
    images = sorted(dataset.glob("sub-[23]/anat/*.nii.gz"))
    for method in comparison.methods:
        for seed in SEEDS:
            for variant in ("test-with-search", "test-without-search"):
                run = folder / method / f"seed{seed}" / variant
                stems = [path.name.partition("_label")[0] for path in sorted(run.glob("*.json"))]
                assert stems == [image.name.removesuffix(".nii.gz") for image in images]
    assert {run.steps for run in comparison.runs if run.method == "tiny"} == {3}
    assert not list(folder.rglob(".*"))


@pytest.mark.parametrize("group", ["all", "region:upper", "region:lower"])
@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("method", ["paper-template", "tiny"])
def test_the_table_from_the_discs(
    comparison: Comparison, folder: Path, method: str, search: bool, group: str
) -> None:
    """Every figure again, from what is written per image and disc, seed by seed."""
    figures: dict[str, list[float]] = {}
    for seed in comparison.seeds:
        found = folder / method / f"seed{seed}" / f"test-with{'' if search else 'out'}-search"
        region = group.removeprefix("region:")
        cases = [
            row
            for row in read_table(found / "cases.csv")
            if group == "all" or row["region"] == region
        ]
        names = {row["case"] for row in cases}
        discs = [
            row
            for row in read_table(found / "discs.csv")
            if row["case"] in names and row["annotated"] == "1"
        ]
        near = [float(row["nearest_si_mm"]) for row in discs if row["nearest_si_mm"]]
        l2 = [float(row["l2_mm"]) for row in discs if row["l2_mm"]]
        missed = sum(not row["nearest_si_mm"] or float(row["nearest_si_mm"]) >= 5 for row in discs)
        false = sum(int(row["paper_false"]) for row in cases)
        for name, value in {
            "images": len(cases),
            "paper_dtt_mean": np.mean(near) if near else math.nan,
            "paper_dtt_std": np.std(near) if near else math.nan,
            "paper_fnr_pct": 100 * missed / len(discs),
            "paper_fpr_pct": 100 * false / len(discs),
            "found_pct": 100 * sum(bool(v) and v <= 5 for v in l2) / len(discs),
            "shifted": sum(int(row["shifted"]) for row in cases),
            "l2_median": np.median(l2) if l2 else math.nan,
            "l2_p95": np.percentile(l2, 95) if l2 else math.nan,
        }.items():
            figures.setdefault(name, []).append(float(value))
    table = read_table(folder / "comparison.csv")
    row = row_of(table, method=method, search=str(int(search)), group=group)
    for name, values in figures.items():
        shown = [value for value in values if not math.isnan(value)]
        if not shown:
            assert row[name] == ""
            continue
        assert float(row[name]) == pytest.approx(sum(shown) / len(shown), rel=1e-4), name
        if len(shown) == 2:
            spread = abs(shown[0] - shown[1]) / math.sqrt(2)
            assert float(row[f"{name}_sd"]) == pytest.approx(spread, rel=1e-3, abs=1e-4), name


def test_templates_do_not_depend_on_the_seed(comparison: Comparison) -> None:
    """And they do find discs of phantoms, so that the table above is not all empty."""
    rows = [row for row in tabulate(comparison) if row.method == "paper-template"]
    assert {row.figures["found_pct"].sd for row in rows} == {0.0}
    assert max(row.figures["found_pct"].mean for row in rows) > 20


def test_documents_show_the_same_figures(comparison: Comparison, folder: Path) -> None:
    document = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    rows = [row for row in tabulate(comparison) if row.group == "all"]
    assert len(rows) == 4
    for row in rows:
        (own,) = [
            table
            for table in document["table"]
            if (table["method"], table["search"], table["group"]) == (row.method, row.search, "all")
        ]
        found = row.figures["found_pct"]
        assert own["found_pct"] == found.mean
        assert own["found_pct_sd"] == found.sd
        line = f"| {row.method} | {'with' if row.search else 'without'} |"
        (first, *_) = [own for own in text.splitlines() if own.startswith(line)]
        assert f"| {found.mean:.1f} ± {found.sd:.1f} |" in first
        assert f"{found.mean:.1f}" in describe_comparison(comparison)
    assert "3 steps of training" in text
    assert "## By region" in text
    assert "## By contrast" in text
    for run in document["runs"]:
        if run["method"] == "tiny":
            expected = run["train_seconds"] / (run["steps"] * 2)
            assert run["seconds_per_training_image"] == pytest.approx(expected)
            assert run["parameters"] > 1000
        assert all(value > 0 for value in run["milliseconds_per_image"].values())


def test_what_the_search_changes_is_paired(comparison: Comparison, folder: Path) -> None:
    runs = read_table(folder / "runs.csv")
    changes = [
        float(row_of(runs, method="tiny", seed=str(seed), search="1", group="all")["paper_fpr_pct"])
        - float(
            row_of(runs, method="tiny", seed=str(seed), search="0", group="all")["paper_fpr_pct"]
        )
        for seed in comparison.seeds
    ]
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    section = text.partition("## What the skeleton search changes")[2].partition("\n## ")[0]
    (line,) = [line for line in section.splitlines() if line.startswith("| tiny |")]
    mean, sd = sum(changes) / 2, abs(changes[0] - changes[1]) / math.sqrt(2)
    assert f"| {mean:+.1f} ± {sd:.1f} |" in line


@pytest.mark.usefixtures("comparison")
def test_nothing_finished_is_done_again(
    compare: Compare, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trains again")

    monkeypatch.setattr(ivdtool.comparison, "run_training", refuse)
    monkeypatch.setattr(ivdtool.comparison, "_find_discs", refuse)
    before = (folder / "comparison.csv").read_bytes()
    write_comparison(compare(), folder)
    assert (folder / "comparison.csv").read_bytes() == before


@pytest.mark.usefixtures("comparison")
def test_an_interrupted_comparison_goes_on(
    compare: Compare, folder: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second run: the first stays as it is, the second ends as if never stopped."""

    class Stop(Progress):
        def step(self, step: int, metrics: Mapping[str, float]) -> None:
            del metrics
            if step == 2:  # of which there is a checkpoint
                raise KeyboardInterrupt

    def train(datasets: list[Path], config: TrainingConfig, run: Path, **more: Any) -> Path:
        if config.seed == SEEDS[1]:
            more["progress"] = Stop()
        return run_training(datasets, config, run, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ivdtool.comparison, "run_training", train)
        with pytest.raises(KeyboardInterrupt):
            compare((str(tiny),), output=tmp_path)
    first = tmp_path / "tiny" / "seed0" / "last.pt"
    before = first.stat().st_mtime_ns
    lines: list[str] = []
    write_comparison(compare((str(tiny),), output=tmp_path, tell=lines.append), tmp_path)
    assert first.stat().st_mtime_ns == before
    assert any("going on from step 2 of 3" in line for line in lines)
    whole, resumed = (
        [row for row in read_table(own / "runs.csv") if row["method"] == "tiny"]
        for own in (folder, tmp_path)
    )
    assert resumed == whole


@pytest.mark.usefixtures("comparison")
def test_labels_appear_when_they_are_complete(
    compare: Compare, folder: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "tiny" / "seed0", tmp_path / "tiny" / "seed0")
    found = tmp_path / "tiny" / "seed0" / "test-with-search"
    shutil.rmtree(found)
    predict, calls = Predictor.predict, iter((True, False))

    def stop(*arguments: Any) -> Discs:
        if next(calls):
            return predict(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", stop)
        with pytest.raises(KeyboardInterrupt):
            compare((str(tiny),), seeds=(0,), output=tmp_path)
    assert not found.exists()
    compare((str(tiny),), seeds=(0,), output=tmp_path)
    for path in found.glob("*.json"):
        other = folder / "tiny" / "seed0" / "test-with-search" / path.name
        assert path.read_bytes() == other.read_bytes()
    assert len(list(found.glob("*.json"))) == 2


def test_on_val_the_last_checkpoint_counts(compare: Compare, tiny: Path) -> None:
    """The best would have been chosen by the very images."""
    found = compare((str(tiny),), seeds=(0,), split="val")
    assert found.checkpoint == "last.pt"
    assert found.runs[0].evaluations[True].groups["all"].images == 1


def test_minutes_become_steps(compare: Compare, tiny: Path, tmp_path: Path) -> None:
    methods, budget = ("paper-template", str(tiny)), Budget(minutes=0.002)
    found = compare(methods, seeds=(0,), budget=budget, output=tmp_path)
    account = json.loads((tmp_path / "budget.json").read_text(encoding="utf-8"))
    seconds = account["seconds_per_step"]
    assert seconds["paper-template"] == 0
    steps = {run.method: run.steps for run in found.runs}
    assert steps == {"paper-template": 0, "tiny": max(1, round(0.12 / seconds["tiny"]))}
    lines: list[str] = []  # measured once, for all runs to come
    again = compare(methods, seeds=(0, 1), budget=budget, output=tmp_path, tell=lines.append)
    assert not any("measuring how long a step" in line for line in lines)
    assert {run.steps for run in again.runs if run.method == "tiny"} == {steps["tiny"]}
    assert not list(tmp_path.glob(".*"))


def test_runs_of_another_kind_are_refused(
    comparison: Comparison, compare: Compare, tiny: Path, folder: Path, tmp_path: Path
) -> None:
    before = (folder / "budget.json").read_bytes()
    with pytest.raises(UsageError, match="holds runs of 3 steps on"):
        compare(budget=Budget(steps=4))
    copy = tmp_path / "data"
    shutil.copytree(comparison.dataset, copy)
    with pytest.raises(UsageError, match="holds runs of 3 steps on"):
        compare_methods(copy, ["robust"], [0], BUDGET, folder)
    other = tmp_path / "tiny.toml"
    other.write_text(
        tiny.read_text(encoding="utf-8").replace("channels = 16", "channels = 8"), encoding="utf-8"
    )
    with pytest.raises(UsageError, match="seed0: trained with another arguments than asked for"):
        compare((str(other),))
    assert (folder / "budget.json").read_bytes() == before


def test_what_cannot_be_compared(compare: Compare, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="named twice"):
        compare(("robust", "robust"), output=tmp_path)
    with pytest.raises(UsageError, match="no preset is called 'papers'"):
        compare(("papers",), output=tmp_path)
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    (copy / "participants.tsv").unlink()
    with pytest.raises(InputError, match="no labelled image of split train"):
        compare_methods(copy, ["robust"], [0], BUDGET, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "budget.json").write_text("{", encoding="utf-8")
    with pytest.raises(UsageError, match=r"budget\.json: damaged"):
        compare(("robust",), output=tmp_path)


@pytest.mark.parametrize(
    "budget", [{}, {"minutes": 1.0, "steps": 1}, {"steps": 0}, {"minutes": -1}]
)
def test_a_budget_is_minutes_or_steps(budget: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="budget must be"):
        Budget(**budget)


def test_the_table_has_all_rows() -> None:
    """Each preset of it is there, no two the same, and all papers' presets are in it."""
    settings = [read_settings(name) for name in TABLE]
    assert len({to_toml(config) for config in settings}) == 7
    assert sorted(TABLE) == [name for name in preset_names() if name.startswith("paper-")]


def test_spread() -> None:
    assert Spread.over([1.0, math.nan, 4.0]) == Spread(2.5, float(np.std([1, 4], ddof=1)))
    assert math.isnan(Spread.over([1.0]).sd)
    assert math.isnan(Spread.over([math.nan]).mean)


@pytest.mark.usefixtures("comparison")
def test_command(
    dataset: Path, tiny: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = (folder / "comparison.csv").read_bytes()
    arguments = [
        "compare", "--data", str(dataset), "--methods", f"paper-template, {tiny}",
        "--seeds", "0,7", "-o", str(folder), "--device", "cpu",
    ]  # fmt: skip
    for more, code, told in (
        (["--steps", "3"], 0, "paper-template, without"),
        ([], 2, "either --minutes or --steps"),
        (["--steps", "3", "--minutes", "1"], 2, "either --minutes or --steps"),
        (["--steps", "3", "--seeds", "1,1"], 2, "seeds must differ"),
        (["--steps", "3", "--seeds", "one"], 2, "whole numbers"),
    ):
        with pytest.raises(SystemExit) as end:
            main([*arguments, *more])
        assert end.value.code == code
        out, err = capsys.readouterr()
        assert told in (err if code else out)
    assert (folder / "comparison.csv").read_bytes() == table
