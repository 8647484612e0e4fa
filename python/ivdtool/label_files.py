"""Label files: their names, and the disc points in them."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from glob import escape
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine

from ivdtool.discs import ALL_LABELS, disc_name
from ivdtool.errors import InputError
from ivdtool.files import LABEL_SUFFIX, NIFTI_SUFFIXES, is_nifti, nifti_stem, sidecar_path
from ivdtool.volumes import Volume, read_volume

__all__ = [
    "LABEL_SUFFIXES",
    "LANDMARKS",
    "MAX_ROUNDING",
    "LabelPoints",
    "find_label_file",
    "is_label_file",
    "label_files",
    "label_voxels",
    "labels_by_image",
    "read_labels",
]

LABEL_SUFFIXES = (
    f"_{LABEL_SUFFIX}",
    "_labels-disc-manual",
    "_label-disc",
    "_label-discs",
    "_label-discs_desc-warp_dlabel",  # moved there from another image of the subject
)
LABEL_STEM = re.compile(
    rf"(?P<image>.*?)(?P<suffix>{'|'.join(LABEL_SUFFIXES)}|_label-discs_desc-[A-Za-z0-9]+_dlabel)"
)
LABEL_ENDINGS = (*NIFTI_SUFFIXES, ".json")  # in the order of preference, as the suffixes

MASK_SUFFIXES = ("_seg", "_dseg", "_probseg", "_mask", "_dlabel")
LANDMARKS = (49, 50, 60)  # pontomedullary groove and junction, conus: known, but no discs
MAX_ROUNDING = 0.05  # of a label value stored as float
MAX_SIDECAR_VOXELS = 1.5  # rounding moves a point by 0.5 voxels, sharing with a neighbour by 1 more


@dataclass(frozen=True, eq=False)
class LabelPoints:
    """Disc points read from a label file.

    Attributes:
        points: label to (3,) RAS+ world mm, by label.
        unknown: labels that may be in view but were not annotated; they count for nothing.
        absent: labels known to be out of view.
        uncertain: labels among `points` that the annotator doubts.
        confidence: of labels among `points`, 0..1, where a program gave one.
        disputed: labels that only one of image and sidecar has, or that they place differently.
        warnings: what is odd about the file, one line each.
    """

    points: Mapping[int, npt.NDArray[np.float64]]
    unknown: frozenset[int] = frozenset()
    absent: frozenset[int] = frozenset()
    uncertain: frozenset[int] = frozenset()
    confidence: Mapping[int, float] = field(default_factory=dict)
    disputed: frozenset[int] = frozenset()
    warnings: tuple[str, ...] = ()


def is_label_file(path: str | Path) -> bool:
    """Whether a NIfTI file has the name of a disc label file, or of a mask as BIDS names them.

    Raises:
        UsageError: the name does not end in .nii.gz or .nii.
    """
    stem = nifti_stem(path)
    return stem.endswith(MASK_SUFFIXES) or LABEL_STEM.fullmatch(stem) is not None


def labels_by_image(paths: Iterable[Path]) -> dict[tuple[Path, str], list[Path]]:
    """Return the label files and sidecars among `paths`, by folder and stem of their images.

    Those of one image stand in the order of preference.
    """
    found: dict[tuple[Path, str], list[tuple[int, int, Path]]] = {}
    for path in paths:
        for rank, ending in enumerate(LABEL_ENDINGS):
            name = LABEL_STEM.fullmatch(path.name.removesuffix(ending))
            if name is not None and path.name.endswith(ending):
                suffixes = (*LABEL_SUFFIXES, name["suffix"])
                place = rank, suffixes.index(name["suffix"]), path
                found.setdefault((path.parent, name["image"]), []).append(place)
    return {image: [path for *_, path in sorted(places)] for image, places in found.items()}


def find_label_file(image: str | Path, dataset: str | Path) -> Path | None:
    """Return the disc label file of an image of a BIDS data set, None if there is none.

    Looks in ``derivatives/labels`` for the names in use (``_labels-manual`` holds vertebrae and
    is never read). A sidecar without its image is found too.

    Raises:
        InputError: the image is not inside the data set.
    """
    image, dataset = Path(image).absolute(), Path(dataset).absolute()
    if not image.is_relative_to(dataset):
        raise InputError(f"{image}: not inside the data set {dataset}")
    folder = dataset / "derivatives" / "labels" / image.parent.relative_to(dataset)
    stem = nifti_stem(image)
    if not folder.is_dir():
        return None
    files = (path for path in folder.glob(f"{escape(stem)}*") if path.is_file())
    return next(iter(labels_by_image(files).get((folder, stem), [])), None)


def label_files(path: str | Path) -> tuple[Path, ...]:
    """Return the files that `read_labels` reads: `path` and, where there is one, its sidecar."""
    path = Path(path)
    if is_nifti(path):
        sidecar = sidecar_path(path)
        if sidecar.is_file():
            return (path, sidecar)
    return (path,)


def read_labels(path: str | Path) -> LabelPoints:
    """Read disc points from a label image, its sidecar, or both.

    The sidecar beside a label image gives the exact points, and what is unknown, absent or
    uncertain. Where the two disagree the image holds: it is what label editors change.

    Args:
        path: a .nii, .nii.gz or .json file; values by the SCT convention. Values 1 and 2 and
            those above 25 are left out.

    Raises:
        InputError: the file is unreadable, has values that are no integers, or a label twice.
    """
    path, *sidecars = label_files(path)
    if path.name.endswith(".json"):
        return _checked(_read_sidecar(path))
    volume = read_volume(path)
    found = _read_image(volume)
    for sidecar in sidecars:
        found = _refine(found, _read_sidecar(sidecar), volume)
    return _checked(found)


def label_voxels(volume: Volume) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Return the (N, 3) voxels of a label image that are not 0, and their (N,) values."""
    background = -volume.inter / volume.slope
    voxels = np.argwhere(volume.data != background)
    stored = volume.data[tuple(voxels.T)].astype(np.float64)
    return voxels, stored * volume.slope + volume.inter


