"""What a user sees of a batch: a bar with the time left on a terminal, else a line now and then."""

import sys
import time
from typing import Self

import click
from tqdm import tqdm

__all__ = ["Progress", "terminal_progress"]

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Takes what a batch tells, and shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, total: int) -> None:
        """So many scans will be labelled."""

    def done(self, error: str | None) -> None:
        """One is labelled, or failed for this reason."""

    def close(self) -> None:
        """The end, for better or worse."""


class _Bar(Progress):
    def start(self, total: int) -> None:
        self._failed = 0
        self._bar = tqdm(total=total, unit="scan", file=sys.stderr, dynamic_ncols=True)

    def done(self, error: str | None) -> None:
        if error is not None:
            self._failed += 1
            self._bar.write(f"Error: {error}", file=sys.stderr)
            self._bar.set_postfix(failed=self._failed, refresh=False)
        self._bar.update()

    def close(self) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()


class _Lines(Progress):
    def start(self, total: int) -> None:
        self._total, self._count, self._failed = total, 0, 0
        self._started = self._spoke = time.monotonic()

    def done(self, error: str | None) -> None:
        self._count += 1
        if error is not None:
            self._failed += 1
            click.echo(f"Error: {error}", err=True)
        now = time.monotonic()
        if now - self._spoke >= SECONDS_BETWEEN_LINES:
            self._spoke = now
            rate = self._count / (now - self._started)
            left = (self._total - self._count) / rate
            click.echo(
                f"{self._count} of {self._total} scans, {self._failed} failed, {rate:.2f} per "
                f"second, {left:.0f} s left",
                err=True,
            )


def terminal_progress() -> Progress:
    """Return a bar if standard error is a terminal, else plain lines."""
    return _Bar() if sys.stderr.isatty() else _Lines()
