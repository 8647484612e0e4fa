"""_core.pyi must name the same functions and parameters as the compiled module."""

import ast
import re
from pathlib import Path
from typing import Any

import ivdtool
from ivdtool import _core

STUB = Path(ivdtool.__file__).with_name("_core.pyi")


def compiled_parameters(function: Any) -> list[str]:
    signature = function.__doc__.splitlines()[0].split(" -> ")[0]
    return re.findall(r"(\w+): ", signature.replace("self: ivdtool._core.", ""))


def stubbed_parameters(node: ast.FunctionDef) -> list[str]:
    return [arg.arg for arg in node.args.args if arg.arg != "self"]


def test_stub_matches_extension() -> None:
    stubbed = {
        node.name: stubbed_parameters(node)
        for node in ast.parse(STUB.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    public = [name for name in dir(_core) if not name.startswith("_")]
    functions = [name for name in public if not isinstance(getattr(_core, name), type)]
    assert stubbed == {name: compiled_parameters(getattr(_core, name)) for name in functions}


def test_stub_matches_classes() -> None:
    stubbed = {
        node.name: {
            member.name: None if member.decorator_list else stubbed_parameters(member)
            for member in node.body
            if isinstance(member, ast.FunctionDef)
        }
        for node in ast.parse(STUB.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    classes = [value for value in vars(_core).values() if isinstance(value, type)]
    assert stubbed == {
        kind.__name__: {
            name: None if isinstance(member, property) else compiled_parameters(member)
            for name, member in vars(kind).items()
            # only C++ makes objects of a class whose __init__ has no parameters
            if not name.startswith("_") or (name == "__init__" and compiled_parameters(member))
        }
        for kind in classes
    }


def test_stub_matches_module_constants() -> None:
    stubbed = {
        node.target.id: ast.unparse(node.annotation)
        for node in ast.parse(STUB.read_text(encoding="utf-8")).body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.value is None
    }
    assert stubbed == {
        name: type(getattr(_core, name)).__name__ for name in ("__version__", "__debug_build__")
    }
