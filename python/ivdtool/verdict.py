"""One verdict per image: whether all its labels are to be trusted, looked at, or not written.

Three observations tell right images from wrong ones; none of them needs another look at the image.
The discs are bright in their heatmaps, on the whole; the faintest of those between the ends is,
too; and the steps from disc to disc are in proportion to the skeleton's, whatever the spine's size
and bend. A network that skips a disc, changes level halfway down, or takes something else for a
disc fails one of these; one that is a level off throughout, and sure of it, fails none. That
happens where neither end of the spine is in view, which would tell the level: such labels are never
certain. Nor are labels between which a disc is missing, or of a spine of unusual size: it is a
child's, whose like no network here has seen, or the header's voxel size is wrong.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ivdtool.discs import ALL_LABELS
from ivdtool.labels import Verdict
from ivdtool.preprocessing import Grid
from ivdtool.search import Assignment

__all__ = ["Evidence", "Judge", "gather_evidence"]

ANCHOR_ROOM_MM = 25.0
"""So much must be in view beyond C2/C3 or L5/S1, or it is nothing to tell the level by: the last
disc above the border may pass for L5/S1. On val, 16 of 193 right and 2 of 7 wrong windows are not
called certain any more; of the images as given, none."""

USUAL_SIZE = 1.25
"""A spine may be larger or smaller than the skeleton by this factor. Those of the 112 annotated
train and val images are 0.87 to 1.13 times as large, with a standard deviation of 0.05."""


@dataclass(frozen=True)
class Evidence:
    """What is observed of the labels of one image.

    Attributes:
        weakest: least heatmap value of a disc; the first and the last, which the border may cut,
            count where there are no others.
        mean: heatmap value of the discs, mean over all.
        irregularity: largest deviation of a step's length, 0..1: |log| of its ratio to the
            skeleton's step, against `size`. 0 where there are less than two steps.
        anchored: whether C2/C3 or L5/S1 is among the discs, with `ANCHOR_ROOM_MM` in view beyond
            it, or a user told a level.
        consecutive: whether no disc between the first and the last is missing.
        size: of the spine, the skeleton's being 1: the median ratio of their steps; 1 of one disc.
    """

    weakest: float
    mean: float
    irregularity: float
    anchored: bool
    consecutive: bool
    size: float

    @property
    def of_usual_size(self) -> bool:
        """Whether the spine's size is within `USUAL_SIZE`."""
        return 1 / USUAL_SIZE <= self.size <= USUAL_SIZE

    @property
    def can_be_certain(self) -> bool:
        """Whether nothing forbids to call the labels certain, however likely they are right."""
        return self.anchored and self.consecutive and self.of_usual_size


@dataclass(frozen=True)
class Judge:
    """Probability that all labels of an image are right, a logistic function of the evidence.

    Attributes:
        intercept: log-odds at zero.
        weakest: weight of that evidence, likewise the next two.
        mean: see `weakest`.
        irregularity: see `weakest`.
        certain: least probability of a verdict `certain`; see `Evidence.can_be_certain`, too.
        check: least probability of a verdict `check`; labels below it are refused.

    Raises:
        ValueError: a weight that is not finite, or not 0 <= check <= certain <= 1.
    """

    intercept: float
    weakest: float
    mean: float
    irregularity: float
    certain: float
    check: float

    def __post_init__(self) -> None:
        weights = (self.intercept, self.weakest, self.mean, self.irregularity)
        if not all(map(math.isfinite, weights)):
            raise ValueError(f"weights of the verdict must be finite, not {weights}")
        if not 0 <= self.check <= self.certain <= 1:
            raise ValueError(
                f"0 <= check <= certain <= 1 must hold, not check {self.check}, "
                f"certain {self.certain}"
            )

    def probability(self, evidence: Evidence) -> float:
        """Return the probability that no disc is missing, and every label within 5 mm."""
        odds = (
            self.intercept
            + self.weakest * evidence.weakest
            + self.mean * evidence.mean
            + self.irregularity * evidence.irregularity
        )
        return 1 / (1 + math.exp(-min(max(odds, -30.0), 30.0)))

    def verdict(self, evidence: Evidence) -> Verdict:
        """Return whether to trust the labels."""
        probability = self.probability(evidence)
        if probability >= self.certain and evidence.can_be_certain:
            return "certain"
        return "check" if probability >= self.check else "refused"


def gather_evidence(assignment: Assignment, grid: Grid, level_known: bool = False) -> Evidence:
    """Return what speaks for and against the labels that the search chose.

    Args:
        assignment: the search's answer.
        grid: of the image.
        level_known: whether the user told the level of a disc.

    Raises:
        ValueError: no disc was found.
    """
    if not assignment.labels:
        raise ValueError("no disc was found: there is nothing to judge")
    labels, scores = assignment.labels, assignment.scores
    inner = scores[1:-1] if len(scores) > 2 else scores
    sizes = _log_sizes(assignment)
    size = float(np.median(sizes)) if len(sizes) > 0 else 0.0
    return Evidence(
        weakest=float(inner.min()),
        mean=float(scores.mean()),
        irregularity=float(np.clip(np.abs(sizes - size).max(initial=0.0), 0.0, 1.0)),
        anchored=level_known or _shows_an_end(assignment, grid),
        consecutive=labels[-1] - labels[0] == len(labels) - 1,
        size=math.exp(size),
    )


def _shows_an_end(assignment: Assignment, grid: Grid) -> bool:
    """Whether C2/C3 or L5/S1 is there, and what it borders on."""
    room = np.array([ANCHOR_ROOM_MM / grid.spacing_mm[0], 0.0])
    beyond = {ALL_LABELS[0]: -room, ALL_LABELS[-1]: room}
    return any(
        bool(grid.shows(position + beyond[label]))
        for label, position in zip(assignment.labels, assignment.positions, strict=True)
        if label in beyond
    )


def _log_sizes(assignment: Assignment) -> npt.NDArray[np.float64]:
    """Log of each step's length in units of the skeleton's, one less than there are discs."""
    skeleton = assignment.skeleton
    channels = np.searchsorted(skeleton.labels, assignment.labels)
    steps = np.diff(assignment.positions * assignment.candidates.spacing_mm, axis=0)
    expected = np.diff(skeleton.mean_mm[channels], axis=0)
    lengths = (np.maximum(np.hypot(*vectors.T), 1e-3) for vectors in (steps, expected))
    return np.asarray(np.subtract(*map(np.log, lengths)))
