"""Every answer of the search benchmark; times are printed (pytest -s), not asserted."""

import pytest
from benchmarks.answers import check_answers

from ivdtool.benchmark.search import search_cases
from ivdtool.benchmark.timing import Case

CASES = list(search_cases(quick=True))


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_answers(case: Case) -> None:
    check_answers(case)
