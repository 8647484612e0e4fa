"""What became of every scan of a batch, in an SQLite file that survives a crash."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from ivdtool.batch.worker import DiscRow, Outcome
from ivdtool.errors import UsageError

__all__ = ["Identity", "Manifest", "Row"]

VERSION = 1
DISC_COLUMNS = ", ".join(field.name for field in fields(DiscRow))
SCHEMA = f"""
CREATE TABLE scans (
    output TEXT PRIMARY KEY,  -- label image, relative to the output folder
    input TEXT NOT NULL,
    size INTEGER NOT NULL,  -- of the input, bytes; -1 if there was none
    mtime_ns INTEGER NOT NULL,
    sha256 TEXT,  -- of the input, where asked for
    model_sha256 TEXT NOT NULL,
    settings TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('labelled', 'failed')),
    error_kind TEXT,
    error TEXT,
    details TEXT,
    verdict TEXT,
    probability REAL,  -- that all labels are right
    warnings TEXT NOT NULL,  -- JSON list
    discs INTEGER NOT NULL,
    seconds REAL NOT NULL,
    attempts INTEGER NOT NULL,
    finished TEXT NOT NULL  -- UTC
) WITHOUT ROWID;
CREATE TABLE discs (
    output TEXT NOT NULL, {DISC_COLUMNS},
    PRIMARY KEY (output, label)
) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""


@dataclass(frozen=True)
class Identity:
    """What decides whether a scan must be labelled again."""

    input: str
    size: int
    mtime_ns: int
    model_sha256: str
    settings: str


@dataclass(frozen=True)
class Row:
    """One scan of the manifest; see the schema."""

    output: str
    input: str
    size: int
    mtime_ns: int
    sha256: str | None
    model_sha256: str
    settings: str
    status: str
    error_kind: str | None
    error: str | None
    details: str | None
    verdict: str | None
    probability: float | None
    warnings: str
    discs: int
    seconds: float
    attempts: int
    finished: str


ROW_COLUMNS = ", ".join(field.name for field in fields(Row))


class Manifest:
    """The manifest of one run; locked against other runs while open.

    The write-ahead log makes each record whole or absent after a crash, with hardly a wait for the
    disk. Locked exclusively, SQLite needs no shared memory, so that network drives will do.

    Raises:
        UsageError: the file is in use, cannot be written, or is no manifest.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._usage_errors():
            self._database = sqlite3.connect(path, timeout=1.0, isolation_level=None)
            try:
                self._open()
            except sqlite3.Error:
                self._database.close()
                raise

    @classmethod
    def copy(cls, path: Path) -> Self:
        """Return a copy in memory of the manifest at `path`, empty if there is none.

        Raises:
            UsageError: as the class does.
        """
        memory = Path(":memory:")
        if not path.exists():
            return cls(memory)
        with cls(path) as original, original._usage_errors():
            copy = cls(memory)
            original._database.backup(copy._database)
        return copy

    def _open(self) -> None:
        run = self._database.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = NORMAL")
        run("BEGIN IMMEDIATE")  # takes the lock, which is kept
        version = run("PRAGMA user_version").fetchone()[0]
        if version == 0 and not run("SELECT 1 FROM sqlite_master").fetchone():
            for statement in SCHEMA.split(";\n"):
                run(statement)
        elif version != VERSION:
            raise sqlite3.DatabaseError(f"schema {version}, not {VERSION}")
        run("COMMIT")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def is_empty(self) -> bool:
        """Whether nothing has been recorded."""
        return self._database.execute("SELECT 1 FROM scans LIMIT 1").fetchone() is None

    def find(self, output: str) -> Row | None:
        """Return the record of a scan."""
        with self._usage_errors():
            row = self._database.execute(
                f"SELECT {ROW_COLUMNS} FROM scans WHERE output = ?", (output,)
            ).fetchone()
        return None if row is None else Row(*row)

    def discs(self, output: str) -> Iterator[DiscRow]:
        """Yield the discs of a scan, by label."""
        query = f"SELECT {DISC_COLUMNS} FROM discs WHERE output = ? ORDER BY label"
        for row in self._database.execute(query, (output,)):
            yield DiscRow(*row)

    def record(self, outcome: Outcome, identity: Identity) -> None:
        """Put down what became of a scan, in place of what was known."""
        labelled = outcome.labelled
        row = Row(
            output=outcome.key,
            input=identity.input,
            size=identity.size,
            mtime_ns=identity.mtime_ns,
            sha256=outcome.sha256,
            model_sha256=identity.model_sha256,
            settings=identity.settings,
            status="failed" if labelled is None else "labelled",
            error_kind=outcome.kind,
            error=outcome.error,
            details=outcome.details,
            verdict=labelled.verdict if labelled else None,
            probability=labelled.probability if labelled else None,
            warnings=json.dumps(labelled.warnings if labelled else ()),
            discs=len(labelled.discs) if labelled else 0,
            seconds=outcome.seconds,
            attempts=outcome.attempts,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self._put(row, labelled.discs if labelled else ())

    def absorb(self, path: Path) -> None:
        """Take over from the manifest of a part of the batch what is newer there.

        Raises:
            UsageError: that part is still being worked on, or its manifest is damaged.
        """
        with Manifest(path) as other:
            for values in other._database.execute(f"SELECT {ROW_COLUMNS} FROM scans").fetchall():
                row, known = Row(*values), self.find(values[0])
                if known is None or known.finished < row.finished:
                    self._put(row, tuple(other.discs(row.output)))

    def _put(self, row: Row, discs: tuple[DiscRow, ...]) -> None:
        with self._usage_errors():
            run = self._database.execute
            run("BEGIN")
            marks = ", ".join("?" * len(fields(Row)))
            run(f"INSERT OR REPLACE INTO scans ({ROW_COLUMNS}) VALUES ({marks})", astuple(row))
            run("DELETE FROM discs WHERE output = ?", (row.output,))
            marks = ", ".join("?" * (1 + len(fields(DiscRow))))
            for disc in discs:
                query = f"INSERT INTO discs (output, {DISC_COLUMNS}) VALUES ({marks})"
                run(query, (row.output, *astuple(disc)))
            run("COMMIT")

    @contextmanager
    def _usage_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise UsageError(
                    f"{self.path}: another run works on it; wait for its end"
                ) from error
            raise UsageError(
                f"{self.path}: not usable as a manifest ({error}); move it away to start anew"
            ) from error
