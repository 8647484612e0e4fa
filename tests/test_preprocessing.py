"""The image shows the right thing in the right place, and its grid finds the way back exactly."""

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, from_matvec
from nibabel.eulerangles import euler2mat

from ivdtool.errors import InputError
from ivdtool.preprocessing import Grid, PreprocessingConfig, central_plane, prepare_image
from ivdtool.volumes import Volume, read_volume

Array = npt.NDArray[Any]
ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
PLAIN = PreprocessingConfig(normalisation="minmax", size_multiple=1)


def make_volume(voxels: Array, affine: Array) -> Volume:
    return Volume(Path("a.nii"), voxels, 1.0, 0.0, affine, nib.Nifti1Header())


def make_affine(zooms: Sequence[float], angles: Sequence[float] = (0.05, 0.03, -0.08)) -> Array:
    """RAS voxels, turned by Euler angles (rad)."""
    return np.asarray(from_matvec(euler2mat(*angles) @ np.diag(zooms), [-11.3, 40.7, -25.9]))


def blobs(shape: tuple[int, int, int], affine: Array, world: Array, sigma_mm: float) -> Array:
    """A volume with a Gaussian at each world point."""
    points = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    distances = np.linalg.norm(points[..., np.newaxis, :] - world, axis=-1)
    total: Array = np.exp(-(distances**2) / (2 * sigma_mm**2)).sum(axis=-1)
    return total


def centroid(pixels: Array, near: Array, radius: int) -> Array:
    """(row, col) of the centre of mass around a point."""
    row, col = np.rint(near).astype(int)
    rows, cols = np.mgrid[row - radius : row + radius + 1, col - radius : col + radius + 1]
    mass = pixels[rows, cols]
    return np.asarray([(rows * mass).sum(), (cols * mass).sum()] / mass.sum())


# ---- the image ----------------------------------------------------------------------------------


