"""Plain implementations to test the compiled ones against; slow, obvious, and sharing no code."""

from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter

Array = npt.NDArray[Any]


def draw_gaussians(points: Array, visible: Array, shape: tuple[int, int], sigma: Array) -> Array:
    """(B, V, H, W) float64, every Gaussian over the whole frame."""
    rows = np.arange(shape[0])[:, np.newaxis]
    cols = np.arange(shape[1])[np.newaxis, :]
    row, col = points[..., 0, np.newaxis, np.newaxis], points[..., 1, np.newaxis, np.newaxis]
    distance = ((rows - row) / sigma[0]) ** 2 + ((cols - col) / sigma[1]) ** 2
    return np.where(visible[..., np.newaxis, np.newaxis], np.exp(-distance / 2), 0.0)


def find_peaks(
    heatmap: Array, floor: float, radius_mm: float, spacing_mm: tuple[float, float], count: int
) -> list[tuple[int, int]]:
    """Cells of local maxima of value >= floor, thinned greedily; values must differ."""
    is_peak = (maximum_filter(heatmap, size=3, mode="nearest") == heatmap) & (heatmap >= floor)
    peaks = sorted(np.argwhere(is_peak).tolist(), key=lambda cell: -heatmap[cell[0], cell[1]])
    kept: list[tuple[int, int]] = []
    for row, col in peaks:
        distances = [
            np.hypot((row - r) * spacing_mm[0], (col - c) * spacing_mm[1]) for r, c in kept
        ]
        if len(kept) < count and all(distance > radius_mm for distance in distances):
            kept.append((row, col))
    return kept


@dataclass
class Enumeration:
    """Every labelling and its cost, infinite where it is not feasible."""

    choices: Array  # (A, V), -1 is missing
    costs: Array  # (A,)

    @property
    def order(self) -> Array:
        feasible = np.flatnonzero(np.isfinite(self.costs))
        return feasible[np.argsort(self.costs[feasible], kind="stable")]

    def margin(self, channel: int, choice: int) -> float:
        other = self.costs[self.choices[:, channel] != choice]
        return float(other.min(initial=np.inf) - self.costs.min())


def all_choices(offsets: Array, *, missing: bool) -> Array:
    """(A, V): every way to choose one candidate per channel, or -1 if that is allowed."""
    lists = [
        ([-1] if missing or first == last else []) + list(range(first, last))
        for first, last in pairwise(offsets)
    ]
    return np.array(list(product(*lists)), dtype=np.int64)


def enumerate_ls_chain(arguments: dict[str, Any]) -> Enumeration:
    """The cost of every labelling, from the arguments of `_core.search_ls_chain`.

    About their weighted mean, sum w_i |x_i|^2 = sum_(i<j) w_i w_j |x_i - x_j|^2 / sum w. So the
    cost is one sum over pairs, quadratic in k; its least value in the sector of allowed k is
    either inside, on one of two rays, or on one of two arcs.
    """
    p = arguments["positions_mm"] @ [1, 1j]
    u = arguments["template_mm"] @ [1, 1j]
    choices = all_choices(arguments["offsets"], missing=True)
    present = choices >= 0
    chosen = np.concatenate([p, [0]])[choices]
    weights = np.where(present, arguments["disc_weights"], 0.0)
    total = weights.sum(axis=1)
    a = np.zeros(len(choices))  # cost = a |k|^2 - 2 Re(conj(k) b) + c
    b = np.zeros(len(choices), dtype=np.complex128)
    c = np.zeros(len(choices))
    feasible = present.sum(axis=1) >= arguments["min_present"]
    count = len(u)
    for i in range(count):
        for j in range(i + 1, count):
            both = present[:, i] & present[:, j]
            step = both & ~present[:, i + 1 : j].any(axis=1)
            weight = weights[:, i] * weights[:, j] / np.maximum(total, 1e-300)
            weight += step * arguments["chain_weight"] * arguments["pair_weights"][i, j]
            weight *= both
            dp, du = chosen[:, j] - chosen[:, i], u[j] - u[i]
            a += weight * abs(dp) ** 2
            b += weight * dp.conj() * du
            c += weight * abs(du) ** 2
            descends = (dp.real > 0) & (dp.real >= arguments["min_gap"] * du.real)
            feasible &= ~step | descends
    residual = least_in_sector(
        a, b, c, arguments["max_rotation_rad"], arguments["min_scale"], arguments["max_scale"]
    )
    scores = np.concatenate([np.minimum(arguments["scores"], 1.0), [1.0]])[choices]
    costs = residual + arguments["score_weight"] * (1 - scores).sum(axis=1)
    costs += (~present * arguments["missing_costs"]).sum(axis=1)
    return Enumeration(choices, np.where(feasible, costs, np.inf))


def least_in_sector(
    a: Array, b: Array, c: Array, rotation: float, min_scale: float, max_scale: float
) -> Array:
    """Least a |k|^2 - 2 Re(conj(k) b) + c over |arg k| <= rotation, min <= |k| <= max scale."""

    def value(k: Array) -> Array:
        return np.asarray(a * abs(k) ** 2 - 2 * (k.conj() * b).real + c)

    a_or_one = np.where(a > 0, a, 1.0)
    free = b / a_or_one
    inside = (abs(np.angle(free)) <= rotation) & (min_scale <= abs(free)) & (abs(free) <= max_scale)
    options = [np.where(inside & (a > 0), value(free), np.inf)]
    for angle in (-rotation, rotation):
        ray = np.exp(1j * angle)
        options.append(value(np.clip((b / ray).real / a_or_one, min_scale, max_scale) * ray))
    arc = np.exp(1j * np.clip(np.angle(b), -rotation, rotation))
    options += [value(scale * arc) for scale in (min_scale, max_scale) if np.isfinite(scale)]
    return np.where(a > 0, np.min(options, axis=0), c)


def enumerate_paper(
    positions_mm: Array, offsets: Array, template_mm: Array, anchors: tuple[int, int], squared: bool
) -> Enumeration:
    """Equation 3 of paper 1 for every labelling, as it is printed (or as it was programmed)."""
    v1, v5 = anchors
    choices = all_choices(offsets, missing=False)
    skeleton = template_mm - template_mm[v1]
    skeleton = skeleton / np.linalg.norm(skeleton[v5])
    costs = np.full(len(choices), np.inf)
    for index, choice in enumerate(choices):
        if choice[v1] < 0 or choice[v5] < 0:
            continue
        unit = np.linalg.norm(positions_mm[choice[v1]] - positions_mm[choice[v5]])
        if unit == 0:
            continue
        shape = (positions_mm[choice] - positions_mm[choice[v1]]) / unit
        distances = np.linalg.norm(skeleton - shape, axis=1)[choice >= 0]
        costs[index] = np.linalg.norm(distances) if squared else distances.sum()
    return Enumeration(choices, costs)
