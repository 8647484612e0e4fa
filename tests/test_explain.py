"""The account of a search."""

import numpy as np
import pytest
from tests.problems import CANDIDATES, SKELETON

from ivdtool.candidates import Candidates
from ivdtool.explain import explain_search
from ivdtool.search import SearchConfig, search_skeleton


def account(config: SearchConfig, candidates: Candidates = CANDIDATES) -> str:
    return explain_search(search_skeleton(candidates, SKELETON, config))


def test_account_names_discs_costs_and_effort() -> None:
    text = account(SearchConfig())
    assignment = search_skeleton(CANDIDATES, SKELETON)
    assert f"cost {assignment.cost:.1f} mm2 = shape" in text
    assert "proved: no labelling costs less" in text
    for disc in ("T12/L1", "L1/L2", "L2/L3", "L3/L4"):
        assert disc in text
    assert "*0.70 (71, 49)" in text
    assert "0.40 (66, 50)" in text
    assert "2. best," in text
    assert "nodes taken" in text
    assert "best cost by nodes taken: " in text


@pytest.mark.parametrize("weights", ["uniform", "learnt"])
@pytest.mark.parametrize("mode", ["ls_chain", "first_last"])
def test_disc_shares_add_up(mode: str, weights: str) -> None:
    skeleton_config = SearchConfig(mode=mode, weights=weights)  # type: ignore[arg-type]
    assignment = search_skeleton(CANDIDATES, SKELETON, skeleton_config)
    lines = account(skeleton_config).splitlines()
    rows = [line.split() for line in lines if line[2:8] in ("T12/L1", "L1/L2 ", "L2/L3 ", "L3/L4 ")]
    shape = sum(float(row[1]) for row in rows)
    assert shape == pytest.approx(assignment.terms["shape_mm2"], abs=0.2)
    if mode == "ls_chain":
        chain = sum(float(row[2]) for row in rows[:-1])
        assert chain == pytest.approx(assignment.terms["chain_mm2"], abs=0.2)


def test_account_without_a_labelling() -> None:
    nothing = Candidates(
        positions=np.zeros((0, 2)),
        scores=np.zeros(0),
        offsets=np.zeros(5, dtype=np.int64),
        labels=(20, 21, 22, 23),
        spacing_mm=(1.0, 1.0),
    )
    assert (
        account(SearchConfig(), nothing) == "ls_chain: no labelling is feasible among 0 candidates"
    )


def test_account_of_the_papers_cost() -> None:
    text = account(SearchConfig(mode="paper", anchors=(20, 23)))
    assert "of |v1 - v5|" in text
    assert "scaled" not in text


def test_account_of_a_spent_budget() -> None:
    rng = np.random.default_rng(4)
    positions = np.repeat(SKELETON.mean_mm, 30, axis=0) + rng.normal(0, 9, (120, 2))
    crowd = Candidates(
        positions, np.full(120, 0.5), np.arange(0, 121, 30), (20, 21, 22, 23), (1, 1)
    )
    text = account(SearchConfig(node_budget=1), crowd)
    assert "not proved" in text
    assert "never reached" in text
