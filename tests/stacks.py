"""Search problems of a generator that was written independently of ivdtool."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np

from ivdtool import _core
from ivdtool.search import SearchConfig


def load_tool(data: Path, name: str) -> ModuleType:
    """Import a script that lies beside the real data.

    Raises:
        FileNotFoundError: it does not.
    """
    path = data.parent / "tools" / f"{name}.py"
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} at {path.parent}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class StackProblem:
    """One case of the generator of synthetic stacks, as arguments of the compiled search."""

    def __init__(self, stacks: ModuleType, discs: int, choices: int, scenario: str, seed: int):
        template = np.ascontiguousarray(stacks.skeleton_mm(discs))
        size = 256 if discs == 11 else 512
        length_mm = float(np.linalg.norm(template[-1] - template[0]))
        mm = length_mm / (0.83 * size)  # of a pixel, roughly
        self.stacks = stacks
        self.case = stacks.make_case(seed, discs, size, size, choices, scenario)
        self.table = np.array([point for points in self.case["chans"] for point in points])
        offsets = np.cumsum([0, *map(len, self.case["chans"])])
        scores = self.table[:, 2].copy()
        self.arrays = (np.ascontiguousarray(self.table[:, :2] * mm), scores, offsets, template)

    def solve_paper(self) -> _core.SearchResult:
        return _core.search_paper(*self.arrays, (0, 4), False, 1, with_margins=False)

    def solve_ls_chain(self) -> _core.SearchResult:
        config = SearchConfig()
        count = len(self.arrays[3])
        upper = np.triu_indices(count, 1)
        pairs = np.zeros((count, count))
        pairs[upper] = 1 / (upper[1] - upper[0])
        return _core.search_ls_chain(
            *self.arrays,
            disc_weights=np.ones(count),
            pair_weights=pairs,
            missing_costs=np.full(count, config.missing_penalty_mm2),
            score_weight_mm2=config.score_weight_mm2,
            chain_weight=config.chain_weight,
            max_rotation_rad=config.max_rotation_rad,
            min_scale=config.min_scale,
            max_scale=config.max_scale,
            min_gap=config.min_gap,
            min_present=config.min_present,
            max_present=count,
            rules=np.zeros(count, dtype=np.int64),
            borrow_mm2=math.inf,
            offset_change_mm2=config.offset_change_mm2,
            offset_start_mm2=config.offset_start_mm2,
            n_best=1,
            node_budget=config.node_budget,
            with_margins=False,
            tree_size=0,
        )

    def share_right(self) -> float:
        rows = self.solve_ls_chain().choices[0]
        points = [tuple(self.table[row, :2]) if row >= 0 else None for row in rows]
        return float(self.stacks.score(self.case, points)["acc"])
