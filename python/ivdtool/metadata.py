"""What a model file says of itself: all that inference needs beside the network."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Any

from ivdtool.candidates import CandidateConfig
from ivdtool.config import from_dict, to_dict
from ivdtool.discs import ALL_LABELS
from ivdtool.levels import LevelCalibration
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.search import SearchConfig
from ivdtool.skeleton import Skeleton
from ivdtool.verdict import Judge

__all__ = ["SCHEMA", "Calibration", "ModelInfo"]

SCHEMA = 1


@dataclass(frozen=True)
class Calibration:
    """Confidence of a disc as a logistic function of what the search knows of it.

    Attributes:
        intercept: log-odds at zero.
        score: weight of the heatmap value.
        margin: weight of log(1 + margin in mm^2), margins above 1000 mm^2 counting as that.
        neighbours: weight of the mean heatmap value of the discs of the image.

    Raises:
        ValueError: a value out of range.
    """

    intercept: float = -4.0
    score: float = 6.0
    margin: float = 0.5
    neighbours: float = 2.0

    def __post_init__(self) -> None:
        weights = (self.intercept, self.score, self.margin, self.neighbours)
        if not all(map(math.isfinite, weights)):
            raise ValueError(f"calibration weights must be finite, not {weights}")

    def confidence(self, score: float, margin: float, mean_score: float) -> float:
        """Return the probability that a disc is within 5 mm and has its right label."""
        odds = (
            self.intercept
            + self.score * score
            + self.margin * math.log1p(min(max(margin, 0.0), 1000.0))
            + self.neighbours * mean_score
        )
        return 1 / (1 + math.exp(-min(max(odds, -30.0), 30.0)))


@dataclass(frozen=True)
class ModelInfo:
    """Everything a model file carries beside its network.

    Attributes:
        name: of the model, e.g. ``robust``.
        labels: disc label of each output channel.
        stride: image pixels per heatmap cell.
        skeleton: mean skeleton of the training labels, with spread.
        preprocessing: from volume to network input.
        candidates: thresholds of the candidates.
        search: weights of the skeleton search.
        calibration: from scores to confidence.
        levels: from what the search knows to the probability of being a level off.
        judge: from evidence to the verdict on an image; None gives none.
        network: name and arguments of the network.
        training: data hash, subjects, sources and licences, steps.
        accuracy: measured figures, per data set and split.
        ivdtool: version that wrote the file.

    Raises:
        ValueError: a value out of range.
    """

    name: str
    labels: tuple[int, ...]
    stride: int
    skeleton: Skeleton
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    candidates: CandidateConfig = field(default_factory=CandidateConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    calibration: Calibration = field(default_factory=Calibration)
    levels: LevelCalibration = field(default_factory=LevelCalibration)
    judge: Judge | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    ivdtool: str = ""

    def __post_init__(self) -> None:
        if not self.labels or not set(self.labels) <= set(ALL_LABELS):
            raise ValueError(f"labels must lie in 3..25, not {self.labels}")
        if tuple(sorted(set(self.labels))) != tuple(self.labels):
            raise ValueError(f"labels must be strictly increasing, not {self.labels}")
        if tuple(self.skeleton.labels) != tuple(self.labels):
            raise ValueError("the skeleton has other labels than the network")
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, not {self.stride}")

    def to_json(self) -> str:
        """Return the JSON text that `from_json` reads."""
        document = {
            "schema": SCHEMA,
            "name": self.name,
            "labels": list(self.labels),
            "stride": self.stride,
            "skeleton": self.skeleton.to_dict(),
            "preprocessing": to_dict(self.preprocessing),
            "candidates": to_dict(self.candidates),
            "search": to_dict(self.search),
            "calibration": to_dict(self.calibration),
            "levels": to_dict(self.levels),
            "judge": None if self.judge is None else to_dict(self.judge),
            "network": dict(self.network),
            "training": dict(self.training),
            "accuracy": dict(self.accuracy),
            "ivdtool": self.ivdtool,
        }
        return json.dumps(document, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> "ModelInfo":
        """Read what `to_json` wrote.

        Raises:
            ValueError: the text is damaged, of another schema, or has refused settings.
        """
        document = json.loads(text)
        if not isinstance(document, dict) or document.pop("schema", None) != SCHEMA:
            raise ValueError(f"not a model description of schema {SCHEMA}")
        try:
            return cls(
                name=str(document["name"]),
                labels=tuple(index(label) for label in document["labels"]),
                stride=index(document["stride"]),
                skeleton=Skeleton.from_dict(_table(document, "skeleton")),
                preprocessing=from_dict(PreprocessingConfig, _table(document, "preprocessing")),
                candidates=from_dict(CandidateConfig, _table(document, "candidates")),
                search=from_dict(SearchConfig, _table(document, "search")),
                calibration=from_dict(Calibration, _table(document, "calibration")),
                levels=from_dict(LevelCalibration, _table({"levels": {}} | document, "levels")),
                judge=_judge(document),
                network=_table(document, "network"),
                training=_table(document, "training"),
                accuracy=_table(document, "accuracy"),
                ivdtool=str(document["ivdtool"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"damaged model description: {error}") from error


def _judge(document: Mapping[str, Any]) -> Judge | None:
    # a file written before there were verdicts has none
    return None if document.get("judge") is None else from_dict(Judge, _table(document, "judge"))


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = document[name]
    if not isinstance(table, Mapping):
        raise TypeError(f"{name} must be a table, not {table!r}")
    return table
