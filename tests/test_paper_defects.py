"""Images on which the code published with the papers fails, and what happens here instead.

Each test says what that code does with them. Successors of it (disc-labeling-hourglass, ivadomed)
are meant too where they are named.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from ivdtool.candidates import find_candidates
from ivdtool.heatmaps import Heatmaps, draw_heatmaps
from ivdtool.search import Assignment, Mode, SearchConfig, search_skeleton
from ivdtool.skeleton import Skeleton

LABELS = tuple(range(3, 26))
COLS = 256


def rows_for(count: int) -> int:
    return max(256, 60 + 18 * count)


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
    shape = (rows_for(count), cols)
    return np.asarray(draw_heatmaps(points[None], shown[None], shape, 3.0)[0])


def label(values: npt.NDArray[np.float32], mode: Mode = "ls_chain") -> Assignment:
    count = len(values)
    candidates = find_candidates(Heatmaps(values, LABELS[:count], 1, (1.0, 1.0)))
    return search_skeleton(candidates, skeleton(count), SearchConfig(mode=mode))


def test_all_discs_visible() -> None:
    """IndexError: the target is read one channel past its end."""
    for mode in ("ls_chain", "first_last", "paper", "paper_order"):
        assert label(heatmaps(list(range(11))), mode).labels == LABELS[:11]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_fewer_than_five_discs(count: int) -> None:
    """IndexError: the fifth disc is read whether there is one or not."""
    assert label(heatmaps(list(range(count)), count)).labels == LABELS[:count]
    assert label(heatmaps(list(range(count)))).labels == LABELS[:count]


@pytest.mark.parametrize("cols", [64, 101, 400])
def test_image_that_is_not_square(cols: int) -> None:
    """ValueError: a rotated image is written into a buffer that is not."""
    found = label(heatmaps(list(range(11)), cols=cols))
    assert found.labels == LABELS[:11]
    np.testing.assert_allclose(found.positions[:, 1], cols / 2, atol=1e-6)


def test_pixels_that_are_not_square() -> None:
    """Every image is squashed to 256 x 256 pixels, and the geometry of the spine with it."""
    mean_mm = np.stack([18.0 * np.arange(11), 15 * np.sin(np.arange(11) / 3)], axis=1)
    curved = replace(skeleton(), mean_mm=mean_mm)
    spacing_mm = (1.25, 0.5)
    points = (mean_mm + (30, 60)) / spacing_mm
    sigma = (3 / spacing_mm[0], 3 / spacing_mm[1])
    values = draw_heatmaps(points[None], np.ones((1, 11)), (220, 256), sigma)[0]
    found = search_skeleton(
        find_candidates(Heatmaps(values, LABELS[:11], 1, spacing_mm)), curved, SearchConfig()
    )
    assert found.labels == LABELS[:11]
    assert found.scale == pytest.approx(1, abs=1e-4)
    assert found.rotation_rad == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_channel_without_a_peak(value: float) -> None:
    """Zero: NaN, and the search is skipped: false positives stay. Negative: all of it is a peak."""
    values = heatmaps(list(range(11)))
    values[2] = np.maximum(values[2], np.roll(values[2], (30, 40), axis=(0, 1)))  # a false one
    values[6] = value
    found = label(values)
    assert found.labels == tuple(x for x in LABELS[:11] if x != 9)
    np.testing.assert_allclose(found.positions[:, 1], COLS / 2, atol=1e-6)


@pytest.mark.parametrize("count", [11, 23])
def test_channels_of_noise(count: int) -> None:
    """253 candidates in one channel, as the threshold is relative only; then K^V of them."""
    absent = [4, 7, 13, 19]
    present = [i for i in range(count) if i not in absent]
    values = heatmaps(present, count)
    random = np.random.default_rng(0)
    for i in set(range(count)) - set(present):
        values[i] = 0.02 * random.random(values.shape[1:], dtype=np.float32)
    found = label(values)
    assert found.labels == tuple(LABELS[i] for i in present)
    assert found.nodes < 100


def test_disc_missing_in_the_middle() -> None:
    """Blobs are numbered in raster order: every disc below the gap gets the wrong label."""
    found = label(heatmaps([0, 1, 2, 6, 7, 8, 9, 10]))
    assert found.labels == (3, 4, 5, 9, 10, 11, 12, 13)


def test_template_keeps_its_rows_where_a_channel_is_left_out() -> None:
    """disc-labeling-hourglass compares later discs with the rows above their own."""
    steps = 12.0 + np.arange(10)  # no two alike
    mean_mm = np.stack([np.concatenate([[0], np.cumsum(steps)]), np.zeros(11)], axis=1)
    uneven = replace(skeleton(), mean_mm=mean_mm)
    points = mean_mm + (30, COLS / 2)
    shown = np.isin(np.arange(11), [0, 1, 2, 4, 5, 7, 8, 9, 10])
    values = draw_heatmaps(points[None], shown[None], (256, COLS), 3.0)[0]
    candidates = find_candidates(Heatmaps(values, LABELS[:11], 1, (1.0, 1.0)))
    modes: tuple[Mode, ...] = ("ls_chain", "first_last", "paper", "paper_order")
    for mode in modes:
        found = search_skeleton(candidates, uneven, SearchConfig(mode=mode))
        assert found.labels == (3, 4, 5, 7, 8, 10, 11, 12, 13)
        assert found.terms["shape" if mode.startswith("paper") else "shape_mm2"] < 1e-6


def test_a_false_peak_does_not_cost_the_discs_around_it() -> None:
    """disc-labeling-hourglass deletes, after the search, all that lies above an earlier disc."""
    values = heatmaps(list(range(11)))
    values[1] = np.roll(values[1], 150, axis=0)  # far below where it belongs
    assert label(values).labels == tuple(x for x in LABELS[:11] if x != 4)


@pytest.mark.parametrize("apart", [7, 10])
def test_two_peaks_close_to_each_other_do_not_merge(apart: int) -> None:
    """Components merge, and the candidate is their centroid between them."""
    values = heatmaps(list(range(11)))
    values[5] = np.maximum(values[5], 0.9 * np.roll(values[5], apart, axis=1))
    found = label(values)
    assert found.labels == LABELS[:11]
    assert found.positions[5] == pytest.approx([120, 128], abs=0.1)


def test_two_peaks_do_not_make_a_third() -> None:
    """HCA-Net adds the mean of all centroids, where there is no disc."""
    values = heatmaps(list(range(11)))
    values[5] = np.maximum(values[5], np.roll(values[5], 60, axis=1))
    candidates = find_candidates(Heatmaps(values, LABELS[:11], 1, (1.0, 1.0)))
    np.testing.assert_allclose(
        candidates.positions[candidates.of(5)], [[120, 128], [120, 188]], atol=1e-6
    )


def test_discs_so_close_that_they_touch_keep_their_labels() -> None:
    """Channels are summed, labels and touching discs lost, and components looked for again."""
    points = np.stack([30 + 5.0 * np.arange(11), np.full(11, 64.0)], axis=1)
    values = draw_heatmaps(points[None], np.ones((1, 11)), (110, 128), 3.0)[0]
    assert values.sum(axis=0)[30:81, 64].min() > 1  # one blob
    candidates = find_candidates(Heatmaps(values, LABELS[:11], 1, (3.6, 3.6)))
    found = search_skeleton(candidates, skeleton(), SearchConfig())
    assert found.labels == LABELS[:11]
    np.testing.assert_allclose(found.positions, points, atol=1e-4)


def test_both_anchors_absent() -> None:
    """Nothing can be normalised without the first and the fifth disc."""
    values = heatmaps([1, 2, 3, 5, 6, 7, 8, 9, 10])
    expected = tuple(x for x in LABELS[:11] if x not in (3, 7))
    assert label(values).labels == expected
    assert label(values, "first_last").labels == expected
    assert label(values, "paper").labels == ()
    assert label(values, "paper_order").labels == ()


@pytest.mark.parametrize("others", [1, 3])
@pytest.mark.parametrize("count", [11, 23])
def test_several_candidates_in_every_channel(count: int, others: int) -> None:
    """All K^V combinations take minutes to years.

    disc-labeling-hourglass refuses four candidates in each channel ("too many possibilities"), and
    leaves out channels beyond 1000 combinations: with two candidates, all but nine.
    """
    values = heatmaps(list(range(count)), count)
    for shift in (21, -17, 43)[:others]:
        values = np.maximum(values, 0.95 * np.roll(values, shift, axis=2))
    found = label(values)
    assert found.labels == LABELS[:count]
    assert found.optimal
    assert found.nodes < 10_000


def test_drawn_discs_are_centred_whole_and_as_wide_as_said() -> None:
    """Half a pixel off and cut at one sigma (ivadomed); quantised, sigma^2 for sigma (paper 1)."""
    for point in ((32.0, 32.0), (31.3, 33.6)):
        drawn = draw_heatmaps([[point]], [[True]], (65, 65), 5.0)[0, 0].astype(np.float64)
        grid = np.stack(np.meshgrid(np.arange(65), np.arange(65), indexing="ij"))
        centroid = (drawn * grid).sum(axis=(1, 2)) / drawn.sum()
        np.testing.assert_allclose(centroid, point, atol=2e-3)
        offset = grid - np.array(point)[:, None, None]
        variance = (drawn * offset**2).sum(axis=(1, 2)) / drawn.sum()
        np.testing.assert_allclose(variance, 25, rtol=0.01)
        assert 0 < drawn[drawn > 0].min() < 1e-6
