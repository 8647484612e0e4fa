"""Files of every kind are read alike, or refused with one line that helps."""

import contextlib
import gzip
import itertools
import os
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine, from_matvec
from nibabel.eulerangles import euler2mat

from ivdtool.errors import InputError, UsageError
from ivdtool.preprocessing import PreprocessingConfig, prepare_image
from ivdtool.volumes import CHUNK_BYTES, Volume, read_affine, read_volume

SHAPE = (5, 46, 60)  # right, anterior, superior
ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def make_affine() -> npt.NDArray[np.float64]:
    """Oblique RAS voxels of 3 x 1.1 x 0.9 mm."""
    turned = euler2mat(0.04, -0.03, 0.06) @ np.diag([3.0, 1.1, 0.9])
    return np.asarray(from_matvec(turned, [-11.3, 40.7, -25.9]))


def make_voxels(shape: tuple[int, ...] = SHAPE, dtype: Any = np.int16) -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def make_image(
    voxels: npt.NDArray[Any] | None = None, sform: Any = "default", qform: Any = None
) -> Any:
    """A NIfTI image; a form that is None has code 0."""
    header = nib.Nifti1Header()
    voxels = make_voxels() if voxels is None else voxels
    header.set_data_dtype(voxels.dtype)
    image = nib.Nifti1Image(voxels, None, header)
    sform = make_affine() if isinstance(sform, str) else sform
    image.set_sform(sform, 0 if sform is None else 1)
    image.set_qform(qform, 0 if qform is None else 1)
    return image


def save(path: Path, image: Any) -> Path:
    nib.save(image, path)
    return path


def all_voxels(volume: Volume) -> npt.NDArray[np.float32]:
    """(n, rows, cols), from left to right."""
    lateral, sign = volume.axes[0]
    return volume.sagittal_slices(0, volume.shape[lateral] - 1)[::sign]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_orientation_reads_alike(tmp_path: Path, suffix: str) -> None:
    canonical = make_voxels()
    expected = canonical.transpose(0, 2, 1)[:, ::-1, ::-1]  # rows S to I, columns A to P
    world = apply_affine(make_affine(), (1, 7, 30))
    for orientation in ORIENTATIONS if suffix == ".nii" else ORIENTATIONS[5::13]:
        image = make_image().as_reoriented(orientation)
        volume = read_volume(save(tmp_path / f"a{suffix}", image))
        assert np.array_equal(all_voxels(volume), expected)
        i, j, k = apply_affine(np.linalg.inv(volume.affine), world)
        assert volume.data[round(i), round(j), round(k)] == canonical[1, 7, 30]
        assert volume.zooms_mm[volume.axes[0][0]] == pytest.approx(3.0)
        assert volume.warnings == ()


@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "<i2", ">i2", "<u2", "<i4", "<f4", ">f4", "<f8", ">f8", "<i8"]
)
def test_dtypes(tmp_path: Path, dtype: str) -> None:
    voxels = (make_voxels() / 2).astype(dtype)
    header = nib.Nifti1Header(endianness=dtype[0] if dtype[0] == ">" else "<")
    header.set_data_dtype(dtype)
    image = nib.Nifti1Image(voxels, make_affine(), header)
    slices = all_voxels(read_volume(save(tmp_path / "a.nii", image)))
    assert slices.dtype == np.float32
    assert slices.dtype.isnative
    assert np.array_equal(slices, voxels.transpose(0, 2, 1)[:, ::-1, ::-1].astype(np.float32))


@pytest.mark.parametrize(
    ("slope", "inter", "factor", "offset"),
    [
        (0.5, -7.0, 0.5, -7.0),
        (np.nan, np.nan, 1.0, 0.0),  # as nibabel writes it
        (0.0, 9.0, 1.0, 0.0),  # not set, by the NIfTI standard
        (1.0, 3.0, 1.0, 3.0),
    ],
)
@pytest.mark.parametrize("volume", [None, 1, "mean"])
def test_scaling(
    tmp_path: Path, slope: float, inter: float, factor: float, offset: float, volume: Any
) -> None:
    voxels = make_voxels(SHAPE if volume is None else (*SHAPE, 3))
    path = save(tmp_path / "a.nii", make_image(voxels))
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([slope, inter], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)
    stored = voxels if volume is None else voxels.mean(3) if volume == "mean" else voxels[..., 1]
    expected = stored.transpose(0, 2, 1)[:, ::-1, ::-1] * factor + offset
    assert np.allclose(all_voxels(read_volume(path, volume)), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 46, 60), (46, 60, 1), (46, 60), (46, 1, 60), (46, 60, 1, 1)])
