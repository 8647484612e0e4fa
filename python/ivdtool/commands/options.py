"""Options that several commands take, and the log that each of them can write."""

import logging
from pathlib import Path

import click

from ivdtool.errors import IvdtoolError, UsageError

__all__ = [
    "complain",
    "data_option",
    "device_option",
    "log",
    "log_option",
    "model_option",
    "stop_log",
    "threads_option",
]

log = logging.getLogger("ivdtool")


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
