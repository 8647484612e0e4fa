"""Image and points move together; what is cut off is known to be."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from ivdtool.training import augmentation
from ivdtool.training.augmentation import AugmentationConfig, Crop, augment, vary_contrast

SHAPE = (260, 200)
POINTS = np.array([[40.3, 80.2], [105.7, 110.5], [170.1, 100.9], [231.4, 92.6]])
WINDOW = (192, 128)
WILD = AugmentationConfig(
    rotation_deg=30,
    scale=2,
    aspect=1.3,
    bend_mm=30,
    stretch=0.5,
    shift_mm=150,
    crop_rows=1,
    crop_cols=1,
    min_rows_mm=20,
    gamma=4,
    tone=1,
    invert=1,
    bias=2,
    noise=0.5,
    blur=1,
    coarse=1,
    occlude=1,
)


@pytest.fixture
def same_contrast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "vary_contrast", lambda pixels, config, rng: pixels)


def dots() -> Tensor:
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    squares = [(rows - row) ** 2 + (cols - col) ** 2 for row, col in POINTS]
    return torch.from_numpy(sum(np.exp(-square / 12) for square in squares).astype(np.float32))


def cut(pixels: Tensor, config: AugmentationConfig, seed: int, size: tuple[int, int]) -> Crop:
    return augment(pixels, POINTS, 100.0, size, config, np.random.default_rng(seed))


def centroid(pixels: npt.NDArray[np.float32], around: npt.NDArray[np.float64]) -> list[float]:
    rows, cols = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    near = pixels * (np.hypot(rows - around[0], cols - around[1]) < 14)
    return [float((near * axis).sum() / near.sum()) for axis in (rows, cols)]


@pytest.mark.usefixtures("same_contrast")
def test_points_move_with_the_image() -> None:
    found = 0
    for seed in range(150):
        crop = cut(dots(), AugmentationConfig(), seed, WINDOW)
        pixels = crop.pixels.numpy()
        for point, inside in zip(crop.points, crop.inside_mm, strict=True):
            if inside < 14:
                continue
            found += 1
            assert pixels[tuple(np.rint(point).astype(int))] > 0.9, seed
            assert centroid(pixels, point) == pytest.approx(list(point), abs=0.3), seed
    assert found > 150


@pytest.mark.usefixtures("same_contrast")
def test_points_move_with_a_stretched_image() -> None:
    """Dots become ovals with a slant, so that their middles say less than their peaks."""
    steps, found = set(), 0
    for seed in range(60):
        config = AugmentationConfig(rotation_deg=0, scale=1, aspect=1, bend_mm=0, stretch=0.5)
        crop = cut(dots(), replace(config, crop_rows=0, crop_cols=0), seed, (320, 256))
        for point, inside in zip(crop.points, crop.inside_mm, strict=True):
            if inside >= 4:
                found += 1
                assert crop.pixels[tuple(np.rint(point).astype(int))] > 0.9, seed
        steps |= set(np.diff(crop.points[:, 0]).round())
    assert found > 100
    truth = np.diff(POINTS[:, 0])
    assert min(steps) < truth.min() - 5
    assert max(steps) > truth.max() + 5


@pytest.mark.usefixtures("same_contrast")
def test_points_beside_the_column_move_with_the_image(still: AugmentationConfig) -> None:
    beside = np.array([[60.0, 60.0], [60.0, 150.0], [120.0, 75.0], [180.0, 130.0], [200.0, 95.0]])
    rows, cols = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = sum(np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / 12) for row, col in beside)
    pixels = torch.from_numpy(image.astype(np.float32))
    config = replace(still, bend_mm=30, rotation_deg=15, scale=1.2)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        crop = augment(pixels, beside, 100.0, (448, 384), config, rng)
        for point in crop.points:
            assert centroid(crop.pixels.numpy(), point) == pytest.approx(list(point), abs=0.7), seed


def test_discs_turn_with_the_column(still: AugmentationConfig) -> None:
    """A disc stays at right angles to a bent column: its front moves along rows, too."""
    column = np.stack([np.linspace(60, 200, 60), np.full(60, 100.0)], axis=1)
    fronts = column - [0, 12]
    largest = 0.0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        points = np.concatenate([column, fronts])
        config = replace(still, bend_mm=30)
        moved = augment(torch.zeros(SHAPE), points, 100.0, SHAPE, config, rng).points
        along = np.gradient(moved[:60], axis=0)
        disc = moved[60:] - moved[:60]
        cosines = (
            (along * disc).sum(1) / np.linalg.norm(along, axis=1) / np.linalg.norm(disc, axis=1)
        )
        # to second order in the slope; a shear's cosine is the slope itself
        slopes = along[:, 1] / along[:, 0]
        assert np.abs(cosines).max() < 0.04 + 0.5 * np.abs(slopes).max() ** 2, seed
        largest = max(largest, float(np.abs(slopes).max()))
    assert largest > 0.3


def test_nothing_folds() -> None:
    """However much is bent and stretched, what is above stays above."""
    rows = np.linspace(20, 240, 45)
    for seed in range(60):
        for col in (0.0, 100.0, 199.0):
            points = np.stack([rows, np.full(len(rows), col)], axis=1)
            rng = np.random.default_rng(seed)
            crop = augment(
                torch.zeros(SHAPE), points, 100.0, WINDOW, replace(WILD, rotation_deg=0), rng
            )
            assert (np.diff(crop.points[:, 0]) > 0).all(), (seed, col)


@pytest.mark.usefixtures("same_contrast")
def test_inside_mm_is_the_distance_to_the_border() -> None:
    """Against the visible field itself, measured pixel by pixel."""
    config = replace(AugmentationConfig(), bend_mm=0)
    at_the_border = [[6, 100], [130, 8], [-9, 90], [130, 212]]  # of the image, the last two outside
    points = np.vstack([POINTS, at_the_border])
    inside_cases = outside_cases = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        crop = augment(torch.ones(SHAPE), points, 100.0, WINDOW, config, rng)
        visible = np.pad(crop.pixels.numpy() > 0.5, 60)
        depth = ndimage.distance_transform_edt(visible)
        for point, inside in zip(crop.points, crop.inside_mm, strict=True):
            place = np.rint(point).astype(int) + 60
            if (place < 0).any() or (place >= visible.shape).any():
                assert inside < 0
            elif inside > 0:  # the change of aspect, of up to 8 %, is not counted in
                assert depth[tuple(place)] == pytest.approx(inside, abs=2 + 0.1 * inside), seed
                inside_cases += 1
            elif inside < -2:
                assert depth[tuple(place)] == 0, seed
                outside_cases += 1
    assert inside_cases > 200
    assert outside_cases > 200


def test_nothing_drawn_leaves_the_image_as_it_is(still: AugmentationConfig) -> None:
    """Only the window's place is drawn where the window is smaller than the image."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.random(SHAPE, dtype=np.float32))
    crop = augment(pixels, POINTS, (SHAPE[1] - 1) / 2, SHAPE, still, rng)
    np.testing.assert_allclose(crop.points, POINTS, atol=1e-9)
    # contrast is still stretched between percentiles
    expected = np.corrcoef(crop.pixels.numpy().ravel(), pixels.numpy().ravel())[0, 1]
    assert expected > 0.999


