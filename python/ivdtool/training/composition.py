"""Whole spines from a neck and a lumbar spine: what hardly any data set shows.

The neck keeps its place at the top and the lumbar spine at the bottom. Between them stand copies of
the lumbar image's uppermost vertebrae, or the neck image's lowest, named as what they stand for and
as tall as vertebrae there are. Of a thoracic vertebra hardly anything tells its level but the count
from either end: this teaches to count, on the texture of real scans.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ivdtool.discs import ALL_LABELS
from ivdtool.training.dataset import Case

__all__ = ["compose_spine", "is_lower", "is_upper"]

Floats = npt.NDArray[np.float64]

THORAX = 15  # a disc that either image may end at
COPIED = 3  # vertebrae that a copy shows, where the image has as many
SEAM_MM = 6.0  # over which one part fades into the next
STRIP_MM = 20  # to either side of the column: what brightness is compared in
MOST_GAIN = 2.5


def is_upper(case: Case) -> bool:
    """Whether a spine can be composed downwards from this: a neck, down to the thorax at most."""
    return case.labels[0] <= 4 and case.labels[-1] <= THORAX and _has_enough(case)


def is_lower(case: Case) -> bool:
    """Whether a spine can be composed upwards from this: its last disc is L5/S1."""
    return case.labels[0] >= THORAX and case.labels[-1] == ALL_LABELS[-1] and _has_enough(case)


def _has_enough(case: Case) -> bool:
    """Whether there is a vertebra to copy, and no level left out: copies are told by counting."""
    first, last = case.labels[0], case.labels[-1]
    return last - first >= COPIED and case.labels == tuple(range(first, last + 1))


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows of an image that show the levels `low` to `high`, drawn from the row `top` on.

    Attributes:
        pixels: (H, W) the image.
        case: what is annotated in it.
        move: added to levels: what it stands for.
        low: level at its upper end, as what it stands for; None for the image's own end.
        high: at its lower end, likewise.
        stretch: rows drawn per row of the image.
    """

    pixels: npt.NDArray[np.float32]
    case: Case
    low: float | None
    high: float | None
    move: int = 0
    stretch: float = 1.0

    def at(self, level: float) -> Floats:
        """(2,) (row, col) of the column at a level, as what it stands for; lines past the ends."""
        own, levels = level - self.move, np.array(self.case.labels, dtype=float)
        return np.array([_line(own, levels, values) for values in self.case.points.T])

    @property
    def rows(self) -> tuple[float, float]:
        """First and last row of the image that are drawn."""
        first = 0.0 if self.low is None else float(self.at(self.low)[0])
        last = len(self.pixels) - 1.0 if self.high is None else float(self.at(self.high)[0])
        return max(first, 0.0), min(last, len(self.pixels) - 1.0)

    def shown(self) -> Iterator[tuple[int, Floats, bool]]:
        """Yield what is annotated between its ends: label as what it stands for, place, certain."""
        case = self.case
        for own, point, certain in zip(case.labels, case.points, case.certain, strict=True):
            label = own + self.move
            if (self.low is None or label > self.low) and (self.high is None or label < self.high):
                yield label, point, bool(certain)


def compose_spine(upper: Case, lower: Case, rng: np.random.Generator) -> Case:
    """Return one case that shows the spine from the upper one's first disc to L5/S1.

    Args:
        upper: see `is_upper`.
        lower: see `is_lower`.
        rng: draws slabs, what stands for the levels between, and the heights there.

    Raises:
        ValueError: the cases do not fit.
    """
    if not (is_upper(upper) and is_lower(lower)):
        raise ValueError("a spine is composed of a neck and a lumbar spine that shows L5/S1")
    return _draw(_place(_choose_parts(upper, lower, rng)), upper)


def _choose_parts(neck: Case, lumbar: Case, rng: np.random.Generator) -> list[_Part]:
    top, bottom = (
        case.planes[int(rng.integers(len(case.planes)))].astype(np.float32)
        for case in (neck, lumbar)
    )
    last = int(rng.integers(min(neck.labels[-1], 8), neck.labels[-1] + 1))
    first = max(last + 1, lumbar.labels[0])
    parts = [_Part(top, neck, None, last + 0.5)]
    # heights grow evenly from those above to those below
    above, below = _step(neck.points[-COPIED - 1 :]), _step(lumbar.points[: COPIED + 1])
    missing, done = first - last - 1, 0
    while done < missing:
        count = min(COPIED, missing - done)
        level = last + 1 + done  # of the copy's first disc
        of_neck = rng.random() < 0.5 * (1 - done / missing)
        pixels, case = (top, neck) if of_neck else (bottom, lumbar)
        start = case.labels[-count] if of_neck else case.labels[0]
        share = (done + (count + 1) / 2) / (missing + 1)
        wanted = (above + share * (below - above)) * rng.normal(1, 0.04)
        own = above if of_neck else below
        low, high = level - 0.5, level + count - 0.5
        parts.append(_Part(pixels, case, low, high, level - start, wanted / own))
        done += count
    parts.append(_Part(bottom, lumbar, first - 0.5, None))
    return parts


