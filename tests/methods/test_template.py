"""Mean templates, their correlations, and the walk from disc to disc."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from ivdtool.heatmaps import draw_heatmaps, pixels_to_cells
from ivdtool.methods.template import TemplateMatching, follow_spine, mean_templates
from ivdtool.networks.template import TemplateNetwork
from ivdtool.skeleton import Skeleton
from ivdtool.training.dataset import Case, Source

Points = npt.NDArray[np.float64]
Array = npt.NDArray[np.float32]
SIZE = 9


def make_case(pixels: Array, points: Points, suffix: str = "T2w", doubt: int | None = None) -> Case:
    return Case(
        source=Source(Path("image.nii"), Path("labels.nii"), "sub-1", "train", f"a:{suffix}"),
        planes=(pixels.astype(np.float16),),
        labels=tuple(range(18, 18 + len(points))),
        points=points,
        certain=np.arange(len(points)) != doubt,
        unknown=frozenset(),
    )


@pytest.fixture
def spine(points: Points) -> Array:
    """Discs of different texture on noise, 192 x 128 pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.uniform(0.4, 0.6, (192, 128))
    for row, col in points.astype(int):
        texture = np.kron(rng.uniform(0, 1, (9, 9)), np.ones((2, 2)))
        pixels[row - 9 : row + 9, col - 9 : col + 9] = texture
    return pixels.astype(np.float32)


def network_of(templates: Array) -> TemplateNetwork:
    contrasts, discs, size, _ = templates.shape
    network = TemplateNetwork(discs, contrasts, size).eval()
    network.templates.copy_(torch.from_numpy(templates))
    return network


def correlate(network: nn.Module, pixels: Array) -> Array:
    with torch.inference_mode():
        found: Array = network(torch.from_numpy(pixels)[None, None])[0][0].numpy()
    return found


def test_correlations_against_loops(spine: Array, points: Points) -> None:
    templates = mean_templates([make_case(spine, points)], range(18, 23), ["T2w"], SIZE)
    found = correlate(network_of(templates), spine)
    assert found.shape == (5, 96, 64)
    coarse = spine.reshape(96, 2, 64, 2).mean(axis=(1, 3))
    rng = np.random.default_rng(1)
    for row, col in rng.integers(4, 60, (20, 2)):
        patch = coarse[row - 4 : row + 5, col - 4 : col + 5]
        for disc in range(5):
            expected = np.corrcoef(patch.ravel(), templates[0, disc].ravel())[0, 1]
            assert found[disc, row, col] == pytest.approx(expected, abs=2e-3)


def test_a_template_fits_where_it_was_cut(spine: Array, points: Points) -> None:
    templates = mean_templates([make_case(spine, points)], range(18, 23), ["T2w"], SIZE)
    np.testing.assert_allclose(np.linalg.norm(templates, axis=(2, 3)), 1, rtol=1e-5)
    np.testing.assert_allclose(templates.mean(axis=(2, 3)), 0, atol=1e-6)
    found = correlate(network_of(templates), spine)
    for disc, place in enumerate(pixels_to_cells(points, 2)):
        row, col = np.unravel_index(found[disc].argmax(), (96, 64))
        assert np.abs(np.array([row, col]) - place).max() <= 0.51
        assert found[disc].max() > 0.9


def test_templates_are_means_over_certain_discs(points: Points) -> None:
    rng = np.random.default_rng(0)
    first, second, doubtful = rng.uniform(0, 1, (3, 192, 128)).astype(np.float32)
    cases = [make_case(first, points), make_case(second, points)]
    both = mean_templates(cases, range(18, 23), ["T2w"], SIZE)
    alone = [mean_templates([case], range(18, 23), ["T2w"], SIZE) for case in cases]
    mean = alone[0] + alone[1]
    np.testing.assert_allclose(
        both, mean / np.linalg.norm(mean, axis=(2, 3), keepdims=True), atol=1e-5
    )
    more = [*cases, make_case(doubtful, points, doubt=3)]
    third = mean_templates(more, range(18, 23), ["T2w"], SIZE)
    assert np.array_equal(third[0, 3], both[0, 3])
    assert not np.array_equal(third[0, 2], both[0, 2])


