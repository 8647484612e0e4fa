"""Settings come from TOML files: every mistake in one is told, and nothing is lost on the way."""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from ivdtool.candidates import CandidateConfig
from ivdtool.config import from_dict, read_toml, to_dict, to_toml
from ivdtool.errors import UsageError
from ivdtool.plane import PlaneConfig
from ivdtool.preprocessing import PreprocessingConfig
from ivdtool.search import SearchConfig
from ivdtool.training.loop import OptimiserConfig, TrainingConfig


@dataclass(frozen=True)
class Inner:
    size: int = 3
    flag: bool = False


@dataclass(frozen=True)
class Outer:
    ratio: float = 0.5
    name: str = "plain"
    kind: Literal["a", "b"] = "a"
    limit: int | None = None
    span: tuple[float, ...] = (0.0, 1.0)
    pair: tuple[int, int] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.ratio < 0:
            raise ValueError(f"ratio must not be negative, not {self.ratio}")


def test_nothing_given() -> None:
    assert from_dict(Outer, {}) == Outer()


def test_all_given() -> None:
    text = """
    ratio = 2
    name = "other"
    kind = "b"
    limit = 7
    span = [1, 2.5]
    pair = [3, 8]
    extra = {depth = 4, names = ["x"]}
    [inner]
    size = 9
    flag = true
    """
    settings = from_dict(Outer, tomllib.loads(text))
    expected = Outer(
        2.0, "other", "b", 7, (1.0, 2.5), (3, 8), {"depth": 4, "names": ["x"]}, Inner(9, True)
    )
    assert settings == expected
    assert isinstance(settings.ratio, float)
    assert [type(value) for value in settings.span] == [float, float]
    assert from_dict(Outer, tomllib.loads(to_toml(settings))) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ration = 1", "unknown setting ration; known are extra, inner, kind"),
        ("[inner]\nsizes = 1", "unknown setting inner.sizes; known are flag, size"),
        ("[innner]\nsize = 1", "unknown setting innner"),
        ("inner = 3", "inner must be a table, not 3"),
        ("name = 3", "name must be str, not 3"),
        ('ratio = "3"', "ratio must be float, not '3'"),
        ("ratio = true", "ratio must be float, not True"),
        ("[inner]\nsize = 2.5", "inner.size must be int, not 2.5"),
        ("[inner]\nsize = true", "inner.size must be int, not True"),
        ("[inner]\nflag = 1", "inner.flag must be bool, not 1"),
        ('limit = "many"', "limit must be int, not 'many'"),
        ('kind = "c"', "kind must be one of a, b, not 'c'"),
        ("span = 3.0", "span must be tuple, not 3.0"),
        ('span = [1.0, "x"]', r"span\[1\] must be float, not 'x'"),
        ("pair = [1, 2, 3]", r"pair must be a list of 2, not \[1, 2, 3\]"),
        ("pair = [1, 2.5]", r"pair\[1\] must be int, not 2.5"),
        ("extra = [1]", "extra must be Mapping, not"),
        ("ratio = -1", "settings: ratio must not be negative, not -1"),
    ],
)
def test_every_mistake_is_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(Outer, tomllib.loads(text))
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read_toml(Outer, path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"ratio = ", "Invalid value"), (b"\xff\xfe", "codec"), (None, "No such file")],
)
def test_unusable_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_toml(Outer, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.exit_code == 2


def test_a_folder_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="directory"):
        read_toml(Outer, tmp_path)


TRAINING = TrainingConfig(
    network="hca",
    arguments={"stacks": 3, "channels": 64},
    labels=tuple(range(3, 14)),
    slab_offsets_mm=(-3.0, 0.0, 4.5),
    seed=17,
    preprocessing=PreprocessingConfig(slices=6, normalisation="minmax"),
    optimiser=OptimiserConfig(steps=10, learning_rate=1e-5),
)


@pytest.mark.parametrize(
    "settings",
    [
        TrainingConfig(),
        TRAINING,
        replace(TRAINING, batch=replace(TRAINING.batch, group_weights={"phantom": 0.25})),
        SearchConfig(mode="paper", anchors=(3, 7), max_scale=float("inf")),
        CandidateConfig(max_candidates=9),
        PlaneConfig(reach_mm=0.0),
    ],
    ids=lambda settings: type(settings).__name__,
)
def test_round_trip(tmp_path: Path, settings: Any) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(to_toml(settings), encoding="utf-8")
    assert read_toml(type(settings), path) == settings


def test_every_setting_is_written() -> None:
    """But those that are None, which TOML does not know."""

    def names(settings: Any) -> set[str]:
        found = set()
        for item in dataclasses.fields(settings):
            value = getattr(settings, item.name)
            if dataclasses.is_dataclass(value):
                found |= {f"{item.name}.{name}" for name in names(value)}
            elif value is not None:
                found.add(item.name)
        return found

    def keys(table: Mapping[str, Any], like: Any) -> set[str]:
        found = set()
        for key, value in table.items():
            inner = getattr(like, key)
            nested = dataclasses.is_dataclass(inner)
            found |= {f"{key}.{name}" for name in keys(value, inner)} if nested else {key}
        return found

    assert keys(to_dict(TRAINING), TRAINING) == names(TRAINING)
    assert "preprocessing.slices" in names(TRAINING)


def test_settings_refuse_what_they_cannot_mean(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("[preprocessing]\nspacing_mm = 0.01\n")
    with pytest.raises(UsageError, match=r"preprocessing: spacing_mm must lie in 0\.2\.\.5"):
        read_toml(TrainingConfig, path)
    path.write_text("labels = [3, 5, 4]\n")
    with pytest.raises(UsageError, match="strictly increasing"):
        read_toml(TrainingConfig, path)
