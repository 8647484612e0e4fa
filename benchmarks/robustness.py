"""How labels hold where images get worse, and whether the verdict says so where they do not.

    python -m benchmarks.robustness --data ../shared/data/spine-mri --split val [--json]

Every labelled volume of the split is changed in each of the ways of `CHANGES`, seeded by image and
change, and goes through the whole pipeline. A disc is found where its label lies within 5 mm in the
sagittal plane. An image is wrong where a disc in view is not found or a label lies elsewhere, and
shifted where another level's label lies on at least half of its discs. What is annotated as
uncertain or unknown, and discs within 4 mm of the border of the field, count for nothing.
"""

import argparse
import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from nibabel.affines import apply_affine
from scipy import ndimage

from ivdtool.errors import NoDiscError
from ivdtool.evaluation import TOLERANCE_MM
from ivdtool.inference import Model, load_model
from ivdtool.label_files import LabelPoints, read_labels
from ivdtool.labels import DiscLabels
from ivdtool.pipeline import LabelConfig, label_discs
from ivdtool.reliability import measure_reliability
from ivdtool.training.dataset import UNSURE_MM, Source, find_sources
from ivdtool.volumes import Volume, read_volume

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Scan:
    """A volume as the changes see it.

    Attributes:
        data: (slices, rows, columns) float32, axes as stored but for their order.
        zooms_mm: (3,) of these axes.
        points: (N, 3) of the annotated discs, index into `data`.
        inside_mm: (N,) distance to the border of the field, in the sagittal plane.
        offset: (3,) index of voxel 0 in the volume.
        step: (3,) voxels of the volume per voxel.
    """

    data: Array
    zooms_mm: Array
    points: Array
    inside_mm: Array
    offset: Array
    step: Array


Change = Callable[[Scan, np.random.Generator], Scan | None]  # None: nothing to change


def invert(scan: Scan, rng: np.random.Generator) -> Scan:
    """Inverted contrast; air stays dark, as a sequence would have it."""
    del rng
    high = np.percentile(scan.data, 99.5)
    tissue = scan.data > 0.05 * high
    return replace(scan, data=np.where(tissue, (high - scan.data).clip(0), 0).astype(np.float32))


def invert_all(scan: Scan, rng: np.random.Generator) -> Scan:
    """Inverted contrast, air as well."""
    del rng
    high = np.percentile(scan.data, 99.5)
    return replace(scan, data=(high - scan.data).clip(0))


def add_noise(share: float) -> Change:
    """Rician noise with a standard deviation of that share of the range."""

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        sd = share * np.percentile(scan.data, 99.5)
        real, imaginary = rng.normal(0, sd, (2, *scan.data.shape))
        return replace(scan, data=np.hypot(scan.data + real, imaginary).astype(np.float32))

    return change


def blur(sd_mm: float) -> Change:
    """Gaussian, in the sagittal plane."""

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        del rng
        sd = [0, *(sd_mm / scan.zooms_mm[1:])]
        return replace(scan, data=ndimage.gaussian_filter(scan.data, sd))

    return change


def add_bias(strength: float) -> Change:
    """A smooth gain whose logarithm has this standard deviation, as of a surface coil."""

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        knots = rng.normal(0, strength, (4, 4))
        rows, cols = scan.data.shape[1:]
        where = np.meshgrid(np.linspace(0, 3, rows), np.linspace(0, 3, cols), indexing="ij")
        gain = np.exp(ndimage.map_coordinates(knots, where, order=3, mode="nearest"))
        return replace(scan, data=(scan.data * gain).astype(np.float32))

    return change


def thicken(scan: Scan, rng: np.random.Generator) -> Scan | None:
    """Slices twice as thick, where there are several."""
    del rng
    pairs = len(scan.data) // 2
    if pairs < 1:
        return None
    thick = scan.data[: 2 * pairs].reshape(pairs, 2, *scan.data.shape[1:]).mean(axis=1)
    return replace(
        scan,
        data=thick,
        zooms_mm=scan.zooms_mm * [2, 1, 1],
        points=(scan.points - [0.5, 0, 0]) / [2, 1, 1],
        offset=scan.offset + [0.5, 0, 0],
        step=scan.step * [2, 1, 1],
    )


