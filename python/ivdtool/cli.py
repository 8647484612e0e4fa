"""The command line: from arguments to an exit code. The commands are in `ivdtool.commands`."""

import sys
from collections.abc import Sequence
from io import TextIOWrapper

import click

from ivdtool import __version__
from ivdtool.commands.batch import batch
from ivdtool.commands.benchmark import benchmark
from ivdtool.commands.check_data import check_data
from ivdtool.commands.compare import compare
from ivdtool.commands.evaluate import evaluate
from ivdtool.commands.export import export
from ivdtool.commands.label import label
from ivdtool.commands.model import show_model
from ivdtool.commands.options import complain, stop_log
from ivdtool.commands.phantom import phantom
from ivdtool.commands.presets import presets
from ivdtool.commands.skeleton import skeleton
from ivdtool.commands.train import train
from ivdtool.errors import IvdtoolError

__all__ = ["cli", "main"]

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: an error is one line and its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # file names need not be text: they get escapes
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        return int(cli.main(arguments, "ivdtool", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except IvdtoolError as error:
        complain(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: no user should read a traceback
        complain(error)
        return 1
    finally:
        stop_log()


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from ivdtool import _core

    if _core.__version__ != __version__:
        raise IvdtoolError(
            f"Python package {__version__} with compiled core {_core.__version__}; "
            "install ivdtool again"
        )
    click.echo(f"ivdtool {__version__}")
    context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Find and name every intervertebral disc in a sagittal spine MRI."""


COMMANDS = (
    label, batch, train, presets, compare, export, evaluate, check_data, phantom, show_model,
    benchmark, skeleton,
)  # fmt: skip
for command in COMMANDS:
    cli.add_command(command)
