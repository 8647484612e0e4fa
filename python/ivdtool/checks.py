"""What is wrong with a labelled BIDS data set and would spoil training or figures, line by line."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine

from ivdtool.bids import BidsImage, find_images, read_participants
from ivdtool.discs import ALL_LABELS, disc_label, disc_name
from ivdtool.errors import InputError
from ivdtool.files import find_files, nifti_stem, sidecar_path
from ivdtool.label_files import (
    LANDMARKS,
    MAX_ROUNDING,
    LabelPoints,
    label_voxels,
    labels_by_image,
    read_labels,
)
from ivdtool.skeleton import Skeleton
from ivdtool.volumes import AFFINE_TOLERANCE_MM, Volume, header_affine, read_volume

__all__ = ["KINDS", "Check", "Problem", "check_dataset"]

KINDS = {
    "image": "unreadable, blank, or with a doubtful header",
    "image-twice": "the same voxels in two files",
    "labels-missing": "no label file, though other images of that contrast have one",
    "labels-orphan": "a label file without its image",
    "labels-ambiguous": "several label files of one image",
    "labels": "unreadable, or without a disc",
    "grid": "label and image are not on the same grid",
    "fractional": "values that are no integers",
    "duplicate": "a label in several places",
    "blob": "a label in several voxels that touch",
    "convention": "values that the SCT convention does not have",
    "off-by-one": "numbers that seem to be one too low or too high",
    "order": "a disc that does not lie below the one above it",
    "spacing": "implausible distances",
    "outside": "a point outside the image",
    "sidecar": "unreadable, or says otherwise than the label image",
    "participants": "rows without images, images without rows, rows that contradict each other",
    "split": "not by subject, or of an unknown name",
}

SPLITS = ("train", "val", "test")

# Of 863 steps between neighbouring discs in 135 real volumes the shortest is 0.67, the longest 1.30
# of the mean; a level left out or counted twice makes about 2 or 0.5.
SHORTEST, LONGEST = 0.58, 1.5
SMALLEST_BODY, LARGEST_BODY = 0.5, 1.5  # median of an image's steps: a small child, a giant
# Spread of log(step / mean) within a body, and from body to body: 0.06 each in those volumes, taken
# larger since errors of the labels come on top.
STEP_SPREAD, BODY_SPREAD = 0.09, 0.1
# How much better another numbering must fit, as a difference of -2 log likelihood. Among those
# volumes the true numbering is beaten by 5 at most, in 143 Spine Generic scans with points placed
# by hand by 8.
SHIFT_EVIDENCE = 10.0
IMPOSSIBLE = -10.0  # evidence for a shift that would leave the range of labels

Points = Mapping[int, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        kind: one of `KINDS`.
        path: of the file.
        what: is wrong.
        todo: what to do about it.
    """

    kind: str
    path: Path
    what: str
    todo: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.todo}"


@dataclass(frozen=True)
class Check:
    """The result: how much was looked at, and what is wrong with it."""

    images: int
    label_files: int
    problems: tuple[Problem, ...]


def check_dataset(
    dataset: Path, skeleton: Skeleton, progress: Callable[[int, int], None] | None = None
) -> Check:
    """Look for problems in a data set: in its images, their labels, and how they belong together.

    Every image and label file is read. Values 1, 2 and the landmarks of the SCT convention are no
    problem; they are not read as discs.

    Args:
        dataset: BIDS data set with derivatives/labels.
        skeleton: what distances are compared with.
        progress: called with (done, count) after every image.

    Raises:
        InputError: the folder is no BIDS data set, or participants.tsv is unreadable.
    """
    images = find_images(dataset)
    if not images:
        raise InputError(f"{dataset}: no sub-*/anat/*.nii.gz below it; give a BIDS data set")
    problems: list[Problem] = []
    digests: dict[bytes, list[BidsImage]] = defaultdict(list)
    points: list[tuple[BidsImage, Points]] = []
    for done, image in enumerate(images, start=1):
        volume = _read_image(image.path, problems)
        if volume is not None:
            digests[_digest(volume)].append(image)
        if image.labels is not None:
            found = _read_points(image.labels, volume, problems)
            if found is not None:
                own = list(_check_points(image.labels, found, volume, skeleton))
                problems += own
                if not any(problem.kind in ("order", "spacing") for problem in own):
                    points.append((image, found.points))
        if progress is not None:
            progress(done, len(images))
    problems += _check_numbering(dataset, points, skeleton)
    problems += _check_twins(digests.values())
    problems += _check_files(dataset, images)
    problems += _check_participants(dataset, images)
    return Check(len(images), sum(image.labels is not None for image in images), tuple(problems))