def test_single_sagittal_slice(tmp_path: Path, shape: tuple[int, ...]) -> None:
    affine = make_affine()
    lateral = shape.index(1) if 1 in shape else 2
    affine[:, [lateral, *(axis for axis in range(3) if axis != lateral)]] = affine[:, :3].copy()
    voxels = make_voxels(shape)
    volume = read_volume(save(tmp_path / "a.nii", make_image(voxels, affine)))
    assert volume.axes[0][0] == lateral
    expected = voxels.reshape(46, 60).T[::-1, ::-1]
    assert np.array_equal(all_voxels(volume), expected[np.newaxis])


def test_four_dimensions(tmp_path: Path) -> None:
    voxels = make_voxels((*SHAPE, 3))
    path = save(tmp_path / "a.nii.gz", make_image(voxels))
    with pytest.raises(InputError, match="4-D with 3 volumes; choose one with --volume N"):
        read_volume(path)
    for index in range(3):
        assert np.array_equal(read_volume(path, index).data, voxels[..., index])
    assert np.allclose(read_volume(path, "mean").data, voxels.mean(axis=3), atol=1e-4)
    for wrong in (3, -1, "median"):
        with pytest.raises(UsageError, match="choose 0 to 2 or mean"):
            read_volume(path, wrong)


def test_a_fourth_dimension_of_one_needs_no_choice(tmp_path: Path) -> None:
    voxels = make_voxels((*SHAPE, 1))
    path = save(tmp_path / "a.nii.gz", make_image(voxels))
    assert np.array_equal(read_volume(path).data, voxels[..., 0])


def shifted(mm: float) -> npt.NDArray[np.float64]:
    """`make_affine` turned a little about its first voxel, so that a far corner moves by `mm`."""
    affine = make_affine()
    corners = np.array(list(itertools.product(*((0, n - 1) for n in SHAPE)))) @ affine[:3, :3].T
    radius = np.linalg.norm(corners[:, 1:], axis=1).max()
    affine[:3, :3] = euler2mat(x=mm / radius) @ affine[:3, :3]
    return affine


def test_sform_before_qform(tmp_path: Path) -> None:
    image = make_image(qform=shifted(0.05))
    volume = read_volume(save(tmp_path / "a.nii", image))
    assert np.allclose(volume.affine, make_affine(), atol=1e-5)
    assert volume.warnings == ()


def test_sform_and_qform_that_disagree(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "a.nii", make_image(qform=shifted(0.2))))
    assert np.allclose(volume.affine, make_affine(), atol=1e-5)
    assert volume.warnings == ("sform and qform differ by up to 0.2 mm; the sform is used",)


def test_qform_where_there_is_no_sform(tmp_path: Path) -> None:
    volume = read_volume(save(tmp_path / "a.nii", make_image(sform=None, qform=make_affine())))
    assert np.allclose(volume.affine, make_affine(), atol=1e-4)
    assert volume.warnings == ()


