"""Template matching, level by level along the spine (in the spirit of Ullmann et al. 2014).

Paper 1's ref. 18 straightens the spine, starts at C2/C3 and goes from disc to disc, each time to
where a template correlates best near the distance that adults have on average. What is done here
differs in three points: the image is not straightened; every disc of the spine is tried as the
start, as an image may show any part of it; templates are the mean of the training images, one per
disc and contrast.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ivdtool.candidates import CandidateConfig, find_candidates
from ivdtool.config import to_dict
from ivdtool.heatmaps import Heatmaps, cells_to_pixels
from ivdtool.methods.method import Discs
from ivdtool.methods.pose import as_discs, run_network, searched
from ivdtool.networks.template import TEMPLATE_STRIDE, TemplateNetwork
from ivdtool.skeleton import Skeleton
from ivdtool.training.checkpoint import Checkpoint, save_checkpoint
from ivdtool.training.dataset import Case
from ivdtool.training.loop import TrainingConfig

__all__ = ["TemplateMatching", "follow_spine", "mean_templates"]

Array = npt.NDArray[np.float32]

LEAST_CORRELATION = 0.6  # where it is lower, the disc is not seen
LATITUDE = 2.0  # the steps of one spine deviate together, so places by more than a step's spread


class TemplateMatching:
    """Mean templates; correlation times distance prior from disc to disc, or the search."""

    def fit(
        self,
        cases: Sequence[Case],
        config: TrainingConfig,
        run: Path,
        *,
        checks: Sequence[Case],  # noqa: ARG002 - there is nothing to choose
        skeleton: Skeleton,
        data: Mapping[str, Any],
        **engine: Any,
    ) -> Path:
        """Average the templates; see `Method.fit`. There are no steps, so it is done at once."""
        contrasts = sorted({case.source.suffix for case in cases})
        arguments = {
            "n_labels": len(skeleton.labels),
            **config.arguments,
            "contrasts": len(contrasts),
        }
        network = TemplateNetwork(**arguments)
        size = network.templates.shape[-1]
        templates = mean_templates(cases, skeleton.labels, contrasts, size)
        network.templates.copy_(torch.from_numpy(templates))
        weights = network.state_dict()
        checkpoint = Checkpoint(
            network="template",
            arguments=arguments,
            config=to_dict(config),
            step=0,
            average=weights,
            weights=weights,
            optimizer={},
            skeleton=skeleton.to_dict(),
            data=dict(data),
        )
        if engine["fabric"].is_global_zero:
            for name in ("best.pt", "last.pt"):
                save_checkpoint(checkpoint, run / name)
        return run / "last.pt"

    def predict(
        self,
        network: nn.Module,
        pixels: Array,
        skeleton: Skeleton,
        search: bool | None = None,
    ) -> Discs:
        """See `Method.predict`; published without the search."""
        correlations = run_network(network, pixels)[-1]
        if not search:
            return follow_spine(correlations, skeleton)
        spacing_mm = (float(TEMPLATE_STRIDE), float(TEMPLATE_STRIDE))
        heatmaps = Heatmaps(correlations, skeleton.labels, TEMPLATE_STRIDE, spacing_mm)
        settings = CandidateConfig(threshold=LEAST_CORRELATION)
        return searched(find_candidates(heatmaps, settings), skeleton)


def mean_templates(
    cases: Sequence[Case], labels: Sequence[int], contrasts: Sequence[str], size: int
) -> Array:
    """Return (contrasts, V, size, size) mean templates of zero mean and unit norm.

    A patch around every certain disc of a case's middle plane, normalised likewise, counts once. A
    disc that a contrast does not show has the mean over all contrasts.
    """
    side = size * TEMPLATE_STRIDE
    patches: dict[tuple[str, int], list[Array]] = defaultdict(list)
    for case in cases:
        plane = np.pad(case.planes[len(case.planes) // 2].astype(np.float32), side)
        # the middle of a template's middle pixel, the disc, lies (side - 1) / 2 from its corner
        corners = np.rint(case.points + side - (side - 1) / 2).astype(int)
        for label, (row, col), certain in zip(case.labels, corners, case.certain, strict=True):
            patch = plane[max(row, 0) :, max(col, 0) :][:side, :side]
            if certain and patch.shape == (side, side) and patch.std() > 0:
                fine = patch.reshape(size, TEMPLATE_STRIDE, size, TEMPLATE_STRIDE)
                patches[case.source.suffix, label].append(_normalised(fine.mean(axis=(1, 3))))
    templates = np.zeros((len(contrasts), len(labels), size, size), dtype=np.float32)
    for c, contrast in enumerate(contrasts):
        for v, label in enumerate(labels):
            shown = patches[contrast, label] or [
                patch for other in contrasts for patch in patches[other, label]
            ]
            if shown:
                templates[c, v] = _normalised(np.mean(shown, axis=0))
    return templates


def _normalised(patch: Array) -> Array:
    centred = patch - patch.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6), dtype=np.float32)


def follow_spine(correlations: Array, skeleton: Skeleton) -> Discs:
    """Go from disc to disc, from each disc's best place in turn; return the best such walk.

    The next disc is where its correlation (V, H, W) times a Gaussian around the expected place is
    largest: the mean step, scaled as the steps before, with its spread. A walk is worth the sum
    of these products.
    """
    best: tuple[float, Discs] = (0.0, {})
    skeleton_cells = skeleton.mean_mm / TEMPLATE_STRIDE, skeleton.step_sd_mm / TEMPLATE_STRIDE
    for start in range(len(skeleton.labels)):
        place = np.unravel_index(correlations[start].argmax(), correlations.shape[1:])
        value = float(correlations[(start, *place)])
        if value < LEAST_CORRELATION:
            continue
        walk = {start: (float(place[0]), float(place[1]))}
        for direction in (-1, 1):
            value += _walk(correlations, *skeleton_cells, start, direction, walk)
        if value > best[0]:
            channels = sorted(walk)
            cells = np.array([walk[channel] for channel in channels])
            points = cells_to_pixels(cells, TEMPLATE_STRIDE)
            best = value, as_discs([skeleton.labels[channel] for channel in channels], points)
    return best[1]


def _walk(
    correlations: Array,
    mean: npt.NDArray[np.float64],
    spreads: npt.NDArray[np.float64],
    start: int,
    direction: int,
    walk: dict[int, tuple[float, float]],
) -> float:
    """Add the discs above (-1) or below (1) the start to `walk`; return what they are worth.

    `mean` and `spreads`, those of the skeleton's discs and steps, are in cells, as the walk is.
    """
    channels, height, width = correlations.shape
    place, worth = np.array(walk[start]), 0.0
    lengths = np.ones(2)  # of the steps so far, and of those expected
    channel = start + direction
    while 0 <= channel < channels:
        step = mean[channel] - mean[channel - direction]
        expected = place + step * lengths[0] / lengths[1]
        if not (0 <= expected[0] < height and 0 <= expected[1] < width):
            break
        spread = LATITUDE * spreads[min(channel, channel - direction)]
        low = np.maximum(np.floor(expected - 3 * spread), 0).astype(int)
        near = correlations[channel, low[0] :, low[1] :][
            : int(6 * spread) + 2, : int(6 * spread) + 2
        ]
        rows, cols = np.ogrid[: near.shape[0], : near.shape[1]]
        squared = (rows + low[0] - expected[0]) ** 2 + (cols + low[1] - expected[1]) ** 2
        product = near * np.exp(-squared / (2 * spread**2))
        found = np.unravel_index(product.argmax(), near.shape)
        if near[found] >= LEAST_CORRELATION:
            after = low + found
            walk[channel] = (float(after[0]), float(after[1]))
            worth += float(product[found])
            lengths += np.linalg.norm(after - place), np.linalg.norm(step)
            place = after
        else:
            place = expected
        channel += direction
    return worth
