"""`ivdtool evaluate`."""

from pathlib import Path

import click

from ivdtool.commands.options import log_option

__all__ = ["evaluate"]


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("dataset", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--split", help="Only this split of participants.tsv.")
@click.option(
    "--by",
    multiple=True,
    metavar="COLUMN",
    help="Group by this column of participants.tsv, or by contrast, the name of the image; may be "
    "given several times. By default: region, contrast, source.",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write Markdown, CSV, JSON, diagrams and pictures of the worst images into.",
)
@click.option(
    "--worst", type=click.IntRange(0), default=6, show_default=True, help="Images in the report."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write one row per case.")
@click.option(
    "--resamples",
    type=click.IntRange(0),
    default=1000,
    show_default=True,
    help="Bootstrap samples for the 95 % intervals, by subject; 0 for none.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@log_option
def evaluate(
    predictions: Path,
    dataset: Path,
    split: str | None,
    by: tuple[str, ...],
    report: Path | None,
    worst: int,
    json_file: Path | None,
    csv_file: Path | None,
    resamples: int,
    seed: int,
) -> None:
    """Compare PREDICTIONS, a folder of label files, with a labelled BIDS DATASET.

    Label-aware figures first, the papers' (label ignored) second, then by level. An image without a
    prediction counts as all missed.
    """
    from ivdtool.files import check_place
    from ivdtool.reports import describe_evaluation, write_cases, write_figures
    from ivdtool.scoring import evaluate_folder

    for file in filter(None, (json_file, csv_file)):
        check_place(file)
    if report is not None:
        from ivdtool.diagrams import check_matplotlib
        from ivdtool.report_folder import write_report

        check_matplotlib()
    evaluation = evaluate_folder(predictions, dataset, split, by, resamples, seed)
    for warning in evaluation.warnings:
        click.echo(f"Warning: {warning}", err=True)
    click.echo(describe_evaluation(evaluation))
    if json_file is not None:
        write_figures(evaluation, json_file)
    if csv_file is not None:
        write_cases(evaluation, csv_file)
    if report is not None:
        write_report(evaluation, report, worst)
        click.echo(f"\nreport: {report / 'report.md'}")