# --- one image


def _read_image(path: Path, problems: list[Problem]) -> Volume | None:
    try:
        volume = read_volume(path, volume=0)
    except InputError as error:
        problems.append(_from_error("image", path, error))
        return None
    problems += [
        Problem("image", path, warning, "see that image and labels fit each other")
        for warning in header_affine(path, volume.header, volume.shape)[1]
    ]
    if not np.isfinite(volume.data).all():
        problems.append(
            Problem("image", path, "NaN or infinite voxels", "replace them by 0, or leave it out")
        )
    elif volume.data.min() == volume.data.max():
        problems.append(Problem("image", path, "all voxels are equal", "leave the image out"))
    return volume


def _from_error(kind: str, path: Path, error: InputError) -> Problem:
    what, _, todo = str(error).removeprefix(f"{path}: ").rpartition("; ")
    return Problem(kind, path, what or todo, todo if what else "replace or remove the file")


def _digest(volume: Volume) -> bytes:
    """Of the voxels: headers and compression may differ."""
    digest = hashlib.sha256(f"{volume.shape} {volume.data.dtype}".encode())
    digest.update(np.ascontiguousarray(volume.data.T).data)  # as NIfTI stores it: no copy
    return digest.digest()


# --- one label file


def _read_points(path: Path, volume: Volume | None, problems: list[Problem]) -> LabelPoints | None:
    """The points of a label file that can be used, None where they cannot."""
    if not path.name.endswith(".json"):
        try:
            labels = read_volume(path)
        except InputError as error:
            problems.append(_from_error("labels", path, error))
            return None
        if volume is not None:
            problems += _check_grid(path, labels, volume)
        unusable = list(_check_values(path, labels))
        problems += unusable
        if any(problem.kind in ("fractional", "duplicate", "blob") for problem in unusable):
            return None
        sidecar = sidecar_path(path)
    else:
        sidecar = path
    try:
        found = read_labels(path)
    except InputError as error:
        problems.append(_from_error("sidecar", sidecar, error))
        return None
    if sidecar.is_file():
        problems += _check_sidecar(sidecar, found)
    return found


def _check_grid(path: Path, labels: Volume, image: Volume) -> Iterator[Problem]:
    todo = "draw the labels on this image, or resample them by their world coordinates"
    if labels.shape != image.shape:
        sizes = " against ".join("x".join(map(str, v.shape)) for v in (labels, image))
        yield Problem("grid", path, f"not on the grid of its image: {sizes} voxels", todo)
        return
    last = np.array(image.shape) - 1
    corners = np.array(np.meshgrid(*[(0, n) for n in last])).reshape(3, -1).T
    apart = apply_affine(labels.affine, corners) - apply_affine(image.affine, corners)
    worst = float(np.linalg.norm(apart, axis=1).max())
    if worst > AFFINE_TOLERANCE_MM:
        what = f"not on the grid of its image: voxels lie up to {worst:.1f} mm apart"
        yield Problem("grid", path, what, "give both the same affine, that of the image")


