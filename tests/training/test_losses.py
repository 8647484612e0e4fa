import numpy as np
import pytest
import torch
from torch import Tensor

from ivdtool.training.losses import heatmap_loss


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target and weights of one, (2, 3, 8, 8) each."""
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.rand(2, 2, 3, 8, 8, generator=generator)
    return prediction, target, torch.ones(2, 3, 8, 8)


def test_is_equation_1(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    """Mean over discs and pixels of the squared difference, summed over stacks."""
    prediction, target, weights = tensors
    first, last = prediction.numpy().astype(np.float64), (prediction / 2).numpy()
    truth = target.numpy().astype(np.float64)
    expected = ((first - truth) ** 2).mean() + ((last - truth) ** 2).mean()
    loss = heatmap_loss([prediction, prediction / 2], target, weights, disc_weight=0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("disc_weight", [0.0, 20.0])
def test_is_zero_at_the_truth_only(
    tensors: tuple[Tensor, Tensor, Tensor], disc_weight: float
) -> None:
    prediction, target, weights = tensors
    assert heatmap_loss([target, target], target, weights, disc_weight).item() == 0
    assert heatmap_loss([target, prediction], target, weights, disc_weight).item() > 0.01


def test_masked_pixels_have_no_part_in_it(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    """The mean is over what is supervised: masking does not dilute it."""
    prediction, target, weights = tensors
    weights[:, 1] = 0
    prediction.requires_grad_()
    loss = heatmap_loss([prediction], target, weights, disc_weight=0)
    kept = [0, 2]
    expected = ((prediction - target)[:, kept] ** 2).mean().item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert prediction.grad is not None
    assert not prediction.grad[:, 1].any()
    assert prediction.grad[:, kept].all()


def test_nothing_supervised_is_no_loss(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    prediction, target, weights = tensors
    assert heatmap_loss([prediction], target, 0 * weights, 20.0).item() == 0


def test_pixels_at_discs_count_more_in_every_channel() -> None:
    """An error at the disc of a neighbouring channel, against the same one far from any disc."""
    target = torch.zeros(1, 2, 4, 4)
    target[0, 0, 1, 1] = 1

    def loss(row: int, disc_weight: float) -> float:
        prediction = target.clone()
        prediction[0, 1, row, row] = 0.5
        return heatmap_loss([prediction], target, torch.ones_like(target), disc_weight).item()

    assert loss(1, 4.0) == pytest.approx(5 * loss(3, 4.0))
    assert loss(1, 0.0) == pytest.approx(loss(3, 0.0))
    assert loss(3, 4.0) == pytest.approx(0.25 / (32 + 2 * 4))  # a weighted mean


def test_bfloat16_predictions_are_compared_in_float32() -> None:
    """In bfloat16 the difference 1 - 0.998 would be rounded to 0.0039 or 0."""
    prediction = torch.ones(1, 1, 4, 4, dtype=torch.bfloat16)
    target = torch.full((1, 1, 4, 4), 0.998)
    loss = heatmap_loss([prediction], target, torch.ones_like(target), 0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.002**2, rel=1e-3)
