"""Read NIfTI files: any storage orientation, oblique, any spacing; 3-D or one sagittal slice."""

import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from gzip import GzipFile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip, igzip_lib
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError

from ivdtool.errors import InputError, UsageError
from ivdtool.files import is_nifti

__all__ = [
    "AFFINE_TOLERANCE_MM",
    "CHUNK_BYTES",
    "Volume",
    "header_affine",
    "read_affine",
    "read_volume",
]

Affine = npt.NDArray[np.float64]

_DAMAGED_STREAM: type[Exception] = igzip_lib.IsalError  # type: ignore[assignment]

AFFINE_TOLERANCE_MM = 0.1  # sform and qform may differ by this at a corner without a warning
MIN_INDEPENDENCE = 0.1  # volume of the parallelepiped of unit voxel axes; 1 if orthogonal
MIN_EXTENT_MM = 40.0  # less than two discs and their vertebrae
MIN_VOXELS = 16
MAX_DEPTH_MM, MAX_HEIGHT_MM = 800.0, 2200.0  # a whole body, and some padding
WARN_SPACING_MM = 2.0
MAX_SPACING_MM = 4.0  # a disc is 4-10 mm high: nothing is left of it beyond
CHUNK_BYTES = 2**18  # inflated at a time: stays in the cache on its way to the array


@dataclass(frozen=True, eq=False)
class Volume:
    """One image volume as stored, with what places it in the world.

    Attributes:
        path: the file.
        data: (I, J, K) as stored, not scaled; any real dtype.
        slope: value = data * slope + inter.
        inter: see `slope`.
        affine: (4, 4) voxel index to RAS+ world mm.
        header: the file's header; label files copy their geometry from it.
        warnings: what is doubtful about the file, one line each.
    """

    path: Path
    data: npt.NDArray[Any]
    slope: float
    inter: float
    affine: Affine
    header: nib.Nifti1Header
    warnings: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K)."""
        i, j, k = self.data.shape
        return i, j, k

    @property
    def zooms_mm(self) -> npt.NDArray[np.float64]:
        """(3,) voxel size along each voxel axis, mm."""
        zooms: Affine = np.linalg.norm(self.affine[:3, :3], axis=0)
        return zooms

    @cached_property
    def axes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(voxel axis, direction) that runs most nearly to the right, anterior and superior."""
        orientation = io_orientation(self.affine).astype(int)
        right, anterior, superior = (
            (int(axis), int(orientation[axis, 1]))
            for axis in (int(np.flatnonzero(orientation[:, 0] == world)[0]) for world in range(3))
        )
        return right, anterior, superior

    def sagittal_slices(self, first: int, last: int) -> npt.NDArray[np.float32]:
        """Return slices first..last (inclusive) as (n, rows S to I, columns A to P) float32."""
        (lateral, _), (ap, ap_sign), (si, si_sign) = self.axes
        index: list[slice] = [slice(None)] * 3
        index[lateral] = slice(first, last + 1)
        slices = self.data[tuple(index)].transpose(lateral, si, ap)
        slices = slices[:, :: -1 if si_sign > 0 else 1, :: -1 if ap_sign > 0 else 1]
        with np.errstate(over="ignore", invalid="ignore"):  # infinity says it: no warnings as well
            values: npt.NDArray[np.float32] = np.ascontiguousarray(slices, dtype=np.float32)
            if (self.slope, self.inter) != (1.0, 0.0):
                values = values * np.float32(self.slope) + np.float32(self.inter)
        return values


def read_volume(path: str | Path, volume: int | str | None = None) -> Volume:
    """Read one NIfTI volume.

    Args:
        path: a .nii or .nii.gz file, 2-D, 3-D or 4-D.
        volume: which volume of a 4-D file: an index, or ``"mean"`` for the mean over time.

    Raises:
        InputError: the file is unreadable, damaged, not a sagittal-capable MRI volume, or 4-D
            without `volume`.
        UsageError: `volume` is out of range.
    """
    path = Path(path)
    header, data, slope, inter = _read_file(path, volume)
    affine, warnings = header_affine(path, header, data.shape)
    result = Volume(path, data, slope, inter, affine, header)
    try:
        warnings += _check_geometry(result)
    except InputError as error:  # the header may be the cause
        raise InputError("; ".join([str(error), *warnings])) from error
    return replace(result, warnings=tuple(warnings))


def read_affine(path: str | Path) -> Affine:
    """Return the (4, 4) affine that `read_volume` would, from the header alone.

    Raises:
        InputError: the header is unreadable, damaged or places no voxels in space.
    """
    path = Path(path)
    with _input_errors(path):
        image = _load(path)
        shape = (*image.shape, 1, 1)[:3]
    return header_affine(path, image.header, shape)[0]


