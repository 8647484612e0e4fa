"""The compiled functions take one dtype and layout, check what makes indexing safe, share the GIL.

Run with sanitizers, this file is the memory test of the boundary.
"""

import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.fuzz_core import TARGETS, fuzz

from ivdtool import _core


def draw_arguments() -> dict[str, Any]:
    return {
        "points": np.full((2, 3, 2), 4.0),
        "visible": np.ones((2, 3), dtype=np.bool_),
        "sigma": (1.5, 1.5),
        "heatmaps": np.zeros((2, 3, 8, 9), dtype=np.float32),
        "clear": True,
    }


def candidate_arguments() -> dict[str, Any]:
    return {
        "heatmaps": np.random.default_rng(0).random((3, 20, 30), dtype=np.float32),
        "stride": 4,
        "threshold": 0.1,
        "threshold_relative": 0.2,
        "radius_mm": 3.0,
        "spacing_mm": (1.0, 2.0),
        "max_candidates": 4,
        "portable": False,
    }


def paper_arguments() -> dict[str, Any]:
    template = np.stack([np.arange(5) * 30.0, np.zeros(5)], axis=1)
    return {
        "positions_mm": np.repeat(template, 2, axis=0) + np.arange(20.0).reshape(10, 2) % 3,
        "scores": np.full(10, 0.8),
        "offsets": np.arange(0, 11, 2, dtype=np.int64),
        "mean_mm": template,
        "anchors": (0, 4),
        "squared": False,
        "n_best": 3,
        "with_margins": True,
    }


def exhaustive_arguments() -> dict[str, Any]:
    names = ("n_best", "with_margins")
    return {name: value for name, value in paper_arguments().items() if name not in names} | {
        "most": 10
    }


def paper_order_arguments() -> dict[str, Any]:
    return paper_arguments() | {"missing_costs": np.full(5, 0.1), "min_gap": 0.25}


def first_last_arguments() -> dict[str, Any]:
    names = ("positions_mm", "scores", "offsets", "mean_mm", "n_best", "with_margins")
    return {name: paper_arguments()[name] for name in names} | {
        "missing_costs": np.full(5, 300.0),
        "score_weight_mm2": 50.0,
        "max_rotation_rad": 0.35,
        "min_scale": 0.75,
        "max_scale": 1.35,
        "min_gap": 0.25,
    }


def ls_chain_arguments() -> dict[str, Any]:
    return first_last_arguments() | {
        "disc_weights": np.ones(5),
        "pair_weights": np.ones((5, 5)),
        "chain_weight": 5.0,
        "min_present": 2,
        "max_present": 5,
        "rules": np.array([0, 1, 2, 3, 0]),
        "borrow_mm2": 10.0,
        "offset_change_mm2": 20.0,
        "offset_start_mm2": 5.0,
        "node_budget": 1000,
        "tree_size": 10,
    }


def list_arguments() -> dict[str, Any]:
    arguments = {name: paper_arguments()[name] for name in ("scores", "offsets")}
    return arguments | {"positions": paper_arguments()["positions_mm"], "channels": 5}


FUNCTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "check_candidates": list_arguments,
    "draw_heatmaps": draw_arguments,
    "find_candidates": candidate_arguments,
    "search_paper": paper_arguments,
    "search_exhaustive": exhaustive_arguments,
    "search_paper_order": paper_order_arguments,
    "search_first_last": first_last_arguments,
    "search_ls_chain": ls_chain_arguments,
}
ARRAYS = [
    (function, name)
    for function, arguments in FUNCTIONS.items()
    for name, value in arguments().items()
    if isinstance(value, np.ndarray)
]


def call(function: str, **changes: Any) -> Any:
    return getattr(_core, function)(**FUNCTIONS[function]() | changes)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_good_arguments_are_accepted(function: str) -> None:
    call(function)


