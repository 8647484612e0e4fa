"""A batch from its scans to its summary: plan, label, record, sum up."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ivdtool.batch.derivatives import describe_derivatives
from ivdtool.batch.inputs import Scan, Shard
from ivdtool.batch.manifest import Manifest
from ivdtool.batch.plan import Plan, make_plan
from ivdtool.batch.progress import Progress
from ivdtool.batch.summary import Summary, write_tables
from ivdtool.batch.worker import BatchConfig, Outcome, Task, output_files, possible_files
from ivdtool.errors import UsageError
from ivdtool.files import is_temporary, make_folder

__all__ = ["Executor", "Resume", "open_plan", "run_batch"]

OLD_SECONDS = 3600.0


class Executor(Protocol):
    """Labels scans somewhere: `ivdtool.batch.pool.Pool`, `ivdtool.batch.dask_pool.DaskPool`."""

    def run(self, tasks: Iterable[Task], /) -> Iterator[Outcome]:
        """Yield the outcome of every task, in any order."""


@dataclass(frozen=True)
class Resume:
    """How to go on with a batch.

    Attributes:
        wanted: go on; else a folder that has a manifest is refused.
        retry_failed: try again what failed.
        by_hash: tell scans by their content rather than their time of change.
    """

    wanted: bool = False
    retry_failed: bool = False
    by_hash: bool = False


def run_batch(
    scans: Sequence[Scan],
    output: Path,
    config: BatchConfig,
    executor: Callable[[int], AbstractContextManager[Executor]],
    *,
    resume: Resume = Resume(),
    shard: Shard | None = None,
    datasets: Sequence[Path] = (),
    progress: Progress | None = None,
    heard: Callable[[Outcome], None] = lambda _: None,
) -> Summary:
    """Label scans into a folder; what went wrong with some is in the manifest and the summary.

    Args:
        scans: what `ivdtool.batch.inputs.find_scans` found, or a part of it.
        output: folder; made if need be.
        config: how to label.
        executor: makes what labels that many scans.
        resume: how to go on with what an earlier run left in `output`.
        shard: which part of the batch `scans` are; its manifest and tables have names of their own.
        datasets: BIDS data sets among the inputs; with any, the folder is made a derivative first.
        progress: sees how far it is.
        heard: is called with every outcome.

    Raises:
        UsageError: the folder cannot be used.
        ModelError: the model cannot.
    """
    started = time.monotonic()
    suffix = shard.suffix if shard else ""
    progress = progress or Progress()
    make_folder(output)
    with ExitStack() as stack:
        manifest, plan = open_plan(scans, output, config, resume, shard, stack)
        if datasets:
            describe_derivatives(output, datasets)
        folders = {(output / scan.output).parent for scan, _ in plan.label}
        if resume.wanted:
            _remove_temporaries(folders, output, suffix)
        for folder in folders:
            make_folder(folder)
        counts = {"labelled": 0, "failed": len(plan.failed)}
        disturbed = set()
        identities = {scan.output: identity for scan, identity in plan.label}
        progress.start(len(identities))
        if plan.label:
            tasks = (_task(scan, output, resume.by_hash) for scan, _ in plan.label)
            labellers = stack.enter_context(executor(len(plan.label)))
            for outcome in labellers.run(tasks):
                identity = identities.pop(outcome.key)
                labels = output / outcome.key
                # the others are of other settings, of an earlier run, or of a worker that died
                kept = output_files(labels, config) if outcome.labelled else []
                _remove(set(possible_files(labels)) - set(kept))
                manifest.record(outcome, identity)
                counts["labelled" if outcome.labelled else "failed"] += 1
                if outcome.attempts > 1 or outcome.kind in ("Timeout", "WorkerDied"):
                    disturbed.add((output / outcome.key).parent)
                progress.done(outcome.error)
                heard(outcome)
        summary = Summary(
            len(scans),
            **counts,
            skipped=len(plan.skip),
            seconds=time.monotonic() - started,
            verdicts=_count_verdicts(manifest, scans),
        )
        _remove_temporaries(disturbed, output, suffix)
        write_tables(output, suffix, manifest, scans, frozenset(plan.skip), summary)
    return summary


def open_plan(
    scans: Sequence[Scan],
    output: Path,
    config: BatchConfig,
    resume: Resume,
    shard: Shard | None,
    stack: ExitStack,
    dry: bool = False,
) -> tuple[Manifest, Plan]:
    """Open the manifest, for as long as `stack` lasts, and compare the scans with it.

    Args:
        scans: see `run_batch`; so are the others.
        output: folder.
        config: how to label.
        resume: how to go on.
        shard: which part.
        stack: closes the manifest.
        dry: work on a copy of the manifest in memory; nothing is written.

    Raises:
        UsageError: there is a manifest, and `resume` is not wanted; or it cannot be used.
    """
    path = output / f"manifest{shard.suffix if shard else ''}.sqlite"
    parts = sorted(output.glob("manifest.shard-*.sqlite")) if shard is None else []
    manifest = stack.enter_context(Manifest.copy(path) if dry else Manifest(path))
    if not resume.wanted and (parts or not manifest.is_empty()):
        raise UsageError(
            f"{output}: holds the manifest of an earlier run; go on with --resume, or give another "
            "folder"
        )
    for part in parts:
        manifest.absorb(part)
    plan = make_plan(
        scans, output, config, manifest, retry_failed=resume.retry_failed, by_hash=resume.by_hash
    )
    return manifest, plan


def _count_verdicts(manifest: Manifest, scans: Iterable[Scan]) -> dict[str, int]:
    rows = (manifest.find(scan.output) for scan in scans)
    return dict(sorted(Counter(row.verdict for row in rows if row and row.verdict).items()))


def _task(scan: Scan, output: Path, by_hash: bool) -> Task:
    return Task(scan.output, scan.input, str(output / scan.output), by_hash)


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        with suppress(OSError):  # such as a folder of that name, for which the scan failed
            path.unlink(missing_ok=True)


def _remove_temporaries(folders: Iterable[Path], output: Path, suffix: str) -> None:
    """Remove what processes left that were killed while they wrote.

    Where parts of a batch may run side by side, only what is too old to be written still.
    """
    others = any(
        path.name != f"manifest{suffix}.sqlite" for path in output.glob("manifest.shard-*.sqlite")
    )
    limit = time.time() - OLD_SECONDS if others or suffix else float("inf")
    for folder in folders:
        for path in folder.glob(".*") if folder.is_dir() else ():
            if is_temporary(path) and path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)
