"""Which image goes where, and what a case knows of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from ivdtool.errors import InputError
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.training.dataset import Source, find_sources, load_case

CHANNELS = (19, 20, 21, 22, 23)
SOURCE = Source(Path("image.nii"), Path("labels.nii"), "sub-1", "train", "blobs:T2w")


def make_dataset(root: Path, images: list[str], participants: str | None = None) -> Path:
    """Empty files: images as ``sub-1[_ses-1]_T2w``, labels for those without ``!``."""
    for entry in images:
        name = entry.removesuffix("!")
        parts = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
        folder = Path(*parts) / "anat"
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{name}.nii.gz").touch()
        if not entry.endswith("!"):
            labels = root / "derivatives" / "labels" / folder
            labels.mkdir(parents=True, exist_ok=True)
            (labels / f"{name}_label-discs_dlabel.nii.gz").touch()
    if participants is not None:
        (root / "participants.tsv").write_text(participants, encoding="utf-8")
    return root


def test_splits_go_by_subject(tmp_path: Path) -> None:
    root = make_dataset(
        tmp_path,
        ["sub-1_T2w", "sub-1_T1w", "sub-2_ses-a_T2w", "sub-3_T2w", "sub-4_T2w!"],
        "participant_id\tsplit\tsource\n"
        "sub-1\ttrain\tA\nsub-2\tval\tB\nsub-3\ttest\tB\nsub-4\ttrain\tB\n",
    )
    found = {s.image.name.removesuffix(".nii.gz"): s for s in find_sources(root, ["train", "val"])}
    assert {name: (s.subject, s.split, s.group) for name, s in found.items()} == {
        "sub-1_T1w": ("sub-1", "train", "A:T1w"),
        "sub-1_T2w": ("sub-1", "train", "A:T2w"),
        "sub-2_ses-a_T2w": ("sub-2", "val", "B:T2w"),
    }
    assert found["sub-2_ses-a_T2w"].labels.name == "sub-2_ses-a_T2w_label-discs_dlabel.nii.gz"
    assert [s.subject for s in find_sources(root, ["test"])] == ["sub-3"]


def test_every_tenth_subject_is_val_where_nothing_is_said(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "name", [f"sub-{i:02d}_T2w" for i in range(20)])
    assert [s.subject for s in find_sources(root, ["val"])] == ["sub-09", "sub-19"]
    assert len(find_sources(root, ["train"])) == 18
    assert {s.group for s in find_sources(root, ["train"])} == {"name:T2w"}
    with pytest.raises(InputError, match="split test"):
        find_sources(root, ["test"])


def test_spreadsheet_signature(tmp_path: Path) -> None:
    """Some programs start a table with a byte order mark."""
    root = make_dataset(tmp_path, ["sub-1_T2w"], "\ufeffparticipant_id\tsplit\nsub-1\tval\n")
    assert [s.split for s in find_sources(root, ["val"])] == ["val"]


@pytest.mark.parametrize("table", ["", "subject\tsplit\nsub-1\tval\n", "participant_id,split\n"])
def test_tables_without_participants(table: str, tmp_path: Path) -> None:
    root = make_dataset(tmp_path, ["sub-1_T2w"], table)
    with pytest.raises(InputError, match=r"participants\.tsv: no column participant_id"):
        find_sources(root, ["val"])


def test_unusable_data_sets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a BIDS data set"):
        find_sources(tmp_path, ["train"])
    root = make_dataset(tmp_path, ["sub-1_T2w!", "sub-2_T2w!"])
    with pytest.raises(InputError, match="with a label file"):
        find_sources(root, ["train"])


def write_case(
    folder: Path, orientation: str = "RAS", sidecar: dict[str, Any] | None = None
) -> Source:
    """Single bright voxels at discs 20 and 22, in slice x = 6 of 9; 2 x 1 x 1 mm voxels."""
    volume = np.random.default_rng(0).random((9, 40, 70), dtype=np.float32)
    labels = np.zeros(volume.shape, dtype=np.uint8)
    for label, place in ((20, (6, 12, 50)), (22, (6, 25, 15))):
        labels[place] = label
        volume[place] = 500
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = [-3.0, 11.0, 7.0]
    files = []
    for name, content in (("image", volume), ("labels", labels)):
        path = folder / f"{name}.nii.gz"
        image = nib.Nifti1Image(content, affine)
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
        turned = image.as_reoriented(turn)
        np.testing.assert_allclose(turned.affine, affine @ inv_ornt_aff(turn, volume.shape))
        nib.save(turned, path)
        files.append(path)
    if sidecar is not None:
        (folder / "labels.json").write_text(json.dumps(sidecar), encoding="utf-8")
    return replace(SOURCE, image=files[0], labels=files[1])


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "PIR", "SAL"])
def test_points_lie_where_the_discs_are(orientation: str, tmp_path: Path) -> None:
    config = PreprocessingConfig(size_multiple=1, slab_mm=2)
    case = load_case(write_case(tmp_path, orientation), config, CHANNELS)
    assert case.labels == (20, 22)
    (plane,) = case.planes
    assert plane.shape == (70, 40)
    assert plane.dtype == np.float16
    # superior to inferior, anterior to posterior
    np.testing.assert_allclose(case.points, [[19, 27], [54, 14]], atol=1e-6)
    # the 0.5th and 99.5th percentile are far below these two voxels
    for row, col in case.points.round().astype(int):
        assert plane[row, col] == 1
        around = plane[row - 1 : row + 2, col - 1 : col + 2].astype(np.float32)
        assert (around == 1).sum() == 1
    assert case.spine_col == pytest.approx(20.5)
    assert case.certain.all()


def test_slabs_beside_the_plane(tmp_path: Path) -> None:
    source, config = write_case(tmp_path), PreprocessingConfig(size_multiple=1, slab_mm=2)
    case = load_case(source, config, CHANNELS, (-2.0, 0.0, 2.0, 100.0, 200.0))
    assert len(case.planes) == 4  # at slices 5, 6, 7 and, twice, the last
    bright = [plane[19, 27] == 1 and plane[54, 14] == 1 for plane in case.planes]
    assert bright == [False, True, False, False]


def test_padding_moves_the_points(tmp_path: Path) -> None:
    source = write_case(tmp_path)
    case = load_case(source, PreprocessingConfig(slab_mm=2), CHANNELS)
    assert case.planes[0].shape == (128, 64)
    np.testing.assert_allclose(case.points, [[19 + 29, 27 + 12], [54 + 29, 14 + 12]], atol=1e-6)


def test_what_a_sidecar_leaves_open_is_unknown(tmp_path: Path) -> None:
    sidecar = {
        "UnknownLabels": [19, 21],
        "AbsentLabels": [23],
        "Discs": [
            {"label": 20, "world_mm": [9, 23, 57], "certain": False},
            {"label": 22, "world_mm": [9, 36, 22]},
        ],
    }
    case = load_case(write_case(tmp_path, sidecar=sidecar), PreprocessingConfig(), CHANNELS)
    assert case.unknown == {19, 21}
    assert case.certain.tolist() == [False, True]


def test_discs_around_the_annotated_are_unknown_where_no_file_says_so(tmp_path: Path) -> None:
    case = load_case(write_case(tmp_path), PreprocessingConfig(), CHANNELS)
    assert case.unknown == {17, 18, 19, 21, 23, 24, 25}


def test_labels_beyond_the_channels_are_left_out(tmp_path: Path) -> None:
    source = write_case(tmp_path)
    case = load_case(source, PreprocessingConfig(), (20, 21))
    assert case.labels == (20,)
    assert case.points.shape == (1, 2)
    with pytest.raises(InputError, match="no disc label between 3 and 5"):
        load_case(source, PreprocessingConfig(), (3, 4, 5))


def test_digest(tmp_path: Path) -> None:
    source = write_case(tmp_path)
    before = source.digest()
    assert source.digest() == before
    for path in (source.image, source.labels, source.labels.with_name("labels.json")):
        before = source.digest()
        path.write_bytes((path.read_bytes() if path.is_file() else b"") + b"x")
        assert source.digest() != before
    source.image.unlink()
    with pytest.raises(InputError, match=r"image\.nii\.gz: No such file"):
        source.digest()


def test_discs_of_some_labels_only(tmp_path: Path) -> None:
    case = load_case(write_case(tmp_path), PreprocessingConfig(), CHANNELS)
    some = case.restricted((21, 22, 23))
    assert some.labels == (22,)
    np.testing.assert_array_equal(some.points, case.points[1:])
    assert some.certain.shape == (1,)
    assert case.labels == (20, 22)
