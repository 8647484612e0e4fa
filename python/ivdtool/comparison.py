"""Methods side by side: trained for as long on one data set, scored on the same images.

For every seed and method: train, or take up the run that is there; find the discs of every image of
the evaluation split, with the skeleton search and by the method's own means; score them. All of it
is kept in one folder, so that nothing finished is done again::

    FOLDER/budget.json                          what all runs have in common
    FOLDER/slab-cache/                          prepared images, for all runs
    FOLDER/METHOD/seed0/                        a training run
    FOLDER/METHOD/seed0/test-with-search/       discs found, one JSON file per image
    FOLDER/METHOD/seed0/test-without-search/
"""

import csv
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ivdtool.bids import BidsImage, find_images
from ivdtool.config import read_toml, to_dict
from ivdtool.device import choose_device
from ivdtool.errors import InputError, UsageError
from ivdtool.files import atomic_write, sidecar_path
from ivdtool.labels import Disc, DiscLabels
from ivdtool.methods.registry import Predictor, load_predictor
from ivdtool.plane import plane_through
from ivdtool.preprocessing import Image, PreprocessingConfig, prepare_image
from ivdtool.scoring import Evaluation, evaluate_folder, read_truth
from ivdtool.training.checkpoint import load_checkpoint
from ivdtool.training.loop import TrainingConfig
from ivdtool.training.presets import read_settings
from ivdtool.training.progress import Progress
from ivdtool.training.run import run_training
from ivdtool.volumes import Volume, read_volume
from ivdtool.writers import default_name

__all__ = ["TABLE", "Budget", "Comparison", "Run", "compare_methods"]

TABLE = (
    "paper-template",
    "paper-counting",
    "paper-hourglass",
    "paper-attention",
    "paper-lookonce",
    "paper-hca-noskeleton",
    "paper-hca",
)
"""Presets of the rows of paper 2's table 1; it has no row of its own for the attention."""

EPOCHS = 10  # of a run: how often it is validated, and can be resumed
TIMED_STEPS = 4  # after one that is not measured, as it makes the network's plans
TIMED_IMAGES = 6
TIMED_ROUNDS = 2
SEARCHES = {True: "with-search", False: "without-search"}


@dataclass(frozen=True)
class Budget:
    """What every run may spend: one of the two.

    Attributes:
        minutes: of training, validation aside. They become optimiser steps by the time that a
            step takes, which is measured beforehand, so that a run can be repeated exactly.
        steps: optimiser steps.

    Raises:
        ValueError: a value out of range.
    """

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("the budget must be either minutes or steps")
        if not (self.minutes or self.steps or 0) > 0:
            raise ValueError("the budget must be positive")

    def __str__(self) -> str:
        count, unit = (self.minutes, "minute") if self.minutes else (self.steps, "step")
        return f"{count:g} {unit}{'s' * (count != 1)}"


@dataclass(frozen=True, eq=False)
class Run:
    """A trained method and how well it does.

    Attributes:
        method: its name.
        seed: of the training.
        steps: optimiser steps done; 0 where nothing is learnt by steps.
        train_seconds: that these took, validation aside.
        images_per_step: training windows per step.
        parameters: learnt by gradient; the mean templates of template matching are none.
        evaluations: by whether the skeleton search was used.
    """

    method: str
    seed: int
    steps: int
    train_seconds: float
    images_per_step: int
    parameters: int
    evaluations: Mapping[bool, Evaluation]

    @property
    def seconds_per_image(self) -> float:
        """Training time per training window, NaN where nothing is learnt by steps."""
        images = self.steps * self.images_per_step
        return self.train_seconds / images if images else math.nan


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several methods on one data set.

    Attributes:
        dataset: the data set.
        split: of the images that were scored.
        budget: of every run.
        checkpoint: which of a run's two was used: ``best.pt``, or ``last.pt`` on val itself.
        device: where it was computed.
        threads: of the CPU.
        runs: by seed, then method.
        milliseconds: median time from a prepared image to its discs, by method and whether with
            the skeleton search; all measured in turns.
    """

    dataset: Path
    split: str
    budget: Budget
    checkpoint: str
    device: str
    threads: int
    runs: tuple[Run, ...]
    milliseconds: Mapping[tuple[str, bool], float]

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods, in the order they were asked for."""
        return tuple(dict.fromkeys(run.method for run in self.runs))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the training."""
        return tuple(dict.fromkeys(run.seed for run in self.runs))

    def runs_of(self, method: str) -> tuple[Run, ...]:
        """Return the runs of a method, by seed."""
        return tuple(run for run in self.runs if run.method == method)


def compare_methods(
    dataset: Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    budget: Budget,
    folder: Path,
    *,
    split: str = "test",
    device: str = "auto",
    threads: int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Train every method with every seed on the train split, and score it on another.

    What `folder` holds already is not done again; a run that was interrupted goes on from its last
    checkpoint. Slabs lie where the annotated discs do, as in the papers: what is compared is where
    in the sagittal plane discs are found, and what they are called.

    Args:
        dataset: BIDS data set whose participants.tsv has a column split.
        methods: names of presets, or TOML files of training settings.
        seeds: of the runs of each method.
        budget: of each run.
        folder: for everything; made where it is not there.
        split: images to score, ``test`` or ``val``. On test the checkpoint is the best by val. On
            val it is the last: to choose by val and to report val would flatter.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: CPU threads of the networks.
        tell: takes a line of progress.

    Raises:
        InputError: the data set is unusable.
        ModelError: a checkpoint in `folder` is unusable.
        UsageError: settings are refused, no CUDA device, or `folder` holds runs on other data, with
            another budget, or other settings.
    """
    settings = _read_all(methods)
    images = _scored_images(dataset, split)
    for image in images:  # an unusable one is found now, not after hours
        _prepare(image, PreprocessingConfig())
    place = choose_device(device).type
    if threads is not None:
        torch.set_num_threads(threads)
    account = _open_account(folder, dataset, budget)

    def train(config: TrainingConfig, run: Path, **more: Any) -> None:
        cache = folder / "slab-cache"
        run_training([dataset], config, run, device=place, threads=threads, cache=cache, **more)

    for name, config in settings.items():
        if budget.minutes is not None and name not in account.seconds_per_step:
            tell(f"{name}: measuring how long a step takes")
            account.seconds_per_step[name] = _time_step(config, folder, train)
            account.write()
    checkpoint = "last.pt" if split == "val" else "best.pt"
    predictors: dict[str, Predictor] = {}
    runs = []
    for seed in seeds:
        for name, config in settings.items():
            wanted = _with_steps(replace(config, seed=seed), account.steps(name))
            run = folder / name / f"seed{seed}"
            _finish(wanted, run, train, tell)
            predictor = load_predictor(run / checkpoint, device=place)
            predictors.setdefault(name, predictor)
            tell(f"{run}: scoring {len(images)} images")
            runs.append(_score(name, seed, run, predictor, dataset, split, images))
    tell("measuring how long an image takes")
    return Comparison(
        dataset=dataset,
        split=split,
        budget=budget,
        checkpoint=checkpoint,
        device=place,
        threads=torch.get_num_threads(),
        runs=tuple(runs),
        milliseconds=_time_in_turns(predictors, images),
    )


