"""Batches of augmented windows with their targets: a function of seed and step."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ivdtool.heatmaps import draw_heatmaps, pixels_to_cells
from ivdtool.training.augmentation import AugmentationConfig, Crop, augment
from ivdtool.training.composition import compose_spine, is_lower, is_upper
from ivdtool.training.dataset import UNSURE_MM, Case

__all__ = ["Batch", "BatchConfig", "BatchMaker"]


@dataclass(frozen=True)
class BatchConfig:
    """What a batch of training windows looks like.

    Attributes:
        size: windows per batch.
        rows: height of a window, pixels; a multiple of 64.
        cols: width of a window, pixels; a multiple of 64.
        tall: share of the steps whose windows are of `tall_rows` x `tall_cols` pixels, cut from
            cases with more spine than fits into an ordinary window: what is right of a part of the
            spine is not yet right of the whole of it, where levels can be counted from one end.
        composed: share of the tall windows that are cut from a spine composed of a neck and a
            lumbar spine of one suffix, see `compose_spine`.
        tall_rows: see `tall`; a multiple of 64.
        tall_cols: likewise.
        sigma_mm: standard deviation of the target Gaussians.
        truncate: target values below this are 0 (the papers' code: 0.1).
        stride: image pixels per heatmap cell.
        group_power: a group of n images is drawn from with a weight of n ** group_power.
        group_weights: factors on that, by the group's source (the part before the colon).

    Raises:
        ValueError: a value out of range.
    """

    size: int = 8
    rows: int = 320
    cols: int = 256
    tall: float = 0.0
    composed: float = 0.0
    tall_rows: int = 640
    tall_cols: int = 192
    sigma_mm: float = 5.0
    truncate: float = 0.0
    stride: int = 4
    group_power: float = 0.5
    group_weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        for sides in ((self.rows, self.cols), (self.tall_rows, self.tall_cols)):
            if any(n % 64 or n < 64 for n in sides):
                raise ValueError(f"rows and cols must be multiples of 64: {sides[0]}, {sides[1]}")
        for name in ("tall", "composed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, 0..1, not {getattr(self, name)}")
        if self.size < 1:
            raise ValueError(f"size must be at least 1, not {self.size}")
        if self.sigma_mm <= 0:
            raise ValueError(f"sigma_mm must be positive, not {self.sigma_mm}")
        if not 0 <= self.truncate < 1:
            raise ValueError(f"truncate must lie in 0..1, not {self.truncate}")


@dataclass(frozen=True, eq=False)
class Batch:
    """Augmented windows and what is known of their discs.

    Attributes:
        images: (N, 1, H, W) float32 in [0, 1].
        targets: (N, V, H / stride, W / stride) float32 heatmaps.
        weights: as `targets`, 0 where the truth is unknown.
        points: (N, V, 2) float32 (row, col) of the visible discs in heatmap cells, 0 elsewhere.
        visible: (N, V) bool, the discs that are certainly in view.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor
    points: Tensor
    visible: Tensor


class Targets(NamedTuple):
    """What is known of the discs of one window; see `Batch`."""

    heatmaps: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    points: npt.NDArray[np.float32]
    visible: npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class BatchMaker:
    """Makes the batch of any step, or one process's part of it: a function of seed and step.

    Attributes:
        cases: to draw from.
        channels: disc labels by channel.
        batch: see `BatchConfig`.
        augmentation: see `AugmentationConfig`.
        seed: of everything drawn.
        part: which of how many equal parts of a batch this process makes.

    Raises:
        ValueError: a batch does not divide into so many parts.
    """

    cases: Sequence[Case]
    channels: Sequence[int]
    batch: BatchConfig
    augmentation: AugmentationConfig
    seed: int
    part: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if self.batch.size % self.part[1]:
            raise ValueError(f"batch size {self.batch.size} in {self.part[1]} equal parts")

    def __call__(self, step: int) -> Batch:
        """Return this part of the batch of a step."""
        part, parts = self.part
        share = self.batch.size // parts
        tall = self._is_tall(step)
        samples = [
            self._sample(np.random.default_rng([self.seed, step, index]), tall)
            for index in range(part * share, (part + 1) * share)
        ]
        images, targets = zip(*samples, strict=True)
        return Batch(
            torch.stack(images)[:, None],
            *(torch.from_numpy(np.stack(kind)) for kind in zip(*targets, strict=True)),
        )

    def _is_tall(self, step: int) -> bool:
        """Whether a step's windows are tall, in every process alike."""
        drawn = np.random.default_rng([self.seed, step]).random()
        return bool(drawn < self.batch.tall and (self._long.any() or self._composable))

    def _sample(self, rng: np.random.Generator, tall: bool) -> tuple[Tensor, Targets]:
        batch = self.batch
        if tall:
            batch = replace(batch, rows=batch.tall_rows, cols=batch.tall_cols)
            case = self._draw_tall(rng)
        else:
            case = self._draw(rng)
        plane = case.planes[int(rng.integers(len(case.planes)))]
        pixels = torch.from_numpy(plane.astype(np.float32))
        size = (batch.rows, batch.cols)
        crop = augment(pixels, case.points, case.spine_col, size, self.augmentation, rng)
        return crop.pixels, make_targets(case, crop, self.channels, batch)

    def _draw(self, rng: np.random.Generator, among: npt.NDArray[np.bool_] | bool = True) -> Case:
        odds = self.probabilities * among
        return self.cases[int(rng.choice(len(self.cases), p=odds / odds.sum()))]

    def _draw_tall(self, rng: np.random.Generator) -> Case:
        compose = self._composable and rng.random() < self.batch.composed
        if not compose and self._long.any():
            return self._draw(rng, self._long)
        upper = self._draw(rng, self._upper)
        alike = self._suffixes == upper.source.suffix
        return compose_spine(upper, self._draw(rng, self._lower & alike), rng)

    @property
    def _composable(self) -> bool:
        return self.batch.composed > 0 and bool(self._upper.any())

    @cached_property
    def _long(self) -> npt.NDArray[np.bool_]:
        """(cases,) whether more spine is labelled than an ordinary window can show."""
        return np.array([np.ptp(case.points[:, 0]) > self.batch.rows for case in self.cases])

    @cached_property
    def _upper(self) -> npt.NDArray[np.bool_]:
        """(cases,) whether it shows a neck, and another one of its suffix what it lacks."""
        necks = np.array([is_upper(case) for case in self.cases])
        return necks & np.isin(self._suffixes, self._suffixes[self._lower])

    @cached_property
    def _lower(self) -> npt.NDArray[np.bool_]:
        return np.array([is_lower(case) for case in self.cases])

    @cached_property
    def _suffixes(self) -> npt.NDArray[np.str_]:
        return np.array([case.source.suffix for case in self.cases])

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """(cases,) share of the windows that are cut from each, by its group."""
        sizes = Counter(case.source.group for case in self.cases)
        factors = self.batch.group_weights or {}
        weights = np.array(
            [
                sizes[group] ** (self.batch.group_power - 1)
                * factors.get(group, factors.get(group.split(":")[0], 1.0))
                for group in (case.source.group for case in self.cases)
            ]
        )
        probabilities: npt.NDArray[np.float64] = weights / weights.sum()
        return probabilities


def make_targets(case: Case, crop: Crop, channels: Sequence[int], batch: BatchConfig) -> Targets:
    """Return target heatmaps and weights, (V, h, w) float32 each, and the discs in view.

    Present discs get a Gaussian, absent ones zeros, both with weight 1. Where the truth is
    unknown the weight is 0, except at the known discs: whatever is unknown, it is not there.
    """
    shape = (batch.rows // batch.stride, batch.cols // batch.stride)
    points = np.full((len(channels), 2), np.nan)
    for label, point in zip(case.labels, crop.points, strict=True):
        points[channels.index(label)] = pixels_to_cells(point, batch.stride)
    inside = dict(zip(case.labels, crop.inside_mm, strict=True))
    certain = dict(zip(case.labels, case.certain, strict=True))
    drawn = np.array(
        [label in inside and inside[label] > -UNSURE_MM for label in channels], dtype=bool
    )
    heatmaps = draw_heatmaps(points[None], drawn[None], shape, batch.sigma_mm / batch.stride)[0]
    weights = np.ones_like(heatmaps)
    doubtful = [
        index
        for index, label in enumerate(channels)
        if (label in inside and abs(inside[label]) <= UNSURE_MM)
        or (label in inside and not certain[label] and inside[label] > -UNSURE_MM)
        or (label in case.unknown and _may_be_visible(label, case.labels, inside))
    ]
    trusted = np.ones(len(channels), dtype=bool)
    trusted[doubtful] = False
    if doubtful:
        known = heatmaps[trusted].max(axis=0, initial=0)
        for index in doubtful:
            own = heatmaps[index]
            weights[index] = np.where(own > 0.01, 0, np.clip(2 * known - 0.2, 0, 1))
            heatmaps[index] = 0
    heatmaps[heatmaps < batch.truncate] = 0
    visible = drawn & trusted
    return Targets(
        heatmaps, weights, np.where(visible[:, None], points, 0).astype(np.float32), visible
    )


def _may_be_visible(label: int, known: tuple[int, ...], inside: Mapping[int, float]) -> bool:
    """Whether an unannotated disc can be in the window: not past an annotated one that is out.

    Where all of them are out the window may lie on either side of them.
    """
    if max(inside.values()) <= -UNSURE_MM:
        return True
    if label < known[0]:
        return inside[known[0]] > -UNSURE_MM
    if label > known[-1]:
        return inside[known[-1]] > -UNSURE_MM
    return True
