"""What counts as present, absent and unknown; which image goes where; repeatable batches."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from ivdtool.errors import InputError
from ivdtool.heatmaps import draw_heatmaps
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.training.augmentation import AugmentationConfig, Crop
from ivdtool.training.dataset import (
    Batch,
    BatchConfig,
    BatchMaker,
    Case,
    Source,
    find_sources,
    load_case,
    make_targets,
)

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


# --- data sets ---


def make_dataset(root: Path, images: list[str], participants: str | None = None) -> Path:
    """Empty files: images as ``sub-1[_ses-1]_T2w``, labels for those without ``!``."""
    for entry in images:
        name = entry.removesuffix("!")
        parts = [part for part in name.split("_") if part.startswith(("sub-", "ses-"))]
        folder = Path(*parts) / "anat"
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / f"{name}.nii.gz").touch()
        if not entry.endswith("!"):
            labels = root / "derivatives" / "labels" / folder
            labels.mkdir(parents=True, exist_ok=True)
            (labels / f"{name}_label-discs_dlabel.nii.gz").touch()
    if participants is not None:
        (root / "participants.tsv").write_text(participants, encoding="utf-8")
    return root


def test_splits_go_by_subject(tmp_path: Path) -> None:
    root = make_dataset(
        tmp_path,
        ["sub-1_T2w", "sub-1_T1w", "sub-2_ses-a_T2w", "sub-3_T2w", "sub-4_T2w!"],
        "participant_id\tsplit\tsource\n"
        "sub-1\ttrain\tA\nsub-2\tval\tB\nsub-3\ttest\tB\nsub-4\ttrain\tB\n",
    )
    found = {s.image.name.removesuffix(".nii.gz"): s for s in find_sources(root, ["train", "val"])}
    assert {name: (s.subject, s.split, s.group) for name, s in found.items()} == {
        "sub-1_T1w": ("sub-1", "train", "A:T1w"),
        "sub-1_T2w": ("sub-1", "train", "A:T2w"),
        "sub-2_ses-a_T2w": ("sub-2", "val", "B:T2w"),
    }
    assert found["sub-2_ses-a_T2w"].labels.name == "sub-2_ses-a_T2w_label-discs_dlabel.nii.gz"
    assert [s.subject for s in find_sources(root, ["test"])] == ["sub-3"]


def test_every_tenth_subject_is_val_where_nothing_is_said(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "name", [f"sub-{i:02d}_T2w" for i in range(20)])
    assert [s.subject for s in find_sources(root, ["val"])] == ["sub-09", "sub-19"]
    assert len(find_sources(root, ["train"])) == 18
    assert {s.group for s in find_sources(root, ["train"])} == {"name:T2w"}
    with pytest.raises(InputError, match="split test"):
        find_sources(root, ["test"])


def test_spreadsheet_signature(tmp_path: Path) -> None:
    """Some programs start a table with a byte order mark."""
    root = make_dataset(tmp_path, ["sub-1_T2w"], "\ufeffparticipant_id\tsplit\nsub-1\tval\n")
    assert [s.split for s in find_sources(root, ["val"])] == ["val"]


@pytest.mark.parametrize("table", ["", "subject\tsplit\nsub-1\tval\n", "participant_id,split\n"])
def test_tables_without_participants(table: str, tmp_path: Path) -> None:
    root = make_dataset(tmp_path, ["sub-1_T2w"], table)
    with pytest.raises(InputError, match=r"participants\.tsv: no column participant_id"):
        find_sources(root, ["val"])


def test_unusable_data_sets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give a BIDS data set"):
        find_sources(tmp_path, ["train"])
    root = make_dataset(tmp_path, ["sub-1_T2w!", "sub-2_T2w!"])
    with pytest.raises(InputError, match="with a label file"):
        find_sources(root, ["train"])


def write_case(
    folder: Path, orientation: str = "RAS", sidecar: dict[str, Any] | None = None
) -> Source:
    """Single bright voxels at discs 20 and 22, in slice x = 6 of 9; 2 x 1 x 1 mm voxels."""
    volume = np.random.default_rng(0).random((9, 40, 70), dtype=np.float32)
    labels = np.zeros(volume.shape, dtype=np.uint8)
    for label, place in ((20, (6, 12, 50)), (22, (6, 25, 15))):
        labels[place] = label
        volume[place] = 500
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = [-3.0, 11.0, 7.0]
    files = []
    for name, content in (("image", volume), ("labels", labels)):
        path = folder / f"{name}.nii.gz"
        image = nib.Nifti1Image(content, affine)
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
        turned = image.as_reoriented(turn)
        np.testing.assert_allclose(turned.affine, affine @ inv_ornt_aff(turn, volume.shape))
        nib.save(turned, path)
        files.append(path)
    if sidecar is not None:
        (folder / "labels.json").write_text(json.dumps(sidecar), encoding="utf-8")
    return replace(SOURCE, image=files[0], labels=files[1])


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "PIR", "SAL"])
def test_points_lie_where_the_discs_are(orientation: str, tmp_path: Path) -> None:
    config = PreprocessingConfig(size_multiple=1, slab_mm=2)
    case = load_case(write_case(tmp_path, orientation), config, CHANNELS)
    assert case.labels == (20, 22)
    (plane,) = case.planes
    assert plane.shape == (70, 40)
    assert plane.dtype == np.float16
    # superior to inferior, anterior to posterior
    np.testing.assert_allclose(case.points, [[19, 27], [54, 14]], atol=1e-6)
    # the 0.5th and 99.5th percentile are far below these two voxels
    for row, col in case.points.round().astype(int):
        assert plane[row, col] == 1
        around = plane[row - 1 : row + 2, col - 1 : col + 2].astype(np.float32)
        assert (around == 1).sum() == 1
    assert case.spine_col == pytest.approx(20.5)
    assert case.certain.all()


def test_slabs_beside_the_plane(tmp_path: Path) -> None:
    source, config = write_case(tmp_path), PreprocessingConfig(size_multiple=1, slab_mm=2)
    case = load_case(source, config, CHANNELS, (-2.0, 0.0, 2.0, 100.0, 200.0))
    assert len(case.planes) == 4  # at slices 5, 6, 7 and, twice, the last
    bright = [plane[19, 27] == 1 and plane[54, 14] == 1 for plane in case.planes]
    assert bright == [False, True, False, False]


def test_padding_moves_the_points(tmp_path: Path) -> None:
    source = write_case(tmp_path)
    case = load_case(source, PreprocessingConfig(slab_mm=2), CHANNELS)
    assert case.planes[0].shape == (128, 64)
    np.testing.assert_allclose(case.points, [[19 + 29, 27 + 12], [54 + 29, 14 + 12]], atol=1e-6)


def test_what_a_sidecar_leaves_open_is_unknown(tmp_path: Path) -> None:
    sidecar = {
        "UnknownLabels": [19, 21],
        "AbsentLabels": [23],
        "Discs": [
            {"label": 20, "world_mm": [9, 23, 57], "certain": False},
            {"label": 22, "world_mm": [9, 36, 22]},
        ],
    }
    case = load_case(write_case(tmp_path, sidecar=sidecar), PreprocessingConfig(), CHANNELS)
    assert case.unknown == {19, 21}
    assert case.certain.tolist() == [False, True]


def test_discs_around_the_annotated_are_unknown_where_no_file_says_so(tmp_path: Path) -> None:
    case = load_case(write_case(tmp_path), PreprocessingConfig(), CHANNELS)
    assert case.unknown == {17, 18, 19, 21, 23, 24, 25}


def test_labels_beyond_the_channels_are_left_out(tmp_path: Path) -> None:
    source = write_case(tmp_path)
    case = load_case(source, PreprocessingConfig(), (20, 21))
    assert case.labels == (20,)
    assert case.points.shape == (1, 2)
    with pytest.raises(InputError, match="no disc label between 3 and 5"):
        load_case(source, PreprocessingConfig(), (3, 4, 5))


def test_digest(tmp_path: Path) -> None:
    source = write_case(tmp_path)
    before = source.digest()
    assert source.digest() == before
    for path in (source.image, source.labels, source.labels.with_name("labels.json")):
        before = source.digest()
        path.write_bytes((path.read_bytes() if path.is_file() else b"") + b"x")
        assert source.digest() != before
    source.image.unlink()
    with pytest.raises(InputError, match=r"image\.nii\.gz: No such file"):
        source.digest()


def test_discs_of_some_labels_only(tmp_path: Path) -> None:
    case = load_case(write_case(tmp_path), PreprocessingConfig(), CHANNELS)
    some = case.restricted((21, 22, 23))
    assert some.labels == (22,)
    np.testing.assert_array_equal(some.points, case.points[1:])
    assert some.certain.shape == (1,)
    assert case.labels == (20, 22)


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
        ({"size": 0}, "size"),
        ({"sigma_mm": 0}, "sigma_mm"),
    ],
)
def test_refused_settings(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchConfig(**wrong)  # type: ignore[arg-type]
