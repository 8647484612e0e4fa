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
_GAP_MM = 21.0  # from a dot to its name: beyond the canal
# Told apart by the colour-blind, and visible on black, grey and white.
_COLOURS = {"C": (86, 180, 233), "T": (240, 168, 20), "L": (40, 210, 140)}
_REGIONS = {"C": "cervical", "T": "thoracic", "L": "lumbar"}
_OTHER = (230, 230, 230)
_UNSURE = 0.5

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class OverlayPoint:
    """A disc in a picture.

    Attributes:
        row, col: pixel coordinates; centres at integers, row 0 on top.
        name: written beside the point; its first letter (C, T, L) gives the colour.
        confidence: written after the name unless None. Below 0.5 the dot is hollow.
    """

    row: float
    col: float
    name: str
    confidence: float | None = None


def draw_overlay(
    pixels: npt.ArrayLike,
    spacing_mm: tuple[float, float],
    points: Sequence[OverlayPoint],
    title: str = "",
) -> Image.Image:
    """Return the picture.

    Args:
        pixels: (H, W) in 0..1, rows superior to inferior, columns anterior to posterior.
        spacing_mm: (row, column) size of a pixel; the picture has the body's proportions.
        points: the discs; names are placed behind them and never cover each other.
        title: one line above the image, such as the file name; shortened if too long.

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

    gap = max(_GAP_MM * scale, 22)

    font = ImageFont.load_default(_FONT_SIZE)
    # Pixel centres at integers -> corners of the resized image.
    dots = [
        ((p.col + 0.5) * size[0] / grey.shape[1], (p.row + 0.5) * size[1] / grey.shape[0])
        for p in points
    ]
    texts = [_text(point) for point in points]
    ends = [x + gap + font.getlength(t) + 8 for (x, _), t in zip(dots, texts, strict=True)]
    legend = _legend(points)
    width = max(size[0], *map(round, ends), _legend_width(legend, font), 1)
    top = 2 * _LINE + 12
    canvas = Image.new("RGB", (min(width, MAX_SIDE), min(size[1] + top, MAX_SIDE)))
    canvas.paste(scan, (0, top))
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 5), _shortened(title, font, canvas.width - 16), _OTHER, font)
    x = 8.0
    for text, colour in legend:
        if colour is not None:
            draw.ellipse((x, _LINE + 10, x + 11, _LINE + 21), colour)
            x += 17
        draw.text((x, _LINE + 5), text, _OTHER, font)
        x += font.getlength(text) + 18

    text_rows = _spread([y for _, y in dots], _LINE, size[1])
    for point, text, (x, y), text_y in zip(points, texts, dots, text_rows, strict=True):
        colour = _COLOURS.get(point.name[:1], _OTHER)
        y, text_y = y + top, text_y + top
        draw.line((x + 6, y, x + gap - 3, text_y), colour, 1)
        unsure = _is_unsure(point)
        box = (x - 5, y - 5, x + 5, y + 5)
        draw.ellipse(box, None if unsure else colour, colour if unsure else (0, 0, 0), 2)
        draw.text((x + gap, text_y), text, colour, font, "lm", stroke_width=2, stroke_fill=0)
    return canvas


def write_overlay(
    path: str | Path,
    pixels: npt.ArrayLike,
    spacing_mm: tuple[float, float],
    points: Sequence[OverlayPoint],
    title: str = "",
) -> None:
    """Write the picture of `draw_overlay` as PNG; the file appears complete or not at all.

    Raises:
        ValueError: as `draw_overlay`.
        UsageError: `path` cannot be written.
    """
    picture = draw_overlay(pixels, spacing_mm, points, title)
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG")


def _text(point: OverlayPoint) -> str:
    return point.name if point.confidence is None else f"{point.name}  {point.confidence:.2f}"


def _is_unsure(point: OverlayPoint) -> bool:
    return point.confidence is not None and point.confidence < _UNSURE


def _legend(points: Sequence[OverlayPoint]) -> list[tuple[str, tuple[int, int, int] | None]]:
    """Return texts with the colour of the dot before them, for the regions in the picture."""
    count = f"{len(points)} disc{'' if len(points) == 1 else 's'}"
    present = {point.name[:1] for point in points}
    legend = [(count, None), *((_REGIONS[r], _COLOURS[r]) for r in _REGIONS if r in present)]
    if any(_is_unsure(point) for point in points):
        legend.append((f"hollow: confidence below {_UNSURE:g}", None))
    return legend


def _legend_width(legend: Sequence[tuple[str, object]], font: _Font) -> int:
    return round(8 + sum(font.getlength(text) + 35 for text, _ in legend))


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
