"""Drawing training targets: one Gaussian per channel."""

import ctypes
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ivdtool.benchmark.timing import Case, Contender, expect, optional
from ivdtool.heatmaps import HeatmapBuffer, draw_heatmaps

__all__ = ["QUICK_SIZES", "SIZES", "heatmap_cases"]

Floats = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]

SIZES = ((11, 256, 256), (24, 512, 512), (24, 1024, 512))  # channels, rows, columns
QUICK_SIZES = ((3, 48, 64), (2, 70, 37))

VARIANCE = 10.0  # the "radius" of the papers' code, px^2
SIGMA = math.sqrt(VARIANCE)
CUT_OFF = 5e-4


def heatmap_cases(quick: bool = False) -> Iterator[Case]:
    """One case per size; `quick` sizes are for tests."""
    for size in QUICK_SIZES if quick else SIZES:
        yield _case(*size)


def _case(channels: int, rows: int, cols: int) -> Case:
    rng = np.random.default_rng([channels, rows, cols])
    # Whole cells, as a filtered impulse cannot lie between them.
    points = rng.integers((0, 0), (rows, cols), (2, channels, 2)).astype(np.float64)
    visible = np.ones((1, channels), dtype=np.bool_)
    exact = np.stack([_full_gaussian(point, rows, cols) for point in points[0]])
    out = np.empty((1, channels, rows, cols), dtype=np.float32)
    buffer = HeatmapBuffer(1, channels, (rows, cols))
    turn = 0

    def draw() -> Floats:
        return draw_heatmaps(points[:1], visible, (rows, cols), SIGMA, out)

    def draw_new() -> Floats:
        return draw_heatmaps(points[:1], visible, (rows, cols), SIGMA)

    def redraw() -> Floats:
        nonlocal turn
        turn = 1 - turn  # never the same windows as before
        return buffer.draw(points[turn : turn + 1], visible, SIGMA)

    def check_own(drawn: Floats) -> None:
        inside = drawn[0] > 0
        expect((np.abs(drawn[0] - exact) * inside).max() <= 1e-6, "off the Gaussian")
        expect((exact * ~inside).max() <= CUT_OFF, "cut off too early")

    def check_redrawn(drawn: Floats) -> None:
        fresh = draw_heatmaps(points[turn : turn + 1], visible, (rows, cols), SIGMA)
        expect((drawn == fresh).all(), "differs from fresh heatmaps")

    def check(drawn: Any) -> None:
        expect(np.abs(np.asarray(drawn) - exact).max() <= CUT_OFF, "off the Gaussian")

    def check_one(drawn: Floats) -> None:
        expect(np.abs(drawn - exact[0]).max() <= CUT_OFF, "off the Gaussian")

    cells = points[0].astype(np.int64)
    stack = np.empty((channels, rows, cols), dtype=np.float32)
    address, size = stack.ctypes.data, stack.nbytes
    contenders = [
        Contender("ivdtool, array overwritten", draw, check_own),
        Contender("ivdtool, new array", draw_new, check_own),
        Contender("ivdtool, buffer redrawn", redraw, check_redrawn),
        Contender("floor: memset", lambda: ctypes.memset(address, 0, size)),
        Contender("NumPy, window", lambda: _windows(points[0], stack), check),
        Contender("NumPy, separable", lambda: _separable(points[0], stack), check),
        Contender("papers: exp, full frame", lambda: _full_frame(points[0], rows, cols), check),
        Contender(
            "papers: merged pixel by pixel",
            lambda: _merge_by_pixel([exact[0]]),
            check_one,
            factor=channels,
        ),
    ]
    missing = []
    if (ndimage := optional("scipy.ndimage")) is not None:
        contenders.append(
            Contender("SciPy gaussian_filter", lambda: _filtered(ndimage, cells, stack), check)
        )
    else:
        missing.append("SciPy is not installed")
    if (cv2 := optional("cv2")) is not None:
        cv2.setNumThreads(1)  # as ours has
        contenders.append(
            Contender("OpenCV GaussianBlur", lambda: _blurred(cv2, cells, stack), check)
        )
    else:
        missing.append("OpenCV is not installed")
    if (torch := optional("torch")) is not None:
        target = torch.empty((channels, rows, cols))
        place = torch.from_numpy(points[0].astype(np.float32))
        contenders.append(
            Contender(
                f"torch, separable, {torch.get_num_threads()} threads",
                lambda: _torch_separable(torch, place, target),
                check,
            )
        )
    return Case(
        stage="heatmaps",
        name=f"{channels}x{rows}x{cols}",
        contenders=tuple(contenders),
        missing=tuple(missing),
        size={"channels": channels, "rows": rows, "cols": cols},
    )


