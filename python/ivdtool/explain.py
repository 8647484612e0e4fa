"""What the skeleton search did, for people: an account in words and a picture of its tree."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ivdtool.candidates import Candidates
from ivdtool.discs import disc_name
from ivdtool.files import atomic_write
from ivdtool.search import Assignment, TreeNode, search_skeleton

__all__ = ["explain_search", "write_tree"]

REASONS = {
    "order": "not far enough below the last disc",
    "chain": "too dear, the later steps fitted one by one",
    "shape": "too dear, this disc fitted with the earlier ones",
    "incumbent": "a better labelling came first",
    "budget": "never reached",
}
SHOWN = 6  # improvements in the account


def explain_search(assignment: Assignment) -> str:
    """Return the search's account: costs, discs with their candidates, alternatives, effort."""
    if not assignment.labels:
        mode, count = assignment.config.mode, len(assignment.candidates.scores)
        return f"{mode}: no labelling is feasible among {count} candidates"
    return "\n".join(
        [
            *_cost_lines(assignment),
            *_disc_lines(assignment),
            *_alternative_lines(assignment),
            *_effort_lines(assignment),
        ]
    )


def _cost_lines(assignment: Assignment) -> Iterator[str]:
    mode = assignment.config.mode
    unit = " mm2" if mode in ("ls_chain", "first_last") else " of |v1 - v5|"
    digits = 1 if unit == " mm2" else 4
    terms = " + ".join(
        f"{name.removesuffix('_mm2')} {value:.{digits}f}"
        for name, value in assignment.terms.items()
    )
    yield f"{mode}: cost {assignment.cost:.{digits}f}{unit} = {terms}"
    if assignment.optimal:
        yield "  proved: no labelling costs less"
    else:
        yield f"  not proved: some labelling may cost as little as {assignment.lower_bound:.{digits}f}"
    if unit == " mm2":
        degrees = math.degrees(assignment.rotation_rad)
        yield f"  the spine is scaled by {assignment.scale:.3f} and turned by {degrees:.1f} degrees"
    if assignment.shift_margins is not None:
        up, down = map(_number, assignment.shift_margins)
        yield f"  all one level up would cost {up} more, one level down {down}"


def _disc_lines(assignment: Assignment) -> Iterator[str]:
    candidates = assignment.candidates
    shape, chain = _shares(assignment)
    yield "  disc      shape   chain   margin  sure  candidates: score (row, col in mm), * chosen"
    present = iter(range(len(assignment.labels)))
    for channel, label in enumerate(candidates.labels):
        own = candidates.of(channel)
        chosen = int(assignment.choice[channel])
        points = [
            f"{'*' if row == chosen else ''}{candidates.scores[row]:.2f} "
            f"({candidates.positions_mm[row, 0]:.0f}, {candidates.positions_mm[row, 1]:.0f})"
            for row in range(own.start, own.stop)
        ]
        if chosen >= 0 and not own.start <= chosen < own.stop:
            points.append(f"*{candidates.scores[chosen]:.2f} borrowed from the next channel")
        listed = "  ".join(points) or "none"
        margin = _number(float(assignment.channel_margins[channel]))
        if chosen < 0:
            yield f"  {disc_name(label):<8} missing         {margin:>9}        {listed}"
            continue
        index = next(present)
        yield (
            f"  {disc_name(label):<8} {_number(shape[channel]):>6} {_number(chain[channel]):>7} "
            f"{margin:>8} {100 * assignment.posteriors[index]:>4.0f}%  {listed}"
        )


