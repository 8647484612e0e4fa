"""The stages of the pipeline, timed on a phantom."""

import pytest

from ivdtool.benchmark.report import format_report, run_benchmarks
from ivdtool.errors import ModelError


def test_stages_add_up() -> None:
    try:
        (report,) = run_benchmarks(["pipeline"], quick=True)
    except ModelError as error:
        pytest.skip(str(error))
    assert report.timings[-1].name == "total"
    assert sum(timing.ratio.maximum for timing in report.timings[:-1]) >= 0.99
    print(format_report(report))
