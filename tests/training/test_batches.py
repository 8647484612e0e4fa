"""What counts as present, absent and unknown in a window; repeatable batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ivdtool.heatmaps import draw_heatmaps
from ivdtool.training.augmentation import AugmentationConfig, Crop
from ivdtool.training.batches import Batch, BatchConfig, BatchMaker, make_targets
from ivdtool.training.dataset import Case, Source

CHANNELS = (19, 20, 21, 22, 23)
BATCH = BatchConfig(size=2, rows=128, cols=64, sigma_mm=5.0)
SOURCE = Source(Path("image.nii"), Path("labels.nii"), "sub-1", "train", "blobs:T2w")


def make_crop(rows: list[float], inside_mm: list[float]) -> Crop:
    points = np.array([[row, 31.5] for row in rows])
    return Crop(torch.zeros(128, 64), points, np.array(inside_mm), (0, 128, 0, 64))


def annotated(labels: tuple[int, ...], unknown: set[int] | None = None, doubt: int = 0) -> Case:
    """A case of discs `labels`, of which `doubt` is uncertain."""
    return Case(
        SOURCE,
        planes=(),
        labels=labels,
        points=np.zeros((len(labels), 2)),
        certain=np.array([label != doubt for label in labels]),
        unknown=frozenset(unknown or ()),
    )


def targets(case: Case, crop: Crop) -> tuple[dict[int, Any], dict[int, Any]]:
    heatmaps, weights, points, visible = make_targets(case, crop, CHANNELS, BATCH)
    assert points.dtype == np.float32
    assert not points[~visible].any()
    drawn = draw_heatmaps(points[None], visible[None], (32, 16), BATCH.sigma_mm / BATCH.stride)
    np.testing.assert_allclose(drawn[0], heatmaps, atol=1e-4)  # the same discs, at the same places
    assert heatmaps.shape == weights.shape == (5, 32, 16)
    assert heatmaps.dtype == weights.dtype == np.float32
    return dict(zip(CHANNELS, heatmaps, strict=True)), dict(zip(CHANNELS, weights, strict=True))


def test_present_and_absent_discs() -> None:
    """Image row 49.5 is heatmap row 12; column 31.5 lies between cells 7 and 8."""
    heatmaps, weights = targets(annotated((20, 22)), make_crop([49.5, 89.5], [38.5, 38.5]))
    assert heatmaps[20].max() == heatmaps[20][12, 7] == heatmaps[20][12, 8]
    assert heatmaps[20][12, 7] == pytest.approx(np.exp(-(2**2) / (2 * 5**2)))  # 2 px beside it
    assert heatmaps[20][14, 7] == pytest.approx(np.exp(-(2**2 + 8**2) / (2 * 5**2)))
    assert heatmaps[22].argmax() == np.ravel_multi_index((22, 7), (32, 16))
    for label in (19, 21, 23):
        assert not heatmaps[label].any()
    assert all((weight == 1).all() for weight in weights.values())


def test_truncated_targets() -> None:
    case, crop = annotated((20,)), make_crop([49.5], [38.5])
    full = make_targets(case, crop, CHANNELS, BATCH)
    cut = make_targets(case, crop, CHANNELS, replace(BATCH, truncate=0.1))
    expected = np.where(full.heatmaps >= 0.1, full.heatmaps, 0)
    assert (expected != full.heatmaps).any()
    np.testing.assert_array_equal(cut.heatmaps, expected)
    np.testing.assert_array_equal(cut.weights, full.weights)


def test_channels_go_by_label_not_by_order() -> None:
    """The papers' code fills the first n channels."""
    heatmaps, _ = targets(annotated((21, 23)), make_crop([49.5, 89.5], [38.5, 38.5]))
    shown = {label: heatmap.any() for label, heatmap in heatmaps.items()}
    assert shown == {19: False, 20: False, 21: True, 22: False, 23: True}
    assert heatmaps[21].argmax() // 16 == 12
    assert heatmaps[23].argmax() // 16 == 22


def test_unknown_discs_are_not_supervised_except_where_others_are() -> None:
    case = annotated((20, 22), unknown={21})
    heatmaps, weights = targets(case, make_crop([29.5, 109.5], [29.5, 18.5]))
    assert not heatmaps[21].any()
    assert weights[21][7, 7] > 0.9  # disc 20 is here, so 21 is not
    assert weights[21][27, 7] > 0.9
    assert not weights[21][16:19].any()  # between them it may be
    for label in (19, 20, 22, 23):
        assert (weights[label] == 1).all()


def test_uncertain_discs_are_not_supervised_at_their_place() -> None:
    case = annotated((20, 21), doubt=21)
    heatmaps, weights = targets(case, make_crop([29.5, 109.5], [29.5, 18.5]))
    assert not heatmaps[21].any()
    assert not weights[21][22:].any()
    assert weights[21][7, 7] > 0.9  # 20 is certain
    assert heatmaps[20].any()
    assert (weights[20] == 1).all()


def test_an_uncertain_disc_out_of_view_is_absent() -> None:
    case = annotated((20, 21), doubt=21)
    heatmaps, weights = targets(case, make_crop([29.5, 169.5], [29.5, -40]))
    assert not heatmaps[21].any()
    assert (weights[21] == 1).all()


@pytest.mark.parametrize(
    ("inside_mm", "drawn", "supervised"),
    [(4.5, True, True), (3.5, False, False), (-3.5, False, False), (-4.5, False, True)],
)
def test_discs_at_the_border(inside_mm: float, drawn: bool, supervised: bool) -> None:
    """Neither in nor out, whatever the heatmap can show of them."""
    crop = make_crop([60.0, 127 - inside_mm], [31.5, inside_mm])
    heatmaps, weights = targets(annotated((20, 21)), crop)
    assert heatmaps[21].any() == drawn
    assert (weights[21] == 1).all() == supervised
    assert weights[21][-1, 7] == float(supervised)
    assert (weights[20] == 1).all()


