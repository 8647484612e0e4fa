"""Whether a confidence means what it says: of the discs with 0.9, nine in ten should be right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Reliability", "ReliabilityBin", "measure_reliability"]

BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """The predictions with a confidence from `low` to `high` (exclusive, 1 included).

    Attributes:
        low: edge of the bin.
        high: edge of the bin.
        count: how many predictions.
        confidence: their mean confidence, NaN without any.
        right: share of them that is right, NaN without any.
    """

    low: float
    high: float
    count: int
    confidence: float
    right: float


@dataclass(frozen=True)
class Reliability:
    """Calibration of the confidence of predicted discs.

    Attributes:
        count: predictions that have a confidence and whose truth is known.
        ece: expected calibration error, 0..1: mean over the predictions of the distance between
            confidence and share of right ones in their bin (Guo et al. 2017, Eq. 3).
        bins: ten of equal width.
    """

    count: int
    ece: float
    bins: tuple[ReliabilityBin, ...]


def measure_reliability(confidence: Sequence[float], right: Sequence[bool]) -> Reliability | None:
    """Return the calibration of predictions, None if there are none.

    Args:
        confidence: of each prediction, 0..1.
        right: whether it was right.
    """
    if not confidence:
        return None
    said, was = np.array(confidence, dtype=np.float64), np.array(right, dtype=np.float64)
    index = np.minimum((said * BINS).astype(int), BINS - 1)
    bins = []
    for i in range(BINS):
        own = index == i
        count = int(own.sum())
        bins.append(
            ReliabilityBin(
                low=i / BINS,
                high=(i + 1) / BINS,
                count=count,
                confidence=float(said[own].mean()) if count else float("nan"),
                right=float(was[own].mean()) if count else float("nan"),
            )
        )
    error = sum(b.count * abs(b.confidence - b.right) for b in bins if b.count)
    return Reliability(len(said), error / len(said), tuple(bins))
