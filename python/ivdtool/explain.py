"""What the skeleton search did, in words."""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ivdtool.discs import disc_name
from ivdtool.search import Assignment

__all__ = ["REASONS", "explain_search"]

REASONS = {
    "order": "not far enough below the last disc",
    "chain": "too dear, the later steps fitted one by one",
    "shape": "too dear, this disc fitted with the earlier ones",
    "incumbent": "a better labelling came first",
    "budget": "never reached",
}
SHOWN = 6  # improvements in the account


def explain_search(assignment: Assignment) -> str:
    """Return the search's account: costs, discs with their candidates, alternatives, effort."""
    if not assignment.labels:
        mode, count = assignment.config.mode, len(assignment.candidates.scores)
        return f"{mode}: no labelling is feasible among {count} candidates"
    return "\n".join(
        [
            *_cost_lines(assignment),
            *_disc_lines(assignment),
            *_alternative_lines(assignment),
            *_effort_lines(assignment),
        ]
    )


def _cost_lines(assignment: Assignment) -> Iterator[str]:
    mode = assignment.config.mode
    unit = " mm2" if mode in ("ls_chain", "first_last") else " of |v1 - v5|"
    digits = 1 if unit == " mm2" else 4
    terms = " + ".join(
        f"{name.removesuffix('_mm2')} {value:.{digits}f}"
        for name, value in assignment.terms.items()
    )
    yield f"{mode}: cost {assignment.cost:.{digits}f}{unit} = {terms}"
    if assignment.optimal:
        yield "  proved: no labelling costs less"
    else:
        least = f"{assignment.lower_bound:.{digits}f}"
        yield f"  not proved: some labelling may cost as little as {least}"
    if unit == " mm2":
        degrees = math.degrees(assignment.rotation_rad)
        yield f"  the spine is scaled by {assignment.scale:.3f} and turned by {degrees:.1f} degrees"
    if assignment.shift_margins is not None:
        up, down = map(_number, assignment.shift_margins)
        yield f"  all one level up would cost {up} more, one level down {down}"


def _disc_lines(assignment: Assignment) -> Iterator[str]:
    candidates = assignment.candidates
    shape, chain = _shares(assignment)
    yield "  disc      shape   chain   margin  sure  candidates: score (row, col in mm), * chosen"
    present = iter(range(len(assignment.labels)))
    for channel, label in enumerate(candidates.labels):
        own = candidates.of(channel)
        chosen = int(assignment.choice[channel])
        points = [
            f"{'*' if row == chosen else ''}{candidates.scores[row]:.2f} "
            f"({candidates.positions_mm[row, 0]:.0f}, {candidates.positions_mm[row, 1]:.0f})"
            for row in range(own.start, own.stop)
        ]
        if chosen >= 0 and not own.start <= chosen < own.stop:
            points.append(f"*{candidates.scores[chosen]:.2f} borrowed from the next channel")
        listed = "  ".join(points) or "none"
        margin = _number(float(assignment.channel_margins[channel]))
        if chosen < 0:
            yield f"  {disc_name(label):<8} missing         {margin:>9}        {listed}"
            continue
        index = next(present)
        yield (
            f"  {disc_name(label):<8} {_number(shape[channel]):>6} {_number(chain[channel]):>7} "
            f"{margin:>8} {100 * assignment.posteriors[index]:>4.0f}%  {listed}"
        )


def _shares(
    assignment: Assignment,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(V,) squared distance from the fitted skeleton, and of the step to the next disc; mm^2."""
    candidates, skeleton, config = assignment.candidates, assignment.skeleton, assignment.config
    nothing = np.full(len(candidates.labels), np.nan)
    if config.mode not in ("ls_chain", "first_last"):
        return nothing, nothing
    shape, chain = nothing.copy(), nothing.copy()
    discs = np.flatnonzero(assignment.choice >= 0)
    p = candidates.positions_mm[assignment.choice[discs]] @ np.array([1, 1j])
    u = skeleton.mean_mm[discs] @ np.array([1, 1j])
    off = assignment.scale * np.exp(1j * assignment.rotation_rad) * p - u
    weights = np.ones(len(discs))
    if config.mode == "ls_chain" and config.weights == "learnt":
        weights = skeleton.disc_weights[discs]
    origin = np.average(off, weights=weights) if config.mode == "ls_chain" else off[0]
    shape[discs] = weights * np.abs(off - origin) ** 2
    if config.mode == "ls_chain":
        weights = config.chain_weight * skeleton.pair_weights[discs[:-1], discs[1:]]
        chain[discs[:-1]] = weights * np.abs(np.diff(off)) ** 2
    return shape, chain


def _alternative_lines(assignment: Assignment) -> Iterator[str]:
    candidates = assignment.candidates
    for number, other in enumerate(assignment.alternatives, start=2):
        changes = []
        for channel, label in enumerate(candidates.labels):
            before, after = int(assignment.choice[channel]), int(other.choice[channel])
            if before == after:
                continue
            if after < 0:
                changes.append(f"{disc_name(label)} missing")
            else:
                row, col = candidates.positions_mm[after]
                changes.append(f"{disc_name(label)} at ({row:.0f}, {col:.0f})")
        extra = _number(other.cost - assignment.cost)
        yield f"  {number}. best, {extra} more: {', '.join(changes)}"


def _effort_lines(assignment: Assignment) -> Iterator[str]:
    if assignment.config.mode != "ls_chain":
        yield f"  {assignment.nodes} nodes taken"
        return
    statistics = assignment.statistics
    yield f"  {assignment.nodes} nodes taken, {statistics.depth} discs deep; cut:"
    for fate, reason in REASONS.items():
        if count := statistics.fates[fate]:
            yield f"    {count:>8}  {reason}"
    steps = statistics.improvements
    kept = steps if len(steps) <= SHOWN else (*steps[: SHOWN // 2], *steps[-SHOWN // 2 :])
    best = ", ".join(f"{_number(cost)} after {nodes}" for nodes, cost in kept)
    yield f"  best cost by nodes taken: {best}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "ever"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
