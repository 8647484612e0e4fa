"""The method: from a volume to disc labels, one line per stage."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ivdtool.candidates import Candidates, find_candidates
from ivdtool.constraints import Anchor, Constrained, Constraints, search_constrained
from ivdtool.discs import disc_name
from ivdtool.errors import NoDiscError, RefusedError, UsageError
from ivdtool.inference import Model, load_model
from ivdtool.labels import Disc, DiscLabels
from ivdtool.levels import ShiftAlternative, level_warning, shift_alternatives
from ivdtool.metadata import ModelInfo
from ivdtool.plane import PlaneConfig, find_plane
from ivdtool.preprocessing import Grid, Image, PreprocessingConfig, prepare_image
from ivdtool.search import Assignment, search_skeleton
from ivdtool.verdict import Evidence, gather_evidence
from ivdtool.volumes import Volume, read_volume

__all__ = [
    "Anchor",
    "Constraints",
    "LabelConfig",
    "PlaneConfig",
    "Result",
    "label",
    "label_discs",
]

BORDER_MM = 3.0  # about half the height of a disc
DOUBTFUL_DISC = 0.5  # no image with a disc that is rather wrong than right is certain


@dataclass(frozen=True)
class LabelConfig:
    """What a user may change of the method; None keeps what the model file says.

    Attributes:
        preprocessing: replaces the model's.
        plane: how the sagittal plane is looked for.
        constraints: what is known of the discs beforehand.
        min_score: labels whose mean heatmap value is lower count as no disc found. Noise gives at
            most 0.2, the faintest of the real val images 0.59.
        keep_refused: return labels that the verdict refuses, instead of an error.
    """

    preprocessing: PreprocessingConfig | None = None
    plane: PlaneConfig = field(default_factory=PlaneConfig)
    constraints: Constraints = field(default_factory=Constraints)
    min_score: float = 0.3
    keep_refused: bool = False


@dataclass(frozen=True, eq=False)
class Result:
    """The labels of one image with what led to them.

    Attributes:
        labels: the discs.
        image: the sagittal slab the network saw.
        assignment: the skeleton search's answer.
        seconds: time per stage.
    """

    labels: DiscLabels
    image: Image
    assignment: Assignment
    seconds: dict[str, float]


def label(
    path: str | Path,
    *,
    model: Model | str | Path | None = None,
    volume: int | str | None = None,
    config: LabelConfig | None = None,
) -> DiscLabels:
    """Find and name the discs of one sagittal MRI.

    Args:
        path: a .nii or .nii.gz file.
        model: a loaded model, or its name or file; the one inside the package by default.
        volume: which volume of a 4-D file: an index, or ``"mean"``.
        config: see `LabelConfig`.

    Raises:
        InputError: the image is unreadable or invalid.
        ModelError: the model file is missing, damaged or incompatible.
        NoDiscError: no disc was found, or not as many as there are to find.
        RefusedError: the labels are most likely wrong.
        UsageError: the constraints agree with no labelling, or the model does not know them.
    """
    loaded = model if isinstance(model, Model) else load_model(model)
    return label_discs(read_volume(path, volume), loaded, config or LabelConfig()).labels


def label_discs(volume: Volume, model: Model, config: LabelConfig) -> Result:
    """Run all stages on one volume, in the order of paper 1, section 3.

    Raises:
        InputError: the volume has nothing to label in it.
        NoDiscError: no disc was found, or not as many as there are to find.
        RefusedError: the labels are most likely wrong.
        UsageError: the constraints agree with no labelling, or the model does not know them.
    """
    info, seconds = model.info, dict[str, float]()
    preprocessing = config.preprocessing or info.preprocessing
    with _timed(seconds, "plane"):
        plane = find_plane(volume, preprocessing, config.plane, model.predict)
    with _timed(seconds, "preprocessing"):
        image = prepare_image(volume, preprocessing, plane)
    with _timed(seconds, "network"):
        heatmaps = model.predict([image])[0]
    with _timed(seconds, "candidates"):
        candidates = credible(find_candidates(heatmaps, info.candidates), image.grid)
    with _timed(seconds, "search"):
        found = _search(candidates, info, config.constraints, image, volume.path)
    assignment = found.assignment
    if not assignment.labels or float(np.mean(assignment.scores)) < config.min_score:
        nothing = "no disc found; is it a sagittal spine MRI that shows at least two?"
        raise NoDiscError("; ".join([f"{volume.path}: {nothing}", *volume.warnings]))
    evidence = gather_evidence(assignment, image.grid, config.constraints.tell_level)
    labels = _make_labels(volume, image, found, model, config.constraints, evidence)
    labels = _judge(labels, evidence, found.contradicts_image, info)
    if labels.verdict == "refused" and not config.keep_refused:
        raise RefusedError(
            f"{volume.path}: {labels.warnings[-1]}; label it by hand, or look at what was found "
            "with --keep-refused"
        )
    return Result(labels, image, assignment, seconds)


def credible(candidates: Candidates, grid: Grid) -> Candidates:
    """Return the candidates that are not within 3 mm of the border of the field of view.

    Of a disc that the border cuts, nobody can tell where its tip is, or whether it is in view.
    """
    return candidates.only(grid.shows(candidates.positions, BORDER_MM))


def _search(
    candidates: Candidates, info: ModelInfo, constraints: Constraints, image: Image, path: Path
) -> Constrained:
    if not constraints:
        return Constrained(search_skeleton(candidates, info.skeleton, info.search), 0, 0)
    try:
        return search_constrained(candidates, info.skeleton, info.search, image.grid, constraints)
    except (NoDiscError, UsageError) as error:
        raise type(error)(f"{path}: {error}") from error


def _make_labels(
    volume: Volume,
    image: Image,
    found: Constrained,
    model: Model,
    constraints: Constraints,
    evidence: Evidence,
) -> DiscLabels:
    assignment = found.assignment
    world = image.grid.pixel_to_world(assignment.positions)
    voxels = image.grid.pixel_to_voxel(assignment.positions)
    mean_score = float(np.mean(assignment.scores))
    discs = tuple(
        Disc(
            label=label,
            world_mm=world[index],
            voxel=voxels[index],
            score=float(assignment.scores[index]),
            confidence=model.info.calibration.confidence(
                float(assignment.scores[index]), float(assignment.margins[index]), mean_score
            ),
            margin=float(assignment.margins[index]),
        )
        for index, label in enumerate(assignment.labels)
    )
    judge = model.info.judge
    wrong = 1.0 if judge is None else 1 - judge.probability(evidence)
    moved = shift_alternatives(assignment, model.info.levels, wrong)
    warnings = list(volume.warnings)
    if doubt := level_warning(assignment.labels, moved, model.info.levels):
        warnings.append(doubt)
    if found.levels_moved:
        way = "lower" if found.levels_moved > 0 else "higher"
        warnings.append(
            f"every disc is named {abs(found.levels_moved)} level(s) {way} "
            f"than without {constraints}"
        )
    if found.left_out:
        warnings.append(
            f"{found.left_out} of the discs found do not agree with {constraints}, and are left out"
        )
    return DiscLabels(
        discs=discs,
        source=volume.path,
        header=volume.header,
        search=_summary(found, model.info, constraints, moved),
        warnings=tuple(warnings),
        model={"ModelName": model.info.name, "ModelSHA256": model.sha256},
    )


def _judge(
    labels: DiscLabels, evidence: Evidence, contradicted: bool, info: ModelInfo
) -> DiscLabels:
    """The labels with their verdict, and what is doubtful about them as a warning."""
    if info.judge is None:
        return labels
    verdict, probability = info.judge.verdict(evidence), info.judge.probability(evidence)
    doubts = [*evidence.doubts]
    if contradicted:
        doubts.append("what was said of the levels does not agree with the image")
    least = min(labels.discs, key=lambda disc: disc.confidence)
    if verdict == "certain" and (doubts or least.confidence < DOUBTFUL_DISC):
        verdict = "check"
    warnings = labels.warnings
    if verdict != "certain":
        right = f"all labels are right with a probability of {probability:.2f}"
        doubt = "; ".join([f"{right}, the least sure is {least.name}", *doubts])
        warnings = (*warnings, f"{verdict}: {doubt}")
    return replace(labels, verdict=verdict, probability=probability, warnings=warnings)


def _summary(
    found: Constrained,
    info: ModelInfo,
    constraints: Constraints,
    moved: Sequence[ShiftAlternative],
) -> dict[str, Any]:
    """The sidecar's account of the search: what it minimised, what it found, what came next."""
    assignment = found.assignment
    known = {**constraints.to_dict(), "levels_moved": found.levels_moved}
    return {
        "mode": info.search.mode,
        "cost": assignment.cost,
        "terms": assignment.terms,
        "optimal": assignment.optimal,
        "lower_bound": assignment.lower_bound,
        "nodes": assignment.nodes,
        "shift_margin": assignment.shift_margin,
        "shift_margins": assignment.shift_margins,
        "scale": assignment.scale,
        "rotation_rad": assignment.rotation_rad,
        "alternatives": [
            {
                "cost": alternative.cost,
                "labels": [
                    label
                    for label, choice in zip(info.labels, alternative.choice, strict=True)
                    if choice >= 0
                ],
            }
            for alternative in assignment.alternatives
        ],
        "shift_alternatives": [
            {
                "levels": other.levels,
                "first": disc_name(other.first),
                "last": disc_name(other.last),
                "probability": other.probability,
            }
            for other in moved
        ],
        **({"constraints": known} if constraints else {}),
    }


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
