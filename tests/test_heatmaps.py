import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import oracles

from ivdtool.heatmaps import (
    HeatmapBuffer,
    Heatmaps,
    cells_to_pixels,
    draw_heatmaps,
    pixels_to_cells,
)

CUT_OFF = 5e-4


def test_values_are_those_of_a_gaussian() -> None:
    rng = np.random.default_rng(0)
    for shape, sigma in [((40, 30), (1.25, 1.25)), ((17, 64), (3.16, 2.0)), ((1, 5), (0.4, 9.0))]:
        points = rng.uniform(-6, 6, (3, 7, 2)) + rng.uniform(0, shape, (3, 7, 2))
        visible = rng.random((3, 7)) < 0.8
        drawn = draw_heatmaps(points, visible, shape, sigma)
        exact = oracles.draw_gaussians(points, visible, shape, np.array(sigma))
        assert drawn.dtype == np.float32
        assert drawn.shape == (3, 7, *shape)
        np.testing.assert_allclose(drawn[drawn > 0], exact[drawn > 0], rtol=1e-6)
        assert exact[drawn == 0].max() < CUT_OFF


def test_peak_is_one_at_the_real_valued_point() -> None:
    heatmap = draw_heatmaps([[[7.0, 4.0]]], [[True]], (16, 9), 1.5)[0, 0]
    assert heatmap[7, 4] == 1.0
    between = draw_heatmaps([[[7.5, 4.0]]], [[True]], (16, 9), 1.5)[0, 0]
    assert between[7, 4] == between[8, 4] == pytest.approx(np.exp(-0.5 * (0.5 / 1.5) ** 2))


def test_all_discs_visible() -> None:
    """The authors' code indexes past its last channel here."""
    points = np.stack([np.arange(23) * 5.0, np.full(23, 8.0)], axis=-1)[np.newaxis]
    drawn = draw_heatmaps(points, np.ones((1, 23), dtype=bool), (120, 16), 1.25)
    np.testing.assert_array_equal(drawn[0].max(axis=(1, 2)), 1.0)


@pytest.mark.parametrize("point", [(np.nan, 3.0), (3.0, np.nan), (np.inf, 3.0), (3.0, -np.inf)])
def test_unknown_point_gives_zeros(point: tuple[float, float]) -> None:
    assert not draw_heatmaps([[point]], [[True]], (8, 8), 1.0).any()


def test_invisible_point_gives_zeros() -> None:
    drawn = draw_heatmaps([[[3, 3], [4, 4]]], [[False, True]], (8, 8), 1.0)
    assert not drawn[0, 0].any()
    assert drawn[0, 1].any()


@pytest.mark.parametrize("far", [-1e300, -50.0, 50.0, 1e300])
def test_point_far_outside_gives_zeros(far: float) -> None:
    assert not draw_heatmaps([[[far, 3.0], [3.0, far]]], [[True, True]], (8, 8), 1.0).any()


def test_point_just_outside_reaches_in() -> None:
    drawn = draw_heatmaps([[[-1.0, 3.0]]], [[True]], (8, 8), 1.0)[0, 0]
    assert drawn[0, 3] == pytest.approx(np.exp(-0.5))


def test_an_array_is_overwritten() -> None:
    points, visible = [[[3.0, 4.0], [5.5, 1.0]]], [[True, True]]
    fresh = draw_heatmaps(points, visible, (8, 6), 1.5)
    out = np.full((1, 2, 8, 6), np.nan, dtype=np.float32)
    assert draw_heatmaps(points, visible, (8, 6), 1.5, out) is out
    np.testing.assert_array_equal(out, fresh)
    with pytest.raises(ValueError, match=r"out must be \(1, 2, 8, 7\)"):
        draw_heatmaps(points, visible, (8, 7), 1.5, out)
    with pytest.raises(TypeError, match="incompatible"):
        draw_heatmaps(points, visible, (8, 6), 1.5, out.astype(np.float64))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        draw_heatmaps(points, visible, (8, 6), 1.5, out)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    batch=st.integers(0, 2),
    channels=st.integers(0, 3),
    calls=st.lists(
        st.tuples(st.integers(0, 2**32), st.floats(0.1, 20), st.floats(0.1, 20)), max_size=6
    ),
)
def test_a_buffer_equals_fresh_heatmaps(
    shape: tuple[int, int], batch: int, channels: int, calls: list[tuple[int, float, float]]
) -> None:
    """Bit for bit, after any calls: in and out of the frame, invisible, unknown, other sigmas."""
    buffer = HeatmapBuffer(batch, channels, shape)
    assert not buffer.values.any()
    for seed, *sigma in calls:
        rng = np.random.default_rng(seed)
        points = rng.uniform(-30, 70, (batch, channels, 2))
        points[rng.random(points.shape) < 0.1] = rng.choice([np.nan, np.inf, -1e300])
        visible = rng.random((batch, channels)) < 0.8
        drawn = buffer.draw(points, visible, (sigma[0], sigma[1]))
        assert drawn is buffer.values
        fresh = draw_heatmaps(points, visible, shape, (sigma[0], sigma[1]))
        assert drawn.tobytes() == fresh.tobytes()


