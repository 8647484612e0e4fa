"""A folder of predicted labels scored against a labelled BIDS data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ivdtool.bids import BidsImage, find_images
from ivdtool.discs import disc_name
from ivdtool.errors import InputError, UsageError
from ivdtool.evaluation import CaseScore, Summary, score_case, summarise, summarise_levels
from ivdtool.files import find_files, nifti_stem
from ivdtool.label_files import LabelPoints, labels_by_image, read_labels
from ivdtool.reliability import Reliability, measure_reliability
from ivdtool.volumes import read_affine

__all__ = ["GROUPS", "Evaluation", "ScoredImage", "evaluate_folder", "read_truth"]

GROUPS = ("region", "contrast", "source")
"""What images are grouped by unless asked otherwise: contrast by the file's name, the others by
participants.tsv, where it has such a column."""


@dataclass(frozen=True)
class ScoredImage:
    """An image of the data set, the file of its predicted labels, and how right these are.

    Attributes:
        image: with the file of the true labels.
        prediction: None if there is none: every disc counts as missed.
        score: the figures.
    """

    image: BidsImage
    prediction: Path | None
    score: CaseScore


@dataclass(frozen=True)
class Evaluation:
    """How a folder of predictions compares with a data set.

    Attributes:
        predictions: the folder.
        dataset: the data set.
        split: the only one looked at; None for all.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        images: one by one.
        groups: summary of ``all`` images, and of each group, as ``region:lumbar``.
        levels: summary of each level by name.
        reliability: of the predicted confidence; None where there is none.
        warnings: what is odd about the predictions, one line each.
    """

    predictions: Path
    dataset: Path
    split: str | None
    resamples: int
    seed: int
    images: tuple[ScoredImage, ...]
    groups: Mapping[str, Summary]
    levels: Mapping[str, Summary]
    reliability: Reliability | None
    warnings: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the images without a prediction."""
        return tuple(own.score.case for own in self.images if own.prediction is None)


def evaluate_folder(
    predictions: Path,
    dataset: Path,
    split: str | None = None,
    by: Sequence[str] = (),
    resamples: int = 0,
    seed: int = 0,
) -> Evaluation:
    """Score label files against a BIDS data set; an image without one counts as all missed.

    Args:
        predictions: folder tree of label files named after their images.
        dataset: BIDS data set with derivatives/labels.
        split: only this split of participants.tsv.
        by: columns of participants.tsv, or ``contrast``; those of `GROUPS` by default.
        resamples: of the bootstrap intervals; 0 for none.
        seed: of the bootstrap.

    Raises:
        InputError: no image matches, two files are labels of one image, or a file is unusable.
        UsageError: participants.tsv has no such column.
    """
    images = [
        image
        for image in find_images(dataset)
        if image.labels is not None and split in (None, image.participant.get("split"))
    ]
    names = _group_names(images, by, dataset)
    found = _label_files(predictions)
    scored: list[ScoredImage] = []
    warnings: list[str] = []
    for image in images:
        truth, ignored = read_truth(image)
        if not set(truth.points) - ignored:
            continue
        stem = nifti_stem(image.path)
        prediction = _choose(found.get(stem, []), stem)
        predicted = LabelPoints({}) if prediction is None else read_labels(prediction)
        warnings += [f"{prediction}: {warning}" for warning in predicted.warnings]
        score = score_case(
            stem,
            predicted.points,
            truth.points,
            ignored,
            read_affine(image.path),
            confidence=predicted.confidence,
            subject=image.subject,
            groups={name: _group(image, name) for name in names},
        )
        scored.append(ScoredImage(image, prediction, score))
    if not scored:
        raise InputError(
            f"{dataset}: no labelled image"
            + (f" of split {split}" if split else "")
            + "; labels are looked for in its derivatives/labels"
        )
    if all(own.prediction is None for own in scored):
        raise InputError(
            f"{predictions}: no label file of any of {len(scored)} images; it is named after its "
            "image, as sub-01_T2w_label-discs_dlabel.nii.gz"
        )
    scores = [own.score for own in scored]
    groups = {"all": summarise(scores, resamples, seed)}
    for name in names:
        for value in sorted({score.groups[name] for score in scores}):
            own = [score for score in scores if score.groups[name] == value]
            groups[f"{name}:{value}"] = summarise(own, resamples, seed)
    levels = summarise_levels(scores, resamples, seed)
    judged = [
        (prediction.confidence, prediction.right)
        for score in scores
        for prediction in score.predictions
        if prediction.confidence is not None
    ]
    return Evaluation(
        predictions=predictions,
        dataset=dataset,
        split=split,
        resamples=resamples,
        seed=seed,
        images=tuple(scored),
        groups=groups,
        levels={disc_name(label): summary for label, summary in levels.items()},
        reliability=measure_reliability([c for c, _ in judged], [right for _, right in judged]),
        warnings=tuple(warnings),
    )


def read_truth(image: BidsImage) -> tuple[LabelPoints, frozenset[int]]:
    """Return the true labels of an image, and which of them count for nothing.

    Raises:
        InputError: the image has no label file, or an unusable one.
    """
    if image.labels is None:
        raise InputError(f"{image.path}: no label file in derivatives/labels")
    truth = read_labels(image.labels)
    return truth, truth.unknown | truth.uncertain


def _group_names(images: Sequence[BidsImage], by: Sequence[str], dataset: Path) -> list[str]:
    columns = {"contrast"}.union(*(image.participant for image in images))
    if unknown := [name for name in by if name not in columns]:
        raise UsageError(
            f"{dataset}: participants.tsv has no column {unknown[0]} to group by; "
            f"there are {', '.join(sorted(columns))}"
        )
    return list(dict.fromkeys(by)) or [name for name in GROUPS if name in columns]


def _group(image: BidsImage, name: str) -> str:
    if name == "contrast":
        return image.contrast
    return image.participant.get(name) or "unknown"


def _label_files(folder: Path) -> dict[str, list[Path]]:
    """Image stem to its label files in a folder tree, those of a folder by preference."""
    found: dict[str, list[Path]] = {}
    for (_, stem), paths in labels_by_image(find_files(folder, "**/*")).items():
        found.setdefault(stem, []).extend(paths)
    return found


def _choose(paths: Sequence[Path], stem: str) -> Path | None:
    folders = sorted({path.parent for path in paths})
    if len(folders) > 1:
        raise InputError(
            f"{folders[1]}: labels of {stem} are also in {folders[0]}; give the folder of one run"
        )
    return paths[0] if paths else None
