"""Prepared images on disk, keyed by content: a second run decodes no volume again."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ivdtool import label_files, preprocessing, volumes
from ivdtool.errors import InputError, UsageError
from ivdtool.files import atomic_write, check_archive, make_folder
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.training import dataset
from ivdtool.training.dataset import Case, Source, load_case

__all__ = ["SlabConfig", "prepare_cases"]

MAX_THREADS = 8  # each holds a whole volume in memory


@dataclass(frozen=True)
class SlabConfig:
    """What is prepared of an image; see `load_case`."""

    preprocessing: PreprocessingConfig
    channels: tuple[int, ...]
    offsets_mm: tuple[float, ...] = (0.0,)


def prepare_cases(
    sources: Sequence[Source],
    config: SlabConfig,
    cache: Path,
    done: Callable[[], None] = lambda: None,
) -> tuple[list[Case], dict[Source, str]]:
    """Return the cases of `sources`, in order, and why there is none of some.

    Slabs stay in `cache` until they are asked for, so that neither thousands of images nor the
    processes that draw from them need memory. Entries that are damaged, or made by other code or
    with other settings, are made anew. Any number of runs may share the folder.

    Args:
        sources: labelled images.
        config: see `SlabConfig`.
        cache: folder of the prepared images; made where it is not there.
        done: called after every image.

    Raises:
        UsageError: `cache` cannot be written.
    """
    cases: list[Case] = []
    skipped: dict[Source, str] = {}
    prepare = partial(_prepare, config=config, cache=cache)
    # threads: unpacking and hashing, which take most of the time, run side by side in them
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        for source, case in zip(sources, pool.map(prepare, sources), strict=True):
            if isinstance(case, Case):
                cases.append(case)
            else:
                skipped[source] = case
            done()
    return cases, skipped


def _prepare(source: Source, config: SlabConfig, cache: Path) -> Case | str:
    """The case of a source, or why there is none."""
    try:
        digest = source.digest()
        entry = _entry(digest, config, cache)
        case = _read_entry(entry, source)
        if case is None:
            _write_entry(
                entry,
                load_case(source, config.preprocessing, config.channels, config.offsets_mm),
            )
            case = _read_entry(entry, source)
    except InputError as error:
        return str(error)
    if case is None:
        raise UsageError(f"{entry}: cannot be read back; choose another --cache")
    return replace(case, digest=digest)


def _entry(digest: str, config: SlabConfig, cache: Path) -> Path:
    key = json.dumps([digest, asdict(config), _code_version()], sort_keys=True)
    name = hashlib.sha256(key.encode()).hexdigest()
    return cache / name[:2] / f"{name[2:]}.npz"


@lru_cache
def _code_version() -> str:
    """A hash of the modules that make slabs: another version's entries must not be taken."""
    digest = hashlib.sha256()
    for module in (dataset, label_files, preprocessing, volumes):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class _StoredPlanes:
    """Slabs that are read when they are asked for; the archive's checksums are checked then."""

    path: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> npt.NDArray[np.float16]:
        with np.load(self.path) as archive:
            plane: npt.NDArray[np.float16] = archive[f"plane_{index}"]
        return plane

    def __iter__(self) -> Iterator[npt.NDArray[np.float16]]:
        return (self[index] for index in range(self.count))


def _read_entry(path: Path, source: Source) -> Case | None:
    """The case in an entry; None where it is missing or damaged."""
    try:
        check_archive(path.read_bytes())
        with np.load(path) as archive:
            planes = sum(name.startswith("plane_") for name in archive.files)
            return Case(
                source=source,
                planes=_StoredPlanes(path, planes),
                labels=tuple(archive["labels"].tolist()),
                points=archive["points"],
                certain=archive["certain"],
                unknown=frozenset(archive["unknown"].tolist()),
            )
    except (OSError, ValueError, KeyError):
        return None


def _write_entry(path: Path, case: Case) -> None:
    make_folder(path.parent)
    planes = {f"plane_{index}": plane for index, plane in enumerate(case.planes)}
    with atomic_write(path) as temporary:
        np.savez(
            temporary,
            allow_pickle=False,
            labels=np.array(case.labels),
            points=case.points,
            certain=case.certain,
            unknown=np.array(sorted(case.unknown), dtype=np.int64),
            **planes,
        )
