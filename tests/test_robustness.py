"""The robustness sweep: points move with the anatomy, and outcomes are counted rightly."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from benchmarks import robustness
from benchmarks.robustness import CHANGES, Outcome, change_volume, judge, summarise, to_markdown
from nibabel.affines import apply_affine

from ivdtool.label_files import LabelPoints
from ivdtool.labels import Disc, DiscLabels
from ivdtool.phantom_dataset import write_phantoms
from ivdtool.volumes import Volume

Points = dict[int, npt.NDArray[np.float64]]

SHAPE = (8, 120, 150)  # left to right, back to front, down to up
ZOOMS = (3.0, 1.2, 1.5)


@pytest.fixture(scope="module")
def spine() -> tuple[Volume, Points]:
    """Eight blobs in a volume, at world points."""
    affine = np.diag([*ZOOMS, 1.0])
    affine[:3, 3] = [-10, -70, -100]
    voxels = np.array([[3.6, 60 + 8 * np.sin(i), 132 - 14.2 * i] for i in range(8)])
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1) * ZOOMS
    data = sum(np.exp(-(((grid - v * ZOOMS) / 4.0) ** 2).sum(axis=-1) / 2) for v in voxels)
    volume = Volume(
        Path("sub-01_T2w.nii.gz"), (1000 * data).astype(np.int16), 1.0, 0.0, affine,
        nib.Nifti1Header(),
    )  # fmt: skip
    points = apply_affine(affine, voxels)
    return volume, dict(zip(range(18, 26), points, strict=True))


@pytest.mark.parametrize("name", CHANGES)
def test_points_move_with_the_anatomy(name: str, spine: tuple[Volume, Points]) -> None:
    """The largest value around every point in view is at the point; in world, too."""
    volume, points = spine
    changed = change_volume(volume, points, CHANGES[name], np.random.default_rng(3))
    assert changed is not None
    after, scan = changed
    order = [0, 2, 1]
    data = after.data.transpose(order).astype(float)
    if name.startswith("inverted"):
        data = data.max() - data
    seen = 0
    for point, inside, world in zip(scan.points, scan.inside_mm, points.values(), strict=True):
        if inside <= 4:
            continue
        seen += 1
        plane = data[round(point[0])]
        rows, cols = np.mgrid[-6:7, -6:7]
        rows, cols = rows + round(point[1]), cols + round(point[2])
        kept = (rows >= 0) & (rows < plane.shape[0]) & (cols >= 0) & (cols < plane.shape[1])
        mass = np.where(
            kept, plane[rows.clip(0, plane.shape[0] - 1), cols.clip(0, plane.shape[1] - 1)], 0
        )
        mass = mass**4
        centre = np.array([(rows * mass).sum(), (cols * mass).sum()]) / mass.sum()
        assert np.abs(centre - point[1:]).max() < 0.8
        if not name.startswith("rotated"):
            np.testing.assert_allclose(apply_affine(after.affine, point[order]), world, atol=1e-9)
    wanted = int(name.split()[2]) if name.startswith("crop") else 8
    assert seen >= (6 if "20 deg" in name else wanted)
    assert name.startswith("rotated") or seen == wanted


def test_the_same_seed_gives_the_same_change(spine: tuple[Volume, Points]) -> None:
    for name in ("noise 5 %", "bias", "crop of 4 discs"):
        twice = [
            change_volume(*spine, CHANGES[name], np.random.default_rng(seed)) for seed in (1, 1, 2)
        ]
        one, same, other = (pair[0].data for pair in twice if pair is not None)
        np.testing.assert_array_equal(one, same)
        assert one.shape != other.shape or (one != other).any()


def test_what_cannot_be_changed_is_left_out(spine: tuple[Volume, Points]) -> None:
    volume, points = spine
    single = replace(volume, data=volume.data[3:4])
    rng = np.random.default_rng(0)
    assert change_volume(single, points, CHANGES["slices 2x coarser"], rng) is None
    few = dict(list(points.items())[:4])
    assert change_volume(volume, few, CHANGES["crop of 4 discs"], rng) is None


def outcome(
    spine: tuple[Volume, Points], found: Mapping[int, npt.NDArray[np.float64]], **known: Any
) -> Outcome:
    volume, points = spine
    changed = change_volume(volume, points, CHANGES["as given"], np.random.default_rng(0))
    assert changed is not None
    to_voxel = np.linalg.inv(volume.affine)
    discs = tuple(
        Disc(label, world, apply_affine(to_voxel, world), 0.9, 0.75)
        for label, world in sorted(found.items())
    )
    labels = DiscLabels(
        discs, volume.path, volume.header, verdict="check", probability=0.5
    )  # fmt: skip
    truth = LabelPoints(points, **known)
    return judge("a", "as given", labels, *changed, truth)


def test_right_labels(spine: tuple[Volume, Points]) -> None:
    near = {label: point + [40, 3, 3.9] for label, point in spine[1].items()}  # left-right is free
    result = outcome(spine, near)
    assert (result.discs, result.found, result.false, result.shifted) == (8, 8, 0, False)
    assert result.right
    assert result.flagged
    assert result.confidences == ((0.75, True),) * 8


def test_wrong_labels(spine: tuple[Volume, Points]) -> None:
    points = spine[1]
    far = {**points, 20: points[20] + [0, 5.1, 0]}
    result = outcome(spine, far)
    assert (result.found, result.false, result.shifted, result.right) == (7, 1, False, False)
    del far[20]
    result = outcome(spine, far)
    assert (result.found, result.false, result.right) == (7, 0, False)
    result = outcome(spine, {**points, 17: points[18] + [0, 0, 20]})
    assert (result.found, result.false, result.right) == (8, 1, False)
    result = outcome(spine, {label - 1: point for label, point in points.items()})
    assert (result.found, result.false, result.shifted) == (0, 8, True)


def test_what_is_doubtful_counts_for_nothing(spine: tuple[Volume, Points]) -> None:
    points = spine[1]
    moved = {**points, 20: points[20] + [0, 30, 0], 17: points[18] + [0, 0, 20]}
    result = outcome(spine, moved, unknown=frozenset({17}), uncertain=frozenset({20}))
    assert (result.discs, result.found, result.false, result.right) == (7, 7, 0, True)


def test_nothing_found_is_wrong_and_refused(spine: tuple[Volume, Points]) -> None:
    volume, points = spine
    changed = change_volume(volume, points, CHANGES["as given"], np.random.default_rng(0))
    assert changed is not None
    result = judge("a", "as given", None, *changed, LabelPoints(points))
    assert (result.verdict, result.found, result.right) == ("refused", 0, False)


def test_the_summary_counts_what_is_flagged() -> None:
    right = Outcome("a", "bias", 8, 8, 0, False, "certain", 0.9, ((0.9, True),))
    wrong = replace(right, found=0, false=8, shifted=True)
    outcomes = [
        right, right, replace(right, verdict="check"), replace(right, verdict="refused"),
        wrong, replace(wrong, verdict="check"), replace(wrong, verdict="refused"),
    ]  # fmt: skip
    figures = summarise(outcomes)
    assert (figures["right"], figures["right_flagged"], figures["right_refused"]) == (4, 2, 1)
    assert (figures["wrong"], figures["wrong_flagged"], figures["wrong_refused"]) == (3, 2, 1)
    assert figures["found_pct"] == pytest.approx(100 * 32 / 56, abs=0.05)
    assert figures["shifted_pct"] == pytest.approx(100 * 3 / 7, abs=0.05)
    table = to_markdown(outcomes)
    assert "| bias | 7 | 56 | 57.1 | 42.9 | 42.9 | 4 | 2/3 | 2/4 | 1 |" in table
    assert table.splitlines()[-3].startswith("| all | 7 |")


def test_the_sweep_runs_on_a_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phantoms(tmp_path, 1, seed=31, region="lumbar")
    few = {name: CHANGES[name] for name in ("as given", "crop of 4 discs")}
    monkeypatch.setattr(robustness, "CHANGES", few)
    split = {"--split": "train"}
    arguments = ["--data", str(tmp_path), *[word for pair in split.items() for word in pair]]
    monkeypatch.setattr("sys.argv", ["robustness", *arguments, "--json"])
    assert robustness.main() == 0
    document = json.loads(capsys.readouterr().out)
    assert document["changes"]["all"]["images"] == 2
    assert document["outcomes"][1]["discs"] == 4
    assert document["outcomes"][0]["found"] >= 5
