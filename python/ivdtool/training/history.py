"""What a run measured, epoch by epoch: which one was best, metrics.csv, TensorBoard, curves."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ivdtool.diagrams import new_figure, save_figure
from ivdtool.files import atomic_write

__all__ = ["Recorder", "draw_curves", "epochs_without_gain", "is_best"]

Row = Mapping[str, float]


def is_best(rows: Sequence[Row]) -> bool:
    """Whether no epoch before was better than the last one."""
    return _badness(rows[-1]) <= min(map(_badness, rows))


def epochs_without_gain(rows: Sequence[Row]) -> int:
    """Return how many epochs have passed since the one that was better than all before it."""
    if not rows:
        return 0
    badness = [_badness(row) for row in rows]
    return len(rows) - 1 - badness.index(min(badness))


def _badness(row: Row) -> tuple[float, float]:
    """The label-aware error on val, then the distance of the discs that were found."""
    distance = row.get("median_mm", math.nan)
    return row.get("error", 1.0), math.inf if math.isnan(distance) else distance


class Recorder:
    """Writes ``metrics.csv`` and TensorBoard's files of a run.

    The rows are those of the checkpoint: what a stopped run wrote after it is written over.
    """

    def __init__(self, run: Path, rows: Sequence[Row], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        self._write_metrics(rows)

    def step(self, step: int, loss: float) -> None:
        """Note what a single step measured."""
        self._board.add_scalar("step/loss", loss, step)

    def epoch(self, rows: Sequence[Row]) -> None:
        """Note the last of `rows`."""
        for name, value in rows[-1].items():
            self._board.add_scalar(f"epoch/{name}", value, int(rows[-1]["step"]))
        self._board.flush()
        self._write_metrics(rows)

    def close(self) -> None:
        """Write what is left."""
        self._board.close()

    def _write_metrics(self, rows: Sequence[Row]) -> None:
        names = dict.fromkeys(name for row in rows for name in row)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, restval="nan")
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
        with atomic_write(self._run / "metrics.csv") as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw loss, label-aware figures and distance on val over the steps, as PNG."""
    steps = [row["step"] for row in rows]
    best = max(i for i in range(len(rows)) if is_best(rows[: i + 1]))
    figure = new_figure(12, 4)
    panels = figure.subplots(1, 3)
    for axes, title, names in (
        (panels[0], "training loss", ("loss",)),
        (panels[1], "discs of val, share of those annotated", ("found", "shifted", "false")),
        (panels[2], "median distance on val, mm", ("median_mm",)),
    ):
        for name in names:
            values = [row.get(name, math.nan) for row in rows]
            axes.plot(steps, values, ".-", label=name)
        axes.axvline(steps[best], color="0.6", linestyle=":", label="best")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend()
    if all(row["loss"] > 0 for row in rows):
        panels[0].set_yscale("log")
    save_figure(figure, path)
