"""The sagittal plane of the spine is found from what a network would see in slabs beside it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine

from ivdtool.errors import InputError
from ivdtool.heatmaps import Heatmaps
from ivdtool.phantom import Phantom
from ivdtool.plane import PlaneConfig, find_plane
from ivdtool.preprocessing import Image, PreprocessingConfig, central_plane, prepare_image
from ivdtool.volumes import Volume, read_volume

THICKNESS_MM = 2.0
CONFIG = PlaneConfig(step_mm=6.0, reach_mm=12.0)
Predict = Callable[[Sequence[Image]], list[Heatmaps]]


def make_volume(slices: int = 21, orientation: str = "RAS") -> Volume:
    voxels = np.random.default_rng(0).random((slices, 60, 70)) + 1
    affine = np.diag([THICKNESS_MM, 1.0, 1.0, 1.0])
    codes = nib.orientations.axcodes2ornt(orientation)
    image = nib.Nifti1Image(voxels, affine).as_reoriented(codes)
    return Volume(Path("a.nii"), np.asarray(image.dataobj), 1, 0, image.affine, image.header)


def make_heatmaps(evidence: float) -> Heatmaps:
    values = np.zeros((3, 8, 8), np.float32)
    values[:, 4, 4] = evidence  # the sum over labels of the highest value is three times that
    return Heatmaps(values, (3, 4, 5), 4, (4.0, 4.0))


def predictor(evidence: Callable[[float], float], lateral: int) -> Predict:
    """A network whose heatmaps depend on the slice index of the slab alone."""

    def predict(images: Sequence[Image]) -> list[Heatmaps]:
        assert len({image.pixels.shape for image in images}) == 1
        return [make_heatmaps(evidence(image.grid.to_voxel[lateral, 3])) for image in images]

    return predict


def seen_at(plane: float, reach_mm: float = 10.0) -> Callable[[float], float]:
    """Evidence of a spine at a plane, falling off as it would beside it."""
    return lambda index: float(np.exp(-(((index - plane) * THICKNESS_MM / reach_mm) ** 2)))


def refuse(images: Sequence[Image]) -> list[Heatmaps]:
    raise AssertionError(f"nothing to choose from among {len(images)}")


@pytest.mark.parametrize("config", [CONFIG, PlaneConfig()])
@pytest.mark.parametrize("orientation", ["RAS", "LAS", "PIR", "ASL"])
@pytest.mark.parametrize("offset_mm", [-11.0, -6.0, -2.0, 0.0, 3.0, 9.0])
def test_the_plane_is_found(config: PlaneConfig, orientation: str, offset_mm: float) -> None:
    volume = make_volume(orientation=orientation)
    true = central_plane(volume) + offset_mm / THICKNESS_MM
    predict = predictor(seen_at(true), volume.axes[0][0])
    found = find_plane(volume, PreprocessingConfig(), config, predict)
    assert abs(found - true) * THICKNESS_MM < 2.0


def test_one_plane_far_above_the_others_is_taken() -> None:
    volume = make_volume()
    predict = predictor(lambda index: 1.0 if index == 13.0 else 0.3, 0)
    found = find_plane(volume, PreprocessingConfig(), CONFIG, predict)
    assert found == pytest.approx(13.0, abs=0.01)


@pytest.mark.parametrize("evidence", [0.7, 0.0, -0.2])
def test_equal_planes_give_the_middle(evidence: float) -> None:
    predict = predictor(lambda _: evidence, 0)
    found = find_plane(make_volume(), PreprocessingConfig(), CONFIG, predict)
    assert found == pytest.approx(10.0)


def test_evidence_is_one_peak_per_disc() -> None:
    """Neither the mass of a heatmap nor a value beyond what a heatmap can mean counts for more."""

    def predict(images: Sequence[Image]) -> list[Heatmaps]:
        heatmaps = [make_heatmaps(0.0) for _ in images]
        heatmaps[1].values[:] = 0.3
        heatmaps[2].values[0, 4, 4] = 50.0
        heatmaps[3].values[:, 4, 4] = 0.9
        return heatmaps

    found = find_plane(make_volume(), PreprocessingConfig(), CONFIG, predict)
    assert found == pytest.approx(13.0, abs=0.01)


def test_planes_lie_inside_the_volume() -> None:
    shown: list[float] = []

    def predict(images: Sequence[Image]) -> list[Heatmaps]:
        shown.extend(image.grid.to_voxel[0, 3] for image in images)
        return [make_heatmaps(0.5) for _ in images]

    find_plane(make_volume(21), PreprocessingConfig(), CONFIG, predict)
    assert shown == pytest.approx([4, 7, 10, 13, 16])  # 6 mm apart
    shown.clear()
    find_plane(make_volume(8), PreprocessingConfig(), CONFIG, predict)
    assert shown == pytest.approx([0.5, 3.5, 6.5])


@pytest.mark.parametrize(("slices", "config"), [(1, CONFIG), (21, PlaneConfig(reach_mm=0.0))])
def test_nothing_to_choose_from(slices: int, config: PlaneConfig) -> None:
    volume = make_volume(slices)
    found = find_plane(volume, PreprocessingConfig(), config, refuse)
    assert found == central_plane(volume)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_blank_sides_are_left_out(value: float) -> None:
    volume = make_volume()
    volume.data[:7] = value
    predict = predictor(seen_at(13.0), 0)
    found = find_plane(volume, PreprocessingConfig(), CONFIG, predict)
    assert found == pytest.approx(13.0, abs=1.0)


@pytest.mark.parametrize("offset_mm", [-66.0, -30.0, 26.0, 70.0])
@pytest.mark.parametrize("blank", [False, True])
def test_a_spine_far_from_the_middle_is_followed(offset_mm: float, blank: bool) -> None:
    """Beside it the network sees ever less, or nothing, or there is nothing to see."""
    volume = make_volume(81)
    true = central_plane(volume) + offset_mm / THICKNESS_MM
    if blank:
        away = np.abs(np.arange(81) - true) * THICKNESS_MM > 20
        volume.data[away] = 0
    predict = predictor(seen_at(true, reach_mm=12.0), 0)
    found = find_plane(volume, PreprocessingConfig(), CONFIG, predict)
    assert abs(found - true) * THICKNESS_MM < 2.0


def test_blank_volume() -> None:
    volume = make_volume()
    volume.data[:] = 0
    with pytest.raises(InputError, match="are equal"):
        find_plane(volume, PreprocessingConfig(), CONFIG, refuse)


@pytest.mark.parametrize(
    "settings",
    [{"step_mm": 0.0}, {"step_mm": np.nan}, {"reach_mm": -1.0}, {"reach_mm": np.inf}],
)
def test_refused_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="step_mm must be positive"):
        PlaneConfig(**settings)


def test_on_a_phantom(tmp_path: Path, phantom: Phantom) -> None:
    """The more a slab looks like the spine's, the more a network would see in it."""
    path = tmp_path / "a.nii"
    nib.save(phantom.image, path)
    volume = read_volume(path)
    lateral = volume.axes[0][0]
    tips = apply_affine(np.linalg.inv(volume.affine), np.array(list(phantom.discs.values())))
    true = float(np.mean(tips[:, lateral]))
    assert abs(true - central_plane(volume)) * volume.zooms_mm[lateral] > 6
    config = PreprocessingConfig()
    spine = prepare_image(volume, config, true)
    rows, cols, _ = np.rint(spine.grid.voxel_to_pixel(tips)).astype(int).T

    def likeness(image: Image) -> float:
        """Mean correlation of what lies around the discs with the same in the spine's slab."""
        around = [
            (slice(r - 10, r + 11), slice(c - 10, c + 11)) for r, c in zip(rows, cols, strict=True)
        ]
        pairs = [(image.pixels[a].ravel(), spine.pixels[a].ravel()) for a in around]
        return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))

    def predict(images: Sequence[Image]) -> list[Heatmaps]:
        return [make_heatmaps(likeness(image)) for image in images]

    found = find_plane(volume, config, PlaneConfig(), predict)
    assert abs(found - true) * volume.zooms_mm[lateral] < 3
