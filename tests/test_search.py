import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import oracles
from tests.problems import banded_problem, random_problem
from tests.stacks import StackProblem

from ivdtool import _core
from ivdtool.candidates import Candidates
from ivdtool.search import Assignment, SearchConfig, search_skeleton
from ivdtool.skeleton import Skeleton

Array = npt.NDArray[Any]
LABELS = tuple(range(3, 26))
PARTS = [name for name in vars(_core.SearchResult) if not name.startswith("_")]


def assert_agrees(
    result: _core.SearchResult, exact: oracles.Enumeration, n_best: int, rtol: float = 1e-9
) -> None:
    choices, costs = result.choices, result.costs
    order = exact.order
    assert result.optimal
    assert len(choices) == min(n_best, len(order))
    if len(order) == 0:
        return
    np.testing.assert_allclose(costs, exact.costs[order[:n_best]], rtol=rtol, atol=10 * rtol)
    assert result.lower_bound == costs[0]
    tied = len(order) > 1 and math.isclose(*exact.costs[order[:2]], rel_tol=1e-9, abs_tol=1e-8)
    if not tied:
        np.testing.assert_array_equal(choices[0], exact.choices[order[0]])
    assert len(np.unique(choices, axis=0)) == len(choices)
    expected = [exact.margin(channel, choice) for channel, choice in enumerate(choices[0])]
    np.testing.assert_allclose(result.margins, expected, rtol=1e-9, atol=1e-7)
    assert result.margins_proved.all()


@pytest.mark.parametrize(
    ("channels", "most", "cases"),
    [(1, 3, 50), (2, 4, 400), (3, 4, 1000), (4, 4, 2000), (5, 3, 1500), (6, 2, 600), (6, 3, 300)],
)
def test_ls_chain_agrees_with_enumeration(channels: int, most: int, cases: int) -> None:
    for seed in range(cases):
        arguments = random_problem(np.random.default_rng([seed, channels, most]), channels, most)
        exact = oracles.enumerate_ls_chain(arguments)
        assert_agrees(_core.search_ls_chain(**arguments), exact, arguments["n_best"])


@pytest.mark.parametrize("seed", range(10))
def test_ls_chain_agrees_with_enumeration_at_its_largest(seed: int) -> None:
    arguments = random_problem(np.random.default_rng([seed, 7]), 7, 4)
    exact = oracles.enumerate_ls_chain(arguments)
    assert_agrees(_core.search_ls_chain(**arguments), exact, arguments["n_best"])


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("channels", "most"), [(2, 4), (5, 3), (6, 3), (8, 2)])
def test_paper_agrees_with_enumeration(channels: int, most: int, squared: bool) -> None:
    for seed in range(60):
        rng = np.random.default_rng([seed, channels, most])
        problem = random_problem(rng, channels, most)
        first, second = rng.choice(channels, 2, replace=False).tolist()
        names = ("positions_mm", "offsets", "mean_mm")
        arguments = {name: problem[name] for name in names}
        arguments |= {"anchors": (first, second), "squared": squared}
        exact = oracles.enumerate_paper(**arguments)
        for n_best in (1, 5):
            result = _core.search_paper(
                **arguments, scores=problem["scores"], n_best=n_best, with_margins=True
            )
            assert_agrees(result, exact, n_best, rtol=1e-12)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("channels", "most", "cases"), [(6, 3, 60), (11, 3, 20), (11, 4, 20)])
def test_paper_agrees_with_visiting_all(
    channels: int, most: int, cases: int, squared: bool
) -> None:
    """The papers' own algorithm, compiled, gets as far as eleven discs."""
    for seed in range(cases):
        problem = random_problem(np.random.default_rng([seed, channels, most]), channels, most)
        names = ("positions_mm", "scores", "offsets", "mean_mm")
        arguments = {name: problem[name] for name in names}
        arguments |= {"anchors": (0, 4), "squared": squared}
        visited = _core.search_exhaustive(**arguments, most=10**8)
        solved = _core.search_paper(**arguments, n_best=2, with_margins=False)
        assert visited.optimal
        assert visited.nodes == np.prod(np.maximum(np.diff(problem["offsets"]), 1))
        assert len(visited.costs) == min(1, len(solved.costs))
        np.testing.assert_allclose(visited.costs, solved.costs[:1], rtol=1e-12)
        if len(solved.costs) == 2 and not math.isclose(*solved.costs, rel_tol=1e-12):
            np.testing.assert_array_equal(visited.choices, solved.choices[:1])


def test_paper_agrees_with_the_authors_code() -> None:
    """All combinations one by one; also with templates in any unit and place."""
    for seed in range(300):
        rng = np.random.default_rng([seed, 8])
        channels = int(rng.integers(5, 9))
        counts = rng.integers(1, 4, channels)
        while counts.prod() > 700:
            counts[rng.integers(channels)] = 1
        template = np.cumsum(rng.uniform([12, -4], [35, 4], (channels, 2)), axis=0)
        positions = np.repeat(template, counts, axis=0) + rng.normal(0, 15, (counts.sum(), 2))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        unit = (template - template[0]) / np.linalg.norm(template[4] - template[0])
        expected, cost = oracles.authors_search(positions, offsets, unit, (0, 4))
        scores = np.ones(len(positions))
        found = _core.search_paper(positions, scores, offsets, template, (0, 4), True, 1, False)
        np.testing.assert_array_equal(found.choices[0], expected)
        assert found.costs[0] == pytest.approx(cost, rel=1e-12)


@pytest.mark.parametrize(("channels", "most"), [(1, 3), (2, 3), (3, 3), (4, 2), (5, 2)])
def test_borrowed_candidates_agree_with_enumeration(channels: int, most: int) -> None:
    for seed in range(150):
        rng = np.random.default_rng([seed, channels, most, 5])
        arguments = random_problem(rng, channels, most) | {
            "borrow_mm2": float(rng.choice([0.0, 10.0, 100.0])),
            "offset_change_mm2": float(rng.choice([0.0, 40.0, 200.0])),
            "offset_start_mm2": float(rng.choice([0.0, 30.0])),
        }
        exact = oracles.enumerate_ls_chain(arguments)
        assert_agrees(_core.search_ls_chain(**arguments), exact, arguments["n_best"])


