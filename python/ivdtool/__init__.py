"""Find and name every intervertebral disc in a sagittal spine MRI.

    >>> import ivdtool
    >>> labels = ivdtool.label("sub-01_T2w.nii.gz")  # doctest: +SKIP

What is exported here is the public API; torch is loaded only when a network runs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivdtool.labels import Disc, DiscLabels
    from ivdtool.pipeline import label

__all__ = ["Disc", "DiscLabels", "__version__", "label"]

__version__ = "0.1.0"

_PUBLIC = {
    "Disc": "ivdtool.labels",
    "DiscLabels": "ivdtool.labels",
    "label": "ivdtool.pipeline",
}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'ivdtool' has no attribute {name!r}")
