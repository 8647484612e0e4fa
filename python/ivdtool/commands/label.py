"""`ivdtool label`."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ivdtool.commands.imports import heavy_imports
from ivdtool.commands.options import (
    DOUBTFUL,
    complain,
    device_option,
    log,
    log_option,
    method_options,
    model_option,
    threads_option,
    volume_option,
)
from ivdtool.errors import InputError, IvdtoolError, UsageError

if TYPE_CHECKING:
    from ivdtool.pipeline import Result

__all__ = ["label"]

FILE_SUFFIXES = (
    ".nii", ".gz", ".png", ".json", ".nrrd", ".mha", ".mgz", ".img", ".hdr", ".jpg", ".tif", ".pdf",
    ".csv", ".tsv", ".txt",
)  # fmt: skip


@click.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="OUT.nii.gz for one image, or a folder. Without it, discs are only printed.",
)
@click.option("--qc", type=click.Path(path_type=Path), help="Picture: a PNG file, or a folder.")
@model_option
@device_option
@threads_option
@method_options
@click.option(
    "--anchor",
    "anchors",
    multiple=True,
    metavar="NAME@X,Y,Z",
    help="The disc at this place in world mm (RAS+) is NAME; the others follow. May repeat.",
)
@click.option("--explain", is_flag=True, help="Print what the skeleton search weighed and did.")
@click.option(
    "--explain-tree", type=click.Path(path_type=Path), help="PNG of the search tree; one image."
)
@click.option("--reproducible", is_flag=True, help="Leave the date out: same input, same bytes.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the sidecar instead of a table; of several images or a folder a list, with names.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only.")
@click.option("-v", "--verbose", is_flag=True, help="Print the time of each stage, too.")
@log_option
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
    anchors: tuple[str, ...],
    first_label: str | None,
    n_discs: int | None,
    explain: bool,
    explain_tree: Path | None,
    strict: bool,
    keep_refused: bool,
    reproducible: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Label the discs of IMAGES: NIfTI files, or folders of them.

    Writes a label image (one voxel per disc at its posterior tip, SCT values) and a JSON sidecar
    beside it. Every image gets a verdict: certain; check (look at the labels); or refused
    (hardly a chance to be right: nothing is written, and the exit code is 1).
    """
    which = volume_option(volume)
    paths = _find_images(images)
    if explain_tree is not None and len(paths) > 1:
        raise UsageError("--explain-tree draws the search of one image only")
    if explain and as_json:
        raise UsageError("--explain is a text for the terminal; leave --json out")
    if anchors and len(paths) > 1:
        raise UsageError("--anchor names a place in one image; label the images one by one")

    started = time.perf_counter()
    with heavy_imports():
        from ivdtool.files import NIFTI_SUFFIXES, check_place, nifti_stem
        from ivdtool.inference import load_model
        from ivdtool.labelling import Targets, label_scan, method_config
        from ivdtool.pipeline import Constraints
        from ivdtool.writers import check_replaceable, default_name

    outputs = _outputs(paths, images, output, default_name, NIFTI_SUFFIXES)
    pictures = _outputs(paths, images, qc, lambda path: f"{nifti_stem(path)}.png", (".png",))
    if output not in outputs.values():
        for target in outputs.values():
            check_replaceable(target)
    if explain_tree is not None:
        if explain_tree.suffix.lower() != ".png":
            raise UsageError(f"{explain_tree}: the search tree is a picture; give a name in .png")
        check_place(explain_tree)
    constraints = Constraints.parse(anchors, first_label, n_discs)
    loaded = load_model(model, device, threads)
    config = method_config(
        loaded.info, slices, slab_mm, normalisation, middle, constraints, keep_refused
    )
    start_up = time.perf_counter() - started

    many = len(paths) > 1 or images[0].is_dir()
    documents: list[dict[str, Any]] = []
    failures = doubtful = 0
    for path in paths:
        try:
            targets = Targets(outputs.get(path), pictures.get(path), reproducible)
            result = label_scan(path, loaded, config, which, targets)
        except Exception as error:  # noqa: BLE001 - one bad image costs no other its labels
            failure = _with_name(error, path)
            if not many:
                raise failure from failure.__cause__  # an IvdtoolError's own one stays
            complain(failure)
            documents.append({"Image": str(path), "Error": str(failure)})
            failures += 1
            continue
        log.info("%s: %d discs", path, len(result.labels.discs))
        documents.append({**({"Image": str(path)} if many else {}), **result.labels.to_dict()})
        doubtful += result.labels.verdict in DOUBTFUL[strict]
        for warning in result.labels.warnings:
            click.echo(f"Warning: {path}: {warning}", err=True)
        if not (quiet or as_json):
            _print_discs(path, result, outputs.get(path))
        if explain or explain_tree is not None:
            _explain(result, explain, explain_tree)
        if verbose:
            _print_times({"start-up": start_up, **result.seconds})
    if as_json:
        click.echo(json.dumps(documents if many else documents[0], indent=2))
    if failures:
        click.echo(f"{failures} of {len(paths)} images failed.", err=True)
    return 1 if failures or doubtful else 0


