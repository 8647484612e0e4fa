"""Fit what turns evidence into probabilities: how often such discs, such images, were right."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ivdtool.levels import STEPS, LevelCalibration
from ivdtool.metadata import Calibration
from ivdtool.verdict import Evidence, Judge

__all__ = ["fit_calibration", "fit_judge", "fit_level_calibration"]

RIDGE = 1.0  # keeps the weights finite where right and wrong separate perfectly
# Of the wrong windows, at least this share is not called certain. They are harder than scans: with
# 0.8 all wrong scans of the robustness sweep on val are flagged, with 0.9 more of the right ones as
# well.
FLAGGED_WRONG = 0.8
REFUSED_BELOW = 0.1  # of the least probability of labels of use: val shows not all there is

Floats = npt.NDArray[np.float64]


def fit_calibration(
    evidence: Sequence[tuple[float, float, float]], right: Sequence[bool]
) -> Calibration:
    """Fit a logistic regression by Newton's method.

    Args:
        evidence: per disc its score, its margin in mm^2 and the mean score of its image.
        right: whether that disc was within 5 mm and had its right label.

    Raises:
        ValueError: fewer than ten discs.
    """
    if len(right) < 10:
        raise ValueError(f"{len(right)} discs are too few to calibrate confidence on")
    score, margin, mean_score = np.array(evidence, dtype=np.float64).T
    design = np.stack([score, np.log1p(np.clip(margin, 0, 1000)), mean_score], axis=1)
    weights = _fit_logistic(design, np.array(right, dtype=np.float64))
    intercept, by_score, by_margin, by_neighbours = map(float, weights)
    return Calibration(intercept, by_score, by_margin, by_neighbours)


def fit_judge(
    evidence: Sequence[Evidence],
    right: Sequence[bool],
    usable: Sequence[bool],
    subjects: Sequence[str],
) -> Judge:
    """Fit the probability that an image is right throughout, and the bounds of the verdicts.

    The bounds rest on probabilities that were fitted without the image's own subject: 80 % of the
    wrong images are not certain; none whose labels are of use is refused, since a user who is told
    to look can mend two discs more easily than place all of them.

    Args:
        evidence: per image.
        right: whether every label of the image was right and no disc missing.
        usable: whether at least half of its labels were right.
        subjects: whose image it is.

    Raises:
        ValueError: fewer than ten images, or of fewer than two subjects.
    """
    names = np.array(subjects)
    if len(right) < 10 or len(set(subjects)) < 2:
        raise ValueError(
            f"{len(right)} images of {len(set(subjects))} subjects are too few to fit verdicts on"
        )
    design = np.array([(e.weakest, e.mean, e.irregularity) for e in evidence])
    scale = np.maximum(design.std(axis=0), 1e-6)  # so that the ridge treats all alike
    design /= scale
    target = np.array(right, dtype=np.float64)
    unseen = np.zeros(len(target))
    for name in sorted(set(subjects)):
        own = names == name
        unseen[own] = _logistic(design[own], _fit_logistic(design[~own], target[~own]))
    intercept, *scaled = _fit_logistic(design, target)
    weakest, mean, irregularity = map(float, np.array(scaled) / scale)
    likely = np.where([not e.doubts for e in evidence], unseen, 0)
    wrong = np.sort(likely[target == 0])
    check = REFUSED_BELOW * float(unseen[np.array(usable)].min(initial=1.0))
    certain = 0.0
    if len(wrong) > 0:  # just above the last of those that are to be flagged
        certain = float(np.nextafter(wrong[int(np.ceil(FLAGGED_WRONG * len(wrong))) - 1], 1))
    return Judge(float(intercept), weakest, mean, irregularity, max(certain, check), check)


def fit_level_calibration(evidence: Sequence[Floats], shifts: Sequence[int]) -> LevelCalibration:
    """Fit the weights by Newton's method, one logit for both directions.

    Args:
        evidence: per image, see `shift_evidence`.
        shifts: by how many levels all labels of that image are off: what must be added to them,
            -1, 0 or 1.

    Raises:
        ValueError: fewer than ten images.
    """
    if len(shifts) < 10:
        raise ValueError(f"{len(shifts)} images are too few to calibrate their level on")
    design = np.stack(evidence)
    design = np.concatenate([np.ones((*design.shape[:2], 1)), design], axis=2)
    target = np.asarray(shifts)[:, None] == STEPS
    weights = np.zeros(design.shape[2])
    penalty = RIDGE * np.diag([1e-3, 1.0, 1.0, 1.0])
    for _ in range(50):
        probability = LevelCalibration(*weights).probabilities(design[:, :, 1:])
        gradient = np.einsum("nk,nkf->f", probability - target, design) + penalty @ weights
        mean = np.einsum("nk,nkf->nf", probability, design)
        curvature = np.einsum("nk,nkf,nkg->fg", probability, design, design) - mean.T @ mean
        weights -= np.linalg.solve(curvature + penalty, gradient)
    return LevelCalibration(*map(float, weights))


def _fit_logistic(features: Floats, target: Floats) -> Floats:
    """(1 + K,) intercept and weights, by Newton's method with a ridge on the weights."""
    design = np.insert(features, 0, 1.0, axis=1)
    weights = np.zeros(design.shape[1])
    penalty = RIDGE * np.diag([1e-3] + [1.0] * features.shape[1])
    for _ in range(50):
        probability = _logistic(features, weights)
        gradient = design.T @ (probability - target) + penalty @ weights
        curvature = (design * (probability * (1 - probability))[:, None]).T @ design + penalty
        weights -= np.linalg.solve(curvature, gradient)
    return weights


def _logistic(features: Floats, weights: Floats) -> Floats:
    odds = weights[0] + features @ weights[1:]
    probability: Floats = 1 / (1 + np.exp(-np.clip(odds, -30, 30)))
    return probability
