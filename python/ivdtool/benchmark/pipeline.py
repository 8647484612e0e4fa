"""The whole method: where the time goes, beside the floors, and what a first answer takes."""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from isal import igzip

from ivdtool.benchmark.timing import Case, Contender, Spread, Timing, expect
from ivdtool.files import nifti_bytes
from ivdtool.heatmaps import Heatmaps
from ivdtool.inference import Model, load_model
from ivdtool.labels import DiscLabels
from ivdtool.phantom import Region, make_phantom
from ivdtool.phantom_dataset import random_config
from ivdtool.pipeline import LabelConfig, label_discs
from ivdtool.preprocessing import Image
from ivdtool.volumes import Volume, read_volume
from ivdtool.writers import write_labels

__all__ = ["start_up_cases", "time_stages"]

TOLERANCE_MM = 0.05  # between numbers of threads


def time_stages(
    quick: bool = False, model: Model | None = None
) -> Iterator[tuple[str, list[Timing]]]:
    """Label phantoms again and again; yield what was labelled and the times of the stages.

    A stage's ratio is its share of the whole. Every repetition must give the same labels. Beside
    them stand the floors, of the same files and slabs: the file inflated as a whole, the network
    shown the slabs, and both together.

    Raises:
        ModelError: there is no model.
        IvdtoolError: an answer that differs from the first.
    """
    loaded = model or load_model(device="cpu")
    regions: tuple[Region, ...] = ("lumbar",) if quick else ("cervical", "lumbar", "whole")
    with tempfile.TemporaryDirectory() as folder:
        for region in regions:
            path = Path(folder) / f"{region}.nii.gz"
            size = "x".join(map(str, _write_phantom(path, region)))
            yield f"{region} phantom, {size}", _time_one(path, loaded, 2 if quick else 7)


def start_up_cases(model: Model | None = None) -> Iterator[Case]:
    """Yield whole programs, from the shell and back, beside Python that imports torch.

    Raises:
        ModelError: there is no model.
    """
    loaded = model or load_model(device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lumbar.nii.gz"
        size = "x".join(map(str, _write_phantom(path, "lumbar")))
        expected = label_discs(read_volume(path), loaded, LabelConfig()).labels
        label = _program("-m", "ivdtool", "label", str(path), "--json")
        yield Case(
            "start-up",
            f"lumbar phantom, {size}",
            (
                Contender("python -c 'import torch'", _program("-c", "import torch")),
                Contender(
                    "ivdtool --help",
                    _program("-m", "ivdtool", "--help"),
                    lambda answer: expect("label" in answer, "no help"),
                ),
                Contender("ivdtool label", label, lambda answer: _check_discs(answer, expected)),
            ),
        )


def _program(*arguments: str) -> Callable[[], str]:
    def run() -> str:
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, encoding="utf-8"
        )
        expect(done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    return run


def _check_discs(sidecar: str, expected: DiscLabels) -> None:
    discs = json.loads(sidecar)["Discs"]
    expect([disc["label"] for disc in discs] == [d.label for d in expected.discs], "other discs")
    for disc, ours in zip(discs, expected.discs, strict=True):
        off = math.dist(disc["world_mm"], ours.world_mm)
        expect(off <= TOLERANCE_MM, f"{ours.name} is {off:.3f} mm off")


def _write_phantom(path: Path, region: Region) -> tuple[int, ...]:
    phantom = make_phantom(random_config(7, region, "T2w"))
    path.write_bytes(nifti_bytes(phantom.image, path))
    shape: tuple[int, ...] = phantom.image.shape
    return shape


@dataclass(frozen=True, eq=False)
class _Recorder(Model):
    """A model that keeps what it was shown, and what it answered."""

    shown: list[tuple[Sequence[Image], list[Heatmaps]]] = field(default_factory=list)

    def predict(self, images: Sequence[Image]) -> list[Heatmaps]:
        self.shown.append((images, super().predict(images)))
        return self.shown[-1][1]


def _time_one(path: Path, model: Model, rounds: int) -> list[Timing]:
    runs: list[dict[str, float]] = []
    floors: list[dict[str, float]] = []
    first = None
    for repetition in range(rounds + 1):
        recorder = _Recorder(**vars(model))
        started = time.perf_counter()
        volume = read_volume(path)
        reading = time.perf_counter() - started
        result = label_discs(volume, recorder, LabelConfig())
        started = time.perf_counter()
        write_labels(result.labels, path.with_name("labels.nii.gz"), reproducible=True)
        writing = time.perf_counter() - started
        answer = [(disc.label, disc.world_mm.tolist()) for disc in result.labels.discs]
        first = first or answer
        expect(answer == first, "a repetition gave other labels")
        floor = _time_floors(path, volume, model, recorder)
        if repetition > 0:  # the first one warms up
            runs.append({"reading": reading, **result.seconds, "writing": writing})
            floors.append(floor)
    totals = [sum(run.values()) for run in runs]
    times = {name: [run[name] for run in runs] for name in runs[0]} | {"total": totals}
    times |= {f"floor: {name}": [floor[name] for floor in floors] for name in floors[0]}
    return [
        Timing(
            name=name,
            microseconds=Spread.of([1e6 * seconds for seconds in taken]),
            ratio=Spread.of([own / total for own, total in zip(taken, totals, strict=True)]),
            fastest=1e6 * min(taken),
            rounds=rounds,
            extrapolated=False,
            checked=name == "total" or name.startswith("floor"),
        )
        for name, taken in times.items()
    ]


def _time_floors(path: Path, volume: Volume, model: Model, recorder: _Recorder) -> dict[str, float]:
    """Seconds of the two things that no pipeline gets around."""
    started = time.perf_counter()
    content = igzip.decompress(path.read_bytes())
    inflating = time.perf_counter() - started
    expect(content.endswith(volume.data.tobytes(order="F")), "inflated to other voxels")
    started = time.perf_counter()
    answers = [model.predict(images) for images, _ in recorder.shown]
    predicting = time.perf_counter() - started
    for answer, (_, expected) in zip(answers, recorder.shown, strict=True):
        for ours, theirs in zip(answer, expected, strict=True):
            expect((ours.values == theirs.values).all(), "the network gave other heatmaps")
    both = inflating + predicting
    return {"gunzip alone": inflating, "network alone": predicting, "together": both}
