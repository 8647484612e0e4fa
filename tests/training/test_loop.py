"""Learning, going on after a stop, and steps that must change nothing."""

import csv
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ivdtool.config import from_dict, read_toml, to_dict, to_toml
from ivdtool.errors import UsageError
from ivdtool.files import atomic_write
from ivdtool.model import build_network
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.training import loop
from ivdtool.training.batches import Batch, BatchConfig
from ivdtool.training.checkpoint import Checkpoint, load_checkpoint
from ivdtool.training.dataset import Case
from ivdtool.training.engine import start_fabric
from ivdtool.training.loop import OptimiserConfig, TrainingConfig, learning_rate, train_network


@pytest.fixture(autouse=True)
def quick_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training here."""

    def draw(rows: Sequence[Any], path: Path) -> None:
        with atomic_write(path) as temporary:
            temporary.write_text(str(len(rows)))

    monkeypatch.setattr(loop, "draw_curves", draw)


@pytest.fixture
def train(
    make_case: Callable[[int], Case],
    small_config: TrainingConfig,
    fabric: Fabric,
    tmp_path: Path,
) -> Callable[..., Checkpoint]:
    """Trains the small network in a run folder and returns the last checkpoint."""

    def train(
        run: str = "run",
        config: TrainingConfig = small_config,
        resume: bool = False,
        **options: Any,
    ) -> Checkpoint:
        (tmp_path / run).mkdir(exist_ok=True)
        options.setdefault("validate", lambda network: {"error": 1.0})
        if resume:
            options["resume"] = load_checkpoint(tmp_path / run / "last.pt")
        last = train_network(
            [make_case(0), make_case(1)],
            config,
            tmp_path / run,
            **{"fabric": fabric, **options},
            skeleton={"a": 1},
            data={},
        )
        assert last == tmp_path / run / "last.pt"
        return load_checkpoint(last)

    return train


def optimise(config: TrainingConfig, **changes: Any) -> TrainingConfig:
    return replace(config, optimiser=replace(config.optimiser, **changes))


def read_metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def same(first: Any, second: Any) -> bool:
    """Equality of nested containers with tensors in them, bit for bit."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def initial(config: TrainingConfig) -> nn.Module:
    torch.manual_seed(config.seed)
    return build_network(config.network, {"n_labels": 3, **config.arguments})


