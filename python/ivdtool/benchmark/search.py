"""Choosing one candidate per disc."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ivdtool.benchmark.timing import Case, Contender, expect
from ivdtool.candidates import Candidates
from ivdtool.discs import ALL_LABELS
from ivdtool.search import Assignment, SearchConfig, search_skeleton
from ivdtool.skeleton import Skeleton

__all__ = ["EXHAUSTIVE", "OURS", "search_cases"]

Points = npt.NDArray[np.float64]

# Discs V and candidates per disc K. The spine has 23 discs.
SIZES = tuple((v, k) for v in (5, 7, 9, 11, 15, 19, 23) for k in range(1, 7))
QUICK_SIZES = ((5, 1), (5, 2), (7, 3), (23, 2))

OURS = ("ivdtool, paper's cost", "ivdtool, ls_chain")
EXHAUSTIVE = ("papers: exhaustive, Python", "exhaustive, NumPy")

MOST_VISITED = 40_000  # combinations by the loop; NumPy takes CHUNK at a time, this many times
CHUNK = 20_000
MOST_CHUNKS = 50

PAPER = SearchConfig(mode="paper", n_best=1)
LS_CHAIN = SearchConfig(n_best=1)
FIFTH = 4  # v1 and v5 of equation 3 are the first and the fifth disc


def search_cases(quick: bool = False) -> Iterator[Case]:
    """One case per V and K; what cannot be visited in reasonable time is extrapolated."""
    for discs, choices in QUICK_SIZES if quick else SIZES:
        yield _case(discs, choices, 500 if quick else MOST_VISITED)


def _case(discs: int, choices: int, most_visited: int) -> Case:
    rng = np.random.default_rng([discs, choices])
    skeleton = _skeleton(discs)
    candidates = _candidates(rng, skeleton, choices)
    combinations = choices**discs
    ours = search_skeleton(candidates, skeleton, PAPER)
    visited = min(combinations, most_visited)
    in_chunks = min(combinations, CHUNK * MOST_CHUNKS, 20 * most_visited)

    def check_exhaustive(best: tuple[float, list[int]], complete: bool) -> None:
        cost, choice = best
        expect(ours.cost <= cost + 1e-12 * max(1, cost), "found a better combination")
        if complete:
            expect(math.isclose(ours.cost, cost, rel_tol=1e-12), "another least cost")
            expect(ours.choice.tolist() == choice, "another combination")

    def check_paper(answer: Assignment) -> None:
        again = _paper_cost(candidates, skeleton, answer.choice)
        expect(math.isclose(answer.cost, again, rel_tol=1e-12), "not the cost of its choice")

    def check_ls_chain(answer: Assignment) -> None:
        """A longer list of alternatives prunes less, and must not find better."""
        other = search_skeleton(candidates, skeleton, SearchConfig(n_best=6))
        expect(answer.optimal and other.optimal, "not proved optimal")
        expect(math.isclose(answer.cost, other.cost, rel_tol=1e-9), "depends on the pruning")
        expect((answer.choice == other.choice).all(), "depends on the pruning")

    return Case(
        stage="search",
        name=f"V={discs} K={choices}",
        contenders=(
            Contender(OURS[0], lambda: search_skeleton(candidates, skeleton, PAPER), check_paper),
            Contender(
                OURS[1], lambda: search_skeleton(candidates, skeleton, LS_CHAIN), check_ls_chain
            ),
            Contender(
                EXHAUSTIVE[0],
                lambda: _visit_all(candidates, skeleton, visited),
                lambda best: check_exhaustive(best, visited == combinations),
                factor=combinations / visited,
            ),
            Contender(
                EXHAUSTIVE[1],
                lambda: _visit_in_chunks(candidates, skeleton, in_chunks),
                lambda best: check_exhaustive(best, in_chunks == combinations),
                factor=combinations / in_chunks,
            ),
        ),
        size={"V": discs, "K": choices, "combinations": float(combinations)},
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


def _candidates(rng: np.random.Generator, skeleton: Skeleton, choices: int) -> Candidates:
    """The skeleton rotated, scaled and disturbed; other candidates lie on other discs or nearby."""
    count = len(skeleton.labels)
    angle, scale = rng.normal(0, math.radians(5)), rng.normal(1, 0.07)
    turn = scale * np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    discs = skeleton.mean_mm @ turn + rng.normal(0, 1.5, (count, 2)) + 50
    points = np.empty((count, choices, 2))
    points[:, 0] = discs
    for channel in range(count):
        for choice in range(1, choices):
            elsewhere = rng.integers(count) if rng.random() < 0.5 else channel
            points[channel, choice] = discs[elsewhere] + rng.normal(0, 12, 2)
        rng.shuffle(points[channel])
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
