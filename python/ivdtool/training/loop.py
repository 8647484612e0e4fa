"""The training loop: steps, averaging, validation, checkpoints."""

import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ivdtool.config import to_dict
from ivdtool.discs import ALL_LABELS
from ivdtool.model import build_network
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.training.augmentation import AugmentationConfig
from ivdtool.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ivdtool.training.dataset import Batch, BatchConfig, Case, batches
from ivdtool.training.losses import LossConfig, training_loss

__all__ = ["OptimiserConfig", "TrainingConfig", "train_network"]

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with warm-up and cosine decay to zero.

    Attributes:
        steps: optimiser steps in all.
        steps_per_epoch: steps between two validations and checkpoints.
        learning_rate: after the warm-up.
        warmup: steps of linear warm-up.
        weight_decay: of AdamW.
        max_norm: gradients are scaled down to this norm.
        average: decay per step of the moving average of the weights.
    """

    steps: int = 6000
    steps_per_epoch: int = 250
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 1e-4
    max_norm: float = 1.0
    average: float = 0.995

    def __post_init__(self) -> None:
        if self.steps < 1 or self.steps_per_epoch < 1:
            raise ValueError("steps and steps_per_epoch must be at least 1")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must lie in 0..1, not {self.average}")


@dataclass(frozen=True)
class TrainingConfig:
    """All settings of a run.

    Attributes:
        network: ``hourglass`` (paper 1) or ``hca`` (paper 2).
        arguments: of the network's constructor.
        labels: disc labels, one output channel each, in order; None for all from the first to
            the last that the training data shows.
        slab_offsets_mm: slabs beside the spine's plane that training also draws from.
        seed: of weights, order and augmentation.
    """

    network: str = "hourglass"
    arguments: Mapping[str, Any] = field(
        default_factory=lambda: {"stacks": 2, "blocks": 1, "channels": 128}
    )
    labels: tuple[int, ...] | None = None
    slab_offsets_mm: tuple[float, ...] = (-5.0, -2.5, 0.0, 2.5, 5.0)
    seed: int = 0
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    def __post_init__(self) -> None:
        if self.labels is not None:
            if tuple(sorted(set(self.labels))) != tuple(self.labels):
                raise ValueError(f"labels must be strictly increasing, not {self.labels}")
            if not set(self.labels) <= set(ALL_LABELS):
                raise ValueError(f"labels must lie in 3..25, not {self.labels}")
        if self.preprocessing.spacing_mm != 1:
            # augmentation, mean skeleton and validation take pixels for mm
            raise ValueError(f"training needs spacing_mm 1, not {self.preprocessing.spacing_mm}")
        with torch.device("meta"):  # takes neither memory nor time, but refuses wrong arguments
            build_network(self.network, self.arguments)


@dataclass
class _State:
    """What changes from step to step."""

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0


def train_network(
    cases: Sequence[Case],
    config: TrainingConfig,
    run: Path,
    *,
    skeleton: Mapping[str, Any],
    data: Mapping[str, Any],
    validate: Callable[[nn.Module], Metrics],
    device: str = "cpu",
    resume: bool = False,
    report: Callable[[int, Metrics], None] = lambda step, metrics: None,
) -> Path:
    """Train and return the path of the last checkpoint, ``run/last.pt``.

    Writes ``metrics.csv`` (one row per epoch), ``last.pt``, and ``best.pt`` by the metric
    ``found`` of `validate`. Steps whose loss or gradient is not finite change nothing.

    Args:
        cases: training images.
        config: see `TrainingConfig`; its labels must be given.
        run: folder for what the run leaves; exists.
        skeleton: goes into the checkpoints.
        data: description of the training data; goes into the checkpoints.
        validate: scores a network; higher ``found`` is better.
        device: torch device.
        resume: go on from ``run/last.pt``.
        report: called after every step with the running metrics.

    Raises:
        ModelError: ``run/last.pt`` is unusable.
        ValueError: the settings leave the labels open.
    """
    channels = config.labels
    if channels is None:
        raise ValueError("labels must be given")
    optimiser = config.optimiser
    arguments = {"n_labels": len(channels), **config.arguments}
    state = _start(config, arguments, device)
    best = -math.inf
    if resume:
        best = _restore(state, run)
    totals = {"loss": 0.0, "skipped": 0.0}
    started, waited = time.monotonic(), 0.0
    stream = batches(
        cases,
        channels,
        config.batch,
        config.augmentation,
        config.seed,
        state.step,
        optimiser.steps,
    )
    while state.step < optimiser.steps:
        before = time.monotonic()
        batch = next(stream)
        waited += time.monotonic() - before
        loss = _train_step(state, batch, config, device)
        if loss is None:
            totals["skipped"] += 1
        else:
            totals["loss"] += loss
        state.step += 1
        in_epoch = (state.step - 1) % optimiser.steps_per_epoch + 1
        done = max(1.0, in_epoch - totals["skipped"])
        report(state.step, {"loss": totals["loss"] / done, "skipped": totals["skipped"]})
        if in_epoch == optimiser.steps_per_epoch or state.step == optimiser.steps:
            seconds = time.monotonic() - started
            metrics = {
                "step": state.step,
                "loss": totals["loss"] / done,
                "skipped": totals["skipped"],
                "seconds": seconds,
                "waiting_share": waited / seconds,
                **validate(state.average.eval()),
            }
            _append_row(run / "metrics.csv", metrics)
            checkpoint = _checkpoint(state, config, arguments, skeleton, data)
            save_checkpoint(checkpoint, run / "last.pt")
            if metrics.get("found", 0.0) >= best:
                best = metrics.get("found", 0.0)
                save_checkpoint(checkpoint, run / "best.pt")
            totals = dict.fromkeys(totals, 0.0)
            started, waited = time.monotonic(), 0.0
    return run / "last.pt"


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine down to zero."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _start(config: TrainingConfig, arguments: Mapping[str, Any], device: str) -> _State:
    networks = []
    for _ in range(2):
        torch.manual_seed(config.seed)
        network = build_network(config.network, arguments).to(device)
        networks.append(network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    network, average = networks
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=config.optimiser.weight_decay)
    return _State(network.train(), average.eval().requires_grad_(False), optimizer)


def _train_step(state: _State, batch: Batch, config: TrainingConfig, device: str) -> float | None:
    """One step; None if it was skipped because loss or gradient was not finite."""
    batch = Batch(**{name: value.to(device) for name, value in vars(batch).items()})
    images = batch.images.to(memory_format=torch.channels_last)
    state.network.train()
    statistics = [buffer.clone() for buffer in state.network.buffers()]
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        predictions: list[Tensor] = state.network(images)
    loss = training_loss(predictions, batch, config.loss, seed=state.step)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(state.network.parameters(), config.optimiser.max_norm)
    if not (torch.isfinite(loss) and torch.isfinite(norm)):
        for buffer, before in zip(state.network.buffers(), statistics, strict=True):
            buffer.copy_(before)  # the forward pass has updated them
        return None
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config.optimiser)
    state.optimizer.step()
    _update_average(state, config.optimiser)
    return float(loss.detach())


@torch.no_grad()
def _update_average(state: _State, config: OptimiserConfig) -> None:
    # early weights are worth nothing: the average starts short and grows to its decay
    decay = min(config.average, (1 + state.step) / (10 + state.step))
    current = state.network.state_dict()
    for name, value in state.average.state_dict().items():
        if value.dtype.is_floating_point:
            value.lerp_(current[name], 1 - decay)
        else:
            value.copy_(current[name])


def _checkpoint(
    state: _State,
    config: TrainingConfig,
    arguments: Mapping[str, Any],
    skeleton: Mapping[str, Any],
    data: Mapping[str, Any],
) -> Checkpoint:
    return Checkpoint(
        network=config.network,
        arguments=arguments,
        config=to_dict(config),
        step=state.step,
        average=state.average.state_dict(),
        weights=state.network.state_dict(),
        optimizer=state.optimizer.state_dict(),
        skeleton=dict(skeleton),
        data=dict(data),
    )


def _restore(state: _State, run: Path) -> float:
    """Load ``last.pt`` into the state; return the best ``found`` so far."""
    checkpoint = load_checkpoint(run / "last.pt")
    state.network.load_state_dict(checkpoint.weights)
    state.average.load_state_dict(checkpoint.average)
    state.optimizer.load_state_dict(dict(checkpoint.optimizer))
    state.step = checkpoint.step
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as lines:
        return max((float(row.get("found", 0) or 0) for row in csv.DictReader(lines)), default=0.0)


def _append_row(path: Path, row: Mapping[str, float]) -> None:
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow({key: f"{value:.6g}" for key, value in row.items()})
