"""The picture shows what it is given, where it is given, within bounds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivdtool.discs import ALL_LABELS, disc_name
from ivdtool.errors import UsageError
from ivdtool.overlay import MAX_SIDE, OverlayPoint, _spread, draw_overlay, write_overlay

HEADER = 60  # title and legend


def coloured(picture: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Where the picture is not grey, (height, width)."""
    values = np.asarray(picture).astype(int)
    return np.asarray(np.ptp(values, axis=2) > 30)


@pytest.mark.parametrize("shape", [(8, 8), (300, 250), (700, 60), (2000, 3000), (1, 1)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.47, 0.47), (3.0, 0.5)])
def test_size_is_bounded(shape: tuple[int, int], spacing: tuple[float, float]) -> None:
    points = [OverlayPoint(r, shape[1] - 1, "T11/T12", 0.5) for r in range(min(shape[0], 5))]
    picture = draw_overlay(np.zeros(shape), spacing, points, "x" * 500)
    assert max(picture.size) <= MAX_SIDE


def test_proportions_are_the_bodys() -> None:
    """An image of 100 x 50 pixels of 1 x 3 mm shows a body of 100 x 150 mm."""
    picture = draw_overlay(np.ones((100, 50)), (1.0, 3.0), [])
    bright = np.asarray(picture.convert("L")) == 255
    rows, columns = np.flatnonzero(bright.all(1)), np.flatnonzero(bright[HEADER:].all(0))
    assert len(columns) / len(rows) == pytest.approx(1.5, abs=0.02)


@pytest.mark.parametrize(("row", "col"), [(0.0, 0.0), (30.0, 20.0), (99.0, 79.0), (49.5, 39.5)])
def test_dot_is_at_the_point(row: float, col: float) -> None:
    """A bright pixel and the dot drawn at its coordinates have the same centre."""
    picture = draw_overlay(np.zeros((100, 80)), (1.0, 1.0), [OverlayPoint(row, col, "C2/C3")])
    scale = 3.2
    patch = coloured(picture)[HEADER:, : round((col + 0.5) * scale) + 4]
    found_row, found_col = np.argwhere(patch).mean(0)
    assert found_row == pytest.approx((row + 0.5) * scale, abs=1.5)
    assert found_col == pytest.approx((col + 0.5) * scale, abs=1.5)


def test_names_never_overlap() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        rows = sorted(rng.uniform(0, 900, len(ALL_LABELS)))
        moved = _spread(rows, 24, 900)
        assert np.diff(moved).min() >= 24 - 1e-9
        assert max(moved) <= 900 - 12
    assert _spread([100, 200, 300], 24, 900) == [100, 200, 300]


def test_regions_and_doubts_differ() -> None:
    points = [OverlayPoint(40 * (k + 1), 20, disc_name(n)) for k, n in enumerate((3, 12, 24))]
    picture = np.asarray(draw_overlay(np.zeros((180, 80)), (1.0, 1.0), points))
    centres = [(HEADER + round((p.row + 0.5) * 3.2), round((p.col + 0.5) * 3.2)) for p in points]
    assert len({tuple(picture[centre]) for centre in centres}) == 3
    unsure = [OverlayPoint(p.row, p.col, p.name, 0.2) for p in points]
    hollow = np.asarray(draw_overlay(np.zeros((180, 80)), (1.0, 1.0), unsure))
    assert all(hollow[centre].max() == 0 for centre in centres)


def test_truth_beside_predictions() -> None:
    """Names of the truth stand in front, where the picture is widened; colours tell right ones."""
    points = [
        OverlayPoint(20, 5, "L3/L4", 0.9, right=True),
        OverlayPoint(60, 5, "L4/L5", 0.9, right=False),
        OverlayPoint(100, 5, "L5/S1"),
    ]
    truth = [OverlayPoint(20, 8, "L3/L4", right=True), OverlayPoint(75, 8, "L4/L5", right=False)]
    alone = draw_overlay(np.zeros((140, 200)), (1.0, 1.0), points)
    both = draw_overlay(np.zeros((140, 200)), (1.0, 1.0), points, "", truth)
    widened = both.width - alone.width
    assert widened > 0
    picture = np.asarray(both)

    def colour(point: OverlayPoint) -> tuple[int, ...]:
        row, col = (round((x + 0.5) * 3.2) for x in (point.row, point.col))
        return tuple(picture[HEADER + row, widened + col].tolist())

    right, wrong, unknown = map(colour, points)
    assert len({right, wrong, unknown}) == 3
    assert [colour(point) for point in truth] == [unknown, wrong]
    names = picture[HEADER:, :widened].max(axis=2).max(axis=1)
    assert names[50:80].max() > 200  # row 20: the name of L3/L4
    assert names[95:200].max() == 0
    assert names[225:255].max() > 200


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"\(H, W\)"):
        draw_overlay(np.zeros((3, 4, 5)), (1.0, 1.0), [])
    with pytest.raises(ValueError, match="spacing"):
        draw_overlay(np.zeros((3, 4)), (1.0, 0.0), [])
    picture = draw_overlay(np.full((30, 40), np.nan), (1.0, 1.0), [])
    assert not coloured(picture).any()


def test_write(tmp_path: Path) -> None:
    path = tmp_path / "qc.png"
    points = [OverlayPoint(10, 10, "L4/L5", 0.97)]
    write_overlay(path, np.eye(40), (1.0, 1.0), points, "sub-01_T2w.nii.gz")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.mode == "RGB"
    first = path.read_bytes()
    write_overlay(path, np.eye(40), (1.0, 1.0), points, "sub-01_T2w.nii.gz")
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["qc.png"]


def test_no_file_is_left_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write_overlay(tmp_path / "absent" / "qc.png", np.eye(4), (1.0, 1.0), [])
    with pytest.raises(ValueError, match="spacing"):
        write_overlay(tmp_path / "qc.png", np.eye(4), (0.0, 1.0), [])
    assert not list(tmp_path.iterdir())
