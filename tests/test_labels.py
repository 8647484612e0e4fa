"""Discs on the image's own grid, the sidecar, and label files read back."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nibabel.affines import apply_affine

from ivdtool.errors import InputError
from ivdtool.labels import Disc, DiscLabels, LabelPoints, find_label_file, read_labels
from ivdtool.volumes import read_volume

DATA = Path(os.environ.get("IVDTOOL_DATA", Path(__file__).parents[2] / "shared" / "data"))
SHAPE = (10, 60, 100)
GEOMETRY = (
    *("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def oblique_affine() -> npt.NDArray[np.float64]:
    """LAS voxels of 3 x 0.9 x 1.1 mm, turned by 5 degrees about the left-right axis."""
    c, s = math.cos(0.0873), math.sin(0.0873)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-3.0, 0.9, 1.1])
    affine[:3, 3] = [13.7, -41.3, -27.9]
    return affine


def make_header(sform_code: int = 1, qform_code: int = 1, big_endian: bool = False) -> Any:
    header = nib.Nifti1Header(endianness=">" if big_endian else "<")
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header.set_sform(oblique_affine(), sform_code)
    header.set_qform(oblique_affine(), qform_code)
    header.set_xyzt_units("mm", "sec")
    return header


def make_labels(
    voxels: Mapping[int, tuple[float, float, float]],
    shape: tuple[int, ...] = SHAPE,
    header: Any = None,
    **more: Any,
) -> DiscLabels:
    if header is None:
        header = make_header()
        header.set_data_shape(shape)
    affine = header.get_best_affine()
    discs = tuple(
        Disc(label, apply_affine(affine, voxel), np.array(voxel), 0.9, 0.8)
        for label, voxel in voxels.items()
    )
    return DiscLabels(discs, Path("sub-01_T2w.nii.gz"), header, **more)


def labelled_voxels(image: Any) -> dict[int, tuple[int, ...]]:
    data = np.asanyarray(image.dataobj)
    return {int(data[tuple(index)]): tuple(map(int, index)) for index in np.argwhere(data)}


def save_image(path: Path, voxels: Mapping[tuple[int, int, int], float], dtype: Any) -> Path:
    data = np.zeros(SHAPE, dtype)
    for voxel, value in voxels.items():
        data[voxel] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, oblique_affine(), dtype=dtype), path)
    return path


def load_affine(path: Path) -> Any:
    return read_volume(path).affine


# --- the label image


def test_one_voxel_per_disc() -> None:
    image = make_labels({3: (4.4, 20.6, 80.0), 4: (5.0, 21.0, 64.51)}).to_nifti()
    assert image.get_data_dtype() == np.uint8
    assert labelled_voxels(image) == {3: (4, 21, 80), 4: (5, 21, 65)}


@pytest.mark.parametrize("sform_code", [0, 1, 2, 4])
@pytest.mark.parametrize("qform_code", [0, 1, 3])
@pytest.mark.parametrize("big_endian", [False, True])
def test_geometry_is_the_source_bit_for_bit(
    sform_code: int, qform_code: int, big_endian: bool
) -> None:
    header = make_header(sform_code, qform_code, big_endian)
    header["quatern_b"] = np.nextafter(header["quatern_b"], np.float32(1))  # no clean rotation
    written = make_labels({3: (5, 20, 80)}, header=header).to_nifti().to_bytes()
    image = nib.Nifti1Image.from_bytes(written)
    for field in GEOMETRY:
        assert image.header[field].tobytes() == header[field].tobytes(), field
    assert image.header["pixdim"][:4].tobytes() == header["pixdim"][:4].tobytes()
    assert np.array_equal(image.affine, header.get_best_affine())


def test_different_sform_and_qform_are_both_kept() -> None:
    header = make_header(sform_code=2)
    shifted = oblique_affine()
    shifted[:3, 3] += 7
    header.set_qform(shifted, 3)
    image = make_labels({3: (5, 20, 80)}, header=header).to_nifti()
    assert np.allclose(image.get_sform(), oblique_affine(), atol=1e-5)
    assert np.allclose(image.get_qform(), shifted, atol=1e-5)


def test_what_describes_the_intensities_is_dropped() -> None:
    header = make_header()
    header.set_slope_inter(2.5, -100)
    header["cal_max"] = 4000
    header.set_intent("z score")
    header["descrip"] = header["db_name"] = b"name of a patient"
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"patient name"))
    written = make_labels({25: (5, 20, 80)}, header=header).to_nifti().to_bytes()
    image: Any = nib.Nifti1Image.from_bytes(written)
    assert labelled_voxels(image) == {25: (5, 20, 80)}
    assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    assert image.header["cal_max"] == 0
    assert image.header.get_intent()[0] == "none"
    assert b"patient" not in written
    assert len(header.extensions) == 1  # the source's header is not touched


def test_one_slice_and_2d_images_keep_their_shape() -> None:
    for shape in ((1, 60, 100), (60, 100, 1), (60, 100)):
        voxel = (0, 30, 50) if shape[0] == 1 else (30, 50, 0)
        image = make_labels({8: voxel}, shape).to_nifti()
        assert image.shape == shape
        assert labelled_voxels(image) == {8: voxel[: len(shape)]}


def test_volume_of_a_4d_image_gives_a_3d_label_image() -> None:
    header = make_header()
    header.set_data_shape((*SHAPE, 5))
    image = make_labels({8: (5, 20, 80)}, header=header).to_nifti()
    assert nib.Nifti1Image.from_bytes(image.to_bytes()).shape == SHAPE


def test_nifti2_stays_nifti2() -> None:
    header = nib.Nifti2Header.from_header(make_header())
    assert isinstance(make_labels({3: (5, 20, 80)}, header=header).to_nifti(), nib.Nifti2Image)


def test_discs_never_share_a_voxel() -> None:
    """The later label gets the nearest free voxel in mm; voxels are 3 x 0.9 x 1.1 mm."""
    image = make_labels({3: (5, 20, 80), 4: (5, 20.1, 80), 5: (5, 20.4, 79.9)}).to_nifti()
    assert labelled_voxels(image) == {3: (5, 20, 80), 4: (5, 21, 80), 5: (5, 20, 79)}


@given(st.lists(st.tuples(*[st.floats(-3, 6)] * 3), min_size=1, max_size=23))
def test_no_disc_is_lost(voxels: list[tuple[float, float, float]]) -> None:
    """Crowded into a corner of the grid and beyond it, each disc keeps a voxel of its own."""
    labels = make_labels(dict(enumerate(voxels, start=3)))
    found = labelled_voxels(labels.to_nifti())
    assert found.keys() == {disc.label for disc in labels.discs}
    assert found == labelled_voxels(labels.to_nifti())
    nearest = tuple(int(n) for n in np.clip(np.rint(voxels[0]), 0, np.array(SHAPE) - 1))
    assert found[3] == nearest


@pytest.mark.parametrize("shape", [(1, 6, 4), (24, 1, 1), (2, 3, 4)])
def test_no_disc_is_lost_in_a_tiny_grid(shape: tuple[int, int, int]) -> None:
    labels = make_labels(dict.fromkeys(range(3, 26), (0.0, 0.0, 0.0)), shape)
    assert len(labelled_voxels(labels.to_nifti())) == 23


# --- the records


def test_disc_is_checked_and_frozen() -> None:
    disc = Disc(3, np.zeros(3), np.ones(3), 0.9, 0.8)
    assert disc.name == "C2/C3"
    with pytest.raises(ValueError, match="read-only"):
        disc.world_mm[0] = 1
    with pytest.raises(ValueError, match="no disc has label 2;"):
        Disc(2, np.zeros(3), np.zeros(3), 0.9, 0.8)
    with pytest.raises(ValueError, match="voxel must be three finite numbers"):
        Disc(3, np.zeros(3), np.array([0, 1, np.nan]), 0.9, 0.8)
    with pytest.raises(ValueError, match="world_mm must be three finite numbers"):
        Disc(3, np.zeros(2), np.zeros(3), 0.9, 0.8)


@pytest.mark.parametrize("order", [(4, 3), (3, 3)])
def test_labels_must_increase(order: tuple[int, int]) -> None:
    discs = tuple(Disc(label, np.zeros(3), np.zeros(3), 0.9, 0.8) for label in order)
    with pytest.raises(ValueError, match="strictly increasing"):
        DiscLabels(discs, Path("a.nii"), make_header())


# --- the sidecar


def test_sidecar_golden() -> None:
    labels = DiscLabels(
        (
            Disc(3, np.array([1.23456789, -0.0, 30]), np.array([4.5, 20, 80]), 0.93, 0.99),
            Disc(8, np.array([1, 2, -60.0]), np.array([4, 21, 9]), 0.5, 0.25, "doubtful", math.inf),
        ),
        Path("sub-01_T2w.nii.gz"),
        make_header(),
        search={
            "mode": "ls_chain",
            "cost": np.float64(12.5),
            "optimal": np.bool_(True),
            "nodes": np.int64(77),
            "shift_margin": math.inf,
            "alternatives": (),
        },
        warnings=("coarse",),
        model={"ModelName": "spine", "ModelSHA256": "ab12"},
    )
    sidecar = json.loads(labels.to_json("2024-05-06 07:08:09"))
    version = sidecar["GeneratedBy"][0].pop("Version")
    assert version
    assert sidecar == {
        "SpatialReference": "orig",
        "GeneratedBy": [
            {
                "Name": "ivdtool",
                "ModelName": "spine",
                "ModelSHA256": "ab12",
                "Date": "2024-05-06 07:08:09",
            }
        ],
        "LabelConvention": "SCT",
        "PointPosition": "posterior tip",
        "Discs": [
            {
                "label": 3,
                "name": "C2/C3",
                "world_mm": [1.234568, 0.0, 30.0],
                "voxel": [4.5, 20.0, 80.0],
                "score": 0.93,
                "confidence": 0.99,
                "status": "detected",
                "margin": None,
            },
            {
                "label": 8,
                "name": "C7/T1",
                "world_mm": [1.0, 2.0, -60.0],
                "voxel": [4.0, 21.0, 9.0],
                "score": 0.5,
                "confidence": 0.25,
                "status": "doubtful",
                "margin": None,
            },
        ],
        "Search": {
            "mode": "ls_chain",
            "cost": 12.5,
            "optimal": True,
            "nodes": 77,
            "shift_margin": None,
            "alternatives": [],
        },
        "Verdict": None,
        "Probability": None,
        "Warnings": ["coarse"],
    }
    assert "-0.0" not in labels.to_json()
    assert "Date" not in labels.to_dict()["GeneratedBy"][0]


# --- reading back


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


# --- finding label files of a data set


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
