"""A batch without a network: quick labels, and scans that misbehave by their name.

`python -m tests.batch_stub INPUT OUTPUT MILLISECONDS` goes on with a batch of two workers.
"""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from ivdtool.batch.inputs import find_scans
from ivdtool.batch.pool import Pool
from ivdtool.batch.run import Resume, run_batch
from ivdtool.batch.summary import Summary
from ivdtool.batch.worker import BatchConfig, DiscRow, Labelled, Labeller, Task, output_files
from ivdtool.errors import InputError, ModelError
from ivdtool.files import atomic_writes

LONG = 4000
BIG = 2000
JOBS = 2


def prepare(config: BatchConfig) -> Labeller:
    """`volume` of the settings is how many milliseconds a scan takes."""
    if config.normalisation == "minmax":
        raise ModelError("stub: refuses to start")
    if config.normalisation == "percentile":
        os._exit(3)
    return partial(label, config)


def label(config: BatchConfig, task: Task) -> Labelled:
    name = Path(task.input).name
    if "bad" in name:
        raise InputError(f"{task.input}: no good")
    if "bug" in name:
        raise ZeroDivisionError("two\nlines")
    if "hang" in name:
        time.sleep(1000)
    once = Path(task.input).with_name("once")  # present: what kills has killed before
    if "kill" in name or ("flaky" in name and not once.exists()):
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if "exit" in name:
        os._exit(7)
    if "big" in name:
        return Labelled((), (task.key * BIG,))
    content = Path(task.input).read_bytes()
    files = sorted(output_files(Path(task.output), config), key=lambda file: file.suffix != ".json")
    with atomic_writes(*files) as temporaries:
        for file, temporary in zip(files, temporaries, strict=True):
            bulk = content * LONG
            temporary.write_bytes(sidecar(len(bulk)) if file.suffix == ".json" else bulk)
            time.sleep(int(config.volume or 0) / 1000 / len(files))
    if "late" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    return Labelled((DiscRow(25, "L5/S1", 1.0, 2.0, float(len(content)), 0.5, 0.5, "detected"),))


def sidecar(size: int) -> bytes:
    """As much of it as tells that the labels are ours, and so many bytes."""
    text = json.dumps({"GeneratedBy": [{"Name": "ivdtool"}]})
    return text.ljust(size).encode()


def run(source: Path, output: Path, milliseconds: int = 0, resume: bool = False) -> Summary:
    config = BatchConfig(model=__file__, volume=milliseconds)
    scans = find_scans([str(source)], output)
    return run_batch(
        scans, output, config, lambda _: Pool(prepare, config, JOBS, 30), resume=Resume(resume)
    )


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), resume=True)
