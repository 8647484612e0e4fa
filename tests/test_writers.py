"""Label image and sidecar are written together, reproducibly, or not at all."""

import gzip
import json
import shutil
import stat
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ivdtool.errors import InputError, UsageError
from ivdtool.files import atomic_write, nifti_stem, sidecar_path
from ivdtool.labels import Disc, DiscLabels
from ivdtool.writers import (
    check_replaceable,
    default_name,
    markups_path,
    write_labels,
)

SHAPE = (4, 20, 30)


@pytest.fixture(autouse=True)
def _no_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


@pytest.fixture
def labels(tmp_path: Path) -> DiscLabels:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), np.diag([2.0, 1.5, 1, 1]))
    discs = tuple(
        Disc(label, np.array([2.0, 15, k]), np.array([1.0, 10, k]), 0.9, 0.8)
        for label, k in ((3, 25), (4, 10))
    )
    source = tmp_path / "input" / "sub-01_T2w.nii.gz"
    return DiscLabels(discs, source, image.header)


def test_names() -> None:
    assert default_name("a/sub-01_T2w.nii.gz") == "sub-01_T2w_label-discs_dlabel.nii.gz"
    assert default_name("scan.1.nii") == "scan.1_label-discs_dlabel.nii.gz"
    assert sidecar_path("a/b.nii.gz") == Path("a/b.json")
    assert sidecar_path(Path("b.c.nii")) == Path("b.c.json")
    for name in ("a.json", "a.gz", "a", ".nii.gz", "a.nii.gz.tmp", "a/"):
        with pytest.raises(UsageError, match=r"let it end in \.nii\.gz or \.nii"):
            nifti_stem(name)


