"""Heatmaps of known answers become discs, with and without the skeleton search."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from ivdtool.heatmaps import draw_heatmaps, pixels_to_cells
from ivdtool.methods.pose import PoseEstimation
from ivdtool.skeleton import Skeleton

Points = npt.NDArray[np.float64]
Predict = Callable[[Points, bool | None], Mapping[int, tuple[float, float]]]


@pytest.fixture
def predict(
    skeleton: Skeleton, image: npt.NDArray[np.float32], saying: Callable[..., nn.Module]
) -> Predict:
    """Discs from Gaussians at given places; NaN is none. Only the last stack counts."""

    def call(places: Points, search: bool | None) -> Mapping[int, tuple[float, float]]:
        cells = pixels_to_cells(places, 4)
        drawn = draw_heatmaps(cells[None], np.isfinite(cells[None, :, 0]), (48, 32), 1.25)
        last = torch.from_numpy(drawn)
        network = saying(torch.zeros_like(last), last)
        return PoseEstimation().predict(network, image, skeleton, search)

    return call


def check(found: Mapping[int, tuple[float, float]], expected: Mapping[int, Points]) -> None:
    assert found.keys() == expected.keys()
    for label, place in expected.items():
        np.testing.assert_allclose(np.array(found[label]), place, atol=0.2)


@pytest.mark.parametrize("search", [None, True, False])
def test_every_disc_at_its_peak(predict: Predict, points: Points, search: bool | None) -> None:
    check(predict(points, search), dict(zip(range(18, 23), points, strict=True)))


@pytest.mark.parametrize("search", [True, False])
def test_missing_discs_keep_their_label(predict: Predict, points: Points, search: bool) -> None:
    gaps = points.copy()
    gaps[[0, 2]] = np.nan
    check(predict(gaps, search), {19: points[1], 21: points[3], 22: points[4]})


def test_the_search_drops_what_does_not_fit(predict: Predict, points: Points) -> None:
    """Disc 20 is seen where disc 22 is. The papers' method is the one with the search."""
    wrong = points.copy()
    wrong[2] = points[4]
    alone = dict(zip(range(18, 23), wrong, strict=True))
    check(predict(wrong, False), alone)
    del alone[20]
    check(predict(wrong, True), alone)
    check(predict(wrong, None), alone)


@pytest.mark.parametrize("search", [True, False])
def test_nothing_seen(predict: Predict, search: bool) -> None:
    assert not predict(np.full((5, 2), np.nan), search)
