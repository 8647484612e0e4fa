"""A checkpoint rebuilds its network alone, and damage never passes unseen."""

import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from ivdtool.errors import ModelError, UsageError
from ivdtool.model import build_network
from ivdtool.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

ARGUMENTS = {"n_labels": 3, "stacks": 2, "channels": 16}


def make_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_network("hca", ARGUMENTS)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """After one real step: the optimiser has a state."""
    network, average = make_network(0), make_network(1)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(2, 1, 64, 64))[-1].square().mean().backward()
    optimizer.step()
    return Checkpoint(
        network="hca",
        arguments=ARGUMENTS,
        config={"labels": [20, 21, 22], "batch": {"size": 2}},
        step=1,
        average=average.state_dict(),
        weights=network.state_dict(),
        optimizer=optimizer.state_dict(),
        skeleton={"mean_mm": [[0.0, 0.0], [35.5, 1.25]]},
        data={"images": 3},
    )


@pytest.fixture(scope="module")
def content(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "last.pt"
    save_checkpoint(checkpoint, path)
    return path.read_bytes()


def test_rebuilds_the_averaged_network(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "copy.pt"
    path.write_bytes(content)
    network = load_checkpoint(path).build_network()
    assert not network.training
    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        found = network(image)[-1]
        average, trained = (make_network(seed).eval()(image)[-1] for seed in (1, 0))
    assert torch.equal(found, average)
    assert not torch.allclose(found, trained, atol=1e-3)


def test_everything_comes_back(checkpoint: Checkpoint, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "copy.pt"
    path.write_bytes(content)
    loaded = load_checkpoint(path)
    for name in ("network", "arguments", "config", "step", "skeleton", "data"):
        assert getattr(loaded, name) == getattr(checkpoint, name), name
    for name in ("average", "weights"):
        tensors = getattr(checkpoint, name)
        assert getattr(loaded, name).keys() == tensors.keys()
        assert all(torch.equal(value, tensors[key]) for key, value in getattr(loaded, name).items())
    network = make_network(2)
    optimizer = torch.optim.AdamW(network.parameters())
    optimizer.load_state_dict(dict(loaded.optimizer))
    states = zip(optimizer.state_dict()["state"].values(), checkpoint.optimizer["state"].values())  # noqa: B905
    assert all(torch.equal(a["exp_avg"], b["exp_avg"]) for a, b in states)
    assert optimizer.state_dict()["state"]


def saved(thing: object) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.ReLU()), file)
    return file.getvalue()


def flipped(good: bytes) -> bytes:
    """One bit of a weight."""
    position = len(good) // 2
    return good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda good: b"", "not a zip"),
        (lambda good: b"hello\n" * 99, "not a zip"),
        (lambda good: pickle.dumps({"format": 1}), "not a zip"),
        (lambda good: good[:5000], "not a zip"),
        (flipped, "checksum of"),
        (lambda good: saved(torch.zeros(3)), "pop"),
        (lambda good: saved([1, 2]), "pop"),
        (lambda good: saved({"format": 1}), "missing"),
        (lambda good: saved({"format": 1, "colour": 1}), "colour"),
        (lambda good: saved({"format": 2}), "not a checkpoint of this version"),
        (lambda good: saved(make_network(0).state_dict()), "not a checkpoint of this version"),
        (lambda good: saved(nn.ReLU()), "Weights only"),  # would run code
        (lambda good: scripted(), "TorchScript"),
    ],
)
def test_damaged_files(
    damage: Callable[[bytes], bytes], reason: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.pt"
    path.write_bytes(damage(content))
    with pytest.raises(ModelError, match=reason) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(ModelError, match="directory"):
        load_checkpoint(tmp_path)


def test_weights_of_another_network(checkpoint: Checkpoint) -> None:
    for change in ({"network": "hourglass"}, {"network": "unet"}, {"arguments": {"depth": 2}}):
        with pytest.raises(ModelError, match="checkpoint"):
            replace(checkpoint, **change).build_network()


def test_unwritable_places(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="output folder missing"):
        save_checkpoint(checkpoint, tmp_path / "no" / "last.pt")
