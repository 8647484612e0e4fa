"""Fixtures that several test files share."""

import os
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings
from tests.stacks import load_tool

from ivdtool.phantom import Phantom, PhantomConfig, make_phantom

# A busy machine fails no test, and neither does one that checks every memory access.
settings.register_profile("unhurried", parent=settings(), deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data."""
    folder = Path(os.environ.get("IVDTOOL_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; IVDTOOL_DATA names another place")
    return folder


@pytest.fixture(scope="session")
def scorer(data: Path) -> ModuleType:
    """An evaluation script written independently of ivdtool."""
    return load_or_skip(data, "score_labels")


@pytest.fixture(scope="session")
def scorer_script(scorer: ModuleType) -> Path:
    """The same as a file to run."""
    assert scorer.__file__ is not None
    return Path(scorer.__file__)


@pytest.fixture(scope="session")
def stacks(data: Path) -> ModuleType:
    """A generator of search problems written independently of ivdtool."""
    return load_or_skip(data, "synthetic_stacks")


def load_or_skip(data: Path, name: str) -> ModuleType:
    try:
        return load_tool(data, name)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    """A small neck whose spine lies 8 mm beside the middle of the volume."""
    return make_phantom(
        PhantomConfig(
            seed=5,
            region="cervical",
            spacing_mm=1.5,
            thickness_mm=3.0,
            slices=15,
            width_mm=150.0,
            lateral_mm=8.0,
            scoliosis_mm=1.0,
            orientation="RAS",
        )
    )
