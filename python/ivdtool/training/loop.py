"""The training loop: steps, averaging, validation, checkpoints."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ivdtool.config import from_dict, to_dict
from ivdtool.discs import ALL_LABELS
from ivdtool.errors import ModelError, UsageError
from ivdtool.model import STRIDE, TARGETS, build_network
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.skeleton import Skeleton
from ivdtool.training.augmentation import AugmentationConfig
from ivdtool.training.batches import Batch, BatchConfig, BatchMaker
from ivdtool.training.checkpoint import Checkpoint, save_checkpoint
from ivdtool.training.dataset import Case
from ivdtool.training.engine import Precision
from ivdtool.training.history import Recorder, draw_curves, epochs_without_gain, is_best
from ivdtool.training.losses import LossConfig, training_loss
from ivdtool.training.stream import stream_batches

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["OptimiserConfig", "TrainingConfig", "settings_of", "skeleton_of", "train_network"]

Metrics = Mapping[str, float]

_ALGORITHMS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "rmsprop": torch.optim.RMSprop,
}


@dataclass(frozen=True)
class OptimiserConfig:
    """How the weights follow the gradient, and for how long.

    Attributes:
        algorithm: the papers' are ``adam`` (paper 1) and ``rmsprop`` (both papers' code).
        steps: optimiser steps in all.
        steps_per_epoch: steps between two validations and checkpoints.
        epochs: passes over the training images, instead of `steps` and `steps_per_epoch`.
        learning_rate: after the warm-up.
        schedule: ``cosine`` goes down to zero, ``constant`` stays.
        warmup: steps of linear warm-up.
        weight_decay: decoupled from the gradient in ``adamw``, added to it in the others.
        max_norm: gradients are scaled down to this norm; may be infinite.
        average: decay per step of the moving average of the weights.
        patience: epochs without a smaller error on val after which training ends early; 0 never.

    Raises:
        ValueError: a value out of range.
    """

    algorithm: Literal["adamw", "adam", "rmsprop"] = "adamw"
    steps: int = 6000
    steps_per_epoch: int = 250
    epochs: int | None = None
    learning_rate: float = 2e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: int = 100
    weight_decay: float = 1e-4
    max_norm: float = 1.0
    average: float = 0.995
    patience: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.steps_per_epoch < 1:
            raise ValueError("steps and steps_per_epoch must be at least 1")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, not {self.epochs}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must lie in 0..1, not {self.average}")
        if not 0 <= self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must not be negative, not {self.learning_rate}")
        if not self.max_norm > 0:  # a negative one would turn gradients round
            raise ValueError(f"max_norm must be positive, not {self.max_norm}")
        for name in ("warmup", "weight_decay", "patience"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")

    def in_steps(self, images: int, batch: int) -> "OptimiserConfig":
        """Return the settings with `epochs` of so many images in steps of `batch`."""
        if self.epochs is None:
            return self
        per_epoch = math.ceil(images / batch)
        return replace(self, steps=self.epochs * per_epoch, steps_per_epoch=per_epoch, epochs=None)


@dataclass(frozen=True)
class TrainingConfig:
    """All settings of a run.

    Attributes:
        network: ``hourglass`` (paper 1), ``hca`` (paper 2), or of the methods they are compared
            with: ``counting``, ``lookonce`` or ``template``.
        arguments: of the network's constructor.
        labels: disc labels, one output channel each, in order; None for all from the first to
            the last that the training data shows.
        slab_offsets_mm: slabs beside the spine's plane that training also draws from.
        seed: of weights, order and augmentation.
        precision: ``bf16``, or ``float32`` for processors that are slow in bfloat16.
        deterministic: see `ivdtool.training.engine.start_fabric`.

    Raises:
        ValueError: settings that do not go together, or that the network refuses.
    """

    network: str = "hourglass"
    arguments: Mapping[str, Any] = field(
        default_factory=lambda: {"stacks": 2, "blocks": 1, "channels": 128}
    )
    labels: tuple[int, ...] | None = None
    slab_offsets_mm: tuple[float, ...] = (-5.0, -2.5, 0.0, 2.5, 5.0)
    seed: int = 0
    precision: Precision = "bf16"
    deterministic: bool = False
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
        if self.batch.stride != STRIDE:  # a setting since earlier checkpoints hold it
            raise ValueError(f"stride must be the networks' {STRIDE}, not {self.batch.stride}")
        if self.preprocessing.spacing_mm != 1:
            # augmentation, mean skeleton and validation take pixels for mm
            raise ValueError(f"training needs spacing_mm 1, not {self.preprocessing.spacing_mm}")
        with torch.device("meta"):  # takes neither memory nor time, but refuses wrong arguments
            build_network(self.network, self.arguments)
        if self.loss.target != TARGETS[self.network]:
            wanted = TARGETS[self.network]
            raise ValueError(f"network {self.network} wants loss.target {wanted!r}")


@dataclass
class _State:
    """What changes from step to step."""

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int
    history: list[Metrics]


def settings_of(checkpoint: Checkpoint, path: Path) -> TrainingConfig:
    """Return the settings that the checkpoint in the file `path` was trained with.

    Raises:
        ModelError: they are unusable.
    """
    try:
        return from_dict(TrainingConfig, checkpoint.config)
    except ValueError as error:
        raise ModelError(f"{path}: unusable settings: {error}") from error


def skeleton_of(checkpoint: Checkpoint, path: Path) -> Skeleton:
    """Return the mean skeleton in the checkpoint in the file `path`.

    Raises:
        ModelError: it is unusable.
    """
    try:
        return Skeleton.from_dict(checkpoint.skeleton)
    except ValueError as error:
        raise ModelError(f"{path}: unusable skeleton: {error}") from error


def train_network(
    cases: Sequence[Case],
    config: TrainingConfig,
    run: Path,
    *,
    fabric: "Fabric",
    skeleton: Mapping[str, Any],
    data: Mapping[str, Any],
    validate: Callable[[nn.Module], Metrics],
    resume: Checkpoint | None = None,
    initial: Checkpoint | None = None,
    workers: int = 0,
    report: Callable[[int, Metrics], None] = lambda step, metrics: None,
) -> Path:
    """Train and return the path of the last checkpoint, ``run/last.pt``.

    After every epoch the averaged network is validated and ``last.pt`` written, and ``best.pt``
    where no epoch before had a smaller ``error`` (ties: ``median_mm``); what `Recorder` writes
    follows. Steps whose loss or gradient is not finite change nothing. All that is drawn is a
    function of seed and step, so a run that is stopped at any time and resumed is the same run.

    Of several processes each computes its part of every batch. The gradient is then the mean of
    the parts' gradients; batch statistics are those of the part on CPUs, of the batch on GPUs.

    Args:
        cases: training images.
        config: see `TrainingConfig`; its labels must be given.
        run: folder for what the run leaves; exists.
        fabric: where to compute; its first process alone validates and writes.
        skeleton: goes into the checkpoints.
        data: description of the training data; goes into the checkpoints.
        validate: scores a network; a smaller ``error`` is better.
        resume: go on from here.
        initial: start from this checkpoint's averaged weights.
        workers: processes that make batches, see `stream_batches`.
        report: called after every step with the running metrics, at the end of an epoch with all.

    Raises:
        UsageError: a batch does not divide into equal parts for the processes.
        ValueError: the settings leave the labels open.
    """
    channels = config.labels
    if channels is None:
        raise ValueError("labels must be given")
    if config.batch.size % fabric.world_size:
        raise UsageError(
            f"{fabric.world_size} processes cannot share batches of {config.batch.size}"
        )
    optimiser = config.optimiser
    arguments = {"n_labels": len(channels), **config.arguments}
    state = _start(config, arguments, fabric, resume, initial)
    make_batch = BatchMaker(
        cases,
        channels,
        config.batch,
        config.augmentation,
        config.seed,
        (fabric.global_rank, fabric.world_size),
    )
    batches = stream_batches(make_batch, state.step, optimiser.steps, workers)
    with closing(batches), _recorder(fabric, run, state) as recorder:
        while state.step < optimiser.steps and not _is_stuck(state, optimiser):
            epoch = _Epoch()
            last = min(state.step + optimiser.steps_per_epoch, optimiser.steps)
            while state.step < last:
                batch = epoch.wait_for(batches)
                loss = _train_step(state, batch, config, fabric)
                state.step += 1
                epoch.add(loss)
                if recorder is not None and loss is not None:
                    recorder.step(state.step, loss)
                if state.step < last:
                    report(state.step, epoch.means())
            row = {"step": state.step, **epoch.figures()}
            scores = dict(validate(state.average)) if fabric.is_global_zero else {}
            row |= fabric.broadcast(scores)
            state.history.append({name: float(value) for name, value in row.items()})
            if recorder is not None:
                checkpoint = _checkpoint(state, config, arguments, skeleton, data)
                # the best first: stopped in between, the epoch is done again and writes it again
                if is_best(state.history):
                    save_checkpoint(checkpoint, run / "best.pt")
                save_checkpoint(checkpoint, run / "last.pt")
                recorder.epoch(state.history)
            report(state.step, row)
    return run / "last.pt"


def learning_rate(step: int, config: OptimiserConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then constant or half a cosine."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "constant":
        return config.learning_rate
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


@dataclass
class _Epoch:
    """Sums over the steps of an epoch."""

    loss: float = 0.0
    steps: int = 0
    skipped: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def wait_for(self, batches: Iterator[Batch]) -> Batch:
        before = time.monotonic()
        batch = next(batches)
        self.waited += time.monotonic() - before
        return batch

    def add(self, loss: float | None) -> None:
        self.steps += 1
        if loss is None:
            self.skipped += 1
        else:
            self.loss += loss

    def means(self) -> dict[str, float]:
        return {"loss": self.loss / max(1, self.steps - self.skipped), "skipped": self.skipped}

    def figures(self) -> dict[str, float]:
        seconds = time.monotonic() - self.started
        return {**self.means(), "seconds": seconds, "waiting_share": self.waited / seconds}


def _is_stuck(state: _State, config: OptimiserConfig) -> bool:
    return 0 < config.patience <= epochs_without_gain(state.history)


@contextmanager
def _recorder(fabric: "Fabric", run: Path, state: _State) -> Iterator[Recorder | None]:
    """The first process's recorder; curves are drawn if the run ends well."""
    if not fabric.is_global_zero:
        yield None
        return
    with closing(Recorder(run, state.history, state.step)) as recorder:
        yield recorder
        if state.history:
            draw_curves(state.history, run / "curves.png")


