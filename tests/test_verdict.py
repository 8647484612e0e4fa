"""The verdict on an image: what it observes, and that it separates right from wrong labels."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivdtool.calibration import fit_judge
from ivdtool.candidates import CandidateConfig, find_candidates
from ivdtool.heatmaps import Heatmaps, draw_heatmaps
from ivdtool.preprocessing import Grid
from ivdtool.search import Assignment, SearchConfig, search_skeleton
from ivdtool.skeleton import Skeleton
from ivdtool.verdict import BORDER_ROOM_MM, MOST_MISSED, Evidence, Judge, gather_evidence

LABELS = (20, 21, 22, 23, 24, 25)
MEAN_MM = np.array([[0.0, 0.0], [30, 2], [62, 6], [96, 8], [130, 6], [160, -6]])
SKELETON = Skeleton.from_points([dict(zip(LABELS, map(tuple, MEAN_MM), strict=True))] * 2)
STRIDE = 4
GRID = Grid((256, 256), (1.0, 1.0), np.eye(4), np.eye(4))


def judge(**changes: float) -> Judge:
    values = {
        "intercept": -4.0, "weakest": 9.0, "mean": 3.0, "irregularity": -8.0,
        "certain": 0.8, "check": 0.3,
    }  # fmt: skip
    return Judge(**values | changes)


def draw(points: npt.NDArray[np.float64], heights: npt.ArrayLike, size: int = 64) -> Heatmaps:
    """A channel per disc with a peak of that height at its point, in image pixels of 1 mm."""
    cells = (points + 0.5) / STRIDE - 0.5
    visible = np.ones((1, len(points)), dtype=bool)
    values = draw_heatmaps(cells[None], visible, (size, size), 1.25)[0]
    values *= np.asarray(heights, dtype=np.float32)[:, None, None]
    return Heatmaps(values, LABELS[: len(points)], STRIDE, (4.0, 4.0))


def search(heatmaps: Heatmaps) -> Assignment:
    config = SearchConfig(missing_penalty_mm2=3000.0, score_weight_mm2=3000.0)
    return search_skeleton(find_candidates(heatmaps, CandidateConfig()), SKELETON, config)


def observe(points: npt.NDArray[np.float64], heights: npt.ArrayLike) -> Evidence:
    return gather_evidence(search(draw(points, heights)), GRID)


PLACE = np.array([40.0, 100.0])


def test_a_spine_like_the_skeleton() -> None:
    evidence = observe(MEAN_MM + PLACE, [0.9, 0.8, 0.9, 0.7, 0.9, 0.9])
    assert evidence.weakest == pytest.approx(0.7, abs=0.1)
    assert evidence.mean == pytest.approx(0.85, abs=0.1)
    assert evidence.irregularity < 0.05


def test_the_ends_may_be_weak() -> None:
    """The border of the field cuts them."""
    evidence = observe(MEAN_MM + PLACE, [0.4, 0.9, 0.9, 0.9, 0.9, 0.45])
    assert evidence.weakest > 0.75


@given(st.floats(0.8, 1.2), st.floats(-0.3, 0.3))
def test_size_and_rotation_of_the_spine_are_not_irregular(scale: float, angle: float) -> None:
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = scale * MEAN_MM @ turn.T + [30.0, 110.0]
    evidence = observe(points, np.full(6, 0.9))
    assert evidence.irregularity < 0.08
    assert evidence.size == pytest.approx(scale, rel=0.03)


def test_a_skipped_disc_shows_in_the_steps() -> None:
    """The lower half of the column named one level too high: one step is twice as long."""
    points = MEAN_MM + PLACE
    points[3:] += points[3] - points[2]
    assert observe(points, np.full(6, 0.9)).irregularity > 0.3


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("last", [4, 5])
def test_the_end_of_the_spine_anchors_the_level(first: int, last: int) -> None:
    heights = np.where((np.arange(6) >= first) & (np.arange(6) <= last), 0.9, 0)
    assert observe(MEAN_MM + PLACE, heights).anchored == (last == 5)


@pytest.mark.parametrize(("below", "anchored"), [(24.0, False), (26.0, True)])
def test_the_last_disc_above_the_border_anchors_nothing(below: float, anchored: bool) -> None:
    """It may be L4/L5, and what would tell is out of view."""
    found = search(draw(MEAN_MM + PLACE, np.full(6, 0.9)))
    end = int(np.ceil(found.positions[-1][0] + 0.5 + below))
    grid = replace(GRID, content=(0, end, 0, 256))
    assert gather_evidence(found, grid).anchored == anchored
    assert gather_evidence(found, grid, level_known=True).anchored


def test_a_disc_that_is_left_out_between_others() -> None:
    points = MEAN_MM + PLACE
    assert observe(points, np.full(6, 0.9)).missing == ()
    evidence = observe(points, [0.9, 0.9, 0, 0.9, 0.9, 0.9])
    assert evidence.missing == (22,)
    assert judge().verdict(replace(evidence, weakest=1.0, mean=1.0)) == "check"


@given(st.floats(0.85, 1.2), st.floats(-0.3, 0.3), st.integers(1, 3))
def test_labels_that_end_where_the_spine_goes_on(scale: float, angle: float, last: int) -> None:
    """As where only the neck of a whole spine is found: what there is of it is regular."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = scale * MEAN_MM @ turn.T + [20.0, 110.0]
    heights = np.where(np.arange(6) <= last, 0.9, 0)
    found = search(draw(points, heights))
    evidence = gather_evidence(found, GRID, level_known=True)
    assert evidence.missed == LABELS[last + 1 :]
    assert judge().verdict(replace(evidence, size=1.0)) == "check"
    # one may be
    fewer = replace(evidence, size=1.0, missed=evidence.missed[:MOST_MISSED])
    assert judge().verdict(fewer) == "certain"
    # the next one's place is 15 mm or less from the border
    below = points[last + 1, 0] + 0.5 + BORDER_ROOM_MM
    for end, missed in ((below - 4, ()), (below + 4, (LABELS[last + 1],))):
        grid = replace(GRID, content=(0, round(end), 0, 256))
        assert gather_evidence(found, grid, level_known=True).missed == missed


