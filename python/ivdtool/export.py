"""From checkpoint to model file: TorchScript with all that inference needs inside."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ivdtool.files import atomic_write
from ivdtool.inference import INFO_FILE
from ivdtool.metadata import ModelInfo

__all__ = ["export_model"]


class _LastHeatmaps(nn.Module):
    """The prediction alone: the last stack's heatmaps, (N, V, H / stride, W / stride)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        heatmaps: list[Tensor] = self.network(image)
        return heatmaps[-1]


def export_model(network: nn.Module, info: ModelInfo, path: Path) -> None:
    """Write a self-contained model file.

    The network is scripted in eval mode and frozen: constants are folded, so that the file runs
    without this package's source.

    Raises:
        UsageError: `path` cannot be written.
    """
    module = _LastHeatmaps(network).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        script = torch.jit.freeze(torch.jit.script(module))
        with atomic_write(path) as temporary:
            torch.jit.save(script, str(temporary), _extra_files={INFO_FILE: info.to_json()})
