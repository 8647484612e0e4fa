"""The two papers' networks: stacked hourglass with multi-level attention, and HCA-Net.

Both map an image (N, in_channels, H, W), H and W multiples of 64, to one heatmap per disc and
stack, (N, n_labels, H / 4, W / 4): the resolution at which the hourglasses predict. The papers'
code upsamples these maps bilinearly to the image size, which adds no information; here points are
drawn and read at sub-cell positions instead.

P1 is Azad et al. 2021 (MLMI, LNCS 12966), P2 is Bozorgpour et al. 2024 (HCA-Net).
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

__all__ = ["STRIDE", "HCANet", "StackedHourglass", "build_network"]

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


class MultiLevelAttention(nn.Module):
    """One attention channel from the representations of all stacks (P1, section 3.2).

    (N, stacks * channels, H, W) -> (N, 1, H, W) in (0, 1)
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (128, 16, 8):
            layers += [nn.Conv2d(in_channels, width, 1, bias=False), Norm(width), nn.ReLU(True)]
            in_channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(in_channels, 1, 1, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class StackedHourglass(nn.Module):
    """Stacked hourglass network with multi-level attention (P1, section 3.2, Fig. 2).

    Args:
        n_labels: output channels, one per disc.
        stacks: hourglasses in a row (the papers' N).
        blocks: bottlenecks per residual sequence.
        channels: width of the representation.
        in_channels: image channels.
        attention: re-calibrate the last representation by all stacks' representations.
    """

    def __init__(
        self,
        n_labels: int = 23,
        stacks: int = 2,
        blocks: int = 1,
        channels: int = 256,
        in_channels: int = 1,
        attention: bool = True,
    ) -> None:
        super().__init__()
        self.stem = Stem(in_channels, channels)
        self.hourglasses = nn.ModuleList(
            nn.Sequential(
                Hourglass(channels, blocks),
                residuals(channels, blocks),
                projection(channels, channels),
            )
            for _ in range(stacks)
        )
        self.scores = nn.ModuleList(nn.Conv2d(channels, n_labels, 1) for _ in range(stacks))
        self.merge_features = nn.ModuleList(
            nn.Conv2d(channels, channels, 1) for _ in range(stacks - 1)
        )
        self.merge_scores = nn.ModuleList(
            nn.Conv2d(n_labels, channels, 1) for _ in range(stacks - 1)
        )
        # the last entries have no next stack to feed; Identity keeps the loop scriptable
        self.merge_features.append(nn.Identity())
        self.merge_scores.append(nn.Identity())
        self.attention = MultiLevelAttention(stacks * channels) if attention else None
        self.stacks = stacks

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return `stacks` heatmaps (N, n_labels, H / 4, W / 4); the last is the prediction."""
        x = self.stem(image)
        heatmaps: list[Tensor] = []
        representations: list[Tensor] = []
        for index, (hourglass, score, merge_features, merge_scores) in enumerate(
            zip(self.hourglasses, self.scores, self.merge_features, self.merge_scores)  # noqa: B905
        ):
            y = hourglass(x)
            representations.append(y)
            if index + 1 < self.stacks:
                heatmap = score(y)
                x = x + merge_features(y) + merge_scores(heatmap)
            else:
                if self.attention is not None:
                    y = y * self.attention(torch.cat(representations, dim=1))
                heatmap = score(y)
            heatmaps.append(heatmap)
        return heatmaps


class MultiScaleLargeKernelAttention(nn.Module):
    """M-LKA: depth-wise convolution, then dilated ones at three scales, then 1x1 (P2, 2.1.1).

    The scales are those of the authors' code: kernels 3, 5, 7 with dilations 1, 2, 3 after one
    5x5, which gives fields of 3, 9 and 19 cells. (N, channels, H, W) -> the same.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

        def depthwise(kernel: int, dilation: int) -> nn.Conv2d:
            padding = dilation * (kernel - 1) // 2
            return nn.Conv2d(
                channels, channels, kernel, padding=padding, dilation=dilation, groups=channels
            )

        self.local = depthwise(5, 1)
        self.scale1 = depthwise(3, 1)
        self.scale2 = depthwise(5, 2)
        self.scale3 = depthwise(7, 3)
        self.mix = nn.Conv2d(3 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        local = self.local(x)
        scales = torch.cat([self.scale1(local), self.scale2(local), self.scale3(local)], dim=1)
        y: Tensor = x * self.mix(scales)
        return y


class LargeKernelAttention(nn.Module):
    """LKA for a 21x21 kernel: 5x5, 7x7 dilated by 3, 1x1. (N, channels, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.wide = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.mix(self.wide(self.local(x)))
        return y


class ScoreRefinement(nn.Module):
    """Large-kernel attention over the heatmaps with a shortcut; not in the paper's text."""

    def __init__(self, n_labels: int) -> None:
        super().__init__()
        self.attention = LargeKernelAttention(n_labels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.attention(x)
        return y


class AttentionBlock(nn.Module):
    """1x1, GELU, M-LKA, 1x1; optionally added to its input.

    Without `residual` (the authors' code) the product of attention and input can grow without
    bound from step to step; with it the block starts near the identity.
    """

    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.GELU(),
            MultiScaleLargeKernelAttention(channels),
            nn.Conv2d(channels, channels, 1),
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class HCANet(nn.Module):
    """HCA-Net: stacked hourglasses, each followed by M-LKA (P2, section 2.1).

    Args:
        n_labels: output channels, one per disc.
        stacks: hierarchical context attention blocks in a row.
        blocks: bottlenecks per residual sequence.
        channels: width of the representation.
        in_channels: image channels.
        residual: add each attention block's input to its output.
        score_lka: refine each stack's heatmaps by a large-kernel attention with a shortcut
            (in the authors' code, not in the paper).
        feedback: show each stack's heatmaps to the next one at image resolution, too, through
            one 7x7 convolution (P2, Fig. 1; the authors' code feeds dots sampled at random, this
            feeds the maps themselves and so is deterministic).
    """

    def __init__(
        self,
        n_labels: int = 23,
        stacks: int = 2,
        blocks: int = 1,
        channels: int = 128,
        in_channels: int = 1,
        residual: bool = True,
        score_lka: bool = False,
        feedback: bool = False,
    ) -> None:
        super().__init__()
        self.stem = Stem(in_channels, channels)
        self.contexts = nn.ModuleList(
            nn.Sequential(
                Hourglass(channels, blocks),
                residuals(channels, blocks),
                AttentionBlock(channels, residual),
                projection(channels, channels),
            )
            for _ in range(stacks)
        )
        self.scores = nn.ModuleList(nn.Conv2d(channels, n_labels, 1) for _ in range(stacks))
        self.refine = nn.ModuleList(
            ScoreRefinement(n_labels) if score_lka else nn.Identity() for _ in range(stacks)
        )
        self.merge_features = nn.ModuleList(
            nn.Conv2d(channels, channels, 1) for _ in range(stacks - 1)
        )
        self.merge_scores = nn.ModuleList(
            nn.Conv2d(n_labels, channels, 1) for _ in range(stacks - 1)
        )
        self.merge_features.append(nn.Identity())
        self.merge_scores.append(nn.Identity())
        self.feedback = (
            nn.Conv2d(n_labels, channels, 7, stride=STRIDE, padding=3) if feedback else None
        )
        self.enlarge = nn.Upsample(scale_factor=float(STRIDE), mode="bilinear")
        self.stacks = stacks

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return `stacks` heatmaps (N, n_labels, H / 4, W / 4); the last is the prediction."""
        x = self.stem(image)
        heatmaps: list[Tensor] = []
        for index, (context, score, refine, merge_features, merge_scores) in enumerate(
            zip(self.contexts, self.scores, self.refine, self.merge_features, self.merge_scores)  # noqa: B905
        ):
            y = context(x)
            heatmap = refine(score(y))
            heatmaps.append(heatmap)
            if index + 1 < self.stacks:
                x = x + merge_features(y) + merge_scores(heatmap)
                if self.feedback is not None:
                    x = x + self.feedback(self.enlarge(heatmap))
        return heatmaps


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
