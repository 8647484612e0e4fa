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


def find_all_peaks(heatmap: Array, floor: float) -> list[tuple[int, int]]:
    """Cells of peaks of value >= floor, best first, whatever the values.

    Of equal ones the first in raster order counts as larger, and NaN as smaller than all.
    """
    rows, cols = heatmap.shape
    padded = np.pad(heatmap, 1, constant_values=-np.inf)
    is_peak = heatmap >= floor
    for index, (dr, dc) in enumerate(product((-1, 0, 1), repeat=2)):
        other = padded[1 + dr : 1 + dr + rows, 1 + dc : 1 + dc + cols]
        if index < 4:
            is_peak &= ~(other >= heatmap)
        elif index > 4:
            is_peak &= ~(other > heatmap)
    cells = [(row, col) for row, col in np.argwhere(is_peak).tolist()]
    return sorted(cells, key=lambda cell: (-heatmap[cell], cell))


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


def all_choices(offsets: Array, *, missing: bool, borrowed: bool = False) -> Array:
    """(A, V): every way to choose one candidate per channel, or -1 if that is allowed."""
    own = [list(range(first, last)) for first, last in pairwise(offsets)]
    lists = [
        ([-1] if missing or not own[i] else [])
        + [c for near in (own[max(i - 1, 0) : i + 2] if borrowed else [own[i]]) for c in near]
        for i in range(len(own))
    ]
    return np.array(list(product(*lists)), dtype=np.int64)


def descends(arguments: dict[str, Any], choices: Array, i: int, j: int) -> Array:
    """(A,): whether i and j are neighbouring present discs (first), and in order (second)."""
    present = choices >= 0
    step = present[:, i] & present[:, j] & ~present[:, i + 1 : j].any(axis=1)
    rows = np.concatenate([arguments["positions_mm"][:, 0], [0.0]])[choices]
    down = rows[:, j] - rows[:, i]
    expected = arguments["mean_mm"][j, 0] - arguments["mean_mm"][i, 0]
    return np.stack([step, (down > 0) & (down >= arguments["min_gap"] * expected)])


def in_order(arguments: dict[str, Any], choices: Array) -> Array:
    """(A,): whether all neighbouring present discs descend."""
    fine = np.ones(len(choices), dtype=np.bool_)
    for i in range(choices.shape[1]):
        for j in range(i + 1, choices.shape[1]):
            step, down = descends(arguments, choices, i, j)
            fine &= ~step | down
    return fine


def offset_costs(arguments: dict[str, Any], choices: Array) -> Array:
    """(A,): prices of candidates of neighbouring channels."""
    count = choices.shape[1]
    source = np.repeat(np.arange(count), np.diff(arguments["offsets"]))
    costs = np.zeros(len(choices))
    for index, choice in enumerate(choices):
        offsets = [int(source[c]) - i for i, c in enumerate(choice) if c >= 0]
        costs[index] += sum(arguments["borrow_mm2"] for offset in offsets if offset != 0)
        if offsets and offsets[0] != 0:
            costs[index] += arguments["offset_start_mm2"]
        costs[index] += arguments["offset_change_mm2"] * sum(a != b for a, b in pairwise(offsets))
    return costs


def obeys(arguments: dict[str, Any], choices: Array) -> Array:
    """(A,): whether all rules are kept: 1 is absent, 2 present, 3 present with an own candidate."""
    fine = np.ones(len(choices), dtype=np.bool_)
    for channel, rule in enumerate(arguments["rules"]):
        first, end = arguments["offsets"][channel], arguments["offsets"][channel + 1]
        chosen = choices[:, channel]
        own = (first <= chosen) & (chosen < end)
        fine &= [fine, chosen < 0, chosen >= 0, own][rule]
    return fine


def enumerate_ls_chain(arguments: dict[str, Any]) -> Enumeration:
    """The cost of every labelling, from the arguments of `_core.search_ls_chain`.

    About their weighted mean, sum w_i |x_i|^2 = sum_(i<j) w_i w_j |x_i - x_j|^2 / sum w. So the
    cost is one sum over pairs, quadratic in k; its least value in the sector of allowed k is
    either inside, on one of two rays, or on one of two arcs.
    """
    p = arguments["positions_mm"] @ [1, 1j]
    u = arguments["mean_mm"] @ [1, 1j]
    borrowed = bool(np.isfinite(arguments["borrow_mm2"]))
    choices = all_choices(arguments["offsets"], missing=True, borrowed=borrowed)
    present = choices >= 0
    chosen = np.concatenate([p, [0]])[choices]
    weights = np.where(present, arguments["disc_weights"], 0.0)
    total = weights.sum(axis=1)
    a = np.zeros(len(choices))  # cost = a |k|^2 - 2 Re(conj(k) b) + c
    b = np.zeros(len(choices), dtype=np.complex128)
    c = np.zeros(len(choices))
    feasible = present.sum(axis=1) >= arguments["min_present"]
    feasible &= present.sum(axis=1) <= arguments["max_present"]
    feasible &= obeys(arguments, choices)
    count = len(u)
    for i in range(count):
        for j in range(i + 1, count):
            both = present[:, i] & present[:, j]
            step, down = descends(arguments, choices, i, j)
            weight = weights[:, i] * weights[:, j] / np.maximum(total, 1e-300)
            weight += step * arguments["chain_weight"] * arguments["pair_weights"][i, j]
            weight *= both
            dp, du = chosen[:, j] - chosen[:, i], u[j] - u[i]
            a += weight * abs(dp) ** 2
            b += weight * dp.conj() * du
            c += weight * abs(du) ** 2
            feasible &= ~step | down
    residual = least_in_sector(
        a, b, c, arguments["max_rotation_rad"], arguments["min_scale"], arguments["max_scale"]
    )
    scores = np.concatenate([np.minimum(arguments["scores"], 1.0), [1.0]])[choices]
    costs = residual + arguments["score_weight_mm2"] * (1 - scores).sum(axis=1)
    costs += (~present * arguments["missing_costs"]).sum(axis=1)
    costs += offset_costs(arguments, choices)
    return Enumeration(choices, np.where(feasible, costs, np.inf))


