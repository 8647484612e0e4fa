"""Every answer of the heatmaps benchmark; times are printed (pytest -s), not asserted."""

import pytest

from ivdtool.benchmark.heatmaps import heatmap_cases
from ivdtool.benchmark.report import Report, format_report
from ivdtool.benchmark.timing import Case, measure

CASES = list(heatmap_cases(quick=True))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_answers(case: Case) -> None:
    timings = measure(case, rounds=2, seconds=0.2)  # raises where an answer is wrong
    assert timings[0].checked
    assert timings[0].ratio.median == 1.0
    print(format_report(Report(case.stage, case.name, timings, case.missing)))
