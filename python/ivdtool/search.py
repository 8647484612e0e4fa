"""The skeleton search: of all ways to choose a candidate per disc, or none, the best one.

Four cost models. `paper` is equation 3 of paper 1, which needs the discs v1 and v5 and knows no
missing disc; `paper_order` adds to it the order of the discs and missing ones. `first_last` lays
the mean skeleton over the first and the last present disc. `ls_chain` (the default) fits it by
least squares to whatever discs are present. All are solved exactly: `ls_chain` by branch and bound,
the others in polynomial time.
"""

import cmath
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from ivdtool import _core
from ivdtool.candidates import Candidates
from ivdtool.skeleton import Skeleton

__all__ = [
    "FATES",
    "Alternative",
    "Assignment",
    "Mode",
    "Rule",
    "SearchConfig",
    "Statistics",
    "TreeNode",
    "search_skeleton",
]

Mode = Literal["ls_chain", "first_last", "paper", "paper_order"]

# What is known of a level beforehand; the same order as in csrc/search_ls_chain.hpp.
Rule = Literal["free", "absent", "present", "own"]

SHIFT_REACH_MM = 5.0  # a candidate this near supports a disc moved to its channel
RATES = (0.02, 0.98)  # missing rates are taken to lie between these: no disc is certain

# The terms of each mode's cost; the same order as in csrc/bindings.cpp, empty for what it has not.
TERMS: dict[Mode, tuple[str, ...]] = {
    "ls_chain": ("shape_mm2", "chain_mm2", "score_mm2", "missing_mm2", "offset_mm2"),
    "first_last": ("shape_mm2", "", "score_mm2", "missing_mm2", ""),
    "paper": ("shape", "", "", "", ""),
    "paper_order": ("shape", "", "", "missing", ""),
}

# What became of a node of the search tree; the same order as in csrc/search.hpp.
FATES = ("expanded", "order", "chain", "shape", "incumbent", "budget")


