"""Where a network runs."""

import torch

from ivdtool.errors import UsageError

__all__ = ["choose_device"]


def choose_device(name: str) -> torch.device:
    """Return the device of a name: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.

    Raises:
        UsageError: no CUDA device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA device here; use --device cpu")
    return torch.device(name)
