"""The skeleton search on detections that nobody here drew: vertebral bodies of CT scans.

    python -m benchmarks.vid_keypoints [FILE]

The VID data set (Buergin, Prevost, Stollenga; CC BY-SA 4.0) holds, for 1,947 scans, the body
centres that a network found with its cervical, thoracic and lumbar probabilities, its mistakes
included, and the true level of each body. The search that labels discs is given one channel per
level, C1..L6, and every detection in every channel:

    score    how likely a detection with such probabilities is on that level, against a false one
    chain    the steps from body to body in the sagittal plane, weighted by their spread
    missing  one cost per level, so that a level of the table is worth explaining a detection

What these cost is learnt on four fifths of the scans, see `learn`; `KNOBS` were chosen by
cross-validation within them. The figures are those of the last fifth.
"""

import gzip
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from ivdtool import _core

Array = npt.NDArray[Any]
Labels = dict[int, int]  # detection: level

LEVELS = (
    *(f"C{i}" for i in range(1, 8)),
    *(f"T{i}" for i in range(1, 13)),
    *(f"L{i}" for i in range(1, 7)),
)
COUNT = len(LEVELS)
REGIONS = np.array([0] * 7 + [1] * 12 + [2] * 6)  # cervical, thoracic, lumbar
FIRST_THORACIC, FIRST_LUMBAR = 7, 19
FILE = Path(__file__).parents[2] / "shared" / "data" / "vid-keypoints" / "train.jsonl.gz"
FOLDS = 5
SEED = 2026
NEAR_MM = 15.0
EDGES = np.linspace(-9, 9, 13)  # of the bins of a log-odds
SHIFTS = range(-3, 4)


@dataclass(frozen=True)
class Knobs:
    """Chosen by cross-validation within the training fifths."""

    spread: float = 3e-5  # weight of a body against the mean spine, 1 / mm^2
    max_rotation_rad: float = 0.35
    min_scale: float = 0.85
    max_scale: float = 1.15
    detection: float = 3.0  # what leaving out a level costs, so that points are explained
    hopeless: float = 60.0  # a level this much dearer than the best one is no candidate
    ridge: float = 30.0  # on the cost of levels, see `learn`


KNOBS = Knobs()


@dataclass(frozen=True, eq=False)
class Scan:
    """Detections from the head down, and the true bodies.

    Attributes:
        points: (N, 3) mm; x to the right or left, y to the back, z to the head.
        chances: (N, 3) cervical, thoracic, lumbar; they need not sum to 1.
        bodies: (M, 3) mm.
        levels: (M,) index into LEVELS.
        matches: (N,) true level of the body within 15 mm, -1 for none.
    """

    points: Array
    chances: Array
    bodies: Array
    levels: Array
    matches: Array


def read_scans(path: Path) -> list[Scan]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [make_scan(json.loads(line)) for line in lines]


def make_scan(record: dict[str, Any]) -> Scan:
    found, truth = record["candidates"], record["truth"]
    points = np.array([point["xyz_mm"] for point in found]).reshape(-1, 3)
    chances = np.array([point["p_ctl"] for point in found]).reshape(-1, 3)
    order = np.argsort(-points[:, 2], kind="stable")
    points, chances = points[order], chances[order]
    bodies = np.array([body["xyz_mm"] for body in truth]).reshape(-1, 3)
    levels = np.array([LEVELS.index(body["level"]) for body in truth], dtype=np.int64)
    matches = np.full(len(points), -1)
    distances = np.linalg.norm(bodies[:, None] - points[None], axis=2)
    for body in range(len(bodies) if len(points) else 0):
        nearest = distances[body].argmin()
        if distances[body, nearest] <= NEAR_MM and distances[:, nearest].argmin() == body:
            matches[nearest] = levels[body]
    return Scan(points, chances, bodies, levels, matches)


def fold_of(count: int) -> Array:
    folds = np.empty(count, dtype=np.int64)
    folds[np.random.default_rng(SEED).permutation(count)] = np.arange(count) % FOLDS
    return folds


# What the costs are made of.


@dataclass(frozen=True, eq=False)
class Costs:
    """All that is learnt.

    Attributes:
        mean_mm: (V, 2) row, col of the mean spine.
        pair_weights: (V, V) of the steps, 1 / mm^2.
        evidence: (2, V, bins) log-likelihood ratio of a level against a false detection, by the
            log-odds of lumbar against thoracic and of cervical against thoracic.
        weights: (3,) of the two parts of the evidence and of the steps.
        levels: (V,) cost of a level's being present.
    """

    mean_mm: Array
    pair_weights: Array
    evidence: Array
    weights: Array
    levels: Array


