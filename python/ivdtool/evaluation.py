"""Predicted against reference discs: label-aware measures first, the papers' second.

Distances are in mm in the sagittal plane: where a point lies left to right is a convention.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
import numpy.typing as npt

__all__ = ["TOLERANCE_MM", "CaseScore", "Summary", "score_case", "summarise"]

TOLERANCE_MM = 5.0  # papers, section 4.1; also the usual bound for a disc found

Point = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CaseScore:
    """How one image was labelled.

    Attributes:
        case: name of the image.
        group: what it is summarised with, e.g. its region.
        labels: reference labels that count.
        l2_mm: in-plane distance to the prediction of the same label, where there is one.
        si_mm: the same along superior-inferior.
        missed: reference discs without a same-label prediction within 5 mm.
        false: predictions without a same-label reference within 5 mm.
        mislabelled: reference discs hit by a prediction of another label.
        nearest_si_mm: papers' distance to target: nearest prediction along superior-inferior,
            whatever its label.
        paper_missed: reference discs whose `nearest_si_mm` is 5 mm or more.
        paper_false: predictions 5 mm or more from every reference disc along that axis.
    """

    case: str
    group: str
    labels: tuple[int, ...]
    l2_mm: tuple[float, ...] = ()
    si_mm: tuple[float, ...] = ()
    missed: int = 0
    false: int = 0
    mislabelled: int = 0
    nearest_si_mm: tuple[float, ...] = ()
    paper_missed: int = 0
    paper_false: int = 0

    @property
    def shifted(self) -> bool:
        """Whether the column is off by a level: half of its discs carry another label."""
        return 2 * self.mislabelled >= len(self.labels) > 0


@dataclass(frozen=True)
class Summary:
    """Figures over some images; rates in per cent of the reference discs, distances in mm."""

    images: int
    discs: int
    found_pct: float
    l2_mean: float
    l2_median: float
    l2_p95: float
    si_mean: float
    fnr_pct: float
    fpr_pct: float
    shifted: int
    perfect_images: int
    paper_dtt_mean: float
    paper_dtt_std: float
    paper_fnr_pct: float
    paper_fpr_pct: float
    cases: tuple[CaseScore, ...] = field(default=(), repr=False)


def score_case(
    case: str,
    group: str,
    predicted: Mapping[int, Point],
    reference: Mapping[int, Point],
    ignored: Collection[int],
    affine: npt.NDArray[np.float64],
) -> CaseScore:
    """Score the predictions of one image.

    Args:
        case: name of the image.
        group: what to summarise it with.
        predicted: label to (3,) RAS+ world mm.
        reference: label to (3,) world mm.
        ignored: labels that are unknown or uncertain; they count for nothing.
        affine: (4, 4) of the image; its voxel axes give the sagittal plane.
    """
    plane = _sagittal_plane(affine)
    truth = {k: plane @ v for k, v in reference.items() if k not in ignored}
    points = {k: plane @ v for k, v in predicted.items()}
    counted = {k: v for k, v in points.items() if k not in ignored}

    def distance(a: Point, b: Point) -> float:
        return float(np.hypot(*(a - b)))

    def along(a: Point, b: Point) -> float:
        return float(abs(a[1] - b[1]))

    matched = [k for k in truth if k in points]
    hits = {k for k in matched if distance(truth[k], points[k]) <= TOLERANCE_MM}
    nearest = [min(along(p, t) for p in points.values()) for t in truth.values() if points]
    return CaseScore(
        case=case,
        group=group,
        labels=tuple(sorted(truth)),
        l2_mm=tuple(distance(truth[k], points[k]) for k in matched),
        si_mm=tuple(along(truth[k], points[k]) for k in matched),
        missed=len(truth) - len(hits),
        false=sum(k not in hits for k in counted),
        mislabelled=sum(
            any(m != k and distance(p, t) <= TOLERANCE_MM for m, p in points.items())
            for k, t in truth.items()
        ),
        nearest_si_mm=tuple(nearest),
        paper_missed=sum(d >= TOLERANCE_MM for d in nearest) if points else len(truth),
        paper_false=sum(
            min((along(p, t) for t in truth.values()), default=np.inf) >= TOLERANCE_MM
            for p in counted.values()
        ),
    )


def summarise(scores: Sequence[CaseScore]) -> Summary:
    """Pool the scores of images; NaN where there is nothing to average."""
    discs = sum(len(score.labels) for score in scores)

    def pool(name: str) -> npt.NDArray[np.float64]:
        return np.array([mm for score in scores for mm in getattr(score, name)] or [np.nan])

    def percent(count: int) -> float:
        return 100 * count / discs if discs else float("nan")

    l2, si, nearest = pool("l2_mm"), pool("si_mm"), pool("nearest_si_mm")
    missed = sum(score.missed for score in scores)
    return Summary(
        images=len(scores),
        discs=discs,
        found_pct=percent(discs - missed),
        l2_mean=float(l2.mean()),
        l2_median=float(np.median(l2)),
        l2_p95=float(np.percentile(l2, 95)),
        si_mean=float(si.mean()),
        fnr_pct=percent(missed),
        fpr_pct=percent(sum(score.false for score in scores)),
        shifted=sum(score.shifted for score in scores),
        perfect_images=sum(score.missed == 0 and score.false == 0 for score in scores),
        paper_dtt_mean=float(nearest.mean()),
        paper_dtt_std=float(nearest.std()),
        paper_fnr_pct=percent(sum(score.paper_missed for score in scores)),
        paper_fpr_pct=percent(sum(score.paper_false for score in scores)),
        cases=tuple(scores),
    )


def _sagittal_plane(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(2, 3): unit vectors of the voxel axes nearest to anterior and to superior."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    nearest = list(nib.orientations.io_orientation(affine)[:, 0].astype(int))
    return np.array([directions[:, nearest.index(1)], directions[:, nearest.index(2)]])
