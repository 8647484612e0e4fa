"""The loss of judged candidates (look once)."""

import torch.nn.functional as F
from torch import Tensor

from ivdtool.training.batches import Batch

__all__ = ["candidate_loss"]

LEAST_HEAT = 0.05  # fainter peaks are no candidates
NEAR = 1.25  # cells, 5 mm: as near as a disc must be to count as found


def candidate_loss(candidates: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of candidates (N, V, K, 4): row, col, heat, logit.

    A candidate is true if the disc of its heatmap is visible and near. Those where the truth is
    unknown have no part in it.
    """
    rows, cols, heat, logits = candidates.unbind(dim=3)
    offsets = candidates[..., :2] - batch.points[:, :, None]
    true = (offsets.norm(dim=3) <= NEAR) & batch.visible[:, :, None]
    height, width = batch.weights.shape[2:]
    cell = rows.round().long().clamp(0, height - 1) * width
    cell = cell + cols.round().long().clamp(0, width - 1)
    counted = batch.weights.flatten(2).gather(2, cell) * (heat > LEAST_HEAT)
    losses = F.binary_cross_entropy_with_logits(logits, true.to(logits.dtype), reduction="none")
    return (losses * counted).sum() / counted.sum().clamp(min=1)
