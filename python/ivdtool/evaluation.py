"""Predicted against reference discs: label-aware measures first, the papers' second.

Distances are in mm in the sagittal plane: where a point lies left to right is a convention.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import nibabel as nib
import numpy as np
import numpy.typing as npt

__all__ = [
    "TOLERANCE_MM",
    "CaseScore",
    "DiscScore",
    "PredictionScore",
    "Summary",
    "score_case",
    "summarise",
    "summarise_levels",
]

TOLERANCE_MM = 5.0  # papers, section 4.1; also the usual bound for a disc found
IDENTIFIED_MM = 20.0  # the usual bound of the identification rate (Glocker et al. 2012)

CONFIDENCE = 0.95  # of the intervals
MAX_WEIGHTS = 4_000_000  # resampling weights in memory at once

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class DiscScore:
    """How one reference disc was found.

    Attributes:
        label: of the reference.
        l2_mm: in-plane distance to the prediction of the same label, None without one.
        si_mm: the same along superior-inferior.
        nearest_si_mm: papers' distance to target: nearest prediction along superior-inferior,
            whatever its label; None where nothing was predicted.
        identified: the nearest prediction in the plane has the same label and lies within 20 mm.
        other_label: of the nearest prediction of another label within 5 mm, None without one.
    """

    label: int
    l2_mm: float | None = None
    si_mm: float | None = None
    nearest_si_mm: float | None = None
    identified: bool = False
    other_label: int | None = None

    @property
    def found(self) -> bool:
        """Whether the prediction of the same label lies within 5 mm."""
        return self.l2_mm is not None and self.l2_mm <= TOLERANCE_MM


@dataclass(frozen=True)
class PredictionScore:
    """How right one predicted disc is.

    Attributes:
        label: as predicted.
        right: the reference disc of that label lies within 5 mm.
        nearest_si_mm: along superior-inferior to the nearest reference disc, whatever its label;
            None without a reference.
        confidence: as predicted, None if unknown.
    """

    label: int
    right: bool
    nearest_si_mm: float | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class CaseScore:
    """How one image was labelled.

    Attributes:
        case: name of the image.
        discs: the reference discs that count, by label.
        predictions: the predicted discs that count, by label.
        subject: whose image it is; images of one subject are no independent evidence.
        groups: what it is summarised with, e.g. region: lumbar.
    """

    case: str
    discs: tuple[DiscScore, ...] = ()
    predictions: tuple[PredictionScore, ...] = ()
    subject: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[int, ...]:
        """Reference labels that count."""
        return tuple(disc.label for disc in self.discs)

    @property
    def l2_mm(self) -> tuple[float, ...]:
        """Distances of the discs that have a prediction of the same label."""
        return tuple(disc.l2_mm for disc in self.discs if disc.l2_mm is not None)

    @property
    def si_mm(self) -> tuple[float, ...]:
        """The same along superior-inferior."""
        return tuple(disc.si_mm for disc in self.discs if disc.si_mm is not None)

    @property
    def nearest_si_mm(self) -> tuple[float, ...]:
        """Papers' distances to target."""
        return tuple(disc.nearest_si_mm for disc in self.discs if disc.nearest_si_mm is not None)

    @property
    def missed(self) -> int:
        """Reference discs without a same-label prediction within 5 mm."""
        return sum(not disc.found for disc in self.discs)

    @property
    def false(self) -> int:
        """Predictions without a same-label reference within 5 mm."""
        return sum(not prediction.right for prediction in self.predictions)

    @property
    def mislabelled(self) -> int:
        """Reference discs hit by a prediction of another label."""
        return sum(disc.other_label is not None for disc in self.discs)

    @property
    def shifted(self) -> bool:
        """Whether the column is off by a level: half of its discs carry another label."""
        return 2 * self.mislabelled >= len(self.discs) > 0

    @property
    def offset(self) -> int:
        """By how many levels most of the mislabelled discs are off; 1 is a label too high."""
        offsets = Counter(d.other_label - d.label for d in self.discs if d.other_label is not None)
        return offsets.most_common(1)[0][0] if offsets else 0

    @property
    def perfect(self) -> bool:
        """Whether nothing is missed and nothing false."""
        return self.missed == 0 and self.false == 0

    @property
    def paper_missed(self) -> int:
        """Reference discs 5 mm or more from every prediction along superior-inferior."""
        return sum(_far(disc.nearest_si_mm) for disc in self.discs)

    @property
    def paper_false(self) -> int:
        """Predictions 5 mm or more from every reference disc along superior-inferior."""
        return sum(_far(prediction.nearest_si_mm) for prediction in self.predictions)

    def level(self, label: int) -> "CaseScore":
        """Return what concerns one level only."""
        return replace(
            self,
            discs=tuple(disc for disc in self.discs if disc.label == label),
            predictions=tuple(p for p in self.predictions if p.label == label),
        )