def test_what_the_grid_shows() -> None:
    """Pixels of 2 x 1 mm; rows 10..29 and columns 20..59 show the volume."""
    grid = Grid((40, 80), (2.0, 1.0), np.eye(4), np.eye(4), (10, 30, 20, 60))
    points = [[9.4, 30.0], [9.6, 30], [29.4, 30], [29.6, 30], [15, 19.4], [15, 22], [15, 59.6]]
    assert grid.shows(np.array(points)).tolist() == [False, True, True, False, False, True, False]
    near = [[10.9, 30.0], [11.1, 30], [27.9, 30], [28.1, 30], [15, 22.4], [15, 22.6], [15, 56.6]]
    assert grid.shows(np.array(near), 3.0).tolist() == [
        False,
        True,
        True,
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("spacing_mm", [1.0, 0.7, 1.6])
@pytest.mark.parametrize("zooms", [(3.0, 1.0, 1.0), (3.0, 0.47, 0.47), (2.0, 1.9, 0.6)])
@pytest.mark.parametrize("orientation", ORIENTATIONS[2::11])
def test_a_blob_shows_where_it_is(
    orientation: Array, zooms: tuple[float, float, float], spacing_mm: float
) -> None:
    shape = (5, round(90 / zooms[1]), round(120 / zooms[2]))
    affine = make_affine(zooms)
    # off the voxel centres; in the slab's middle
    world = apply_affine(affine, np.array([[2, 0.313, 0.281], [2, 0.622, 0.687]]) * [1, *shape[1:]])
    image = nib.Nifti1Image(blobs(shape, affine, world, 4.0), affine).as_reoriented(orientation)
    config = PreprocessingConfig(spacing_mm, 3.0, normalisation="minmax", size_multiple=32)
    prepared = prepare_image(make_volume(np.asarray(image.dataobj), image.affine), config)
    for row, col, depth in prepared.grid.world_to_pixel(world):
        found = centroid(prepared.pixels, np.array([row, col]), round(16 / spacing_mm))
        assert np.abs(found - (row, col)).max() < 0.05
        assert depth == pytest.approx(0, abs=1e-9)
    assert prepared.grid.spacing_mm == pytest.approx((spacing_mm, spacing_mm), rel=0.02)


def test_rows_run_down_and_columns_to_the_back() -> None:
    affine = make_affine((3.0, 1.0, 1.0))
    volume = make_volume(np.random.default_rng(0).random((5, 60, 70)), affine)
    grid = prepare_image(volume, PLAIN).grid
    origin, down, right = grid.pixel_to_world([(0, 0), (1, 0), (0, 1)])
    assert np.allclose(down - origin, -affine[:3, 2])  # inferior
    assert np.allclose(right - origin, -affine[:3, 1])  # posterior


def test_every_orientation_gives_the_same_image(tmp_path: Path) -> None:
    affine = make_affine((3.0, 1.5, 0.5))
    voxels = np.random.default_rng(1).integers(0, 900, (7, 40, 101)).astype(np.int16)
    original = nib.Nifti1Image(voxels, affine)
    config = PreprocessingConfig()  # 101 voxels of 0.5 mm: half a pixel more than 50
    path = tmp_path / "a.nii"
    nib.save(original, path)
    expected = prepare_image(read_volume(path), config)
    points = np.array([(0.0, 0.0), (31.5, 40.25), (63.0, 63.0)])
    for orientation in ORIENTATIONS:
        nib.save(original.as_reoriented(orientation), path)
        image = prepare_image(read_volume(path), config)
        assert np.allclose(image.pixels, expected.pixels, atol=1e-5)
        world = image.grid.pixel_to_world(points)
        assert np.allclose(world, expected.grid.pixel_to_world(points), atol=1e-4)


def test_rounding_in_the_header_does_not_decide_the_size() -> None:
    voxels = np.random.default_rng(1).random((7, 101, 103))
    sizes = {
        prepare_image(make_volume(voxels, make_affine((3.0, mm, mm))), PLAIN).pixels.shape
        for mm in (0.5 - 1e-7, 0.5, 0.5 + 1e-7)
    }
    assert sizes == {(51, 50)}


def slab_shares(count: int, thickness_mm: float, plane: float | None, **settings: Any) -> Array:
    """(count,) share of each slice in the image."""
    voxels = np.zeros((count, 4 * count + 40, 50))
    voxels[:, -20:] = 1  # bright in every slice, and dark between that and what follows
    for index in range(count):
        voxels[index, 4 * index : 4 * index + 4] = 1  # bright in one
    config = PreprocessingConfig(normalisation="minmax", size_multiple=1, **settings)
    volume = make_volume(voxels, np.diag([thickness_mm, 1.0, 1.0, 1.0]))
    image = prepare_image(volume, config, plane)
    if plane is None:
        plane = central_plane(volume)
    assert image.grid.pixel_to_voxel([(0, 0)])[0, 0] == plane
    return image.pixels[0, ::-1][: 4 * count : 4].astype(np.float64)


@pytest.mark.parametrize(
    ("count", "thickness_mm", "plane", "expected"),
    [
        (7, 2.5, None, [0, 0, 0.7, 1, 0.7, 0, 0]),
        (8, 2.5, None, [0, 0, 0.2, 1, 1, 0.2, 0, 0]),
        (7, 4.0, 2.25, [0, 0, 1, 0.5, 0, 0, 0]),
        (7, 1.0, None, [0.5, 1, 1, 1, 1, 1, 0.5]),
        (7, 9.0, 3.0, [0, 0, 0, 1, 0, 0, 0]),  # never less than a slice
        (7, 9.0, 3.25, [0, 0, 0, 0.75, 0.25, 0, 0]),
        (7, 2.5, 0.0, [1, 0.7, 0, 0, 0, 0, 0]),  # half outside
        (7, 0.5, None, [1, 1, 1, 1, 1, 1, 1]),
        (1, 3.0, None, [1]),
    ],
)
def test_slab_is_averaged_over_its_thickness(
    count: int, thickness_mm: float, plane: float | None, expected: list[float]
) -> None:
    shares = slab_shares(count, thickness_mm, plane, slab_mm=6.0)
    assert np.allclose(shares, np.array(expected) / sum(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("count", "plane", "expected"),
    [
        (10, None, range(2, 8)),
        (9, None, range(1, 7)),  # middle - 3 .. middle + 2, as Python's [m - 3 : m + 3]
        (9, 4.2, range(2, 8)),
        (6, None, range(6)),
        (4, None, range(4)),
        (9, 8.0, range(5, 9)),
    ],
)
def test_six_slices_of_the_papers(count: int, plane: float | None, expected: range) -> None:
    shares = slab_shares(count, 3.0, plane, slices=6)
    chosen = [index in expected for index in range(count)]
    assert np.allclose(shares, np.array(chosen) / len(expected), atol=1e-5)


SLAB_OF_NOISE = """
import numpy as np
from tests.test_preprocessing import make_affine, make_volume
from ivdtool.preprocessing import PreprocessingConfig, prepare_image

voxels = np.random.default_rng(0).normal(size=(9, 333, 777)).astype(np.float32)
volume = make_volume(voxels, make_affine((1, 1, 1)))
print(hash(prepare_image(volume, PreprocessingConfig(slices=6)).pixels.tobytes()))
"""


def test_threads_of_the_matrix_library_change_no_bit() -> None:
    answers = set()
    for threads in "12":
        environment = {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        answers.add(
            subprocess.check_output(
                [sys.executable, "-c", SLAB_OF_NOISE],
                env={**os.environ, **environment, "PYTHONHASHSEED": "0"},
                cwd=Path(__file__).parents[1],
            )
        )
    assert len(answers) == 1


def test_downsampling_does_not_alias() -> None:
    stripes = np.zeros((3, 200, 200))
    stripes[:, :, ::2] = 1
    stripes[:, :50, :] = 1  # so that there is a 1 to be normalised by
    stripes[:, -50:, :] = 0
    volume = make_volume(stripes, np.diag([3.0, 0.5, 0.5, 1.0]))
    pixels = prepare_image(volume, PLAIN).pixels
    assert pixels.shape == (100, 100)
    assert np.allclose(pixels[2:-2, 30:70], 0.5, atol=0.01)


def test_upsampling_interpolates_linearly() -> None:
    step = np.zeros((3, 30, 40))
    step[:, :, 20:] = 1  # superior half
    volume = make_volume(step, np.diag([3.0, 2.0, 2.0, 1.0]))
    column = prepare_image(volume, PLAIN).pixels[:, 30]
    assert column[37:43] == pytest.approx([1, 1, 0.75, 0.25, 0, 0], abs=1e-6)


def test_percentiles_ignore_hot_pixels() -> None:
    voxels = np.random.default_rng(2).random((1, 100, 100)) * 100 - 20
    voxels[0, 50, 50], voxels[0, 60, 60] = 1e6, -1e6
    config = PreprocessingConfig(normalisation="percentile", size_multiple=1)
    pixels = prepare_image(make_volume(voxels, np.diag([3.0, 1.0, 1.0, 1.0])), config).pixels
    slab = voxels[0].T[::-1, ::-1]
    low, high = np.percentile(slab, (0.5, 99.5))
    assert np.allclose(pixels, ((slab - low) / (high - low)).clip(0, 1), atol=1e-5)
    assert high < 100


def test_minmax_spans_the_unit_interval() -> None:
    voxels = np.random.default_rng(2).random((1, 100, 100)) * 100 - 20
    pixels = prepare_image(make_volume(voxels, np.diag([3.0, 1.0, 1.0, 1.0])), PLAIN).pixels
    assert pixels.dtype == np.float32
    slab = voxels[0].T[::-1, ::-1]
    assert np.allclose(pixels, (slab - slab.min()) / np.ptp(slab), atol=1e-6)
    assert (pixels.min(), pixels.max()) == (0, 1)


@pytest.mark.parametrize("config", [PreprocessingConfig(), PLAIN])
def test_scale_and_offset_of_the_voxels_do_not_matter(config: PreprocessingConfig) -> None:
    voxels = np.random.default_rng(3).random((1, 50, 60))
    affine = make_affine((3.0, 1.0, 1.0))
    expected = prepare_image(make_volume(voxels, affine), config).pixels
    for factor, offset in ((1e-9, 0.0), (6.6e38, -3.3e38), (7.0, 1000.0)):
        pixels = prepare_image(make_volume(voxels * factor + offset, affine), config).pixels
        assert np.allclose(pixels, expected, atol=1e-4)


@pytest.mark.parametrize("value", [0, 7])
@pytest.mark.parametrize("spacing", [0.7, 1.0, 1.3])
def test_what_was_padded_before_is_not_in_view(value: int, spacing: float) -> None:
    """Stitched or letterboxed images: the border of what they show is where that ends."""
    affine = np.diag([3.0, spacing, spacing, 1.0])
    inner = np.random.default_rng(4).random((3, 70, 110)) + 1
    inner[:, 3, :] = inner[:, :, 5] = 0  # inside, it is nothing of the kind
    voxels = np.full((3, 100, 150), float(value))
    voxels[:, 12:82, 5:115] = inner
    grid = prepare_image(make_volume(voxels, affine), PreprocessingConfig()).grid
    edges = np.array([[1, 12, 5], [1, 81, 114]], dtype=float)
    inside = np.array([[1, 1.5, 1.5], [1, -1.5, -1.5]]) / [1, spacing, spacing]
    for sign, shown in ((1, True), (-1, False)):
        pixels = grid.voxel_to_pixel(edges + sign * inside)[:, :2]
        assert grid.shows(pixels).tolist() == [shown, shown]
    whole = prepare_image(make_volume(inner, affine), PreprocessingConfig()).grid
    assert whole.content is not None
    top, bottom, left, right = whole.content
    assert (bottom - top, right - left) == (round(110 * spacing), round(70 * spacing))


def test_columns_of_one_value_each_are_no_padding() -> None:
    stripes = np.broadcast_to(np.arange(60.0)[None, :, None], (3, 60, 80))
    affine = np.diag([3.0, 1.0, 1.0, 1.0])
    grid = prepare_image(make_volume(stripes, affine), PLAIN).grid
    assert grid.content == (0, 80, 0, 60)


@pytest.mark.parametrize("multiple", [64, 50, 1])
def test_padding_is_symmetric(multiple: int) -> None:
    voxels = np.random.default_rng(4).random((3, 61, 129)) + 1
    affine = np.diag([3.0, 1.0, 1.0, 1.0])
    config = PreprocessingConfig(normalisation="minmax", size_multiple=multiple)
    image = prepare_image(make_volume(voxels, affine), config)
    content = prepare_image(make_volume(voxels, affine), PLAIN).pixels
    height, width = image.pixels.shape
    assert image.grid.shape == (height, width)
    assert (height % multiple, width % multiple) == (0, 0)
    assert (height - 129 < multiple, width - 61 < multiple) == (True, True)
    top, left = (height - 129) // 2, (width - 61) // 2
    assert np.array_equal(image.pixels[top : top + 129, left : left + 61], content)
    assert image.pixels.sum() == pytest.approx(content.sum())  # zero elsewhere


# ---- the grid -----------------------------------------------------------------------------------


def random_grid(seed: int) -> Grid:
    rng = np.random.default_rng(seed)
    orientation = ORIENTATIONS[rng.integers(len(ORIENTATIONS))]
    shape = (int(rng.integers(1, 6)), *map(int, rng.integers(20, 50, 2)))
    affine = make_affine(list(rng.uniform(0.3, 4, 3)), list(rng.uniform(-0.5, 0.5, 3)))
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    image = nib.Nifti1Image(rng.random(shape), affine).as_reoriented(orientation)
    config = PreprocessingConfig(
        spacing_mm=float(rng.uniform(0.4, 2)), size_multiple=int(rng.choice([1, 7, 64]))
    )
    volume = make_volume(np.asarray(image.dataobj), image.affine)
    return prepare_image(volume, config, float(rng.uniform(-1, 6))).grid


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_grid_maps_both_ways_exactly(seed: int) -> None:
    grid = random_grid(seed)
    rng = np.random.default_rng(seed)
    world = rng.uniform(-500, 500, (20, 3))
    assert np.abs(grid.pixel_to_world(grid.world_to_pixel(world)) - world).max() < 1e-6
    voxels = rng.uniform(-50, 400, (20, 3))
    assert np.abs(grid.pixel_to_voxel(grid.voxel_to_pixel(voxels)) - voxels).max() < 1e-6
    pixels = rng.uniform(-50, 400, (20, 2))
    world = apply_affine(grid.affine, grid.pixel_to_voxel(pixels))
    assert np.abs(grid.pixel_to_world(pixels) - world).max() < 1e-6
    assert np.abs(grid.world_to_pixel(world)[:, :2] - pixels).max() < 1e-6
    assert np.abs(grid.world_to_pixel(world)[:, 2]).max() < 1e-6


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_grid_measures_in_its_spacing(seed: int) -> None:
    grid = random_grid(seed)
    origin, down, right = grid.pixel_to_world([(0, 0), (1, 0), (0, 1)])
    sizes = np.linalg.norm(down - origin), np.linalg.norm(right - origin)
    assert sizes == pytest.approx(grid.spacing_mm)


@pytest.mark.parametrize("orientation", ORIENTATIONS[1::7])
def test_edges_of_the_image_are_edges_of_the_volume(orientation: Array) -> None:
    """Half a pixel beyond the first and last pixel centre lies half a voxel beyond the voxels'."""
    voxels = np.random.default_rng(5).random((3, 31, 57))
    affine = make_affine((3.0, 1.37, 0.81))
    image = nib.Nifti1Image(voxels, affine).as_reoriented(orientation)
    volume = make_volume(np.asarray(image.dataobj), image.affine)
    grid = prepare_image(volume, PLAIN).grid
    height, width = grid.shape
    assert (height, width) != (57, 31)
    corners = grid.pixel_to_world([(-0.5, -0.5), (height - 0.5, width - 0.5)])
    expected = apply_affine(affine, [(1, 30.5, 56.5), (1, -0.5, -0.5)])
    assert np.allclose(corners, expected)


def test_grid_maps_no_points() -> None:
    assert random_grid(0).pixel_to_world(np.zeros((0, 2))).shape == (0, 3)


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_only_what_the_slab_holds_matters(value: float) -> None:
    voxels = np.random.default_rng(6).random((9, 50, 60))
    voxels[0, 20, 20] = value
    volume = make_volume(voxels, np.diag([3.0, 1.0, 1.0, 1.0]))
    assert np.isfinite(prepare_image(volume, PreprocessingConfig()).pixels).all()
    with pytest.raises(InputError, match="NaN or infinite voxels"):
        prepare_image(volume, PreprocessingConfig(), 0.0)


@pytest.mark.parametrize("normalisation", ["percentile", "minmax"])
@pytest.mark.parametrize("value", [0.0, -3.5, 1e-30, 1e9])
def test_constant_slab(normalisation: Any, value: float) -> None:
    volume = make_volume(np.full((5, 50, 60), value), make_affine((3.0, 0.7, 1.1)))
    with pytest.raises(InputError, match="are equal"):
        prepare_image(volume, PreprocessingConfig(normalisation=normalisation))


@pytest.mark.parametrize(
    "settings",
    [
        {"spacing_mm": 0.1},
        {"spacing_mm": float("nan")},
        {"slab_mm": 0.0},
        {"slab_mm": 51.0},
        {"slices": 0},
        {"normalisation": "zscore"},
        {"size_multiple": 0},
    ],
)
def test_refused_settings(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=name):
        PreprocessingConfig(**settings)


# ---- real data ----------------------------------------------------------------------------------


def test_real_images(data: Path) -> None:
    """Reading and preparing never fails, and reads no more than is there."""
    files = sorted((data / "spine-mri").glob("sub-*/anat/*.nii.gz"))[::16]
    files += sorted((data / "neck-slices").glob("sub-*/anat/*.nii.gz"))[::8]
    assert files
    for path in files:
        image = prepare_image(read_volume(path), PreprocessingConfig())
        assert (image.pixels.min(), image.pixels.max()) == (0, 1)
        assert image.grid.spacing_mm == pytest.approx((1, 1), rel=0.01)