def bins_of(chances: Array) -> Array:
    """(2, N) bins of the log-odds."""
    clipped = np.clip(chances, 1e-3, 1 - 1e-3)
    odds = np.log(clipped / (1 - clipped))
    return np.stack(
        [np.digitize(odds[:, 2] - odds[:, 1], EDGES), np.digitize(odds[:, 0] - odds[:, 1], EDGES)]
    )


def learn(scans: Sequence[Scan], knobs: Knobs = KNOBS) -> Costs:
    """Means and spreads by counting; the weights by how well they tell a scan from its shifts.

    The terms are not independent, so their weights are those of a logistic regression: of the
    right labelling of a scan against the same one moved by up to three levels.
    """
    mean, variance = mean_steps(scans)
    template = np.vstack([np.zeros((1, 2)), np.cumsum(mean[:-1], axis=0)])
    between = np.concatenate([[0.0], np.cumsum(variance[:-1])])
    between = between[np.newaxis, :] - between[:, np.newaxis]
    pairs = np.zeros((COUNT, COUNT))
    upper = np.triu_indices(COUNT, 1)
    pairs[upper] = 0.5 / between[upper]
    costs = Costs(template, pairs, evidence(scans), np.array([1.0, 0.0, 0.25]), np.zeros(COUNT))

    rows = [row for scan in scans if (row := shifted_terms(scan, costs, knobs)) is not None]
    terms = np.array([row[0] for row in rows])  # (scans, shifts, 3 + V)
    possible = np.array([row[1] for row in rows])
    right = np.array([row[2] for row in rows])
    rows_index = np.arange(len(rows))
    start = np.concatenate([[0.8, 0.1, 0.2], np.zeros(COUNT)])
    ridge = np.concatenate([np.full(3, 0.01), np.full(COUNT, knobs.ridge)])

    def loss(weights: Array) -> tuple[float, Array]:
        value = np.where(possible, terms @ weights, -np.inf)
        largest = value.max(axis=1)
        chance = np.exp(value - largest[:, np.newaxis])
        total = chance.sum(axis=1)
        chance /= total[:, np.newaxis]
        gradient = np.einsum("nk,nkd->d", chance, terms) - terms[rows_index, right].sum(axis=0)
        loss = (largest + np.log(total) - value[rows_index, right]).sum()
        return (
            loss + 0.5 * (ridge * (weights - start) ** 2).sum(),
            gradient + ridge * (weights - start),
        )

    weights = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return replace(costs, weights=np.maximum(weights[:3], 0.0), levels=weights[3:])


def mean_steps(scans: Iterable[Scan]) -> tuple[Array, Array]:
    """(V, 2) mean row, col from a level to the next, each scan scaled to fit; (V,) variance."""
    mean = np.zeros((COUNT, 3))
    steps: list[list[Array]] = []
    for turn in range(3):
        steps = [[] for _ in LEVELS]
        for scan in scans:
            vectors = np.diff(scan.bodies, axis=0)
            upper = scan.levels[:-1]
            whole = np.diff(scan.levels) == 1
            vectors, upper = vectors[whole], upper[whole]
            scale = 1.0
            if turn > 0 and len(upper) > 0:
                expected = np.linalg.norm(mean[upper], axis=1)
                scale = (np.linalg.norm(vectors, axis=1) @ expected) / (expected @ expected)
            for level, vector in zip(upper, vectors, strict=True):
                steps[level].append(vector / scale)
        mean = np.array([np.mean(group, axis=0) if group else (0, 0, -35.0) for group in steps])
    usual = np.array([9.0, 16.0, 9.0])  # mm^2, for levels that few scans show
    variance = np.empty((COUNT, 3))
    for level, group in enumerate(steps):
        share = min(1.0, len(group) / 30)
        own = np.var(group, axis=0, ddof=1) if len(group) > 5 else np.zeros(3)
        variance[level] = share * own + (1 - share) * usual + 1.0
    return np.stack([-mean[:, 2], mean[:, 1]], axis=1), variance[:, 1:].mean(axis=1)


