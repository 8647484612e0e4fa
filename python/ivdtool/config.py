"""Settings as frozen dataclasses, read from TOML and written back; unknown keys are errors."""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from ivdtool.errors import UsageError

__all__ = ["from_dict", "read_toml", "to_dict", "to_toml"]

Settings = TypeVar("Settings")


def from_dict(kind: type[Settings], values: Mapping[str, Any], where: str = "") -> Settings:
    """Build a settings dataclass from nested tables; missing keys keep their defaults.

    Raises:
        ValueError: an unknown key, or a value that the dataclass refuses.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(typing.cast(Any, kind))}
    unknown = sorted(set(values) - fields)
    if unknown:
        raise ValueError(
            f"unknown setting {where}{unknown[0]}; known are {', '.join(sorted(fields))}"
        )
    arguments = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}{name} must be a table, not {value!r}")
            arguments[name] = from_dict(typing.cast(Any, hint), value, f"{where}{name}.")
        else:
            arguments[name] = _checked(value, hint, f"{where}{name}")
    try:
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where.rstrip('.') or 'settings'}: {error}") from error


def to_dict(settings: Any) -> dict[str, Any]:
    """Return a settings dataclass as nested tables; None is left out, as TOML has none."""
    table: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            table[field.name] = to_dict(value)
        elif isinstance(value, Mapping):
            table[field.name] = dict(value)
        elif isinstance(value, tuple):
            table[field.name] = list(value)
        elif value is not None:
            table[field.name] = value
    return table


def read_toml(kind: type[Settings], path: str | Path) -> Settings:
    """Read a settings dataclass from a TOML file.

    Raises:
        UsageError: the file is unreadable, no TOML, or has unknown or refused settings.
    """
    try:
        with Path(path).open("rb") as file:
            return from_dict(kind, tomllib.load(file))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # TOMLDecodeError is one
        raise UsageError(f"{path}: {error}") from error


def to_toml(settings: Any) -> str:
    """Return a settings dataclass as TOML text."""
    return tomli_w.dumps(to_dict(settings))


def _checked(value: Any, hint: Any, where: str) -> Any:
    """The value in the type that `hint` asks for; int counts as float, list as tuple."""
    if isinstance(hint, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not types.NoneType]
        return None if value is None else _checked(value, options[0], where)
    origin = typing.get_origin(hint) or hint
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = typing.get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(value) != len(kinds):
            raise ValueError(f"{where} must be a list of {len(kinds)}, not {value!r}")
        items = enumerate(zip(value, kinds, strict=True))
        return tuple(_checked(item, kind, f"{where}[{i}]") for i, (item, kind) in items)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            allowed = ", ".join(map(str, typing.get_args(hint)))
            raise ValueError(f"{where} must be one of {allowed}, not {value!r}")
        return value
    if isinstance(origin, type) and (
        not isinstance(value, origin) or (origin is not bool and isinstance(value, bool))
    ):
        raise ValueError(f"{where} must be {origin.__name__}, not {value!r}")
    return value
