"""The shipped model finds the spine wherever it lies, in small and in large fields of view."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import ivdtool
from ivdtool.inference import Model, load_model
from ivdtool.phantom import PhantomConfig, make_phantom

FIELDS: dict[str, dict[str, Any]] = {
    "neck of 120 mm": {
        "region": "cervical", "first_label": 4, "last_label": 7, "top_mm": 25, "bottom_mm": 25,
        "width_mm": 200,
    },
    "neck under the whole head": {
        "region": "cervical", "contrast": "T1w", "top_mm": 130, "bottom_mm": 20, "width_mm": 260,
    },
    "lumbar with the pelvis": {"region": "lumbar", "bottom_mm": 180, "width_mm": 350},
    "lumbar in front of wide air": {"region": "lumbar", "width_mm": 480, "spine_position": 0.3},
    "whole spine of nearly 900 mm": {
        "region": "whole", "top_mm": 140, "bottom_mm": 200, "width_mm": 500, "slices": 5,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def shipped() -> Model:
    return load_model(device="cpu")


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_of_view_has_to_be_cut_by_hand(field: str, shipped: Model, tmp_path: Path) -> None:
    phantom = make_phantom(PhantomConfig(seed=91_001, **FIELDS[field]))
    nib.save(phantom.image, tmp_path / "a.nii.gz")
    found = ivdtool.label(tmp_path / "a.nii.gz", model=shipped)
    points = {disc.label: disc.world_mm for disc in found.discs}
    wanted = {k: v for k, v in phantom.discs.items() if k not in phantom.uncertain}
    near = [
        label
        for label, point in wanted.items()
        if label in points and np.hypot(*(points[label] - point)[1:]) <= 5
    ]
    assert len(near) >= 0.95 * len(wanted), (sorted(points), sorted(wanted))
    assert points.keys() <= phantom.discs.keys()
