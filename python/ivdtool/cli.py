"""The command line: parse, one call, print. Heavy modules are imported inside the commands."""

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ivdtool import __version__
from ivdtool.errors import InputError, IvdtoolError, UsageError

if TYPE_CHECKING:
    from ivdtool.metadata import ModelInfo
    from ivdtool.pipeline import Result

__all__ = ["cli", "main"]

log = logging.getLogger("ivdtool")

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: an error is one line and its exit code."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        return int(cli.main(arguments, "ivdtool", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except IvdtoolError as error:
        _complain(error)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: no user should read a traceback
        _complain(error)
        return 1
    finally:
        _stop_log()


def _complain(error: BaseException) -> None:
    text = str(error) if isinstance(error, IvdtoolError) else f"{type(error).__name__}: {error}"
    click.echo(f"Error: {' '.join(text.split())}", err=True)
    log.debug("traceback", exc_info=error)


def _start_log(log_file: Path | None) -> None:
    log.setLevel(logging.DEBUG)
    log.propagate = False
    if log_file is None:
        log.addHandler(logging.NullHandler())
        return
    try:
        handler = logging.FileHandler(log_file, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{log_file}: cannot write the log: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)


def _stop_log() -> None:
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from ivdtool import _core

    if _core.__version__ != __version__:
        raise IvdtoolError(
            f"Python package {__version__} with compiled core {_core.__version__}; "
            "install ivdtool again"
        )
    click.echo(f"ivdtool {__version__}")
    context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Find and name every intervertebral disc in a sagittal spine MRI."""


_log_file = click.option(
    "--log-file", type=click.Path(path_type=Path), help="Write a log with tracebacks here."
)
_model = click.option(
    "--model", metavar="NAME|FILE", help="Model; the one in the package by default."
)
_device = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
_datasets = click.option(
    "--data",
    "datasets",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="BIDS data set with derivatives/labels; may be given several times.",
)
_threads = click.option("--threads", type=click.IntRange(1), help="CPU threads of the network.")


@cli.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="OUT.nii.gz for one image, or a folder. Without it, discs are only printed.",
)
@click.option("--qc", type=click.Path(path_type=Path), help="Picture: a PNG file, or a folder.")
@_model
@_device
@_threads
@click.option("--volume", metavar="N|mean", help="Which volume of a 4-D image.")
@click.option("--slices", type=click.IntRange(1), help="Average this many slices, not ~6 mm.")
@click.option("--slab-mm", type=click.FloatRange(0, min_open=True), help="Thickness to average.")
@click.option("--normalisation", type=click.Choice(["percentile", "minmax"]))
@click.option("--middle", is_flag=True, help="Take the middle slices; do not look for the spine.")
@click.option("--explain", is_flag=True, help="Print what the skeleton search weighed and did.")
@click.option(
    "--explain-tree", type=click.Path(path_type=Path), help="PNG of the search tree; one image."
)
@click.option("--reproducible", is_flag=True, help="Leave the date out: same input, same bytes.")
@click.option("--json", "as_json", is_flag=True, help="Print the sidecar instead of a table.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("-v", "--verbose", is_flag=True, help="Print the time of each stage, too.")
@_log_file
def label(
    images: tuple[Path, ...],
    output: Path | None,
    qc: Path | None,
    model: str | None,
    device: str,
    threads: int | None,
    volume: str | None,
    slices: int | None,
    slab_mm: float | None,
    normalisation: str | None,
    middle: bool,
    explain: bool,
    explain_tree: Path | None,
    reproducible: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    log_file: Path | None,
) -> int:
    """Label the discs of IMAGES: NIfTI files, or folders of them.

    Writes a label image (one voxel per disc at its posterior tip, SCT values) and a JSON sidecar
    beside it.
    """
    _start_log(log_file)
    which = _volume_option(volume)
    paths = _find_images(images)
    if explain_tree is not None and len(paths) > 1:
        raise UsageError("--explain-tree draws the search of one image only")

    started = time.perf_counter()
    from ivdtool.files import nifti_stem
    from ivdtool.inference import load_model
    from ivdtool.pipeline import LabelConfig, PlaneConfig, adapt_preprocessing, label_discs
    from ivdtool.volumes import read_volume
    from ivdtool.writers import default_name

    outputs = _outputs(paths, images, output, default_name)
    pictures = _outputs(paths, images, qc, lambda path: f"{nifti_stem(path)}.png")
    loaded = load_model(model, device, threads)
    preprocessing = adapt_preprocessing(loaded.info.preprocessing, slices, slab_mm, normalisation)
    plane = PlaneConfig(reach_mm=0) if middle else PlaneConfig()
    config = LabelConfig(preprocessing, plane)
    start_up = time.perf_counter() - started

    documents: list[dict[str, Any]] = []
    failures: list[IvdtoolError] = []
    for path in paths:
        try:
            started = time.perf_counter()
            scan = read_volume(path, which)
            reading = time.perf_counter() - started
            result = label_discs(scan, loaded, config)
            started = time.perf_counter()
            _write_result(result, outputs.get(path), pictures.get(path), reproducible)
            seconds = {"reading": reading, **result.seconds}
            seconds["writing"] = time.perf_counter() - started
        except IvdtoolError as error:
            if len(paths) == 1 or isinstance(error, UsageError):
                raise
            _complain(error)
            failures.append(error)
            continue
        log.info("%s: %d discs", path, len(result.labels.discs))
        documents.append(result.labels.to_dict())
        for warning in result.labels.warnings:
            click.echo(f"Warning: {path}: {warning}", err=True)
        if not (quiet or as_json):
            _print_discs(path, result, outputs.get(path))
        if explain or explain_tree is not None:
            _explain(result, loaded.info, explain and not as_json, explain_tree)
        if verbose:
            _print_times({"start-up": start_up, **seconds})
    if as_json:
        click.echo(json.dumps(documents[0] if len(paths) == 1 else documents, indent=2))
    if failures:
        click.echo(f"{len(failures)} of {len(paths)} images failed.", err=True)
    return 1 if failures else 0


def _volume_option(value: str | None) -> int | str | None:
    if value is None or value == "mean":
        return value
    if not value.isdigit():
        raise UsageError(f"--volume takes a number or mean, not {value}")
    return int(value)


def _find_images(images: tuple[Path, ...]) -> list[Path]:
    """Files as given; folders searched for NIfTI files, label files and derivatives left out."""
    found: list[Path] = []
    for path in images:
        if not path.is_dir():
            found.append(path)
            continue
        inside = [
            file
            for file in sorted(path.rglob("*.nii*"))
            if file.name.endswith((".nii", ".nii.gz"))
            and "derivatives" not in file.relative_to(path).parts
            and "_label" not in file.name
        ]
        if not inside:
            raise InputError(f"{path}: no .nii or .nii.gz file in this folder")
        found += inside
    return list(dict.fromkeys(found))


def _outputs(
    paths: list[Path], images: tuple[Path, ...], output: Path | None, name: Callable[[Path], str]
) -> dict[Path, Path]:
    """Which file each image's result goes to; a name with a suffix is one file."""
    if output is None:
        return {}
    if output.name.endswith((".nii", ".nii.gz", ".png")) and not output.is_dir():
        if len(paths) > 1 or images[0].is_dir():
            raise UsageError(f"{output}: one file for {len(paths)} images; give a folder")
        return {paths[0]: output}
    targets = {path: output / name(path) for path in paths}
    if len(set(targets.values())) < len(targets):
        raise UsageError(f"{output}: images of the same name would overwrite each other's results")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{output}: cannot make this folder: {error.strerror}") from error
    return targets


