"""Every network learns a small spine by heart, and its method finds the discs again."""

from typing import Any

import numpy as np
import pytest
import torch

from ivdtool.heatmaps import draw_heatmaps, pixels_to_cells
from ivdtool.methods.registry import method_of
from ivdtool.model import build_network
from ivdtool.skeleton import Skeleton
from ivdtool.training.batches import Batch
from ivdtool.training.losses import LossConfig, training_loss

LABELS = (20, 21, 22)
PLACES = np.array([[[24.0, 20], [56, 24], [92, 26]], [[36.0, 34], [68, 38], [104, 40]]])
SKELETON = Skeleton.from_points(
    [dict(zip(LABELS, map(tuple, points), strict=True)) for points in PLACES.tolist()]
)


def make_batch() -> Batch:
    """Two images, whose discs are stripes of growing width on noise."""
    rows, cols = np.mgrid[:128, :64]
    images = np.random.default_rng(0).uniform(0, 0.2, (2, 1, 128, 64))
    for image, points in zip(images, PLACES, strict=True):
        for width, (row, col) in zip((1.5, 3, 6), points, strict=True):
            bell = ((rows - row) / width) ** 2 + ((cols - col) / 8) ** 2
            image[0] += np.exp(-bell / 2)
    cells = pixels_to_cells(PLACES, 4)
    targets = torch.from_numpy(draw_heatmaps(cells, np.ones((2, 3), bool), (32, 16), 1.25))
    return Batch(
        images=torch.from_numpy(images.clip(0, 1).astype(np.float32)),
        targets=targets,
        weights=torch.ones_like(targets),
        points=torch.from_numpy(cells.astype(np.float32)),
        visible=torch.ones(2, 3, dtype=torch.bool),
    )


@pytest.mark.parametrize(
    ("name", "arguments", "loss"),
    [
        ("hourglass", {"stacks": 1, "channels": 16}, {}),
        ("hca", {"stacks": 2, "channels": 16}, {"skeleton_weight": 0.1}),
        ("hca", {"stacks": 1, "channels": 16, "residual": False, "local_per_scale": True}, {}),
        ("counting", {"channels": 8}, {"target": "counts"}),
        ("lookonce", {"channels": 16}, {"target": "candidates"}),
    ],
)
def test_learns_by_heart(name: str, arguments: dict[str, Any], loss: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build_network(name, {"n_labels": 3, **arguments}).train()
    steps = torch.optim.Adam(network.parameters(), lr=5e-3)
    batch, config = make_batch(), LossConfig(**loss)
    losses = []
    for seed in range(80):
        steps.zero_grad()
        value = training_loss(network(batch.images), batch, config, seed)
        value.backward()
        steps.step()
        losses.append(value.item())
    assert losses[-1] < 0.2 * losses[0]
    method = method_of(name)
    for image, points in zip(batch.images, PLACES, strict=True):
        for search in (False, True):
            found = method.predict(network.eval(), image[0].numpy(), SKELETON, search)
            assert list(found) == list(LABELS)
            assert np.hypot(*(np.array(list(found.values())) - points).T).max() < 5
