"""Commands as a user runs them: output, files, exit codes, and one line for every error."""

import gc
import gzip
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import ivdtool
import ivdtool.labelling
from ivdtool.cli import COMMANDS, main
from ivdtool.commands.imports import heavy_imports
from ivdtool.discs import disc_name
from ivdtool.inference import INFO_FILE
from ivdtool.modelfile import model_path
from ivdtool.phantom import Phantom, PhantomConfig, make_phantom
from ivdtool.phantom_dataset import random_config, write_phantoms

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line; return exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return call


def test_the_collector_comes_back() -> None:
    frozen = gc.get_freeze_count()
    try:
        with heavy_imports():
            assert not gc.isenabled()
            kept: list[list[int]] = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen + len(kept)
        with pytest.raises(ImportError), heavy_imports():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lumbar phantom."""
    path = tmp_path_factory.mktemp("scan") / "sub-01_T2w.nii.gz"
    nib.save(make_phantom(random_config(7, "lumbar", "T2w")).image, path)
    return path


def write(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(data, np.eye(4) if affine is None else affine), path)
    return path


def volume(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(1, 500, shape).astype(np.int16)


def test_version_of_python_and_core_agree(run: Run) -> None:
    assert run("--version") == (0, f"ivdtool {ivdtool.__version__}\n", "")


def test_presets(run: Run, tmp_path: Path) -> None:
    """Listed, printed, and taken by `train`, which says so where it does not know one."""
    code, out, _ = run("presets")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()][-1] == "robust"
    assert "HCA-Net without the skeleton loss" in out
    code, out, _ = run("presets", "paper-hca")
    assert (code, tomllib.loads(out)["loss"]["skeleton_weight"]) == (0, 2e-4)
    code, out, err = run("presets", "paper")
    assert (code, out) == (2, "")
    assert err.startswith("Error: no preset is called 'paper'; known are paper-attention, ")
    arguments = ("train", "--data", tmp_path, "-o", tmp_path / "run", "--config")
    assert run(*arguments, "paper")[0] == 2
    code, _, err = run(*arguments, "robust", "-q")
    assert (code, "give a BIDS data set" in err) == (3, True)


def test_help_lists_the_commands(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert re.search(rf"^  {command.name}  ", out, re.MULTILINE)
        assert f"ivdtool {command.name}" in readme


def test_label_writes_image_sidecar_and_picture(run: Run, scan: Path, tmp_path: Path) -> None:
    output, picture = tmp_path / "discs.nii.gz", tmp_path / "discs.png"
    code, out, err = run("label", scan, "-o", output, "--qc", picture, "-v")
    assert code == 0
    assert err.startswith("  ms: start-up ")
    assert len(err.splitlines()) == 1
    sidecar = json.loads((tmp_path / "discs.json").read_text())
    labels = {disc["label"] for disc in sidecar["Discs"]}
    assert {22, 23, 24, 25} <= labels
    values = np.asarray(nib.nifti1.load(output).dataobj)
    assert set(values[values > 0].tolist()) == labels
    assert sidecar["LabelConvention"] == "SCT"
    assert sidecar["Search"]["optimal"] is True
    assert sidecar["GeneratedBy"][0]["ModelName"] == "robust"
    assert len(sidecar["GeneratedBy"][0]["ModelSHA256"]) == 64
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "L5/S1" in out
    assert "network" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["discs.json", "discs.nii.gz", "discs.png"]


def test_label_explains_its_search(run: Run, scan: Path, tmp_path: Path) -> None:
    code, out, err = run("label", scan, "--explain", "--explain-tree", tmp_path / "tree.png")
    assert (code, err) == (0, "")
    assert "ls_chain: cost" in out
    assert "nodes taken" in out
    assert (tmp_path / "tree.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run("label", scan, scan.parent, "--explain-tree", tmp_path / "t.png", scan)
    assert code == 0  # the same image thrice is one


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Phantom]:
    """T8/T9 to T12/L1 only: neither end of the spine is in view."""
    config = PhantomConfig(
        seed=5, first_label=16, last_label=20, top_mm=14, bottom_mm=14, slices=3, spacing_mm=1.5
    )
    phantom = make_phantom(config)
    path = tmp_path_factory.mktemp("middle") / "middle.nii.gz"
    nib.save(phantom.image, path)
    return path, phantom


def test_an_ambiguous_level_is_told_and_anchored(
    run: Run, middle: tuple[Path, Phantom], tmp_path: Path
) -> None:
    """Every disc gets its name by the place of any one, and no doubt of the level is left."""
    path, phantom = middle
    arguments = ("label", path, "--middle", "-q", "-o", tmp_path / "discs.nii.gz")
    code, _, err = run(*arguments)
    assert code == 0
    sidecar = json.loads((tmp_path / "discs.json").read_text())
    [line] = [line for line in sidecar["Warnings"] if "the column may be one level" in line]
    assert sidecar["Verdict"] == "check"
    assert err.splitlines() == [f"Warning: {path}: {text}" for text in sidecar["Warnings"]]
    assert "neither C2/C3 nor L5/S1 is well in view" in err
    moved = sidecar["Search"]["shift_alternatives"]
    assert {own["levels"] for own in moved} == {-1, 1}
    assert all(0.05 < own["probability"] < 0.5 for own in moved)
    assert f"{moved[0]['first']} to {moved[0]['last']}, probability" in line
    for label in (16, 19):
        x, y, z = phantom.discs[label] + (30, 4, -3)  # off to the side, and in the plane
        code, _, err = run(*arguments, "--anchor", f"{disc_name(label)}@{x},{y},{z}")
        assert code == 0
        assert "level" not in err
        assert "neither" not in err
        anchored = json.loads((tmp_path / "discs.json").read_text())
        found = {disc["label"]: disc["world_mm"] for disc in anchored["Discs"]}
        assert sorted(found) == [16, 17, 18, 19, 20]
        for own, place in found.items():
            assert np.hypot(*(np.array(place) - phantom.discs[own])[1:]) < 5
        assert anchored["Search"]["constraints"]["anchors"][0]["label"] == label
        assert anchored["Search"]["shift_alternatives"] == []
        assert anchored["Search"]["shift_margin"] is None
    values = np.asarray(nib.nifti1.load(tmp_path / "discs.nii.gz").dataobj)
    assert sorted(values[values > 0].tolist()) == [16, 17, 18, 19, 20]


def test_first_label_and_number_of_discs(
    run: Run, middle: tuple[Path, Phantom], tmp_path: Path
) -> None:
    path, _ = middle
    arguments = ("label", path, "--middle", "--json", "--first-label", "T9/T10", "--n-discs", 4)
    code, out, _ = run(*arguments, "--explain-tree", tmp_path / "tree.png")
    assert code == 0
    sidecar = json.loads(out)
    assert [disc["label"] for disc in sidecar["Discs"]] == [17, 18, 19, 20]
    known = sidecar["Search"]["constraints"]
    assert (known["first_label"], known["n_discs"]) == (17, 4)
    assert (tmp_path / "tree.png").is_file()


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--anchor", "T12/L1"], 2, "write NAME@x,y,z"),
        (["--anchor", "T13/L1@1,2,3"], 2, "no disc is called"),
        (["--anchor", "T12/L1@900,900,900"], 2, "no disc within 12 mm of anchor T12/L1@900,"),
        (["--first-label", "21"], 2, "no disc is called '21'; names run from C2/C3"),
        (["--n-discs", "0"], 2, "must be positive"),
        (["--n-discs", "many"], 2, "not a valid integer"),
        (["--n-discs", "24"], 2, "this model knows C2/C3 to L5/S1"),
        (["--n-discs", "20"], 1, "no labelling agrees with 20 discs"),
        (["--first-label", "L1/L2", "--anchor", "T12/L1@1,2,3"], 2, "contradict each other"),
    ],
)
def test_constraints_that_cannot_be_kept(
    options: list[str],
    code: int,
    reason: str,
    run: Run,
    middle: tuple[Path, Phantom],
    tmp_path: Path,
) -> None:
    found, _, err = run("label", middle[0], "--middle", "-o", tmp_path / "a.nii.gz", *options)
    assert found == code
    assert reason in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_an_anchor_is_for_one_image(run: Run, scan: Path, middle: tuple[Path, Phantom]) -> None:
    code, _, err = run("label", scan, middle[0], "--anchor", "T12/L1@1,2,3")
    assert (code, "one image" in err) == (2, True)


def test_label_prints_the_sidecar_as_json(run: Run, scan: Path, tmp_path: Path) -> None:
    code, out, _ = run("label", scan, "-o", tmp_path / "a.nii.gz", "--json", "--reproducible")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "a.json").read_text())


def test_documents_of_several_images_name_them(run: Run, scan: Path, tmp_path: Path) -> None:
    """The failed ones, too; a folder of one image gives a list as well."""
    missing = tmp_path / "missing.nii"
    code, out, err = run("label", missing, scan, "--json")
    failed, labelled = json.loads(out)
    assert (code, failed["Image"], labelled["Image"]) == (1, str(missing), str(scan))
    assert f"Error: {failed['Error']}" == err.splitlines()[0]
    assert len(labelled["Discs"]) == 8
    code, out, _ = run("label", scan.parent, "--json")
    assert (code, [document["Image"] for document in json.loads(out)]) == (0, [str(scan)])


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--qc", "scan.nii.gz"),
        ("--qc", "labels.NII.GZ"),
        ("--explain-tree", "scan.nii.gz"),
        ("-o", "labels.png"),
        ("-o", "labels.nrrd"),
    ],
)
def test_no_output_of_another_kind_replaces_a_file(
    option: str, name: str, run: Run, scan: Path, tmp_path: Path
) -> None:
    """`label --qc a.nii b.nii` must not draw a picture over the scan `a.nii`."""
    path = tmp_path / name
    path.write_bytes(scan.read_bytes())
    code, out, err = run("label", scan, option, path)
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {path}: ")
    assert len(err.splitlines()) == 1
    assert path.read_bytes() == scan.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_labels_of_others_in_a_folder_are_kept(run: Run, scan: Path, tmp_path: Path) -> None:
    """Ours are replaced; so is whatever is named as the output itself."""
    manual = tmp_path / "sub-01_T2w_label-discs_dlabel.nii.gz"
    manual.write_bytes(b"by hand")
    code, _, err = run("label", scan, "-o", tmp_path)
    assert (code, manual.read_bytes()) == (2, b"by hand")
    assert err.startswith(f"Error: {manual}: ivdtool did not write these labels")
    assert run("label", scan, "-o", manual, "-q")[0] == 0
    assert run("label", scan, "-o", tmp_path, "-q")[0] == 0
    assert nib.nifti1.load(manual).shape == nib.nifti1.load(scan).shape


def test_a_sidecar_alone_is_somebodys_work(run: Run, scan: Path, tmp_path: Path) -> None:
    """Label editors may write .nii, or a sidecar and no image."""
    manual = tmp_path / "sub-01_T2w_label-discs_dlabel.json"
    manual.write_text('{"Discs": []}', encoding="utf-8")
    code, _, err = run("label", scan, "-o", tmp_path)
    assert (code, manual.read_text(encoding="utf-8")) == (2, '{"Discs": []}')
    assert err.startswith(f"Error: {manual}: ivdtool did not write these labels")
    manual.unlink()
    twin = manual.with_suffix(".nii")
    twin.write_bytes(b"by hand")
    code, _, err = run("label", scan, "-o", tmp_path)
    assert (code, list(tmp_path.iterdir())) == (2, [twin])
    assert err.startswith(f"Error: {twin}: ivdtool did not write these labels")


@pytest.mark.parametrize("brush", [1, 2])
def test_corrected_labels_in_a_folder_are_kept(
    run: Run, scan: Path, tmp_path: Path, brush: int
) -> None:
    """Moved, or painted anew with a brush of several voxels, which are no valid labels yet."""
    labels = tmp_path / "sub-01_T2w_label-discs_dlabel.nii.gz"
    assert run("label", scan, "-o", tmp_path, "-q")[0] == 0
    image = nib.nifti1.load(labels)
    values = np.asarray(image.dataobj).copy()
    (place,) = np.argwhere(values == 24)
    values[tuple(place)] = 0
    values[place[0], place[1] : place[1] + brush, place[2] - 3] = 24
    write(labels, values, image.affine)
    corrected = labels.read_bytes()
    code, _, err = run("label", scan, "-o", tmp_path)
    assert (code, labels.read_bytes()) == (2, corrected)
    assert err.startswith(f"Error: {labels}: these labels were edited since ivdtool wrote them")


def write_truncated(scan: Path, path: Path) -> Path:
    path.write_bytes(scan.read_bytes()[:-5000])
    return path


def test_one_image_too_much_costs_no_other(
    run: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where memory ends: nothing that the image's own checks know of."""
    large = tmp_path / "in" / "a_T2w.nii.gz"
    large.parent.mkdir()
    for path in (large, large.with_name("b_T2w.nii.gz")):
        shutil.copy(scan, path)
    label_scan = ivdtool.labelling.label_scan

    def too_large(path: Path, *others: Any) -> Any:
        if path == large:
            raise RuntimeError("not enough\nmemory")
        return label_scan(path, *others)

    monkeypatch.setattr("ivdtool.labelling.label_scan", too_large)
    code, out, err = run("label", large.parent, "--json")
    failed, labelled = json.loads(out)
    assert (code, failed["Error"]) == (1, f"{large}: RuntimeError: not enough\nmemory")
    assert err.startswith(f"Error: {large}: RuntimeError: not enough memory\n")
    assert err.endswith("1 of 2 images failed.\n")
    assert len(labelled["Discs"]) > 3
    log = tmp_path / "log"
    code, out, err = run("label", large, "--log-file", log)
    assert (code, out) == (1, "")
    assert err == f"Error: {large}: RuntimeError: not enough memory\n"
    assert "\nRuntimeError: not enough\nmemory\n" in log.read_text(encoding="utf-8")
    damaged = write_truncated(scan, tmp_path / "c.nii.gz")
    assert run("label", damaged, "--log-file", log)[0] == 3
    assert "EOFError" in log.read_text(encoding="utf-8")  # what the error was raised from


