"""How probable it is that all discs are a level off, and what is said of it."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ivdtool.calibration import fit_level_calibration
from ivdtool.candidates import Candidates
from ivdtool.levels import (
    LevelCalibration,
    ShiftAlternative,
    level_warning,
    shift_alternatives,
    shift_evidence,
)
from ivdtool.search import Assignment, SearchConfig, search_skeleton
from ivdtool.skeleton import Skeleton

LABELS = tuple(range(3, 26))
EVEN = Skeleton(
    labels=LABELS,
    mean_mm=np.stack([30.0 * np.arange(23), np.zeros(23)], axis=1),
    disc_sd_mm=np.full(23, 2.0),
    step_sd_mm=np.full(22, 2.0),
    missing_rate=np.zeros(23),
)


def column(first: int, last: int, support: float = 0.0, **rules: Any) -> Assignment:
    """Discs found with value 1; the next channel down has `support` at each of them, too."""
    channels: list[list[tuple[float, float, float]]] = [[] for _ in LABELS]
    for label in range(first, last + 1):
        channels[label - 3].append((30.0 * label, 40.0, 1.0))
        if support and label < 25:
            channels[label - 2].append((30.0 * label + 2, 40.0, support))
    table = np.array([point for points in channels for point in points])
    candidates = Candidates(
        table[:, :2].copy(), table[:, 2].copy(), np.cumsum([0, *map(len, channels)]), LABELS, (1, 1)
    )
    return search_skeleton(candidates, EVEN, SearchConfig(), **rules)


def evidence_of(assignment: Assignment) -> npt.NDArray[np.float64]:
    evidence = shift_evidence(assignment)
    assert evidence is not None
    return evidence


def test_evidence() -> None:
    """Margins as a share of what no support costs; room at both sides; the value of L5/S1."""
    np.testing.assert_allclose(evidence_of(column(10, 15)), np.array([[1, 1, 0], [1, 1, 0]]))
    supported = np.array([[1, 1, 0], [0.25, 1, 0]])
    np.testing.assert_allclose(evidence_of(column(10, 15, 0.75)), supported)
    neck, loin = evidence_of(column(3, 9)), evidence_of(column(20, 25))
    assert neck[:, 1].tolist() == [0, 1]
    assert loin[:, 1:].tolist() == [[1, 1], [0, 1]]
    assert neck[0, 0] > 1  # the disc that is lost costs, too
    assert shift_evidence(column(10, 15, rules={10: "present"})) is None


def test_alternatives_name_their_levels() -> None:
    calibration = LevelCalibration(0.0, -2.0, 0.0, 0.0)
    likely, other = shift_alternatives(column(10, 15, 0.75), calibration)
    assert (likely.levels, likely.first, likely.last) == (1, 11, 16)
    assert (other.levels, other.first, other.last) == (-1, 9, 14)
    odds = math.exp(-0.5), math.exp(-2.0)
    assert likely.probability == pytest.approx(odds[0] / (1 + sum(odds)))
    assert other.probability == pytest.approx(odds[1] / (1 + sum(odds)))
    edge = {own.levels: own for own in shift_alternatives(column(3, 9), calibration)}
    assert (edge[-1].first, edge[-1].last) == (3, 8)  # one disc fewer
    assert shift_alternatives(column(10, 15, rules={10: "own"}), calibration) == ()


def test_a_labelling_moved_is_not_likelier_than_any_mistake() -> None:
    calibration = LevelCalibration(0.0, -2.0, 0.0, 0.0)
    free = shift_alternatives(column(10, 15, 0.75), calibration)
    capped = shift_alternatives(column(10, 15, 0.75), calibration, 0.1)
    assert sum(own.probability for own in free) > 0.1
    assert sum(own.probability for own in capped) == pytest.approx(0.1)
    ratios = [a.probability / b.probability for a, b in zip(capped, free, strict=True)]
    assert ratios[0] == pytest.approx(ratios[1])
    assert shift_alternatives(column(10, 15, 0.75), calibration, 0.9) == free


def test_warning() -> None:
    calibration = LevelCalibration(warn_above=0.05)
    lower = ShiftAlternative(1, 4, 10, 0.12)
    higher = ShiftAlternative(-1, 3, 8, 0.049)
    assert level_warning(range(3, 10), [higher], calibration) is None
    assert level_warning(range(3, 10), [], calibration) is None
    assert level_warning(range(3, 10), [lower, higher], calibration) == (
        "the column may be one level lower (C3/C4 to T2/T3, probability 12 %) "
        "instead of C2/C3 to T1/T2; fix it with --anchor"
    )
    both = level_warning(range(10, 15), [lower, replace(higher, probability=0.06)], calibration)
    assert both is not None
    assert " or one level higher (C2/C3 to C7/T1, probability 6 %) instead of" in both


def images(count: int, seed: int) -> tuple[list[npt.NDArray[np.float64]], list[int]]:
    """Evidence and outcomes drawn from the model itself."""
    rng = np.random.default_rng(seed)
    truth = LevelCalibration(-1.0, -2.0, 1.5, -3.0)
    evidence = np.stack(
        [rng.uniform(0, 1, (count, 2)), rng.integers(0, 2, (count, 2)),
         np.repeat(rng.uniform(0, 1, (count, 1)), 2, axis=1)], axis=2
    )  # fmt: skip
    up, down = truth.probabilities(evidence).T
    draw = rng.random(count)
    return list(evidence), np.where(draw < up, -1, np.where(draw < up + down, 1, 0)).tolist()


def test_the_fit_finds_the_weights_again() -> None:
    fitted = fit_level_calibration(*images(20_000, 0))
    weights = (fitted.intercept, fitted.margin, fitted.room, fitted.sacrum)
    np.testing.assert_allclose(weights, (-1.0, -2.0, 1.5, -3.0), atol=0.3)


def test_probabilities_are_the_shares_that_turn_out() -> None:
    evidence, shifts = images(5000, 1)
    fitted = fit_level_calibration(evidence, shifts)
    evidence, shifts = images(5000, 2)
    said = fitted.probabilities(np.stack(evidence))
    assert (said.sum(axis=1) < 1).all()
    was = np.stack([np.array(shifts) == -1, np.array(shifts) == 1], axis=1)
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 1.0)):
        own = (said >= low) & (said < high)
        assert said[own].mean() == pytest.approx(was[own].mean(), abs=0.03)


def test_the_fit_bears_images_that_are_all_right() -> None:
    evidence, _ = images(30, 3)
    fitted = fit_level_calibration(evidence, [0] * 30)
    assert (fitted.probabilities(np.stack(evidence)) < 0.05).all()
    with pytest.raises(ValueError, match="9 images are too few"):
        fit_level_calibration(evidence[:9], [0] * 9)


@pytest.mark.parametrize(
    "values", [{"intercept": math.nan}, {"room": math.inf}, {"warn_above": 1.5}]
)
def test_calibration_refuses(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"finite|0\.\.1"):
        LevelCalibration(**values)
