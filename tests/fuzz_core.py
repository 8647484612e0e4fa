"""Throw random arguments at the compiled functions for a while; run under a sanitizer to see more.

    python -m tests.fuzz_core [--seconds 600] [--seed 0] [--threads 1]

Every call must return within its budget, or raise ValueError or TypeError; an answer must be
consistent with itself. tests/fuzz_kernels.cpp checks answers to arguments that are not refused.
`make fuzz` runs this with the address and undefined-behaviour sanitizers, `make threads` several at
once with the thread sanitizer.
"""

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ivdtool import _core

Rng = np.random.Generator
NASTY = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, 5e-324, math.inf, -math.inf, math.nan, 0.5, 3.0)


def number(rng: Rng, usual: float) -> float:
    return float(rng.choice(NASTY)) if rng.random() < 0.04 else usual


def spoil(rng: Rng, values: Any) -> Any:
    """Now and then put nasty values into an array."""
    values = np.ascontiguousarray(values)
    if values.size and rng.random() < 0.1:
        places = rng.integers(0, values.size, int(rng.integers(1, 4)))
        with np.errstate(over="ignore"):
            values.reshape(-1)[places] = rng.choice(NASTY, len(places)).astype(values.dtype)
    return values


def draw(rng: Rng) -> str:
    batch, channels = rng.integers(0, 3, 2)
    rows, cols = rng.integers(1, 40, 2)
    points = spoil(rng, rng.uniform(-20, 60, (batch, channels, 2)))
    visible = rng.random((batch, channels)) < 0.8
    sigma = (number(rng, float(rng.uniform(0.2, 9))), number(rng, float(rng.uniform(0.2, 9))))
    heatmaps = np.full((batch, channels, rows, cols), 7.0, dtype=np.float32)
    _core.draw_heatmaps(points, visible, sigma, heatmaps, True)
    assert not heatmaps.size or (heatmaps.min() >= 0 and heatmaps.max() <= 1)
    buffer = _core.HeatmapBuffer(int(batch), int(channels), int(rows), int(cols))
    for _ in range(2):
        buffer.draw(spoil(rng, rng.uniform(-20, 60, points.shape)), visible, sigma)
    buffer.draw(points, visible, sigma)
    np.testing.assert_array_equal(buffer.values, heatmaps)
    return "drawn"


def find(rng: Rng) -> str:
    shape = (int(rng.integers(0, 4)), *map(int, rng.integers(1, 40, 2)))
    kind = rng.random()
    heatmaps = rng.random(shape) if kind < 0.6 else rng.integers(0, 3, shape) / 2
    if kind > 0.9:
        heatmaps = np.full(shape, rng.choice(NASTY))
    with np.errstate(over="ignore"):
        heatmaps = spoil(rng, heatmaps.astype(np.float32))
    arguments = (
        heatmaps,
        int(rng.integers(0, 5)),
        number(rng, float(rng.uniform(0.01, 0.9))),
        number(rng, float(rng.random())),
        number(rng, float(rng.uniform(0, 12))),
        (number(rng, float(rng.uniform(0.3, 4))), number(rng, float(rng.uniform(0.3, 4)))),
        int(rng.integers(1, 9)),
    )
    answers = [_core.find_candidates(*arguments, portable) for portable in (False, True)]
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)
    positions, scores, offsets = answers[0]
    assert len(positions) == len(scores) == offsets[-1]
    return "found"


def problem(rng: Rng) -> dict[str, Any]:
    channels = int(rng.integers(1, 14))
    counts = rng.integers(0, 5, channels)
    mean = np.cumsum(rng.uniform(-2, 30, (channels, 2)), axis=0)
    positions = np.repeat(mean, counts, axis=0) + rng.normal(0, 15, (counts.sum(), 2))
    if len(positions) > 1 and rng.random() < 0.3:
        positions[rng.integers(len(positions))] = positions[rng.integers(len(positions))]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if rng.random() < 0.03:
        offsets[rng.integers(len(offsets))] = rng.integers(-9, 99)
    return {
        "positions_mm": spoil(rng, positions),
        "scores": spoil(rng, rng.uniform(-1, 2, len(positions))),
        "offsets": offsets,
        "mean_mm": spoil(rng, mean),
        "n_best": int(rng.integers(0, 6)),
        "with_margins": bool(rng.random() < 0.5),
    }


def check(answer: _core.SearchResult, arguments: dict[str, Any]) -> str:
    choices, costs = answer.choices, answer.costs
    assert len(choices) <= arguments["n_best"]
    assert choices.min(initial=0) >= -1
    assert choices.max(initial=-1) < len(arguments["scores"])
    if np.isfinite(costs).all():
        assert (np.diff(costs) >= -1e-9 * np.abs(costs[1:])).all()
        if len(costs):
            assert answer.lower_bound <= costs[0] * (1 + 1e-9) + 1e-9
    return "labelled" if len(choices) else "no labelling"


