"""Stacked hourglass network with multi-level attention (Azad et al. 2021, "P1")."""

import torch
from torch import Tensor, nn

from ivdtool.networks.blocks import Hourglass, Norm, Stem, projection, residuals

__all__ = ["MultiLevelAttention", "StackedHourglass"]


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
