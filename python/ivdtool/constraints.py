"""What a user knows of an image beforehand: the first disc, their number, places of some."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from ivdtool.candidates import Candidates
from ivdtool.discs import disc_label, disc_name
from ivdtool.errors import NoDiscError, UsageError
from ivdtool.preprocessing import Grid
from ivdtool.search import Assignment, Rule, SearchConfig, search_skeleton
from ivdtool.skeleton import Skeleton

__all__ = ["Anchor", "Constrained", "Constraints", "search_constrained"]

ANCHOR_REACH_MM = 12.0  # less than any disc spacing, more than a click is off


@dataclass(frozen=True)
class Anchor:
    """A disc whose level is known.

    Attributes:
        label: of the disc.
        world_mm: about where its posterior tip is, RAS+ world mm of the image; anywhere from left
            to right.

    Raises:
        ValueError: no disc has this label, or the place is not three finite numbers.
    """

    label: int
    world_mm: tuple[float, float, float]

    def __post_init__(self) -> None:
        disc_name(self.label)  # raises for labels that no disc has
        if len(self.world_mm) != 3 or not np.isfinite(self.world_mm).all():
            raise ValueError(f"a place is three finite numbers x,y,z, not {self.world_mm}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``T12/L1@x,y,z``.

        Raises:
            ValueError: the text is something else.
        """
        name, at, place = text.partition("@")
        try:
            x, y, z = (float(number) for number in place.split(","))
        except ValueError:
            at = ""
        if not at:
            raise ValueError(f"{text!r} is no anchor; write NAME@x,y,z, e.g. T12/L1@-2.5,31,104.2")
        return cls(disc_label(name), (x, y, z))

    def __str__(self) -> str:
        return f"{disc_name(self.label)}@{','.join(f'{value:g}' for value in self.world_mm)}"


