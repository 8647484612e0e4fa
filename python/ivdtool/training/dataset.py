"""BIDS data sets as training cases, and batches of augmented windows with their targets."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from nibabel.affines import apply_affine
from torch import Tensor

from ivdtool.bids import find_images
from ivdtool.errors import InputError
from ivdtool.files import nifti_stem
from ivdtool.heatmaps import draw_heatmaps, pixels_to_cells
from ivdtool.labels import LabelPoints, label_files, read_labels
from ivdtool.preprocessing import Image, PreprocessingConfig, prepare_image
from ivdtool.training.augmentation import AugmentationConfig, Crop, augment
from ivdtool.volumes import Volume, read_volume

__all__ = ["Batch", "BatchConfig", "BatchMaker", "Case", "Source", "find_sources", "load_case"]

UNSURE_MM = 4.0  # a disc this close to the border of the field of view is neither in nor out
UNKNOWN_BEYOND = 3  # labels past the annotated ones that may be in view where no file says so


@dataclass(frozen=True)
class Source:
    """One labelled image of a data set, as its participants.tsv describes it."""

    image: Path
    labels: Path
    subject: str
    split: str
    group: str  # images of one kind, for balanced sampling: source and suffix

    def digest(self) -> str:
        """SHA-256 of the image, its label file and that one's sidecar.

        Raises:
            InputError: one of them is unreadable.
        """
        digest = hashlib.sha256()
        for path in (self.image, *label_files(self.labels)):
            try:
                digest.update(path.read_bytes())
            except OSError as error:
                raise InputError(f"{path}: {error.strerror or error}") from error
        return digest.hexdigest()


class Planes(Protocol):
    """(H, W) float16 images by index, in memory or on disk."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[npt.NDArray[np.float16]]: ...
    def __getitem__(self, index: int, /) -> npt.NDArray[np.float16]: ...


@dataclass(frozen=True, eq=False)
class Case:
    """A labelled image, ready for augmentation.

    Attributes:
        source: where it came from.
        planes: (H, W) float16 images of sagittal slabs at and beside the spine's plane.
        labels: of the rows of `points`.
        points: (N, 2) (row, col) of the annotated discs in every plane.
        certain: (N,) bool.
        unknown: labels that may be in view but were not annotated.
        digest: of the source's files, where it is known.
    """

    source: Source
    planes: Planes
    labels: tuple[int, ...]
    points: npt.NDArray[np.float64]
    certain: npt.NDArray[np.bool_]
    unknown: frozenset[int]
    digest: str = ""

    @property
    def spine_col(self) -> float:
        """Mean column of the points."""
        return float(self.points[:, 1].mean())

    def restricted(self, labels: Sequence[int]) -> "Case":
        """Return the case with the discs of `labels` only; none may be left."""
        kept = np.isin(self.labels, labels)
        return replace(
            self,
            labels=tuple(np.array(self.labels)[kept].tolist()),
            points=self.points[kept],
            certain=self.certain[kept],
        )


@dataclass(frozen=True)
class BatchConfig:
    """What a batch of training windows looks like.

    Attributes:
        size: windows per batch.
        rows: height of a window, pixels; a multiple of 64.
        cols: width of a window, pixels; a multiple of 64.
        sigma_mm: standard deviation of the target Gaussians.
        truncate: target values below this are 0 (the papers' code: 0.1).
        stride: image pixels per heatmap cell.
        group_power: a group of n images is drawn from with a weight of n ** group_power.
        group_weights: factors on that, by the group's source (the part before the colon).
    """

    size: int = 8
    rows: int = 320
    cols: int = 256
    sigma_mm: float = 5.0
    truncate: float = 0.0
    stride: int = 4
    group_power: float = 0.5
    group_weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.rows % 64 or self.cols % 64 or min(self.rows, self.cols) < 64:
            raise ValueError(f"rows and cols must be multiples of 64: {self.rows}, {self.cols}")
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