def _read_file(
    path: Path, volume: int | str | None
) -> tuple[nib.Nifti1Header, npt.NDArray[Any], float, float]:
    with _input_errors(path):
        image = _load(path)
        proxy: Any = image.dataobj
        if proxy.dtype.fields is not None or np.issubdtype(proxy.dtype, np.complexfloating):
            raise InputError(
                f"{path}: colour or complex voxels ({proxy.dtype}); give a grey-scale magnitude MRI"
            )
        shape, chosen = _choose(path, proxy.shape, volume)
        if path.suffix.lower() == ".gz":
            data = _inflate_voxels(path, proxy, shape, chosen)
        else:
            data = _map_voxels(proxy, shape, chosen)
    return image.header, data, float(proxy.slope), float(proxy.inter)


def _load(path: Path) -> nib.Nifti1Image:
    """The image without its voxels."""
    if not is_nifti(path):
        raise InputError(f"{path}: not a NIfTI file name; give a .nii or .nii.gz file")
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; give the path of a .nii or .nii.gz file")
    with np.errstate(invalid="ignore"), _quiet_nibabel():  # NaN in the affine is found later
        image = nib.load(path)
    if not isinstance(image, nib.Nifti1Image):
        raise InputError(f"{path}: not a NIfTI file; convert it to .nii.gz first")
    if image.header["sform_code"] == 0:
        _check_voxel_sizes(path, image)
    return image


@contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """It tells of headers that it mends on standard error; what matters of that is told here."""
    level = nibabel_logger.level
    nibabel_logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        nibabel_logger.setLevel(level)


def _check_voxel_sizes(path: Path, image: nib.Nifti1Image) -> None:
    """nibabel takes a size of 0 for 1 mm; that of a single slice does not matter."""
    kind = type(image.header)
    with igzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        header = kind(stream.read(kind.template_dtype.itemsize), check=False)
    sizes = header["pixdim"][1:4]
    if any(size == 0 and count > 1 for size, count in zip(sizes, image.shape, strict=False)):
        stored = " x ".join(f"{size:g}" for size in sizes)
        raise InputError(
            f"{path}: voxels of {stored} mm; repair the header or convert the scan again"
        )


@contextmanager
def _input_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read; change its mode or owner") from error
    except (
        ImageFileError,
        HeaderDataError,
        EOFError,
        OSError,
        ValueError,
        OverflowError,
        MemoryError,
        zlib.error,
        _DAMAGED_STREAM,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: damaged or not a NIfTI file ({reason}); copy or convert it again"
        ) from error


def _choose(
    path: Path, shape: tuple[int, ...], volume: int | str | None
) -> tuple[tuple[int, ...], range]:
    """(I, J, K), and which volumes of that shape are averaged."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) not in (3, 4) or 0 in shape:
        raise InputError(f"{path}: voxels of shape {shape}; give a 3-D volume")
    if len(shape) == 3:
        return shape, range(1)
    if volume is None:
        raise InputError(
            f"{path}: 4-D with {shape[3]} volumes; choose one with --volume N or --volume mean"
        )
    if volume == "mean":
        return shape[:3], range(shape[3])
    if not isinstance(volume, int) or not 0 <= volume < shape[3]:
        raise UsageError(
            f"{path}: no volume {volume}; choose 0 to {shape[3] - 1} or mean with --volume"
        )
    return shape[:3], range(volume, volume + 1)


def _map_voxels(proxy: Any, shape: tuple[int, ...], chosen: range) -> npt.NDArray[Any]:
    """(I, J, K) voxels, mapped into memory: those not looked at are not read."""
    voxels = np.asanyarray(proxy.reshape((*shape, -1)).get_unscaled())
    return _average((voxels[..., index] for index in chosen), len(chosen))


def _inflate_voxels(
    path: Path, proxy: Any, shape: tuple[int, ...], chosen: range
) -> npt.NDArray[Any]:
    """(I, J, K) voxels; the chosen volumes pass through memory one by one."""
    first = proxy.offset + chosen.start * math.prod(shape) * proxy.dtype.itemsize
    with igzip.open(path) as stream:
        _skip(stream, first)
        data = _average((_inflate(stream, shape, proxy.dtype) for _ in chosen), len(chosen))
        while stream.read(CHUNK_BYTES):  # the checksum stands at the end, beyond the voxels
            pass
    return data


def _average(volumes: Iterator[npt.NDArray[Any]], count: int) -> npt.NDArray[Any]:
    if count == 1:
        return next(volumes)
    total = next(volumes).astype(np.float32)
    for volume in volumes:
        np.add(total, volume, out=total, dtype=np.float32)
    total /= np.float32(count)
    return total


def _inflate(stream: GzipFile, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The next voxels of a stream, the first axis fastest."""
    data = np.empty(shape, dtype, order="F")
    buffer = data.reshape(-1, order="F").view(np.uint8).data
    for start in range(0, len(buffer), CHUNK_BYTES):
        chunk = buffer[start : start + CHUNK_BYTES]
        if stream.readinto(chunk) < len(chunk):
            raise EOFError("fewer voxels than the header says")
    return data