def enumerate_first_last(arguments: dict[str, Any]) -> Enumeration:
    """The cost of every labelling, from the arguments of `_core.search_first_last`."""
    choices = all_choices(arguments["offsets"], missing=True)
    p = arguments["positions_mm"] @ [1, 1j]
    u = arguments["mean_mm"] @ [1, 1j]
    scores = np.minimum(arguments["scores"], 1.0)
    costs = np.full(len(choices), np.inf)
    for index in np.flatnonzero(in_order(arguments, choices)):
        discs = np.flatnonzero(choices[index] >= 0)
        if len(discs) < 2:
            continue
        chosen = choices[index, discs]
        k = (u[discs[-1]] - u[discs[0]]) / (p[chosen[-1]] - p[chosen[0]])
        if abs(np.angle(k)) > arguments["max_rotation_rad"] + 1e-12:
            continue
        if not arguments["min_scale"] - 1e-12 <= abs(k) <= arguments["max_scale"] + 1e-12:
            continue
        off = abs(k * (p[chosen] - p[chosen[0]]) - (u[discs] - u[discs[0]]))
        absent = np.setdiff1d(np.arange(len(u)), discs)
        costs[index] = (off[1:-1] ** 2).sum() + arguments["missing_costs"][absent].sum()
        costs[index] += arguments["score_weight_mm2"] * (1 - scores[chosen]).sum()
    return Enumeration(choices, costs)


def enumerate_paper_order(
    positions_mm: Array,
    offsets: Array,
    mean_mm: Array,
    min_gap: float,
    missing_costs: Array,
    anchors: tuple[int, int],
    squared: bool,
) -> Enumeration:
    """Equation 3 of paper 1 for every labelling in order, missing discs at their cost."""
    v1, v5 = anchors
    choices = all_choices(offsets, missing=True)
    skeleton = mean_mm - mean_mm[v1]
    skeleton = skeleton / np.linalg.norm(skeleton[v5])
    arguments = {"positions_mm": positions_mm, "mean_mm": mean_mm, "min_gap": min_gap}
    costs = np.full(len(choices), np.inf)
    for index in np.flatnonzero(in_order(arguments, choices)):
        choice = choices[index]
        if choice[v1] < 0 or choice[v5] < 0:
            continue
        unit = np.linalg.norm(positions_mm[choice[v1]] - positions_mm[choice[v5]])
        shape = (positions_mm[choice] - positions_mm[choice[v1]]) / unit
        distances = np.linalg.norm(skeleton - shape, axis=1)
        terms = np.where(choice >= 0, distances**2 if squared else distances, missing_costs)
        costs[index] = np.sqrt(terms.sum()) if squared else terms.sum()
    return Enumeration(choices, costs)


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
    positions_mm: Array, offsets: Array, mean_mm: Array, anchors: tuple[int, int], squared: bool
) -> Enumeration:
    """Equation 3 of paper 1 for every labelling, as it is printed (or as it was programmed)."""
    v1, v5 = anchors
    choices = all_choices(offsets, missing=False)
    skeleton = mean_mm - mean_mm[v1]
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


def authors_search(
    positions: Array, offsets: Array, template: Array, anchors: tuple[int, int]
) -> tuple[Array, float]:
    """The first labelling of least cost, as the code published with paper 1 looks for it.

    Every combination of one candidate per channel is scaled, compared with the template as a whole
    (the Frobenius norm of the difference) and kept if it is strictly better than the last one kept.
    """
    v1, v5 = anchors
    best, least = np.zeros(len(template), dtype=np.int64), np.inf
    for choice in product(*(range(first, last) for first, last in pairwise(offsets))):
        skeleton = positions[list(choice)]
        skeleton = (skeleton - skeleton[v1]) / np.linalg.norm(skeleton[v1] - skeleton[v5])
        cost = float(np.linalg.norm(template - skeleton))
        if cost < least:
            best, least = np.array(choice), cost
    return best, least
