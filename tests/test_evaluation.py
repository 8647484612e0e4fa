"""Scores: worked out by hand on small cases, and against an independent script on real labels."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from ivdtool.evaluation import CaseScore, score_case, summarise, summarise_levels
from ivdtool.label_files import read_labels

Points = dict[int, npt.NDArray[np.float64]]

SPACING_MM = 18.0
COLUMN: Points = {label: np.array([2.0, 30.0, -SPACING_MM * label]) for label in range(3, 9)}


def score(
    predicted: Mapping[int, npt.NDArray[np.float64]],
    reference: Mapping[int, npt.NDArray[np.float64]] = COLUMN,
    ignored: Collection[int] = (),
) -> CaseScore:
    return score_case("sub-01", predicted, reference, ignored, np.eye(4))


def moved(points: Points, by: tuple[float, float, float], *labels: int) -> Points:
    """The points with some, or all, of them moved."""
    chosen = labels or tuple(points)
    return {k: v + np.array(by) if k in chosen else v for k, v in points.items()}


def counts(case: CaseScore) -> tuple[int, int, int, bool]:
    return case.missed, case.false, case.mislabelled, case.shifted


def test_perfect() -> None:
    case = score(COLUMN)
    assert counts(case) == (0, 0, 0, False)
    assert (case.paper_missed, case.paper_false) == (0, 0)
    assert case.labels == tuple(COLUMN)
    assert case.l2_mm == case.si_mm == case.nearest_si_mm == (0.0,) * 6


def test_distances_are_in_the_sagittal_plane() -> None:
    case = score(moved(COLUMN, (50.0, 3.0, -4.0)))
    assert case.l2_mm == pytest.approx([5.0] * 6)
    assert case.si_mm == pytest.approx([4.0] * 6)
    assert counts(case) == (0, 0, 0, False)


def test_distances_follow_the_axes_of_an_oblique_image() -> None:
    turn = euler2mat(0.3, -0.2, 0.4)
    affine = from_matvec(turn @ np.diag([3.0, 0.5, 0.9]), [1, 2, 3])
    predicted = moved(COLUMN, tuple(turn @ (7.0, 3.0, -4.0)))
    for flip in (np.eye(4), np.diag([-1.0, 1, -1, 1]), np.eye(4)[[2, 0, 1, 3]]):
        case = score_case("a", predicted, COLUMN, (), affine @ flip)
        assert case.l2_mm == pytest.approx([5.0] * 6)
        assert case.si_mm == pytest.approx([4.0] * 6)


def test_found_within_5_mm() -> None:
    assert counts(score(moved(COLUMN, (0, 0, 5.0), 4))) == (0, 0, 0, False)
    case = score(moved(COLUMN, (0, 0, 5.01), 4))
    assert counts(case) == (1, 1, 0, False)
    assert (case.paper_missed, case.paper_false) == (1, 1)


def test_the_papers_count_5_mm_as_missed_and_look_along_one_axis() -> None:
    case = score(moved(COLUMN, (0, 0, 5.0), 4))
    assert (case.paper_missed, case.paper_false) == (1, 1)
    case = score(moved(COLUMN, (0, 40.0, 0)))
    assert (case.paper_missed, case.paper_false) == (0, 0)
    assert counts(case) == (6, 6, 0, False)


def test_shifted_by_one_level() -> None:
    case = score({label + 1: point for label, point in COLUMN.items()})
    assert counts(case) == (6, 6, 6, True)
    assert case.offset == 1
    assert (case.paper_missed, case.paper_false) == (0, 0)  # which the papers do not see
    assert case.si_mm == pytest.approx([SPACING_MM] * 5)
    assert not any(disc.identified for disc in case.discs)  # though 18 mm are within 20


def test_offset_is_that_of_most_discs() -> None:
    assert score(COLUMN).offset == 0
    two_lower = {label - 2: COLUMN[label] for label in (6, 7, 8)}
    assert score({**two_lower, 3: COLUMN[3], 8: COLUMN[4]}).offset == -2


def test_identified_is_the_nearest_within_20_mm() -> None:
    def identified(points: Points) -> list[int]:
        return [disc.label for disc in score(points).discs if disc.identified]

    assert identified(COLUMN) == list(COLUMN)
    assert identified(moved(COLUMN, (0, 19.9, 0))) == list(COLUMN)
    assert identified(moved(COLUMN, (0, 20.1, 0))) == []
    # closer to disc 4 than its own prediction is
    assert identified({**moved(COLUMN, (0, 0, 9.5), 4), 5: COLUMN[4] + [0, 9.0, 0]}) == [3, 6, 7, 8]


def test_shifted_means_half_of_the_discs() -> None:
    upper = {label + 1: COLUMN[label] for label in (3, 4)}
    assert counts(score({**upper, 6: COLUMN[6], 7: COLUMN[7], 8: COLUMN[8]})) == (3, 2, 2, False)
    assert counts(score({**upper, 6: COLUMN[5], 7: COLUMN[7], 8: COLUMN[8]})) == (4, 3, 3, True)


def test_no_prediction() -> None:
    case = score({})
    assert counts(case) == (6, 0, 0, False)
    assert (case.paper_missed, case.paper_false) == (6, 0)
    assert case.l2_mm == case.si_mm == case.nearest_si_mm == ()


def test_prediction_of_an_absent_label_is_false() -> None:
    beyond = {9: np.array([0.0, 30.0, -SPACING_MM * 9])}
    assert counts(score({**COLUMN, **beyond})) == (0, 1, 0, False)
    assert score({**COLUMN, **beyond}).paper_false == 1


def test_ignored_labels_count_for_nothing() -> None:
    elsewhere = np.array([0.0, 300.0, 300.0])
    case = score({**COLUMN, 8: elsewhere, 9: elsewhere}, ignored={8, 9})
    assert counts(case) == (0, 0, 0, False)
    assert case.labels == (3, 4, 5, 6, 7)
    assert len(case.l2_mm) == 5
    assert counts(score({k: COLUMN[k] for k in (3, 4, 5, 6, 7)}, ignored={8})) == counts(case)


def test_ignored_label_on_a_disc_mislabels_it() -> None:
    case = score({**{k: COLUMN[k] for k in (3, 4, 5, 6)}, 8: COLUMN[7]}, ignored={8})
    assert counts(case) == (1, 0, 1, False)


def test_predictions_are_judged_one_by_one() -> None:
    confidence = {3: 0.9, 4: 0.2, 9: 0.1}
    points = {**moved(COLUMN, (0, 0, 6.0), 4), 9: COLUMN[8]}
    case = score_case("a", points, COLUMN, {8}, np.eye(4), confidence=confidence)
    judged = {p.label: (p.right, p.confidence) for p in case.predictions}
    assert judged == {
        3: (True, 0.9),
        4: (False, 0.2),
        5: (True, None),
        6: (True, None),
        7: (True, None),
        9: (False, 0.1),
    }


def test_no_reference() -> None:
    case = score(COLUMN, {})
    assert counts(case) == (0, 6, 0, False)
    assert (case.labels, case.paper_false) == ((), 6)


def test_summary() -> None:
    shifted = score({label + 1: point for label, point in COLUMN.items()})
    near = score(moved(COLUMN, (0, 3.0, 4.0), 3))
    total = summarise([shifted, near, score({}), score(COLUMN, ignored=(3, 4, 5))])
    assert (total.images, total.discs, total.shifted, total.perfect_images) == (4, 21, 1, 2)
    assert total.found_pct == pytest.approx(100 * 9 / 21)
    assert total.fnr_pct == pytest.approx(100 * 12 / 21)
    assert total.fpr_pct == pytest.approx(100 * 6 / 21)
    distances = [SPACING_MM] * 5 + [5.0] + [0.0] * 8
    assert total.l2_mean == pytest.approx(np.mean(distances))
    assert total.l2_median == 0
    assert total.l2_p95 == pytest.approx(SPACING_MM)
    assert total.si_mean == pytest.approx((5 * SPACING_MM + 4) / 14)
    nearest = [0.0] * 6 + [4.0] + [0.0] * 8
    assert total.paper_dtt_mean == pytest.approx(np.mean(nearest))
    assert total.paper_dtt_std == pytest.approx(np.std(nearest))
    assert total.paper_fnr_pct == pytest.approx(100 * 6 / 21)
    assert total.paper_fpr_pct == 0
    assert total.predictions == 15
    assert total.precision_pct == pytest.approx(100 * 9 / 15)
    assert total.identified_pct == pytest.approx(100 * 9 / 21)
    assert total.mislabelled_pct == pytest.approx(100 * 6 / 21)
    assert total.shifted_pct == 25
    assert total.l2_std == pytest.approx(np.std(distances))
    assert total.si_std == pytest.approx(np.std([SPACING_MM] * 5 + [4.0] + [0.0] * 8))


def test_levels() -> None:
    shifted = score({label + 1: point for label, point in COLUMN.items()})
    levels = summarise_levels([shifted, score(COLUMN, ignored=(3,))])
    assert list(levels) == [3, 4, 5, 6, 7, 8, 9]
    assert [own.images for own in levels.values()] == [1, 2, 2, 2, 2, 2, 1]
    assert [own.discs for own in levels.values()] == [1, 2, 2, 2, 2, 2, 0]
    assert levels[3].found_pct == 0
    assert levels[4].found_pct == 50
    assert levels[4].mislabelled_pct == 50
    assert levels[4].l2_mean == pytest.approx(SPACING_MM / 2)
    assert levels[9].precision_pct == 0
    assert math.isnan(levels[9].found_pct)


# --- intervals


def cohort(subjects: int, images: int, rng: np.random.Generator) -> list[CaseScore]:
    """Images of some subjects; how good the predictions are depends on the subject alone."""
    cases = []
    for subject in range(subjects):
        sigma = rng.exponential(3.0)
        for _ in range(images):
            points = {k: p + rng.normal(0, sigma, 3) for k, p in COLUMN.items()}
            case = score_case("a", points, COLUMN, (), np.eye(4), subject=f"sub-{subject}")
            cases.append(case)
    return cases


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    """The same draws, each summarised from copies of the drawn subjects' images."""
    cases = cohort(7, 2, np.random.default_rng(0))
    total = summarise(cases, resamples=200, seed=3)
    draws = np.random.default_rng(3).multinomial(7, [1 / 7] * 7, size=200)
    resampled = [
        summarise([c for c in cases for _ in range(draw[int(c.subject[4:])])]) for draw in draws
    ]
    assert "images" not in total.intervals
    for name, (low, high) in total.intervals.items():
        values = [getattr(own, name) for own in resampled]
        assert (low, high) == pytest.approx(tuple(np.percentile(values, (2.5, 97.5))), abs=1e-9)
    for name in ("found_pct", "precision_pct", "l2_mean", "l2_std", "l2_median", "l2_p95"):
        low, high = total.intervals[name]
        assert low < getattr(total, name) < high


