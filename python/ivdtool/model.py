"""Networks by name.

``hourglass`` and ``hca`` map an image (N, in_channels, H, W), H and W multiples of 64, to one
heatmap per disc and stack, (N, n_labels, H / 4, W / 4): the resolution at which the hourglasses
predict. The papers' code upsamples these maps bilinearly to the image size, which adds no
information; here points are drawn and read at sub-cell positions instead. The networks of the
methods that they are compared with (``counting``, ``lookonce``, ``template``) have other outputs,
which `ivdtool.methods` reads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ivdtool.networks.blocks import STRIDE
from ivdtool.networks.counting import CountingNetwork
from ivdtool.networks.hca import HCANet, LargeKernelAttention, MultiScaleLargeKernelAttention
from ivdtool.networks.hourglass import MultiLevelAttention, StackedHourglass
from ivdtool.networks.lookonce import LookOnceNetwork
from ivdtool.networks.template import TemplateNetwork

__all__ = ["STRIDE", "TARGETS", "attention_maps", "build_network"]

_NETWORKS: dict[str, type[nn.Module]] = {
    "hourglass": StackedHourglass,
    "hca": HCANet,
    "counting": CountingNetwork,
    "lookonce": LookOnceNetwork,
    "template": TemplateNetwork,
}

TARGETS = {
    "hourglass": "heatmaps",
    "hca": "heatmaps",
    "counting": "counts",
    "lookonce": "candidates",
    "template": "heatmaps",  # it learns nothing
}
"""What each network learns."""


def build_network(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network by name from its constructor's arguments.

    Raises:
        ValueError: no network has that name, or it does not take one of the arguments.
    """
    if name not in _NETWORKS:
        raise ValueError(f"no network is called {name!r}; choose from {', '.join(_NETWORKS)}")
    try:
        return _NETWORKS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"network {name}: {error}") from error


@torch.inference_mode()
def attention_maps(network: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return where a network looks: its attention maps for an image, for inspection.

    They are read off by hooks, so the exported network knows nothing of them. Of multi-level
    attention (P1, Fig. 4) it is the one channel in (0, 1) that all representations are multiplied
    with; of large-kernel attention, whose factors have both signs, the root mean square over
    channels.

    Args:
        network: from `build_network`, not scripted; in eval mode, lest its statistics move.
        image: (N, in_channels, H, W).

    Returns:
        (N, H / 4, W / 4) by the module's name; empty for a network without attention.
    """
    found: dict[str, Tensor] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, MultiLevelAttention):
            part: nn.Module = module
        elif isinstance(module, LargeKernelAttention | MultiScaleLargeKernelAttention):
            part = module.mix
        else:
            continue

        def keep(_: nn.Module, __: Any, output: Tensor, name: str = name) -> None:
            found[name] = output[:, 0] if output.shape[1] == 1 else output.square().mean(1).sqrt()

        hooks.append(part.register_forward_hook(keep))
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found
