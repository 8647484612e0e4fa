"""One scan, from its file to the files of its labels: what `label` and `batch` do alike."""

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ivdtool.errors import IvdtoolError, UsageError
from ivdtool.inference import Model
from ivdtool.metadata import ModelInfo
from ivdtool.pipeline import (
    Constraints,
    LabelConfig,
    PlaneConfig,
    Result,
    label_discs,
)
from ivdtool.volumes import read_volume
from ivdtool.writers import write_labels

__all__ = ["Targets", "label_scan", "method_config"]


@dataclass(frozen=True)
class Targets:
    """Files to write for one scan.

    Attributes:
        labels: the label image; its sidecar has the same stem. None writes neither.
        picture: PNG of the slab with the discs; beside labels, one that cannot be drawn or written
            is a warning.
        reproducible: leave the date out of the sidecar.
        slicer: a point list for 3D Slicer beside the label image.
    """

    labels: Path | None = None
    picture: Path | None = None
    reproducible: bool = False
    slicer: bool = False


def method_config(
    info: ModelInfo,
    slices: int | None = None,
    slab_mm: float | None = None,
    normalisation: str | None = None,
    middle: bool = False,
    constraints: Constraints | None = None,
    keep_refused: bool = False,
) -> LabelConfig:
    """Return the model's method with what is not None, or `middle`, replaced.

    Raises:
        UsageError: a value out of range, or both of `slices` and `slab_mm`.
    """
    if slices is not None and slab_mm is not None:
        raise UsageError("the slab is either so many slices or so many mm thick; give one of them")
    preprocessing = info.preprocessing
    try:
        if slices is not None or slab_mm is not None:  # one takes the place of the other
            thickness = preprocessing.slab_mm if slab_mm is None else slab_mm
            preprocessing = replace(preprocessing, slices=slices, slab_mm=thickness)
        if normalisation is not None:
            preprocessing = replace(preprocessing, normalisation=normalisation)  # type: ignore[arg-type]
    except ValueError as error:
        raise UsageError(str(error)) from error
    plane = PlaneConfig(reach_mm=0) if middle else PlaneConfig()
    known = constraints or Constraints()
    return LabelConfig(preprocessing, plane, known, keep_refused=keep_refused)


def label_scan(
    path: Path,
    model: Model,
    config: LabelConfig,
    volume: int | str | None = None,
    targets: Targets | None = None,
) -> Result:
    """Read, label and write one scan; `Result.seconds` has reading and writing, too.

    Raises:
        InputError: the scan is unreadable, or has nothing to label in it.
        NoDiscError: no disc was found, or not as many as there are to find.
        RefusedError: the labels are most likely wrong.
        UsageError: `volume` is out of range, the constraints agree with no labelling, or a file
            cannot be written.
    """
    targets = targets or Targets()
    started = time.perf_counter()
    scan = read_volume(path, volume)
    reading = time.perf_counter() - started
    result = label_discs(scan, model, config)
    started = time.perf_counter()
    if targets.labels is not None:
        write_labels(result.labels, targets.labels, targets.reproducible, targets.slicer)
    if targets.picture is not None and targets.labels is not None:
        result = _try_to_draw(result, targets.picture)
    elif targets.picture is not None:
        _draw(result, targets.picture)
    writing = time.perf_counter() - started
    return replace(result, seconds={"reading": reading, **result.seconds, "writing": writing})


def _try_to_draw(result: Result, picture: Path) -> Result:
    """Draw; the labels are written, so whatever goes wrong is a warning."""
    try:
        _draw(result, picture)
    except Exception as error:  # noqa: BLE001 - see above
        with suppress(OSError):  # one of other labels would mislead
            picture.unlink(missing_ok=True)
        kind = "" if isinstance(error, IvdtoolError) else f"{picture}: {type(error).__name__}: "
        warning = " ".join(f"no picture: {kind}{error}".split())
        labels = replace(result.labels, warnings=(*result.labels.warnings, warning))
        return replace(result, labels=labels)
    return result


def _draw(result: Result, picture: Path) -> None:
    from ivdtool.overlay import OverlayPoint, write_overlay

    image = result.image
    discs = [
        OverlayPoint(float(row), float(col), disc.name, disc.confidence)
        for (row, col), disc in zip(result.assignment.positions, result.labels.discs, strict=True)
    ]
    title = result.labels.source.name
    write_overlay(picture, image.pixels, image.grid.spacing_mm, discs, title)
