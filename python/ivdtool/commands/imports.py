"""How commands import what is heavy."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["heavy_imports"]


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import without looking for garbage meanwhile, nor ever among what was imported.

    torch's modules make very many objects, which stay. Walking through them again and again while
    they become more, and taking them apart at exit, is a quarter of a short command's time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
