"""Choosing one candidate per disc."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ivdtool import _core
from ivdtool.benchmark.timing import Case, Contender, expect
from ivdtool.candidates import CandidateConfig, Candidates
from ivdtool.discs import ALL_LABELS
from ivdtool.search import Assignment, SearchConfig, search_skeleton
from ivdtool.skeleton import Skeleton

__all__ = ["EXHAUSTIVE", "OURS", "search_cases"]

Points = npt.NDArray[np.float64]

# Discs V and candidates per disc K. The spine has 23 discs.
SIZES = tuple((v, k) for v in (5, 7, 9, 11, 15, 19, 23) for k in range(1, 7))
QUICK_SIZES = ((5, 1), (5, 2), (7, 3), (23, 2))

OURS = ("ivdtool, paper's cost", "ivdtool, ls_chain")
EXHAUSTIVE = ("papers: exhaustive, Python", "exhaustive, NumPy", "exhaustive, C++")

# Combinations that the loop visits, if it cannot visit all; NumPy and C++ visit more.
MOST_VISITED = 10_000
MOST_TO_THE_END = 200_000
CHUNK = 20_000
PROBLEMS = 40  # of the largest size, for the mean and the worst case

PAPER = SearchConfig(mode="paper", n_best=1, margins=False)
LS_CHAIN = SearchConfig(n_best=1, margins=False)
FIFTH = 4  # v1 and v5 of equation 3 are the first and the fifth disc
MISSING = 0.1  # cost of a missing disc, as a distance in units of the one from v1 to v5
MIN_GAP = 0.25
APART_MM = CandidateConfig().radius_mm  # of two peaks this close, only one becomes a candidate


def search_cases(quick: bool = False) -> Iterator[Case]:
    """One case per V and K, and many problems of the largest size.

    What cannot be visited in reasonable time is extrapolated.
    """
    for discs, choices in QUICK_SIZES if quick else SIZES:
        yield _case(discs, choices, quick)
    discs, choices = (9, 3) if quick else SIZES[-1]
    skeleton = _skeleton(discs)
    seeds = [[discs, choices, number] for number in range(PROBLEMS)]
    name = f"V={discs} K={choices}, {PROBLEMS} problems"
    complete = [_candidates(np.random.default_rng(seed), skeleton, choices) for seed in seeds]
    yield _case_of_many(name, complete, skeleton)
    holed = [_candidates(np.random.default_rng(seed), skeleton, choices, 0.15) for seed in seeds]
    hardest = max(holed, key=lambda one: search_skeleton(one, skeleton, LS_CHAIN).nodes)
    yield _case_of_many(f"{name} with 15 % missing, the hardest", [hardest], skeleton)


def _case(discs: int, choices: int, quick: bool) -> Case:
    skeleton = _skeleton(discs)
    candidates = _candidates(np.random.default_rng([discs, choices]), skeleton, choices)
    nothing = replace(
        candidates,
        positions=np.zeros((0, 2)),
        scores=np.zeros(0),
        offsets=np.zeros(discs + 1, dtype=np.int64),
    )
    combinations: int = choices**discs
    ours = search_skeleton(candidates, skeleton, PAPER)

    def most(visited: int) -> int:
        return combinations if combinations <= visited else min(combinations, MOST_VISITED)

    by_loop = most(500 if quick else MOST_TO_THE_END)
    by_chunks = min(combinations, 20 * by_loop)
    by_core = min(combinations, (10 if quick else 500) * MOST_VISITED)

    def check_exhaustive(best: tuple[float, list[int]], complete: bool) -> None:
        cost, choice = best
        expect(ours.cost <= cost + 1e-12 * max(1, cost), "found a better combination")
        if complete:
            expect(math.isclose(ours.cost, cost, rel_tol=1e-12), "another least cost")
            expect(ours.choice.tolist() == choice, "another combination")

    def check_paper(answer: Assignment) -> None:
        again = _paper_cost(candidates, skeleton, answer.choice)
        expect(math.isclose(answer.cost, again, rel_tol=1e-12), "not the cost of its choice")

    def visit(most: int) -> _core.SearchResult:
        return _core.search_exhaustive(*arrays, (0, FIFTH), False, most)

    def best_of(result: _core.SearchResult) -> tuple[float, list[int]]:
        return float(result.costs[0]), result.choices[0].tolist()

    arrays = (candidates.positions_mm, candidates.scores, candidates.offsets, skeleton.mean_mm)
    return Case(
        stage="search",
        name=f"V={discs} K={choices}",
        contenders=(
            Contender(OURS[0], lambda: search_skeleton(candidates, skeleton, PAPER), check_paper),
            Contender(
                OURS[1],
                lambda: search_skeleton(candidates, skeleton, LS_CHAIN),
                lambda answer: _check_ls_chain(answer, candidates, skeleton),
            ),
            Contender(
                "ivdtool, nothing to search",
                lambda: search_skeleton(nothing, skeleton, PAPER),
                lambda answer: expect(answer.labels == (), "found something"),
            ),
            *_core_contenders(candidates, skeleton),
            Contender(
                EXHAUSTIVE[0],
                lambda: _visit_all(candidates, skeleton, by_loop),
                lambda best: check_exhaustive(best, by_loop == combinations),
                factor=combinations / by_loop,
            ),
            Contender(
                EXHAUSTIVE[1],
                lambda: _visit_in_chunks(candidates, skeleton, by_chunks),
                lambda best: check_exhaustive(best, by_chunks == combinations),
                factor=combinations / by_chunks,
            ),
            Contender(
                EXHAUSTIVE[2],
                lambda: visit(by_core),
                lambda result: check_exhaustive(best_of(result), by_core == combinations),
                factor=combinations / by_core,
            ),
        ),
        size={"V": discs, "K": choices, "combinations": float(combinations)},
    )


def _core_contenders(candidates: Candidates, skeleton: Skeleton) -> Iterator[Contender]:
    """The compiled function for the paper's cost, and what it can be asked for beyond the best."""
    arrays = (candidates.positions_mm, candidates.scores, candidates.offsets, skeleton.mean_mm)
    anchors = (0, FIFTH)
    missing = np.full(len(skeleton.labels), MISSING)

    def solve(n_best: int = 1, with_margins: bool = False) -> _core.SearchResult:
        return _core.search_paper(*arrays, anchors, False, n_best, with_margins)

    def solve_in_order() -> _core.SearchResult:
        return _core.search_paper_order(
            *arrays, missing, anchors, False, MIN_GAP, 1, with_margins=False
        )

    def check(result: _core.SearchResult) -> None:
        expect(len(set(map(tuple, result.choices.tolist()))) == len(result.costs), "a duplicate")
        expect(result.costs.tolist() == sorted(result.costs), "not in order of cost")
        for choice, cost in zip(result.choices, result.costs.tolist(), strict=True):
            again = _paper_cost(candidates, skeleton, choice)
            expect(math.isclose(cost, again, rel_tol=1e-12), "not the cost of its choice")
        expect(result.costs[0] == solve().costs[0], "depends on what else is asked for")

    def check_margins(result: _core.SearchResult) -> None:
        """A margin is what it costs to do without the chosen candidate."""
        check(result)
        for channel, chosen in enumerate(result.choices[0].tolist()):
            fewer = _without(candidates, channel, chosen)
            other = search_skeleton(fewer, skeleton, PAPER) if fewer is not None else None
            cost = math.inf if other is None else other.cost
            margin = float(result.margins[channel])
            expect(math.isclose(margin, cost - result.costs[0], abs_tol=1e-12), "another margin")

    def check_order(result: _core.SearchResult) -> None:
        """The cost is that of the choice, and no change of one disc improves it."""
        best = result.choices[0]
        cost = _ordered_cost(candidates, skeleton, best)
        expect(math.isclose(result.costs[0], cost, rel_tol=1e-12), "not the cost of its choice")
        for channel in range(len(best)):
            for other in (-1, *range(*candidates.of(channel).indices(len(candidates.scores)))):
                changed = best.copy()
                changed[channel] = other
                found = _ordered_cost(candidates, skeleton, changed)
                expect(found >= cost * (1 - 1e-12), "a change improves it")

    yield Contender(
        "core: paper's cost",
        lambda: _core.search_paper(*arrays, anchors, False, 1, False),
        check,
    )
    yield Contender("core: with margins", lambda: solve(with_margins=True), check_margins)
    yield Contender("core: 16 best", lambda: solve(n_best=16), check)
    yield Contender("core: discs in order or missing", solve_in_order, check_order)