def _skip(stream: GzipFile, count: int) -> None:
    while count > 0 and (skipped := stream.read(min(count, CHUNK_BYTES))):
        count -= len(skipped)


def header_affine(
    path: Path, header: nib.Nifti1Header, shape: tuple[int, ...]
) -> tuple[Affine, list[str]]:
    """Return sform if its code says so, else qform, else voxel sizes alone; and what is doubtful.

    Args:
        path: of the file, for the error.
        header: of the image.
        shape: (I, J, K); at its corners sform and qform are compared.

    Raises:
        InputError: the affine places no voxels in space.
    """
    warnings: list[str] = []
    with np.errstate(invalid="ignore"):
        sform, qform = header.get_sform(coded=True)[0], _qform(header)
    if sform is not None and qform is not None:
        size = np.array(shape) - 1.0
        corners = np.array(np.meshgrid(*[(0.0, n) for n in size])).reshape(3, -1)
        with np.errstate(invalid="ignore", over="ignore"):
            difference = (sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:]
            worst = float(np.linalg.norm(difference, axis=0).max())
        if not np.isfinite(worst):
            warnings.append("the qform is not usable; the sform is used")
        elif worst > AFFINE_TOLERANCE_MM:
            warnings.append(f"sform and qform differ by up to {worst:.1f} mm; the sform is used")
    affine = sform if sform is not None else qform
    if affine is None:
        affine = header.get_base_affine()
        warnings.append("no orientation in the header (sform and qform codes are 0): assumed LAS")
    affine = np.asarray(affine, dtype=np.float64)
    if np.array_equal(affine, np.eye(4)):
        warnings.append(
            "the affine is the identity, as of converted pictures: "
            "it may tell neither voxel size nor orientation"
        )
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
        independence = abs(np.linalg.det(directions))
    if not (np.isfinite(affine).all() and independence > MIN_INDEPENDENCE):
        raise InputError(
            f"{path}: the affine does not place voxels in space (zeros, not finite, or skewed); "
            "repair the header or convert the scan again"
        )
    return affine, warnings


def _qform(header: nib.Nifti1Header) -> Affine | None:
    """None if its code says so; NaN if it cannot be computed."""
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            qform: Affine | None = header.get_qform(coded=True)[0]
            return qform
    except (HeaderDataError, ValueError, np.linalg.LinAlgError):
        return np.full((4, 4), np.nan)


def _check_geometry(volume: Volume) -> list[str]:
    (lateral, _), (ap, _), (si, _) = volume.axes
    shape, zooms = volume.shape, volume.zooms_mm
    if 1 in (shape[ap], shape[si]) and shape[lateral] > 1:
        raise InputError(
            f"{volume.path}: a single slice that is not sagittal; give a sagittal slice or a volume"
        )
    for axis, name in ((si, "superior-inferior"), (ap, "anterior-posterior")):
        if zooms[axis] > MAX_SPACING_MM:
            raise InputError(
                f"{volume.path}: {zooms[axis]:.1f} mm spacing {name}, so an axial or coronal "
                "thick-slice scan; give a sagittal or isotropic one"
            )
        extent = shape[axis] * zooms[axis]
        if extent < MIN_EXTENT_MM or shape[axis] < MIN_VOXELS:
            raise InputError(
                f"{volume.path}: only {shape[axis]} voxels ({extent:.0f} mm) {name}, too small to "
                "show discs; give a scan of the spine"
            )
    depth, height = shape[ap] * zooms[ap], shape[si] * zooms[si]
    if depth > MAX_DEPTH_MM or height > MAX_HEIGHT_MM:
        raise InputError(
            f"{volume.path}: {depth:.0f} mm from front to back and {height:.0f} mm high, larger "
            "than any body; repair voxel size or orientation in the header"
        )
    return [
        f"{zooms[axis]:.1f} mm spacing {name} is coarse; labels may be off"
        for axis, name in ((si, "superior-inferior"), (ap, "anterior-posterior"))
        if zooms[axis] > WARN_SPACING_MM
    ]