@pytest.mark.parametrize("borrowed", [False, True])
@pytest.mark.parametrize(
    ("channels", "most", "cases"), [(1, 3, 100), (2, 3, 200), (4, 3, 300), (5, 2, 150), (6, 1, 100)]
)
def test_limits_and_rules_agree_with_enumeration(
    channels: int, most: int, cases: int, borrowed: bool
) -> None:
    """A number of discs, levels known to be there or not, and both at once."""
    found = 0
    for seed in range(cases):
        rng = np.random.default_rng([seed, channels, most, 10])
        arguments = random_problem(rng, channels, most)
        fewest = int(rng.integers(1, channels + 1))
        known = rng.random() < 0.7
        arguments |= {
            "min_present": fewest,
            "max_present": int(rng.integers(fewest, channels + 2)),
            "rules": rng.choice(4, channels, p=[0.6, 0.15, 0.15, 0.1]) * known,
        }
        if borrowed:
            arguments |= {"borrow_mm2": 10.0, "offset_change_mm2": 40.0, "offset_start_mm2": 5.0}
        exact = oracles.enumerate_ls_chain(arguments)
        result = _core.search_ls_chain(**arguments)
        assert_agrees(result, exact, arguments["n_best"])
        found += len(result.costs) > 0
        for without in ("chain", "shape", "seed", "sort"):
            other = _core.search_ls_chain(**arguments, without=without)
            np.testing.assert_allclose(other.costs, result.costs, rtol=1e-9, atol=1e-8)
    assert cases / 5 < found < cases


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("channels", "most"), [(2, 4), (4, 4), (5, 3), (6, 3), (7, 2)])
def test_paper_order_agrees_with_enumeration(channels: int, most: int, squared: bool) -> None:
    for seed in range(120):
        rng = np.random.default_rng([seed, channels, most, 6])
        problem = random_problem(rng, channels, most)
        first, second = rng.choice(channels, 2, replace=False).tolist()
        names = ("positions_mm", "offsets", "mean_mm", "min_gap")
        arguments = {name: problem[name] for name in names} | {
            "missing_costs": rng.uniform(0, 0.3, channels),
            "anchors": (first, second),
            "squared": squared,
        }
        exact = oracles.enumerate_paper_order(**arguments)
        for n_best in (1, 5):
            result = _core.search_paper_order(
                **arguments, scores=problem["scores"], n_best=n_best, with_margins=True
            )
            assert_agrees(result, exact, n_best)


@pytest.mark.parametrize(("channels", "most"), [(1, 3), (2, 4), (3, 4), (4, 4), (5, 3), (6, 3)])
def test_first_last_agrees_with_enumeration(channels: int, most: int) -> None:
    names = ["positions_mm", "scores", "offsets", "mean_mm", "missing_costs", "score_weight_mm2"]
    names += ["max_rotation_rad", "min_scale", "max_scale", "min_gap"]
    for seed in range(200):
        rng = np.random.default_rng([seed, channels, most, 7])
        problem = random_problem(rng, channels, most)
        arguments = {name: problem[name] for name in names}
        exact = oracles.enumerate_first_last(arguments)
        for n_best in (1, 5):
            result = _core.search_first_last(**arguments, n_best=n_best, with_margins=True)
            assert_agrees(result, exact, n_best)


def test_large_search_is_the_same_however_deep_the_ranking() -> None:
    """No enumeration reaches this size; a longer list prunes less, and must not differ."""
    for seed in range(3):
        arguments = random_problem(np.random.default_rng([seed, 77]), 23, 4)
        few = _core.search_ls_chain(**arguments | {"n_best": 2, "with_margins": False})
        many = _core.search_ls_chain(**arguments | {"n_best": 20, "with_margins": False})
        np.testing.assert_array_equal(few.choices, many.choices[:2])
        np.testing.assert_array_equal(few.costs, many.costs[:2])
        assert many.nodes > few.nodes


# Properties.


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), channels=st.integers(2, 12), budget=st.integers(1, 40))
def test_a_spent_budget_is_admitted(seed: int, channels: int, budget: int) -> None:
    """The labelling is feasible, and the bound holds, wherever the search is cut off."""
    arguments = random_problem(np.random.default_rng(seed), channels, 4)
    full = _core.search_ls_chain(**arguments | {"with_margins": False})
    cut = _core.search_ls_chain(**arguments | {"node_budget": budget})
    assert cut.nodes <= budget
    assert len(cut.choices) <= len(full.choices)
    if len(full.choices) == 0:
        return
    assert cut.lower_bound <= full.costs[0] * (1 + 1e-9) + 1e-9
    if len(cut.choices) > 0:
        assert cut.costs[0] >= full.costs[0] * (1 - 1e-9) - 1e-9
        assert cut.optimal == (cut.lower_bound == cut.costs[0])
    if cut.optimal:
        assert cut.costs[0] == pytest.approx(full.costs[0], rel=1e-9, abs=1e-8)
        exact = _core.search_ls_chain(**arguments)
        bound = cut.margins <= exact.margins + 1e-7
        assert bound.all()
        np.testing.assert_allclose(
            cut.margins[cut.margins_proved], exact.margins[cut.margins_proved], rtol=1e-9, atol=1e-7
        )


def assert_margins_are_what_removing_costs(arguments: dict[str, Any]) -> None:
    best = _core.search_ls_chain(**arguments)
    assert best.margins_proved.all()
    for channel, chosen in enumerate(best.choices[0] if len(best.choices) else []):
        if chosen < 0:
            continue
        fewer = arguments | {
            "positions_mm": np.delete(arguments["positions_mm"], chosen, axis=0),
            "scores": np.delete(arguments["scores"], chosen),
            "offsets": arguments["offsets"] - (np.arange(len(arguments["offsets"])) > channel),
            "with_margins": False,
        }
        without = _core.search_ls_chain(**fewer).costs
        cost = without[0] if len(without) else np.inf
        assert cost - best.costs[0] == pytest.approx(best.margins[channel], rel=1e-9, abs=1e-7)
        assert cost >= best.costs[0] - 1e-9  # one candidate more never raises the optimum


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_margin_is_what_removing_the_choice_costs(seed: int) -> None:
    assert_margins_are_what_removing_costs(banded_problem(seed) | {"n_best": 1})


