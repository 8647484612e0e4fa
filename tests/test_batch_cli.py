"""`ivdtool batch` with the model that the package ships: what `ivdtool label` does, for many."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.damaged import REASONS, damage
from tests.test_batch import contents, table

from ivdtool.cli import main
from ivdtool.errors import IvdtoolError
from ivdtool.files import is_temporary, nifti_bytes
from ivdtool.phantom import Region, make_phantom
from ivdtool.phantom_dataset import random_config

Run = Callable[..., tuple[int, str, str]]
SUFFIX = "_label-discs_dlabel"


@pytest.fixture(autouse=True)
def restored_signal() -> Iterator[None]:
    """`batch` takes SIGTERM for an interrupt."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three phantoms of different shape as a BIDS data set, and ten damaged scans."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "dataset_description.json").write_text("{}")
    regions: tuple[Region, ...] = ("lumbar", "cervical", "lumbar")
    for index, region in enumerate(regions):
        path = folder / f"sub-{index}" / "anat" / f"sub-{index}_T2w.nii.gz"
        path.parent.mkdir(parents=True)
        config = replace(random_config(7 + index, region, "T2w"), spacing_mm=1.5)
        image = make_phantom(config).image
        path.write_bytes(nifti_bytes(image, path))
    damage(folder / "sub-0" / "anat" / "sub-0_T2w.nii.gz", folder / "sub-bad" / "anat")
    return folder


def test_a_batch_gives_the_bytes_of_label(run: Run, cohort: Path, tmp_path: Path) -> None:
    """With one worker and two, and every damaged scan its row."""
    one_by_one = tmp_path / "one-by-one"
    for scan in sorted(cohort.glob("sub-[0-9]/anat/*.nii.gz")):
        target = one_by_one / scan.parent.relative_to(cohort)
        target.mkdir(parents=True)
        output = target / f"{scan.name.removesuffix('.nii.gz')}{SUFFIX}.nii.gz"
        assert run("label", scan, "-o", output, "--threads", 1, "--reproducible", "-q")[0] == 0
    for jobs in (1, 2):
        out = tmp_path / f"jobs-{jobs}"
        code, text, err = run("batch", cohort, "-o", out, "--jobs", jobs, "--reproducible")
        assert code == 1
        assert text.startswith("13 scans: 3 labelled, 10 failed, 0 skipped, in ")
        assert sorted(contents(out)) == sorted(
            [*contents(one_by_one), ".bidsignore", "dataset_description.json"]
        )
        for name, content in contents(one_by_one).items():
            assert (out / name).read_bytes() == content
        rows = table(out / "summary.csv")
        for name, reason in REASONS.items():
            assert reason in rows[name]["error"]
            assert rows[name]["error_kind"] == "InputError"
            assert f"{name}.nii.gz" in rows[name]["error"]
        assert sum(line.startswith("Error: ") for line in err.splitlines()) == 10
        assert "Traceback" not in err


def test_points_for_slicer(run: Run, cohort: Path, tmp_path: Path) -> None:
    scan = cohort / "sub-0" / "anat" / "sub-0_T2w.nii.gz"
    code, text, _ = run("batch", scan, "-o", tmp_path, "--slicer", "--qc", "--json", "-q")
    assert code == 0
    assert json.loads(text)["labelled"] == 1
    stem = tmp_path / f"sub-0_T2w{SUFFIX}"
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    document = json.loads(stem.with_suffix(".mrk.json").read_text())
    sidecar = json.loads(stem.with_suffix(".json").read_text())
    # what the public schema requires, and the values it allows
    assert document["@schema"].endswith("/markups-schema-v1.0.3.json#")
    (markup,) = document["markups"]
    assert markup["type"] == "Fiducial"
    assert (markup["coordinateSystem"], markup["coordinateUnits"]) == ("LPS", "mm")
    assert len({point["id"] for point in markup["controlPoints"]}) == len(sidecar["Discs"])
    for point, disc in zip(markup["controlPoints"], sidecar["Discs"], strict=True):
        assert point["label"] == disc["name"]
        assert point["positionStatus"] == "defined"
        x, y, z = disc["world_mm"]
        assert point["position"] == pytest.approx([-x, -y, z], abs=1e-6)