def _write_result(
    result: "Result", output: Path | None, picture: Path | None, reproducible: bool
) -> None:
    from ivdtool.writers import write_labels

    if output is not None:
        write_labels(result.labels, output, reproducible)
    if picture is not None:
        from ivdtool.overlay import OverlayPoint, write_overlay

        image = result.image
        discs = [
            OverlayPoint(float(row), float(col), disc.name, disc.confidence)
            for (row, col), disc in zip(
                result.assignment.positions, result.labels.discs, strict=True
            )
        ]
        title = result.labels.source.name
        write_overlay(picture, image.pixels, image.grid.spacing_mm, discs, title)


def _print_discs(path: Path, result: "Result", output: Path | None) -> None:
    click.echo(f"{path}: {len(result.labels.discs)} discs" + (f" -> {output}" if output else ""))
    click.echo("  value  disc           x         y         z   score  confidence")
    for disc in result.labels.discs:
        x, y, z = disc.world_mm
        click.echo(
            f"  {disc.label:>5}  {disc.name:<8} {x:9.2f} {y:9.2f} {z:9.2f}   {disc.score:5.2f}"
            f"  {disc.confidence:10.2f}"
        )


def _explain(result: "Result", info: "ModelInfo", to_terminal: bool, tree: Path | None) -> None:
    from ivdtool.explain import explain_search, write_tree

    if to_terminal:
        click.echo(explain_search(result.candidates, info.skeleton, info.search, result.assignment))
    if tree is not None:
        write_tree(tree, result.candidates, info.skeleton, info.search)