def _read_all(methods: Sequence[str]) -> dict[str, TrainingConfig]:
    """Settings by name; that of a file is its stem."""
    settings: dict[str, TrainingConfig] = {}
    for method in methods:
        name = Path(method).stem if method.endswith(".toml") else method
        if name in settings:
            raise UsageError(f"{name} is named twice among the methods")
        settings[name] = read_settings(method)
    if not settings:
        raise UsageError("name a method, or all")
    return settings


def _scored_images(dataset: Path, split: str) -> list[BidsImage]:
    """The labelled images of the split; there must be some to learn from, too."""
    labelled = [
        image
        for image in find_images(dataset)
        if image.labels is not None and read_truth(image)[0].points
    ]
    for needed in ("train", split):
        if not any(image.participant.get("split") == needed for image in labelled):
            raise InputError(
                f"{dataset}: no labelled image of split {needed}; participants.tsv must have a "
                "column split that says train, val or test"
            )
    return [image for image in labelled if image.participant["split"] == split]


# --- what all runs have in common


@dataclass
class _Account:
    """``budget.json``: what must be the same for all runs in a folder."""

    path: Path
    dataset: str
    budget: Budget
    seconds_per_step: dict[str, float]

    def steps(self, method: str) -> int:
        """How many optimiser steps the budget allows a method."""
        if self.budget.minutes is None:
            assert self.budget.steps is not None
            return self.budget.steps
        seconds = self.seconds_per_step[method]
        return max(1, round(60 * self.budget.minutes / seconds)) if seconds else 1

    def write(self) -> None:
        document = {
            "dataset": self.dataset,
            "minutes": self.budget.minutes,
            "steps": self.budget.steps,
            "seconds_per_step": self.seconds_per_step,
        }
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _open_account(folder: Path, dataset: Path, budget: Budget) -> _Account:
    account = _Account(folder / "budget.json", str(dataset.resolve()), budget, {})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not account.path.exists():
            account.write()
        document = json.loads(account.path.read_text(encoding="utf-8"))
        before = Budget(document["minutes"], document["steps"])
        account.seconds_per_step.update(document["seconds_per_step"])
        theirs = document["dataset"]
    except OSError as error:
        raise UsageError(f"{folder}: unusable as a folder: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{account.path}: damaged; choose another folder") from error
    if (theirs, before) != (account.dataset, budget):
        raise UsageError(
            f"{folder}: holds runs of {before} on {theirs}; choose another folder, or the same "
            "budget and data"
        )
    return account


def _with_steps(config: TrainingConfig, steps: int) -> TrainingConfig:
    optimiser = replace(
        config.optimiser, steps=steps, steps_per_epoch=math.ceil(steps / EPOCHS), epochs=None
    )
    return replace(config, optimiser=optimiser)


# --- training


class _EnoughError(Exception):
    """Ends a run whose steps have been timed."""


