"""The settings that come with the package: each one trains, and what it trained finds discs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ivdtool.config import read_toml
from ivdtool.errors import ModelError, UsageError
from ivdtool.methods.registry import load_predictor
from ivdtool.skeleton import Skeleton
from ivdtool.training.checkpoint import load_checkpoint, save_checkpoint
from ivdtool.training.dataset import find_sources, load_case
from ivdtool.training.loop import TrainingConfig
from ivdtool.training.presets import preset_names, preset_text, read_settings
from ivdtool.training.run import run_training
from ivdtool.training.validation import validate

PAPERS = [
    "paper-attention",
    "paper-counting",
    "paper-hca",
    "paper-hca-noskeleton",
    "paper-hourglass",
    "paper-lookonce",
    "paper-template",
]


def test_names() -> None:
    assert preset_names() == [*PAPERS, "robust"]


@pytest.mark.parametrize("name", preset_names())
def test_what_is_printed_is_what_is_read(name: str, tmp_path: Path) -> None:
    text = preset_text(name)
    assert text.startswith("# ")
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    assert read_settings(path) == read_settings(name) == read_toml(TrainingConfig, path)


def test_rows_of_the_papers_table_differ_in_what_their_names_say() -> None:
    plain, attention = read_settings("paper-hourglass"), read_settings("paper-attention")
    assert attention == replace(plain, arguments={**plain.arguments, "attention": True})
    full, without = read_settings("paper-hca"), read_settings("paper-hca-noskeleton")
    assert full.loss.skeleton_weight == 2e-4
    assert without == replace(full, loss=replace(full.loss, skeleton_weight=0.0))


def test_what_the_papers_state() -> None:
    """Paper 1: 2 stacks, Adam, 150 epochs; paper 2: RMSprop, 500; both: rate, batch, slices."""
    for name, algorithm, epochs in (("attention", "adam", 150), ("hca", "rmsprop", 500)):
        config = read_settings(f"paper-{name}")
        assert (config.optimiser.algorithm, config.optimiser.epochs) == (algorithm, epochs)
        assert config.optimiser.learning_rate == 2.5e-4
        assert config.batch.size == 4
        assert config.batch.sigma_mm**2 == pytest.approx(5, rel=1e-3)  # pixels of 1 mm
        assert config.preprocessing.slices == 6
        assert config.preprocessing.normalisation == "minmax"
        assert config.loss.disc_weight == 0
        assert not config.loss.supervise_absent


def test_papers_do_not_augment() -> None:
    for name in PAPERS[:-1]:
        augmentation = read_settings(name).augmentation
        changing = {key: value for key, value in vars(augmentation).items() if value not in (0, 1)}
        assert set(changing) == {"min_rows_mm"}  # of cuts that do not happen


@pytest.mark.parametrize("name", sorted({*preset_names()} - {"paper-template"}))
def test_one_step(name: str, spines: Path, tmp_path: Path) -> None:
    """Of full size, but for the images; narrower networks where two differ in settings only."""
    config = read_settings(name)
    narrow = {"channels": 64} if name in ("paper-hourglass", "paper-hca-noskeleton") else {}
    config = replace(
        config,
        arguments={**config.arguments, **narrow},
        slab_offsets_mm=(0.0,),
        batch=replace(config.batch, size=2, rows=64, cols=64),
        optimiser=replace(config.optimiser, steps=1, epochs=None),
    )
    last = run_training([spines], config, tmp_path / "run", device="cpu")
    predictor = load_predictor(last)
    assert predictor.preprocessing == config.preprocessing
    source = find_sources(spines, ["val"])[0]
    case = load_case(source, predictor.preprocessing, predictor.skeleton.labels)
    found = predictor.predict(case.planes[0].astype(np.float32))
    assert set(found) <= set(predictor.skeleton.labels)


def test_templates_are_learnt_at_once(spines: Path, tmp_path: Path) -> None:
    """The val images are those of training."""
    last = run_training([spines], read_settings("paper-template"), tmp_path / "run", device="cpu")
    predictor = load_predictor(last)
    cases = [
        load_case(source, predictor.preprocessing, predictor.skeleton.labels)
        for source in find_sources(spines, ["val"])
    ]
    assert validate(predictor.predict, cases)["found"] > 0.6
    searching = load_predictor(last, search=True)
    assert validate(searching.predict, cases)["found"] > 0.8


def test_unknown_presets(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no preset is called 'papers'; known are .*robust"):
        read_settings("papers")
    with pytest.raises(UsageError, match="No such file"):
        read_settings(tmp_path / "papers.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('target = "heatmaps"', "wants loss.target 'counts'"),
        ('target = "discs"', "must be one of heatmaps, counts, candidates"),
    ],
)
def test_a_network_wants_its_own_target(change: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(preset_text("paper-counting").replace('target = "counts"', change))
    with pytest.raises(UsageError, match=message):
        read_settings(path)


def test_checkpoints_that_no_method_can_use(trained_run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained_run / "last.pt")
    odd = replace(checkpoint, config={**checkpoint.config, "seeds": 3})
    path = tmp_path / "odd.pt"
    save_checkpoint(odd, path)
    with pytest.raises(ModelError, match=r"odd\.pt: unusable settings: unknown setting seeds"):
        load_predictor(path)
    assert load_predictor(trained_run / "best.pt").skeleton.to_dict() == dict(checkpoint.skeleton)
    assert isinstance(load_predictor(trained_run / "best.pt").skeleton, Skeleton)
