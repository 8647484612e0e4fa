"""From a checkpoint to the model file that users get: settings, calibration, figures."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ivdtool import __version__
from ivdtool.calibration import fit_calibration, fit_judge, fit_level_calibration
from ivdtool.candidates import CandidateConfig, find_candidates
from ivdtool.errors import InputError, ModelError, UsageError
from ivdtool.evaluation import TOLERANCE_MM
from ivdtool.export import export_model
from ivdtool.inference import Model, load_model
from ivdtool.levels import shift_evidence
from ivdtool.metadata import ModelInfo
from ivdtool.model import STRIDE
from ivdtool.networks.ensemble import Ensemble
from ivdtool.pipeline import credible
from ivdtool.preprocessing import Grid, Image
from ivdtool.search import Assignment, SearchConfig, search_skeleton
from ivdtool.skeleton import Skeleton
from ivdtool.training.augmentation import AugmentationConfig, Crop, augment
from ivdtool.training.checkpoint import load_checkpoint
from ivdtool.training.dataset import UNSURE_MM, Case, find_sources, load_case
from ivdtool.training.loop import TrainingConfig, settings_of, skeleton_of
from ivdtool.verdict import Evidence, gather_evidence

__all__ = ["ReleaseConfig", "release_model"]

WINDOWS = 14  # that confidence and verdict are fitted on, per val image
MIN_SHIFTED = 20  # windows a level off; of fewer, no probability can be learnt
AS_GIVEN = AugmentationConfig(
    rotation_deg=0, scale=1, aspect=1, bend_mm=0, shift_mm=0, crop_rows=0, crop_cols=0,
    gamma=1, tone=0, invert=0, bias=0, noise=0, blur=0, coarse=0,
)  # fmt: skip
WINDOW_CHANGES = AugmentationConfig(scale=1.2, bend_mm=6, shift_mm=40, min_rows_mm=110)


@dataclass(frozen=True)
class ReleaseConfig:
    """What a model file gets beside what training fixed.

    Attributes:
        candidates: thresholds of the candidates.
        search: weights of the skeleton search.
        notes: free text by key, e.g. licences of the training data; shown by `ivdtool model`.
        accuracy: measured figures by key.
    """

    candidates: CandidateConfig = field(default_factory=CandidateConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    notes: Mapping[str, str] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)


def release_model(
    checkpoint_files: Sequence[Path],
    output: Path,
    name: str,
    settings: ReleaseConfig,
    calibrate: Sequence[Path] = (),
) -> None:
    """Export the averaged network of a checkpoint with everything inference needs.

    Args:
        checkpoint_files: of a training run; of several, the model draws the mean of their heatmaps,
            and has the first one's skeleton.
        output: the model file.
        name: of the model.
        settings: see `ReleaseConfig`.
        calibrate: data sets whose val split confidence and verdict are fitted on; with none the
            confidence keeps a default, and there are no verdicts.

    Raises:
        InputError: a data set to calibrate on is unusable, or too few discs are found in them.
        ModelError: a checkpoint is unusable, or of a method for comparisons only.
        UsageError: `output` cannot be written, or checkpoints differ in labels or preprocessing.
    """
    members = [_read_member(path) for path in checkpoint_files]
    first, *others = members
    for other, path in zip(others, checkpoint_files[1:], strict=True):
        for key in ("labels", "preprocessing"):
            if getattr(other.settings, key) != getattr(first.settings, key):
                raise UsageError(
                    f"{path}: other {key} than {checkpoint_files[0]}; only networks that see and "
                    "draw the same can be exported together"
                )
    network = first.network if not others else Ensemble([member.network for member in members])
    assert first.settings.labels is not None
    info = ModelInfo(
        name=name,
        labels=first.settings.labels,
        stride=STRIDE,
        skeleton=first.skeleton,
        preprocessing=first.settings.preprocessing,
        candidates=settings.candidates,
        search=settings.search,
        network=_together("members", [member.described for member in members]),
        training={**_together("runs", [member.account for member in members]), **settings.notes},
        accuracy=settings.accuracy,
        ivdtool=__version__,
    )
    if calibrate:
        with TemporaryDirectory() as folder:
            draft = Path(folder) / "draft.pt"
            export_model(network, info, draft)
            seen = _observe(load_model(draft, "cpu"), calibrate)
        try:
            info = replace(
                info,
                calibration=fit_calibration(seen.discs, seen.disc_right),
                judge=fit_judge(seen.images, seen.image_right, seen.image_usable, seen.subjects),
            )
            if np.count_nonzero(seen.shifts) >= MIN_SHIFTED:
                levels = fit_level_calibration(seen.level_evidence, seen.shifts)
                info = replace(info, levels=levels)
        except ValueError as error:
            raise InputError(f"{calibrate[0]}: calibration: {error}") from error
    export_model(network, info, output)


@dataclass(frozen=True, eq=False)
class _Member:
    """A network of a model, and what its checkpoint says of it."""

    network: nn.Module
    settings: TrainingConfig
    skeleton: Skeleton
    described: dict[str, Any]
    account: dict[str, Any]


def _read_member(path: Path) -> _Member:
    checkpoint = load_checkpoint(path)
    if checkpoint.network not in ("hourglass", "hca"):
        raise ModelError(
            f"{path}: network {checkpoint.network} does not draw a heatmap per disc, "
            "which is what labelling works with; export one of hourglass or hca"
        )
    settings, skeleton = settings_of(checkpoint, path), skeleton_of(checkpoint, path)
    if settings.labels is None:
        raise ModelError(f"{path}: unusable settings: labels are left open")
    if skeleton.labels != settings.labels:
        raise ModelError(
            f"{path}: unusable settings: the skeleton has other labels than the network"
        )
    return _Member(
        checkpoint.build_network(),
        settings,
        skeleton,
        described={"name": checkpoint.network, "arguments": dict(checkpoint.arguments)},
        account={
            "steps": checkpoint.step,
            "batch": settings.batch.size,
            "seed": settings.seed,
            **{k: v for k, v in checkpoint.data.items() if k != "files"},
        },
    )


def _together(name: str, accounts: list[dict[str, Any]]) -> dict[str, Any]:
    """The account of one, or of several under a name."""
    return accounts[0] if len(accounts) == 1 else {name: accounts}


@dataclass(frozen=True)
class _Observed:
    """Of each disc and each image found the evidence, and what turned out."""

    discs: list[tuple[float, float, float]] = field(default_factory=list)
    disc_right: list[bool] = field(default_factory=list)
    images: list[Evidence] = field(default_factory=list)
    image_right: list[bool] = field(default_factory=list)
    image_usable: list[bool] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    level_evidence: list[npt.NDArray[np.float64]] = field(default_factory=list)
    shifts: list[int] = field(default_factory=list)


def _observe(model: Model, datasets: Sequence[Path]) -> _Observed:
    """Label every val image as given, and windows of it as other scanners might have shown it.

    Of a few good images alone one would learn that all discs are right.
    """
    seen = _Observed()
    sources = [source for folder in datasets for source in find_sources(folder, ["val"])]
    for number, source in enumerate(sources):
        unpadded = replace(model.info.preprocessing, size_multiple=1)
        case = load_case(source, unpadded, model.info.labels)
        for index in range(WINDOWS + 1):
            rng = np.random.default_rng([number, index])
            changes = WINDOW_CHANGES if index else AS_GIVEN
            window = _window(case, changes, model.info.preprocessing.size_multiple, rng)
            found, grid = _search(model, window)
            if found.labels:
                seen.images.append(gather_evidence(found, grid))
                _compare(seen, case, window, found)
    return seen


def _compare(seen: _Observed, case: Case, window: Crop, found: Assignment) -> None:
    """Add one image to what was seen."""
    doubtful = case.unknown | {
        label
        for label, certain, inside in zip(case.labels, case.certain, window.inside_mm, strict=True)
        if not certain or abs(inside) <= UNSURE_MM
    }
    points = dict(zip(case.labels, window.points, strict=True))
    inside_mm = dict(zip(case.labels, window.inside_mm, strict=True))
    mean_score = float(found.scores.mean())
    right = {}
    for label, position, score, margin in zip(
        found.labels, found.positions, found.scores, found.margins, strict=True
    ):
        if label not in doubtful:
            offset = position - points.get(label, np.full(2, np.inf))
            right[label] = bool(np.hypot(*offset) <= TOLERANCE_MM)
            seen.discs.append((float(score), float(margin), mean_score))
            seen.disc_right.append(right[label])
    wanted = {label for label in points if inside_mm[label] > UNSURE_MM} - doubtful
    seen.image_right.append(all(right.values()) and wanted <= right.keys())
    seen.image_usable.append(2 * sum(right.values()) >= len(right) > 0)
    seen.subjects.append(case.source.subject)
    shift, evidence = _shift(found, points), shift_evidence(found)
    if shift in (-1, 0, 1) and evidence is not None:
        seen.level_evidence.append(evidence)
        seen.shifts.append(shift)


def _shift(found: Assignment, truth: Mapping[int, npt.NDArray[np.float64]]) -> int | None:
    """What must be added to most labels of the points that are discs; None if to no majority."""
    steps = Counter(
        label - own
        for own, position in zip(found.labels, found.positions, strict=True)
        for label, point in truth.items()
        if np.hypot(*(position - point)) <= TOLERANCE_MM
    )
    [(step, count)] = steps.most_common(1) or [(0, 0)]
    return step if 2 * count > steps.total() else None


def _window(
    case: Case, changes: AugmentationConfig, size_multiple: int, rng: np.random.Generator
) -> Crop:
    pixels = torch.from_numpy(case.planes[0].astype(np.float32))
    rows, cols = (size_multiple * math.ceil(n / size_multiple) for n in pixels.shape)
    return augment(pixels, case.points, case.spine_col, (rows, cols), changes, rng)


def _search(model: Model, window: Crop) -> tuple[Assignment, Grid]:
    """The stages after preprocessing, on 1 mm pixels; and these pixels' grid."""
    rows, cols = window.pixels.shape
    grid = Grid((rows, cols), (1.0, 1.0), np.eye(4), np.eye(4), window.field)
    (heatmaps,) = model.predict([Image(window.pixels.numpy(), grid)])
    info = model.info
    candidates = credible(find_candidates(heatmaps, info.candidates), grid)
    return search_skeleton(candidates, info.skeleton, info.search), grid
