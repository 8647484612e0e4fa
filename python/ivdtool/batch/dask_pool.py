"""Worker processes on the machines of a Dask cluster."""

import math
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing import current_process
from typing import Any, Self

from ivdtool.batch.pool import Pool
from ivdtool.batch.worker import BatchConfig, Outcome, Prepare, Task
from ivdtool.errors import IvdtoolError, UsageError

__all__ = ["DaskPool"]

COUNT_SECONDS = 1.0  # between two looks at how many threads the cluster has
POLL_SECONDS = 0.02  # Dask's own waiting for results has no limit
QUEUE_SECONDS = 86400.0  # without a worker yet: jobs may stand in the queue of a cluster for long
GONE_SECONDS = 3600.0  # without a worker any more
CLUSTER_GONE = "the Dask cluster is gone; start it and go on with --resume"
Key = tuple[Any, ...]
_pools: dict[Key, Pool] = {}  # of a Dask worker, one for each of its threads


class DaskPool:
    """Labels scans on a Dask cluster, as many at a time as it has threads.

    Each thread of a Dask worker has a `Pool` of one process, so that time limits and dying workers
    mean the same as on one machine. Of a Dask worker that dies with its machine, Dask hands the
    scan to another one; which kills several, fails.
    """

    def __init__(
        self,
        prepare: Prepare,
        config: BatchConfig,
        jobs: int,
        timeout: float | None,
        scheduler: str | None = None,
    ) -> None:
        """Connect to `scheduler`, or start a cluster of `jobs` workers here.

        Raises:
            UsageError: Dask is not installed, or the scheduler does not answer.
        """
        try:
            import dask
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise UsageError("--executor dask needs Dask: pip install 'ivdtool[dask]'") from error
        self._settings = prepare, config, timeout
        self._cluster = None
        if scheduler is None:
            with dask.config.set({"distributed.scheduler.allowed-failures": 1}):
                self._cluster = LocalCluster(
                    n_workers=jobs, threads_per_worker=1, dashboard_address=":0"
                )
        try:
            self._client = Client(self._cluster or scheduler)
        except (OSError, ValueError) as error:
            raise UsageError(f"--scheduler {scheduler}: no answer ({error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._cluster is None:
            with suppress(Exception):  # whatever Dask meets where the scheduler is gone
                self._client.run(_close_pools)
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Label scans; yield outcomes as they come.

        Raises:
            IvdtoolError: no worker can start, none comes or comes back, or the cluster is gone.
        """
        try:
            yield from self._run(tasks)
        except IvdtoolError:
            raise
        except Exception as error:
            if isinstance(error, OSError) or self._client.status != "running":
                raise IvdtoolError(CLUSTER_GONE) from error
            raise

    def _run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        from distributed import as_completed

        waiting = iter(tasks)
        sent: dict[Any, Task] = {}
        done = as_completed(with_results=True, raise_errors=False)
        threads, counted, seen, limit = 0, -math.inf, time.monotonic(), QUEUE_SECONDS
        while True:
            now = time.monotonic()
            if now - counted > COUNT_SECONDS:  # workers come and go
                threads, counted = sum(self._client.nthreads().values()), now
                if threads:
                    seen, limit = now, GONE_SECONDS
                elif now - seen > limit:
                    raise IvdtoolError(
                        f"the Dask cluster has had no worker for {limit:g} s; start some and go on "
                        "with --resume"
                    )
            room = max(threads, 1) - len(sent)  # one where no worker is, to be there when one comes
            for task in islice(waiting, max(room, 0)):
                future = self._client.submit(_label, *self._settings, task, pure=False)
                sent[future.key] = task
                done.add(future)
            if not sent:
                return
            finished = done.next_batch(block=False)
            for future, result in finished:
                yield _outcome(sent.pop(future.key), future.status, result)
            if not finished:
                time.sleep(POLL_SECONDS)


def _outcome(task: Task, status: str, result: Any) -> Outcome:
    """What came of a future: its result, or kind of error, error and traceback."""
    from distributed import KilledWorker

    if status == "finished":
        assert isinstance(result, Outcome)
        return result
    if status == "cancelled":
        raise IvdtoolError(CLUSTER_GONE)
    error = result[1]
    if isinstance(error, KilledWorker):
        text = f"{task.input}: {' '.join(str(error).split())}"
        return Outcome(task.key, kind="WorkerDied", error=text, attempts=2)
    if isinstance(error, IvdtoolError):
        raise error
    raise IvdtoolError(f"the Dask cluster failed: {error}") from error


def _label(prepare: Prepare, config: BatchConfig, timeout: float | None, task: Task) -> Outcome:
    """Run in a thread of a Dask worker."""
    key = (threading.get_ident(), prepare, config, timeout)
    if key not in _pools:
        current_process().daemon = False  # Dask's own are, and could not have a child
        _pools[key] = Pool(prepare, config, 1, timeout)
    (outcome,) = _pools[key].run([task])
    return outcome


def _close_pools() -> None:
    while _pools:
        _pools.popitem()[1].close()
