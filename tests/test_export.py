"""Model files: what is exported is what is loaded, and nothing else is."""

import hashlib
import io
import itertools
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ivdtool.candidates import CandidateConfig
from ivdtool.errors import ModelError, UsageError
from ivdtool.export import export_model
from ivdtool.inference import INFO_FILE, Model, load_model
from ivdtool.metadata import Calibration, ModelInfo
from ivdtool.model import build_network
from ivdtool.modelfile import model_path
from ivdtool.networks.blocks import Norm
from ivdtool.preprocessing import Grid, Image, PreprocessingConfig
from ivdtool.search import SearchConfig
from ivdtool.skeleton import Skeleton

torch.set_num_threads(1)

LABELS = (20, 21, 22)
SKELETON = Skeleton(
    LABELS,
    np.array([[0, 0], [35.25, 1], [71.5, 2.75]]),
    np.array([1.5, 2, 2.5]),
    np.array([1.25, 1.75]),
    np.array([0, 0.125, 0.5]),
)
INFO = ModelInfo(
    name="small",
    labels=LABELS,
    stride=4,
    skeleton=SKELETON,
    preprocessing=PreprocessingConfig(slab_mm=8.0, normalisation="minmax"),
    candidates=CandidateConfig(threshold=0.25),
    search=SearchConfig(chain_weight=2.5),
    calibration=Calibration(-1.0, 2.0, 0.25, 1.5),
    network={"name": "hourglass", "arguments": {"n_labels": 3, "stacks": 2, "channels": 16}},
    training={"steps": 7, "sha256": "00ff"},
    accuracy={"val": {"found": 0.5}},
    ivdtool="9.9",
)


def make_network(name: str = "hourglass") -> nn.Module:
    torch.manual_seed(0)
    network = build_network(name, {"n_labels": 3, "stacks": 2, "channels": 16})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: not 0 and 1
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return network.eval()


def make_image(seed: int, spacing_mm: tuple[float, float] = (1.0, 1.0)) -> Image:
    pixels = np.random.default_rng(seed).random((128, 64), dtype=np.float32)
    return Image(pixels, Grid((128, 64), spacing_mm, np.eye(4), np.eye(4)))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "small.pt"
    export_model(make_network(), INFO, path)
    return path


@pytest.fixture(scope="module")
def model(model_file: Path) -> Model:
    return load_model(model_file, "cpu")


@pytest.mark.parametrize("name", ["hourglass", "hca"])
def test_predicts_the_last_heatmaps(name: str, tmp_path: Path) -> None:
    network = make_network(name)
    path = tmp_path / "m.pt"
    export_model(network, INFO, path)
    images = [make_image(1, (1.0, 0.5)), make_image(2)]
    with torch.inference_mode():
        expected = network(torch.from_numpy(np.stack([i.pixels for i in images])[:, None]))
    found = load_model(path, "cpu").predict(images)
    assert [heatmaps.spacing_mm for heatmaps in found] == [(4.0, 2.0), (4.0, 4.0)]
    for index, heatmaps in enumerate(found):
        assert heatmaps.labels == LABELS
        assert heatmaps.stride == 4
        assert heatmaps.values.dtype == np.float32
        assert heatmaps.values.flags.c_contiguous
        # weights are rounded to 16 bits
        np.testing.assert_allclose(heatmaps.values, expected[-1][index], rtol=0, atol=5e-4)
        # the first stack's would be told apart
        assert not np.allclose(heatmaps.values, expected[0][index], atol=1e-3)


def test_normalisation_is_folded(model: Model, tmp_path: Path) -> None:
    """Into the convolution before it; what is left is one operation each, without branches."""
    network = make_network()
    weights = [value.clone() for value in network.state_dict().values()]
    children = [list(module.children()) for module in network.modules()]
    pairs = sum(
        isinstance(before, nn.Conv2d) and isinstance(norm, Norm)
        for row in children
        for before, norm in itertools.pairwise(row)
    )
    norms = sum(isinstance(module, Norm) for module in network.modules())
    assert 0 < pairs < norms
    code = str(model.network.inlined_graph)
    assert code.count("aten::batch_norm") == norms - pairs
    assert "expected 4D input" not in code
    export_model(network, INFO, tmp_path / "m.pt")
    assert all(map(torch.equal, weights, network.state_dict().values()))


def test_predict_repeats(model: Model, model_file: Path) -> None:
    image = make_image(3)
    first, second = (model.predict([image])[0].values.tobytes() for _ in range(2))
    other = load_model(model_file, "cpu").predict([image])[0].values.tobytes()
    assert first == second == other


def test_the_file_says_all_that_inference_needs(model: Model) -> None:
    assert json.loads(model.info.to_json()) == json.loads(INFO.to_json())
    assert model.info.search == INFO.search
    assert model.info.preprocessing == INFO.preprocessing
    assert model.info.candidates == INFO.candidates
    assert model.info.calibration == INFO.calibration
    np.testing.assert_array_equal(model.info.skeleton.mean_mm, SKELETON.mean_mm)


def test_sha256_names_the_file(model: Model, model_file: Path) -> None:
    assert model.sha256 == hashlib.sha256(model_file.read_bytes()).hexdigest()


def test_the_file_names_no_source_file(model_file: Path) -> None:
    """TorchScript keeps the paths of the sources, and with them of a home folder."""
    with zipfile.ZipFile(model_file) as archive:
        assert archive.testzip() is None
        content = b"".join(archive.read(name) for name in archive.namelist())
    for name in (b"blocks.py", b"hourglass.py"):
        assert name not in content
    assert str(Path(__file__).parents[1]).encode() not in content


def test_old_file_stays_when_export_fails(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        export_model(_Unscriptable(), INFO, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UsageError, match="output folder missing"):
        export_model(make_network(), INFO, tmp_path / "no" / "m.pt")


class _Unscriptable(nn.Module):
    def forward(self, image: Any) -> Any:
        return [sorted(image, key=id)]


def other_zip(good: bytes) -> bytes:  # noqa: ARG001
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("folder/readme.txt", "nothing here")
    return content.getvalue()


def flipped(good: bytes) -> bytes:
    """One bit of a weight: torch itself would load this and give other heatmaps."""
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    position = largest.header_offset + largest.file_size // 2
    return good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]


def rewritten(good: bytes, info: bytes | None) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as source, zipfile.ZipFile(content, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(INFO_FILE):
                target.writestr(entry, source.read(entry))
            elif info is not None:
                target.writestr(entry.filename, info)
    return content.getvalue()


def changed_info(**changes: Any) -> bytes:
    return json.dumps({**json.loads(INFO.to_json()), **changes}).encode()


def test_a_checkpoint_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match=r"a checkpoint of training.*`ivdtool export`") as caught:
        load_model(path, "cpu")
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda good: b"", "not a zip"),
        (lambda good: b"not a model\n" * 50, "not a zip"),
        (lambda good: pickle.dumps({"a": 1}), "not a zip"),
        (lambda good: good[: len(good) // 2], "not a zip"),
        (lambda good: good[:-10], "not a zip"),
        (flipped, "checksum of"),
        (other_zip, "version"),
        (lambda good: rewritten(good, None), f"no {INFO_FILE}"),
        (lambda good: rewritten(good, b"{"), "property name"),
        (lambda good: rewritten(good, b"[]"), "schema 1"),
        (lambda good: rewritten(good, b'{"name": "\xff"}'), "codec"),
        (lambda good: rewritten(good, changed_info(schema=2)), "schema 1"),
        (lambda good: rewritten(good, changed_info(labels=[20, 21])), "other labels"),
        (lambda good: rewritten(good, changed_info(search={"speed": 1})), "unknown setting"),
        (lambda good: rewritten(good, changed_info(preprocessing=[])), "must be a table"),
    ],
)
def test_damaged_files(
    damage: Callable[[bytes], bytes], reason: str, model_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.pt"
    path.write_bytes(damage(model_file.read_bytes()))
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(path, "cpu")
    assert caught.value.exit_code == 4
    assert str(caught.value).startswith(f"{path}: damaged or not an ivdtool model file (")
    assert "\n" not in str(caught.value)


def test_rewriting_alone_does_no_damage(model_file: Path, tmp_path: Path) -> None:
    """What `test_damaged_files` finds is the damage."""
    path = tmp_path / "same.pt"
    path.write_bytes(rewritten(model_file.read_bytes(), INFO.to_json().encode()))
    assert load_model(path, "cpu").info.name == "small"


def test_missing_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model file"):
        load_model(tmp_path / "none.pt")
    with pytest.raises(ModelError, match="no such model file"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="no model is called 'none'"):
        model_path("none")


def test_missing_device(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="CUDA"):
        load_model(model_file, "cuda")
    assert load_model(model_file, "auto").device == torch.device("cpu")


def test_threads(model_file: Path) -> None:
    try:
        load_model(model_file, "cpu", threads=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
