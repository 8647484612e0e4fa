"""Figures of known answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ivdtool.training.dataset import Case, Source
from ivdtool.training.validation import validate

LABELS = (18, 19, 20, 21, 22)
POINTS = np.array([[20.0, 60.0], [50, 62], [81, 63], [114, 61], [148, 58]])


@pytest.fixture
def case() -> Case:
    return Case(
        source=Source(Path("image.nii"), Path("labels.nii"), "sub-1", "val", "a:T2w"),
        planes=(np.zeros((192, 128), dtype=np.float16),),
        labels=LABELS,
        points=POINTS,
        certain=np.ones(5, dtype=np.bool_),
        unknown=frozenset(),
    )


def score(points: npt.ArrayLike, *cases: Case) -> dict[str, float]:
    """Figures of a method that answers every image with these points; NaN is no disc."""
    found = {
        label: (row, col)
        for label, (row, col) in zip(LABELS, np.asarray(points).tolist(), strict=True)
        if np.isfinite(row)
    }

    def predict(pixels: npt.NDArray[np.float32]) -> dict[int, tuple[float, float]]:
        assert pixels.shape == (192, 128)
        assert pixels.dtype == np.float32
        return found

    return dict(validate(predict, cases))


def test_right_answers(case: Case) -> None:
    figures = score(POINTS, case)
    assert figures["found"] == 1
    assert figures["shifted"] == 0
    assert figures["false"] == 0
    assert figures["error"] == 0
    assert figures["median_mm"] < 0.5


def test_labels_one_level_off(case: Case) -> None:
    """Disc 19 is called 18 and so on: the places are right, no label is."""
    moved = np.vstack([POINTS[1:], [[np.nan, np.nan]]])
    figures = score(moved, case)
    assert figures["found"] == 0
    assert figures["shifted"] == pytest.approx(4 / 5)
    assert figures["false"] == pytest.approx(4 / 5)
    assert figures["error"] == pytest.approx(1 + 4 / 5)
    assert figures["median_mm"] == pytest.approx(32, abs=3)


def test_discs_too_far_off(case: Case) -> None:
    figures = score(POINTS + [0, 8], case)
    assert figures["found"] == figures["shifted"] == 0
    assert figures["false"] == 1
    assert figures["median_mm"] == pytest.approx(8, abs=0.5)
    assert score(POINTS + [0, 4], case)["found"] == 1


def test_no_answer(case: Case) -> None:
    figures = score(np.full((5, 2), np.nan), case)
    assert figures["found"] == figures["shifted"] == figures["false"] == 0
    assert np.isnan(figures["median_mm"])


def test_no_cases() -> None:
    assert score(POINTS)["found"] == 0
    assert score(POINTS)["error"] == 1


def test_absent_discs_are_false(case: Case) -> None:
    shown = replace(case, labels=LABELS[:4], points=POINTS[:4], certain=case.certain[:4])
    assert score(POINTS, shown)["false"] == pytest.approx(1 / 4)
    assert score(POINTS, replace(shown, unknown=frozenset({22})))["false"] == 0


def test_uncertain_discs_count_for_nothing(case: Case) -> None:
    doubtful = replace(case, certain=np.array([True, True, True, True, False]))
    elsewhere = POINTS.copy()
    elsewhere[4, 1] += 7
    figures = score(elsewhere, doubtful)
    assert figures["found"] == 1
    assert figures["false"] == 0
    assert figures["median_mm"] < 0.5
    assert score(elsewhere, case)["false"] == pytest.approx(1 / 5)


def test_figures_are_shares_of_all_cases(case: Case) -> None:
    """The second case is answered as the first, though its discs lie elsewhere."""
    figures = score(POINTS, case, replace(case, points=POINTS + [12, 0]))
    assert figures["found"] == 0.5
    assert figures["false"] == 0.5
