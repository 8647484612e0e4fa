"""From a checkpoint to the model file that users get: settings, calibration, figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ivdtool import __version__
from ivdtool.calibration import fit_calibration
from ivdtool.candidates import CandidateConfig
from ivdtool.config import from_dict
from ivdtool.errors import InputError, ModelError, NoDiscError
from ivdtool.evaluation import TOLERANCE_MM
from ivdtool.export import export_model
from ivdtool.inference import Model, load_model
from ivdtool.labels import read_labels
from ivdtool.metadata import ModelInfo
from ivdtool.model import STRIDE
from ivdtool.pipeline import LabelConfig, label_discs
from ivdtool.search import SearchConfig
from ivdtool.skeleton import Skeleton
from ivdtool.training.checkpoint import load_checkpoint
from ivdtool.training.dataset import find_sources
from ivdtool.training.loop import TrainingConfig
from ivdtool.volumes import read_volume

__all__ = ["ReleaseConfig", "release_model"]


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
    checkpoint_file: Path,
    output: Path,
    name: str,
    settings: ReleaseConfig,
    calibrate: Sequence[Path] = (),
) -> None:
    """Export a checkpoint's averaged network with everything inference needs.

    Args:
        checkpoint_file: of a training run.
        output: the model file.
        name: of the model.
        settings: see `ReleaseConfig`.
        calibrate: data sets whose val split the confidence is fitted on; none keeps a default.

    Raises:
        InputError: a data set to calibrate on is unusable, or too few discs are found in them.
        ModelError: the checkpoint is unusable, or of a method for comparisons only.
        UsageError: `output` cannot be written.
    """
    checkpoint = load_checkpoint(checkpoint_file)
    if checkpoint.network not in ("hourglass", "hca"):
        raise ModelError(
            f"{checkpoint_file}: network {checkpoint.network} does not draw a heatmap per disc, "
            "which is what labelling works with; export one of hourglass or hca"
        )
    try:
        training = from_dict(TrainingConfig, checkpoint.config)
        if training.labels is None:
            raise ValueError("labels are left open")
        info = ModelInfo(
            name=name,
            labels=training.labels,
            stride=STRIDE,
            skeleton=Skeleton.from_dict(checkpoint.skeleton),
            preprocessing=training.preprocessing,
            candidates=settings.candidates,
            search=settings.search,
            network={"name": checkpoint.network, "arguments": dict(checkpoint.arguments)},
            training={
                "steps": checkpoint.step,
                "batch": training.batch.size,
                "seed": training.seed,
                **{k: v for k, v in checkpoint.data.items() if k != "files"},
                **settings.notes,
            },
            accuracy=settings.accuracy,
            ivdtool=__version__,
        )
    except ValueError as error:
        raise ModelError(f"{checkpoint_file}: unusable settings: {error}") from error
    network = checkpoint.build_network()
    if calibrate:
        with TemporaryDirectory() as folder:
            draft = Path(folder) / "draft.pt"
            export_model(network, info, draft)
            evidence, right = _collect_evidence(load_model(draft, "cpu"), calibrate)
        try:
            info = replace(info, calibration=fit_calibration(evidence, right))
        except ValueError as error:
            raise InputError(f"{calibrate[0]}: calibration: {error}") from error
    export_model(network, info, output)


def _collect_evidence(
    model: Model, datasets: Sequence[Path]
) -> tuple[list[tuple[float, float, float]], list[bool]]:
    """Label the val splits; per disc what the confidence rests on, and whether it was right."""
    evidence: list[tuple[float, float, float]] = []
    right: list[bool] = []
    for source in (s for folder in datasets for s in find_sources(folder, ["val"])):
        truth = read_labels(source.labels)
        try:
            result = label_discs(read_volume(source.image, volume=0), model, LabelConfig())
        except NoDiscError:
            continue
        known = {k: p for k, p in truth.points.items() if k not in truth.uncertain}
        reference = dict(
            zip(known, result.image.grid.world_to_pixel(list(known.values())), strict=True)
        )
        mean_score = float(np.mean([disc.score for disc in result.labels.discs]))
        found = zip(result.assignment.positions, result.labels.discs, strict=True)
        for position, disc in found:
            if disc.label in truth.unknown or disc.label in truth.uncertain:
                continue
            at = reference.get(disc.label)
            offset = (
                np.inf
                if at is None
                else np.hypot(*((position - at[:2]) * result.image.grid.spacing_mm))
            )
            evidence.append((disc.score, disc.margin or 0.0, mean_score))
            right.append(bool(offset <= TOLERANCE_MM))
    return evidence, right
