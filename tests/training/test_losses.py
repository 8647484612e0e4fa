"""Equation 1 and the skeleton loss: what they are at the truth, and where their gradients go."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from ivdtool.heatmaps import draw_heatmaps
from ivdtool.model import build_network
from ivdtool.training.batches import Batch
from ivdtool.training.losses import (
    LossConfig,
    heatmap_loss,
    skeleton_loss,
    soft_argmax,
    training_loss,
)


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


# --- positions from heatmaps ---


def test_soft_argmax_finds_peaks() -> None:
    """To a cell without further ado; exactly where the peak is at a cell's centre."""
    rng = np.random.default_rng(0)
    points = rng.uniform(10, 20, (1, 200, 2))
    drawn = torch.from_numpy(draw_heatmaps(points, np.ones((1, 200), bool), (30, 36), 1.25))
    errors = np.abs(soft_argmax(drawn, 20.0).numpy() - points)
    assert errors.max() < 0.25
    assert errors.mean() < 0.15
    centred = torch.from_numpy(draw_heatmaps(points.round(), np.ones((1, 200), bool), (30, 36), 1))
    np.testing.assert_allclose(soft_argmax(centred, 20.0), points.round(), atol=2e-3)


def test_soft_argmax_without_temperature_sees_the_centre() -> None:
    """What the paper's text would give: the map's centre, whatever the peak."""
    drawn = torch.from_numpy(draw_heatmaps([[[5.0, 5.0]]], [[True]], (41, 41), 1.25))
    assert (soft_argmax(drawn, 1.0) > 19).all()
    assert (soft_argmax(drawn, 20.0) < 5.1).all()


def test_samples_follow_the_softmax() -> None:
    """Two peaks of heat 0.5 and 0.4: odds e ** (0.1 * temperature) for the first."""
    heat = torch.zeros(1, 1, 3, 50)
    heat[0, 0, 1, 10], heat[0, 0, 1, 30] = 0.5, 0.4
    many = soft_argmax(heat, 40.0, samples=4000, generator=torch.Generator().manual_seed(0))
    exact = soft_argmax(heat, 40.0)
    assert exact[0, 0, 1].item() == pytest.approx(10 + 20 / (1 + np.exp(4)), abs=0.01)
    assert many[0, 0, 1].item() == pytest.approx(exact[0, 0, 1].item(), abs=0.2)
    (cell,) = soft_argmax(heat, 40.0, 1, torch.Generator().manual_seed(0))[0].tolist()
    assert cell in ([1, 10], [1, 30])  # a single sample is a cell