@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_another_dtype_is_a_type_error(function: str, name: str) -> None:
    array = FUNCTIONS[function]()[name]
    for dtype in {np.float32, np.float64, np.int64, np.int32, np.uint8} - {array.dtype.type}:
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call(function, **{name: array.astype(dtype)})


@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_another_layout_is_a_type_error(function: str, name: str) -> None:
    array = FUNCTIONS[function]()[name]
    strided = np.repeat(array, 2, axis=-1)[..., ::2]
    layouts = [strided] + [np.asfortranarray(array)] * (array.ndim > 1)
    for layout in layouts:
        np.testing.assert_array_equal(layout, array)
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call(function, **{name: layout})


@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_a_list_is_a_type_error(function: str, name: str) -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        call(function, **{name: FUNCTIONS[function]()[name].tolist()})


@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_another_shape_is_a_value_error(function: str, name: str) -> None:
    array = FUNCTIONS[function]()[name]
    wrong = [array[np.newaxis], array[..., 0], np.repeat(array, 2, axis=-1)]
    if name == "heatmaps":
        wrong = wrong[:2]  # any H, W is right
    for other in map(np.ascontiguousarray, wrong):
        if other.ndim == 0:
            continue
        with pytest.raises(ValueError, match=r"must be|from 0 to N"):
            call(function, **{name: other})


