"""Write disc labels: a NIfTI label image and its JSON sidecar, both or neither."""

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ivdtool.discs import disc_name
from ivdtool.errors import InputError, UsageError
from ivdtool.files import (
    LABEL_SUFFIX,
    NIFTI_SUFFIXES,
    atomic_writes,
    nifti_bytes,
    nifti_stem,
    sidecar_path,
)
from ivdtool.label_files import read_labels
from ivdtool.labels import DiscLabels
from ivdtool.volumes import read_volume

__all__ = [
    "check_replaceable",
    "default_name",
    "markups_path",
    "picture_path",
    "write_labels",
]

MARKUPS_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/"
    "Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"
)
MOVED_MM = 0.01  # more than any rounding in a point list
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"  # as in the sidecars of Spine Generic; UTC


def default_name(image: str | Path, suffix: str = LABEL_SUFFIX) -> str:
    """Return the label file name of an image, ``sub-01_T2w_label-discs_dlabel.nii.gz``."""
    return f"{nifti_stem(image)}_{suffix}.nii.gz"


def markups_path(path: str | Path) -> Path:
    """Return the 3D Slicer file beside a label image.

    Raises:
        UsageError: the label image's name does not end in .nii.gz or .nii.
    """
    return Path(path).with_name(f"{nifti_stem(path)}.mrk.json")


def picture_path(path: str | Path) -> Path:
    """Return the picture beside a label image.

    Raises:
        UsageError: the label image's name does not end in .nii.gz or .nii.
    """
    return Path(path).with_name(f"{nifti_stem(path)}.png")


def markups_json(labels: DiscLabels) -> str:
    """Return the discs as a point list of 3D Slicer (markups schema 1.0.3), LPS mm."""
    points = [
        {
            "id": str(disc.label),
            "label": disc.name,
            "description": f"confidence {disc.confidence:.2f}",
            "position": [round(float(x), 6) + 0.0 for x in disc.world_mm * (-1, -1, 1)],
            "positionStatus": "defined",
        }
        for disc in labels.discs
    ]
    markup = {
        "type": "Fiducial",
        "name": "discs",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "labelFormat": "%N-%d",
        "controlPoints": points,
    }
    return json.dumps({"@schema": MARKUPS_SCHEMA, "markups": [markup]}, indent=2) + "\n"


def is_ours(path: Path) -> bool:
    """Whether the sidecar of a label image says that ivdtool wrote it."""
    try:
        made = json.loads(sidecar_path(path).read_text(encoding="utf-8"))["GeneratedBy"]
        return any(generator.get("Name") == "ivdtool" for generator in made)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def check_replaceable(labels: Path, known_as_ours: bool = False) -> None:
    """Check that where nobody named the label image no work of others is lost by writing it.

    That is a label image, sidecar or point list that ivdtool did not write, also under the other
    one of .nii and .nii.gz, which has the same sidecar; or labels that were moved, added or removed
    since.

    Args:
        labels: the label image.
        known_as_ours: ivdtool wrote them, even if no sidecar says so any more.

    Raises:
        UsageError: there is one.
    """
    with suppress(OSError):  # such as a name that is too long, of which writing complains
        sidecar, markups, stem = sidecar_path(labels), markups_path(labels), nifti_stem(labels)
        images = [labels.with_name(stem + suffix) for suffix in NIFTI_SUFFIXES]
        found = [path for path in (*images, sidecar, markups) if path.is_file()]
        ours = known_as_ours or not found or is_ours(labels)
        for path in found:
            if not ours:
                problem = "ivdtool did not write these labels"
            elif (path in images and _is_edited(path)) or (
                path == markups and _is_moved(path, sidecar)
            ):
                problem = "these labels were edited since ivdtool wrote them"
            else:
                continue
            raise UsageError(
                f"{path}: {problem}, and it will not replace them; give another output folder, or "
                "move them away"
            )


def _is_edited(labels: Path) -> bool:
    """Whether a label image is not as its sidecar says."""
    try:
        return bool(read_labels(labels).disputed)
    except InputError:
        with suppress(InputError):
            read_volume(labels)
            return True  # whole, but not as ivdtool writes it: a brush is several voxels
        return False  # damaged: nobody's work


def _is_moved(markups: Path, sidecar: Path) -> bool:
    """Whether a point list has other points than the sidecar.

    3D Slicer gives them new ids when it saves them, but leaves names and places.
    """
    with suppress(InputError, OSError, ValueError, LookupError, TypeError, RecursionError):
        written = {disc_name(label): p for label, p in read_labels(sidecar).points.items()}
        [markup] = json.loads(markups.read_text(encoding="utf-8"))["markups"]
        points = [(point["label"], point["position"]) for point in markup["controlPoints"]]
        return sorted(name for name, _ in points) != sorted(written) or any(
            np.abs(np.array(place) * (-1, -1, 1) - written[name]).max() > MOVED_MM
            for name, place in points
        )
    return False  # damaged, or nothing to compare with


def write_labels(
    labels: DiscLabels, path: str | Path, reproducible: bool = False, slicer: bool = False
) -> None:
    """Write `path` and its sidecar; existing files are replaced.

    The date in the sidecar is SOURCE_DATE_EPOCH, where the environment has it, else now.

    Args:
        labels: what to write.
        path: .nii.gz or .nii; the sidecar has the same stem.
        reproducible: leave the date out, unless SOURCE_DATE_EPOCH gives it: the same labels
            make the same bytes.
        slicer: write a point list for 3D Slicer, ``.mrk.json``, as well.

    Raises:
        UsageError: the name does not end in .nii.gz or .nii, the files would replace the image
            or its own sidecar, or they cannot be written.
    """
    path = Path(path)
    sidecar = sidecar_path(path)
    ours = {path.resolve(), sidecar.resolve()}
    if ours & {labels.source.resolve(), sidecar_path(labels.source).resolve()}:
        raise UsageError(f"{path}: would replace the image or its sidecar; choose another name")
    # the sidecar first: where a kill leaves one of the two, no label image lacks its origin
    contents = {
        sidecar: labels.to_json(_date(reproducible)).encode(),
        path: nifti_bytes(labels.to_nifti(), path),
    }
    if slicer:
        contents[markups_path(path)] = markups_json(labels).encode()
    with atomic_writes(*contents) as temporaries:
        for temporary, content in zip(temporaries, contents.values(), strict=True):
            temporary.write_bytes(content)


def _date(reproducible: bool) -> str | None:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch:
        try:
            return datetime.fromtimestamp(int(epoch), UTC).strftime(DATE_FORMAT)
        except (ValueError, OverflowError, OSError) as error:
            raise UsageError(
                f"SOURCE_DATE_EPOCH must be seconds since 1970, not {epoch}"
            ) from error
    return None if reproducible else datetime.now(UTC).strftime(DATE_FORMAT)