def rotate(degrees: float) -> Change:
    """Turned about the middle of the discs in the sagittal plane, on the same grid."""

    def change(scan: Scan, rng: np.random.Generator) -> Scan:
        del rng
        angle, zooms = math.radians(degrees), scan.zooms_mm[1:]
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        to_source = np.diag(1 / zooms) @ turn @ np.diag(zooms)  # rows, columns
        middle = scan.points[:, 1:].mean(axis=0)
        data = np.stack(
            [
                ndimage.affine_transform(image, to_source, middle - to_source @ middle, order=1)
                for image in scan.data
            ]
        )
        points = scan.points.copy()
        points[:, 1:] = (points[:, 1:] - middle) @ np.linalg.inv(to_source).T + middle
        inside = np.minimum(scan.inside_mm, border_mm(points, data.shape, scan.zooms_mm))
        return replace(scan, data=data, points=points, inside_mm=inside)

    return change


def crop(count: int) -> Change:
    """The rows of so many neighbouring discs of more; half a step is left at either end."""

    def change(scan: Scan, rng: np.random.Generator) -> Scan | None:
        rows = np.sort(scan.points[:, 1])
        if len(rows) <= count:
            return None
        first = int(rng.integers(len(rows) - count + 1))
        middles = (rows[1:] + rows[:-1]) / 2
        ends = np.concatenate([[1.5 * rows[0] - 0.5 * rows[1]], middles])
        ends = np.append(ends, 1.5 * rows[-1] - 0.5 * rows[-2])
        low, high = (int(np.clip(n, 0, scan.data.shape[1])) for n in ends[[first, first + count]])
        data = scan.data[:, low:high]
        points = scan.points - [0, low, 0]
        return replace(
            scan,
            data=data,
            points=points,
            inside_mm=np.minimum(scan.inside_mm, border_mm(points, data.shape, scan.zooms_mm)),
            offset=scan.offset + [0, low, 0],
        )

    return change


CHANGES: dict[str, Change] = {
    "as given": lambda scan, _: scan,
    "inverted": invert,
    "inverted, air too": invert_all,
    "noise 5 %": add_noise(0.05),
    "noise 10 %": add_noise(0.10),
    "blur 1 mm": blur(1.0),
    "blur 2 mm": blur(2.0),
    "bias": add_bias(0.5),
    "slices 2x coarser": thicken,
    "rotated -20 deg": rotate(-20),
    "rotated -10 deg": rotate(-10),
    "rotated 10 deg": rotate(10),
    "rotated 20 deg": rotate(20),
    "crop of 4 discs": crop(4),
    "crop of 5 discs": crop(5),
    "crop of 6 discs": crop(6),
}


def border_mm(points: Array, shape: Sequence[int], zooms_mm: Array) -> Array:
    """(N,) distance of points to the border of the field of view in the sagittal plane."""
    before, after = points[:, 1:] + 0.5, np.array(shape)[1:] - 0.5 - points[:, 1:]
    inside: Array = (np.minimum(before, after) * zooms_mm[1:]).min(axis=1)
    return inside


def change_volume(
    volume: Volume, points: Mapping[int, Array], change: Change, rng: np.random.Generator
) -> tuple[Volume, Scan] | None:
    """Return the changed volume, and the changed places of the discs in it, or None."""
    order = [axis for axis, _ in volume.axes]
    order = [order[0], order[2], order[1]]  # slices, rows, columns
    data = volume.data.transpose(order).astype(np.float32) * volume.slope + volume.inter
    world = np.array(list(points.values()))
    voxels = apply_affine(np.linalg.inv(volume.affine), world)[:, order]
    zooms = volume.zooms_mm[order]
    inside = border_mm(voxels, data.shape, zooms)
    given = Scan(data, zooms, voxels, inside, np.zeros(3), np.ones(3))
    scan = change(given, rng)
    if scan is None:
        return None
    back = np.argsort(order)
    placed = np.eye(4)
    placed[:3, :3], placed[:3, 3] = np.diag(scan.step[back]), scan.offset[back]
    changed = replace(
        volume,
        data=np.ascontiguousarray(scan.data.transpose(back)),
        slope=1.0,
        inter=0.0,
        affine=volume.affine @ placed,
    )
    return changed, scan


