"""`ivdtool skeleton`."""

from pathlib import Path

import click

from ivdtool.commands.options import data_option, log_option

__all__ = ["skeleton"]


@click.group()
def skeleton() -> None:
    """Mean skeletons: where discs lie relative to each other."""


@skeleton.command("build")
@data_option
@click.option("--split", help="Only this split of participants.tsv.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="FILE.json")
@log_option
def build_skeleton(datasets: tuple[Path, ...], split: str | None, output: Path) -> None:
    """Average the certain discs of labelled data sets; each image adds what it shows."""
    from ivdtool.measurement import describe_skeleton, measure_skeleton, write_skeleton

    measured = measure_skeleton(datasets, split)
    write_skeleton(measured, output)
    click.echo(describe_skeleton(measured))


@skeleton.command("show")
@click.argument("source", required=False, metavar="[MODEL|FILE.json]")
@log_option
def show_skeleton(source: str | None) -> None:
    """Print spacings, spreads and missing rates of a model's skeleton or a built one."""
    from ivdtool.inference import load_model
    from ivdtool.measurement import describe_skeleton, read_skeleton

    if source is not None and source.endswith(".json"):
        click.echo(describe_skeleton(read_skeleton(source)))
    else:
        click.echo(describe_skeleton(load_model(source, "cpu").info.skeleton))
