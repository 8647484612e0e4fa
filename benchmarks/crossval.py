"""How the recipe does on patients, and on hospitals, that it never saw.

    python -m benchmarks.crossval patients --data SPINE-MRI --also NECK-SLICES --also PHANTOMS \
      --initial PHANTOMS-ONLY/last.pt --config docs/recipe/fold.toml -o OUT
    python -m benchmarks.crossval sources  ...the same...

Every image of the data set that is not of region `whole` is labelled once, by a model in whose
training neither its patient (five parts, dealt out source by source) nor, for `sources`, any scan
of its source had a part; images of sources that show necks only are left out of the latter. All
models start from the same weights, which must come from data that hold nothing of the data set, and
train for as long; nothing is chosen by looking at what is held out. The mean skeleton is that of
each part's own training scans. Search weights are those of --release: they were chosen on val.

Finished parts in OUT are not done again.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ivdtool.bids import BidsImage, find_images, read_participants
from ivdtool.config import read_toml
from ivdtool.errors import NoDiscError
from ivdtool.inference import load_model
from ivdtool.labelling import Targets, label_scan, method_config
from ivdtool.measurement import measure_skeleton
from ivdtool.reports import describe_evaluation
from ivdtool.scoring import evaluate_folder
from ivdtool.training.checkpoint import load_checkpoint, save_checkpoint
from ivdtool.training.loop import TrainingConfig
from ivdtool.training.release import ReleaseConfig, release_model
from ivdtool.training.run import run_training
from ivdtool.writers import default_name

PARTS = 5
ALWAYS_TRAIN = "whole"  # region of the template: no patient's scan


def deal_patients(images: Sequence[BidsImage], parts: int) -> dict[str, set[str]]:
    """Return the subjects of each part, every source spread evenly over the parts."""
    dealt: dict[str, set[str]] = {f"part{part}": set() for part in range(parts)}
    ordered = sorted(
        {(image.participant["source"], image.subject) for image in images}
    )  # subjects in a row may be alike, e.g. of one scanner: they go to different parts
    for number, (_, subject) in enumerate(ordered):
        dealt[f"part{number % parts}"].add(subject)
    return dealt


def by_source(images: Sequence[BidsImage], region: str = "lumbar") -> dict[str, set[str]]:
    """Return the subjects of each source that shows `region`."""
    found: dict[str, set[str]] = {}
    for image in images:
        if image.participant["region"] == region:
            found.setdefault(image.participant["source"], set()).add(image.subject)
    return dict(sorted(found.items()))


def make_view(dataset: Path, splits: Mapping[str, str], view: Path) -> Path:
    """Make a data set of links whose subjects have other splits; the others are in none."""
    view.mkdir(parents=True, exist_ok=True)
    for entry in dataset.iterdir():
        link = view / entry.name
        if entry.name != "participants.tsv" and not link.is_symlink():
            link.symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
    rows = read_participants(dataset)
    with (view / "participants.tsv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, rows[0], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "split": splits.get(row["participant_id"], "none")})
    return view


def participants(dataset: Path) -> Iterator[tuple[str, str]]:
    """Yield subject and split."""
    for row in read_participants(dataset):
        yield row["participant_id"], row["split"]


def train_part(arguments: argparse.Namespace, view: Path, folder: Path) -> Path:
    """Train on the view's train split and the other data sets'; return the model's file."""
    model = folder / "model.pt"
    if model.is_file():
        return model
    datasets = [view]
    for number, dataset in enumerate(arguments.also):
        # their val split would be labelled after every epoch, for nothing
        train = {subject: split for subject, split in participants(dataset) if split == "train"}
        datasets.append(make_view(dataset, train, folder / f"also{number}"))
    run = folder / "run"
    started = run / "last.pt"
    run_training(
        datasets,
        read_toml(TrainingConfig, arguments.config),
        run,
        device="cpu",
        threads=arguments.threads,
        cache=arguments.output / "slab-cache",
        initial=() if started.exists() else (arguments.initial,),
        resume=started.exists(),
    )
    last = load_checkpoint(started)
    own = measure_skeleton([view], "train")
    assert own.labels == tuple(last.config["labels"])
    save_checkpoint(replace(last, skeleton=own.to_dict()), folder / "last.pt")
    release_model(
        [folder / "last.pt"], model, folder.name, read_toml(ReleaseConfig, arguments.release)
    )
    return model


def label_part(model_file: Path, images: Sequence[BidsImage], folder: Path, threads: int) -> None:
    """Label what was held out."""
    model = load_model(str(model_file), "cpu", threads)
    config = method_config(model.info)
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        try:
            label_scan(
                image.path, model, config, targets=Targets(folder / default_name(image.path))
            )
        except NoDiscError as error:
            print(error, file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("held_out", choices=["patients", "sources"])
    parser.add_argument("--data", type=Path, required=True, help="BIDS data set")
    parser.add_argument("--also", type=Path, action="append", default=[], help="always trained on")
    parser.add_argument("--initial", type=Path, required=True, help="checkpoint of other data")
    parser.add_argument("--config", type=Path, required=True, help="settings of the training")
    parser.add_argument("--release", type=Path, default=Path("docs/release.toml"))
    parser.add_argument("--only", action="append", help="of the parts or sources, this one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    images = [image for image in find_images(arguments.data) if image.labels is not None]
    own = [image for image in images if image.participant["region"] != ALWAYS_TRAIN]
    parts = deal_patients(own, PARTS) if arguments.held_out == "patients" else by_source(own)
    if unknown := set(arguments.only or ()) - parts.keys():
        parser.error(f"--only {min(unknown)}: there are {', '.join(parts)}")
    parts = {name: parts[name] for name in arguments.only or parts}
    labels = arguments.output / arguments.held_out / "labels"
    for name, subjects in parts.items():
        print(f"{name}: {len(subjects)} subjects held out", file=sys.stderr)
        folder = arguments.output / arguments.held_out / name
        splits = {
            image.subject: "test" if image.subject in subjects else "train" for image in images
        }
        model = train_part(arguments, make_view(arguments.data, splits, folder / "data"), folder)
        held_out = [image for image in own if image.subject in subjects]
        label_part(model, held_out, labels / name, arguments.threads)
    tested = {subject: "test" for subjects in parts.values() for subject in subjects}
    view = make_view(arguments.data, tested, arguments.output / arguments.held_out / "data")
    print(describe_evaluation(evaluate_folder(labels, view, "test", resamples=2000)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
