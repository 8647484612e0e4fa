"""What is known of models without loading torch: which file a name stands for, and defaults."""

from importlib.resources import files
from pathlib import Path

from ivdtool.errors import ModelError

__all__ = ["BATCH_SIZE", "model_path"]

DEFAULT_MODEL = "robust"
BATCH_SIZE = 2  # images per network call: on CPUs as fast as more, in less memory: docs/batch.md


def model_path(model: str | Path | None) -> Path:
    """Return the file of a model: a path, or the name of one inside the package.

    Raises:
        ModelError: there is no such file.
    """
    name = str(model or DEFAULT_MODEL)
    if "/" not in name and not name.endswith(".pt"):
        path = Path(str(files("ivdtool") / "models" / f"{name}.pt"))
        if not path.is_file():
            known = sorted(p.stem for p in path.parent.glob("*.pt"))
            raise ModelError(f"no model is called {name!r}; known are {', '.join(known) or 'none'}")
        return path
    if not Path(name).is_file():
        raise ModelError(f"{name}: no such model file")
    return Path(name)
