"""From checkpoint to model file: TorchScript with all that inference needs inside."""

import copy
import io
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ivdtool.files import atomic_write
from ivdtool.inference import INFO_FILE
from ivdtool.metadata import ModelInfo
from ivdtool.networks.blocks import Norm

__all__ = ["export_model"]


class _LastHeatmaps(nn.Module):
    """The prediction alone: the last stack's heatmaps, (N, V, H / stride, W / stride)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        heatmaps: list[Tensor] = self.network(image)
        return heatmaps[-1]


class _FixedNorm(nn.Module):
    """Batch normalisation by known statistics, without the checks that take TorchScript longer."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
        )


def export_model(network: nn.Module, info: ModelInfo, path: Path) -> None:
    """Write a self-contained model file.

    Weights are rounded to 16 bits, which changes heatmaps by some 0.001 and packs (in wheels) to
    60 % of the size. The network is scripted in eval mode and frozen: constants are folded,
    normalisation into the convolution before it, so that the file runs without this package's
    source and loads and runs faster. `network` itself is left in eval mode.

    Args:
        network: image (N, 1, H, W) to heatmaps per stack.
        info: goes into the file.
        path: the model file.

    Raises:
        UsageError: `path` cannot be written.
    """
    module = copy.deepcopy(_LastHeatmaps(network).eval())
    _fold_norms(module)
    _round_weights(module)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        script = torch.jit.freeze(torch.jit.script(module))
        archive = io.BytesIO()
        torch.jit.save(script, archive, _extra_files={INFO_FILE: info.to_json()})
    content = _without_debug_files(archive)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _fold_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, Norm):
            setattr(module, name, _FixedNorm(child.norm))
        else:
            _fold_norms(child)
    if isinstance(module, nn.Sequential):
        for index in range(1, len(module)):
            before, norm = module[index - 1], module[index]
            if isinstance(before, nn.Conv2d) and isinstance(norm, _FixedNorm):
                module[index - 1] = fuse_conv_bn_eval(before, norm.norm)
                module[index] = nn.Identity()


@torch.no_grad()
def _round_weights(module: nn.Module) -> None:
    """To half precision, but kept as float32: processors compute with these."""
    for weight in module.parameters():
        weight.copy_(weight.half())


def _without_debug_files(archive: io.BytesIO) -> bytes:
    """The archive less what names the source files, and so the folders, of this machine."""
    kept = io.BytesIO()
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(kept, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(entry, source.read(entry))
    return kept.getvalue()
