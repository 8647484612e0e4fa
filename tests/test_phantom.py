"""Phantoms: exact by construction, plausible in proportion, laid out like real data sets."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from ivdtool.discs import ALL_LABELS
from ivdtool.errors import UsageError
from ivdtool.phantom import BORDER_MM, Contrast, Phantom, PhantomConfig, Region, make_phantom
from ivdtool.phantom_dataset import THIN_MM, random_config, write_phantoms

SMALL = PhantomConfig(seed=3, spacing_mm=2.0, slices=5, width_mm=160.0)
ORIENTATIONS = ("PIR", "RAS", "LAS", "PSR", "ASR", "PIL", "LPS", "PSL", "RPI", "LIA", "SAL")


@cache
def phantom(config: PhantomConfig) -> Phantom:
    return make_phantom(config)


def voxels(subject: Phantom) -> npt.NDArray[np.int16]:
    return np.asarray(subject.image.dataobj)


def sample(subject: Phantom, world: npt.NDArray[np.float64]) -> float:
    """Value of the nearest voxel."""
    to_voxel = np.linalg.inv(subject.image.affine)
    i, j, k = np.rint(to_voxel[:3, :3] @ world + to_voxel[:3, 3]).astype(int)
    return float(voxels(subject)[i, j, k])


def spacings(subject: Phantom) -> dict[int, float]:
    return {
        label: float(np.linalg.norm(subject.discs[label + 1] - subject.discs[label]))
        for label in subject.discs
        if label + 1 in subject.discs
    }


def test_same_seed_same_bytes() -> None:
    first, again = make_phantom(SMALL), make_phantom(SMALL)
    assert first.image.to_bytes() == again.image.to_bytes()
    assert first.sidecar() == again.sidecar()
    other = make_phantom(replace(SMALL, seed=4))
    assert first.sidecar() != other.sidecar()


def test_threads_change_nothing() -> None:
    """A sum in another order differs in the last bit, which now and then is another voxel value."""
    code = (
        "import hashlib; from dataclasses import replace; "
        "from ivdtool.phantom import make_phantom; "
        "from ivdtool.phantom_dataset import random_config; c = random_config(90000, 'lumbar'); "
        "p = make_phantom(replace(c, slices=3, thickness_mm=2.5, lateral_mm=0.0)); "
        "print(hashlib.sha256(p.image.to_bytes()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True, text=True, check=True,
        ).stdout
        for threads in ("1", "2")
    }  # fmt: skip
    assert len(seen) == 1


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_orientation_changes_nothing_in_the_world(orientation: str) -> None:
    config = replace(SMALL, oblique_deg=(4.0, -3.0, 2.0))
    plain, turned = (phantom(replace(config, orientation=o)) for o in ("RAS", orientation))
    assert nib.aff2axcodes(turned.image.affine) == tuple(orientation)
    assert turned.discs.keys() == plain.discs.keys()
    for label, point in plain.discs.items():
        np.testing.assert_array_equal(turned.discs[label], point)
        np.testing.assert_allclose(turned.centres[label], plain.centres[label])
        assert sample(turned, point) == sample(plain, point)
    canonical = nib.as_closest_canonical(turned.image)
    np.testing.assert_array_equal(np.asarray(canonical.dataobj), voxels(plain))
    np.testing.assert_allclose(canonical.affine, plain.image.affine, atol=1e-4)


@pytest.mark.parametrize("change", [{"noise": 0.0}, {"contrast": "T1w"}, {"spacing_mm": 1.0}])
def test_acquisition_does_not_move_the_discs(change: dict[str, Any]) -> None:
    plain, changed = phantom(SMALL), phantom(replace(SMALL, **change))
    for label in plain.discs.keys() & changed.discs.keys():
        moved = changed.discs[label] - plain.discs[label]
        assert np.linalg.norm(moved) < SMALL.spacing_mm  # the field ends on a whole voxel
        reference = min(plain.discs)
        np.testing.assert_allclose(
            changed.discs[label] - changed.discs[reference],
            plain.discs[label] - plain.discs[reference],
            atol=0.05,
        )


def test_label_image_holds_every_disc_once() -> None:
    config = PhantomConfig(seed=5, region="whole", spacing_mm=2.0, oblique_deg=(2.0, 1.0, -3.0))
    subject = phantom(config)
    labels = subject.label_image()
    values = np.asarray(labels.dataobj)
    assert values.dtype == np.uint8
    assert labels.shape == subject.image.shape
    np.testing.assert_array_equal(labels.affine, subject.image.affine)
    found = np.argwhere(values)
    assert sorted(values[tuple(v)] for v in found) == sorted(subject.discs)
    to_voxel = np.linalg.inv(labels.affine)
    for voxel in found:
        exact = to_voxel[:3, :3] @ subject.discs[int(values[tuple(voxel)])] + to_voxel[:3, 3]
        assert np.abs(exact - voxel).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("orientation", ["RAS", "PIR"])
def test_tip_parts_disc_and_canal(seed: int, orientation: str) -> None:
    """On T2w the disc's rim in front of the tip is dark and the fluid behind it is bright."""
    config = PhantomConfig(
        seed=seed, region="whole", noise=0.0, slices=15, thickness_mm=3.0, orientation=orientation
    )
    subject = phantom(config)
    steps = []
    for label, tip in subject.discs.items():
        ahead = subject.centres[label] - tip
        ahead /= np.linalg.norm(ahead)
        rim = sample(subject, tip + 1.5 * ahead)
        fluid = max(sample(subject, tip - d * ahead) for d in (2.5, 3.5, 4.5, 5.5))
        steps.append(fluid / max(rim, 1.0))
    assert np.mean(np.array(steps) > 1.4) > 0.9


