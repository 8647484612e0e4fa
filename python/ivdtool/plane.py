"""Find the sagittal plane of the spine: it is up to 13 mm off the middle of real scans."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ivdtool.errors import InputError
from ivdtool.heatmaps import Heatmaps
from ivdtool.preprocessing import Image, PreprocessingConfig, central_plane, prepare_image
from ivdtool.volumes import Volume

__all__ = ["PlaneConfig", "find_plane"]


@dataclass(frozen=True)
class PlaneConfig:
    """Which planes are tried.

    Attributes:
        step_mm: distance between two planes.
        reach_mm: how far from the middle of the volume, to either side; 0 takes the middle.
    """

    step_mm: float = 8.0
    reach_mm: float = 16.0

    def __post_init__(self) -> None:
        if not (self.step_mm > 0 and 0 <= self.reach_mm < math.inf):
            raise ValueError(
                "step_mm must be positive, reach_mm finite and not negative, "
                f"not {self.step_mm} and {self.reach_mm}"
            )


def find_plane(
    volume: Volume,
    preprocessing: PreprocessingConfig,
    config: PlaneConfig,
    predict: Callable[[Sequence[Image]], list[Heatmaps]],
) -> float:
    """Return the sagittal slice index (fractional) at which the network sees most discs.

    Slabs at several planes are shown to the network in one batch; the plane is the mean of
    theirs, weighted by the eighth power of the evidence in each. It is the middle of the volume
    where the network sees nothing. Blank slabs, as resampling leaves at the sides, are left out.

    Args:
        volume: the scan.
        preprocessing: of the slabs.
        config: see `PlaneConfig`.
        predict: images of equal shape to heatmaps.

    Raises:
        InputError: every slab is constant, or holds NaN or infinite voxels.
    """
    planes = _planes(volume, config)
    if len(planes) == 1:
        return planes[0]
    shown, images, problem = [], [], None
    for plane in planes:
        try:
            images.append(prepare_image(volume, preprocessing, plane))
            shown.append(plane)
        except InputError as error:
            problem = error
    if not images and problem is not None:
        raise problem
    evidence = np.array([_evidence(heatmaps) for heatmaps in predict(images)])
    if not evidence.max() > 0:
        return central_plane(volume)
    # a high power: planes that see nearly all count, those that see some discs hardly do
    weights = (evidence / evidence.max()) ** 8
    return float((weights * shown).sum() / weights.sum())


def _planes(volume: Volume, config: PlaneConfig) -> list[float]:
    lateral = volume.axes[0][0]
    middle, step = central_plane(volume), config.step_mm / volume.zooms_mm[lateral]
    count = int(config.reach_mm / config.step_mm + 1e-9)
    planes = [float(middle + step * n) for n in range(-count, count + 1)]
    # a slab half outside shows half as much of the spine
    return [plane for plane in planes if 0 <= plane <= volume.shape[lateral] - 1]


def _evidence(heatmaps: Heatmaps) -> float:
    """How much disc the network sees: the sum over labels of the highest value."""
    return float(np.clip(heatmaps.values.max(axis=(1, 2)), 0, 1).sum())
