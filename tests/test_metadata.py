"""What a model file says of itself survives the file; what is damaged is refused."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivdtool.candidates import CandidateConfig
from ivdtool.levels import LevelCalibration
from ivdtool.metadata import SCHEMA, Calibration, ModelInfo
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.search import SearchConfig
from ivdtool.skeleton import Skeleton
from ivdtool.verdict import Judge

SKELETON = Skeleton.from_points(
    [
        {3: (0.0, 0.0), 4: (18.1, 2.0), 5: (36.3, 5.0), 6: (53.9, 7.5)},
        {4: (3.0, 1.0), 5: (20.7, 2.9), 6: (37.0, 6.1)},
    ]
)


def make_info(**changes: Any) -> ModelInfo:
    values: dict[str, Any] = {
        "name": "robust",
        "labels": (3, 4, 5, 6),
        "stride": 4,
        "skeleton": SKELETON,
        "preprocessing": PreprocessingConfig(slices=6, normalisation="minmax"),
        "candidates": CandidateConfig(max_candidates=7),
        "search": SearchConfig(max_scale=math.inf, anchors=(3, 5)),
        "calibration": Calibration(-3.5, 5.25, 0.125, 1.0),
        "levels": LevelCalibration(-2.5, -1.25, 2.0, -3.0, 0.1),
        "judge": Judge(-1.0, 4.5, 3.0, -6.25, 0.875, 0.25),
        "network": {"name": "hourglass", "arguments": {"stacks": 2}},
        "training": {"subjects": 41, "sources": ["a", "b"]},
        "accuracy": {"val": {"found_pct": 97.5}},
        "ivdtool": "0.1.0",
    }
    return ModelInfo(**values | changes)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_round_trip(as_bytes: bool) -> None:
    info = make_info(name="Wirbelsäule")
    text = info.to_json()
    again = ModelInfo.from_json(text.encode() if as_bytes else text)
    for name in ("preprocessing", "candidates", "search", "calibration", "levels", "judge"):
        assert getattr(again, name) == getattr(info, name)
    for name in ("name", "labels", "stride", "network", "training", "accuracy", "ivdtool"):
        assert getattr(again, name) == getattr(info, name)
    assert again.skeleton.to_dict() == SKELETON.to_dict()
    assert again.to_json() == text


def test_files_from_before_levels_were_calibrated() -> None:
    document = json.loads(make_info().to_json())
    del document["levels"]
    assert ModelInfo.from_json(json.dumps(document)).levels == LevelCalibration()


def test_the_file_names_its_schema() -> None:
    assert json.loads(make_info().to_json())["schema"] == SCHEMA == 1


@pytest.mark.parametrize("written", [True, False])
def test_a_model_without_verdicts(written: bool) -> None:
    """As it is written today, and as files were before there were verdicts."""
    document = json.loads(make_info(judge=None).to_json())
    if not written:
        del document["judge"]
    again = ModelInfo.from_json(json.dumps(document))
    assert again.judge is None
    assert again.calibration == make_info().calibration


@pytest.mark.parametrize("keep", [0, 1, 100, -2])
def test_truncated(keep: int) -> None:
    text = make_info().to_json()
    with pytest.raises(ValueError, match=r"."):
        ModelInfo.from_json(text[:keep])


@pytest.mark.parametrize("text", ["[]", "3", "null", '"schema"', "{}", b"\xff\x00", "nonsense"])
def test_no_model_description(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"schema|codec|Expecting"):
        ModelInfo.from_json(text)


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("schema", value=2), "not a model description of schema 1"),
        (put("schema", value=None), "not a model description of schema 1"),
        (lambda document: document.pop("stride"), "stride"),
        (lambda document: document.pop("search"), "search"),
        (put("labels", value=None), "damaged"),
        (put("labels", value=[]), r"labels must lie in 3\.\.25"),
        (put("labels", value=[2, 3, 4, 5]), r"labels must lie in 3\.\.25"),
        (put("labels", value=[3, 5, 4, 6]), "strictly increasing"),
        (put("labels", value=[3.5, 4, 5, 6]), "damaged"),
        (put("labels", value=["3", "4", "5", "6"]), "damaged"),
        (put("labels", value=[4, 5, 6, 7]), "the skeleton has other labels"),
        (put("stride", value=0), "stride must be at least 1"),
        (put("stride", value=4.5), "damaged"),
        (put("skeleton", value=[]), "skeleton must be a table"),
        (put("skeleton", "mean_mm", value=[[0, 0]]), "mean_mm"),
        (put("skeleton", "step_sd_mm", value=[1, "x", 1]), "numbers"),
        (put("preprocessing", value=[]), "preprocessing must be a table"),
        (put("preprocessing", "spacing_mm", value=0), "spacing_mm"),
        (put("preprocessing", "colour", value="red"), "unknown setting colour"),
        (put("candidates", "max_candidates", value="many"), "max_candidates must be int"),
        (put("search", "mode", value="guess"), "mode must be one of"),
        (put("search", "anchors", value=[3]), "anchors must be a list of 2"),
        (put("calibration", "score", value=math.nan), "calibration weights must be finite"),
        (put("judge", value=[]), "judge must be a table"),
        (put("judge", value={}), "missing"),
        (put("judge", "mean", value=math.nan), "weights of the verdict must be finite"),
        (put("judge", "certain", value=0.125), "check <= certain"),
        (put("network", value="hourglass"), "network must be a table"),
        (put("accuracy", value=3), "accuracy must be a table"),
    ],
)
def test_damaged(change: Callable[[dict[str, Any]], None], message: str) -> None:
    document = json.loads(make_info().to_json())
    change(document)
    with pytest.raises(ValueError, match=message):
        ModelInfo.from_json(json.dumps(document))


def test_confidence_is_a_logistic_function() -> None:
    calibration = Calibration(intercept=-2.0, score=3.0, margin=0.5, neighbours=1.5)
    odds = -2.0 + 3.0 * 0.8 + 0.5 * math.log(1 + 20.0) + 1.5 * 0.6
    assert calibration.confidence(0.8, 20.0, 0.6) == pytest.approx(1 / (1 + math.exp(-odds)))


@given(
    st.floats(0, 2),
    st.floats(0, 2),
    st.floats(0, math.inf),
    st.floats(0, math.inf),
    st.floats(0, 1),
)
def test_confidence_is_a_probability_that_rises(
    score: float, other: float, margin: float, wider: float, mean: float
) -> None:
    calibration = Calibration()
    low = calibration.confidence(min(score, other), min(margin, wider), mean)
    high = calibration.confidence(max(score, other), max(margin, wider), mean)
    assert 0 < low <= high < 1


def test_margins_beyond_the_limit_count_as_that() -> None:
    calibration = Calibration()
    at_limit = calibration.confidence(0.4, 1000.0, 0.4)
    assert calibration.confidence(0.4, math.inf, 0.4) == at_limit
    assert calibration.confidence(0.4, 900.0, 0.4) < at_limit
    assert calibration.confidence(0.4, -5.0, 0.4) == calibration.confidence(0.4, 0.0, 0.4)


def test_extreme_weights_do_not_overflow() -> None:
    assert Calibration(intercept=1e9).confidence(1.0, 1.0, 1.0) == pytest.approx(1.0)
    assert Calibration(intercept=-1e9).confidence(1.0, 1.0, 1.0) == pytest.approx(0.0, abs=1e-9)
