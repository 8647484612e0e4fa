"""The mean skeleton: where discs lie relative to each other, and how much that varies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ivdtool.discs import disc_name

__all__ = ["Skeleton"]

MIN_SD_MM = 0.5  # a spread estimated from few cases may come out too small to divide by


@dataclass(frozen=True, eq=False)
class Skeleton:
    """Mean and spread of disc positions (paper 1, section 3.3), in mm and not normalised.

    Attributes:
        labels: (V,) disc labels, rising without a gap.
        mean_mm: (V, 2) row, col; the first disc lies at (0, 0).
        disc_sd_mm: (V,) spread of a disc about the mean skeleton, per axis, whole skeletons
            being aligned by translation.
        step_sd_mm: (V - 1,) spread of the vector from a disc to the next, per axis.
        missing_rate: (V,) share of the cases without the disc, 0..1.

    Raises:
        ValueError: shapes that disagree, labels with gaps, rows that do not rise, spreads that
            are not positive, rates out of range.
    """

    labels: tuple[int, ...]
    mean_mm: npt.NDArray[np.float64]
    disc_sd_mm: npt.NDArray[np.float64]
    step_sd_mm: npt.NDArray[np.float64]
    missing_rate: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        count = len(self.labels)
        if count < 2 or self.labels != tuple(range(self.labels[0], self.labels[0] + count)):
            raise ValueError(f"labels must be two or more, without a gap, not {self.labels}")
        for label in self.labels:
            disc_name(label)  # raises for labels that no disc has
        shapes = {
            "mean_mm": (count, 2),
            "disc_sd_mm": (count,),
            "step_sd_mm": (count - 1,),
            "missing_rate": (count,),
        }
        for name, shape in shapes.items():
            values = np.array(getattr(self, name), dtype=np.float64, order="C")
            if values.shape != shape or not np.isfinite(values).all():
                raise ValueError(f"{name} must be finite numbers of shape {shape}")
            object.__setattr__(self, name, _read_only(values))
        if (np.diff(self.mean_mm[:, 0]) <= 0).any():
            raise ValueError(f"rows of mean_mm must rise, not {self.mean_mm[:, 0].tolist()}")
        if (self.disc_sd_mm <= 0).any() or (self.step_sd_mm <= 0).any():
            raise ValueError("standard deviations must be positive")
        if (self.missing_rate < 0).any() or (self.missing_rate > 1).any():
            raise ValueError(f"missing_rate must lie in 0..1, not {self.missing_rate.tolist()}")

    @classmethod
    def from_points(cls, cases: Sequence[Mapping[int, tuple[float, float]]]) -> "Skeleton":
        """Average cases that may each show a part of the spine only.

        The mean skeleton is the sum of mean steps, each over the cases that show both its discs;
        averaging positions instead would mix fields of view.

        Args:
            cases: for each case the discs it shows, label to (row, col) in mm.

        Raises:
            ValueError: no cases, fewer than two labels, or two neighbouring discs that no case
                shows together.
        """
        seen = sorted({label for case in cases for label in case})
        if len(seen) < 2:
            raise ValueError(f"a skeleton needs two discs or more, not {seen}")
        labels = tuple(range(seen[0], seen[-1] + 1))
        points = np.full((len(cases), len(labels), 2), np.nan)
        for i, case in enumerate(cases):
            for label, point in case.items():
                points[i, label - labels[0]] = point
        steps = np.diff(points, axis=1)
        has_step = np.isfinite(steps).all(axis=2)
        for (upper, lower), count in zip(pairwise(labels), has_step.sum(axis=0), strict=True):
            if count == 0:
                raise ValueError(f"no case shows {disc_name(upper)} and {disc_name(lower)}")
        mean = np.vstack([np.zeros((1, 2)), np.cumsum(np.nanmean(steps, axis=0), axis=0)])

        present = np.isfinite(points).all(axis=2)
        residuals = np.full_like(points, np.nan)
        for i, shown in enumerate(present):
            if shown.any():
                difference = points[i, shown] - mean[shown]
                residuals[i, shown] = difference - difference.mean(axis=0)
        return cls(
            labels=labels,
            mean_mm=mean,
            disc_sd_mm=_spread(residuals),
            step_sd_mm=_spread(steps - np.nanmean(steps, axis=0)),
            missing_rate=1.0 - present.mean(axis=0),
        )

    @cached_property
    def disc_weights(self) -> npt.NDArray[np.float64]:
        """(V,) mean variance of a disc over that of each: 1 where all vary equally."""
        variance = self.disc_sd_mm**2
        return _read_only(variance.mean() / variance)

    @cached_property
    def pair_weights(self) -> npt.NDArray[np.float64]:
        """(V, V) weight of the step from disc i to the next present disc j, for i < j.

        If steps vary independently, a step over several discs has the sum of their variances. The
        weight is the inverse of that, in units of the mean variance of one step: equally variable
        steps give 1 / (j - i). Zero where i >= j.
        """
        variance = np.concatenate([[0.0], np.cumsum(self.step_sd_mm**2)])
        between = variance[np.newaxis, :] - variance[:, np.newaxis]
        weights = np.zeros(between.shape)
        upper = np.triu_indices_from(between, k=1)
        weights[upper] = np.mean(self.step_sd_mm**2) / between[upper]
        return _read_only(weights)

    def to_dict(self) -> dict[str, Any]:
        """Return the skeleton as JSON can hold it."""
        return {
            "labels": list(self.labels),
            "mean_mm": self.mean_mm.tolist(),
            "disc_sd_mm": self.disc_sd_mm.tolist(),
            "step_sd_mm": self.step_sd_mm.tolist(),
            "missing_rate": self.missing_rate.tolist(),
        }

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> "Skeleton":
        """Build a skeleton from what `to_dict` returned.

        Raises:
            ValueError: keys missing or unknown, or values the class refuses.
        """
        names = set(cls.__dataclass_fields__)
        if set(table) != names:
            raise ValueError(f"a skeleton has keys {sorted(names)}, not {sorted(table)}")
        labels = table["labels"]
        if not isinstance(labels, Sequence) or not all(type(label) is int for label in labels):
            raise ValueError(f"labels must be integers, not {labels!r}")
        try:
            arrays = {name: np.array(table[name], dtype=np.float64) for name in names - {"labels"}}
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"a skeleton holds numbers: {error}") from error
        return cls(labels=tuple(labels), **arrays)


def _read_only(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    values.flags.writeable = False
    return values


def _spread(deviations: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Standard deviation per axis of (cases, discs, 2) deviations from their mean, NaN ignored."""
    count = np.isfinite(deviations).all(axis=2).sum(axis=0)
    total = np.nansum(deviations**2, axis=(0, 2))
    spread: npt.NDArray[np.float64] = np.maximum(
        np.sqrt(total / (2 * np.maximum(count - 1, 1))), MIN_SD_MM
    )
    return spread
