"""From a data set on disk to a network that has learnt it."""

import csv
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from ivdtool.config import from_dict, read_toml, to_toml
from ivdtool.errors import InputError, UsageError
from ivdtool.files import nifti_bytes
from ivdtool.phantom_dataset import write_phantoms
from ivdtool.skeleton import Skeleton
from ivdtool.training import slabs
from ivdtool.training.checkpoint import load_checkpoint, save_checkpoint
from ivdtool.training.dataset import Case, Source
from ivdtool.training.loop import TrainingConfig, settings_of
from ivdtool.training.progress import Progress
from ivdtool.training.run import mean_skeleton, run_training


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three necks; all of split train."""
    folder = tmp_path_factory.mktemp("phantoms")
    return write_phantoms(folder, 3, 3, region="cervical", contrast="T2w", spacing_mm=2.0)


@pytest.fixture
def quick(spine_config: TrainingConfig) -> TrainingConfig:
    return replace(
        spine_config,
        arguments={"stacks": 1, "channels": 16},
        batch=replace(spine_config.batch, rows=64, cols=64),
        optimiser=replace(spine_config.optimiser, steps=4, steps_per_epoch=2),
    )


class Listener(Progress):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def read_metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_finds_the_discs_it_has_learnt(trained_run: Path) -> None:
    """The whole chain: were any axis or spacing wrong, no disc would lie within 5 mm."""
    last = read_metrics(trained_run)[-1]
    assert float(last["found"]) > 0.75
    assert float(last["shifted"]) < 0.1
    assert float(last["median_mm"]) < 3


def test_what_a_run_leaves(trained_run: Path, spines: Path) -> None:
    assert {path.name for path in trained_run.iterdir()} == {
        "best.pt",
        "config.toml",
        "curves.png",
        "data.json",
        "last.pt",
        "metrics.csv",
        "tensorboard",
    }
    data = json.loads((trained_run / "data.json").read_text(encoding="utf-8"))
    assert data["images"] == data["val_images"] == 2
    assert data["groups"] == {"neck:T2w": 2}
    assert [(file["subject"], file["split"]) for file in data["files"]] == [
        ("sub-0", "train"),
        ("sub-1", "train"),
        ("sub-2", "val"),
        ("sub-3", "val"),
    ]
    digest = hashlib.sha256()
    labels = spines / "derivatives" / "labels" / "sub-0" / "anat" / "sub-0_T2w_label-discs_dlabel"
    for path in (
        spines / "sub-0" / "anat" / "sub-0_T2w.nii.gz",
        labels.with_suffix(".nii.gz"),
        labels.with_suffix(".json"),
    ):
        digest.update(path.read_bytes())
    assert data["files"][0] == {
        "split": "train",
        "subject": "sub-0",
        "image": "sub-0_T2w.nii.gz",
        "group": "neck:T2w",
        "sha256": digest.hexdigest(),
    }
    checkpoint = load_checkpoint(trained_run / "last.pt")
    assert checkpoint.data == data
    assert checkpoint.step == 80


def test_open_labels_are_those_of_the_data(trained_run: Path, spine_config: TrainingConfig) -> None:
    assert spine_config.labels is None
    config = read_toml(TrainingConfig, trained_run / "config.toml")
    assert config.labels is not None
    assert config == replace(spine_config, labels=config.labels)
    checkpoint = load_checkpoint(trained_run / "last.pt")
    assert from_dict(TrainingConfig, checkpoint.config) == config
    assert Skeleton.from_dict(checkpoint.skeleton).labels == config.labels
    assert checkpoint.arguments["n_labels"] == len(config.labels)
    assert set(range(4, 9)) <= set(config.labels) <= set(range(3, 11))


def test_labels_that_are_never_certain_stay_out(
    spines: Path, quick: TrainingConfig, tmp_path: Path
) -> None:
    shutil.copytree(spines, tmp_path / "data")
    for path in tmp_path.glob("data/derivatives/labels/sub-*/anat/*.json"):
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        for disc in sidecar["Discs"]:
            disc["certain"] = disc["label"] in range(5, 9)
        if "sub-3" in path.name:
            sidecar["Discs"] = [disc for disc in sidecar["Discs"] if disc["label"] > 8]
            path.with_name(path.name.replace(".json", ".nii.gz")).unlink()
        path.write_text(json.dumps(sidecar), encoding="utf-8")
    config = replace(quick, optimiser=replace(quick.optimiser, steps=1))
    listener = Listener()
    run_training([tmp_path / "data"], config, tmp_path / "run", device="cpu", progress=listener)
    assert read_toml(TrainingConfig, tmp_path / "run" / "config.toml").labels == (5, 6, 7, 8)
    (warning,) = listener.warnings
    assert "sub-3" in warning
    assert "no disc that the training images are certain of; the image is skipped" in warning


def test_without_an_image_of_val(spines: Path, quick: TrainingConfig, tmp_path: Path) -> None:
    folder = shutil.copytree(spines, tmp_path / "data")
    table = folder / "participants.tsv"
    table.write_text(table.read_text(encoding="utf-8").replace("val", "test"), encoding="utf-8")
    config = replace(quick, optimiser=replace(quick.optimiser, steps=1))
    listener = Listener()
    run_training([folder], config, tmp_path / "run", device="cpu", progress=listener)
    (warning,) = listener.warnings
    assert "no image of split val can be used" in warning


def test_no_certain_disc_at_all(spines: Path, quick: TrainingConfig, tmp_path: Path) -> None:
    shutil.copytree(spines, tmp_path / "data")
    for path in tmp_path.glob("data/derivatives/labels/sub-*/anat/*.json"):
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        for disc in sidecar["Discs"]:
            disc["certain"] = False
        path.write_text(json.dumps(sidecar), encoding="utf-8")
    with pytest.raises(InputError, match="no image of split train can be used"):
        run_training([tmp_path / "data"], quick, tmp_path / "run", device="cpu")


def test_a_stopped_run_goes_on(phantoms: Path, quick: TrainingConfig, tmp_path: Path) -> None:
    straight = load_checkpoint(run_training([phantoms], quick, tmp_path / "a", device="cpu"))

    class Stop(Progress):
        def step(self, step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
            if step == 3:
                raise KeyboardInterrupt

    run = tmp_path / "b"
    with pytest.raises(KeyboardInterrupt):
        run_training([phantoms], quick, run, device="cpu", progress=Stop())
    with pytest.raises(UsageError, match="holds a run already"):
        run_training([phantoms], quick, run, device="cpu")
    # the run's own settings hold, not those of the call
    run_training([phantoms], TrainingConfig(), run, device="cpu", resume=True)
    resumed = load_checkpoint(run / "last.pt")
    assert resumed.step == 4
    assert resumed.weights.keys() == straight.weights.keys()
    assert all(torch.equal(resumed.weights[k], v) for k, v in straight.weights.items())
    assert [row["step"] for row in read_metrics(run)] == ["2", "4"]
    assert resumed.data["groups"] == {"phantom:T2w": 3}


KILLED_AT_STEP_3 = """
import os, signal, sys
from pathlib import Path
from ivdtool.config import read_toml
from ivdtool.training.loop import TrainingConfig, settings_of
from ivdtool.training.progress import Progress
from ivdtool.training.run import run_training

