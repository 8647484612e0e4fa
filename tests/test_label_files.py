"""Label files read back: image, sidecar, both, and where they are found."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from tests.labelled import SHAPE, make_labels, oblique_affine

from ivdtool.errors import InputError
from ivdtool.label_files import LabelPoints, find_label_file, read_labels
from ivdtool.volumes import read_volume

DATA = Path(os.environ.get("IVDTOOL_DATA", Path(__file__).parents[2] / "shared" / "data"))


def save_image(path: Path, voxels: Mapping[tuple[int, int, int], float], dtype: Any) -> Path:
    data = np.zeros(SHAPE, dtype)
    for voxel, value in voxels.items():
        data[voxel] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, oblique_affine(), dtype=dtype), path)
    return path


def load_affine(path: Path) -> Any:
    return read_volume(path).affine


def test_saved_labels_read_back_exactly(tmp_path: Path) -> None:
    labels = make_labels({3: (4.43, 20.61, 80.2), 4: (4.43, 22.17, 63.9), 6: (4.43, 22.2, 63.8)})
    labels.save(tmp_path / "out.nii.gz")
    for name in ("out.nii.gz", "out.json"):
        found = read_labels(tmp_path / name)
        assert list(found.points) == [3, 4, 6]
        for disc in labels.discs:
            assert np.allclose(found.points[disc.label], disc.world_mm, atol=1e-6)
        assert found.warnings == ()


def test_saved_points_outside_the_image_read_back_exactly(tmp_path: Path) -> None:
    """They have the nearest voxel inside."""
    labels = make_labels({3: (5, 20, SHAPE[2] + 4.5), 4: (5, 22, 63.9), 5: (-2.4, 22, 40)})
    labels.save(tmp_path / "out.nii.gz")
    found = read_labels(tmp_path / "out.nii.gz")
    for disc in labels.discs:
        assert np.allclose(found.points[disc.label], disc.world_mm, atol=1e-6)
    assert found.warnings == ()


def test_confidence_is_read(tmp_path: Path) -> None:
    labels = make_labels({3: (5, 20.3, 80.2), 4: (5, 22.2, 63.9)})
    labels.save(tmp_path / "out.nii.gz")
    expected = {disc.label: disc.confidence for disc in labels.discs}
    for name in ("out.nii.gz", "out.json"):
        assert read_labels(tmp_path / name).confidence == expected
    (tmp_path / "out.json").unlink()
    assert read_labels(tmp_path / "out.nii.gz").confidence == {}


def test_image_without_sidecar_gives_voxel_centres(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a_label-discs.nii.gz", {(5, 20, 80): 3, (5, 21, 60): 4}, np.uint8)
    found = read_labels(path)
    affine = load_affine(path)
    assert np.allclose(found.points[3], apply_affine(affine, [5, 20, 80]))
    assert np.allclose(found.points[4], apply_affine(affine, [5, 21, 60]))


def test_float_values_are_rounded(tmp_path: Path) -> None:
    voxels = {(5, 20, 80): 3.0000457, (5, 21, 60): 3.999998, (5, 0, 0): 0.001, (5, 1, 1): -0.02}
    path = save_image(tmp_path / "a.nii.gz", voxels, np.float32)
    assert list(read_labels(path).points) == [3, 4]


def test_scaled_values_are_unscaled(tmp_path: Path) -> None:
    stored = np.full(SHAPE, 4, np.uint8)  # value = stored / 2 - 2
    stored[5, 20, 80], stored[5, 20, 60] = 10, 54
    image = nib.Nifti1Image(stored, oblique_affine())
    image.header.set_slope_inter(0.5, -2)
    nib.save(image, tmp_path / "a.nii.gz")
    assert list(read_labels(tmp_path / "a.nii.gz").points) == [3, 25]


def test_sidecar_flags(tmp_path: Path) -> None:
    path = save_image(tmp_path / "a.nii.gz", {(5, 20, 80): 3, (5, 21, 60): 4}, np.uint8)
    sidecar = {
        "Discs": [{"label": 3, "certain": False}, {"label": 4, "certain": True}],
        "UnknownLabels": [5, 6],
        "AbsentLabels": [20, 21],
    }
    path.with_name("a.json").write_text(json.dumps(sidecar))
    found = read_labels(path)
    assert found.unknown == frozenset((5, 6))
    assert found.absent == frozenset((20, 21))
    assert found.uncertain == frozenset((3,))
    assert found.warnings == ()
    assert np.allclose(found.points[3], apply_affine(load_affine(path), [5, 20, 80]))


def test_edited_image_wins_over_a_stale_sidecar(tmp_path: Path) -> None:
    labels = make_labels({3: (5, 20.3, 80.2), 4: (5, 22.2, 63.9)})
    labels.save(tmp_path / "out.nii.gz")
    data = labels.to_nifti().get_fdata()
    data[5, 22, 64] = 0
    data[5, 25, 58] = 4  # moved by the editor
    data[5, 25, 40] = 5  # added
    nib.save(nib.Nifti1Image(data, labels.affine), tmp_path / "out.nii.gz")
    found = read_labels(tmp_path / "out.nii.gz")
    affine = load_affine(tmp_path / "out.nii.gz")
    assert np.allclose(found.points[3], labels.discs[0].world_mm, atol=1e-5)
    assert np.allclose(found.points[4], apply_affine(affine, [5, 25, 58]))
    assert np.allclose(found.points[5], apply_affine(affine, [5, 25, 40]))
    assert found.warnings == ("labels [4, 5] differ from the sidecar; the image is taken",)
    assert found.disputed == {4, 5}
    assert list(found.confidence) == [3]  # what was said of a point says nothing of another


def test_other_values(tmp_path: Path) -> None:
    """1, 2 and values above 25 go with a word; 49, 50, 60 are landmarks and go without."""
    voxels = {(5, 20, 99 - i): value for i, value in enumerate((49, 50, 1, 2, 3, 26, 60))}
    found = read_labels(save_image(tmp_path / "a.nii.gz", voxels, np.uint8))
    assert list(found.points) == [3]
    assert found.warnings == ("values [1, 2, 26] are no discs and are left out",)
    voxels = {(5, 20, 99 - i): value for i, value in enumerate((49, 50, 3, 60))}
    assert read_labels(save_image(tmp_path / "a.nii.gz", voxels, np.uint8)).warnings == ()


def test_wrong_order_is_reported(tmp_path: Path) -> None:
    voxels = {(5, 20, 80): 3, (5, 20, 40): 4, (5, 20, 60): 5}
    found = read_labels(save_image(tmp_path / "a.nii.gz", voxels, np.uint8))
    assert found.warnings == ("C4/C5 (5) does not lie below C3/C4 (4)",)


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        ({(5, 20, 80): 3.06}, "no integers"),
        ({(5, 20, 80): math.nan}, "no integers"),
        ({(5, 20, 80): 7, (5, 20, 79): 7}, "label 7 in more than one voxel"),
    ],
)
def test_bad_images_are_refused(
    tmp_path: Path, voxels: dict[tuple[int, int, int], float], message: str
) -> None:
    path = save_image(tmp_path / "bad.nii.gz", voxels, np.float32)
    with pytest.raises(InputError, match=message) as caught:
        read_labels(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"Discs": [{"label": 3.5, "world_mm": [0, 0, 0]}]}',
        '{"Discs": [{"label": "3", "world_mm": [0, 0, 0]}]}',
        '{"Discs": [{"label": 3, "world_mm": [0, 0]}]}',
        '{"Discs": [{"label": 3, "world_mm": [0, 0, NaN]}]}',
        '{"Discs": [{"label": 3, "world_mm": [0, 0, "a"]}]}',
        '{"Discs": [{"world_mm": [0, 0, 1]}]}',
        '{"Discs": [{"label": 3, "world_mm": [0, 0, 1]}, {"label": 3, "world_mm": [0, 0, 1]}]}',
        '{"Discs": [{"label": 3, "world_mm": [0, 0, 1], "confidence": 1.5}]}',
        '{"Discs": [{"label": 3, "world_mm": [0, 0, 1], "confidence": "high"}]}',
        '{"Discs": 3}',
        '{"UnknownLabels": ["a"]}',
        "\x00\xff",
        f'{{"Discs": [{{"label": 3, "world_mm": [1{"0" * 400}, 0, 0]}}]}}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:40],
)
def test_bad_sidecars_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="not a disc label sidecar") as caught:
        read_labels(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none.json", "none.nii.gz", "scan.dcm"])
def test_missing_and_foreign_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=name):
        read_labels(tmp_path / name)


@pytest.mark.parametrize(
    "label",
    [
        "_label-discs_dlabel.nii.gz",
        "_labels-disc-manual.nii.gz",
        "_label-disc.nii.gz",
        "_label-discs.nii",
        "_label-discs_desc-warp_dlabel.nii.gz",
        "_label-discs_desc-ours_dlabel.nii.gz",
        "_label-discs_dlabel.json",
    ],
)
def test_label_file_is_found(tmp_path: Path, label: str) -> None:
    image = tmp_path / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_T2w.nii.gz"
    folder = tmp_path / "derivatives" / "labels" / "sub-01" / "ses-2" / "anat"
    folder.mkdir(parents=True)
    (folder / "sub-01_ses-2_T2w_labels-manual.nii.gz").touch()  # vertebral bodies
    (folder / "sub-01_ses-2_T1w_label-discs_dlabel.nii.gz").touch()
    assert find_label_file(image, tmp_path) is None
    (folder / f"sub-01_ses-2_T2w{label}").touch()
    assert find_label_file(image, tmp_path) == folder / f"sub-01_ses-2_T2w{label}"


def test_current_label_name_comes_first(tmp_path: Path) -> None:
    folder = tmp_path / "derivatives" / "labels"
    folder.mkdir(parents=True)
    for label in (
        "_label-disc.nii.gz", "_labels-disc-manual.nii.gz", "_label-discs_dlabel.json",
        "_label-discs_desc-a_dlabel.nii.gz", "_label-discs_dlabel.nii.gz",
    ):  # fmt: skip
        (folder / f"a{label}").touch()
    found = find_label_file(tmp_path / "a.nii.gz", tmp_path)
    assert found == folder / "a_label-discs_dlabel.nii.gz"


def test_image_outside_the_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not inside the data set"):
        find_label_file(tmp_path / "a.nii.gz", tmp_path / "other")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data at {DATA}")
@pytest.mark.parametrize("dataset", ["spine-mri", "neck-slices"])
def test_real_label_files(dataset: str) -> None:
    """Every third image of a data set has labels that read without a warning."""
    images = sorted((DATA / dataset).glob("sub-*/anat/*.nii.gz"))[::3]
    assert images
    for image in images:
        path = find_label_file(image, DATA / dataset)
        assert path is not None, image
        found = read_labels(path)
        assert isinstance(found, LabelPoints)
        assert len(found.points) >= 3, path
        assert not found.points.keys() & found.absent, path
        assert found.warnings == (), path