def _check_values(path: Path, labels: Volume) -> Iterator[Problem]:
    voxels, stored = label_voxels(labels)
    with np.errstate(invalid="ignore"):  # infinite values are no integers
        whole = np.abs(stored - np.rint(stored)) <= MAX_ROUNDING
    if not whole.all():
        odd = ", ".join(f"{value:.4g}" for value in np.unique(stored[~whole])[:3])
        what = f"{np.count_nonzero(~whole)} voxels with values that are no integers, as {odd}"
        yield Problem("fractional", path, what, "store labels unscaled and never interpolate them")
        return
    values = np.rint(stored).astype(int)
    parts = {
        label: _count_parts(voxels[values == label])
        for label in ALL_LABELS
        if np.count_nonzero(values == label) > 1
    }
    if blobs := [label for label, count in parts.items() if count == 1]:
        what = f"labels {blobs} cover several voxels each"
        yield Problem("blob", path, what, "keep the voxel at the disc's posterior tip")
    if repeated := [label for label, count in parts.items() if count > 1]:
        what = f"labels {repeated} stand in several places each"
        yield Problem("duplicate", path, what, "keep the right one of each")
    present = {int(value) for value in values}
    if odd_values := sorted(present - {0, 1, 2, 26, *ALL_LABELS, *LANDMARKS}):
        what = f"values {odd_values} are no discs of the SCT convention (3 = C2/C3 to 25 = L5/S1)"
        yield Problem("convention", path, what, "give them the disc's value, or remove them")
    if 26 in present:
        what = "value 26, which is below the last disc, 25 (L5/S1)"
        todo = "if all values are one too high, subtract 1, else remove it"
        yield Problem("off-by-one", path, what, todo)
    if 2 in present and 1 not in present:
        what = "value 2 (C1/C2, where no disc is) without 1; until 2018 C2/C3 was 2"
        yield Problem("off-by-one", path, what, "if 2 is at C2/C3 here, add 1 to all values")