def test_margin_is_what_removing_the_choice_costs_at_full_size() -> None:
    """23 discs with up to 6 candidates."""
    for seed in range(6):
        arguments = random_problem(np.random.default_rng([seed, 78]), 23, 6)
        assert_margins_are_what_removing_costs(arguments | {"n_best": 1})


def test_two_runs_agree_to_the_last_bit() -> None:
    for seed in range(5):
        arguments = random_problem(np.random.default_rng([seed, 3]), 12, 4)
        one, other = _core.search_ls_chain(**arguments), _core.search_ls_chain(**arguments)
        for part in PARTS:
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


# The public interface, one story per term.


def straight_skeleton(labels: tuple[int, ...] = (3, 4, 5, 6, 7), step_mm: float = 30.0) -> Skeleton:
    count = len(labels)
    return Skeleton(
        labels=labels,
        mean_mm=np.stack([np.arange(count) * step_mm, np.zeros(count)], axis=1),
        disc_sd_mm=np.full(count, 2.0),
        step_sd_mm=np.full(count - 1, 2.0),
        missing_rate=np.zeros(count),
    )


def candidates_of(
    channels: list[list[tuple[float, float, float]]],
    labels: tuple[int, ...] = (3, 4, 5, 6, 7),
    spacing_mm: tuple[float, float] = (1.0, 1.0),
) -> Candidates:
    """Row, col and score of each candidate, by channel."""
    table = np.array([point for points in channels for point in points]).reshape(-1, 3)
    return Candidates(
        positions=table[:, :2].copy(),
        scores=table[:, 2].copy(),
        offsets=np.cumsum([0, *map(len, channels)]),
        labels=labels,
        spacing_mm=spacing_mm,
    )


def straight_candidates() -> list[list[tuple[float, float, float]]]:
    return [[(10.0 + 30 * i, 50.0, 1.0)] for i in range(5)]


def check(assignment: Assignment, present: list[int], **terms: float) -> None:
    assert assignment.labels == tuple(present)
    expected = {"shape_mm2": 0.0, "chain_mm2": 0.0, "score_mm2": 0.0, "missing_mm2": 0.0} | terms
    assert assignment.terms == pytest.approx(expected, abs=1e-9)
    assert assignment.cost == pytest.approx(sum(expected.values()), abs=1e-9)
    assert assignment.optimal
    assert assignment.lower_bound == assignment.cost


def test_perfect_candidates_cost_nothing() -> None:
    assignment = search_skeleton(candidates_of(straight_candidates()), straight_skeleton())
    check(assignment, [3, 4, 5, 6, 7])
    assert assignment.choice.tolist() == [0, 1, 2, 3, 4]
    assert assignment.positions.tolist() == [[10 + 30 * i, 50] for i in range(5)]
    assert assignment.scale == pytest.approx(1)
    assert assignment.rotation_rad == pytest.approx(0)
    assert len(assignment.alternatives) == 4
    # Without one disc the others still fit: its absence is all the difference.
    np.testing.assert_allclose(assignment.margins, 300)


def test_missing_disc_costs_its_penalty() -> None:
    channels = straight_candidates()
    channels[2] = []
    assignment = search_skeleton(candidates_of(channels), straight_skeleton())
    check(assignment, [3, 4, 6, 7], missing_mm2=300.0)
    assert assignment.choice.tolist() == [0, 1, -1, 2, 3]
    assert math.isinf(assignment.channel_margins[2])  # it cannot be present


def test_doubtful_disc_costs_its_score() -> None:
    channels = straight_candidates()
    channels[1] = [(40.0, 50.0, 0.6)]
    assignment = search_skeleton(candidates_of(channels), straight_skeleton())
    check(assignment, [3, 4, 5, 6, 7], score_mm2=0.4 * 50)
    assert assignment.scores.tolist() == [1.0, 0.6, 1.0, 1.0, 1.0]


def test_value_above_one_is_no_bonus() -> None:
    channels = [[(row, col, 1.7)] for [(row, col, _)] in straight_candidates()]
    check(search_skeleton(candidates_of(channels), straight_skeleton()), [3, 4, 5, 6, 7])


def test_displaced_disc_costs_shape_and_chain() -> None:
    """Three discs, the middle one 3 mm off: 3^2 (1 - 1/3) for it, 3^2 for each of two steps."""
    channels = straight_candidates()[:3]
    channels[1] = [(40.0, 53.0, 1.0)]
    labels = (3, 4, 5)
    config = SearchConfig(max_rotation_rad=0, min_scale=1, max_scale=1)
    assignment = search_skeleton(candidates_of(channels, labels), straight_skeleton(labels), config)
    check(assignment, [3, 4, 5], shape_mm2=6.0, chain_mm2=5 * 18.0)


def test_candidate_far_from_the_spine_is_left_out() -> None:
    channels = straight_candidates()
    channels[1] = [(40.0, 80.0, 1.0)]
    check(
        search_skeleton(candidates_of(channels), straight_skeleton()),
        [3, 5, 6, 7],
        missing_mm2=300.0,
    )


def test_geometry_overrules_the_score() -> None:
    channels = straight_candidates()
    channels[2] = [(100.0, 50.0, 1.0), (70.0, 50.0, 0.3)]
    assignment = search_skeleton(candidates_of(channels), straight_skeleton())
    assert assignment.choice.tolist() == [0, 1, 3, 4, 5]
    assert assignment.positions[2].tolist() == [70.0, 50.0]


def test_two_labels_never_share_a_peak() -> None:
    channels: list[list[tuple[float, float, float]]] = [
        [(10, 50, 1.0)],
        [(10, 50, 1.0)],
        [],
        [],
        [],
    ]
    assignment = search_skeleton(candidates_of(channels), straight_skeleton())
    assert assignment.labels == ()


def test_order_is_kept() -> None:
    """Discs 5 and 6 swapped: one of them goes, rather than both staying."""
    channels = straight_candidates()
    channels[2], channels[3] = channels[3], channels[2]
    assignment = search_skeleton(candidates_of(channels), straight_skeleton())
    assert (np.diff(assignment.positions[:, 0]) > 0).all()
    assert not {5, 6} <= set(assignment.labels)


