"""The expected calibration error, worked out by hand and for confidences that are right."""

import numpy as np
import pytest

from ivdtool.reliability import measure_reliability


def test_by_hand() -> None:
    measured = measure_reliability([0.05, 0.92, 0.94, 1.0, 0.5], [False, True, False, True, True])
    assert measured is not None
    assert measured.count == 5
    assert [own.count for own in measured.bins] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 3]
    last = measured.bins[-1]
    assert (last.low, last.high) == (0.9, 1.0)
    assert last.confidence == pytest.approx((0.92 + 0.94 + 1) / 3)
    assert last.right == pytest.approx(2 / 3)
    error = 0.05 + 0.5 + 3 * abs((0.92 + 0.94 + 1) / 3 - 2 / 3)
    assert measured.ece == pytest.approx(error / 5)


def test_confidence_that_means_what_it_says() -> None:
    rng = np.random.default_rng(0)
    said = rng.random(50_000)
    measured = measure_reliability(said.tolist(), (rng.random(said.size) < said).tolist())
    assert measured is not None
    assert measured.ece < 0.01
    boasting = measure_reliability(np.sqrt(said).tolist(), (rng.random(said.size) < said).tolist())
    assert boasting is not None
    assert boasting.ece == pytest.approx(2 / 3 - 1 / 2, abs=0.01)  # means of sqrt(u) and u


def test_nothing() -> None:
    assert measure_reliability([], []) is None
