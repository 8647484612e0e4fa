"""Mean skeletons from labelled data sets, and their files."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ivdtool.bids import find_images
from ivdtool.discs import disc_name
from ivdtool.errors import InputError
from ivdtool.files import atomic_write
from ivdtool.label_files import read_labels
from ivdtool.skeleton import Skeleton

__all__ = ["describe_skeleton", "measure_skeleton", "read_skeleton", "write_skeleton"]


def measure_skeleton(datasets: Iterable[Path], split: str | None = None) -> Skeleton:
    """Average the certain discs of BIDS data sets, in the sagittal plane of the world.

    Args:
        datasets: with derivatives/labels; their images may show any part of the spine.
        split: only subjects of this split in participants.tsv.

    Raises:
        InputError: a label file is unusable, there is none, or they do not hang together.
    """
    cases = []
    for dataset in datasets:
        for image in find_images(dataset):
            if image.labels is None or split not in (None, image.participant.get("split")):
                continue
            found = read_labels(image.labels)
            case = {
                label: (-float(point[2]), -float(point[1]))  # RAS+: rows down, columns to the back
                for label, point in found.points.items()
                if label not in found.uncertain
            }
            if case:
                cases.append(case)
    try:
        return Skeleton.from_points(cases)
    except ValueError as error:
        raise InputError(f"no mean skeleton from these labels: {error}") from error


def describe_skeleton(skeleton: Skeleton) -> str:
    """Return a table: spacing to the next disc, its spread, how often a disc is not in view."""
    steps = np.diff(skeleton.mean_mm, axis=0)
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    lines = ["disc     to next  spread   down   back   disc spread missing"]
    for index, label in enumerate(skeleton.labels):
        step = " " * 31
        if index < len(lengths):
            step = (
                f"{lengths[index]:7.1f} {skeleton.step_sd_mm[index]:7.1f} "
                f"{steps[index, 0]:6.1f} {steps[index, 1]:6.1f}  "
            )
        lines.append(
            f"{disc_name(label):<8} {step} {skeleton.disc_sd_mm[index]:11.1f} "
            f"{100 * skeleton.missing_rate[index]:6.0f} %"
        )
    return "\n".join([*lines, "(mm, along the sagittal plane; spreads are per axis)"])


def write_skeleton(skeleton: Skeleton, path: str | Path) -> None:
    """Write a skeleton as JSON.

    Raises:
        UsageError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(skeleton.to_dict(), indent=1) + "\n", encoding="utf-8")


def read_skeleton(path: str | Path) -> Skeleton:
    """Read what `write_skeleton` wrote.

    Raises:
        InputError: the file is unreadable or holds no skeleton.
    """
    try:
        return Skeleton.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (TypeError, ValueError, RecursionError) as error:  # JSONDecodeError is one
        raise InputError(f"{path}: no skeleton: {error}") from error
