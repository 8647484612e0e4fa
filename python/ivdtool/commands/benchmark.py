"""`ivdtool benchmark`."""

from pathlib import Path

import click

from ivdtool.commands.options import log_option
from ivdtool.errors import UsageError

__all__ = ["benchmark"]


@click.command()
@click.argument("stages", nargs=-1, metavar="[heatmaps|candidates|search|pipeline]...")
@click.option("--quick", is_flag=True, help="Small sizes and few rounds: a check, not a figure.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures.")
@click.option("--plot", type=click.Path(path_type=Path), help="PNG of search time over K^V.")
@log_option
def benchmark(
    stages: tuple[str, ...],
    quick: bool,
    json_file: Path | None,
    plot: Path | None,
) -> None:
    """Time the stages beside floors, the papers' algorithms and other libraries.

    All in one run, in turns, every answer checked. Without a stage, all of them. Other libraries
    take part where they are installed: pip install 'ivdtool[benchmark]'.
    """
    from ivdtool.benchmark.report import (
        STAGES,
        format_report,
        plot_search,
        run_benchmarks,
        write_reports,
    )

    if unknown := sorted(set(stages) - set(STAGES)):
        raise UsageError(f"no stage is called {unknown[0]}; known are {', '.join(STAGES)}")
    if plot is not None and stages and "search" not in stages:
        raise UsageError("--plot shows the search; name it among the stages")
    reports = []
    for report in run_benchmarks(stages or STAGES, quick):
        click.echo(format_report(report) + "\n")
        reports.append(report)
    if json_file is not None:
        write_reports(reports, json_file)
    if plot is not None:
        plot_search(reports, plot)
