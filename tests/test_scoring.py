"""Folders are matched file by file, and scored as an independent script scores them."""

import csv
import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from ivdtool.errors import InputError, UsageError
from ivdtool.label_files import LabelPoints, find_label_file, read_labels
from ivdtool.labels import Disc, DiscLabels
from ivdtool.phantom import Phantom
from ivdtool.scoring import Evaluation, evaluate_folder

FIGURES = {
    "found_pct", "l2_mean", "l2_std", "l2_median", "l2_p95", "si_mean", "fnr_pct", "fpr_pct",
    "shifted", "perfect_images", "paper_dtt_mean", "paper_dtt_std", "paper_fnr_pct",
    "paper_fpr_pct",
}  # fmt: skip


def predict(image: Path, found: LabelPoints, output: Path, rng: np.random.Generator) -> None:
    """Write a prediction that is off by some mm, and in places by a level."""
    loaded: Any = nib.load(image)
    shift = int(rng.choice([0, 0, 1]))
    to_voxel, last = np.linalg.inv(loaded.affine), np.array(loaded.shape) - 1
    discs = []
    for label, point in found.points.items():
        voxel = apply_affine(to_voxel, point + rng.normal(0, 2.5, 3)).clip(-3, last + 3)
        world = apply_affine(loaded.affine, voxel)
        if rng.random() < 0.9 and label + shift <= 25:
            discs.append(Disc(label + shift, world, voxel, score=0.9, confidence=rng.random()))
    output.parent.mkdir(parents=True, exist_ok=True)
    DiscLabels(tuple(discs), image, loaded.header).save(output)


