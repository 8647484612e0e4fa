"""Which scans a batch labels, and which file each one's labels go to."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from glob import has_magic
from pathlib import Path

from ivdtool.bids import anatomical_images, images_below, is_dataset
from ivdtool.errors import InputError, UsageError
from ivdtool.files import LABEL_SUFFIX, NIFTI_SUFFIXES, find_files, is_nifti, nifti_stem
from ivdtool.label_files import is_label_file
from ivdtool.writers import default_name

__all__ = ["Filters", "Scan", "Shard", "find_scans", "take_shard"]


@dataclass(frozen=True, slots=True, order=True)
class Scan:
    """One scan of a batch.

    Attributes:
        output: label image, relative to the output folder; names the scan in the manifest.
        input: absolute path of the scan.
    """

    output: str
    input: str


@dataclass(frozen=True)
class Filters:
    """Which of the scans found to take.

    Attributes:
        participants: with or without ``sub-``; all when empty.
        suffixes: last part of the name, ``T2w``; all when empty.
        exclude: shell patterns of paths below the input folder, or of file names.
    """

    participants: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """The participants as folders and files name them."""
        return tuple(f"sub-{name.removeprefix('sub-')}" for name in self.participants)

    def take(self, path: Path) -> bool:
        """Whether to take a scan, by its path below the input folder."""
        if self.subjects and not {part.split("_")[0] for part in path.parts} & {*self.subjects}:
            return False
        if self.suffixes and nifti_stem(path).split("_")[-1] not in self.suffixes:
            return False
        return not any(fnmatch(str(path), p) or fnmatch(path.name, p) for p in self.exclude)


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count` parts of a batch.

    Raises:
        UsageError: a value out of range.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise UsageError(f"--shard {self.index}/{self.count}: give 1/{self.count} and so on")

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read ``3/10``.

        Raises:
            UsageError: it is no such fraction.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise UsageError(f"--shard takes i/n, such as 3/10, not {text}")
        return cls(int(match[1]), int(match[2]))

    @property
    def suffix(self) -> str:
        """For file names of this part."""
        return f".shard-{self.index}-of-{self.count}"


def find_scans(
    inputs: Sequence[str],
    output: Path,
    *,
    listed: Iterable[str] = (),
    root: Path | None = None,
    filters: Filters | None = None,
    suffix: str = LABEL_SUFFIX,
) -> list[Scan]:
    """Find scans and map each to an output of its own, sorted by output.

    The output mirrors the folder that was given: of a pattern, what precedes its first wildcard;
    of single and listed files, the deepest folder that holds all of them; `root` where given.

    Args:
        inputs: folders, BIDS data sets (their anat folders are searched), files, shell patterns.
        output: folder; where it lies below an input folder, nothing in it is taken as input.
        listed: more files, as from a list.
        root: folder that the output mirrors.
        filters: see `Filters`.
        suffix: what the label file's name adds to the scan's.

    Raises:
        InputError: nothing is found, or a participant has no scan.
        UsageError: two scans would share an output, or one lies outside `root`.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", suffix):
        raise UsageError(f"--bids-suffix {suffix}: letters, digits, - and _ only")
    filters = filters or Filters()
    base = None if root is None else _absolute(root)
    mine = _absolute(output)
    scans: dict[str, Scan] = {}
    for path, folder in _find(inputs, listed, suffix):
        below = base or folder
        if not path.is_relative_to(below):
            raise UsageError(f"{path}: not below --root {below}")
        if folder in mine.parents and mine in path.parents:
            continue
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{str(path)!a}: the name is not UTF-8; rename it") from error
        relative = path.relative_to(below)
        if filters.take(relative):
            labels = relative.with_name(default_name(path, suffix))
            scans.setdefault(str(path), Scan(labels.as_posix(), str(path)))
    _check(scans.values(), filters)
    return sorted(scans.values())


def take_shard(scans: Sequence[Scan], shard: Shard | None) -> Sequence[Scan]:
    """Return every n-th of the sorted scans, so that parts are alike in size and kind."""
    return scans if shard is None else scans[shard.index - 1 :: shard.count]


def _find(inputs: Iterable[str], listed: Iterable[str], suffix: str) -> Iterator[tuple[Path, Path]]:
    """Absolute paths, each with the folder it was found in."""
    single = [_absolute(name) for name in listed]
    for name in inputs:
        path = _absolute(name)
        if path.is_dir():
            found = anatomical_images(path) if is_dataset(path) else images_below(path)
            found = [scan for scan in found if not _is_label(scan, suffix)]
            if not found:
                raise InputError(f"{name}: no .nii or .nii.gz file in this folder")
            yield from ((scan, path) for scan in found)
        elif has_magic(name) and not path.exists():
            folder = _fixed_part(path)
            files = [
                match
                for match in find_files(folder, str(path.relative_to(folder)))
                if is_nifti(match) and not _is_label(match, suffix)
            ]
            if not files:
                raise InputError(f"{name}: matches no .nii or .nii.gz file")
            yield from ((file, folder) for file in files)
        else:
            single.append(path)
    if single:
        folder = Path(os.path.commonpath([path.parent for path in single]))
        yield from ((path, folder) for path in single)


def _is_label(path: Path, suffix: str) -> bool:
    """Where labels are written beside the scans, those of an earlier run."""
    stem = path.name.removesuffix(f"_{suffix}.nii.gz")
    names = [f"{stem}{ending}" for ending in NIFTI_SUFFIXES if stem != path.name]
    return is_label_file(path) or any(os.path.lexists(path.with_name(name)) for name in names)


def _fixed_part(pattern: Path) -> Path:
    parts = pattern.parts
    return Path(*parts[: next(i for i, part in enumerate(parts) if has_magic(part))])


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 - symbolic links keep their names


def _check(scans: Iterable[Scan], filters: Filters) -> None:
    owners: dict[str, str] = {}
    for scan in scans:
        other = owners.setdefault(scan.output, scan.input)
        if other != scan.input:
            raise UsageError(
                f"{scan.input} and {other} would both write {scan.output}; leave one out with "
                "--exclude, give --root, or label them into two folders"
            )
    if not owners:
        raise InputError("no scan is left to label; check the input and its filters")
    for subject in filters.subjects:
        if not any(re.search(rf"(^|/){re.escape(subject)}[/_]", output) for output in owners):
            raise InputError(f"no scan of participant {subject}")
