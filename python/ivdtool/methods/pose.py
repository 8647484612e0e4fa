"""Disc labelling as pose estimation: one heatmap per disc (both papers' networks)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ivdtool.candidates import Candidates, find_candidates
from ivdtool.heatmaps import Heatmaps
from ivdtool.methods.method import Discs, Method
from ivdtool.model import STRIDE
from ivdtool.search import search_skeleton
from ivdtool.skeleton import Skeleton
from ivdtool.training.dataset import Case
from ivdtool.training.loop import TrainingConfig, train_network
from ivdtool.training.validation import validate

__all__ = [
    "PoseEstimation",
    "TrainedMethod",
    "as_discs",
    "best_of_each",
    "run_network",
    "searched",
]


class TrainedMethod(Method, Protocol):
    """A method whose network is trained by gradient descent, and chosen by its own predictions."""

    def fit(
        self,
        cases: Sequence[Case],
        config: TrainingConfig,
        run: Path,
        *,
        checks: Sequence[Case],
        skeleton: Skeleton,
        data: Mapping[str, Any],
        **engine: Any,
    ) -> Path:
        """See `Method.fit`."""

        def score(network: nn.Module) -> Mapping[str, float]:
            return validate(lambda pixels: self.predict(network, pixels, skeleton), checks)

        return train_network(
            cases, config, run, skeleton=skeleton.to_dict(), data=data, validate=score, **engine
        )


class PoseEstimation(TrainedMethod):
    """Heatmaps, their peaks as candidates, and the skeleton search among them (P1, section 3).

    Without the search each disc is the highest peak of its heatmap.
    """

    def predict(
        self,
        network: nn.Module,
        pixels: npt.NDArray[np.float32],
        skeleton: Skeleton,
        search: bool | None = None,
    ) -> Discs:
        """See `Method.predict`."""
        values = run_network(network, pixels)[-1]
        spacing_mm = (float(STRIDE), float(STRIDE))
        candidates = find_candidates(Heatmaps(values, skeleton.labels, STRIDE, spacing_mm))
        return best_of_each(candidates) if search is False else searched(candidates, skeleton)


@torch.inference_mode()
def run_network(
    network: nn.Module, pixels: npt.NDArray[np.float32]
) -> list[npt.NDArray[np.float32]]:
    """Return a network's outputs for one image (H, W), each without the batch axis."""
    weight = next(iter(network.state_dict().values()))
    image = torch.from_numpy(pixels)[None, None].to(weight.device)
    outputs = network(image.to(memory_format=torch.channels_last))
    return [output[0].float().cpu().contiguous().numpy() for output in outputs]


def searched(candidates: Candidates, skeleton: Skeleton) -> Discs:
    """Return the discs that the skeleton search chooses."""
    found = search_skeleton(candidates, skeleton)
    return as_discs(found.labels, found.positions)


def best_of_each(candidates: Candidates) -> Discs:
    """Return each channel's best candidate; those of a channel come best first."""
    shown = np.flatnonzero(np.diff(candidates.offsets))
    labels = [candidates.labels[channel] for channel in shown]
    return as_discs(labels, candidates.positions[candidates.offsets[shown]])


def as_discs(labels: Sequence[int], positions: npt.NDArray[np.float64]) -> Discs:
    """Return {label: (row, col)} of labels and positions (N, 2)."""
    return {
        label: (float(row), float(col)) for label, (row, col) in zip(labels, positions, strict=True)
    }
