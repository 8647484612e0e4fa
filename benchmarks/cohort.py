"""Acceptance of `ivdtool batch` on a cohort: the same bytes whatever the way, speed, memory.

    python -m benchmarks.cohort FOLDER --scans 300
    python -m benchmarks.cohort FOLDER --settings 40
    python -m benchmarks.cohort FOLDER --memory 2000

The first makes a cohort of real scans, phantoms and ten damaged ones in FOLDER and labels it scan
by scan with `ivdtool label`, then with `ivdtool batch`: one job, two, Dask, and killed ten times
and resumed. The second labels real scans with several numbers of jobs, threads and images per
batch, in turns. The third labels phantoms, many times over, and fails where a process grows while
it does.
"""

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import psutil
from isal import igzip
from tests.damaged import REASONS, damage
from tests.test_batch import contents, table

from ivdtool.benchmark.timing import expect
from ivdtool.bids import images_below
from ivdtool.errors import IvdtoolError
from ivdtool.files import LABEL_SUFFIX, nifti_bytes, sidecar_path
from ivdtool.inference import Model, load_model
from ivdtool.labelling import Targets, label_scan, method_config
from ivdtool.phantom import make_phantom
from ivdtool.phantom_dataset import random_config
from ivdtool.writers import default_name

DATA = Path(__file__).parents[2] / "shared" / "data"
IVDTOOL = (sys.executable, "-m", "ivdtool")
SUFFIX = f"_{LABEL_SUFFIX}.nii.gz"
KILLS = 10
LOOPED = 10
ROUNDS = 3
KINDS = 40
MAIN_GROWTH_MIB = 10.0  # at most, between the second and the last quarter
WORKER_GROWTH = 1.15
SETTINGS = (  # jobs, threads, batch size; the defaults on two cores first
    (2, 1, 2), (1, 2, 2), (1, 1, 2), (2, 2, 2), (2, 1, 1), (2, 1, 4), (2, 1, 8),
)  # fmt: skip