def test_labels_begin_where_the_spine_begins() -> None:
    points = MEAN_MM + PLACE
    assert observe(points, [0, 0.9, 0.9, 0.9, 0.9, 0.9]).missed == (20,)
    above = replace(GRID, content=(40, 256, 0, 256))
    found = search(draw(points, [0, 0.9, 0.9, 0.9, 0.9, 0.9]))
    assert gather_evidence(found, above).missed == ()
    # what the user says is not in view is not missed
    assert gather_evidence(replace(found, rules={20: "absent"}), GRID).missed == ()
    counted = replace(found, config=replace(found.config, max_present=5))
    assert gather_evidence(counted, GRID).missed == ()


def test_an_unproved_search_is_never_certain() -> None:
    evidence = replace(observe(MEAN_MM + PLACE, np.full(6, 0.9)), anchored=True)
    assert evidence.proved
    assert judge().verdict(evidence) == "certain"
    assert judge().verdict(replace(evidence, proved=False)) == "check"


def test_two_discs_have_no_proportions() -> None:
    evidence = observe(MEAN_MM + PLACE, [0.9, 0.8, 0, 0, 0, 0])
    assert evidence.irregularity == 0
    assert evidence.weakest == pytest.approx(0.8, abs=0.1)


def test_one_disc_has_no_size() -> None:
    found = search_skeleton(
        find_candidates(draw(MEAN_MM + PLACE, [0, 0, 0.9, 0, 0, 0]), CandidateConfig()),
        SKELETON,
        SearchConfig(missing_penalty_mm2=3000.0, score_weight_mm2=3000.0, min_present=1),
    )
    evidence = gather_evidence(found, GRID)
    assert (evidence.size, evidence.irregularity) == (1.0, 0.0)


def test_nothing_found_cannot_be_judged() -> None:
    heatmaps = draw(MEAN_MM + PLACE, np.zeros(6))
    with pytest.raises(ValueError, match="no disc"):
        gather_evidence(search(heatmaps), GRID)


def test_better_evidence_is_likelier_right() -> None:
    good = Evidence(0.8, 0.9, 0.05, anchored=True)
    best = judge().probability(good)
    odds = -4.0 + 9 * 0.8 + 3 * 0.9 - 8 * 0.05
    assert best == pytest.approx(1 / (1 + math.exp(-odds)))
    for worse in (
        replace(good, weakest=0.5),
        replace(good, mean=0.6),
        replace(good, irregularity=0.4),
    ):
        assert judge().probability(worse) < best


