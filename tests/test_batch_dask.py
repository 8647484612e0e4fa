"""A batch on a Dask cluster gives what one on this machine gives, whoever dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests import batch_stub
from tests.test_batch import CONFIG, contents, counts, run, table, touch

from ivdtool.batch.dask_pool import DaskPool, _outcome
from ivdtool.batch.inputs import find_scans
from ivdtool.batch.run import Resume, run_batch
from ivdtool.batch.worker import Outcome, Task
from ivdtool.errors import IvdtoolError, UsageError
from ivdtool.files import nifti_bytes
from ivdtool.phantom import make_phantom
from ivdtool.phantom_dataset import random_config

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two workers."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def source(tmp_path: Path) -> Path:
    names = [f"{folder}/{i}.nii" for folder in "ab" for i in range(10)]
    return touch(tmp_path / "in", *names, "bad.nii", "flaky.nii", "kill.nii", "hang.nii")


def test_one_of_two_workers_is_killed(cluster: str, source: Path, tmp_path: Path) -> None:
    assert counts(run(source, tmp_path / "here", jobs=1, timeout=2)) == (21, 3, 0)
    (source / "once").unlink()
    pids: list[int] = []

    def kill_one(_: Outcome) -> None:
        if not pids:
            with distributed.Client(cluster) as client:
                pids.extend(client.run(os.getpid).values())
            os.kill(pids[0], signal.SIGKILL)

    scans = find_scans([str(source)], tmp_path / "dask")
    summary = run_batch(
        scans,
        tmp_path / "dask",
        CONFIG,
        lambda n: DaskPool(batch_stub.prepare, CONFIG, n, 2.0, cluster),
        heard=kill_one,
    )
    assert counts(summary) == (21, 3, 0)
    assert contents(tmp_path / "dask") == contents(tmp_path / "here")
    here, there = (table(tmp_path / name / "summary.csv") for name in ("here", "dask"))
    for name, row in here.items():
        for column in ("output", "status", "error_kind", "error"):
            assert there[name][column] == row[column]
    with distributed.Client(cluster) as client:
        until = time.monotonic() + 10
        while pids[0] in client.run(os.getpid).values():
            assert time.monotonic() < until
    summary = run_batch(
        scans,
        tmp_path / "dask",
        CONFIG,
        lambda n: DaskPool(batch_stub.prepare, CONFIG, n, 2.0, cluster),
        resume=Resume(wanted=True),
    )
    assert counts(summary) == (0, 3, 21)


def test_a_cluster_is_started_where_none_is_given(source: Path, tmp_path: Path) -> None:
    scans = find_scans([str(source / "a")], tmp_path / "out")
    summary = run_batch(
        scans, tmp_path / "out", CONFIG, lambda _: DaskPool(batch_stub.prepare, CONFIG, 1, 10.0)
    )
    assert counts(summary) == (10, 0, 0)


@pytest.mark.parametrize(("workers", "limit"), [(0, "QUEUE_SECONDS"), (1, "GONE_SECONDS")])
def test_a_cluster_without_workers_is_not_waited_for_for_ever(
    workers: int, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether none ever comes, or all have gone, as jobs do at the end of their time."""
    monkeypatch.setattr(f"ivdtool.batch.dask_pool.{limit}", 0.3)
    monkeypatch.setattr("ivdtool.batch.dask_pool.COUNT_SECONDS", 0.05)
    source, out = touch(tmp_path / "in", "a.nii", "b.nii", "c.nii"), tmp_path / "out"
    scans = find_scans([str(source)], out)
    with distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, dashboard_address=":0"
    ) as cluster:

        def pool(_: int) -> DaskPool:
            return DaskPool(batch_stub.prepare, CONFIG, 1, 10.0, cluster.scheduler_address)

        with pytest.raises(IvdtoolError, match=r"no worker for 0\.3 s; .* --resume"):
            run_batch(scans, out, CONFIG, pool, heard=lambda _: cluster.scale(0))
        monkeypatch.undo()
        cluster.scale(1)
        summary = run_batch(scans, out, CONFIG, pool, resume=Resume(wanted=True))
    labelled, failed, skipped = counts(summary)
    assert (labelled + skipped, failed) == (3, 0)
    assert bool(skipped) == bool(workers)


