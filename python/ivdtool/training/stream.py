"""Batches in the order of the steps, made while the network computes."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from ivdtool.training.batches import Batch

__all__ = ["stream_batches"]

MakeBatch = Callable[[int], Batch]


def stream_batches(
    make: MakeBatch, first_step: int, last_step: int, workers: int = 0
) -> Generator[Batch]:
    """Yield ``make(step)`` for the steps first_step .. last_step - 1, in order.

    Args:
        make: the batch of a step, a function of it alone; with workers, it must pickle.
        first_step: where to begin.
        last_step: where to end, exclusive.
        workers: processes that make batches. With 0, a thread makes the next one while the caller
            uses the current one.
    """
    if workers and first_step < last_step:
        # spawn: a fork would copy a process in which OpenMP and CUDA have threads already
        yield from DataLoader(
            _Steps(make, first_step, last_step),
            batch_size=None,  # make() returns whole batches
            num_workers=workers,
            multiprocessing_context="spawn",
        )
        return
    # One thread for the worker: with two pools of OpenMP threads on as many cores, the runtime puts
    # waiting threads to sleep at once, and a training step takes twice as long. The caller's own
    # number is fixed first, since the worker's becomes the default of threads yet to ask.
    torch.set_num_threads(torch.get_num_threads())
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as worker:
        pending = [worker.submit(make, step) for step in range(first_step, last_step)[:1]]
        for step in range(first_step, last_step):
            ready = pending.pop().result()
            if step + 1 < last_step:
                pending.append(worker.submit(make, step + 1))
            yield ready


@dataclass(frozen=True, eq=False)
class _Steps(Dataset[Batch]):
    make: MakeBatch
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> Batch:
        return self.make(self.first + index)
