"""From a volume to the network's input: sagittal slab, 1 mm pixels, [0, 1], padded."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from ivdtool.errors import InputError
from ivdtool.volumes import Volume

__all__ = ["Grid", "Image", "PreprocessingConfig", "central_plane", "prepare_image"]

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PreprocessingConfig:
    """How a volume becomes an image.

    Attributes:
        spacing_mm: pixel size of the image; rounded so that whole pixels cover the volume.
        slab_mm: thickness of the sagittal slab that is averaged.
        slices: average this many slices instead (the papers: 6).
        normalisation: ``percentile`` maps the 0.5th and 99.5th percentile to 0 and 1 and clips;
            ``minmax`` is the papers' plain scaling.
        size_multiple: rows and columns are padded with 0, symmetrically, to multiples of this.
    """

    spacing_mm: float = 1.0
    slab_mm: float = 6.0
    slices: int | None = None
    normalisation: Literal["percentile", "minmax"] = "percentile"
    size_multiple: int = 64

    def __post_init__(self) -> None:
        if not 0.2 <= self.spacing_mm <= 5:
            raise ValueError(f"spacing_mm must lie in 0.2..5, not {self.spacing_mm}")
        if not 0 < self.slab_mm <= 50:
            raise ValueError(f"slab_mm must lie in 0..50, not {self.slab_mm}")
        if self.slices is not None and self.slices < 1:
            raise ValueError(f"slices must be at least 1, not {self.slices}")
        if self.normalisation not in ("percentile", "minmax"):
            raise ValueError(f"normalisation: percentile or minmax, not {self.normalisation!r}")
        if self.size_multiple < 1:
            raise ValueError(f"size_multiple must be at least 1, not {self.size_multiple}")


@dataclass(frozen=True, eq=False)
class Grid:
    """Places an image in its volume and in the world, exactly.

    Image coordinates are (row, col) with pixel centres at integers; a third coordinate, where
    given, is the depth in slices from the slab's plane.

    Attributes:
        shape: (H, W) of the image.
        spacing_mm: (2,) pixel size along rows and columns.
        to_voxel: (4, 4) maps (row, col, depth, 1) to (i, j, k, 1).
        affine: (4, 4) maps (i, j, k, 1) to RAS+ world mm.
        content: rows from, rows to, columns from, columns to (ends exclusive) that show the
            volume; the others are padding, or rows and columns at its border that are all one
            value, since something else padded it before. The whole image when None.
    """

    shape: tuple[int, int]
    spacing_mm: tuple[float, float]
    to_voxel: npt.NDArray[np.float64]
    affine: npt.NDArray[np.float64]
    content: tuple[int, int, int, int] | None = None

    def shows(self, pixels: npt.ArrayLike, margin_mm: float = 0.0) -> npt.NDArray[np.bool_]:
        """(..., 2) image coordinates to (...) whether something, not padding, is there.

        With a margin, points nearer than that to its border count as outside.
        """
        points = np.asarray(pixels, dtype=np.float64)
        top, bottom, left, right = self.content or (0, self.shape[0], 0, self.shape[1])
        margin = margin_mm / np.array(self.spacing_mm)
        first, last = np.array([top, left]) - 0.5, np.array([bottom, right]) - 0.5
        first, last = first + margin, last - margin
        return np.asarray(((points >= first) & (points <= last)).all(axis=-1), dtype=np.bool_)

    def pixel_to_voxel(self, pixels: npt.ArrayLike) -> Points:
        """(N, 2) or (N, 3) image coordinates to (N, 3) voxel coordinates."""
        return _apply(self.to_voxel, _with_depth(pixels))

    def voxel_to_pixel(self, voxels: npt.ArrayLike) -> Points:
        """(N, 3) voxel coordinates to (N, 3) image coordinates (row, col, depth)."""
        return _apply(_inverse(self.to_voxel), np.asarray(voxels, dtype=np.float64))

    def pixel_to_world(self, pixels: npt.ArrayLike) -> Points:
        """(N, 2) or (N, 3) image coordinates to (N, 3) RAS+ world mm."""
        return _apply(self.affine @ self.to_voxel, _with_depth(pixels))

    def world_to_pixel(self, world_mm: npt.ArrayLike) -> Points:
        """(N, 3) RAS+ world mm to (N, 3) image coordinates (row, col, depth)."""
        return _apply(_inverse(self.affine @ self.to_voxel), np.asarray(world_mm, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Image:
    """A sagittal image: (H, W) float32 in [0, 1], rows S to I, columns A to P, and its place."""

    pixels: npt.NDArray[np.float32]
    grid: Grid


def central_plane(volume: Volume) -> float:
    """Return the sagittal slice index (fractional) of the volume's middle."""
    return (volume.shape[volume.axes[0][0]] - 1) / 2


def prepare_image(volume: Volume, config: PreprocessingConfig, plane: float | None = None) -> Image:
    """Average a sagittal slab, resample, normalise and pad it.

    Args:
        volume: the scan.
        config: see `PreprocessingConfig`.
        plane: slice index (fractional) of the slab's middle; the volume's middle when None.

    Raises:
        InputError: the slab is constant, or holds NaN or infinite voxels.
    """
    plane = central_plane(volume) if plane is None else plane
    slab = _average_slab(volume, config, plane)
    if not np.isfinite(slab).all():
        raise InputError(f"{volume.path}: NaN or infinite voxels; replace them by 0 and try again")
    pixels = _resample(slab, _image_size(volume, config))
    pixels = _normalise(volume, pixels, config)
    padding = [_padding(n, config.size_multiple) for n in pixels.shape]
    grid = _grid(volume, pixels.shape, padding, plane)
    return Image(np.pad(pixels, padding), replace(grid, content=_content(slab, pixels, padding)))