def stop_at_step_4(step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG001
    """Loses a step: the last checkpoint is that of step 3."""
    if step == 4:
        raise KeyboardInterrupt


def test_learns(train: Callable[..., Checkpoint], small_config: TrainingConfig) -> None:
    config = optimise(small_config, steps=60, steps_per_epoch=60)
    config = replace(config, batch=replace(config.batch, size=4))
    losses: list[float] = []
    mean = 0.0

    def report(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal mean  # metrics are means of the epoch so far
        losses.append(metrics["loss"] * step - mean * (step - 1))
        mean = metrics["loss"]

    train(config=config, report=report)
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert len(losses) == 60
    assert last < 0.3 * first


def test_gradients_are_clipped(
    train: Callable[..., Checkpoint], small_config: TrainingConfig
) -> None:
    """After one step Adam's first moment is a tenth of the gradient that it was given."""
    norms = {}
    for most in (1e-3, math.inf):
        last = train(str(most), optimise(small_config, steps=1, steps_per_epoch=1, max_norm=most))
        moments = [state["exp_avg"] for state in last.optimizer["state"].values()]
        norms[most] = math.sqrt(sum(float(moment.square().sum()) for moment in moments)) / 0.1
    assert norms[math.inf] > 1e-2
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)


def test_resumed_run_is_the_same_run(train: Callable[..., Checkpoint], tmp_path: Path) -> None:
    straight = train("straight")

    with pytest.raises(KeyboardInterrupt):
        train("stopped", report=stop_at_step_4)
    assert load_checkpoint(tmp_path / "stopped" / "last.pt").step == 3
    steps: list[int] = []
    resumed = train("stopped", resume=True, report=lambda step, metrics: steps.append(step))
    assert steps == [4, 5, 6]
    assert resumed.step == straight.step == 6
    assert same(resumed.weights, straight.weights)
    assert same(resumed.average, straight.average)
    assert same(resumed.optimizer, straight.optimizer)
    assert not same(resumed.weights, load_checkpoint(tmp_path / "straight" / "best.pt").average)
    for a, b in zip(
        *(read_metrics(tmp_path / run) for run in ("straight", "stopped")), strict=True
    ):
        assert {k: a[k] for k in ("step", "loss", "error")} == {
            k: b[k] for k in ("step", "loss", "error")
        }


def test_a_finished_run_is_left_as_it_is(train: Callable[..., Checkpoint], tmp_path: Path) -> None:
    train()
    before = (tmp_path / "run" / "last.pt").read_bytes()
    train(resume=True)
    assert (tmp_path / "run" / "last.pt").read_bytes() == before
    assert len(read_metrics(tmp_path / "run")) == 2


def test_seeds_differ(train: Callable[..., Checkpoint], small_config: TrainingConfig) -> None:
    config = optimise(small_config, steps=1)
    first, again = train("a", config), train("b", config)
    other = train("c", replace(config, seed=2))
    assert same(first.weights, again.weights)
    assert not same(first.weights, other.weights)


def test_metrics_and_best(
    train: Callable[..., Checkpoint], small_config: TrainingConfig, tmp_path: Path
) -> None:
    errors = iter([0.75, 0.25, 0.5])
    config = optimise(small_config, steps=5, steps_per_epoch=2)
    train(config=config, validate=lambda network: {"error": next(errors), "median_mm": math.nan})
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == ["2", "4", "5"]
    assert [row["error"] for row in rows] == ["0.75", "0.25", "0.5"]
    assert {row["median_mm"] for row in rows} == {"nan"}
    assert all(float(row["loss"]) > 0 and float(row["seconds"]) > 0 for row in rows)
    assert all(0 <= float(row["waiting_share"]) <= 1 for row in rows)
    assert {row["skipped"] for row in rows} == {"0"}
    assert load_checkpoint(tmp_path / "run" / "best.pt").step == 4
    assert load_checkpoint(tmp_path / "run" / "last.pt").step == 5


def test_best_is_remembered_by_a_resumed_run(
    train: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    errors = iter([0.25, 0.5])
    with pytest.raises(KeyboardInterrupt):
        train(report=stop_at_step_4, validate=lambda network: {"error": next(errors)})
    train(resume=True, validate=lambda network: {"error": next(errors)})
    assert load_checkpoint(tmp_path / "run" / "best.pt").step == 3


@pytest.mark.parametrize("write", range(1, 9))
def test_a_run_killed_between_two_writes_goes_on(
    write: int,
    train: Callable[..., Checkpoint],
    small_config: TrainingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No row is lost or doubled, and no checkpoint is older than the rows say."""
    config = optimise(small_config, steps=2, steps_per_epoch=1)
    now = 0
    left = write
    replace_file = Path.replace

    def kill(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return replace_file(self, target)

    def report(step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG001
        nonlocal now
        now = step

    def validate(network: nn.Module) -> Mapping[str, float]:  # noqa: ARG001
        return {"error": (0.5, 0.25)[now]}

    # an empty metrics.csv; in each epoch best.pt, last.pt and metrics.csv; the curves
    monkeypatch.setattr(Path, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        train(config=config, validate=validate, report=report)
    monkeypatch.undo()
    run = tmp_path / "run"
    begun = (run / "last.pt").exists()
    assert begun == (write > 3)
    now = load_checkpoint(run / "last.pt").step if begun else 0
    train(config=config, resume=begun, validate=validate, report=report)
    rows = [(row["step"], row["error"]) for row in read_metrics(run)]
    assert rows == [("1", "0.5"), ("2", "0.25")]
    assert load_checkpoint(run / "best.pt").step == load_checkpoint(run / "last.pt").step == 2
    assert sorted(path.suffix for path in run.iterdir() if path.is_file()) == [
        ".csv",
        ".png",
        ".pt",
        ".pt",
    ]


def test_patience(
    train: Callable[..., Checkpoint], small_config: TrainingConfig, tmp_path: Path
) -> None:
    """Two epochs without a smaller error end the run, whether or not it was stopped between."""
    config = optimise(small_config, steps=10, steps_per_epoch=1, patience=2)
    for run, stop in (("straight", 0), ("stopped", 4)):
        errors = iter([0.5, 0.4, 0.4, 0.45, 0.1])

        def report(step: int, metrics: Mapping[str, float], stop: int = stop) -> None:  # noqa: ARG001
            if step == stop:
                raise KeyboardInterrupt

        def validate(network: nn.Module, errors: Any = errors) -> Mapping[str, float]:  # noqa: ARG001
            return {"error": next(errors)}

        if stop:
            with pytest.raises(KeyboardInterrupt):
                train(run, config, validate=validate, report=report)
        last = train(run, config, resume=bool(stop), validate=validate)
        assert last.step == 4
        assert [row["error"] for row in read_metrics(tmp_path / run)] == [
            "0.5",
            "0.4",
            "0.4",
            "0.45",
        ]
        assert load_checkpoint(tmp_path / run / "best.pt").step == 3


def test_initial_weights(train: Callable[..., Checkpoint], small_config: TrainingConfig) -> None:
    """Those of the average; optimiser and learning rate begin anew."""
    first = train("first")
    frozen = optimise(small_config, steps=1, learning_rate=0.0, average=0.0)
    second = train("second", frozen, initial=first)
    parameters = [name for name in first.average if "running" not in name and "num" not in name]
    assert len(parameters) > 50
    assert all(torch.equal(second.weights[name], first.average[name]) for name in parameters)
    assert {int(state["step"]) for state in second.optimizer["state"].values()} == {1}
    assert second.step == 1


def test_precision(train: Callable[..., Checkpoint], small_config: TrainingConfig) -> None:
    config = optimise(small_config, steps=1)
    half, single = train("a", config), train("b", config, fabric=start_fabric("cpu", "float32"))
    assert not same(half.weights, single.weights)
    assert {value.dtype for value in half.weights.values()} == {torch.float32, torch.int64}


def test_processes_share_batches_evenly(
    train: Callable[..., Checkpoint], small_config: TrainingConfig
) -> None:
    with pytest.raises(UsageError, match="3 processes cannot share batches of 2"):
        train(config=small_config, fabric=SimpleNamespace(world_size=3))


def test_validation_sees_the_average(
    train: Callable[..., Checkpoint], small_config: TrainingConfig
) -> None:
    seen: list[dict[str, Tensor]] = []

    def validate(network: nn.Module) -> Mapping[str, float]:
        assert not network.training
        seen.append({key: value.clone() for key, value in network.state_dict().items()})
        return {"error": 1.0}

    last = train(config=optimise(small_config, steps=2), validate=validate)
    assert same(seen[-1], last.average)


def test_average(train: Callable[..., Checkpoint], small_config: TrainingConfig) -> None:
    """After the first step it keeps a tenth of the initial weights, later up to `average`."""
    last = train(config=optimise(small_config, steps=1))
    before = initial(small_config).state_dict()
    for key, value in last.average.items():
        if value.dtype.is_floating_point:
            expected = 0.1 * before[key] + 0.9 * last.weights[key]
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, last.weights[key])
    frozen = train("b", optimise(small_config, steps=1, average=0.0))
    assert not same(last.average, last.weights)
    assert same(frozen.average, frozen.weights)


def test_learning_rate() -> None:
    config = OptimiserConfig(steps=1000, warmup=10, learning_rate=0.5)
    rates = [learning_rate(step, config) for step in range(1000)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[4] == pytest.approx(0.25)
    assert rates[9] == rates[10] == max(rates) == 0.5
    assert rates[505] == pytest.approx(0.25)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-5
    assert learning_rate(2000, config) == pytest.approx(0, abs=1e-12)
    assert learning_rate(0, OptimiserConfig(steps=1, warmup=0)) == OptimiserConfig().learning_rate


def test_learning_rate_reaches_the_optimiser(
    train: Callable[..., Checkpoint], small_config: TrainingConfig
) -> None:
    last = train(config=optimise(small_config, warmup=4))
    (group,) = last.optimizer["param_groups"]
    assert group["lr"] == learning_rate(5, optimise(small_config, warmup=4).optimiser)
    assert group["weight_decay"] == small_config.optimiser.weight_decay


def test_constant_learning_rate() -> None:
    config = OptimiserConfig(steps=1000, warmup=10, learning_rate=0.5, schedule="constant")
    assert learning_rate(4, config) == pytest.approx(0.25)
    assert {learning_rate(step, config) for step in (10, 500, 999)} == {0.5}


@pytest.mark.parametrize("algorithm", ["adamw", "adam", "rmsprop"])
def test_algorithms(
    algorithm: Any, train: Callable[..., Checkpoint], small_config: TrainingConfig
) -> None:
    """The first step of each, from the state it leaves: RMSprop has no first moment."""
    last = train(config=optimise(small_config, steps=1, algorithm=algorithm))
    moments = {key for state in last.optimizer["state"].values() for key in state}
    assert moments == (
        {"step", "square_avg"} if algorithm == "rmsprop" else {"step", "exp_avg", "exp_avg_sq"}
    )
    assert not same(last.weights, initial(small_config).state_dict())


def test_epochs_become_steps() -> None:
    config = OptimiserConfig(epochs=150)
    resolved = config.in_steps(images=10, batch=4)
    assert (resolved.steps, resolved.steps_per_epoch, resolved.epochs) == (450, 3, None)
    assert OptimiserConfig(steps=7).in_steps(images=10, batch=4) == OptimiserConfig(steps=7)


# --- steps that are not finite ---


def spoil_batches(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Puts a NaN into one pixel of the images of some steps."""
    original = loop.stream_batches  # type: ignore[attr-defined]

    def spoiled(make: Any, first: int, *rest: int) -> Generator[Batch]:
        for step, batch in enumerate(original(make, first, *rest), first):
            if step in steps:
                batch.images[0, 0, 3, 3] = torch.nan
            yield batch

    monkeypatch.setattr(loop, "stream_batches", spoiled)


def spoil_loss(monkeypatch: pytest.MonkeyPatch, damage: Callable[[Tensor], Tensor]) -> None:
    original = loop.training_loss  # type: ignore[attr-defined]
    monkeypatch.setattr(
        loop, "training_loss", lambda *args, **options: damage(original(*args, **options))
    )


def nan_image(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_batches(monkeypatch, set(range(10)))


def infinite_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_loss(monkeypatch, lambda loss: loss * math.inf)


def nan_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root of zero: the loss is finite, its gradient is not."""
    spoil_loss(monkeypatch, lambda loss: loss + (loss * 0).sqrt())


@pytest.mark.parametrize("spoil", [nan_image, infinite_loss, nan_gradient])
def test_spoiled_steps_change_nothing(
    spoil: Callable[[pytest.MonkeyPatch], None],
    train: Callable[..., Checkpoint],
    small_config: TrainingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(monkeypatch)
    last = train(config=optimise(small_config, steps=2))
    before = initial(small_config).state_dict()
    assert same(last.weights, before)  # running means of the normalisation included
    assert same(last.average, before)
    assert not last.optimizer["state"]
    assert last.step == 2
    (row,) = read_metrics(tmp_path / "run")
    assert row["skipped"] == "2"
    assert row["loss"] == "0"


def test_training_goes_on_after_a_spoiled_step(
    train: Callable[..., Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_batches(monkeypatch, {1})
    last = train()
    for weights in (last.weights, last.average):
        assert all(torch.isfinite(weight).all() for weight in weights.values())
    rows = read_metrics(tmp_path / "run")
    assert [row["skipped"] for row in rows] == ["1", "0"]
    assert {int(state["step"]) for state in last.optimizer["state"].values()} == {5}


# --- settings ---


def test_the_checkpoint_holds_the_settings(
    train: Callable[..., Checkpoint], small_config: TrainingConfig
) -> None:
    last = train()
    assert from_dict(TrainingConfig, last.config) == small_config
    assert last.network == "hourglass"
    assert last.arguments == {"n_labels": 3, "stacks": 1, "channels": 16}
    assert last.skeleton == {"a": 1}


@pytest.mark.parametrize("labels", [None, (20, 21, 22)])
def test_settings_survive_a_file(
    labels: tuple[int, ...] | None, small_config: TrainingConfig, tmp_path: Path
) -> None:
    config = replace(small_config, labels=labels)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert read_toml(TrainingConfig, path) == config
    assert from_dict(TrainingConfig, to_dict(TrainingConfig())) == TrainingConfig()


def test_open_labels_are_refused(
    train: Callable[..., Checkpoint], small_config: TrainingConfig
) -> None:
    with pytest.raises(ValueError, match="labels must be given"):
        train(config=replace(small_config, labels=None))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": (4, 3)}, "strictly increasing"),
        ({"labels": (3, 3)}, "strictly increasing"),
        ({"labels": (2, 3)}, r"3\.\.25"),
        ({"network": "unet"}, "'unet'"),
        ({"arguments": {"depth": 3}}, "depth"),
        ({"batch": BatchConfig(stride=8)}, "stride"),
        ({"preprocessing": PreprocessingConfig(spacing_mm=0.5)}, "spacing_mm 1"),
    ],
)
def test_refused_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"steps_per_epoch": 0}, {"average": 1.0}, {"epochs": 0}, {"patience": -1},
        {"learning_rate": -1e-3}, {"max_norm": -1.0}, {"warmup": -3}, {"weight_decay": -0.1},
    ],
)  # fmt: skip
def test_refused_optimiser_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OptimiserConfig(**wrong)


def test_a_wrong_network_is_a_usage_error(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('network = "unet"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="'unet'"):
        read_toml(TrainingConfig, path)
