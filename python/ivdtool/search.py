"""The skeleton search: of all ways to choose a candidate per disc, or none, the best one.

Two cost models. `paper` is equation 3 of paper 1, which needs the discs v1 and v5 and knows no
missing disc. `ls_chain` (the default) fits the mean skeleton by least squares to whatever discs
are present. Both are solved exactly: `paper` in polynomial time, `ls_chain` by branch and bound.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ivdtool import _core
from ivdtool.candidates import Candidates
from ivdtool.skeleton import Skeleton

__all__ = ["Alternative", "Assignment", "SearchConfig", "search_skeleton"]

SHIFT_REACH_MM = 5.0  # a candidate this near supports a disc moved to its channel


@dataclass(frozen=True)
class SearchConfig:
    """What the search minimises, and how long it may.

    Attributes:
        mode: the cost model; the settings below it are of `ls_chain` unless they say otherwise.
        chain_weight: of the steps between discs against the discs themselves, without unit.
        missing_penalty_mm2: cost of a missing disc.
        score_weight_mm2: cost of a present disc with heatmap value 0; with value 1 it is 0.
        max_rotation_rad: the spine may be rotated this much against the skeleton, 0..pi.
        min_scale: least factor from the spine to the skeleton.
        max_scale: largest factor from the spine to the skeleton, may be infinite.
        min_gap: least rows from a disc to the next, as a share of those in the skeleton.
        min_present: a labelling with fewer discs is not one.
        node_budget: search steps before the best labelling so far is returned unproved; the
            margins may take as many again.
        n_best: labellings returned, the best included; both modes.
        norm: `paper` only. "l1" sums distances, as the text does; "l2" takes the 2-norm over
            discs, as the authors' code does.
        anchors: `paper` only. Labels of the discs v1 and v5; None is the first and the fifth.

    Raises:
        ValueError: a value out of range.
    """

    mode: Literal["ls_chain", "paper"] = "ls_chain"
    chain_weight: float = 5.0
    missing_penalty_mm2: float = 300.0
    score_weight_mm2: float = 50.0
    max_rotation_rad: float = 0.35
    min_scale: float = 0.75
    max_scale: float = 1.35
    min_gap: float = 0.25
    min_present: int = 2
    node_budget: int = 5_000_000
    n_best: int = 5
    norm: Literal["l1", "l2"] = "l1"
    anchors: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("ls_chain", "paper"):
            raise ValueError(f"mode must be ls_chain or paper, not {self.mode!r}")
        if self.norm not in ("l1", "l2"):
            raise ValueError(f"norm must be l1 or l2, not {self.norm!r}")
        for name in ("chain_weight", "missing_penalty_mm2", "score_weight_mm2", "min_gap"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, not {value}")
        if not 0 <= self.max_rotation_rad <= math.pi:
            raise ValueError(f"max_rotation_rad must lie in 0..pi, not {self.max_rotation_rad}")
        if not (0 <= self.min_scale <= self.max_scale and self.min_scale < math.inf):
            raise ValueError(f"no scale lies in {self.min_scale}..{self.max_scale}")
        if self.max_scale <= 0:
            raise ValueError(f"max_scale must be positive, not {self.max_scale}")
        for name in ("min_present", "node_budget", "n_best"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.anchors is not None and len(set(self.anchors)) != 2:
            raise ValueError(f"anchors must be two different labels, not {self.anchors}")


@dataclass(frozen=True, eq=False)
class Alternative:
    """Another labelling: the candidate of each channel, -1 where missing, and what it costs."""

    choice: npt.NDArray[np.int64]
    cost: float


@dataclass(frozen=True, eq=False)
class Assignment:
    """The best labelling, M of V discs present; M is 0 if no labelling is feasible.

    Attributes:
        labels: (M,) labels of the present discs, rising.
        positions: (M, 2) float64 row, col in image pixels.
        scores: (M,) float64 heatmap values.
        margins: (M,) cost of the best labelling without this choice, minus `cost`: infinite if
            there is none, the proved part of it where `margins_proved` is False.
        margins_proved: (M,) bool.
        choice: (V,) int64 row of the candidate chosen for each channel, -1 where missing.
        channel_margins: (V,) `margins` for all channels: for a missing disc, the cost of having
            it present. NaN if there is no labelling.
        cost: the sum of `terms`; mm^2 (`ls_chain`) or units of the distance v1 - v5 (`paper`).
            Without a labelling the cost of all discs missing.
        terms: the parts of the cost by name.
        scale: factor from the spine to the skeleton; 1 in `paper` mode.
        rotation_rad: angle from the spine to the skeleton, positive from rows to columns.
        nodes: search steps taken for the best labelling.
        optimal: whether `cost` is proved to be the least possible.
        lower_bound: no labelling costs less; equals `cost` if optimal.
        alternatives: the next best labellings, at most n_best - 1.
        shift_margin: cost of the best labelling that keeps the points but moves every label by
            one level, up or down, minus `cost`. At least half of the points must keep a label;
            the others count as missing. The score of a moved point is that of the nearest
            candidate of its new channel within 5 mm, or 0. Infinite if there is no such
            labelling; None in `paper` mode and without a labelling.
    """

    labels: tuple[int, ...]
    positions: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    margins: npt.NDArray[np.float64]
    margins_proved: npt.NDArray[np.bool_]
    choice: npt.NDArray[np.int64]
    channel_margins: npt.NDArray[np.float64]
    cost: float
    terms: dict[str, float]
    scale: float
    rotation_rad: float
    nodes: int
    optimal: bool
    lower_bound: float
    alternatives: tuple[Alternative, ...]
    shift_margin: float | None


class Result(NamedTuple):
    """What the compiled search returns: the n best labellings, best first, and how sure it is."""

    choices: npt.NDArray[np.int64]  # (n, V), -1 where missing
    costs: npt.NDArray[np.float64]  # (n,)
    terms: npt.NDArray[np.float64]  # (n, 4) shape, chain, score, missing
    multipliers: npt.NDArray[np.float64]  # (n, 2) real and imaginary part of k
    margins: npt.NDArray[np.float64]  # (V,), or (0,) if not asked for
    margins_proved: npt.NDArray[np.bool_]  # as margins
    nodes: int
    optimal: bool
    lower_bound: float


def search_skeleton(
    candidates: Candidates, skeleton: Skeleton, config: SearchConfig | None = None
) -> Assignment:
    """Choose a candidate, or none, for every disc so that the cost is least.

    With chosen candidates p, scores s, mean skeleton u (all mm), pair weights w and the next
    present disc j of i, `ls_chain` minimises over the choice and over all k and t

        shape    sum over present i of |k p_i + t - u_i|^2
        chain    + chain_weight * sum over steps i, j of w_ij |k (p_j - p_i) - (u_j - u_i)|^2
        score    + score_weight_mm2 * sum over present i of (1 - s_i)
        missing  + missing_penalty_mm2 for each missing disc,

    k p being p rotated and scaled within the limits. Row p_j must exceed row p_i by at least
    min_gap times the rows between u_i and u_j. `paper` minimises equation 3 of paper 1, the sum
    over discs of |(u_i - u_1) / |u_1 - u_5| - (p_i - p_1) / |p_1 - p_5|| (or its 2-norm); discs
    without candidates are left out, and v1 and v5 must have some.

    The result is exact unless `optimal` is False. It depends on nothing but the arguments; of
    equal costs the one found first wins, which prefers candidates of smaller index.

    The candidates must not be modified by another thread during the call.

    Raises:
        ValueError: labels of candidates and skeleton that differ, or anchors not among them.
    """
    config = config or SearchConfig()
    if candidates.labels != skeleton.labels:
        raise ValueError(
            f"candidates have labels {candidates.labels} but the skeleton {skeleton.labels}"
        )
    if config.mode == "paper":
        return _search_paper(candidates, skeleton, config)
    return _search_ls_chain(candidates, skeleton, config)


def _search_paper(candidates: Candidates, skeleton: Skeleton, config: SearchConfig) -> Assignment:
    labels = skeleton.labels
    if config.anchors is None and len(labels) < 5:
        raise ValueError(f"the paper's cost needs five discs or anchors, not {labels}")
    anchors = config.anchors or (labels[0], labels[4])
    if not set(anchors) <= set(labels):
        raise ValueError(f"anchors {anchors} are not among the labels {labels}")
    solved = _core.search_paper(
        np.ascontiguousarray(candidates.positions_mm),
        np.ascontiguousarray(candidates.scores),
        np.ascontiguousarray(candidates.offsets),
        np.ascontiguousarray(skeleton.mean_mm),
        (labels.index(anchors[0]), labels.index(anchors[1])),
        config.norm == "l2",
        config.n_best,
    )
    return _assignment(candidates, Result(*solved), ("shape",), 0.0, None)


def _search_ls_chain(
    candidates: Candidates, skeleton: Skeleton, config: SearchConfig
) -> Assignment:
    missing_cost = config.missing_penalty_mm2 * len(skeleton.labels)
    result = _solve_ls_chain(candidates, skeleton, config)
    shift_margin = None
    if len(result.choices) > 0:
        shift_margin = _shift_margin(candidates, skeleton, config, result)
    terms = ("shape_mm2", "chain_mm2", "score_mm2", "missing_mm2")
    return _assignment(candidates, result, terms, missing_cost, shift_margin)


def _solve_ls_chain(
    candidates: Candidates,
    skeleton: Skeleton,
    config: SearchConfig,
    *,
    min_present: int | None = None,
    best_only: bool = False,
) -> Result:
    count = len(skeleton.labels)
    solved = _core.search_ls_chain(
        np.ascontiguousarray(candidates.positions_mm),
        np.ascontiguousarray(candidates.scores),
        np.ascontiguousarray(candidates.offsets),
        np.ascontiguousarray(skeleton.mean_mm),
        np.ones(count),
        skeleton.pair_weights(),
        np.full(count, config.missing_penalty_mm2, dtype=np.float64),
        config.score_weight_mm2,
        config.chain_weight,
        config.max_rotation_rad,
        config.min_scale,
        config.max_scale,
        config.min_gap,
        min_present or config.min_present,
        1 if best_only else config.n_best,
        config.node_budget,
        not best_only,
    )
    return Result(*solved)


def _shift_margin(
    candidates: Candidates, skeleton: Skeleton, config: SearchConfig, best: Result
) -> float:
    """See `Assignment.shift_margin`."""
    choice = best.choices[0]
    half = (int(np.count_nonzero(choice >= 0)) + 1) // 2
    bounds = []
    for step in (-1, 1):
        moved = _shifted(candidates, choice, step)
        result = _solve_ls_chain(moved, skeleton, config, min_present=half, best_only=True)
        bounds.append(result.lower_bound)
    return max(0.0, min(bounds) - float(best.costs[0]))


def _shifted(candidates: Candidates, choice: npt.NDArray[np.int64], step: int) -> Candidates:
    """The chosen points as only candidates of the channels `step` further down."""
    points: list[npt.NDArray[np.float64]] = []
    scores: list[float] = []
    offsets = [0]
    for channel in range(len(choice)):
        source = channel - step
        if 0 <= source < len(choice) and choice[source] >= 0:
            point = candidates.positions[choice[source]]
            own = candidates.of(channel)
            offset_mm = (candidates.positions[own] - point) * np.asarray(candidates.spacing_mm)
            distance = np.hypot(offset_mm[:, 0], offset_mm[:, 1])
            near = distance.size > 0 and distance.min() <= SHIFT_REACH_MM
            points.append(point)
            scores.append(float(candidates.scores[own][distance.argmin()]) if near else 0.0)
        offsets.append(len(points))
    return Candidates(
        positions=np.array(points).reshape(-1, 2),
        scores=np.array(scores),
        offsets=np.array(offsets, dtype=np.int64),
        labels=candidates.labels,
        spacing_mm=candidates.spacing_mm,
    )


def _assignment(
    candidates: Candidates,
    result: Result,
    term_names: tuple[str, ...],
    missing_cost: float,
    shift_margin: float | None,
) -> Assignment:
    count = len(candidates.labels)
    if len(result.choices) == 0:
        result = result._replace(
            choices=np.full((1, count), -1, dtype=np.int64),
            costs=np.array([missing_cost]),
            terms=np.array([[0.0, 0.0, 0.0, missing_cost]]),
            multipliers=np.array([[1.0, 0.0]]),
            margins=np.full(count, np.nan),
            margins_proved=np.zeros(count, dtype=np.bool_),
            lower_bound=min(result.lower_bound, missing_cost),
        )
    best = result.choices[0]
    present = best >= 0
    return Assignment(
        labels=tuple(
            label for label, chosen in zip(candidates.labels, present, strict=True) if chosen
        ),
        positions=candidates.positions[best[present]],
        scores=candidates.scores[best[present]],
        margins=result.margins[present],
        margins_proved=result.margins_proved[present],
        choice=best,
        channel_margins=result.margins,
        cost=float(result.costs[0]),
        terms=dict(zip(term_names, result.terms[0].tolist(), strict=False)),
        scale=float(np.hypot(*result.multipliers[0])),
        rotation_rad=float(np.arctan2(result.multipliers[0, 1], result.multipliers[0, 0])),
        nodes=result.nodes,
        optimal=result.optimal,
        lower_bound=result.lower_bound,
        alternatives=tuple(
            Alternative(choice, float(cost))
            for choice, cost in zip(result.choices[1:], result.costs[1:], strict=True)
        ),
        shift_margin=shift_margin,
    )