@pytest.mark.usefixtures("same_contrast")
def test_cut_fields_hide_discs(still: AugmentationConfig) -> None:
    cut_rows = replace(still, crop_rows=1, min_rows_mm=50)
    heights, hidden = [], 0
    for seed in range(60):
        crop = cut(torch.ones(SHAPE), cut_rows, seed, (256, 192))
        rows = np.flatnonzero(crop.pixels.numpy().any(axis=1))
        heights.append(rows[-1] - rows[0] + 1)
        out = (crop.points[:, 0] < rows[0]) | (crop.points[:, 0] > rows[-1])
        np.testing.assert_array_equal(out, crop.inside_mm < 0)
        hidden += int(out.sum())
    assert min(heights) >= 49
    assert min(heights) < 100
    assert max(heights) > 200
    assert hidden > 60


@pytest.mark.usefixtures("same_contrast")
def test_cut_fields_of_low_windows(still: AugmentationConfig) -> None:
    """min_rows_mm may exceed the window: then all of it stays."""
    cut_rows = replace(still, crop_rows=1, min_rows_mm=70)
    for seed in range(5):
        crop = cut(torch.ones(SHAPE), cut_rows, seed, (64, 64))
        assert crop.pixels.all()


@pytest.mark.usefixtures("same_contrast")
def test_columns_are_cut_beside_the_discs(still: AugmentationConfig) -> None:
    narrow = 0
    for seed in range(40):
        crop = cut(torch.ones(SHAPE), replace(still, crop_cols=1), seed, (256, 192))
        cols = np.flatnonzero(crop.pixels.numpy().any(axis=0))
        narrow += len(cols) < 150
        assert ((crop.points[:, 1] > cols[0]) & (crop.points[:, 1] < cols[-1])).all()
    assert narrow > 5


