"""Diagrams by matplotlib, which is an extra: imported when the first one is drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

from ivdtool.errors import UsageError
from ivdtool.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_matplotlib", "new_figure", "save_figure"]


def check_matplotlib() -> None:
    """Raise UsageError where matplotlib is not installed."""
    new_figure(1, 1)


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of so many inches, which no window shows.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("diagrams need matplotlib: pip install 'ivdtool[report]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG.

    Raises:
        UsageError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