@pytest.mark.parametrize(
    ("function", "changes"),
    [
        ("draw_heatmaps", {"heatmaps": np.zeros((2, 3, 0, 9), dtype=np.float32)}),
        ("draw_heatmaps", {"heatmaps": np.zeros((2, 4, 8, 9), dtype=np.float32)}),
        ("draw_heatmaps", {"sigma": (0.0, 1.0)}),
        ("draw_heatmaps", {"sigma": (1.0, math.nan)}),
        ("find_candidates", {"heatmaps": np.zeros((1, 0, 4), dtype=np.float32)}),
        ("find_candidates", {"stride": 0}),
        ("find_candidates", {"threshold": 0.0}),
        ("find_candidates", {"threshold": math.nan}),
        ("find_candidates", {"threshold_relative": 1.5}),
        ("find_candidates", {"radius_mm": -1.0}),
        ("find_candidates", {"radius_mm": math.inf}),
        ("find_candidates", {"spacing_mm": (1.0, 0.0)}),
        ("find_candidates", {"max_candidates": 0}),
        ("check_candidates", {"channels": -1}),
        ("check_candidates", {"channels": 4}),
        ("check_candidates", {"offsets": np.array([0, 2, 4, 3, 8, 10])}),
        ("check_candidates", {"scores": np.full(10, math.nan)}),
        ("search_paper", {"anchors": (0, 5)}),
        ("search_paper", {"anchors": (-1, 4)}),
        ("search_paper", {"anchors": (2, 2)}),
        ("search_paper", {"mean_mm": np.zeros((5, 2))}),
        ("search_paper", {"n_best": 0}),
        ("search_paper", {"offsets": np.array([0, 2, 4, 6, 8, 11])}),
        ("search_paper", {"offsets": np.array([0, 2, 4, 6, 8, 9])}),
        ("search_paper", {"offsets": np.array([1, 2, 4, 6, 8, 10])}),
        ("search_paper", {"offsets": np.array([0, 2, -4, 6, 8, 10])}),
        ("search_paper", {"offsets": np.array([0, 12, 4, 6, 8, 10])}),
        ("search_ls_chain", {"offsets": np.array([0, 12, 4, 6, 8, 10])}),
        ("search_ls_chain", {"positions_mm": np.full((10, 2), np.nan)}),
        ("search_ls_chain", {"scores": np.full(10, np.inf)}),
        ("search_ls_chain", {"mean_mm": np.full((5, 2), np.nan)}),
        ("search_ls_chain", {"disc_weights": np.zeros(5)}),
        ("search_ls_chain", {"pair_weights": np.full((5, 5), -1.0)}),
        ("search_ls_chain", {"missing_costs": np.full(5, -1.0)}),
        ("search_ls_chain", {"missing_costs": np.full(5, np.nan)}),
        ("search_ls_chain", {"score_weight_mm2": -1.0}),
        ("search_ls_chain", {"chain_weight": math.nan}),
        ("search_ls_chain", {"max_rotation_rad": 3.2}),
        ("search_ls_chain", {"max_rotation_rad": -0.1}),
        ("search_ls_chain", {"min_scale": math.inf, "max_scale": math.inf}),
        ("search_ls_chain", {"min_scale": 1.5}),
        ("search_ls_chain", {"max_scale": math.nan}),
        ("search_ls_chain", {"min_scale": 0.0, "max_scale": 0.0}),
        ("search_ls_chain", {"min_gap": -0.1}),
        ("search_ls_chain", {"min_present": 0}),
        ("search_ls_chain", {"max_present": 1}),
        ("search_ls_chain", {"rules": np.array([0, 0, 4, 0, 0])}),
        ("search_ls_chain", {"rules": np.array([0, 0, -1, 0, 0])}),
        ("search_ls_chain", {"rules": np.zeros(4, dtype=np.int64)}),
        ("search_exhaustive", {"most": 0}),
        ("search_paper_order", {"anchors": (2, 2)}),
        ("search_paper_order", {"anchors": (0, 7)}),
        ("search_paper_order", {"min_gap": math.inf}),
        ("search_paper_order", {"missing_costs": np.full(5, -1.0)}),
        ("search_paper_order", {"n_best": 0}),
        ("search_first_last", {"n_best": 0}),
        ("search_first_last", {"max_scale": 0.5}),
        ("search_first_last", {"score_weight_mm2": math.nan}),
        ("search_first_last", {"missing_costs": np.full(5, math.inf)}),
        ("search_ls_chain", {"borrow_mm2": -1.0}),
        ("search_ls_chain", {"borrow_mm2": math.nan}),
        ("search_ls_chain", {"offset_change_mm2": math.inf}),
        ("search_ls_chain", {"offset_start_mm2": -1.0}),
        ("search_ls_chain", {"tree_size": -1}),
        ("search_ls_chain", {"n_best": 0}),
        ("search_ls_chain", {"node_budget": 0}),
        ("search_ls_chain", {"without": "sense"}),
    ],
)
def test_wrong_value_is_a_value_error(function: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|offsets"):
        call(function, **changes)


def test_random_arguments_briefly() -> None:
    outcomes = fuzz(2.0, 1)
    assert {name.partition(":")[0] for name in outcomes} == {t.__name__ for t in TARGETS}


def test_nothing_in_nothing_out() -> None:
    call(
        "draw_heatmaps",
        points=np.zeros((0, 3, 2)),
        visible=np.zeros((0, 3), dtype=np.bool_),
        heatmaps=np.zeros((0, 3, 8, 9), dtype=np.float32),
    )
    positions, scores, offsets = call(
        "find_candidates", heatmaps=np.zeros((0, 4, 4), dtype=np.float32)
    )
    assert positions.shape == (0, 2)
    assert scores.shape == (0,)
    assert offsets.tolist() == [0]
    empty = {
        "positions_mm": np.zeros((0, 2)),
        "scores": np.zeros(0),
        "offsets": np.zeros(6, dtype=np.int64),
    }
    for function in FUNCTIONS:
        if not function.startswith("search_"):
            continue
        assert call(function, **empty).choices.shape == (0, 5)


@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_arguments_are_not_modified(function: str, name: str) -> None:
    array = FUNCTIONS[function]()[name]
    array.flags.writeable = False
    if (function, name) == ("draw_heatmaps", "heatmaps"):  # the one that is written to
        with pytest.raises(ValueError, match="not writeable"):
            call(function, **{name: array})
        return
    before = array.copy()
    call(function, **{name: array})
    np.testing.assert_array_equal(array, before)


def draw_buffer(buffer: _core.HeatmapBuffer, **changes: Any) -> None:
    arguments = {name: draw_arguments()[name] for name in ("points", "visible", "sigma")}
    buffer.draw(**arguments | changes)


def test_a_buffer_checks_as_functions_do() -> None:
    buffer = _core.HeatmapBuffer(2, 3, 8, 9)
    draw_buffer(buffer)
    wrong: list[dict[str, Any]] = [
        {"points": np.zeros((2, 3, 3))},
        {"points": np.zeros((3, 3, 2)), "visible": np.ones((3, 3), dtype=np.bool_)},
        {"points": np.zeros((2, 2, 2)), "visible": np.ones((2, 2), dtype=np.bool_)},
        {"visible": np.ones((2, 4), dtype=np.bool_)},
        {"sigma": (0.0, 1.0)},
    ]
    for changes in wrong:
        with pytest.raises(ValueError, match="must be"):
            draw_buffer(buffer, **changes)
    for name in ("points", "visible"):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            draw_buffer(buffer, **{name: draw_arguments()[name].astype(np.float32)})
    for shape in [(-1, 3, 8, 9), (1, -3, 8, 9), (1, 3, 0, 9), (1, 3, 8, -9), (2**32, 2**32, 1, 1)]:
        with pytest.raises(ValueError, match=r"must be positive|must fit"):
            _core.HeatmapBuffer(*shape)


@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_an_array_off_its_items_boundaries_is_refused(function: str, name: str) -> None:
    array = FUNCTIONS[function]()[name]
    if array.itemsize == 1:
        return  # a byte is aligned wherever it stands
    memory = np.empty(array.nbytes + 1, dtype=np.uint8)
    moved = memory[1:].view(array.dtype).reshape(array.shape)
    moved[...] = array
    with pytest.raises(ValueError, match="aligned"):
        call(function, **{name: moved})
    if function == "draw_heatmaps" and name == "points":
        with pytest.raises(ValueError, match="aligned"):
            draw_buffer(_core.HeatmapBuffer(2, 3, 8, 9), points=moved)


def test_a_buffer_outlives_its_name() -> None:
    values = _core.HeatmapBuffer(2, 3, 8, 9).values
    assert values.shape == (2, 3, 8, 9)
    assert not values.flags.writeable
    assert not values.any()


def test_a_large_array_is_cleared_at_any_alignment() -> None:
    """Larger than the last-level cache it is written past it, a cache line at a time."""
    cells = 33 * 2**20 // 4
    memory = np.empty(cells + 64, dtype=np.float32)
    points, visible = np.full((1, 1, 2), np.nan), np.ones((1, 1), dtype=np.bool_)
    for offset in (0, 1, 15, 16):
        memory.fill(7.0)
        array = memory[offset : offset + cells + 3].reshape(1, 1, 1, -1)
        _core.draw_heatmaps(points, visible, (1.0, 1.0), array, clear=True)
        assert not array.any()
        assert (memory[:offset] == 7.0).all()
        assert (memory[offset + cells + 3 :] == 7.0).all()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 31, 33, 34, 35, 66, 67])
