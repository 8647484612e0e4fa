"""BIDS data sets as training cases."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine

from ivdtool.bids import find_images
from ivdtool.errors import InputError
from ivdtool.files import nifti_stem
from ivdtool.label_files import LabelPoints, label_files, read_labels
from ivdtool.preprocessing import Image, PreprocessingConfig, prepare_image
from ivdtool.volumes import Volume, read_volume

__all__ = ["UNSURE_MM", "Case", "Source", "find_sources", "load_case"]

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

    @property
    def suffix(self) -> str:
        """T1w, T2w, ...: coarser than `BidsImage.contrast`, which tells sequences apart."""
        return self.group.rsplit(":", 1)[-1]

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
        """Return the case with the discs of `labels` only, perhaps with none."""
        kept = np.isin(self.labels, labels)
        return replace(
            self,
            labels=tuple(np.array(self.labels)[kept].tolist()),
            points=self.points[kept],
            certain=self.certain[kept],
        )


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
