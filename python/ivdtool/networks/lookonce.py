"""Look once: heatmaps from image and gradient, and one look at all candidates together.

After Azad et al. 2022 (arXiv 2204.02943): a U-shaped network that is shown the image's gradient as
well proposes candidates; a permutation-invariant classifier then tells true ones from false ones in
one pass over their coordinates, where paper 1 searches a tree of combinations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivdtool.networks.blocks import Hourglass, Stem, projection, residuals

__all__ = ["CandidateClassifier", "LookOnceNetwork", "find_peaks"]


def find_peaks(heatmaps: Tensor, count: int, radius: int) -> Tensor:
    """Return the highest peaks of each heatmap, (N, V, count, 3): row, col in cells, and heat.

    Peaks are largest within `radius` cells. Log-parabolas through their neighbours place them
    between cells (exact for a Gaussian). Where there are fewer, the rest have heat 0 or less.
    """
    w = heatmaps.shape[3]
    largest = F.max_pool2d(heatmaps, 2 * radius + 1, stride=1, padding=radius)
    peaks = torch.where(heatmaps == largest, heatmaps, torch.zeros_like(heatmaps))
    heat, index = peaks.flatten(2).topk(count, dim=2)
    logs = F.pad(heatmaps.clamp(min=1e-3).log(), [1, 1, 1, 1], mode="replicate").flatten(2)
    row, col = index // w, index % w
    centre = (row + 1) * (w + 2) + col + 1
    row_offset, col_offset = _offset(logs, centre, w + 2), _offset(logs, centre, 1)
    return torch.stack([row + row_offset, col + col_offset, heat], dim=3)


def _offset(logs: Tensor, centre: Tensor, step: int) -> Tensor:
    before, after = logs.gather(2, centre - step), logs.gather(2, centre + step)
    curvature = (2 * logs.gather(2, centre) - before - after).clamp(min=1e-6)
    return (0.5 * (after - before) / curvature).clamp(-0.5, 0.5)


class CandidateClassifier(nn.Module):
    """Is each candidate the disc that its heatmap says? Whatever their order.

    Candidates (N, V, K, 3), row, col in cells and heat, to logits (N, V, K). Every candidate is
    embedded alone, from its place relative to the mean of all, its heat and its disc; what all
    embeddings have in common (largest and mean) is shown to each of them again.

    Args:
        n_labels: V.
        width: of the embeddings.
    """

    def __init__(self, n_labels: int, width: int = 64) -> None:
        super().__init__()
        self.disc = nn.Parameter(torch.randn(n_labels, width) / width**0.5)
        self.place = nn.Linear(3, width)
        self.alone = nn.Sequential(
            nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.together = nn.Sequential(
            nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.logit = nn.Linear(width, 1)

    def forward(self, candidates: Tensor) -> Tensor:
        heat = candidates[..., 2:].clamp(min=0)  # (N, V, K, 1)
        total = heat.sum(dim=[1, 2], keepdim=True).clamp(min=1e-3)
        middle = (candidates[..., :2] * heat).sum(dim=[1, 2], keepdim=True) / total
        places = (candidates[..., :2] - middle) / 16  # some 60 mm
        embedded = self.place(torch.cat([places, heat], dim=3)) + self.disc[None, :, None]
        embedded = self.alone(embedded)
        shown = heat * embedded  # without heat there is no candidate
        largest = shown.amax(dim=[1, 2], keepdim=True).expand_as(embedded)
        mean = (shown.sum(dim=[1, 2], keepdim=True) / total).expand_as(embedded)
        logits: Tensor = self.logit(self.together(torch.cat([embedded, largest, mean], dim=3)))
        return logits[..., 0]


class LookOnceNetwork(nn.Module):
    """Image (N, 1, H, W) to heatmaps and judged candidates; H, W multiples of 64.

    Args:
        n_labels: heatmaps V, one per disc.
        blocks: bottlenecks per residual sequence.
        channels: width of the representation.
        candidates: K, peaks per heatmap that are judged.
    """

    sobel: Tensor

    def __init__(
        self, n_labels: int = 23, blocks: int = 1, channels: int = 256, candidates: int = 5
    ) -> None:
        super().__init__()
        sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
        self.register_buffer("sobel", torch.stack([sobel, sobel.T])[:, None], persistent=False)
        self.stem = Stem(2, channels)
        self.hourglass = nn.Sequential(
            Hourglass(channels, blocks), residuals(channels, blocks), projection(channels, channels)
        )
        self.score = nn.Conv2d(channels, n_labels, 1)
        self.classifier = CandidateClassifier(n_labels)
        self.candidates = candidates
        self.radius = 2

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return heatmaps (N, V, H / 4, W / 4) and candidates (N, V, K, 4).

        A candidate is row, col in cells, heat, and the logit of being its heatmap's disc. No
        gradient flows from the logits to the heatmaps.
        """
        edges = F.conv2d(F.pad(image, [1, 1, 1, 1], mode="replicate"), self.sobel)
        gradient = torch.hypot(edges[:, :1], edges[:, 1:])
        heatmaps = self.score(self.hourglass(self.stem(torch.cat([image, gradient], dim=1))))
        peaks = find_peaks(heatmaps.detach().float(), self.candidates, self.radius)
        logits = self.classifier(peaks)
        return [heatmaps, torch.cat([peaks, logits.float()[..., None]], dim=3)]
