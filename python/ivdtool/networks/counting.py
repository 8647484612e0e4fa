"""Redundant counting: how many discs, of whatever level, lie in the window around each cell.

After Count-ception (Cohen et al. 2017, arXiv 1703.08710), which Rouhier et al. 2020 (arXiv
2003.04387, paper 1's "counting model") trained to find discs. As there, an output sees nothing but
the 32 x 32 pixels that it counts in, so every disc is counted by all windows that contain it. The
windows stand at every fourth pixel, not at every one: 64 counts per disc instead of 1024.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivdtool.networks.blocks import Norm

__all__ = ["REACH", "CountingNetwork", "count_in_windows"]

REACH = 4  # cells from a window's middle to its edge: 16 pixels


def count_in_windows(density: Tensor) -> Tensor:
    """Sum a density of discs (N, 1, h, w) over the window around every cell, same shape.

    Cells on the edge of a window count half, on its corner a quarter.
    """
    side = torch.ones(2 * REACH + 1, device=density.device, dtype=density.dtype)
    side[0] = side[-1] = 0.5
    rows = F.conv2d(density, side[None, None, :, None], padding=(REACH, 0))
    return F.conv2d(rows, side[None, None, None, :], padding=(0, REACH))


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, BN, leaky ReLU; an output cell lies in the middle of what it sees."""
    padding = (kernel - stride) // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding),
        Norm(out_channels),
        nn.LeakyReLU(0.01, inplace=True),
    )


class Inception(nn.Module):
    """1x1 and 3x3 convolutions side by side. (N, channels, h, w) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = convolution(channels, channels // 2, 1)
        self.wide = convolution(channels, channels // 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.narrow(x), self.wide(x)], dim=1)


class CountingNetwork(nn.Module):
    """Fully convolutional counting: image (N, in_channels, H, W) to counts (N, 1, H / 4, W / 4).

    Args:
        n_labels: not used, as discs of all levels are counted alike.
        channels: width behind the first convolution; twice and four times that further down.
        in_channels: image channels.
    """

    def __init__(self, n_labels: int = 23, channels: int = 32, in_channels: int = 1) -> None:
        super().__init__()
        del n_labels
        # what an output sees grows as 5, 7, 10, 14, 18, 24, 32 pixels
        self.layers = nn.Sequential(
            convolution(in_channels, channels, 5),
            Inception(channels),
            convolution(channels, 2 * channels, 4, stride=2),
            Inception(2 * channels),
            Inception(2 * channels),
            convolution(2 * channels, 4 * channels, 4, stride=2),
            Inception(4 * channels),
            convolution(4 * channels, 2 * channels, 1),
            nn.Conv2d(2 * channels, 1, 1),
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the counts, as the one entry of a list."""
        return [self.layers(image)]