def test_a_refused_call_leaves_the_buffer_alone() -> None:
    buffer = HeatmapBuffer(1, 1, (8, 8))
    before = buffer.draw([[[3.0, 3.0]]], [[True]], 1.0).copy()
    for points, visible, sigma in [
        (np.zeros((1, 2, 2)), np.ones((1, 2)), 1.0),
        (np.zeros((1, 1, 2)), np.ones((1, 2)), 1.0),
        (np.zeros((1, 1, 2)), np.ones((1, 1)), -1.0),
    ]:
        with pytest.raises(ValueError, match="must be"):
            buffer.draw(points, visible, sigma)
    np.testing.assert_array_equal(buffer.values, before)
    with pytest.raises(ValueError, match="read-only"):
        buffer.values[0, 0, 0, 0] = 1.0


@pytest.mark.parametrize(
    ("batch", "channels", "shape"), [(-1, 1, (4, 4)), (1, -1, (4, 4)), (1, 1, (0, 4))]
)
def test_a_buffer_has_a_shape(batch: int, channels: int, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no heatmaps have shape"):
        HeatmapBuffer(batch, channels, shape)


@pytest.mark.parametrize("sigma", [1e-300, 1e-3, 1e300])
def test_extreme_sigma(sigma: float) -> None:
    drawn = draw_heatmaps([[[3.0, 4.0], [3.5, 4.5]]], [[True, True]], (8, 9), sigma)[0]
    assert np.isfinite(drawn).all()
    assert drawn[0, 3, 4] == 1.0
    assert drawn.sum() == (1.0 if sigma < 1 else drawn.size)


def test_wide_gaussians_stay_exact() -> None:
    """Values are made from cell to cell; errors must not add up over thousands of cells."""
    points = np.array([[[1.3, 2000.7], [1.0, -3000.0]]])
    drawn = draw_heatmaps(points, [[True, True]], (3, 6000), (2.0, 1500.0))
    exact = oracles.draw_gaussians(points, np.ones((1, 2)) > 0, (3, 6000), np.array([2.0, 1500.0]))
    np.testing.assert_allclose(drawn[drawn > 0], exact[drawn > 0], rtol=2e-7)


def test_no_points() -> None:
    assert draw_heatmaps(np.zeros((2, 0, 2)), np.zeros((2, 0)), (4, 4), 1.0).shape == (2, 0, 4, 4)


@pytest.mark.parametrize(
    ("points", "visible", "shape", "sigma", "message"),
    [
        (np.zeros((2, 2)), np.ones((2, 2)), (8, 8), 1.0, "points must be"),
        (np.zeros((1, 2, 3)), np.ones((1, 2)), (8, 8), 1.0, "points must be"),
        (np.zeros((1, 2, 2)), np.ones((1, 3)), (8, 8), 1.0, "visible must be"),
        (np.zeros((1, 2, 2)), np.ones((1, 2)), (0, 8), 1.0, "shape must be"),
        (np.zeros((1, 2, 2)), np.ones((1, 2)), (8, 8), 0.0, "sigma must be"),
        (np.zeros((1, 2, 2)), np.ones((1, 2)), (8, 8), (1.0, np.nan), "sigma must be"),
        (np.zeros((1, 2, 2)), np.ones((1, 2)), (8, 8), np.inf, "sigma must be"),
    ],
)
def test_wrong_arguments(
    points: np.ndarray,
    visible: np.ndarray,
    shape: tuple[int, int],
    sigma: float | tuple[float, float],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        draw_heatmaps(points, visible, shape, sigma)


@given(st.integers(1, 16), st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_cells_and_pixels_are_inverse(stride: int, row: float, col: float) -> None:
    pixels = cells_to_pixels([row, col], stride)
    np.testing.assert_allclose(pixels_to_cells(pixels, stride), [row, col], atol=1e-9)


def test_a_cell_covers_its_pixels_evenly() -> None:
    """With stride 4, cell 0 covers pixels 0..3, so its centre is at 1.5."""
    assert cells_to_pixels(0, 4) == 1.5
    assert cells_to_pixels(1, 4) == 5.5
    assert cells_to_pixels(3, 1) == 3


def test_heatmaps_check_their_parts() -> None:
    values = np.zeros((2, 4, 4), dtype=np.float32)
    Heatmaps(values, (3, 4), 4, (4.0, 4.0))
    with pytest.raises(ValueError, match=r"\(V, H, W\)"):
        Heatmaps(values[0], (3, 4), 4, (4.0, 4.0))
    with pytest.raises(ValueError, match="2 channels but 3 labels"):
        Heatmaps(values, (3, 4, 5), 4, (4.0, 4.0))
    with pytest.raises(ValueError, match="stride"):
        Heatmaps(values, (3, 4), 0, (4.0, 4.0))
    with pytest.raises(ValueError, match="spacing_mm"):
        Heatmaps(values, (3, 4), 4, (4.0, 0.0))
