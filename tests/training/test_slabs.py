"""A prepared image is found again, by content; a damaged entry is made anew."""

import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ivdtool.discs import ALL_LABELS
from ivdtool.errors import UsageError
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.training import slabs
from ivdtool.training.dataset import Case, Source, find_sources, load_case
from ivdtool.training.slabs import SlabConfig, prepare_cases

CONFIG = SlabConfig(PreprocessingConfig(size_multiple=1), ALL_LABELS, (-2.0, 0.0, 2.0))


@pytest.fixture
def sources(spines: Path, tmp_path: Path) -> list[Source]:
    """Of two different spines, in a copy of their data set."""
    shutil.copytree(spines, tmp_path / "data")
    return find_sources(tmp_path / "data", ["train"])


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entries(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.npz"))


def same(first: Case, second: Case) -> bool:
    return (
        (first.source, first.labels, first.unknown)
        == (second.source, second.labels, second.unknown)
        and np.array_equal(first.points, second.points)
        and np.array_equal(first.certain, second.certain)
        and len(first.planes) == len(second.planes)
        and all(map(np.array_equal, first.planes, second.planes))
    )


def refuse(*arguments: object) -> Case:
    raise AssertionError(f"decoded again: {arguments}")


def test_entries_hold_what_was_loaded(
    sources: list[Source], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = [
        load_case(source, CONFIG.preprocessing, CONFIG.channels, CONFIG.offsets_mm)
        for source in sources
    ]
    made, skipped = prepare_cases(sources, CONFIG, cache)
    assert not skipped
    monkeypatch.setattr(slabs, "load_case", refuse)
    seen: list[int] = []
    found, _ = prepare_cases(sources, CONFIG, cache, lambda: seen.append(1))
    assert len(seen) == len(entries(cache)) == 2
    for cases in (made, found):
        assert all(map(same, cases, loaded))
        assert [case.digest for case in cases] == [source.digest() for source in sources]
        assert {plane.dtype for case in cases for plane in case.planes} == {np.dtype(np.float16)}


def test_cases_travel_without_their_pixels(sources: list[Source], cache: Path) -> None:
    """Workers read them where they are."""
    (case, _), _ = prepare_cases(sources, CONFIG, cache)
    packed = pickle.dumps(case)
    assert len(packed) < case.planes[0].nbytes / 5
    assert same(pickle.loads(packed), case)


def test_what_changes_an_entry(
    sources: list[Source], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources[0]

    def count(config: SlabConfig = CONFIG) -> int:
        prepare_cases([source], config, cache)
        return len(entries(cache))

    assert count() == 1
    assert count(replace(CONFIG, offsets_mm=(0.0,))) == 2
    assert count(replace(CONFIG, channels=(4, 5, 6))) == 3
    assert count(replace(CONFIG, preprocessing=PreprocessingConfig(slab_mm=2.0))) == 4
    sidecar = source.labels.with_name(source.labels.name.replace(".nii.gz", ".json"))
    for files, path in enumerate((source.image, source.labels, sidecar), 5):
        path.write_bytes(path.read_bytes() + (b" " if path == sidecar else b"\0"))
        assert count() == files
    monkeypatch.setattr(slabs, "_code_version", lambda: "of another version")
    assert count() == 8
    # the same image elsewhere is the same image
    moved = source.image.rename(source.image.with_name("moved.nii.gz"))
    source = replace(source, image=moved)
    assert count() == 8


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"",
        lambda good: b"something else",
        lambda good: good[: len(good) // 2],
        lambda good: good[:3000] + bytes([good[3000] ^ 1]) + good[3001:],
        lambda good: good.replace(b"points", b"poemts"),
    ],
)
def test_damaged_entries(
    damage: Callable[[bytes], bytes], sources: list[Source], cache: Path
) -> None:
    prepare_cases(sources[:1], CONFIG, cache)
    (entry,) = entries(cache)
    good = entry.read_bytes()
    entry.write_bytes(damage(good))
    (case,), _ = prepare_cases(sources[:1], CONFIG, cache)
    assert entry.read_bytes() == good
    planes = load_case(sources[0], CONFIG.preprocessing, ALL_LABELS, CONFIG.offsets_mm).planes
    assert all(map(np.array_equal, case.planes, planes))


def test_unusable_images_are_told(sources: list[Source], cache: Path) -> None:
    broken, good = sources
    broken.image.write_bytes(b"no image")
    cases, skipped = prepare_cases([broken, good], CONFIG, cache)
    assert [case.source for case in cases] == [good]
    assert list(skipped) == [broken]
    assert str(broken.image) in skipped[broken]
    assert len(entries(cache)) == 1
    cases, skipped = prepare_cases([good], replace(CONFIG, channels=(20, 21)), cache)
    assert not cases
    assert "no disc label between 20 and 21" in skipped[good]


def test_runs_that_begin_at_once_share_a_cache(sources: list[Source], cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(prepare_cases, sources, CONFIG, cache) for _ in range(8)]
    first, *others = (run.result()[0] for run in runs)
    assert all(all(map(same, first, cases)) for cases in others)
    assert len(entries(cache)) == len(list(cache.rglob("*.*"))) == 2


def test_a_cache_that_cannot_be(sources: list[Source], cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(UsageError, match="cannot make this folder"):
        prepare_cases(sources, CONFIG, cache)
