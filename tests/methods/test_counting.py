"""Counts in windows: what a disc adds to them, how places come back, how they are named."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from ivdtool.heatmaps import cells_to_pixels, pixels_to_cells
from ivdtool.methods.counting import Counting, name_in_order, place_counted
from ivdtool.networks.counting import CountingNetwork, count_in_windows
from ivdtool.skeleton import Skeleton
from ivdtool.training.batches import Batch
from ivdtool.training.counts import count_loss, make_counts

Points = npt.NDArray[np.float64]


def make_batch(cells: Points, shape: tuple[int, int] = (48, 32)) -> Batch:
    """One image with visible discs at cells (V, 2)."""
    weights = torch.ones(1, len(cells), *shape)
    return Batch(
        images=torch.zeros(1, 1, 4 * shape[0], 4 * shape[1]),
        targets=torch.zeros_like(weights),
        weights=weights,
        points=torch.from_numpy(cells.astype(np.float32))[None],
        visible=torch.ones(1, len(cells), dtype=torch.bool),
    )


def hide(batch: Batch, *channels: int) -> Batch:
    """Nothing is known of the discs of some channels."""
    weights, visible = batch.weights.clone(), batch.visible.clone()
    weights[:, channels], visible[:, channels] = 0, False
    return replace(batch, weights=weights, visible=visible)


def test_windows_against_loops() -> None:
    """Sums over 9 x 9 cells, of which those on the edge lie half in the window of 32 pixels."""
    density = torch.rand(1, 1, 12, 10, generator=torch.Generator().manual_seed(0))
    expected = np.zeros((12, 10))
    for row, col in np.ndindex(12, 10):
        for r, c in np.ndindex(12, 10):
            share = [np.clip(4.5 - abs(d), 0, 1) for d in (r - row, c - col)]
            expected[row, col] += density[0, 0, r, c].item() * np.prod(share)
    np.testing.assert_allclose(count_in_windows(density)[0, 0], expected, rtol=1e-5)


def test_every_disc_is_counted_64_times() -> None:
    batch = make_batch(np.array([[12.0, 9.0], [20.3, 10.8], [24.5, 11.1]]))
    counts, known = make_counts(batch)
    assert counts.sum().item() == pytest.approx(3 * 64, rel=1e-5)
    assert counts.shape == (1, 1, 48, 32)
    assert known.all()
    alone, _ = make_counts(hide(batch, 1, 2))
    assert alone.max().item() == pytest.approx(1)
    assert (alone[0, 0] > 0.99).sum() == 7 * 7  # cells further in than the edge
    assert counts[0, 0, 22, 11].item() == pytest.approx(2)  # windows of two discs


def test_rows_near_unknown_discs_are_not_supervised() -> None:
    """Discs are at rows 10, 20, 30, so those between may be from 2 cells beside them on."""
    batch = make_batch(np.array([[10.0, 9], [20, 9], [30, 9]]))

    def rows(*channels: int) -> list[int]:
        _, known = make_counts(hide(batch, *channels))
        assert known.shape == (1, 1, 48, 1)
        return known.flatten().nonzero().flatten().tolist()

    assert rows() == list(range(48))
    # a window reaches 4 cells from its middle
    assert rows(1) == [*range(9), *range(32, 48)]
    assert rows(0) == list(range(22, 48))
    assert rows(2) == list(range(19))
    assert rows(0, 1, 2) == []


def test_loss() -> None:
    batch = hide(make_batch(np.array([[10.0, 9], [20, 9], [30, 9]])), 0)
    truth, _ = make_counts(batch)
    assert count_loss(truth, batch).item() == 0
    counts = truth.clone()
    counts[:, :, :22] += 5  # not known there
    assert count_loss(counts, batch).item() == 0
    counts[:, :, 22:] -= 0.25
    assert count_loss(counts, batch).item() == pytest.approx(0.25)
    nothing = hide(batch, 0, 1, 2)
    assert count_loss(counts, nothing).item() == 0


def test_an_output_sees_its_window_and_no_more() -> None:
    network = CountingNetwork(channels=4).eval()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.LeakyReLU):
                setattr(module, name, nn.Identity())
    for weight in network.parameters():
        nn.init.constant_(weight, 0.1)
    image = torch.ones(1, 1, 128, 96, requires_grad=True)
    (counts,) = network(image)
    assert counts.shape == (1, 1, 32, 24)
    counts[0, 0, 14, 10].backward()
    assert image.grad is not None
    rows, cols = image.grad[0, 0].nonzero().T
    middle = cells_to_pixels([14, 10], 4)
    for seen, centre in ((rows, middle[0]), (cols, middle[1])):
        assert [seen.min().item(), seen.max().item()] == [centre - 15.5, centre + 15.5]


@pytest.mark.parametrize("gap", [4.2, 8.0])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_places_come_back_from_counts(gap: float, noise: float) -> None:
    """Also where windows hold two discs, as in the neck at 17 mm or 4.2 cells."""
    rng = np.random.default_rng(0)
    rows = np.arange(5, 43, gap)
    cells = np.stack([rows, 15 + 4 * np.sin(rows / 12)], axis=1) + rng.uniform(-0.4, 0.4, (1, 2))
    counts, _ = make_counts(make_batch(cells))
    counts = counts + noise * torch.randn(counts.shape, generator=torch.Generator().manual_seed(0))
    found = place_counted(counts[0])
    assert len(found.scores) == len(cells)
    order = np.argsort(found.positions[:, 0])
    error = pixels_to_cells(found.positions[order], 4) - cells
    assert np.abs(error).max() < 0.5  # 2 mm
    assert np.abs(error).mean() < (0.2 if noise else 0.12)
    assert (found.scores > 0.5).all()


def test_no_discs_from_no_counts() -> None:
    assert len(place_counted(torch.zeros(1, 48, 32)).scores) == 0


# --- names ---


def test_names_follow_the_spacings(skeleton: Skeleton, points: Points) -> None:
    """The steps of the skeleton are 30, 31, 33 and 34 mm long."""
    shuffled = np.array([3, 1, 2])
    found = name_in_order(points[shuffled] + [7, -20], np.ones(3), skeleton)
    assert list(found) == [19, 20, 21]
    np.testing.assert_allclose(found[19], points[1] + [7, -20])
    np.testing.assert_allclose(found[21], points[3] + [7, -20])


def test_the_best_of_too_many_points_are_named(skeleton: Skeleton, points: Points) -> None:
    more = np.vstack([points, [[60, 10]]])
    found = name_in_order(more, np.array([1, 1, 1, 1, 1, 0.5]), skeleton)
    assert list(found) == [18, 19, 20, 21, 22]
    np.testing.assert_allclose(list(found.values()), points)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_points_to_name(count: int, skeleton: Skeleton, points: Points) -> None:
    assert name_in_order(points[:count], np.ones(count), skeleton) == {}


@pytest.mark.parametrize("search", [None, True, False])
@pytest.mark.parametrize("shown", [slice(0, 5), slice(1, 4)])
def test_discs_from_counts(
    search: bool | None,
    shown: slice,
    skeleton: Skeleton,
    points: Points,
    image: npt.NDArray[np.float32],
    saying: Callable[..., nn.Module],
) -> None:
    counts, _ = make_counts(make_batch(pixels_to_cells(points[shown], 4)))
    found = Counting().predict(saying(counts), image, skeleton, search)
    assert list(found) == list(skeleton.labels[shown])
    np.testing.assert_allclose(list(found.values()), points[shown], atol=1.0)