def _read_image(volume: Volume) -> LabelPoints:
    voxels, stored = label_voxels(volume)
    if not np.isfinite(stored).all() or (np.abs(stored - np.rint(stored)) > MAX_ROUNDING).any():
        raise InputError(f"{volume.path}: values that are no integers; not a label image")
    values, first, counts = np.unique(np.rint(stored), return_index=True, return_counts=True)
    repeated = [int(value) for value in values[counts > 1] if value in ALL_LABELS]
    if repeated:
        raise InputError(f"{volume.path}: label {repeated[0]} in more than one voxel; keep one")
    world = apply_affine(volume.affine, voxels[first])
    points = {int(value): point for value, point in zip(values, world, strict=True) if value != 0}
    return LabelPoints(points, warnings=volume.warnings)


def _read_sidecar(path: Path) -> LabelPoints:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        discs = document.get("Discs", ())
        points = [_sidecar_point(disc) for disc in discs if _position(disc) is not None]
        if len(points) != len(dict(points)):
            raise ValueError("a label is given twice")
        return LabelPoints(
            dict(points),
            unknown=frozenset(map(index, document.get("UnknownLabels", ()))),
            absent=frozenset(map(index, document.get("AbsentLabels", ()))),
            uncertain=frozenset(index(d["label"]) for d in discs if not d.get("certain", True)),
            confidence={
                index(disc["label"]): _probability(disc["confidence"])
                for disc in discs
                if disc.get("confidence") is not None
            },
        )
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (
        ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise InputError(f"{path}: not a disc label sidecar: {error}") from error


def _position(disc: Mapping[str, Any]) -> Any:
    return disc.get("posterior_mm") or disc.get("world_mm")


def _sidecar_point(disc: Mapping[str, Any]) -> tuple[int, npt.NDArray[np.float64]]:
    label, point = index(disc["label"]), np.array(_position(disc), dtype=np.float64)
    if point.shape != (3,) or not np.isfinite(point).all():
        raise ValueError(f"label {label} is not at three finite numbers")
    return label, point


def _probability(value: Any) -> float:
    probability = float(value)
    if not 0 <= probability <= 1:
        raise ValueError(f"confidence {value} does not lie in 0..1")
    return probability


def _refine(image: LabelPoints, sidecar: LabelPoints, volume: Volume) -> LabelPoints:
    """The points of a label image, made exact by its sidecar."""
    to_voxels, last = np.linalg.inv(volume.affine), np.array(volume.shape) - 1
    exact = {}
    for label in image.points.keys() & sidecar.points:
        voxels = apply_affine(to_voxels, [image.points[label], sidecar.points[label]])
        # a disc just outside the image has the nearest voxel inside
        if np.abs(np.subtract(*voxels.clip(0, last))).max() <= MAX_SIDECAR_VOXELS:
            exact[label] = sidecar.points[label]
    warnings = image.warnings
    both = image.points.keys() | sidecar.points.keys()
    disputed = frozenset(both & set(ALL_LABELS) - exact.keys() if sidecar.points else ())
    if disputed:
        warnings += (f"labels {sorted(disputed)} differ from the sidecar; the image is taken",)
    confidence = {label: sidecar.confidence[label] for label in exact.keys() & sidecar.confidence}
    return replace(
        sidecar,
        points={**image.points, **exact},
        confidence=confidence,  # what was said of a point says nothing of one that was moved
        disputed=disputed,
        warnings=warnings,
    )


def _checked(found: LabelPoints) -> LabelPoints:
    """Only the discs, by label, with warnings for what is left out or out of order."""
    points = {label: found.points[label] for label in sorted(found.points) if label in ALL_LABELS}
    warnings = found.warnings
    ignored = sorted(found.points.keys() - points.keys() - set(LANDMARKS))
    if ignored:
        warnings += (f"values {ignored} are no discs and are left out",)
    for label, below in pairwise(points):
        if points[label][2] <= points[below][2]:
            warnings += (
                f"{disc_name(below)} ({below}) does not lie below {disc_name(label)} ({label})",
            )
    uncertain = found.uncertain.intersection(points)
    confidence = {label: value for label, value in found.confidence.items() if label in points}
    return replace(
        found, points=points, uncertain=uncertain, confidence=confidence, warnings=warnings
    )
