"""The report shows what the figures say, with the pictures it links to."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from PIL import Image

from ivdtool.diagrams import check_matplotlib
from ivdtool.errors import UsageError
from ivdtool.label_files import read_labels
from ivdtool.labels import Disc, DiscLabels
from ivdtool.phantom_dataset import write_phantoms
from ivdtool.report_folder import worst_images, write_report
from ivdtool.scoring import Evaluation, evaluate_folder


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Four phantoms: labelled well, off by a level, by some millimetres, not at all."""
    folder = tmp_path_factory.mktemp("evaluation")
    dataset = write_phantoms(folder / "data", 4, seed=2, region="lumbar", spacing_mm=1.5)
    images = sorted(dataset.glob("sub-*/anat/*.nii.gz"))
    (folder / "out").mkdir()
    for image, shift, error_mm in zip(images[:3], (0, -1, 0), (0.5, 0.5, 4.0), strict=True):
        loaded: Any = nib.load(image)
        stem = image.name.removesuffix(".nii.gz")
        labels = next((dataset / "derivatives").rglob(f"{stem}*.nii.gz"))
        rng = np.random.default_rng(1)
        discs = []
        for label, point in read_labels(labels).points.items():
            world = point + rng.normal(0, error_mm, 3)
            voxel = apply_affine(np.linalg.inv(loaded.affine), world)
            discs.append(Disc(label + shift, world, voxel, score=0.9, confidence=0.8))
        output = folder / "out" / f"{stem}_label-discs_dlabel.nii.gz"
        DiscLabels(tuple(discs), image, loaded.header).save(output)
    return evaluate_folder(folder / "out", dataset, resamples=100)


@pytest.fixture(scope="module")
def report(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new"
    write_report(evaluation, folder, worst=3)
    return folder


def test_files(report: Path) -> None:
    files = {str(path.relative_to(report)) for path in report.rglob("*") if path.is_file()}
    pictures = {name for name in files if name.startswith("worst/")}
    assert len(pictures) == 3
    assert files - pictures == {
        "report.md",
        "figures.json",
        "groups.csv",
        "levels.csv",
        "cases.csv",
        "discs.csv",
        "levels.png",
        "reliability.png",
    }


def test_every_link_leads_to_a_picture(report: Path) -> None:
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (report / "report.md").read_text())
    assert len(links) == 5
    for link in links:
        with Image.open(report / link) as picture:
            assert min(picture.size) > 300


def test_worst_first(evaluation: Evaluation) -> None:
    first, second, third = (own.score for own in worst_images(evaluation, 3))
    assert first.shifted
    assert first.offset == -1
    assert (second.missed, second.predictions) == (len(second.discs), ())
    assert 0 < third.missed + third.false < second.missed
    assert worst_images(evaluation, 0) == []


def test_text_says_what_the_figures_say(evaluation: Evaluation, report: Path) -> None:
    text = (report / "report.md").read_text()
    total = evaluation.groups["all"]
    low, high = total.intervals["found_pct"]
    assert f"{total.found_pct:.1f} [{low:.1f}, {high:.1f}]" in text
    assert "the column is off by -1 in label" in text
    assert "**Without a prediction**, and so all missed: `sub-ph003" in text
    assert evaluation.reliability is not None
    assert f"calibration error {evaluation.reliability.ece:.3f}" in text
    for heading in (
        "## Right label within 5 mm",
        "## As in the papers",
        "## By level",
        "| L5/S1 |",
    ):
        assert heading in text
    assert "nan" not in text


def test_same_evaluation_same_bytes(evaluation: Evaluation, report: Path, tmp_path: Path) -> None:
    write_report(evaluation, tmp_path / "again", worst=3)
    for path in report.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(report)).read_bytes() == path.read_bytes()


def test_older_pictures_go(evaluation: Evaluation, report: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(report, tmp_path / "report")
    write_report(evaluation, folder, worst=1)
    assert [path.name[:2] for path in (folder / "worst").iterdir()] == ["01"]


def test_pictures_of_others_stay(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "worst").mkdir()
    mine = tmp_path / "worst" / "holiday.png"
    mine.write_bytes(b"mine")
    write_report(evaluation, tmp_path)
    assert mine.read_bytes() == b"mine"


def test_without_matplotlib(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install 'ivdtool\[report\]'"):
        check_matplotlib()
    with pytest.raises(UsageError, match="matplotlib"):
        write_report(evaluation, tmp_path / "report")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the report"):
        write_report(evaluation, tmp_path / "file")
