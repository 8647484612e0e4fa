"""The tables of a batch: every scan, every disc, and the counts."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from ivdtool import __version__
from ivdtool.batch.inputs import Scan
from ivdtool.batch.manifest import Manifest, Row
from ivdtool.batch.worker import DiscRow
from ivdtool.errors import IvdtoolError
from ivdtool.files import atomic_writes

__all__ = ["Summary", "write_tables"]


@dataclass(frozen=True)
class Summary:
    """The counts of a batch: every scan is in exactly one of the last three.

    Attributes:
        scans: in all.
        labelled: by this run.
        failed: now, or before and not tried again.
        skipped: labelled by an earlier run.
        seconds: of this run.
        verdicts: on all scans that are labelled now, by verdict.

    Raises:
        IvdtoolError: a scan is lost.
    """

    scans: int
    labelled: int
    failed: int
    skipped: int
    seconds: float
    verdicts: Mapping[str, int]

    def __post_init__(self) -> None:
        if self.scans != self.labelled + self.failed + self.skipped:
            raise IvdtoolError(f"scans were lost: {self}; please report this")


def write_tables(
    folder: Path, suffix: str, manifest: Manifest, scans: Sequence[Scan], skipped: frozenset[Scan],
    summary: Summary,
) -> None:  # fmt: skip
    """Write summary.csv, summary.json and discs.csv, all or none; `suffix` goes before the dot.

    Raises:
        UsageError: they cannot be written.
    """
    names = f"summary{suffix}.csv", f"discs{suffix}.csv", f"summary{suffix}.json"
    with (
        atomic_writes(*(folder / name for name in names)) as (scans_file, discs_file, counts_file),
        scans_file.open("w", newline="", encoding="utf-8") as scans_csv,
        discs_file.open("w", newline="", encoding="utf-8") as discs_csv,
    ):
        table, discs = csv.writer(scans_csv), csv.writer(discs_csv)
        table.writerow(_COLUMNS)
        discs.writerow(["output", *(field.name for field in fields(DiscRow))])
        kinds, count = Counter[str](), 0
        model, failures = "", []
        for scan in scans:
            row = manifest.find(scan.output)
            assert row is not None, scan
            status = "skipped" if scan in skipped else row.status
            table.writerow(_cells(row, status))
            discs.writerows((row.output, *astuple(disc)) for disc in manifest.discs(row.output))
            count, model = count + row.discs, row.model_sha256
            if row.error_kind is not None:
                kinds[row.error_kind] += 1
                failures.append({"input": row.input, "kind": row.error_kind, "error": row.error})
        document: dict[str, Any] = {
            "ivdtool": __version__,
            "model_sha256": model,
            **asdict(summary),
            "discs": count,
            "errors": dict(sorted(kinds.items())),
            "failures": failures,
        }
        counts_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


_COLUMNS = (
    "input", "output", "status", "discs", "verdict", "probability", "warnings", "error_kind",
    "error", "seconds", "attempts",
)  # fmt: skip


def _cells(row: Row, status: str) -> list[Any]:
    warnings = "; ".join(json.loads(row.warnings))
    probability = None if row.probability is None else f"{row.probability:.3f}"
    return [
        row.input, row.output, status, row.discs, row.verdict, probability, warnings,
        row.error_kind, row.error, f"{row.seconds:.3f}", row.attempts,
    ]  # fmt: skip
