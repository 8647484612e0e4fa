"""The whole method on phantoms, with the model that the package ships."""

import csv
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from nibabel import orientations

import ivdtool
from ivdtool.errors import NoDiscError
from ivdtool.heatmaps import Heatmaps, draw_heatmaps, pixels_to_cells
from ivdtool.inference import Model, load_model
from ivdtool.labels import DiscLabels
from ivdtool.phantom import Phantom, PhantomConfig, make_phantom
from ivdtool.phantom_dataset import random_config
from ivdtool.pipeline import LabelConfig, PlaneConfig, _judge, label_discs
from ivdtool.preprocessing import Image, prepare_image
from ivdtool.verdict import Evidence
from ivdtool.volumes import read_volume

TOLERANCE_MM = 5.0


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(device="cpu")


@pytest.fixture(scope="module")
def lumbar() -> Phantom:
    return make_phantom(random_config(7, "lumbar", "T2w"))


def world_points(labels: DiscLabels) -> dict[int, npt.NDArray[np.float64]]:
    return {disc.label: disc.world_mm for disc in labels.discs}


def shares(labels: DiscLabels, phantom: Phantom) -> tuple[int, int, int]:
    """Discs found within 5 mm, discs there are, and predictions that are no such disc."""
    certain = set(phantom.discs) - set(phantom.uncertain)
    hits = {
        label
        for label, point in world_points(labels).items()
        if label in phantom.discs
        and np.linalg.norm(point - phantom.discs[label]) < 15
        and in_plane(point - phantom.discs[label], phantom) <= TOLERANCE_MM
    }
    wrong = [d for d in labels.discs if d.label not in hits and d.label in certain]
    return len(hits & certain), len(certain), len(wrong)


def in_plane(offset: npt.NDArray[np.float64], phantom: Phantom) -> float:
    affine = phantom.image.affine
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    lateral = int(np.flatnonzero(orientations.io_orientation(affine)[:, 0] == 0)[0])
    return float(np.linalg.norm(np.delete(axes.T @ offset, lateral)))


@pytest.mark.parametrize("region", ["cervical", "thoracic", "lumbar", "whole"])
def test_the_shipped_model_labels_phantoms(region: str, model: Model, tmp_path: Path) -> None:
    found = total = wrong = 0
    for seed in range(5000, 5003):
        phantom = make_phantom(random_config(seed, region))  # type: ignore[arg-type]
        path = tmp_path / f"{seed}.nii.gz"
        nib.save(phantom.image, path)
        hits, discs, misplaced = shares(ivdtool.label(path, model=model), phantom)
        found, total, wrong = found + hits, total + discs, wrong + misplaced
    assert found >= 0.9 * total, f"{found} of {total} discs, {wrong} wrong"


def test_all_48_orientations_agree(model: Model, lumbar: Phantom, tmp_path: Path) -> None:
    """A volume stored along other axes is the same volume: equal world points."""
    reference: dict[int, npt.NDArray[np.float64]] | None = None
    image = lumbar.image
    source = orientations.io_orientation(image.affine)
    count = 0
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            target = np.array(list(zip(axes, flips, strict=True)), dtype=float)
            stored = image.as_reoriented(orientations.ornt_transform(source, target))
            path = tmp_path / "turned.nii"
            nib.save(stored, path)
            points = world_points(label_discs(read_volume(path), model, LabelConfig()).labels)
            reference = reference or points
            assert points.keys() == reference.keys()
            worst = max(np.linalg.norm(points[k] - reference[k]) for k in points)
            assert worst <= 0.2
            count += 1
    assert count == 48


def test_an_oblique_affine_turns_the_points_with_it(
    model: Model, lumbar: Phantom, tmp_path: Path
) -> None:
    """Same voxels, rotated in the world: same voxel coordinates, and world points that follow."""
    angle = np.deg2rad(12.0)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = [3.0, -40.0, 11.0]
    results = []
    for index, affine in enumerate([lumbar.image.affine, turn @ lumbar.image.affine]):
        path = tmp_path / f"{index}.nii.gz"
        nib.save(nib.Nifti1Image(np.asarray(lumbar.image.dataobj), affine), path)
        results.append(world_points(label_discs(read_volume(path), model, LabelConfig()).labels))
    straight, turned = results
    assert straight.keys() == turned.keys()
    for label, point in straight.items():
        np.testing.assert_allclose(nib.affines.apply_affine(turn, point), turned[label], atol=0.05)


