"""Discs on the image's own grid, and the sidecar."""

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.labelled import SHAPE, make_header, make_labels, oblique_affine

from ivdtool.labels import Disc, DiscLabels

GEOMETRY = (
    *("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def labelled_voxels(image: Any) -> dict[int, tuple[int, ...]]:
    data = np.asanyarray(image.dataobj)
    return {int(data[tuple(index)]): tuple(map(int, index)) for index in np.argwhere(data)}


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
