"""Draw the slices of a phantom: body outline, organs, head, and the column with its canal.

In the coordinates of `ivdtool.phantom_anatomy` column, canal, cord and posterior elements are
simple shapes. Body outline and organs are drawn in the plane.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ivdtool.phantom_anatomy import Anatomy, Floats, profile
from ivdtool.phantom_tissues import smooth_field

__all__ = ["Painter"]

# Lengths across the column at the levels s.
_CANAL_MM = profile((0, 30), (1, 24), (2, 18), (3, 14.5), (8, 14.5), (20, 16), (24, 17), (27, 7))
_SAC_MM = profile((0, 24), (1, 17), (2, 14), (3, 12.5), (8, 12.5), (19, 13), (24, 13.5), (26.2, 8))
_CORD_MM = profile((0, 10), (2, 8.5), (6, 7.6), (10, 6.4), (18, 6.6), (19.6, 7.6), (20.4, 5))
_HALF_WIDTH_MM = profile((1.2, 6), (2, 8), (3, 11), (8, 13), (19, 20), (24, 25), (26, 28), (30, 8))
_SPINOUS_MM = profile(
    (2, 26), (2.9, 24), (3, 15), (4, 16), (5, 19), (6, 25), (7, 34), (12, 33), (20, 30), (24, 25)
)
_SPINOUS_HEIGHT_MM = profile((2, 6), (3, 3), (6, 3), (7, 4.5), (17, 5), (20, 9), (24, 8), (26, 3))
_SPINOUS_SLOPE = profile(
    (2, 0.3), (7, 0.4), (9, 0.7), (12, 1.2), (16, 1.2), (18, 0.7), (20, 0.25), (27, 0.2)
)
_BACK_MM = profile(
    (0, 50), (2, 50), (3, 51), (5, 54), (8, 62), (13, 52), (20, 54), (25, 52), (30, 32)
)
_FRONT_MM = profile(
    (0, 105), (3, 95), (4.2, 80), (5, 58), (7.5, 58), (9, 70), (12, 115), (16, 145), (20, 140)
)
_BACK_FAT_MM = profile((1, 0.35), (4, 0.6), (7, 1.1), (12, 0.6), (19, 0.6), (24, 1.6), (27, 1.4))
_FRONT_FAT_MM = profile((2, 0.25), (4, 0.4), (10, 0.6), (18, 0.8), (23, 1.6), (26, 1.6))


@dataclass(frozen=True)
class _Blob:
    """An ellipsoid: plane centre, half axes, angle of the first axis above anterior, lateral."""

    tissue: str
    centre: NDArray[np.float64]
    half: tuple[float, float]
    angle: float = 0.0
    lateral: float = 0.0
    half_lateral: float = 40.0
    opacity: float = 1.0
    texture: float = 0.08


def _ramp(inside_mm: Any, edge_mm: float) -> Floats:
    """Return the share of a voxel covered, from the signed distance to the shape's surface."""
    share = np.clip(np.float32(0.5) + inside_mm * np.float32(1 / edge_mm), 0, 1)
    return np.asarray(share, np.float32)


def _over(canvas: Floats, alpha: Floats, value: Any) -> None:
    """Paint `value` over `canvas` in place."""
    canvas += alpha * (value - canvas)