def evidence(scans: Iterable[Scan]) -> Array:
    bins = len(EDGES) + 1
    counts = np.zeros((2, COUNT, bins))
    false = np.ones((2, bins))
    for scan in scans:
        binned = bins_of(scan.chances)
        for index, level in enumerate(scan.matches):
            for part in range(2):
                table = counts[part, level] if level >= 0 else false[part]
                table[binned[part, index]] += 1
    distance = np.subtract.outer(np.arange(bins), np.arange(bins))
    kernel = np.exp(-0.5 * (distance / 0.8) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    region = np.stack([counts[:, REGIONS[level] == REGIONS].sum(axis=1) for level in range(COUNT)])
    prior = np.moveaxis(region, 0, 1) @ kernel + 1
    prior /= prior.sum(axis=2, keepdims=True)
    smooth = counts @ kernel + 5 * prior
    smooth /= smooth.sum(axis=2, keepdims=True)
    false /= false.sum(axis=1, keepdims=True)
    return np.asarray(np.log(smooth) - np.log(false)[:, np.newaxis])


def shifted_terms(scan: Scan, costs: Costs, knobs: Knobs) -> tuple[Array, Array, int] | None:
    """The terms of a scan's labelling under each shift, which are possible, the right one."""
    chosen = [(index, level) for index, level in enumerate(scan.matches) if level >= 0]
    if len(chosen) < 2:
        return None
    index, level = map(np.array, zip(*chosen, strict=True))
    if (np.diff(level) <= 0).any():
        return None
    binned = bins_of(scan.chances[index])
    terms = np.zeros((len(SHIFTS), 3 + COUNT))
    possible = np.zeros(len(SHIFTS), dtype=np.bool_)
    for row, shift in enumerate(SHIFTS):
        moved = level + shift
        if moved[0] < 0 or moved[-1] >= COUNT:
            continue
        possible[row] = True
        terms[row, 0] = costs.evidence[0, moved, binned[0]].sum()
        terms[row, 1] = costs.evidence[1, moved, binned[1]].sum()
        terms[row, 2] = -residual(scan.points[index], moved, costs, knobs)
        terms[row, 3 + moved] = -1
    return terms, possible, SHIFTS.index(0)


def residual(points: Array, levels: Array, costs: Costs, knobs: Knobs) -> float:
    """What the steps of a labelling cost."""
    present = np.isin(np.arange(COUNT), levels)
    offsets = np.concatenate([[0], np.cumsum(present)])
    unit = replace(costs, weights=np.array([0.0, 0.0, 1.0]))
    found = _solve(points, np.zeros(len(points)), offsets, unit, knobs, 1e6, len(points))
    return min(60.0, float(found.terms[0, :2].sum())) if len(found.costs) else 60.0


# The search.


def _solve(
    points: Array,
    unary: Array,
    offsets: Array,
    costs: Costs,
    knobs: Knobs,
    missing: float,
    min_present: int = 2,
) -> _core.SearchResult:
    """Call the compiled search; `unary` is the cost of each candidate, of any sign."""
    base = max(0.0, -float(unary.min(initial=0.0)))  # paid by every level, present or not
    step = max(float(costs.weights[2]), 1e-6)  # weights of bodies must be positive
    return _core.search_ls_chain(
        positions_mm=np.ascontiguousarray(np.stack([-points[:, 2], points[:, 1]], axis=1)),
        scores=1.0 - (unary + base),
        offsets=np.asarray(offsets, dtype=np.int64),
        mean_mm=costs.mean_mm,
        disc_weights=np.full(COUNT, step * knobs.spread / 0.25),
        pair_weights=costs.pair_weights,
        missing_costs=np.full(COUNT, missing + base),
        score_weight_mm2=1.0,
        chain_weight=step,
        max_rotation_rad=knobs.max_rotation_rad,
        min_scale=knobs.min_scale,
        max_scale=knobs.max_scale,
        min_gap=0.25,
        min_present=min_present,
        max_present=COUNT,
        rules=np.zeros(COUNT, dtype=np.int64),
        borrow_mm2=np.inf,
        offset_change_mm2=0.0,
        offset_start_mm2=0.0,
        n_best=1,
        node_budget=300_000,
        with_margins=False,
        tree_size=0,
    )


@dataclass(frozen=True)
class Answer:
    """Detections with their levels, what the best shift would cost more, and the effort."""

    labels: Labels
    shift_margin: float
    nodes: int
    optimal: bool


def unary_costs(scan: Scan, costs: Costs) -> Array:
    """(V, N) cost of each detection on each level."""
    binned = bins_of(scan.chances)
    parts = costs.weights[:2, np.newaxis, np.newaxis] * np.stack(
        [costs.evidence[part][:, binned[part]] for part in range(2)]
    )
    return np.asarray(costs.levels[:, np.newaxis] - parts.sum(axis=0))


def search_levels(scan: Scan, costs: Costs, knobs: Knobs = KNOBS) -> Answer:
    """Assign levels to the detections of a scan with the skeleton search."""
    if len(scan.points) < 2:
        return Answer({}, 0.0, 0, True)
    table = unary_costs(scan, costs)
    level, index = np.nonzero(table <= table.min(axis=0) + knobs.hopeless)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(level, minlength=COUNT))])
    found = _solve(scan.points[index], table[level, index], offsets, costs, knobs, knobs.detection)
    if len(found.costs) == 0:
        return Answer({}, 0.0, found.nodes, found.optimal)
    choice = found.choices[0]
    labels = {int(index[row]): level for level, row in enumerate(choice.tolist()) if row >= 0}
    base = COUNT * max(0.0, -float(table[level, index].min()))
    margin = np.inf
    for shift in (-1, 1):
        moved = {i: level + shift for i, level in labels.items() if 0 <= level + shift < COUNT}
        rows = np.array(list(moved), dtype=np.int64)
        levels = np.array(list(moved.values()), dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(np.isin(np.arange(COUNT), levels))])
        costs_moved = table[levels, rows]
        half = (len(labels) + 1) // 2
        other = _solve(scan.points[rows], costs_moved, offsets, costs, knobs, knobs.detection, half)
        if len(other.costs):
            base_moved = COUNT * max(0.0, -float(costs_moved.min()))
            margin = min(margin, (other.lower_bound - base_moved) - (found.costs[0] - base))
    return Answer(labels, margin, found.nodes, found.optimal)


