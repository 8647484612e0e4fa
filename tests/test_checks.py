"""A clean data set gives no line; made wrong in one way, it gives that one."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from ivdtool.checks import KINDS, Problem, check_dataset
from ivdtool.errors import InputError
from ivdtool.inference import load_model
from ivdtool.phantom import Phantom
from ivdtool.phantom_dataset import write_phantoms
from ivdtool.skeleton import Skeleton

SUBJECTS = ("sub-01", "sub-02", "sub-03")
SPLITS = dict(zip(SUBJECTS, ("train", "train", "test"), strict=True))

Break = Callable[[Path], None]
Voxels = npt.NDArray[Any]


@pytest.fixture(scope="session")
def skeleton() -> Skeleton:
    return load_model(None, "cpu").info.skeleton


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory, phantom: Phantom) -> Path:
    """Three subjects with a T2w image each, and a T1w one that nobody labelled."""
    folder = tmp_path_factory.mktemp("clean")
    rng = np.random.default_rng(0)
    values = np.asarray(phantom.image.dataobj)
    for subject in SUBJECTS:
        image, labels = paths(folder, subject)
        labels.parent.mkdir(parents=True)
        image.parent.mkdir(parents=True)
        for path in (image, image.with_name(f"{subject}_T1w.nii.gz")):
            noise = rng.integers(0, 3, values.shape).astype(values.dtype)
            nib.save(nib.Nifti1Image(values + noise, phantom.image.affine), path)
        nib.save(phantom.label_image(), labels)
        sidecar(folder, subject).write_text(json.dumps(phantom.sidecar()))
    write_table(folder, SPLITS)
    return folder


@pytest.fixture
def dataset(clean: Path, tmp_path: Path) -> Path:
    return shutil.copytree(clean, tmp_path / "dataset")


def paths(folder: Path, subject: str = "sub-01") -> tuple[Path, Path]:
    """Image and label image."""
    name = f"{subject}_T2w"
    labels = folder / "derivatives" / "labels" / subject / "anat"
    return (
        folder / subject / "anat" / f"{name}.nii.gz",
        labels / f"{name}_label-discs_dlabel.nii.gz",
    )


def sidecar(folder: Path, subject: str = "sub-01") -> Path:
    labels = paths(folder, subject)[1]
    return labels.with_name(labels.name.replace(".nii.gz", ".json"))


def write_table(folder: Path, splits: dict[str, str], *more: str) -> None:
    rows = [f"{subject}\t{split}" for subject, split in splits.items()]
    text = "\n".join(["participant_id\tsplit", *rows, *more])
    (folder / "participants.tsv").write_text(text + "\n")


def edit(path: Path, change: Callable[[Voxels], Voxels], affine: Any = None) -> None:
    """Change the voxels of an image file."""
    image: Any = nib.load(path)
    values = change(np.asarray(image.dataobj).copy())
    nib.save(nib.Nifti1Image(values, image.affine if affine is None else affine), path)


def edit_labels(folder: Path, change: Callable[[Voxels], Voxels], subject: str = "sub-01") -> None:
    """Change a label image, and remove its sidecar."""
    sidecar(folder, subject).unlink()
    edit(paths(folder, subject)[1], change)


def edit_sidecar(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = sidecar(folder)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def check(folder: Path, skeleton: Skeleton) -> list[Problem]:
    return list(check_dataset(folder, skeleton).problems)


def test_clean_data(clean: Path, skeleton: Skeleton) -> None:
    result = check_dataset(clean, skeleton)
    assert (result.images, result.label_files, result.problems) == (6, 3, ())


def test_phantoms_are_clean(tmp_path: Path, skeleton: Skeleton) -> None:
    folder = write_phantoms(tmp_path, 4, seed=80, spacing_mm=2.0)
    assert check(folder, skeleton) == []


@pytest.mark.parametrize("name", ["spine-mri", "neck-slices"])
def test_real_data_are_clean(data: Path, name: str, tmp_path: Path, skeleton: Skeleton) -> None:
    """The val subjects of real data."""
    rows = (data / name / "participants.tsv").read_text().splitlines()
    chosen = [row for row in rows[1:] if row.split("\t")[1] == "val"]
    (tmp_path / "participants.tsv").write_text("\n".join([rows[0], *chosen]) + "\n")
    for subject in (row.split("\t")[0] for row in chosen):
        for place in ("", "derivatives/labels"):
            folder = tmp_path / place
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copytree(data / name / place / subject, folder / subject)
    assert check(tmp_path, skeleton) == []


# --- one way to be wrong each


def truncated_image(folder: Path) -> None:
    path = paths(folder)[0]
    path.write_bytes(path.read_bytes()[:5000])


def constant_image(folder: Path) -> None:
    edit(paths(folder)[0], lambda values: values * 0 + 7)


def image_with_nan(folder: Path) -> None:
    def change(values: Voxels) -> Voxels:
        floats = values.astype(np.float32)
        floats[3, 4, 5] = np.nan
        return floats

    edit(paths(folder)[0], change)


def contradicting_header(folder: Path) -> None:
    """The sform is not the qform."""
    path = paths(folder)[0]
    image: Any = nib.load(path)
    turned = image.affine.copy()
    turned[:3, 3] += 20
    image.set_qform(turned, 1)
    nib.save(image, path)


def same_image_in_two_splits(folder: Path) -> None:
    """Saved anew, with another compression."""
    content = gzip.decompress(paths(folder, "sub-01")[0].read_bytes())
    paths(folder, "sub-03")[0].write_bytes(gzip.compress(content, compresslevel=1))


def missing_labels(folder: Path) -> None:
    for path in (paths(folder)[1], sidecar(folder)):
        path.unlink()


def no_labels_at_all(folder: Path) -> None:
    shutil.rmtree(folder / "derivatives")


def orphan_labels(folder: Path) -> None:
    labels = paths(folder)[1]
    labels.with_name("sub-01_acq-old_T2w_label-disc.nii.gz").write_bytes(labels.read_bytes())


def labels_of_a_missing_subject(folder: Path) -> None:
    shutil.rmtree(folder / "sub-01")
    write_table(folder, {s: split for s, split in SPLITS.items() if s != "sub-01"})


def labels_under_two_names(folder: Path) -> None:
    labels = paths(folder)[1]
    labels.with_name("sub-01_T2w_labels-disc-manual.nii.gz").write_bytes(labels.read_bytes())


def damaged_labels(folder: Path) -> None:
    path = paths(folder)[1]
    path.write_bytes(path.read_bytes()[:100])


def labels_without_a_disc(folder: Path) -> None:
    edit_labels(folder, lambda values: values * 0)


def cropped_labels(folder: Path) -> None:
    edit(paths(folder)[1], lambda values: values[:, :, 1:])


def shifted_affine(folder: Path) -> None:
    path = paths(folder)[1]
    image: Any = nib.load(path)
    affine = image.affine.copy()
    affine[2, 3] += 0.4
    edit(path, lambda values: values, affine)


def interpolated_labels(folder: Path) -> None:
    edit_labels(folder, lambda values: values.astype(np.float32) * 0.93)


def label_in_two_places(folder: Path) -> None:
    def change(values: Voxels) -> Voxels:
        values[1, 1, 1] = 5
        return values

    edit_labels(folder, change)


def dilated_labels(folder: Path) -> None:
    """As some viewers write points: a cross of voxels."""

    def change(values: Voxels) -> Voxels:
        for i, j, k in np.argwhere(values):
            values[i, j - 1 : j + 2, k] = values[i, j, k]
            values[i, j, k - 1 : k + 2] = values[i, j, k]
        return values

    edit_labels(folder, change)


def unknown_value(folder: Path) -> None:
    def change(values: Voxels) -> Voxels:
        values[1, 1, 1] = 77
        return values

    edit_labels(folder, change)


def old_convention(folder: Path) -> None:
    """C2/C3 is 2."""
    renumbered(folder, {label: label - 1 for label in range(3, 26)})


def beyond_the_last_disc(folder: Path) -> None:
    renumbered(folder, {9: 26})


def infinite_label(folder: Path) -> None:
    edit_labels(folder, lambda values: np.where(values == 5, np.inf, values).astype(np.float32))


def numbers_that_are_not_their_names(folder: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["Discs"] = [
            {**disc, "label": disc["label"] + 1} for disc in document["Discs"]
        ]  # fmt: skip
        del document["AnnotatedLabels"], document["AbsentLabels"], document["UnknownLabels"]

    paths(folder)[1].unlink()
    edit_sidecar(folder, change)


def renumbered(folder: Path, numbers: dict[int, int], subject: str = "sub-01") -> None:
    """Give labels other numbers; 0 removes them."""

    def change(values: Voxels) -> Voxels:
        table = np.arange(256, dtype=np.uint8)
        table[list(numbers)] = list(numbers.values())
        return table[values]

    edit_labels(folder, change, subject)


def swapped_labels(folder: Path) -> None:
    renumbered(folder, {5: 6, 6: 5})


def level_left_out(folder: Path) -> None:
    """The disc 6 is not marked, and those below it have its number and the next ones."""
    renumbered(folder, {6: 0, **{label: label - 1 for label in range(7, 26)}})


def level_counted_twice(folder: Path) -> None:
    renumbered(folder, {label: label + 1 for label in range(7, 25)})


def wrong_voxel_size(folder: Path) -> None:
    image, labels = paths(folder)
    sidecar(folder).unlink()
    for path in (image, labels):
        loaded: Any = nib.load(path)
        edit(path, lambda values: values, loaded.affine @ np.diag([0.4, 0.4, 0.4, 1.0]))


def point_outside(folder: Path) -> None:
    """In a sidecar without a label image."""

    def change(document: dict[str, Any]) -> None:
        for disc in document["Discs"]:
            disc["posterior_mm"][1] += 400

    paths(folder)[1].unlink()
    edit_sidecar(folder, change)


def sidecar_of_moved_labels(folder: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["Discs"][2]["posterior_mm"][2] += 6

    edit_sidecar(folder, change)


def damaged_sidecar(folder: Path) -> None:
    path = sidecar(folder)
    path.write_text(path.read_text()[:300])


def numbers_that_are_not_their_names_and_an_empty_entry(folder: Path) -> None:
    numbers_that_are_not_their_names(folder)
    entry = {"label": None, "name": "C2/C3"}
    edit_sidecar(folder, lambda document: document["Discs"].insert(0, entry))


def sidecar_that_contradicts_itself(folder: Path) -> None:
    edit_sidecar(folder, lambda document: document["AbsentLabels"].append(5))


def row_without_images(folder: Path) -> None:
    write_table(folder, SPLITS, "sub-99\ttrain")


def subject_without_row(folder: Path) -> None:
    write_table(folder, {"sub-01": "train", "sub-02": "test"})


def split_by_image(folder: Path) -> None:
    write_table(folder, SPLITS, "sub-01_T1w\ttrain", "sub-01_T2w\ttest")


def subject_in_two_splits(folder: Path) -> None:
    write_table(folder, SPLITS, "sub-01\ttest")


def unknown_split(folder: Path) -> None:
    write_table(folder, {**SPLITS, "sub-02": "validation"})


@pytest.mark.parametrize(
    ("wrong", "kind", "text"),
    [
        (truncated_image, "image", "damaged or not a NIfTI file"),
        (constant_image, "image", "all voxels are equal"),
        (image_with_nan, "image", "NaN or infinite voxels"),
        (contradicting_header, "image", "sform and qform differ by up to 34.6 mm"),
        (same_image_in_two_splits, "image-twice", "in split train, this one in test"),
        (missing_labels, "labels-missing", "no label file, though other T2w images have one"),
        (no_labels_at_all, "labels-missing", "no label file of any image"),
        (orphan_labels, "labels-orphan", "sub-01_acq-old_T2w.nii.gz for these labels"),
        (labels_of_a_missing_subject, "labels-orphan", "no image"),
        (labels_under_two_names, "labels-ambiguous", "sub-01_T2w_labels-disc-manual.nii.gz"),
        (damaged_labels, "labels", "damaged or not a NIfTI file"),
        (labels_without_a_disc, "labels", "no disc in it"),
        (cropped_labels, "grid", "voxels; draw the labels on this image"),
        (shifted_affine, "grid", "voxels lie up to 0.4 mm apart"),
        (infinite_label, "fractional", "1 voxels with values that are no integers, as inf"),
        (interpolated_labels, "fractional", "values that are no integers, as 2.79, 3.72"),
        (label_in_two_places, "duplicate", "labels [5] stand in several places"),
        (dilated_labels, "blob", "labels [3, 4, 5, 6, 7, 8, 9"),
        (unknown_value, "convention", "values [77] are no discs of the SCT convention"),
        (old_convention, "off-by-one", "until 2018 C2/C3 was 2"),
        (beyond_the_last_disc, "off-by-one", "value 26, which is below the last disc"),
        (numbers_that_are_not_their_names, "off-by-one", "numbers 1 too high for their names"),
        (
            numbers_that_are_not_their_names_and_an_empty_entry,
            "off-by-one",
            "numbers 1 too high for their names",
        ),
        (swapped_labels, "order", "(5 to 6): the lower disc does not lie below"),
        (level_left_out, "spacing", "C4/C5 to C5/C6 (5 to 6): 3"),
        (level_counted_twice, "spacing", "C5/C6 to C7/T1 (6 to 8): 1"),
        (wrong_voxel_size, "spacing", "of the usual distance apart; check the voxel size"),
        (point_outside, "outside", "lie outside the image"),
        (sidecar_of_moved_labels, "sidecar", "labels [5] are not where the label image has them"),
        (damaged_sidecar, "sidecar", "not a disc label sidecar"),
        (sidecar_that_contradicts_itself, "sidecar", "labels [5] are annotated, but also listed"),
        (row_without_images, "participants", "rows without an image: sub-99"),
        (subject_without_row, "participants", "no row, and so no split, for sub-03"),
        (split_by_image, "split", "rows by image (sub-01_T1w, sub-01_T2w)"),
        (subject_in_two_splits, "split", "sub-01 has split test and train"),
        (unknown_split, "split", "split validation of sub-02 is none of train, val, test"),
    ],
)
def test_one_problem(dataset: Path, skeleton: Skeleton, wrong: Break, kind: str, text: str) -> None:
    wrong(dataset)
    problems = check(dataset, skeleton)
    assert {problem.kind for problem in problems} == {kind}, [str(p) for p in problems]
    assert any(text in str(problem) for problem in problems), [str(p) for p in problems]
    for problem in problems:
        assert str(problem).startswith(f"{dataset}/")
        assert problem.what
        assert problem.todo
        assert len(str(problem).splitlines()) == 1


def test_every_kind_has_a_test() -> None:
    (mark,) = (own for own in test_one_problem.pytestmark if own.name == "parametrize")  # type: ignore[attr-defined]
    assert {kind for _, kind, _ in mark.args[1]} == set(KINDS)


def test_hidden_files_are_no_labels(dataset: Path, skeleton: Skeleton) -> None:
    """macOS puts them beside every file of a foreign drive."""
    labels = paths(dataset)[1]
    for path in (labels, sidecar(dataset)):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    assert check(dataset, skeleton) == []


def test_problems_of_several_files(dataset: Path, skeleton: Skeleton) -> None:
    """One does not hide another."""
    truncated_image(dataset)
    edit_labels(dataset, lambda values: values.astype(np.float32) * 0.93, "sub-02")
    unknown_split(dataset)
    assert [problem.kind for problem in check(dataset, skeleton)] == [
        "image",
        "fractional",
        "split",
    ]


def test_values_beside_the_discs(dataset: Path, skeleton: Skeleton) -> None:
    """1 and 2 above C2/C3, and the landmarks of the convention, are as they should be."""
    image: Any = nib.load(paths(dataset)[1])
    i, j, k = np.argwhere(np.asarray(image.dataobj) == 3)[0]
    up = int(np.sign(image.affine[2, 2])) * np.array([0, 0, 1])

    def change(values: Voxels) -> Voxels:
        for value, steps in ((2, 2), (1, 3), (50, 4), (60, -5)):
            values[tuple(np.array([i, j, k]) + steps * up)] = value
        return values

    edit_labels(dataset, change)
    assert check(dataset, skeleton) == []


@pytest.mark.parametrize(("shift", "how"), [(-1, "low"), (1, "high")])
def test_numbers_of_a_whole_data_set_off_by_one(
    data: Path, tmp_path: Path, skeleton: Skeleton, shift: int, how: str
) -> None:
    """No single file shows it for sure, but all of them together do."""
    folder = shutil.copytree(data / "neck-slices", tmp_path / "data")
    for subject in (path.name for path in sorted(folder.glob("sub-*"))):
        for path in (folder / "derivatives" / "labels" / subject / "anat").glob("*.json"):
            path.unlink()
        for path in (folder / "derivatives" / "labels" / subject / "anat").glob("*.nii.gz"):
            # C2/C3 is left out, for its 2 would tell
            table = np.where(np.arange(256) > 3, np.arange(256) + shift, 0).astype(np.uint8)
            edit(path, table.__getitem__)
    problems = check(folder, skeleton)
    (whole,) = (problem for problem in problems if problem.path.is_dir())
    assert whole.kind == "off-by-one"
    assert f"23 label files of source spine-generic-figure are one too {how}" in whole.what
    assert {problem.kind for problem in problems} == {"off-by-one"}


def test_numbers_of_one_file_off_by_one(data: Path, tmp_path: Path, skeleton: Skeleton) -> None:
    """Its distances must be rather typical for that; this one's are."""
    subject = "sub-spd209"
    for place in ("", "derivatives/labels"):
        folder = tmp_path / place / subject
        shutil.copytree(data / "spine-mri" / place / subject, folder)
    assert check(tmp_path, skeleton) == []
    labels = next(tmp_path.rglob("*_dlabel.nii.gz"))
    labels.with_name(labels.name.replace(".nii.gz", ".json")).unlink()
    edit(labels, lambda values: np.where(values > 3, values - 1, 0))
    (problem,) = check(tmp_path, skeleton)
    assert (problem.kind, problem.path) == ("off-by-one", labels)
    assert "all numbers are one too low" in problem.what


def test_no_data_set(tmp_path: Path, skeleton: Skeleton) -> None:
    with pytest.raises(InputError, match="give a BIDS data set"):
        check_dataset(tmp_path, skeleton)
