"""`ivdtool compare`."""

from pathlib import Path

import click

from ivdtool.commands.options import device_option, log_option, threads_option
from ivdtool.errors import UsageError

__all__ = ["compare"]


def _seeds(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of whole numbers like 0,1,2") from error
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise click.BadParameter("seeds must differ, and not be negative")
    return seeds


@click.command()
@click.option(
    "--data",
    "dataset",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="BIDS data set with derivatives/labels, and a column split in participants.tsv.",
)
@click.option(
    "--methods",
    default="all",
    show_default=True,
    metavar="NAME,NAME,...",
    help="Presets (see `ivdtool presets`) or TOML files; all: the rows of the papers' table.",
)
@click.option(
    "--seeds",
    default="0,1,2",
    show_default=True,
    metavar="N,N,...",
    callback=_seeds,
    help="A run of every method for each.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="Of training for every run, turned into steps by timing a few beforehand.",
)
@click.option("--steps", type=click.IntRange(1), help="For every run, instead of --minutes.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option(
    "--split",
    type=click.Choice(["test", "val"]),
    default="test",
    show_default=True,
    help="Images to score. On test with each run's best checkpoint by val, on val with the last.",
)
@device_option
@threads_option
@log_option
def compare(
    dataset: Path,
    methods: str,
    seeds: tuple[int, ...],
    minutes: float | None,
    steps: int | None,
    output: Path,
    split: str,
    device: str,
    threads: int | None,
) -> None:
    """Train methods with equal budgets on one data set, and tabulate how well they do.

    Writes comparison.md, .csv, .json and .png into the output folder, beside the runs. What is
    finished there is not done again: after an interruption, give the same command.
    """
    from ivdtool.comparison import TABLE, Budget, compare_methods
    from ivdtool.comparison_report import describe_comparison, write_comparison
    from ivdtool.training.engine import require_extra

    if (minutes is None) == (steps is None):
        raise UsageError("give the budget of every run: either --minutes or --steps")
    require_extra()
    names = TABLE if methods == "all" else tuple(name.strip() for name in methods.split(","))
    comparison = compare_methods(
        dataset,
        names,
        seeds,
        Budget(minutes, steps),
        output,
        split=split,
        device=device,
        threads=threads,
        tell=lambda line: click.echo(line, err=True),
    )
    write_comparison(comparison, output)
    click.echo(describe_comparison(comparison))
    click.echo(f"\nreport: {output / 'comparison.md'}")
