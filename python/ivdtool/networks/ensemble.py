"""Several networks as one: the mean of what they draw.

Networks that were trained from different beginnings err in different places. Where they agree the
mean is as high as each of them; where they do not, it is lower, and so are confidence and verdict.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["Ensemble"]


class Ensemble(nn.Module):
    """The mean of the last heatmaps of networks with the same labels.

    Args:
        members: image (N, 1, H, W) to heatmaps per stack, (N, V, H / stride, W / stride) each.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return one set of heatmaps, (N, V, H / stride, W / stride), as a list."""
        return [torch.stack([member(image)[-1] for member in self.members]).mean(dim=0)]
