"""Fit the confidence: how often discs with such scores turned out right."""

from collections.abc import Sequence

import numpy as np

from ivdtool.metadata import Calibration

__all__ = ["fit_calibration"]

RIDGE = 1.0  # keeps the weights finite where right and wrong separate perfectly


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
    design = np.stack(
        [np.ones_like(score), score, np.log1p(np.clip(margin, 0, 1000)), mean_score], axis=1
    )
    target = np.array(right, dtype=np.float64)
    weights = np.zeros(4)
    penalty = RIDGE * np.diag([1e-3, 1.0, 1.0, 1.0])
    for _ in range(50):
        probability = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (probability - target) + penalty @ weights
        curvature = (design * (probability * (1 - probability))[:, None]).T @ design + penalty
        weights -= np.linalg.solve(curvature, gradient)
    intercept, by_score, by_margin, by_neighbours = map(float, weights)
    return Calibration(intercept, by_score, by_margin, by_neighbours)
