import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivdtool.skeleton import Skeleton


def spine(labels: range, rng: np.random.Generator | None = None) -> dict[int, tuple[float, float]]:
    """Steps of 20 + label mm, with 1 mm of noise if asked for, from an arbitrary origin."""
    rows = np.cumsum([20.0 + label for label in labels])
    points = np.stack([rows, 0.1 * rows], axis=1)
    if rng is not None:
        steps = np.diff(points, axis=0) + rng.normal(0, 1, (len(labels) - 1, 2))
        points = np.vstack([points[:1], points[:1] + np.cumsum(steps, axis=0)])
        points = points + rng.uniform(-100, 100, 2)
    return {label: (float(r), float(c)) for label, (r, c) in zip(labels, points, strict=True)}


def test_partial_views_make_one_skeleton() -> None:
    """Averaging positions would put disc 10 where the neck scans have their origin."""
    cases = [spine(range(3, 11)), spine(range(8, 20)), spine(range(18, 26)), spine(range(3, 26))]
    skeleton = Skeleton.from_points(cases)
    whole = np.array(list(cases[-1].values()))
    assert skeleton.labels == tuple(range(3, 26))
    np.testing.assert_allclose(skeleton.mean_mm, whole - whole[0])
    np.testing.assert_allclose(skeleton.missing_rate[[0, 5, 15, 22]], [0.5, 0.25, 0.25, 0.5])


def test_spread_is_that_of_the_cases() -> None:
    rng = np.random.default_rng(0)
    skeleton = Skeleton.from_points([spine(range(20, 26), rng) for _ in range(2000)])
    np.testing.assert_allclose(skeleton.step_sd_mm, 1.0, atol=0.05)
    # Of a walk of five unit steps about its mean: the ends stray furthest.
    walk = np.cumsum(np.vstack([np.zeros(2000), rng.normal(0, 1, (5, 2000))]), axis=0)
    expected = (walk - walk.mean(axis=0)).std(axis=1)
    np.testing.assert_allclose(skeleton.disc_sd_mm, expected, atol=0.1)


def test_gap_in_a_case_is_no_step() -> None:
    case = spine(range(3, 9))
    broken = {label: point for label, point in case.items() if label != 5}
    skeleton = Skeleton.from_points([case, broken])
    np.testing.assert_allclose(np.diff(skeleton.mean_mm[:, 0]), [24, 25, 26, 27, 28])
    np.testing.assert_allclose(skeleton.missing_rate, [0, 0, 0.5, 0, 0, 0])


def test_spread_never_vanishes() -> None:
    skeleton = Skeleton.from_points([spine(range(3, 9))])
    assert (skeleton.disc_sd_mm > 0).all()
    assert (skeleton.step_sd_mm > 0).all()


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ([], "two discs"),
        ([{3: (0.0, 0.0)}], "two discs"),
        ([spine(range(3, 6)), spine(range(6, 9))], "C4/C5.*C5/C6|C5/C6.*C6/C7"),
        ([{3: (0.0, 0.0), 4: (-20.0, 0.0)}], "rows of mean_mm must rise"),
        ([{2: (0.0, 0.0), 3: (20.0, 0.0)}], "no disc has label 2"),
    ],
)
def test_from_points_refuses(cases: list[dict[int, tuple[float, float]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Skeleton.from_points(cases)


def test_pair_weights_of_equal_steps() -> None:
    skeleton = Skeleton.from_points([spine(range(3, 7))])
    expected = np.array([[0, 1, 1 / 2, 1 / 3], [0, 0, 1, 1 / 2], [0, 0, 0, 1], [0, 0, 0, 0]])
    np.testing.assert_allclose(skeleton.pair_weights, expected)


def test_pair_weights_are_inverse_variances() -> None:
    skeleton = Skeleton((3, 4, 5), [[0, 0], [9, 0], [20, 0]], [1, 1, 1], [1, 3], [0, 0, 0])  # type: ignore[arg-type]
    weights = skeleton.pair_weights
    np.testing.assert_allclose(weights, np.array([[0, 5 / 1, 5 / 10], [0, 0, 5 / 9], [0, 0, 0]]))


@given(st.integers(3, 15), st.integers(2, 10), st.integers(0, 10**6))
def test_json_gives_the_same_skeleton(first: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    skeleton = Skeleton.from_points([spine(range(first, first + count), rng) for _ in range(3)])
    again = Skeleton.from_dict(json.loads(json.dumps(skeleton.to_dict())))
    assert again.labels == skeleton.labels
    for name in ("mean_mm", "disc_sd_mm", "step_sd_mm", "missing_rate"):
        np.testing.assert_array_equal(getattr(again, name), getattr(skeleton, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [3, 4, 6]}, "without a gap"),
        ({"labels": [3]}, "two or more"),
        ({"labels": ["3", "4", "5"]}, "must be integers"),
        ({"labels": 3}, "must be integers"),
        ({"labels": [24, 25, 26]}, "no disc has label 26"),
        ({"mean_mm": [[0, 0], [9, 0]]}, r"mean_mm must be finite numbers of shape \(3, 2\)"),
        ({"mean_mm": [[0, 0], [9, 0], [float("nan"), 0]]}, "mean_mm must be finite"),
        ({"mean_mm": [[0, 0], [9, 0], [8, 0]]}, "must rise"),
        ({"mean_mm": [[0, 0], [9, 0], [8]]}, "holds numbers"),
        ({"disc_sd_mm": [1, 0, 1]}, "positive"),
        ({"step_sd_mm": [1, -1]}, "positive"),
        ({"step_sd_mm": [1, "x"]}, "holds numbers"),
        ({"step_sd_mm": [1, 10**400]}, "holds numbers"),
        ({"missing_rate": [0, 0, 1.5]}, "0..1"),
        ({"colour": "blue"}, "keys"),
    ],
)
def test_from_dict_refuses(change: dict[str, Any], message: str) -> None:
    table: dict[str, Any] = {
        "labels": [3, 4, 5],
        "mean_mm": [[0, 0], [9, 0], [20, 0]],
        "disc_sd_mm": [1, 1, 1],
        "step_sd_mm": [1, 1],
        "missing_rate": [0, 0, 0],
    }
    Skeleton.from_dict(table)
    with pytest.raises(ValueError, match=message):
        Skeleton.from_dict(table | change)


def test_arrays_are_read_only() -> None:
    skeleton = Skeleton.from_points([spine(range(3, 9))])
    with pytest.raises(ValueError, match="read-only"):
        skeleton.mean_mm[0, 0] = 1
