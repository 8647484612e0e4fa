"""What all methods have in common: they learn from cases and name the discs of an image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import nn

from ivdtool.skeleton import Skeleton
from ivdtool.training.dataset import Case
from ivdtool.training.loop import TrainingConfig

__all__ = ["Discs", "Method"]

Discs = Mapping[int, tuple[float, float]]
"""Label of each disc found: its (row, col) in image pixels."""


class Method(Protocol):
    """A way to find and name discs, in two steps: `fit` writes a checkpoint, `predict` answers.

    Between them lies the checkpoint's network, a module in eval mode (`Checkpoint.build_network`)
    that holds all the method has learnt but the mean skeleton, which the checkpoint holds beside
    it. `ivdtool.methods.registry` knows the methods by their network's name.
    """

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
        """Learn from `cases`; return the last checkpoint in the folder `run`, which exists.

        Args:
            cases: training images, not padded.
            config: its labels must be given, and its network is the method's.
            run: folder for the checkpoints.
            checks: validation images, padded to multiples of 64; they choose ``best.pt``.
            skeleton: mean skeleton of the training labels.
            data: description of the training data; goes into the checkpoints.
            engine: what else `ivdtool.training.loop.train_network` takes.
        """
        ...

    def predict(
        self,
        network: nn.Module,
        pixels: npt.NDArray[np.float32],
        skeleton: Skeleton,
        search: bool | None = None,
    ) -> Discs:
        """Return the discs of an image.

        Args:
            network: from a checkpoint of this method, in eval mode, on any device.
            pixels: (H, W) of 1 mm pixels in [0, 1], H and W multiples of 64.
            skeleton: of the same labels.
            search: choose among the candidates by the skeleton search, or by the method's own
                means; None is what the method was published with.
        """
        ...
