"""Finding the peaks of every channel."""

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ivdtool.benchmark.heatmaps import QUICK_SIZES, SIGMA, SIZES
from ivdtool.benchmark.timing import Case, Contender, expect, optional
from ivdtool.candidates import CandidateConfig, Candidates, find_candidates
from ivdtool.heatmaps import Heatmaps, draw_heatmaps

__all__ = ["candidate_cases"]

Floats = npt.NDArray[np.float32]
Cells = npt.NDArray[np.int64]  # (N, 3) channel, row, col

NOISE = 0.01
CONFIG = CandidateConfig(threshold=0.3, threshold_relative=0.0, radius_mm=5.0, max_candidates=6)


def candidate_cases(quick: bool = False) -> Iterator[Case]:
    """Two cases per size: what a network draws, and noise of which a third is over the threshold.

    In one run the second is hard: a ninth of all cells are peaks.
    """
    for size in QUICK_SIZES if quick else SIZES:
        rng = np.random.default_rng(size)
        yield _case(f"{'x'.join(map(str, size))}", _peaks(rng, *size), blobs=True)
        noise = (0.45 * rng.random(size)).astype(np.float32)
        yield _case(f"{'x'.join(map(str, size))}, a third above threshold", noise, blobs=False)


def _peaks(rng: np.random.Generator, channels: int, rows: int, cols: int) -> Floats:
    """Four peaks per channel, one in each quarter, with noise."""
    stack = np.zeros((channels, rows, cols), dtype=np.float32)
    quarters = np.array([(r, c) for r in (0.25, 0.75) for c in (0.25, 0.75)]) * (rows, cols)
    for heatmap in stack:
        points = quarters + rng.uniform(-0.05, 0.05, (4, 2)) * (rows, cols)
        drawn = draw_heatmaps(points[np.newaxis], np.ones((1, 4)), (rows, cols), SIGMA)[0]
        heights = np.array([0.9, 0.8, 0.7, 0.6], dtype=np.float32)
        heatmap[:] = (drawn * heights[:, np.newaxis, np.newaxis]).max(axis=0)
    return stack + NOISE * rng.standard_normal(stack.shape, dtype=np.float32)


def _case(name: str, stack: Floats, *, blobs: bool) -> Case:
    heatmaps = Heatmaps(stack, tuple(range(len(stack))), 1, (1.0, 1.0))
    maxima = _thinned(_by_slices(stack), stack)
    copy = np.empty_like(stack)
    compare = ctypes.CDLL(None).memcmp
    address, size = ctypes.c_void_p(stack.ctypes.data), ctypes.c_size_t(stack.nbytes)

    def check_own(found: Candidates) -> None:
        """Equal to maxima by another way; values differ, so they identify the cells."""
        expect(found.offsets.tolist() == [0, *np.cumsum([len(m) for m in maxima])], "other peaks")
        values = [stack[c, row, col] for c, kept in enumerate(maxima) for row, col in kept]
        expect(found.scores.tolist() == values, "other peaks")
        cells = np.array([cell for kept in maxima for cell in kept]).reshape(-1, 2)
        expect((np.abs(found.positions - cells) <= 1).all(), "far from the peaks")

    def check(cells: Cells) -> None:
        expect(_thinned(cells, stack) == maxima, "other peaks")

    def check_centroids(points: list[npt.NDArray[np.float64]]) -> None:
        for found, kept in zip(points, maxima, strict=True):
            distance = np.linalg.norm(found[:, np.newaxis] - np.array(kept), axis=2)
            expect(len(found) == len(kept) and (distance.min(axis=1) < 2).all(), "other peaks")

    contenders = [
        Contender("ivdtool", lambda: find_candidates(heatmaps, CONFIG), check_own),
        Contender(
            "ivdtool, any processor",
            lambda: find_candidates(heatmaps, CONFIG, portable=True),
            check_own,
        ),
        Contender("floor: read (NumPy max)", lambda: stack.max()),
        Contender("floor: read (memcmp with itself)", lambda: compare(address, address, size)),
        Contender("floor: copy (NumPy)", lambda: np.copyto(copy, stack)),
        Contender("NumPy, 3x3 by slices", lambda: _by_slices(stack), check),
    ]
    missing = []
    if (ndimage := optional("scipy.ndimage")) is not None:
        if blobs:
            contenders.append(
                Contender(
                    "papers: threshold, components",
                    lambda: _components(ndimage, stack),
                    check_centroids,
                )
            )
        contenders.append(
            Contender("SciPy maximum_filter 3x3", lambda: _scipy_maxima(ndimage, stack), check)
        )
    else:
        missing.append("SciPy is not installed")
    if (feature := optional("skimage.feature")) is not None:
        contenders.append(
            Contender("scikit-image peak_local_max", lambda: _skimage_maxima(feature, stack), check)
        )
    else:
        missing.append("scikit-image is not installed")
    if (cv2 := optional("cv2")) is not None:
        cv2.setNumThreads(1)  # as ours has
        contenders.append(
            Contender("OpenCV dilate 3x3", lambda: _cv2_maxima(cv2, stack, copy), check)
        )
    else:
        missing.append("OpenCV is not installed")
    if (torch := optional("torch")) is not None:
        tensor = torch.from_numpy(stack)
        threads = torch.get_num_threads()
        contenders.append(
            Contender(
                f"torch max_pool2d 3x3, {threads} threads",
                lambda: _torch_maxima(torch, tensor),
                check,
            )
        )
    channels, rows, cols = stack.shape
    return Case(
        stage="candidates",
        name=name,
        contenders=tuple(contenders),
        missing=tuple(missing),
        size={"channels": channels, "rows": rows, "cols": cols},
    )


