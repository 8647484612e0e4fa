"""Template matching: normalised cross-correlation with one mean template per disc and contrast."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TEMPLATE_STRIDE", "TemplateNetwork"]

TEMPLATE_STRIDE = 2  # image pixels per pixel of templates and correlations
LEAST_SD = 0.02  # of the image under a template: below it there is nothing but noise


class TemplateNetwork(nn.Module):
    """Image (N, 1, H, W) to correlations (N, n_labels, H / 2, W / 2) in -1..1.

    They are large where a template's middle, the disc, lies. Nothing is trained: `templates` are
    set once, to zero mean and unit norm. Where several contrasts have templates, each image takes
    those it agrees best with: on average over discs, each at its best place.

    Args:
        n_labels: V, discs.
        contrasts: sets of templates.
        size: rows and columns of a template, in pixels of two image pixels; odd.
    """

    templates: Tensor

    def __init__(self, n_labels: int = 23, contrasts: int = 1, size: int = 31) -> None:
        super().__init__()
        self.register_buffer("templates", torch.zeros(contrasts, n_labels, size, size))
        self.stride = TEMPLATE_STRIDE
        self.least_sd = LEAST_SD

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the correlations, as the one entry of a list."""
        contrasts, labels, size, _ = self.templates.shape
        reach = size // 2
        image = F.avg_pool2d(image.float(), self.stride)
        mean = F.avg_pool2d(image, size, stride=1, padding=reach)
        square = F.avg_pool2d(image**2, size, stride=1, padding=reach)
        norm = (square - mean**2).clamp(min=self.least_sd**2).sqrt() * size
        products = F.conv2d(image, self.templates.flatten(0, 1)[:, None], padding=reach)
        correlations = (products / norm).unflatten(1, [contrasts, labels])
        agreement = correlations.flatten(3).amax(dim=3).mean(dim=2)  # (N, contrasts)
        best = agreement.argmax(dim=1)
        return [correlations[torch.arange(len(best), device=best.device), best]]
