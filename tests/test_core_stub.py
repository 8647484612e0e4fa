"""_core.pyi must name the same functions and parameters as the compiled module."""

import ast
import re
from pathlib import Path

import ivdtool
from ivdtool import _core

STUB = Path(ivdtool.__file__).with_name("_core.pyi")


def compiled_parameters(name: str) -> list[str]:
    signature = getattr(_core, name).__doc__.splitlines()[0].split(" -> ")[0]
    return re.findall(r"(\w+): ", signature)


def test_stub_matches_extension() -> None:
    stubbed = {
        node.name: [arg.arg for arg in node.args.args]
        for node in ast.parse(STUB.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    public = [name for name in dir(_core) if not name.startswith("_")]
    assert stubbed == {name: compiled_parameters(name) for name in public}


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
