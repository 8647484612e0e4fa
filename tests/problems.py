"""Search problems to test with: arguments of `_core.search_ls_chain`; other modes take fewer."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ivdtool.candidates import Candidates
from ivdtool.skeleton import Skeleton

Array = npt.NDArray[Any]

SKELETON = Skeleton(
    labels=(20, 21, 22, 23),
    mean_mm=np.stack([30.0 * np.arange(4), np.zeros(4)], axis=1),
    disc_sd_mm=np.full(4, 2.0),
    step_sd_mm=np.full(3, 2.0),
    missing_rate=np.zeros(4),
)
CANDIDATES = Candidates(
    positions=np.array([[10, 50], [13, 58], [40, 52], [66, 50], [71, 49], [101, 50.0]]),
    scores=np.array([0.9, 0.5, 0.8, 0.4, 0.7, 0.9]),
    offsets=np.array([0, 2, 3, 5, 6]),
    labels=(20, 21, 22, 23),
    spacing_mm=(1.0, 1.0),
)


def random_problem(rng: np.random.Generator, channels: int, most: int) -> dict[str, Any]:
    """Ordinary and degenerate ones mixed: duplicates, collinear points, empty channels, ties."""
    steps = np.stack([rng.uniform(12, 35, channels), rng.normal(0, 4, channels)], axis=1)
    mean = np.cumsum(steps, axis=0)
    k = rng.choice([1.0, rng.uniform(0.5, 1.6)]) * np.exp(1j * rng.normal(0, 0.3))
    truth = (mean @ [1, 1j]) * k
    truth = np.stack([truth.real, truth.imag], axis=1) + rng.normal(0, 2, (channels, 2))
    points: list[Array] = []
    offsets = [0]
    for channel in range(channels):
        for _ in range(int(rng.integers(0, most + 1))):
            kind = rng.random()
            if kind < 0.5:
                points.append(truth[channel] + rng.normal(0, 1, 2))
            elif kind < 0.7:
                points.append(truth[rng.integers(channels)])  # on another disc
            elif kind < 0.8 and points:
                points.append(points[rng.integers(len(points))])  # a duplicate
            else:
                points.append(truth[channel] + rng.normal(0, 25, 2))
        offsets.append(len(points))
    positions = np.array(points).reshape(-1, 2)
    if rng.random() < 0.1:
        positions[:, 1] = 7.0  # collinear
    if rng.random() < 0.1:
        positions = np.round(positions, -1)  # many coincide
    scores = rng.uniform(0.1, 1.2, len(positions))
    if rng.random() < 0.3:
        scores[:] = 0.5
    scale = np.sort(rng.uniform(0.6, 1.5, 2))
    limits = [(0.0, np.inf), (0.75, 1.35), (1.0, 1.0), (float(scale[0]), float(scale[1]))]
    min_scale, max_scale = limits[rng.integers(len(limits))]
    plain = rng.random() < 0.5
    return {
        "positions_mm": positions,
        "scores": scores,
        "offsets": np.array(offsets, dtype=np.int64),
        "mean_mm": mean,
        "disc_weights": np.ones(channels) if plain else rng.uniform(0.2, 3, channels),
        "pair_weights": np.ones((channels, channels)) * rng.uniform(0, 2, (channels, channels)),
        "missing_costs": np.full(channels, 300.0) if plain else rng.uniform(0, 500, channels),
        "score_weight_mm2": float(rng.choice([0.0, 10.0, 50.0])),
        "chain_weight": float(rng.choice([0.0, 1.0, 5.0])),
        "max_rotation_rad": float(rng.choice([0.0, 0.1, 0.35, 2.0, math.pi])),
        "min_scale": min_scale,
        "max_scale": max_scale,
        "min_gap": float(rng.choice([0.0, 0.25, 0.6])),
        "min_present": int(rng.choice([1, 2, 3])),
        "max_present": 99,
        "rules": np.zeros(channels, dtype=np.int64),
        "borrow_mm2": math.inf,
        "offset_change_mm2": 0.0,
        "offset_start_mm2": 0.0,
        "n_best": int(rng.choice([1, 4])),
        "node_budget": 10**7,
        "with_margins": True,
        "tree_size": 0,
    }


def banded_problem(
    seed: int | np.random.Generator, channels: int = 8, most: int = 3
) -> dict[str, Any]:
    """Channels in separate bands of rows, so that small rotations keep their order."""
    rng = np.random.default_rng(seed)
    mean = np.stack([np.arange(channels) * 30.0, rng.normal(0, 4, channels)], axis=1)
    counts = rng.integers(0, most + 1, channels)
    channel = np.repeat(np.arange(channels), counts)
    positions = mean[channel] + rng.uniform(-6, 6, (len(channel), 2))
    return random_problem(rng, channels, 0) | {
        "positions_mm": positions,
        "scores": rng.uniform(0.2, 1, len(channel)),
        "offsets": np.concatenate([[0], np.cumsum(counts)]),
        "mean_mm": mean,
        "max_rotation_rad": math.pi,
        "min_scale": 0.0,
        "max_scale": math.inf,
        "min_gap": 0.0,
        "n_best": 3,
    }
