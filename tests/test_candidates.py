from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests import oracles

from ivdtool import _core
from ivdtool.candidates import CandidateConfig, Candidates, find_candidates
from ivdtool.heatmaps import Heatmaps, cells_to_pixels, draw_heatmaps


def heatmaps_of(values: npt.ArrayLike, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> Heatmaps:
    """Heatmaps of stride 1: cells are pixels."""
    stack = np.asarray(values, dtype=np.float32)
    return Heatmaps(stack, tuple(range(3, 3 + len(stack))), 1, spacing_mm)


def cells_of(candidates: Candidates, channel: int = 0) -> list[tuple[int, int]]:
    """The integer peaks of sub-pixel positions that have not moved by half a cell or more."""
    return [(round(row), round(col)) for row, col in candidates.positions[candidates.of(channel)]]


@pytest.mark.parametrize("smooth", [0, 1, 3])
@pytest.mark.parametrize("shape", [(33, 47), (1, 40), (40, 1), (16, 9), (64, 64), (2, 2)])
def test_peaks_are_those_of_maximum_filter(smooth: int, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng([smooth, *shape])
    for _ in range(20):
        stack: npt.NDArray[Any] = rng.random((3, *shape))
        for _ in range(smooth):
            stack = (stack + np.roll(stack, 1, 1) + np.roll(stack, 1, 2)) / 3
        stack = stack.astype(np.float32) - np.float32(0.2)
        spacing = (float(rng.uniform(0.5, 4)), float(rng.uniform(0.5, 4)))
        config = CandidateConfig(
            threshold=float(rng.choice([0.05, 0.3])),
            threshold_relative=float(rng.choice([0.0, 0.5, 1.0])),
            radius_mm=float(rng.choice([0.0, 3.0, 10.0, 1000.0])),
            max_candidates=int(rng.choice([1, 3, 50])),
        )
        found = find_candidates(heatmaps_of(stack, spacing), config)
        for channel, heatmap in enumerate(stack):
            floor = max(
                np.float32(config.threshold), np.float32(config.threshold_relative) * heatmap.max()
            )
            peaks = oracles.find_peaks(
                heatmap, floor, config.radius_mm, spacing, config.max_candidates
            )
            scores = found.scores[found.of(channel)]
            assert scores.tolist() == [heatmap[peak] for peak in peaks]
            offset = found.positions[found.of(channel)] - np.array(peaks).reshape(-1, 2)
            assert (abs(offset) <= 1).all()


def difficult_heatmaps(rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Any shape, narrow and wide, with plateaus, NaN, infinity, negative and constant channels."""
    shape = rng.integers((1, 1, 1), (4, 30, 140))
    stack = rng.normal(0.3, 0.3, shape).astype(np.float32)
    kind = rng.integers(6)
    if kind == 0:
        stack = np.round(stack, 1)  # plateaus and ties
    elif kind == 1:
        stack[rng.random(shape) < 0.3] = np.nan
    elif kind == 2:
        special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3e38], dtype=np.float32)
        chosen = rng.random(shape) < 0.2
        stack[chosen] = rng.choice(special, chosen.sum())
    elif kind == 3:
        stack[0] = rng.choice(np.array([0.5, -0.5, 0.0, np.nan], dtype=np.float32))
        stack[-1] = -abs(stack[-1])
    elif kind == 4:
        stack = np.where(rng.random(shape) < 0.02, stack, np.float32(0))
    return stack


def test_every_processor_finds_the_same_peaks() -> None:
    """Against a plain test of all neighbours, ties and NaN included, with and without AVX2."""
    for seed in range(1500):
        rng = np.random.default_rng(seed)
        stack = difficult_heatmaps(rng)
        threshold = float(rng.choice([0.05, 0.3, 1.0]))
        relative = float(rng.choice([0.0, 0.5, 1.0]))
        radius, count = float(rng.choice([0.0, 2.0, 7.0])), int(rng.choice([1, 4, 10**6]))
        arguments = (stack, 1, threshold, relative, radius, (1.0, 1.5), count)
        found = _core.find_candidates(*arguments, portable=False)
        for array, other in zip(
            found, _core.find_candidates(*arguments, portable=True), strict=True
        ):
            assert array.tobytes() == other.tobytes()
        _, scores, offsets = found
        for channel, heatmap in enumerate(stack):
            largest = np.nanmax(heatmap, initial=-np.inf)
            floor = np.float32(threshold)
            if relative > 0:
                floor = max(floor, np.float32(relative) * largest)
            kept: list[tuple[int, int]] = []
            for row, col in oracles.find_all_peaks(heatmap, float(floor)):
                near = [np.hypot(row - r, 1.5 * (col - c)) <= radius for r, c in kept]
                if len(kept) < count and not any(near):
                    kept.append((row, col))
            own = scores[offsets[channel] : offsets[channel + 1]]
            assert own.tolist() == [heatmap[cell] for cell in kept]


def test_few_candidates_are_the_first_of_many() -> None:
    """However small the store of peaks: the best are never lost from it."""
    rng = np.random.default_rng(4)
    for _ in range(30):
        stack = rng.random((2, 60, 90), dtype=np.float32)
        radius = float(rng.choice([0.0, 1.0, 2.5, 12.0]))
        arguments = (stack, 1, 0.1, 0.0, radius, (1.0, 1.0))
        positions, _, offsets = _core.find_candidates(*arguments, 10**6, portable=False)
        for count in (1, 2, 7, 40):
            few, _, few_offsets = _core.find_candidates(*arguments, count, portable=False)
            for channel in range(2):
                first = few[few_offsets[channel] : few_offsets[channel + 1]]
                everything = positions[offsets[channel] : offsets[channel + 1]]
                np.testing.assert_array_equal(first, everything[:count])


def test_points_to_heatmaps_to_candidates_is_the_identity() -> None:
    """At any place, borders and corners included, at the sizes the network uses."""
    rng = np.random.default_rng(1)
    for stride, sigma in [(1, 3.16), (4, 1.25), (4, 1.5), (8, 2.0)]:
        shape = (40, 28)
        last = np.array(shape) - 1.0
        points = rng.uniform(0, last, (1, 400, 2))
        edge = rng.integers(0, 4, 200)
        points[0, :200][edge == 0, 0] = 0.0
        points[0, :200][edge == 1, 0] = last[0]
        points[0, :200][edge == 2, 1] = 0.0
        points[0, :200][edge == 3, 1] = last[1]
        points[0, :4] = last * [[0, 0], [0, 1], [1, 0], [1, 1]]
        points[0, 4:8] = [[9.5, 7.5], [9.5, 7.0], [0.5, 0.5], [0.0, 7.5]]  # between cells
        values = draw_heatmaps(points, np.ones((1, 400)), shape, sigma)[0]
        heatmaps = Heatmaps(values, tuple(range(400)), stride, (float(stride), float(stride)))
        found = find_candidates(heatmaps)
        assert found.offsets.tolist() == list(range(401))
        np.testing.assert_allclose(found.positions, cells_to_pixels(points[0], stride), atol=1e-4)
        assert found.spacing_mm == (1.0, 1.0)


def test_position_outside_the_frame_is_found_from_what_is_inside() -> None:
    values = draw_heatmaps([[[-0.4, 5.0]]], [[True]], (12, 12), 1.5)[0]
    found = find_candidates(heatmaps_of(values))
    np.testing.assert_allclose(found.positions, [[-0.4, 5.0]], atol=1e-4)


def test_position_without_noise() -> None:
    rng = np.random.default_rng(6)
    points = rng.uniform(12, 20, (1, 1500, 2))
    values = np.float32(0.9) * draw_heatmaps(points, np.ones((1, 1500)), (32, 32), 3.16)[0]
    found = find_candidates(heatmaps_of(values), CandidateConfig(max_candidates=1))
    assert np.sqrt(np.mean(np.sum((found.positions - points[0]) ** 2, axis=1))) < 2e-6
    assert np.abs(found.positions - points[0]).max() < 1e-5


def test_position_under_noise() -> None:
    """White noise of 1 % moves positions by 0.02 px rms; a 3 x 3 fit would lose 0.1."""
    rng = np.random.default_rng(2)
    points = rng.uniform(12, 20, (1, 500, 2))
    for sigma, limit in [(3.16, 0.025), (1.25, 0.025)]:
        values = 0.9 * draw_heatmaps(points, np.ones((1, 500)), (32, 32), sigma)[0]
        values += rng.normal(0, 0.01, values.shape).astype(np.float32)
        found = find_candidates(heatmaps_of(values), CandidateConfig(max_candidates=1))
        rms = np.sqrt(np.mean(np.sum((found.positions - points[0]) ** 2, axis=1)))
        assert rms < limit


def test_a_second_peak_nearby_hardly_moves_the_first() -> None:
    """Discs of the neck are 15 mm apart, less than four cells; their channels may show both."""
    points = np.array([[[10.3, 10.2], [14.05, 10.7]]])
    both = draw_heatmaps(points, np.ones((1, 2)), (24, 24), 1.25)[0].max(axis=0)
    found = find_candidates(heatmaps_of(both[np.newaxis], (4.0, 4.0)))
    order = np.argsort(found.positions[:, 0])
    np.testing.assert_allclose(found.positions[order], points[0], atol=0.25)


def test_a_plateau_has_its_peak_first_in_raster_order() -> None:
    values = np.zeros((1, 9, 9))
    values[0, 3:5, 4:7] = 0.8
    found = find_candidates(heatmaps_of(values), CandidateConfig(radius_mm=0))
    assert len(found.scores) == 1
    assert np.abs(found.positions[0] - (3, 4)).max() <= 1


def test_equal_peaks_are_kept_in_raster_order() -> None:
    values = np.zeros((1, 20, 20))
    for cell in [(15, 3), (3, 15), (3, 3), (15, 15)]:
        values[0][cell] = 0.5
    found = find_candidates(heatmaps_of(values), CandidateConfig(max_candidates=3))
    assert cells_of(found) == [(3, 3), (3, 15), (15, 3)]


def test_no_wrap_around_from_row_to_row() -> None:
    values = np.zeros((1, 4, 12))
    values[0, 1, 11] = 0.9
    values[0, 2, 0] = 0.8
    found = find_candidates(heatmaps_of(values))
    assert cells_of(found) == [(1, 11), (2, 0)]


def test_nan_never_wins() -> None:
    values = np.full((3, 8, 12), np.nan)
    values[1, 4, 4] = 0.7  # the only number
    values[2] = 0.0
    values[2, 0, 0] = np.nan
    values[2, 1, 1] = 0.6
    found = find_candidates(heatmaps_of(values))
    assert found.offsets.tolist() == [0, 0, 1, 2]
    assert cells_of(found, 1) == [(4, 4)]
    assert np.isfinite(found.positions).all()


@pytest.mark.parametrize(
    ("name", "value"), [("zero", 0.0), ("noise", 0.02), ("all negative", -3.0), ("nan", np.nan)]
)
def test_an_empty_channel_has_no_candidates(name: str, value: float) -> None:
    """Thresholds relative to each channel's maximum turn such channels into many candidates."""
    rng = np.random.default_rng(3)
    values = value * rng.uniform(0.5, 1.0, (2, 30, 20))
    values[1] = draw_heatmaps([[[12.0, 7.0]]], [[True]], (30, 20), 1.5)[0, 0]
    found = find_candidates(heatmaps_of(values))
    assert found.offsets.tolist() == [0, 0, 1], name


def test_a_constant_channel_has_one_candidate() -> None:
    found = find_candidates(heatmaps_of(np.full((1, 6, 7), 0.5)), CandidateConfig(radius_mm=0))
    assert cells_of(found) == [(0, 0)]


def test_infinite_value_keeps_its_cell() -> None:
    values = np.zeros((1, 6, 7))
    values[0, 2, 3] = np.inf
    with pytest.raises(ValueError, match="finite"):
        find_candidates(heatmaps_of(values))


def test_suppression_is_in_millimetres() -> None:
    values = np.zeros((1, 30, 30))
    values[0, 10, 10] = 0.9
    values[0, 14, 10] = 0.8  # 4 rows of 1 mm away
    values[0, 10, 14] = 0.7  # 4 columns of 3 mm away
    found = find_candidates(heatmaps_of(values, (1.0, 3.0)), CandidateConfig(radius_mm=8.0))
    assert cells_of(found) == [(10, 10), (10, 14)]


def test_suppressed_peaks_do_not_suppress() -> None:
    values = np.zeros((1, 3, 30))
    values[0, 1, [2, 8, 14]] = [0.9, 0.8, 0.7]
    found = find_candidates(heatmaps_of(values), CandidateConfig(radius_mm=8.0))
    assert cells_of(found) == [(1, 2), (1, 14)]


def test_channels_without_any_heatmap() -> None:
    found = find_candidates(Heatmaps(np.zeros((0, 4, 4), np.float32), (), 4, (4.0, 4.0)))
    assert found.offsets.tolist() == [0]
    assert found.positions.shape == (0, 2)


def test_positions_are_image_pixels_and_millimetres() -> None:
    values = draw_heatmaps([[[5.0, 2.25]]], [[True]], (12, 8), 1.25)[0]
    found = find_candidates(Heatmaps(values, (7,), 4, (3.2, 2.4)))
    assert found.spacing_mm == pytest.approx((0.8, 0.6))
    np.testing.assert_allclose(found.positions, [[21.5, 10.5]], atol=1e-4)
    np.testing.assert_allclose(found.positions_mm, [[21.5 * 0.8, 10.5 * 0.6]], atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("threshold", 0.0),
        ("threshold", float("nan")),
        ("threshold_relative", -0.1),
        ("threshold_relative", 1.1),
        ("radius_mm", -1.0),
        ("radius_mm", float("inf")),
        ("max_candidates", 0),
    ],
)
def test_config_refuses(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{setting} .*{value}"):
        CandidateConfig(**{setting: value})


def test_candidates_check_their_parts() -> None:
    good: dict[str, Any] = {
        "positions": np.zeros((2, 2)),
        "scores": np.ones(2),
        "offsets": np.array([0, 2]),
        "labels": (3,),
        "spacing_mm": (1.0, 1.0),
    }
    Candidates(**good)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"positions": np.zeros((3, 2))}, "as positions"),
        ({"labels": (3, 4)}, "for V channels"),
        ({"offsets": np.array([0, 1])}, "from 0 to N"),
        ({"offsets": np.array([1, 2])}, "from 0 to N"),
        ({"positions": np.full((2, 2), np.nan)}, "finite"),
        ({"spacing_mm": (1.0, -1.0)}, "positive"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            Candidates(**{**good, **change})


def test_empty_heatmaps_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        find_candidates(Heatmaps(np.zeros((1, 0, 4), np.float32), (3,), 4, (4.0, 4.0)))


def test_only_those_that_a_mask_keeps() -> None:
    candidates = Candidates(
        positions=np.arange(10.0).reshape(5, 2),
        scores=np.array([0.9, 0.8, 0.7, 0.6, 0.5]),
        offsets=np.array([0, 2, 2, 4, 5]),
        labels=(3, 4, 5, 6),
        spacing_mm=(1.0, 1.0),
    )
    kept = candidates.only(np.array([False, True, True, False, False]))
    np.testing.assert_array_equal(kept.positions, [[2, 3], [4, 5]])
    np.testing.assert_array_equal(kept.scores, [0.8, 0.7])
    np.testing.assert_array_equal(kept.offsets, [0, 1, 1, 2, 2])
    assert kept.labels == candidates.labels
