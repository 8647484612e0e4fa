"""Training targets of the counting network, and its loss."""

import torch
from torch import Tensor

from ivdtool.networks.counting import REACH, count_in_windows
from ivdtool.training.batches import Batch

__all__ = ["count_loss", "make_counts"]

APART = 2.0  # cells: no two discs are nearer to each other than this


def make_counts(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the number of visible discs in every window, (N, 1, h, w), and where that is known.

    A disc between cells belongs to its four neighbours in parts, so its place can be told from
    the counts to less than a cell. The second tensor, (N, 1, h, 1) bool, leaves out the rows whose
    windows reach to where a disc may be that the truth says nothing of: between its visible
    neighbours, or above or below all discs.
    """
    height, width = batch.targets.shape[2:]
    rows = torch.arange(height, device=batch.points.device)
    cols = torch.arange(width, device=batch.points.device)
    in_rows = (1 - (rows - batch.points[:, :, :1]).abs()).clamp(min=0)  # (N, V, h)
    in_cols = (1 - (cols - batch.points[:, :, 1:]).abs()).clamp(min=0)
    density = torch.einsum("nvh,nvw,nv->nhw", in_rows, in_cols, batch.visible.float())
    return count_in_windows(density[:, None]), _known_rows(batch, rows)[:, None, :, None]


def _known_rows(batch: Batch, rows: Tensor) -> Tensor:
    """(N, h) whether no disc of unknown place can lie in the windows around a row."""
    row, seen = batch.points[:, :, 0], batch.visible
    # the last visible disc above each channel's, and the first one below
    above = torch.where(seen, row, -torch.inf).cummax(dim=1).values
    below = torch.where(seen, row, torch.inf).flip(1).cummin(dim=1).values.flip(1)
    doubtful = (batch.weights < 1).flatten(2).any(dim=2)  # (N, V)
    from_row = (above + APART)[:, :, None]
    to_row = (below - APART)[:, :, None]
    touched = (rows + REACH > from_row) & (rows - REACH < to_row)
    return ~(touched & doubtful[:, :, None]).any(dim=1)


def count_loss(counts: Tensor, batch: Batch) -> Tensor:
    """Mean absolute error of the counts (N, 1, h, w), as in Count-ception, where they are known."""
    truth, known = make_counts(batch)
    total = (known.sum() * truth.shape[3]).clamp(min=1)
    return ((counts.float() - truth).abs() * known).sum() / total