@dataclass(frozen=True)
class Summary:
    """Figures over some images; distances in mm, NaN where there is nothing to average.

    Attributes:
        images: how many.
        discs: reference discs.
        predictions: predicted discs, save those whose truth is not known.
        found_pct: recall, which is the identification rate within 5 mm: share of the discs whose
            same-label prediction lies within 5 mm.
        identified_pct: identification rate within 20 mm: share of the discs whose nearest
            prediction has their label and lies within 20 mm.
        precision_pct: share of the predictions with a same-label disc within 5 mm.
        mislabelled_pct: share of the discs with a prediction of another label within 5 mm.
        fnr_pct: discs not found, in per cent of the discs.
        fpr_pct: predictions that are not right, in per cent of the discs.
        l2_mean: over discs with a prediction of the same label, however far.
        l2_std: as `l2_mean`.
        l2_median: as `l2_mean`.
        l2_p95: as `l2_mean`.
        si_mean: the same along superior-inferior.
        si_std: as `si_mean`.
        shifted: images off by a level.
        shifted_pct: level-shift rate, in per cent of the images.
        perfect_images: images with every disc found and no false one.
        paper_dtt_mean: papers' distance to target, nearest point whatever its label.
        paper_dtt_std: as `paper_dtt_mean`.
        paper_fnr_pct: discs 5 mm or more from every prediction, in per cent of the discs.
        paper_fpr_pct: predictions 5 mm or more from every disc, in per cent of the discs.
        intervals: of rates and distances the 95 % bootstrap interval, subjects resampled.
        cases: the scores of the images.
    """

    images: int
    discs: int
    predictions: int
    found_pct: float
    identified_pct: float
    precision_pct: float
    mislabelled_pct: float
    fnr_pct: float
    fpr_pct: float
    l2_mean: float
    l2_std: float
    l2_median: float
    l2_p95: float
    si_mean: float
    si_std: float
    shifted: int
    shifted_pct: float
    perfect_images: int
    paper_dtt_mean: float
    paper_dtt_std: float
    paper_fnr_pct: float
    paper_fpr_pct: float
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict, repr=False)
    cases: tuple[CaseScore, ...] = field(default=(), repr=False)

    def figures(self) -> dict[str, float]:
        """Return the figures by name, without intervals and cases."""
        names = [own.name for own in fields(self) if own.name not in ("intervals", "cases")]
        return {name: getattr(self, name) for name in names}


def score_case(
    case: str,
    predicted: Mapping[int, Floats],
    reference: Mapping[int, Floats],
    ignored: Collection[int],
    affine: npt.NDArray[np.float64],
    *,
    confidence: Mapping[int, float] | None = None,
    subject: str = "",
    groups: Mapping[str, str] | None = None,
) -> CaseScore:
    """Score the predictions of one image.

    Args:
        case: name of the image.
        predicted: label to (3,) RAS+ world mm.
        reference: label to (3,) world mm.
        ignored: labels that are unknown or uncertain; they count for nothing.
        affine: (4, 4) of the image; its voxel axes give the sagittal plane.
        confidence: of predicted labels, where known.
        subject: whose image it is.
        groups: what to summarise it with.
    """
    plane = _sagittal_plane(affine)
    truth = {k: plane @ v for k, v in sorted(reference.items()) if k not in ignored}
    points = {k: plane @ v for k, v in sorted(predicted.items())}
    discs = tuple(_score_disc(label, point, points) for label, point in truth.items())
    found = {disc.label for disc in discs if disc.found}
    return CaseScore(
        case=case,
        discs=discs,
        predictions=tuple(
            PredictionScore(
                label=label,
                right=label in found,
                nearest_si_mm=min((_along(point, t) for t in truth.values()), default=None),
                confidence=(confidence or {}).get(label),
            )
            for label, point in points.items()
            if label not in ignored
        ),
        subject=subject or case,
        groups=groups or {},
    )


