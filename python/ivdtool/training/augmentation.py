"""Image and points moved together, fields of view cropped, contrasts varied.

All of it is drawn from an explicit generator, so that a sample is a function of its seed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["AugmentationConfig", "Crop", "augment", "vary_contrast"]

TURN_REACH_MM = 40.0  # discs and posterior elements turn with the column, the belly does not


@dataclass(frozen=True)
class AugmentationConfig:
    """Ranges are half-widths around the identity; shares are probabilities.

    Attributes:
        rotation_deg: in-plane rotation, +-.
        scale: log-uniform in 1/scale .. scale.
        aspect: rows against columns, log-uniform, likewise.
        bend_mm: largest amplitude of the column's bend, an arc or an S; discs near the column turn
            with it, as between an upright and a level sacrum.
        stretch: largest local change of scale along rows, as a share: vertebrae of other heights
            than the image's, under a head or over a sacrum of the same size.
        shift_mm: how far from the window's middle the spine may lie, along columns.
        crop_rows: share of samples whose field of view is cut at the top and bottom.
        crop_cols: share of samples whose field of view is cut in front and behind.
        min_rows_mm: smallest height that a cut leaves; the window's, where that is less.
        gamma: log-uniform in 1/gamma .. gamma.
        tone: share with a random tone curve.
        invert: share with inverted contrast.
        bias: strength of the smooth bias field (log of the gain, standard deviation).
        noise: largest standard deviation of noise, of the [0, 1] range.
        blur: share blurred, by up to 1.5 pixels.
        coarse: share resampled to half or third resolution and back.
        occlude: share with smooth spots over discs and elsewhere, as where implants or painted
            marks hide the anatomy: the level must then be told from what is around.

    Raises:
        ValueError: a value out of range.
    """

    rotation_deg: float = 12.0
    scale: float = 1.25
    aspect: float = 1.08
    bend_mm: float = 12.0
    stretch: float = 0.0
    shift_mm: float = 70.0
    crop_rows: float = 0.5
    crop_cols: float = 0.3
    min_rows_mm: float = 70.0
    gamma: float = 1.8
    tone: float = 0.3
    invert: float = 0.12
    bias: float = 0.35
    noise: float = 0.07
    blur: float = 0.25
    coarse: float = 0.15
    occlude: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop_rows", "crop_cols", "tone", "invert", "blur", "coarse", "occlude"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, not {getattr(self, name)}")
        if not 0 <= self.stretch < 1:
            raise ValueError(f"stretch must lie in 0..1, 1 excluded, not {self.stretch}")
        for name in ("scale", "aspect", "gamma"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("rotation_deg", "bend_mm", "shift_mm", "min_rows_mm", "bias", "noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class Crop:
    """A training window cut from an image.

    Attributes:
        pixels: (H, W) float32 in [0, 1]; 0 outside the field of view.
        points: (N, 2) the moved points, window (row, col).
        inside_mm: (N,) distance of each point to the border of the visible field, mm; negative
            outside.
        field: rows from, rows to, columns from, columns to (ends exclusive) of that field.
    """

    pixels: Tensor
    points: npt.NDArray[np.float64]
    inside_mm: npt.NDArray[np.float64]
    field: tuple[int, int, int, int]


def augment(
    pixels: Tensor,
    points: npt.NDArray[np.float64],
    spine_col: float,
    size: tuple[int, int],
    config: AugmentationConfig,
    rng: np.random.Generator,
) -> Crop:
    """Cut one randomly moved window of `size` from an image of 1 mm pixels.

    Args:
        pixels: (H, W) float32 in [0, 1], not padded.
        points: (N, 2) (row, col) in the image; may lie outside.
        spine_col: column around which windows are centred.
        size: (rows, cols) of the window.
        config: see `AugmentationConfig`.
        rng: source of all randomness.
    """
    height, width = pixels.shape
    angle = np.deg2rad(rng.uniform(-config.rotation_deg, config.rotation_deg))
    scale, aspect = _log_uniform(rng, config.scale), _log_uniform(rng, config.aspect)
    # source = matrix @ (window - centre) + source_centre; `scale` enlarges the anatomy
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.diag([aspect, 1 / aspect]) / scale
    centre = (np.array(size) - 1) / 2
    source_centre = np.array(
        [
            _window_centre(height, size[0] / scale, rng),
            np.clip(spine_col + rng.uniform(-1, 1) * config.shift_mm / scale, 0, width - 1),
        ]
    )
    every_row = np.arange(size[0])
    bend = _bend(size[0], config.bend_mm, rng)
    slope, reach = _turn(bend)
    stretch = _stretch(size[0], config.stretch, rng)
    # where the column stands in the window, before it is bent
    to_window = np.linalg.inv(matrix)
    column = (to_window @ ([(height - 1) / 2, spine_col] - source_centre))[1]

    rows, cols = np.meshgrid(every_row, np.arange(size[1]), indexing="ij")
    across = cols - bend[:, None] - centre[1]
    along = rows + slope[:, None] * _lever(across - column, reach)
    along += np.interp(along, every_row, stretch)
    source = np.stack([along - centre[0], across], axis=-1) @ matrix.T + source_centre
    # grid_sample wants (x, y) in [-1, 1] with pixel centres at (i + 0.5) * 2 / n - 1
    normalised = (source[..., ::-1] + 0.5) * (2 / np.array([width, height])) - 1
    sampled = F.grid_sample(
        pixels[None, None],
        torch.from_numpy(normalised.astype(np.float32))[None],
        mode="bilinear",
        padding_mode="zeros",
        align_corners=False,
    )[0, 0]

    moved = (points - source_centre) @ to_window.T
    levers = _lever(moved[:, 1] - column, reach)
    moved += centre
    moved[:, 0] = _inverse(every_row + stretch, moved[:, 0])
    for index, lever in enumerate(levers):
        moved[[index], 0] = _inverse(every_row + slope * lever, moved[[index], 0])
    moved[:, 1] += np.interp(moved[:, 0], every_row, bend)

    field = _field_of_view(size, moved, config, rng)
    visible = torch.zeros(size)
    top, bottom, left, right = field
    visible[top:bottom, left:right] = 1
    in_window = np.minimum.reduce(
        [moved[:, 0] - top, bottom - 1 - moved[:, 0], moved[:, 1] - left, right - 1 - moved[:, 1]]
    )
    in_image = (
        np.minimum.reduce(
            [points[:, 0], height - 1 - points[:, 0], points[:, 1], width - 1 - points[:, 1]]
        )
        * scale
    )
    if rng.random() < config.occlude:
        sampled = _occlude(sampled, moved, rng)
    pixels_out = vary_contrast(sampled, config, rng) * visible
    return Crop(pixels_out, moved, np.minimum(in_window, in_image), field)


def vary_contrast(pixels: Tensor, config: AugmentationConfig, rng: np.random.Generator) -> Tensor:
    """Return (H, W) in [0, 1] with another contrast, bias field, resolution and noise."""
    if rng.random() < config.tone:
        knots = torch.from_numpy(np.sort(rng.random(5)).astype(np.float32))
        knots = torch.cat([torch.zeros(1), knots, torch.ones(1)])
        if rng.random() < 0.3:  # not monotone: two tissues change places
            i, j = rng.choice(np.arange(1, 6), 2, replace=False)
            knots[[i, j]] = knots[[j, i]]
        position = pixels.clamp(0, 1) * 6
        low = position.long().clamp(max=5)
        pixels = torch.lerp(knots[low], knots[low + 1], position - low)
    if rng.random() < config.invert:
        # air stays dark, as in a scan whose contrast is inverted by its sequence
        pixels = (1 - pixels) * (pixels > 0.03)
    pixels = pixels.clamp(0, 1) ** _log_uniform(rng, config.gamma)
    pixels = pixels * torch.exp(_smooth_field(pixels.shape, config.bias, rng))
    if rng.random() < config.coarse:
        factor = float(rng.choice([2.0, 3.0]))
        axis = int(rng.integers(3))  # along rows, along columns, or both
        step = [factor if axis in (0, 2) else 1.0, factor if axis in (1, 2) else 1.0]
        small = [max(1, int(n / s)) for n, s in zip(pixels.shape, step, strict=True)]
        coarse = F.interpolate(pixels[None, None], size=small, mode="area")
        pixels = F.interpolate(coarse, size=list(pixels.shape), mode="bilinear")[0, 0]
    if rng.random() < config.blur:
        pixels = _blur(pixels, rng.uniform(0.4, 1.5))
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    sd = rng.uniform(0, config.noise) * (rng.random() < 0.7)
    real = pixels + sd * torch.randn(pixels.shape, generator=generator)
    imaginary = sd * torch.randn(pixels.shape, generator=generator)
    pixels = torch.hypot(real, imaginary)  # Rician, as in magnitude images
    ordered = pixels.flatten()[:: max(1, pixels.numel() // 4096)].sort().values
    low = ordered[int(0.005 * len(ordered))]
    high = ordered[min(len(ordered) - 1, int(rng.uniform(0.985, 0.999) * len(ordered)))]
    return ((pixels - low) / (high - low).clamp(min=1e-3)).clamp(0, 1)


def _log_uniform(rng: np.random.Generator, limit: float) -> float:
    return float(np.exp(rng.uniform(-1, 1) * np.log(limit)))


def _window_centre(extent: float, window: float, rng: np.random.Generator) -> float:
    """Middle of the window along one axis: the image inside it, or it inside the image."""
    slack = abs(extent - window) / 2
    return (extent - 1) / 2 + rng.uniform(-slack, slack)


def _bend(rows: int, bend_mm: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(rows,) smooth sideways shift: an arc or an S."""
    position = np.linspace(-1, 1, rows)
    phase, waves = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.9)
    curve = np.sin(2 * np.pi * waves * position / 2 + phase)
    shift: npt.NDArray[np.float64] = rng.uniform(0, bend_mm) * (curve - curve[rows // 2])
    return shift


def _turn(bend: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float]:
    """(rows,) slope of the bend, and how far from the column things turn by it, pixels.

    As far as that, rows stay in their order: with another lever they would fold.
    """
    slope = np.gradient(bend)
    curvature = float(np.abs(np.diff(slope)).max())
    return slope, min(TURN_REACH_MM, 0.6 / max(curvature, 1e-9))


def _lever(across: npt.NDArray[np.float64], reach: float) -> npt.NDArray[np.float64]:
    """Distance from the column, pixels, that does not grow beyond `reach`."""
    lever: npt.NDArray[np.float64] = reach * np.tanh(across / reach)
    return lever


def _stretch(rows: int, most: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(rows,) smooth shift along rows whose slope stays within +-`most`; 0 in the middle."""
    phase, per_row = rng.uniform(0, 2 * np.pi), 2 * np.pi / rng.uniform(80, 400)
    curve = np.sin(per_row * np.arange(rows) + phase)
    shift: npt.NDArray[np.float64] = rng.uniform(0, most) / per_row * (curve - curve[rows // 2])
    return shift


def _inverse(
    increasing: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the index where each value lies, going on beyond both ends with slope 1."""
    index = np.arange(len(increasing))
    inside = np.interp(values, increasing, index)
    below, above = np.minimum(values - increasing[0], 0), np.maximum(values - increasing[-1], 0)
    found: npt.NDArray[np.float64] = inside + below + above
    return found


def _field_of_view(
    size: tuple[int, int],
    points: npt.NDArray[np.float64],
    config: AugmentationConfig,
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """top, bottom, left, right (exclusive ends) of what stays visible."""
    top, bottom, left, right = 0, size[0], 0, size[1]
    if rng.random() < config.crop_rows and len(points):
        # around a random disc, so that a cut field still shows some spine
        middle = points[rng.integers(len(points)), 0] + rng.uniform(-20, 20)
        least = min(config.min_rows_mm, size[0])
        height = rng.uniform(least, size[0])
        share = rng.random()
        top = int(np.clip(middle - share * height, 0, size[0] - least))
        bottom = int(np.clip(top + height, least, size[0]))
    if rng.random() < config.crop_cols and len(points):
        shown = points[(points[:, 0] >= top) & (points[:, 0] < bottom), 1]
        if len(shown):
            left = int(np.clip(shown.min() - rng.uniform(15, 120), 0, size[1] - 40))
            right = int(np.clip(shown.max() + rng.uniform(15, 120), left + 40, size[1]))
    return top, bottom, left, right


def _smooth_field(shape: torch.Size, strength: float, rng: np.random.Generator) -> Tensor:
    coarse = torch.from_numpy(rng.normal(0, strength, (1, 1, 4, 4)).astype(np.float32))
    return F.interpolate(coarse, size=list(shape), mode="bicubic", align_corners=True)[0, 0]


def _occlude(pixels: Tensor, points: npt.NDArray[np.float64], rng: np.random.Generator) -> Tensor:
    """Blur spots of 3 to 8 pixels around the discs and at up to three times as many places."""
    decoys = rng.uniform(0, 1, (int(rng.integers(3 * len(points) + 1)), 2)) * pixels.shape
    spots = np.concatenate([points + rng.normal(0, 1.5, points.shape), decoys])
    radii = torch.from_numpy(rng.uniform(3, 8, len(spots)).astype(np.float32))
    offset_rows = torch.arange(pixels.shape[0])[None] - torch.from_numpy(spots[:, :1]).float()
    offset_cols = torch.arange(pixels.shape[1])[None] - torch.from_numpy(spots[:, 1:]).float()
    # a sum over spots of separable bells, flattened to a soft mask
    rows = torch.exp(-((offset_rows / radii[:, None]) ** 2))
    cols = torch.exp(-((offset_cols / radii[:, None]) ** 2))
    mask = (3 * rows.T @ cols).clamp(max=1)
    coarse = F.avg_pool2d(pixels[None, None], 15, stride=4, padding=7, count_include_pad=False)
    smooth = F.interpolate(coarse, size=list(pixels.shape), mode="bilinear")[0, 0]
    return torch.lerp(pixels, smooth, mask)


def _blur(pixels: Tensor, sd: float) -> Tensor:
    radius = int(np.ceil(3 * sd))
    kernel = torch.exp(-(torch.arange(-radius, radius + 1).float() ** 2) / (2 * sd**2))
    kernel = kernel / kernel.sum()
    blurred = F.conv2d(pixels[None, None], kernel[None, None, :, None], padding=(radius, 0))
    return F.conv2d(blurred, kernel[None, None, None, :], padding=(0, radius))[0, 0]
