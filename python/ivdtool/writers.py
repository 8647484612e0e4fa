"""Write disc labels: a NIfTI label image and its JSON sidecar, both or neither."""

import os
from datetime import UTC, datetime
from pathlib import Path

from ivdtool.errors import UsageError
from ivdtool.files import atomic_writes, nifti_bytes, nifti_stem
from ivdtool.labels import DiscLabels

__all__ = ["default_name", "sidecar_path", "write_labels"]

DATE_FORMAT = "%Y-%m-%d %H:%M:%S"  # as in the sidecars of Spine Generic; UTC


def default_name(image: str | Path) -> str:
    """Return the label file name of an image, ``sub-01_T2w_label-discs_dlabel.nii.gz``."""
    return f"{nifti_stem(image)}_label-discs_dlabel.nii.gz"


def sidecar_path(path: str | Path) -> Path:
    """Return the JSON file beside a label image.

    Raises:
        UsageError: the label image's name does not end in .nii.gz or .nii.
    """
    return Path(path).with_name(f"{nifti_stem(path)}.json")


def write_labels(labels: DiscLabels, path: str | Path, reproducible: bool = False) -> None:
    """Write `path` and its sidecar; existing files are replaced.

    The date in the sidecar is SOURCE_DATE_EPOCH, where the environment has it, else now.

    Args:
        labels: what to write.
        path: .nii.gz or .nii; the sidecar has the same stem.
        reproducible: leave the date out, unless SOURCE_DATE_EPOCH gives it: the same labels
            make the same bytes.

    Raises:
        UsageError: the name does not end in .nii.gz or .nii, the files would replace the image
            or its own sidecar, or they cannot be written.
    """
    path = Path(path)
    sidecar = sidecar_path(path)
    ours = {path.resolve(), sidecar.resolve()}
    if ours & {labels.source.resolve(), sidecar_path(labels.source).resolve()}:
        raise UsageError(f"{path}: would replace the image or its sidecar; choose another name")
    image = nifti_bytes(labels.to_nifti(), path)
    text = labels.to_json(_date(reproducible))
    with atomic_writes(path, sidecar) as (temporary_image, temporary_sidecar):
        temporary_image.write_bytes(image)
        temporary_sidecar.write_text(text, encoding="utf-8", newline="\n")


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
