"""Find the sagittal plane of the spine: it is up to 13 mm off the middle of real scans."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine

from ivdtool.errors import InputError
from ivdtool.heatmaps import Heatmaps
from ivdtool.preprocessing import Image, PreprocessingConfig, central_plane, prepare_image
from ivdtool.volumes import Volume

__all__ = ["PlaneConfig", "find_plane", "plane_through"]


@dataclass(frozen=True)
class PlaneConfig:
    """Which planes are tried.

    Attributes:
        step_mm: distance between two planes.
        reach_mm: how far from the middle of the volume, to either side, at first; 0 takes the
            middle.

    Raises:
        ValueError: a value out of range.
    """

    step_mm: float = 8.0
    reach_mm: float = 16.0

    def __post_init__(self) -> None:
        if not (self.step_mm > 0 and 0 <= self.reach_mm < math.inf):
            raise ValueError(
                "step_mm must be positive, reach_mm finite and not negative, "
                f"not {self.step_mm} and {self.reach_mm}"
            )


def plane_through(volume: Volume, world_mm: npt.ArrayLike) -> float:
    """Return the sagittal slice index (fractional) of points (N, 3): the median; in the volume."""
    lateral = volume.axes[0][0]
    voxels = apply_affine(np.linalg.inv(volume.affine), np.asarray(world_mm))
    return float(np.clip(np.median(voxels[:, lateral]), 0, volume.shape[lateral] - 1))


def find_plane(
    volume: Volume,
    preprocessing: PreprocessingConfig,
    config: PlaneConfig,
    predict: Callable[[Sequence[Image]], list[Heatmaps]],
) -> float:
    """Return the sagittal slice index (fractional) at which the network sees most discs.

    Slabs at several planes are shown to the network together; where it sees most at the
    outermost one, or nothing but blank slabs, as padding leaves at the sides, planes further out
    follow. The plane is the mean of all, weighted by the eighth power of the evidence in each. It
    is the middle of the volume where the network sees nothing.

    Args:
        volume: the scan.
        preprocessing: of the slabs.
        config: see `PlaneConfig`.
        predict: images of equal shape to heatmaps.

    Raises:
        InputError: every slab is constant, or holds NaN or infinite voxels.
    """
    planes = _planes(volume, config.step_mm)
    reach = int(config.reach_mm / config.step_mm + 1e-9)
    wanted = [n for n in planes if abs(n) <= reach]
    if len(wanted) == 1:
        return planes[0]
    evidence: dict[int, float] = {}
    shown, problem = set[int](), None
    while wanted:
        images = {}
        for n in wanted:
            try:
                images[n] = prepare_image(volume, preprocessing, planes[n])
            except InputError as error:
                problem = error
        seen = map(_evidence, predict(list(images.values()))) if images else ()
        evidence |= dict.fromkeys(wanted, 0.0) | dict(zip(images, seen, strict=True))
        shown |= images.keys()
        wanted = [n for n in _further(evidence) if n in planes]
    if not shown and problem is not None:
        raise problem
    most = max(evidence.values())
    if not most > 0:
        return planes[0]
    # a high power: planes that see nearly all count, those that see some discs hardly do
    weights = {n: (evidence[n] / most) ** 8 for n in sorted(evidence)}
    return sum(weights[n] * planes[n] for n in weights) / sum(weights.values())


def _planes(volume: Volume, step_mm: float) -> dict[int, float]:
    """Planes inside the volume, by their number from the middle.

    None lies outside: half a slab shows half as much of the spine.
    """
    middle, step = central_plane(volume), step_mm / volume.zooms_mm[volume.axes[0][0]]
    count = int(middle / step)
    return {n: float(middle + step * n) for n in range(-count, count + 1)}


def _further(evidence: Mapping[int, float]) -> list[int]:
    """Numbers of planes beyond those looked at, where the spine may lie: none if it is inside."""
    first, last = min(evidence), max(evidence)
    if not any(evidence.values()):
        return [first - 1, last + 1]
    best = max(sorted(evidence, key=abs), key=lambda n: evidence[n])
    if best == first:
        return [first - 2, first - 1]
    return [last + 1, last + 2] if best == last else []


def _evidence(heatmaps: Heatmaps) -> float:
    """How much disc the network sees: the sum over labels of the highest value."""
    return float(np.clip(heatmaps.values.max(axis=(1, 2)), 0, 1).sum())
