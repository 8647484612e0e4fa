"""What must not matter to the answers of the kernels."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.problems import banded_problem, random_problem

from ivdtool import _core
from ivdtool.candidates import CandidateConfig, Candidates, find_candidates
from ivdtool.heatmaps import Heatmaps, draw_heatmaps

Array = npt.NDArray[Any]
Problem = dict[str, Any]
SEEDS = st.integers(0, 10**6)

# Searches.

LISTS = ["positions_mm", "scores", "offsets", "mean_mm", "n_best", "with_margins"]
ORDER = ["missing_costs", "min_gap"]
LIMITS = ["score_weight_mm2", "max_rotation_rad", "min_scale", "max_scale"]
MODES = {
    "paper": [*LISTS, "anchors", "squared"],
    "paper_order": [*LISTS, *ORDER, "anchors", "squared"],
    "first_last": [*LISTS, *ORDER, *LIMITS],
    "ls_chain": [*LISTS, *ORDER, *LIMITS, "disc_weights", "pair_weights", "chain_weight"]
    + [
        "min_present",
        "max_present",
        "rules",
        "borrow_mm2",
        "offset_change_mm2",
        "offset_start_mm2",
        "node_budget",
    ]
    + ["tree_size"],
}


def problem_for(mode: str, seed: int, kind: Callable[..., Problem]) -> Problem:
    rng = np.random.default_rng(seed)
    problem = kind(rng, 6, 3) | {
        "anchors": tuple(rng.choice(6, 2, replace=False).tolist()),
        "squared": bool(rng.random() < 0.5),
        "n_best": 3,
    }
    if mode == "paper_order":
        problem["missing_costs"] = problem["missing_costs"] / 1000  # units of the distance v1 - v5
    return problem


class Answer(NamedTuple):
    choices: Array
    costs: Array
    margins: Array


def search(mode: str, problem: Problem) -> Answer:
    arguments = {name: problem[name] for name in MODES[mode]}
    result = getattr(_core, f"search_{mode}")(**arguments)
    return Answer(result.choices, result.costs, result.margins)


def assert_same(before: Answer, after: Answer, unit: float = 1.0) -> None:
    """But for the unit of costs; ties may be broken otherwise."""
    costs = before.costs
    np.testing.assert_allclose(costs * unit, after.costs, rtol=1e-8, atol=1e-6 * unit)
    np.testing.assert_allclose(before.margins * unit, after.margins, rtol=1e-8, atol=1e-6 * unit)
    if len(costs) == 1 or (len(costs) > 1 and costs[1] - costs[0] > 1e-6):
        np.testing.assert_array_equal(before.choices[0], after.choices[0])


def rotate(points: Array, angle: float) -> Array:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.asarray(points @ [[cos, sin], [-sin, cos]])


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40)
@given(
    seed=SEEDS,
    angle=st.floats(-0.2, 0.2),
    scale=st.floats(0.5, 2.0),
    shift=st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)),
)
def test_where_the_spine_lies_and_how_large_it_is(
    mode: str, seed: int, angle: float, scale: float, shift: tuple[float, float]
) -> None:
    """Nor how it is turned, but for the paper's modes; without limits, which are met by that."""
    problem = problem_for(mode, seed, banded_problem)
    turned = rotate(problem["positions_mm"], 0.0 if mode.startswith("paper") else angle)
    moved = problem | {"positions_mm": scale * turned + shift}
    assert_same(search(mode, problem), search(mode, moved))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40)
@given(seed=SEEDS, shift=st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)))
def test_where_the_skeleton_lies(mode: str, seed: int, shift: tuple[float, float]) -> None:
    problem = problem_for(mode, seed, random_problem)
    moved = problem | {"mean_mm": problem["mean_mm"] + shift}
    assert_same(search(mode, problem), search(mode, moved))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40)
@given(seed=SEEDS, unit=st.floats(0.1, 10.0))
def test_the_unit_of_length(mode: str, seed: int, unit: float) -> None:
    """Limits of scale and rotation included. Costs are areas, but for the paper's."""
    problem = problem_for(mode, seed, random_problem)
    area = 1.0 if mode.startswith("paper") else unit**2
    other = dict(problem)
    for name in ("positions_mm", "mean_mm"):
        other[name] = unit * problem[name]
    for name in ("missing_costs", "score_weight_mm2"):
        other[name] = area * problem[name]
    assert_same(search(mode, problem), search(mode, other), area)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40)
@given(seed=SEEDS)
def test_left_and_right(mode: str, seed: int) -> None:
    """A mirrored image against a mirrored skeleton."""
    problem = problem_for(mode, seed, random_problem)
    mirrored = {name: problem[name] * [1.0, -1.0] for name in ("positions_mm", "mean_mm")}
    assert_same(search(mode, problem), search(mode, problem | mirrored))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40)