@dataclass(frozen=True)
class Constraints:
    """What every labelling must agree with; the default constrains nothing.

    Attributes:
        first_label: of the topmost disc.
        n_discs: how many discs there are to find.
        anchors: discs whose level is known; the others follow.

    Raises:
        ValueError: a value out of range, or values that contradict each other.
    """

    first_label: int | None = None
    n_discs: int | None = None
    anchors: tuple[Anchor, ...] = ()

    def __post_init__(self) -> None:
        labels = [anchor.label for anchor in self.anchors]
        if self.first_label is not None:
            disc_name(self.first_label)  # raises for labels that no disc has
        if self.n_discs is not None and self.n_discs < 1:
            raise ValueError(f"the number of discs must be positive, not {self.n_discs}")
        if len(set(labels)) < len(labels):
            raise ValueError(f"{self} contradict each other: a disc has one place")
        if self.first_label is not None and min(labels, default=25) < self.first_label:
            raise ValueError(f"{self} contradict each other: the first disc is the topmost one")
        if self.n_discs is not None and self.n_discs < len(labels):
            raise ValueError(f"{self} contradict each other: there are more anchors than discs")

    @classmethod
    def parse(cls, anchors: Sequence[str], first_label: str | None, n_discs: int | None) -> Self:
        """Read what a user wrote: anchors as ``T12/L1@x,y,z``, the first label by its name.

        Raises:
            UsageError: a text that is something else, or constraints that contradict each other.
        """
        try:
            first = None if first_label is None else disc_label(first_label)
            return cls(first, n_discs, tuple(Anchor.parse(text) for text in anchors))
        except ValueError as error:
            raise UsageError(str(error)) from error

    def __bool__(self) -> bool:
        return self != Constraints()

    @property
    def tell_level(self) -> bool:
        """Whether the level of a disc is given."""
        return bool(self.anchors) or self.first_label is not None

    def __str__(self) -> str:
        parts = [f"anchor {anchor}" for anchor in self.anchors]
        if self.first_label is not None:
            parts.append(f"first disc {disc_name(self.first_label)}")
        if self.n_discs is not None:
            parts.append(f"{self.n_discs} discs")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the constraints as they stand in the sidecar, what is not given left out."""
        table: dict[str, Any] = {}
        if self.first_label is not None:
            table["first_label"] = self.first_label
        if self.n_discs is not None:
            table["n_discs"] = self.n_discs
        if self.anchors:
            table["anchors"] = [
                {"label": own.label, "name": disc_name(own.label), "world_mm": own.world_mm}
                for own in self.anchors
            ]
        return table


@dataclass(frozen=True, eq=False)
class Constrained:
    """The best labelling that agrees with constraints.

    Attributes:
        assignment: it, among the moved candidates.
        levels_moved: how many channels further down each candidate was taken to be.
        left_out: by how many discs it is shorter than without constraints, 0 if their number was
            given.
    """

    assignment: Assignment
    levels_moved: int
    left_out: int

    @property
    def contradicts_image(self) -> bool:
        """Whether the image shows other levels than were told; that a level is off is common."""
        return self.left_out > 0 or abs(self.levels_moved) > 1


def search_constrained(
    candidates: Candidates,
    skeleton: Skeleton,
    config: SearchConfig,
    grid: Grid,
    constraints: Constraints,
) -> Constrained:
    """Find the best labelling that agrees with the constraints.

    An anchor stands for the disc nearest to it that the search finds without constraints, or, if
    there is none within reach, for the best candidate of any channel there: this becomes the only
    candidate of the anchor's level, and has to be taken. A network that fires some levels off as a
    whole has its candidates in the wrong channels. So all of them are moved by as many channels as
    it takes to bring the anchored candidate (or the topmost disc) to its level, and by one more and
    one less, as a candidate may be a neighbour's; the move of the least cost is kept. For each
    move the search is exact, with the constraints inside it.

    Args:
        candidates: to choose from.
        skeleton: the mean and its spread, of the same labels.
        config: the cost model, `ls_chain`.
        grid: of the image.
        constraints: what the labelling must agree with.

    Raises:
        UsageError: a level that the model does not know, an anchor without a disc near it, anchors
            that contradict each other, or a model with another cost model.
        NoDiscError: there are not as many discs to find, or none that may be the first.
    """
    _check_levels(skeleton, config, constraints)
    quick = replace(config, n_best=1, margins=False)
    free = search_skeleton(candidates, skeleton, quick)
    if not free.labels:
        return Constrained(free, 0, 0)
    count = constraints.n_discs
    own = {anchor.label: _anchored(anchor, free, grid) for anchor in constraints.anchors}
    if len(set(own.values())) < len(own):
        raise UsageError(f"{constraints} contradict each other: the same disc is nearest to two")
    rules = _rules(skeleton, constraints)

    def search(step: int, settings: SearchConfig) -> Assignment:
        moved = _moved(candidates, step, own)
        if count is not None:
            settings = replace(settings, min_present=count, max_present=count)
        return search_skeleton(moved, skeleton, settings, rules=rules)

    steps = sorted(_steps(free, own, constraints), key=lambda step: (abs(step), step))
    tried = {step: search(step, quick) for step in steps}
    step = min(steps, key=lambda step: tried[step].cost if tried[step].labels else np.inf)
    if not tried[step].labels and own:
        raise UsageError(
            f"{constraints}: contradict each other or the discs found; check names and places"
        )
    if not tried[step].labels:
        raise NoDiscError(
            f"no labelling agrees with {constraints}; {len(free.labels)} discs are found without"
        )
    assignment = search(step, config)
    lost = len(free.labels) - len(assignment.labels) if count is None else 0
    return Constrained(assignment, step, max(lost, 0))


def _check_levels(skeleton: Skeleton, config: SearchConfig, constraints: Constraints) -> None:
    first, last = skeleton.labels[0], skeleton.labels[-1]
    known = f"this model knows {disc_name(first)} to {disc_name(last)}"
    for label in (constraints.first_label, *(anchor.label for anchor in constraints.anchors)):
        if label is not None and not first <= label <= last:
            raise UsageError(f"{constraints}: {known}; give another disc or another model")
    top = max(first, constraints.first_label or first)
    if constraints.n_discs is not None and constraints.n_discs > last - top + 1:
        raise UsageError(f"{constraints}: too many discs, {known}; give fewer")
    if config.mode != "ls_chain":
        raise UsageError(f"{constraints}: not with a model whose search mode is {config.mode}")


def _anchored(anchor: Anchor, free: Assignment, grid: Grid) -> int:
    """Row of the candidate that the anchor stands for."""
    place = grid.world_to_pixel([anchor.world_mm])[0, :2]
    offsets_mm = (free.candidates.positions - place) * grid.spacing_mm
    distances = np.hypot(offsets_mm[:, 0], offsets_mm[:, 1])
    discs = free.choice[free.choice >= 0]
    nearest = int(discs[distances[discs].argmin()])
    if distances[nearest] <= ANCHOR_REACH_MM:
        return nearest
    near = np.flatnonzero(distances <= ANCHOR_REACH_MM)
    if len(near) == 0:
        raise UsageError(
            f"no disc within {ANCHOR_REACH_MM:.0f} mm of anchor {anchor}, the nearest one found is "
            f"{distances[nearest]:.0f} mm away; give a posterior tip in world mm (RAS+)"
        )
    return int(near[free.candidates.scores[near].argmax()])


def _rules(skeleton: Skeleton, constraints: Constraints) -> dict[int, Rule]:
    rules: dict[int, Rule] = {}
    if constraints.first_label is not None:
        rules = {label: "absent" for label in skeleton.labels if label < constraints.first_label}
        rules[constraints.first_label] = "present"
    return rules | {anchor.label: "own" for anchor in constraints.anchors}


def _steps(free: Assignment, own: Mapping[int, int], constraints: Constraints) -> set[int]:
    """The moves to try."""
    bases = {
        label - free.skeleton.labels[int(free.candidates.channels_of(row))]
        for label, row in own.items()
    }
    if not own and constraints.first_label is not None:
        bases = {constraints.first_label - free.labels[0]}
    return {0} | {base + more for base in bases for more in (-1, 0, 1)}


def _moved(candidates: Candidates, step: int, own: Mapping[int, int]) -> Candidates:
    """All candidates `step` channels further down, but for the only ones of anchored levels."""
    channels = range(len(candidates.labels))
    rows = [
        [own[label]]
        if label in own
        else list(range(*candidates.of(channel - step).indices(len(candidates.scores))))
        if channel - step in channels
        else []
        for channel, label in enumerate(candidates.labels)
    ]
    index = np.array([row for group in rows for row in group], dtype=np.int64)
    return replace(
        candidates,
        positions=candidates.positions[index],
        scores=candidates.scores[index],
        offsets=np.cumsum([0, *map(len, rows)]),
    )
