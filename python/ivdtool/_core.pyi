from typing import TypeAlias

import numpy as np
import numpy.typing as npt

# One alias per array type that crosses the boundary; the same names as in csrc/bindings.cpp.
FloatArray: TypeAlias = npt.NDArray[np.float32]
DoubleArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
IndexArray: TypeAlias = npt.NDArray[np.int64]

# The fields of ivdtool.search.Result.
ResultTuple: TypeAlias = tuple[
    IndexArray,
    DoubleArray,
    DoubleArray,
    DoubleArray,
    DoubleArray,
    BoolArray,
    int,
    bool,
    float,
]

__version__: str
__debug_build__: bool

def draw_heatmaps(
    points: DoubleArray,
    visible: BoolArray,
    shape: tuple[int, int],
    sigma: tuple[float, float],
) -> FloatArray: ...
def find_candidates(
    heatmaps: FloatArray,
    threshold: float,
    threshold_relative: float,
    radius_mm: float,
    spacing_mm: tuple[float, float],
    max_candidates: int,
) -> tuple[DoubleArray, DoubleArray, IndexArray]: ...
def search_paper(
    positions_mm: DoubleArray,
    scores: DoubleArray,
    offsets: IndexArray,
    template_mm: DoubleArray,
    anchors: tuple[int, int],
    squared: bool,
    n_best: int,
) -> ResultTuple: ...
def search_ls_chain(
    positions_mm: DoubleArray,
    scores: DoubleArray,
    offsets: IndexArray,
    template_mm: DoubleArray,
    disc_weights: DoubleArray,
    pair_weights: DoubleArray,
    missing_costs: DoubleArray,
    score_weight: float,
    chain_weight: float,
    max_rotation_rad: float,
    min_scale: float,
    max_scale: float,
    min_gap: float,
    min_present: int,
    n_best: int,
    node_budget: int,
    with_margins: bool,
) -> ResultTuple: ...
