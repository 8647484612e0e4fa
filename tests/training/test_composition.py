"""Whole spines composed of two images: every disc is where its label says, and named in order."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ivdtool.training.augmentation import AugmentationConfig
from ivdtool.training.batches import BatchConfig, BatchMaker
from ivdtool.training.composition import compose_spine, is_lower, is_upper
from ivdtool.training.dataset import Case, Source

ALL = tuple(range(3, 26))


def column(labels: range, step: float, lean: float, seed: int = 0, suffix: str = "T2w") -> Case:
    """Bright discs on grey, `step` mm apart, going back by `lean` from one to the next."""
    rng = np.random.default_rng(seed)
    index = np.arange(len(labels))
    points = np.stack([40 + step * index, 60 + lean * index], axis=1) + rng.uniform(-2, 2, (1, 2))
    rows, cols = np.mgrid[: int(points[-1, 0]) + 40, :140]
    pixels = np.full(rows.shape, 0.3)
    for row, col in points:
        pixels += 0.5 * np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / 18)
    return Case(
        source=Source(Path("a.nii"), Path("b.nii"), "sub-1", "train", f"blobs:{suffix}"),
        planes=(pixels.astype(np.float16),),
        labels=tuple(labels),
        points=points,
        certain=np.ones(len(labels), dtype=np.bool_),
        unknown=frozenset(),
    )


def neck(last: int = 11, **more: object) -> Case:
    return replace(column(range(3, last + 1), 18, 2), **more)  # type: ignore[arg-type]


def lumbar(first: int = 18, **more: object) -> Case:
    return replace(column(range(first, 26), 33, -3, seed=1), **more)  # type: ignore[arg-type]


def peak(pixels: NDArray[np.float32], point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Brightest pixel within 8 mm."""
    rows, cols = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    near = np.where(np.hypot(rows - point[0], cols - point[1]) < 8, pixels, 0)
    return np.array(np.unravel_index(near.argmax(), near.shape), dtype=float)


@pytest.mark.parametrize(("last", "first"), [(11, 18), (8, 19), (12, 13), (14, 12), (7, 20)])
def test_every_level_is_shown_once_and_where_it_is_said_to_be(last: int, first: int) -> None:
    seen = set()
    for seed in range(12):
        whole = compose_spine(neck(last), lumbar(max(first, 15)), np.random.default_rng(seed))
        assert whole.labels == ALL
        (plane,) = whole.planes
        pixels = plane.astype(np.float32)
        for label, point in zip(whole.labels, whole.points, strict=True):
            assert np.hypot(*(peak(pixels, point) - point)) < 1.6, (seed, label)
        seen.add(plane.shape[0])
    assert len(seen) > 1  # heights are drawn


def test_the_column_goes_on_from_part_to_part() -> None:
    for seed in range(10):
        whole = compose_spine(neck(), lumbar(), np.random.default_rng(seed))
        steps = np.diff(whole.points, axis=0)
        assert (steps[:, 0] > 14).all()
        assert (steps[:, 0] < 40).all()
        assert (np.abs(steps[:, 1]) < 6).all()
        # heights grow from those of the neck to those of the lumbar spine
        middle = steps[9:14, 0].mean()
        assert steps[:7, 0].mean() < middle < steps[-6:, 0].mean()


def test_both_ends_stay_as_they_are() -> None:
    """Above the first and below the last disc the images' own ends are shown."""
    upper, lower = neck(), lumbar()
    whole = compose_spine(upper, lower, np.random.default_rng(3))
    (plane,) = whole.planes
    left = round(float(whole.points[0, 1] - upper.points[0, 1]))
    shown = plane[:100, left : left + 140].astype(float)
    np.testing.assert_allclose(shown, upper.planes[0][:100].astype(float), atol=2e-3)
    assert plane.shape[0] - whole.points[-1, 0] == pytest.approx(
        len(lower.planes[0]) - lower.points[-1, 0], abs=1.5
    )


def test_parts_are_made_equally_bright() -> None:
    dark = lumbar()
    dark = replace(dark, planes=(dark.planes[0] * np.float16(0.5),))
    (plane,) = compose_spine(neck(), dark, np.random.default_rng(0)).planes
    (same,) = compose_spine(neck(), lumbar(), np.random.default_rng(0)).planes
    np.testing.assert_allclose(plane.astype(float), same.astype(float), atol=0.01)


def test_what_is_doubtful_or_unknown_stays_so() -> None:
    doubtful = np.ones(8, dtype=np.bool_)
    doubtful[-1] = False
    lower = lumbar(certain=doubtful)
    upper = replace(column(range(4, 12), 18, 2), unknown=frozenset({3, 12, 13}))
    whole = compose_spine(upper, lower, np.random.default_rng(0))
    assert whole.labels == ALL[1:]
    assert whole.unknown == {3}
    assert whole.certain.tolist() == [True] * 21 + [False]
    # so are copies of what is doubtful
    lower = lumbar(certain=doubtful[::-1])
    doubts = [
        (~compose_spine(upper, lower, np.random.default_rng(n)).certain).sum() for n in range(9)
    ]
    assert min(doubts) >= 1
    assert max(doubts) > 1


def test_what_can_be_composed() -> None:
    assert is_upper(neck())
    assert not is_upper(lumbar())
    assert is_lower(lumbar())
    assert not is_lower(neck())
    assert not is_lower(lumbar().restricted(range(18, 25)))  # L5/S1 is not in view
    assert not is_lower(lumbar().restricted([18, 19, 20, 21, 23, 24, 25]))  # one is missing
    assert not is_upper(neck().restricted([3, 4, 5, 6, 8, 9, 10, 11]))
    with pytest.raises(ValueError, match="a neck and a lumbar spine"):
        compose_spine(lumbar(), neck(), np.random.default_rng(0))


def test_tall_windows_are_cut_from_composed_spines_of_one_suffix() -> None:
    config = BatchConfig(size=2, rows=64, cols=64, tall=1, composed=1, tall_rows=640, tall_cols=128)
    still = AugmentationConfig(scale=1.05, crop_rows=0, crop_cols=0, shift_mm=5)
    cases = [neck(), lumbar(), column(range(18, 26), 33, 0, seed=2, suffix="T1w")]
    maker = BatchMaker(cases, ALL, config, still, 0)
    shown = np.concatenate([maker(step).visible.numpy().sum(1) for step in range(4)])
    assert (shown > 16).all()
    nothing_alike = BatchMaker([neck(), cases[2]], ALL, config, still, 0)
    assert nothing_alike(0).images.shape[2:] == (640, 128)  # the neck is tall for 64 rows
    assert max(int(nothing_alike(step).visible.sum(1).max()) for step in range(4)) <= 9
    small = replace(config, rows=640)  # in which everything fits
    assert BatchMaker([neck(), lumbar()], ALL, small, still, 0)(0).visible.sum(1).min() > 16
    assert BatchMaker([neck(), cases[2]], ALL, small, still, 0)(0).images.shape[3] == 64
