"""Every answer of the heatmaps benchmark; times are printed (pytest -s), not asserted."""

import pytest
from benchmarks.answers import check_answers

from ivdtool.benchmark.heatmaps import heatmap_cases
from ivdtool.benchmark.timing import Case

CASES = list(heatmap_cases(quick=True))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_answers(case: Case) -> None:
    check_answers(case)
