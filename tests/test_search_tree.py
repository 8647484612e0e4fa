"""The picture of a search tree."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.problems import CANDIDATES, SKELETON

from ivdtool.search import SearchConfig, search_skeleton
from ivdtool.search_tree import _node_text, write_tree


def test_picture_of_the_tree(tmp_path: Path) -> None:
    answer = search_skeleton(CANDIDATES, SKELETON, SearchConfig(n_best=1))
    write_tree(tmp_path / "tree.png", answer)
    picture = Image.open(tmp_path / "tree.png")
    assert picture.format == "PNG"
    colours = {colour for _, colour in picture.getcolors(1 << 16) or ()}
    assert (10, 125, 59) in colours  # the way to the answer
    assert picture.size[0] >= 760
    assert not list(tmp_path.glob(".*"))


def test_a_borrowed_candidate_is_named_by_its_own_channel() -> None:
    """L1/L2 has no candidate of its own: it takes the second of L2/L3."""
    candidates = replace(CANDIDATES, offsets=np.array([0, 2, 2, 5, 6]))
    config = SearchConfig(borrow_mm2=10.0, offset_change_mm2=0.0, offset_start_mm2=0.0)
    answer = search_skeleton(candidates, SKELETON, config, tree_size=1000)
    tree = answer.statistics.tree
    texts = [_node_text(node, candidates) for node in tree if node.channel == 1]
    named = {text.split("\n")[0] for text in texts}
    assert "L1/L2 #1 of L2/L3" in named
    assert not any("#0" in text or "#-" in text for text in named)
    own = {_node_text(node, candidates).split("\n")[0] for node in tree if node.channel == 0}
    assert "T12/L1 #2" in own


def test_only_a_tree_can_be_drawn(tmp_path: Path) -> None:
    config = SearchConfig(mode="first_last", max_scale=math.inf)
    answer = search_skeleton(CANDIDATES, SKELETON, config)
    with pytest.raises(ValueError, match="first_last"):
        write_tree(tmp_path / "tree.png", answer)
