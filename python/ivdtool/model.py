"""Networks by name.

Each maps an image (N, in_channels, H, W), H and W multiples of 64, to one heatmap per disc and
stack, (N, n_labels, H / 4, W / 4): the resolution at which the hourglasses predict. The papers'
code upsamples these maps bilinearly to the image size, which adds no information; here points are
drawn and read at sub-cell positions instead.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ivdtool.networks.blocks import STRIDE
from ivdtool.networks.hca import HCANet
from ivdtool.networks.hourglass import StackedHourglass

__all__ = ["STRIDE", "build_network"]

_NETWORKS: dict[str, type[nn.Module]] = {"hourglass": StackedHourglass, "hca": HCANet}


def build_network(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network by name (``hourglass`` or ``hca``) from its constructor's arguments.

    Raises:
        ValueError: no network has that name, or it does not take one of the arguments.
    """
    if name not in _NETWORKS:
        raise ValueError(f"no network is called {name!r}; choose from {', '.join(_NETWORKS)}")
    try:
        return _NETWORKS[name](**arguments)
    except TypeError as error:
        raise ValueError(f"network {name}: {error}") from error
