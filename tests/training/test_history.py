"""Which epoch was best, and what is written about all of them."""

import csv
import math
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ivdtool.training.history import Recorder, draw_curves, epochs_without_gain, is_best


def row(error: float, median_mm: float = 1.0, step: int = 0) -> dict[str, float]:
    return {"step": step, "loss": 0.5, "error": error, "found": 1 - error, "median_mm": median_mm}


def test_the_least_error_is_best() -> None:
    assert is_best([row(0.5)])
    assert is_best([row(0.5, 1), row(0.4, 9)])
    assert not is_best([row(0.4), row(0.5), row(0.45)])


def test_ties_go_by_distance_then_to_the_later() -> None:
    assert is_best([row(0.5, 2), row(0.5, 1.9)])
    assert not is_best([row(0.5, 2), row(0.5, 2.1)])
    assert is_best([row(0.5, 2), row(0.5, math.nan), row(0.5, 2)])
    assert not is_best([row(0.5, 2), row(0.5, math.nan)])  # no disc where one was expected
    assert is_best([{"loss": 1.0}, {"loss": 2.0}])  # nothing to validate on: the last


def test_epochs_without_gain() -> None:
    errors = [0.9, 0.8, 0.8, 0.85, 0.7, 0.7]
    rows = [row(error) for error in errors]
    assert [epochs_without_gain(rows[:n]) for n in range(7)] == [0, 0, 0, 1, 2, 0, 1]
    assert epochs_without_gain([row(0.5, 2), row(0.5, 1)]) == 0


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in the reader
def test_a_second_recorder_replaces_what_the_first_lost(tmp_path: Path) -> None:
    """The checkpoint of step 2 is the last one of a run that went on to step 5."""
    rows = [row(0.5, step=2), row(0.4, step=4)]
    first = Recorder(tmp_path, [], 0)
    for step in range(1, 6):
        first.step(step, 1.0)
        if step in (2, 4):
            first.epoch(rows[: step // 2])
    first.close()
    assert [r["step"] for r in read_csv(tmp_path / "metrics.csv")] == ["2", "4"]
    second = Recorder(tmp_path, rows[:1], 2)
    assert [r["step"] for r in read_csv(tmp_path / "metrics.csv")] == ["2"]
    for step in (3, 4):
        second.step(step, 2.0)
    second.epoch(rows)
    second.close()
    assert read_csv(tmp_path / "metrics.csv") == [
        {"step": "2", "loss": "0.5", "error": "0.5", "found": "0.5", "median_mm": "1"},
        {"step": "4", "loss": "0.5", "error": "0.4", "found": "0.6", "median_mm": "1"},
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("step/loss")] == [
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 2),
    ]
    assert [e.step for e in events.Scalars("epoch/error")] == [2, 4]


@pytest.mark.parametrize("loss", [0.5, 0.0, math.nan])
def test_curves(loss: float, tmp_path: Path) -> None:
    rows = [{**row(0.5, math.nan, 10), "loss": loss}, row(0.4, 1.5, 20)]
    draw_curves(rows, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1440, 480)
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 50
