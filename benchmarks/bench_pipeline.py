"""The stages of the pipeline beside their floors, and whole programs, timed on a phantom."""

import pytest

from ivdtool.benchmark.report import format_report, run_benchmarks
from ivdtool.errors import ModelError


def test_stages_add_up() -> None:
    try:
        stages, start_up = run_benchmarks(["pipeline"], quick=True)
    except ModelError as error:
        pytest.skip(str(error))
    names = [timing.name for timing in stages.timings]
    total = names.index("total")
    assert sum(timing.ratio.maximum for timing in stages.timings[:total]) >= 0.99
    assert names[total + 1 :] == ["floor: gunzip alone", "floor: network alone", "floor: together"]
    assert all(timing.checked for timing in stages.timings[total:])
    assert [timing.name for timing in start_up.timings] == [
        "python -c 'import torch'",
        "ivdtool --help",
        "ivdtool label",
    ]
    assert [timing.checked for timing in start_up.timings] == [False, True, True]
    print(format_report(stages))
    print(format_report(start_up))
