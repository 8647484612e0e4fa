"""What the networks are built of: residual blocks, the hourglass, the stem.

Sizes and shapes are those of both papers' code. P1 is Azad et al. 2021 (MLMI, LNCS 12966), P2 is
Bozorgpour et al. 2024 (HCA-Net).
"""

from typing import Final

from torch import Tensor, nn

__all__ = ["STRIDE", "Hourglass", "Norm", "Stem", "projection", "residuals"]

STRIDE = 4  # image pixels per heatmap cell
SIZE_MULTIPLE = 64  # the stem halves twice, the hourglass four times


class Norm(nn.Module):
    """Batch normalisation that computes in float32 whatever it is fed.

    Under bfloat16 autocast the variance of a large, nearly constant channel cancels to zero or
    below; training then ends in NaN after some thousand steps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.float()).to(x.dtype)
        return y


class Bottleneck(nn.Module):
    """Pre-activation residual: BN-ReLU-1x1, BN-ReLU-3x3, BN-ReLU-1x1 (x2).

    (N, in_channels, H, W) -> (N, 2 * width, H, W)
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        out_channels = 2 * width
        self.body = nn.Sequential(
            Norm(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, width, 1),
            Norm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            Norm(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, out_channels, 1),
        )
        self.skip = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x) + self.skip(x)
        return y


def residuals(channels: int, blocks: int) -> nn.Sequential:
    """`blocks` bottlenecks that keep the shape (N, channels, H, W)."""
    return nn.Sequential(*(Bottleneck(channels, channels // 2) for _ in range(blocks)))


class Hourglass(nn.Module):
    """One level of an hourglass: full resolution beside half resolution, added.

    Levels are nested, not recursed into, so that TorchScript can compile them.
    (N, channels, H, W) -> the same; H and W multiples of 2 ** depth.
    """

    def __init__(self, channels: int, blocks: int, depth: int = 4) -> None:
        super().__init__()
        self.up = residuals(channels, blocks)
        self.down = nn.MaxPool2d(2)
        self.low1 = residuals(channels, blocks)
        self.low2 = (
            Hourglass(channels, blocks, depth - 1) if depth > 1 else residuals(channels, blocks)
        )
        self.low3 = residuals(channels, blocks)
        self.upsample = nn.Upsample(scale_factor=2.0, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        low = self.low3(self.low2(self.low1(self.down(x))))
        y: Tensor = self.up(x) + self.upsample(low)
        return y


class Stem(nn.Module):
    """(N, in_channels, H, W) -> (N, channels, H / 4, W / 4)

    Raises:
        ValueError: H or W is no multiple of 64.
    """

    size_multiple: Final[int] = SIZE_MULTIPLE  # TorchScript sees no globals

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels // 4, 7, stride=2, padding=3),
            Norm(channels // 4),
            nn.ReLU(inplace=True),
            Bottleneck(channels // 4, channels // 4),
            nn.MaxPool2d(2),
            Bottleneck(channels // 2, channels // 2),
            Bottleneck(channels, channels // 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % self.size_multiple != 0 or x.shape[3] % self.size_multiple != 0:
            raise ValueError(f"image height and width must be multiples of {self.size_multiple}")
        y: Tensor = self.layers(x)
        return y


def projection(in_channels: int, out_channels: int) -> nn.Sequential:
    """1x1 convolution, BN, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1), Norm(out_channels), nn.ReLU(inplace=True)
    )