def _thinned(cells: Cells, stack: Floats) -> list[list[tuple[int, int]]]:
    """The best peaks of every channel, none within the radius of a better one."""
    channels: list[list[tuple[int, int]]] = []
    values = stack[tuple(cells.T)]
    for channel in range(len(stack)):
        own = np.flatnonzero(cells[:, 0] == channel)
        kept: list[tuple[int, int]] = []
        for index in own[np.argsort(-values[own], kind="stable")]:
            row, col = int(cells[index, 1]), int(cells[index, 2])
            if all((row - r) ** 2 + (col - c) ** 2 > CONFIG.radius_mm**2 for r, c in kept):
                kept.append((row, col))
            if len(kept) == CONFIG.max_candidates:
                break
        channels.append(kept)
    return channels


def _by_slices(stack: Floats) -> Cells:
    padded = np.pad(stack, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    _, rows, cols = stack.shape
    largest = stack >= CONFIG.threshold
    for row in range(3):
        for col in range(3):
            largest &= stack >= padded[:, row : row + rows, col : col + cols]
    return np.argwhere(largest)


def _components(ndimage: Any, stack: Floats) -> list[npt.NDArray[np.float64]]:
    """The centroid of every group of cells above half of the channel's largest value."""
    points = []
    for heatmap in stack:
        share = heatmap / heatmap.max()
        groups, count = ndimage.label(share >= 0.5, structure=np.ones((3, 3)))
        centroids = ndimage.center_of_mass(groups > 0, groups, np.arange(1, count + 1))
        points.append(np.array(centroids).reshape(-1, 2))
    return points


def _scipy_maxima(ndimage: Any, stack: Floats) -> Cells:
    largest = ndimage.maximum_filter(stack, size=(1, 3, 3), mode="nearest")
    return np.argwhere((stack == largest) & (stack >= CONFIG.threshold))


def _skimage_maxima(feature: Any, stack: Floats) -> Cells:
    cells = [
        np.insert(
            feature.peak_local_max(
                heatmap, min_distance=1, threshold_abs=CONFIG.threshold, exclude_border=False
            ),
            0,
            channel,
            axis=1,
        )
        for channel, heatmap in enumerate(stack)
    ]
    return np.concatenate(cells)


def _cv2_maxima(cv2: Any, stack: Floats, largest: Floats) -> Cells:
    kernel = np.ones((3, 3), dtype=np.uint8)
    for heatmap, dilated in zip(stack, largest, strict=True):
        cv2.dilate(heatmap, kernel, dst=dilated)
    return np.argwhere((stack == largest) & (stack >= CONFIG.threshold))


def _torch_maxima(torch: Any, stack: Any) -> Cells:
    largest = torch.nn.functional.max_pool2d(stack, 3, stride=1, padding=1)
    cells: Cells = ((stack == largest) & (stack >= CONFIG.threshold)).nonzero().numpy()
    return cells
