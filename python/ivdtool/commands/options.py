"""Options that several commands take, and the log that each of them can write."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ivdtool.errors import IvdtoolError, UsageError

__all__ = [
    "DOUBTFUL",
    "complain",
    "data_option",
    "device_option",
    "log",
    "log_option",
    "method_options",
    "model_option",
    "stop_log",
    "threads_option",
    "volume_option",
]

log = logging.getLogger("ivdtool")
DOUBTFUL = {False: {"refused"}, True: {"refused", "check"}}  # verdicts that end in exit code 1


def complain(error: BaseException) -> None:
    """Print an error as one line; the log gets its traceback."""
    text = str(error) if isinstance(error, IvdtoolError) else f"{type(error).__name__}: {error}"
    click.echo(f"Error: {' '.join(text.split())}", err=True)
    log.debug("traceback", exc_info=error)


def _start_log(_: click.Context, __: click.Parameter, log_file: Path | None) -> None:
    log.setLevel(logging.DEBUG)
    log.propagate = False
    if log_file is None:
        log.addHandler(logging.NullHandler())
        return
    try:
        handler = logging.FileHandler(log_file, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{log_file}: cannot write the log: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)


def stop_log() -> None:
    """Close the log of the command that has ended."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


log_option = click.option(
    "--log-file",
    type=click.Path(path_type=Path),
    expose_value=False,
    callback=_start_log,
    help="Write a log with tracebacks here.",
)
model_option = click.option(
    "--model", metavar="NAME|FILE", help="Model; the one in the package by default."
)
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
data_option = click.option(
    "--data",
    "datasets",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="BIDS data set with derivatives/labels; may be given several times.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads of the network."
)


Command = TypeVar("Command", bound=Callable[..., Any])


def method_options(command: Command) -> Command:
    """Add what a user may change of the method, for all scans alike."""
    for option in reversed(
        [
            click.option("--volume", metavar="N|mean", help="Which volume of a 4-D image."),
            click.option(
                "--slices", type=click.IntRange(1), help="Average this many slices, not ~6 mm."
            ),
            click.option(
                "--slab-mm", type=click.FloatRange(0, min_open=True), help="Thickness to average."
            ),
            click.option("--normalisation", type=click.Choice(["percentile", "minmax"])),
            click.option(
                "--middle",
                is_flag=True,
                help="Take the middle slices; do not look for the spine.",
            ),
            click.option(
                "--first-label", metavar="NAME", help="The topmost disc is this one, e.g. C2/C3."
            ),
            click.option("--n-discs", type=int, help="So many discs are to be found."),
            click.option(
                "--strict", is_flag=True, help="Exit with 1 where a verdict is check, too."
            ),
            click.option(
                "--keep-refused",
                is_flag=True,
                help="Write labels whose verdict is refused, too.",
            ),
        ]
    ):
        command = option(command)
    return command


def volume_option(value: str | None) -> int | str | None:
    """Return what --volume says.

    Raises:
        UsageError: it is neither a number nor ``mean``.
    """
    if value is None or value == "mean":
        return value
    if not value.isdecimal():
        raise UsageError(f"--volume takes a number or mean, not {value}")
    return int(value)