@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.booleans(),
    st.sampled_from([(), (21,)]),
    st.floats(0.3, 3.0),
)
def test_verdicts_are_ordered(
    weakest: float,
    mean: float,
    irregular: float,
    anchored: bool,
    missing: tuple[int, ...],
    size: float,
) -> None:
    evidence = Evidence(weakest, mean, irregular, anchored, missing, size)
    probability = judge().probability(evidence)
    best = "certain" if anchored and not missing and 0.8 <= size <= 1.25 else "check"
    expected = best if probability >= 0.8 else "check" if probability >= 0.3 else "refused"
    assert judge().verdict(evidence) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": math.nan}, "must be finite"),
        ({"intercept": math.inf}, "must be finite"),
        ({"check": 0.9}, "check <= certain"),
        ({"certain": 1.1}, "check <= certain"),
        ({"check": -0.1}, "check <= certain"),
    ],
)
def test_refused_constants(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(**changes)


Drawn = tuple[list[Evidence], list[bool], list[str]]


def draw_images(count: int, seed: int = 0) -> Drawn:
    """Images whose truth follows `judge()`."""
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.uniform(0.2, 1, count), rng.uniform(0.2, 1, count), rng.random(count)])
    evidence = [
        Evidence(weak, mean, uneven, anchored=True) for weak, mean, uneven in drawn.T.tolist()
    ]
    right = [bool(rng.random() < judge().probability(e)) for e in evidence]
    return evidence, right, [f"sub-{i % 15:02}" for i in range(count)]


def test_known_weights_are_found() -> None:
    evidence, right, subjects = draw_images(20_000)
    fitted = fit_judge(evidence, right, right, subjects)
    truth = judge()
    for name in ("intercept", "weakest", "mean", "irregularity"):
        assert getattr(fitted, name) == pytest.approx(getattr(truth, name), rel=0.1)
    said = np.array([fitted.probability(e) for e in evidence])
    wrong = ~np.array(right)
    assert np.mean(said[wrong] < fitted.certain) == pytest.approx(0.8, abs=0.01)
    assert np.mean(said[~wrong] < fitted.check) < 0.001


def test_labels_of_use_are_not_refused() -> None:
    evidence, right, subjects = draw_images(2000, seed=3)
    usable = [was or index % 3 == 0 for index, was in enumerate(right)]
    fitted = fit_judge(evidence, right, usable, subjects)
    stricter = fit_judge(evidence, right, right, subjects)
    refused = np.array([fitted.verdict(e) == "refused" for e in evidence])
    assert np.mean(refused[usable]) < 0.002  # the bound is of fits without the image's subject
    assert fitted.check <= stricter.check


def test_the_bounds_hold_for_subjects_not_fitted_on() -> None:
    """One subject's images are all wrong, and look good: the bounds must not have learnt that."""
    evidence, right, subjects = draw_images(300, seed=1)
    fitted = fit_judge(evidence, right, right, subjects)
    odd = [Evidence(0.9, 0.95, 0.02, anchored=True)] * 60
    outcome = right + [False] * 60
    harder = fit_judge(evidence + odd, outcome, outcome, subjects + ["sub-odd"] * 60)
    assert harder.certain > fitted.certain


def test_what_is_never_certain_lowers_the_bound() -> None:
    evidence, right, subjects = draw_images(2000, seed=2)
    fitted = fit_judge(evidence, right, right, subjects)
    wrong = [i for i, was in enumerate(right) if not was]
    for i in wrong[::2]:
        evidence[i] = replace(evidence[i], anchored=False)
    lower = fit_judge(evidence, right, right, subjects)
    assert lower.certain < fitted.certain
    flagged = [lower.verdict(evidence[i]) != "certain" for i in wrong]
    assert np.mean(flagged) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("outcome", [True, False])
def test_one_outcome_only(outcome: bool) -> None:
    evidence, _, subjects = draw_images(60)
    fitted = fit_judge(evidence, [outcome] * 60, [outcome] * 60, subjects)
    verdicts = {fitted.verdict(e) for e in evidence}
    assert "certain" in verdicts if outcome else verdicts == {"refused"}


def test_too_few_images() -> None:
    evidence, right, subjects = draw_images(10)
    fit_judge(evidence, right, right, subjects)
    with pytest.raises(ValueError, match="9 images of 9 subjects are too few"):
        fit_judge(evidence[:9], right[:9], right[:9], subjects[:9])
    with pytest.raises(ValueError, match="10 images of 1 subjects are too few"):
        fit_judge(evidence, right, right, ["sub-01"] * 10)
