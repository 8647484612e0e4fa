"""`ivdtool phantom`."""

from pathlib import Path
from typing import Any

import click

from ivdtool.commands.options import log_option

__all__ = ["phantom"]


@click.command()
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--region", type=click.Choice(["cervical", "thoracic", "lumbar", "whole"]))
@click.option("--contrast", type=click.Choice(["T1w", "T2w", "STIR", "dixon"]))
@click.option("--spacing-mm", type=click.FloatRange(0.3, 3), default=1.0, show_default=True)
@click.option(
    "--slices",
    type=click.IntRange(1),
    metavar="N",
    help="Draw only N thin slices about the middle: enough for training, and faster.",
)
@log_option
def phantom(
    output: Path,
    count: int,
    seed: int,
    region: Any,
    contrast: Any,
    spacing_mm: float,
    slices: int | None,
) -> None:
    """Write synthetic spine volumes with exact labels as a BIDS data set."""
    from ivdtool.phantom_dataset import write_phantoms

    write_phantoms(
        output, count, seed, region=region, contrast=contrast, spacing_mm=spacing_mm, slices=slices
    )
    click.echo(f"{output}: {count} phantom{'s' if count > 1 else ''}")
