"""A training run from BIDS folders to checkpoints, and what is written down about it."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ivdtool.config import read_toml, to_toml
from ivdtool.discs import ALL_LABELS
from ivdtool.errors import InputError, UsageError
from ivdtool.files import atomic_write, file_sha256, make_folder
from ivdtool.methods.registry import method_of
from ivdtool.skeleton import Skeleton
from ivdtool.training.checkpoint import Checkpoint, load_checkpoint, mean_checkpoint
from ivdtool.training.dataset import Case, Source, find_sources
from ivdtool.training.engine import start_fabric, stop_fabric
from ivdtool.training.loop import TrainingConfig, settings_of, skeleton_of
from ivdtool.training.progress import Progress
from ivdtool.training.slabs import SlabConfig, prepare_cases

__all__ = ["mean_skeleton", "run_training"]

MAX_WORKERS = 8  # what a GPU needs to be kept busy


@dataclass(frozen=True, eq=False)
class _Material:
    """What a run works with; the first process gathers it for all."""

    config: TrainingConfig
    cases: list[Case]
    checks: list[Case]
    skeleton: Skeleton
    data: dict[str, Any]


def run_training(
    datasets: Sequence[Path],
    config: TrainingConfig,
    run: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    workers: int | None = None,
    cache: Path | None = None,
    initial: Sequence[Path] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Train on the train splits, validate on the val splits; return the last checkpoint.

    ``run`` gets config.toml, data.json, last.pt, best.pt, metrics.csv, tensorboard/ and, at the
    end, curves.png. Labels that the settings leave open become all from the first to the last
    that the train splits show. Images that cannot be used are skipped with a warning.

    Args:
        datasets: BIDS data sets.
        config: see `TrainingConfig`; a resumed run's own settings hold instead.
        run: folder of the run.
        device: ``auto``, ``cpu`` or ``cuda``, see `start_fabric`.
        threads: CPU threads of the network; torch decides when None.
        workers: processes that make batches; None for none on CPUs, which the network keeps busy,
            and some on GPUs.
        cache: folder of prepared images, see `prepare_cases`; ``slab-cache`` beside `run` when
            None.
        initial: checkpoints of one network; the run starts with the mean of their averaged
            weights. Labels that the settings leave open, and the skeleton, are then the first's.
        resume: go on from the run's last checkpoint.
        progress: is told what happens.

    Raises:
        InputError: a data set is unusable, or not as it was when the resumed run began.
        ModelError: a checkpoint is unusable.
        UsageError: the run exists and `resume` is not set, or the other way round; the initial
            weights are of another network; the device is not there.
    """
    progress = progress or Progress()
    before = start = None
    if resume:
        if not (run / "last.pt").is_file():
            raise UsageError(f"{run}: no checkpoint to resume from; start without --resume")
        config = read_toml(TrainingConfig, run / "config.toml")
        before = load_checkpoint(run / "last.pt")
    elif (run / "last.pt").exists():
        raise UsageError(f"{run}: holds a run already; choose another folder or --resume")
    elif initial:
        starts = [load_checkpoint(path) for path in initial]
        for path, each in zip(initial, starts, strict=True):
            config = _agreed(config, each, path)
        start = mean_checkpoint(starts)
    if threads is not None:
        torch.set_num_threads(threads)
    fabric = start_fabric(device, config.precision, config.deterministic)
    material = None
    if fabric.is_global_zero:
        folder = run.absolute().parent / "slab-cache" if cache is None else cache
        skeleton = None
        if before is not None:
            skeleton = skeleton_of(before, run / "last.pt")
        elif start is not None:
            skeleton = skeleton_of(start, initial[0])
        material = _gather(datasets, config, skeleton, folder, progress)
        if before is None:
            if initial:
                material.data["initial_sha256"] = [file_sha256(path) for path in initial]
            _write_account(run, material)
        elif material.data["files"] != before.data.get("files"):
            raise InputError(
                f"{run}: the data have changed since this run began; start another one, "
                f"with --init {run / 'last.pt'} if it shall go on from there"
            )
    material = fabric.broadcast(material)
    assert material is not None
    if workers is None:
        workers = 0 if fabric.device.type == "cpu" else min(MAX_WORKERS, os.cpu_count() or 1)
    progress.start(before.step if before else 0, material.config.optimiser.steps)
    last = method_of(config.network).fit(
        material.cases,
        material.config,
        run,
        checks=material.checks,
        skeleton=material.skeleton,
        data=before.data if before else material.data,
        fabric=fabric,
        resume=before,
        initial=start,
        workers=workers,
        report=progress.step,
    )
    stop_fabric(fabric)
    return last