def _find_images(images: tuple[Path, ...]) -> list[Path]:
    """Files as given; folders searched for NIfTI files, label files and derivatives left out."""
    from ivdtool.bids import images_below

    found: list[Path] = []
    for path in images:
        if not path.is_dir():
            found.append(path)
            continue
        inside = images_below(path)
        if not inside:
            raise InputError(f"{path}: no .nii or .nii.gz file in this folder")
        found += inside
    return list(dict.fromkeys(found))


def _outputs(
    paths: list[Path],
    images: tuple[Path, ...],
    output: Path | None,
    name: Callable[[Path], str],
    suffixes: tuple[str, ...],
) -> dict[Path, Path]:
    """Which file each image's result goes to; a name with one of the suffixes is one file."""
    from ivdtool.files import check_place, make_folder

    if output is None:
        return {}
    name_of_file = output.name.lower()
    if name_of_file.endswith(FILE_SUFFIXES) and not output.is_dir():
        if not name_of_file.endswith(suffixes):
            raise UsageError(f"{output}: give a name in {' or '.join(suffixes)}, or a folder")
        if len(paths) > 1 or images[0].is_dir():
            raise UsageError(f"{output}: one file for {len(paths)} images; give a folder")
        check_place(output)
        return {paths[0]: output}
    targets = {path: output / name(path) for path in paths}
    if len(set(targets.values())) < len(targets):
        raise UsageError(f"{output}: images of the same name would overwrite each other's results")
    make_folder(output)
    return targets


def _with_name(error: Exception, path: Path) -> IvdtoolError:
    """The error as one that names the image: there are others, such as of too little memory."""
    if isinstance(error, IvdtoolError):
        return error
    failure = IvdtoolError(f"{path}: {type(error).__name__}: {error}")
    failure.__cause__ = error  # for the log
    return failure


def _print_discs(path: Path, result: "Result", output: Path | None) -> None:
    labels = result.labels
    verdict = f", {labels.verdict} ({labels.probability:.2f})" if labels.verdict else ""
    click.echo(f"{path}: {len(labels.discs)} discs{verdict}" + (f" -> {output}" if output else ""))
    click.echo("  value  disc           x         y         z   score  confidence")
    for disc in result.labels.discs:
        x, y, z = disc.world_mm
        click.echo(
            f"  {disc.label:>5}  {disc.name:<8} {x:9.2f} {y:9.2f} {z:9.2f}   {disc.score:5.2f}"
            f"  {disc.confidence:10.2f}"
        )


def _explain(result: "Result", to_terminal: bool, tree: Path | None) -> None:
    from ivdtool.explain import explain_search
    from ivdtool.search_tree import write_tree

    if to_terminal:
        click.echo(explain_search(result.assignment))
    if tree is not None:
        write_tree(tree, result.assignment)


def _print_times(seconds: dict[str, float]) -> None:
    stages = "  ".join(f"{stage} {1000 * value:.0f}" for stage, value in seconds.items())
    click.echo(f"  ms: {stages}  total {1000 * sum(seconds.values()):.0f}", err=True)
