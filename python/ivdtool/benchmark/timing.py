"""Contenders for one task, timed in turns."""

import importlib
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ivdtool.errors import IvdtoolError

__all__ = ["Case", "Contender", "Spread", "Timing", "expect", "measure", "optional"]

BURST_SECONDS = 0.005  # a round calls a contender this long, and takes the median
LONGEST_BURST = 50
LEAST_ROUNDS = 3  # however slow


@dataclass(frozen=True)
class Contender:
    """One way to do a task.

    Attributes:
        name: as printed.
        run: what is timed.
        check: given the answer of `run`, raises if it is wrong; None for floors, which have none.
        factor: how many times longer the whole task takes than `run` does. Other than 1 means that
            the time is extrapolated.
    """

    name: str
    run: Callable[[], Any]
    check: Callable[[Any], None] | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Case:
    """A task and those who do it; times are compared with the first contender's.

    Attributes:
        stage: heatmaps, candidates, search or start-up.
        name: the task, as printed.
        contenders: ours first.
        missing: contenders left out, and why.
        size: numbers that describe the task, for files and plots.
    """

    stage: str
    name: str
    contenders: tuple[Contender, ...]
    missing: tuple[str, ...] = ()
    size: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum over the rounds."""

    minimum: float
    median: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(min(values), statistics.median(values), max(values))


@dataclass(frozen=True)
class Timing:
    """What one contender took for one case.

    Attributes:
        name: of the contender.
        microseconds: per call, in wall time; of each round its median call.
        ratio: to the first contender's time of the same round.
        fastest: microseconds of the fastest call of all, or of processor time per call where that
            is less. On a machine that does other work too, ratios of these can be repeated.
        rounds: how many there were.
        extrapolated: only a part of the task was run.
        checked: its answer was compared with another implementation's.
    """

    name: str
    microseconds: Spread
    ratio: Spread
    fastest: float
    rounds: int
    extrapolated: bool
    checked: bool


def measure(case: Case, rounds: int, seconds: float) -> list[Timing]:
    """Check every contender's answer, then time all of them in turns.

    Turns make ratios fair where other programs share the machine: each is of times that lie close
    together. A contender that would take longer than its share of `seconds` sits rounds out.

    Raises:
        IvdtoolError: a wrong answer.
    """
    share = seconds / len(case.contenders)
    turns: list[int] = []
    for contender in case.contenders:
        started = time.perf_counter()
        answer = contender.run()
        first = time.perf_counter() - started
        if contender.check is not None:
            try:
                contender.check(answer)
            except IvdtoolError as error:
                raise IvdtoolError(f"{case.name}: {contender.name}: {error}") from error
        turns.append(min(rounds, max(LEAST_ROUNDS, int(share / max(first, 1e-9)))))
    times: list[list[float]] = [[] for _ in case.contenders]
    fastest = [math.inf] * len(case.contenders)
    for turn in range(rounds):
        for index, contender in enumerate(case.contenders):
            if turn < turns[index]:
                calls, busy = _burst(contender.run)
                times[index].append(contender.factor * statistics.median(calls))
                fastest[index] = min(fastest[index], contender.factor * min(*calls, busy))
    return [
        Timing(
            name=contender.name,
            microseconds=Spread.of([1e6 * own for own in taken]),
            ratio=Spread.of([own / ours for own, ours in zip(taken, times[0], strict=False)]),
            fastest=1e6 * best,
            rounds=len(taken),
            extrapolated=contender.factor != 1.0,
            checked=contender.check is not None,
        )
        for contender, taken, best in zip(case.contenders, times, fastest, strict=True)
    ]


def _burst(run: Callable[[], Any]) -> tuple[list[float], float]:
    """Seconds of each of some calls in a row, and of processor time per call.

    A single call would find its data pushed out of the cache by the contender before it.
    """
    taken: list[float] = []
    busy = _processor_time()
    while len(taken) < LONGEST_BURST and sum(taken) < BURST_SECONDS:
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return taken, (_processor_time() - busy) / len(taken)


def _processor_time() -> float:
    """Seconds, those of programs that were run and waited for among them."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def expect(holds: Any, message: str) -> None:
    """Raise IvdtoolError unless an answer is as expected."""
    if not holds:
        raise IvdtoolError(message)


def optional(module: str) -> Any:
    """Import a module of a library that is not required; None if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None
