"""Facts about the project as a whole that nothing else would notice."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import ivdtool
from ivdtool import _core, errors

ROOT = Path(__file__).parents[1]
MAX_BYTES = 12 * 2**20


def project_files() -> list[Path]:
    """What is, or would be, under version control."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others"]
    command.append("--exclude-standard")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in files if path.is_file()]


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert ivdtool.__version__ == project["version"]
    assert _core.__version__ == project["version"]


def test_the_tests_need_what_training_needs() -> None:
    """A group cannot include an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    assert project["dependency-groups"]["train"] == extras["train"]


def test_public_names_exist() -> None:
    for name in ivdtool.__all__:
        assert getattr(ivdtool, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        ivdtool.nonsense  # noqa: B018


def test_types_are_shipped() -> None:
    assert Path(ivdtool.__file__).with_name("py.typed").is_file()


def test_exit_codes() -> None:
    """Scripts rely on them; 0 is success and 130 an interrupt."""
    codes = {
        kind.__name__: kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.IvdtoolError)
    }
    assert codes == {
        "IvdtoolError": 1,
        "NoDiscError": 1,
        "RefusedError": 1,
        "UsageError": 2,
        "InputError": 3,
        "ModelError": 4,
    }


def test_no_large_files() -> None:
    large = [path for path in project_files() if path.stat().st_size > MAX_BYTES]
    assert not large


def test_no_paths_of_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.~*-])/(?:work|root|home|Users)/\w")
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or a model file
        found += [
            f"{path.name}: {line.strip()}" for line in text.splitlines() if pattern.search(line)
        ]
    assert not found
