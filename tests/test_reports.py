"""Figures are laid out for people and programs."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivdtool.bids import BidsImage
from ivdtool.evaluation import score_case, summarise, summarise_levels
from ivdtool.metadata import ModelInfo
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.reliability import measure_reliability
from ivdtool.reports import (
    describe_evaluation,
    describe_model,
    format_table,
    write_cases,
    write_discs,
    write_figures,
    write_summaries,
)
from ivdtool.scoring import Evaluation, ScoredImage
from ivdtool.skeleton import Skeleton
from ivdtool.verdict import Judge

POINTS = {label: np.array([0.0, 0.0, -20.0 * label]) for label in (3, 4, 5)}
NEAR = {label: point + 1.0 for label, point in POINTS.items()} | {6: np.array([0.0, 0.0, -90.0])}
GROUPS = {"region": "neck"}
CASES = [
    score_case("sub-01_T2w", NEAR, POINTS, (), np.eye(4), confidence={3: 0.75}, groups=GROUPS),
    score_case('odd, "name"', {}, POINTS, (), np.eye(4), groups=GROUPS),
]
IMAGES = [BidsImage(Path(f"{case.case}.nii.gz"), case.subject, {}, None) for case in CASES]


@pytest.fixture
def evaluation() -> Evaluation:
    levels = {str(label): own for label, own in summarise_levels(CASES, 50).items()}
    predictions = [Path("a.nii.gz"), None]
    scored = zip(IMAGES, predictions, CASES, strict=True)
    return Evaluation(
        predictions=Path("out"),
        dataset=Path("data"),
        split="val",
        resamples=50,
        seed=0,
        images=tuple(ScoredImage(*own) for own in scored),
        groups={"all": summarise(CASES, 50), "region:none": summarise([])},
        levels=levels,
        reliability=measure_reliability([0.75], [True]),
    )


def test_table() -> None:
    rows = {"all": summarise(CASES).figures(), "nothing": summarise([]).figures()}
    head, first, second = format_table(rows).splitlines()
    assert head.split() == ["group", *summarise([]).figures()]
    values = dict(zip(head.split(), first.split(), strict=True))
    assert (values["group"], values["images"], values["discs"]) == ("all", "2", "6")
    assert (values["found_pct"], values["l2_mean"]) == ("50.00", "1.41")
    assert values["precision_pct"] == "75.00"
    assert len(head) == len(first) == len(second)
    assert "nan" in second


def test_description(evaluation: Evaluation) -> None:
    text = describe_evaluation(evaluation)
    for fact in ("0.0..100.0", "paper_dtt_mean", "by level", "error 0.250 over 1 discs"):
        assert fact in text
    assert "no prediction, so all missed: 1 of 2 images" in text
    assert 'odd, "name"' in text


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_figures_as_json(evaluation: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_figures(evaluation, path)
    document = json.loads(path.read_text(), parse_constant=refuse)
    assert document["groups"]["all"]["found_pct"] == 50
    assert document["groups"]["all"]["intervals"]["found_pct"] == [0, 100]
    assert document["groups"]["region:none"]["found_pct"] is None
    assert document["levels"]["6"]["precision_pct"] == 0
    assert document["reliability"]["ece"] == 0.25
    assert document["missing"] == ['odd, "name"']
    first = document["cases"][0]
    assert (first["case"], first["region"], first["false"]) == ("sub-01_T2w", "neck", 1)
    assert [disc["l2_mm"] for disc in first["discs"]] == pytest.approx([2**0.5] * 3)
    assert [p["confidence"] for p in first["predictions"]] == [0.75, None, None, None]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_cases_as_csv(evaluation: Evaluation, tmp_path: Path) -> None:
    write_cases(evaluation, tmp_path / "cases.csv")
    first, second = read(tmp_path / "cases.csv")
    assert (first["case"], first["annotated"], first["missed"]) == ("sub-01_T2w", "3", "0")
    assert (first["region"], first["false"]) == ("neck", "1")
    assert float(first["l2_mean_mm"]) == pytest.approx(2**0.5, abs=1e-3)
    assert (second["case"], second["missed"], second["l2_mean_mm"]) == ('odd, "name"', "3", "")


def test_discs_as_csv(evaluation: Evaluation, tmp_path: Path) -> None:
    write_discs(evaluation, tmp_path / "discs.csv")
    rows = read(tmp_path / "discs.csv")
    assert [row["label"] for row in rows] == ["3", "4", "5", "6", "3", "4", "5"]
    assert (rows[0]["name"], rows[0]["found"], rows[0]["confidence"]) == ("C2/C3", "1", "0.75")
    assert (rows[3]["annotated"], rows[3]["predicted"], rows[3]["l2_mm"]) == ("0", "1", "")
    assert (rows[4]["annotated"], rows[4]["predicted"], rows[4]["found"]) == ("1", "0", "0")


def test_summaries_as_csv(evaluation: Evaluation, tmp_path: Path) -> None:
    write_summaries(evaluation.groups, tmp_path / "groups.csv")
    first, second = read(tmp_path / "groups.csv")
    assert (first["group"], first["found_pct"]) == ("all", "50")
    assert (first["found_pct_low"], first["found_pct_high"]) == ("0", "100")
    assert (second["found_pct"], second["found_pct_low"]) == ("", "")


@pytest.mark.parametrize("write", [write_cases, write_discs, write_figures])
def test_a_report_that_fails_leaves_nothing(
    evaluation: Evaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Any, Path], None],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("csv.DictWriter", fail)
    monkeypatch.setattr("json.dumps", fail)
    with pytest.raises(RuntimeError):
        write(evaluation, tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_description_of_a_model(tmp_path: Path) -> None:
    skeleton = Skeleton.from_points([{3: (0.0, 0.0), 4: (18.0, 2.0), 5: (36.0, 5.0)}])
    info = ModelInfo(
        name="robust",
        labels=(3, 4, 5),
        stride=4,
        skeleton=skeleton,
        network={"name": "hourglass", "arguments": {"stacks": 2}},
        training={"subjects": 41},
        accuracy={"val": "98 %"},
        ivdtool="0.1.0",
    )
    path = tmp_path / "robust.pt"
    path.write_bytes(bytes(1_500_000))
    text = describe_model(info, "abc123", path)
    for fact in ("robust.pt, 1.5 MB", "abc123", "C2/C3 to C4/C5 (values 3 to 5)", "hourglass"):
        assert fact in text
    for fact in ("1.0 mm pixels", "slab of 6.0 mm", "subjects     41", "98 %"):
        assert fact in text
    paper = replace(info, preprocessing=PreprocessingConfig(slices=6))
    assert "mean of 6 slices" in describe_model(paper, "abc123", path)
    assert "verdict      none" in text
    judged = replace(info, judge=Judge(-4.0, 6.0, 4.0, -12.0, 0.9, 0.25))
    assert "certain=0.9, check=0.25" in describe_model(judged, "abc123", path)