def _agreed(config: TrainingConfig, start: Checkpoint, path: Path) -> TrainingConfig:
    """The settings, with the checkpoint's labels if they leave them open; one network, or else."""
    theirs = settings_of(start, path)
    ours = replace(config, labels=config.labels or theirs.labels)
    for name in ("network", "arguments", "labels"):
        if getattr(ours, name) != getattr(theirs, name):
            raise UsageError(
                f"{path}: trained with {name} {getattr(theirs, name)}, not "
                f"{getattr(ours, name)}; initial weights must be of the same network"
            )
    return ours


def _gather(
    datasets: Sequence[Path],
    config: TrainingConfig,
    skeleton: Skeleton | None,
    cache: Path,
    progress: Progress,
) -> _Material:
    sources = [source for folder in datasets for source in find_sources(folder, ["train", "val"])]
    training = [source for source in sources if source.split == "train"]
    if not training:
        raise InputError(f"{datasets[0]}: no labelled image of split train")
    channels = config.labels or ALL_LABELS
    # windows are cut from unpadded images: padding is part of what augmentation makes
    unpadded = replace(config.preprocessing, size_multiple=1)
    progress.images(len(sources))
    cases, skipped = prepare_cases(
        training,
        SlabConfig(unpadded, channels, config.slab_offsets_mm),
        cache,
        progress.image,
    )
    checks, skipped_checks = prepare_cases(
        [source for source in sources if source.split == "val"],
        SlabConfig(config.preprocessing, channels),
        cache,
        progress.image,
    )
    skipped |= skipped_checks
    labels = config.labels or _certain_labels(cases)
    for case in (*cases, *checks):
        if not set(labels).intersection(case.labels):
            skipped[case.source] = (
                f"{case.source.labels}: no disc that the training images are certain of"
            )
    for reason in skipped.values():
        progress.warn(f"{reason}; the image is skipped")
    cases, checks = (
        [case.restricted(labels) for case in group if case.source not in skipped]
        for group in (cases, checks)
    )
    if not cases:
        raise InputError(f"{datasets[0]}: no image of split train can be used, see above")
    if not checks:
        progress.warn(
            f"{datasets[0]}: no image of split val can be used; figures of val say nothing, and "
            "the last checkpoint is as good as the best"
        )
    if config.optimiser.patience and not checks:
        raise UsageError(f"{datasets[0]}: to stop early (patience) needs images of split val")
    return _Material(
        config=replace(
            config,
            labels=labels,
            optimiser=config.optimiser.in_steps(len(cases), config.batch.size),
        ),
        cases=cases,
        checks=checks,
        skeleton=skeleton or mean_skeleton(cases, labels),
        data=_manifest(cases, checks, skipped),
    )


def _certain_labels(cases: Sequence[Case]) -> tuple[int, ...]:
    """All labels from the first to the last that some case is certain of; none without one."""
    shown = {
        label
        for case in cases
        for label, certain in zip(case.labels, case.certain, strict=True)
        if certain
    }
    return tuple(range(min(shown), max(shown) + 1)) if shown else ()


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
        raise InputError(
            f"training labels: no mean skeleton: {error}; add images that do, or set labels to "
            "those of one region"
        ) from error
    if skeleton.labels != tuple(labels):
        raise InputError(
            f"training labels cover {skeleton.labels[0]}..{skeleton.labels[-1]}, but the settings "
            f"ask for {labels[0]}..{labels[-1]}; set labels to what the data shows"
        )
    return skeleton


def _manifest(
    cases: Sequence[Case], checks: Sequence[Case], skipped: Mapping[Source, str]
) -> dict[str, Any]:
    """What a model was trained on: counts, one hash over all files, and every file."""
    hashes = sorted(f"{case.digest}  {case.source.image.name}" for case in cases)
    groups = Counter(case.source.group for case in cases)
    used = [{**_identity(case.source), "sha256": case.digest} for case in (*cases, *checks)]
    unused = [{**_identity(source), "skipped": reason} for source, reason in skipped.items()]
    return {
        "sha256": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
        "images": len(cases),
        "groups": dict(sorted(groups.items())),
        "val_images": len(checks),
        "files": used + unused,
    }


def _identity(source: Source) -> dict[str, Any]:
    return {
        "split": source.split,
        "subject": source.subject,
        "image": source.image.name,
        "group": source.group,
    }


def _write_account(run: Path, material: _Material) -> None:
    """Write down what the run does on what."""
    make_folder(run)
    for name, text in (
        ("config.toml", to_toml(material.config)),
        ("data.json", json.dumps(material.data, indent=1)),
    ):
        with atomic_write(run / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
