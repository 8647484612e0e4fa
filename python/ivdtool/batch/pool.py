"""Worker processes on this machine, replaced when they die or take too long."""

import math
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import wait
from typing import Self

from ivdtool.batch.worker import BatchConfig, Outcome, Prepare, Task, serve
from ivdtool.errors import IvdtoolError

__all__ = ["Pool"]

START_SECONDS = 600.0  # importing torch from a busy network drive takes minutes
GRACE_SECONDS = 5.0  # to remove files half written
MOST_FAILED_STARTS = 3
ATTEMPTS = 2
MOST_SCANS = 500  # of a worker: torch and malloc keep some 50 kB of each for good


class _Worker:
    """One process and what it is at work on."""

    def __init__(self, prepare: Prepare, config: BatchConfig) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, prepare, config), daemon=True)
        self.process.start()
        theirs.close()  # so that reading from a dead process ends
        self.ready = False
        self.task: Task | None = None
        self.attempt = 0
        self.scans = 0
        self.since = time.monotonic()

    def assign(self, task: Task, attempt: int) -> None:
        self.task, self.attempt, self.since = task, attempt, time.monotonic()
        self.scans += 1
        with suppress(OSError):  # it has died; so says the next read
            self.connection.send(task)

    def end(self) -> str:
        """Make sure that it is gone; return how it went."""
        self.process.join(GRACE_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        self.connection.close()
        self.process.close()
        if code >= 0:
            return f"ended with exit code {code}"
        memory = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{memory}"


class Pool:
    """Labels scans in worker processes, one scan at a time in each.

    A worker that dies is replaced and its scan tried once more; one that has labelled very many is
    replaced, too, so that memory stays bounded. A scan that takes longer than
    `timeout` seconds fails, and its worker is replaced.
    """

    def __init__(
        self, prepare: Prepare, config: BatchConfig, jobs: int, timeout: float | None
    ) -> None:
        self._prepare = prepare
        self._config = config
        self._jobs = jobs
        self._timeout = timeout
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, whatever they are doing."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def run(self, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Label scans; yield outcomes as they come. Takes a task only when a worker is free.

        Raises:
            IvdtoolError: no worker can start, for the reason the first one gave.
        """
        fresh, again = ((task, 1) for task in tasks), deque[tuple[Task, int]]()
        while True:
            while len(self._busy()) < self._jobs:
                job = again.popleft() if again else next(fresh, None)
                if job is None:
                    break
                self._idle_worker().assign(*job)
            busy = self._busy()
            if not busy:
                return
            first = min(self._deadline(worker) for worker in busy)
            patience = None if first == math.inf else max(0.0, first - time.monotonic())
            said = wait([worker.connection for worker in busy], patience)
            for worker in busy:
                outcome = None
                if worker.connection in said:
                    outcome = self._listen(worker, again)
                elif time.monotonic() > self._deadline(worker):
                    outcome = self._abandon(worker)
                if outcome is not None:
                    yield outcome

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.task is not None]

    def _idle_worker(self) -> _Worker:
        for worker in [worker for worker in self._workers if worker.task is None]:
            if worker.scans < MOST_SCANS:
                return worker
            self._workers.remove(worker)
            worker.process.terminate()
            worker.end()
        self._workers.append(_Worker(self._prepare, self._config))
        return self._workers[-1]

    def _deadline(self, worker: _Worker) -> float:
        seconds = self._timeout if worker.ready else START_SECONDS
        return worker.since + (math.inf if seconds is None else seconds)

    def _listen(self, worker: _Worker, again: deque[tuple[Task, int]]) -> Outcome | None:
        """The outcome that a worker reports; None if it says something else, or is dead."""
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            return self._bury(worker, again)
        if isinstance(message, IvdtoolError):
            raise message
        if isinstance(message, Outcome):
            worker.task = None
            return replace(message, attempts=worker.attempt)
        worker.ready, worker.since = True, time.monotonic()  # the scan's time begins here
        self._failed_starts = 0
        return None

    def _bury(self, worker: _Worker, again: deque[tuple[Task, int]]) -> Outcome | None:
        assert worker.task is not None
        self._workers.remove(worker)
        end = worker.end()
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts == MOST_FAILED_STARTS:
                raise IvdtoolError(f"worker processes do not start: the last one {end}")
            again.append((worker.task, worker.attempt))
        elif worker.attempt < ATTEMPTS:
            again.append((worker.task, worker.attempt + 1))
        else:
            seconds = time.monotonic() - worker.since
            return _failed(worker, "WorkerDied", f"its worker {end}, at both attempts", seconds)
        return None

    def _abandon(self, worker: _Worker) -> Outcome:
        self._workers.remove(worker)
        seconds = time.monotonic() - worker.since
        worker.process.terminate()
        worker.end()
        if not worker.ready:
            raise IvdtoolError(f"a worker process did not start in {START_SECONDS:.0f} s")
        return _failed(worker, "Timeout", f"took longer than {self._timeout:g} s", seconds)


def _failed(worker: _Worker, kind: str, reason: str, seconds: float) -> Outcome:
    assert worker.task is not None
    return Outcome(
        worker.task.key,
        kind=kind,
        error=f"{worker.task.input}: {reason}",
        seconds=seconds,
        attempts=worker.attempt,
    )
