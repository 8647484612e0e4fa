"""One process or two, the same run; what is missing is said in one line."""

import csv
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.train_without_norm import build_without_norm

from ivdtool.config import to_toml
from ivdtool.errors import UsageError
from ivdtool.training import engine, loop
from ivdtool.training.checkpoint import load_checkpoint
from ivdtool.training.engine import start_fabric
from ivdtool.training.loop import TrainingConfig
from ivdtool.training.run import run_training

ROOT = Path(__file__).parents[2]


@pytest.fixture
def plain_config(spine_config: TrainingConfig) -> TrainingConfig:
    """Every pixel of every window counts, and the same: parts of a batch weigh the same, too."""
    return replace(
        spine_config,
        arguments={"stacks": 2, "channels": 16},
        labels=(4, 5, 6, 7, 8),  # none of them near the border of an image
        precision="float32",
        batch=replace(spine_config.batch, size=4),
        loss=replace(spine_config.loss, disc_weight=0.0),
        optimiser=replace(spine_config.optimiser, steps=5, steps_per_epoch=1),
    )


def read_metrics(run: Path) -> dict[str, list[float]]:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def test_two_processes_train_as_one(
    plain_config: TrainingConfig, spines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(to_toml(plain_config), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "tests.training.train_without_norm"]
    command += map(str, (spines, settings, tmp_path / "two"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(loop, "build_network", build_without_norm)
    run_training([spines], plain_config, tmp_path / "one", device="cpu")

    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert two["step"] == one["step"] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-4)
    assert one["loss"][4] < 0.9 * one["loss"][0]
    last = [load_checkpoint(tmp_path / run / "last.pt") for run in ("one", "two")]
    assert last[0].weights.keys() == last[1].weights.keys()
    for name, value in last[0].weights.items():
        torch.testing.assert_close(last[1].weights[name], value, rtol=0.01, atol=1e-3)
    # one of the two has written
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1
    assert (tmp_path / "two" / "data.json").read_bytes() == (
        tmp_path / "one" / "data.json"
    ).read_bytes()


def test_two_processes_of_the_command(
    plain_config: TrainingConfig, spines: Path, tmp_path: Path
) -> None:
    """The network as it is: on CPUs batch statistics are of half a batch, so about the same."""
    plain_config = replace(plain_config, batch=replace(plain_config.batch, size=16))
    settings = tmp_path / "settings.toml"
    settings.write_text(to_toml(plain_config), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", "-m", "ivdtool", "train", "--threads", "1", "--device", "cpu"]
    command += map(str, ("--data", spines, "--config", settings, "-o", tmp_path / "two"))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run_training([spines], plain_config, tmp_path / "one", device="cpu")
    one, two = read_metrics(tmp_path / "one"), read_metrics(tmp_path / "two")
    assert two["step"] == one["step"] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=0.3)
    assert one["loss"][4] < 0.9 * one["loss"][0]


@pytest.mark.parametrize("package", engine.EXTRA)
def test_missing_packages(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(UsageError, match=rf'{package}: pip install "ivdtool\[train\]"'):
        start_fabric("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda() -> None:
    with pytest.raises(UsageError, match="no CUDA device here; use --device cpu"):
        start_fabric("cuda")
    assert start_fabric("auto").device.type == "cpu"


@pytest.fixture
def strictness() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


@pytest.mark.usefixtures("strictness")
def test_deterministic_mode(plain_config: TrainingConfig, spines: Path, tmp_path: Path) -> None:
    config = replace(
        plain_config,
        deterministic=True,
        optimiser=replace(plain_config.optimiser, steps=1),
    )
    run_training([spines], config, tmp_path / "run", device="cpu")
    assert torch.are_deterministic_algorithms_enabled()
    start_fabric("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