# Two simple baselines.


def greedy(scan: Scan) -> Labels:
    """Number the bodies up and down from where the class changes, taking each for what it seems."""
    kinds = scan.chances.argmax(axis=1) if len(scan.chances) else np.zeros(0, dtype=np.int64)
    for kind, first in ((2, FIRST_LUMBAR), (1, FIRST_THORACIC)):
        change = np.flatnonzero((kinds[:-1] == kind - 1) & (kinds[1:] == kind))
        if len(change) > 0:
            start = first - int(change[0]) - 1
            break
    else:
        start = {0: 0, 1: FIRST_THORACIC, 2: FIRST_LUMBAR}[int(kinds[0]) if len(kinds) else 0]
    return {i: start + i for i in range(len(kinds)) if 0 <= start + i < COUNT}


def without_shape(scan: Scan, costs: Costs) -> Labels:
    """Consecutive levels from the best first one, by class alone."""
    table = unary_costs(scan, replace(costs, levels=np.zeros(COUNT)))
    count = len(scan.points)
    if count == 0 or count > COUNT:
        return {}
    starts = [np.trace(table[start : start + count]) for start in range(COUNT - count + 1)]
    return {index: int(np.argmin(starts)) + index for index in range(count)}


# Figures.


@dataclass(frozen=True)
class Figures:
    """Shares of bodies with the right level.

    Attributes:
        bodies: of all true bodies.
        detected: of those with a detection within 15 mm.
        regions: of the cervical, thoracic, lumbar ones.
        long: of those in scans with 8 bodies or more.
    """

    bodies: float
    detected: float
    regions: tuple[float, float, float]
    long: float


def measure(scans: Sequence[Scan], labels: Sequence[Labels]) -> Figures:
    right, seen, region, size = [], [], [], []
    for scan, assigned in zip(scans, labels, strict=True):
        at = {level: scan.points[index] for index, level in assigned.items()}
        for body, level in zip(scan.bodies, scan.levels, strict=True):
            hit = level in at and np.linalg.norm(at[level] - body) <= NEAR_MM
            distance = np.linalg.norm(scan.points - body, axis=1).min(initial=np.inf)
            right.append(bool(hit))
            seen.append(bool(distance <= NEAR_MM))
            region.append(int(REGIONS[level]))
            size.append(len(scan.bodies))
    ok, regions = np.array(right), np.array(region)
    return Figures(
        bodies=float(ok.mean()),
        detected=float(ok[np.array(seen)].mean()),
        regions=(
            float(ok[regions == 0].mean()),
            float(ok[regions == 1].mean()),
            float(ok[regions == 2].mean()),
        ),
        long=float(ok[np.array(size) >= 8].mean()),
    )


