"""Heatmaps: one channel per disc, its peak where the disc is.

A heatmap is coarser than the image by `stride`. Pixel and cell centres lie at integers, so cell
(r, c) has its centre at image pixel ((r + 0.5) * stride - 0.5, (c + 0.5) * stride - 0.5).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ivdtool import _core

__all__ = ["HeatmapBuffer", "Heatmaps", "cells_to_pixels", "draw_heatmaps", "pixels_to_cells"]


def cells_to_pixels(cells: npt.ArrayLike, stride: int) -> npt.NDArray[np.float64]:
    """Return image pixel coordinates of heatmap cell coordinates, any shape."""
    return (np.asarray(cells, dtype=np.float64) + 0.5) * stride - 0.5


def pixels_to_cells(pixels: npt.ArrayLike, stride: int) -> npt.NDArray[np.float64]:
    """Return heatmap cell coordinates of image pixel coordinates, any shape."""
    return (np.asarray(pixels, dtype=np.float64) + 0.5) / stride - 0.5


@dataclass(frozen=True)
class Heatmaps:
    """What the network says about every disc.

    Attributes:
        values: (V, H, W) float32, V channels of rows superior -> inferior, columns
            anterior -> posterior.
        labels: the disc label of each channel, length V.
        stride: image pixels per heatmap cell, along both axes.
        spacing_mm: size of one heatmap cell in mm, (row, col).

    Raises:
        ValueError: shapes that disagree, a stride below 1, a spacing that is not positive.
    """

    values: npt.NDArray[np.float32]
    labels: tuple[int, ...]
    stride: int
    spacing_mm: tuple[float, float]

    def __post_init__(self) -> None:
        if self.values.ndim != 3:
            raise ValueError(f"heatmap values must be (V, H, W), not {self.values.shape}")
        if len(self.labels) != self.values.shape[0]:
            raise ValueError(f"{self.values.shape[0]} channels but {len(self.labels)} labels")
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, not {self.stride}")
        if not all(0 < mm < np.inf for mm in self.spacing_mm):
            raise ValueError(f"spacing_mm must be two positive numbers, not {self.spacing_mm}")


def draw_heatmaps(
    points: npt.ArrayLike,
    visible: npt.ArrayLike,
    shape: tuple[int, int],
    sigma: float | tuple[float, float],
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """Draw the training target: a Gaussian of peak value 1 at each visible point (paper 1, 3.1).

    The peak sits at the real-valued point, so a cell holds exactly 1 only where a point falls on
    its centre. Values beyond 4 sigma along either axis (below 3.4e-4) are zero.

    Args:
        points: (B, V, 2) row, col in heatmap cells. May lie outside the frame: what reaches into
            it is drawn.
        visible: (B, V) bool. An invisible point, or one with NaN or infinity, gives zeros.
        shape: rows H, columns W of a heatmap.
        sigma: standard deviation in cells, one number or (row, col).
        out: (B, V, H, W) float32 in C order to overwrite, instead of a new array. Where the same
            array is drawn many times, a `HeatmapBuffer` is faster.

    Returns:
        (B, V, H, W) float32.

    Raises:
        ValueError: shapes that disagree, an empty frame, a sigma that is not positive, an `out`
            that is read-only.
        TypeError: an `out` of another dtype or layout.
    """
    points, visible, sigmas = _checked_drawing(points, visible, sigma)
    if min(shape) < 1:
        raise ValueError(f"shape must be two positive numbers, not {shape}")
    full_shape = (*visible.shape, *shape)
    if out is None:
        # Fresh zeros cost nothing before they are touched: the system hands out pages of zeros.
        heatmaps = np.zeros(full_shape, dtype=np.float32)
    elif out.shape == full_shape:
        heatmaps = out
    else:
        raise ValueError(f"out must be {full_shape}, not {out.shape}")
    _core.draw_heatmaps(points, visible, sigmas, heatmaps, out is not None)
    return heatmaps


class HeatmapBuffer:
    """Heatmaps that are drawn again and again, in one array.

    A call clears only what the last one drew: `values` is the same as a fresh `draw_heatmaps`, bit
    for bit, at a fraction of its time.

    Args:
        batch: B.
        channels: V.
        shape: rows H, columns W of a heatmap.

    Attributes:
        values: (B, V, H, W) float32, read-only; changes with every call.

    Raises:
        ValueError: a negative number, an empty frame.
    """

    def __init__(self, batch: int, channels: int, shape: tuple[int, int]) -> None:
        if min(batch, channels) < 0 or min(shape) < 1:
            raise ValueError(f"no heatmaps have shape ({batch}, {channels}, *{shape})")
        self._buffer = _core.HeatmapBuffer(batch, channels, *shape)
        self.values = self._buffer.values

    def draw(
        self, points: npt.ArrayLike, visible: npt.ArrayLike, sigma: float | tuple[float, float]
    ) -> npt.NDArray[np.float32]:
        """Draw as `draw_heatmaps` does; return `values`.

        Not to be called by two threads at once.

        Raises:
            ValueError: shapes that disagree, a sigma that is not positive.
        """
        points, visible, sigmas = _checked_drawing(points, visible, sigma)
        if visible.shape != self.values.shape[:2]:
            raise ValueError(f"visible must be {self.values.shape[:2]}, not {visible.shape}")
        self._buffer.draw(points, visible, sigmas)
        return self.values


def _checked_drawing(
    points: npt.ArrayLike, visible: npt.ArrayLike, sigma: float | tuple[float, float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], tuple[float, float]]:
    points = np.require(points, np.float64, ["C", "A"])
    visible = np.require(visible, np.bool_, ["C", "A"])
    if points.ndim != 3 or points.shape[2] != 2:
        raise ValueError(f"points must be (B, V, 2), not {points.shape}")
    if visible.shape != points.shape[:2]:
        raise ValueError(f"visible must be {points.shape[:2]}, as points, not {visible.shape}")
    row, col = (sigma, sigma) if isinstance(sigma, (int, float)) else sigma
    if not (0 < row < np.inf and 0 < col < np.inf):
        raise ValueError(f"sigma must be positive, not {sigma}")
    return points, visible, (row, col)
