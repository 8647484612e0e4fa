"""Training settings that come with the package: the papers', their baselines', and our own."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from ivdtool.config import read_toml
from ivdtool.errors import UsageError
from ivdtool.training.loop import TrainingConfig

__all__ = ["preset_names", "preset_text", "read_settings"]


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in _folder().iterdir()
        if entry.name.endswith(".toml")
    )


def preset_text(name: str) -> str:
    """Return a preset as TOML; its first line is a comment that says what it is.

    Raises:
        UsageError: no preset has that name.
    """
    if name not in preset_names():
        raise UsageError(f"no preset is called {name!r}; known are {', '.join(preset_names())}")
    return (_folder() / f"{name}.toml").read_text(encoding="utf-8")


def read_settings(source: str | Path) -> TrainingConfig:
    """Read training settings: the name of a preset, or a TOML file.

    Raises:
        UsageError: there is neither, or the settings are refused.
    """
    name = str(source)
    if "/" in name or name.endswith(".toml"):
        return read_toml(TrainingConfig, name)
    preset_text(name)  # refuses other names
    return read_toml(TrainingConfig, Path(str(_folder() / f"{name}.toml")))


def _folder() -> Traversable:
    return files("ivdtool") / "presets"