def test_the_spine_is_found_off_the_middle(model: Model, tmp_path: Path) -> None:
    """A spine 12 mm beside the middle slice is labelled, and its plane found."""
    phantom = make_phantom(
        PhantomConfig(
            seed=3, region="lumbar", contrast="T2w", first_label=19, last_label=25,
            lateral_mm=12.0, slices=17, thickness_mm=3.3,
        )
    )  # fmt: skip
    path = tmp_path / "off.nii.gz"
    nib.save(phantom.image, path)
    volume = read_volume(path)
    result = label_discs(volume, model, LabelConfig())
    lateral = volume.axes[0][0]
    wanted = np.mean(
        [nib.affines.apply_affine(np.linalg.inv(volume.affine), p)[lateral]
         for p in phantom.discs.values()]
    )  # fmt: skip
    plane = result.image.grid.pixel_to_voxel([[0.0, 0.0]])[0, lateral]
    middle = (volume.shape[lateral] - 1) / 2
    step = volume.zooms_mm[lateral]
    assert abs(middle - wanted) * step > 9
    assert abs(plane - wanted) * step < 6
    hits, discs, _ = shares(result.labels, phantom)
    assert hits >= discs - 1


@pytest.mark.parametrize(
    ("left_mm", "labelled", "certain"), [(2.5, False, False), (3.5, True, False), (26, True, True)]
)
def test_no_label_on_a_disc_that_the_border_cuts(
    left_mm: float, labelled: bool, certain: bool, model: Model, tmp_path: Path
) -> None:
    """With a network that knows the answer, and an image that ends so far below L5/S1."""
    shape = (256, 128)
    lumbar = slice(-6, None)
    points = np.full((len(model.info.labels), 2), np.nan)
    points[lumbar] = model.info.skeleton.mean_mm[lumbar]
    points += np.array([shape[0] - 0.5 - left_mm, 64.0]) - points[-1]
    heatmaps = draw_heatmaps(
        pixels_to_cells(points, 4)[None], np.isfinite(points[None, :, 0]), (64, 32), 1.25
    )
    sure = replace(model, network=lambda _: torch.from_numpy(heatmaps))
    data = np.random.default_rng(0).integers(0, 500, (5, shape[1], shape[0])).astype(np.int16)
    path = tmp_path / "scan.nii"
    nib.save(nib.Nifti1Image(data, np.diag([3.0, 1.0, 1.0, 1.0])), path)
    config = LabelConfig(plane=PlaneConfig(reach_mm=0), keep_refused=True)
    labels = label_discs(read_volume(path), sure, config).labels
    assert [disc.label for disc in labels.discs] == [20, 21, 22, 23, 24, 25][: 5 + labelled]
    # the last disc of the spine is what tells the level, where the sacrum is in view
    assert labels.verdict == ("certain" if certain else "check")
    assert bool(labels.warnings) != certain


def test_noise_is_no_spine(model: Model, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 1000, (12, 200, 160)).astype(np.int16)
    path = tmp_path / "noise.nii.gz"
    nib.save(nib.Nifti1Image(noise, np.diag([4.0, 1.0, 1.0, 1.0])), path)
    with pytest.raises(NoDiscError, match=r"noise\.nii\.gz: no disc found"):
        ivdtool.label(path, model=model)


