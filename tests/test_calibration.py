"""The fitted confidence is the share of right discs, and finite whatever it is fitted to."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from ivdtool.calibration import fit_calibration
from ivdtool.metadata import Calibration

Evidence = list[tuple[float, float, float]]


def draw_evidence(count: int, seed: int = 0) -> Evidence:
    rng = np.random.default_rng(seed)
    score, mean_score = rng.random(count), rng.uniform(0.3, 1, count)
    margin = rng.exponential(10 ** rng.uniform(-1, 3, count))
    return list(zip(score.tolist(), margin.tolist(), mean_score.tolist(), strict=True))


def confidences(calibration: Calibration, evidence: Evidence) -> npt.NDArray[np.float64]:
    return np.array([calibration.confidence(*values) for values in evidence])


@pytest.mark.parametrize(
    "truth", [Calibration(-4.0, 6.0, 0.5, 2.0), Calibration(-1.0, 2.0, 0.8, -1.5)]
)
def test_known_weights_are_found(truth: Calibration) -> None:
    evidence = draw_evidence(20_000)
    probability = confidences(truth, evidence)
    right = np.random.default_rng(1).random(len(evidence)) < probability
    fitted = fit_calibration(evidence, right.tolist())
    for name, tolerance in (("intercept", 0.3), ("score", 0.3), ("margin", 0.05)):
        assert getattr(fitted, name) == pytest.approx(getattr(truth, name), abs=tolerance)
    assert fitted.neighbours == pytest.approx(truth.neighbours, abs=0.4)
    assert np.abs(confidences(fitted, evidence) - probability).max() < 0.05


def test_confidence_is_the_share_of_right_discs() -> None:
    evidence = draw_evidence(500, seed=2)
    right = [score > 0.4 for score, _, _ in evidence[:450]] + [False] * 50
    predicted = confidences(fit_calibration(evidence, right), evidence)
    assert predicted.sum() == pytest.approx(sum(right), abs=0.1)  # the ridge spares the intercept


def test_separable_data_stay_finite() -> None:
    evidence = draw_evidence(200, seed=3)
    right = [score > 0.5 for score, _, _ in evidence]
    fitted = fit_calibration(evidence, right)
    assert all(map(math.isfinite, vars(fitted).values()))
    assert 0 < fitted.score < 100
    predicted = confidences(fitted, evidence)
    assert predicted[right].mean() > 0.7
    assert predicted[np.invert(right)].mean() < 0.3


@pytest.mark.parametrize("all_right", [True, False])
def test_one_outcome_only(all_right: bool) -> None:
    evidence = draw_evidence(60, seed=4)
    fitted = fit_calibration(evidence, [all_right] * 60)
    assert all(map(math.isfinite, vars(fitted).values()))
    predicted = confidences(fitted, evidence)
    assert predicted.min() > 0.9 if all_right else predicted.max() < 0.1


def test_infinite_and_negative_margins() -> None:
    evidence = [
        (score, margin, mean)
        for score, _, mean in draw_evidence(30, seed=5)
        for margin in (math.inf, -1.0)
    ]
    right = [margin > 0 for _, margin, _ in evidence]
    fitted = fit_calibration(evidence, right)
    assert fitted.margin > 0
    limited = [(score, min(max(margin, 0.0), 1000.0), mean) for score, margin, mean in evidence]
    assert fit_calibration(limited, right) == fitted


def test_too_few_discs() -> None:
    evidence = draw_evidence(10)
    fit_calibration(evidence, [True] * 10)
    with pytest.raises(ValueError, match="9 discs are too few"):
        fit_calibration(evidence[:9], [True] * 9)
