"""What a user knows beforehand: anchors, the first disc, the number of discs."""

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests import oracles

from ivdtool.candidates import Candidates
from ivdtool.constraints import Anchor, Constraints, search_constrained
from ivdtool.errors import NoDiscError, UsageError
from ivdtool.preprocessing import Grid
from ivdtool.search import SearchConfig
from ivdtool.skeleton import Skeleton

LABELS = tuple(range(3, 26))
# What the shipped model searches with.
CONFIG = SearchConfig(
    chain_weight=15.0,
    missing_penalty_mm2=3000.0,
    score_weight_mm2=3000.0,
    borrow_mm2=300.0,
    offset_change_mm2=250.0,
    offset_start_mm2=150.0,
)
GRID = Grid((900, 200), (1.0, 1.0), np.eye(4), np.eye(4))  # world x, y are row, col; z is depth


def skeleton_of(labels: tuple[int, ...] = LABELS) -> Skeleton:
    """Steps that grow from level to level, as in the spine."""
    count = len(labels)
    rows = np.cumsum(np.linspace(17, 34, count))
    return Skeleton(
        labels=labels,
        mean_mm=np.stack([rows - rows[0], np.zeros(count)], axis=1),
        disc_sd_mm=np.full(count, 2.0),
        step_sd_mm=np.full(count - 1, 2.0),
        missing_rate=np.zeros(count),
    )


def candidates_of(
    discs: Mapping[int, float], labels: tuple[int, ...] = LABELS, score: float = 0.8
) -> Candidates:
    """One candidate at the given row for each label."""
    present = [label for label in labels if label in discs]
    return Candidates(
        positions=np.array([[discs[label], 60.0] for label in present]).reshape(-1, 2),
        scores=np.full(len(present), score),
        offsets=np.cumsum([0, *(label in discs for label in labels)]),
        labels=labels,
        spacing_mm=(1.0, 1.0),
    )


def column(first: int, count: int, named: int) -> dict[int, float]:
    """Rows of the discs from `first` on, as the network names them: the first one `named`."""
    rows = skeleton_of().mean_mm[:, 0]
    return {named + i: float(rows[first - 3 + i]) + 20.0 for i in range(count)}


def anchor(label: int, row: float, col: float = 60.0, depth: float = 0.0) -> Constraints:
    return Constraints(anchors=(Anchor(label, (row, col, depth)),))


def search(discs: Mapping[int, float], constraints: Constraints, **changes: Any) -> Any:
    config = replace(CONFIG, **changes)
    return search_constrained(candidates_of(discs), skeleton_of(), config, GRID, constraints)


# The texts.