class Killer(Progress):
    def step(self, step, metrics):
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

dataset, config, run = map(Path, sys.argv[1:])
settings = read_toml(TrainingConfig, config)
run_training([dataset], settings, run, device="cpu", threads=1, progress=Killer())
"""


def test_a_killed_run_goes_on(phantoms: Path, quick: TrainingConfig, tmp_path: Path) -> None:
    """kill -9 in the middle of the second epoch: nothing can be tidied up."""
    straight = load_checkpoint(run_training([phantoms], quick, tmp_path / "a", device="cpu"))
    settings, run = tmp_path / "settings.toml", tmp_path / "b"
    settings.write_text(to_toml(quick), encoding="utf-8")
    command = [sys.executable, "-c", KILLED_AT_STEP_3, *map(str, (phantoms, settings, run))]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert load_checkpoint(run / "last.pt").step == 2
    arguments = ["--data", phantoms, "-o", run, "--resume", "--device", "cpu", "--threads", 1]
    command = [sys.executable, "-m", "ivdtool", "train", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)
    resumed = load_checkpoint(run / "last.pt")
    assert resumed.step == straight.step == 4
    for name in ("weights", "average"):
        tensors = getattr(straight, name)
        assert getattr(resumed, name).keys() == tensors.keys()
        assert all(torch.equal(getattr(resumed, name)[key], tensors[key]) for key in tensors)
    assert [row["step"] for row in read_metrics(run)] == ["2", "4"]
    kept = ("step", "loss", "error", "found", "false", "shifted", "median_mm")
    for ours, theirs in zip(read_metrics(run), read_metrics(tmp_path / "a"), strict=True):
        assert {name: ours[name] for name in kept} == {name: theirs[name] for name in kept}


def test_a_second_run_decodes_nothing(
    phantoms: Path, quick: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(quick, optimiser=replace(quick.optimiser, steps=1))
    first = run_training([phantoms], config, tmp_path / "a", device="cpu")
    assert len(list((tmp_path / "slab-cache").rglob("*.npz"))) == 3

    def refuse(*arguments: object) -> Case:
        raise AssertionError(f"decoded again: {arguments}")

    monkeypatch.setattr(slabs, "load_case", refuse)
    second = run_training([phantoms], config, tmp_path / "b", device="cpu")
    weights = [load_checkpoint(last).weights for last in (first, second)]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    with pytest.raises(AssertionError, match="decoded again"):
        run_training([phantoms], config, tmp_path / "c", device="cpu", cache=tmp_path / "other")


def test_a_run_goes_on_with_its_own_data_only(
    phantoms: Path, quick: TrainingConfig, tmp_path: Path
) -> None:
    shutil.copytree(phantoms, tmp_path / "data")
    run_training([tmp_path / "data"], quick, tmp_path / "run", device="cpu")
    (image, *_) = (tmp_path / "data").glob("sub-*/anat/*.nii.gz")
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"the data have changed since this run began; .* --init"):
        run_training([tmp_path / "data"], quick, tmp_path / "run", device="cpu", resume=True)


def test_unusable_images_are_skipped(spines: Path, quick: TrainingConfig, tmp_path: Path) -> None:
    """One whose file is damaged, and one that shows no disc, as thin oblique volumes may."""
    shutil.copytree(spines, tmp_path / "data")
    (image,) = (tmp_path / "data").glob("sub-0/anat/*.nii.gz")
    image.write_bytes(b"damaged")
    (labels,) = (tmp_path / "data").glob("derivatives/labels/sub-2/anat/*.nii.gz")
    empty = nib.nifti1.load(labels)
    labels.write_bytes(
        nifti_bytes(nib.Nifti1Image(np.zeros(empty.shape, np.uint8), empty.affine), labels)
    )
    labels.with_name(labels.name.replace(".nii.gz", ".json")).unlink()
    listener = Listener()
    run = tmp_path / "run"
    config = replace(quick, optimiser=replace(quick.optimiser, steps=1))
    run_training([tmp_path / "data"], config, run, device="cpu", progress=listener)
    assert len(listener.warnings) == 2
    assert str(image) in listener.warnings[0]
    assert f"{labels}: no disc label" in listener.warnings[1]
    data = json.loads((run / "data.json").read_text(encoding="utf-8"))
    assert (data["images"], data["val_images"]) == (1, 1)
    skipped = {file["subject"]: file["skipped"] for file in data["files"] if "skipped" in file}
    assert skipped.keys() == {"sub-0", "sub-2"}
    (image,) = (tmp_path / "data").glob("sub-1/anat/*.nii.gz")
    image.write_bytes(b"damaged")
    with pytest.raises(InputError, match="no image of split train can be used"):
        run_training([tmp_path / "data"], config, tmp_path / "none", device="cpu")
    assert not (tmp_path / "none").exists()


def test_patience_needs_something_to_validate_on(
    phantoms: Path, quick: TrainingConfig, tmp_path: Path
) -> None:
    patient = replace(quick, optimiser=replace(quick.optimiser, patience=3))
    with pytest.raises(UsageError, match=r"stop early \(patience\) needs images of split val"):
        run_training([phantoms], patient, tmp_path / "run", device="cpu")


# --- weights of another run


def test_fine_tuning(trained_run: Path, spines: Path, tmp_path: Path) -> None:
    """On data that show some of the labels only; without a step, the network is the same."""
    first = load_checkpoint(trained_run / "last.pt")
    few = tmp_path / "data"
    shutil.copytree(spines, few)
    for path in few.glob("derivatives/labels/sub-*/anat/*.json"):
        sidecar = json.loads(path.read_text(encoding="utf-8"))
        sidecar["Discs"] = [disc for disc in sidecar["Discs"] if disc["label"] in (5, 6)]
        path.write_text(json.dumps(sidecar), encoding="utf-8")
        path.with_name(path.name.replace(".json", ".nii.gz")).unlink()
    config = settings_of(first, trained_run / "last.pt")
    still = replace(config.optimiser, steps=1, learning_rate=0.0, average=0.0)
    config = replace(config, labels=None, optimiser=still)
    run = tmp_path / "run"
    run_training([few], config, run, device="cpu", initial=[trained_run / "last.pt"])
    second = load_checkpoint(run / "last.pt")
    assert second.config["labels"] == first.config["labels"]
    assert second.skeleton == first.skeleton
    kernels = [name for name, value in first.average.items() if value.ndim == 4]
    assert len(kernels) > 20
    assert all(torch.equal(second.weights[name], first.average[name]) for name in kernels)
    digest = hashlib.sha256((trained_run / "last.pt").read_bytes()).hexdigest()
    assert second.data["initial_sha256"] == [digest]


def test_start_from_the_mean_of_weights(trained_run: Path, spines: Path, tmp_path: Path) -> None:
    """Of three checkpoints, one of them with other weights; without a step, that is the network."""
    first = load_checkpoint(trained_run / "last.pt")
    other = {
        name: value + 1.5 if value.is_floating_point() else value + 7
        for name, value in first.average.items()
    }
    save_checkpoint(replace(first, average=other, skeleton={}), tmp_path / "other.pt")
    config = settings_of(first, trained_run / "last.pt")
    still = replace(config.optimiser, steps=1, learning_rate=0.0, average=0.0)
    paths = [trained_run / "last.pt", tmp_path / "other.pt", trained_run / "last.pt"]
    run_training(
        [spines],
        replace(config, optimiser=still),
        tmp_path / "run",
        device="cpu",
        initial=paths,
    )
    second = load_checkpoint(tmp_path / "run" / "last.pt")
    assert second.skeleton == first.skeleton
    for name, value in first.average.items():
        if value.ndim == 4:  # kernels: batches change what is measured of them, not these
            torch.testing.assert_close(second.weights[name], value + 0.5)
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert second.data["initial_sha256"] == digests


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"network": "hca"}, "trained with network hourglass, not hca"),
        ({"arguments": {"stacks": 2, "channels": 32}}, "trained with arguments .*'stacks': 1"),
        ({"labels": (20, 21)}, "trained with labels .*not \\(20, 21\\)"),
    ],
)
def test_initial_weights_of_another_network(
    change: dict[str, Any],
    reason: str,
    trained_run: Path,
    spine_config: TrainingConfig,
    spines: Path,
    tmp_path: Path,
) -> None:
    config = replace(spine_config, **change)
    with pytest.raises(UsageError, match=reason):
        run_training([spines], config, tmp_path / "run", initial=[trained_run / "best.pt"])
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_overwritten(trained_run: Path, quick: TrainingConfig) -> None:
    before = (trained_run / "config.toml").read_bytes()
    with pytest.raises(UsageError, match="holds a run already"):
        run_training([trained_run], quick, trained_run)
    assert (trained_run / "config.toml").read_bytes() == before


def test_nothing_to_resume(phantoms: Path, quick: TrainingConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint to resume"):
        run_training([phantoms], quick, tmp_path, resume=True)


def test_no_training_images(spines: Path, quick: TrainingConfig, tmp_path: Path) -> None:
    only_val = tmp_path / "data"
    shutil.copytree(spines, only_val)
    table = only_val / "participants.tsv"
    table.write_text(table.read_text().replace("train", "val"), encoding="utf-8")
    with pytest.raises(InputError, match="no labelled image of split train"):
        run_training([only_val], quick, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_labels_than_the_data_shows(
    spines: Path, quick: TrainingConfig, tmp_path: Path
) -> None:
    wide = replace(quick, labels=tuple(range(3, 26)))
    with pytest.raises(InputError, match=r"cover 3\.\.\d+, but the settings ask for 3\.\.25"):
        run_training([spines], wide, tmp_path / "run")


def test_a_run_folder_that_cannot_be(phantoms: Path, quick: TrainingConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot make this folder"):
        run_training([phantoms], quick, tmp_path / "file" / "run")


def test_data_sets_with_files_of_one_name(
    spines: Path, quick: TrainingConfig, tmp_path: Path
) -> None:
    """Both are in the account of the training data."""
    twin = tmp_path / "twin"
    shutil.copytree(spines, twin)
    (labels,) = twin.glob("derivatives/labels/sub-0/anat/*.nii.gz")
    labels.write_bytes(labels.read_bytes() + b"\0")  # padding after the end is legal
    config = replace(quick, optimiser=replace(quick.optimiser, steps=1))
    run_training([spines, twin], config, tmp_path / "run", device="cpu")
    data = json.loads((tmp_path / "run" / "data.json").read_text(encoding="utf-8"))
    assert data["images"] == 4
    training = [file for file in data["files"] if file["split"] == "train"]
    assert [file["image"] for file in training] == ["sub-0_T2w.nii.gz", "sub-1_T2w.nii.gz"] * 2
    assert len({file["sha256"] for file in training}) == 3  # sub-1 is the same in both


def make_case(points: dict[int, tuple[float, float]], doubt: int = 0) -> Case:
    return Case(
        source=Source(Path("i.nii"), Path("l.nii"), "sub-1", "train", "a:T2w"),
        planes=(),
        labels=tuple(points),
        points=np.array(list(points.values())),
        certain=np.array([label != doubt for label in points]),
        unknown=frozenset(),
    )


def test_mean_skeleton_takes_certain_discs() -> None:
    cases = [
        make_case({20: (10, 5), 21: (40, 6)}),
        make_case({20: (60, 5), 21: (94, 8), 22: (140, 0)}, doubt=22),
        make_case({21: (0, 0), 22: (36, -2)}),
    ]
    skeleton = mean_skeleton(cases, (20, 21, 22))
    np.testing.assert_allclose(skeleton.mean_mm, [[0, 0], [32, 2], [68, 0]])


def test_neighbours_that_are_never_seen_together() -> None:
    cases = [make_case({8: (0, 0), 9: (20, 0)}), make_case({20: (0, 0), 21: (30, 0)})]
    with pytest.raises(InputError, match="no mean skeleton"):
        mean_skeleton(cases, tuple(range(8, 22)))