def _start(
    config: TrainingConfig,
    arguments: Mapping[str, Any],
    fabric: "Fabric",
    resume: Checkpoint | None,
    initial: Checkpoint | None,
) -> _State:
    torch.manual_seed(config.seed)
    network = build_network(config.network, arguments)
    if initial is not None:
        network.load_state_dict(initial.average)
    average = build_network(config.network, arguments)
    average.load_state_dict(network.state_dict())
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for module in (network, average):
        module.to(fabric.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _ALGORITHMS[config.optimiser.algorithm](
        (weight for weight in network.parameters() if weight.requires_grad),
        lr=config.optimiser.learning_rate,
        weight_decay=config.optimiser.weight_decay,
    )
    step, history = 0, []
    if resume is not None:
        network.load_state_dict(resume.weights)
        average.load_state_dict(resume.average)
        optimizer.load_state_dict(dict(resume.optimizer))
        step, history = resume.step, list(resume.history)
    network, optimizer = fabric.setup(network.train(), optimizer)
    return _State(network, average.eval().requires_grad_(False), optimizer, step, history)


def _train_step(
    state: _State, batch: Batch, config: TrainingConfig, fabric: "Fabric"
) -> float | None:
    """One step; the mean loss, or None if it was skipped because loss or gradient is not finite."""
    batch = Batch(**{name: value.to(fabric.device) for name, value in vars(batch).items()})
    # whatever a network draws is a function of the step, too
    torch.manual_seed(_seed(config.seed, state.step, fabric.global_rank))
    statistics = [buffer.clone() for buffer in state.network.buffers()]
    outputs: list[Tensor] = state.network(
        batch.images.contiguous(memory_format=torch.channels_last)
    )
    loss = training_loss(outputs, batch, config.loss, seed=state.step)
    state.optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    norm = fabric.clip_gradients(
        state.network,
        state.optimizer,
        max_norm=config.optimiser.max_norm,
        error_if_nonfinite=False,
    )
    # of all processes, so that they agree on what follows; the gradient's norm is so already
    mean_loss = _to_float(fabric.all_reduce(loss.detach()))
    if not (math.isfinite(mean_loss) and math.isfinite(_to_float(norm))):
        for buffer, before in zip(state.network.buffers(), statistics, strict=True):
            buffer.copy_(before)  # the forward pass has updated them
        return None
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config.optimiser)
    state.optimizer.step()
    _update_average(state, config.optimiser)
    return mean_loss


def _to_float(scalar: Any) -> float:
    return float(scalar)  # Fabric's types allow for containers of tensors


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


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
        history=[dict(row) for row in state.history],
    )
