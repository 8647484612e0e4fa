"""Data sets of phantoms: for tests, a first try, and training."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ivdtool.errors import UsageError
from ivdtool.files import atomic_write, make_folder, nifti_bytes, nifti_stem, sidecar_path
from ivdtool.phantom import REGION_DISCS, Contrast, PhantomConfig, Region, make_phantom
from ivdtool.writers import default_name

__all__ = ["random_config", "write_phantoms"]

THIN_MM = 2.5
"""Distance of the slices of phantoms that are drawn for training alone."""

_ORIENTATIONS = ("PIR", "RAS", "LAS", "PSR", "ASR", "PIL", "LPS", "PSL", "RPI", "LIA")


def random_config(
    seed: int, region: Region | None = None, contrast: Contrast | None = None
) -> PhantomConfig:
    """Draw a field of view, contrast and acquisition.

    Args:
        seed: also the seed of the phantom.
        region, contrast: fixed instead of drawn.
    """
    rng = np.random.default_rng([seed, 99])
    drawn_region = rng.choice(get_args(Region), p=[0.3, 0.25, 0.25, 0.2])
    p_t1 = 0.5 if (region or drawn_region) == "cervical" else 0.25
    rest = 1 - p_t1
    drawn_contrast = rng.choice(get_args(Contrast), p=[p_t1, 0.7 * rest, 0.18 * rest, 0.12 * rest])
    place: Region = region or drawn_region
    look: Contrast = contrast or drawn_contrast
    first, last = REGION_DISCS[place]
    top, bottom, width = rng.uniform(15, 60), rng.uniform(15, 60), rng.uniform(180, 320)
    position = rng.uniform(0.5, 0.72)
    if place == "cervical":
        last = int(rng.integers(7, 12))
        bottom = rng.uniform(6, 25)
        if look == "T1w":
            top = rng.uniform(150, 220) if rng.random() < 0.75 else rng.uniform(40, 150)
            width, position = rng.uniform(190, 270), rng.uniform(0.42, 0.6)
        else:
            top, width = rng.uniform(30, 110), rng.uniform(160, 280)
            if rng.random() < 0.15:  # the upper neck lies outside
                first, last, top = int(rng.integers(4, 7)), int(rng.integers(9, 13)), 8.0
    elif place == "thoracic":
        first, last = int(rng.integers(6, 12)), int(rng.integers(17, 21))
        top, bottom = rng.uniform(5, 40), rng.uniform(5, 40)
    elif place == "lumbar":
        first = int(rng.integers(17, 21))
        top, bottom = rng.uniform(2, 30), rng.uniform(20, 110)
        if rng.random() < 0.15:  # the sacrum lies outside
            first, last, bottom = int(rng.integers(15, 19)), int(rng.integers(22, 25)), 14.0
    else:
        top, bottom = rng.uniform(5, 150), rng.uniform(10, 90)
        if rng.random() < 0.3:
            first, last = int(rng.integers(3, 7)), int(rng.integers(22, 26))
        width = rng.uniform(220, 330)
        position = rng.uniform(0.5, 0.65)
    thickness = rng.uniform(2.8, 4.4)
    slices = int(rng.integers(11, 18))
    if rng.random() < 0.15:
        thickness, slices = rng.uniform(1, 2), int(rng.integers(24, 36))
    turn = rng.normal(0, 2.5, 3) if rng.random() < 0.35 else np.zeros(3)
    return PhantomConfig(
        seed=seed,
        region=place,
        contrast=look,
        first_label=first,
        last_label=last,
        top_mm=float(top),
        bottom_mm=float(bottom),
        width_mm=float(width),
        spine_position=float(position),
        thickness_mm=float(thickness),
        slices=slices,
        lateral_mm=float(np.clip(rng.normal(0, 4.5), -13, 13)),
        scoliosis_mm=float(rng.gamma(1.5, 1.5)),
        oblique_deg=(float(turn[0]), float(turn[1]), float(turn[2])),
        orientation=str(rng.choice(_ORIENTATIONS)),
        noise=float(rng.uniform(0.004, 0.035)),
        deface=bool(place == "cervical" and look == "T1w" and rng.random() < 0.6),
    )


_SUFFIXES = {"T1w": "T1w", "T2w": "T2w", "STIR": "acq-stir_T2w", "dixon": "acq-dixon_T2w"}
_COLUMNS = (
    "participant_id", "split", "region", "suffix", "source", "licence", "n_discs", "shape",
    "zooms_mm", "orientation",
)  # fmt: skip


def write_phantoms(
    out_dir: str | os.PathLike[str],
    count: int,
    seed: int = 0,
    *,
    region: Region | None = None,
    contrast: Contrast | None = None,
    spacing_mm: float = 1.0,
    slices: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a BIDS data set of phantoms with labels; the same arguments give the same bytes.

    Args:
        out_dir: folder to create. One that was written before is replaced, file by file.
        count: number of subjects, sub-ph000 and on.
        seed: of the first; the others count on.
        region, contrast: fixed instead of drawn.
        spacing_mm: in-plane voxel size.
        slices: so many slices of `THIN_MM` about the mid-plane of the body instead of a volume:
            all that training looks at, in a fraction of the time and space.
        progress: called with (done, count) after every subject.

    Returns:
        The folder.

    Raises:
        UsageError: `count` is not positive, a folder cannot be made, or holds images of subjects
            or contrasts that will not be replaced.
    """
    if count < 1:
        raise UsageError(f"count is {count}; it must be at least 1")
    root = Path(out_dir)
    derivatives = root / "derivatives" / "labels"
    rows = ["\t".join(_COLUMNS)]
    configs = {}
    for index in range(count):
        config = random_config(seed + index, region, contrast)
        name = f"sub-ph{index:03d}_{_SUFFIXES[config.contrast]}.nii.gz"
        configs[root / name.partition("_")[0] / "anat" / name] = config
    if others := set(root.glob("sub-*/anat/*.nii.gz")) - set(configs):
        raise UsageError(f"{min(others)}: of another data set; give a new folder")
    for index, (image, config) in enumerate(configs.items()):
        config = replace(config, spacing_mm=spacing_mm)
        if slices is not None:
            config = replace(config, slices=slices, thickness_mm=THIN_MM, lateral_mm=0.0)
        phantom = make_phantom(config)
        labels = derivatives / image.relative_to(root).with_name(default_name(image))
        _write(image, nifti_bytes(phantom.image, image))
        _write(labels, nifti_bytes(phantom.label_image(), labels))
        _write(sidecar_path(labels), phantom.sidecar())
        split = {8: "val", 9: "test"}.get(index % 10, "train")
        shape = "x".join(str(n) for n in phantom.image.shape)
        zooms = "x".join(f"{n:.2f}" for n in phantom.image.header.get_zooms())
        subject, _, suffix = nifti_stem(image).partition("_")
        row = (
            subject, split, config.region, suffix, "phantom", "CC0", str(len(phantom.discs)),
            shape, zooms, config.orientation,
        )  # fmt: skip
        rows.append("\t".join(row))
        if progress is not None:
            progress(index + 1, count)
    for folder, kind in ((root, "raw"), (derivatives, "derivative")):
        description = {
            "Name": "Synthetic spine MRI with disc labels",
            "BIDSVersion": "1.9.0",
            "DatasetType": kind,
            "License": "CC0",
            "GeneratedBy": [{"Name": "ivdtool", "Description": "ivdtool phantom"}],
        }
        _write(folder / "dataset_description.json", description)
    _write(root / "participants.tsv", ("\n".join(rows) + "\n").encode())
    return root


def _write(path: Path, content: bytes | Mapping[str, Any]) -> None:
    make_folder(path.parent)
    if not isinstance(content, bytes):
        content = (json.dumps(content, indent=1) + "\n").encode()
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