@dataclass(frozen=True)
class Outcome:
    """What became of one changed image.

    Attributes:
        image: its name.
        change: one of `CHANGES`.
        discs: annotated discs in view.
        found: of these.
        false: labels on no disc, or not their own.
        shifted: another level's label lies on at least half of the discs.
        verdict: on the image; "refused" where no disc was found, "none" of a model without.
        probability: that all is right.
        confidences: confidence of each label that counts, and whether it is right.
    """

    image: str
    change: str
    discs: int
    found: int
    false: int
    shifted: bool
    verdict: str
    probability: float
    confidences: tuple[tuple[float, bool], ...]

    @property
    def right(self) -> bool:
        """Every disc found, and no label elsewhere."""
        return self.found == self.discs and self.false == 0

    @property
    def flagged(self) -> bool:
        """Whether the verdict warns."""
        return self.verdict != "certain"


def judge(
    image: str,
    change: str,
    labels: DiscLabels | None,
    volume: Volume,
    scan: Scan,
    truth: LabelPoints,
) -> Outcome:
    """Compare labels with the reference, both in the changed volume."""
    order = [axis for axis, _ in volume.axes]
    plane, zooms = [order[2], order[1]], volume.zooms_mm[[order[2], order[1]]]
    known = dict(
        zip(truth.points, zip(scan.points[:, 1:], scan.inside_mm, strict=True), strict=True)
    )
    doubtful = set(truth.unknown) | set(truth.uncertain)
    doubtful |= {label for label, (_, inside) in known.items() if abs(inside) <= UNSURE_MM}
    wanted = {
        label: point
        for label, (point, inside) in known.items()
        if inside > UNSURE_MM and label not in doubtful
    }
    found = {} if labels is None else {disc.label: disc.voxel[plane] for disc in labels.discs}

    def near(a: Array, b: Array) -> bool:
        return bool(np.linalg.norm((a - b) * zooms) <= TOLERANCE_MM)

    right = {label for label in wanted if label in found and near(found[label], wanted[label])}
    other = [
        any(near(place, point) for name, place in found.items() if name != label)
        for label, point in wanted.items()
    ]
    counted = [] if labels is None else [d for d in labels.discs if d.label not in doubtful]
    return Outcome(
        image=image,
        change=change,
        discs=len(wanted),
        found=len(right),
        false=sum(disc.label not in right for disc in counted),
        shifted=sum(other) * 2 >= len(wanted) > 0,
        verdict="refused" if labels is None else labels.verdict or "none",
        probability=0.0 if labels is None or labels.probability is None else labels.probability,
        confidences=tuple((disc.confidence, disc.label in right) for disc in counted),
    )


def label_changed(model: Model, source: Source) -> Iterator[Outcome]:
    """Yield the outcome of every change of one image."""
    volume, truth = read_volume(source.image, volume=0), read_labels(source.labels)
    name = source.image.name
    for change_name, change in CHANGES.items():
        rng = np.random.default_rng([zlib.crc32(word.encode()) for word in (name, change_name)])
        changed = change_volume(volume, truth.points, change, rng)
        if changed is None:
            continue
        scan_volume, scan = changed
        try:
            # what is refused is looked at, too: was it wrong?
            labels = label_discs(scan_volume, model, LabelConfig(keep_refused=True)).labels
        except NoDiscError:
            labels = None
        yield judge(name, change_name, labels, scan_volume, scan, truth)


