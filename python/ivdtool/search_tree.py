"""The tree of a skeleton search, as a picture."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ivdtool.candidates import Candidates
from ivdtool.discs import disc_name
from ivdtool.explain import REASONS
from ivdtool.files import atomic_write
from ivdtool.search import Assignment, TreeNode, search_skeleton

__all__ = ["write_tree"]

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