def test_anchor_is_read_and_written() -> None:
    own = Anchor.parse("T12/L1@-2.5, 31,1e2")
    assert own == Anchor(20, (-2.5, 31.0, 100.0))
    assert str(own) == "T12/L1@-2.5,31,100"
    assert Anchor.parse("c2-c3@0,0,0").label == 3
    assert Anchor.parse(str(own)) == own


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("T12/L1", "write NAME@x,y,z"),
        ("T12/L1@1,2", "write NAME@x,y,z"),
        ("T12/L1@1,2,3,4", "write NAME@x,y,z"),
        ("T12/L1@a,b,c", "write NAME@x,y,z"),
        ("", "write NAME@x,y,z"),
        ("L6/S1@1,2,3", "no disc is called 'L6/S1'"),
        ("C1/C2@1,2,3", "no disc is called"),
        ("L5/S1@1,2,nan", "three finite numbers"),
    ],
)
def test_what_is_no_anchor(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Constraints.parse([text], None, None)


@pytest.mark.parametrize(
    ("anchors", "first", "count", "reason"),
    [
        (("L1/L2@1,2,3", "L1/L2@1,2,9"), None, None, "a disc has one place"),
        (("L1/L2@1,2,3",), "L2/L3", None, "the first disc is the topmost one"),
        (("L1/L2@1,2,3", "L2/L3@1,2,9"), None, 1, "more anchors than discs"),
        ((), "S1/S2", None, "no disc is called"),
        ((), None, 0, "must be positive"),
    ],
)
def test_contradictions_are_refused(
    anchors: tuple[str, ...], first: str | None, count: int | None, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        Constraints.parse(anchors, first, count)


def test_what_the_sidecar_says() -> None:
    assert not Constraints()
    assert Constraints().to_dict() == {}
    given = Constraints.parse(["C3/C4@1,2,3"], "C2/C3", 9)
    assert given
    assert given.to_dict() == {
        "first_label": 3,
        "n_discs": 9,
        "anchors": [{"label": 4, "name": "C3/C4", "world_mm": (1.0, 2.0, 3.0)}],
    }


# The search.


@pytest.mark.parametrize("off", range(-4, 5))
@pytest.mark.parametrize("disc", [0, 3, 6])
def test_an_anchor_renames_the_whole_column(off: int, disc: int) -> None:
    """However many levels the network is off, from whichever disc; the click is 7 mm off."""
    discs = column(10, 7, named=10 + off)
    row = list(discs.values())[disc]
    found = search(discs, anchor(10 + disc, row + 5, 65.0, depth=-30.0))
    assert found.assignment.labels == tuple(range(10, 17))
    assert found.assignment.positions[:, 0].tolist() == list(discs.values())
    assert found.left_out == 0
    assert found.assignment.optimal
    assert found.assignment.shift_margins is None


def test_an_anchor_does_not_ask_whether_it_is_plausible() -> None:
    """Lumbar discs called thoracic: consecutive discs get consecutive names."""
    discs = column(19, 6, named=19)
    found = search(discs, anchor(11, discs[21]))
    assert found.assignment.labels == tuple(range(9, 15))


def test_discs_beyond_the_last_level_are_left_out_and_counted() -> None:
    discs = column(19, 7, named=19)
    found = search(discs, anchor(25, discs[24]))
    assert found.assignment.labels == tuple(range(20, 26))
    assert found.left_out == 1


def test_an_anchor_takes_a_candidate_that_the_search_did_not() -> None:
    """Of a disc that no labelling wants, since it lies beside the column."""
    discs = column(10, 7, named=10)
    candidates = candidates_of(discs)
    beside = replace(
        candidates,
        positions=np.insert(candidates.positions, 3, [discs[13] + 4, 75.0], axis=0),
        scores=np.insert(candidates.scores, 3, 0.1),
        offsets=candidates.offsets + (np.arange(24) > 12),
    )
    given = anchor(13, discs[13] + 4, 79.0)
    found = search_constrained(beside, skeleton_of(), CONFIG, GRID, given)
    assert found.assignment.labels == tuple(range(10, 17))
    assert found.assignment.positions[3].tolist() == [discs[13] + 4, 75.0]


def test_two_anchors_leave_room_for_a_disc_that_was_not_seen() -> None:
    discs = column(10, 7, named=10)
    rows = list(discs.values())
    given = Constraints(anchors=(Anchor(10, (rows[0], 60, 0)), Anchor(17, (rows[6], 60, 0))))
    found = search(discs, given)
    assert {10, 17} <= set(found.assignment.labels)
    assert len(found.assignment.labels) == 7


def test_the_first_label_renames_the_column() -> None:
    discs = column(10, 7, named=11)
    found = search(discs, Constraints(first_label=10))
    assert found.assignment.labels == tuple(range(10, 17))
    assert found.levels_moved == -1
    assert found.assignment.shift_margins is None


def test_the_first_label_holds_where_renaming_would_lose_a_disc() -> None:
    """T11/T12 to L5/S1, of which the user says the first is T12/L1: no sixth lumbar vertebra."""
    found = search(column(19, 7, named=19), Constraints(first_label=20))
    assert found.assignment.labels == tuple(range(20, 26))
    assert found.assignment.positions[0, 0] == column(19, 7, named=19)[20]
    assert found.left_out == 1


@pytest.mark.parametrize("count", [1, 3, 6, 7])
def test_the_number_of_discs_is_kept(count: int) -> None:
    found = search(column(10, 7, named=10), Constraints(n_discs=count))
    assert len(found.assignment.labels) == count
    assert found.left_out == 0
    if count > 1:
        assert found.assignment.shift_margins is not None  # the level is as open as before


def test_the_number_of_discs_gets_the_doubtful_ones_too() -> None:
    """The search drops a stray candidate that the number asks for."""
    discs = column(10, 7, named=10) | {17: 500.0}
    assert len(search(discs, Constraints(n_discs=7)).assignment.labels) == 7
    assert len(search(discs, Constraints(n_discs=8)).assignment.labels) == 8


@pytest.mark.parametrize(
    ("given", "error", "reason"),
    [
        (anchor(12, 600.0), UsageError, "no disc within 12 mm of anchor .* mm away; give a post"),
        (
            Constraints(anchors=(Anchor(10, (181.0, 60, 0)), Anchor(11, (182.0, 60, 0)))),
            UsageError,
            "the same disc is nearest to two",
        ),
        (
            Constraints(anchors=(Anchor(16, (181.0, 60, 0)), Anchor(11, (280.0, 60, 0)))),
            UsageError,
            "contradict each other or the discs found",
        ),
        (
            Constraints(n_discs=9),
            NoDiscError,
            "no labelling agrees with 9 discs; 7 discs are found without",
        ),
        (Constraints(n_discs=24), UsageError, "this model knows C2/C3 to L5/S1; give fewer"),
        (Constraints(first_label=20, n_discs=7), UsageError, "give fewer"),
    ],
)
def test_what_cannot_be_is_one_line(given: Constraints, error: Any, reason: str) -> None:
    with pytest.raises(error, match=reason) as caught:
        search(column(10, 7, named=10), given)
    assert "\n" not in str(caught.value)


def test_levels_that_the_model_does_not_know() -> None:
    labels = LABELS[:11]
    candidates = candidates_of(column(3, 7, named=3), labels)
    skeleton = skeleton_of(labels)
    for given in (anchor(20, 30.0), Constraints(first_label=14)):
        with pytest.raises(UsageError, match="this model knows C2/C3 to T5/T6"):
            search_constrained(candidates, skeleton, CONFIG, GRID, given)
    with pytest.raises(UsageError, match="search mode is paper"):
        search(column(3, 7, named=3), anchor(3, 20.0), mode="paper")


def test_nothing_found_stays_nothing() -> None:
    assert search({}, anchor(12, 100.0)).assignment.labels == ()


def arguments_of(
    rows: list[list[int]],
    candidates: Candidates,
    skeleton: Skeleton,
    rules: list[int],
    present: Any,
) -> dict[str, Any]:
    """Of the compiled search, for the given rows of candidates by channel."""
    flat = [row for group in rows for row in group]
    return {
        "positions_mm": candidates.positions[flat].reshape(-1, 2),
        "scores": candidates.scores[flat],
        "offsets": np.cumsum([0, *map(len, rows)]),
        "mean_mm": skeleton.mean_mm,
        "disc_weights": np.ones(len(rows)),
        "pair_weights": skeleton.pair_weights,
        "missing_costs": np.full(len(rows), CONFIG.missing_penalty_mm2),
        "score_weight_mm2": CONFIG.score_weight_mm2,
        "chain_weight": CONFIG.chain_weight,
        "max_rotation_rad": CONFIG.max_rotation_rad,
        "min_scale": CONFIG.min_scale,
        "max_scale": CONFIG.max_scale,
        "min_gap": CONFIG.min_gap,
        "min_present": present or CONFIG.min_present,
        "max_present": present or len(rows),
        "rules": rules,
        "borrow_mm2": CONFIG.borrow_mm2,
        "offset_change_mm2": CONFIG.offset_change_mm2,
        "offset_start_mm2": CONFIG.offset_start_mm2,
    }


@pytest.mark.parametrize("seed", range(40))
def test_the_constrained_optimum_agrees_with_enumeration(seed: int) -> None:
    """Over all labellings of all moves that bring the anchored candidate to its level."""
    rng = np.random.default_rng([seed, 20])
    labels = (10, 11, 12, 13, 14)
    skeleton = skeleton_of(labels)
    named = rng.integers(0, 5, 6)  # levels of the candidates
    order = np.argsort(named, kind="stable")
    named = named[order]
    discs = rng.integers(0, 5, 6)[order]
    positions = skeleton.mean_mm[discs] + rng.normal(0, 3, (6, 2)) + [20, 60]
    offsets = np.searchsorted(named, np.arange(6))
    candidates = Candidates(positions, rng.uniform(0.2, 1, 6), offsets, labels, (1.0, 1.0))
    row = int(rng.integers(6))
    level = int(rng.integers(5))
    count = int(rng.integers(2, 4)) if seed % 2 else None
    given = Constraints(
        n_discs=count, anchors=(Anchor(labels[level], (*positions[row].tolist(), 0.0)),)
    )
    found = None
    with contextlib.suppress(UsageError):
        found = search_constrained(candidates, skeleton, CONFIG, GRID, given).assignment
    if found is not None:
        [chosen] = found.positions[np.array(found.labels) == labels[level]]
        row = int(np.abs(positions - chosen).sum(axis=1).argmin())
    own = [[i for i in range(6) if named[i] == channel] for channel in range(5)]
    least = np.inf
    for step in {0, *(level - named[row] + np.arange(-1, 2)).tolist()}:
        rows = [own[c - step] if 0 <= c - step < 5 else [] for c in range(5)]
        rows[level] = [row]
        rules = [3 if c == level else 0 for c in range(5)]
        arguments = arguments_of(rows, candidates, skeleton, rules, count)
        least = min(least, oracles.enumerate_ls_chain(arguments).costs.min(initial=np.inf))
    if found is None:
        assert np.isinf(least)
    else:
        assert found.cost == pytest.approx(least, rel=1e-9)