def _count_parts(voxels: npt.NDArray[np.intp]) -> int:
    """Number of connected parts, corners included."""
    left = set(map(tuple, voxels.tolist()))
    around = [(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]
    parts = 0
    while left:
        parts += 1
        front = [left.pop()]
        while front:
            x, y, z = front.pop()
            near = left & {(x + i, y + j, z + k) for i, j, k in around}
            left -= near
            front += near
    return parts


def _check_sidecar(path: Path, found: LabelPoints) -> Iterator[Problem]:
    if found.disputed:
        what = f"labels {sorted(found.disputed)} are not where the label image has them"
        yield Problem("sidecar", path, what, "write it again, or remove it; the image is taken")
    contradictions = sorted(found.points.keys() & (found.unknown | found.absent))
    if contradictions:
        what = f"labels {contradictions} are annotated, but also listed as unknown or absent"
        yield Problem("sidecar", path, what, "strike them from one of the lists")
    shifts = Counter(_name_shifts(path))
    for shift, count in sorted(shifts.items()):
        what = f"{count} discs have numbers {abs(shift)} too {'low' if shift < 0 else 'high'} for "
        yield Problem(
            "off-by-one" if abs(shift) == 1 else "sidecar",
            path,
            what + "their names (3 is C2/C3, 25 is L5/S1)",
            f"{'add' if shift < 0 else 'subtract'} {abs(shift)}, or correct the names",
        )


def _name_shifts(path: Path) -> Iterator[int]:
    """By how much the numbers of the discs in a sidecar differ from their names, where they do."""
    for disc in json.loads(path.read_text(encoding="utf-8")).get("Discs", ()):
        try:
            shift = int(disc["label"]) - disc_label(str(disc["name"]))
        except (KeyError, TypeError, ValueError):
            continue  # without a name, or one of another vocabulary
        if shift:
            yield shift


# --- the points of one image


def _check_points(
    path: Path, found: LabelPoints, image: Volume | None, skeleton: Skeleton
) -> Iterator[Problem]:
    points = found.points
    if not points:
        yield Problem("labels", path, "no disc in it", "label the image, or remove the file")
    if image is not None and points:
        voxels = apply_affine(np.linalg.inv(image.affine), list(points.values()))
        out = ((voxels < -1) | (voxels > np.array(image.shape))).any(axis=1)
        if out.any():
            labels = [label for label, is_out in zip(points, out, strict=True) if is_out]
            what = f"labels {labels} lie outside the image"
            yield Problem("outside", path, what, "see that the points belong to this image")
    steps, ordered = [], True
    for upper, lower in pairwise(points):
        names = f"{disc_name(upper)} to {disc_name(lower)} ({upper} to {lower})"
        steps.append((names, _step(points, upper, lower), _mean_step(skeleton, upper, lower)))
        if points[lower][2] >= points[upper][2]:
            ordered = False
            what = f"{names}: the lower disc does not lie below"
            yield Problem("order", path, what, "swap or correct the labels")
    if ordered:
        yield from _check_spacing(path, [own for own in steps if own[2] > 0])


def _check_spacing(path: Path, steps: Sequence[tuple[str, float, float]]) -> Iterator[Problem]:
    if not steps:
        return
    body = float(np.median([length / mean for _, length, mean in steps]))
    if not SMALLEST_BODY <= body <= LARGEST_BODY:
        what = f"discs are {body:.2f} of the usual distance apart"
        yield Problem("spacing", path, what, "check the voxel size, and that no level is left out")
        return
    usual = body if len(steps) >= 4 else 1.0  # of too few steps a wrong one sways the median
    for names, length, mean in steps:
        if not SHORTEST <= length / (mean * usual) <= LONGEST:
            what = f"{names}: {length:.1f} mm, where {mean * usual:.0f} mm are usual"
            yield Problem("spacing", path, what, "see whether a level is left out or counted twice")


def _step(points: Points, upper: int, lower: int) -> float:
    """Length in the sagittal plane of the world, mm."""
    return float(np.hypot(*(points[lower] - points[upper])[1:]))


def _mean_step(skeleton: Skeleton, upper: int, lower: int) -> float:
    """Of the skeleton, mm; 0 where it does not have both discs."""
    first = skeleton.labels[0]
    if not (upper >= first and lower <= skeleton.labels[-1]):
        return 0.0
    return float(np.hypot(*(skeleton.mean_mm[lower - first] - skeleton.mean_mm[upper - first])))


# --- all of them together


def _check_numbering(
    dataset: Path, images: Sequence[tuple[BidsImage, Points]], skeleton: Skeleton
) -> Iterator[Problem]:
    """Whether distances fit other numbers clearly better: of a source as a whole, else of a file.

    From level to level distances differ by a few per cent in most places: one file shows a shift
    in one case of seven at most, ten files together in nine of ten.
    """
    sources: dict[str, list[tuple[Path, Points]]] = defaultdict(list)
    for image, points in images:
        if image.labels is not None:
            sources[image.participant.get("source", "")].append((image.labels, points))
    for source, files in sources.items():
        for shift, how, todo in ((1, "low", "add 1 to"), (-1, "high", "subtract 1 from")):
            gains = [_shift_gain(points, skeleton, shift) for _, points in files]
            if len(files) > 1 and sum(gains) > SHIFT_EVIDENCE:
                folder = dataset / "derivatives" / "labels"
                which = f"the {len(files)} label files" + (f" of source {source}" if source else "")
                what = f"by their distances, the numbers in {which} are one too {how}"
                yield Problem("off-by-one", folder, what, f"look at some; {todo} them if so")
                continue
            for (path, _), gain in zip(files, gains, strict=True):
                if gain > SHIFT_EVIDENCE:
                    what = f"by the discs' distances, all numbers are one too {how}"
                    yield Problem("off-by-one", path, what, f"look at it; {todo} them if so")


def _shift_gain(points: Points, skeleton: Skeleton, shift: int) -> float:
    """Evidence that the labels should be `shift` higher: difference of -2 log likelihood."""
    shifted = {label + shift: point for label, point in points.items()}
    if not shifted.keys() <= set(skeleton.labels):
        return IMPOSSIBLE
    return _misfit(points, skeleton) - _misfit(shifted, skeleton)


def _misfit(points: Points, skeleton: Skeleton) -> float:
    """-2 log likelihood, up to a constant, of the step lengths of a body of its own size."""
    pairs = [pair for pair in pairwise(points) if _mean_step(skeleton, *pair) > 0]
    if not pairs:
        return 0.0
    deviation = np.log(
        [max(_step(points, *pair), 0.1) / _mean_step(skeleton, *pair) for pair in pairs]
    )
    body = deviation.sum() / (len(deviation) + (STEP_SPREAD / BODY_SPREAD) ** 2)
    return float(((deviation - body) ** 2).sum() / STEP_SPREAD**2 + body**2 / BODY_SPREAD**2)


def _check_twins(groups: Iterable[Sequence[BidsImage]]) -> Iterator[Problem]:
    for first, *others in groups:
        for other in others:
            ours, theirs = (own.participant.get("split", "") for own in (other, first))
            what = f"the same voxels as {first.path}"
            if ours != theirs:
                what += f", which is in split {theirs or 'none'}, this one in {ours or 'none'}"
            yield Problem("image-twice", other.path, what, "keep one of them")


def _check_files(dataset: Path, images: Sequence[BidsImage]) -> Iterator[Problem]:
    root = dataset / "derivatives" / "labels"
    if all(image.labels is None for image in images):
        yield Problem("labels-missing", root, "no label file of any image", "put them there")
    labelled = {image.contrast for image in images if image.labels is not None}
    for image in images:
        if image.labels is None and image.contrast in labelled:
            what = f"no label file, though other {image.contrast} images have one"
            yield Problem("labels-missing", image.path, what, f"put one into {root}")
    expected = {
        (image.path.parent.relative_to(dataset), nifti_stem(image.path)) for image in images
    }
    found = find_files(root, "**/*") if root.is_dir() else []
    for (place, stem), paths in labels_by_image(found).items():
        folder = place.relative_to(root)
        if (folder, stem) not in expected:
            what = f"no image {dataset / folder / stem}.nii.gz for these labels"
            yield Problem("labels-orphan", paths[0], what, "rename, move or remove them")
            continue
        rivals = [path for path in paths if not path.name.endswith(".json")]
        if len(rivals) > 1:
            names = " and ".join(path.name for path in rivals)
            what = f"several label files of one image: {names}"
            yield Problem("labels-ambiguous", rivals[0].parent, what, "keep one of them")


def _check_participants(dataset: Path, images: Sequence[BidsImage]) -> Iterator[Problem]:
    table = dataset / "participants.tsv"
    rows = read_participants(dataset)
    subjects = {image.subject for image in images}
    by_subject: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_subject[row["participant_id"]].append(row)
    for subject, own in by_subject.items():
        for column in ("split", "region", "source"):
            values = sorted({row.get(column, "") for row in own})
            if len(values) > 1:
                what = f"{subject} has {column} {' and '.join(v or '(empty)' for v in values)}"
                kind = "split" if column == "split" else "participants"
                yield Problem(kind, table, what, "give a subject one row, and one split")
    per_image = [s for s in by_subject if s not in subjects and s.partition("_")[0] in subjects]
    if per_image:
        what = f"rows by image ({_some(per_image)}), so that the split is by image"
        yield Problem("split", table, what, "give each subject one row, and one split")
    strangers = [s for s in by_subject if s not in subjects and s not in per_image]
    if strangers:
        what = f"rows without an image: {_some(strangers)}"
        yield Problem("participants", table, what, "remove the rows, or add the images")
    if any("split" in row for row in rows):
        missing = sorted(subjects - by_subject.keys())
        if missing:
            what = f"no row, and so no split, for {_some(missing)}"
            yield Problem("participants", table, what, "add rows")
        for split in sorted({row.get("split", "") for row in rows} - {*SPLITS, ""}):
            own_rows = [row["participant_id"] for row in rows if row.get("split") == split]
            what = f"split {split} of {_some(own_rows)} is none of {', '.join(SPLITS)}"
            yield Problem("split", table, what, "rename it; training leaves these subjects out")


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