def test_neither_sform_nor_qform(tmp_path: Path) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(SHAPE)
    header.set_zooms((3.0, 1.1, 0.9))
    image = nib.Nifti1Image(make_voxels(), None, header)
    volume = read_volume(save(tmp_path / "a.nii", image))
    assert nib.aff2axcodes(volume.affine) == ("L", "A", "S")
    assert np.allclose(volume.zooms_mm, (3.0, 1.1, 0.9))
    (warning,) = volume.warnings
    assert "no orientation in the header" in warning


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("qform", [True, False])
@pytest.mark.parametrize("sizes", [(3.0, 0.0, 0.9), (0.0, 1.1, 0.9), (0.0, 0.0, 0.0)])
def test_voxels_of_no_size(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    kind: Any,
    suffix: str,
    qform: bool,
    sizes: tuple[float, ...],
) -> None:
    """nibabel reads them as 1 mm, with a line on standard error."""
    image = kind(make_voxels(), None)
    image.set_qform(make_affine() if qform else None, int(qform))
    for sform_code in (0, 1):
        image.header["sform_code"] = sform_code
        image.header["pixdim"][1:4] = sizes
        image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = make_affine()[:3]
        path = tmp_path / f"a{suffix}"
        content = bytes(image.header.binaryblock)
        content += bytes(int(image.header["vox_offset"] or len(content) + 4) - len(content))
        content += image.dataobj.tobytes(order="F")
        path.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
        if sform_code:
            assert np.allclose(read_volume(path).affine, make_affine(), atol=1e-5)
            continue
        message = f"voxels of {' x '.join(f'{size:g}' for size in sizes)} mm; repair the header"
        for read in (read_volume, read_affine):
            with pytest.raises(InputError, match=message):
                read(path)
    assert capfd.readouterr() == ("", "")


def test_the_thickness_of_one_slice_does_not_matter(tmp_path: Path) -> None:
    image = nib.Nifti1Image(make_voxels((1, 46, 60)), None)
    image.set_qform(make_affine(), 1)
    path = save(tmp_path / "a.nii", image)
    content = bytearray(path.read_bytes())
    content[80:84] = bytes(4)  # pixdim[1]
    path.write_bytes(content)
    assert np.allclose(read_volume(path).zooms_mm[1:], (1.1, 0.9))


def test_pictures_with_nothing_but_pixels(tmp_path: Path) -> None:
    """Converted without voxel size or orientation: the user learns what may be wrong."""
    voxels = np.random.default_rng(0).integers(0, 255, (1, 700, 880)).astype(np.uint8)
    volume = read_volume(save(tmp_path / "a.nii", nib.Nifti1Image(voxels, np.eye(4))))
    (identity,) = volume.warnings
    assert identity.startswith("the affine is the identity, as of converted pictures")
    wide = save(tmp_path / "d.nii", nib.Nifti1Image(voxels.transpose(0, 2, 1), np.eye(4)))
    with pytest.raises(InputError, match=r"880 mm from front.*any body; .*is the identity"):
        read_volume(wide)
    path = save(tmp_path / "b.nii", nib.Nifti1Image(voxels.T, np.eye(4)))
    with pytest.raises(InputError, match=r"single slice that is not sagittal.*is the identity"):
        read_volume(path)
    scanned = np.diag([4.0, 0.4, 0.4, 1.0])
    assert read_volume(save(tmp_path / "c.nii", nib.Nifti1Image(voxels, scanned))).warnings == ()


@pytest.mark.parametrize("quaternion", [(np.nan, 0, 0), (1, 1, 1)])
def test_unusable_qform_beside_a_good_sform(
    tmp_path: Path, quaternion: tuple[float, float, float]
) -> None:
    image = make_image(qform=make_affine())
    for name, value in zip("bcd", quaternion, strict=True):
        image.header[f"quatern_{name}"] = value
    volume = read_volume(save(tmp_path / "a.nii", image))
    assert np.allclose(volume.affine, make_affine(), atol=1e-5)
    assert volume.warnings == ("the qform is not usable; the sform is used",)


def test_coarse_spacing_is_a_warning(tmp_path: Path) -> None:
    affine = np.diag([3.0, 1.0, 3.5, 1.0])
    volume = read_volume(save(tmp_path / "a.nii", make_image(sform=affine)))
    assert volume.warnings == ("3.5 mm spacing superior-inferior is coarse; labels may be off",)


@pytest.mark.parametrize("dtype", ["<i2", ">f4", "<f8"])
def test_the_mean_of_volumes(tmp_path: Path, dtype: str) -> None:
    voxels = make_voxels((*SHAPE, 7), dtype)
    header = nib.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(dtype)
    image = nib.Nifti1Image(voxels, make_affine(), header)
    for suffix in (".nii", ".nii.gz"):
        read = read_volume(save(tmp_path / f"a{suffix}", image), "mean").data
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, voxels.mean(3), rtol=1e-6)