def test_intervals_do_not_depend_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = cohort(5, 1, np.random.default_rng(1))
    whole = summarise(cases, resamples=50, seed=1).intervals
    monkeypatch.setattr("ivdtool.evaluation.MAX_WEIGHTS", 1)
    rows = summarise(cases, resamples=50, seed=1).intervals
    assert list(rows) == list(whole)
    np.testing.assert_allclose(list(rows.values()), list(whole.values()), atol=1e-9)
    assert summarise(cases, resamples=50, seed=2).intervals["l2_mean"] != whole["l2_mean"]


def test_images_of_one_subject_are_no_more_evidence() -> None:
    """Each image four times over: the figures stay, and so do their intervals."""
    cases = cohort(8, 1, np.random.default_rng(2))
    once, often = (summarise(cases * n, resamples=100) for n in (1, 4))
    assert often.found_pct == pytest.approx(once.found_pct)
    assert often.intervals["l2_mean"] == pytest.approx(once.intervals["l2_mean"])


def test_intervals_cover_the_truth() -> None:
    """Of 95 % intervals of 12 subjects somewhat fewer than 95 % do; too few subjects for more."""
    rng = np.random.default_rng(5)
    truth = summarise(cohort(1000, 1, rng)).found_pct
    covered = 0
    for seed in range(60):
        low, high = summarise(cohort(12, 2, rng), resamples=200, seed=seed).intervals["found_pct"]
        covered += low <= truth <= high
    assert covered >= 48


