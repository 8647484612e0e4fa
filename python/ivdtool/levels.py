"""Whether all discs may be one level off: the alternative labellings and how probable they are."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import numpy.typing as npt

from ivdtool.discs import disc_name
from ivdtool.search import Assignment

__all__ = [
    "STEPS",
    "LevelCalibration",
    "ShiftAlternative",
    "level_warning",
    "shift_alternatives",
    "shift_evidence",
]

STEPS = (-1, 1)  # one level up, one level down
SACRUM = 25  # L5/S1; below it there is no disc to mistake it for
MOST_SUPPORT = 2.0  # a larger margin says no more


@dataclass(frozen=True)
class LevelCalibration:
    """Log-odds of "all discs are one level off, in this direction" against "none is".

    The defaults were fitted for an earlier model `robust`: 308 windows of 21 val images, 40 of
    them (of 12 patients) a level off; see docs/results.md.

    Attributes:
        intercept: log-odds at zero.
        margin: weight of the direction's shift margin, as a share of what it costs when no
            candidate of the neighbouring channels lies at the discs.
        room: weight of 1 where no disc would leave the range of levels by the move, 0 where the
            first or the last would.
        sacrum: weight of the heatmap value of L5/S1, 0 where it is not found.
        warn_above: least probability that is worth a warning.

    Raises:
        ValueError: weights that are not finite, a threshold outside 0..1.
    """

    intercept: float = -0.563
    margin: float = -2.897
    room: float = 1.022
    sacrum: float = -1.705
    warn_above: float = 0.05

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, astuple(self))):
            raise ValueError(f"level calibration must be finite, not {astuple(self)}")
        if not 0 <= self.warn_above <= 1:
            raise ValueError(f"warn_above must lie in 0..1, not {self.warn_above}")

    def probabilities(self, evidence: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(..., 2, 3) evidence to (..., 2) probabilities, a level up and down, below 1 together."""
        log_odds = evidence @ [self.margin, self.room, self.sacrum] + self.intercept
        odds = np.exp(np.clip(log_odds, -30, 30))
        return np.asarray(odds / (1 + odds.sum(axis=-1, keepdims=True)))


@dataclass(frozen=True)
class ShiftAlternative:
    """The labelling with every label moved.

    Attributes:
        levels: by how many, 1 is one level down.
        first: label of its first disc.
        last: label of its last disc.
        probability: that it is the right one.
    """

    levels: int
    first: int
    last: int
    probability: float


def shift_evidence(assignment: Assignment) -> npt.NDArray[np.float64] | None:
    """(2, 3) what tells, up and down, whether all labels are off; None where the level is given.

    Columns: shift margin as a share of score weight times discs, room, and value of L5/S1; see
    `LevelCalibration`.
    """
    labels = assignment.labels
    if assignment.shift_margins is None:
        return None
    unit = max(assignment.config.score_weight_mm2 * len(labels), 1e-9)
    scores = dict(zip(labels, assignment.scores.tolist(), strict=True))
    known = assignment.skeleton.labels
    return np.array(
        [
            [
                min(margin / unit, MOST_SUPPORT),
                float(labels[0] + step >= known[0] and labels[-1] + step <= known[-1]),
                scores.get(SACRUM, 0.0),
            ]
            for step, margin in zip(STEPS, assignment.shift_margins, strict=True)
        ]
    )


def shift_alternatives(
    assignment: Assignment, calibration: LevelCalibration, wrong: float = 1.0
) -> tuple[ShiftAlternative, ...]:
    """Return the labellings moved by one level that are possible, the most probable first.

    Args:
        assignment: the search's answer.
        calibration: see `LevelCalibration`.
        wrong: probability that any label is wrong, which that of all of them does not exceed.
    """
    evidence = shift_evidence(assignment)
    if evidence is None or assignment.shift_margins is None:
        return ()
    known = assignment.skeleton.labels
    probabilities = calibration.probabilities(evidence)
    probabilities *= min(1.0, wrong / max(probabilities.sum(), 1e-9))
    alternatives = []
    for step, probability, margin in zip(
        STEPS, probabilities.tolist(), assignment.shift_margins, strict=True
    ):
        moved = [label + step for label in assignment.labels if label + step in known]
        if moved and math.isfinite(margin):
            alternatives.append(ShiftAlternative(step, moved[0], moved[-1], probability))
    return tuple(sorted(alternatives, key=lambda own: -own.probability))


def level_warning(
    labels: Sequence[int],
    alternatives: Sequence[ShiftAlternative],
    calibration: LevelCalibration,
) -> str | None:
    """Return one line if a moved labelling is probable enough."""
    plausible = [own for own in alternatives if own.probability >= calibration.warn_above]
    if not plausible:
        return None
    moved = " or ".join(
        f"one level {'lower' if own.levels > 0 else 'higher'} "
        f"({disc_name(own.first)} to {disc_name(own.last)}, "
        f"probability {100 * own.probability:.0f} %)"
        for own in plausible
    )
    said = f"{disc_name(labels[0])} to {disc_name(labels[-1])}"
    return f"the column may be {moved} instead of {said}; fix it with --anchor"
