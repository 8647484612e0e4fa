"""Find the sagittal plane of the spine: it is up to 13 mm off the middle of real scans."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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

    step_mm: float = 6.0
    reach_mm: float = 12.0

    def __post_init__(self) -> None:
        if self.step_mm <= 0 or self.reach_mm < 0:
            raise ValueError("step_mm must be positive and reach_mm not negative")


def find_plane(
    volume: Volume,
    preprocessing: PreprocessingConfig,
    config: PlaneConfig,
    predict: Callable[[Sequence[Image]], list[Heatmaps]],
) -> float:
    """Return the sagittal slice index (fractional) at which the network sees most discs.

    Slabs at several planes are shown to the network in one batch; the plane is the mean of
    theirs, weighted by how much each one's heatmaps rise above the faintest.

    Args:
        volume: the scan.
        preprocessing: of the slabs.
        config: see `PlaneConfig`.
        predict: images of equal shape to heatmaps.
    """
    planes = _planes(volume, config)
    if len(planes) == 1:
        return float(planes[0])
    images = [prepare_image(volume, preprocessing, float(plane)) for plane in planes]
    evidence = np.array([_evidence(heatmaps) for heatmaps in predict(images)])
    # a high power: planes that see nearly all count, those that see some discs hardly do
    weights = (evidence / max(float(evidence.max()), 1e-6)) ** 8
    return float((weights * planes).sum() / weights.sum())


def _planes(volume: Volume, config: PlaneConfig) -> npt.NDArray[np.float64]:
    lateral = volume.axes[0][0]
    middle, step = central_plane(volume), config.step_mm / volume.zooms_mm[lateral]
    count = int(config.reach_mm / config.step_mm + 1e-9)
    planes = middle + step * np.arange(-count, count + 1)
    # a slab half outside shows half as much of the spine
    inside = (planes >= 0) & (planes <= volume.shape[lateral] - 1)
    return planes[inside] if inside.any() else np.array([middle])


def _evidence(heatmaps: Heatmaps) -> float:
    """How much disc the network sees: the sum over labels of the highest value."""
    return float(np.clip(heatmaps.values.max(axis=(1, 2)), 0, 1).sum())