def missing_costs(rng: Rng, arguments: dict[str, Any]) -> Any:
    return spoil(rng, rng.uniform(0, 500, len(arguments["offsets"]) - 1))


def anchors(rng: Rng, arguments: dict[str, Any]) -> dict[str, Any]:
    first, second = map(int, rng.integers(0, len(arguments["offsets"]) - 1, 2))
    return {"anchors": (first, second), "squared": bool(rng.random() < 0.5)}


def paper(rng: Rng) -> str:
    arguments = problem(rng)
    arguments |= anchors(rng, arguments)
    return check(_core.search_paper(**arguments), arguments)


def exhaustive(rng: Rng) -> str:
    arguments = problem(rng)
    arguments |= anchors(rng, arguments)
    visiting = {
        name: arguments[name] for name in arguments if name not in ("n_best", "with_margins")
    }
    answer = _core.search_exhaustive(**visiting, most=int(rng.integers(0, 3000)))
    if answer.optimal and len(answer.costs) and np.isfinite(answer.costs[0]):
        solved = _core.search_paper(**arguments | {"n_best": 1})
        assert np.isclose(solved.costs[0], answer.costs[0], rtol=1e-9)
    return check(answer, arguments | {"n_best": 1})


def paper_order(rng: Rng) -> str:
    arguments = problem(rng)
    arguments |= anchors(rng, arguments)
    arguments |= {"missing_costs": missing_costs(rng, arguments), "min_gap": number(rng, 0.25)}
    return check(_core.search_paper_order(**arguments), arguments)


def limits(rng: Rng) -> dict[str, Any]:
    return {
        "score_weight_mm2": number(rng, 50.0),
        "max_rotation_rad": number(rng, 0.35),
        "min_scale": number(rng, 0.75),
        "max_scale": number(rng, 1.35),
        "min_gap": number(rng, 0.25),
    }


def first_last(rng: Rng) -> str:
    arguments = problem(rng) | limits(rng)
    arguments |= {"missing_costs": missing_costs(rng, arguments)}
    return check(_core.search_first_last(**arguments), arguments)


def ls_chain(rng: Rng) -> str:
    arguments = problem(rng) | limits(rng)
    channels = len(arguments["offsets"]) - 1
    arguments |= {
        "missing_costs": missing_costs(rng, arguments),
        "disc_weights": spoil(rng, rng.uniform(0.1, 3, channels)),
        "pair_weights": spoil(rng, rng.uniform(0, 3, (channels, channels))),
        "chain_weight": number(rng, 5.0),
        "min_present": int(rng.integers(0, 5)),
        "max_present": int(rng.integers(0, 2 * channels)),
        "rules": rng.choice(4, channels, p=[0.7, 0.1, 0.1, 0.1]),
        "borrow_mm2": number(rng, float(rng.choice([math.inf, 10.0]))),
        "offset_change_mm2": number(rng, 100.0),
        "offset_start_mm2": number(rng, 20.0),
        "node_budget": int(rng.choice([1, 10, 3000])),
        "tree_size": int(rng.integers(0, 100)),
    }
    if rng.random() < 0.03:
        arguments["rules"][rng.integers(channels)] = rng.integers(-9, 9)
    answer = _core.search_ls_chain(**arguments)
    present = (answer.choices >= 0).sum(axis=1)
    assert present.min(initial=99) >= arguments["min_present"]
    assert present.max(initial=0) <= arguments["max_present"]
    assert answer.nodes <= arguments["node_budget"]
    return check(answer, arguments)


TARGETS: tuple[Callable[[Rng], str], ...] = (
    draw,
    find,
    paper,
    paper_order,
    first_last,
    ls_chain,
    exhaustive,
)


def fuzz(seconds: float, seed: int) -> Counter[str]:
    """Return how often each target ended how."""
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + seconds
    case = 0
    while time.monotonic() < end:
        for target in TARGETS:
            rng = np.random.default_rng([seed, case, TARGETS.index(target)])
            try:
                outcome = target(rng)
            except (ValueError, TypeError):
                outcome = "refused"
            except BaseException:
                print(f"{target.__name__} of case {case}, seed {seed}")
                raise
            outcomes[f"{target.__name__}: {outcome}"] += 1
        case += 1
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.threads)
    with ThreadPoolExecutor(arguments.threads) as threads:
        found = list(threads.map(lambda seed: fuzz(arguments.seconds, seed), seeds))
    outcomes = sum(found, Counter())
    for name, count in sorted(outcomes.items()):
        print(f"{count:>9}  {name}")


if __name__ == "__main__":
    main()
