"""The spine of a phantom: an analytic adult column with its variation from subject to subject.

Every point of the sagittal plane gets spine coordinates: the level s (s = 3 on disc C2/C3, 25 on
L5/S1, same numbers as the labels) and the depth d in mm in front of the posterior wall of the
vertebral column. The typical disc spacings, leans and depths are rounded medians of adult MRI.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Anatomy", "Floats", "profile"]

Floats = NDArray[np.float32]

# Typical adult values at the levels s = 1 (dens tip), 2, 3 (C2/C3) ... 33 (coccyx).

_FIRST, _LAST = 1, 33
_LEVELS = np.arange(_FIRST, _LAST + 1)
# Distance from level s to s + 1, and how far that step leans backwards from the vertical.
_STEP_MM = np.array(
    [17, 20, 18, 17.6, 17.1, 16.4, 17.4, 20, 21.5, 22.1, 22.7, 22.9, 23.3, 24, 24.8, 26.2, 27.6]
    + [29.5, 31.6, 33.9, 34.7, 34.9, 33.7, 30.5, 27, 23, 20, 18, 14, 12, 10, 9]
)
_LEAN_DEG = np.array(
    [2, 4, 5, 5, 6, 7, 14, 22, 26, 23, 19, 14, 10, 6, 2.5, -1, -5]
    + [-9.4, -12, -13, -11, -7, 1.5, 14, 34, 44, 42, 30, 12, -10, -30, -40]
)
# Front-back depth of the column, and height of the disc.
_DEPTH_MM = np.array(
    [11, 14, 15, 15.2, 15.8, 16.4, 16.2, 15.8, 16.5, 18.3, 20.2, 21.7, 22.5, 23.8, 25, 26.3, 27.8]
    + [28.2, 28.8, 29.5, 30.8, 32.8, 33.5, 34, 33, 21, 15, 12, 10, 8, 7, 6, 5]
)
_DISC_MM = np.array(
    [0, 0, 5, 5, 5.2, 5.5, 5.5, 5, 4.4, 4, 4, 4.2, 4.5, 4.8, 5, 5.4, 6]
    + [6.5, 7, 8, 9, 10, 11, 11.5, 10.5, 3, 2, 1.5, 1.2, 2, 1.5, 1, 1]
)


def profile(*knots: tuple[float, float]) -> Callable[[NDArray[Any]], Floats]:
    """Return the piecewise linear function of the level through (level, value) knots."""
    x, y = np.array(knots, float).T
    return lambda s: np.interp(s, x, y).astype(np.float32)


# A steep sacrum comes with a deep lumbar curve: both lean by this much per standard deviation.
_PELVIS_DEG = profile((17, 0), (20, -5), (22, -5), (23.5, 0), (25, 7), (27, 9), (30, 9))


class Anatomy:
    """One subject: the column's curve with its disc-wise variation. Plane = (y anterior, z up)."""

    step = 1 / 16

    def __init__(self, rng: np.random.Generator) -> None:
        n = len(_LEVELS)
        extra = rng.spawn(1)[0]  # a stream of its own: the other draws stay as they were
        steps = _STEP_MM * rng.normal(1, 0.065) * rng.normal(1, 0.035, n - 1)
        steps *= 1 + 0.03 * rng.normal() * np.linspace(-1, 1, n - 1)
        at = _LEVELS[:-1] + 0.5
        lean = _LEAN_DEG + rng.normal(0, 1.3, n - 1)
        for centre, width, sd in ((3.5, 4, 7), (8.5, 3, 6), (13, 5, 5), (22, 3, 5), (26, 2.5, 7)):
            lean = lean + rng.normal(0, sd) * np.exp(-0.5 * ((at - centre) / width) ** 2)
        lean = np.deg2rad(lean + rng.normal(0, 3.5))
        lean += np.deg2rad(_PELVIS_DEG(at)) * extra.normal()
        tilt = -np.interp(_LEVELS, at, lean) + np.deg2rad(rng.normal(0, 1.8, n))
        # Neck discs and the last two slope more than the column leans.
        tilt -= np.deg2rad(
            profile((2, 0), (3, 3), (7, 3), (9, 0), (23, 0), (25, 6), (26, 0))(_LEVELS)
        )
        knots = np.zeros((n, 2))
        knots[1:] = np.cumsum(steps[:, None] * -np.c_[np.sin(lean), np.cos(lean)], axis=0)

        self.levels = np.arange(-14, _LAST + 6 + self.step / 2, self.step)
        self.curve = np.c_[
            _hermite(self.levels, knots[:, 0]), _hermite(self.levels, knots[:, 1])
        ]  # (n, 2) posterior wall
        self.tilt = _hermite(self.levels, tilt)
        self.tilt[self.levels < _FIRST] = tilt[0]
        self.tilt[self.levels > _LAST] = tilt[-1]
        self.slope = np.gradient(self.curve, self.step, axis=0)
        self.tilt_slope = np.gradient(self.tilt, self.step)

        # Tables by integer level; index 0 is level 0.
        scale = steps.mean() / _STEP_MM.mean()
        self.depth = np.r_[10, _DEPTH_MM] * scale * rng.normal(1, 0.05)
        self.degeneration = np.clip(rng.beta(1.2, 2.2) + rng.normal(0, 0.22, n + 1), 0, 1)
        loss = np.where(rng.random(n + 1) < 0.25 * self.degeneration, rng.uniform(0.2, 0.7), 0)
        self.disc = np.r_[0, _DISC_MM] * scale * rng.normal(1, 0.1, n + 1) * (1 - loss)
        self.bulge = np.maximum(0, rng.normal(0.3, 0.5, n + 1) + 2.5 * self.degeneration**3)
        self.bulge *= np.r_[0, _DEPTH_MM] / 34
        self.bulge[26:] = 0
        self.vertebra = rng.normal(1, 0.06, n + 1)
        self.vein = rng.uniform(0, 1, n + 1)
        self.endplate_change = rng.normal(0, 0.45, n + 1) * (rng.random(n + 1) < 0.3)
        self.disc[26:28] *= rng.uniform(0.5, 2.2)
        if extra.random() < 0.12:  # S1/S2 nearly as large as a lumbar disc
            self.disc[26] = extra.uniform(0.4, 0.8) * self.disc[25]
            self.depth[26] = extra.uniform(0.7, 0.9) * self.depth[25]
        self.conus = 20.8 + rng.normal(0, 0.35)
        self.back_fat = rng.gamma(2.2, 5.0) + 4
        self.front_fat = rng.gamma(2.0, 5.0) + 4
        self.girth = rng.normal(1, 0.12)

    def at(self, level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the posterior wall and the anterior direction at a level, both (2,)."""
        k = round((level - self.levels[0]) / self.step)
        return self.curve[k], np.array([np.cos(self.tilt[k]), np.sin(self.tilt[k])])

    def point(self, level: float, depth: float) -> NDArray[np.float64]:
        """Return the plane point (2,) at a level and a depth in mm."""
        origin, forward = self.at(level)
        return origin + depth * forward

    def tip(self, label: int) -> NDArray[np.float64]:
        """Return the posterior tip (2,) of a disc."""
        return self.point(label, -float(self.bulge[label]))

    def coordinates(self, y: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
        """Return level, depth in mm and mm per level, each (len(y), len(z)), of the plane grid.

        Solves (p - P(s)) . n(s) = 0 by damped Newton from the nearest point of the curve. Far
        from the column, where neighbouring disc lines cross, the result is only approximate.
        """
        coarse = 8
        rough = np.stack(np.meshgrid(y[::coarse], z[::coarse], indexing="ij"), -1)[..., None, :]
        few = self.curve[::4]
        nearest = ((rough - few) ** 2).sum(-1).argmin(-1)
        s = np.repeat(np.repeat(self.levels[::4][nearest], coarse, 0), coarse, 1)
        s = s[: len(y), : len(z)]
        yy, zz = y[:, None], z[None, :]
        for last in (False, False, False, False, False, True):
            x = np.clip((s - self.levels[0]) / self.step, 0, len(self.levels) - 1.001)
            k = x.astype(np.int32)
            w = x - k

            def value(table: NDArray[np.float64], k: Any = k, w: Any = w) -> NDArray[np.float64]:
                low: NDArray[np.float64] = table[k]
                between: NDArray[np.float64] = low + w * (table[k + 1] - low)
                return between

            tilt = value(self.tilt)
            sine, cosine = np.sin(tilt), np.cos(tilt)
            dy, dz = yy - value(self.curve[:, 0]), zz - value(self.curve[:, 1])
            depth = dy * cosine + dz * sine
            straight = value(self.slope[:, 0]) * sine - value(self.slope[:, 1]) * cosine
            scale = np.maximum(straight - depth * value(self.tilt_slope), 0.3 * straight)
            if not last:
                s = s + np.clip((dy * sine - dz * cosine) / scale, -0.7, 0.7)
        return s.astype(np.float32), depth.astype(np.float32), scale.astype(np.float32)


def _hermite(x: NDArray[np.float64], knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate values at `_LEVELS` by cubic Hermite pieces; straight lines beyond the ends."""
    slope = np.gradient(knots)
    k = np.clip(np.floor(x).astype(int) - _FIRST, 0, len(knots) - 2)
    t = np.clip(x - _FIRST - k, 0, 1)
    inside = (
        (2 * t**3 - 3 * t**2 + 1) * knots[k]
        + (t**3 - 2 * t**2 + t) * slope[k]
        + (3 * t**2 - 2 * t**3) * knots[k + 1]
        + (t**3 - t**2) * slope[k + 1]
    )
    before, after = np.minimum(x - _FIRST, 0), np.maximum(x - _LAST, 0)
    line: NDArray[np.float64] = inside + before * slope[0] + after * slope[-1]
    return line
