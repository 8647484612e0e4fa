"""Candidates within the network, and the classifier that looks at all of them at once."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from ivdtool.heatmaps import draw_heatmaps, pixels_to_cells
from ivdtool.methods.lookonce import LookOnce
from ivdtool.networks.lookonce import CandidateClassifier, LookOnceNetwork, find_peaks
from ivdtool.skeleton import Skeleton
from ivdtool.training.batches import Batch
from ivdtool.training.candidate_loss import candidate_loss

Points = npt.NDArray[np.float64]


def test_peaks_against_loops() -> None:
    heat = torch.rand(2, 3, 20, 14, generator=torch.Generator().manual_seed(0))
    peaks = find_peaks(heat, 4, radius=2)
    for image, channels in enumerate(heat.numpy()):
        for channel, values in enumerate(channels):
            expected = [
                (value, row, col)
                for (row, col), value in np.ndenumerate(values)
                if value == values[max(row - 2, 0) : row + 3, max(col - 2, 0) : col + 3].max()
            ]
            for found, (value, row, col) in zip(
                peaks[image, channel].tolist(), sorted(expected, reverse=True), strict=False
            ):
                assert found[2] == pytest.approx(value)
                assert abs(found[0] - row) <= 0.5
                assert abs(found[1] - col) <= 0.5


def test_peaks_of_gaussians_are_exact() -> None:
    places = np.random.default_rng(0).uniform(3, 12, (1, 30, 2))
    drawn = torch.from_numpy(draw_heatmaps(places, np.ones((1, 30), bool), (16, 16), 1.25))
    peaks = find_peaks(drawn, 2, radius=2)
    np.testing.assert_allclose(peaks[:, :, 0, :2], places, atol=2e-3)
    assert (peaks[:, :, 1, 2] < 0.01).all()  # there is no second one


def candidates(seed: int = 0) -> Tensor:
    drawn = torch.rand(2, 5, 3, 3, generator=torch.Generator().manual_seed(seed))
    return drawn * torch.tensor([40.0, 30.0, 1.0])


@pytest.fixture
def classifier() -> CandidateClassifier:
    torch.manual_seed(0)
    return CandidateClassifier(5, 16)


@torch.inference_mode()
def test_order_does_not_matter(classifier: CandidateClassifier) -> None:
    given, order = candidates(), torch.tensor([2, 0, 1])
    logits = classifier(given)
    torch.testing.assert_close(classifier(given[:, :, order]), logits[:, :, order])
    assert logits.std() > 1e-3


@torch.inference_mode()
def test_neither_does_the_place_in_the_image(classifier: CandidateClassifier) -> None:
    shift = torch.tensor([5.0, -3.0, 0.0])
    logits = classifier(candidates())
    torch.testing.assert_close(classifier(candidates() + shift), logits, rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_each_is_judged_by_all(classifier: CandidateClassifier) -> None:
    """Moving one moves the logits of all in its image; one without heat has no say."""
    given = candidates()
    given[0, 4, 2, 2] = 0
    before = classifier(given)
    given[0, 4, 2, :2] += 9
    assert torch.equal(classifier(given)[1], before[1])
    rest = torch.ones(5, 3, dtype=torch.bool)
    rest[4, 2] = False
    torch.testing.assert_close(classifier(given)[0][rest], before[0][rest])
    given[0, 0, 0, :2] += 9
    assert (classifier(given)[0] != before[0]).all()


def test_the_network_sees_the_gradient() -> None:
    torch.manual_seed(0)
    network = LookOnceNetwork(3, channels=8).eval()
    shown: list[Tensor] = []
    network.stem.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    image = torch.zeros(1, 1, 64, 64)
    image[..., 32:] = 0.5
    with torch.inference_mode():
        heatmaps, judged = network(image)
    assert heatmaps.shape == (1, 3, 16, 16)
    assert judged.shape == (1, 3, 5, 4)
    (seen,) = shown
    assert torch.equal(seen[:, :1], image)
    edge = torch.zeros(64)
    edge[31:33] = 0.5  # an edge of that height, seen from both sides
    torch.testing.assert_close(seen[0, 1], edge.expand(64, 64))


def test_scripted_equals_eager() -> None:
    torch.manual_seed(0)
    network = LookOnceNetwork(3, channels=8).eval()
    image = torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        for a, b in zip(network(image), torch.jit.script(network)(image), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_judging_does_not_train_the_heatmaps() -> None:
    network = LookOnceNetwork(3, channels=8).eval()
    network(torch.rand(1, 1, 64, 64))[1][..., 3].sum().backward()
    trained = {name.split(".")[0] for name, w in network.named_parameters() if w.grad is not None}
    assert trained == {"classifier"}


def make_batch(points: Points, visible: list[bool]) -> Batch:
    weights = torch.ones(1, len(points), 48, 32)
    return Batch(
        images=torch.zeros(1, 1, 192, 128),
        targets=torch.zeros_like(weights),
        weights=weights,
        points=torch.from_numpy(pixels_to_cells(points, 4).astype(np.float32))[None],
        visible=torch.tensor([visible]),
    )


def test_loss(points: Points) -> None:
    """Of disc 0 a true and a false candidate, a faint one, and one where nothing is known."""
    batch = make_batch(points, [True] * 5)
    true, false = batch.points[0, 0], batch.points[0, 1]
    rows = [[*true + 0.8, 0.9, 2.0], [*false, 0.5, -1.0], [*false, 0.04, 9.0], [5, 5, 0.8, 9.0]]
    judged = torch.zeros(1, 5, 4, 4)
    judged[0, 0] = torch.tensor(rows)
    batch.weights[0, 0, :6, :6] = 0
    expected = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))) / 2
    assert candidate_loss(judged, batch).item() == pytest.approx(expected)
    away = judged.clone()
    away[0, 0, 0, :2] += 0.2  # now further than 5 mm from the disc
    assert candidate_loss(away, batch).item() > expected + 0.5
    absent = make_batch(points, [False] + [True] * 4)
    assert candidate_loss(judged[:, :, :2], absent).item() > expected + 0.5
    assert candidate_loss(0 * judged, batch).item() == 0


def test_predictions(
    points: Points,
    skeleton: Skeleton,
    image: npt.NDArray[np.float32],
    saying: Callable[..., nn.Module],
) -> None:
    """The likeliest of each heatmap, if likely at all; among the likely the search may choose."""
    judged = torch.zeros(1, 5, 2, 4)
    judged[0, :, 0, :2] = torch.from_numpy(pixels_to_cells(points, 4))
    judged[0, :, 0, 2:] = torch.tensor([0.8, 2.0])
    judged[0, :, 1, :2] = judged[0, :, 0, :2] + torch.tensor([0.0, 8.0])
    judged[0, :, 1, 2:] = torch.tensor([0.9, 1.0])  # hotter, but not as likely
    judged[0, 1, :, 3] = -1  # neither is likely
    judged[0, 4, 0, 3] = 0.5  # the wrong one is likelier
    network = saying(torch.zeros(1, 5, 48, 32), judged)
    own = LookOnce().predict(network, image, skeleton)
    assert list(own) == [18, 20, 21, 22]
    np.testing.assert_allclose(list(own.values())[:3], points[[0, 2, 3]], atol=1e-3)
    np.testing.assert_allclose(own[22], points[4] + [0, 32], atol=1e-3)
    judged[0, :, 1, 2] = 0.7
    searched = LookOnce().predict(saying(judged[:, :, :, 0], judged), image, skeleton, True)
    assert list(searched) == [18, 20, 21, 22]
    np.testing.assert_allclose(searched[22], points[4], atol=1e-3)
