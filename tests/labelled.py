"""Labels to test with, on an oblique grid."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine

from ivdtool.labels import Disc, DiscLabels

SHAPE = (10, 60, 100)


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