def _case_of_many(name: str, problems: Sequence[Candidates], skeleton: Skeleton) -> Case:
    def solve(config: SearchConfig) -> list[Assignment]:
        return [search_skeleton(candidates, skeleton, config) for candidates in problems]

    def check_paper(answers: list[Assignment]) -> None:
        for answer in answers:
            again = _paper_cost(answer.candidates, skeleton, answer.choice)
            expect(math.isclose(answer.cost, again, rel_tol=1e-12), "not the cost of its choice")

    def check_ls_chain(answers: list[Assignment]) -> None:
        for answer in answers:
            _check_ls_chain(answer, answer.candidates, skeleton)

    return Case(
        stage="search",
        name=name,
        contenders=(
            Contender(OURS[0], lambda: solve(PAPER), check_paper),
            Contender(OURS[1], lambda: solve(LS_CHAIN), check_ls_chain),
        ),
        size={"problems": len(problems)},
    )


def _check_ls_chain(answer: Assignment, candidates: Candidates, skeleton: Skeleton) -> None:
    """A longer list of alternatives prunes less, and must not find better."""
    other = search_skeleton(candidates, skeleton, replace(LS_CHAIN, n_best=6))
    expect(answer.optimal and other.optimal, "not proved optimal")
    expect(math.isclose(answer.cost, other.cost, rel_tol=1e-9), "depends on the pruning")
    expect((answer.choice == other.choice).all(), "depends on the pruning")


