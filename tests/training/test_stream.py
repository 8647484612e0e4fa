"""The same batches in the same order, whoever makes them."""

import os
from typing import Any

import pytest
import torch

from ivdtool.training.augmentation import AugmentationConfig
from ivdtool.training.batches import Batch, BatchConfig, BatchMaker
from ivdtool.training.stream import stream_batches


@pytest.fixture
def maker(make_case: Any) -> BatchMaker:
    config = BatchConfig(size=2, rows=64, cols=64)
    return BatchMaker([make_case(0), make_case(1)], (20, 21, 22), config, AugmentationConfig(), 3)


def same(first: Batch, second: Batch) -> bool:
    return all(torch.equal(vars(first)[name], value) for name, value in vars(second).items())


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_by_step(workers: int, maker: BatchMaker) -> None:
    """All of them, in order, and not made by this thread or process."""
    found = list(stream_batches(maker, 4, 9, workers))
    assert len(found) == 5
    assert all(same(batch, maker(step)) for step, batch in enumerate(found, 4))


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_to_make(workers: int, maker: BatchMaker) -> None:
    assert list(stream_batches(maker, 3, 3, workers)) == []


class Broken:
    def __call__(self, step: int) -> Batch:
        raise ValueError(f"step {step} in process {os.getpid()}")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_arrive(workers: int) -> None:
    with pytest.raises(ValueError, match="step 7") as caught:
        next(stream_batches(Broken(), 7, 9, workers))
    assert (f"process {os.getpid()}" in str(caught.value)) == (workers == 0)


def test_a_stream_may_be_left(maker: BatchMaker) -> None:
    stream = stream_batches(maker, 0, 1000)
    assert same(next(stream), maker(0))
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
