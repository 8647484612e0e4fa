"""Folders are matched file by file, and figures are laid out for people and programs."""

import csv
import functools
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from ivdtool.errors import InputError
from ivdtool.evaluation import score_case, summarise
from ivdtool.labels import Disc, DiscLabels, LabelPoints, find_label_file, read_labels
from ivdtool.metadata import ModelInfo
from ivdtool.phantom import Phantom
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.reports import (
    describe_model,
    evaluate_folder,
    figures,
    format_table,
    write_cases,
    write_figures,
)
from ivdtool.skeleton import Skeleton


def predict(image: Path, found: LabelPoints, output: Path, rng: np.random.Generator) -> None:
    """Write a prediction that is off by some mm, and in places by a level."""
    loaded: Any = nib.load(image)
    shift = int(rng.choice([0, 0, 1]))
    to_voxel, last = np.linalg.inv(loaded.affine), np.array(loaded.shape) - 1
    discs = []
    for label, point in found.points.items():
        voxel = apply_affine(to_voxel, point + rng.normal(0, 2.5, 3)).clip(0, last)
        world = apply_affine(loaded.affine, voxel)
        if rng.random() < 0.9 and label + shift <= 25:
            discs.append(Disc(label + shift, world, voxel, score=0.9, confidence=0.9))
    output.parent.mkdir(parents=True, exist_ok=True)
    DiscLabels(tuple(discs), image, loaded.header).save(output)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the script leaves a file open