def _without(candidates: Candidates, channel: int, row: int) -> Candidates | None:
    """All candidates but one; None if it is the channel's only one."""
    own = candidates.of(channel)
    if own.stop - own.start == 1:
        return None
    return replace(
        candidates,
        positions=np.delete(candidates.positions, row, axis=0),
        scores=np.delete(candidates.scores, row),
        offsets=candidates.offsets - (np.arange(len(candidates.offsets)) > channel),
    )


def _skeleton(discs: int) -> Skeleton:
    """Steps that grow from neck to loin, along a gentle curve."""
    steps = np.linspace(17, 35, discs - 1) if discs > 1 else np.zeros(0)
    rows = np.concatenate([[0.0], np.cumsum(steps)])
    cols = 25 * np.sin(rows / 120)
    return Skeleton(
        labels=ALL_LABELS[:discs],
        mean_mm=np.stack([rows, cols], axis=1),
        disc_sd_mm=np.full(discs, 8.0),
        step_sd_mm=np.full(discs - 1, 2.0),
        missing_rate=np.full(discs, 0.1),
    )


def _candidates(
    rng: np.random.Generator, skeleton: Skeleton, choices: int, missing: float = 0.0
) -> Candidates:
    """The skeleton rotated, scaled and disturbed; other candidates lie on other discs or nearby.

    Of a missing disc there are only other candidates.
    """
    count = len(skeleton.labels)
    angle, scale = rng.normal(0, math.radians(5)), rng.normal(1, 0.07)
    turn = scale * np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    discs = skeleton.mean_mm @ turn + rng.normal(0, 1.5, (count, 2)) + 50
    points = np.empty((count, choices, 2))
    for channel in range(count):
        own = [discs[channel]] if rng.random() >= missing else []
        while len(own) < choices:
            elsewhere = rng.integers(count) if rng.random() < 0.5 else channel
            point = discs[elsewhere] + rng.normal(0, 12, 2)
            if all(np.hypot(*(point - other)) > APART_MM for other in own):
                own.append(point)
        points[channel] = rng.permutation(own)
    return Candidates(
        positions=points.reshape(-1, 2),
        scores=rng.uniform(0.4, 0.9, count * choices),
        offsets=np.arange(count + 1, dtype=np.int64) * choices,
        labels=skeleton.labels,
        spacing_mm=(1.0, 1.0),
    )