def test_gap_is_a_share_of_the_expected_rows() -> None:
    channels: list[list[tuple[float, float, float]]] = [
        [(10, 50, 1.0)],
        [(17, 50, 1.0)],
        [],
        [],
        [],
    ]
    for min_gap, expected in ((0.23, (3, 4)), (0.24, ())):
        config = SearchConfig(min_scale=0, max_scale=math.inf, min_gap=min_gap)
        found = search_skeleton(candidates_of(channels), straight_skeleton(), config)
        assert found.labels == expected


def test_pixels_become_millimetres() -> None:
    channels = [[(row / 0.8, col / 0.5, s)] for [(row, col, s)] in straight_candidates()]
    config = SearchConfig(min_scale=1, max_scale=1, max_rotation_rad=0)
    candidates = candidates_of(channels, spacing_mm=(0.8, 0.5))
    check(search_skeleton(candidates, straight_skeleton(), config), [3, 4, 5, 6, 7])


@pytest.mark.parametrize("angle", [-0.3, 0.2])
@pytest.mark.parametrize("size", [0.8, 1.25])
def test_fit_is_reported(angle: float, size: float) -> None:
    """A spine of 0.8 times the size needs the factor 1.25 to fit."""
    spine = size * np.exp(-1j * angle) * 30 * np.arange(5) + (100 + 50j)
    channels = [[(float(p.real), float(p.imag), 1.0)] for p in spine]
    assignment = search_skeleton(candidates_of(channels), straight_skeleton())
    check(assignment, [3, 4, 5, 6, 7])
    assert assignment.scale == pytest.approx(1 / size)
    assert assignment.rotation_rad == pytest.approx(angle)


def test_fit_stays_within_its_limits() -> None:
    spine = 2 * np.exp(-0.5j) * 30 * np.arange(5)
    channels = [[(float(p.real), float(p.imag), 1.0)] for p in spine]
    config = SearchConfig(missing_penalty_mm2=1e6)
    assignment = search_skeleton(candidates_of(channels), straight_skeleton(), config)
    assert assignment.scale == pytest.approx(0.75)
    assert assignment.rotation_rad == pytest.approx(0.35)
    assert assignment.cost > 100


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("mode", ["ls_chain", "paper"])
def test_too_few_candidates_give_no_labelling(count: int, mode: Any) -> None:
    channels = straight_candidates()[:count] + [[]] * (5 - count)
    assignment = search_skeleton(
        candidates_of(channels), straight_skeleton(), SearchConfig(mode=mode)
    )
    assert assignment.labels == ()
    assert assignment.positions.shape == (0, 2)
    assert assignment.choice.tolist() == [-1] * 5
    assert assignment.cost == assignment.lower_bound == (1500 if mode == "ls_chain" else 0)
    assert sum(assignment.terms.values()) == assignment.cost
    assert assignment.optimal
    assert assignment.alternatives == ()
    assert assignment.shift_margin is None


def test_a_single_disc_on_request() -> None:
    channels = [*straight_candidates()[:1], [], [], [], []]
    config = SearchConfig(min_present=1)
    assignment = search_skeleton(candidates_of(channels), straight_skeleton(), config)
    check(assignment, [3], missing_mm2=1200.0)
    assert math.isinf(assignment.margins[0])


def test_fewer_than_five_discs() -> None:
    """The authors' code reads a fifth disc that need not exist."""
    labels = (21, 22, 23)
    channels = straight_candidates()[:3]
    assignment = search_skeleton(candidates_of(channels, labels), straight_skeleton(labels))
    check(assignment, [21, 22, 23])


def test_lumbar_view_of_a_whole_spine() -> None:
    """Seventeen channels without candidates cost no search."""
    channels: list[list[tuple[float, float, float]]] = [[] for _ in LABELS]
    for i, label in enumerate(range(20, 26)):
        channels[label - 3] = [(30.0 * i, 40.0, 0.9), (30.0 * i + 30, 40.0, 0.5)]
    skeleton = straight_skeleton(LABELS)
    assignment = search_skeleton(candidates_of(channels, LABELS), skeleton)
    check(assignment, [20, 21, 22, 23, 24, 25], missing_mm2=17 * 300.0, score_mm2=6 * 0.1 * 50)
    assert assignment.nodes < 200
    assert assignment.margins_proved.all()


def test_ties_go_to_the_first_candidate() -> None:
    channels = [points * 2 for points in straight_candidates()]
    assignment = search_skeleton(candidates_of(channels), straight_skeleton())
    assert assignment.choice.tolist() == [0, 2, 4, 6, 8]
    np.testing.assert_array_equal(assignment.margins, 0)


@pytest.mark.parametrize("mode", ["ls_chain", "paper"])
def test_duplicates_do_not_explode(mode: Any) -> None:
    """5^23 labellings of the same cost, rounding apart: the search must not tell them apart."""
    spine = 27.3 * np.exp(0.1j) * np.arange(23)
    channels = [[(float(p.real), float(p.imag), 0.7)] * 5 for p in spine]
    config = SearchConfig(mode=mode)
    assignment = search_skeleton(candidates_of(channels, LABELS), straight_skeleton(LABELS), config)
    assert assignment.nodes < 10_000
    assert assignment.margins_proved.all()
    np.testing.assert_allclose(assignment.margins, 0, atol=1e-9)


def test_alternatives_are_the_next_best() -> None:
    channels = straight_candidates()
    channels[4].append((130.0, 52.0, 1.0))
    assignment = search_skeleton(candidates_of(channels), straight_skeleton())
    first = assignment.alternatives[0]
    assert first.choice.tolist() == [0, 1, 2, 3, 5]
    assert first.cost - assignment.cost == pytest.approx(assignment.margins[4])
    costs = [alternative.cost for alternative in assignment.alternatives]
    assert costs == sorted(costs)


def test_spent_budget_is_reported() -> None:
    rng = np.random.default_rng(0)
    channels = [
        [(30.0 * i + rng.normal(0, 8), 50 + rng.normal(0, 8), 0.5) for _ in range(5)]
        for i in range(23)
    ]
    config = SearchConfig(node_budget=10)
    assignment = search_skeleton(candidates_of(channels, LABELS), straight_skeleton(LABELS), config)
    assert not assignment.optimal
    assert assignment.nodes == 10
    assert assignment.lower_bound < assignment.cost
    assert len(assignment.labels) > 15
    assert not assignment.margins_proved.any()


