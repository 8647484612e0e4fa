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

    ``run`` gets config.toml, data.json, metrics.csv, last.pt and best.pt.

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
    # windows are cut from unpadded images: padding is part of what augmentation makes
    unpadded = replace(config.preprocessing, size_multiple=1)
    cases = [
        load_case(source, unpadded, config.labels, config.slab_offsets_mm)
        for source in sources
        if source.split == "train"
    ]
    checks = [
        load_case(source, config.preprocessing, config.labels)
        for source in sources
        if source.split == "val"
    ]
    if not cases:
        raise InputError(f"{datasets[0]}: no labelled image of split train")
    skeleton = mean_skeleton(cases, config.labels)
    data = _manifest(sources)
    run.mkdir(parents=True, exist_ok=True)
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
    digests = {
        f"{source.image.name}": source.digest() for source in sources if source.split == "train"
    }
    total = hashlib.sha256("".join(f"{k}{v}" for k, v in sorted(digests.items())).encode())
    groups = Counter(source.group for source in sources if source.split == "train")
    return {
        "sha256": total.hexdigest(),
        "images": len(digests),
        "groups": dict(sorted(groups.items())),
        "files": digests,
    }


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