@given(seed=SEEDS, borrow=st.sampled_from([math.inf, 0.0, 20.0]))
def test_up_and_down(mode: str, seed: int, borrow: float) -> None:
    """The channels in reverse order, and image and skeleton upside down."""
    problem = problem_for(mode, seed, random_problem)
    problem |= {"borrow_mm2": borrow, "offset_change_mm2": 30.0}
    last = len(problem["mean_mm"]) - 1
    count = len(problem["scores"])
    turned = problem | {
        "positions_mm": problem["positions_mm"][::-1] * [-1.0, 1.0],
        "scores": problem["scores"][::-1].copy(),
        "offsets": count - problem["offsets"][::-1],
        "mean_mm": problem["mean_mm"][::-1] * [-1.0, 1.0],
        "missing_costs": problem["missing_costs"][::-1].copy(),
        "disc_weights": problem["disc_weights"][::-1].copy(),
        "pair_weights": np.ascontiguousarray(problem["pair_weights"][::-1, ::-1].T),
        "anchors": tuple(last - anchor for anchor in problem["anchors"]),
    }
    choices, costs, margins = search(mode, turned)
    choices = np.where(choices < 0, -1, count - 1 - choices)
    assert_same(search(mode, problem), Answer(choices[:, ::-1], costs, margins[::-1]))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=40)
@given(seed=SEEDS)
def test_the_order_of_candidates(mode: str, seed: int) -> None:
    """Within their channels, and but for their indices."""
    problem = problem_for(mode, seed, random_problem)
    rng = np.random.default_rng(seed)
    parts = [a + rng.permutation(b - a) for a, b in pairwise(problem["offsets"])]
    order = np.concatenate(parts).astype(np.int64)
    shuffled = {name: problem[name][order] for name in ("positions_mm", "scores")}
    choices, costs, margins = search(mode, problem | shuffled)
    choices = np.append(order, -1)[choices]
    assert_same(search(mode, problem), Answer(choices, costs, margins))


@pytest.mark.parametrize("mode", ["paper_order", "first_last", "ls_chain"])
@settings(max_examples=40)
@given(seed=SEEDS, place=st.integers(0, 6))
def test_a_channel_that_never_fires_and_may_be_missing_for_nothing(
    mode: str, seed: int, place: int
) -> None:
    """Apart from the steps over it: without them it is as if it did not exist."""
    problem = problem_for(mode, seed, random_problem)
    wider = problem | {
        "offsets": np.insert(problem["offsets"], place, problem["offsets"][place]),
        "mean_mm": np.insert(problem["mean_mm"], place, (17.0, 3.0), axis=0),
        "missing_costs": np.insert(problem["missing_costs"], place, 0.0),
        "disc_weights": np.insert(problem["disc_weights"], place, 2.0),
        "rules": np.insert(problem["rules"], place, 0),
        "pair_weights": np.insert(
            np.insert(problem["pair_weights"], place, 9.0, axis=0), place, 9.0, axis=1
        ),
        "anchors": tuple(anchor + (anchor >= place) for anchor in problem["anchors"]),
    }
    choices, costs, margins = search(mode, wider)
    margins = np.delete(margins, place) if len(margins) > 0 else margins  # none without a labelling
    choices = np.delete(choices, place, axis=1)
    assert_same(search(mode, problem), Answer(choices, costs, margins))


# Heatmaps. Points and widths are multiples of 1/16, so that moving them rounds nothing.

COUNT, ROWS, COLS = 5, 24, 40


def discs(seed: int) -> tuple[Array, Array, tuple[float, float]]:
    rng = np.random.default_rng(seed)
    points = rng.integers(-64, 16 * 48, (1, COUNT, 2)) / 16
    sigma = rng.integers(4, 100, 2) / 16
    return points, rng.random((1, COUNT)) < 0.8, (float(sigma[0]), float(sigma[1]))


@given(seed=SEEDS, down=st.integers(-30, 30), right=st.integers(-30, 30))
def test_drawing_follows_the_points(seed: int, down: int, right: int) -> None:
    points, visible, sigma = discs(seed)
    rows, cols = 3 * ROWS, 3 * COLS
    drawn = draw_heatmaps(points, visible, (rows, cols), sigma)
    moved = draw_heatmaps(points + (down, right), visible, (rows, cols), sigma)
    # Values are made from cell to cell, from the first one in the frame on.
    np.testing.assert_allclose(
        moved[..., max(down, 0) : rows + down, max(right, 0) : cols + right],
        drawn[..., max(-down, 0) : rows - down, max(-right, 0) : cols - right],
        rtol=1e-6,
        atol=0,
    )