def test_samples_are_functions_of_the_seed() -> None:
    heat = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def draw(seed: int) -> Tensor:
        torch.manual_seed(torch.randint(99, ()).item())  # plays no part
        return soft_argmax(heat, 5.0, 3, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


# --- the skeleton loss ---

POINTS = np.array([[[5.0, 6.2], [11.3, 7.1], [16.8, 6.0], [23.0, 5.4]]])
SKELETON = LossConfig(skeleton_weight=1.0)


def make_batch(
    points: npt.NDArray[np.float64] = POINTS, visible: npt.ArrayLike = (True,) * 4
) -> Batch:
    seen = np.broadcast_to(np.asarray(visible, dtype=bool), points.shape[:2])
    targets = torch.from_numpy(draw_heatmaps(points, seen, (32, 16), 1.25))
    return Batch(
        images=torch.zeros(len(points), 1, 128, 64),
        targets=targets,
        weights=torch.ones_like(targets),
        points=torch.from_numpy(points.astype(np.float32)),
        visible=torch.from_numpy(seen.copy()),
    )


def moved(points: npt.NDArray[np.float64]) -> Tensor:
    return make_batch(points).targets


def plain_skeleton_loss(heatmaps: Tensor, batch: Batch, config: LossConfig) -> float:
    """Loops over images, discs and pairs, in NumPy."""
    side = max(batch.targets.shape[2:])
    cells = np.argwhere(np.ones(batch.targets.shape[2:]))
    total = 0.0
    for image, truth, visible in zip(heatmaps, batch.targets, batch.visible, strict=True):
        places = []
        for maps in (image, truth):
            weights = [np.exp(config.temperature * m.numpy().astype(float).ravel()) for m in maps]
            places.append([(w[:, None] * cells).sum(0) / w.sum() / side for w in weights])
        here, there = places
        shown = np.flatnonzero(visible.numpy())
        own = np.mean([((here[c] - there[c]) ** 2).sum() for c in shown]) if len(shown) else 0
        pairs = 0.0
        for c in shown:
            for k in shown[shown > c]:
                error = np.linalg.norm(here[c] - here[k]) - np.linalg.norm(there[c] - there[k])
                pairs += config.alpha ** (k - c) * error**2
        total += config.beta * own + (1 - config.beta) * pairs
    return float(total / len(heatmaps))


@pytest.mark.parametrize("beta", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("visible", [(1, 1, 1, 1), (1, 0, 1, 1), (0, 0, 1, 0), (0, 0, 0, 0)])
def test_skeleton_loss_against_loops(beta: float, visible: tuple[int, ...]) -> None:
    batch = make_batch(np.concatenate([POINTS, POINTS + [1.5, -0.7]]), visible)
    heat = torch.rand(2, 4, 32, 16, generator=torch.Generator().manual_seed(0))
    config = replace(SKELETON, beta=beta, alpha=0.6, temperature=9.0)
    expected = plain_skeleton_loss(heat, batch, config)
    assert skeleton_loss([heat], batch, config).item() == pytest.approx(expected, rel=1e-3)
    twice = skeleton_loss([heat, heat], batch, config).item()
    assert twice == pytest.approx(2 * expected, rel=1e-3)  # summed over stacks
    assert (expected > 1e-3) == any(visible[:2] + (beta > 0 and visible[2],))


def test_skeleton_loss_is_zero_at_the_truth_only() -> None:
    batch = make_batch()
    assert skeleton_loss([batch.targets, batch.targets], batch, SKELETON).item() == 0
    shifted = moved(np.roll(POINTS, 1, axis=1))
    assert skeleton_loss([batch.targets, shifted], batch, SKELETON).item() > 0.01


def test_pairs_do_not_see_a_common_shift() -> None:
    """L_pd is about distances between discs, L_id about their places."""
    batch, shifted = make_batch(), moved(POINTS + [2.0, 1.0])
    assert skeleton_loss([shifted], batch, replace(SKELETON, beta=0)).item() < 1e-7
    own = skeleton_loss([shifted], batch, replace(SKELETON, beta=1)).item()
    assert own == pytest.approx((2**2 + 1) / 32**2, rel=0.01)  # in units of the longer side


def test_far_pairs_count_less() -> None:
    """A last disc too low is wrong to the three others; alpha 0 leaves no pair at all."""
    wrong = POINTS.copy()
    wrong[0, 3, 0] += 2
    batch, heat = make_batch(), moved(wrong)
    losses = [
        skeleton_loss([heat], batch, replace(SKELETON, beta=0, alpha=alpha)).item()
        for alpha in (0.0, 0.5, 1.0)
    ]
    assert losses[0] == 0
    assert losses[1] / losses[2] == pytest.approx((0.5 + 0.25 + 0.125) / 3, rel=0.02)


@pytest.mark.parametrize("beta", [0.0, 0.75, 1.0])
def test_skeleton_gradient_against_finite_differences(beta: float) -> None:
    generator = torch.Generator().manual_seed(1)
    batch = make_batch(POINTS[:, :3], (True, False, True))
    heat = (batch.targets + 0.1 * torch.rand(batch.targets.shape, generator=generator)).double()
    config = replace(SKELETON, beta=beta, temperature=6.0)
    # the loss computes in float32; double precision makes the differences worth something
    double = Batch(
        **{k: v.double() if v.is_floating_point() else v for k, v in vars(batch).items()}
    )

    def loss(values: Tensor) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "float", Tensor.double)
            return skeleton_loss([values], double, config)

    heat.requires_grad_()
    loss(heat).backward()
    assert heat.grad is not None
    assert not heat.grad[:, 1].any()  # invisible
    for cell in ((0, 0, 5, 6), (0, 0, 20, 3), (0, 2, 17, 6), (0, 2, 12, 9)):
        step = torch.zeros_like(heat)
        step[cell] = 1e-5
        with torch.no_grad():
            slope = (loss(heat + step) - loss(heat - step)).item() / 2e-5
        assert heat.grad[cell].item() == pytest.approx(slope, rel=1e-5, abs=1e-12)
        assert abs(slope) > 1e-9


@pytest.mark.parametrize("samples", [0, 5])
@pytest.mark.parametrize("name", ["hourglass", "hca"])
def test_skeleton_gradient_reaches_the_first_layer(name: str, samples: int) -> None:
    """The authors' code takes an argmax, through which nothing flows."""
    torch.manual_seed(0)
    network = build_network(name, {"n_labels": 4, "stacks": 2, "channels": 16})
    config = replace(SKELETON, samples=samples)
    skeleton_loss(network(torch.rand(1, 1, 128, 64)), make_batch(), config, seed=3).backward()
    first = next(network.parameters())
    assert first.shape[2:] == (7, 7)
    assert first.grad is not None
    assert torch.isfinite(first.grad).all()
    assert first.grad.abs().max() > 1e-7


@pytest.mark.parametrize("samples", [0, 5])
def test_descending_the_skeleton_loss_mends_a_skeleton(samples: int) -> None:
    """A second, false peak as high as the true one goes down, the true one up."""
    batch = make_batch()
    heat = (batch.targets + 0.98 * moved(POINTS + [6.0, 0.0])).requires_grad_()
    steps = torch.optim.SGD([heat], lr=5.0)
    config = replace(SKELETON, samples=samples)
    before = skeleton_loss([heat], batch, SKELETON).item()
    for seed in range(40):
        steps.zero_grad()
        skeleton_loss([heat], batch, config, seed).backward()
        steps.step()
    assert skeleton_loss([heat], batch, SKELETON).item() < 0.2 * before


# --- both together ---


def test_training_loss_is_the_weighted_sum() -> None:
    batch = make_batch()
    outputs = [torch.rand(batch.targets.shape, generator=torch.Generator().manual_seed(2))] * 2
    config = LossConfig(disc_weight=3.0, skeleton_weight=0.25)
    expected = heatmap_loss(outputs, batch.targets, batch.weights, 3.0)
    expected = expected + 0.25 * skeleton_loss(outputs, batch, config)
    assert training_loss(outputs, batch, config).item() == pytest.approx(expected.item())
    assert training_loss(outputs, batch, LossConfig(disc_weight=3.0)).item() < expected.item()


def test_absent_discs_are_supervised_or_not() -> None:
    """The papers' visibility flag: an invisible disc has no part in the loss."""
    batch = make_batch(visible=(True, False, True, True))
    heat = batch.targets.clone()
    heat[:, 1, 20, 3] = 1
    assert training_loss([heat], batch, LossConfig()).item() > 0
    assert training_loss([heat], batch, LossConfig(supervise_absent=False)).item() == 0
    heat[:, 0, 20, 3] = 1
    assert training_loss([heat], batch, LossConfig(supervise_absent=False)).item() > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"disc_weight": -1.0},
        {"skeleton_weight": -1.0},
        {"samples": -1},
        {"alpha": 1.5},
        {"beta": -0.1},
        {"temperature": 0.0},
    ],
)
def test_refused_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LossConfig(**wrong)
