"""Fixtures of the training tests: small spines in memory and on disk."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from ivdtool.files import nifti_bytes
from ivdtool.phantom import PhantomConfig, make_phantom
from ivdtool.training.augmentation import AugmentationConfig
from ivdtool.training.batches import BatchConfig
from ivdtool.training.dataset import Case, Source
from ivdtool.training.engine import start_fabric
from ivdtool.training.loop import OptimiserConfig, TrainingConfig
from ivdtool.training.run import run_training

MakeCase = Callable[..., Case]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Sums in one order: results repeat bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def fabric() -> Fabric:
    """One process on the CPU."""
    return start_fabric("cpu")


@pytest.fixture(scope="session")
def still() -> AugmentationConfig:
    """Nothing but the window's place varies."""
    return AugmentationConfig(
        rotation_deg=0,
        scale=1,
        aspect=1,
        bend_mm=0,
        shift_mm=0,
        crop_rows=0,
        crop_cols=0,
        gamma=1,
        tone=0,
        invert=0,
        bias=0,
        noise=0,
        blur=0,
        coarse=0,
    )


@pytest.fixture(scope="session")
def make_case() -> MakeCase:
    """Three blobs of growing width on noise, 20 px apart: discs 20, 21 and 22."""

    def make(seed: int = 0, group: str = "blobs:T2w") -> Case:
        rng = np.random.default_rng(seed)
        points = np.array([[28.0, 46.0], [48.0, 50.0], [68.0, 54.0]]) + rng.uniform(-3, 3, (3, 2))
        rows, cols = np.mgrid[:96, :96]
        pixels = rng.uniform(0, 0.2, (96, 96))
        for width, (row, col) in zip((1.5, 3.0, 6.0), points, strict=True):
            pixels += np.exp(-((rows - row) ** 2 + (cols - col) ** 2) / (2 * width**2))
        return Case(
            source=Source(Path("image.nii"), Path("labels.nii"), "sub-1", "train", group),
            planes=(pixels.clip(0, 1).astype(np.float16),),
            labels=(20, 21, 22),
            points=points,
            certain=np.ones(3, dtype=np.bool_),
            unknown=frozenset(),
        )

    return make


@pytest.fixture(scope="session")
def small_config(still: AugmentationConfig) -> TrainingConfig:
    """A tiny network on tiny windows: some 20 ms a step."""
    return TrainingConfig(
        arguments={"stacks": 1, "channels": 16},
        labels=(20, 21, 22),
        seed=1,
        batch=BatchConfig(size=2, rows=64, cols=64),
        augmentation=replace(still, rotation_deg=5, gamma=1.2),
        optimiser=OptimiserConfig(
            steps=6, steps_per_epoch=3, warmup=2, learning_rate=5e-3, average=0.9
        ),
    )


def write_spine(dataset: Path, subject: str, seed: int) -> None:
    """Discs 3 to 9 or so in an image of some 110 by 110 mm."""
    phantom = make_phantom(
        PhantomConfig(
            seed=seed,
            region="cervical",
            first_label=4,
            last_label=8,
            top_mm=25,
            bottom_mm=20,
            width_mm=110,
            spacing_mm=1.5,
            slices=5,
        )
    )
    image = dataset / subject / "anat" / f"{subject}_T2w.nii.gz"
    labels = (
        dataset / "derivatives" / "labels" / subject / "anat" / f"{subject}_T2w_label-discs_dlabel"
    )
    for path, content in (
        (image, nifti_bytes(phantom.image, image)),
        (labels.with_suffix(".nii.gz"), nifti_bytes(phantom.label_image(), "labels.nii.gz")),
        (labels.with_suffix(".json"), json.dumps(phantom.sidecar()).encode()),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture(scope="session")
def spines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two spines, each as a train and as a val subject."""
    dataset = tmp_path_factory.mktemp("spines")
    rows = ["participant_id\tsplit\tsource"]
    for index, split in enumerate(["train", "train", "val", "val"]):
        write_spine(dataset, f"sub-{index}", seed=index % 2)
        rows.append(f"sub-{index}\t{split}\tneck")
    (dataset / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return dataset


@pytest.fixture(scope="session")
def spine_config(still: AugmentationConfig) -> TrainingConfig:
    """Learns the two spines by heart; leaves the labels open."""
    return TrainingConfig(
        arguments={"stacks": 1, "channels": 32},
        slab_offsets_mm=(0.0,),
        batch=BatchConfig(size=2, rows=128, cols=128),
        augmentation=still,
        optimiser=OptimiserConfig(
            steps=80, steps_per_epoch=40, warmup=2, learning_rate=1e-2, average=0.9
        ),
    )


@pytest.fixture(scope="session")
def trained_run(
    spines: Path, spine_config: TrainingConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished run."""
    run = tmp_path_factory.mktemp("runs") / "run"
    run_training([spines], spine_config, run, device="cpu")
    return run
