"""What the benchmark tests of every stage share."""

from ivdtool.benchmark.report import Report, format_report
from ivdtool.benchmark.timing import Case, measure


def check_answers(case: Case) -> None:
    """Run every contender of a case; times are printed (pytest -s), not asserted."""
    timings = measure(case, rounds=2, seconds=0.2)  # raises where an answer is wrong
    assert timings[0].checked
    assert timings[0].ratio.median == 1.0
    print(format_report(Report(case.stage, case.name, timings, case.missing)))