class _StepTimer(Progress):
    """Notes when steps end, and ends the run."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        del step, metrics
        self.ends.append(time.perf_counter())
        if len(self.ends) == 1 + TIMED_STEPS:
            raise _EnoughError


def _time_step(config: TrainingConfig, folder: Path, train: Callable[..., None]) -> float:
    """Median seconds of an optimiser step; 0 where the method takes none."""
    timer, endless = _StepTimer(), _with_steps(config, 10**6)
    with TemporaryDirectory(dir=folder, prefix=".timing-") as scratch, suppress(_EnoughError):
        train(endless, Path(scratch) / "run", progress=timer)
    return statistics.median(np.diff(timer.ends)) if timer.ends else 0.0


def _finish(
    wanted: TrainingConfig, run: Path, train: Callable[..., None], tell: Callable[[str], None]
) -> None:
    """Train, unless it has been done; go on where it was interrupted."""
    last = run / "last.pt"
    if not last.is_file():
        tell(f"{run}: training")
        train(wanted, run)
        return
    theirs = to_dict(read_toml(TrainingConfig, run / "config.toml"))
    ours = to_dict(wanted)
    ours.setdefault("labels", theirs.get("labels"))  # left open, they come from the data
    if changed := sorted(
        name for name in ours.keys() | theirs if ours.get(name) != theirs.get(name)
    ):
        raise UsageError(
            f"{run}: trained with another {changed[0]} than asked for; choose another folder, "
            "or delete this run"
        )
    done = load_checkpoint(last).step
    if 0 < done < wanted.optimiser.steps:
        tell(f"{run}: going on from step {done} of {wanted.optimiser.steps}")
        train(wanted, run, resume=True)


def _epoch_seconds(run: Path) -> list[float]:
    """Seconds of training in each epoch, without validation."""
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as lines:
        return [float(row["seconds"]) for row in csv.DictReader(lines)]


# --- scoring


def _score(
    name: str,
    seed: int,
    run: Path,
    predictor: Predictor,
    dataset: Path,
    split: str,
    images: Sequence[BidsImage],
) -> Run:
    evaluations = {}
    for search, suffix in SEARCHES.items():
        found = run / f"{split}-{suffix}"
        if not found.is_dir():
            _find_discs(replace(predictor, search=search), images, found)
        evaluations[search] = evaluate_folder(found, dataset, split)
    checkpoint = load_checkpoint(run / "last.pt")
    return Run(
        method=name,
        seed=seed,
        steps=checkpoint.step,
        train_seconds=sum(_epoch_seconds(run)),
        images_per_step=checkpoint.config["batch"]["size"],
        parameters=sum(weight.numel() for weight in predictor.network.parameters()),
        evaluations=evaluations,
    )


def _find_discs(predictor: Predictor, images: Sequence[BidsImage], folder: Path) -> None:
    """Write the discs of all images into a folder that appears once it is complete."""
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for image in images:
        volume, slab = _prepare(image, predictor.preprocessing)
        discs = predictor.predict(slab.pixels)
        names = sorted(discs)
        pixels = np.array([discs[label] for label in names]).reshape(-1, 2)
        world, voxels = slab.grid.pixel_to_world(pixels), slab.grid.pixel_to_voxel(pixels)
        labels = DiscLabels(
            discs=tuple(
                # methods say where discs are, not how sure they are of it
                Disc(label, world[row], voxels[row], score=math.nan, confidence=math.nan)
                for row, label in enumerate(names)
            ),
            source=image.path,
            header=volume.header,
        )
        path = partial / sidecar_path(default_name(image.path))
        path.write_text(labels.to_json(), encoding="utf-8")
    partial.rename(folder)


def _prepare(image: BidsImage, config: PreprocessingConfig) -> tuple[Volume, Image]:
    """The volume and its slab at the median plane of the annotated discs."""
    truth, _ = read_truth(image)
    volume = read_volume(image.path, volume=0)
    plane = plane_through(volume, list(truth.points.values()))
    return volume, prepare_image(volume, config, plane)


def _time_in_turns(
    predictors: Mapping[str, Predictor], images: Sequence[BidsImage]
) -> dict[tuple[str, bool], float]:
    """Median milliseconds per image; methods take turns, lest one meets a busy computer."""
    chosen = images[:: math.ceil(len(images) / TIMED_IMAGES)]
    contenders = {
        (name, search): replace(predictor, search=search)
        for name, predictor in predictors.items()
        for search in SEARCHES
    }
    seconds: dict[tuple[str, bool], list[float]] = {key: [] for key in contenders}
    for slabs in _slabs(chosen, predictors):
        for turn in range(1 + TIMED_ROUNDS):
            for key, predictor in contenders.items():
                started = time.perf_counter()
                predictor.predict(slabs[key[0]].pixels)
                if turn > 0:  # the first of its size makes the network's plans
                    seconds[key].append(time.perf_counter() - started)
    return {key: 1000 * statistics.median(own) for key, own in seconds.items()}


def _slabs(
    images: Sequence[BidsImage], predictors: Mapping[str, Predictor]
) -> Iterator[dict[str, Image]]:
    """Every image as each method wants it."""
    for image in images:
        yield {name: _prepare(image, own.preprocessing)[1] for name, own in predictors.items()}