def test_file_names_that_are_no_text(scan: Path, tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"M\xfcller_T2w.nii.gz")
    shutil.copy(scan, odd)
    command = [sys.executable, "-m", "ivdtool", "label", str(odd), "-o", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"M\udcfcller_T2w.nii.gz: " in done.stdout


def test_what_nibabel_says_of_a_header_is_not_repeated(scan: Path, tmp_path: Path) -> None:
    """Of voxels without a size, which it takes for 1 mm."""
    image = nib.nifti1.load(scan)
    path = tmp_path / "a.nii"
    affine = image.affine
    image.set_qform(affine, 1)
    image.set_sform(None, 0)
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    content[80:92] = bytes(12)  # pixdim
    path.write_bytes(content)
    command = [sys.executable, "-m", "ivdtool", "label", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    what = "voxels of 0 x 0 x 0 mm; repair the header or convert the scan again"
    assert done.stderr == f"Error: {path}: {what}\n"


def test_json_stays_json(run: Run, scan: Path, tmp_path: Path) -> None:
    """With times, and of a folder whose only image fails."""
    code, out, err = run("label", scan, "--json", "-v")
    assert (code, len(json.loads(out)["Discs"]) > 3) == (0, True)
    assert err.startswith("  ms: ")
    (tmp_path / "bad.nii").write_bytes(b"bad")
    code, out, err = run("label", tmp_path, "--json")
    ((entry,)) = json.loads(out)
    assert (code, entry["Image"]) == (1, str(tmp_path / "bad.nii"))
    assert "not a NIfTI file" in entry["Error"]
    code, _, err = run("label", scan, "--json", "--explain")
    assert code == 2
    assert "--explain" in err


def test_a_volume_that_one_image_lacks(run: Run, scan: Path, tmp_path: Path) -> None:
    """It fails; the others are labelled."""
    image = nib.nifti1.load(scan)
    voxels = np.asarray(image.dataobj)
    inputs = tmp_path / "in"
    inputs.mkdir()
    write(inputs / "a.nii", np.stack([voxels] * 2, axis=3), image.affine)
    write(inputs / "b.nii", np.stack([voxels] * 3, axis=3), image.affine)
    code, _, err = run("label", inputs, "-o", tmp_path / "out", "--volume", "2")
    assert code == 1
    assert f"{inputs / 'a.nii'}: no volume 2; choose 0 to 1" in err
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["b_label-discs_dlabel.json", "b_label-discs_dlabel.nii.gz"]
    assert run("label", scan, "--volume", "\u00b2")[0] == 2  # a digit, but no number


def test_a_name_too_long_to_write_does_not_stop_the_others(
    run: Run, scan: Path, tmp_path: Path
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    for name in ("a" * 248, "b"):
        (inputs / f"{name}.nii.gz").write_bytes(scan.read_bytes())
    code, _, err = run("label", inputs, "-o", tmp_path / "out", "-q")
    assert code == 1
    assert "not writable: File name too long" in err
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_suffixes_in_capitals(run: Run, scan: Path, tmp_path: Path) -> None:
    (tmp_path / "A.NII.GZ").write_bytes(scan.read_bytes())
    (tmp_path / "B.NII").write_bytes(gzip.decompress(scan.read_bytes()))
    assert run("label", tmp_path, "-o", tmp_path / "out", "-q")[0] == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"{name}_label-discs_dlabel.nii.gz" for name in "AB"} < written


def test_a_slice_without_orientation_says_so(run: Run, scan: Path, tmp_path: Path) -> None:
    """What the header lacks is the likely cause, so the error names it."""
    image = nib.nifti1.load(scan)
    slices = np.asarray(image.dataobj)[:, :, :1]
    path = tmp_path / "a.nii"
    bare = nib.Nifti1Image(slices, None)
    bare.header.set_zooms((1, 1, 1))
    nib.save(bare, path)
    code, _, err = run("label", path)
    assert code in (1, 3)
    assert "no orientation in the header (sform and qform codes are 0)" in err
    assert len(err.splitlines()) == 1


Judged = Callable[[float | None, float | None], Path]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """Make the shipped model with other bounds of its verdicts; None: without verdicts."""
    folder = tmp_path_factory.mktemp("models")

    def make(certain: float | None, check: float | None) -> Path:
        path = folder / f"{certain}-{check}.pt"
        with zipfile.ZipFile(model_path("robust")) as source, zipfile.ZipFile(path, "w") as target:
            for entry in source.infolist():
                content = source.read(entry)
                if entry.filename.endswith(INFO_FILE):
                    info = json.loads(content)
                    info["judge"] = certain if certain is None else {
                        "intercept": 0.0, "weakest": 0.0, "mean": 0.0, "irregularity": 0.0,
                        "certain": certain, "check": check,
                    }  # fmt: skip
                    content = json.dumps(info).encode()
                target.writestr(entry, content)
        return path

    return make  # with all weights 0 the probability is 0.5


def test_certain_labels_raise_no_warning(
    judged: Judged, run: Run, scan: Path, tmp_path: Path
) -> None:
    model, target = judged(0.4, 0.2), tmp_path / "a.nii.gz"
    code, out, err = run("label", scan, "--model", model, "-o", target, "--strict")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{scan}: 8 discs, certain (0.50) -> {target}"
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert (sidecar["Verdict"], sidecar["Probability"]) == ("certain", 0.5)


@pytest.mark.parametrize(("option", "exit_code"), [([], 0), (["--strict"], 1)])
def test_labels_to_check_are_written_with_a_warning(
    option: list[str], exit_code: int, judged: Judged, run: Run, scan: Path, tmp_path: Path
) -> None:
    target = tmp_path / "a.nii.gz"
    code, out, err = run("label", scan, "--model", judged(0.9, 0.2), "-o", target, *option)
    assert code == exit_code
    assert ", check (0.50) -> " in out
    assert err.startswith(
        f"Warning: {scan}: check: all labels are right with a probability of 0.50"
    )
    assert target.is_file()
    assert json.loads((tmp_path / "a.json").read_text())["Verdict"] == "check"


def test_refused_labels_are_not_written(
    judged: Judged, run: Run, scan: Path, tmp_path: Path
) -> None:
    model, output = judged(0.9, 0.8), tmp_path / "out"
    output.mkdir()
    files = ("-o", output / "a.nii.gz", "--qc", output / "a.png")
    code, out, err = run("label", scan, "--model", model, *files)
    assert (code, out, list(output.iterdir())) == (1, "", [])
    assert err.startswith(
        f"Error: {scan}: refused: all labels are right with a probability of 0.50"
    )
    assert len(err.splitlines()) == 1
    code, out, err = run("label", scan, "--model", model, *files, "--keep-refused")
    assert code == 1
    assert ", refused (0.50) -> " in out
    assert err.startswith(f"Warning: {scan}: refused: ")
    assert json.loads((output / "a.json").read_text())["Verdict"] == "refused"
    assert (output / "a.png").is_file()


def test_a_model_without_verdicts_gives_none(
    judged: Judged, run: Run, scan: Path, tmp_path: Path
) -> None:
    model, target = judged(None, None), tmp_path / "a.nii.gz"
    code, out, err = run("label", scan, "--model", model, "-o", target, "--strict")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{scan}: 8 discs -> {target}"
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert (sidecar["Verdict"], sidecar["Probability"]) == (None, None)


def test_label_twice_gives_identical_bytes(run: Run, scan: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run("label", scan, "-o", tmp_path / f"{name}.nii.gz", "--reproducible", "-q")[0] == 0
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_source_date_epoch_fixes_the_date(
    run: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    run("label", scan, "-o", tmp_path / "a.nii.gz", "-q")
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert sidecar["GeneratedBy"][0]["Date"] == "1970-01-02 00:00:00"


def test_one_bad_scan_does_not_stop_the_others(run: Run, scan: Path, tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.nii.gz", np.zeros((10, 100, 100), np.int16))
    code, _, err = run("label", bad, scan, "-o", tmp_path / "out", "-q")
    assert code == 1
    assert err.splitlines()[0].startswith(f"Error: {bad}:")
    assert err.splitlines()[1] == "1 of 2 images failed."
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["sub-01_T2w_label-discs_dlabel.json", "sub-01_T2w_label-discs_dlabel.nii.gz"]


def test_a_folder_is_searched_for_images(run: Run, tmp_path: Path) -> None:
    write_phantoms(tmp_path / "bids", 2, seed=31, region="lumbar")
    code, _, _ = run("label", tmp_path / "bids", "-o", tmp_path / "out", "-q")
    assert code == 0
    assert len(list((tmp_path / "out").glob("*_label-discs_dlabel.nii.gz"))) == 2


def damaged(tmp_path: Path, scan: Path) -> dict[str, Path]:
    """Inputs that cannot be labelled, by name of what is wrong with them."""
    paths = {name: tmp_path / f"{name}.nii.gz" for name in ("truncated", "text", "empty")}
    paths["truncated"].write_bytes(scan.read_bytes()[:20000])
    paths["text"].write_text("This is not an image.\n")
    paths["empty"].write_bytes(b"")
    paths["text in gzip"] = tmp_path / "gzip.nii.gz"
    paths["text in gzip"].write_bytes(gzip.compress(b"hello" * 200))
    body = volume(12, 200, 200)
    paths["zeros"] = write(tmp_path / "zeros.nii.gz", np.zeros_like(body))
    paths["constant"] = write(tmp_path / "constant.nii.gz", np.full_like(body, 7))
    floats = body.astype(np.float32)
    floats[:, 50, 60] = np.nan
    paths["nan"] = write(tmp_path / "nan.nii.gz", floats)
    floats[:, 50, 60] = np.inf
    paths["inf"] = write(tmp_path / "inf.nii.gz", floats)
    paths["4-D"] = write(tmp_path / "4d.nii.gz", volume(12, 100, 100, 3))
    rgb = np.zeros((12, 100, 100), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    paths["RGB"] = write(tmp_path / "rgb.nii.gz", rgb)
    paths["2 voxels wide"] = write(tmp_path / "narrow.nii.gz", volume(12, 2, 200))
    paths["axial"] = write(
        tmp_path / "axial.nii.gz", volume(200, 200, 20), np.diag([1.0, 1.0, 5.0, 1.0])
    )
    flat = nib.Nifti1Image(body, np.eye(4))
    flat.header.set_sform(np.zeros((4, 4)), code=1)
    flat.header.set_qform(None, code=0)
    paths["affine of zeros"] = tmp_path / "flat.nii.gz"
    paths["affine of zeros"].write_bytes(gzip.compress(header_bytes(flat) + body.tobytes("F")))
    paths["missing"] = tmp_path / "missing.nii.gz"
    return paths


def header_bytes(image: nib.Nifti1Image) -> bytes:
    """The header as it stands; nibabel's writer would put the affine of the image into it."""
    header = image.header.copy()
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    return bytes(header.binaryblock) + b"\0" * 4


CASES = (
    "truncated", "text", "empty", "text in gzip", "zeros", "constant", "nan", "inf", "4-D", "RGB",
    "2 voxels wide", "axial", "affine of zeros", "missing",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_exit_3_and_no_file(
    case: str, run: Run, scan: Path, tmp_path: Path
) -> None:
    path = damaged(tmp_path, scan)[case]
    output = tmp_path / "out"
    output.mkdir()
    code, out, err = run("label", path, "-o", output / "discs.nii.gz", "--qc", output / "a.png")
    assert (code, out) == (3, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(f"Error: {path}: ")
    assert list(output.iterdir()) == []


def test_a_chosen_volume_of_4d_is_labelled(run: Run, scan: Path, tmp_path: Path) -> None:
    image = nib.nifti1.load(scan)
    stack = np.stack([np.asarray(image.dataobj)] * 2, axis=3)
    path = write(tmp_path / "4d.nii.gz", stack, image.affine)
    for choice in ("1", "mean"):
        code, out, _ = run("label", path, "--volume", choice)
        assert code == 0
        assert "L5/S1" in out
    assert run("label", path, "--volume", "2")[0] == 2
    assert run("label", path, "--volume", "first")[0] == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_no_permission(run: Run, scan: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked.nii.gz"
    locked.write_bytes(scan.read_bytes())
    locked.chmod(0)
    code, _, err = run("label", locked)
    assert code == 3
    assert "permission" in err
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    code, _, err = run("label", scan, "-o", folder / "discs.nii.gz")
    assert code == 2
    assert "not writable" in err


def test_no_permission_to_read(
    run: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands in for the test above where the tests run as root."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(nib, "load", refuse)
    code, out, err = run("label", scan, "-o", tmp_path / "discs.nii.gz")
    assert (code, out) == (3, "")
    assert err == f"Error: {scan}: no permission to read; change its mode or owner\n"


def test_output_that_cannot_be_written(run: Run, scan: Path, tmp_path: Path) -> None:
    code, _, err = run("label", scan, "-o", tmp_path / "no" / "discs.nii.gz")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "output folder missing" in err
    (tmp_path / "file").write_text("")
    code, _, err = run("label", scan, scan, "-o", tmp_path / "file" / "out")
    assert code == 2
    assert len(err.splitlines()) == 1


def test_pictures_that_cannot_be_drawn(
    run: Run, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found before work starts where possible, else a warning: the labels are not lost."""
    output, picture = tmp_path / "discs.nii.gz", tmp_path / "discs.png"
    code, _, err = run("label", scan, "-o", output, "--qc", tmp_path / "no" / "a.png")
    assert code == 2
    assert "output folder missing" in err
    assert not output.exists()
    picture.write_text("of other labels")

    def fail(*_: object) -> None:
        raise ValueError("no\ndrawing")

    monkeypatch.setattr("ivdtool.overlay.draw_overlay", fail)
    code, out, err = run("label", scan, "-o", output, "--qc", picture)
    assert (code, "L5/S1" in out) == (0, True)
    assert err == f"Warning: {scan}: no picture: {picture}: ValueError: no drawing\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["discs.json", "discs.nii.gz"]
    monkeypatch.undo()
    (tmp_path / "qc" / "sub-01_T2w.png").mkdir(parents=True)
    code, out, err = run("label", scan, scan, "-o", tmp_path, "--qc", tmp_path / "qc")
    assert (code, "L5/S1" in out) == (0, True)
    assert "sub-01_T2w.png: is a folder" in err
    assert run("label", scan, "--qc", tmp_path / "qc")[0] == 2  # nothing else was asked for


def test_two_inputs_never_share_an_output(run: Run, scan: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / scan.name).write_bytes(scan.read_bytes())
    code, _, err = run("label", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out")
    assert code == 2
    assert "overwrite" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"not a model", gzip.compress(b"x" * 100)])
def test_a_damaged_model_file_is_exit_4(
    content: bytes, run: Run, scan: Path, tmp_path: Path
) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    code, out, err = run("label", scan, "--model", path, "-o", tmp_path / "discs.nii.gz")
    assert (code, out) == (4, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(f"Error: {path}: ")
    assert not (tmp_path / "discs.nii.gz").exists()


def test_an_unknown_model_names_those_there_are(run: Run, scan: Path) -> None:
    code, _, err = run("label", scan, "--model", "nonsense")
    assert code == 4
    assert "robust" in err


@pytest.mark.parametrize(
    "arguments", [["label"], ["label", "--nonsense", "a"], ["nonsense"], ["export", "a.pt"]]
)
def test_wrong_usage_is_exit_2(arguments: list[str], run: Run) -> None:
    assert run(*arguments)[0] == 2


def test_a_log_keeps_the_traceback(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    code, _, err = run("label", tmp_path / "missing.nii.gz", "--log-file", log)
    assert code == 3
    assert "Traceback" not in err
    assert "Traceback" in log.read_text()


def test_model_shows_what_the_file_contains(run: Run) -> None:
    code, out, _ = run("model")
    assert code == 0
    for word in ("robust", "C2/C3 to L5/S1", "sha256", "hourglass", "licence"):
        assert word in out
    code, out, _ = run("model", "--json")
    assert code == 0
    assert json.loads(out)["labels"] == list(range(3, 26))


def test_phantoms_are_labelled_and_evaluated(run: Run, tmp_path: Path) -> None:
    """The tour of the README: phantom, label, evaluate."""
    data, out = tmp_path / "data", tmp_path / "out"
    assert run("phantom", "-o", data, "--count", 2, "--seed", 40, "--region", "lumbar")[0] == 0
    assert run("label", data, "-o", out, "-q")[0] == 0
    files = ("--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    code, table, err = run("evaluate", out, data, *files, "--report", tmp_path / "report")
    assert (code, err) == (0, "")
    assert "found_pct" in table
    for group in ("all", "region:lumbar", "contrast:T2w", "source:phantom", "L5/S1"):
        assert any(line.startswith(f"{group} ") for line in table.splitlines())
    assert "expected calibration error" in table
    figures = json.loads((tmp_path / "a.json").read_text())["groups"]["all"]
    assert figures["images"] == 2
    assert figures["found_pct"] >= 85
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3
    assert (tmp_path / "report" / "report.md").is_file()
    assert run("check-data", data) == (0, "", "2 images, 2 with labels: no problems\n")


def test_evaluate_groups_and_samples_as_asked(run: Run, tmp_path: Path) -> None:
    write_phantoms(tmp_path, 2, seed=11, region="lumbar", spacing_mm=2.0)
    labels = tmp_path / "derivatives" / "labels"
    code, table, _ = run("evaluate", labels, tmp_path, "--by", "orientation", "--resamples", 0)
    assert code == 0
    assert "orientation:" in table
    assert "region:" not in table
    assert ".." not in table  # no intervals
    code, _, err = run("evaluate", labels, tmp_path, "--by", "scanner")
    assert code == 2
    assert "no column scanner" in err
    assert len(err.splitlines()) == 1


def test_check_data_prints_one_line_per_problem(run: Run, tmp_path: Path) -> None:
    write_phantoms(tmp_path, 2, seed=11, region="lumbar", contrast="T2w", spacing_mm=2.0)
    for labels in tmp_path.glob("derivatives/labels/sub-ph001/anat/*"):
        labels.unlink()
    image = next((tmp_path / "sub-ph000").rglob("*.nii.gz"))
    image.write_bytes(image.read_bytes()[:5000])
    code, out, err = run("check-data", tmp_path)
    assert code == 1
    assert [line.partition(":")[0] for line in out.splitlines()] == [
        str(image),
        str(next((tmp_path / "sub-ph001").rglob("*.nii.gz"))),
    ]
    assert err == "2 images, 1 with labels: 2 problems\n"
    code, out, _ = run("check-data", tmp_path, "--json")
    assert code == 1
    document = json.loads(out)
    assert (document["images"], document["label_files"]) == (2, 1)
    assert [own["kind"] for own in document["problems"]] == ["image", "labels-missing"]
    assert all({"kind", "path", "what", "todo"} == own.keys() for own in document["problems"])


def test_check_data_of_no_data_set_is_exit_3(run: Run, tmp_path: Path) -> None:
    code, out, err = run("check-data", tmp_path)
    assert (code, out) == (3, "")
    assert "give a BIDS data set" in err


def test_module_runs_as_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ivdtool", "label", str(tmp_path / "a.nii.gz")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