def area_under_curve(values: Array, right: Array) -> float:
    """The chance that a right one has a larger value than a wrong one."""
    larger = np.sign(values[right][:, np.newaxis] - values[~right][np.newaxis, :])
    return float((0.5 + 0.5 * larger).mean())


@dataclass(frozen=True)
class Report:
    """What one run found on the scans that nothing was learnt on."""

    scans: int
    search: Figures
    baselines: dict[str, Figures]
    margin_auc: float
    nodes: float
    all_optimal: bool
    mistakes: dict[str, float]


def mistakes(scans: Sequence[Scan], answers: Sequence[Answer]) -> dict[str, float]:
    """Shares of true bodies, by what went wrong."""
    names = ("not detected", "left out", "whole scan shifted", "part of a scan shifted")
    counts = dict.fromkeys(names, 0)
    for scan, answer in zip(scans, answers, strict=True):
        shifts = [level - scan.matches[i] for i, level in answer.labels.items()]
        shifts = [s for i, s in zip(answer.labels, shifts, strict=True) if scan.matches[i] >= 0]
        common = max(set(shifts), key=shifts.count, default=0)
        for level in scan.levels:
            index = np.flatnonzero(scan.matches == level)
            if len(index) == 0:
                counts["not detected"] += 1
            elif int(index[0]) not in answer.labels:
                counts["left out"] += 1
            elif (shift := answer.labels[int(index[0])] - level) != 0:
                whole = shift == common
                counts["whole scan shifted" if whole else "part of a scan shifted"] += 1
    total = sum(len(scan.levels) for scan in scans)
    return {name: count / total for name, count in counts.items()}


def run(scans: Sequence[Scan], learn_on: Array, report_on: Array, knobs: Knobs = KNOBS) -> Report:
    costs = learn([scan for scan, use in zip(scans, learn_on, strict=True) if use], knobs)
    held_out = [scan for scan, use in zip(scans, report_on, strict=True) if use]
    answers = [search_levels(scan, costs, knobs) for scan in held_out]
    values, right = [], []
    for scan, answer in zip(held_out, answers, strict=True):
        for index, level in answer.labels.items():
            if scan.matches[index] >= 0:
                values.append(answer.shift_margin)
                right.append(scan.matches[index] == level)
    methods: dict[str, Callable[[Scan], Labels]] = {
        "greedy by class and order": greedy,
        "chain without shape": lambda scan: without_shape(scan, costs),
    }
    return Report(
        scans=len(held_out),
        search=measure(held_out, [answer.labels for answer in answers]),
        baselines={
            name: measure(held_out, [method(scan) for scan in held_out])
            for name, method in methods.items()
        },
        margin_auc=area_under_curve(np.array(values), np.array(right)),
        nodes=float(np.mean([answer.nodes for answer in answers])),
        all_optimal=all(answer.optimal for answer in answers),
        mistakes=mistakes(held_out, answers),
    )


def main() -> None:
    scans = read_scans(Path(sys.argv[1]) if len(sys.argv) > 1 else FILE)
    folds = fold_of(len(scans))
    report = run(scans, folds != 0, folds == 0)
    print(f"{report.scans} scans held out; share of bodies within {NEAR_MM:g} mm, same level")
    print(f"{'':<28}  all   detected  cerv  thor  lumb  scans >= 8")
    for name, figures in {"skeleton search": report.search, **report.baselines}.items():
        regions = "  ".join(f"{100 * share:4.1f}" for share in figures.regions)
        print(
            f"{name:<28} {100 * figures.bodies:5.2f}  {100 * figures.detected:5.2f}   "
            f" {regions}  {100 * figures.long:5.2f}"
        )
    print(f"shift margin, right against wrong bodies: AUC {report.margin_auc:.3f}")
    print(f"nodes, mean: {report.nodes:.0f}; all proved optimal: {report.all_optimal}")
    for name, share in report.mistakes.items():
        print(f"  {name:<24} {100 * share:5.2f} %")


if __name__ == "__main__":
    main()