def _print_times(seconds: dict[str, float]) -> None:
    stages = "  ".join(f"{stage} {1000 * value:.0f}" for stage, value in seconds.items())
    click.echo(f"  ms: {stages}  total {1000 * sum(seconds.values()):.0f}")


@cli.command()
@_datasets
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings, TOML.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option("--steps", type=click.IntRange(1), help="Overrides the settings' steps.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@_device
@_threads
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
@_log_file
def train(
    datasets: tuple[Path, ...],
    config_file: Path | None,
    output: Path,
    steps: int | None,
    resume: bool,
    device: str,
    threads: int | None,
    quiet: bool,
    log_file: Path | None,
) -> None:
    """Train a network on BIDS data sets.

    participants.tsv gives the split by subject (train, val, test).
    """
    _start_log(log_file)
    from dataclasses import replace

    from ivdtool.config import read_toml
    from ivdtool.training.loop import TrainingConfig
    from ivdtool.training.run import run_training

    if resume:
        if config_file is not None or steps is not None:
            raise UsageError("--resume goes on with the run's own settings; drop --config, --steps")
        config_file = output / "config.toml"
    config = TrainingConfig() if config_file is None else read_toml(TrainingConfig, config_file)
    if steps is not None:
        config = replace(config, optimiser=replace(config.optimiser, steps=steps))
    with click.progressbar(
        length=config.optimiser.steps, label="training", hidden=quiet, show_pos=True
    ) as bar:

        def report(step: int, metrics: Any) -> None:
            bar.label = f"training, loss {metrics['loss']:.4f}"
            bar.update(step - bar.pos)

        last = run_training(
            datasets,
            config,
            output,
            device=device,
            threads=threads,
            resume=resume,
            report=report,
        )
    click.echo(f"{last}; best by validation: {output / 'best.pt'}; figures: metrics.csv")


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="MODEL.pt")
@click.option("--name", help="Name of the model; the file's stem by default.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Settings, TOML.")
@click.option(
    "--calibrate",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Data set whose val split calibrates the confidence; may be given several times.",
)
@_log_file
def export(
    checkpoint: Path,
    output: Path,
    name: str | None,
    config_file: Path | None,
    calibrate: tuple[Path, ...],
    log_file: Path | None,
) -> None:
    """Export CHECKPOINT as a self-contained TorchScript model file."""
    _start_log(log_file)
    from ivdtool.config import read_toml
    from ivdtool.training.release import ReleaseConfig, release_model

    settings = ReleaseConfig() if config_file is None else read_toml(ReleaseConfig, config_file)
    release_model(checkpoint, output, name or output.stem, settings, calibrate)
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