@dataclass(frozen=True, eq=False)
class _Placed:
    """A part and where it is drawn.

    Attributes:
        part: what is drawn.
        top: row of its first row.
        bottom: row after its last one.
        left: column of its image's first one.
    """

    part: _Part
    top: int
    bottom: int
    left: int

    def place(self, point: Floats) -> Floats:
        """(2,) (row, col) in the drawing of a point of the image."""
        row = self.top + (point[0] - self.part.rows[0]) * self.part.stretch
        return np.array([row, point[1] + self.left])


def _place(parts: Sequence[_Part]) -> list[_Placed]:
    """The parts from top to bottom, the column of each under that of the one before."""
    heights = [round((part.rows[1] - part.rows[0]) * part.stretch) for part in parts]
    bottoms = np.cumsum(heights).tolist()
    shifts = [0.0]
    for before, after in pairwise(parts):
        assert after.low is not None
        offset = before.at(after.low)[1] - after.at(after.low)[1]
        shifts.append(shifts[-1] + float(offset))
    return [
        _Placed(part, bottom - height, bottom, round(shift - min(shifts)))
        for part, height, bottom, shift in zip(parts, heights, bottoms, shifts, strict=True)
    ]


def _draw(placed: Sequence[_Placed], upper: Case) -> Case:
    width = max(one.left + one.part.pixels.shape[1] for one in placed)
    canvas = np.zeros((placed[-1].bottom, width), dtype=np.float32)
    wanted = _brightness(placed[0].part)
    labels: list[int] = []
    points: list[Floats] = []
    certain: list[bool] = []
    for one in placed:
        gain = np.clip(wanted / _brightness(one.part), 1 / MOST_GAIN, MOST_GAIN)
        _paint(canvas, one, float(gain))
        for label, point, sure in one.part.shown():
            labels.append(label)
            points.append(one.place(point))
            certain.append(sure)
    return replace(
        upper,
        planes=(canvas.clip(0, 1).astype(np.float16),),
        labels=tuple(labels),
        points=np.array(points),
        certain=np.array(certain),
        unknown=frozenset(label for label in upper.unknown if label < upper.labels[0]),
        digest="",
    )


def _paint(canvas: npt.NDArray[np.float32], one: _Placed, gain: float) -> None:
    """Draw a part, faded in over the one above it."""
    part = one.part
    fade = SEAM_MM if one.top else 0.0
    rows = np.arange(one.top - int(fade), one.bottom)
    sources = part.rows[0] + (rows - one.top) / part.stretch
    shown = (sources >= 0) & (sources <= len(part.pixels) - 1)
    rows, sources = rows[shown], sources[shown]
    opacity = np.clip((rows - one.top + fade) / fade, 0, 1) if fade else np.ones(len(rows))
    under = canvas[rows[0] : rows[-1] + 1, one.left : one.left + part.pixels.shape[1]]
    under += opacity[:, None].astype(np.float32) * (gain * _rows(part.pixels, sources) - under)


def _line(x: float, at: Floats, values: Floats) -> float:
    """Linear interpolation that goes on beyond the ends as over the two last steps there."""
    if x < at[0]:
        end = min(2, len(at) - 1)
        return float(values[0] + (x - at[0]) * (values[end] - values[0]) / (at[end] - at[0]))
    if x > at[-1]:
        end = max(-3, -len(at))
        return float(values[-1] + (x - at[-1]) * (values[-1] - values[end]) / (at[-1] - at[end]))
    return float(np.interp(x, at, values))


def _step(points: Floats) -> float:
    """Mean rows from disc to disc."""
    return float(np.ptp(points[:, 0]) / (len(points) - 1))


def _rows(pixels: npt.NDArray[np.float32], rows: Floats) -> npt.NDArray[np.float32]:
    """The image at fractional rows, linearly between its own."""
    low = np.minimum(rows.astype(int), len(pixels) - 2)
    share = (rows - low)[:, None].astype(np.float32)
    between: npt.NDArray[np.float32] = pixels[low] + share * (pixels[low + 1] - pixels[low])
    return between


def _brightness(part: _Part) -> float:
    """Mean beside the discs of the whole image, of which the part shows some."""
    rows, cols = part.pixels.shape
    inside = [
        part.pixels[int(row), max(int(col) - STRIP_MM, 0) : int(col) + STRIP_MM]
        for row, col in part.case.points
        if 0 <= row < rows and 0 <= col < cols
    ]
    return max(float(np.mean([line.mean() for line in inside])), 1e-3) if inside else 1.0