def test_edge_lies_at_the_tip() -> None:
    """The steepest rise from disc to fluid is where the point says, within a voxel or so."""
    offsets = []
    for seed in range(4):
        config = PhantomConfig(seed=seed, region="lumbar", noise=0.0, spacing_mm=0.5, slices=7)
        subject = phantom(config)
        for label in range(20, 25):
            tip, centre = subject.discs[label], subject.centres[label]
            back = (tip - centre) / np.linalg.norm(tip - centre)
            depths = np.arange(-3, 4.5, 0.25)
            profile = np.array([sample(subject, tip + d * back) for d in depths])
            offsets.append(depths[np.argmax(np.diff(np.convolve(profile, np.ones(3), "same")))])
    assert abs(np.median(offsets) - 0.9) < 0.9  # the ligament, 1.4 mm of it, lies between


def test_proportions_are_an_adults() -> None:
    """Medians over subjects against real MRI (medians of some 100 adults), mm."""
    subjects = [
        phantom(PhantomConfig(seed=s, region="whole", spacing_mm=4.0, slices=1, noise=0.0,
                              scoliosis_mm=0.0, thickness_mm=60.0))
        for s in range(40)
    ]  # fmt: skip
    rows = [spacings(subject) for subject in subjects]
    real = {3: 18.0, 5: 17.1, 6: 16.2, 8: 20.0, 10: 22.1, 17: 27.8, 20: 33.9, 22: 34.9, 24: 30.3}
    for label, expected in real.items():
        lengths = [row[label] for row in rows]
        assert np.median(lengths) == pytest.approx(expected, rel=0.06)
        assert 0.03 < np.std(lengths) / expected < 0.12
    for row in rows:
        assert min(row.values()) > 11
        assert max(row.values()) < 48
    for subject in subjects:
        heights = [subject.discs[label][2] for label in sorted(subject.discs)]
        assert (np.diff(heights) < 0).all()