def summarise(outcomes: Sequence[Outcome]) -> dict[str, float | int | None]:
    """Return the figures of some images."""
    right = [outcome for outcome in outcomes if outcome.right]
    wrong = [outcome for outcome in outcomes if not outcome.right]
    discs = sum(outcome.discs for outcome in outcomes)
    return {
        "images": len(outcomes),
        "discs": discs,
        "found_pct": _percent(sum(outcome.found for outcome in outcomes), discs),
        "false_pct": _percent(sum(outcome.false for outcome in outcomes), discs),
        "shifted_pct": _percent(sum(outcome.shifted for outcome in outcomes), len(outcomes)),
        "right": len(right),
        "wrong": len(wrong),
        "wrong_flagged": sum(outcome.flagged for outcome in wrong),
        "wrong_flagged_pct": _percent(sum(outcome.flagged for outcome in wrong), len(wrong)),
        "right_flagged": sum(outcome.flagged for outcome in right),
        "right_flagged_pct": _percent(sum(outcome.flagged for outcome in right), len(right)),
        "right_refused": sum(outcome.verdict == "refused" for outcome in right),
        "wrong_refused": sum(outcome.verdict == "refused" for outcome in wrong),
    }


def calibration_error(outcomes: Sequence[Outcome]) -> float:
    """Return the expected calibration error of the discs' confidence, 10 bins."""
    pairs = [pair for outcome in outcomes for pair in outcome.confidences]
    measured = measure_reliability([said for said, _ in pairs], [right for _, right in pairs])
    return math.nan if measured is None else measured.ece


def image_calibration_error(outcomes: Sequence[Outcome]) -> float:
    """Return that of the images' probability."""
    measured = measure_reliability(
        [outcome.probability for outcome in outcomes], [outcome.right for outcome in outcomes]
    )
    return math.nan if measured is None else measured.ece


def _percent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 1) if whole else None


COLUMNS = {
    "images": "images",
    "discs": "discs",
    "found_pct": "found %",
    "false_pct": "false %",
    "shifted_pct": "shifted %",
    "right": "all right",
    "wrong_flagged": "wrong flagged",
    "right_flagged": "right flagged",
    "right_refused": "right refused",
}


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the table: a row per change, then all of them, and the calibration error."""
    lines = ["| change | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in [*CHANGES, "all"]:
        figures = summarise([outcome for outcome in outcomes if name in (outcome.change, "all")])
        if not figures["images"]:
            continue
        of = {"wrong_flagged": figures["wrong"], "right_flagged": figures["right"]}
        cells = [
            f"{figures[key]}/{of[key]}" if key in of else "-" if figures[key] is None
            else str(figures[key])
            for key in COLUMNS
        ]  # fmt: skip
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    total = summarise(outcomes)
    summary = (
        f"Of the wrong images {total['wrong_flagged_pct']} % are flagged, of the right ones "
        f"{total['right_flagged_pct']} %. Expected calibration error of the discs' confidence, "
        f"10 bins: {calibration_error(outcomes):.3f}; of the images' probability: "
        f"{image_calibration_error(outcomes):.3f}."
    )
    lines += ["", summary]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True, help="BIDS data set")
    parser.add_argument("--split", default="val", choices=["train", "val", "test"])
    parser.add_argument("--model", help="name or file; the one inside the package by default")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="print every outcome, too")
    arguments = parser.parse_args()
    model = load_model(arguments.model, "cpu", arguments.threads)
    outcomes: list[Outcome] = []
    for folder in arguments.data:
        for source in find_sources(folder, [arguments.split]):
            print(source.image.name, file=sys.stderr)
            outcomes += label_changed(model, source)
    if arguments.json:
        groups = {
            name: summarise([o for o in outcomes if name in (o.change, "all")])
            for name in [*CHANGES, "all"]
        }
        errors = {"discs": calibration_error(outcomes), "images": image_calibration_error(outcomes)}
        document = {
            "changes": groups,
            "calibration_error": errors,
            "outcomes": [asdict(outcome) for outcome in outcomes],
        }
        print(json.dumps(document, indent=1))
    else:
        print(to_markdown(outcomes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
