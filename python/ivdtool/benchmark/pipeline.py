"""The whole method: where the time goes."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ivdtool.benchmark.timing import Spread, Timing, expect
from ivdtool.files import nifti_bytes
from ivdtool.inference import Model, load_model
from ivdtool.phantom import Region, make_phantom, random_config
from ivdtool.pipeline import LabelConfig, label_discs
from ivdtool.volumes import read_volume

__all__ = ["time_stages"]


def time_stages(
    quick: bool = False, model: Model | None = None
) -> Iterator[tuple[str, list[Timing]]]:
    """Label phantoms again and again; yield what was labelled and the times of the stages.

    A stage's ratio is its share of the whole. Every repetition must give the same labels.

    Raises:
        ModelError: there is no model.
        IvdtoolError: an answer that differs from the first.
    """
    loaded = model or load_model(device="cpu")
    regions: tuple[Region, ...] = ("lumbar",) if quick else ("cervical", "lumbar", "whole")
    with tempfile.TemporaryDirectory() as folder:
        for region in regions:
            path = Path(folder) / f"{region}.nii.gz"
            phantom = make_phantom(random_config(7, region, "T2w"))
            path.write_bytes(nifti_bytes(phantom.image, path))
            size = "x".join(map(str, phantom.image.shape))
            yield f"{region} phantom, {size}", _time_one(path, loaded, 2 if quick else 7)


def _time_one(path: Path, model: Model, rounds: int) -> list[Timing]:
    runs: list[dict[str, float]] = []
    first = None
    for repetition in range(rounds + 1):
        started = time.perf_counter()
        volume = read_volume(path)
        reading = time.perf_counter() - started
        result = label_discs(volume, model, LabelConfig())
        answer = [(disc.label, disc.world_mm.tolist()) for disc in result.labels.discs]
        first = first or answer
        expect(answer == first, "a repetition gave other labels")
        if repetition > 0:  # the first one warms up
            runs.append({"reading": reading, **result.seconds})
    totals = [sum(run.values()) for run in runs]
    times = {name: [run[name] for run in runs] for name in runs[0]} | {"total": totals}
    return [
        Timing(
            name=name,
            microseconds=Spread.of([1e6 * seconds for seconds in taken]),
            ratio=Spread.of([own / total for own, total in zip(taken, totals, strict=True)]),
            fastest=1e6 * min(taken),
            rounds=rounds,
            extrapolated=False,
            checked=name == "total",
        )
        for name, taken in times.items()
    ]
