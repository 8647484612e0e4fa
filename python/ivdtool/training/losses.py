"""Losses on heatmaps: mean squared error (both papers' Eq. 1) and the skeleton loss of paper 2."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ivdtool.training.batches import Batch
from ivdtool.training.candidate_loss import candidate_loss
from ivdtool.training.counts import count_loss

__all__ = ["LossConfig", "heatmap_loss", "skeleton_loss", "soft_argmax", "training_loss"]


Target = Literal["heatmaps", "counts", "candidates"]

# Of judged candidates: their loss trains the classifier alone, but counts in the gradient's norm,
# which may be limited.
CANDIDATE_WEIGHT = 0.01


@dataclass(frozen=True)
class LossConfig:
    """What a training step minimises: ``heatmap_loss + skeleton_weight * skeleton_loss``.

    Attributes:
        target: what the network learns. With ``candidates`` (network ``lookonce``) the candidates'
            loss is added for the classifier; ``counts`` (network ``counting``) has a loss of its
            own, and no other setting counts.
        supervise_absent: train heatmaps of discs that are not in view towards zero, which teaches
            absence; the papers' visibility flag filters such discs out.
        disc_weight: extra weight of pixels at discs, see `heatmap_loss`; 0 is the papers' Eq. 1.
        skeleton_weight: P2's lambda (Eq. 2; 2e-4 there); 0 leaves the skeleton loss out.
        alpha: weight of a pair of discs per level between them (P2, 2.2). Fixed: learning it by
            descending this loss would drive it to 0.
        beta: share of the discs' own distances, the rest goes to pair-wise ones.
        temperature: of the spatial softmax that turns a heatmap into a position, per unit of heat.
        samples: positions drawn from each heatmap and averaged (P2's T); 0 takes their mean.

    Raises:
        ValueError: a value out of range.
    """

    target: Target = "heatmaps"
    supervise_absent: bool = True
    disc_weight: float = 20.0
    skeleton_weight: float = 0.0
    alpha: float = 0.8
    beta: float = 0.75
    temperature: float = 20.0
    samples: int = 0

    def __post_init__(self) -> None:
        for name in ("disc_weight", "skeleton_weight", "samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, not {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")


def training_loss(
    outputs: Sequence[Tensor], batch: Batch, config: LossConfig, seed: int = 0
) -> Tensor:
    """Return the scalar that a training step minimises.

    Args:
        outputs: the network's heatmaps, one (N, V, h, w) tensor per stack, any float dtype; or
            what networks with another target return.
        batch: on the same device.
        config: see `LossConfig`.
        seed: of the sampled positions, where the settings ask for them; the step's number, say.
    """
    if config.target == "counts":
        return count_loss(outputs[-1], batch)
    if config.target == "candidates":
        *outputs, candidates = outputs
    weights = batch.weights
    if not config.supervise_absent:
        weights = weights * batch.visible[:, :, None, None]
    loss = heatmap_loss(outputs, batch.targets, weights, config.disc_weight)
    if config.skeleton_weight > 0:
        loss = loss + config.skeleton_weight * skeleton_loss(outputs, batch, config, seed)
    if config.target == "candidates":
        loss = loss + CANDIDATE_WEIGHT * candidate_loss(candidates, batch)
    return loss


def heatmap_loss(
    predictions: Sequence[Tensor], targets: Tensor, weights: Tensor, disc_weight: float
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


def skeleton_loss(
    predictions: Sequence[Tensor], batch: Batch, config: LossConfig, seed: int = 0
) -> Tensor:
    """Distances of predicted discs to the truth, and of pairs to their true distance (P2, 2.2).

    Summed over stacks: ``beta * L_id + (1 - beta) * L_pd``, where over the visible discs of an
    image L_id is the mean squared distance, and L_pd the sum over pairs c < k of
    ``alpha ** (k - c)`` times the squared error of their distance (P2 writes D(V, i, k) with k
    relative in one place and absolute in another; only absolute stays within the channels). Both
    are averaged over the images.

    Lengths are in units of the heatmap's longer side, along both axes: [0, 1] coordinates on the
    papers' square images, undistorted on others. True positions come from the target heatmaps by
    `soft_argmax`, too: it errs by 0.13 cells on a Gaussian of sigma 1.25 at temperature 20 (0.7 at
    10), so against the annotated points the loss would not be least where Eq. 1 is.

    Args:
        predictions: one (N, V, h, w) tensor per stack, any float dtype.
        batch: its targets and visible discs count.
        config: alpha, beta, temperature, samples.
        seed: of the samples.
    """
    generator = torch.Generator(batch.targets.device).manual_seed(seed)
    side = max(batch.targets.shape[2:])
    truth = soft_argmax(batch.targets, config.temperature) / side
    visible = batch.visible
    both = visible[:, :, None] & visible[:, None, :]
    level = torch.arange(visible.shape[1], device=visible.device)
    gap = level[None] - level[:, None]  # k - c
    pair_weights = torch.where(gap > 0, config.alpha ** gap.abs().float(), 0.0) * both
    losses = []
    for heatmaps in predictions:
        points = soft_argmax(heatmaps, config.temperature, config.samples, generator) / side
        own = ((points - truth) ** 2).sum(dim=2) * visible
        own = own.sum(dim=1) / visible.sum(dim=1).clamp(min=1)
        pairs = (pair_weights * (_distances(points) - _distances(truth)) ** 2).sum(dim=(1, 2))
        losses.append((config.beta * own + (1 - config.beta) * pairs).mean())
    return torch.stack(losses).sum()


def soft_argmax(
    heatmaps: Tensor,
    temperature: float,
    samples: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the mean positions (N, V, 2), (row, col) in cells, of heatmaps (N, V, h, w), float32.

    The mean is that of the spatial softmax of ``temperature * heat`` (P2, Eq. 3, which leaves the
    temperature out: on heat in [0, 1] the mean then lies at the map's centre whatever the peak).
    With `samples` it is the average of so many positions drawn from that distribution, whose
    gradient passes straight through to it (P2's sampler, which has none in the authors' code).
    """
    logits = temperature * heatmaps.float()
    if samples == 0:
        return _centroids(_spatial_softmax(logits))
    drawn = []
    for _ in range(samples):
        uniform = torch.rand(logits.shape, device=logits.device, generator=generator)
        noisy = logits - (-uniform.clamp(min=1e-30).log()).clamp(min=1e-30).log()  # Gumbel
        soft = _centroids(_spatial_softmax(noisy))
        best = noisy.detach().flatten(2).argmax(dim=2)
        width = heatmaps.shape[3]
        hard = torch.stack([best.div(width, rounding_mode="floor"), best % width], dim=2)
        drawn.append(soft + (hard - soft).detach())
    return torch.stack(drawn).mean(dim=0)


def _spatial_softmax(logits: Tensor) -> Tensor:
    return logits.flatten(2).softmax(dim=2).view_as(logits)


def _centroids(shares: Tensor) -> Tensor:
    """(N, V, h, w) that sum to 1 over h and w -> (N, V, 2); no product that autocast would cut."""
    rows, cols = (torch.arange(n, device=shares.device) for n in shares.shape[2:])
    return torch.stack([(shares.sum(3) * rows).sum(2), (shares.sum(2) * cols).sum(2)], dim=2)


def _distances(points: Tensor) -> Tensor:
    """(N, V, 2) -> (N, V, V) Euclidean distances; the gradient at distance 0 is 0."""
    between: Tensor = torch.linalg.vector_norm(points[:, :, None] - points[:, None], dim=3)
    return between