def make_cohort(folder: Path, count: int) -> Path:
    """Real scans by symbolic link, phantoms, ten damaged scans: `count` in all."""
    cohort = folder / "cohort"
    if cohort.exists():
        return cohort
    real = [path for part in ("spine-mri", "neck-slices") for path in images_below(DATA / part)]
    half = (count - len(REASONS)) // 2
    real = real[:: max(1, len(real) // half)][:half]
    for path in real:
        link = cohort / "real" / path.relative_to(DATA)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    for seed in range(count - len(real) - len(REASONS)):
        write_phantom(cohort / "phantoms" / f"{seed % 10}" / f"ph{seed:03}_T2w.nii.gz", seed)
    damage(cohort / "phantoms" / "0" / "ph000_T2w.nii.gz", cohort / "damaged")
    return cohort


def write_phantom(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(nifti_bytes(make_phantom(random_config(7000 + seed)).image, path))


class Timed:
    """A model that adds up the time of its network."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def load(self) -> Model:
        model = load_model(device="cpu", threads=1)
        network = model.network

        def call(*arguments: object) -> object:
            started = time.perf_counter()
            values = network(*arguments)
            self.seconds += time.perf_counter() - started
            return values

        return replace(model, network=call)


def label_one_by_one(cohort: Path, output: Path, part: int = 0, parts: int = 1) -> dict[str, float]:
    """What `ivdtool label` does with every scan; seconds of it, and of the floors alone."""
    timed = Timed()
    model = timed.load()
    config = method_config(model.info)
    whole = inflate = 0.0
    for path in images_below(cohort)[part::parts]:
        target = output / path.relative_to(cohort).with_name(default_name(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        before, started = timed.seconds, time.perf_counter()
        try:
            label_scan(path, model, config, None, Targets(target, reproducible=True))
        except IvdtoolError:
            timed.seconds = before
            continue
        whole += time.perf_counter() - started
        inflate += inflate_seconds(path)
    return {"whole": whole, "inflate": inflate, "network": timed.seconds}


def floors_of_two(cohort: Path, output: Path) -> float:
    """Seconds of inflate and network on two cores at once, in a process each: they share caches."""
    with get_context("spawn").Pool(2) as processes:
        halves = processes.starmap(
            label_one_by_one, [(cohort, output / str(part), part, 2) for part in (0, 1)]
        )
    return sum(half["inflate"] + half["network"] for half in halves) / 2


def inflate_seconds(path: Path) -> float:
    content = path.read_bytes()
    started = time.perf_counter()
    if path.suffix == ".gz":
        igzip.decompress(content)
    return time.perf_counter() - started


def check_command(cohort: Path, reference: Path, folder: Path) -> float:
    """The command itself on some scans, in a loop: same bytes; seconds per scan."""
    labelled = sorted(reference.rglob(f"*{SUFFIX}"))
    chosen = labelled[:: max(1, len(labelled) // LOOPED)][:LOOPED]
    seconds = 0.0
    for label in chosen:
        stem = label.relative_to(reference).as_posix().removesuffix(SUFFIX)
        (scan,) = (cohort / stem).parent.glob(f"{Path(stem).name}.nii*")
        output = folder / label.relative_to(reference)
        output.parent.mkdir(parents=True, exist_ok=True)
        command = (*IVDTOOL, "label", scan, "-o", output, "--threads", "1", "--reproducible", "-q")
        started = time.perf_counter()
        subprocess.run(command, check=True)
        seconds += time.perf_counter() - started
        for path in (output, sidecar_path(output)):
            expect(
                path.read_bytes() == (reference / path.relative_to(folder)).read_bytes(),
                f"{path}: other bytes than without the command",
            )
    return seconds / len(chosen)


def batch(cohort: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    command = (*IVDTOOL, "batch", str(cohort), "-o", str(output), "--reproducible", *options)
    return subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> float:
    started = time.perf_counter()
    text, _ = process.communicate()
    print("   ", text.strip())
    expect(process.returncode == 1, f"exit code {process.returncode}, not 1 for ten failures")
    return time.perf_counter() - started


def kill_and_resume(cohort: Path, output: Path, whole: float) -> None:
    rng = random.Random(1)
    for kill in range(KILLS):
        process = batch(cohort, output, "--jobs", "2", "--resume")
        try:
            process.wait(4 + rng.uniform(0.05, 0.9) * whole / KILLS)
            break
        except subprocess.TimeoutExpired:
            if kill % 2:
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.communicate()
    finish(batch(cohort, output, "--jobs", "2", "--resume"))


def check(name: str, cohort: Path, output: Path, reference: Path) -> None:
    """Same bytes as one by one, every scan accounted for, ten reasons right."""
    expect(contents(output) == contents(reference), f"{name}: other files than one by one")
    rows = table(output / "summary.csv")
    expect(len(rows) == len(images_below(cohort)), f"{name}: {len(rows)} rows")
    failed = {scan: row["error"] for scan, row in rows.items() if row["status"] == "failed"}
    wrong = [scan for scan, reason in REASONS.items() if reason not in failed.get(scan, "")]
    expect(not wrong, f"{name}: wrong reasons for {wrong}")
    others = sorted(set(failed) - set(REASONS))
    print(f"    same bytes, ten reasons right; failed besides: {', '.join(others) or 'none'}")


def accept(folder: Path, count: int) -> None:
    cohort, reference = make_cohort(folder, count), folder / "one-by-one"
    print(f"{len(images_below(cohort))} scans in {cohort}")
    shutil.rmtree(reference, ignore_errors=True)
    started = time.perf_counter()
    floors = label_one_by_one(cohort, reference)
    labelled = len(list(reference.rglob(f"*{SUFFIX}")))
    print(f"one by one in one process: {time.perf_counter() - started:.1f} s, {labelled} labelled")
    for name, seconds in floors.items():
        print(f"    {name}: {1000 * seconds / labelled:.0f} ms per labelled scan")
    loop = check_command(cohort, reference, folder / "loop")
    print(f"shell loop, {LOOPED} scans: {loop:.2f} s per scan")
    wall: dict[str, float] = {}
    ways: dict[str, Callable[[Path], float]] = {
        "jobs 1": lambda out: finish(batch(cohort, out, "--jobs", "1")),
        "jobs 2": lambda out: finish(batch(cohort, out, "--jobs", "2")),
        "dask": lambda out: finish(batch(cohort, out, "--jobs", "2", "--executor", "dask")),
    }
    for name, way in ways.items():
        print(name)
        output = folder / name.replace(" ", "-")
        shutil.rmtree(output, ignore_errors=True)
        wall[name] = way(output)
        check(name, cohort, output, reference)
    print(f"killed {KILLS} times and resumed")
    shutil.rmtree(folder / "killed", ignore_errors=True)
    kill_and_resume(cohort, folder / "killed", wall["jobs 2"])
    check("killed", cohort, folder / "killed", reference)
    least = floors_of_two(cohort, folder / "floors")
    print(f"floors of two processes at once / jobs 2: {100 * least / wall['jobs 2']:.0f} %")
    alone = (floors["inflate"] + floors["network"]) / 2
    print(f"half of the floors of one process alone / jobs 2: {100 * alone / wall['jobs 2']:.0f} %")
    print(f"shell loop / jobs 2, per scan: {loop * labelled / wall['jobs 2']:.1f}")


def compare_settings(folder: Path, count: int) -> None:
    """Label the same real scans with each of `SETTINGS`, in turns: same discs, ratios of time."""
    scans = folder / "real"
    real = images_below(DATA / "spine-mri")
    shutil.rmtree(scans, ignore_errors=True)
    for path in real[:: max(1, len(real) // count)][:count]:
        scans.mkdir(parents=True, exist_ok=True)
        (scans / path.name).symlink_to(path)
    seconds: dict[tuple[int, int, int], list[float]] = {setting: [] for setting in SETTINGS}
    memory = dict.fromkeys(SETTINGS, 0.0)
    first: list[dict[str, str]] = []
    for _ in range(ROUNDS):
        for setting in SETTINGS:
            output = folder / "settings-out"
            shutil.rmtree(output, ignore_errors=True)
            options = zip(("--jobs", "--threads", "--batch-size"), map(str, setting), strict=True)
            started = time.perf_counter()
            process = batch(scans, output, *(word for option in options for word in option))
            while process.poll() is None:
                memory[setting] = max(memory[setting], memory_mib(process.pid)[1])
                time.sleep(0.05)
            seconds[setting].append(time.perf_counter() - started)
            with (output / "discs.csv").open(newline="", encoding="utf-8") as lines:
                discs = list(csv.DictReader(lines))
            first = first or discs
            expect(len(discs) == len(first), f"{setting}: {len(discs)} discs, not {len(first)}")
            for ours, theirs in zip(discs, first, strict=True):
                axes = ("x_mm", "y_mm", "z_mm")
                far = max(abs(float(ours[axis]) - float(theirs[axis])) for axis in axes)
                same = (ours["output"], ours["label"]) == (theirs["output"], theirs["label"])
                expect(same and far <= 0.05, f"{setting}: {ours} is not {theirs}")
    print(f"{len(images_below(scans))} scans, start-up included; ratios to the first row")
    print("| jobs | threads | batch size | time: min | median | max | largest worker, MiB |")
    print("|---|---|---|---|---|---|---|")
    base = seconds[SETTINGS[0]]
    for setting in SETTINGS:
        ratios = sorted(own / other for own, other in zip(seconds[setting], base, strict=True))
        cells = [*map(str, setting), *(f"{r:.2f}" for r in (ratios[0], median(ratios), ratios[-1]))]
        print(f"| {' | '.join(cells)} | {memory[setting]:.0f} |")


def watch_memory(folder: Path, count: int) -> None:
    """Label `count` links to 40 phantoms; check the highest memory of each process by progress."""
    least = 4 * KINDS  # every phantom in every quarter: new shapes take memory
    expect(count >= least, f"--memory {count}: give at least {least}")
    source, output = folder / "phantoms", folder / "phantoms-out"
    for seed in range(KINDS):
        if not (path := source / f"{seed:02}.nii.gz").exists():
            write_phantom(path, seed)
    many = folder / "many"
    shutil.rmtree(many, ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    for number in range(count):
        link = many / f"{number // 100:03}" / f"{number:05}.nii.gz"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(source / f"{number % KINDS:02}.nii.gz")
    process = batch(many, output, "--jobs", "2")
    quarters = [count * quarter // 4 for quarter in (1, 2, 3, 4)]
    highest = dict.fromkeys(quarters, (0.0, 0.0))
    while process.poll() is None:
        done = sum(1 for _ in output.rglob("*.json"))
        main, workers = memory_mib(process.pid)
        quarter = next((q for q in quarters if done <= q), count)
        highest[quarter] = (max(highest[quarter][0], main), max(highest[quarter][1], workers))
        time.sleep(1.0)
    print(process.communicate()[0].strip())
    for quarter, (main, workers) in highest.items():
        print(f"up to {quarter} scans: main {main:.0f} MiB, the largest worker {workers:.0f} MiB")
    check_growth([*highest.values()])


def check_growth(highest: Sequence[tuple[float, float]]) -> None:
    """Of the main process and the largest worker, in MiB by quarter; in the second both work."""
    _, (main, worker), _, (last_main, last_worker) = highest
    expect(main and last_main, "a quarter went by unseen; watch more scans")
    expect(
        last_main - main <= MAIN_GROWTH_MIB,
        f"the main process grew from {main:.0f} to {last_main:.0f} MiB",
    )
    expect(
        last_worker <= WORKER_GROWTH * worker,
        f"the largest worker grew from {worker:.0f} to {last_worker:.0f} MiB",
    )


def memory_mib(pid: int) -> tuple[float, float]:
    def resident() -> Iterator[float]:
        for process in [psutil.Process(pid), *psutil.Process(pid).children()]:
            yield process.memory_info().rss / 2**20

    try:
        main, *workers = resident()
    except psutil.NoSuchProcess:
        return 0.0, 0.0
    return main, max(workers, default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scans", type=int)
    parser.add_argument("--settings", type=int)
    parser.add_argument("--memory", type=int)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.scans:
        accept(folder, arguments.scans)
    if arguments.settings:
        compare_settings(folder, arguments.settings)
    if arguments.memory:
        watch_memory(folder, arguments.memory)


if __name__ == "__main__":
    main()
