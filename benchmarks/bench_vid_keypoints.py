"""The skeleton search on real detections; `python -m benchmarks.vid_keypoints` prints them all."""

import pytest
from benchmarks.vid_keypoints import FILE, fold_of, read_scans, run


def test_levels_of_held_out_scans() -> None:
    if not FILE.is_file():
        pytest.skip(f"no real data at {FILE}")
    scans = read_scans(FILE)
    folds = fold_of(len(scans))
    report = run(scans, folds != 0, folds == 0)
    assert report.all_optimal
    assert report.search.bodies > 0.935
    assert report.search.detected > 0.945
    assert report.search.bodies > max(other.bodies for other in report.baselines.values()) + 0.01
    assert report.margin_auc > 0.8
