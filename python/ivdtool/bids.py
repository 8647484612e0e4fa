"""BIDS data sets: their images, with label files and rows of participants.tsv."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ivdtool.errors import InputError
from ivdtool.files import find_files, is_nifti, nifti_stem
from ivdtool.label_files import find_label_file, is_label_file

__all__ = [
    "BidsImage",
    "anatomical_images",
    "find_images",
    "images_below",
    "is_dataset",
    "read_participants",
]


@dataclass(frozen=True)
class BidsImage:
    """One image of a data set.

    Attributes:
        path: the image.
        subject: its folder, ``sub-01``.
        participant: the subject's row of participants.tsv by column, empty without one.
        labels: the disc label file in derivatives/labels, None if there is none.
    """

    path: Path
    subject: str
    participant: Mapping[str, str]
    labels: Path | None

    @property
    def contrast(self) -> str:
        """The name without subject, session and run: ``T2w``, ``acq-dixon_T2w``."""
        parts = nifti_stem(self.path).split("_")
        return "_".join(part for part in parts if not part.startswith(("sub-", "ses-", "run-")))


def find_images(dataset: Path) -> list[BidsImage]:
    """Return the images in the anat folders of a data set, by path.

    Raises:
        InputError: participants.tsv has no column participant_id.
    """
    participants = {row["participant_id"]: row for row in read_participants(dataset)}
    images = []
    for path in anatomical_images(dataset):
        subject = path.relative_to(dataset).parts[0]
        labels = find_label_file(path, dataset)
        images.append(BidsImage(path, subject, participants.get(subject, {}), labels))
    return images


def is_dataset(folder: Path) -> bool:
    """Whether a folder looks like a BIDS data set: subjects, and a description of them."""
    return (folder / "dataset_description.json").is_file() and any(folder.glob("sub-*"))


def anatomical_images(dataset: Path) -> list[Path]:
    """Return the NIfTI files in the anat folders of a data set, sorted."""
    return _find_images(dataset, "sub-*/**/anat/*")


def images_below(folder: Path) -> list[Path]:
    """Return the NIfTI files below any folder, sorted; without label files and derivatives."""
    return [
        path
        for path in _find_images(folder, "**/*")
        if "derivatives" not in path.relative_to(folder).parts and not is_label_file(path)
    ]


def _find_images(folder: Path, pattern: str) -> list[Path]:
    """Not hidden files, which are leftovers, or what macOS puts on foreign drives."""
    return [path for path in find_files(folder, pattern) if is_nifti(path)]


def read_participants(dataset: Path) -> list[dict[str, str]]:
    """Return the rows of participants.tsv by column; none without that file.

    Raises:
        InputError: the table has no column participant_id, or is no text.
    """
    table = dataset / "participants.tsv"
    if not table.is_file():
        return []
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:  # some programs add a signature
            rows = csv.DictReader(lines, delimiter="\t")
            if "participant_id" not in (rows.fieldnames or ()):
                raise InputError(f"{table}: no column participant_id; columns are split by tabs")
            return [{k: v or "" for k, v in row.items() if k is not None} for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: not a table in UTF-8 ({error}); save it as such") from error