@pytest.mark.parametrize("name", ["spine-mri", "neck-slices"])
def test_agrees_with_an_independent_script(
    data: Path,
    scorer: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    dataset, rng = data / name, np.random.default_rng(1)
    with (dataset / "participants.tsv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines, delimiter="\t") if row["split"] == "val"]
    for row in rows[:-1]:  # no output for one
        (image,) = (dataset / row["participant_id"] / "anat").glob("*.nii.gz")
        labels = find_label_file(image, dataset)
        assert labels is not None
        stem = image.name.removesuffix(".nii.gz")
        output = tmp_path / row["participant_id"] / f"{stem}_label-discs_dlabel.nii.gz"
        predict(image, read_labels(labels), output, rng)
    groups = evaluate_folder(tmp_path, dataset, "val")
    report = tmp_path / "report.json"
    command = ["score", str(tmp_path), str(dataset), "--split", "val", "--json", str(report)]
    monkeypatch.setattr(sys, "argv", command)
    # some of its counts are NumPy integers, which plain JSON refuses
    dumps = functools.partial(json.dumps, default=int)
    monkeypatch.setattr(scorer, "json", SimpleNamespace(loads=json.loads, dumps=dumps))
    assert scorer.main() == 0
    capsys.readouterr()
    other = json.loads(report.read_text())
    theirs = {case["stem"]: case for case in other["cases"]}
    assert {case.case for case in groups["all"].cases} == set(theirs)
    for case in groups["all"].cases:
        expected = theirs[case.case]
        assert case.l2_mm == pytest.approx(expected["l2"], abs=1e-6)
        assert case.nearest_si_mm == pytest.approx(expected["paper_si"], abs=1e-6)
        assert (case.missed, case.false) == (expected["fn"], expected["fp"])
        assert (case.mislabelled, case.shifted) == (expected["wrong"], expected["shifted"])
    assert 0 < groups["all"].found_pct < 100
    for group in groups:
        table = other["groups"][group if group == "all" else f"region:{group}"]
        for key in set(table) - {"l2_std"}:  # rounded
            assert getattr(groups[group], key) == pytest.approx(table[key], abs=0.0051), key


@pytest.fixture
def dataset(tmp_path: Path, phantom: Phantom) -> Path:
    """Two subjects with one image, one of them in a session, and a third without labels."""
    folder = tmp_path / "dataset"
    rows = ["participant_id\tsplit\tregion", "sub-01\tval\tneck", "sub-02\ttest\tneck"]
    stems = {"sub-01/anat": "sub-01_T2w", "sub-02/ses-1/anat": "sub-02_ses-1_T2w"}
    for place, stem in stems.items():
        labels = folder / "derivatives" / "labels" / place
        labels.mkdir(parents=True)
        (folder / place).mkdir(parents=True)
        nib.save(phantom.image, folder / place / f"{stem}.nii.gz")
        nib.save(phantom.label_image(), labels / f"{stem}_label-discs_dlabel.nii.gz")
        (labels / f"{stem}_label-discs_dlabel.json").write_text(json.dumps(phantom.sidecar()))
    shutil.copytree(folder / "sub-01", folder / "sub-03")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    return folder


def test_perfect_predictions(dataset: Path) -> None:
    groups = evaluate_folder(dataset / "derivatives" / "labels", dataset, None)
    assert list(groups) == ["all", "neck"]
    assert (groups["all"].images, groups["all"].found_pct, groups["all"].fpr_pct) == (2, 100, 0)
    assert [case.case for case in groups["all"].cases] == ["sub-01_T2w", "sub-02_ses-1_T2w"]


def test_only_one_split(dataset: Path) -> None:
    groups = evaluate_folder(dataset / "derivatives" / "labels", dataset, "test")
    assert [case.case for case in groups["all"].cases] == ["sub-02_ses-1_T2w"]
    with pytest.raises(InputError, match="no labelled image of split train"):
        evaluate_folder(dataset / "derivatives" / "labels", dataset, "train")


def test_groups_by_another_column(dataset: Path) -> None:
    groups = evaluate_folder(dataset / "derivatives" / "labels", dataset, None, by="split")
    assert list(groups) == ["all", "test", "val"]
    groups = evaluate_folder(dataset / "derivatives" / "labels", dataset, None, by="scanner")
    assert list(groups) == ["all", "unknown"]


def test_an_image_without_prediction_is_missed(dataset: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions"
    labels = dataset / "derivatives" / "labels"
    shutil.copytree(labels / "sub-01", predictions)
    groups = evaluate_folder(predictions, dataset, None)
    assert groups["all"].images == 2
    assert groups["all"].found_pct == 50


def test_uncertain_discs_do_not_count(dataset: Path, phantom: Phantom) -> None:
    (case, _) = evaluate_folder(dataset, dataset, None)["all"].cases
    assert phantom.uncertain & set(phantom.discs)
    assert set(case.labels) == set(phantom.discs) - phantom.uncertain


def test_other_files_beside_the_images(dataset: Path) -> None:
    (dataset / "sub-01" / "anat" / "sub-01_T2w.nii.gz.part").write_bytes(b"")
    (dataset / "sub-01" / "anat" / "sub-01_T2w.json").write_text("{}")
    assert evaluate_folder(dataset, dataset, None)["all"].images == 2


def test_no_labelled_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no labelled image"):
        evaluate_folder(tmp_path, tmp_path, None)


POINTS = {label: np.array([0.0, 0.0, -20.0 * label]) for label in (3, 4, 5)}
NEAR = {label: point + 1.0 for label, point in POINTS.items()}
CASES = [
    score_case("sub-01_T2w", "neck", NEAR, POINTS, (), np.eye(4)),
    score_case('odd, "name"', "back", {}, POINTS, (), np.eye(4)),
]


def test_table() -> None:
    rows = {"all": figures(summarise(CASES)), "nothing": figures(summarise([]))}
    head, first, second = format_table(rows).splitlines()
    assert head.split() == ["group", *figures(summarise([]))]
    values = dict(zip(head.split(), first.split(), strict=True))
    assert (values["group"], values["images"], values["discs"]) == ("all", "2", "6")
    assert (values["found_pct"], values["l2_mean"]) == ("50.00", "1.41")
    assert len(head) == len(first) == len(second)
    assert "nan" in second


def test_figures_as_json(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    groups = {"all": summarise(CASES), "nothing": summarise([])}
    write_figures(groups, path)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    document = json.loads(path.read_text(), parse_constant=refuse)
    assert document["groups"]["all"]["found_pct"] == 50
    assert document["groups"]["nothing"]["found_pct"] is None
    assert [case["case"] for case in document["cases"]] == [case.case for case in CASES]
    assert document["cases"][0]["l2_mm"] == pytest.approx([2**0.5] * 3)


def test_cases_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    write_cases(summarise(CASES), path)
    with path.open(newline="", encoding="utf-8") as lines:
        first, second = csv.DictReader(lines)
    assert (first["case"], first["discs"], first["missed"]) == ("sub-01_T2w", "3", "0")
    assert float(first["l2_mean_mm"]) == pytest.approx(2**0.5, abs=1e-3)
    assert (second["case"], second["missed"], second["l2_mean_mm"]) == ('odd, "name"', "3", "nan")


@pytest.mark.parametrize("write", [write_cases, lambda s, path: write_figures({"all": s}, path)])
def test_a_report_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Any, Path], None]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr("csv.writer", fail)
    monkeypatch.setattr("json.dumps", fail)
    with pytest.raises(RuntimeError):
        write(summarise(CASES), tmp_path / "report")
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