def run_script(script: Path, *arguments: object) -> None:
    # some of its counts are NumPy integers, which plain JSON refuses
    code = (
        "import functools, json, runpy, sys; sys.argv = sys.argv[1:];"
        "json.dumps = functools.partial(json.dumps, default=int);"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(script), *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def exact_figures(cases: list[Mapping[str, Any]]) -> dict[str, float]:
    """The script's figures, which it rounds, from its own cases."""

    def pool(name: str) -> list[float]:
        return [mm for case in cases for mm in case[name]]

    def percent(name: str) -> float:
        return float(100 * sum(case[name] for case in cases) / sum(case["n"] for case in cases))

    return {
        "found_pct": 100 - percent("fn"),
        "l2_mean": float(np.mean(pool("l2"))),
        "l2_std": float(np.std(pool("l2"))),
        "l2_median": float(np.median(pool("l2"))),
        "l2_p95": float(np.percentile(pool("l2"), 95)),
        "si_mean": float(np.mean(pool("si"))),
        "fnr_pct": percent("fn"),
        "fpr_pct": percent("fp"),
        "shifted": sum(case["shifted"] for case in cases),
        "perfect_images": sum(case["fn"] == case["fp"] == 0 for case in cases),
        "paper_dtt_mean": float(np.mean(pool("paper_si"))),
        "paper_dtt_std": float(np.std(pool("paper_si"))),
        "paper_fnr_pct": percent("paper_fn"),
        "paper_fpr_pct": percent("paper_fp"),
    }


@pytest.mark.parametrize("name", ["spine-mri", "neck-slices"])
def test_agrees_with_an_independent_script(
    data: Path, scorer_script: Path, tmp_path: Path, name: str
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
        if rng.random() < 0.3:
            output.unlink()  # the sidecar alone will do
    evaluation = evaluate_folder(tmp_path, dataset, "val")
    report = tmp_path / "report.json"
    run_script(scorer_script, tmp_path, dataset, "--split", "val", "--json", report)
    other = json.loads(report.read_text())
    theirs = {case["stem"]: case for case in other["cases"]}
    assert {own.score.case for own in evaluation.images} == set(theirs)
    assert len(evaluation.missing) == 1
    for own in evaluation.images:
        case, expected = own.score, theirs[own.score.case]
        assert (own.prediction is not None) == expected["output"]
        assert case.l2_mm == pytest.approx(expected["l2"], abs=1e-6)
        assert case.si_mm == pytest.approx(expected["si"], abs=1e-6)
        assert case.nearest_si_mm == pytest.approx(expected["paper_si"], abs=1e-6)
        assert (case.missed, case.false) == (expected["fn"], expected["fp"])
        assert (case.mislabelled, case.shifted) == (expected["wrong"], expected["shifted"])
        assert (case.paper_missed, case.paper_false) == (expected["paper_fn"], expected["paper_fp"])
    assert 0 < evaluation.groups["all"].found_pct < 100
    assert other["groups"].keys() <= evaluation.groups.keys()
    for group, table in other["groups"].items():
        ours = evaluation.groups[group]
        members = [theirs[case.case] for case in ours.cases]
        exact = exact_figures(members)
        assert exact.keys() == FIGURES
        for key in FIGURES:
            assert getattr(ours, key) == pytest.approx(exact[key], abs=1e-6), (group, key)
            assert exact[key] == pytest.approx(table[key], abs=0.0051), (group, key)


@pytest.fixture
def dataset(tmp_path: Path, phantom: Phantom) -> Path:
    """Two subjects with one image, one of them in a session, and a third without labels."""
    folder = tmp_path / "dataset"
    rows = ["participant_id\tsplit\tregion", "sub-01\tval\tneck", "sub-02\ttest\tneck"]
    stems = {"sub-01/anat": "sub-01_T2w", "sub-02/ses-1/anat": "sub-02_ses-1_acq-fast_T2w"}
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


def names(evaluation: Evaluation) -> list[str]:
    return [own.score.case for own in evaluation.images]


def test_perfect_predictions(dataset: Path) -> None:
    found = evaluate_folder(dataset / "derivatives" / "labels", dataset)
    assert list(found.groups) == ["all", "region:neck", "contrast:T2w", "contrast:acq-fast_T2w"]
    total = found.groups["all"]
    assert (total.images, total.found_pct, total.fpr_pct) == (2, 100, 0)
    assert names(found) == ["sub-01_T2w", "sub-02_ses-1_acq-fast_T2w"]
    assert [own.score.subject for own in found.images] == ["sub-01", "sub-02"]
    assert next(iter(found.levels)) == "C2/C3"
    assert all(level.found_pct == 100 for level in found.levels.values())
    assert found.reliability is None
    assert found.missing == ()


def test_only_one_split(dataset: Path) -> None:
    found = evaluate_folder(dataset / "derivatives" / "labels", dataset, "test")
    assert names(found) == ["sub-02_ses-1_acq-fast_T2w"]
    with pytest.raises(InputError, match="no labelled image of split train"):
        evaluate_folder(dataset / "derivatives" / "labels", dataset, "train")


def test_groups_by_another_column(dataset: Path) -> None:
    groups = evaluate_folder(dataset / "derivatives" / "labels", dataset, by=["split"]).groups
    assert list(groups) == ["all", "split:test", "split:val"]
    with pytest.raises(UsageError, match="no column scanner"):
        evaluate_folder(dataset / "derivatives" / "labels", dataset, by=["scanner"])


def test_intervals(dataset: Path) -> None:
    predictions = dataset / "derivatives" / "labels" / "sub-01"
    found = evaluate_folder(predictions, dataset, resamples=200)
    assert found.groups["all"].intervals["found_pct"] == pytest.approx((0, 100))
    assert not found.groups["contrast:T2w"].intervals  # one subject


def test_an_image_without_prediction_is_missed(dataset: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions"
    shutil.copytree(dataset / "derivatives" / "labels" / "sub-01", predictions)
    found = evaluate_folder(predictions, dataset)
    assert found.groups["all"].images == 2
    assert found.groups["all"].found_pct == 50
    assert found.missing == ("sub-02_ses-1_acq-fast_T2w",)


def test_labels_with_a_description_are_found(dataset: Path, tmp_path: Path) -> None:
    """As `batch --bids-suffix label-discs_desc-ours_dlabel` writes them; plain names come first."""
    predictions = tmp_path / "predictions"
    shutil.copytree(dataset / "derivatives" / "labels", predictions)
    for path in sorted(predictions.rglob("*_label-discs_dlabel.*")):
        path.rename(path.with_name(path.name.replace("discs_dlabel", "discs_desc-ours_dlabel")))
    assert evaluate_folder(predictions, dataset).groups["all"].found_pct == 100


def test_no_prediction_of_any_image(dataset: Path) -> None:
    with pytest.raises(InputError, match="no label file of any of"):
        evaluate_folder(dataset / "sub-01", dataset)


def test_uncertain_discs_do_not_count(dataset: Path, phantom: Phantom) -> None:
    case = evaluate_folder(dataset, dataset).images[0].score
    assert phantom.uncertain & set(phantom.discs)
    assert set(case.labels) == set(phantom.discs) - phantom.uncertain


def test_other_files_beside_the_images(dataset: Path) -> None:
    (dataset / "sub-01" / "anat" / "sub-01_T2w.nii.gz.part").write_bytes(b"")
    (dataset / "sub-01" / "anat" / "sub-01_T2w.json").write_text("{}")
    assert evaluate_folder(dataset, dataset).groups["all"].images == 2


def test_no_labelled_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no labelled image"):
        evaluate_folder(tmp_path, tmp_path)


def test_only_the_header_of_an_image_is_read(dataset: Path) -> None:
    image = dataset / "sub-01" / "anat" / "sub-01_T2w.nii.gz"
    whole = evaluate_folder(dataset, dataset).groups["all"]
    image.write_bytes(gzip.compress(gzip.decompress(image.read_bytes())[:352]))
    assert evaluate_folder(dataset, dataset).groups["all"] == whole


def test_two_predictions_of_one_image(dataset: Path, tmp_path: Path) -> None:
    """Which of two runs is meant cannot be known."""
    for run in ("run-a", "run-b"):
        shutil.copytree(dataset / "derivatives" / "labels", tmp_path / "out" / run)
    with pytest.raises(InputError, match=r"sub-01_T2w are also in .*run-a") as error:
        evaluate_folder(tmp_path / "out", dataset)
    assert "run-b" in str(error.value)


def test_confidence_of_an_edited_point_is_void(dataset: Path, tmp_path: Path) -> None:
    """The sidecar's confidence belongs to its own point, not to one moved in an editor."""
    image, truth = dataset / "sub-01" / "anat" / "sub-01_T2w.nii.gz", dataset / "derivatives"
    loaded: Any = nib.load(image)
    points = read_labels(truth / "labels/sub-01/anat/sub-01_T2w_label-discs_dlabel.nii.gz").points
    to_voxel = np.linalg.inv(loaded.affine)
    discs = tuple(
        Disc(label, point, apply_affine(to_voxel, point), score=0.9, confidence=0.8)
        for label, point in points.items()
    )
    output = tmp_path / "out" / "sub-01_T2w_label-discs_dlabel.nii.gz"
    output.parent.mkdir()
    DiscLabels(discs, image, loaded.header).save(output)
    before = evaluate_folder(output.parent, dataset, "val")
    assert before.reliability is not None
    assert before.reliability.ece == pytest.approx(0.2)
    assert before.warnings == ()
    labels: Any = nib.load(output)
    values = np.asarray(labels.dataobj).copy()
    moved = int(before.images[0].score.labels[0])
    values = np.where(values == moved, 0, values)
    values[2, 2, 2] = moved
    nib.save(nib.Nifti1Image(values, labels.affine, labels.header), output)
    after = evaluate_folder(output.parent, dataset, "val")
    assert after.reliability is not None
    assert after.reliability.count == before.reliability.count - 1
    assert after.images[0].score.missed == 1
    assert str(output) in after.warnings[0]