@cli.command()
@click.argument("predictions", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("dataset", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--split", help="Only this split of participants.tsv.")
@click.option("--by", default="region", show_default=True, help="Column to group by.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write one row per case.")
@_log_file
def evaluate(
    predictions: Path,
    dataset: Path,
    split: str | None,
    by: str,
    json_file: Path | None,
    csv_file: Path | None,
    log_file: Path | None,
) -> None:
    """Compare PREDICTIONS, a folder of label files, with a labelled BIDS DATASET.

    Label-aware figures first; the papers' (label ignored) in the last columns.
    """
    _start_log(log_file)
    from ivdtool.reports import evaluate_folder, figures, format_table, write_cases, write_figures

    groups = evaluate_folder(predictions, dataset, split, by)
    click.echo(format_table({name: figures(summary) for name, summary in groups.items()}))
    if json_file is not None:
        write_figures(groups, json_file)
    if csv_file is not None:
        write_cases(groups["all"], csv_file)


@cli.command()
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--region", type=click.Choice(["cervical", "thoracic", "lumbar", "whole"]))
@click.option("--contrast", type=click.Choice(["T1w", "T2w", "STIR", "dixon"]))
@click.option("--spacing-mm", type=click.FloatRange(0.3, 3), default=1.0, show_default=True)
@_log_file
def phantom(
    output: Path,
    count: int,
    seed: int,
    region: Any,
    contrast: Any,
    spacing_mm: float,
    log_file: Path | None,
) -> None:
    """Write synthetic spine volumes with exact labels as a BIDS data set."""
    _start_log(log_file)
    from ivdtool.phantom import write_phantoms

    write_phantoms(output, count, seed, region=region, contrast=contrast, spacing_mm=spacing_mm)
    click.echo(f"{output}: {count} phantom{'s' if count > 1 else ''}")


@cli.command("model")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@_log_file
def show_model(model: str | None, as_json: bool, log_file: Path | None) -> None:
    """Show what a model file (NAME or FILE) contains."""
    _start_log(log_file)
    from ivdtool.inference import load_model, model_path
    from ivdtool.reports import describe_model

    loaded = load_model(model, "cpu")
    if as_json:
        click.echo(loaded.info.to_json())
    else:
        click.echo(describe_model(loaded.info, loaded.sha256, model_path(model)))


@cli.command()
@click.argument("stages", nargs=-1, metavar="[heatmaps|candidates|search|pipeline]...")
@click.option("--quick", is_flag=True, help="Small sizes and few rounds: a check, not a figure.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures.")
@click.option("--plot", type=click.Path(path_type=Path), help="PNG of search time over K^V.")
@_log_file
def benchmark(
    stages: tuple[str, ...],
    quick: bool,
    json_file: Path | None,
    plot: Path | None,
    log_file: Path | None,
) -> None:
    """Time the stages beside floors, the papers' algorithms and other libraries.

    All in one run, in turns, every answer checked. Without a stage, all of them. Other libraries
    take part where they are installed: pip install 'ivdtool[benchmark]'.
    """
    _start_log(log_file)
    from ivdtool.benchmark.report import (
        STAGES,
        format_report,
        plot_search,
        run_benchmarks,
        write_reports,
    )

    if unknown := sorted(set(stages) - set(STAGES)):
        raise UsageError(f"no stage is called {unknown[0]}; known are {', '.join(STAGES)}")
    if plot is not None and stages and "search" not in stages:
        raise UsageError("--plot shows the search; name it among the stages")
    reports = []
    for report in run_benchmarks(stages or STAGES, quick):
        click.echo(format_report(report) + "\n")
        reports.append(report)
    if json_file is not None:
        write_reports(reports, json_file)
    if plot is not None:
        plot_search(reports, plot)


@cli.group()
def skeleton() -> None:
    """Mean skeletons: where discs lie relative to each other."""


@skeleton.command("build")
@_datasets
@click.option("--split", help="Only this split of participants.tsv.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="FILE.json")
@_log_file
def build_skeleton(
    datasets: tuple[Path, ...], split: str | None, output: Path, log_file: Path | None
) -> None:
    """Average the certain discs of labelled data sets; each image adds what it shows."""
    _start_log(log_file)
    from ivdtool.measurement import describe_skeleton, measure_skeleton, write_skeleton

    measured = measure_skeleton(datasets, split)
    write_skeleton(measured, output)
    click.echo(describe_skeleton(measured))


@skeleton.command("show")
@click.argument("source", required=False, metavar="[MODEL|FILE.json]")
@_log_file
def show_skeleton(source: str | None, log_file: Path | None) -> None:
    """Print spacings, spreads and missing rates of a model's skeleton or a built one."""
    _start_log(log_file)
    from ivdtool.inference import load_model
    from ivdtool.measurement import describe_skeleton, read_skeleton

    if source is not None and source.endswith(".json"):
        click.echo(describe_skeleton(read_skeleton(source)))
    else:
        click.echo(describe_skeleton(load_model(source, "cpu").info.skeleton))