def _average_slab(
    volume: Volume, config: PreprocessingConfig, plane: float
) -> npt.NDArray[np.float32]:
    lateral = volume.axes[0][0]
    count = volume.shape[lateral]
    if config.slices is not None:
        first = round(plane - (config.slices - 1) / 2 - 1e-9)
        lower, upper = first - 0.5, first + config.slices - 0.5
    else:
        half = max(config.slab_mm / volume.zooms_mm[lateral], 1.0) / 2
        lower, upper = plane - half, plane + half
    first = min(max(int(np.floor(lower + 0.5)), 0), count - 1)
    last = max(min(int(np.ceil(upper - 0.5)), count - 1), first)
    index = np.arange(first, last + 1)
    # share of each slice's thickness that lies in the slab
    weights = np.clip(np.minimum(index + 0.5, upper) - np.maximum(index - 0.5, lower), 1e-6, None)
    slices = volume.sagittal_slices(first, last)
    weights = (weights / weights.sum()).astype(np.float32)
    slab: npt.NDArray[np.float32] = weights[0] * slices[0]
    for weight, one in zip(weights[1:], slices[1:], strict=True):
        slab += weight * one  # not as a matrix product: the last bits of that depend on its threads
    return slab


def _image_size(volume: Volume, config: PreprocessingConfig) -> tuple[int, int]:
    _, (ap, _), (si, _) = volume.axes
    extents = (volume.shape[axis] * volume.zooms_mm[axis] for axis in (si, ap))
    # less a little: rounding in the stored affine must not decide a tie
    rows, cols = (max(1, round(float(mm) / config.spacing_mm - 1e-3)) for mm in extents)
    return rows, cols


def _resample(slab: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Linear interpolation, widened to the new pixel where that is larger (no aliasing)."""
    if slab.shape == size:
        return slab
    image = PillowImage.fromarray(slab).resize(size[::-1], PillowImage.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.float32)


def _normalise(
    volume: Volume, pixels: npt.NDArray[np.float32], config: PreprocessingConfig
) -> npt.NDArray[np.float32]:
    values = pixels.astype(np.float64)  # whose differences do not overflow
    if config.normalisation == "percentile":
        low, high = np.percentile(values, (0.5, 99.5))
    else:
        low, high = values.min(), values.max()
    if not high - low > 1e-6 * max(abs(low), abs(high)):
        raise InputError(
            f"{volume.path}: (nearly) all voxels of the slab are equal; "
            "give a scan that shows the spine"
        )
    scaled: npt.NDArray[np.float32] = ((values - low) / (high - low)).clip(0, 1).astype(np.float32)
    return scaled


def _padding(size: int, multiple: int) -> tuple[int, int]:
    missing = -size % multiple
    return missing // 2, missing - missing // 2


def _grid(
    volume: Volume, size: tuple[int, ...], padding: list[tuple[int, int]], plane: float
) -> Grid:
    (lateral, _), (ap, ap_sign), (si, si_sign) = volume.axes
    to_voxel = np.zeros((4, 4))
    to_voxel[3, 3] = 1
    to_voxel[lateral, 2], to_voxel[lateral, 3] = 1, plane
    spacing = []
    for column, (axis, sign) in enumerate(((si, si_sign), (ap, ap_sign))):
        count, pixels, before = volume.shape[axis], size[column], padding[column][0]
        scale = count / pixels  # voxels per pixel
        start = (0.5 - before) * scale - 0.5  # voxel, in the slab's direction, of pixel 0
        # the slab runs against the voxel axis where that points to superior or anterior
        to_voxel[axis, column] = -scale if sign > 0 else scale
        to_voxel[axis, 3] = count - 1 - start if sign > 0 else start
        spacing.append(float(scale * volume.zooms_mm[axis]))
    shape = tuple(n + sum(pad) for n, pad in zip(size, padding, strict=True))
    return Grid((shape[0], shape[1]), (spacing[0], spacing[1]), to_voxel, volume.affine)


def _content(
    slab: npt.NDArray[np.float32],
    pixels: npt.NDArray[np.float32],
    padding: list[tuple[int, int]],
) -> tuple[int, int, int, int]:
    """What `Grid.content` says; pixels that lie in the border of the slab in part count to it."""
    ends: list[int] = []
    for axis, (before, _) in enumerate(padding):
        varied = np.flatnonzero(slab.min(axis=1 - axis) < slab.max(axis=1 - axis))
        if len(varied) == 0:  # each of one value, but of another than its neighbours
            varied = np.arange(slab.shape[axis])
        scale = pixels.shape[axis] / slab.shape[axis]
        first, last = np.ceil(varied[0] * scale - 1e-6), np.floor((varied[-1] + 1) * scale + 1e-6)
        ends += [before + int(first), before + int(last)]
    return ends[0], ends[1], ends[2], ends[3]


def _with_depth(pixels: npt.ArrayLike) -> Points:
    points = np.asarray(pixels, dtype=np.float64)
    return np.pad(points, ((0, 0), (0, 1))) if points.shape[1] == 2 else points


def _inverse(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.linalg.inv(matrix).astype(np.float64, copy=False)


def _apply(matrix: npt.NDArray[np.float64], points: Points) -> Points:
    moved: Points = points @ matrix[:3, :3].T + matrix[:3, 3]
    return moved
