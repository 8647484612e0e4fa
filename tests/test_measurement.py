"""Skeletons from labelled data sets, their files and commands."""

from pathlib import Path

import numpy as np
import pytest

from ivdtool.cli import main
from ivdtool.errors import InputError
from ivdtool.measurement import (
    describe_skeleton,
    measure_skeleton,
    read_skeleton,
    write_skeleton,
)
from ivdtool.phantom_dataset import write_phantoms


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 3, 1, region="lumbar", spacing_mm=2.0)
    return folder


def test_a_data_set_becomes_a_file(dataset: Path, tmp_path: Path) -> None:
    measured = measure_skeleton([dataset])
    assert measured.labels[-1] == 25
    assert (np.diff(measured.mean_mm[:, 0]) > 15).all()
    write_skeleton(measured, tmp_path / "skeleton.json")
    again = read_skeleton(tmp_path / "skeleton.json")
    assert again.to_dict() == measured.to_dict()
    text = describe_skeleton(again)
    assert len(text.splitlines()) == len(measured.labels) + 2
    assert "L5/S1" in text


def test_commands(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "skeleton.json"
    for arguments in (
        ["skeleton", "build", "--data", str(dataset), "-o", str(file)],
        ["skeleton", "show", str(file)],
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert not exit_.value.code
        assert "L4/L5" in capsys.readouterr().out


def test_no_labels_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no mean skeleton"):
        measure_skeleton([tmp_path])


@pytest.mark.parametrize("text", ["", "[]", "{}", "nonsense", "[" * 100_000], ids=len)
def test_damaged_files_are_an_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "skeleton.json"
    file.write_text(text)
    with pytest.raises(InputError, match="no skeleton"):
        read_skeleton(file)
    with pytest.raises(InputError, match="No such file"):
        read_skeleton(tmp_path / "absent.json")


def test_real_necks_and_loins_hang_together(data: Path) -> None:
    """Each image shows a part; the table of docs/skeleton.md is made of this."""
    measured = measure_skeleton([data / "spine-mri"])
    assert measured.labels == tuple(range(3, 26))
    spacing = np.hypot(*np.diff(measured.mean_mm, axis=0).T)
    assert 14 < spacing[:5].mean() < 20
    assert 30 < spacing[-5:-1].mean() < 38
