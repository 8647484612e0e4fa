"""`ivdtool evaluate`."""

from pathlib import Path

import click

from ivdtool.commands.options import log_option

__all__ = ["evaluate"]


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("dataset", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--split", help="Only this split of participants.tsv.")
@click.option("--by", default="region", show_default=True, help="Column to group by.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write one row per case.")
@log_option
def evaluate(
    predictions: Path,
    dataset: Path,
    split: str | None,
    by: str,
    json_file: Path | None,
    csv_file: Path | None,
) -> None:
    """Compare PREDICTIONS, a folder of label files, with a labelled BIDS DATASET.

    Label-aware figures first; the papers' (label ignored) in the last columns.
    """
    from ivdtool.reports import evaluate_folder, figures, format_table, write_cases, write_figures

    groups = evaluate_folder(predictions, dataset, split, by)
    click.echo(format_table({name: figures(summary) for name, summary in groups.items()}))
    if json_file is not None:
        write_figures(groups, json_file)
    if csv_file is not None:
        write_cases(groups["all"], csv_file)