# The shift margin.


def test_shift_margin_without_support_is_the_missing_score() -> None:
    """A straight, even spine fits one level down as well; only the heatmaps speak against it."""
    channels: list[list[tuple[float, float, float]]] = [[] for _ in LABELS]
    for i in range(6):
        channels[10 + i] = [(30.0 * i, 40.0, 1.0)]
    skeleton = straight_skeleton(LABELS)
    assignment = search_skeleton(candidates_of(channels, LABELS), skeleton)
    assert assignment.shift_margin == pytest.approx(6 * 50)


def test_shift_margin_falls_with_support_of_the_neighbours() -> None:
    channels: list[list[tuple[float, float, float]]] = [[] for _ in LABELS]
    for i in range(6):
        channels[10 + i].append((30.0 * i, 40.0, 1.0))
        channels[11 + i].append((30.0 * i + 3, 40.0, 0.9))  # 3 mm off: near enough
    assignment = search_skeleton(candidates_of(channels, LABELS), straight_skeleton(LABELS))
    assert assignment.labels == tuple(range(13, 19))
    assert assignment.shift_margins == pytest.approx((6 * 50, 6 * 0.1 * 50))
    assert assignment.shift_margin == pytest.approx(6 * 0.1 * 50)


def test_shift_margin_counts_geometry() -> None:
    """Steps that differ from level to level tell the levels apart."""
    skeleton = straight_skeleton(LABELS)
    rows = np.cumsum(15 + np.linspace(0, 25, 23))
    skeleton = replace(skeleton, mean_mm=np.stack([rows - rows[0], np.zeros(23)], axis=1))
    even = straight_skeleton(LABELS)
    channels: list[list[tuple[float, float, float]]] = [[] for _ in LABELS]
    for i in range(6):
        channels[10 + i] = [(float(rows[10 + i]), 40.0, 1.0)]
    config = SearchConfig(min_scale=1, max_scale=1)
    telling = search_skeleton(candidates_of(channels, LABELS), skeleton, config).shift_margin
    silent = search_skeleton(candidates_of(channels, LABELS), even).shift_margin
    assert telling is not None
    assert silent is not None
    assert telling > silent


def test_shift_margin_at_the_end_of_the_spine() -> None:
    """All 23 discs present: a shift loses one of them at the end."""
    channels = [[(30.0 * i, 40.0, 1.0)] for i in range(23)]
    assignment = search_skeleton(candidates_of(channels, LABELS), straight_skeleton(LABELS))
    assert assignment.shift_margin == pytest.approx(300 + 22 * 50)


@pytest.mark.parametrize("seed", range(60))
def test_shift_margins_agree_with_enumeration(seed: int) -> None:
    """Every labelling of the chosen points, each with the nearest value of its new channel."""
    rng = np.random.default_rng([seed, 11])
    arguments = random_problem(rng, 5, 3)
    labels = (3, 4, 5, 6, 7)
    offsets = arguments["offsets"].tolist()
    candidates = Candidates(
        arguments["positions_mm"], arguments["scores"], arguments["offsets"], labels, (1.0, 1.0)
    )
    skeleton = replace(straight_skeleton(), mean_mm=arguments["mean_mm"])
    config = SearchConfig(borrow_mm2=[None, 10.0][seed % 2])
    found = search_skeleton(candidates, skeleton, config)
    if not found.labels:
        return
    assert found.shift_margins is not None
    chosen = {i: int(row) for i, row in enumerate(found.choice) if row >= 0}
    for step, margin in zip((-1, 1), found.shift_margins, strict=True):
        points, scores = [], []
        starts = [0]
        for channel in range(5):
            if (channel - step) in chosen:
                point = candidates.positions[chosen[channel - step]]
                near = [
                    (math.dist(point, candidates.positions[row]), -row, candidates.scores[row])
                    for row in range(offsets[channel], offsets[channel + 1])
                ]
                distance, _, score = min(near, key=lambda own: own[0], default=(math.inf, 0, 0))
                points.append(point)
                scores.append(score if distance <= 5 else 0.0)
            starts.append(len(points))
        moved = arguments | {
            "positions_mm": np.array(points).reshape(-1, 2),
            "scores": np.array(scores),
            "offsets": np.array(starts),
            "disc_weights": np.ones(5),
            "pair_weights": skeleton.pair_weights,
            "missing_costs": np.full(5, config.missing_penalty_mm2),
            "score_weight_mm2": config.score_weight_mm2,
            "chain_weight": config.chain_weight,
            "max_rotation_rad": config.max_rotation_rad,
            "min_scale": config.min_scale,
            "max_scale": config.max_scale,
            "min_gap": config.min_gap,
            "min_present": (len(chosen) + 1) // 2,
        }
        least = oracles.enumerate_ls_chain(moved).costs.min()
        assert margin == pytest.approx(max(0.0, least - found.cost), rel=1e-9, abs=1e-6)


# What is known of levels beforehand.


def test_rules_are_kept_by_all_labellings() -> None:
    channels = straight_candidates()
    channels[1].append((43.0, 50.0, 0.9))
    candidates, skeleton = candidates_of(channels), straight_skeleton()
    found = search_skeleton(candidates, skeleton, rules={3: "absent", 4: "own", 5: "free"})
    assert found.labels == (4, 5, 6, 7)
    assert found.shift_margins is None
    assert all(other.choice[0] == -1 and other.choice[1] >= 0 for other in found.alternatives)
    assert math.isinf(found.channel_margins[0])
    apart = search_skeleton(candidates, skeleton, rules={3: "absent"})
    assert apart.shift_margins is not None
    with pytest.raises(ValueError, match="among the labels"):
        search_skeleton(candidates, skeleton, rules={9: "own"})
    with pytest.raises(ValueError, match="only ls_chain knows rules"):
        search_skeleton(candidates, skeleton, SearchConfig(mode="first_last"), rules={3: "own"})


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_number_of_discs_is_limited(count: int) -> None:
    candidates, skeleton = candidates_of(straight_candidates()), straight_skeleton()
    most = search_skeleton(candidates, skeleton, SearchConfig(min_present=1, max_present=count))
    assert len(most.labels) == count
    assert most.cost == pytest.approx(300 * (5 - count))
    assert all((other.choice >= 0).sum() <= count for other in most.alternatives)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_limit_does_not_make_the_search_long(seed: int) -> None:
    """Its bounds know the number of discs; else all with a disc more would be looked into."""
    arguments = random_problem(np.random.default_rng([seed, 79]), 23, 4)
    arguments |= {"with_margins": False, "n_best": 1}
    free = _core.search_ls_chain(**arguments)
    present = int((free.choices[0] >= 0).sum())
    for count in (present - 2, present - 1):
        limited = _core.search_ls_chain(**arguments | {"min_present": count, "max_present": count})
        assert limited.optimal
        assert (limited.choices[0] >= 0).sum() == count
        assert limited.nodes < 10 * free.nodes


