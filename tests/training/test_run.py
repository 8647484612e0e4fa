"""From a data set on disk to a network that has learnt it."""

import csv
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ivdtool.config import from_dict, read_toml
from ivdtool.errors import InputError, UsageError
from ivdtool.phantom import write_phantoms
from ivdtool.skeleton import Skeleton
from ivdtool.training.checkpoint import load_checkpoint
from ivdtool.training.dataset import Case, Source
from ivdtool.training.loop import TrainingConfig
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
        "data.json",
        "last.pt",
        "metrics.csv",
    }
    data = json.loads((trained_run / "data.json").read_text(encoding="utf-8"))
    assert data["images"] == 2
    assert data["groups"] == {"neck:T2w": 2}
    digest = hashlib.sha256()
    folders = spines / "sub-0" / "anat", spines / "derivatives" / "labels" / "sub-0" / "anat"
    for folder in folders:
        (path,) = folder.glob("*.nii.gz")
        digest.update(path.read_bytes())
    assert f"{digest.hexdigest()}  sub-0_T2w.nii.gz" in data["files"]
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
        path.write_text(json.dumps(sidecar), encoding="utf-8")
    config = replace(quick, optimiser=replace(quick.optimiser, steps=1))
    run_training([tmp_path / "data"], config, tmp_path / "run", device="cpu")
    assert read_toml(TrainingConfig, tmp_path / "run" / "config.toml").labels == (5, 6, 7, 8)


def test_a_stopped_run_goes_on(phantoms: Path, quick: TrainingConfig, tmp_path: Path) -> None:
    straight = load_checkpoint(run_training([phantoms], quick, tmp_path / "a", device="cpu"))

    def stop(step: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG001
        if step == 3:
            raise KeyboardInterrupt

    run = tmp_path / "b"
    with pytest.raises(KeyboardInterrupt):
        run_training([phantoms], quick, run, device="cpu", report=stop)
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
    assert len(set(data["files"])) == 3  # sub-1 is the same in both


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