def _template(skeleton: Skeleton) -> Points:
    shape = skeleton.mean_mm - skeleton.mean_mm[0]
    template: Points = shape / np.linalg.norm(shape[FIFTH])
    return template


def _paper_cost(candidates: Candidates, skeleton: Skeleton, choice: npt.ArrayLike) -> float:
    """Equation 3 of paper 1 for one combination."""
    points = candidates.positions_mm[np.asarray(choice)]
    shape = (points - points[0]) / np.linalg.norm(points[0] - points[FIFTH])
    return float(np.linalg.norm(_template(skeleton) - shape, axis=1).sum())


def _ordered_cost(
    candidates: Candidates, skeleton: Skeleton, choice: npt.NDArray[np.int64]
) -> float:
    """Equation 3 with its price for missing discs; infinite if the others are not in order."""
    if choice[0] < 0 or choice[FIFTH] < 0:
        return math.inf
    present = np.flatnonzero(choice >= 0)
    points = candidates.positions_mm[choice[present]]
    steps, expected = np.diff(points[:, 0]), np.diff(skeleton.mean_mm[present, 0])
    if not ((steps > 0) & (steps >= MIN_GAP * expected)).all():
        return math.inf
    first, fifth = candidates.positions_mm[choice[[0, FIFTH]]]
    shape = (points - first) / np.linalg.norm(first - fifth)
    distances = np.linalg.norm(_template(skeleton)[present] - shape, axis=1)
    return float(distances.sum() + MISSING * (len(choice) - len(present)))


def _visit_all(candidates: Candidates, skeleton: Skeleton, count: int) -> tuple[float, list[int]]:
    """The search tree of paper 1, every combination one after the other; the first `count`."""
    template = _template(skeleton)
    points = candidates.positions_mm
    lists = [range(*candidates.of(c).indices(len(points))) for c in range(len(template))]
    best = (math.inf, [-1])
    for choice in itertools.islice(itertools.product(*lists), count):
        chosen = points[list(choice)]
        shape = (chosen - chosen[0]) / np.linalg.norm(chosen[0] - chosen[FIFTH])
        cost = float(np.linalg.norm(template - shape, axis=1).sum())
        if cost < best[0]:
            best = (cost, list(choice))
    return best


def _visit_in_chunks(
    candidates: Candidates, skeleton: Skeleton, count: int
) -> tuple[float, list[int]]:
    """All combinations, thousands at a time; the first `count`."""
    template = _template(skeleton)
    points = candidates.positions_mm
    first = candidates.offsets[:-1]
    sizes = np.diff(candidates.offsets).tolist()
    best = (math.inf, [-1])
    for start in range(0, count, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, count), dtype=np.int64)
        choice = np.empty((len(numbers), len(sizes)), dtype=np.int64)
        for channel in range(len(sizes) - 1, -1, -1):  # the last one turns fastest
            numbers, choice[:, channel] = np.divmod(numbers, sizes[channel])
        choice += first
        chosen = points[choice]
        unit = np.linalg.norm(chosen[:, 0] - chosen[:, FIFTH], axis=1)
        shape = (chosen - chosen[:, :1]) / unit[:, np.newaxis, np.newaxis]
        costs = np.linalg.norm(template - shape, axis=2).sum(axis=1)
        least = int(costs.argmin())
        if costs[least] < best[0]:
            best = (float(costs[least]), choice[least].tolist())
    return best
