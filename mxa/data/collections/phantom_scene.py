"""Draws the chest phantom: anatomy, findings, exposure.

Layers of attenuation are summed and read through a log-detector curve, so a finding is a change of tissue, not paint.
Anatomy lives in a frame (u, v): u runs from -1 (patient's right, image left) to 1, v from -1 (top) to 1 (bottom).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ...labels import CHEXPERT as LABELS

__all__ = ["OPACITIES", "SceneParams", "keyed_rng", "render", "sigmoid"]

OPACITIES = ("Edema", "Consolidation", "Pneumonia", "Atelectasis", "Lung Lesion")
# Number of foci, patches in each, radius, share of the air replaced, cells of the texture, share without texture.
_FOCAL = {
    "Lung Lesion": ((1, 1, 1, 2, 3), (1,), (0.04, 0.1), (0.35, 0.6), 48, 0.9),
    "Consolidation": ((1,), (1,), (0.1, 0.16), (0.4, 0.7), 12, 0.45),
    "Pneumonia": ((1,), (3, 4, 5), (0.05, 0.09), (0.3, 0.45), 32, 0.35),
    "Lung Opacity": ((1,), (1,), (0.1, 0.17), (0.2, 0.35), 24, 0.6),
}


@dataclass(frozen=True)
class SceneParams:
    """What determines an image besides its findings."""

    index: int
    seed: int
    patient: int
    view: str


class _Scene:
    """Anatomy and layers of one image; `air` (lung) and `tissue` are attenuations, (size, size) float32."""

    def __init__(self, params: SceneParams, findings: set[str], size: int):
        who, shot = keyed_rng(params.seed, 2, params.patient).uniform, keyed_rng(params.seed, 3, params.index).uniform
        self.params, self.size, self.ap, self.shot = params, size, params.view == "AP", shot
        self.pixels = keyed_rng(params.seed, 4, params.index)
        self.boxes: dict[str, list] = {name: [] for name in findings}
        magnify = 1.12 if self.ap else 1.0
        self.scale, self.angle = who(0.9, 1.02) * shot(0.97, 1.03), shot(-0.06, 0.06)
        self.shift = shot(-0.06, 0.06), shot(-0.04, 0.08)
        x, y = (np.linspace(-1, 1, size, dtype=np.float32) - move for move in self.shift)
        cos, sin = math.cos(self.angle) / self.scale, math.sin(self.angle) / self.scale
        self.u, self.v = cos * x + sin * y[:, None], cos * y[:, None] - sin * x
        self.au, self.side = np.abs(self.u), np.sign(self.u)

        self.a, self.b, self.uc, self.vc = who(0.33, 0.38), who(0.88, 0.96), who(0.42, 0.45), who(0.12, 0.18)
        self.base = who(0.46, 0.58) - 0.08 * self.ap - shot(0.0, 0.06)
        self.width = who(0.12, 0.15) * magnify
        self.edge = self.depth()
        dome = self.dome(self.au, np.clip(5 * self.u, -1, 1))
        lung = _step(self.edge / 0.02) * _step((dome - self.v) / 0.015)
        core = _step(_union(self._heart(who, magnify), self._mediastinum(who)) / 0.025)
        self.air = lung * (1 - 0.85 * core)
        self.vessels = self._vessels(keyed_rng(params.seed, 5, params.patient)) * lung
        self.tissue = self._body(who, dome) + 0.08 * core + self._bones(who) * (1 - 0.5 * core)

    def rng(self, name: str) -> np.random.Generator:
        return keyed_rng(self.params.seed, 6, self.params.index, LABELS.index(name))

    def depth(self, medial: float = 0.0, down: float = 0.0) -> np.ndarray:
        """Distance inwards from the edge of the lung's ellipse, which is moved by (medial, down)."""
        q = ((self.v - self.vc - down) / self.b) ** 2
        p = (self.au - self.uc - 0.06 * self.v + medial) / self.a
        return (1 - np.sqrt(p * p + q * (0.4 + 0.6 * q))) * self.a

    def dome(self, au, side):
        """Height v of the diaphragm; the right one stands higher."""
        return self.base + 0.03 * side + 0.35 * (au - 0.42) ** 2 + 1.45 * np.maximum(au - 0.42, 0) ** 2

    def lateral(self, v: float) -> float:
        """|u| of the lung's outer edge at height v."""
        q = ((v - self.vc) / self.b) ** 2
        return self.uc + 0.06 * v + self.a * math.sqrt(max(0.0, 1 - q * (0.4 + 0.6 * q)))

    def spot(self, rng, low: float, high: float) -> tuple[float, float]:
        """A random place in either lung with v in [low, high] and above the diaphragm."""
        side, v = _sign(rng), rng.uniform(low, min(high, self.base - 0.05))
        inner = 0.45 if side > 0 and v > 0 else 0.22
        return float(side * (inner + (self.lateral(v) - 0.05 - inner) * rng.uniform(0.1, 0.9))), v

    def to_image(self, u, v) -> tuple[np.ndarray, np.ndarray]:
        """Anatomical to image coordinates, [0, 1] inside the image."""
        cos, sin = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        return (cos * u - sin * v + self.shift[0] + 1) / 2, (sin * u + cos * v + self.shift[1] + 1) / 2

    def box(self, name: str, u, v) -> None:
        """Adds the image-aligned box around points given by their u and v."""
        x, y = self.to_image(*np.meshgrid((np.min(u), np.max(u)), (np.min(v), np.max(v))))
        self.boxes[name].append(np.clip((x.min(), y.min(), x.max(), y.max()), 0, 1))

    def blob(self, u: float, v: float, ru: float, rv: float, angle: float = 0.0) -> np.ndarray:
        """Smooth bump of radii (ru, rv) that is 0 beyond them."""
        cos, sin, du, dv = math.cos(angle), math.sin(angle), self.u - u, self.v - v
        return _bump(((cos * du + sin * dv) / ru) ** 2 + ((cos * dv - sin * du) / rv) ** 2)

    def texture(self, rng, cells: int) -> np.ndarray:
        """Smooth unit-variance noise with about `cells` independent cells along a side."""
        basis = _basis(self.size, cells)
        coarse = torch.from_numpy(rng.standard_normal((cells, cells), dtype=np.float32))
        return (basis @ coarse @ basis.T).numpy()  # not numpy: a loader's workers limit torch alone to one thread

    def stroke(self, u: np.ndarray, v: np.ndarray, weight: np.ndarray | float, width: float) -> np.ndarray:
        """Image of thin lines through (lines, points) coordinates; `width` is a fraction of the side."""
        sigma = max(0.6, width * self.size)
        x, y = (c * (self.size - 1) for c in self.to_image(u, v))
        step = np.hypot(np.diff(x, append=x[:, -1:]), np.diff(y, append=y[:, -1:]))
        inside = (x > 0) & (y > 0) & (x < self.size - 1) & (y < self.size - 1)
        x, y, mass = x[inside], y[inside], (step * weight)[inside] * (sigma * math.sqrt(2 * math.pi))
        flat = y.round().astype(np.int64) * self.size + x.round().astype(np.int64)
        canvas = np.bincount(flat, mass, self.size**2).reshape(self.size, self.size).astype(np.float32)
        return gaussian_filter(canvas, sigma, truncate=3)

    def _heart(self, who, magnify: float) -> np.ndarray:
        u, v, ru, rv = 0.14, self.base - 0.2, who(0.36, 0.41) * magnify, who(0.25, 0.29) * magnify
        grow = who(1.25, 1.45)
        if "Cardiomegaly" in self.boxes:
            u, ru, rv = u + 0.03, ru * grow, rv * (1 + grow) / 2
            across, along = math.hypot(0.88 * ru, 0.48 * rv), math.hypot(0.48 * ru, 0.88 * rv)
            self.box("Cardiomegaly", (u - across, u + across), (v - along, v + along))
        du, dv = self.u - u, self.v - v
        r2 = ((0.88 * du + 0.48 * dv) / ru) ** 2 + ((0.88 * dv - 0.48 * du) / rv) ** 2
        return (1 - np.sqrt(r2)) * rv

    def _mediastinum(self, who) -> np.ndarray:
        half, knob = self.width * (1 + 0.3 * _step((-0.6 - self.v) / 0.15)), who(0.09, 0.12)
        grow = self.shot(0.4, 0.8)
        if "Enlarged Cardiomediastinum" in self.boxes:
            half = half + self.width * grow * _bump(((self.v + 0.3) / 0.5) ** 2)
            reach = self.width * (1.1 + grow)
            self.box("Enlarged Cardiomediastinum", (-reach, reach), (-0.8, 0.2))
        arch = np.sqrt((self.u - 0.09) ** 2 + (self.v + 0.27) ** 2)
        return _union(half - self.au, knob - arch)

    def _vessels(self, rng) -> np.ndarray:
        """Lines that leave each hilum in bundles, then spread and taper."""
        t = np.linspace(0, 1, self.size // 3)
        side = np.repeat((-1.0, 1.0), 48)[:, None]
        bundle = np.repeat(rng.uniform(-1.5, 1.3, 24), 4)[:, None]
        turn = bundle + rng.normal(0, 0.35, (96, 1)) * t**1.3 + 0.1 * np.sin(rng.uniform(2, 7, (96, 1)) * t)
        reach = rng.uniform(0.35, 0.85, (96, 1)) * t
        u, v = side * (0.14 + 0.8 * reach * np.cos(turn)), rng.normal(0, 0.05, (96, 1)) + reach * np.sin(turn)
        hila = self.blob(-0.2, 0.0, 0.13, 0.2, 0.3) + self.blob(0.19, -0.05, 0.12, 0.18, -0.3)
        lines = self.stroke(u, v, 0.16 * np.minimum(4 * t, 1) * (1 - t) ** 0.6, 0.005)
        return lines / (1 + lines) + 0.3 * hila

    def _body(self, who, dome: np.ndarray) -> np.ndarray:
        wide = who(0.95, 1.03) + 0.5 * _step((-0.35 - self.v) / 0.25)
        outline = np.sqrt(np.clip(1 - (self.u / wide) ** 2, 0, 1))
        shoulder = _step((self.v + 1.12 - 0.42 * np.clip(self.au - 0.22, 0, 1)) / 0.06)
        neck = _step((0.27 - self.au) / 0.06)
        belly = _step((self.v - dome) / 0.03)
        rise, breast = who(0.3, 0.5), max(0.0, who(-0.08, 0.08))
        fold = _step((1 - np.sqrt(((self.au - 0.5) / 0.36) ** 2 + ((self.v - rise) / 0.3) ** 2)) / 0.12)
        return (0.72 * outline + 0.2 * belly * outline) * np.maximum(shoulder, neck) + breast * fold

    def _bones(self, who) -> np.ndarray:
        gap, top = who(0.155, 0.18), who(-0.85, -0.75)
        phase = (self.v - top - 0.75 * (self.au - 0.2) ** 2) / gap
        ribs = self._fracture(phase, gap, top) if "Fracture" in self.boxes else _rib(phase)
        front = _rib((self.v + 0.5 * self.au) / gap + who(0, 1)) * _step((self.au - 0.35) / 0.1)
        cage = _step((self.edge + 0.05) / 0.03) * _step((0.6 - self.v) / 0.2)
        clavicle = (self.v + 0.55 + 0.25 * self.au - 0.04 * np.sin(6 * self.au)) / 0.035
        clavicle = _rib(np.clip(0.25 * clavicle, -0.5, 0.5)) * _step((self.au - 0.1) / 0.03)
        spine = _step((0.085 - self.au) / 0.02) * (1 + 0.25 * np.cos(self.v * (2 * math.pi / 0.135)))
        trachea = _step((0.045 - np.abs(self.u - 0.01)) / 0.015) * _step((-0.2 - self.v) / 0.05)
        bone = (0.1 * ribs * (0.6 + 0.6 * self.au) + 0.05 * front) * cage + 0.11 * clavicle
        return bone + 0.07 * spine - 0.1 * trachea

    def _fracture(self, phase: np.ndarray, gap: float, top: float) -> np.ndarray:
        """The ribs, one of them broken and displaced."""
        rng = self.rng("Fracture")
        rib, side, at = int(rng.integers(2, 6)), _sign(rng), rng.uniform(0.42, 0.58)
        long, shift = rng.uniform(0.1, 0.15), _sign(rng) * rng.uniform(0.25, 0.4)
        along = (self.au - at) / long
        local = np.clip(1 - 4 * (phase - rib) ** 2, 0, 1) * (self.side == side)
        moved = phase + shift * local * np.clip(1 - along, 0, 1) * (along > 0)
        ends = np.array((at - 0.03, at + long))
        arc = top + gap * rib + 0.75 * (ends - 0.2) ** 2
        self.box("Fracture", side * ends, (arc.min() - gap / 2, arc.max() + gap / 2))
        return _rib(moved) * (1 - 0.8 * _bump((along * long / 0.02) ** 2) * local)

    def fill(self, amount: np.ndarray) -> None:
        """Replaces a share of the lung's air, clipped to [0, 0.9], by water."""
        self.air *= 1 - np.clip(amount, 0, 0.9)

    def expose(self) -> np.ndarray:
        """The radiograph: attenuation with scatter and noise through the detector's curve, uint8."""
        quiet, shot = self.pixels, self.shot
        contrast, level = shot(4.2, 5.0) - 0.9 * self.ap, shot(0.5, 0.58)
        t = self.tissue - self.air * (0.5 - 0.5 * self.vessels)
        t += 0.02 * self.texture(quiet, 6) + 0.012 * self.texture(quiet, 48) * (0.4 + self.air)
        noise = quiet.standard_normal(t.shape, dtype=np.float32)
        t += noise * (0.012 * np.exp(0.8 * np.clip(t, 0, 1.2)))
        return (255 / (1 + np.exp(contrast * (level - t)))).astype(np.uint8)


def _edema(s: _Scene, rng) -> None:
    haze, ru, rv = 0.0, rng.uniform(0.36, 0.48), rng.uniform(0.45, 0.6)
    for side in (-1, 1):
        haze = haze + s.blob(0.36 * side, 0.0, ru, rv, 0.2 * side)
        s.box("Edema", (side * max(0.36 - ru, 0), side * (0.36 + ru)), (-rv, min(rv, s.base + 0.1)))
    s.vessels *= 1 + 0.6 * haze
    s.fill(rng.uniform(0.22, 0.4) * haze * (1 + 0.25 * s.texture(rng, 24)))


def _focal(s: _Scene, rng, name: str) -> None:
    """Soft patches, one box around each focus."""
    foci, patches, radius, strength, cells, solid = _FOCAL[name]
    for _ in range(rng.choice(foci)):
        (u, v), patchy = s.spot(rng, -0.5, 0.5), solid + (1 - solid) * _step(s.texture(rng, cells) + 0.4)
        extents = []
        for _ in range(rng.choice(patches)):
            (du, dv), r = rng.normal(0, 0.025 * (len(patches) - 1), 2).tolist(), rng.uniform(*radius)
            squeeze, angle = rng.uniform(0.75, 1.0), rng.uniform(0, 3)
            s.fill(rng.uniform(*strength) * np.sqrt(s.blob(u + du, v + dv, r, r * squeeze, angle)) * patchy)
            extents += [(u + du - r, v + dv - r), (u + du + r, v + dv + r)]
        s.box(name, *zip(*extents, strict=True))


def _atelectasis(s: _Scene, rng) -> None:
    (u, v), long, angle = s.spot(rng, 0.2, 0.5), rng.uniform(0.1, 0.17), rng.uniform(-0.4, 0.4)
    thick = rng.uniform(0.02, 0.045)
    s.fill(rng.uniform(0.4, 0.65) * np.sqrt(s.blob(u, v, long, thick, angle)))
    du = long * math.cos(angle) + 0.01
    dv = math.hypot(long * math.sin(angle), thick)
    s.box("Atelectasis", (u - du, u + du), (v - dv, v + dv))


def _pneumothorax(s: _Scene, rng) -> None:
    side, down, medial, end = _sign(rng), rng.uniform(0.08, 0.2), rng.uniform(0.02, 0.06), rng.uniform(-0.3, 0.1)
    inner = s.depth(medial, down)
    where = _step((end - s.v) / 0.08) * (s.side == side) * _step((s.edge + 0.01) / 0.02)
    rim = where * _step(-inner / 0.006)
    s.vessels *= 1 - rim
    s.air *= 1 + 0.12 * rim
    s.tissue += 0.1 * where * _bump((inner / 0.012) ** 2) * s.air
    s.box("Pneumothorax", (side * s.width, side * (s.lateral(end) + 0.02)), (s.vc - s.b, end + 0.04))


def _effusion(s: _Scene, rng) -> None:
    first = _sign(rng)
    for side in (first, -first)[: 2 if rng.random() < 0.3 else 1]:
        height, wide, outer = 0.15 + 0.35 * rng.random() ** 2, rng.uniform(0.3, 0.5), s.lateral(s.base) + 0.01
        floor = float(s.dome(outer, side))
        au = np.linspace(outer - wide, outer, 50)
        wet = au[floor - height * ((au - au[0]) / wide) ** 2 < s.dome(au, side)]
        level = floor - height * np.clip((s.au - outer) / wide + 1, 0, 1) ** 2
        s.fill(0.85 * (s.side == side) * _step((s.v - level) / 0.03))
        s.box("Pleural Effusion", (side * (wet.min() - 0.04), side * outer), (floor - height - 0.03, floor))


def _thickening(s: _Scene, rng) -> None:
    side, v, long, thick = _sign(rng), rng.uniform(-0.35, 0.3), rng.uniform(0.1, 0.16), rng.uniform(0.03, 0.06)
    plaque = np.sqrt(_bump(((s.v - v) / long) ** 2)) * (s.side == side) * (s.au > s.uc)
    s.fill(rng.uniform(0.5, 0.75) * plaque * _step((thick - s.edge) / 0.012))
    edges = [s.lateral(v + dv) for dv in (-long, 0, long)]
    s.box("Pleural Other", (side * (min(edges) - thick - 0.01), side * max(edges)), (v - long, v + long))


def _devices(s: _Scene, rng) -> None:
    side, t = _sign(rng), np.linspace(0, 1, 2048)[:, None]
    routes = (
        ((0.55 * side, -0.66), (0.2 * side, -0.5), (-0.16, -0.6), (-0.13, rng.uniform(-0.05, 0.15))),  # central line
        ((0.0, -1.1), (0.03, -0.4), (-0.03, 0.2), (rng.uniform(0.15, 0.35), s.base + 0.25)),  # gastric tube
        ((0.0, -1.1), (0.0, -0.8), (0.02, -0.6), (0.02, rng.uniform(-0.45, -0.35))),  # tracheal tube
        ((0.55 * side, -0.55), (0.1 * side, -0.75), (-0.3, 0.1), (0.25, s.base - 0.15)),  # pacemaker's lead
    )
    for kind in rng.choice(4, rng.integers(1, 3), replace=False):
        p = np.array(routes[kind]) + rng.normal(0, 0.015, (4, 2))
        u, v = ((1 - t) ** 3 * p[0] + 3 * (1 - t) ** 2 * t * p[1] + 3 * (1 - t) * t * t * p[2] + t**3 * p[3]).T
        walls = np.array(((-0.012,), (0.012,))) if kind == 2 else np.zeros((1, 1))
        s.tissue += s.stroke(u + walls, v + 0 * walls, rng.uniform(0.1, 0.2), 0.004)
        pad_u, pad_v = 0.02, 0.02
        if kind == 3:
            pad_u, pad_v = rng.uniform(0.08, 0.1), rng.uniform(0.06, 0.08)
            corner = ((s.u - float(u[0])) / pad_u) ** 4 + ((s.v - float(v[0])) / pad_v) ** 4
            s.tissue += 0.35 * _step((1 - corner) / 0.3)
        s.box("Support Devices", (u.min() - pad_u, u.max() + pad_u), (v.min() - pad_v, v.max() + pad_v))


_DRAW: dict[str, Callable] = {
    "Edema": _edema,
    "Atelectasis": _atelectasis,
    "Pneumothorax": _pneumothorax,
    "Pleural Effusion": _effusion,
    "Pleural Other": _thickening,
    "Support Devices": _devices,
}


def render(params: SceneParams, findings: set[str], size: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Draws `params` with any set of `findings`, No Finding excepted; returns the image and its boxes by finding."""
    scene = _Scene(params, findings, size)
    children = [name for name in OPACITIES if name in findings]
    for name in LABELS:
        if name in _DRAW and name in findings:
            _DRAW[name](scene, scene.rng(name))
        elif name in _FOCAL and name in findings and not (name == "Lung Opacity" and children):
            _focal(scene, scene.rng(name), name)
    if "Lung Opacity" in findings and children:
        scene.boxes["Lung Opacity"] = [box for name in children for box in scene.boxes[name]]
    return scene.expose(), {name: np.array(scene.boxes[name], np.float32) for name in LABELS if name in findings}


def keyed_rng(*key: int) -> np.random.Generator:
    """Makes an independent random stream for each key."""
    return np.random.default_rng(key)


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def sigmoid(x: float) -> float:
    """Logistic function of one number."""
    return 1 / (1 + math.exp(-x))


def _union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Signed distance to two shapes joined with a fillet."""
    return np.maximum(a, b) + np.clip(0.08 - np.abs(a - b), 0, None) ** 2 * 3.1


def _step(x: np.ndarray) -> np.ndarray:
    """Smooth step: 0 below -1, 1 above 1."""
    x = np.clip(x, -1, 1)
    return 0.5 + x * (0.75 - 0.25 * x * x)


def _bump(r2: np.ndarray) -> np.ndarray:
    """Smooth bump of a squared radius: 1 at 0, 0 from 1 on."""
    return np.clip(1 - r2, 0, 1) ** 2


def _rib(phase: np.ndarray) -> np.ndarray:
    """Bands at whole phases, with brighter (cortical) edges."""
    wave = np.cos(2 * math.pi * phase)
    return _step((wave - 0.25) / 0.3) * (1.15 - 0.45 * _step((wave - 0.75) / 0.25))


@lru_cache(maxsize=32)
def _basis(size: int, cells: int) -> torch.Tensor:
    """(size, cells) float32 interpolation that keeps the variance of white noise at 1."""
    at = np.linspace(0, cells - 1, size)[:, None] - np.arange(cells)
    kernel = np.exp(-0.5 * (at / 0.6) ** 2)
    return torch.from_numpy((kernel / np.linalg.norm(kernel, axis=1, keepdims=True)).astype(np.float32))
