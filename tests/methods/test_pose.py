"""Heatmaps of known answers become discs, with and without the skeleton search."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ivdtool.heatmaps import draw_heatmaps, pixels_to_cells
from ivdtool.methods.pose import PoseEstimation
from ivdtool.skeleton import Skeleton

LABELS = (18, 19, 20, 21, 22)
POINTS = np.array([[20.0, 60.0], [50, 62], [81, 63], [114, 61], [148, 58]])
SKELETON = Skeleton.from_points([dict(zip(LABELS, map(tuple, POINTS), strict=True))])
IMAGE = np.zeros((192, 128), dtype=np.float32)


class Oracle(nn.Module):
    """Answers every image with Gaussians at given places; NaN is no disc."""

    heatmaps: Tensor

    def __init__(self, points: npt.ArrayLike) -> None:
        super().__init__()
        cells = pixels_to_cells(points, 4)
        drawn = draw_heatmaps(cells[None], np.isfinite(cells[None, :, 0]), (48, 32), 1.25)
        self.register_buffer("heatmaps", torch.from_numpy(drawn))

    def forward(self, image: Tensor) -> list[Tensor]:
        assert image.shape == (1, 1, 192, 128)
        return [torch.zeros_like(self.heatmaps), self.heatmaps]  # the last stack counts


def check(found: dict[int, tuple[float, float]], expected: dict[int, int]) -> None:
    """`expected`: label to row of POINTS."""
    assert found.keys() == expected.keys()
    for label, row in expected.items():
        np.testing.assert_allclose(found[label], POINTS[row], atol=0.2)


def test_every_disc_at_its_peak() -> None:
    for search in (None, True, False):
        found = PoseEstimation().predict(Oracle(POINTS), IMAGE, SKELETON, search)
        check(dict(found), {18: 0, 19: 1, 20: 2, 21: 3, 22: 4})


def test_missing_discs_keep_their_label() -> None:
    gaps = POINTS.copy()
    gaps[[0, 2]] = np.nan
    for search in (True, False):
        found = PoseEstimation().predict(Oracle(gaps), IMAGE, SKELETON, search)
        check(dict(found), {19: 1, 21: 3, 22: 4})


def test_the_search_drops_what_does_not_fit() -> None:
    """Disc 20 is seen where disc 22 is."""
    wrong = POINTS.copy()
    wrong[2] = POINTS[4]
    alone = PoseEstimation().predict(Oracle(wrong), IMAGE, SKELETON, search=False)
    check(dict(alone), {18: 0, 19: 1, 20: 4, 21: 3, 22: 4})
    found = PoseEstimation().predict(Oracle(wrong), IMAGE, SKELETON)
    check(dict(found), {18: 0, 19: 1, 21: 3, 22: 4})


def test_nothing_seen() -> None:
    for search in (True, False):
        empty = Oracle(np.full((5, 2), np.nan))
        assert not PoseEstimation().predict(empty, IMAGE, SKELETON, search)
