"""What one worker process does: load the model once, then label scan after scan."""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import compress
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from ivdtool import __version__
from ivdtool.errors import IvdtoolError
from ivdtool.files import file_sha256, sidecar_path
from ivdtool.modelfile import BATCH_SIZE
from ivdtool.writers import markups_path, picture_path

__all__ = [
    "BatchConfig",
    "DiscRow",
    "Labelled",
    "Outcome",
    "Prepare",
    "Task",
    "load_labeller",
    "output_files",
    "possible_files",
    "serve",
]


@dataclass(frozen=True)
class BatchConfig:
    """How all scans of a batch are labelled.

    Attributes:
        model: file.
        device: see `ivdtool.inference.load_model`.
        threads: of the network, in each worker.
        batch_size: most images of a scan that go through the network at once.
        volume: of 4-D scans, an index or ``mean``.
        slices: these and the following replace the model's; see `ivdtool.labelling`.
        slab_mm: see `slices`.
        normalisation: see `slices`.
        middle: do not look for the plane of the spine.
        first_label: name of the topmost disc of every scan.
        n_discs: to be found in every scan.
        keep_refused: write labels whose verdict is ``refused``, too.
        reproducible: leave the date out of sidecars.
        slicer: write point lists for 3D Slicer.
        qc: write pictures.
    """

    model: str
    device: str = "auto"
    threads: int = 1
    batch_size: int = BATCH_SIZE
    volume: int | str | None = None
    slices: int | None = None
    slab_mm: float | None = None
    normalisation: str | None = None
    middle: bool = False
    first_label: str | None = None
    n_discs: int | None = None
    keep_refused: bool = False
    reproducible: bool = False
    slicer: bool = False
    qc: bool = False

    def fingerprint(self) -> str:
        """Return what decides the results beside the scan and the model, as text."""
        settings = asdict(self)
        for name in ("model", "device", "threads", "batch_size"):  # the manifest hashes the model
            del settings[name]
        return json.dumps({"ivdtool": __version__, **settings}, sort_keys=True)


@dataclass(frozen=True)
class Task:
    """One scan to label.

    Attributes:
        key: of the scan in the manifest.
        input: path.
        output: path of the label image; its folder exists.
        hash: whether to compute the scan's sha256.
    """

    key: str
    input: str
    output: str
    hash: bool = False


@dataclass(frozen=True)
class DiscRow:
    """One disc as the table of all discs has it: RAS+ world mm."""

    label: int
    name: str
    x_mm: float
    y_mm: float
    z_mm: float
    score: float
    confidence: float
    status: str


@dataclass(frozen=True)
class Labelled:
    """What was found in one scan."""

    discs: tuple[DiscRow, ...]
    warnings: tuple[str, ...] = ()
    verdict: str | None = None
    probability: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        key: of the scan in the manifest.
        labelled: None if it failed.
        kind: of the error, None without one: the name of its class, ``Timeout``, ``WorkerDied``.
        error: one line.
        details: traceback of an error that is nobody's fault but ours.
        sha256: of the scan, where asked for.
        seconds: it took, in the last attempt.
        attempts: 2 where a worker died at the first.
    """

    key: str
    labelled: Labelled | None = None
    kind: str | None = None
    error: str | None = None
    details: str | None = None
    sha256: str | None = None
    seconds: float = 0.0
    attempts: int = 1


Labeller = Callable[[Task], Labelled]
Prepare = Callable[[BatchConfig], Labeller]


def possible_files(labels: Path) -> list[Path]:
    """Return all files that a scan's labels may consist of, the label image first."""
    return [labels, sidecar_path(labels), markups_path(labels), picture_path(labels)]


def output_files(labels: Path, config: BatchConfig) -> list[Path]:
    """Return those of them that the settings ask for."""
    wanted = (True, True, config.slicer, config.qc)
    return list(compress(possible_files(labels), wanted))


def load_labeller(config: BatchConfig) -> Labeller:
    """Load the model; return what labels a scan with it as `ivdtool label` does.

    Raises:
        ModelError: the model is unusable.
        UsageError: a setting is.
    """
    from ivdtool.inference import load_model
    from ivdtool.labelling import Targets, label_scan, method_config
    from ivdtool.pipeline import Constraints

    model = load_model(config.model, config.device, config.threads, config.batch_size)
    constraints = Constraints.parse((), config.first_label, config.n_discs)
    method = method_config(
        model.info, config.slices, config.slab_mm, config.normalisation, config.middle,
        constraints, config.keep_refused,
    )  # fmt: skip

    def label(task: Task) -> Labelled:
        output = Path(task.output)
        picture = picture_path(output) if config.qc else None
        targets = Targets(output, picture, config.reproducible, config.slicer)
        labels = label_scan(Path(task.input), model, method, config.volume, targets).labels
        discs = [
            DiscRow(
                label=disc.label,
                name=disc.name,
                x_mm=float(disc.world_mm[0]),
                y_mm=float(disc.world_mm[1]),
                z_mm=float(disc.world_mm[2]),
                score=disc.score,
                confidence=disc.confidence,
                status=disc.status,
            )
            for disc in labels.discs
        ]
        return Labelled(tuple(discs), labels.warnings, labels.verdict, labels.probability)

    return label


def serve(connection: "Connection[Any, Any]", prepare: Prepare, config: BatchConfig) -> None:
    """Be a worker process: say None when ready, or why not; then answer tasks with outcomes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # files half written are removed
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        label = prepare(config)
    except IvdtoolError as error:
        connection.send(error)
        return
    connection.send(None)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(_answer(label, task))


def _answer(label: Labeller, task: Task) -> Outcome:
    started = time.perf_counter()
    answer = Outcome(task.key)
    try:
        if task.hash and Path(task.input).is_file():
            answer = replace(answer, sha256=file_sha256(task.input))
        answer = replace(answer, labelled=label(task))
    except IvdtoolError as error:
        text = " ".join(str(error).split())
        answer = replace(answer, kind=type(error).__name__, error=text)
    except Exception as error:  # noqa: BLE001 - one bad scan is one row, whatever is wrong with it
        text = " ".join(f"{task.input}: {type(error).__name__}: {error}".split())
        details = traceback.format_exc()
        answer = replace(answer, kind=type(error).__name__, error=text, details=details)
    return replace(answer, seconds=time.perf_counter() - started)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
