"""Batches without a network: what they find, record, survive and go on with."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests import batch_stub

from ivdtool.batch.derivatives import describe_derivatives
from ivdtool.batch.inputs import Filters, Scan, Shard, find_scans, take_shard
from ivdtool.batch.manifest import Manifest
from ivdtool.batch.pool import Pool
from ivdtool.batch.progress import terminal_progress
from ivdtool.batch.run import Resume, open_plan, run_batch
from ivdtool.batch.summary import Summary
from ivdtool.batch.worker import BatchConfig, Outcome, Task
from ivdtool.bids import images_below
from ivdtool.errors import InputError, IvdtoolError, ModelError, UsageError
from ivdtool.files import is_temporary, sidecar_path
from ivdtool.label_files import LABEL_SUFFIXES

CONFIG = BatchConfig(model=batch_stub.__file__)
SUFFIX = "_label-discs_dlabel"


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def outputs(scans: list[Scan]) -> list[str]:
    return [scan.output.replace(f"{SUFFIX}.nii.gz", "") for scan in scans]


def run(
    source: Path | list[Scan],
    output: Path,
    config: BatchConfig = CONFIG,
    *,
    jobs: int = 2,
    timeout: float = 30,
    resume: Resume | None = None,
    shard: Shard | None = None,
) -> Summary:
    found = source if isinstance(source, list) else find_scans([str(source)], output)
    return run_batch(
        take_shard(found, shard), output, config,
        lambda _: Pool(batch_stub.prepare, config, jobs, timeout),
        resume=resume or Resume(), shard=shard,
    )  # fmt: skip


def counts(summary: Summary) -> tuple[int, int, int]:
    return summary.labelled, summary.failed, summary.skipped


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {Path(row["input"]).name.split(".")[0]: row for row in csv.DictReader(file)}


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a batch but its manifest and tables."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(("manifest", "summary", "discs"))
    }


# inputs


def test_the_output_mirrors_the_folder(tmp_path: Path) -> None:
    source = touch(tmp_path / "in", "b.nii", "x/a.nii.gz", "x/y/a.nii.gz", "x/notes.txt")
    touch(source, "x/a_label-discs_dlabel.nii.gz", "derivatives/labels/b.nii", "out/c.nii")
    assert outputs(find_scans([str(source)], source / "out")) == ["b", "x/a", "x/y/a"]
    assert outputs(find_scans([str(source)], source)) == ["b", "out/c", "x/a", "x/y/a"]
    touch(source, "b_discs.nii.gz", "x/._a.nii.gz", "x/.0123456789abcdef.nii.gz")
    found = find_scans([str(source)], source, suffix="discs")
    assert [scan.output for scan in found][:2] == ["b_discs.nii.gz", "out/c_discs.nii.gz"]
    assert len(found) == 4
    (source / os.fsdecode(b"\xff.nii")).touch()
    with pytest.raises(InputError, match="not UTF-8"):
        find_scans([str(source)], source)


def test_only_names_of_label_files_are_left_out(tmp_path: Path) -> None:
    scans = ["p01_labeled_T2w", "p02_label", "p03_label-SC_T2w", "p04_labels-manual", "p05_T2w"]
    source = touch(tmp_path / "in", *(f"anat/{name}.nii.gz" for name in scans))
    for suffix in (*LABEL_SUFFIXES, "_label-discs_desc-ours_dlabel"):
        touch(source, f"anat/p05_T2w{suffix}.nii.gz", f"anat/p06{suffix}.nii")
    touch(source, "anat/p05_T2w_label-SC_seg.nii.gz", "anat/p05_T2w_mask.nii", "anat/p05_dseg.nii")
    bids = touch(tmp_path / "bids", "dataset_description.json")
    (bids / "sub-1").symlink_to(source)
    for given in (source, bids, f"{source}/*/*.nii*"):
        found = outputs(find_scans([str(given)], tmp_path / "o"))
        assert [Path(name).name for name in found] == scans
    assert [path.name for path in images_below(source)] == [f"{name}.nii.gz" for name in scans]
    meant_suffix = find_scans([str(source)], tmp_path / "o", suffix="T2w")
    assert len(meant_suffix) == len(scans)


def test_scans_behind_symbolic_links_are_found(tmp_path: Path) -> None:
    """In folders, data sets and patterns, with any version of Python; hidden ones in none."""
    away = touch(
        tmp_path / "away", "anat/a.nii", "ses-1/anat/b.nii", "ses-1/anat/.c.nii", ".d/e.nii"
    )
    source = touch(tmp_path / "in", "dataset_description.json")
    for link, target in {
        "sub-1": away,
        "sub-2/ses-1": away / "ses-1",
        "sub-3/anat": away / "anat",
        "sub-3/up": source,  # in circles
        "sub-4/anat/f.nii": away / "gone",
    }.items():
        (source / link).parent.mkdir(parents=True, exist_ok=True)
        (source / link).symlink_to(target)
    wanted = ["sub-1/anat/a", "sub-1/ses-1/anat/b", "sub-2/ses-1/anat/b", "sub-3/anat/a"]
    wanted.append("sub-4/anat/f")
    for given in (f"{source}/**/*.nii", f"{source}/sub-*/**/anat/?.nii", f"{source}/**", source):
        assert outputs(find_scans([str(given)], tmp_path / "o")) == wanted
    (source / "dataset_description.json").unlink()
    assert outputs(find_scans([str(source)], tmp_path / "o")) == wanted
    hidden = find_scans([f"{away}/.?/*", f"{away}/**/.c*"], tmp_path / "o")
    assert outputs(hidden) == [".d/e", "ses-1/anat/.c"]


def test_a_folder_that_cannot_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = touch(tmp_path / "in", "a.nii", "closed/b.nii")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"in/closed: cannot be read \(Permission denied\)"):
        find_scans([str(source)], tmp_path / "o")
    assert len(find_scans([f"{source}/*.nii"], tmp_path / "o")) == 1


def test_the_output_mirrors_below_a_pattern_or_what_holds_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "in/x/a_T1w.nii", "in/x/a_T2w.nii", "in/y/z/b_T2w.nii.gz", "in/y/z/b_T2w.json")
    assert outputs(find_scans([f"{tmp_path}/in/**/*T2w*"], tmp_path / "o")) == [
        "x/a_T2w",
        "y/z/b_T2w",
    ]
    assert outputs(find_scans([f"{tmp_path}/in/*/a_T?w.nii"], tmp_path / "o")) == [
        "x/a_T1w",
        "x/a_T2w",
    ]
    listed = [f"{tmp_path}/in/y/z/b_T2w.nii.gz", f"{tmp_path}/in/y/../x/a_T2w.nii"]
    assert outputs(find_scans([], tmp_path / "o", listed=listed)) == ["x/a_T2w", "y/z/b_T2w"]
    assert outputs(find_scans([], tmp_path / "o", listed=listed[:1])) == ["b_T2w"]
    monkeypatch.chdir(tmp_path)
    found = find_scans(["in/y"], Path("o"), listed=listed, root=Path("in"))
    assert outputs(found) == ["x/a_T2w", "y/z/b_T2w"]
    with pytest.raises(UsageError, match=r"a_T2w\.nii: not below --root"):
        find_scans([], Path("o"), listed=listed, root=Path("in/y"))
    with pytest.raises(InputError, match="matches no"):
        find_scans(["in/*/*.mnc"], Path("o"))


def test_two_scans_never_share_an_output(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.nii", "two/a.nii", "three/b.nii", "three/b.nii.gz")
    with pytest.raises(UsageError, match=r"two/a\.nii and .*one/a\.nii would both write"):
        find_scans([f"{tmp_path}/one", f"{tmp_path}/two"], tmp_path / "o")
    with pytest.raises(UsageError, match="--exclude"):
        find_scans([f"{tmp_path}/three"], tmp_path / "o")
    only = Filters(exclude=("*.nii",))
    assert outputs(find_scans([f"{tmp_path}/three"], tmp_path / "o", filters=only)) == ["b"]
    both = [f"{tmp_path}/one", f"{tmp_path}/two"]
    assert outputs(find_scans(both, tmp_path / "o", root=tmp_path)) == ["one/a", "two/a"]
    twice = [f"{tmp_path}/one", f"{tmp_path}/one/a.nii"]
    assert outputs(find_scans(twice, tmp_path / "o")) == ["a"]


def dataset(root: Path) -> Path:
    touch(root, "dataset_description.json", "sub-01/func/sub-01_bold.nii.gz", "code/x.nii.gz")
    for subject, session in (("01", "a"), ("01", "b"), ("02", "a")):
        for suffix in ("T1w", "T2w"):
            name = f"sub-{subject}_ses-{session}_{suffix}"
            touch(root, f"sub-{subject}/ses-{session}/anat/{name}.nii.gz")
    return touch(root, "sub-010/anat/sub-010_acq-ax_T2w.nii.gz")


def test_bids_filters(tmp_path: Path) -> None:
    source = dataset(tmp_path / "bids")

    def found(**filters: tuple[str, ...]) -> list[str]:
        scans = find_scans([str(source)], tmp_path / "o", filters=Filters(**filters))
        return [Path(name).name for name in outputs(scans)]

    assert len(found()) == 7
    assert found(participants=("01",), suffixes=("T2w",)) == [
        "sub-01_ses-a_T2w",
        "sub-01_ses-b_T2w",
    ]
    assert found(participants=("sub-02", "010"), suffixes=("T2w",)) == [
        "sub-010_acq-ax_T2w",
        "sub-02_ses-a_T2w",
    ]
    assert found(suffixes=("T2w",), exclude=("*/ses-b/*", "*_acq-ax_*")) == [
        "sub-01_ses-a_T2w",
        "sub-02_ses-a_T2w",
    ]
    with pytest.raises(InputError, match="no scan of participant sub-03"):
        found(participants=("01", "03"))
    with pytest.raises(InputError, match="no scan is left"):
        found(suffixes=("PDw",))


def test_bids_derivatives(tmp_path: Path) -> None:
    source = dataset(tmp_path / "bids")
    (scan, *_) = find_scans([str(source)], tmp_path, suffix="label-discs_desc-ours_dlabel")
    assert scan.output == ("sub-01/ses-a/anat/sub-01_ses-a_T1w_label-discs_desc-ours_dlabel.nii.gz")
    with pytest.raises(UsageError, match="--bids-suffix a/b"):
        find_scans([str(source)], tmp_path, suffix="a/b")
    describe_derivatives(tmp_path, [source])
    description = json.loads((tmp_path / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "ivdtool"
    assert description["SourceDatasets"] == [{"URL": source.resolve().as_uri()}]
    assert "manifest*" in (tmp_path / ".bidsignore").read_text()


def test_a_description_that_is_there_stays(tmp_path: Path) -> None:
    """Labels may go beside the scans: the raw data set must not become a derivative."""
    source = dataset(tmp_path / "bids")
    files = source / "dataset_description.json", source / ".bidsignore"
    for file in files:
        file.write_text("mine")
    describe_derivatives(source, [source])
    assert [file.read_text() for file in files] == ["mine", "mine"]
    files[1].unlink()
    describe_derivatives(source, [source])
    assert files[0].read_text() == "mine"
    assert "manifest*" in files[1].read_text()


def test_an_interrupted_run_leaves_a_derivative(tmp_path: Path) -> None:
    source, out = dataset(tmp_path / "bids"), tmp_path / "out"

    def interrupt(_: int) -> Pool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(find_scans([str(source)], out), out, CONFIG, interrupt, datasets=[source])
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert (out / ".bidsignore").is_file()


# one run


def test_every_scan_is_labelled_or_has_its_reason(tmp_path: Path) -> None:
    names = ("a", "x/b", "bad", "bug", "exit", "kill", "flaky", "hang", "z")
    source = touch(tmp_path / "in", *(f"{name}.nii" for name in names))
    summary = run(source, tmp_path / "out", timeout=1.0)
    assert (summary.scans, *counts(summary)) == (9, 4, 5, 0)
    rows = table(tmp_path / "out" / "summary.csv")
    assert {name: row["error_kind"] for name, row in rows.items()} == {
        "a": "", "b": "", "flaky": "", "z": "", "bad": "InputError", "bug": "ZeroDivisionError",
        "exit": "WorkerDied", "kill": "WorkerDied", "hang": "Timeout",
    }  # fmt: skip
    reasons = {name: row["error"].partition(": ")[2] for name, row in rows.items()}
    assert reasons["bad"] == "no good"
    assert reasons["bug"] == "ZeroDivisionError: two lines"
    assert reasons["kill"].startswith("its worker was killed by SIGKILL (out of memory?)")
    assert reasons["exit"] == "its worker ended with exit code 7, at both attempts"
    assert reasons["hang"] == "took longer than 1 s"
    attempts = {name: int(row["attempts"]) for name, row in rows.items()}
    assert {name for name, count in attempts.items() if count == 2} == {"exit", "kill", "flaky"}
    written = contents(tmp_path / "out")
    assert sorted(written) == sorted(
        f"{name}{SUFFIX}{ending}"
        for name in ("a", "x/b", "flaky", "z")
        for ending in (".json", ".nii.gz")
    )
    with (tmp_path / "out" / "discs.csv").open(newline="") as file:
        discs = list(csv.DictReader(file))
    assert [disc["output"][:3] for disc in discs] == ["a_l", "fla", "x/b", "z_l"]
    assert discs[0] | {"output": ""} == {
        "output": "", "label": "25", "name": "L5/S1", "x_mm": "1.0", "y_mm": "2.0", "z_mm": "5.0",
        "score": "0.5", "confidence": "0.5", "status": "detected",
    }  # fmt: skip
    document = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (document["scans"], document["labelled"], document["failed"]) == (9, 4, 5)
    assert document["errors"]["WorkerDied"] == 2
    with Manifest(tmp_path / "out" / "manifest.sqlite") as manifest:
        row = manifest.find(f"bug{SUFFIX}.nii.gz")
    assert row is not None
    assert "Traceback" in str(row.details)


def test_a_missing_scan_is_a_row(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii")
    scans = find_scans([], tmp_path / "o", listed=[f"{tmp_path}/a.nii", f"{tmp_path}/b.nii"])
    assert counts(run(scans, tmp_path / "out")) == (1, 1, 0)


def test_lost_scans_are_noticed() -> None:
    with pytest.raises(IvdtoolError, match="scans were lost"):
        Summary(scans=3, labelled=1, failed=1, skipped=0, seconds=1.0, verdicts={})


@pytest.mark.parametrize("kind", ["minmax", "percentile"])
def test_workers_that_cannot_start_end_the_run(kind: str, tmp_path: Path) -> None:
    source = touch(tmp_path / "in", "a.nii", "b.nii")
    kinds = {"minmax": ModelError, "percentile": IvdtoolError}
    with pytest.raises(kinds[kind], match=r"refuses to start|ended with exit code 3"):
        run(source, tmp_path / "out", replace(CONFIG, normalisation=kind))
    assert contents(tmp_path / "out") == {}
    assert counts(run(source, tmp_path / "out")) == (2, 0, 0)  # nothing to go on with


def test_the_main_process_does_not_grow(tmp_path: Path) -> None:
    """What it would keep of an outcome, 2,000 times, would be some 40 MB."""
    source = touch(tmp_path / "in", "big.nii")
    scans = [Scan(f"{i:06}.nii.gz", str(source / "big.nii")) for i in range(3000)]
    numbers, begin = count(1), 0

    def look(_: Outcome) -> None:
        nonlocal begin
        if next(numbers) == 1000:
            begin = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()

    tracemalloc.start()
    try:
        summary = run_batch(
            scans, tmp_path / "out", CONFIG, lambda _: Pool(batch_stub.prepare, CONFIG, 2, 30),
            heard=look,
        )  # fmt: skip
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert summary.labelled == len(scans)
    assert most - begin < 4 * 2**20


def test_the_benchmark_fails_where_memory_grows() -> None:
    pytest.importorskip("psutil")
    from benchmarks.cohort import check_growth

    check_growth([(20, 100), (50, 500), (55, 560), (60, 570)])
    for last, message in {
        (61, 500): "main process grew from 50 to 61 MiB",
        (50, 580): "worker grew from 500 to 580 MiB",
        (0, 0): "unseen",
    }.items():
        with pytest.raises(IvdtoolError, match=message):
            check_growth([(20, 100), (50, 500), (55, 560), last])


def test_a_worker_that_dies_between_two_scans_is_replaced(tmp_path: Path) -> None:
    source = touch(tmp_path / "in", "a.nii", "b.nii")

    def tasks() -> Iterator[Task]:
        for scan in find_scans([str(source)], tmp_path):
            yield Task(scan.output, scan.input, str(tmp_path / scan.output))

    with Pool(batch_stub.prepare, CONFIG, 1, None) as pool:
        outcomes = pool.run(tasks())
        assert next(outcomes).labelled
        (worker,) = pool._workers
        worker.process.kill()
        worker.process.join()
        assert next(outcomes).labelled


def test_workers_do_not_grow_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ivdtool.batch.pool.MOST_SCANS", 2)
    source = touch(tmp_path / "in", "a.nii", "b.nii", "c.nii", "d.nii", "e.nii")
    scans = find_scans([str(source)], tmp_path)
    tasks = [Task(scan.output, scan.input, str(tmp_path / scan.output)) for scan in scans]
    with Pool(batch_stub.prepare, CONFIG, 1, None) as pool:
        at_work = []
        for outcome in pool.run(tasks):
            assert outcome.labelled
            (worker,) = pool._workers
            at_work.append(worker.process.pid)
    assert [at_work.index(pid) for pid in at_work] == [0, 0, 2, 2, 4]
    for pid in set(at_work):
        assert pid is not None
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_no_worker_outlives_the_main_process(tmp_path: Path) -> None:
    source = touch(tmp_path / "in", "hang.nii", "hang2.nii")
    main = start(source, tmp_path / "out", 0)
    children = wait_for_children(main.pid, 3)  # two workers, and the tracker of multiprocessing
    main.kill()
    main.wait()
    until = time.monotonic() + 10
    while any(Path(f"/proc/{child}/stat").exists() for child in children):
        assert time.monotonic() < until
        time.sleep(0.02)


def start(source: Path, output: Path, milliseconds: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "tests.batch_stub",
        str(source),
        str(output),
        f"{milliseconds}",
    ]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL, start_new_session=True
    )


def wait_for_children(parent: int, count: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    if not path.exists():
        pytest.skip("this system does not list the children of a process")
    until = time.monotonic() + 20
    while len(children := [int(child) for child in path.read_text().split()]) < count:
        assert time.monotonic() < until
        time.sleep(0.02)
    return children


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(
    terminal: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bar on a terminal, else lines; reasons in both."""
    monkeypatch.setattr("ivdtool.batch.progress.SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    source = touch(tmp_path / "in", "a.nii", "bad.nii", "c.nii")
    scans = find_scans([str(source)], tmp_path / "out")
    with terminal_progress() as progress:
        run_batch(
            scans, tmp_path / "out", CONFIG, lambda _: Pool(batch_stub.prepare, CONFIG, 1, None),
            progress=progress,
        )  # fmt: skip
    err = capsys.readouterr().err
    assert f"Error: {source}/bad.nii: no good\n" in err
    assert ("3/3" in err) == terminal
    if not terminal:
        assert err.splitlines()[-1].startswith("3 of 3 scans, 1 failed, ")


# going on


def test_resume_labels_only_what_is_needed(tmp_path: Path) -> None:
    source, out = touch(tmp_path / "in", "a.nii", "b.nii", "bad.nii"), tmp_path / "out"
    go_on = Resume(wanted=True)
    assert counts(run(source, out)) == (2, 1, 0)
    with pytest.raises(UsageError, match=r"go on with --resume"):
        run(source, out)
    assert counts(run(source, out, resume=go_on)) == (0, 1, 2)
    assert table(out / "summary.csv")["a"]["status"] == "skipped"
    assert table(out / "summary.csv")["bad"]["error"].endswith("no good")
    touch(source, "c.nii")
    assert counts(run(source, out, resume=go_on)) == (1, 1, 2)
    (out / f"a{SUFFIX}.json").unlink()
    assert counts(run(source, out, resume=go_on)) == (1, 1, 2)
    (source / "b.nii").write_text("longer than before")
    assert counts(run(source, out, resume=go_on)) == (1, 1, 2)
    os.utime(source / "b.nii", (1, 1))
    assert counts(run(source, out, resume=go_on)) == (1, 1, 2)
    assert counts(run(source, out, resume=Resume(True, retry_failed=True))) == (0, 1, 3)
    (source / "bad.nii").rename(source / "d.nii")
    assert counts(run(source, out, resume=go_on)) == (1, 0, 3)


@pytest.mark.parametrize(
    "changed", [{"volume": 1}, {"slices": 3}, {"slicer": True}, {"qc": True}, {"model": __file__}]
)
def test_resume_after_other_settings_labels_again(changed: dict[str, Any], tmp_path: Path) -> None:
    source, out = touch(tmp_path / "in", "a.nii", "b.nii"), tmp_path / "out"
    assert counts(run(source, out)) == (2, 0, 0)
    go_on, other = Resume(wanted=True), replace(CONFIG, **changed)
    assert counts(run(source, out, other, resume=go_on)) == (2, 0, 0)
    assert counts(run(source, out, other, resume=go_on)) == (0, 0, 2)
    same = replace(other, device="cpu", threads=2)
    assert counts(run(source, out, same, resume=go_on)) == (0, 0, 2)


def test_resume_by_content(tmp_path: Path) -> None:
    source, out = touch(tmp_path / "in", "a.nii"), tmp_path / "out"
    by_hash = Resume(wanted=True, by_hash=True)
    assert counts(run(source, out, resume=Resume(by_hash=True))) == (1, 0, 0)
    os.utime(source / "a.nii", (1, 1))
    assert counts(run(source, out, resume=by_hash)) == (0, 0, 1)
    (source / "a.nii").write_text("other")  # as long as before
    os.utime(source / "a.nii", (1, 1))
    assert counts(run(source, out, resume=by_hash)) == (1, 0, 0)


def test_labels_of_a_scan_that_fails_now_do_not_stay(tmp_path: Path) -> None:
    source, out = touch(tmp_path / "in", "flaky_bug.nii"), tmp_path / "out"
    (source / "flaky_bug.nii").rename(source / "x.nii")
    assert counts(run(source, out)) == (1, 0, 0)
    (source / "x.nii").unlink()
    scans = find_scans([], out, listed=[f"{source}/x.nii"], root=source)
    assert counts(run(scans, out, resume=Resume(wanted=True))) == (0, 1, 0)
    assert contents(out) == {}


@pytest.mark.parametrize("sidecar", [None, "[]", '{"GeneratedBy": [{"Name": "SCT"}]}'])
@pytest.mark.parametrize("name", ["a.nii", "bad.nii"])
def test_labels_of_others_are_not_touched(name: str, sidecar: str | None, tmp_path: Path) -> None:
    """Manual labels, say: neither replaced, nor removed where a scan fails."""
    source, out = touch(tmp_path / "in", name, "b.nii"), tmp_path / "out"
    out.mkdir()
    theirs = out / f"{Path(name).stem}{SUFFIX}.nii.gz"
    theirs.write_bytes(b"by hand")
    if sidecar is not None:
        sidecar_path(theirs).write_text(sidecar, encoding="utf-8")
    for resume in (Resume(), Resume(wanted=True)):
        with pytest.raises(UsageError, match="ivdtool did not write these labels"):
            run(source, out, resume=resume)
    assert theirs.read_bytes() == b"by hand"
    assert not list(out.glob("b_*"))


def test_what_a_dying_worker_wrote_does_not_stay(tmp_path: Path) -> None:
    source, out = touch(tmp_path / "in", "late.nii"), tmp_path / "out"
    assert counts(run(source, out)) == (0, 1, 0)
    assert table(out / "summary.csv")["late"]["error_kind"] == "WorkerDied"
    assert contents(out) == {}


def test_what_other_settings_left_goes(tmp_path: Path) -> None:
    """A picture or point list of other labels would mislead."""
    source, out = touch(tmp_path / "in", "a.nii", "flaky_b.nii"), tmp_path / "out"
    (source / "once").touch()
    drawn = replace(CONFIG, qc=True, slicer=True)
    run(source, out, drawn)
    assert len(contents(out)) == 8
    (source / "flaky_b.nii").unlink()
    scans = find_scans([], out, listed=[f"{source}/{n}.nii" for n in ["a", "flaky_b"]], root=source)
    summary = run(scans, out, replace(drawn, slicer=False, slices=3), resume=Resume(wanted=True))
    assert counts(summary) == (1, 1, 0)
    left = {f"a{SUFFIX}{ending}" for ending in (".nii.gz", ".json", ".png")}
    assert contents(out).keys() == left


def test_a_folder_in_the_way_of_labels_fails_one_scan(tmp_path: Path) -> None:
    source, out = touch(tmp_path / "in", "a.nii", "b.nii"), tmp_path / "out"
    (out / f"a{SUFFIX}.nii.gz").mkdir(parents=True)
    assert counts(run(source, out)) == (1, 1, 0)
    assert "is a folder" in table(out / "summary.csv")["a"]["error"]


def test_labels_of_another_scan_are_not_replaced(tmp_path: Path) -> None:
    one, two = touch(tmp_path / "1", "a.nii"), touch(tmp_path / "2", "a.nii")
    run(one, tmp_path / "out")
    with pytest.raises(UsageError, match=r"2/a\.nii: .* holds the labels of .*1/a\.nii"):
        run(two, tmp_path / "out", resume=Resume(wanted=True))
    one.rename(tmp_path / "moved")
    summary = run(tmp_path / "moved", tmp_path / "out", resume=Resume(wanted=True))
    assert counts(summary) == (0, 0, 1)


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    source = touch(tmp_path / "in", "x/a.nii")
    with pytest.raises(UsageError, match="cannot make this folder"):
        run(source, touch(tmp_path, "out") / "out")
    with pytest.raises(UsageError, match="cannot make this folder"):
        run(source, touch(tmp_path / "other", "x"))


def test_a_manifest_belongs_to_one_run(tmp_path: Path) -> None:
    source, out = touch(tmp_path / "in", "a.nii"), tmp_path / "out"
    run(source, out)
    with Manifest(out / "manifest.sqlite"), pytest.raises(UsageError, match="another run"):
        run(source, out, resume=Resume(wanted=True))
    (out / "manifest.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(UsageError, match="not usable as a manifest"):
        run(source, out, resume=Resume(wanted=True))


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    source, out = touch(tmp_path / "in", "a.nii"), tmp_path / "out"
    scans = find_scans([str(source)], out)
    assert planned(scans, out, wanted=False) == (1, 0)
    assert not out.exists()
    run(scans, out)
    with pytest.raises(UsageError, match="--resume"):
        planned(scans, out, wanted=False)
    with Manifest(out / "manifest.sqlite"), pytest.raises(UsageError, match="another run"):
        planned(scans, out)


def planned(scans: list[Scan], out: Path, wanted: bool = True) -> tuple[int, int]:
    """By a dry run: how many scans to label, how many to skip."""
    with ExitStack() as stack:
        _, plan = open_plan(scans, out, CONFIG, Resume(wanted), None, stack, dry=True)
    return len(plan.label), len(plan.skip)


@pytest.mark.parametrize("whole", [False, True])
def test_a_dry_run_knows_what_parts_have_done(whole: bool, tmp_path: Path) -> None:
    """It does what the run would do, but in memory; also where a manifest of the whole is there."""
    source, out = touch(tmp_path / "in", "a.nii", "b.nii", "c.nii"), tmp_path / "out"
    scans = find_scans([str(source)], out)
    if whole:
        run(scans[:1], out)
    run(scans, out, shard=Shard(2, 2))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    assert planned(scans, out) == ((1, 2) if whole else (2, 1))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before
    assert counts(run(scans, out, resume=Resume(wanted=True)))[2] == (2 if whole else 1)


def test_killed_at_any_moment_and_resumed(tmp_path: Path) -> None:
    """Fifty times SIGKILL, to the main process alone or to all: nothing half, nothing lost."""
    names = [f"{folder}/{i}.nii" for folder in "abc" for i in range(40)]
    source, out = touch(tmp_path / "in", *names, "bad.nii"), tmp_path / "out"
    rng = random.Random(4)
    kills = in_flight = 0
    while kills < 50:
        before = written(out)
        process = start(source, out, 20)
        while process.poll() is None and not written(out) - before:  # until work is under way
            time.sleep(0.005)
        try:
            process.wait(rng.uniform(0, 0.3))
        except subprocess.TimeoutExpired:
            kills += 1
            if rng.random() < 0.5:
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
            wait_for_group(process.pid)
            in_flight += check_killed(source, out)
        else:  # it was done before: begin anew
            assert process.returncode == 0
            rename_away(out)
    assert in_flight > kills / 2
    summary = batch_stub.run(source, out, 20, resume=True)
    assert summary.labelled + summary.skipped == len(names)
    assert summary.failed == 1
    batch_stub.run(source, tmp_path / "at-once", 20)
    assert contents(out) == contents(tmp_path / "at-once")


def written(out: Path) -> set[Path]:
    """Labels, sidecars and what is being written."""
    return {path for path in out.rglob("*.*") if SUFFIX in path.name or is_temporary(path)}


def wait_for_group(leader: int) -> None:
    """Until the workers have noticed that the main process is gone."""
    until = time.monotonic() + 20
    with suppress(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(leader, 0)
            time.sleep(0.005)
        pytest.fail("workers are left")


def check_killed(source: Path, out: Path) -> bool:
    """Whether scans were in flight; no file is half written, and no other scan is lost."""
    there = written(out)
    labels = {path for path in there if SUFFIX in path.name}
    for path in labels:
        name = path.relative_to(out).as_posix().partition(SUFFIX)[0]
        assert path.stat().st_size == (source / f"{name}.nii").stat().st_size * batch_stub.LONG
    images = {path for path in labels if path.name.endswith(".nii.gz")}
    pairs = {path for path in images if sidecar_path(path) in labels}
    with Manifest(out / "manifest.sqlite") as manifest:
        rows = {path: manifest.find(path.relative_to(out).as_posix()) for path in images}
    known = {path for path, row in rows.items() if row is not None}
    assert known <= pairs
    assert len(pairs - known) <= batch_stub.JOBS
    return len(there) > 2 * len(known)


def rename_away(out: Path) -> None:
    out.rename(out.with_name(f"out-{time.monotonic_ns()}"))


# parts


def test_shards_cover_every_scan_once(tmp_path: Path) -> None:
    names = [f"{i:02}.nii" for i in range(11)]
    source, out = touch(tmp_path / "in", *names), tmp_path / "out"
    parts = [Shard(i, 3) for i in (1, 2, 3)]
    assert [counts(run(source, out, shard=part))[0] for part in parts] == [4, 4, 3]
    assert {path.name for path in out.glob("manifest*")} == {
        f"manifest.shard-{i}-of-3.sqlite" for i in (1, 2, 3)
    }
    rows = [row for part in parts for row in table(out / f"summary{part.suffix}.csv")]
    assert sorted(rows) == [name.removesuffix(".nii") for name in names]
    with pytest.raises(UsageError, match="--resume"):
        run(source, out, shard=parts[0])
    with pytest.raises(UsageError, match="--resume"):
        run(source, out)
    assert counts(run(source, out, shard=parts[2], resume=Resume(wanted=True))) == (0, 0, 3)
    assert counts(run(source, out, resume=Resume(wanted=True))) == (0, 0, 11)
    assert len(table(out / "summary.csv")) == 11
    assert len((out / "discs.csv").read_text().splitlines()) == 12


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0"])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        Shard.parse(text)