def test_a_picture_in_the_way_is_a_warning(run: Run, cohort: Path, tmp_path: Path) -> None:
    scan = cohort / "sub-0" / "anat" / "sub-0_T2w.nii.gz"
    (tmp_path / f"sub-0_T2w{SUFFIX}.png").mkdir()
    assert run("batch", scan, "-o", tmp_path, "--qc", "-q")[0] == 0
    row = table(tmp_path / "summary.csv")["sub-0_T2w"]
    assert row["status"] == "labelled"
    assert "no picture: " in row["warnings"]
    assert (tmp_path / row["output"]).is_file()


def test_usage(run: Run, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text, _ = run("batch", cohort, "-o", tmp_path / "o", "--dry-run", "--suffix", "T2w")
    assert code == 0
    assert text.splitlines()[-1] == "3 scans: 3 to label, 0 labelled already, 0 failed before"
    assert not (tmp_path / "o").exists()
    listed = tmp_path / "list.txt"
    listed.write_text(f"{cohort}/sub-1/anat/sub-1_T2w.nii.gz\n\n{cohort}/sub-2/none.nii\n")
    code, text, _ = run("batch", "--list", listed, "-o", tmp_path / "o", "--dry-run")
    assert "2 scans: 2 to label" in text
    assert f"-> {tmp_path}/o/sub-1/anat/sub-1_T2w{SUFFIX}.nii.gz" in text
    monkeypatch.setattr("sys.stdin", io.StringIO(listed.read_text()))
    assert run("batch", "--list", "-", "-o", tmp_path / "o", "--dry-run")[1] == text
    for arguments, wanted in (
        (["--model", "none"], 4),
        (["--shard", "3"], 2),
        (["--scheduler", "tcp://nowhere:1"], 2),
        (["--participant-label", "99"], 3),
        (["--volume", "first"], 2),
    ):
        code, _, err = run("batch", cohort, "-o", tmp_path / "o", *arguments)
        assert (code, len(err.splitlines())) == (wanted, 1), arguments
    assert run("batch", tmp_path / "nothing*", "-o", tmp_path / "o")[0] == 3
    assert run("batch", "--list", tmp_path / "none.txt", "-o", tmp_path / "o")[0] == 3
    assert not (tmp_path / "o").exists()
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"no model")
    code, _, err = run("batch", cohort, "-o", tmp_path / "o", "--model", broken, "--jobs", 1)
    assert (code, err.count("\n")) == (4, 1)
    assert err.startswith(f"Error: {broken}: ")


@pytest.mark.parametrize(
    ("options", "cuda", "jobs"),
    [
        ([], False, 8),
        ([], True, 1),
        (["--device", "cuda"], False, 1),
        (["--device", "cpu"], True, 8),
        (["--jobs", 3], True, 3),
    ],
)
def test_one_job_on_a_gpu_unless_asked_for_more(
    options: list[object],
    cuda: bool,
    jobs: int,
    run: Run,
    cohort: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(_kind: str, _scheduler: None, _config: object, jobs: int, _timeout: float) -> None:
        raise IvdtoolError(f"{jobs} jobs")

    module = sys.modules["ivdtool.commands.batch"]
    monkeypatch.setattr(module, "_cpus", lambda: 8)
    monkeypatch.setattr(module, "_executor", stop)
    stub = f"class cuda: is_available = staticmethod(lambda: {cuda})"
    (tmp_path / "torch.py").write_text(stub)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    _, _, err = run("batch", cohort, "-o", tmp_path / "out", *options)
    assert err == f"Error: {jobs} jobs\n"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_batch_goes_on(end: signal.Signals, cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ivdtool", "batch", str(cohort), "-o", str(out), "--jobs", "1"]
    # shells have their background jobs ignore it, and so would what those start
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    signal.signal(signal.SIGINT, before)
    while not (out / "manifest.sqlite").exists():
        time.sleep(0.02)
    time.sleep(0.2)
    os.kill(process.pid, end)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    lines = [line for line in err.splitlines() if line]
    assert lines[-2:] == [f"{out}: not finished; go on with --resume", "Interrupted."]
    assert not [path for path in out.rglob("*") if is_temporary(path)]