@given(seed=SEEDS)
def test_drawing_knows_no_left_and_right(seed: int) -> None:
    points, visible, sigma = discs(seed)
    mirrored = np.stack([points[..., 0], COLS - 1 - points[..., 1]], axis=-1)
    drawn = draw_heatmaps(points, visible, (ROWS, COLS), sigma)
    np.testing.assert_allclose(
        draw_heatmaps(mirrored, visible, (ROWS, COLS), sigma)[..., ::-1], drawn, rtol=1e-6
    )


@given(seed=SEEDS)
def test_drawing_treats_rows_and_columns_alike(seed: int) -> None:
    points, visible, sigma = discs(seed)
    drawn = draw_heatmaps(points, visible, (ROWS, COLS), sigma)
    turned = draw_heatmaps(points[..., ::-1], visible, (COLS, ROWS), sigma[::-1])
    np.testing.assert_array_equal(turned.swapaxes(-1, -2), drawn)


@given(seed=SEEDS)
def test_drawing_treats_channels_alike(seed: int) -> None:
    points, visible, sigma = discs(seed)
    order = np.random.default_rng(seed).permutation(COUNT)
    drawn = draw_heatmaps(points, visible, (ROWS, COLS), sigma)
    np.testing.assert_array_equal(
        draw_heatmaps(points[:, order], visible[:, order], (ROWS, COLS), sigma), drawn[:, order]
    )


# Candidates, of smooth values without ties.


def smooth_values(seed: int) -> Array:
    rng = np.random.default_rng(seed)
    values = rng.random((3, ROWS, COLS))
    for _ in range(int(rng.integers(0, 4))):
        values = (values + np.roll(values, 1, 1) + np.roll(values, 1, 2)) / 3
    return values.astype(np.float32)


def candidates_in(
    values: Array, spacing_mm: tuple[float, float] = (1.0, 1.5), **settings: Any
) -> Candidates:
    stack = Heatmaps(np.ascontiguousarray(values), tuple(range(3, 6)), 1, spacing_mm)
    config = CandidateConfig(
        **{"threshold": 0.25, "radius_mm": 4.0, "max_candidates": 6} | settings
    )
    return find_candidates(stack, config)


def assert_found(found: Candidates, expected: Candidates, positions: Array) -> None:
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_allclose(found.positions, positions, atol=1e-4)


@given(seed=SEEDS)
def test_peaks_know_no_left_and_right(seed: int) -> None:
    values = smooth_values(seed)
    expected = candidates_in(values)
    turned = (0, COLS - 1) + expected.positions * (1, -1)
    assert_found(candidates_in(values[..., ::-1]), expected, turned)


@given(seed=SEEDS)
def test_peaks_know_no_up_and_down(seed: int) -> None:
    values = smooth_values(seed)
    expected = candidates_in(values)
    turned = (ROWS - 1, 0) + expected.positions * (-1, 1)
    assert_found(candidates_in(values[:, ::-1]), expected, turned)


@given(seed=SEEDS)
def test_peaks_lie_alike_in_rows_and_columns(seed: int) -> None:
    values = smooth_values(seed)
    expected = candidates_in(values)
    turned = candidates_in(values.swapaxes(1, 2), (1.5, 1.0))
    assert_found(turned, expected, expected.positions[:, ::-1])


@given(seed=SEEDS, above=st.integers(0, 40), left=st.integers(0, 40))
def test_peaks_follow_the_values(seed: int, above: int, left: int) -> None:
    """Beyond the frame there is nothing, as in a frame of zeros."""
    values = smooth_values(seed)
    expected = candidates_in(values)
    framed = np.pad(values, ((0, 0), (above, 3), (left, 5)))
    assert_found(candidates_in(framed), expected, expected.positions + (above, left))


@given(seed=SEEDS)
def test_peaks_of_one_channel_do_not_depend_on_the_others(seed: int) -> None:
    values = smooth_values(seed)
    expected = candidates_in(values)
    order = np.random.default_rng(seed).permutation(3)
    found = candidates_in(values[order])
    for channel, source in enumerate(order):
        np.testing.assert_array_equal(
            found.positions[found.of(channel)], expected.positions[expected.of(source)]
        )


@given(seed=SEEDS, power=st.integers(-40, 40))
def test_the_height_of_peaks(seed: int, power: int) -> None:
    """Positions do not depend on it, if the threshold rises as well."""
    values = smooth_values(seed)
    expected = candidates_in(values)
    factor = 2.0**power
    found = candidates_in(np.float32(factor) * values, threshold=0.25 * factor)
    np.testing.assert_array_equal(found.positions, expected.positions)
    np.testing.assert_array_equal(found.scores, factor * expected.scores)
