"""The vocabulary: discs by name and by SCT label value.

SCT convention: 3 is C2/C3, 8 is C7/T1, 20 is T12/L1, 25 is L5/S1. Values 1 (top of C1) and 2
(C1/C2, no real disc) are never predicted.
"""

__all__ = ["ALL_LABELS", "disc_label", "disc_name"]

_VERTEBRAE = (
    *(f"C{i}" for i in range(1, 8)),
    *(f"T{i}" for i in range(1, 13)),
    *(f"L{i}" for i in range(1, 6)),
    "S1",
)

ALL_LABELS: tuple[int, ...] = tuple(range(3, 26))


def disc_name(label: int) -> str:
    """Return the name of a disc, e.g. ``C2/C3`` for 3.

    Raises:
        ValueError: the label is not one of 3..25.
    """
    if label not in ALL_LABELS:
        raise ValueError(f"no disc has label {label}; labels run from 3 (C2/C3) to 25 (L5/S1)")
    return f"{_VERTEBRAE[label - 2]}/{_VERTEBRAE[label - 1]}"


def disc_label(name: str) -> int:
    """Return the label of a disc name; the inverse of `disc_name`. ``C2-C3`` is accepted too.

    Raises:
        ValueError: no disc has that name.
    """
    wanted = name.strip().upper().replace("-", "/")
    for label in ALL_LABELS:
        if disc_name(label) == wanted:
            return label
    raise ValueError(f"no disc is called {name!r}; names run from C2/C3 to L5/S1")
