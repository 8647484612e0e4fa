"""The methods by the name of their network."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import nn

from ivdtool.methods.counting import Counting
from ivdtool.methods.lookonce import LookOnce
from ivdtool.methods.method import Discs, Method
from ivdtool.methods.pose import PoseEstimation
from ivdtool.methods.template import TemplateMatching
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.skeleton import Skeleton
from ivdtool.training.checkpoint import load_checkpoint
from ivdtool.training.loop import settings_of, skeleton_of

__all__ = ["Predictor", "load_predictor", "method_of"]

_METHODS: dict[str, Method] = {
    "hourglass": PoseEstimation(),
    "hca": PoseEstimation(),
    "counting": Counting(),
    "lookonce": LookOnce(),
    "template": TemplateMatching(),
}


def method_of(network: str) -> Method:
    """Return the method of a network, by name."""
    return _METHODS[network]


@dataclass(frozen=True, eq=False)
class Predictor:
    """A method that has learnt.

    Attributes:
        method: how the network's outputs become discs.
        network: from the checkpoint, in eval mode.
        skeleton: mean skeleton of the training labels.
        preprocessing: how images must be prepared.
        search: see `Method.predict`.
    """

    method: Method
    network: nn.Module
    skeleton: Skeleton
    preprocessing: PreprocessingConfig
    search: bool | None = None

    def predict(self, pixels: npt.NDArray[np.float32]) -> Discs:
        """Return {label: (row, col)} of an image (H, W) of 1 mm pixels, multiples of 64."""
        return self.method.predict(self.network, pixels, self.skeleton, self.search)


def load_predictor(
    checkpoint_file: Path, *, device: str = "cpu", search: bool | None = None
) -> Predictor:
    """Load the averaged network of a checkpoint with the method it belongs to.

    Raises:
        ModelError: the checkpoint is unusable.
    """
    checkpoint = load_checkpoint(checkpoint_file)
    config = settings_of(checkpoint, checkpoint_file)
    skeleton = skeleton_of(checkpoint, checkpoint_file)
    network = checkpoint.build_network().to(device)
    method = method_of(checkpoint.network)
    return Predictor(method, network, skeleton, config.preprocessing, search)
