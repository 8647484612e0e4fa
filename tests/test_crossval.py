"""What is held out in cross-validation is in nobody's training."""

import json
import re
from pathlib import Path

import pytest
from benchmarks import crossval

from ivdtool.bids import BidsImage, find_images
from ivdtool.config import to_toml
from ivdtool.measurement import measure_skeleton
from ivdtool.phantom_dataset import write_phantoms
from ivdtool.training.batches import BatchConfig
from ivdtool.training.checkpoint import load_checkpoint
from ivdtool.training.loop import OptimiserConfig, TrainingConfig
from ivdtool.training.run import run_training


def images() -> list[BidsImage]:
    kinds = [("a", "lumbar", 13), ("b", "lumbar", 4), ("c", "cervical", 7)]
    return [
        BidsImage(
            Path(f"sub-{source}{number:02}_T2w.nii.gz"),
            f"sub-{source}{number:02}",
            {"source": source, "region": region},
            None,
        )
        for source, region, count in kinds
        for number in range(count)
    ]


def test_patients_are_dealt_out_source_by_source() -> None:
    parts = crossval.deal_patients(images(), 5)
    assert sorted(subject for part in parts.values() for subject in part) == sorted(
        image.subject for image in images()
    )
    for source, count in (("sub-a", 13), ("sub-b", 4), ("sub-c", 7)):
        sizes = [sum(subject.startswith(source) for subject in part) for part in parts.values()]
        assert sum(sizes) == count
        assert max(sizes) - min(sizes) <= 1


def test_sources_of_necks_alone_are_not_held_out() -> None:
    parts = crossval.by_source(images())
    assert {name: len(subjects) for name, subjects in parts.items()} == {"a": 13, "b": 4}


def test_a_view_is_the_data_set_with_other_splits(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "data", 3, seed=1)
    subjects = [image.subject for image in find_images(tmp_path / "data")]
    splits = {subjects[0]: "train", subjects[1]: "test"}
    view = crossval.make_view(tmp_path / "data", splits, tmp_path / "view")
    crossval.make_view(tmp_path / "data", splits, view)  # once more changes nothing
    found = find_images(view)
    assert [image.subject for image in found] == subjects
    assert all(image.labels is not None for image in found)
    assert [image.participant["split"] for image in found] == ["train", "test", "none"]
    assert dict(crossval.participants(view)) == {**splits, subjects[2]: "none"}


def test_nobody_is_labelled_by_a_model_that_saw_him(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two patients and a template, a step of training for each part."""
    data = write_phantoms(tmp_path / "data", 3, seed=5, region="whole", spacing_mm=2.0)
    table = (data / "participants.tsv").read_text(encoding="utf-8").splitlines()
    table[1:3] = [row.replace("\twhole\t", "\tlumbar\t") for row in table[1:3]]
    (data / "participants.tsv").write_text("\n".join(table) + "\n", encoding="utf-8")
    config = TrainingConfig(
        arguments={"stacks": 1, "channels": 16},
        batch=BatchConfig(size=2, rows=64, cols=64),
        optimiser=OptimiserConfig(steps=1, steps_per_epoch=1),
        slab_offsets_mm=(0.0,),
    )
    (tmp_path / "c.toml").write_text(to_toml(config), encoding="utf-8")
    run_training([data], config, tmp_path / "initial", device="cpu")
    monkeypatch.setattr(crossval, "PARTS", 2)
    command = ["crossval", "patients", "--data", data, "--initial", tmp_path / "initial/last.pt"]
    command += ["--config", tmp_path / "c.toml", "--threads", 1, "-o", tmp_path / "out"]
    monkeypatch.setattr("sys.argv", list(map(str, command)))
    assert crossval.main() == 0
    assert re.search(r"^all +2 +46 ", capsys.readouterr().out, re.MULTILINE)
    first, second, template = (image.subject for image in find_images(data))
    for part, held_out, other in (("part0", first, second), ("part1", second, first)):
        folder = tmp_path / "out" / "patients" / part
        account = json.loads((folder / "run" / "data.json").read_text(encoding="utf-8"))
        used = {file["subject"] for file in account["files"] if file["split"] in ("train", "val")}
        assert used == {other, template}, held_out
        skeleton = load_checkpoint(folder / "last.pt").skeleton
        expected = measure_skeleton([folder / "data"], "train").to_dict()
        assert skeleton == expected != load_checkpoint(tmp_path / "initial/last.pt").skeleton
    models = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.pt")}
    assert len(models) == 2
    assert crossval.main() == 0
    assert models == {path: path.stat().st_mtime_ns for path in models}
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", [*map(str, command), "--only", "part1"])
    assert crossval.main() == 0
    assert re.search(r"^all +1 +23 ", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.setattr("sys.argv", [*map(str, command), "--only", "part9"])
    with pytest.raises(SystemExit):
        crossval.main()
    assert "--only part9: there are part0, part1" in capsys.readouterr().err
