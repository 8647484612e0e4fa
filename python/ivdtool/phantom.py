"""Draw synthetic sagittal spine MRI with exact disc labels.

An analytic adult anatomy is drawn straight into voxels; the posterior tip of every disc is known by
construction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import nibabel as nib
import numpy as np
from nibabel import orientations
from numpy.typing import NDArray

from ivdtool.discs import ALL_LABELS, disc_name
from ivdtool.phantom_anatomy import Anatomy, Floats
from ivdtool.phantom_painter import Painter
from ivdtool.phantom_tissues import Contrast, draw_signals

__all__ = [
    "REGION_DISCS",
    "Contrast",
    "Phantom",
    "PhantomConfig",
    "Region",
    "make_phantom",
]

Region = Literal["cervical", "thoracic", "lumbar", "whole"]

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
    anatomy = Anatomy(anatomy_rng)
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
    anatomy: Anatomy,
    pose: _Pose,
    axes: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    look_rng: np.random.Generator,
    noise_rng: np.random.Generator,
) -> NDArray[np.int16]:
    """Return the voxels (len(x), len(y), len(z)) at axes (x, y, z) in volume mm."""
    x, (y, z) = axes[0], (axis.astype(np.float32) for axis in axes[1:])
    signal = draw_signals(config.contrast, look_rng)
    painter = Painter(anatomy, signal, config.spacing_mm, config.thickness_mm, look_rng, y, z)
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


def _blur(volume: Floats, sigma: float) -> Floats:
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
