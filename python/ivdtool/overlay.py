"""A picture to check the labels by eye: the sagittal slab with a named dot on every disc."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ivdtool.files import atomic_write

__all__ = ["MAX_SIDE", "OverlayPoint", "draw_overlay", "write_overlay"]

MAX_SIDE = 2000
"""No side of a picture is longer than this, in pixels."""

_PIXELS_PER_MM = 3.2
_MAX_IMAGE_SIDE = 1500
_FONT_SIZE = 19
_LINE = 24
_TOP = 2 * _LINE + 12  # title and legend
_GAP_MM = 21.0  # from a dot to its name: beyond the canal
# Told apart by the colour-blind, and visible on black, grey and white.
_COLOURS = {"C": (86, 180, 233), "T": (240, 168, 20), "L": (40, 210, 140)}
_REGIONS = {"C": "cervical", "T": "thoracic", "L": "lumbar"}
_OTHER = (230, 230, 230)
_RIGHT, _WRONG = (40, 210, 140), (255, 96, 64)
_UNSURE = 0.5

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Colour = tuple[int, int, int]
_Place = tuple[float, float]


@dataclass(frozen=True)
class OverlayPoint:
    """A disc in a picture.

    Attributes:
        row, col: pixel coordinates; centres at integers, row 0 on top.
        name: written beside the point; its first letter (C, T, L) gives the colour.
        confidence: written after the name unless None. Below 0.5 the dot is hollow.
        right: of a predicted disc, whether it is; of a true one, whether it was found. None where
            that is not known. Beside the truth this gives the colour instead of the name.
    """

    row: float
    col: float
    name: str
    confidence: float | None = None
    right: bool | None = None


def draw_overlay(
    pixels: npt.ArrayLike,
    spacing_mm: tuple[float, float],
    points: Sequence[OverlayPoint],
    title: str = "",
    truth: Sequence[OverlayPoint] = (),
) -> Image.Image:
    """Return the picture.

    Args:
        pixels: (H, W) in 0..1, rows superior to inferior, columns anterior to posterior.
        spacing_mm: (row, column) size of a pixel; the picture has the body's proportions.
        points: the discs; names are placed behind them and never cover each other.
        title: one line above the image, such as the file name; shortened if too long.
        truth: discs to compare with: crosses, with their names in front of the spine.

    Returns:
        RGB image, no side longer than `MAX_SIDE`.

    Raises:
        ValueError: `pixels` is not a 2-D image or the spacing is not positive.
    """
    grey = np.nan_to_num(np.asarray(pixels, np.float32))
    if grey.ndim != 2 or grey.size == 0:
        raise ValueError(f"pixels must have shape (H, W), not {grey.shape}")
    row_mm, col_mm = spacing_mm
    if not (row_mm > 0 and col_mm > 0):
        raise ValueError(f"spacing_mm must be positive, not {spacing_mm}")
    height_mm, width_mm = grey.shape[0] * row_mm, grey.shape[1] * col_mm
    scale = min(_PIXELS_PER_MM, _MAX_IMAGE_SIDE / max(height_mm, width_mm))
    size = (max(round(width_mm * scale), 1), max(round(height_mm * scale), 1))
    scan = Image.fromarray(np.rint(255 * grey.clip(0, 1)).astype(np.uint8))
    scan = scan.resize(size, Image.Resampling.BICUBIC)

    # Pixel centres at integers -> corners of the resized image.
    factors = np.array([size[0] / grey.shape[1], size[1] / grey.shape[0]])
    dots, crosses = (
        [tuple((np.array([p.col, p.row]) + 0.5) * factors) for p in own] for own in (points, truth)
    )
    font = ImageFont.load_default(_FONT_SIZE)
    gap = max(_GAP_MM * scale, 22)
    left = max(0, *(round(-end) for end in _ends(truth, crosses, -gap, font)), 0)
    right = max(size[0], *map(round, _ends(points, dots, gap, font)), 1)
    legend = _legend(points, truth)
    width = max(left + right, _legend_width(legend, font))
    canvas = Image.new("RGB", (min(width, MAX_SIDE), min(size[1] + _TOP, MAX_SIDE)))
    canvas.paste(scan, (left, _TOP))
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 5), _shortened(title, font, canvas.width - 16), _OTHER, font)
    _draw_legend(draw, legend, font)
    for own, places, reach in ((truth, crosses, -gap), (points, dots, gap)):
        rows = _spread([y for _, y in places], _LINE, size[1])
        for point, (x, y), row in zip(own, places, rows, strict=True):
            at, text_at = (x + left, y + _TOP), (x + left + reach, row + _TOP)
            _draw_point(draw, point, at, text_at, font, compared=bool(truth))
    return canvas


def write_overlay(
    path: str | Path,
    pixels: npt.ArrayLike,
    spacing_mm: tuple[float, float],
    points: Sequence[OverlayPoint],
    title: str = "",
    truth: Sequence[OverlayPoint] = (),
) -> None:
    """Write the picture of `draw_overlay` as PNG; the file appears complete or not at all.

    Raises:
        ValueError: as `draw_overlay`.
        UsageError: `path` cannot be written.
    """
    picture = draw_overlay(pixels, spacing_mm, points, title, truth)
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG")


def _text(point: OverlayPoint) -> str:
    return point.name if point.confidence is None else f"{point.name}  {point.confidence:.2f}"


def _is_unsure(point: OverlayPoint) -> bool:
    return point.confidence is not None and point.confidence < _UNSURE


def _ends(
    points: Sequence[OverlayPoint], places: Sequence[_Place], gap: float, font: _Font
) -> list[float]:
    """Where the names end, to the right for a positive gap from dot to name."""
    lengths = [font.getlength(_text(point)) + 8 for point in points]
    return [
        x + gap + (length if gap > 0 else -length)
        for (x, _), length in zip(places, lengths, strict=True)
    ]


def _draw_point(
    draw: ImageDraw.ImageDraw,
    point: OverlayPoint,
    at: _Place,
    text_at: _Place,
    font: _Font,
    compared: bool,
) -> None:
    """A dot with its name on the right, or a cross of the truth with its name on the left."""
    is_dot = text_at[0] > at[0]
    colour = _colour(point, is_dot, compared)
    (x, y), (text_x, text_y) = at, text_at
    if is_dot:
        draw.line((x + 6, y, text_x - 3, text_y), colour, 1)
        unsure = _is_unsure(point)
        box = (x - 5, y - 5, x + 5, y + 5)
        draw.ellipse(box, None if unsure else colour, colour if unsure else (0, 0, 0), 2)
    else:
        draw.line((x - 6, y, text_x + 3, text_y), colour, 1)
        for dx, dy in ((7, 0), (0, 7)):
            draw.line((x - dx, y - dy, x + dx, y + dy), (0, 0, 0), 4)
            draw.line((x - dx, y - dy, x + dx, y + dy), colour, 2)
    anchor = "lm" if is_dot else "rm"
    draw.text(text_at, _text(point), colour, font, anchor, stroke_width=2, stroke_fill=0)


def _colour(point: OverlayPoint, is_dot: bool, compared: bool) -> _Colour:
    if point.right is False:
        return _WRONG
    if not compared:
        return _COLOURS.get(point.name[:1], _OTHER)
    return _RIGHT if is_dot and point.right else _OTHER


def _legend(
    points: Sequence[OverlayPoint], truth: Sequence[OverlayPoint]
) -> list[tuple[str, _Colour | None]]:
    """Return texts with the colour of the dot before them, for what is in the picture."""
    count = f"{len(points)} disc{'' if len(points) == 1 else 's'}"
    legend: list[tuple[str, _Colour | None]] = [(count, None)]
    if truth:
        judged = {point.right for point in (*points, *truth)}
        legend += [("right", _RIGHT)] * (True in judged)
        legend += [("wrong or missed", _WRONG)] * (False in judged)
        legend.append(("+ truth", None))
    else:
        present = {point.name[:1] for point in points}
        legend += [(_REGIONS[r], _COLOURS[r]) for r in _REGIONS if r in present]
    if any(_is_unsure(point) for point in points):
        legend.append((f"hollow: confidence below {_UNSURE:g}", None))
    return legend


def _legend_width(legend: Sequence[tuple[str, object]], font: _Font) -> int:
    return round(8 + sum(font.getlength(text) + 35 for text, _ in legend))


def _draw_legend(
    draw: ImageDraw.ImageDraw, legend: Sequence[tuple[str, _Colour | None]], font: _Font
) -> None:
    x = 8.0
    for text, colour in legend:
        if colour is not None:
            draw.ellipse((x, _LINE + 10, x + 11, _LINE + 21), colour)
            x += 17
        draw.text((x, _LINE + 5), text, _OTHER, font)
        x += font.getlength(text) + 18


def _shortened(text: str, font: _Font, width: float) -> str:
    """Return the text, cut in the middle if it is wider than `width` pixels."""
    short, keep = text, len(text)
    while keep > 2 and font.getlength(short) > width:
        keep -= 1
        short = f"{text[: keep // 2]}…{text[len(text) - keep // 2 :]}"
    return short


def _spread(rows: Sequence[float], distance: float, height: float) -> list[float]:
    """Move rows apart to at least `distance`, as little as one pass down and one up allow."""
    order = sorted(range(len(rows)), key=rows.__getitem__)
    moved = list(rows)
    for above, here in pairwise(order):
        moved[here] = max(moved[here], moved[above] + distance)
    limit = height - distance / 2
    for here in reversed(order):
        moved[here] = min(moved[here], limit)
        limit = moved[here] - distance
    return moved
