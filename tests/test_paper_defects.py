"""Images on which the code published with the papers fails, and what happens here instead."""

import numpy as np
import numpy.typing as npt
import pytest

from ivdtool.candidates import find_candidates
from ivdtool.heatmaps import Heatmaps, draw_heatmaps
from ivdtool.search import Assignment, Mode, SearchConfig, search_skeleton
from ivdtool.skeleton import Skeleton

LABELS = tuple(range(3, 14))
ROWS, COLS = 256, 256


def skeleton(count: int = 11) -> Skeleton:
    return Skeleton(
        labels=LABELS[:count],
        mean_mm=np.stack([18.0 * np.arange(count), np.zeros(count)], axis=1),
        disc_sd_mm=np.full(count, 3.0),
        step_sd_mm=np.full(count - 1, 1.5),
        missing_rate=np.zeros(count),
    )


def heatmaps(visible: list[int], count: int = 11, cols: int = COLS) -> npt.NDArray[np.float32]:
    points = np.stack([30 + 18.0 * np.arange(count), np.full(count, cols / 2)], axis=1)
    shown = np.isin(np.arange(count), visible)
    return np.asarray(draw_heatmaps(points[None], shown[None], (ROWS, cols), 3.0)[0])


def label(values: npt.NDArray[np.float32], mode: Mode = "ls_chain") -> Assignment:
    count = len(values)
    candidates = find_candidates(Heatmaps(values, LABELS[:count], 1, (1.0, 1.0)))
    return search_skeleton(candidates, skeleton(count), SearchConfig(mode=mode))


def test_all_discs_visible() -> None:
    """IndexError: the target is read one channel past its end."""
    for mode in ("ls_chain", "first_last", "paper", "paper_order"):
        assert label(heatmaps(list(range(11))), mode).labels == LABELS


@pytest.mark.parametrize("count", [2, 3, 4])
def test_fewer_than_five_discs(count: int) -> None:
    """IndexError: the fifth disc is read whether there is one or not."""
    assert label(heatmaps(list(range(count)), count)).labels == LABELS[:count]
    assert label(heatmaps(list(range(count)))).labels == LABELS[:count]


@pytest.mark.parametrize("cols", [64, 101, 400])
def test_image_that_is_not_square(cols: int) -> None:
    """ValueError: a rotated image is written into a buffer that is not."""
    found = label(heatmaps(list(range(11)), cols=cols))
    assert found.labels == LABELS
    np.testing.assert_allclose(found.positions[:, 1], cols / 2, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_channel_without_a_peak(value: float) -> None:
    """Zero: NaN, and the search is skipped. Negative: the frame becomes one candidate."""
    values = heatmaps(list(range(11)))
    values[6] = value
    assert label(values).labels == tuple(x for x in LABELS if x != 9)


def test_channel_of_noise() -> None:
    """253 candidates in one channel, as the threshold is relative only; then K^V of them."""
    values = heatmaps([0, 1, 2, 3, 5, 6, 8, 9, 10])
    noise = np.random.default_rng(0).random((2, ROWS, COLS), dtype=np.float32)
    values[[4, 7]] = 0.02 * noise
    found = label(values)
    assert found.labels == tuple(x for x in LABELS if x not in (7, 10))
    assert found.nodes < 100


def test_disc_missing_in_the_middle() -> None:
    """Blobs are numbered in raster order: every disc below the gap gets the wrong label."""
    found = label(heatmaps([0, 1, 2, 6, 7, 8, 9, 10]))
    assert found.labels == (3, 4, 5, 9, 10, 11, 12, 13)


def test_two_peaks_close_to_each_other_stay_two() -> None:
    """Components merge, and the candidate is their centroid between them."""
    values = heatmaps(list(range(11)))
    values[5] = np.maximum(values[5], 0.9 * np.roll(values[5], 10, axis=1))
    found = label(values)
    assert found.labels == LABELS
    assert found.positions[5] == pytest.approx([120, 128], abs=0.1)


def test_both_anchors_absent() -> None:
    """Nothing can be normalised without the first and the fifth disc."""
    values = heatmaps([1, 2, 3, 5, 6, 7, 8, 9, 10])
    expected = tuple(x for x in LABELS if x not in (3, 7))
    assert label(values).labels == expected
    assert label(values, "first_last").labels == expected
    assert label(values, "paper").labels == ()
    assert label(values, "paper_order").labels == ()


def test_many_candidates_in_every_channel() -> None:
    """Four candidates in each channel are refused ("too many possibilities") or take minutes."""
    values = heatmaps(list(range(11)))
    for shift in (21, -17, 43):
        values = np.maximum(values, 0.95 * np.roll(values, shift, axis=2))
    assert label(values).labels == LABELS