class Painter:
    """Draws one subject slice by slice on the plane grid (y, z).

    Args:
        anatomy: the spine.
        signal: of every tissue, about 0..1.
        spacing_mm: of the grid; edges are as soft.
        thickness_mm: distance of the slices; shapes are as soft across them.
        rng: of everything around the spine, and of textures.
        y: (len(y),) mm to anterior.
        z: (len(z),) mm up.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        signal: Mapping[str, float],
        spacing_mm: float,
        thickness_mm: float,
        rng: np.random.Generator,
        y: Floats,
        z: Floats,
    ) -> None:
        self.anatomy, self.signal, self.rng, self.y, self.z = anatomy, signal, rng, y, z
        self.edge = max(1.1 * spacing_mm, 0.7)
        self.thick = max(thickness_mm, 2.0)
        self.level, self.depth, self.scale = anatomy.coordinates(y, z)
        self.shape = self.level.shape
        # Two independent fields per kind; slices mix them by angle, so that neighbours look alike.
        kinds = {
            "fine": (2.0, 2.0), "medium": (5.0, 5.0), "coarse": (14.0, 14.0),
            "fibre": (3.0, 14.0), "gyri": (7.0, 7.0),
        }  # fmt: skip
        self.fields = {
            name: (smooth_field(rng, y, z, scale), smooth_field(rng, y, z, scale))
            for name, scale in kinds.items()
        }
        self.fatty = rng.uniform(0.05, 0.45)  # share of fat between the spinous processes
        self._outline()
        self._head()
        self.blobs = self._organs()
        self._column()

    def field(self, name: str, t: float, length: float = 12.0) -> Floats:
        """Return the random field of a kind in the slice at the lateral position t mm."""
        a, b = self.fields[name]
        mixed: Floats = np.cos(np.float32(t / length)) * a + np.sin(np.float32(t / length)) * b
        return mixed

    # -- static parts --

    def _outline(self) -> None:
        """Skin lines y(z) at the back and the front, and the fat below them."""
        a, rng = self.anatomy, self.rng
        order = slice(None, None, -1)
        level = np.interp(self.z, a.curve[order, 1], a.levels[order])
        self.row_level = level.astype(np.float32)
        wall = np.interp(self.z, a.curve[order, 1], a.curve[order, 0])
        wave = [smooth_field(rng, self.z[:2], self.z, (50, 70))[0] for _ in range(2)]
        self.fat_back = (a.back_fat * _BACK_FAT_MM(level) * (1 + 0.15 * wave[0])).astype(np.float32)
        self.fat_front = (a.front_fat * _FRONT_FAT_MM(level)).astype(np.float32)
        muscle = _BACK_MM(level) * rng.normal(0.95, 0.06)
        self.back = (wall - muscle - self.fat_back + 1.0 * wave[1]).astype(np.float32)
        trunk = np.clip((level - 9) / 6, 0, 1)
        front = _FRONT_MM(level) * (1 + (a.girth - 1) * trunk) + self.fat_front
        self.front = (wall + front + 3 * wave[1]).astype(np.float32)
        self.in_back = self.y[:, None] - self.back
        self.in_front = self.front - self.y[:, None]

    def _head(self) -> None:
        """Frame of the head: origin in the foramen magnum, u forward and v up, in mm."""
        a, rng = self.anatomy, self.rng
        self.origin = a.point(0.75, -11)
        tilt = float(a.tilt[a.levels == 1][0]) + np.deg2rad(rng.normal(3, 7))
        self.head_size = rng.normal(0.97, 0.05)
        self.head_axes = np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        dy, dz = self.y[:, None] - self.origin[0], self.z[None, :] - self.origin[1]
        axes = self.head_axes / self.head_size
        self.u = (axes[0, 0] * dy + axes[0, 1] * dz).astype(np.float32)
        self.v = (axes[1, 0] * dy + axes[1, 1] * dz).astype(np.float32)
        self.has_head = bool(self.v.max() > -20)
        neck = np.minimum(self.in_back, self.in_front)
        if not self.has_head:
            self.inside = neck
            return
        # The trunk ends below the skull and merges smoothly with it.
        neck = np.minimum(neck, 38 - self.v)
        skull = 85 * (1 - np.hypot((self.u - 17) / 104, (self.v - 73) / 85))
        blend = np.maximum(0, 1 - np.abs(neck - skull) / 24)
        self.inside = np.maximum(neck, skull) + 6 * blend**2

    def _in_head(self, u: float, v: float) -> NDArray[np.float64]:
        """Return the plane point (2,) at head coordinates in mm."""
        point: NDArray[np.float64] = self.origin + self.head_size * (
            np.array([u, v]) @ self.head_axes
        )
        return point

    def _organs(self) -> list[_Blob]:
        """Blobs in front of the spine, in painting order."""
        a, rng = self.anatomy, self.rng
        blobs: list[_Blob] = []

        def add(tissue: str, level: float, depth: float, *args: Any, **kwargs: Any) -> None:
            depth = depth + float(np.interp(level, np.arange(len(a.depth)), a.depth))
            wall, _ = a.at(level)
            shift = rng.normal(0, 2, 2)
            blobs.append(_Blob(tissue, wall + [depth, 0] + shift, *args, **kwargs))

        # Chest: heart, great vessels, lung in front of it, sternum.
        add("lung", 12.5, 62, (42, 75), half_lateral=90)
        add("organ", 15, 62, (40, 48), 0.4, half_lateral=55, texture=0.2)
        add("vessel", 14.5, 58, (26, 24), 0.4, half_lateral=35, texture=0.5)
        add("fat", 12.2, 50, (14, 20), half_lateral=30, texture=0.3)
        add("vessel", 11.6, 42, (13, 12), half_lateral=25)
        for k in range(5):
            add("marrow", 10.3 + 1.1 * k, 62 + 15 * k, (5, 13), 0.35, half_lateral=18)
        # Abdomen: liver under the diaphragm, stomach, bowel with gas, bladder, rectum, pubis.
        add("organ", 18.6, 78, (48, 62), 0.3, half_lateral=70, texture=0.06)
        add(rng.choice(["air", "organ", "fluid"]), 19.2, 75, (20, 26), lateral=-15, half_lateral=35)
        for _ in range(int(rng.integers(10, 24))):
            tissue = rng.choice(["organ", "muscle", "fluid", "air", "mucosa"])
            size = rng.uniform(5, 15)
            add(
                tissue, rng.uniform(19.5, 26), rng.uniform(25, 110),
                (size * rng.uniform(1, 2), size), rng.uniform(-1.5, 1.5),
                lateral=rng.uniform(-30, 30), half_lateral=rng.uniform(12, 30),
                opacity=rng.uniform(0.4, 1), texture=0.25,
            )  # fmt: skip
        pelvis = a.point(27, 60) + rng.normal(0, 6, 2)
        blobs += [
            _Blob("fluid", pelvis + [22, -28], (32, rng.uniform(12, 34)), 0.2, 0, 35),
            _Blob("organ", pelvis + [0, 2], (26, 17), 0.7, 0, 25, texture=0.15),
            _Blob(rng.choice(["air", "organ", "mucosa"]), a.point(27.5, 30), (10, 30), 0.5, 0, 20),
            _Blob("marrow", pelvis + [65, -55], (10, 19), 0.9, 0, 25),
        ]
        # Throat: cartilage, glands, vessels.
        for _ in range(int(rng.integers(4, 10))):
            size = rng.uniform(2.5, 7)
            add(
                rng.choice(["cortex", "fat", "mucosa", "organ", "vessel"]),
                rng.uniform(3.5, 9.5), rng.uniform(22, 48), (size, size * rng.uniform(1, 3)),
                rng.uniform(-0.5, 0.5), half_lateral=rng.uniform(6, 20), texture=0.2,
            )  # fmt: skip
        # Face: sinuses, palate, tongue, jaw, hyoid, larynx.
        if self.has_head:
            for tissue, u, v, half, angle, lateral in (
                ("air", 44, 46, (14, 11), 0.1, 18), ("mucosa", 68, 22, (24, 16), 0, 14),
                ("air", 66, 26, (24, 4), 0, 9), ("air", 70, 14, (22, 3), 0, 9),
                ("cortex", 66, 4, (28, 3), -0.1, 25), ("marrow", 78, 3, (16, 2), -0.1, 20),
                ("muscle", 52, -22, (30, 24), -0.3, 24), ("air", 60, -1, (30, 2.5), -0.1, 20),
                ("cortex", 92, -8, (7, 14), 0.1, 30), ("marrow", 82, -44, (9, 13), 0.3, 20),
                ("fat", 62, -50, (24, 7), -0.2, 30), ("fat", 40, -42, (9, 13), 0, 20),
                ("mucosa", 34, -6, (6, 18), -0.4, 16),
            ):  # fmt: skip
                noise = rng.normal(0, 2, 2)
                blobs.append(
                    _Blob(
                        tissue, self._in_head(u + noise[0], v + noise[1]), half, angle, 0, lateral
                    )
                )
        return blobs

    def _column(self) -> None:
        """Coverage of every structure near the spine that does not depend on the slice."""
        a, edge = self.anatomy, self.edge
        near = (self.depth > -85) & (self.depth < 75) & (self.level > -1.5) & (self.level < 34)
        self.near = np.flatnonzero(near)
        s, d, h = (x.reshape(-1)[self.near] for x in (self.level, self.depth, self.scale))
        self.s, self.d = s, d
        top = len(a.disc) - 1
        disc = np.clip(np.rint(s), 0, top).astype(np.int32)
        vertebra = np.clip(np.floor(s), 0, top).astype(np.int32)
        f = s - np.floor(s)
        self.vertebra, self.disc_index = vertebra, disc
        waist = 4 * f * (1 - f)  # 0 at the discs, 1 at mid-vertebra
        depth = np.interp(s, np.arange(top + 1), a.depth).astype(np.float32)
        bulge = a.bulge.astype(np.float32)[disc]
        off = np.abs(s - disc) * h
        across = np.clip(d / np.maximum(depth, 1), 0, 1)
        height = a.disc.astype(np.float32)[disc] * (0.82 + 0.9 * across * (1 - across))
        wavy = self.fields["medium"][1].reshape(-1)[self.near]
        m: dict[str, Any] = {}
        self.masks = m
        is_disc = (disc >= 3) & (s > 2.6)
        in_disc = np.where(is_disc, _ramp(height / 2 - off, edge), 0).astype(np.float32)
        back = np.where(in_disc > 0.5, -bulge, 0.9 * waist - 0.3 * bulge * (1 - waist))
        front = depth + 0.4 * wavy - 0.09 * depth * waist + np.where(in_disc > 0.5, 0.2, 0.8)
        span = _ramp(d - back, edge) * _ramp(front - d, edge)
        m["column"] = np.where((s > 1.95) & (s < 33.3), span, 0).astype(np.float32)
        m["disc"] = m["column"] * in_disc
        nucleus = 1 - ((across - 0.46) / 0.36) ** 2 - (off / np.maximum(0.42 * height, 0.5)) ** 2
        m["nucleus"] = np.clip(nucleus * 2.5, 0, 1) * (height > 3) * is_disc
        # A dark cleft crosses the nucleus of many adult discs.
        m["cleft"] = m["nucleus"] * _ramp(0.5 - off, edge) * (height > 6)
        rim = np.minimum(np.abs(d - back), np.abs(front - d))
        wall = _ramp(0.6 - rim, edge) * (1 - in_disc)
        plate = np.where(is_disc, _ramp(0.55 - np.abs(off - height / 2), edge), 0)
        m["cortex"] = (m["column"] > 0.02) * np.maximum(0.75 * wall, 0.85 * plate)
        m["vein"] = _ramp(1.3 - np.abs(f - 0.5) * h, edge) * _ramp(0.35 * depth - d, 3) * (s > 8)
        m["vein"] *= (s < 25) * m["column"] * a.vein.astype(np.float32)[vertebra]
        beneath = np.clip(1.3 - (off - height / 2) / 6 + 0.3 * wavy, 0, 1)
        beneath = beneath * is_disc * (disc <= 25)
        m["endplate change"] = beneath * m["column"] * a.endplate_change.astype(np.float32)[disc]

        # Canal, sac and cord; positive p lies behind the canal.
        canal, sac = _CANAL_MM(s), _SAC_MM(s)
        self.p = p = -d - canal
        m["canal"] = _ramp(-d, edge) * _ramp(-p, edge) * (s < 30) * np.clip(2 * s - 2, 0, 1)
        end = np.clip((26.9 - s) / 0.8, 0, 1)
        self.sac_half = sac / 2 * np.sqrt(end)
        self.sac_centre = -(1.0 + sac / 2)
        self.sac_front = _ramp(-(bulge * (1 - waist) + 0.8) - d, edge)
        taper = np.clip((a.conus - s) / 0.9, 0, 1)
        self.cord_half = _CORD_MM(s) / 2 * np.sqrt(taper)
        # The cord takes the short way round a bend.
        width = np.hanning(41) / np.hanning(41).sum()
        bend = np.interp(s, a.levels, np.convolve(a.tilt_slope, width, "same"))
        self.cord_centre = (self.sac_centre - np.clip(22 * bend, -1.8, 1.8)).astype(np.float32)
        m["line"] = _ramp(0.7 - np.abs(d + 0.5 + bulge * (1 - waist)), edge) * (s > 2) * (s < 27)
        # Posterior epidural fat fills the gaps between the laminae.
        gap = np.clip(1.6 - np.abs(s - disc) * h / 5, 0, 1) * _ramp(3 - p, edge)
        m["epidural"] = _ramp(-d - 1.0 - sac, edge) * np.where(s > 9, gap, 0)
        # Spinous processes point backwards and down.
        slope = _SPINOUS_SLOPE(s)
        q = s - slope * np.maximum(p, 0) / np.maximum(h, 5)
        owner = np.clip(np.floor(q - 0.12), 0, top)
        length = _SPINOUS_MM(owner) * np.where(owner > 24, np.clip(1.1 - (owner - 24) / 6, 0, 1), 1)
        slim = 0.7 + 0.5 * np.clip(p / np.maximum(length, 1), 0, 1)
        inside = _SPINOUS_HEIGHT_MM(owner) * slim - np.abs(q - owner - 0.62) * h
        wobble = self.fields["medium"][0].reshape(-1)[self.near]
        inside = np.minimum(np.minimum(inside, length - p), p + 1) + 0.9 * wobble
        has = (owner >= 2) & (owner < 31) & (q > 2.1)
        m["spinous"] = np.where(has, _ramp(inside, edge), 0).astype(np.float32)
        m["spinous cortex"] = np.where(has, _ramp(0.5 - np.abs(inside), edge), 0)
        self.tip_gap = p - _SPINOUS_MM(np.minimum(q - 0.62, 24))  # behind the spinous tips
        # Beside the canal: pedicles, joints, foramina.
        high = np.clip(1 - np.abs(f - 0.33) * h / (0.20 * h), 0, 1)
        m["pedicle"] = np.clip(high * 4, 0, 1) * _ramp(d + 16, 2) * _ramp(3 - d, 2)
        joint = np.abs((s - disc) * h + 0.8 * (d + 20))
        m["facet"] = _ramp(d + 28, 2) * _ramp(-13 - d, 2) * (s > 2) * (s < 26)
        m["joint"] = m["facet"] * _ramp(0.8 - joint, edge)
        m["root"] = _ramp(2.6 - np.hypot((f - 0.82) * h, d + 6), edge)
        # C1 and the dens.
        rise = (2.0 - s) * h
        dens = np.minimum(5.6 - np.abs(d - 6.5) - 0.06 * np.maximum(rise, 0), s * h - 1.05 * h)
        m["dens"] = _ramp(dens, edge) * (s < 2.02)
        m["dens cortex"] = _ramp(0.7 - np.abs(dens), edge) * (s < 1.9)
        arch = np.hypot((d - 16) / 3.4, (s - 1.38) * h / 5.5)
        posterior = np.hypot((p - 4) / 4.4, (s - 1.6) * h / 4.2)
        self.c1 = [
            (_ramp(3 * (1.25 - r), edge), _ramp(3 * (0.85 - r), edge)) for r in (arch, posterior)
        ]
        # Tubes in front: oesophagus, airway, aorta, prevertebral strip.
        ahead = d - depth
        strip = np.interp(s, [0, 3, 5.5, 6.5, 11], [4, 3.5, 4.5, 10, 10])
        m["prevertebral"] = _ramp(np.minimum(ahead, strip - ahead), edge) * (s < 17) * (s > 0.9)
        wide = np.interp(s, [0.3, 2, 4, 5, 5.6, 6.2, 9, 11.4, 12.2], [5, 5, 8, 7, 3, 7, 8, 7, 1])
        centre = np.interp(s, [0, 2, 5, 6, 12], [13, 12, 14, 20, 26]) + 2
        m["airway"] = _ramp(wide - np.abs(ahead - centre), edge) * _ramp((12.2 - s) * h, 3)
        m["airway"] *= _ramp((s + 0.2) * h, 3)
        m["airway wall"] = _ramp(wide + 2.5 - np.abs(ahead - centre), edge) * (s < 12.3) * (s > 0)
        # The great vessels wander across the mid-plane.
        rng = self.rng
        self.vessels = []
        for start, end, aside in ((12.0, 23.4, -9.0), (17.5, 24.0, 15.0)):
            half, middle = rng.uniform(6.5, 9.5), rng.uniform(10.5, 14)
            present = np.clip(2 * np.minimum(s - start, end - s), 0, 1)
            tube = _ramp(half - np.abs(ahead - middle), edge) * present
            wall = _ramp(1.0 - np.abs(np.abs(ahead - middle) - half), edge) * present
            course = np.interp(s, [start, 0.5 * (start + end), end], aside + rng.normal(0, 6, 3))
            flow = g * rng.uniform(0.6, 3.5) if (g := self.signal["vessel"]) < 0.2 else g
            self.vessels.append((tube, wall, course.astype(np.float32), float(flow)))

    # -- one slice --

    def slice(self, x: float, lateral: Floats) -> Floats:
        """Draw the slice at x mm.

        Args:
            x: position of the slice.
            lateral: (len(y), len(z)) distance in mm from the mid-plane of the body.

        Returns:
            (len(y), len(z)) noise-free signal, about 0..1.
        """
        self.texture = {name: self.field(name, x) for name in self.fields}
        canvas = np.zeros(self.shape, np.float32)
        self._paint_body(canvas, lateral)
        self._paint_blobs(canvas, lateral)
        if self.has_head:
            self._paint_head(canvas, lateral)
        flat = canvas.reshape(-1)
        part = flat[self.near]
        self._paint_column(part, lateral.reshape(-1)[self.near])
        flat[self.near] = part
        canvas *= _ramp(self.inside, 1.5)
        return canvas

    def _paint_body(self, canvas: Floats, lateral: Floats) -> None:
        g, tex, level = self.signal, self.texture, self.row_level[None, :]
        canvas += g["fat"] * (1 + 0.05 * tex["medium"] + 0.04 * tex["fibre"])
        body = np.minimum(self.in_back - self.fat_back, self.in_front - self.fat_front)
        if self.has_head:
            body = np.minimum(body, self.inside - 5)
        lean = g["muscle"] * (1 + 0.12 * tex["fibre"] + 0.08 * tex["fine"])
        streak = _ramp(tex["fibre"] + 0.35 * tex["coarse"] - 1.15, 0.5) * 0.75
        lean += streak * (0.75 * g["fat"] - lean)
        _over(canvas, _ramp(body, 2.0), lean)
        # Front of the spine below the neck: mediastinum, then mesentery.
        front = _ramp(self.depth - 16, 6) * _ramp(body - 9, 2)
        chest = front * _ramp((level - 9.3) * 20, 10)
        soft = _ramp(0.8 * tex["coarse"] + 0.3 * tex["medium"], 1.0)
        _over(canvas, chest, g["organ"] * 0.6 + soft * (g["fat"] * 0.8 - g["organ"] * 0.6))
        lung = _ramp(np.abs(lateral) - 24 + 4 * tex["coarse"], 6)
        _over(canvas, chest * lung * _ramp((18.2 - level) * 25, 12), g["lung"])

    def _paint_blobs(self, canvas: Floats, lateral: Floats) -> None:
        for blob in self.blobs:
            reach = max(blob.half) + 3
            (y0, y1), (z0, z1) = (
                np.searchsorted(axis, (c - reach, c + reach))
                for axis, c in zip((self.y, self.z), blob.centre, strict=True)
            )
            if y0 == y1 or z0 == z1:
                continue
            window = np.s_[y0:y1, z0:z1]
            dy = self.y[y0:y1, None] - np.float32(blob.centre[0])
            dz = self.z[None, z0:z1] - np.float32(blob.centre[1])
            c, s = np.float32(np.cos(blob.angle)), np.float32(np.sin(blob.angle))
            r2 = ((c * dy + s * dz) / blob.half[0]) ** 2 + ((c * dz - s * dy) / blob.half[1]) ** 2
            r2 = r2 + ((lateral[window] - blob.lateral) / blob.half_lateral) ** 2
            wobble = 0.12 * self.texture["coarse"][window]
            inside = min(blob.half) * (1 + wobble - np.sqrt(r2))
            inside = np.minimum(inside, self.inside[window] - 3)
            value = self.signal[blob.tissue] * (1 + blob.texture * self.texture["medium"][window])
            _over(canvas[window], blob.opacity * _ramp(inside, 2.0), value)

    def _paint_head(self, canvas: Floats, lateral: Floats) -> None:
        g, tex, u, v = self.signal, self.texture, self.u, self.v

        def ellipse(uc: float, vc: float, a: float, b: float, lat: float = 200.0) -> Any:
            r = np.sqrt(((u - uc) / a) ** 2 + ((v - vc) / b) ** 2 + (lateral / lat) ** 2)
            return min(a, b) * (1 - r)

        def paint(inside: Any, value: Any, opacity: float = 1.0) -> None:
            _over(canvas, opacity * _ramp(inside, 1.5), value)

        # Inner surface of the skull: vault above the base, and the posterior fossa.
        base = np.interp(u, [-100, -8, 6, 28, 45, 100], [-20, 0, 2, 40, 36, 46])
        vault = np.minimum(ellipse(17, 74, 91, 72), 0.8 * (v - base))
        inner = np.maximum(vault, np.minimum(ellipse(-22, 38, 46, 38), 0.7 * (v - base)))
        inner = inner.astype(np.float32)
        paint(inner + 6.5, g["cortex"])
        diploe = np.minimum(inner + 5.2, -1.8 - inner)
        paint(diploe, 0.45 * g["fat"] * (1 + 0.4 * tex["medium"]))
        paint(inner, g["csf"])
        gyri = tex["gyri"]
        grey, white = g["cortex grey"], g["brain"]
        matter = white + _ramp(0.7 - np.abs(gyri), 0.8) * (grey - white)
        sulcus = _ramp(0.16 - np.abs(gyri), 0.25) * 0.75
        matter += sulcus * (0.6 * g["csf"] + 0.4 * grey - matter)
        tent = np.interp(u, [-90, -70, -10, 10, 28, 48, 100], [28, 32, 62, 58, 46, 42, 50])
        cerebrum = np.minimum(inner - 1.5, 0.85 * (v - tent)).astype(np.float32)
        paint(cerebrum, matter)
        ring = ellipse(20, 82, 40, 25, 30)
        paint(np.minimum(ring, v - 80), white)
        paint(np.minimum(ellipse(20, 80, 33, 19, 20), v - 66), g["csf"])
        paint(ellipse(18, 70, 14, 9, 25), 0.5 * (white + grey))
        # Posterior fossa: cistern, cerebellum, brain stem.
        turn = np.arctan2(v - 38, u + 18)
        folia = 0.5 + 0.4 * np.sin(17 * turn + 2.0 * tex["gyri"]) * np.sin(3.0 * tex["medium"])
        cerebellum = np.minimum(ellipse(-31, 34, 30, 29, 60), 0.85 * (tent - 1.8 - v))
        paint(np.minimum(cerebellum, inner - 2), grey + folia * (white - grey))
        paint(ellipse(-22, 38, 9, 7, 10), white)
        stem = np.minimum(ellipse(10, 42, 9, 26, 17), v - 18)
        stem = np.maximum(stem, ellipse(14, 34, 13, 14, 16))
        neck = 5 + 0.05 * np.clip(v + 10, 0, 40) - np.abs(u - 1 - 0.14 * v)
        neck = np.minimum(neck, np.minimum(v + 9, 40 - v))
        stem = np.maximum(stem, neck - 0.06 * lateral**2)
        paint(stem, white * (1 + 0.04 * tex["medium"]))
        paint(ellipse(-1, 33, 4, 6, 8), g["csf"])
        # Clivus in front of the stem, occiput behind.
        along = np.minimum(v - 2, 44 - v)
        clivus = (
            np.minimum(5.5 - 0.006 * (v - 22) ** 2 - np.abs(u - 13.5 - 0.55 * v), along)
            - 0.004 * lateral**2
        )
        paint(clivus + 1.2, g["cortex"])
        paint(clivus - 0.3, g["marrow"] * 0.6 + 0.4 * g["fat"])

    def _paint_column(self, canvas: Floats, t: Floats) -> None:
        g, m, edge = self.signal, self.masks, self.edge
        thick = np.float32(self.thick)
        tex = {name: field.reshape(-1)[self.near] for name, field in self.texture.items()}
        s, d, p = self.s, self.d, self.p
        side = np.abs(t)

        def across(half: Any, soft: float = 0.0) -> Floats:
            return _ramp(half - side, float(thick) + soft)

        def paint(alpha: Any, value: Any) -> None:
            _over(canvas, alpha, value)

        fat, cortex, ligament = g["fat"], g["cortex"], g["ligament"]
        marrow = g["marrow"] * self.anatomy.vertebra.astype(np.float32)[self.vertebra]
        marrow = marrow * np.exp(m["endplate change"])
        marrow = marrow * (1 + 0.07 * tex["medium"] + 0.06 * tex["fine"] + 0.05 * tex["coarse"])
        # Mid-plane behind the canal: ligaments and fat between the spinous processes.
        stripes = np.clip(self.fatty + 0.2 * tex["medium"] + 0.2 * tex["fibre"], 0, 1)
        behind = _ramp(p, 2) * _ramp(-self.tip_gap, 3) * (s > 1.2) * (s < 30)
        paint(behind * across(5), self.interspinous(stripes))
        nuchal = np.clip((8 - s) / 3, 0, 1) * _ramp(self.tip_gap, 3)
        nuchal = nuchal * _ramp(1.2 - np.abs(self.tip_gap - 6), edge) * (s > 1)
        paint((0.8 * nuchal * across(4)).astype(np.float32), ligament)
        spinous = across(4.5)
        paint(m["spinous"] * spinous, marrow)
        paint(0.7 * m["spinous cortex"] * spinous, cortex)
        supra = _ramp(0.9 - np.abs(self.tip_gap - 1), edge) * (s > 7) * (s < 26) * across(5)
        paint(0.8 * supra, ligament)
        # Beside the canal.
        beside = _ramp(side - 9, float(thick)) * across(21)
        lateral_region = (_ramp(d + 16, 2) * _ramp(2 - d, 2) * (s > 2) * (s < 26)).astype(
            np.float32
        )
        paint(beside * lateral_region, 0.8 * fat)
        paint(beside * m["root"] * lateral_region, g["muscle"])
        paint(beside * m["facet"], marrow)
        paint(beside * m["joint"], cortex)
        paint(beside * m["pedicle"] * (s > 2) * (s < 27), marrow)
        # Tubes in front of the column.
        paint(m["prevertebral"] * across(14), g["muscle"] * (1 + 0.1 * tex["fine"]))
        paint(m["airway wall"] * across(10), g["mucosa"] * 0.8)
        paint(m["airway"] * across(8), g["air"])
        for tube, wall, course, flow in self.vessels:
            near = _ramp(9 - np.abs(t - course), float(thick))
            paint(tube * near, flow)
            paint((0.5 * wall * near).astype(np.float32), fat)
        # Column.
        column = across(_HALF_WIDTH_MM(s), 2.0)
        paint(m["column"] * column, marrow)
        degenerate = self.anatomy.degeneration.astype(np.float32)[self.disc_index]
        paint(0.8 * m["vein"] * across(6), self.vein_value())
        annulus = g["annulus"] * (1 + 0.12 * tex["fine"])
        paint(m["disc"] * column, annulus)
        wet = g["annulus"] + (1 - degenerate) ** 1.5 * (g["nucleus"] - g["annulus"])
        wet = wet * (1 + 0.10 * tex["medium"] + 0.08 * tex["fine"])
        paint(m["disc"] * m["nucleus"] * across(_HALF_WIDTH_MM(s) * 0.7), wet)
        paint(0.4 * m["cleft"] * m["disc"] * column, annulus)
        paint(m["cortex"] * column, cortex)
        # Dens and C1.
        dens = across(5.5)
        paint(m["dens"] * dens, marrow)
        paint(m["dens cortex"] * dens * 0.8, cortex)
        for (shell, core), half in zip(self.c1, (9, 5), strict=True):
            paint(shell * across(half), cortex)
            paint(core * across(half), marrow)
        # Canal.
        inside = across(11)
        fill = np.where(s > 9, 0.4 * fat, 0.25 * fat) + 0.3 * ligament
        paint(m["canal"] * inside, fill)
        paint(m["epidural"] * inside, fat)
        half = np.maximum(self.sac_half, 0.1)
        r = np.hypot((d - self.sac_centre) / half, t / 9.5)
        sac = _ramp(half * (1 - r), edge) * (self.sac_half > 0.5) * self.sac_front
        opening = np.clip((s - 0.3) / 0.6, 0, 1)
        paint((sac * opening).astype(np.float32), g["csf"] * (1 + 0.06 * tex["coarse"]))
        # Roots of the cauda equina lie behind, below the cord.
        roots = np.clip((s - self.anatomy.conus + 0.8) / 0.8, 0, 1) * sac
        roots = roots * _ramp(self.sac_centre + 0.5 + 1.5 * tex["fibre"] - d, 3)
        paint((0.5 * roots * (s < 26.5)).astype(np.float32), g["cord"])
        half = np.maximum(self.cord_half, 0.1)
        wide = np.where(s < 8.5, 6.5, 4.6)
        r = np.hypot((d - self.cord_centre) / half, t / wide)
        cord = _ramp(half * (1 - r), edge) * (self.cord_half > 0.4)
        paint((cord * opening).astype(np.float32), g["cord"] * (1 + 0.05 * tex["medium"]))
        paint(0.75 * m["line"] * across(9), ligament)

    def interspinous(self, fatty: Any) -> Any:
        """Signal between the spinous processes for a share of fatty tissue."""
        tough = 0.5 * (self.signal["ligament"] + self.signal["muscle"])
        return tough + fatty * (0.8 * self.signal["fat"] + 0.2 * self.signal["mucosa"] - tough)

    def vein_value(self) -> float:
        """Signal of the basivertebral vein: bright on T2, fatty on T1."""
        return 0.6 * self.signal["csf"] + 0.4 * self.signal["fat"]

    def sensitivity(self, rng: np.random.Generator) -> Floats:
        """Return the smooth gain (len(y), len(z)) of coil and saturation bands."""
        reach = rng.uniform(60, 260)
        gain = 1 / (1 + (np.maximum(self.in_back, 0) / reach) ** 2)
        centre, width = rng.uniform(self.z[0], self.z[-1]), rng.uniform(180, 500)
        gain = gain * np.exp(-0.5 * ((self.z[None, :] - centre) / width) ** 2)
        gain = gain * np.exp(0.10 * smooth_field(rng, self.y, self.z, (90, 90)))
        if self.has_head and self.v.max() > 60:
            # A head coil takes over above the neck.
            gain = np.maximum(gain, 0.9 * _ramp(self.v + 20, 90))
        elif rng.random() < 0.45:
            depth = self.depth - rng.uniform(38, 60)
            gain = gain * (1 - rng.uniform(0.6, 0.95) * _ramp(depth, rng.uniform(4, 20)))
        return np.asarray(gain / gain.max(), np.float32)

    def face_mask(self, rng: np.random.Generator) -> Floats:
        """Return 0 on the face and 1 elsewhere, (len(y), len(z))."""
        front, roof = rng.uniform(28, 62), rng.uniform(22, 48)
        roof = roof + 0.35 * np.maximum(self.u - 75, 0)
        return np.where((self.u > front) & (self.v < roof), 0, 1).astype(np.float32)
