"""Label-aware validation: the whole method on images with known discs, in image coordinates."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from ivdtool.candidates import CandidateConfig, find_candidates
from ivdtool.evaluation import TOLERANCE_MM
from ivdtool.heatmaps import Heatmaps
from ivdtool.model import STRIDE
from ivdtool.search import SearchConfig, search_skeleton
from ivdtool.skeleton import Skeleton
from ivdtool.training.dataset import Case

__all__ = ["validate"]


@torch.inference_mode()
def validate(
    network: nn.Module,
    cases: Sequence[Case],
    skeleton: Skeleton,
    candidates: CandidateConfig,
    search: SearchConfig,
    device: str = "cpu",
) -> Mapping[str, float]:
    """Return shares of the certain discs of `cases`, and the median distance in mm.

    ``found``: a disc of the same label within 5 mm; ``shifted``: one of another label there;
    ``false``: predicted discs that are certainly not there, per certain disc; ``error``, by which
    networks are chosen: discs not found, and false ones. Pixels count as 1 mm.

    Args:
        network: in eval mode.
        cases: padded to multiples of 64; their first plane is used.
        skeleton: for the search.
        candidates: settings of the candidates.
        search: settings of the search.
        device: where the network is.
    """
    found = shifted = false = total = 0
    distances: list[float] = []
    for case in cases:
        pixels = torch.from_numpy(case.planes[0].astype(np.float32))[None, None]
        values = network(pixels.to(device, memory_format=torch.channels_last))[-1][0]
        heatmaps = Heatmaps(
            values.float().cpu().contiguous().numpy(),
            skeleton.labels,
            STRIDE,
            (float(STRIDE), float(STRIDE)),
        )
        answer = search_skeleton(find_candidates(heatmaps, candidates), skeleton, search)
        predicted = dict(zip(answer.labels, answer.positions, strict=True))
        truth = dict(zip(case.labels, case.points, strict=True))
        for label, point, certain in zip(case.labels, case.points, case.certain, strict=True):
            if not certain:
                continue
            total += 1
            near = {
                other
                for other, position in predicted.items()
                if np.hypot(*(position - point)) <= TOLERANCE_MM
            }
            found += label in near
            shifted += bool(near - {label})
            if label in predicted:
                distances.append(float(np.hypot(*(predicted[label] - point))))
        doubtful = case.unknown.union(np.array(case.labels)[~case.certain].tolist())
        for label, position in predicted.items():
            if label not in doubtful:
                false += label not in truth or np.hypot(*(position - truth[label])) > TOLERANCE_MM
    shares = {
        "found": found / max(total, 1),
        "shifted": shifted / max(total, 1),
        "false": false / max(total, 1),
    }
    return {
        "error": 1 - shares["found"] + shares["false"],
        **shares,
        "median_mm": float(np.median(distances)) if distances else float("nan"),
    }
