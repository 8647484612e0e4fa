"""What a batch has to do: which scans are labelled already, failed, or to be labelled."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ivdtool.batch.inputs import Scan
from ivdtool.batch.manifest import Identity, Manifest, Row
from ivdtool.batch.worker import BatchConfig, output_files
from ivdtool.errors import UsageError
from ivdtool.files import file_sha256
from ivdtool.writers import check_replaceable

__all__ = ["Plan", "make_plan"]


@dataclass
class Plan:
    """The scans of a batch by what is to be done with them.

    Attributes:
        label: to be labelled, with what will stand in the manifest.
        skip: labelled already, all files there.
        failed: failed before, not to be tried again.
    """

    label: list[tuple[Scan, Identity]] = field(default_factory=list)
    skip: list[Scan] = field(default_factory=list)
    failed: list[Scan] = field(default_factory=list)


def make_plan(
    scans: Iterable[Scan],
    output: Path,
    config: BatchConfig,
    manifest: Manifest,
    *,
    retry_failed: bool = False,
    by_hash: bool = False,
) -> Plan:
    """Compare scans with the manifest.

    A scan is done if its size and time of change, the model's hash and the settings are as
    recorded, and its files are there.

    Args:
        scans: of the batch.
        output: folder.
        config: see `BatchConfig`; its model must be a file.
        manifest: what has been done.
        retry_failed: label again what failed.
        by_hash: compare the content of scans rather than their time of change.

    Raises:
        UsageError: the output of a scan holds the labels of another scan, or such as ivdtool did
            not write, or that were edited since.
    """
    model, settings, plan = file_sha256(config.model), config.fingerprint(), Plan()
    for scan in scans:
        identity = _identity(scan, model, settings)
        row = manifest.find(scan.output)
        labels = output / scan.output
        if row is not None and _is_same(row, identity, by_hash):
            if row.status == "failed" and not retry_failed:
                plan.failed.append(scan)
                continue
            files = output_files(labels, config)
            if row.status != "failed" and all(path.is_file() for path in files):
                plan.skip.append(scan)
                continue
        check_replaceable(labels, known_as_ours=row is not None and row.status != "failed")
        plan.label.append((scan, identity))
    return plan


def _identity(scan: Scan, model_sha256: str, settings: str) -> Identity:
    try:
        stat = Path(scan.input).stat()
        size, mtime_ns = stat.st_size, stat.st_mtime_ns
    except OSError:  # a missing scan fails when its turn comes
        size, mtime_ns = -1, 0
    return Identity(scan.input, size, mtime_ns, model_sha256, settings)


def _is_same(row: Row, identity: Identity, by_hash: bool) -> bool:
    if by_hash and row.sha256 is not None:
        same_scan = row.size == identity.size and row.sha256 == file_sha256(identity.input)
    else:
        known = row.size, row.mtime_ns
        same_scan = not by_hash and known == (identity.size, identity.mtime_ns)
    if not same_scan and row.input != identity.input:
        raise UsageError(
            f"{identity.input}: {row.output} holds the labels of {row.input}; give another output "
            "folder"
        )
    return same_scan and (row.model_sha256, row.settings) == (
        identity.model_sha256,
        identity.settings,
    )
