"""The counting model: discs are counted in windows, then set in order (paper 1's ref. 16).

What the papers leave open and what is done here: places are recovered from the counts as the
sparse density of discs that explains them best; levels, which a window of 32 pixels cannot tell,
come from the order of the discs alone, that is from their spacings.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivdtool.candidates import CandidateConfig, Candidates, find_candidates
from ivdtool.heatmaps import Heatmaps
from ivdtool.methods.method import Discs
from ivdtool.methods.pose import TrainedMethod, as_discs, run_network, searched
from ivdtool.model import STRIDE
from ivdtool.networks.counting import REACH, count_in_windows
from ivdtool.skeleton import Skeleton

__all__ = ["Counting", "name_in_order", "place_counted"]

SPARSITY = 8.0  # price of one disc, where a whole one explains 57 counts squared
ROUNDS = 300
LEAST_SHARE = 0.3  # of a disc, gathered within a cell or so
MAX_DISCS = 40


class Counting(TrainedMethod):
    """Redundant counts, deconvolved. Without the skeleton search, labels are consecutive."""

    def predict(
        self,
        network: nn.Module,
        pixels: npt.NDArray[np.float32],
        skeleton: Skeleton,
        search: bool | None = None,
    ) -> Discs:
        """See `Method.predict`; published without the search."""
        found = place_counted(torch.from_numpy(run_network(network, pixels)[-1]))
        if not search:
            return name_in_order(found.positions, found.scores, skeleton)
        count, channels = len(found.scores), len(skeleton.labels)
        anywhere = Candidates(  # every disc may have any label
            positions=np.tile(found.positions, (channels, 1)),
            scores=np.tile(found.scores.clip(0, 1), channels),
            offsets=np.arange(channels + 1) * count,
            labels=skeleton.labels,
            spacing_mm=found.spacing_mm,
        )
        return searched(anywhere, skeleton)


def place_counted(counts: Tensor) -> Candidates:
    """Return the discs, one channel without level, that explain counts (1, h, w) best.

    Minimises |windows of x - counts|^2 / 2 + SPARSITY * sum(x) over densities x >= 0, by FISTA.
    """
    counts = counts[None]
    density = momentum = torch.zeros_like(counts)
    step, pace = 1 / (2.0 * REACH) ** 4, 1.0  # the windows' norm is at most (2 REACH)^2
    for _ in range(ROUNDS):
        slope = count_in_windows(count_in_windows(momentum) - counts) + SPARSITY
        better = (momentum - step * slope).clamp(min=0)
        next_pace = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        momentum = better + (pace - 1) / next_pace * (better - density)
        density, pace = better, next_pace
    bell = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / 2)  # gathers what neighbours share
    gathered = F.conv2d(density, bell[None, None, :, None], padding=(3, 0))
    gathered = F.conv2d(gathered, bell[None, None, None, :], padding=(0, 3))
    heat = Heatmaps(gathered[0].numpy(), (0,), STRIDE, (float(STRIDE), float(STRIDE)))
    return find_candidates(
        heat,
        CandidateConfig(threshold=LEAST_SHARE, threshold_relative=0, max_candidates=MAX_DISCS),
    )


def name_in_order(
    positions: npt.NDArray[np.float64], scores: npt.NDArray[np.float64], skeleton: Skeleton
) -> Discs:
    """Name points (N, 2) from top to bottom, consecutively.

    The first label is the one with which the steps from disc to disc are most like those of the
    skeleton. Of more points than labels the best are named; a single one cannot be.
    """
    best = np.sort(np.argsort(-scores, kind="stable")[: len(skeleton.labels)])
    points = positions[best]
    points = points[np.argsort(points[:, 0], kind="stable")]
    if len(points) < 2:
        return {}
    steps = np.diff(points, axis=0)
    expected, spread = np.diff(skeleton.mean_mm, axis=0), skeleton.step_sd_mm
    costs = [
        (((steps - expected[first:][: len(steps)]) / spread[first:][: len(steps), None]) ** 2).sum()
        for first in range(len(expected) - len(steps) + 1)
    ]
    first = int(np.argmin(costs))
    return as_discs(skeleton.labels[first : first + len(points)], points)
