"""What a user may change of a model's method."""

from dataclasses import replace

import pytest

from ivdtool.errors import UsageError
from ivdtool.inference import load_model
from ivdtool.labelling import method_config
from ivdtool.metadata import ModelInfo
from ivdtool.preprocessing import PreprocessingConfig


@pytest.fixture(scope="module")
def info() -> ModelInfo:
    return load_model(device="cpu").info


def test_what_is_not_given_is_the_models(info: ModelInfo) -> None:
    assert method_config(info).preprocessing == info.preprocessing
    changed = method_config(info, normalisation="minmax", middle=True)
    assert changed.preprocessing == replace(info.preprocessing, normalisation="minmax")
    assert changed.plane.reach_mm == 0


@pytest.mark.parametrize("own", [PreprocessingConfig(slices=6), PreprocessingConfig(slab_mm=9)])
def test_slices_and_thickness_take_the_place_of_each_other(
    info: ModelInfo, own: PreprocessingConfig
) -> None:
    info = replace(info, preprocessing=own)
    by_thickness = method_config(info, slab_mm=4).preprocessing
    by_slices = method_config(info, slices=3).preprocessing
    assert by_thickness is not None
    assert by_slices is not None
    assert (by_thickness.slices, by_thickness.slab_mm) == (None, 4)
    assert by_slices.slices == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slices": 3, "slab_mm": 4.0}, "one of them"),
        ({"slices": 0}, "slices must be at least 1"),
        ({"slab_mm": 99.0}, "slab_mm must lie"),
        ({"normalisation": "none"}, "percentile or minmax"),
    ],
)
def test_values_out_of_range(info: ModelInfo, changes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        method_config(info, **changes)  # type: ignore[arg-type]