@dataclass(frozen=True)
class SearchConfig:
    """What the search minimises, and how long it may.

    Attributes:
        mode: the cost model; the settings below it are of `ls_chain` unless they say otherwise.
        chain_weight: of the steps between discs against the discs themselves, without unit.
        missing_penalty_mm2: cost of a missing disc; all modes but `paper`.
        score_weight_mm2: cost of a present disc with heatmap value 0; with value 1 it is 0. Also
            of `first_last`.
        weights: "learnt" weighs each disc by its spread in the training data, and lets a disc be
            missing the more cheaply the more often it was, see `search_skeleton`; the latter also
            of `first_last`.
        temperature_mm2: the cost that makes a labelling less likely by a factor of e; for
            posteriors and learnt missing costs.
        borrow_mm2: price of a disc whose candidate a neighbouring channel found. None: never.
        offset_change_mm2: price of each change, from disc to disc, of the offset between a disc's
            channel and that of its candidate.
        offset_start_mm2: price of a first disc with such an offset.
        max_rotation_rad: the spine may be rotated this much against the skeleton, 0..pi. This and
            the two scales are also of `first_last`.
        min_scale: least factor from the spine to the skeleton.
        max_scale: largest factor from the spine to the skeleton, may be infinite.
        min_gap: least rows from a disc to the next, as a share of those in the skeleton; all modes
            but `paper`.
        min_present: a labelling with fewer discs is not one.
        max_present: nor is one with more. None: any number.
        node_budget: search steps before the best labelling so far is returned unproved; the
            margins may take as many again.
        n_best: labellings returned, the best included; all modes.
        margins: whether margins are wanted, the shift margin included; they take as long as the
            search itself and more; all modes.
        norm: `paper` and `paper_order`. "l1" sums distances, as the text does; "l2" takes the
            2-norm over discs, as the authors' code does.
        anchors: `paper` and `paper_order`. Labels of the discs v1 and v5; None is the first and
            the fifth.

    Raises:
        ValueError: a value out of range.
    """

    mode: Mode = "ls_chain"
    chain_weight: float = 5.0
    missing_penalty_mm2: float = 300.0
    score_weight_mm2: float = 50.0
    weights: Literal["uniform", "learnt"] = "uniform"
    temperature_mm2: float = 60.0
    borrow_mm2: float | None = None
    offset_change_mm2: float = 300.0
    offset_start_mm2: float = 100.0
    max_rotation_rad: float = 0.35
    min_scale: float = 0.75
    max_scale: float = 1.35
    min_gap: float = 0.25
    min_present: int = 2
    max_present: int | None = None
    node_budget: int = 5_000_000
    n_best: int = 5
    margins: bool = True
    norm: Literal["l1", "l2"] = "l1"
    anchors: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {get_args(Mode)}, not {self.mode!r}")
        if self.weights not in ("uniform", "learnt"):
            raise ValueError(f"weights must be uniform or learnt, not {self.weights!r}")
        if self.norm not in ("l1", "l2"):
            raise ValueError(f"norm must be l1 or l2, not {self.norm!r}")
        for name in (
            "chain_weight",
            "missing_penalty_mm2",
            "score_weight_mm2",
            "borrow_mm2",
            "offset_change_mm2",
            "offset_start_mm2",
            "min_gap",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and not negative, not {value}")
        if not 0 < self.temperature_mm2 < math.inf:
            raise ValueError(f"temperature_mm2 must be positive, not {self.temperature_mm2}")
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
        if self.max_present is not None and self.max_present < self.min_present:
            raise ValueError(
                f"max_present must be at least min_present, {self.min_present}, "
                f"not {self.max_present}"
            )
        if self.anchors is not None and len(set(self.anchors)) != 2:
            raise ValueError(f"anchors must be two different labels, not {self.anchors}")


@dataclass(frozen=True, eq=False)
class Alternative:
    """Another labelling: the candidate of each channel, -1 where missing, and what it costs."""

    choice: npt.NDArray[np.int64]
    cost: float


@dataclass(frozen=True)
class TreeNode:
    """A node of the search tree: the choice of one more disc.

    Attributes:
        parent: index of the node whose discs it adds to; -1 for the root.
        channel: index of the disc; -1 for the root.
        candidate: row of the chosen candidate; -1 for the root.
        fate: one of FATES: the node was expanded, or cut since the disc is not far enough below
            the last one (order), since it costs too much with the later steps fitted one by one
            (chain), or with this disc fitted together with the earlier ones (shape), since a
            better labelling was found before its turn (incumbent), or never reached (budget).
        bound: no labelling below the node costs less.
    """

    parent: int
    channel: int
    candidate: int
    fate: str
    bound: float


@dataclass(frozen=True)
class Statistics:
    """What the search did; of use in `ls_chain` alone, the one mode with branch and bound.

    Attributes:
        fates: number of nodes by what became of them, see FATES.
        depth: most present discs in an expanded node.
        improvements: nodes taken and cost, whenever a better labelling was found.
        tree: the first nodes, parents before children, if they were asked for.
    """

    fates: dict[str, int]
    depth: int
    improvements: tuple[tuple[int, float], ...]
    tree: tuple[TreeNode, ...]


@dataclass(frozen=True, eq=False)
class Assignment:
    """The best labelling, M of V discs present; M is 0 if no labelling is feasible.

    It is worked out from the compiled answer when it is first read: that takes longer than a small
    search.

    Attributes:
        candidates: what was chosen from.
        skeleton: what they were compared with.
        config: the cost model.
        result: the compiled answer, the n best labellings.
        rules: what was known of levels beforehand, by label; the others are free.
        shift_margins: cost of the best labelling that keeps the points but moves every label by
            one level, up (to smaller labels) and down, minus `cost`. At least half of the points
            must keep a label; the others count as missing. The score of a moved point is that of
            the nearest candidate of its new channel within 5 mm, or 0. Infinite where there is no
            such labelling; None in other modes than `ls_chain`, without a labelling, where rules
            say that a disc is present, and if margins are not wanted.
    """

    candidates: Candidates
    skeleton: Skeleton
    config: SearchConfig
    result: _core.SearchResult
    rules: Mapping[int, Rule]
    shift_margins: tuple[float, float] | None

    @property
    def shift_margin(self) -> float | None:
        """The smaller one of `shift_margins`."""
        return None if self.shift_margins is None else min(self.shift_margins)

    @cached_property
    def choice(self) -> npt.NDArray[np.int64]:
        """(V,) row of the candidate chosen for each channel, -1 where missing."""
        choices = self.result.choices
        return choices[0] if len(choices) > 0 else np.full(len(self.skeleton.labels), -1)

    @cached_property
    def labels(self) -> tuple[int, ...]:
        """(M,) labels of the present discs, rising."""
        rows = zip(self.candidates.labels, self.choice.tolist(), strict=True)
        return tuple(label for label, row in rows if row >= 0)

    @cached_property
    def positions(self) -> npt.NDArray[np.float64]:
        """(M, 2) row, col in image pixels."""
        return self.candidates.positions[self.choice[self.choice >= 0]]

    @cached_property
    def scores(self) -> npt.NDArray[np.float64]:
        """(M,) heatmap values."""
        return self.candidates.scores[self.choice[self.choice >= 0]]

    @cached_property
    def channel_margins(self) -> npt.NDArray[np.float64]:
        """(V,) `margins` for all channels: for a missing disc, the cost of having it present.

        NaN if there is no labelling.
        """
        margins = self.result.margins
        return margins if len(margins) > 0 else np.full(len(self.choice), np.nan)

    @cached_property
    def margins(self) -> npt.NDArray[np.float64]:
        """(M,) cost of the best labelling without this choice, minus `cost`.

        Infinite if there is none, the proved part of it where `margins_proved` is False, NaN if
        margins are not wanted.
        """
        return self.channel_margins[self.choice >= 0]

    @cached_property
    def margins_proved(self) -> npt.NDArray[np.bool_]:
        """(M,) whether `margins` are exact."""
        proved = self.result.margins_proved
        present = self.choice >= 0
        return proved[present] if len(proved) > 0 else np.zeros(present.sum(), dtype=np.bool_)

    @cached_property
    def posteriors(self) -> npt.NDArray[np.float64]:
        """(M,) of 0.5..1, 1 / (1 + exp(-margin / temperature)).

        The soft-min over two min-marginals, the least cost with this choice and the least without
        it. Exact for the better of the alternatives, so no less than a sum over all of them would
        give. In the paper's modes the temperature is its share of the squared distance v1 - v5.
        """
        temperature = self.config.temperature_mm2
        if self.config.mode in ("paper", "paper_order"):
            temperature /= _squared_length(self.skeleton, self.config)
        return np.asarray(1 / (1 + np.exp(-self.margins / temperature)))

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """(M,) channel of the candidate minus that of the disc, -1..1."""
        discs = np.flatnonzero(self.choice >= 0)
        return self.candidates.channels_of(self.choice[discs]) - discs

    @cached_property
    def cost(self) -> float:
        """The sum of `terms`; mm^2, or units of the distance v1 - v5 (the paper's modes).

        Without a labelling the cost of all discs missing.
        """
        costs = self.result.costs
        return float(costs[0]) if len(costs) > 0 else _cost_of_none(self.skeleton, self.config)

    @cached_property
    def terms(self) -> dict[str, float]:
        """The parts of the cost by name."""
        terms = self.result.terms
        values = terms[0].tolist() if len(terms) > 0 else [0.0, 0.0, 0.0, self.cost, 0.0]
        names = zip(TERMS[self.config.mode], values, strict=True)
        never = "offset_mm2" if self.config.borrow_mm2 is None else ""
        return {name: value for name, value in names if name not in ("", never)}

    @cached_property
    def _multiplier(self) -> complex:
        multipliers = self.result.multipliers
        return complex(*multipliers[0]) if len(multipliers) > 0 else 1 + 0j

    @property
    def scale(self) -> float:
        """Factor from the spine to the skeleton; 1 in the paper's modes."""
        return abs(self._multiplier)

    @property
    def rotation_rad(self) -> float:
        """Angle from the spine to the skeleton, positive from rows to columns."""
        return cmath.phase(self._multiplier)

    @property
    def nodes(self) -> int:
        """Search steps taken for the best labelling."""
        return self.result.nodes

    @property
    def optimal(self) -> bool:
        """Whether `cost` is proved to be the least possible."""
        return self.result.optimal

    @property
    def lower_bound(self) -> float:
        """No labelling costs less; equals `cost` if optimal."""
        return min(self.result.lower_bound, self.cost)

    @cached_property
    def alternatives(self) -> tuple[Alternative, ...]:
        """The next best labellings, at most n_best - 1."""
        others = zip(self.result.choices[1:], self.result.costs[1:].tolist(), strict=True)
        return tuple(Alternative(choice, cost) for choice, cost in others)

    @cached_property
    def statistics(self) -> Statistics:
        """What the search did."""
        result = self.result
        nodes = zip(result.tree.tolist(), result.bounds.tolist(), strict=True)
        return Statistics(
            fates=dict(zip(FATES, result.fates.tolist(), strict=True)),
            depth=result.depth,
            improvements=tuple((int(nodes), cost) for nodes, cost in result.improvements.tolist()),
            tree=tuple(
                TreeNode(parent, channel, candidate, FATES[fate], bound)
                for (parent, channel, candidate, fate), bound in nodes
            ),
        )


def search_skeleton(
    candidates: Candidates,
    skeleton: Skeleton,
    config: SearchConfig | None = None,
    *,
    rules: Mapping[int, Rule] | None = None,
    tree_size: int = 0,
) -> Assignment:
    """Choose a candidate, or none, for every disc so that the cost is least.

    With chosen candidates p, scores s, mean skeleton u (all mm), pair weights w and the next
    present disc j of i, `ls_chain` minimises over the choice and over all k and t

        shape    sum over present i of w_i |k p_i + t - u_i|^2
        chain    + chain_weight * sum over steps i, j of w_ij |k (p_j - p_i) - (u_j - u_i)|^2
        score    + score_weight_mm2 * sum over present i of (1 - s_i)
        missing  + l_i for each missing disc
        offset   + what candidates of neighbouring channels cost, see `SearchConfig`

    k p being p rotated and scaled within the limits. Row p_j must exceed row p_i by at least
    min_gap times the rows between u_i and u_j. With uniform weights w_i is 1 and l_i
    missing_penalty_mm2; with learnt ones w_i is the mean variance of a disc over that of disc i,
    and l_i is missing_penalty_mm2 + temperature_mm2 * log((1 - r_i) / r_i), but not negative, where
    r_i is the disc's missing rate.

    `first_last` has the same terms without chain and offset, and all w_i are 1; k and t are such
    that the first and the last present disc fit exactly. `paper` minimises equation 3 of paper 1,
    the sum over discs of |(u_i - u_1) / |u_1 - u_5| - (p_i - p_1) / |p_1 - p_5|| (or its 2-norm);
    discs without candidates are left out, and v1 and v5 must have some. `paper_order` wants them in
    order as above, and counts a missing disc as one at the distance sqrt(missing_penalty_mm2) in
    the skeleton.

    The result is exact unless `optimal` is False. It depends on nothing but the arguments; of
    equal costs the one found first wins, which prefers candidates of smaller index.

    The candidates must not be modified by another thread during the call.

    Args:
        candidates: to choose from.
        skeleton: the mean and its spread, of the same labels.
        config: the cost model.
        rules: what is known of levels beforehand, by label: ``absent`` ones have no disc,
            ``present`` ones have one, ``own`` ones have one at a candidate of their own channel;
            `ls_chain` only.
        tree_size: how many nodes of the search tree to report; `ls_chain` only.

    Raises:
        ValueError: labels of candidates and skeleton that differ, or anchors or rules for others;
            rules in another mode.
    """
    config, rules = config or SearchConfig(), dict(rules or {})
    if candidates.labels != skeleton.labels:
        raise ValueError(
            f"candidates have labels {candidates.labels} but the skeleton {skeleton.labels}"
        )
    if not set(rules) <= set(skeleton.labels):
        raise ValueError(f"rules for {sorted(rules)} are not among the labels {skeleton.labels}")
    if config.mode != "ls_chain":
        if rules:
            raise ValueError(f"only ls_chain knows rules, not {config.mode}")
        result = SOLVERS[config.mode](candidates, skeleton, config)
        return Assignment(candidates, skeleton, config, result, rules, None)
    result = _solve_ls_chain(candidates, skeleton, config, rules, tree_size=tree_size)
    shift_margins = None
    free = not {"present", "own"} & set(rules.values())
    if config.margins and free and len(result.costs) > 0:
        shift_margins = _shift_margins(candidates, skeleton, config, rules, result)
    return Assignment(candidates, skeleton, config, result, rules, shift_margins)


def _solve_paper(
    candidates: Candidates, skeleton: Skeleton, config: SearchConfig
) -> _core.SearchResult:
    return _core.search_paper(
        *_arrays(candidates, skeleton),
        _anchors(skeleton, config),
        config.norm == "l2",
        config.n_best,
        config.margins,
    )


def _solve_paper_order(
    candidates: Candidates, skeleton: Skeleton, config: SearchConfig
) -> _core.SearchResult:
    return _core.search_paper_order(
        *_arrays(candidates, skeleton),
        _missing_costs(skeleton, config),
        _anchors(skeleton, config),
        config.norm == "l2",
        config.min_gap,
        config.n_best,
        config.margins,
    )


def _solve_first_last(
    candidates: Candidates, skeleton: Skeleton, config: SearchConfig
) -> _core.SearchResult:
    return _core.search_first_last(
        *_arrays(candidates, skeleton),
        _missing_costs(skeleton, config),
        config.score_weight_mm2,
        config.max_rotation_rad,
        config.min_scale,
        config.max_scale,
        config.min_gap,
        config.n_best,
        config.margins,
    )


SOLVERS = {
    "paper": _solve_paper,
    "paper_order": _solve_paper_order,
    "first_last": _solve_first_last,
}


def _solve_ls_chain(
    candidates: Candidates,
    skeleton: Skeleton,
    config: SearchConfig,
    rules: Mapping[int, Rule],
    tree_size: int = 0,
    min_present: int | None = None,
    best_only: bool = False,
) -> _core.SearchResult:
    count = len(skeleton.labels)
    codes = [get_args(Rule).index(rules.get(label, "free")) for label in skeleton.labels]
    present = min_present or config.min_present
    return _core.search_ls_chain(
        *_arrays(candidates, skeleton),
        np.ones(count) if config.weights == "uniform" else skeleton.disc_weights,
        skeleton.pair_weights,
        _missing_costs(skeleton, config),
        config.score_weight_mm2,
        config.chain_weight,
        config.max_rotation_rad,
        config.min_scale,
        config.max_scale,
        config.min_gap,
        present,
        max(count, present) if config.max_present is None else config.max_present,
        np.array(codes, dtype=np.int64),
        math.inf if config.borrow_mm2 is None else config.borrow_mm2,
        config.offset_change_mm2,
        config.offset_start_mm2,
        1 if best_only else config.n_best,
        config.node_budget,
        config.margins and not best_only,
        tree_size,
    )


def _arrays(
    candidates: Candidates, skeleton: Skeleton
) -> tuple[
    npt.NDArray[np.float64],
    npt.NDArray[np.float64],
    npt.NDArray[np.int64],
    npt.NDArray[np.float64],
]:
    """The arguments that all modes share: positions_mm, scores, offsets, mean_mm."""
    return candidates.positions_mm, candidates.scores, candidates.offsets, skeleton.mean_mm


def _anchors(skeleton: Skeleton, config: SearchConfig) -> tuple[int, int]:
    """Channels of v1 and v5."""
    labels = skeleton.labels
    if config.anchors is None:
        if len(labels) < 5:
            raise ValueError(f"the paper's cost needs five discs or anchors, not {labels}")
        return 0, 4
    if not set(config.anchors) <= set(labels):
        raise ValueError(f"anchors {config.anchors} are not among the labels {labels}")
    return labels.index(config.anchors[0]), labels.index(config.anchors[1])


def _squared_length(skeleton: Skeleton, config: SearchConfig) -> float:
    """Of the step from v1 to v5 in mm^2, the unit of the paper's modes."""
    v1, v5 = _anchors(skeleton, config)
    return float(np.sum((skeleton.mean_mm[v5] - skeleton.mean_mm[v1]) ** 2))


def _missing_costs(skeleton: Skeleton, config: SearchConfig) -> npt.NDArray[np.float64]:
    """(V,) cost of each missing disc; what is summed for the 2-norm is squared."""
    penalty = config.missing_penalty_mm2
    if config.mode == "paper_order":
        penalty /= _squared_length(skeleton, config)
        penalty = penalty if config.norm == "l2" else math.sqrt(penalty)
    costs = np.full(len(skeleton.labels), penalty, dtype=np.float64)
    if config.weights == "learnt" and config.mode != "paper_order":
        rate = np.clip(skeleton.missing_rate, *RATES)
        costs += config.temperature_mm2 * np.log((1 - rate) / rate)
        costs = np.maximum(costs, 0.0)
    return costs


def _cost_of_none(skeleton: Skeleton, config: SearchConfig) -> float:
    """What a labelling without discs would cost."""
    if config.mode == "paper":
        return 0.0
    cost = float(_missing_costs(skeleton, config).sum())
    return math.sqrt(cost) if (config.mode, config.norm) == ("paper_order", "l2") else cost


def _shift_margins(
    candidates: Candidates,
    skeleton: Skeleton,
    config: SearchConfig,
    rules: Mapping[int, Rule],
    best: _core.SearchResult,
) -> tuple[float, float]:
    """See `Assignment.shift_margins`."""
    choice = best.choices[0]
    half = (int(np.count_nonzero(choice >= 0)) + 1) // 2
    config = replace(config, borrow_mm2=None)  # else the points would go back to their labels

    def margin(step: int) -> float:
        moved = _shifted(candidates, choice, step)
        result = _solve_ls_chain(moved, skeleton, config, rules, min_present=half, best_only=True)
        return max(0.0, result.lower_bound - float(best.costs[0]))

    return margin(-1), margin(1)


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
