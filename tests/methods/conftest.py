"""Five discs of a lumbar spine that the tests of all methods look for, and what networks say."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from ivdtool.skeleton import Skeleton

Points = npt.NDArray[np.float64]


class Saying(nn.Module):
    """A network that answers every image of 192 x 128 pixels with the same tensors."""

    def __init__(self, *answers: Tensor) -> None:
        super().__init__()
        for index, answer in enumerate(answers):
            self.register_buffer(str(index), answer)

    def forward(self, image: Tensor) -> list[Tensor]:
        assert image.shape == (1, 1, 192, 128)
        return list(self.buffers())


@pytest.fixture(scope="session")
def labels() -> tuple[int, ...]:
    return (18, 19, 20, 21, 22)


@pytest.fixture(scope="session")
def points() -> Points:
    """Where the discs lie, (row, col) in pixels."""
    return np.array([[20.0, 60.0], [50, 62], [81, 63], [114, 61], [148, 58]])


@pytest.fixture(scope="session")
def skeleton(labels: tuple[int, ...], points: Points) -> Skeleton:
    return Skeleton.from_points([dict(zip(labels, map(tuple, points), strict=True))])


@pytest.fixture(scope="session")
def image() -> npt.NDArray[np.float32]:
    return np.zeros((192, 128), dtype=np.float32)


@pytest.fixture(scope="session")
def saying() -> Callable[..., nn.Module]:
    return Saying


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