def _shares(
    assignment: Assignment,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(V,) squared distance from the fitted skeleton, and of the step to the next disc; mm^2."""
    candidates, skeleton, config = assignment.candidates, assignment.skeleton, assignment.config
    nothing = np.full(len(candidates.labels), np.nan)
    if config.mode not in ("ls_chain", "first_last"):
        return nothing, nothing
    shape, chain = nothing.copy(), nothing.copy()
    discs = np.flatnonzero(assignment.choice >= 0)
    p = candidates.positions_mm[assignment.choice[discs]] @ np.array([1, 1j])
    u = skeleton.mean_mm[discs] @ np.array([1, 1j])
    off = assignment.scale * np.exp(1j * assignment.rotation_rad) * p - u
    weights = np.ones(len(discs))
    if config.mode == "ls_chain" and config.weights == "learnt":
        weights = skeleton.disc_weights[discs]
    origin = np.average(off, weights=weights) if config.mode == "ls_chain" else off[0]
    shape[discs] = weights * np.abs(off - origin) ** 2
    if config.mode == "ls_chain":
        weights = config.chain_weight * skeleton.pair_weights[discs[:-1], discs[1:]]
        chain[discs[:-1]] = weights * np.abs(np.diff(off)) ** 2
    return shape, chain


def _alternative_lines(assignment: Assignment) -> Iterator[str]:
    candidates = assignment.candidates
    for number, other in enumerate(assignment.alternatives, start=2):
        changes = []
        for channel, label in enumerate(candidates.labels):
            before, after = int(assignment.choice[channel]), int(other.choice[channel])
            if before == after:
                continue
            if after < 0:
                changes.append(f"{disc_name(label)} missing")
            else:
                row, col = candidates.positions_mm[after]
                changes.append(f"{disc_name(label)} at ({row:.0f}, {col:.0f})")
        extra = _number(other.cost - assignment.cost)
        yield f"  {number}. best, {extra} more: {', '.join(changes)}"


def _effort_lines(assignment: Assignment) -> Iterator[str]:
    statistics = assignment.statistics
    yield f"  {assignment.nodes} nodes taken, {statistics.depth} discs deep; cut:"
    for fate, reason in REASONS.items():
        if count := statistics.fates[fate]:
            yield f"    {count:>8}  {reason}"
    steps = statistics.improvements
    kept = steps if len(steps) <= SHOWN else (*steps[: SHOWN // 2], *steps[-SHOWN // 2 :])
    best = ", ".join(f"{_number(cost)} after {nodes}" for nodes, cost in kept)
    yield f"  best cost by nodes taken: {best}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "ever"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


# The picture.

MOST_NODES = 25
CELL = (92, 74)  # px, width of a leaf and height of a level
COLOURS = {
    "expanded": "#1b4f8a",
    "best": "#0a7d3b",
    "order": "#8a8a8a",
    "chain": "#c25700",
    "shape": "#a3195b",
    "incumbent": "#6b4fa0",
    "budget": "#000000",
}


def write_tree(path: str | Path, answer: Assignment) -> None:
    """Search again and write a picture of the search tree, see `draw_tree`; PNG.

    Raises:
        ValueError: the answer of a mode other than `ls_chain`.
    """
    if answer.config.mode != "ls_chain":
        raise ValueError(f"only ls_chain searches a tree, not {answer.config.mode}")
    assignment = search_skeleton(
        answer.candidates, answer.skeleton, answer.config, rules=answer.rules, tree_size=20_000
    )
    with atomic_write(path) as temporary:
        draw_tree(answer.candidates, assignment).save(temporary, format="PNG")


def draw_tree(candidates: Candidates, assignment: Assignment) -> Image.Image:
    """Draw the first nodes of the search tree, from the top disc down.

    A circle is a node that was taken, with its number, its disc, which candidate, and its bound in
    mm^2; a square stands for the children that were cut for one reason, with their number. Green
    leads to the answer.
    """
    tree = assignment.statistics.tree
    taken = [i for i, node in enumerate(tree) if node.fate == "expanded"]
    shown = set(sorted(taken)[:MOST_NODES])
    children: dict[int, list[int]] = {i: [] for i in shown}
    cut: dict[int, dict[str, int]] = {i: {} for i in shown}
    for i, node in enumerate(tree):
        if node.parent not in shown:
            continue
        if i in shown:
            children[node.parent].append(i)
        elif node.fate != "expanded":
            cut[node.parent][node.fate] = cut[node.parent].get(node.fate, 0) + 1

    columns: dict[int, float] = {}
    rows: dict[int, int] = {}
    squares: list[tuple[int, str, int, float]] = []
    width = 0

    def place(index: int, row: int) -> None:
        nonlocal width
        rows[index] = row
        start = width
        for child in children[index]:
            place(child, row + 1)
        for fate, count in cut[index].items():
            squares.append((index, fate, count, width + 0.5))
            width += 1
        width = max(width, start + 1)
        columns[index] = (start + width) / 2

    place(0, 0)
    best = _best_nodes(tree, assignment)
    depth = max(rows.values()) + 2
    legend = 22 * (len(COLOURS) + 1)
    size = (max(width * CELL[0], 760), depth * CELL[1] + legend + 20)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(13)

    def at(column: float, row: int) -> tuple[float, float]:
        return column * CELL[0], legend + 30 + row * CELL[1]

    for index, column in columns.items():
        for child in children[index]:
            colour = COLOURS["best"] if child in best else COLOURS["expanded"]
            line = (at(column, rows[index]), at(columns[child], rows[child]))
            draw.line(line, fill=colour, width=3 if child in best else 1)
    for index, fate, count, column in squares:
        x, y = at(column, rows[index] + 1)
        draw.line((at(columns[index], rows[index]), (x, y)), fill=COLOURS[fate], width=1)
        draw.rectangle((x - 6, y - 6, x + 6, y + 6), fill=COLOURS[fate])
        draw.text((x, y + 10), f"{count} cut", fill=COLOURS[fate], font=font, anchor="ma")
    for number, index in enumerate(sorted(shown)):
        x, y = at(columns[index], rows[index])
        colour = COLOURS["best"] if index in best or index == 0 else COLOURS["expanded"]
        draw.ellipse((x - 12, y - 12, x + 12, y + 12), fill=colour)
        draw.text((x, y), str(number), fill="white", font=font, anchor="mm")
        text = _node_text(tree[index], candidates)
        box = draw.textbbox((x, y + 14), text, font=font, anchor="ma", align="center")
        draw.rectangle(box, fill="white")
        draw.text((x, y + 14), text, fill=colour, font=font, anchor="ma", align="center")
    title = f"{assignment.nodes} nodes taken, the first {len(shown) - 1} shown; cost "
    title += f"{assignment.cost:.1f} mm2, " + ("proved" if assignment.optimal else "not proved")
    improvements = assignment.statistics.improvements
    title += f"; found after {improvements[-1][0] if improvements else 0} nodes"
    draw.text((12, 8), title, fill="black", font=font)
    meanings = {"expanded": "taken, in this order", "best": "leads to the answer"} | REASONS
    for row, (fate, meaning) in enumerate(meanings.items(), start=1):
        y = 10 + 22 * row
        draw.rectangle((14, y, 26, y + 12), fill=COLOURS[fate])
        prefix = "" if fate in ("expanded", "best") else "cut: "
        draw.text((36, y - 1), prefix + meaning, fill=COLOURS[fate], font=font)
    return image


def _best_nodes(tree: tuple[TreeNode, ...], assignment: Assignment) -> set[int]:
    """The nodes on the way to the answer."""
    best = {0}
    for i, node in enumerate(tree):
        on_the_way = node.parent in best and node.fate == "expanded"
        if on_the_way and assignment.choice[node.channel] == node.candidate:
            above = {tree[j].channel for j in _ancestors(tree, i)}
            chosen = set(np.flatnonzero(assignment.choice[: node.channel] >= 0).tolist())
            if chosen <= above:
                best.add(i)
    return best


def _ancestors(tree: tuple[TreeNode, ...], index: int) -> Iterator[int]:
    while tree[index].parent >= 0:
        index = tree[index].parent
        yield index


def _node_text(node: TreeNode, candidates: Candidates) -> str:
    if node.parent < 0:
        return f"no disc yet\n>= {node.bound:.0f}"
    name = disc_name(candidates.labels[node.channel])
    owner = int(candidates.channels_of(node.candidate))
    number = node.candidate - int(candidates.offsets[owner]) + 1
    lender = "" if owner == node.channel else f" of {disc_name(candidates.labels[owner])}"
    return f"{name} #{number}{lender}\n>= {node.bound:.0f}"
