"""Ten scans that cannot be labelled, and what is to be said of each."""

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

REASONS = {
    "truncated": "damaged or not a NIfTI file",
    "empty": "damaged or not a NIfTI file",
    "magic": "not a NIfTI file",
    "affine": "the affine does not place voxels in space",
    "4d": "4-D with 3 volumes; choose one with --volume",
    "nan": "NaN",
    "constant": "all voxels of the slab are equal",
    "axial": "an axial or coronal thick-slice scan",
    "tiny": "too small to show discs",
    "complex": "colour or complex voxels",
}


def damage(scan: Path, folder: Path) -> None:
    """Write ten scans that cannot be labelled, named for what is wrong with them."""
    folder.mkdir(parents=True)
    image = nib.nifti1.load(scan)
    voxels, affine = np.asarray(image.dataobj), image.affine

    def write(name: str, data: Any, affine: Any = affine) -> None:
        nib.save(nib.Nifti1Image(data, affine), folder / f"{name}.nii.gz")

    (folder / "truncated.nii.gz").write_bytes(scan.read_bytes()[: scan.stat().st_size // 2])
    (folder / "empty.nii.gz").write_bytes(b"")
    header = bytearray(gzip.decompress(scan.read_bytes()))
    header[344:348] = b"oops"
    (folder / "magic.nii.gz").write_bytes(gzip.compress(header))
    header[344:348] = b"n+1\0"
    header[252:256] = b"\0\0\1\0"  # codes of qform and sform: the latter only
    header[280:328] = bytes(48)  # sform
    (folder / "affine.nii.gz").write_bytes(gzip.compress(header))
    write("4d", np.stack([voxels] * 3, axis=3))
    write("nan", np.full(voxels.shape, np.nan, np.float32))
    write("constant", np.full_like(voxels, 7))
    write("axial", np.zeros((64, 64, 20), np.int16) + voxels.max(), np.diag([1.0, 1.0, 5.0, 1.0]))
    write("tiny", voxels[:4, :8, :8])
    write("complex", voxels.astype(np.complex64))