def test_discs_at_the_border_and_beyond() -> None:
    """What of a template lies outside the image is black; a disc far outside has no say."""
    pixels = np.full((192, 128), 0.5, dtype=np.float32)
    border, beyond = mean_templates(
        [make_case(pixels, np.array([[0.5, 60.0], [-300.0, 60.0]]))], (18, 19), ["T2w"], SIZE
    )[0]
    assert (border[:4] < 0).all()
    assert (border[5:] > 0).all()
    assert not beyond.any()


def test_images_take_the_templates_of_their_contrast(spine: Array, points: Points) -> None:
    """T1w shows the same discs with black and white changed, and lacks the last one."""
    cases = [make_case(spine, points), make_case(1 - spine, points[:4], "T1w")]
    templates = mean_templates(cases, range(18, 23), ["T1w", "T2w"], SIZE)
    np.testing.assert_allclose(templates[0, :4], -templates[1, :4], atol=1e-3)
    assert np.array_equal(templates[0, 4], templates[1, 4])
    network = network_of(templates)
    with torch.inference_mode():
        both = network(torch.from_numpy(np.stack([spine, 1 - spine]))[:, None])[0]
    inside = both[:, :4, 4:-4, 4:-4]  # nothing of the black around the images
    torch.testing.assert_close(inside[0], inside[1], rtol=1e-2, atol=5e-3)


def test_scripted_equals_eager() -> None:
    network = network_of(np.random.default_rng(0).normal(size=(2, 3, 9, 9)).astype(np.float32))
    image = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))


# --- from disc to disc ---


def hills(points: Points, heights: npt.ArrayLike) -> Array:
    """(5, 96, 64) correlations that are large near one point each."""
    cells = pixels_to_cells(points, 2)
    drawn = draw_heatmaps(cells[None], np.ones((1, len(points)), bool), (96, 64), 2.0)[0]
    return np.asarray(drawn * np.asarray(heights, np.float32)[:, None, None], dtype=np.float32)


def test_the_walk_passes_all_discs(skeleton: Skeleton, points: Points) -> None:
    found = follow_spine(hills(points + 0.4, np.full(5, 0.9)), skeleton)
    assert list(found) == [18, 19, 20, 21, 22]
    np.testing.assert_allclose(list(found.values()), points + 0.4, atol=2.0)  # one cell


def test_higher_hills_elsewhere_lead_nowhere(skeleton: Skeleton, points: Points) -> None:
    """Two discs correlate best where they are not: the walks from there are not worth as much."""
    away = points.copy()
    away[[1, 3]] = [[150, 20], [20, 100]]
    both = np.maximum(hills(points, np.full(5, 0.8)), hills(away, [0, 0.95, 0, 0.95, 0]))
    found = follow_spine(both, skeleton)
    assert list(found) == [18, 19, 20, 21, 22]
    np.testing.assert_allclose(list(found.values()), points, atol=2.0)


def test_discs_that_are_not_seen_are_walked_over(skeleton: Skeleton, points: Points) -> None:
    found = follow_spine(hills(points, [0.9, 0.9, 0.3, 0.9, 0.2]), skeleton)
    assert list(found) == [18, 19, 21]
    np.testing.assert_allclose(found[21], points[3], atol=2.0)


def test_the_walk_ends_at_the_border(skeleton: Skeleton, points: Points) -> None:
    """Only the first three are in view."""
    found = follow_spine(hills(points, np.full(5, 0.9))[:, :45], skeleton)
    assert list(found) == [18, 19, 20]


def test_nothing_correlates(skeleton: Skeleton) -> None:
    assert follow_spine(np.full((5, 96, 64), 0.2, dtype=np.float32), skeleton) == {}


@pytest.mark.parametrize("search", [None, True, False])
def test_predictions(
    search: bool | None,
    points: Points,
    skeleton: Skeleton,
    image: Array,
    saying: Callable[..., nn.Module],
) -> None:
    network = saying(torch.from_numpy(hills(points, np.full(5, 0.9)))[None])
    found = TemplateMatching().predict(network, image, skeleton, search)
    assert list(found) == [18, 19, 20, 21, 22]
    np.testing.assert_allclose(list(found.values()), points, atol=2.0)