# The paper's mode.


def test_paper_needs_both_anchors() -> None:
    channels = straight_candidates()
    channels[4] = []
    config = SearchConfig(mode="paper")
    assert search_skeleton(candidates_of(channels), straight_skeleton(), config).labels == ()
    anchored = replace(config, anchors=(3, 6))
    found = search_skeleton(candidates_of(channels), straight_skeleton(), anchored)
    assert found.labels == (3, 4, 5, 6)
    assert found.terms == pytest.approx({"shape": 0.0})
    assert found.shift_margin is None


def test_paper_ignores_empty_channels_between() -> None:
    """The delta of equation 3."""
    channels = straight_candidates()
    channels[1] = []
    config = SearchConfig(mode="paper")
    found = search_skeleton(candidates_of(channels), straight_skeleton(), config)
    assert found.labels == (3, 5, 6, 7)
    assert found.cost == pytest.approx(0)


def test_paper_norms_differ() -> None:
    """Displacements of 3 and 4 mm where v1 - v5 is 120 mm: 7 / 120 and 5 / 120."""
    channels = straight_candidates()
    channels[1] = [(40.0, 53.0, 1.0)]
    channels[3] = [(100.0, 46.0, 1.0)]
    for norm, expected in (("l1", 7 / 120), ("l2", 5 / 120)):
        config = SearchConfig(mode="paper", norm=norm)  # type: ignore[arg-type]
        found = search_skeleton(candidates_of(channels), straight_skeleton(), config)
        assert found.cost == pytest.approx(expected)


def test_paper_needs_five_discs_or_anchors() -> None:
    labels = (3, 4, 5, 6)
    candidates = candidates_of(straight_candidates()[:4], labels)
    skeleton = straight_skeleton(labels)
    with pytest.raises(ValueError, match="five discs or anchors"):
        search_skeleton(candidates, skeleton, SearchConfig(mode="paper"))
    with pytest.raises(ValueError, match=r"\(3, 9\)"):
        search_skeleton(candidates, skeleton, SearchConfig(mode="paper", anchors=(3, 9)))
    found = search_skeleton(candidates, skeleton, SearchConfig(mode="paper", anchors=(3, 6)))
    assert found.labels == labels


# The modes between.


def test_first_last_fits_the_ends_exactly() -> None:
    """Scaled by 1.1 and turned; the disc in the middle is 3 mm off, the second one absent."""
    spine = 30 * np.arange(5) * 1.1 * np.exp(0.1j) + (20 + 60j)
    spine[2] += 3j
    channels = [[(float(p.real), float(p.imag), 1.0)] for p in spine]
    channels[1] = []
    config = SearchConfig(mode="first_last")
    found = search_skeleton(candidates_of(channels), straight_skeleton(), config)
    assert found.labels == (3, 5, 6, 7)
    assert found.terms == pytest.approx(
        {"shape_mm2": (3 / 1.1) ** 2, "score_mm2": 0.0, "missing_mm2": 300.0}
    )
    assert found.scale == pytest.approx(1 / 1.1)
    assert found.rotation_rad == pytest.approx(-0.1)
    assert found.shift_margin is None
    assert found.optimal


def test_first_last_needs_no_given_anchor() -> None:
    """The paper's discs v1 and v5 are absent."""
    channels = straight_candidates()
    channels[0], channels[4] = [], []
    config = SearchConfig(mode="first_last")
    found = search_skeleton(candidates_of(channels), straight_skeleton(), config)
    assert found.labels == (4, 5, 6)
    assert found.cost == pytest.approx(600)


def test_paper_order_leaves_out_what_is_not_in_order() -> None:
    """Discs 4 and 5 swapped; equation 3 alone keeps both."""
    channels = straight_candidates()
    channels[1], channels[2] = channels[2], channels[1]
    candidates, skeleton = candidates_of(channels), straight_skeleton()
    unordered = search_skeleton(candidates, skeleton, SearchConfig(mode="paper"))
    assert unordered.labels == (3, 4, 5, 6, 7)
    config = SearchConfig(mode="paper_order")
    found = search_skeleton(candidates, skeleton, config)
    assert found.labels == (3, 6, 7)
    assert found.cost == pytest.approx(2 * math.sqrt(300) / 120)
    assert found.terms == pytest.approx({"shape": 0.0, "missing": found.cost})
    squared = search_skeleton(candidates, skeleton, replace(config, norm="l2"))
    assert squared.cost == pytest.approx(math.sqrt(2 * 300) / 120)


