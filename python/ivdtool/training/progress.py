"""What a user sees of a run: bars with the time left on a terminal, a line per epoch anywhere."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["Progress", "terminal_progress"]


class Progress:
    """Takes what a run tells, and shows nothing but warnings."""

    def images(self, total: int) -> None:
        """So many images will be prepared."""

    def image(self) -> None:
        """One image is prepared."""

    def warn(self, text: str) -> None:
        """Something is doubtful."""
        click.echo(f"Warning: {text}", err=True)

    def start(self, step: int, steps: int) -> None:
        """Training goes from `step` to `steps`."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A step is done; with ``error`` among the metrics, an epoch."""


class _TerminalProgress(Progress):
    """Moves `bars`, and prints a line per epoch."""

    def __init__(self, bars: "Bars") -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def images(self, total: int) -> None:
        self._begin("preparing images", total, 0)

    def image(self) -> None:
        assert self._task is not None
        self._bars.advance(self._task)

    def start(self, step: int, steps: int) -> None:
        self._begin("training", steps, step)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        assert self._task is not None
        self._bars.update(
            self._task, completed=step, description=f"training, loss {metrics['loss']:.4f}"
        )
        if "error" in metrics:
            click.echo(_epoch_line(metrics))

    def _begin(self, title: str, total: int, completed: int) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(title, total=total, completed=completed)


def _epoch_line(metrics: Mapping[str, float]) -> str:
    return (
        f"step {metrics['step']:.0f}: loss {metrics['loss']:.4f}, val found "
        f"{metrics['found']:.3f}, false {metrics['false']:.3f}, shifted {metrics['shifted']:.3f}, "
        f"median {metrics['median_mm']:.2f} mm; {metrics['seconds']:.0f} s, "
        f"{metrics['waiting_share']:.1%} of them waiting for data"
    )


@contextmanager
def terminal_progress() -> Iterator[Progress]:
    """Show a run on the terminal; where there is none, as plain lines."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Bars(
        *columns,
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bars:
        yield _TerminalProgress(bars)
