"""What the tissues of a phantom look like: their signal by contrast, and their texture."""

from typing import Literal

import numpy as np

from ivdtool.phantom_anatomy import Floats

__all__ = ["Contrast", "draw_signals", "smooth_field"]

Contrast = Literal["T1w", "T2w", "STIR", "dixon"]

# Relative signal of T1w (fat bright), T1w (inversion-prepared, marrow dark), T2w, STIR, dixon.
_SIGNAL: dict[str, tuple[float, float, float, float, float]] = {
    "air": (0.0, 0.0, 0.0, 0.0, 0.0),
    "lung": (0.07, 0.06, 0.05, 0.08, 0.06),
    "cortex": (0.05, 0.06, 0.06, 0.05, 0.10),
    "ligament": (0.10, 0.16, 0.07, 0.07, 0.22),
    "fat": (0.92, 0.80, 0.72, 0.10, 0.22),
    "marrow": (0.55, 0.20, 0.40, 0.20, 0.45),
    "annulus": (0.26, 0.40, 0.14, 0.12, 0.62),
    "nucleus": (0.30, 0.48, 0.62, 0.52, 0.92),
    "muscle": (0.30, 0.36, 0.20, 0.22, 0.55),
    "csf": (0.12, 0.16, 0.98, 0.92, 0.98),
    "cord": (0.42, 0.82, 0.42, 0.44, 0.85),
    "brain": (0.52, 0.86, 0.42, 0.42, 0.80),
    "cortex grey": (0.42, 0.62, 0.55, 0.58, 0.75),
    "vessel": (0.10, 0.30, 0.06, 0.10, 0.40),
    "organ": (0.38, 0.42, 0.30, 0.35, 0.60),
    "mucosa": (0.40, 0.50, 0.55, 0.60, 0.65),
    "fluid": (0.14, 0.18, 0.90, 0.85, 0.95),
}


def draw_signals(contrast: Contrast, rng: np.random.Generator) -> dict[str, float]:
    """Draw the signal of every tissue for one volume."""
    column = {"T1w": 0, "T2w": 2, "STIR": 3, "dixon": 4}[contrast]
    prepared = rng.random()
    signals = {}
    for name, row in _SIGNAL.items():
        typical = row[column]
        if contrast == "T1w":
            typical = (1 - prepared) * row[0] + prepared * row[1]
        signals[name] = typical * float(np.exp(rng.normal(0, 0.12)))
    signals["marrow"] *= float(np.exp(rng.normal(0, 0.12)))
    return signals


def smooth_field(
    rng: np.random.Generator, y: Floats, z: Floats, scale: tuple[float, float]
) -> Floats:
    """Return a random field (len(y), len(z)) of unit spread, correlated over `scale` mm."""
    weights, counts = [], []
    for axis, length in zip((y, z), scale, strict=True):
        nodes = np.arange(axis[0] - 2 * length, axis[-1] + 2 * length, length)
        weight = np.exp(-0.5 * ((axis[:, None] - nodes) / (0.6 * length)) ** 2)
        weights.append((weight / np.linalg.norm(weight, axis=1, keepdims=True)).astype(np.float32))
        counts.append(len(nodes))
    noise = rng.standard_normal(counts, dtype=np.float32)
    # no BLAS: its sums depend on the number of threads, in the last bit
    across: Floats = np.einsum("ij,cj->ic", noise, weights[1])
    field: Floats = np.einsum("ri,ic->rc", weights[0], across)
    return field
