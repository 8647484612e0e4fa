"""One verdict per image: whether all its labels are to be trusted, looked at, or not written.

Three observations tell right images from wrong ones; none of them needs another look at the image.
The discs are bright in their heatmaps, on the whole; the faintest of those between the ends is,
too; and the steps from disc to disc are in proportion to the skeleton's, whatever the spine's size
and bend. A network that skips a disc, changes level halfway down, or takes something else for a
disc fails one of these; one that is a level off throughout, and sure of it, fails none. That
happens where neither end of the spine is in view, which would tell the level: such labels are never
certain. Nor are labels between which a disc is missing, or that end where the spine goes on in
view; labels that were not proved to be the best; or those of a spine of unusual size: it is a
child's, whose like no network here has seen, or the header's voxel size is wrong.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ivdtool.discs import ALL_LABELS, disc_name
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


BORDER_ROOM_MM = 15.0
"""A disc that the labels do not reach is missed where its place is so far from the border."""

MOST_MISSED = 1
"""So many discs may be missed: images fade towards the border, and the place is a guess. None is in
the 113 train and val images as given, one in 15 of 133 certain windows of val, more in one."""


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
        missing: discs between the first and the last that are not among them.
        size: of the spine, the skeleton's being 1: the median ratio of their steps; 1 of one disc.
        missed: discs above the first and below the last that the skeleton places in view.
        proved: whether the search is sure that no labelling is better.
    """

    weakest: float
    mean: float
    irregularity: float
    anchored: bool
    missing: tuple[int, ...] = ()
    size: float = 1.0
    missed: tuple[int, ...] = ()
    proved: bool = True

    @property
    def doubts(self) -> tuple[str, ...]:
        """What forbids to call the labels certain, however likely they are right."""
        doubts = []
        if not self.anchored:
            doubts.append("neither C2/C3 nor L5/S1 is well in view to tell the level by")
        if self.missing:
            doubts.append(f"between the others no {_names(self.missing)} was found")
        if len(self.missed) > MOST_MISSED:
            doubts.append(f"no {_names(self.missed)} was found, which should be in view")
        if not 1 / USUAL_SIZE <= self.size <= USUAL_SIZE:
            doubts.append(
                f"the spine is {self.size:.2f} times the usual size: "
                "a child's, or is the voxel size in the header wrong?"
            )
        if not self.proved:
            doubts.append("the search gave up before it had weighed all labellings")
        return tuple(doubts)


@dataclass(frozen=True)
class Judge:
    """Probability that all labels of an image are right, a logistic function of the evidence.

    Attributes:
        intercept: log-odds at zero.
        weakest: weight of that evidence, likewise the next two.
        mean: see `weakest`.
        irregularity: see `weakest`.
        certain: least probability of a verdict `certain`; see `Evidence.doubts`, too.
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
        if probability >= self.certain and not evidence.doubts:
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
    log_size = float(np.median(sizes)) if len(sizes) > 0 else 0.0
    size = math.exp(log_size)
    return Evidence(
        weakest=float(inner.min()),
        mean=float(scores.mean()),
        irregularity=float(np.clip(np.abs(sizes - log_size).max(initial=0.0), 0.0, 1.0)),
        anchored=level_known or _shows_an_end(assignment, grid),
        missing=tuple(sorted({*range(labels[0], labels[-1])} - {*labels})),
        size=size,
        missed=_missed(assignment, grid, size),
        proved=assignment.optimal,
    )


def _missed(assignment: Assignment, grid: Grid, size: float) -> tuple[int, ...]:
    """Discs beyond the first and the last that the skeleton, posed there, places in view.

    None that the user ruled out.
    """
    skeleton, labels = assignment.skeleton, assignment.labels
    if len(labels) == assignment.config.max_present:
        return ()
    turn = -assignment.rotation_rad  # from the skeleton to the spine
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    shape = size * skeleton.mean_mm @ rotation.T / assignment.candidates.spacing_mm
    missed = []
    for channel, label in enumerate(skeleton.labels):
        ruled_out = assignment.rules.get(label) == "absent"
        if not (labels[0] <= label <= labels[-1] or ruled_out):
            end = 0 if label < labels[0] else -1
            offset = shape[channel] - shape[skeleton.labels.index(labels[end])]
            if grid.shows(assignment.positions[end] + offset, BORDER_ROOM_MM):
                missed.append(label)
    return tuple(missed)


def _shows_an_end(assignment: Assignment, grid: Grid) -> bool:
    """Whether C2/C3 or L5/S1 is there, and what it borders on."""
    room = np.array([ANCHOR_ROOM_MM / grid.spacing_mm[0], 0.0])
    beyond = {ALL_LABELS[0]: -room, ALL_LABELS[-1]: room}
    return any(
        bool(grid.shows(position + beyond[label]))
        for label, position in zip(assignment.labels, assignment.positions, strict=True)
        if label in beyond
    )


def _names(labels: tuple[int, ...]) -> str:
    return ", ".join(map(disc_name, labels))


def _log_sizes(assignment: Assignment) -> npt.NDArray[np.float64]:
    """Log of each step's length in units of the skeleton's, one less than there are discs."""
    skeleton = assignment.skeleton
    channels = np.searchsorted(skeleton.labels, assignment.labels)
    steps = np.diff(assignment.positions * assignment.candidates.spacing_mm, axis=0)
    expected = np.diff(skeleton.mean_mm[channels], axis=0)
    lengths = (np.maximum(np.hypot(*vectors.T), 1e-3) for vectors in (steps, expected))
    return np.asarray(np.subtract(*map(np.log, lengths)))