def test_one_subject_has_no_interval() -> None:
    assert summarise(cohort(1, 3, np.random.default_rng(0)), resamples=50).intervals == {}
    assert summarise([], resamples=50).intervals == {}


def test_interval_of_a_figure_that_is_undefined_in_some_draws() -> None:
    cases = [score_case(str(i), {}, COLUMN, (), np.eye(4)) for i in range(3)]
    cases.append(score_case("3", moved(COLUMN, (0, 3.0, 4.0)), COLUMN, (), np.eye(4)))
    total = summarise(cases, resamples=100)
    assert total.intervals["l2_mean"] == pytest.approx((5.0, 5.0))
    nothing = summarise(cases[:3], resamples=100)
    assert math.isnan(nothing.intervals["l2_mean"][0])
    assert nothing.intervals["found_pct"] == (0, 0)


@pytest.mark.parametrize("scores", [[], [score({}, {})]])
def test_summary_of_nothing(scores: list[CaseScore]) -> None:
    total = summarise(scores)
    assert (total.images, total.discs) == (len(scores), 0)
    assert math.isnan(total.found_pct)
    assert math.isnan(total.l2_mean)
    assert total.shifted == 0


def perturbed(points: Mapping[int, npt.NDArray[np.float64]], rng: np.random.Generator) -> Points:
    """A prediction with errors of every kind, some of them just at the tolerance."""
    shift = int(rng.choice([0, 0, 0, 1, -1]))
    sigma = float(rng.choice([0.5, 3.0, 6.0]))
    found = {
        k + shift: p + rng.normal(0, sigma, 3) for k, p in points.items() if rng.random() < 0.9
    }
    if rng.random() < 0.3:
        label = int(rng.integers(3, 26))
        found[label] = rng.choice(list(points.values())) + rng.normal(0, 10, 3)
    return found


