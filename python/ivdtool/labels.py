"""The result of one image: discs as points in the world."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from ivdtool import __version__
from ivdtool.discs import disc_name

__all__ = ["Disc", "DiscLabels", "Verdict"]

Verdict = Literal["certain", "check", "refused"]

JSON_DECIMALS = 6


@dataclass(frozen=True, eq=False)
class Disc:
    """One disc found in an image, at its posterior tip.

    Attributes:
        label: SCT value, 3..25.
        world_mm: (3,) RAS+ world mm of the image's own affine, sub-voxel.
        voxel: (3,) the same point in voxel coordinates, fractional.
        score: heatmap value at the point.
        confidence: probability that the disc lies within 5 mm of the point and has this label.
        status: how it was found, e.g. ``detected``.
        margin: by how much the best solution without this choice costs more; None if unknown.

    Raises:
        ValueError: no disc has this label, or a point is not three finite numbers.
    """

    label: int
    world_mm: npt.NDArray[np.float64]
    voxel: npt.NDArray[np.float64]
    score: float
    confidence: float
    status: str = "detected"
    margin: float | None = None

    def __post_init__(self) -> None:
        disc_name(self.label)  # raises for labels that no disc has
        for name in ("world_mm", "voxel"):
            point = np.array(getattr(self, name), dtype=np.float64)
            if point.shape != (3,) or not np.isfinite(point).all():
                raise ValueError(f"{name} must be three finite numbers, not {point}")
            point.flags.writeable = False
            object.__setattr__(self, name, point)

    @property
    def name(self) -> str:
        """E.g. ``C2/C3``."""
        return disc_name(self.label)

    def to_dict(self) -> dict[str, Any]:
        """Return the disc as it stands in the sidecar."""
        return {
            "label": self.label,
            "name": self.name,
            "world_mm": self.world_mm,
            "voxel": self.voxel,
            "score": self.score,
            "confidence": self.confidence,
            "status": self.status,
            "margin": self.margin,
        }


@dataclass(frozen=True, eq=False)
class DiscLabels:
    """The discs of one image, with what is needed to write them on the image's own grid.

    Attributes:
        discs: by label, each label once.
        source: the image file.
        header: the image's header; the label file copies its geometry from it.
        search: summary of the skeleton search, for the sidecar.
        warnings: what is doubtful, one line each.
        model: what made the labels: ``ModelName``, ``ModelSHA256``.
        verdict: on the whole image: ``certain``, ``check`` or ``refused``; None if the model file
            knows no verdicts.
        probability: that every label is right and none missing; None without a verdict.

    Raises:
        ValueError: labels that are not strictly increasing.
    """

    discs: tuple[Disc, ...]
    source: Path
    header: nib.Nifti1Header
    search: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    model: Mapping[str, str] = field(default_factory=dict)
    verdict: Verdict | None = None
    probability: float | None = None

    def __post_init__(self) -> None:
        labels = [disc.label for disc in self.discs]
        if any(a >= b for a, b in pairwise(labels)):
            raise ValueError(f"disc labels must be strictly increasing, not {labels}")

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """(4, 4) voxel index to RAS+ world mm."""
        return np.asarray(self.header.get_best_affine(), dtype=np.float64)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the label image: (I, J, K), or (I, J) where the image is stored as one 2-D slice."""
        return tuple(self.header.get_data_shape()[:3])

    def to_nifti(self) -> nib.Nifti1Image:
        """Return the label image: uint8, one voxel per disc, geometry bit for bit the source's.

        A disc whose voxel is taken, or outside the grid, gets the nearest free one.
        """
        grid = np.zeros((*self.shape, 1)[:3], dtype=np.uint8, order="F")  # as it is stored
        for disc in self.discs:
            grid[_nearest_free_voxel(grid, disc.voxel, self.affine)] = disc.label
        header = self.header.copy()
        # what may name the patient, and describes the image, not the labels
        header.extensions.clear()
        for name in {"descrip", "db_name", "aux_file"} & set(header.keys()):
            header[name] = b""
        header.set_data_dtype(np.uint8)
        header.set_data_shape(self.shape)
        header["cal_min"] = header["cal_max"] = 0  # the display window of the image
        header.set_intent("none")
        image = grid.reshape(self.shape)
        if isinstance(header, nib.Nifti2Header):
            return nib.Nifti2Image(image, header.get_best_affine(), header)
        # the header's own affine: nibabel then leaves qform, sform and codes as they are
        return nib.Nifti1Image(image, header.get_best_affine(), header)

    def to_dict(self, date: str | None = None) -> dict[str, Any]:
        """Return the sidecar; plain Python values, numbers rounded to 1e-6, NaN and inf None."""
        generator = {"Name": "ivdtool", "Version": __version__, **self.model}
        if date is not None:
            generator["Date"] = date
        sidecar: dict[str, Any] = _plain(
            {
                "SpatialReference": "orig",
                "GeneratedBy": [generator],
                "LabelConvention": "SCT",
                "PointPosition": "posterior tip",
                "Verdict": self.verdict,
                "Probability": self.probability,
                "Discs": [disc.to_dict() for disc in self.discs],
                "Search": self.search,
                "Warnings": self.warnings,
            }
        )
        return sidecar

    def to_json(self, date: str | None = None) -> str:
        """Return `to_dict` as text, the same bytes for the same labels."""
        return json.dumps(self.to_dict(date), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the label image and its sidecar; see `ivdtool.writers.write_labels`."""
        from ivdtool.writers import write_labels  # writers import this module

        write_labels(self, path)


def _nearest_free_voxel(
    grid: npt.NDArray[np.uint8], voxel: npt.NDArray[np.float64], affine: npt.NDArray[np.float64]
) -> tuple[int, int, int]:
    """Index of the voxel without a label nearest to `voxel` in mm; ties by index."""
    last = np.array(grid.shape) - 1
    i, j, k = np.clip(np.rint(voxel).astype(int), 0, last)
    if not grid[i, j, k]:
        return i, j, k
    reach = np.count_nonzero(grid)  # no more voxels than that are taken along any axis
    first = [max(n - reach, 0) for n in (i, j, k)]
    window = grid[first[0] : i + reach + 1, first[1] : j + reach + 1, first[2] : k + reach + 1]
    free = np.argwhere(window == 0) + first
    distance_mm = np.linalg.norm((free - voxel) @ affine[:3, :3].T, axis=1)
    i, j, k = free[distance_mm.argmin()]
    return i, j, k


def _plain(value: Any) -> Any:
    """The value as JSON knows it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, JSON_DECIMALS) + 0.0 if math.isfinite(value) else None  # no -0.0
    return value