def _score_disc(label: int, point: Floats, predicted: Mapping[int, Floats]) -> DiscScore:
    if not predicted:
        return DiscScore(label)
    distances = {k: _distance(point, p) for k, p in predicted.items()}
    nearest = min(distances, key=distances.__getitem__)
    others = [k for k, mm in distances.items() if k != label and mm <= TOLERANCE_MM]
    return DiscScore(
        label=label,
        l2_mm=distances.get(label),
        si_mm=_along(point, predicted[label]) if label in predicted else None,
        nearest_si_mm=min(_along(point, p) for p in predicted.values()),
        identified=nearest == label and distances[label] <= IDENTIFIED_MM,
        other_label=min(others, key=distances.__getitem__, default=None),
    )


def _distance(a: Floats, b: Floats) -> float:
    return float(np.hypot(*(a - b)))


def _along(a: Floats, b: Floats) -> float:
    return float(abs(a[1] - b[1]))


def _far(nearest_mm: float | None) -> bool:
    return nearest_mm is None or nearest_mm >= TOLERANCE_MM


def _sagittal_plane(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(2, 3): unit vectors of the voxel axes nearest to anterior and to superior."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    nearest = list(nib.orientations.io_orientation(affine)[:, 0].astype(int))
    return np.array([directions[:, nearest.index(1)], directions[:, nearest.index(2)]])


# --- summaries

COUNTS: dict[str, Callable[[CaseScore], int]] = {
    "images": lambda case: 1,
    "discs": lambda case: len(case.discs),
    "predictions": lambda case: len(case.predictions),
    "missed": lambda case: case.missed,
    "identified": lambda case: sum(disc.identified for disc in case.discs),
    "mislabelled": lambda case: case.mislabelled,
    "false": lambda case: case.false,
    "shifted": lambda case: case.shifted,
    "perfect": lambda case: case.perfect,
    "paper_missed": lambda case: case.paper_missed,
    "paper_false": lambda case: case.paper_false,
}
DISTANCES: dict[str, Callable[[CaseScore], Sequence[float]]] = {
    "l2": lambda case: case.l2_mm,
    "si": lambda case: case.si_mm,
    "nearest": lambda case: case.nearest_si_mm,
}


def summarise(scores: Sequence[CaseScore], resamples: int = 0, seed: int = 0) -> Summary:
    """Pool the scores of images.

    Intervals are percentiles of the figures over random sets of subjects, drawn with replacement:
    discs of one image, and images of one subject, tend to be right or wrong together.

    Args:
        scores: of the images.
        resamples: how many such sets; 0, or a single subject, gives no intervals.
        seed: of the draws.
    """
    pool = _Pool(scores)
    figures = {name: float(values[0]) for name, values in pool.figures().items()}
    intervals: dict[str, tuple[float, float]] = {}
    if resamples > 0 and pool.subjects > 1:
        drawn = [pool.figures(weights) for weights in pool.draws(resamples, seed)]
        for name in figures:
            low, high = _interval(np.concatenate([block[name] for block in drawn]))
            intervals[name] = (low, high)

    def total(name: str) -> int:
        return int(pool.counts[name].sum())

    return Summary(
        images=len(scores),
        discs=total("discs"),
        predictions=total("predictions"),
        shifted=total("shifted"),
        perfect_images=total("perfect"),
        intervals=intervals,
        cases=tuple(scores),
        **figures,
    )


def summarise_levels(
    scores: Sequence[CaseScore], resamples: int = 0, seed: int = 0
) -> dict[int, Summary]:
    """Summarise each level on its own, over the images where it is annotated or predicted."""
    labels = {disc.label for score in scores for disc in score.discs}
    labels |= {prediction.label for score in scores for prediction in score.predictions}
    levels = {}
    for label in sorted(labels):
        own = [score.level(label) for score in scores]
        own = [score for score in own if score.discs or score.predictions]
        levels[label] = summarise(own, resamples, seed)
    return levels


class _Pool:
    """What the figures are made of, so that subjects can be weighted."""

    def __init__(self, scores: Sequence[CaseScore]) -> None:
        names = {subject: i for i, subject in enumerate(sorted({s.subject for s in scores}))}
        self.subjects = len(names)
        self.counts = {name: np.zeros(self.subjects) for name in COUNTS}
        distances: dict[str, list[tuple[int, float]]] = {name: [] for name in DISTANCES}
        for score in scores:
            owner = names[score.subject]
            for name, count in COUNTS.items():
                self.counts[name][owner] += count(score)
            for name, measure in DISTANCES.items():
                distances[name] += [(owner, mm) for mm in measure(score)]
        self.distances: dict[str, tuple[npt.NDArray[np.intp], Floats]] = {}
        for name, pairs in distances.items():
            pairs.sort(key=lambda pair: pair[1])  # for the quantiles
            self.distances[name] = (
                np.array([owner for owner, _ in pairs], dtype=np.intp),
                np.array([mm for _, mm in pairs]),
            )

    def draws(self, resamples: int, seed: int) -> Iterator[Floats]:
        """Yield blocks of (B, subjects): how often each subject is drawn."""
        rng = np.random.default_rng(seed)
        share = np.full(self.subjects, 1 / self.subjects)
        widest = max(self.subjects, *(len(mm) for _, mm in self.distances.values()))
        block = max(1, MAX_WEIGHTS // widest)
        for start in range(0, resamples, block):
            count = min(block, resamples - start)
            yield rng.multinomial(self.subjects, share, size=count).astype(np.float64)

    def figures(self, weights: Floats | None = None) -> dict[str, Floats]:
        """Return each rate and distance, (B,), for (B, subjects) weights; ones by default."""
        if weights is None:
            weights = np.ones((1, self.subjects))
        n = {name: weights @ counts for name, counts in self.counts.items()}

        def percent(part: Floats, whole: Floats) -> Floats:
            return 100 * part / whole

        with np.errstate(invalid="ignore", divide="ignore"):
            figures = {
                "found_pct": percent(n["discs"] - n["missed"], n["discs"]),
                "identified_pct": percent(n["identified"], n["discs"]),
                "precision_pct": percent(n["predictions"] - n["false"], n["predictions"]),
                "mislabelled_pct": percent(n["mislabelled"], n["discs"]),
                "fnr_pct": percent(n["missed"], n["discs"]),
                "fpr_pct": percent(n["false"], n["discs"]),
                "shifted_pct": percent(n["shifted"], n["images"]),
                "paper_fnr_pct": percent(n["paper_missed"], n["discs"]),
                "paper_fpr_pct": percent(n["paper_false"], n["discs"]),
            }
            for name, prefix in (("l2", "l2"), ("si", "si"), ("nearest", "paper_dtt")):
                owners, mm = self.distances[name]
                own = weights[:, owners]
                figures[f"{prefix}_mean"], figures[f"{prefix}_std"] = _moments(own, mm)
                if name == "l2":
                    figures["l2_median"] = _quantile(own, mm, 0.5)
                    figures["l2_p95"] = _quantile(own, mm, 0.95)
        return {name: np.where(np.isfinite(own), own, np.nan) for name, own in figures.items()}


def _moments(weights: Floats, values: Floats) -> tuple[Floats, Floats]:
    """(B,) mean and standard deviation of values under (B, N) weights."""
    total = weights.sum(axis=1)
    centre = values.mean() if values.size else 0.0  # against cancellation
    mean = weights @ (values - centre) / total
    variance = weights @ (values - centre) ** 2 / total - mean**2
    return mean + centre, np.sqrt(np.maximum(variance, 0))


def _quantile(weights: Floats, values: Floats, share: float) -> Floats:
    """(B,) linearly interpolated quantile, as if each rising value stood there `weight` times."""
    if not values.size:
        return np.full(len(weights), np.nan)
    upto = np.cumsum(weights, axis=1)
    rank = share * (upto[:, -1] - 1)

    def at(place: Floats) -> Floats:
        index = (upto <= place[:, np.newaxis]).sum(axis=1)
        return np.asarray(values[np.minimum(index, len(values) - 1)])

    low, high = at(np.floor(rank)), at(np.ceil(rank))
    quantile: Floats = low + (rank - np.floor(rank)) * (high - low)
    return np.where(upto[:, -1] > 0, quantile, np.nan)


def _interval(values: Floats) -> tuple[float, float]:
    """Percentile interval of the resamples in which the figure is defined."""
    defined = values[np.isfinite(values)]
    if not defined.size:
        return float("nan"), float("nan")
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(defined, (tail, 100 - tail))
    return float(low), float(high)