def test_every_byte_counts(tmp_path: Path) -> None:
    """Deflate by another library, in several members, read in chunks: the same voxels."""
    voxels = make_voxels((40, 128, 80))  # more than one chunk
    path = save(tmp_path / "a.nii", make_image(voxels))
    content = path.read_bytes()
    assert len(content) > 2 * CHUNK_BYTES
    for cuts in ((), (100, 352), (7, 200_001, 200_002, len(content) - 1)):
        ends = zip((0, *cuts), (*cuts, len(content)), strict=True)
        compressed = b"".join(gzip.compress(content[start:stop]) for start, stop in ends)
        for padding in (b"", bytes(512)):  # as tapes leave it
            path = tmp_path / "a.nii.gz"
            path.write_bytes(compressed + padding)
            assert np.array_equal(read_volume(path).data, voxels)


def test_bytes_after_the_voxels_are_checked_but_not_read_as_voxels(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", make_image())
    content = gzip.compress(path.read_bytes() + bytes(3 * CHUNK_BYTES))
    path = tmp_path / "a.nii.gz"
    path.write_bytes(content)
    assert np.array_equal(read_volume(path).data, make_voxels())
    path.write_bytes(content[:-8] + bytes(4) + content[-4:])  # another checksum
    with pytest.raises(InputError, match="damaged"):
        read_volume(path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_what_gzip_refuses_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Python's own gzip judges: a stream that it cannot inflate to its end is not read."""
    path = save(tmp_path / "a.nii.gz", make_image())
    content = bytearray(path.read_bytes())
    end = data.draw(st.integers(len(content) - 40, len(content)))
    for place in data.draw(st.lists(st.integers(0, end - 1) | st.integers(0, 12), max_size=2)):
        content[place] = data.draw(st.integers(0, 255))
    content[end:] = data.draw(st.binary(max_size=20))
    path.write_bytes(content)
    try:
        good = gzip.decompress(content)
    except (EOFError, OSError, zlib.error):
        with pytest.raises(InputError, match="damaged"):
            read_volume(path)
        return
    path.with_suffix("").write_bytes(good)
    assert np.array_equal(read_volume(path).data, read_volume(path.with_suffix("")).data)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_memory_of_reading(tmp_path: Path, suffix: str) -> None:
    """The chosen volume, or one and the sum; of an uncompressed file what is looked at."""
    voxels = make_voxels((128, 128, 60, 4))
    path = save(tmp_path / f"a{suffix}", make_image(voxels, np.eye(4)))
    size = voxels[..., 0].nbytes
    for volume, most in ((2, 1), ("mean", 4)):
        tracemalloc.start()
        try:
            read_volume(path, volume)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        held = most if suffix == ".nii.gz" or volume == "mean" else 0
        assert peak < held * size + 1.5e6


def test_only_the_slab_becomes_floats(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", make_image(make_voxels((200, 128, 128)), np.eye(4)))
    tracemalloc.start()
    try:
        prepare_image(read_volume(path), PreprocessingConfig())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6  # all voxels as float32 are 13 MB


def test_a_refused_file_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", make_image(make_voxels((*SHAPE, 3))))
    path.write_bytes(path.read_bytes()[:400])  # no voxels left
    with pytest.raises(InputError, match="4-D with 3 volumes"):
        read_volume(path)


# ---- bad input ----------------------------------------------------------------------------------


def as_bytes(edit: Callable[[bytes], bytes], suffix: str = ".nii.gz") -> Callable[[Path], Path]:
    """A good file, its bytes edited."""

    def make(folder: Path) -> Path:
        path = save(folder / f"a{suffix}", make_image())
        path.write_bytes(edit(path.read_bytes()))
        return path

    return make


def as_image(make: Callable[[], Any]) -> Callable[[Path], Path]:
    return lambda folder: save(folder / "a.nii.gz", make())


def with_voxel(value: float) -> Any:
    voxels = make_voxels(dtype=np.float32)
    voxels[2, 20, 20] = value
    return make_image(voxels)


def with_rows(rows: Any) -> Any:
    image = make_image()
    for name, row in zip("xyz", rows, strict=True):
        image.header[f"srow_{name}"] = row
    return nib.Nifti1Image(make_voxels(), None, image.header)


def colour(names: str) -> Any:
    voxels = np.zeros(SHAPE, [(name, "u1") for name in names])
    return nib.Nifti1Image(voxels, make_affine())


def folder_with_a_file_name(folder: Path) -> Path:
    path = folder / "a.nii.gz"
    path.mkdir()
    return path


BAD = {
    "truncated gz": (as_bytes(lambda content: content[: len(content) // 2]), "damaged"),
    "gz cut in its header": (as_bytes(lambda content: content[:15]), "damaged"),
    "truncated nii": (as_bytes(lambda content: content[:-1], ".nii"), "damaged"),
    "nii cut in its header": (as_bytes(lambda content: content[:200], ".nii"), "damaged"),
    "gz cut in its checksum": (as_bytes(lambda content: content[:-5]), "damaged"),
    "gz with another checksum": (
        as_bytes(lambda content: content[:-8] + bytes(4) + content[-4:]),
        "damaged",
    ),
    "gz with another size": (as_bytes(lambda content: content[:-1] + b"\7"), "damaged"),
    "gz and then something else": (as_bytes(lambda content: content + b"garbage"), "damaged"),
    "gz and then half of another": (
        as_bytes(lambda content: content + content[:100]),
        "damaged",
    ),
    "gz of fewer voxels": (
        as_bytes(lambda content: gzip.compress(gzip.decompress(content)[:-1])),
        "fewer voxels than the header says",
    ),
    "damaged gz": (
        as_bytes(lambda content: content[:900] + bytes(200) + content[1100:]),
        "damaged",
    ),
    "gz named nii": (as_bytes(gzip.compress, ".nii"), "damaged"),
    "nii named gz": (as_bytes(gzip.decompress), "damaged"),
    "text": (as_bytes(lambda _: b"Dear colleague,\n" * 40), "damaged"),
    "empty": (as_bytes(lambda _: b""), "damaged"),
    "empty nii": (as_bytes(lambda _: b"", ".nii"), "damaged"),
    "all zero": (as_image(lambda: make_image(np.zeros(SHAPE, np.int16))), "are equal"),
    "constant": (as_image(lambda: make_image(np.full(SHAPE, 7.5))), "are equal"),
    "NaN voxel": (as_image(lambda: with_voxel(np.nan)), "NaN or infinite voxels"),
    "infinite voxel": (as_image(lambda: with_voxel(np.inf)), "NaN or infinite voxels"),
    "voxel beyond float32": (
        as_image(lambda: make_image(np.where(make_voxels() > 100, 1e200, 0.0))),
        "NaN or infinite voxels",
    ),
    "4-D": (as_image(lambda: make_image(make_voxels((*SHAPE, 4)))), "choose one with --volume"),
    "vectors": (as_image(lambda: make_image(make_voxels((*SHAPE, 1, 3)))), "give a 3-D volume"),
    "one dimension": (as_image(lambda: make_image(make_voxels((60,)))), "give a 3-D volume"),
    "RGB": (as_image(lambda: colour("RGB")), "colour or complex"),
    "RGBA": (as_image(lambda: colour("RGBA")), "colour or complex"),
    "complex": (
        as_image(lambda: make_image(make_voxels(dtype=np.complex64))),
        "colour or complex",
    ),
    "2 voxels wide": (as_image(lambda: make_image(make_voxels((5, 2, 60)))), "only 2 voxels"),
    "2 voxels high": (as_image(lambda: make_image(make_voxels((5, 46, 2)))), "only 2 voxels"),
    "single voxel": (as_image(lambda: make_image(make_voxels((1, 1, 1)))), "only 1 voxels"),
    "12 slices": (
        as_image(lambda: make_image(make_voxels((5, 46, 12)), np.diag([1.0, 1.0, 3.9, 1.0]))),
        r"only 12 voxels \(47 mm\) superior-inferior",
    ),
    "a postage stamp": (
        as_image(lambda: make_image(sform=np.diag([3.0, 0.3, 0.3, 1.0]))),
        r"only 60 voxels \(18 mm\) superior-inferior",
    ),
    "zero affine": (as_image(lambda: with_rows(np.zeros((3, 4)))), "affine does not place"),
    "NaN affine": (as_image(lambda: with_rows(np.full((3, 4), np.nan))), "affine does not place"),
    "infinite offset": (
        as_image(lambda: with_rows(np.column_stack([np.eye(3), (np.inf, 0, 0)]))),
        "affine does not place",
    ),
    "flat affine": (
        as_image(lambda: with_rows([(1, 0, 1, 0), (0, 1, 0, 0), (0, 0, 0, 0)])),
        "affine does not place",
    ),
    "axial thick slices": (
        as_image(lambda: make_image(make_voxels((60, 60, 12)), np.diag([0.8, 0.8, 6.0, 1.0]))),
        "6.0 mm spacing superior-inferior, so an axial",
    ),
    "coronal thick slices": (
        as_image(lambda: make_image(make_voxels((60, 20, 60)), np.diag([0.8, 5.0, 0.8, 1.0]))),
        "5.0 mm spacing anterior-posterior",
    ),
    "coronal slice": (
        as_image(lambda: make_image(make_voxels((60, 1, 60)))),
        "single slice that is not sagittal",
    ),
    "axial slice": (
        as_image(lambda: make_image(make_voxels((60, 60)), np.eye(4))),
        "single slice that is not sagittal",
    ),
    "missing": (lambda folder: folder / "a.nii.gz", "no such file"),
    "name too long": (lambda folder: folder / f"{'a' * 300}.nii.gz", "too long"),
    "folder": (folder_with_a_file_name, "is a folder"),
    "wrong suffix": (lambda folder: save(folder / "a.mgz", make_mgh()), "not a NIfTI file name"),
    "Analyze": (
        lambda folder: save(folder / "a.img", make_image()).rename(folder / "a.nii"),
        "damaged",
    ),
}


def make_mgh() -> Any:
    return nib.MGHImage(make_voxels(), make_affine())


@pytest.mark.parametrize("kind", BAD)
def test_bad_input(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    make, expected = BAD[kind]
    path = make(tmp_path)
    with pytest.raises(InputError, match=expected) as caught:
        prepare_image(read_volume(path), PreprocessingConfig())
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert "; " in message  # what is wrong; what to do
    assert capfd.readouterr() == ("", "")


def test_no_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = save(tmp_path / "a.nii.gz", make_image())
    path.chmod(0)
    with pytest.raises(InputError, match="no permission to read; change its mode or owner"):
        read_volume(path)


@pytest.mark.parametrize("where", ["pathlib.Path.is_file", "nibabel.load"])
def test_permission_errors_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = save(tmp_path / "a.nii.gz", make_image())
    monkeypatch.setattr(where, refuse)
    with pytest.raises(InputError, match="no permission to read"):
        read_volume(path)


@pytest.mark.parametrize("shape", [(12, 60, 60), (12, 60, 60, 4), (12, 60, 60, 1)])
def test_affine_without_the_voxels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    voxels = np.zeros(shape, np.int16)
    path = save(tmp_path / "a.nii.gz", nib.Nifti1Image(voxels, make_affine()))
    expected = read_volume(path, volume=0).affine
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:352]))
    assert np.array_equal(read_affine(path), expected)
    with pytest.raises(InputError):
        read_volume(path, volume=0)
    with pytest.raises(InputError, match="no such file"):
        read_affine(tmp_path / "b.nii.gz")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(0, 351), st.integers(0, 255), min_size=1, max_size=4))
@example({303: 127})  # a signalling NaN in the sform
def test_a_damaged_header_is_read_or_refused(tmp_path: Path, edits: dict[int, int]) -> None:
    path = save(tmp_path / "a.nii", make_image(qform=make_affine()))
    content = bytearray(path.read_bytes())
    for place, value in edits.items():
        content[place] = value
    path.write_bytes(content)
    with contextlib.suppress(InputError):  # the only error there may be
        read_affine(path)
    with contextlib.suppress(InputError):
        volume = read_volume(path)
        assert np.isfinite(volume.affine).all()
        assert np.array_equal(read_affine(path), volume.affine)
        assert np.isfinite(prepare_image(volume, PreprocessingConfig()).pixels).all()