def test_agrees_with_an_independent_script(data: Path, scorer: ModuleType) -> None:
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for path in sorted(data.glob("*/derivatives/labels/sub-*/anat/*_dlabel.nii.gz")):
        image: Any = nib.load(path)
        affine = image.affine
        truth = read_labels(path.with_name(path.name.replace(".nii.gz", ".json")))
        ignored = truth.unknown | truth.uncertain
        reference = {k: p for k, p in truth.points.items() if k not in ignored}
        if not reference:
            continue
        predicted = perturbed(truth.points, rng)
        ours.append(score_case(path.name, predicted, truth.points, ignored, affine))
        theirs.append(scorer.score_case(predicted, reference, ignored, affine))
        case, other = ours[-1], theirs[-1]
        assert len(case.labels) == other["n"]
        assert case.l2_mm == pytest.approx(other["l2"], abs=1e-6)
        assert case.si_mm == pytest.approx(other["si"], abs=1e-6)
        assert case.nearest_si_mm == pytest.approx(other["paper_si"], abs=1e-6)
        assert counts(case) == (other["fn"], other["fp"], other["wrong"], other["shifted"])
        assert (case.paper_missed, case.paper_false) == (other["paper_fn"], other["paper_fp"])
    total, table = summarise(ours), scorer.summarise(theirs)
    assert total.images > 100
    assert total.shifted > 10
    for name in table:  # rounded: 3 decimals of mm, 2 of per cent
        assert getattr(total, name) == pytest.approx(table[name], abs=0.0051), name
