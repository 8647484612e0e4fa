from typing import TypeAlias

import numpy as np
import numpy.typing as npt

# One alias per array type that crosses the boundary; the same names as in csrc/bindings.cpp.
FloatArray: TypeAlias = npt.NDArray[np.float32]
DoubleArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
IndexArray: TypeAlias = npt.NDArray[np.int64]

__version__: str
__debug_build__: bool

def draw_heatmaps(
    points: DoubleArray,
    visible: BoolArray,
    sigma: tuple[float, float],
    heatmaps: FloatArray,
    clear: bool,
) -> None: ...

class HeatmapBuffer:
    def __init__(self, batch: int, channels: int, rows: int, cols: int) -> None: ...
    def draw(self, points: DoubleArray, visible: BoolArray, sigma: tuple[float, float]) -> None: ...
    @property
    def values(self) -> FloatArray: ...

def find_candidates(
    heatmaps: FloatArray,
    stride: int,
    threshold: float,
    threshold_relative: float,
    radius_mm: float,
    spacing_mm: tuple[float, float],
    max_candidates: int,
    portable: bool,
) -> tuple[DoubleArray, DoubleArray, IndexArray]: ...
def check_candidates(
    positions: DoubleArray, scores: DoubleArray, offsets: IndexArray, channels: int
) -> None: ...

class SearchResult:
    @property
    def choices(self) -> IndexArray: ...
    @property
    def costs(self) -> DoubleArray: ...
    @property
    def terms(self) -> DoubleArray: ...
    @property
    def multipliers(self) -> DoubleArray: ...
    @property
    def margins(self) -> DoubleArray: ...
    @property
    def margins_proved(self) -> BoolArray: ...
    @property
    def nodes(self) -> int: ...
    @property
    def optimal(self) -> bool: ...
    @property
    def lower_bound(self) -> float: ...
    @property
    def fates(self) -> IndexArray: ...
    @property
    def depth(self) -> int: ...
    @property
    def improvements(self) -> DoubleArray: ...
    @property
    def tree(self) -> IndexArray: ...
    @property
    def bounds(self) -> DoubleArray: ...

def search_paper(
    positions_mm: DoubleArray,
    scores: DoubleArray,
    offsets: IndexArray,
    mean_mm: DoubleArray,
    anchors: tuple[int, int],
    squared: bool,
    n_best: int,
    with_margins: bool,
) -> SearchResult: ...
def search_exhaustive(
    positions_mm: DoubleArray,
    scores: DoubleArray,
    offsets: IndexArray,
    mean_mm: DoubleArray,
    anchors: tuple[int, int],
    squared: bool,
    most: int,
) -> SearchResult: ...
def search_paper_order(
    positions_mm: DoubleArray,
    scores: DoubleArray,
    offsets: IndexArray,
    mean_mm: DoubleArray,
    missing_costs: DoubleArray,
    anchors: tuple[int, int],
    squared: bool,
    min_gap: float,
    n_best: int,
    with_margins: bool,
) -> SearchResult: ...
def search_first_last(
    positions_mm: DoubleArray,
    scores: DoubleArray,
    offsets: IndexArray,
    mean_mm: DoubleArray,
    missing_costs: DoubleArray,
    score_weight_mm2: float,
    max_rotation_rad: float,
    min_scale: float,
    max_scale: float,
    min_gap: float,
    n_best: int,
    with_margins: bool,
) -> SearchResult: ...
def search_ls_chain(
    positions_mm: DoubleArray,
    scores: DoubleArray,
    offsets: IndexArray,
    mean_mm: DoubleArray,
    disc_weights: DoubleArray,
    pair_weights: DoubleArray,
    missing_costs: DoubleArray,
    score_weight_mm2: float,
    chain_weight: float,
    max_rotation_rad: float,
    min_scale: float,
    max_scale: float,
    min_gap: float,
    min_present: int,
    max_present: int,
    rules: IndexArray,
    borrow_mm2: float,
    offset_change_mm2: float,
    offset_start_mm2: float,
    n_best: int,
    node_budget: int,
    with_margins: bool,
    tree_size: int,
    without: str = "",
) -> SearchResult: ...
