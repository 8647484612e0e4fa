"""`ivdtool batch`."""

import os
import signal
import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ivdtool.commands.options import (
    DOUBTFUL,
    device_option,
    log,
    log_option,
    method_options,
    model_option,
    volume_option,
)
from ivdtool.errors import InputError, UsageError
from ivdtool.modelfile import BATCH_SIZE

if TYPE_CHECKING:
    from ivdtool.batch.run import Executor
    from ivdtool.batch.worker import BatchConfig, Outcome

__all__ = ["batch"]


@click.command()
@click.argument("inputs", nargs=-1)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder.",
)
@click.option(
    "--list", "list_file", metavar="FILE", help="More scans, one path per line; - for stdin."
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that the output mirrors; by default the one given, or the deepest that holds all.",
)
@click.option("--participant-label", "participants", multiple=True, help="Only this subject.")
@click.option("--suffix", "suffixes", multiple=True, help="Only scans of this suffix, e.g. T2w.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out paths or names.")
@click.option(
    "--bids-suffix",
    default="label-discs_dlabel",  # files.LABEL_SUFFIX, whose module takes start-up time
    show_default=True,
    help="What names of label files add to the scan's.",
)
@click.option("--resume", is_flag=True, help="Go on: label what is new, changed or not done.")
@click.option("--retry-failed", is_flag=True, help="Like --resume, and try again what failed.")
@click.option("--hash", "by_hash", is_flag=True, help="Tell scans by content, not time of change.")
@click.option("--dry-run", is_flag=True, help="Print what would be done.")
@click.option("--shard", metavar="I/N", help="Only part I of N, for arrays of cluster jobs.")
@click.option(
    "--executor", type=click.Choice(["local", "dask"]), default="local", show_default=True
)
@click.option("--scheduler", metavar="ADDRESS", help="Of a Dask cluster; else one is started here.")
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Worker processes; by default one per CPU, on CUDA one.",
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="CPU threads of the network, in each worker.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=BATCH_SIZE,
    show_default=True,
    help="Most images of a scan that go through the network at once.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=600.0,
    show_default=True,
    help="Seconds after which a scan fails.",
)
@click.option("--qc", is_flag=True, help="Write a picture beside every label image.")
@click.option("--slicer", is_flag=True, help="Write point lists for 3D Slicer, .mrk.json.")
@click.option("--reproducible", is_flag=True, help="Leave dates out: same input, same bytes.")
@model_option
@device_option
@method_options
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of a line.")
@click.option("-q", "--quiet", is_flag=True, help="Print no progress.")
@log_option
def batch(
    inputs: tuple[str, ...],
    output: Path,
    list_file: str | None,
    root: Path | None,
    participants: tuple[str, ...],
    suffixes: tuple[str, ...],
    exclude: tuple[str, ...],
    bids_suffix: str,
    resume: bool,
    retry_failed: bool,
    by_hash: bool,
    dry_run: bool,
    shard: str | None,
    executor: str,
    scheduler: str | None,
    jobs: int | None,
    threads: int,
    batch_size: int,
    timeout: float,
    qc: bool,
    slicer: bool,
    reproducible: bool,
    model: str | None,
    device: str,
    volume: str | None,
    slices: int | None,
    slab_mm: float | None,
    normalisation: str | None,
    middle: bool,
    first_label: str | None,
    n_discs: int | None,
    strict: bool,
    keep_refused: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Label all scans of INPUTS: folders, BIDS data sets, NIfTI files, quoted patterns.

    The output folder mirrors the input and gets a manifest of what became of every scan,
    summary.csv, summary.json and discs.csv. One bad scan does not stop the others.
    """
    from ivdtool.batch.inputs import Filters, Shard, find_scans, take_shard
    from ivdtool.batch.progress import Progress, terminal_progress
    from ivdtool.batch.run import Resume, open_plan, run_batch
    from ivdtool.batch.worker import BatchConfig
    from ivdtool.bids import is_dataset
    from ivdtool.constraints import Constraints
    from ivdtool.modelfile import model_path

    Constraints.parse((), first_label, n_discs)  # a slip shows before anything is written
    part = None if shard is None else Shard.parse(shard)
    if scheduler is not None and executor != "dask":
        raise UsageError("--scheduler is for --executor dask")
    found = find_scans(
        inputs,
        output,
        listed=_read_list(list_file),
        root=root,
        filters=Filters(participants, suffixes, exclude),
        suffix=bids_suffix,
    )
    scans = take_shard(found, part)
    config = BatchConfig(
        model=str(model_path(model).resolve()),
        device=device,
        threads=threads,
        batch_size=batch_size,
        volume=volume_option(volume),
        slices=slices,
        slab_mm=slab_mm,
        normalisation=normalisation,
        middle=middle,
        first_label=first_label,
        n_discs=n_discs,
        keep_refused=keep_refused,
        reproducible=reproducible,
        slicer=slicer,
        qc=qc,
    )
    how = Resume(resume or retry_failed, retry_failed, by_hash)
    output = output.absolute()
    if dry_run:
        with ExitStack() as stack:
            _, plan = open_plan(scans, output, config, how, part, stack, dry=True)
        for scan, _ in plan.label:
            click.echo(f"label {scan.input} -> {output / scan.output}")
        for scan in plan.skip:
            click.echo(f"skip {scan.input}: labelled already")
        for scan in plan.failed:
            click.echo(f"leave {scan.input}: failed before")
        click.echo(
            f"{len(scans)} scans: {len(plan.label)} to label, {len(plan.skip)} labelled already, "
            f"{len(plan.failed)} failed before"
        )
        return 0

    def executor_for(scans_left: int) -> AbstractContextManager["Executor"]:
        count = min(jobs or _default_jobs(device), scans_left)
        return _executor(executor, scheduler, config, count, timeout)

    datasets = [Path(name) for name in inputs if Path(name).is_dir() and is_dataset(Path(name))]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster ends a job so
    with Progress() if quiet else terminal_progress() as progress:
        try:
            summary = run_batch(
                scans, output, config, executor_for, resume=how, shard=part,
                datasets=datasets, progress=progress, heard=_log,
            )  # fmt: skip
        except KeyboardInterrupt:
            click.echo(f"{output}: not finished; go on with --resume", err=True)
            raise
    suffix = part.suffix if part else ""
    if as_json:
        click.echo((output / f"summary{suffix}.json").read_text(encoding="utf-8"), nl=False)
    else:
        rate = summary.labelled / summary.seconds
        click.echo(
            f"{summary.scans} scans: {summary.labelled} labelled, {summary.failed} failed, "
            f"{summary.skipped} skipped, in {summary.seconds:.1f} s ({rate:.2f} labelled per "
            f"second); see {output / f'summary{suffix}.csv'}"
        )
    doubtful = any(summary.verdicts.get(verdict) for verdict in DOUBTFUL[strict])
    return 1 if summary.failed or doubtful else 0


def _read_list(list_file: str | None) -> list[str]:
    if list_file is None:
        return []
    try:
        text = sys.stdin.read() if list_file == "-" else Path(list_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{list_file}: not readable as a list of files: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def _default_jobs(device: str) -> int:
    """One per CPU, but one where each would have its own copy of the network on the GPU."""
    cpus = _cpus()
    if cpus == 1 or device == "cpu":
        return cpus
    return 1 if device == "cuda" or _has_cuda() else cpus


def _has_cuda() -> bool:
    """Ask in a process of its own: torch would stay in the memory of this one to the end."""
    import subprocess

    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    return asked.returncode == 0


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # what a cluster lets this job use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _executor(
    kind: str, scheduler: str | None, config: "BatchConfig", jobs: int, timeout: float
) -> AbstractContextManager["Executor"]:
    from ivdtool.batch.worker import load_labeller

    if kind == "dask":
        from ivdtool.batch.dask_pool import DaskPool

        return DaskPool(load_labeller, config, jobs, timeout, scheduler)
    from ivdtool.batch.pool import Pool

    return Pool(load_labeller, config, jobs, timeout)


def _log(outcome: "Outcome") -> None:
    if outcome.labelled is not None:
        log.info("%s: %d discs, %.2f s", outcome.key, len(outcome.labelled.discs), outcome.seconds)
    else:
        log.error("%s: %s", outcome.kind, outcome.error)
        if outcome.details:
            log.debug("%s", outcome.details)
