"""Label-aware validation: the whole method on images with known discs, in image coordinates."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ivdtool.evaluation import TOLERANCE_MM
from ivdtool.training.dataset import Case

__all__ = ["validate"]

Predict = Callable[[npt.NDArray[np.float32]], Mapping[int, tuple[float, float]]]


def validate(predict: Predict, cases: Sequence[Case]) -> Mapping[str, float]:
    """Return shares of the certain discs of `cases`, and the median distance in mm.

    ``found``: a disc of the same label within 5 mm; ``shifted``: one of another label there;
    ``false``: predicted discs that are certainly not there, per certain disc; ``error``, by which
    networks are chosen: discs not found, and false ones. Pixels count as 1 mm.

    Args:
        predict: from an image (H, W) to {label: (row, col)}.
        cases: padded to multiples of 64; their first plane is used.
    """
    found = shifted = false = total = 0
    distances: list[float] = []
    for case in cases:
        predicted = predict(case.planes[0].astype(np.float32))
        truth = dict(zip(case.labels, case.points, strict=True))
        for label, point, certain in zip(case.labels, case.points, case.certain, strict=True):
            if not certain:
                continue
            total += 1
            near = {
                other
                for other, position in predicted.items()
                if np.hypot(*(position - point)) <= TOLERANCE_MM
            }
            found += label in near
            shifted += bool(near - {label})
            if label in predicted:
                distances.append(float(np.hypot(*(predicted[label] - point))))
        doubtful = case.unknown.union(np.array(case.labels)[~case.certain].tolist())
        for label, position in predicted.items():
            if label not in doubtful:
                at = truth.get(label)
                false += at is None or bool(np.hypot(*(position - at)) > TOLERANCE_MM)
    shares = {
        "found": found / max(total, 1),
        "shifted": shifted / max(total, 1),
        "false": false / max(total, 1),
    }
    return {
        "error": 1 - shares["found"] + shares["false"],
        **shares,
        "median_mm": float(np.median(distances)) if distances else float("nan"),
    }