def test_unknown_discs_past_one_out_of_view_are_absent() -> None:
    """20 lies above the view: so does 19, annotated or not. 23 may be in view."""
    case = annotated((20, 21, 22), unknown={19, 23})
    _, weights = targets(case, make_crop([-30.0, 30.0, 70.0], [-30, 30, 31]))
    assert (weights[19] == 1).all()
    assert not (weights[23] == 1).all()
    _, weights = targets(case, make_crop([60.0, 100.0, 140.0], [31, 27, -13]))
    assert not (weights[19] == 1).all()
    assert (weights[23] == 1).all()


def test_unknown_discs_may_be_in_view_where_no_other_is() -> None:
    """The view may lie above all annotated discs, where 19 is."""
    case = annotated((20, 21), unknown={19, 22})
    heatmaps, weights = targets(case, make_crop([150.0, 190.0], [-23, -63]))
    assert not weights[19].any()
    assert not weights[22].any()
    assert (weights[20] == 1).all()
    assert not any(heatmap.any() for heatmap in heatmaps.values())


# --- batches ---


LABELS = (20, 21, 22)


def make_batch(
    cases: list[Case], step: int, seed: int = 3, part: tuple[int, int] = (0, 1)
) -> Batch:
    config = BatchConfig(size=2, rows=64, cols=128)
    return BatchMaker(cases, LABELS, config, AugmentationConfig(), seed, part)(step)


def test_batches_are_functions_of_seed_and_step(make_case: Any) -> None:
    cases = [make_case(0), make_case(1)]
    batch = make_batch(cases, 2)
    assert all(torch.equal(vars(batch)[k], v) for k, v in vars(make_batch(cases, 2)).items())
    assert not torch.equal(batch.images, make_batch(cases, 1).images)
    assert not torch.equal(batch.images, make_batch(cases, 2, seed=4).images)


def test_parts_of_a_batch_make_the_batch(make_case: Any) -> None:
    """As several processes draw them."""
    cases = [make_case(0), make_case(1)]
    parts = [vars(make_batch(cases, 5, part=(part, 2))) for part in range(2)]
    for name, value in vars(make_batch(cases, 5)).items():
        assert torch.equal(torch.cat([part[name] for part in parts]), value)
    with pytest.raises(ValueError, match="batch size 2 in 3 equal parts"):
        make_batch(cases, 5, part=(0, 3))


def test_batch_shapes(make_case: Any) -> None:
    batch = make_batch([make_case()], 0)
    assert batch.images.shape == (2, 1, 64, 128)
    assert batch.targets.shape == batch.weights.shape == (2, 3, 16, 32)
    assert batch.points.shape == (2, 3, 2)
    assert batch.visible.shape == (2, 3)
    assert {name: t.dtype for name, t in vars(batch).items() if t.dtype != torch.float32} == {
        "visible": torch.bool
    }
    assert not torch.equal(batch.images[0], batch.images[1])


def test_tall_windows_show_what_does_not_fit_into_others(make_case: Any) -> None:
    """In a share of the steps, in every process alike; none where nothing is that tall."""
    short = make_case(0)
    long = replace(make_case(1), points=short.points + np.arange(len(short.points))[:, None] * 50)
    config = BatchConfig(size=2, rows=64, cols=128, tall=0.3, tall_rows=192, tall_cols=64)
    shapes = []
    for step in range(60):
        maker = BatchMaker([short, long], LABELS, config, AugmentationConfig(), 3)
        batch = maker(step)
        parts = [replace(maker, part=(part, 2))(step).images for part in range(2)]
        assert torch.equal(torch.cat(parts), batch.images)
        shapes.append(tuple(batch.images.shape[2:]))
        assert batch.targets.shape[2:] == (shapes[-1][0] // 4, shapes[-1][1] // 4)
    assert set(shapes) == {(64, 128), (192, 64)}
    assert 8 <= shapes.count((192, 64)) <= 28
    only_short = BatchMaker([short], LABELS, config, AugmentationConfig(), 3)
    assert {tuple(only_short(step).images.shape[2:]) for step in range(20)} == {(64, 128)}


def probabilities(cases: list[Case], config: BatchConfig) -> Any:
    return BatchMaker(cases, LABELS, config, AugmentationConfig(), 0).probabilities


@pytest.mark.parametrize(("power", "share"), [(1.0, 0.9), (0.0, 0.5), (0.5, 0.75)])
def test_groups_are_balanced(power: float, share: float, make_case: Any) -> None:
    cases = [make_case(i, "large:T2w") for i in range(9)] + [make_case(9, "small:T1w")]
    odds = probabilities(cases, BatchConfig(group_power=power))
    assert odds[:9].sum() == pytest.approx(share)
    assert odds.sum() == pytest.approx(1)
    for key in ("small", "small:T1w"):
        config = BatchConfig(group_power=power, group_weights={key: 3.0})
        weighted = probabilities(cases, config)
        assert weighted[9] / weighted[0] == pytest.approx(3 * odds[9] / odds[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": 100}, "multiples of 64"),
        ({"cols": 0}, "multiples of 64"),
        ({"tall_rows": 100}, "multiples of 64"),
        ({"tall": 1.5}, "tall"),
        ({"size": 0}, "size"),
        ({"sigma_mm": 0}, "sigma_mm"),
    ],
)
def test_refused_settings(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchConfig(**wrong)  # type: ignore[arg-type]
