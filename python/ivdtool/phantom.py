"""Draw synthetic sagittal spine MRI with exact disc labels.

An analytic adult anatomy is drawn straight into voxels. Every point of the sagittal plane gets
spine coordinates: the level s (s = 3 on disc C2/C3, 25 on L5/S1, same numbers as the labels) and
the depth d in mm in front of the posterior wall of the vertebral column. In these coordinates the
column, canal, cord and posterior elements are simple shapes; the disc with label i has its
posterior tip at s = i, d = -bulge by construction. Body outline and organs are drawn in the plane.

The typical disc spacings, leans and depths below are rounded medians of adult MRI.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from ivdtool.discs import ALL_LABELS, disc_name

__all__ = [
    "REGION_DISCS",
    "Contrast",
    "Phantom",
    "PhantomConfig",
    "Region",
    "make_phantom",
]

Region = Literal["cervical", "thoracic", "lumbar", "whole"]
Contrast = Literal["T1w", "T2w", "STIR", "dixon"]
_Floats = NDArray[np.float32]

BORDER_MM = 5.0
"""Closer to the border than this, inside or outside, a disc cannot be called visible or absent."""

REGION_DISCS: dict[str, tuple[int, int]] = {
    "cervical": (3, 9),
    "thoracic": (9, 19),
    "lumbar": (19, 25),
    "whole": (3, 25),
}


@dataclass(frozen=True)
class PhantomConfig:
    """What to draw. Lengths in mm, angles in degrees.

    Attributes:
        seed: determines anatomy, intensities and noise; the other fields never change the draw
            of the anatomy.
        region: gives the default of `first_label` and `last_label`.
        contrast: "T1w", "T2w", "STIR" or "dixon" (water image).
        first_label, last_label: discs that frame the field of view (3..25), or None.
        top_mm, bottom_mm: field of view above the first and below the last of them.
        width_mm: field of view from front to back.
        spine_position: share of the width that lies in front of the spine, 0..1.
        spacing_mm: in-plane voxel size. thickness_mm: distance of sagittal slices. slices: count.
        lateral_mm: offset of the spine from the middle slice.
        scoliosis_mm: amplitude of its lateral sway.
        oblique_deg: rotations of the image grid about the R, A and S axes.
        orientation: storage order of the voxel axes, a nibabel axis code such as "PIR".
        noise: standard deviation of the complex noise as a share of the brightest tissue.
        deface: blank the face, as public head images do.

    Raises:
        ValueError: a value out of range.
    """

    seed: int = 0
    region: Region = "lumbar"
    contrast: Contrast = "T2w"
    first_label: int | None = None
    last_label: int | None = None
    top_mm: float = 30.0
    bottom_mm: float = 40.0
    width_mm: float = 240.0
    spine_position: float = 0.6
    spacing_mm: float = 1.0
    thickness_mm: float = 3.5
    slices: int = 15
    lateral_mm: float = 0.0
    scoliosis_mm: float = 2.0
    oblique_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)
    orientation: str = "PIR"
    noise: float = 0.02
    deface: bool = False

    def __post_init__(self) -> None:
        if self.region not in get_args(Region):
            raise ValueError(f"region must be one of {get_args(Region)}, not {self.region!r}")
        if self.contrast not in get_args(Contrast):
            raise ValueError(f"contrast must be one of {get_args(Contrast)}, not {self.contrast!r}")
        first, last = self.frame
        if not ALL_LABELS[0] <= first <= last <= ALL_LABELS[-1]:
            raise ValueError(f"3 <= first_label <= last_label <= 25 fails for {first} and {last}")
        for name in ("width_mm", "spacing_mm", "thickness_mm", "slices"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.spine_position <= 1:
            raise ValueError(f"spine_position must lie in 0..1, not {self.spine_position}")
        if self.noise < 0:
            raise ValueError(f"noise must not be negative, not {self.noise}")
        axes = sorted("RAS"["LPI".find(c)] if c in "LPI" else c for c in self.orientation)
        if axes != sorted("RAS"):
            raise ValueError(f"orientation must be an axis code like 'PIR', not {self.orientation}")

    @property
    def frame(self) -> tuple[int, int]:
        """First and last disc that frame the field of view."""
        first, last = REGION_DISCS[self.region]
        return (
            first if self.first_label is None else self.first_label,
            last if self.last_label is None else self.last_label,
        )


@dataclass(frozen=True, eq=False)
class Phantom:
    """A drawn volume and its exact labels.

    Attributes:
        config: what was drawn.
        image: int16 volume of shape (I, J, K), stored in `config.orientation`.
        discs: label -> (3,) float64 posterior tip, RAS+ world mm, of every disc inside the volume.
        centres: label -> (3,) float64 disc centre, RAS+ world mm; same keys.
        uncertain: labels within `BORDER_MM` of the border, inside or outside. The discs inside
            the volume that are not uncertain are visible for certain.
    """

    config: PhantomConfig
    image: nib.Nifti1Image
    discs: Mapping[int, NDArray[np.float64]]
    centres: Mapping[int, NDArray[np.float64]]
    uncertain: frozenset[int]

    def label_image(self) -> nib.Nifti1Image:
        """Return a uint8 image on the same grid with one voxel per disc, at its posterior tip."""
        values = np.zeros(self.image.shape, np.uint8)
        to_voxel = np.linalg.inv(self.image.affine)
        for label, world in self.discs.items():
            i, j, k = np.rint(to_voxel[:3, :3] @ world + to_voxel[:3, 3]).astype(int)
            values[i, j, k] = label
        return _nifti(values, self.image.affine)

    def sidecar(self) -> dict[str, Any]:
        """Return the labels as the JSON object that accompanies the label image."""
        annotated = sorted(self.discs)
        unknown = sorted(self.uncertain - set(annotated))
        return {
            "SpatialReference": "orig",
            "GeneratedBy": [{"Name": "ivdtool", "Description": "synthetic phantom"}],
            "LabelConvention": "SCT",
            "PointPosition": "posterior tip",
            "Units": "mm, RAS+ world coordinates of the image",
            "AnnotatedLabels": annotated,
            "UnknownLabels": unknown,
            "AbsentLabels": [x for x in ALL_LABELS if x not in self.discs and x not in unknown],
            "Discs": [
                {
                    "label": label,
                    "name": disc_name(label),
                    "posterior_mm": [round(float(x), 3) for x in self.discs[label]],
                    "centre_mm": [round(float(x), 3) for x in self.centres[label]],
                    "source": "phantom",
                    "certain": label not in self.uncertain,
                }
                for label in annotated
            ],
        }


# --- anatomy: typical adult values at the levels s = 1 (dens tip), 2, 3 (C2/C3) ... 33 (coccyx) ---

_FIRST, _LAST = 1, 33
_LEVELS = np.arange(_FIRST, _LAST + 1)
# Distance from level s to s + 1, and how far that step leans backwards from the vertical.
_STEP_MM = np.array(
    [17, 20, 18, 17.6, 17.1, 16.4, 17.4, 20, 21.5, 22.1, 22.7, 22.9, 23.3, 24, 24.8, 26.2, 27.6]
    + [29.5, 31.6, 33.9, 34.7, 34.9, 33.7, 30.5, 27, 23, 20, 18, 14, 12, 10, 9]
)
_LEAN_DEG = np.array(
    [2, 4, 5, 5, 6, 7, 14, 22, 26, 23, 19, 14, 10, 6, 2.5, -1, -5]
    + [-9.4, -12, -13, -11, -7, 1.5, 14, 34, 44, 42, 30, 12, -10, -30, -40]
)
# Front-back depth of the column, and height of the disc.
_DEPTH_MM = np.array(
    [11, 14, 15, 15.2, 15.8, 16.4, 16.2, 15.8, 16.5, 18.3, 20.2, 21.7, 22.5, 23.8, 25, 26.3, 27.8]
    + [28.2, 28.8, 29.5, 30.8, 32.8, 33.5, 34, 33, 21, 15, 12, 10, 8, 7, 6, 5]
)
_DISC_MM = np.array(
    [0, 0, 5, 5, 5.2, 5.5, 5.5, 5, 4.4, 4, 4, 4.2, 4.5, 4.8, 5, 5.4, 6]
    + [6.5, 7, 8, 9, 10, 11, 11.5, 10.5, 3, 2, 1.5, 1.2, 2, 1.5, 1, 1]
)


def _profile(*knots: tuple[float, float]) -> Callable[[NDArray[Any]], _Floats]:
    """Return the piecewise linear function of the level through (level, value) knots."""
    x, y = np.array(knots, float).T
    return lambda s: np.interp(s, x, y).astype(np.float32)


_CANAL_MM = _profile((0, 30), (1, 24), (2, 18), (3, 14.5), (8, 14.5), (20, 16), (24, 17), (27, 7))
_SAC_MM = _profile((0, 24), (1, 17), (2, 14), (3, 12.5), (8, 12.5), (19, 13), (24, 13.5), (26.2, 8))
_CORD_MM = _profile((0, 10), (2, 8.5), (6, 7.6), (10, 6.4), (18, 6.6), (19.6, 7.6), (20.4, 5))
_HALF_WIDTH_MM = _profile((1.2, 6), (2, 8), (3, 11), (8, 13), (19, 20), (24, 25), (26, 28), (30, 8))
_SPINOUS_MM = _profile(
    (2, 26), (2.9, 24), (3, 15), (4, 16), (5, 19), (6, 25), (7, 34), (12, 33), (20, 30), (24, 25)
)
_SPINOUS_HEIGHT_MM = _profile((2, 6), (3, 3), (6, 3), (7, 4.5), (17, 5), (20, 9), (24, 8), (26, 3))
_SPINOUS_SLOPE = _profile(
    (2, 0.3), (7, 0.4), (9, 0.7), (12, 1.2), (16, 1.2), (18, 0.7), (20, 0.25), (27, 0.2)
)
_BACK_MM = _profile(
    (0, 50), (2, 50), (3, 51), (5, 54), (8, 62), (13, 52), (20, 54), (25, 52), (30, 32)
)
_FRONT_MM = _profile(
    (0, 105), (3, 95), (4.2, 80), (5, 58), (7.5, 58), (9, 70), (12, 115), (16, 145), (20, 140)
)
_BACK_FAT_MM = _profile((1, 0.35), (4, 0.6), (7, 1.1), (12, 0.6), (19, 0.6), (24, 1.6), (27, 1.4))
_FRONT_FAT_MM = _profile((2, 0.25), (4, 0.4), (10, 0.6), (18, 0.8), (23, 1.6), (26, 1.6))

# A steep sacrum comes with a deep lumbar curve: both lean by this much per standard deviation.
_PELVIS_DEG = _profile((17, 0), (20, -5), (22, -5), (23.5, 0), (25, 7), (27, 9), (30, 9))


class _Anatomy:
    """One subject: the column's curve with its disc-wise variation. Plane = (y anterior, z up)."""

    step = 1 / 16

    def __init__(self, rng: np.random.Generator) -> None:
        n = len(_LEVELS)
        extra = rng.spawn(1)[0]  # a stream of its own: the other draws stay as they were
        steps = _STEP_MM * rng.normal(1, 0.065) * rng.normal(1, 0.035, n - 1)
        steps *= 1 + 0.03 * rng.normal() * np.linspace(-1, 1, n - 1)
        at = _LEVELS[:-1] + 0.5
        lean = _LEAN_DEG + rng.normal(0, 1.3, n - 1)
        for centre, width, sd in ((3.5, 4, 7), (8.5, 3, 6), (13, 5, 5), (22, 3, 5), (26, 2.5, 7)):
            lean = lean + rng.normal(0, sd) * np.exp(-0.5 * ((at - centre) / width) ** 2)
        lean = np.deg2rad(lean + rng.normal(0, 3.5))
        lean += np.deg2rad(_PELVIS_DEG(at)) * extra.normal()
        tilt = -np.interp(_LEVELS, at, lean) + np.deg2rad(rng.normal(0, 1.8, n))
        # Neck discs and the last two slope more than the column leans.
        tilt -= np.deg2rad(
            _profile((2, 0), (3, 3), (7, 3), (9, 0), (23, 0), (25, 6), (26, 0))(_LEVELS)
        )
        knots = np.zeros((n, 2))
        knots[1:] = np.cumsum(steps[:, None] * -np.c_[np.sin(lean), np.cos(lean)], axis=0)

        self.levels = np.arange(-14, _LAST + 6 + self.step / 2, self.step)
        self.curve = np.c_[
            _hermite(self.levels, knots[:, 0]), _hermite(self.levels, knots[:, 1])
        ]  # (n, 2) posterior wall
        self.tilt = _hermite(self.levels, tilt)
        self.tilt[self.levels < _FIRST] = tilt[0]
        self.tilt[self.levels > _LAST] = tilt[-1]
        self.slope = np.gradient(self.curve, self.step, axis=0)
        self.tilt_slope = np.gradient(self.tilt, self.step)

        # Tables by integer level; index 0 is level 0.
        scale = steps.mean() / _STEP_MM.mean()
        self.depth = np.r_[10, _DEPTH_MM] * scale * rng.normal(1, 0.05)
        self.degeneration = np.clip(rng.beta(1.2, 2.2) + rng.normal(0, 0.22, n + 1), 0, 1)
        loss = np.where(rng.random(n + 1) < 0.25 * self.degeneration, rng.uniform(0.2, 0.7), 0)
        self.disc = np.r_[0, _DISC_MM] * scale * rng.normal(1, 0.1, n + 1) * (1 - loss)
        self.bulge = np.maximum(0, rng.normal(0.3, 0.5, n + 1) + 2.5 * self.degeneration**3)
        self.bulge *= np.r_[0, _DEPTH_MM] / 34
        self.bulge[26:] = 0
        self.vertebra = rng.normal(1, 0.06, n + 1)
        self.vein = rng.uniform(0, 1, n + 1)
        self.endplate_change = rng.normal(0, 0.45, n + 1) * (rng.random(n + 1) < 0.3)
        self.disc[26:28] *= rng.uniform(0.5, 2.2)
        if extra.random() < 0.12:  # S1/S2 nearly as large as a lumbar disc
            self.disc[26] = extra.uniform(0.4, 0.8) * self.disc[25]
            self.depth[26] = extra.uniform(0.7, 0.9) * self.depth[25]
        self.conus = 20.8 + rng.normal(0, 0.35)
        self.back_fat = rng.gamma(2.2, 5.0) + 4
        self.front_fat = rng.gamma(2.0, 5.0) + 4
        self.girth = rng.normal(1, 0.12)

    def at(self, level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the posterior wall and the anterior direction at a level, both (2,)."""
        k = round((level - self.levels[0]) / self.step)
        return self.curve[k], np.array([np.cos(self.tilt[k]), np.sin(self.tilt[k])])

    def point(self, level: float, depth: float) -> NDArray[np.float64]:
        """Return the plane point (2,) at a level and a depth in mm."""
        origin, forward = self.at(level)
        return origin + depth * forward

    def tip(self, label: int) -> NDArray[np.float64]:
        """Return the posterior tip (2,) of a disc."""
        return self.point(label, -float(self.bulge[label]))

    def coordinates(self, y: _Floats, z: _Floats) -> tuple[_Floats, _Floats, _Floats]:
        """Return level, depth in mm and mm per level, each (len(y), len(z)), of the plane grid.

        Solves (p - P(s)) . n(s) = 0 by damped Newton from the nearest point of the curve. Far
        from the column, where neighbouring disc lines cross, the result is only approximate.
        """
        coarse = 8
        rough = np.stack(np.meshgrid(y[::coarse], z[::coarse], indexing="ij"), -1)[..., None, :]
        few = self.curve[::4]
        nearest = ((rough - few) ** 2).sum(-1).argmin(-1)
        s = np.repeat(np.repeat(self.levels[::4][nearest], coarse, 0), coarse, 1)
        s = s[: len(y), : len(z)]
        yy, zz = y[:, None], z[None, :]
        for last in (False, False, False, False, False, True):
            x = np.clip((s - self.levels[0]) / self.step, 0, len(self.levels) - 1.001)
            k = x.astype(np.int32)
            w = x - k

            def value(table: NDArray[np.float64], k: Any = k, w: Any = w) -> NDArray[np.float64]:
                low: NDArray[np.float64] = table[k]
                between: NDArray[np.float64] = low + w * (table[k + 1] - low)
                return between

            tilt = value(self.tilt)
            sine, cosine = np.sin(tilt), np.cos(tilt)
            dy, dz = yy - value(self.curve[:, 0]), zz - value(self.curve[:, 1])
            depth = dy * cosine + dz * sine
            straight = value(self.slope[:, 0]) * sine - value(self.slope[:, 1]) * cosine
            scale = np.maximum(straight - depth * value(self.tilt_slope), 0.3 * straight)
            if not last:
                s = s + np.clip((dy * sine - dz * cosine) / scale, -0.7, 0.7)
        return s.astype(np.float32), depth.astype(np.float32), scale.astype(np.float32)


def _hermite(x: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate values at `_LEVELS` by cubic Hermite pieces; straight lines beyond the ends."""
    slope = np.gradient(knots)
    k = np.clip(np.floor(x).astype(int) - _FIRST, 0, len(knots) - 2)
    t = np.clip(x - _FIRST - k, 0, 1)
    inside = (
        (2 * t**3 - 3 * t**2 + 1) * knots[k]
        + (t**3 - 2 * t**2 + t) * slope[k]
        + (3 * t**2 - 2 * t**3) * knots[k + 1]
        + (t**3 - t**2) * slope[k + 1]
    )
    before, after = np.minimum(x - _FIRST, 0), np.maximum(x - _LAST, 0)
    line: NDArray[np.float64] = inside + before * slope[0] + after * slope[-1]
    return line


# --- intensities ---

# Relative signal of T1w (fat bright), T1w (inversion-prepared, marrow dark), T2w, STIR, dixon.
_SIGNAL: dict[str, tuple[float, float, float, float, float]] = {
    "air": (0.0, 0.0, 0.0, 0.0, 0.0),
    "lung": (0.07, 0.06, 0.05, 0.08, 0.06),
    "cortex": (0.05, 0.06, 0.06, 0.05, 0.10),
    "ligament": (0.10, 0.16, 0.07, 0.07, 0.22),
    "fat": (0.92, 0.80, 0.72, 0.10, 0.22),
    "marrow": (0.55, 0.20, 0.40, 0.20, 0.45),
    "annulus": (0.26, 0.40, 0.14, 0.12, 0.62),
    "nucleus": (0.30, 0.48, 0.62, 0.52, 0.92),
    "muscle": (0.30, 0.36, 0.20, 0.22, 0.55),
    "csf": (0.12, 0.16, 0.98, 0.92, 0.98),
    "cord": (0.42, 0.82, 0.42, 0.44, 0.85),
    "brain": (0.52, 0.86, 0.42, 0.42, 0.80),
    "cortex grey": (0.42, 0.62, 0.55, 0.58, 0.75),
    "vessel": (0.10, 0.30, 0.06, 0.10, 0.40),
    "organ": (0.38, 0.42, 0.30, 0.35, 0.60),
    "mucosa": (0.40, 0.50, 0.55, 0.60, 0.65),
    "fluid": (0.14, 0.18, 0.90, 0.85, 0.95),
}


def _signals(contrast: Contrast, rng: np.random.Generator) -> dict[str, float]:
    """Draw the signal of every tissue for one volume."""
    column = {"T1w": 0, "T2w": 2, "STIR": 3, "dixon": 4}[contrast]
    prepared = rng.random()
    signals = {}
    for name, row in _SIGNAL.items():
        typical = row[column]
        if contrast == "T1w":
            typical = (1 - prepared) * row[0] + prepared * row[1]
        signals[name] = typical * float(np.exp(rng.normal(0, 0.12)))
    signals["marrow"] *= float(np.exp(rng.normal(0, 0.12)))
    return signals


def _smooth_field(
    rng: np.random.Generator, y: _Floats, z: _Floats, scale: tuple[float, float]
) -> _Floats:
    """Return a random field (len(y), len(z)) of unit spread, correlated over `scale` mm."""
    weights, counts = [], []
    for axis, length in zip((y, z), scale, strict=True):
        nodes = np.arange(axis[0] - 2 * length, axis[-1] + 2 * length, length)
        weight = np.exp(-0.5 * ((axis[:, None] - nodes) / (0.6 * length)) ** 2)
        weights.append((weight / np.linalg.norm(weight, axis=1, keepdims=True)).astype(np.float32))
        counts.append(len(nodes))
    noise = rng.standard_normal(counts, dtype=np.float32)
    # no BLAS: its sums depend on the number of threads, in the last bit
    across: _Floats = np.einsum("ij,cj->ic", noise, weights[1])
    field: _Floats = np.einsum("ri,ic->rc", weights[0], across)
    return field


# --- drawing ---


@dataclass(frozen=True)
class _Blob:
    """An ellipsoid: plane centre, half axes, angle of the first axis above anterior, lateral."""

    tissue: str
    centre: NDArray[np.float64]
    half: tuple[float, float]
    angle: float = 0.0
    lateral: float = 0.0
    half_lateral: float = 40.0
    opacity: float = 1.0
    texture: float = 0.08


def _ramp(inside_mm: Any, edge_mm: float) -> _Floats:
    """Return the share of a voxel covered, from the signed distance to the shape's surface."""
    share = np.clip(np.float32(0.5) + inside_mm * np.float32(1 / edge_mm), 0, 1)
    return np.asarray(share, np.float32)


def _over(canvas: _Floats, alpha: _Floats, value: Any) -> None:
    """Paint `value` over `canvas` in place."""
    canvas += alpha * (value - canvas)


class _Painter:
    """Draws one subject slice by slice on the plane grid (y, z)."""

    def __init__(
        self,
        config: PhantomConfig,
        anatomy: _Anatomy,
        rng: np.random.Generator,
        y: _Floats,
        z: _Floats,
    ) -> None:
        self.config, self.anatomy, self.y, self.z = config, anatomy, y, z
        self.rng = rng
        self.signal = _signals(config.contrast, rng)
        self.edge = max(1.1 * config.spacing_mm, 0.7)
        self.level, self.depth, self.scale = anatomy.coordinates(y, z)
        self.shape = self.level.shape
        # Two independent fields per kind; slices mix them by angle, so that neighbours look alike.
        kinds = {
            "fine": (2.0, 2.0), "medium": (5.0, 5.0), "coarse": (14.0, 14.0),
            "fibre": (3.0, 14.0), "gyri": (7.0, 7.0),
        }  # fmt: skip
        self.fields = {
            name: (_smooth_field(rng, y, z, scale), _smooth_field(rng, y, z, scale))
            for name, scale in kinds.items()
        }
        self.fatty = rng.uniform(0.05, 0.45)  # share of fat between the spinous processes
        self._outline()
        self._head()
        self.blobs = self._organs()
        self._column()

    def field(self, name: str, t: float, length: float = 12.0) -> _Floats:
        """Return the random field of a kind in the slice at the lateral position t mm."""
        a, b = self.fields[name]
        mixed: _Floats = np.cos(np.float32(t / length)) * a + np.sin(np.float32(t / length)) * b
        return mixed

    # -- static parts --

    def _outline(self) -> None:
        """Skin lines y(z) at the back and the front, and the fat below them."""
        a, rng = self.anatomy, self.rng
        order = slice(None, None, -1)
        level = np.interp(self.z, a.curve[order, 1], a.levels[order])
        self.row_level = level.astype(np.float32)
        wall = np.interp(self.z, a.curve[order, 1], a.curve[order, 0])
        wave = [_smooth_field(rng, self.z[:2], self.z, (50, 70))[0] for _ in range(2)]
        self.fat_back = (a.back_fat * _BACK_FAT_MM(level) * (1 + 0.15 * wave[0])).astype(np.float32)
        self.fat_front = (a.front_fat * _FRONT_FAT_MM(level)).astype(np.float32)
        muscle = _BACK_MM(level) * rng.normal(0.95, 0.06)
        self.back = (wall - muscle - self.fat_back + 1.0 * wave[1]).astype(np.float32)
        trunk = np.clip((level - 9) / 6, 0, 1)
        front = _FRONT_MM(level) * (1 + (a.girth - 1) * trunk) + self.fat_front
        self.front = (wall + front + 3 * wave[1]).astype(np.float32)
        self.in_back = self.y[:, None] - self.back
        self.in_front = self.front - self.y[:, None]

    def _head(self) -> None:
        """Frame of the head: origin in the foramen magnum, u forward and v up, in mm."""
        a, rng = self.anatomy, self.rng
        self.origin = a.point(0.75, -11)
        tilt = float(a.tilt[a.levels == 1][0]) + np.deg2rad(rng.normal(3, 7))
        self.head_size = rng.normal(0.97, 0.05)
        self.head_axes = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        dy, dz = self.y[:, None] - self.origin[0], self.z[None, :] - self.origin[1]
        axes = self.head_axes / self.head_size
        self.u = (axes[0, 0] * dy + axes[0, 1] * dz).astype(np.float32)
        self.v = (axes[1, 0] * dy + axes[1, 1] * dz).astype(np.float32)
        self.has_head = bool(self.v.max() > -20)
        neck = np.minimum(self.in_back, self.in_front)
        if not self.has_head:
            self.inside = neck
            return
        # The trunk ends below the skull and merges smoothly with it.
        neck = np.minimum(neck, 38 - self.v)
        skull = 85 * (1 - np.hypot((self.u - 17) / 104, (self.v - 73) / 85))
        blend = np.maximum(0, 1 - np.abs(neck - skull) / 24)
        self.inside = np.maximum(neck, skull) + 6 * blend**2

    def _in_head(self, u: float, v: float) -> NDArray[np.float64]:
        """Return the plane point (2,) at head coordinates in mm."""
        point: NDArray[np.float64] = self.origin + self.head_size * (
            np.array([u, v]) @ self.head_axes
        )
        return point

    def _organs(self) -> list[_Blob]:
        """Blobs in front of the spine, in painting order."""
        a, rng = self.anatomy, self.rng
        blobs: list[_Blob] = []

        def add(tissue: str, level: float, depth: float, *args: Any, **kwargs: Any) -> None:
            depth = depth + float(np.interp(level, np.arange(len(a.depth)), a.depth))
            wall, _ = a.at(level)
            shift = rng.normal(0, 2, 2)
            blobs.append(_Blob(tissue, wall + [depth, 0] + shift, *args, **kwargs))

        # Chest: heart, great vessels, lung in front of it, sternum.
        add("lung", 12.5, 62, (42, 75), half_lateral=90)
        add("organ", 15, 62, (40, 48), 0.4, half_lateral=55, texture=0.2)
        add("vessel", 14.5, 58, (26, 24), 0.4, half_lateral=35, texture=0.5)
        add("fat", 12.2, 50, (14, 20), half_lateral=30, texture=0.3)
        add("vessel", 11.6, 42, (13, 12), half_lateral=25)
        for k in range(5):
            add("marrow", 10.3 + 1.1 * k, 62 + 15 * k, (5, 13), 0.35, half_lateral=18)
        # Abdomen: liver under the diaphragm, stomach, bowel with gas, bladder, rectum, pubis.
        add("organ", 18.6, 78, (48, 62), 0.3, half_lateral=70, texture=0.06)
        add(rng.choice(["air", "organ", "fluid"]), 19.2, 75, (20, 26), lateral=-15, half_lateral=35)
        for _ in range(int(rng.integers(10, 24))):
            tissue = rng.choice(["organ", "muscle", "fluid", "air", "mucosa"])
            size = rng.uniform(5, 15)
            add(
                tissue, rng.uniform(19.5, 26), rng.uniform(25, 110),
                (size * rng.uniform(1, 2), size), rng.uniform(-1.5, 1.5),
                lateral=rng.uniform(-30, 30), half_lateral=rng.uniform(12, 30),
                opacity=rng.uniform(0.4, 1), texture=0.25,
            )  # fmt: skip
        pelvis = a.point(27, 60) + rng.normal(0, 6, 2)
        blobs += [
            _Blob("fluid", pelvis + [22, -28], (32, rng.uniform(12, 34)), 0.2, 0, 35),
            _Blob("organ", pelvis + [0, 2], (26, 17), 0.7, 0, 25, texture=0.15),
            _Blob(rng.choice(["air", "organ", "mucosa"]), a.point(27.5, 30), (10, 30), 0.5, 0, 20),
            _Blob("marrow", pelvis + [65, -55], (10, 19), 0.9, 0, 25),
        ]
        # Throat: cartilage, glands, vessels.
        for _ in range(int(rng.integers(4, 10))):
            size = rng.uniform(2.5, 7)
            add(
                rng.choice(["cortex", "fat", "mucosa", "organ", "vessel"]),
                rng.uniform(3.5, 9.5), rng.uniform(22, 48), (size, size * rng.uniform(1, 3)),
                rng.uniform(-0.5, 0.5), half_lateral=rng.uniform(6, 20), texture=0.2,
            )  # fmt: skip
        # Face: sinuses, palate, tongue, jaw, hyoid, larynx.
        if self.has_head:
            for tissue, u, v, half, angle, lateral in (
                ("air", 44, 46, (14, 11), 0.1, 18), ("mucosa", 68, 22, (24, 16), 0, 14),
                ("air", 66, 26, (24, 4), 0, 9), ("air", 70, 14, (22, 3), 0, 9),
                ("cortex", 66, 4, (28, 3), -0.1, 25), ("marrow", 78, 3, (16, 2), -0.1, 20),
                ("muscle", 52, -22, (30, 24), -0.3, 24), ("air", 60, -1, (30, 2.5), -0.1, 20),
                ("cortex", 92, -8, (7, 14), 0.1, 30), ("marrow", 82, -44, (9, 13), 0.3, 20),
                ("fat", 62, -50, (24, 7), -0.2, 30), ("fat", 40, -42, (9, 13), 0, 20),
                ("mucosa", 34, -6, (6, 18), -0.4, 16),
            ):  # fmt: skip
                noise = rng.normal(0, 2, 2)
                blobs.append(
                    _Blob(
                        tissue, self._in_head(u + noise[0], v + noise[1]), half, angle, 0, lateral
                    )
                )
        return blobs

    def _column(self) -> None:
        """Coverage of every structure near the spine that does not depend on the slice."""
        a, edge = self.anatomy, self.edge
        near = (self.depth > -85) & (self.depth < 75) & (self.level > -1.5) & (self.level < 34)
        self.near = np.flatnonzero(near)
        s, d, h = (x.reshape(-1)[self.near] for x in (self.level, self.depth, self.scale))
        self.s, self.d = s, d
        top = len(a.disc) - 1
        disc = np.clip(np.rint(s), 0, top).astype(np.int32)
        vertebra = np.clip(np.floor(s), 0, top).astype(np.int32)
        f = s - np.floor(s)
        self.vertebra, self.disc_index = vertebra, disc
        waist = 4 * f * (1 - f)  # 0 at the discs, 1 at mid-vertebra
        depth = np.interp(s, np.arange(top + 1), a.depth).astype(np.float32)
        bulge = a.bulge.astype(np.float32)[disc]
        off = np.abs(s - disc) * h
        across = np.clip(d / np.maximum(depth, 1), 0, 1)
        height = a.disc.astype(np.float32)[disc] * (0.82 + 0.9 * across * (1 - across))
        wavy = self.fields["medium"][1].reshape(-1)[self.near]
        m: dict[str, Any] = {}
        self.masks = m
        is_disc = (disc >= 3) & (s > 2.6)
        in_disc = np.where(is_disc, _ramp(height / 2 - off, edge), 0).astype(np.float32)
        back = np.where(in_disc > 0.5, -bulge, 0.9 * waist - 0.3 * bulge * (1 - waist))
        front = depth + 0.4 * wavy - 0.09 * depth * waist + np.where(in_disc > 0.5, 0.2, 0.8)
        span = _ramp(d - back, edge) * _ramp(front - d, edge)
        m["column"] = np.where((s > 1.95) & (s < 33.3), span, 0).astype(np.float32)
        m["disc"] = m["column"] * in_disc
        nucleus = 1 - ((across - 0.46) / 0.36) ** 2 - (off / np.maximum(0.42 * height, 0.5)) ** 2
        m["nucleus"] = np.clip(nucleus * 2.5, 0, 1) * (height > 3) * is_disc
        # A dark cleft crosses the nucleus of many adult discs.
        m["cleft"] = m["nucleus"] * _ramp(0.5 - off, edge) * (height > 6)
        rim = np.minimum(np.abs(d - back), np.abs(front - d))
        wall = _ramp(0.6 - rim, edge) * (1 - in_disc)
        plate = np.where(is_disc, _ramp(0.55 - np.abs(off - height / 2), edge), 0)
        m["cortex"] = (m["column"] > 0.02) * np.maximum(0.75 * wall, 0.85 * plate)
        m["vein"] = _ramp(1.3 - np.abs(f - 0.5) * h, edge) * _ramp(0.35 * depth - d, 3) * (s > 8)
        m["vein"] *= (s < 25) * m["column"] * a.vein.astype(np.float32)[vertebra]
        beneath = np.clip(1.3 - (off - height / 2) / 6 + 0.3 * wavy, 0, 1)
        beneath = beneath * is_disc * (disc <= 25)
        m["endplate change"] = beneath * m["column"] * a.endplate_change.astype(np.float32)[disc]

        # Canal, sac and cord; positive p lies behind the canal.
        canal, sac = _CANAL_MM(s), _SAC_MM(s)
        self.p = p = -d - canal
        m["canal"] = _ramp(-d, edge) * _ramp(-p, edge) * (s < 30) * np.clip(2 * s - 2, 0, 1)
        end = np.clip((26.9 - s) / 0.8, 0, 1)
        self.sac_half = sac / 2 * np.sqrt(end)
        self.sac_centre = -(1.0 + sac / 2)
        self.sac_front = _ramp(-(bulge * (1 - waist) + 0.8) - d, edge)
        taper = np.clip((a.conus - s) / 0.9, 0, 1)
        self.cord_half = _CORD_MM(s) / 2 * np.sqrt(taper)
        # The cord takes the short way round a bend.
        width = np.hanning(41) / np.hanning(41).sum()
        bend = np.interp(s, a.levels, np.convolve(a.tilt_slope, width, "same"))
        self.cord_centre = (self.sac_centre - np.clip(22 * bend, -1.8, 1.8)).astype(np.float32)
        m["line"] = _ramp(0.7 - np.abs(d + 0.5 + bulge * (1 - waist)), edge) * (s > 2) * (s < 27)
        # Posterior epidural fat fills the gaps between the laminae.
        gap = np.clip(1.6 - np.abs(s - disc) * h / 5, 0, 1) * _ramp(3 - p, edge)
        m["epidural"] = _ramp(-d - 1.0 - sac, edge) * np.where(s > 9, gap, 0)
        # Spinous processes point backwards and down.
        slope = _SPINOUS_SLOPE(s)
        q = s - slope * np.maximum(p, 0) / np.maximum(h, 5)
        owner = np.clip(np.floor(q - 0.12), 0, top)
        length = _SPINOUS_MM(owner) * np.where(owner > 24, np.clip(1.1 - (owner - 24) / 6, 0, 1), 1)
        slim = 0.7 + 0.5 * np.clip(p / np.maximum(length, 1), 0, 1)
        inside = _SPINOUS_HEIGHT_MM(owner) * slim - np.abs(q - owner - 0.62) * h
        wobble = self.fields["medium"][0].reshape(-1)[self.near]
        inside = np.minimum(np.minimum(inside, length - p), p + 1) + 0.9 * wobble
        has = (owner >= 2) & (owner < 31) & (q > 2.1)
        m["spinous"] = np.where(has, _ramp(inside, edge), 0).astype(np.float32)
        m["spinous cortex"] = np.where(has, _ramp(0.5 - np.abs(inside), edge), 0)
        self.tip_gap = p - _SPINOUS_MM(np.minimum(q - 0.62, 24))  # behind the spinous tips
        # Beside the canal: pedicles, joints, foramina.
        high = np.clip(1 - np.abs(f - 0.33) * h / (0.20 * h), 0, 1)
        m["pedicle"] = np.clip(high * 4, 0, 1) * _ramp(d + 16, 2) * _ramp(3 - d, 2)
        joint = np.abs((s - disc) * h + 0.8 * (d + 20))
        m["facet"] = _ramp(d + 28, 2) * _ramp(-13 - d, 2) * (s > 2) * (s < 26)
        m["joint"] = m["facet"] * _ramp(0.8 - joint, edge)
        m["root"] = _ramp(2.6 - np.hypot((f - 0.82) * h, d + 6), edge)
        # C1 and the dens.
        rise = (2.0 - s) * h
        dens = np.minimum(5.6 - np.abs(d - 6.5) - 0.06 * np.maximum(rise, 0), s * h - 1.05 * h)
        m["dens"] = _ramp(dens, edge) * (s < 2.02)
        m["dens cortex"] = _ramp(0.7 - np.abs(dens), edge) * (s < 1.9)
        arch = np.hypot((d - 16) / 3.4, (s - 1.38) * h / 5.5)
        posterior = np.hypot((p - 4) / 4.4, (s - 1.6) * h / 4.2)
        self.c1 = [
            (_ramp(3 * (1.25 - r), edge), _ramp(3 * (0.85 - r), edge)) for r in (arch, posterior)
        ]
        # Tubes in front: oesophagus, airway, aorta, prevertebral strip.
        ahead = d - depth
        strip = np.interp(s, [0, 3, 5.5, 6.5, 11], [4, 3.5, 4.5, 10, 10])
        m["prevertebral"] = _ramp(np.minimum(ahead, strip - ahead), edge) * (s < 17) * (s > 0.9)
        wide = np.interp(s, [0.3, 2, 4, 5, 5.6, 6.2, 9, 11.4, 12.2], [5, 5, 8, 7, 3, 7, 8, 7, 1])
        centre = np.interp(s, [0, 2, 5, 6, 12], [13, 12, 14, 20, 26]) + 2
        m["airway"] = _ramp(wide - np.abs(ahead - centre), edge) * _ramp((12.2 - s) * h, 3)
        m["airway"] *= _ramp((s + 0.2) * h, 3)
        m["airway wall"] = _ramp(wide + 2.5 - np.abs(ahead - centre), edge) * (s < 12.3) * (s > 0)
        # The great vessels wander across the mid-plane.
        rng = self.rng
        self.vessels = []
        for start, end, aside in ((12.0, 23.4, -9.0), (17.5, 24.0, 15.0)):
            half, middle = rng.uniform(6.5, 9.5), rng.uniform(10.5, 14)
            present = np.clip(2 * np.minimum(s - start, end - s), 0, 1)
            tube = _ramp(half - np.abs(ahead - middle), edge) * present
            wall = _ramp(1.0 - np.abs(np.abs(ahead - middle) - half), edge) * present
            course = np.interp(s, [start, 0.5 * (start + end), end], aside + rng.normal(0, 6, 3))
            flow = g * rng.uniform(0.6, 3.5) if (g := self.signal["vessel"]) < 0.2 else g
            self.vessels.append((tube, wall, course.astype(np.float32), float(flow)))

    # -- one slice --

    def slice(self, x: float, lateral: _Floats) -> _Floats:
        """Draw the slice at x mm.

        Args:
            x: position of the slice.
            lateral: (len(y), len(z)) distance in mm from the mid-plane of the body.

        Returns:
            (len(y), len(z)) noise-free signal, about 0..1.
        """
        self.texture = {name: self.field(name, x) for name in self.fields}
        canvas = np.zeros(self.shape, np.float32)
        self._paint_body(canvas, lateral)
        self._paint_blobs(canvas, lateral)
        if self.has_head:
            self._paint_head(canvas, lateral)
        flat = canvas.reshape(-1)
        part = flat[self.near]
        self._paint_column(part, lateral.reshape(-1)[self.near])
        flat[self.near] = part
        canvas *= _ramp(self.inside, 1.5)
        return canvas

    def _paint_body(self, canvas: _Floats, lateral: _Floats) -> None:
        g, tex, level = self.signal, self.texture, self.row_level[None, :]
        canvas += g["fat"] * (1 + 0.05 * tex["medium"] + 0.04 * tex["fibre"])
        body = np.minimum(self.in_back - self.fat_back, self.in_front - self.fat_front)
        if self.has_head:
            body = np.minimum(body, self.inside - 5)
        lean = g["muscle"] * (1 + 0.12 * tex["fibre"] + 0.08 * tex["fine"])
        streak = _ramp(tex["fibre"] + 0.35 * tex["coarse"] - 1.15, 0.5) * 0.75
        lean += streak * (0.75 * g["fat"] - lean)
        _over(canvas, _ramp(body, 2.0), lean)
        # Front of the spine below the neck: mediastinum, then mesentery.
        front = _ramp(self.depth - 16, 6) * _ramp(body - 9, 2)
        chest = front * _ramp((level - 9.3) * 20, 10)
        soft = _ramp(0.8 * tex["coarse"] + 0.3 * tex["medium"], 1.0)
        _over(canvas, chest, g["organ"] * 0.6 + soft * (g["fat"] * 0.8 - g["organ"] * 0.6))
        lung = _ramp(np.abs(lateral) - 24 + 4 * tex["coarse"], 6)
        _over(canvas, chest * lung * _ramp((18.2 - level) * 25, 12), g["lung"])

    def _paint_blobs(self, canvas: _Floats, lateral: _Floats) -> None:
        for blob in self.blobs:
            reach = max(blob.half) + 3
            (y0, y1), (z0, z1) = (
                np.searchsorted(axis, (c - reach, c + reach))
                for axis, c in zip((self.y, self.z), blob.centre, strict=True)
            )
            if y0 == y1 or z0 == z1:
                continue
            window = np.s_[y0:y1, z0:z1]
            dy = self.y[y0:y1, None] - np.float32(blob.centre[0])
            dz = self.z[None, z0:z1] - np.float32(blob.centre[1])
            c, s = np.float32(np.cos(blob.angle)), np.float32(np.sin(blob.angle))
            r2 = ((c * dy + s * dz) / blob.half[0]) ** 2 + ((c * dz - s * dy) / blob.half[1]) ** 2
            r2 = r2 + ((lateral[window] - blob.lateral) / blob.half_lateral) ** 2
            wobble = 0.12 * self.texture["coarse"][window]
            inside = min(blob.half) * (1 + wobble - np.sqrt(r2))
            inside = np.minimum(inside, self.inside[window] - 3)
            value = self.signal[blob.tissue] * (1 + blob.texture * self.texture["medium"][window])
            _over(canvas[window], blob.opacity * _ramp(inside, 2.0), value)

    def _paint_head(self, canvas: _Floats, lateral: _Floats) -> None:
        g, tex, u, v = self.signal, self.texture, self.u, self.v

        def ellipse(uc: float, vc: float, a: float, b: float, lat: float = 200.0) -> Any:
            r = np.sqrt(((u - uc) / a) ** 2 + ((v - vc) / b) ** 2 + (lateral / lat) ** 2)
            return min(a, b) * (1 - r)

        def paint(inside: Any, value: Any, opacity: float = 1.0) -> None:
            _over(canvas, opacity * _ramp(inside, 1.5), value)

        # Inner surface of the skull: vault above the base, and the posterior fossa.
        base = np.interp(u, [-100, -8, 6, 28, 45, 100], [-20, 0, 2, 40, 36, 46])
        vault = np.minimum(ellipse(17, 74, 91, 72), 0.8 * (v - base))
        inner = np.maximum(vault, np.minimum(ellipse(-22, 38, 46, 38), 0.7 * (v - base)))
        inner = inner.astype(np.float32)
        paint(inner + 6.5, g["cortex"])
        diploe = np.minimum(inner + 5.2, -1.8 - inner)
        paint(diploe, 0.45 * g["fat"] * (1 + 0.4 * tex["medium"]))
        paint(inner, g["csf"])
        gyri = tex["gyri"]
        grey, white = g["cortex grey"], g["brain"]
        matter = white + _ramp(0.7 - np.abs(gyri), 0.8) * (grey - white)
        sulcus = _ramp(0.16 - np.abs(gyri), 0.25) * 0.75
        matter += sulcus * (0.6 * g["csf"] + 0.4 * grey - matter)
        tent = np.interp(u, [-90, -70, -10, 10, 28, 48, 100], [28, 32, 62, 58, 46, 42, 50])
        cerebrum = np.minimum(inner - 1.5, 0.85 * (v - tent)).astype(np.float32)
        paint(cerebrum, matter)
        ring = ellipse(20, 82, 40, 25, 30)
        paint(np.minimum(ring, v - 80), white)
        paint(np.minimum(ellipse(20, 80, 33, 19, 20), v - 66), g["csf"])
        paint(ellipse(18, 70, 14, 9, 25), 0.5 * (white + grey))
        # Posterior fossa: cistern, cerebellum, brain stem.
        turn = np.arctan2(v - 38, u + 18)
        folia = 0.5 + 0.4 * np.sin(17 * turn + 2.0 * tex["gyri"]) * np.sin(3.0 * tex["medium"])
        cerebellum = np.minimum(ellipse(-31, 34, 30, 29, 60), 0.85 * (tent - 1.8 - v))
        paint(np.minimum(cerebellum, inner - 2), grey + folia * (white - grey))
        paint(ellipse(-22, 38, 9, 7, 10), white)
        stem = np.minimum(ellipse(10, 42, 9, 26, 17), v - 18)
        stem = np.maximum(stem, ellipse(14, 34, 13, 14, 16))
        neck = 5 + 0.05 * np.clip(v + 10, 0, 40) - np.abs(u - 1 - 0.14 * v)
        neck = np.minimum(neck, np.minimum(v + 9, 40 - v))
        stem = np.maximum(stem, neck - 0.06 * lateral**2)
        paint(stem, white * (1 + 0.04 * tex["medium"]))
        paint(ellipse(-1, 33, 4, 6, 8), g["csf"])
        # Clivus in front of the stem, occiput behind.
        along = np.minimum(v - 2, 44 - v)
        clivus = (
            np.minimum(5.5 - 0.006 * (v - 22) ** 2 - np.abs(u - 13.5 - 0.55 * v), along)
            - 0.004 * lateral**2
        )
        paint(clivus + 1.2, g["cortex"])
        paint(clivus - 0.3, g["marrow"] * 0.6 + 0.4 * g["fat"])

    def _paint_column(self, canvas: _Floats, t: _Floats) -> None:
        g, m, edge = self.signal, self.masks, self.edge
        thick = np.float32(max(self.config.thickness_mm, 2.0))
        tex = {name: field.reshape(-1)[self.near] for name, field in self.texture.items()}
        s, d, p = self.s, self.d, self.p
        side = np.abs(t)

        def across(half: Any, soft: float = 0.0) -> _Floats:
            return _ramp(half - side, float(thick) + soft)

        def paint(alpha: Any, value: Any) -> None:
            _over(canvas, alpha, value)

        fat, cortex, ligament = g["fat"], g["cortex"], g["ligament"]
        marrow = g["marrow"] * self.anatomy.vertebra.astype(np.float32)[self.vertebra]
        marrow = marrow * np.exp(m["endplate change"])
        marrow = marrow * (1 + 0.07 * tex["medium"] + 0.06 * tex["fine"] + 0.05 * tex["coarse"])
        # Mid-plane behind the canal: ligaments and fat between the spinous processes.
        stripes = np.clip(self.fatty + 0.2 * tex["medium"] + 0.2 * tex["fibre"], 0, 1)
        behind = _ramp(p, 2) * _ramp(-self.tip_gap, 3) * (s > 1.2) * (s < 30)
        paint(behind * across(5), self.interspinous(stripes))
        nuchal = np.clip((8 - s) / 3, 0, 1) * _ramp(self.tip_gap, 3)
        nuchal = nuchal * _ramp(1.2 - np.abs(self.tip_gap - 6), edge) * (s > 1)
        paint((0.8 * nuchal * across(4)).astype(np.float32), ligament)
        spinous = across(4.5)
        paint(m["spinous"] * spinous, marrow)
        paint(0.7 * m["spinous cortex"] * spinous, cortex)
        supra = _ramp(0.9 - np.abs(self.tip_gap - 1), edge) * (s > 7) * (s < 26) * across(5)
        paint(0.8 * supra, ligament)
        # Beside the canal.
        beside = _ramp(side - 9, float(thick)) * across(21)
        lateral_region = (_ramp(d + 16, 2) * _ramp(2 - d, 2) * (s > 2) * (s < 26)).astype(
            np.float32
        )
        paint(beside * lateral_region, 0.8 * fat)
        paint(beside * m["root"] * lateral_region, g["muscle"])
        paint(beside * m["facet"], marrow)
        paint(beside * m["joint"], cortex)
        paint(beside * m["pedicle"] * (s > 2) * (s < 27), marrow)
        # Tubes in front of the column.
        paint(m["prevertebral"] * across(14), g["muscle"] * (1 + 0.1 * tex["fine"]))
        paint(m["airway wall"] * across(10), g["mucosa"] * 0.8)
        paint(m["airway"] * across(8), g["air"])
        for tube, wall, course, flow in self.vessels:
            near = _ramp(9 - np.abs(t - course), float(thick))
            paint(tube * near, flow)
            paint((0.5 * wall * near).astype(np.float32), fat)
        # Column.
        column = across(_HALF_WIDTH_MM(s), 2.0)
        paint(m["column"] * column, marrow)
        degenerate = self.anatomy.degeneration.astype(np.float32)[self.disc_index]
        paint(0.8 * m["vein"] * across(6), self.vein_value())
        annulus = g["annulus"] * (1 + 0.12 * tex["fine"])
        paint(m["disc"] * column, annulus)
        wet = g["annulus"] + (1 - degenerate) ** 1.5 * (g["nucleus"] - g["annulus"])
        wet = wet * (1 + 0.10 * tex["medium"] + 0.08 * tex["fine"])
        paint(m["disc"] * m["nucleus"] * across(_HALF_WIDTH_MM(s) * 0.7), wet)
        paint(0.4 * m["cleft"] * m["disc"] * column, annulus)
        paint(m["cortex"] * column, cortex)
        # Dens and C1.
        dens = across(5.5)
        paint(m["dens"] * dens, marrow)
        paint(m["dens cortex"] * dens * 0.8, cortex)
        for (shell, core), half in zip(self.c1, (9, 5), strict=True):
            paint(shell * across(half), cortex)
            paint(core * across(half), marrow)
        # Canal.
        inside = across(11)
        fill = np.where(s > 9, 0.4 * fat, 0.25 * fat) + 0.3 * ligament
        paint(m["canal"] * inside, fill)
        paint(m["epidural"] * inside, fat)
        half = np.maximum(self.sac_half, 0.1)
        r = np.hypot((d - self.sac_centre) / half, t / 9.5)
        sac = _ramp(half * (1 - r), edge) * (self.sac_half > 0.5) * self.sac_front
        opening = np.clip((s - 0.3) / 0.6, 0, 1)
        paint((sac * opening).astype(np.float32), g["csf"] * (1 + 0.06 * tex["coarse"]))
        # Roots of the cauda equina lie behind, below the cord.
        roots = np.clip((s - self.anatomy.conus + 0.8) / 0.8, 0, 1) * sac
        roots = roots * _ramp(self.sac_centre + 0.5 + 1.5 * tex["fibre"] - d, 3)
        paint((0.5 * roots * (s < 26.5)).astype(np.float32), g["cord"])
        half = np.maximum(self.cord_half, 0.1)
        wide = np.where(s < 8.5, 6.5, 4.6)
        r = np.hypot((d - self.cord_centre) / half, t / wide)
        cord = _ramp(half * (1 - r), edge) * (self.cord_half > 0.4)
        paint((cord * opening).astype(np.float32), g["cord"] * (1 + 0.05 * tex["medium"]))
        paint(0.75 * m["line"] * across(9), ligament)

    def interspinous(self, fatty: Any) -> Any:
        """Signal between the spinous processes for a share of fatty tissue."""
        tough = 0.5 * (self.signal["ligament"] + self.signal["muscle"])
        return tough + fatty * (0.8 * self.signal["fat"] + 0.2 * self.signal["mucosa"] - tough)

    def vein_value(self) -> float:
        """Signal of the basivertebral vein: bright on T2, fatty on T1."""
        return 0.6 * self.signal["csf"] + 0.4 * self.signal["fat"]

    def sensitivity(self, rng: np.random.Generator) -> _Floats:
        """Return the smooth gain (len(y), len(z)) of coil and saturation bands."""
        reach = rng.uniform(60, 260)
        gain = 1 / (1 + (np.maximum(self.in_back, 0) / reach) ** 2)
        centre, width = rng.uniform(self.z[0], self.z[-1]), rng.uniform(180, 500)
        gain = gain * np.exp(-0.5 * ((self.z[None, :] - centre) / width) ** 2)
        gain = gain * np.exp(0.10 * _smooth_field(rng, self.y, self.z, (90, 90)))
        if self.has_head and self.v.max() > 60:
            # A head coil takes over above the neck.
            gain = np.maximum(gain, 0.9 * _ramp(self.v + 20, 90))
        elif rng.random() < 0.45:
            depth = self.depth - rng.uniform(38, 60)
            gain = gain * (1 - rng.uniform(0.6, 0.95) * _ramp(depth, rng.uniform(4, 20)))
        return np.asarray(gain / gain.max(), np.float32)

    def face_mask(self, rng: np.random.Generator) -> _Floats:
        """Return 0 on the face and 1 elsewhere, (len(y), len(z))."""
        front, roof = rng.uniform(28, 62), rng.uniform(22, 48)
        roof = roof + 0.35 * np.maximum(self.u - 75, 0)
        return np.where((self.u > front) & (self.v < roof), 0, 1).astype(np.float32)


@dataclass(frozen=True)
class _Pose:
    """Where the body stands in the volume and the volume in the world. Volume mm = (x, y, z).

    Attributes:
        centre: (3,) centre of the volume in volume mm.
        lean: (2,) lateral slope of the body's mid-plane along y and z.
        sway: amplitude in mm, wave length in mm and phase of its scoliosis.
        lateral: offset of the mid-plane in mm.
        rotation, shift: (3, 3) and (3,), volume mm about the centre to world mm.
    """

    centre: NDArray[np.float64]
    lean: tuple[float, float]
    sway: tuple[float, float, float]
    lateral: float
    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]

    def mid_plane(self, y: Any, z: Any) -> Any:
        """Return x of the body's mid-plane at plane coordinates."""
        amplitude, length, phase = self.sway
        dy, dz = y - self.centre[1], z - self.centre[2]
        curve = np.sin(2 * np.pi / length * dz + phase) - np.sin(phase)
        return self.lateral + self.lean[0] * dy + self.lean[1] * dz + amplitude * curve

    def place(self, plane: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a mid-plane point (2,) in volume mm, (3,)."""
        return np.array([self.mid_plane(plane[0], plane[1]), plane[0], plane[1]])

    def world(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a point (3,) in volume mm in world mm."""
        moved: NDArray[np.float64] = self.rotation @ (point - self.centre) + self.shift
        return moved


def make_phantom(config: PhantomConfig) -> Phantom:
    """Draw a volume. The same config gives the same voxels and points.

    The world points depend on neither `orientation` nor `noise` nor `contrast`.
    """
    # Independent streams: what one part draws never changes another.
    anatomy_rng, pose_rng, look_rng, noise_rng = (
        np.random.default_rng([config.seed, part]) for part in range(4)
    )
    anatomy = _Anatomy(anatomy_rng)
    first, last = config.frame
    tips = np.array([anatomy.tip(label) for label in range(first, last + 1)])
    step = np.array([config.thickness_mm, config.spacing_mm, config.spacing_mm])
    bottom = tips[-1, 1] - config.bottom_mm
    middle = 0.5 * (tips[:, 0].min() + tips[:, 0].max())
    back = middle - (1 - config.spine_position) * config.width_mm
    low = np.array([-0.5 * (config.slices - 1) * step[0], back, bottom])
    size = np.array([config.width_mm, tips[0, 1] + config.top_mm - bottom]) / config.spacing_mm
    shape = np.array([config.slices, *np.maximum(np.rint(size).astype(int) + 1, 8)])
    high = low + step * (shape - 1)
    slope_z, slope_y = np.tan(np.deg2rad(pose_rng.normal(0, 1.2, 2)))
    phase, length = pose_rng.uniform(0, 2 * np.pi), pose_rng.uniform(250, 500)
    pose = _Pose(
        centre=0.5 * (low + high),
        lean=(slope_y, slope_z),
        sway=(config.scoliosis_mm, length, phase),
        lateral=config.lateral_mm,
        rotation=_rotation(np.deg2rad(config.oblique_deg)),
        shift=pose_rng.normal(0, 20, 3),
    )

    x, y, z = (low[a] + step[a] * np.arange(shape[a]) for a in range(3))
    volume = _acquire(config, anatomy, pose, (x, y, z), look_rng, noise_rng)
    affine = np.eye(4)
    affine[:3, :3] = pose.rotation * step
    affine[:3, 3] = pose.world(low)
    order = orientations.ornt_transform(
        orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(config.orientation)
    )
    stored = np.ascontiguousarray(orientations.apply_orientation(volume, order))
    affine = affine @ orientations.inv_ornt_aff(order, volume.shape)

    discs, centres, uncertain = {}, {}, set()
    for label in ALL_LABELS:
        point = pose.place(anatomy.tip(label))
        # Distance inside the volume's outer faces: beside the mid-plane, and in it.
        beside, *within = np.minimum(point - (low - step / 2), (high + step / 2) - point)
        if min(beside, *within) > 0:
            discs[label] = pose.world(point)
            centre = anatomy.point(label, 0.5 * float(anatomy.depth[label]))
            centres[label] = pose.world(pose.place(centre))
        if abs(min(within)) < BORDER_MM or (min(within) > 0 > beside):
            uncertain.add(label)
    return Phantom(config, _nifti(stored, affine), discs, centres, frozenset(uncertain))


def _acquire(
    config: PhantomConfig,
    anatomy: _Anatomy,
    pose: _Pose,
    axes: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    look_rng: np.random.Generator,
    noise_rng: np.random.Generator,
) -> NDArray[np.int16]:
    """Return the voxels (len(x), len(y), len(z)) at axes (x, y, z) in volume mm."""
    x, (y, z) = axes[0], (axis.astype(np.float32) for axis in axes[1:])
    painter = _Painter(config, anatomy, look_rng, y, z)
    mid_plane = pose.mid_plane(y[:, None], z[None, :]).astype(np.float32)
    gain = painter.sensitivity(look_rng)
    volume = np.empty((len(x), len(y), len(z)), np.float32)
    for k, position in enumerate(x):
        volume[k] = painter.slice(float(position), np.float32(position) - mid_plane) * gain
    volume = _blur(volume, look_rng.uniform(0.35, 1.0) / min(config.spacing_mm, 1.0))
    brightest = np.quantile(volume[:: max(1, len(x) // 5), ::3, ::3], 0.995)
    volume /= max(float(brightest), 1e-6)
    if config.noise > 0:  # Rician: magnitude of a complex signal
        noise = config.noise * noise_rng.standard_normal((2, *volume.shape), dtype=np.float32)
        volume = np.hypot(volume + noise[0], noise[1])
    if config.deface and painter.has_head:
        volume *= painter.face_mask(look_rng)
    volume *= float(noise_rng.uniform(200, 1500))
    return np.rint(np.clip(volume, 0, 32767)).astype(np.int16)


def _blur(volume: _Floats, sigma: float) -> _Floats:
    """Blur the two in-plane axes by a Gaussian of `sigma` pixels."""
    reach = int(np.ceil(2 * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        padded, n = np.pad(volume, pad, "edge"), volume.shape[axis]
        volume = np.zeros_like(volume)
        for k, weight in enumerate(weights):
            window = [slice(None)] * 3
            window[axis] = slice(k, k + n)
            volume += weight * padded[tuple(window)]
    return volume


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation (3, 3) about x, then y, then z, by angles in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = [a for a in range(3) if a != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _nifti(values: NDArray[Any], affine: NDArray[np.float64]) -> nib.Nifti1Image:
    """Return an image whose qform and sform both hold the affine in scanner coordinates."""
    image = nib.Nifti1Image(values, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image
