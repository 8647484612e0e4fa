"""Look once (Azad et al. 2022): candidates from heatmaps, judged together in one pass.

What the description leaves open and what is done here: the U-shaped network is one hourglass, the
gradient the magnitude of a Sobel filter, and a candidate is judged as the disc of its heatmap.
"""

import numpy as np
import numpy.typing as npt
from torch import nn

from ivdtool.candidates import Candidates
from ivdtool.heatmaps import cells_to_pixels
from ivdtool.methods.method import Discs
from ivdtool.methods.pose import TrainedMethod, best_of_each, run_network, searched
from ivdtool.model import STRIDE
from ivdtool.skeleton import Skeleton
from ivdtool.training.candidate_loss import LEAST_HEAT

__all__ = ["LookOnce"]


class LookOnce(TrainedMethod):
    """Of each heatmap's candidates that are more likely true than not, the likeliest one.

    With the skeleton search these candidates, and their heat, are what it chooses among.
    """

    def predict(
        self,
        network: nn.Module,
        pixels: npt.NDArray[np.float32],
        skeleton: Skeleton,
        search: bool | None = None,
    ) -> Discs:
        """See `Method.predict`; published without the search."""
        judged = run_network(network, pixels)[-1].astype(np.float64)  # (V, K, 4)
        true = (judged[..., 2] > LEAST_HEAT) & (judged[..., 3] > 0)
        # best first: by heat for the search, by the classifier without it
        order = np.argsort(-judged[..., 2 if search else 3], axis=1, kind="stable")
        kept = [
            row[index][seen[index]] for row, index, seen in zip(judged, order, true, strict=True)
        ]
        rows = np.concatenate(kept)
        candidates = Candidates(
            positions=cells_to_pixels(rows[:, :2], STRIDE),
            scores=rows[:, 2].clip(0, 1),
            offsets=np.cumsum([0] + [len(row) for row in kept]),
            labels=skeleton.labels,
            spacing_mm=(1.0, 1.0),
        )
        return searched(candidates, skeleton) if search else best_of_each(candidates)