@pytest.mark.parametrize("name", ["out.nii.gz", "out.nii"])
def test_image_and_sidecar(tmp_path: Path, labels: DiscLabels, name: str) -> None:
    write_labels(labels, tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.json", name]
    image = nib.load(tmp_path / name)
    assert isinstance(image, nib.Nifti1Image)
    data = np.asanyarray(image.dataobj)
    assert data.dtype == np.uint8
    assert data[1, 10, 25] == 3
    assert data[1, 10, 10] == 4
    assert np.count_nonzero(data) == 2
    text = (tmp_path / "out.json").read_text()
    assert text.endswith("}\n")
    assert [disc["name"] for disc in json.loads(text)["Discs"]] == ["C2/C3", "C3/C4"]
    assert "Date" in json.loads(text)["GeneratedBy"][0]


def test_same_labels_same_bytes(tmp_path: Path, labels: DiscLabels) -> None:
    written = []
    for name in ("a", "b"):
        write_labels(labels, tmp_path / f"{name}.nii.gz", reproducible=True)
        written.append([(tmp_path / f"{name}{end}").read_bytes() for end in (".nii.gz", ".json")])
    assert written[0] == written[1]
    image, sidecar = written[0]
    assert image[4:8] == bytes(4)  # no time stamp in the gzip header
    assert gzip.decompress(image)[344:348] == b"n+1\x00"
    assert b"Date" not in sidecar


@pytest.mark.parametrize("reproducible", [False, True])
def test_source_date_epoch(
    tmp_path: Path, labels: DiscLabels, monkeypatch: pytest.MonkeyPatch, reproducible: bool
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    write_labels(labels, tmp_path / "a.nii.gz", reproducible)
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert sidecar["GeneratedBy"][0]["Date"] == "1970-01-02 00:00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH must be seconds since 1970"):
        write_labels(labels, tmp_path / "b.nii.gz")


def test_existing_files_are_replaced(tmp_path: Path, labels: DiscLabels) -> None:
    (tmp_path / "a.nii.gz").write_text("old")
    (tmp_path / "a.json").write_text("old")
    write_labels(labels, tmp_path / "a.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert "SCT" in (tmp_path / "a.json").read_text()


def test_points_moved_in_slicer_are_not_replaced(tmp_path: Path, labels: DiscLabels) -> None:
    path = tmp_path / "out.nii.gz"
    write_labels(labels, path, slicer=True)
    written = markups_path(path).read_text()
    saved = json.loads(written)
    points = saved["markups"][0]["controlPoints"]
    for number, point in enumerate(points):  # as 3D Slicer does
        point |= {"id": str(number + 1), "selected": True}
    points.reverse()
    markups_path(path).write_text(json.dumps(saved))
    check_replaceable(path)

    points[0]["position"][2] += 0.5
    markups_path(path).write_text(json.dumps(saved))
    for known in (False, True):
        with pytest.raises(UsageError, match=r"out\.mrk\.json: these labels were edited since"):
            check_replaceable(path, known)
    for count in (1, 0):
        saved["markups"][0]["controlPoints"] = points[:count]
        markups_path(path).write_text(json.dumps(saved))
        with pytest.raises(UsageError, match="edited since"):
            check_replaceable(path)

    for damaged in ("", "[]", "{}", '{"markups": []}', "[" * 100_000):
        markups_path(path).write_text(damaged)
        check_replaceable(path)
    path.unlink()
    sidecar_path(path).unlink()
    markups_path(path).write_text(written)
    with pytest.raises(UsageError, match="did not write these labels"):
        check_replaceable(path)
    check_replaceable(path, known_as_ours=True)


@pytest.mark.parametrize("name", ["out.json", "out", "out.png", "out.mgz"])
def test_other_file_types_are_refused(tmp_path: Path, labels: DiscLabels, name: str) -> None:
    with pytest.raises(UsageError, match=name):
        write_labels(labels, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["sub-01_T2w.nii.gz", "sub-01_T2w.nii", "../input/sub-01_T2w.nii"])
def test_input_is_never_replaced(labels: DiscLabels, name: str) -> None:
    labels.source.parent.mkdir()
    with pytest.raises(UsageError, match="would replace the image or its sidecar"):
        write_labels(labels, labels.source.parent / name)


def test_input_is_not_replaced_through_a_link(tmp_path: Path, labels: DiscLabels) -> None:
    labels.source.parent.mkdir()
    target = tmp_path / "scan.nii.gz"
    target.write_text("image")
    labels.source.symlink_to(target)
    with pytest.raises(UsageError, match="would replace the image"):
        write_labels(labels, target)


# --- atomic writing


def test_missing_folder(tmp_path: Path, labels: DiscLabels) -> None:
    with pytest.raises(UsageError, match="output folder missing") as caught:
        write_labels(labels, tmp_path / "none" / "out.nii.gz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["out.nii.gz", "out.json"])
def test_folder_in_the_way(tmp_path: Path, labels: DiscLabels, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        write_labels(labels, tmp_path / "out.nii.gz")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_write_protected_folder(tmp_path: Path) -> None:
    folder = tmp_path / "protected"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        (folder / "probe").touch()
    except OSError:
        with pytest.raises(UsageError, match="not writable"), atomic_write(folder / "a.txt"):
            pass
    else:
        pytest.skip("this user may write anywhere")
    finally:
        folder.chmod(stat.S_IRWXU)


def test_failed_sidecar_leaves_nothing(
    tmp_path: Path, labels: DiscLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.suffix == ".json":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match="not writable: No space left on device"):
        write_labels(labels, tmp_path / "out.nii.gz")
    assert list(tmp_path.iterdir()) == []


def test_failed_second_rename_takes_the_first_back(
    tmp_path: Path, labels: DiscLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def only_images(source: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise PermissionError(1, "Operation not permitted")
        return rename(source, target)

    monkeypatch.setattr(Path, "replace", only_images)
    with pytest.raises(UsageError, match=r"out\.json: not writable: Operation not permitted"):
        write_labels(labels, tmp_path / "out.nii.gz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError("bad"), ValueError("x")])
def test_any_early_end_leaves_the_old_file(
    tmp_path: Path, error: type[BaseException] | BaseException
) -> None:
    def write_and_fail() -> None:
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent
            assert temporary.name.endswith(".tar.gz")
            temporary.write_text("new")
            raise error

    path = tmp_path / "a.tar.gz"
    path.write_text("old")
    with pytest.raises((KeyboardInterrupt, InputError, ValueError)):
        write_and_fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]
    assert path.read_text() == "old"


def test_success_replaces_and_uses_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "a.txt") as temporary:
        shutil.copyfile(Path(__file__), temporary)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.txt", "plain"]
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode
