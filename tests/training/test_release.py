"""From a run to the model file, with settings and calibration on it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ivdtool
from ivdtool.candidates import CandidateConfig
from ivdtool.errors import InputError, ModelError, UsageError
from ivdtool.inference import load_model
from ivdtool.label_files import read_labels
from ivdtool.metadata import Calibration
from ivdtool.pipeline import LabelConfig, label
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.reports import describe_model
from ivdtool.search import SearchConfig
from ivdtool.skeleton import Skeleton
from ivdtool.training import release
from ivdtool.training.checkpoint import load_checkpoint, save_checkpoint
from ivdtool.training.dataset import find_sources, load_case
from ivdtool.training.release import ReleaseConfig, release_model

KEEP = LabelConfig(keep_refused=True)  # a network of 80 steps is not sure of much
SETTINGS = ReleaseConfig(
    candidates=CandidateConfig(threshold=0.15),
    search=SearchConfig(chain_weight=4.0),
    notes={"licence": "CC0"},
    accuracy={"val": {"found": 0.5}},
)


@pytest.fixture(scope="module")
def model_file(trained_run: Path, spines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "neck.pt"
    release_model([trained_run / "last.pt"], path, "neck", SETTINGS, [spines])
    return path


def test_the_model_labels_what_the_run_learnt(model_file: Path, spines: Path) -> None:
    """In world coordinates, through the model file alone."""
    right = total = 0
    for source in find_sources(spines, ["val"]):
        truth = read_labels(source.labels)
        answer = {
            disc.label: disc for disc in label(source.image, model=model_file, config=KEEP).discs
        }
        for value in truth.points.keys() - truth.uncertain:
            total += 1
            right += value in answer and bool(
                np.linalg.norm(answer[value].world_mm - truth.points[value]) < 6
            )
    assert total >= 10
    assert right / total > 0.7


def test_the_model_is_the_averaged_network(
    model_file: Path, trained_run: Path, spines: Path
) -> None:
    checkpoint = load_checkpoint(trained_run / "last.pt")
    model = load_model(model_file, "cpu")
    (source, _) = find_sources(spines, ["val"])
    case = load_case(source, PreprocessingConfig(), model.info.labels)
    image = torch.from_numpy(case.planes[0].astype(np.float32))[None, None]
    with torch.inference_mode():
        expected = checkpoint.build_network()(image)[-1]
        found = model.network(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # weights of 16 bits


def test_several_networks_draw_their_mean(trained_run: Path, spines: Path, tmp_path: Path) -> None:
    first = load_checkpoint(trained_run / "last.pt")
    noise = torch.Generator().manual_seed(0)
    changed = {
        key: value * (1 + 0.05 * torch.randn(value.shape, generator=noise))
        if value.is_floating_point() and value.ndim == 4
        else value
        for key, value in first.average.items()
    }
    second = replace(first, average=changed, step=81)
    save_checkpoint(second, tmp_path / "second.pt")
    files = [trained_run / "last.pt", tmp_path / "second.pt"]
    release_model(files, tmp_path / "m.pt", "m", SETTINGS)
    model = load_model(tmp_path / "m.pt", "cpu")
    (source, _) = find_sources(spines, ["val"])
    case = load_case(source, PreprocessingConfig(), model.info.labels)
    image = torch.from_numpy(case.planes[0].astype(np.float32))[None, None]
    with torch.inference_mode():
        alone = [member.build_network()(image)[-1] for member in (first, second)]
        found = model.network(image)
    assert float((alone[0] - alone[1]).abs().max()) > 0.02
    torch.testing.assert_close(found, (alone[0] + alone[1]) / 2, rtol=0, atol=2e-3)
    assert [run["steps"] for run in model.info.training["runs"]] == [80, 81]
    assert model.info.training["licence"] == "CC0"
    described = {"name": "hourglass", "arguments": dict(first.arguments)}
    assert model.info.network == {"members": [described, described]}
    text = describe_model(model.info, model.sha256, tmp_path / "m.pt")
    assert text.count("\nrun\n") == 2
    assert text.count("hourglass {") == 2


def test_networks_that_draw_other_discs_are_not_exported_together(
    trained_run: Path, tmp_path: Path
) -> None:
    first = load_checkpoint(trained_run / "last.pt")
    changed = dict(first.config)
    changed["preprocessing"] = {**first.config["preprocessing"], "slab_mm": 12.0}
    save_checkpoint(replace(first, config=changed), tmp_path / "second.pt")
    files = [trained_run / "last.pt", tmp_path / "second.pt"]
    with pytest.raises(UsageError, match=r"second.pt: other preprocessing than .*last.pt"):
        release_model(files, tmp_path / "m.pt", "m", SETTINGS)
    assert not (tmp_path / "m.pt").exists()


def test_what_the_model_says_of_itself(model_file: Path, trained_run: Path) -> None:
    info = load_model(model_file, "cpu").info
    checkpoint = load_checkpoint(trained_run / "last.pt")
    data = json.loads((trained_run / "data.json").read_text(encoding="utf-8"))
    assert info.name == "neck"
    assert list(info.labels) == checkpoint.config["labels"]
    assert info.stride == 4
    assert info.candidates == SETTINGS.candidates
    assert info.search == SETTINGS.search
    assert info.accuracy == SETTINGS.accuracy
    assert info.training["licence"] == "CC0"
    assert info.training["sha256"] == data["sha256"]
    assert info.training["steps"] == 80
    assert "files" not in info.training
    assert info.network == {"name": "hourglass", "arguments": dict(checkpoint.arguments)}
    assert info.ivdtool == ivdtool.__version__
    skeleton = Skeleton.from_dict(checkpoint.skeleton)
    np.testing.assert_array_equal(info.skeleton.mean_mm, skeleton.mean_mm)


def test_confidence_is_calibrated(model_file: Path, spines: Path) -> None:
    """Over the windows it was fitted on, mean confidence is the share of discs that are right."""
    model = load_model(model_file, "cpu")
    calibration = model.info.calibration
    assert calibration != Calibration()
    seen = release._observe(model, [spines])
    confidence = [calibration.confidence(*evidence) for evidence in seen.discs]
    assert len(confidence) > 50
    assert np.mean(confidence) == pytest.approx(np.mean(seen.disc_right), abs=0.01)


def test_verdicts_are_fitted(model_file: Path, spines: Path) -> None:
    judge = load_model(model_file, "cpu").info.judge
    assert judge is not None
    assert 0 < judge.check <= judge.certain <= 1
    for source in find_sources(spines, ["val"]):
        labels = label(source.image, model=model_file, config=KEEP)
        assert labels.probability is not None
        assert labels.verdict != "certain" or labels.probability >= judge.certain
        assert (labels.verdict == "refused") == (labels.probability < judge.check)


def test_without_calibration_a_default_stays(trained_run: Path, tmp_path: Path) -> None:
    release_model([trained_run / "last.pt"], tmp_path / "m.pt", "m", ReleaseConfig())
    info = load_model(tmp_path / "m.pt", "cpu").info
    assert info.calibration == Calibration()
    assert info.judge is None


def test_too_little_to_calibrate_on(trained_run: Path, spines: Path, tmp_path: Path) -> None:
    deaf = replace(SETTINGS, candidates=CandidateConfig(threshold=1.0, threshold_relative=1.0))
    with pytest.raises(InputError, match=r"calibration: .* too few"):
        release_model([trained_run / "last.pt"], tmp_path / "m.pt", "m", deaf, [spines])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": {"labels": [3, 4]}}, "other labels"),
        ({"config": {}}, "labels are left open"),
        ({"config": {"speed": 1}}, "unknown setting"),
        ({"skeleton": {}}, "skeleton"),
        ({"average": {}}, "checkpoint"),
    ],
)
def test_unusable_checkpoints(
    change: dict[str, object], reason: str, trained_run: Path, tmp_path: Path
) -> None:
    checkpoint = replace(load_checkpoint(trained_run / "last.pt"), **change)  # type: ignore[arg-type]
    save_checkpoint(checkpoint, tmp_path / "changed.pt")
    with pytest.raises(ModelError, match=reason):
        release_model([tmp_path / "changed.pt"], tmp_path / "m.pt", "m", ReleaseConfig())
    assert not (tmp_path / "m.pt").exists()


def test_methods_for_comparison_are_not_exported(trained_run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained_run / "last.pt")
    path = tmp_path / "counting.pt"
    save_checkpoint(replace(checkpoint, network="counting"), path)
    with pytest.raises(ModelError, match=r"counting\.pt: network counting does not draw"):
        release_model([path], tmp_path / "model.pt", "m", ReleaseConfig())
    assert not (tmp_path / "model.pt").exists()
