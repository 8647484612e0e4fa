"""HCA-Net: hourglasses, each followed by multi-scale large-kernel attention (P2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivdtool.networks.blocks import STRIDE, Hourglass, Stem, projection, residuals

__all__ = ["HCANet", "LargeKernelAttention", "MultiScaleLargeKernelAttention"]


class Depthwise(nn.Conv2d):
    """One `kernel` x `kernel` filter per channel; (N, channels, H, W) -> the same.

    A dilated convolution is trained as plain ones over every `dilation`-th cell: in bfloat16 and
    with channels last, torch 2.13 (oneDNN 3.12) on CPUs gets the gradient of a dilated one's
    weights wrong, some of it not even finite.
    """

    def __init__(self, channels: int, kernel: int, dilation: int = 1) -> None:
        padding = dilation * (kernel - 1) // 2
        super().__init__(
            channels, channels, kernel, padding=padding, dilation=dilation, groups=channels
        )
        self.step = dilation

    def forward(self, x: Tensor) -> Tensor:
        if self.step == 1 or not self.training or x.is_cuda:
            plain: Tensor = self._conv_forward(x, self.weight, self.bias)
            return plain
        height, width = x.shape[2], x.shape[3]
        x = F.pad(x, [0, -width % self.step, 0, -height % self.step])
        phases = F.pixel_unshuffle(x, self.step)
        weight = self.weight.repeat_interleave(self.step * self.step, dim=0)
        phases = F.conv2d(phases, weight, padding=weight.shape[3] // 2, groups=len(weight))
        y = F.pixel_shuffle(phases, self.step)[:, :, :height, :width]
        bias = self.bias  # a local name, for TorchScript
        return y if bias is None else y + bias[:, None, None]


class MultiScaleLargeKernelAttention(nn.Module):
    """M-LKA: depth-wise convolution, then dilated ones at three scales, then 1x1 (P2, 2.1.1).

    Three dilated convolutions, kernels 3, 5, 7 with dilations 1, 2, 3, have fields of 3, 9 and 19
    cells. In the authors' code they follow one and the same local 5x5; in the paper F_S is a set of
    local convolutions, one per scale: (2 d - 1) x (2 d - 1) for dilation d, as in LKA.
    (N, channels, H, W) -> the same.

    Args:
        channels: C.
        local_per_scale: the paper's reading; otherwise the code's.
    """

    def __init__(self, channels: int, local_per_scale: bool = False) -> None:
        super().__init__()
        self.local = nn.Identity() if local_per_scale else Depthwise(channels, 5)
        self.scales = nn.ModuleList(
            nn.Sequential(
                Depthwise(channels, 2 * dilation - 1) if local_per_scale else nn.Identity(),
                Depthwise(channels, kernel, dilation),
            )
            for kernel, dilation in ((3, 1), (5, 2), (7, 3))
        )
        self.mix = nn.Conv2d(3 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        local = self.local(x)
        scales = [scale(local) for scale in self.scales]
        y: Tensor = x * self.mix(torch.cat(scales, dim=1))
        return y


class LargeKernelAttention(nn.Module):
    """LKA for a 21x21 kernel: 5x5, 7x7 dilated by 3, 1x1. (N, channels, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.local = Depthwise(channels, 5)
        self.wide = Depthwise(channels, 7, dilation=3)
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

    def __init__(self, channels: int, residual: bool, local_per_scale: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            nn.GELU(),
            MultiScaleLargeKernelAttention(channels, local_per_scale),
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
        local_per_scale: see `MultiScaleLargeKernelAttention`.
        merge: combine the heatmaps of all stacks by a 1x1 convolution (P2, 2.1; the authors' code
            takes those of the last stack). It starts as their mean.
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
        local_per_scale: bool = False,
        merge: bool = True,
        score_lka: bool = False,
        feedback: bool = False,
    ) -> None:
        super().__init__()
        self.stem = Stem(in_channels, channels)
        self.contexts = nn.ModuleList(
            nn.Sequential(
                Hourglass(channels, blocks),
                residuals(channels, blocks),
                AttentionBlock(channels, residual, local_per_scale),
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
        self.merge = _mean_of_stacks(stacks, n_labels) if merge and stacks > 1 else None
        self.stacks = stacks

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return heatmaps (N, n_labels, H / 4, W / 4); the last are the prediction.

        One tensor per stack, and one more where they are merged.
        """
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
        if self.merge is not None:
            heatmaps.append(self.merge(torch.cat(heatmaps, dim=1)))
        return heatmaps


def _mean_of_stacks(stacks: int, n_labels: int) -> nn.Conv2d:
    merge = nn.Conv2d(stacks * n_labels, n_labels, 1)
    with torch.no_grad():
        merge.weight.copy_(torch.eye(n_labels).repeat(1, stacks)[:, :, None, None] / stacks)
        merge.bias.zero_()  # type: ignore[union-attr]
    return merge
