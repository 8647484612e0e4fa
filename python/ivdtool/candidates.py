"""Candidates: the peaks of every heatmap, among which the search chooses."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ivdtool import _core
from ivdtool.heatmaps import Heatmaps

__all__ = ["CandidateConfig", "Candidates", "find_candidates"]


@dataclass(frozen=True)
class CandidateConfig:
    """What counts as a candidate.

    Attributes:
        threshold: least heatmap value; absolute, so that an empty channel stays empty.
        threshold_relative: least heatmap value as a share of the channel's largest, 0..1.
        radius_mm: of two peaks of a channel this close, only the higher one is kept.
        max_candidates: at most this many per channel, best first.

    Raises:
        ValueError: a value out of range.
    """

    threshold: float = 0.1
    threshold_relative: float = 0.25
    radius_mm: float = 8.0
    max_candidates: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"threshold must be positive, not {self.threshold}")
        if not 0 <= self.threshold_relative <= 1:
            raise ValueError(f"threshold_relative must lie in 0..1, not {self.threshold_relative}")
        if not 0 <= self.radius_mm < math.inf:
            raise ValueError(f"radius_mm must not be negative, not {self.radius_mm}")
        if self.max_candidates < 1:
            raise ValueError(f"max_candidates must be at least 1, not {self.max_candidates}")


@dataclass(frozen=True, eq=False)
class Candidates:
    """Points where each disc may be; channel c owns rows offsets[c] .. offsets[c + 1] - 1.

    Arrays are in C order.

    Attributes:
        positions: (N, 2) float64 row, col in image pixels, pixel centres at integers.
        scores: (N,) float64 heatmap value, falling within a channel when found in heatmaps.
        offsets: (V + 1,) int64, from 0 to N.
        labels: the disc label of each channel, length V.
        spacing_mm: size of one image pixel in mm, (row, col).

    Raises:
        ValueError: shapes that disagree, values that are not finite, a spacing not positive.
        TypeError: arrays of another dtype or order.
    """

    positions: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    offsets: npt.NDArray[np.int64]
    labels: tuple[int, ...]
    spacing_mm: tuple[float, float]

    def __post_init__(self) -> None:
        _core.check_candidates(self.positions, self.scores, self.offsets, len(self.labels))
        row_mm, col_mm = self.spacing_mm
        if not (0 < row_mm < math.inf and 0 < col_mm < math.inf):
            raise ValueError(f"spacing_mm must be two positive numbers, not {self.spacing_mm}")

    @property
    def positions_mm(self) -> npt.NDArray[np.float64]:
        """(N, 2) float64 row, col in mm from the centre of the first pixel."""
        return self.positions * self.spacing_mm

    def of(self, channel: int) -> slice:
        """Return the rows of a channel."""
        return slice(int(self.offsets[channel]), int(self.offsets[channel + 1]))

    def channels_of(self, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return the channel that owns each row."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def only(self, kept: npt.NDArray[np.bool_]) -> "Candidates":
        """Return those that the mask (N,) keeps."""
        before = np.concatenate([[0], np.cumsum(kept)])
        return replace(
            self,
            positions=self.positions[kept],
            scores=self.scores[kept],
            offsets=before[self.offsets],
        )


def find_candidates(
    heatmaps: Heatmaps, config: CandidateConfig | None = None, *, portable: bool = False
) -> Candidates:
    """Find the peaks of every channel (paper 1, section 3.3: "several candidates").

    A peak is larger than its eight neighbours, at the border than those it has. Of equal
    neighbours the first in raster order is the larger one, so a plateau is one peak or few; NaN
    never is. Peaks are kept by falling value, ties in raster order, unless a kept one is within
    `radius_mm`. Where log(value) around a kept peak fits a paraboloid (least squares, weights
    value^2, at most 7 x 7 cells that fall from the peak to 0.15 of it, exact for a Gaussian), its
    maximum is the position, at most one cell away; otherwise the cell itself.

    The heatmaps must not be modified by another thread during the call. `portable` keeps to
    instructions that every processor has, for tests and measurements: the answer is the same, bit
    for bit.

    Raises:
        ValueError: heatmaps without rows or columns.
    """
    config = config or CandidateConfig()
    positions, scores, offsets = _core.find_candidates(
        np.require(heatmaps.values, np.float32, ["C", "A"]),
        heatmaps.stride,
        config.threshold,
        config.threshold_relative,
        config.radius_mm,
        heatmaps.spacing_mm,
        config.max_candidates,
        portable,
    )
    row_mm, col_mm = heatmaps.spacing_mm
    return Candidates(
        positions=positions,
        scores=scores,
        offsets=offsets,
        labels=heatmaps.labels,
        spacing_mm=(row_mm / heatmaps.stride, col_mm / heatmaps.stride),
    )