@pytest.mark.parametrize("seconds", [0.0, 3.0])
def test_the_cluster_goes_away(seconds: float, tmp_path: Path) -> None:
    """Whether Dask still hopes for the scheduler, or has given it up."""
    source, out = touch(tmp_path / "in", "a.nii", "b.nii", "c.nii"), tmp_path / "out"
    quickly = dask.config.set({"distributed.comm.timeouts.connect": "500ms"})
    with quickly, distributed.LocalCluster(n_workers=1, dashboard_address=":0") as cluster:

        def go_away(_: Outcome) -> None:
            cluster.close()
            time.sleep(seconds)

        with pytest.raises(IvdtoolError, match=r"cluster is gone; .* --resume"):
            run_batch(
                find_scans([str(source)], out), out, CONFIG,
                lambda _: DaskPool(batch_stub.prepare, CONFIG, 1, 9.0, cluster.scheduler_address),
                heard=go_away,
            )  # fmt: skip
    assert counts(run(source, out, resume=Resume(wanted=True)))[1] == 0


def test_a_scan_that_the_cluster_forgot() -> None:
    with pytest.raises(IvdtoolError, match="cluster is gone"):
        _outcome(Task("key", "a.nii", "out.nii.gz"), "cancelled", None)


def test_no_scheduler_answers() -> None:
    quickly = dask.config.set({"distributed.comm.timeouts.connect": "500ms"})
    with quickly, pytest.raises(UsageError, match=r"--scheduler tcp://127\.0\.0\.1:1: no answer"):
        DaskPool(batch_stub.prepare, CONFIG, 1, None, "tcp://127.0.0.1:1")


def test_the_script_for_slurm_runs_on_a_cluster_of_jobs(tmp_path: Path) -> None:
    """On the queue that dask-jobqueue has for tests: jobs are processes here."""
    pytest.importorskip("dask_jobqueue")
    image = make_phantom(replace(random_config(7, "lumbar", "T2w"), spacing_mm=2.0)).image
    scan = tmp_path / "in" / "sub-1_T2w.nii.gz"
    scan.parent.mkdir()
    scan.write_bytes(nifti_bytes(image, scan))
    code = f"""
from dask_jobqueue.local import LocalCluster
from slurm_batch import label_on
options = {{"dashboard_address": ":0"}}
cluster = LocalCluster(cores=1, processes=1, memory="2GB", scheduler_options=options)
label_on(cluster, 1, {[str(scan.parent), "-o", str(tmp_path / "out"), "-q"]!r})
"""
    assert run_beside_docs(code, tmp_path).startswith("1 scans: 1 labelled, 0 failed")


def test_the_script_for_slurm_asks_for_what_it_says(tmp_path: Path) -> None:
    """Sixteen workers of one thread each, as every one labels in a process of its own."""
    pytest.importorskip("dask_jobqueue")
    code = """
import dask
from slurm_batch import slurm_cluster
dask.config.set({"jobqueue.slurm.scheduler-options": {"dashboard_address": ":0"}})
with slurm_cluster() as cluster:
    print(cluster.job_script())
"""
    script = run_beside_docs(code, tmp_path)
    lines = script.splitlines()
    assert {"#SBATCH --cpus-per-task=16", "#SBATCH -t 08:00:00"} <= {*lines}
    (worker,) = (line for line in lines if "dask_worker" in line or "dask worker" in line)
    assert "--nthreads 1 " in worker
    assert "--nworkers 16 " in worker
    assert lines.index("source ~/venvs/ivdtool/bin/activate") < lines.index(worker)


def run_beside_docs(code: str, folder: Path) -> str:
    """What a program prints that can import docs/slurm_batch.py."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "docs")},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout
