"""What a training run leaves: everything that rebuilds the network, goes on, or exports it."""

import io
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ivdtool.errors import ModelError
from ivdtool.files import atomic_write, check_archive
from ivdtool.model import build_network

__all__ = ["Checkpoint", "load_checkpoint", "mean_checkpoint", "save_checkpoint"]

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """State of a run after `step` steps.

    Attributes:
        network: name of the network, see `ivdtool.model.build_network`.
        arguments: of its constructor.
        config: resolved training settings as nested tables.
        step: optimiser steps done, skipped ones included.
        average: exponential moving average of the weights: the network to use.
        weights: the weights being trained.
        optimizer: state of the optimiser.
        skeleton: mean skeleton of the training labels, as a dict.
        data: what it was trained on: subjects and hashes.
        history: what the epochs measured, see `ivdtool.training.history`.
    """

    network: str
    arguments: Mapping[str, Any]
    config: Mapping[str, Any]
    step: int
    average: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    skeleton: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()

    def build_network(self) -> nn.Module:
        """Return the averaged network in eval mode.

        Raises:
            ModelError: the weights are not those of the network.
        """
        try:
            network = build_network(self.network, self.arguments)
            network.load_state_dict(self.average)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"checkpoint: {str(error).splitlines()[0]}") from error
        return network.eval()


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; the old file of that name stays until the new one is complete."""
    content = {"format": FORMAT, **vars(checkpoint)}
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ModelError: the file is missing, damaged or of another kind.
    """
    try:
        archive = Path(path).read_bytes()
        if "constants.pkl" in check_archive(archive):
            raise ModelError(
                f"{path}: an exported model (TorchScript); give a checkpoint, a run's best.pt"
            )
        with warnings.catch_warnings(action="ignore"):  # about files of another kind
            # weights_only: a checkpoint from elsewhere must not run code
            content = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
        if content.pop("format", None) != FORMAT:
            raise ModelError(f"{path}: not a checkpoint of this version; train or export again")
        return Checkpoint(**content)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except (RuntimeError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"{path}: damaged or not a checkpoint ({reason})") from error


def mean_checkpoint(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """Return the first checkpoint with the mean of all averaged weights, of one network.

    Where runs start from one another their weights lie in one valley, and the mean is often
    better than either (Wortsman et al. 2022, model soups). Counters keep the first one's values.
    """
    first = checkpoints[0]
    average = {
        name: torch.stack([each.average[name] for each in checkpoints]).mean(dim=0)
        if value.is_floating_point()
        else value
        for name, value in first.average.items()
    }
    return replace(first, average=average)