def test_border_discs_are_uncertain() -> None:
    seen = set()
    for seed in range(30):
        config = PhantomConfig(seed=seed, spacing_mm=2.0, slices=3, thickness_mm=15.0, noise=0.0,
                               top_mm=2.0, last_label=24, bottom_mm=26.0)  # fmt: skip
        subject = phantom(config)
        sidecar = subject.sidecar()
        groups = [sidecar[k] for k in ("AnnotatedLabels", "UnknownLabels", "AbsentLabels")]
        assert sorted(label for group in groups for label in group) == list(ALL_LABELS)
        to_voxel = np.linalg.inv(subject.image.affine)
        for disc in sidecar["Discs"]:
            exact = to_voxel[:3, :3] @ subject.discs[disc["label"]] + to_voxel[:3, 3]
            room = np.minimum(exact + 0.5, np.array(subject.image.shape) - 0.5 - exact)
            assert (room > 0).all()
            in_plane = min(r for r, code in zip(room, config.orientation, strict=True)
                           if code not in "LR") * config.spacing_mm  # fmt: skip
            assert disc["certain"] == (in_plane >= BORDER_MM)
        assert 19 in subject.discs
        assert 19 in subject.uncertain  # its voxel lies 2 or 3 mm below the upper border
        seen |= set(sidecar["UnknownLabels"])
    assert seen, "no disc just outside the field of view in 30 subjects"


@pytest.mark.parametrize("region", get_args(Region))
@pytest.mark.parametrize("contrast", get_args(Contrast))
def test_every_kind(region: Region, contrast: Contrast) -> None:
    config = replace(random_config(17, region, contrast), spacing_mm=1.5)
    subject = phantom(config)
    values = voxels(subject)
    assert values.dtype == np.int16
    assert values.min() >= 0
    assert 100 < np.quantile(values, 0.99) < 5000
    assert np.mean(values > 0.2 * np.quantile(values, 0.99)) > 0.05
    assert len(subject.discs) >= 4
    first, last = config.frame
    assert set(range(first, last + 1)) <= subject.discs.keys() | subject.uncertain


