"""A training run from BIDS folders to checkpoints, and what is written down about it."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ivdtool.candidates import CandidateConfig
from ivdtool.config import read_toml, to_toml
from ivdtool.errors import InputError, UsageError
from ivdtool.files import atomic_write
from ivdtool.labels import read_labels
from ivdtool.search import SearchConfig
from ivdtool.skeleton import Skeleton
from ivdtool.training.dataset import Case, Source, find_sources, load_case
from ivdtool.training.loop import TrainingConfig, train_network
from ivdtool.training.validation import validate

__all__ = ["mean_skeleton", "run_training"]


def run_training(
    datasets: Sequence[Path],
    config: TrainingConfig,
    run: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    resume: bool = False,
    report: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
) -> Path:
    """Train on the train splits, validate on the val splits; return the last checkpoint.

    ``run`` gets config.toml, data.json, metrics.csv, last.pt and best.pt. Labels that the
    settings leave open become all from the first to the last that the train splits show.

    Raises:
        InputError: a data set is unusable.
        UsageError: the run exists and `resume` is not set, or the other way round.
    """
    if resume:
        if not (run / "last.pt").is_file():
            raise UsageError(f"{run}: no checkpoint to resume from; start without --resume")
        config = read_toml(TrainingConfig, run / "config.toml")
    elif (run / "last.pt").exists():
        raise UsageError(f"{run}: holds a run already; choose another folder or --resume")
    if threads is not None:
        torch.set_num_threads(threads)
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    sources = [source for folder in datasets for source in find_sources(folder, ["train", "val"])]
    training = [source for source in sources if source.split == "train"]
    if not training:
        raise InputError(f"{datasets[0]}: no labelled image of split train")
    labels = config.labels or _shown_labels(training)
    config = replace(config, labels=labels)
    # windows are cut from unpadded images: padding is part of what augmentation makes
    unpadded = replace(config.preprocessing, size_multiple=1)
    cases = [load_case(source, unpadded, labels, config.slab_offsets_mm) for source in training]
    checks = [
        load_case(source, config.preprocessing, labels)
        for source in sources
        if source.split == "val"
    ]
    skeleton = mean_skeleton(cases, labels)
    data = _manifest(training)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{run}: cannot make this folder: {error.strerror}") from error
    _write_text(run / "config.toml", to_toml(config))
    _write_text(run / "data.json", json.dumps(data, indent=1))
    return train_network(
        cases,
        config,
        run,
        skeleton=skeleton.to_dict(),
        data=data,
        validate=lambda network: validate(
            network, checks, skeleton, CandidateConfig(), SearchConfig(), place
        ),
        device=place,
        resume=resume,
        report=report,
    )


def _shown_labels(sources: Sequence[Source]) -> tuple[int, ...]:
    shown: set[int] = set()
    for source in sources:
        found = read_labels(source.labels)
        shown |= found.points.keys() - found.uncertain
    if not shown:
        raise InputError("training labels: no disc in any of the label files")
    return tuple(range(min(shown), max(shown) + 1))


def mean_skeleton(cases: Sequence[Case], labels: Sequence[int]) -> Skeleton:
    """Build the skeleton of `labels` from the certain discs of training cases.

    Raises:
        InputError: some neighbouring discs are never seen together, or not at all.
    """
    points = [
        {
            label: (float(point[0]), float(point[1]))
            for label, point, certain in zip(case.labels, case.points, case.certain, strict=True)
            if certain
        }
        for case in cases
    ]
    try:
        skeleton = Skeleton.from_points(points)
    except ValueError as error:
        raise InputError(f"training labels: no mean skeleton: {error}") from error
    if skeleton.labels != tuple(labels):
        raise InputError(
            f"training labels cover {skeleton.labels[0]}..{skeleton.labels[-1]}, but the settings "
            f"ask for {labels[0]}..{labels[-1]}; set labels to what the data shows"
        )
    return skeleton


def _manifest(sources: Sequence[Source]) -> dict[str, Any]:
    """What a model was trained on: counts by group, subjects, and one hash over all files."""
    files = sorted(f"{source.digest()}  {source.image.name}" for source in sources)
    groups = Counter(source.group for source in sources)
    return {
        "sha256": hashlib.sha256("\n".join(files).encode()).hexdigest(),
        "images": len(files),
        "groups": dict(sorted(groups.items())),
        "files": files,
    }


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
