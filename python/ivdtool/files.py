"""File names and safe writing: a file appears under its final name complete, or not at all."""

import gzip
import hashlib
import io
import os
import re
import secrets
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from ivdtool.errors import InputError, UsageError

if TYPE_CHECKING:
    import nibabel as nib

__all__ = [
    "LABEL_SUFFIX",
    "NIFTI_SUFFIXES",
    "atomic_write",
    "atomic_writes",
    "check_archive",
    "check_place",
    "file_sha256",
    "find_files",
    "is_nifti",
    "is_temporary",
    "make_folder",
    "nifti_bytes",
    "nifti_stem",
    "sidecar_path",
]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
LABEL_SUFFIX = "label-discs_dlabel"  # what a label image's name adds to the scan's


def nifti_stem(path: str | Path) -> str:
    """Return the file name without folder and without .nii or .nii.gz.

    Raises:
        UsageError: the name has another ending.
    """
    name = Path(path).name
    for suffix in NIFTI_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    raise UsageError(f"{path}: not a NIfTI file name; let it end in .nii.gz or .nii")


def sidecar_path(path: str | Path) -> Path:
    """Return the JSON file beside a label image.

    Raises:
        UsageError: the label image's name does not end in .nii.gz or .nii.
    """
    return Path(path).with_name(f"{nifti_stem(path)}.json")


def is_nifti(path: Path) -> bool:
    """Whether a file has the name of a NIfTI file; some programs write .NII."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def nifti_bytes(image: "nib.Nifti1Image", path: str | Path) -> bytes:
    """Return the contents of an image file, compressed if `path` ends in .gz.

    No file name and no time go into the gzip header: the same image makes the same bytes.
    """
    content = image.to_bytes()
    if Path(path).suffix.lower() == ".gz":
        content = gzip.compress(content, compresslevel=6, mtime=0)
    return content


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot make this folder: {error.strerror}") from error


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder whose paths there match a shell pattern, sorted.

    As in a shell, ``**`` stands for any folders, none among them, and hidden files and folders
    match only what begins with a dot. Symbolic links to folders are followed, though not in
    circles; `Path.glob` leaves them out or not by the version of Python.

    Raises:
        InputError: a folder cannot be read.
    """
    found = _find_files(str(folder), PurePath(pattern).parts, frozenset())
    return sorted(Path(path) for path in set(found))


def _find_files(
    folder: str, pattern: tuple[str, ...], above: frozenset[tuple[int, int]]
) -> Iterator[str]:
    first, rest = pattern[0], pattern[1:]
    inode, entries = _list_folder(folder)
    if first == "**":
        if inode in above:
            return
        yield from _find_files(folder, rest or ("*",), above)
    above |= {inode}
    for entry in entries:
        hidden = entry.name.startswith(".") and not first.startswith(".")
        if hidden or not fnmatchcase(entry.name, first):
            continue
        if _is_folder(entry):
            if first == "**":
                yield from _find_files(entry.path, pattern, above)
            elif rest:
                yield from _find_files(entry.path, rest, above)
        elif not rest and first != "**":
            yield entry.path


def _list_folder(folder: str) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    """Return what tells the folder from all others, and what is in it."""
    try:
        stat = os.stat(folder)  # noqa: PTH116 - paths as text, which are made in half the time
        with os.scandir(folder) as entries:
            listed = list(entries)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be read ({error.strerror}); make it readable, or give a pattern "
            "that leaves it out"
        ) from error
    return (stat.st_dev, stat.st_ino), listed


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that leads nowhere counts as a file, so that it is noticed when it is read."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, which need not fit into memory."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_archive(content: bytes) -> set[str]:
    """Check the sums in a zip file, which torch does not: it loads weights with flipped bits.

    Returns:
        The names of what is in it, without folders.

    Raises:
        ValueError: the file is damaged or no zip file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = {PurePath(name).name for name in archive.namelist()}
            damaged = archive.testzip()
    except (RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(str(error) or "end of file") from error
    if damaged is not None:
        raise ValueError(f"checksum of {damaged}")
    return names


def check_place(path: Path) -> None:
    """Check that a file can be at `path`, as far as can be told without writing.

    Raises:
        UsageError: its folder is missing, or it is a folder itself.
    """
    with _usage_errors(path):  # a name that is too long, a folder that must not be looked into
        if not path.parent.is_dir():
            raise UsageError(f"{path}: output folder missing: {path.parent}; create it first")
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; give a file name")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    The temporary name is hidden and keeps the suffixes of `path`, by which some writers choose
    their format. Whatever ends the block early, an interrupt included, removes it. The block
    should do nothing but write: an `OSError` in it is reported as one about `path`.

    Raises:
        UsageError: `path` cannot be written.
    """
    with atomic_writes(path) as (temporary,):
        yield temporary


@contextmanager
def atomic_writes(*paths: str | Path) -> Iterator[tuple[Path, ...]]:
    """Do as `atomic_write` for files that belong together: all appear, or none.

    Raises:
        UsageError: one of `paths` cannot be written.
    """
    targets = tuple(Path(path) for path in paths)
    with ExitStack() as cleanup:
        temporaries = tuple(_reserve(target, cleanup) for target in targets)
        with _usage_errors(targets[0]):
            yield temporaries
        for temporary, target in zip(temporaries, targets, strict=True):
            with _usage_errors(target):
                temporary.replace(target)
            cleanup.callback(target.unlink, missing_ok=True)  # until the last one is in place
        cleanup.pop_all()


def is_temporary(path: Path) -> bool:
    """Whether a file has a name as `atomic_writes` gives while it writes."""
    return re.fullmatch(r"\.[0-9a-f]{16}(\.\w+){1,2}", path.name) is not None


def _reserve(target: Path, cleanup: ExitStack) -> Path:
    check_place(target)
    temporary = target.with_name(f".{secrets.token_hex(8)}{''.join(target.suffixes[-2:])}")
    with _usage_errors(target):
        temporary.touch(exist_ok=False)
    cleanup.callback(_remove, temporary)
    return temporary


def _remove(path: Path) -> None:
    with suppress(OSError):  # the error that led here is the one to report
        path.unlink(missing_ok=True)


@contextmanager
def _usage_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"{target}: not writable: {reason}") from error