def test_borders_are_in_bounds(size: int) -> None:
    """Under the address sanitizer: peaks on every border, widths around the vector width."""
    rng = np.random.default_rng(size)
    for shape in [(size, 5), (5, size), (size, size), (1, size)]:
        heatmaps = rng.random((4, *shape), dtype=np.float32)
        found = call("find_candidates", heatmaps=heatmaps, max_candidates=1000, radius_mm=0.0)
        assert found[2][-1] > 0
        points = rng.uniform(-3, size + 3, (2, 3, 2))
        drawn = np.empty((2, 3, *shape), dtype=np.float32)
        call("draw_heatmaps", points=points, heatmaps=drawn, sigma=(0.5, 30.0))
        buffer = _core.HeatmapBuffer(2, 3, *shape)
        for _ in range(2):
            draw_buffer(buffer, points=points, sigma=(0.5, 30.0))


def test_extreme_values_are_in_bounds() -> None:
    """Huge, tiny and non-finite numbers may give useless answers, but no undefined behaviour."""
    for value in (np.nan, np.inf, -np.inf, 1e38, 1e-45, -1.0):
        heatmaps = np.full((3, 6, 7), value, dtype=np.float32)
        heatmaps[1, 2, 3] = 0.5
        call("find_candidates", heatmaps=heatmaps, radius_mm=1e300)
        call("find_candidates", heatmaps=heatmaps, max_candidates=2**62, radius_mm=0.0)
        call("draw_heatmaps", points=np.full((2, 3, 2), value))
        draw_buffer(_core.HeatmapBuffer(2, 3, 8, 9), points=np.full((2, 3, 2), value))
    for scale in (0.0, 1e-300, 1e150, 1e300):
        positions = scale * np.random.default_rng(0).normal(size=(10, 2))
        call("search_paper", positions_mm=positions)
        call("search_paper_order", positions_mm=positions)
        call("search_first_last", positions_mm=positions)
        call("search_ls_chain", positions_mm=positions)
        call("search_ls_chain", positions_mm=positions, max_rotation_rad=math.pi)


