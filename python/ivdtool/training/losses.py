"""Losses on heatmaps."""

import torch
from torch import Tensor

__all__ = ["heatmap_loss"]


def heatmap_loss(
    predictions: list[Tensor], targets: Tensor, weights: Tensor, disc_weight: float
) -> Tensor:
    """Weighted mean squared error, summed over stacks (P1, Eq. 1, with intermediate supervision).

    The mean runs over what is supervised: present discs, and absent ones with a target of zero.
    With `disc_weight` 0 it is Eq. 1. Otherwise pixels at any disc count ``1 + disc_weight`` times
    in every channel: which of two neighbouring channels fires there is what decides the level.

    Args:
        predictions: one (N, V, H, W) tensor per stack, any float dtype.
        targets: (N, V, H, W) float32.
        weights: (N, V, H, W) float32, 0 where the truth is unknown.
        disc_weight: extra weight of pixels at discs.
    """
    weights = weights * (1 + disc_weight * targets.amax(dim=1, keepdim=True))
    total = weights.sum().clamp(min=1)
    # float32: squares of bfloat16 lose the small differences that late training lives on
    losses = [((p.float() - targets) ** 2 * weights).sum() / total for p in predictions]
    return torch.stack(losses).sum()