def test_random_configs_vary() -> None:
    configs = [random_config(seed) for seed in range(300)]
    for field, kinds in (("region", Region), ("contrast", Contrast)):
        assert {getattr(config, field) for config in configs} == set(get_args(kinds))
    assert len({config.orientation for config in configs}) >= 8
    share = np.mean([config.region == "cervical" for config in configs])
    assert 0.2 < share < 0.4
    assert configs == [random_config(seed) for seed in range(300)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"region": "tail"}, {"contrast": "CT"}, {"first_label": 2},
        {"first_label": 25, "last_label": 24}, {"spacing_mm": 0.0}, {"slices": 0}, {"noise": -1.0},
        {"orientation": "PIX"}, {"orientation": "PPR"}, {"orientation": "PI"},
        {"spine_position": 1.5},
    ],
)  # fmt: skip
def test_bad_config(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PhantomConfig(**wrong)


def test_data_set(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    root = write_phantoms(
        tmp_path / "phantoms", 3, 7, region="cervical", spacing_mm=3.0,
        progress=lambda done, count: calls.append((done, count)),
    )  # fmt: skip
    assert calls == [(1, 3), (2, 3), (3, 3)]
    with (root / "participants.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["participant_id"] for row in rows] == ["sub-ph000", "sub-ph001", "sub-ph002"]
    derivatives = root / "derivatives" / "labels"
    for folder, kind in ((root, "raw"), (derivatives, "derivative")):
        description = json.loads((folder / "dataset_description.json").read_text())
        assert description["DatasetType"] == kind
    expected = {Path("participants.tsv"), Path("dataset_description.json")}
    expected.add(Path("derivatives/labels/dataset_description.json"))
    for row in rows:
        subject, suffix = row["participant_id"], row["suffix"]
        stem = Path(subject) / "anat" / f"{subject}_{suffix}"
        image = nib.Nifti1Image.from_filename(root / f"{stem}.nii.gz")
        labels = nib.Nifti1Image.from_filename(derivatives / f"{stem}_label-discs_dlabel.nii.gz")
        sidecar = json.loads((derivatives / f"{stem}_label-discs_dlabel.json").read_text())
        assert image.get_data_dtype() == np.int16
        assert labels.get_data_dtype() == np.uint8
        assert labels.shape == image.shape
        np.testing.assert_array_equal(labels.affine, image.affine)
        assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-3)
        present = np.unique(np.asarray(labels.dataobj))[1:]
        assert present.tolist() == sidecar["AnnotatedLabels"]
        assert row["n_discs"] == str(len(present))
        assert row["orientation"] == "".join(nib.aff2axcodes(image.affine))
        assert row["shape"] == "x".join(map(str, image.shape))
        assert (row["split"], row["region"], row["source"]) == ("train", "cervical", "phantom")
        for disc in sidecar["Discs"]:
            voxel = np.argwhere(np.asarray(labels.dataobj) == disc["label"])[0]
            world = labels.affine[:3, :3] @ voxel + labels.affine[:3, 3]
            reach = np.linalg.norm(image.header.get_zooms()) / 2
            assert np.linalg.norm(world - disc["posterior_mm"]) < reach + 0.01
        expected |= {Path(f"{stem}.nii.gz")} | {
            Path("derivatives/labels") / f"{stem}_label-discs_dlabel{end}"
            for end in (".nii.gz", ".json")
        }
    assert {path.relative_to(root) for path in root.rglob("*") if path.is_file()} == expected

    again = write_phantoms(tmp_path / "again", 3, 7, region="cervical", spacing_mm=3.0)
    for path in expected:
        assert (root / path).read_bytes() == (again / path).read_bytes()


def test_data_set_split(tmp_path: Path) -> None:
    root = write_phantoms(tmp_path, 10, region="cervical", contrast="T2w", spacing_mm=8.0)
    with (root / "participants.tsv").open(newline="") as file:
        splits = [row["split"] for row in csv.DictReader(file, delimiter="\t")]
    assert splits == ["train"] * 8 + ["val", "test"]


def test_thin_data_set_has_the_same_anatomy(tmp_path: Path) -> None:
    root = write_phantoms(tmp_path, 1, 7, region="lumbar", spacing_mm=3.0, slices=3)
    (image,) = (nib.Nifti1Image.from_filename(path) for path in root.glob("sub-*/anat/*.nii.gz"))
    assert min(image.shape) == 3
    assert np.isclose(np.asarray(image.header.get_zooms()), THIN_MM, atol=1e-5).sum() == 1
    (sidecar,) = root.glob("derivatives/labels/sub-*/anat/*.json")
    thin = json.loads(sidecar.read_text())
    whole = make_phantom(replace(random_config(7, "lumbar"), spacing_mm=3.0))
    assert set(thin["AnnotatedLabels"]) | set(thin["UnknownLabels"]) >= whole.discs.keys()


def test_data_sets_do_not_mix(tmp_path: Path) -> None:
    write_phantoms(tmp_path, 2, 7, region="lumbar", contrast="T1w", spacing_mm=8.0)
    table = (tmp_path / "participants.tsv").read_bytes()
    with pytest.raises(UsageError, match=r"sub-ph000_T1w\.nii\.gz: of another data set"):
        write_phantoms(tmp_path, 2, 7, region="lumbar", contrast="STIR", spacing_mm=8.0)
    with pytest.raises(UsageError, match=r"sub-ph001_T1w\.nii\.gz: of another data set"):
        write_phantoms(tmp_path, 1, 7, region="lumbar", contrast="T1w", spacing_mm=8.0)
    assert (tmp_path / "participants.tsv").read_bytes() == table
    write_phantoms(tmp_path, 3, 8, region="lumbar", contrast="T1w", spacing_mm=8.0)


def test_data_set_needs_a_count(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="count"):
        write_phantoms(tmp_path, 0)