def test_labels_are_deterministic(model: Model, lumbar: Phantom, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(lumbar.image, path)
    first, second = (ivdtool.label(path, model=load_model(device="cpu")) for _ in range(2))
    assert first.to_json() == second.to_json()
    again = label_discs(read_volume(path), model, LabelConfig(plane=PlaneConfig()))
    assert again.labels.to_json() == first.to_json()
    assert set(again.seconds) == {"plane", "preprocessing", "network", "candidates", "search"}


@pytest.mark.parametrize("kind", ["phantom", "real"])
def test_threads_and_batches_change_nothing(
    kind: str, model: Model, lumbar: Phantom, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Points stay within 0.05 mm whatever the number of threads, and the size of a batch."""
    path = tmp_path / "a.nii.gz"
    if kind == "real":
        path = val_scan(request.getfixturevalue("data"))
    else:
        nib.save(lumbar.image, path)
    volume = read_volume(path)
    expected: dict[int, npt.NDArray[np.float64]] | None = None
    before = torch.get_num_threads()
    try:
        for threads, size in ((1, 1), (1, 3), (1, 5), (2, 1), (2, 5)):
            torch.set_num_threads(threads)
            points = world_points(
                label_discs(
                    volume, Filled(**{**vars(model), "batch_size": size}), LabelConfig()
                ).labels
            )
            expected = expected or points
            assert points.keys() == expected.keys()
            assert max(np.linalg.norm(points[k] - expected[k]) for k in points) <= 0.05
    finally:
        torch.set_num_threads(before)


class Filled(Model):
    """Shows the network full batches, filled up with the first image again."""

    def predict(self, images: Sequence[Image]) -> list[Heatmaps]:
        filled = [*images, *[images[0]] * (-len(images) % self.batch_size)]
        return super().predict(filled)[: len(images)]


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_the_network_sees_at_most_a_batch_of_images(
    size: int, model: Model, lumbar: Phantom, tmp_path: Path
) -> None:
    nib.save(lumbar.image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    images = [prepare_image(volume, model.info.preprocessing, plane) for plane in (4, 5, 6, 7, 8)]
    seen: list[int] = []

    def network(batch: torch.Tensor) -> object:
        seen.append(len(batch))
        return model.network(batch)

    found = replace(model, network=network, batch_size=size).predict(images)
    assert sum(seen) == len(found) == 5
    assert seen == [size] * (5 // size) + [5 % size] * (5 % size > 0)
    for image, heatmaps in zip(images, found, strict=True):
        (alone,) = model.predict([image])
        np.testing.assert_allclose(heatmaps.values, alone.values, atol=1e-5)


def val_scan(data: Path) -> Path:
    with (data / "spine-mri" / "participants.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    name = next(row["participant_id"] for row in rows if row["split"] == "val")
    return next((data / "spine-mri" / name).rglob("*.nii.gz"))


def test_a_disc_rather_wrong_than_right_keeps_an_image_from_certain(
    model: Model, lumbar: Phantom, tmp_path: Path
) -> None:
    """As constraints may ask for: the evidence of the others stays as good as before."""
    nib.save(lumbar.image, tmp_path / "a.nii")
    labels = ivdtool.label(tmp_path / "a.nii", model=model)
    evidence = Evidence(1.0, 1.0, 0.0, anchored=True)
    assert _judge(labels, evidence, False, model.info).verdict == "certain"
    doubtful = replace(labels.discs[-1], confidence=0.49)
    others = labels.discs[:-1]
    judged = _judge(replace(labels, discs=(*others, doubtful)), evidence, False, model.info)
    assert judged.verdict == "check"
    assert judged.warnings[-1].endswith(f"the least sure is {doubtful.name}")

    judged = _judge(labels, evidence, True, model.info)
    assert judged.verdict == "check"
    assert judged.warnings[-1].endswith("does not agree with the image")

    gap = replace(evidence, missing=(others[1].label,))
    judged = _judge(labels, gap, False, model.info)
    assert judged.verdict == "check"
    assert judged.warnings[-1].endswith(f"between the others no {others[1].name} was found")


@pytest.mark.parametrize("factor", [0.75, 1.35])
def test_a_spine_of_unusual_size_is_never_certain(
    model: Model, lumbar: Phantom, tmp_path: Path, factor: float
) -> None:
    """A header whose voxel size is wrong, as after a conversion from pictures."""
    nib.save(lumbar.image, tmp_path / "a.nii")
    assert ivdtool.label(tmp_path / "a.nii", model=model).verdict == "certain"
    affine = lumbar.image.affine @ np.diag([factor, factor, factor, 1])
    nib.save(nib.Nifti1Image(np.asarray(lumbar.image.dataobj), affine), tmp_path / "b.nii")
    labels = ivdtool.label(tmp_path / "b.nii", model=model)
    assert labels.verdict == "check"
    assert "times the usual size" in labels.warnings[-1]


def test_a_result_keeps_the_image_grid(model: Model, lumbar: Phantom, tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nib.save(lumbar.image, path)
    labels = ivdtool.label(path, model=model)
    stored = labels.to_nifti()
    np.testing.assert_array_equal(stored.affine, nib.nifti1.load(path).affine)
    values = np.asarray(stored.dataobj)
    assert values.dtype == np.uint8
    assert sorted(values[values > 0]) == [disc.label for disc in labels.discs]
    for disc in labels.discs:
        voxel = np.argwhere(values == disc.label)[0]
        assert np.abs(voxel - disc.voxel).max() <= 0.5 + 1e-6