@pytest.mark.parametrize("config", [AugmentationConfig(), WILD])
@pytest.mark.parametrize("kind", ["dots", "zeros", "ones", "noise"])
def test_values(kind: str, config: AugmentationConfig) -> None:
    pixels = {
        "dots": dots(),
        "zeros": torch.zeros(SHAPE),
        "ones": torch.ones(SHAPE),
        "noise": torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)),
    }[kind]
    for seed in range(12):
        crop = cut(pixels, config, seed, (128, 64))
        assert crop.pixels.shape == (128, 64)
        assert crop.pixels.dtype == torch.float32
        assert torch.isfinite(crop.pixels).all()
        assert crop.pixels.min() >= 0
        assert crop.pixels.max() <= 1
        assert crop.points.shape == (4, 2)
        assert np.isfinite(crop.points).all()
        assert np.isfinite(crop.inside_mm).all()
        if kind == "noise":
            assert crop.pixels.max() > 0.1


def test_is_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    first = cut(dots(), WILD, 7, WINDOW)
    torch.manual_seed(2)  # plays no part
    again, other = cut(dots(), WILD, 7, WINDOW), cut(dots(), WILD, 8, WINDOW)
    assert torch.equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.points, again.points)
    assert not np.array_equal(first.points, other.points)


def test_input_is_left_alone() -> None:
    pixels = dots()
    before, points = pixels.clone(), POINTS.copy()
    cut(pixels, WILD, 3, WINDOW)
    assert torch.equal(pixels, before)
    np.testing.assert_array_equal(points, POINTS)


def test_inverted_contrast_keeps_air_dark(still: AugmentationConfig) -> None:
    ramp = torch.linspace(0.05, 1, 64).repeat(64, 1)
    ramp[:, :16] = 0
    inverted = vary_contrast(ramp, replace(still, invert=1), np.random.default_rng(0))
    assert not inverted[:, :16].any()
    inner = inverted[0, 20:-4]
    assert (inner[1:] < inner[:-1]).all()


@pytest.mark.usefixtures("same_contrast")
def test_occluded_discs_are_blurred_away(still: AugmentationConfig) -> None:
    for seed in range(10):
        shown, hidden = (
            cut(dots(), replace(still, occlude=share), seed, WINDOW) for share in (0, 1)
        )
        np.testing.assert_array_equal(hidden.points, shown.points)
        inside = shown.points[shown.inside_mm > 8].round().astype(int)
        assert len(inside) >= 2
        for row, col in inside:
            assert shown.pixels[row, col] > 0.9
            assert hidden.pixels[row, col] < 0.6
        same = (hidden.pixels - shown.pixels).abs() < 1e-3
        assert same.float().mean() > 0.5


def test_each_change_changes(still: AugmentationConfig) -> None:
    pixels = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    plain = vary_contrast(pixels, still, np.random.default_rng(0))
    for change in (
        {"gamma": 1.8},
        {"tone": 1.0},
        {"invert": 1.0},
        {"bias": 0.35},
        {"noise": 0.07},
        {"blur": 1.0},
        {"coarse": 1.0},
    ):
        changed = vary_contrast(pixels, replace(still, **change), np.random.default_rng(0))
        assert (changed - plain).abs().mean() > 0.01, change


@pytest.mark.parametrize(
    "wrong",
    [
        {"tone": 1.5}, {"crop_rows": -0.1}, {"scale": 0.8}, {"gamma": 0}, {"aspect": 0.99},
        {"bias": -0.1}, {"noise": -0.1}, {"rotation_deg": -5}, {"bend_mm": float("nan")},
    ],
)  # fmt: skip
def test_refused_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentationConfig(**wrong)