def _full_gaussian(point: Points, rows: int, cols: int) -> Floats:
    """One heatmap in float64, rounded last."""
    distance = (np.arange(rows)[:, np.newaxis] - point[0]) ** 2
    distance = distance + (np.arange(cols) - point[1]) ** 2
    heatmap: Floats = np.exp(-distance / (2 * VARIANCE)).astype(np.float32)
    return heatmap


def _full_frame(points: Points, rows: int, cols: int) -> list[npt.NDArray[np.float64]]:
    """A bivariate normal density at every pixel, with its covariance matrix written out."""
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij"), axis=-1)
    precision = np.linalg.inv(VARIANCE * np.eye(2))
    heatmaps = []
    for point in points:
        offset = grid - point
        heatmaps.append(np.exp(np.einsum("...k,kl,...l->...", offset, precision, offset) / -2))
    return heatmaps


def _merge_by_pixel(heatmaps: list[Floats]) -> Floats:
    """The largest of several heatmaps, one pixel at a time."""
    merged = np.zeros_like(heatmaps[0])
    for heatmap in heatmaps:
        for row in range(merged.shape[0]):
            for col in range(merged.shape[1]):
                merged[row, col] = max(merged[row, col], heatmap[row, col])
    return merged


def _windows(points: Points, heatmaps: Floats) -> Floats:
    heatmaps.fill(0)
    reach = math.floor(4 * SIGMA)
    for heatmap, (row, col) in zip(heatmaps, points, strict=True):
        top, left = max(0, round(row) - reach), max(0, round(col) - reach)
        window = heatmap[top : round(row) + reach + 1, left : round(col) + reach + 1]
        down = np.exp(-((np.arange(window.shape[0]) + top - row) ** 2) / (2 * VARIANCE))
        across = np.exp(-((np.arange(window.shape[1]) + left - col) ** 2) / (2 * VARIANCE))
        window[:] = down[:, np.newaxis] * across
    return heatmaps


def _separable(points: Points, heatmaps: Floats) -> Floats:
    down = np.exp(-((np.arange(heatmaps.shape[1]) - points[:, :1]) ** 2) / (2 * VARIANCE))
    across = np.exp(-((np.arange(heatmaps.shape[2]) - points[:, 1:]) ** 2) / (2 * VARIANCE))
    return np.multiply(
        down.astype(np.float32)[:, :, np.newaxis],
        across.astype(np.float32)[:, np.newaxis, :],
        out=heatmaps,
    )


def _filtered(ndimage: Any, cells: npt.NDArray[np.int64], heatmaps: Floats) -> Floats:
    heatmaps.fill(0)
    for heatmap, (row, col) in zip(heatmaps, cells, strict=True):
        heatmap[row, col] = 2 * math.pi * VARIANCE
        ndimage.gaussian_filter(heatmap, SIGMA, output=heatmap, mode="constant")
    return heatmaps


def _blurred(cv2: Any, cells: npt.NDArray[np.int64], heatmaps: Floats) -> Floats:
    heatmaps.fill(0)
    width = 2 * math.floor(4 * SIGMA) + 1
    for heatmap, (row, col) in zip(heatmaps, cells, strict=True):
        heatmap[row, col] = 2 * math.pi * VARIANCE
        cv2.GaussianBlur(
            heatmap, (width, width), SIGMA, dst=heatmap, borderType=cv2.BORDER_CONSTANT
        )
    return heatmaps


def _torch_separable(torch: Any, points: Any, heatmaps: Any) -> Any:
    down = torch.exp((torch.arange(heatmaps.shape[1]) - points[:, :1]) ** 2 / (-2 * VARIANCE))
    across = torch.exp((torch.arange(heatmaps.shape[2]) - points[:, 1:]) ** 2 / (-2 * VARIANCE))
    return torch.mul(down[:, :, None], across[:, None, :], out=heatmaps)