def find_sources(dataset: Path, splits: Sequence[str]) -> list[Source]:
    """Return the labelled images of a BIDS data set whose split is one of `splits`.

    participants.tsv gives the split by subject (column ``split``); where it does not, every
    tenth subject is val and the others train.

    Raises:
        InputError: the folder is no BIDS data set, or has no labelled image.
    """
    images = find_images(dataset)
    if not images:
        raise InputError(f"{dataset}: no sub-*/anat/*.nii.gz below it; give a BIDS data set")
    subjects = sorted({image.subject for image in images})
    sources = []
    for image in images:
        if image.labels is None:
            continue
        row = image.participant
        split = row.get("split") or ("val" if subjects.index(image.subject) % 10 == 9 else "train")
        group = f"{row.get('source') or dataset.name}:{nifti_stem(image.path).rsplit('_', 1)[-1]}"
        if split in splits:
            sources.append(Source(image.path, image.labels, image.subject, split, group))
    if not sources:
        raise InputError(
            f"{dataset}: no image of split {' or '.join(splits)} with a label file in "
            "derivatives/labels"
        )
    return sources


def load_case(
    source: Source,
    config: PreprocessingConfig,
    channels: Sequence[int],
    offsets_mm: Iterable[float] = (0.0,),
) -> Case:
    """Read an image and its labels, and prepare slabs at the spine's plane plus each offset.

    Raises:
        InputError: image or labels are unusable.
    """
    volume = read_volume(source.image, volume=0)
    found = read_labels(source.labels)
    labels = tuple(label for label in found.points if label in channels)
    if not labels:
        raise InputError(f"{source.labels}: no disc label between {channels[0]} and {channels[-1]}")
    world = np.array([found.points[label] for label in labels])
    voxels = apply_affine(np.linalg.inv(volume.affine), world)
    plane = float(np.median(voxels[:, volume.axes[0][0]]))
    images = _planes(volume, config, plane, offsets_mm)
    return Case(
        source=source,
        planes=tuple(image.pixels.astype(np.float16) for image in images),
        labels=labels,
        points=images[0].grid.world_to_pixel(world)[:, :2],
        certain=np.array([label not in found.uncertain for label in labels]),
        unknown=_unknown(found, labels),
    )


def _planes(
    volume: Volume, config: PreprocessingConfig, plane: float, offsets_mm: Iterable[float]
) -> list[Image]:
    lateral = volume.axes[0][0]
    last = volume.shape[lateral] - 1
    step = volume.zooms_mm[lateral]
    planes = sorted({float(np.clip(plane + mm / step, 0, last)) for mm in offsets_mm})
    images, refusals = [], []
    for value in planes:
        try:
            images.append(prepare_image(volume, config, value))
        except InputError as error:  # slices at the edge of a volume may be blank
            refusals.append(error)
    if not images:
        raise refusals[0]
    return images


def _unknown(found: LabelPoints, labels: tuple[int, ...]) -> frozenset[int]:
    if found.unknown or found.absent:
        return found.unknown - set(labels)
    around = range(labels[0] - UNKNOWN_BEYOND, labels[-1] + UNKNOWN_BEYOND + 1)
    return frozenset(around) - set(labels)


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
        samples = []
        part, parts = self.part
        share = self.batch.size // parts
        for index in range(part * share, (part + 1) * share):
            rng = np.random.default_rng([self.seed, step, index])
            case = self.cases[int(rng.choice(len(self.cases), p=self.probabilities))]
            samples.append(_sample(case, self.channels, self.batch, self.augmentation, rng))
        images, targets = zip(*samples, strict=True)
        return Batch(
            torch.stack(images)[:, None],
            *(torch.from_numpy(np.stack(kind)) for kind in zip(*targets, strict=True)),
        )

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


def _sample(
    case: Case,
    channels: Sequence[int],
    batch: BatchConfig,
    augmentation: AugmentationConfig,
    rng: np.random.Generator,
) -> tuple[Tensor, Targets]:
    plane = case.planes[int(rng.integers(len(case.planes)))]
    pixels = torch.from_numpy(plane.astype(np.float32))
    size = (batch.rows, batch.cols)
    crop = augment(pixels, case.points, case.spine_col, size, augmentation, rng)
    return crop.pixels, make_targets(case, crop, channels, batch)


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