def test_huge_missing_costs_swallow_nothing() -> None:
    """Differences of prefix sums would be inexact here; found by tests/fuzz_core.py."""
    names = ["positions_mm", "scores", "offsets", "mean_mm", "missing_costs", "score_weight_mm2"]
    names += ["max_rotation_rad", "min_scale", "max_scale", "min_gap"]
    for seed in range(40):
        problem = random_problem(np.random.default_rng([seed, 9]), 5, 3)
        arguments = {name: problem[name] for name in names}
        arguments["missing_costs"][seed % 5] = 1e300
        exact = oracles.enumerate_first_last(arguments)
        result = _core.search_first_last(**arguments, n_best=5, with_margins=True)
        np.testing.assert_allclose(result.costs, exact.costs[exact.order[:5]], rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("mode", ["first_last", "paper_order"])
def test_modes_between_without_a_labelling(mode: Any) -> None:
    channels = straight_candidates()[:1] + [[]] * 4
    found = search_skeleton(candidates_of(channels), straight_skeleton(), SearchConfig(mode=mode))
    assert found.labels == ()
    assert found.optimal
    assert sum(found.terms.values()) == pytest.approx(found.cost)


def test_margins_are_optional() -> None:
    arguments = banded_problem(3)
    assert len(_core.search_ls_chain(**arguments | {"with_margins": False}).margins) == 0
    paper = {name: arguments[name] for name in ("positions_mm", "scores", "offsets", "mean_mm")}
    paper |= {"anchors": (1, 5), "squared": False, "n_best": 2}
    plain = _core.search_paper(**paper, with_margins=False)
    full = _core.search_paper(**paper, with_margins=True)
    np.testing.assert_array_equal(plain.choices, full.choices)
    assert len(plain.margins) == 0
    assert len(full.margins) == 8


@pytest.mark.parametrize("mode", ["ls_chain", "first_last", "paper", "paper_order"])
def test_search_without_margins(mode: Any) -> None:
    candidates, skeleton = candidates_of(straight_candidates()), straight_skeleton()
    plain = search_skeleton(candidates, skeleton, SearchConfig(mode=mode, margins=False))
    full = search_skeleton(candidates, skeleton, SearchConfig(mode=mode))
    assert plain.choice.tolist() == full.choice.tolist()
    assert plain.cost == full.cost
    assert np.isnan(plain.margins).all()
    assert np.isnan(plain.posteriors).all()
    assert not plain.margins_proved.any()
    assert plain.shift_margin is None


# Learnt weights, borrowed candidates, certainty.


def test_learnt_weights_follow_the_spread() -> None:
    """Two discs each 4 mm off; the one that varies less in training costs more."""
    skeleton = replace(straight_skeleton(), disc_sd_mm=np.array([2.0, 1.0, 2.0, 4.0, 2.0]))
    config = SearchConfig(
        weights="learnt", chain_weight=0, max_rotation_rad=0, min_scale=1, max_scale=1
    )
    costs = []
    for channel in (1, 3):
        channels = straight_candidates()
        [(row, col, score)] = channels[channel]
        channels[channel] = [(row, col + 4, score)]
        costs.append(search_skeleton(candidates_of(channels), skeleton, config).cost)
    weights = skeleton.disc_weights
    np.testing.assert_allclose(weights * skeleton.disc_sd_mm**2, 5.8)
    spare = weights.sum() - weights
    np.testing.assert_allclose(costs, (weights * spare / weights.sum() * 16)[[1, 3]])


def test_learnt_missing_costs_follow_the_rates() -> None:
    skeleton = replace(straight_skeleton(), missing_rate=np.array([0.5, 0.0, 0.9, 0.5, 1.0]))
    channels = straight_candidates()
    channels[2] = []
    config = SearchConfig(weights="learnt")
    found = search_skeleton(candidates_of(channels), skeleton, config)
    assert found.cost == pytest.approx(300 - 60 * math.log(9))
    channels[2], channels[1] = straight_candidates()[2], []
    found = search_skeleton(candidates_of(channels), skeleton, config)
    assert found.cost == pytest.approx(300 + 60 * math.log(49))  # as if it were missing in 2 %


def test_posterior_is_a_logistic_of_the_margin() -> None:
    channels = straight_candidates()
    channels[4].append((130.0, 54.0, 1.0))
    found = search_skeleton(candidates_of(channels), straight_skeleton())
    np.testing.assert_allclose(found.posteriors, 1 / (1 + np.exp(-found.margins / 60)))
    assert found.posteriors[4] < found.posteriors[0]
    assert (found.posteriors >= 0.5).all()


def stepped_skeleton() -> Skeleton:
    """Steps that differ from level to level, so that geometry knows the level."""
    rows = np.cumsum(25 + 8 * np.sin(1.7 * np.arange(23)))
    return replace(
        straight_skeleton(LABELS), mean_mm=np.stack([rows - rows[0], np.zeros(23)], axis=1)
    )


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_whole_shift_of_the_network_is_recognised(offset: int) -> None:
    """Every channel fires on the disc above (or below); the steps tell."""
    skeleton = stepped_skeleton()
    channels: list[list[tuple[float, float, float]]] = [[] for _ in LABELS]
    for i in range(5, 17):
        channels[i + offset] = [(float(skeleton.mean_mm[i, 0]), 40.0, 0.9)]
    candidates = candidates_of(channels, LABELS)
    narrow = SearchConfig(min_scale=0.95, max_scale=1.05)
    found = search_skeleton(candidates, skeleton, replace(narrow, borrow_mm2=0.0))
    assert found.labels == tuple(range(8, 20))
    assert found.offsets.tolist() == [offset] * 12
    assert found.terms["offset_mm2"] == (100 if offset else 0)  # one event, one price
    own = search_skeleton(candidates, skeleton, narrow)
    assert "offset_mm2" not in own.terms
    assert (own.labels == found.labels) == (offset == 0)


def test_shift_within_the_spine_is_charged_once() -> None:
    skeleton = stepped_skeleton()
    channels: list[list[tuple[float, float, float]]] = [[] for _ in LABELS]
    for i in range(5, 17):
        channels[i + (i >= 11)].append((float(skeleton.mean_mm[i, 0]), 40.0, 1.0))
    config = SearchConfig(borrow_mm2=2.0, min_scale=0.95, max_scale=1.05)
    found = search_skeleton(candidates_of(channels, LABELS), skeleton, config)
    assert found.offsets.tolist() == [0] * 6 + [1] * 6
    assert found.terms["offset_mm2"] == 300 + 6 * 2


# What the search tells of itself.


def test_statistics_count_every_node_once() -> None:
    arguments = random_problem(np.random.default_rng([2, 3]), 12, 4) | {"tree_size": 10**6}
    result = _core.search_ls_chain(**arguments)
    fates, improvements = result.fates, result.improvements
    tree, bounds = result.tree, result.bounds
    assert fates[0] == result.nodes + 1  # the root is expanded, but not counted as taken
    np.testing.assert_array_equal(np.bincount(tree[:, 3], minlength=6), fates)
    assert len(tree) == len(bounds) == fates.sum()
    assert tree[0].tolist() == [-1, -1, -1, 0]
    assert (tree[1:, 0] < np.arange(1, len(tree))).all()  # parents come first
    assert (tree[tree[1:, 0], 3] == 0).all()  # only expanded nodes have children
    assert (bounds[1:] >= bounds[tree[1:, 0]] - 1e-6).all()  # bounds rise from root to leaf
    assert (np.diff(improvements[:, 1]) < 0).all()
    assert (np.diff(improvements[:, 0]) >= 0).all()
    assert improvements[-1, 1] == result.costs[0]
    assert 0 < result.depth <= 12


def test_unreached_nodes_are_counted_when_the_budget_is_spent() -> None:
    rng = np.random.default_rng(0)
    channels = [
        [(30.0 * i + rng.normal(0, 8), 50 + rng.normal(0, 8), 0.5) for _ in range(5)]
        for i in range(23)
    ]
    config = SearchConfig(node_budget=10)
    candidates = candidates_of(channels, LABELS)
    found = search_skeleton(candidates, straight_skeleton(LABELS), config, tree_size=50)
    assert found.statistics.fates["budget"] > 0
    assert found.statistics.fates["expanded"] == 11
    assert len(found.statistics.tree) == 50
    assert found.statistics.improvements[-1][1] == pytest.approx(found.cost)


# Agreement at sizes that no enumeration reaches, and accuracy.


# The shape bound does most of the work: without it, 23 discs are out of reach.
SHORTCUTS = [(name, 8, 4, 200) for name in ("chain", "shape", "seed", "sort")]
SHORTCUTS += [(name, 16, 3, 150) for name in ("chain", "shape", "seed", "sort")]
SHORTCUTS += [(name, 23, 4, 25) for name in ("chain", "seed", "sort")]
SHORTCUTS += [(name, 23, 6, 6) for name in ("chain", "seed", "sort")]


@pytest.mark.parametrize(("without", "channels", "most", "cases"), SHORTCUTS)
def test_shortcuts_save_time_only(without: str, channels: int, most: int, cases: int) -> None:
    """Each bound left out in turn, and the first labelling, and the order of the search."""
    proved = nodes = nodes_without = 0
    for seed in range(cases):
        rng = np.random.default_rng([seed, channels, most])
        limits = {"with_margins": channels < 10, "node_budget": 500_000}
        arguments = random_problem(rng, channels, most) | limits
        one = _core.search_ls_chain(**arguments)
        other = _core.search_ls_chain(**arguments, without=without)
        if one.optimal and len(one.costs) > 0:
            assert other.lower_bound <= one.costs[0] * (1 + 1e-9) + 1e-9
        if not (one.optimal and other.optimal):
            continue
        proved += 1
        nodes += one.nodes
        nodes_without += other.nodes
        np.testing.assert_allclose(one.costs, other.costs, rtol=1e-9, atol=1e-8)
        np.testing.assert_allclose(one.margins, other.margins, rtol=1e-9, atol=1e-7)
        for a, b, cost in zip(one.choices, other.choices, one.costs, strict=True):
            ties = np.isclose(one.costs, cost, rtol=1e-9, atol=1e-8).sum()
            assert ties > 1 or (a == b).all()
    assert proved >= 0.8 * cases
    assert nodes_without > nodes


@pytest.mark.parametrize("seed", range(3))
def test_least_squares_fits_no_worse_than_the_ends_do(seed: int) -> None:
    """23 discs with up to 6 candidates, without the terms that `first_last` does not have."""
    arguments = random_problem(np.random.default_rng([seed, 78]), 23, 6)
    names = ("positions_mm", "scores", "offsets", "mean_mm", "missing_costs", "score_weight_mm2")
    names_of_limits = ("max_rotation_rad", "min_scale", "max_scale", "min_gap")
    shared = {name: arguments[name] for name in (*names, *names_of_limits)}
    flat = {"chain_weight": 0.0, "disc_weights": np.ones(23), "min_present": 2, "n_best": 1}
    fitted = _core.search_ls_chain(**arguments | flat | {"with_margins": False})
    ends = _core.search_first_last(**shared, n_best=1, with_margins=False)
    assert fitted.optimal
    if len(ends.costs) > 0:
        assert fitted.costs[0] <= ends.costs[0] * (1 + 1e-9)


ACCURACY = [
    (24, "clean", 0.97),
    (24, "missing", 0.97),
    (24, "shift", 0.97),
    (24, "anchor", 0.97),
    (11, "clean", 0.98),
    (11, "shift", 0.98),
    (11, "missing", 0.90),
    (11, "anchor", 0.85),
]


@pytest.mark.parametrize(("discs", "scenario", "least"), ACCURACY)
def test_accuracy_on_synthetic_stacks(
    stacks: ModuleType, discs: int, scenario: str, least: float
) -> None:
    """Four candidates per disc, half of the wrong ones on other discs; the default settings."""
    problems = [StackProblem(stacks, discs, 4, scenario, 31_000 + seed) for seed in range(20)]
    right = [problem.share_right() for problem in problems]
    assert np.mean(right) >= least


# Arguments.


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("mode", "greedy"),
        ("norm", "l3"),
        ("chain_weight", -1.0),
        ("missing_penalty_mm2", math.inf),
        ("score_weight_mm2", math.nan),
        ("min_gap", -0.1),
        ("max_rotation_rad", 4.0),
        ("min_scale", -0.5),
        ("min_scale", 2.0),
        ("max_scale", math.nan),
        ("min_present", 0),
        ("max_present", 1),
        ("node_budget", 0),
        ("n_best", 0),
        ("anchors", (3, 3)),
        ("weights", "guessed"),
        ("temperature_mm2", 0.0),
        ("borrow_mm2", -1.0),
        ("offset_change_mm2", math.inf),
        ("offset_start_mm2", -2.0),
    ],
)
def test_config_refuses(setting: str, value: Any) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        SearchConfig(**{setting: value})
    assert str(value) in str(caught.value)


def test_labels_must_agree() -> None:
    with pytest.raises(ValueError, match="labels"):
        search_skeleton(candidates_of(straight_candidates()), straight_skeleton((4, 5, 6, 7, 8)))