def long_draw() -> Callable[[], Any]:
    points, visible = np.full((40, 23, 2), 100.0), np.ones((40, 23), dtype=np.bool_)
    heatmaps = np.empty((40, 23, 256, 256), dtype=np.float32)
    return lambda: _core.draw_heatmaps(points, visible, (60.0, 60.0), heatmaps, clear=True)


def long_find() -> Callable[[], Any]:
    heatmaps = np.random.default_rng(0).random((30, 512, 512), dtype=np.float32)
    return lambda: _core.find_candidates(
        heatmaps, 1, 0.1, 0.0, 20.0, (1.0, 1.0), 100, portable=True
    )


def long_paper() -> Callable[[], Any]:
    count = 300
    rng = np.random.default_rng(0)
    positions, scores = rng.normal(size=(5 * count, 2)), np.ones(5 * count)
    offsets = np.arange(6, dtype=np.int64) * count
    template = paper_arguments()["mean_mm"]
    return lambda: _core.search_paper(positions, scores, offsets, template, (0, 4), False, 1, True)


def long_ls_chain() -> Callable[[], Any]:
    rng = np.random.default_rng(0)
    template = np.stack([np.arange(23) * 30.0, np.zeros(23)], axis=1)
    arguments = ls_chain_arguments() | {
        "positions_mm": np.repeat(template, 5, axis=0) + rng.normal(0, 40, (115, 2)),
        "scores": np.full(115, 0.5),
        "offsets": np.arange(24, dtype=np.int64) * 5,
        "mean_mm": template,
        "disc_weights": np.ones(23),
        "pair_weights": np.ones((23, 23)),
        "missing_costs": np.full(23, 300.0),
        "max_present": 23,
        "rules": np.zeros(23, dtype=np.int64),
        "borrow_mm2": math.inf,
        "node_budget": 300_000,
    }
    return lambda: _core.search_ls_chain(**arguments)


@pytest.mark.parametrize("long_call", [long_draw, long_find, long_paper, long_ls_chain])
def test_other_threads_run_meanwhile(long_call: Callable[[], Callable[[], Any]]) -> None:
    """A thread that wakes every millisecond gets its turn while the compiled code works."""
    work = long_call()
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            time.sleep(0.001)
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        time.sleep(0.01)
        start, before = time.perf_counter(), ticks
        work()
        during, seconds = ticks - before, time.perf_counter() - start
    finally:
        done.set()
        thread.join()
    assert seconds > 0.02, "the call is too short to tell"
    assert during > 5
