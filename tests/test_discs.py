"""Names and values of discs by the SCT convention (docs: labeling-conventions)."""

import pytest

from ivdtool.discs import ALL_LABELS, disc_label, disc_name

# Written out on purpose: a shift by one level is the classic mistake, so nothing is computed here.
SCT = {
    3: "C2/C3",
    4: "C3/C4",
    5: "C4/C5",
    6: "C5/C6",
    7: "C6/C7",
    8: "C7/T1",
    9: "T1/T2",
    10: "T2/T3",
    11: "T3/T4",
    12: "T4/T5",
    13: "T5/T6",
    14: "T6/T7",
    15: "T7/T8",
    16: "T8/T9",
    17: "T9/T10",
    18: "T10/T11",
    19: "T11/T12",
    20: "T12/L1",
    21: "L1/L2",
    22: "L2/L3",
    23: "L3/L4",
    24: "L4/L5",
    25: "L5/S1",
}


def test_golden_values() -> None:
    assert tuple(SCT) == ALL_LABELS
    assert {label: disc_name(label) for label in ALL_LABELS} == SCT


@pytest.mark.parametrize("label", SCT)
def test_name_and_label_are_inverse(label: int) -> None:
    assert disc_label(disc_name(label)) == label
    assert disc_label(f" {SCT[label].lower().replace('/', '-')} ") == label


@pytest.mark.parametrize("label", [-1, 0, 1, 2, 26, 49, 60])
def test_other_values_are_no_discs(label: int) -> None:
    with pytest.raises(ValueError, match=f"no disc has label {label};"):
        disc_name(label)


@pytest.mark.parametrize("name", ["", "C1/C2", "C2", "C2/C4", "T12/T13", "L5/L6", "S1/S2", "3"])
def test_other_names_are_no_discs(name: str) -> None:
    with pytest.raises(ValueError, match="no disc is called"):
        disc_label(name)
