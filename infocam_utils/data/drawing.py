"""How a drawn bird looks: shapes, colours, pose and background of one picture.

Nothing here knows about classes. A bird has four *informative parts* whose colours are given as attributes
(crown, breast, wing bar, tail); everything else (pose, size, place, body colour, light, background, leaves in
birds' colours) comes from the random generator alone and so carries no information about the class.

Every polygon is painted into one map of colour numbers at twice the final size. Colours, coverage (for smooth
edges), the mask and the part boxes are all read off that one map, so they cannot disagree.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.interpolate import CubicSpline

#: Informative parts in order, with the colour of each of their values (RGB, 0 to 255).
PARTS: dict[str, dict[str, tuple[int, int, int]]] = {
    "crown": {
        "red": (205, 35, 40), "yellow": (245, 210, 45), "blue": (45, 95, 215),
        "black": (18, 18, 24), "white": (246, 246, 244), "green": (35, 150, 70),
    },
    "breast": {
        "red": (205, 50, 40), "yellow": (245, 205, 50), "blue": (75, 145, 235),
        "black": (30, 28, 32), "white": (244, 243, 238), "violet": (150, 70, 185),
    },
    "wing_bar": {
        "white": (248, 248, 246), "yellow": (248, 200, 40), "red": (215, 40, 45), "blue": (60, 130, 245),
    },
    "tail": {
        "black": (20, 20, 26), "white": (246, 246, 244), "red": (200, 55, 35), "blue": (50, 90, 210),
    },
}  # fmt: skip
_BODIES = np.array(
    [(126, 94, 66), (122, 122, 128), (112, 116, 78), (92, 98, 112), (160, 136, 104)], np.float32
)
_SCENES = np.array(  # two colours each: top and bottom of the background
    [[(150, 185, 215), (120, 150, 110)], [(95, 130, 80), (60, 85, 50)], [(165, 170, 165), (120, 120, 105)],
     [(190, 170, 130), (120, 100, 70)], [(70, 85, 75), (45, 55, 45)], [(175, 200, 205), (190, 195, 180)]],
    np.float32,
)  # fmt: skip
_ALL_COLOURS = np.array([rgb for values in PARTS.values() for rgb in values.values()], np.float32)

# Numbers in the colour map: below _FIRST_BIRD is scenery, from it on is bird.
_CLUTTER, _WOOD, _FIRST_BIRD = 1, 7, 8
_BIRD = ("leg", "body", "wing", "feather", "beak", "white", "pupil", *PARTS)
_NUMBERS = {name: number for number, name in enumerate(_BIRD, start=_FIRST_BIRD)}
_COLOURS = _FIRST_BIRD + len(_BIRD)


class Drawing(NamedTuple):
    """One picture: image uint8 (3, S, S), mask bool (S, S), box and part boxes half-open."""

    image: np.ndarray
    mask: np.ndarray
    box: tuple[int, int, int, int]
    part_boxes: list[tuple[int, int, int, int]]


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360) -> np.ndarray:
    angle = np.radians(np.linspace(start, stop, 20))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1)  # (20, 2)


def _smooth(*points: tuple[float, float]) -> np.ndarray:
    """Closed curve through the points."""
    closed = np.array([*points, points[0]])
    return CubicSpline(np.arange(len(closed)), closed, bc_type="periodic")(np.linspace(0, len(points), 28))


_SHAPES: list[tuple[str, str, np.ndarray]] = [  # (what moves with it, colour, points)
    ("legs", "leg", np.array([(-0.02, 0.25), (0.04, 0.25), (0.05, 0.58), (0.00, 0.58)])),
    ("legs", "leg", np.array([(0.14, 0.25), (0.20, 0.25), (0.21, 0.58), (0.16, 0.58)])),
    ("tail", "tail", np.array([(-0.34, -0.14), (-0.95, -0.02), (-1.0, 0.08), (-0.96, 0.24),
                               (-0.34, 0.16)])),
    ("trunk", "body", _smooth((-0.52, 0.02), (-0.25, -0.27), (0.1, -0.36), (0.44, -0.32), (0.54, -0.02),
                              (0.38, 0.27), (0.05, 0.36), (-0.3, 0.22))),
    ("trunk", "breast", _smooth((0.6, -0.14), (0.585, 0.06), (0.44, 0.28), (0.14, 0.38), (0.02, 0.3),
                                (0.16, 0.12), (0.3, -0.06), (0.42, -0.16))),
    ("trunk", "wing", _smooth((0.3, -0.2), (0.2, 0.06), (-0.1, 0.19), (-0.62, 0.1), (-0.4, -0.12),
                              (-0.05, -0.3))),
    ("trunk", "feather", np.array([(-0.15, 0.1), (-0.58, 0.07), (-0.58, 0.105), (-0.15, 0.15)])),
    ("trunk", "wing_bar", _smooth((0.22, -0.2), (0.16, -0.02), (-0.02, 0.15), (-0.2, 0.16),
                                  (-0.12, -0.02), (0.02, -0.25))),
    ("head", "beak", np.array([(0.62, -0.46), (0.9, -0.33), (0.62, -0.28)])),
    ("head", "body", _ellipse(0.46, -0.38, 0.25, 0.235)),
    ("head", "crown", np.concatenate([_ellipse(0.45, -0.42, 0.27, 0.26, 178, 352),
                                       [(0.56, -0.46), (0.4, -0.42)]])),
    ("head", "white", _ellipse(0.56, -0.37, 0.062, 0.062)),
    ("head", "pupil", _ellipse(0.57, -0.37, 0.042, 0.042)),
]  # fmt: skip
_UNIT = np.concatenate([points for _, _, points in _SHAPES])  # (P, 2), of a bird that looks right; y down
_MOVES = np.repeat([group for group, _, _ in _SHAPES], [len(points) for _, _, points in _SHAPES])  # (P,)
_ENDS = np.cumsum([len(points) for _, _, points in _SHAPES])[:-1]

_SPAN = np.linspace(-1, 1, 9)
_LEAF = np.concatenate([np.stack([_SPAN, 1 - _SPAN**2], 1), np.stack([-_SPAN, _SPAN**2 - 1], 1)])


def _rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])  # acts on row vectors


@lru_cache(maxsize=4)
def _interpolation(size: int, knots: int = 6) -> np.ndarray:
    """(S, knots): cubic interpolation of `knots` values to `size` pixels, for soft out-of-focus scenery."""
    positions = (np.arange(size) + 0.5) / size * (knots - 1)
    return CubicSpline(np.arange(knots), np.eye(knots))(positions).astype(np.float32)


def _pose(u: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of the posed bird in pixels (P, 2), and the point between its feet; `u` are 11 uniforms."""
    points, feet = _UNIT.copy(), np.array([0.1, 0.55])
    for i, (group, pivot, swing) in enumerate((("head", (0.38, -0.25), 0.5), ("tail", (-0.4, 0.0), 0.7))):
        moved = group == _MOVES
        points[moved] = (points[moved] - pivot) @ _rotation(swing * (u[i] - 0.5)) + pivot
    upright = _MOVES != "legs"  # they stay vertical, as they do on a branch
    points[upright] = points[upright] @ _rotation(-0.28 + 0.6 * (u[2] - 0.5))  # chest up, most of the time
    points *= (0.92 + 0.16 * u[3], 0.92 + 0.16 * u[4])
    scale = size * (0.25 + 0.11 * u[5])
    points, feet = points * scale, feet * scale
    if u[6] < 0.5:
        points[:, 0] *= -1
        feet[0] *= -1
    low, high = points.min(0), points.max(0)
    room = size - 3 - (high - low)
    offset = 1.5 - low + room * (0.9 * u[7:9] + 0.1 * u[9:11])  # nearer the middle than the rim
    return points + offset, feet + offset


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Smallest half-open box around the true pixels."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _halve(image: np.ndarray) -> np.ndarray:
    """Sum over 2 x 2 blocks: (2S, 2S, ...) -> (S, S, ...)."""
    rows = image[0::2] + image[1::2]
    return rows[:, 0::2] + rows[:, 1::2]


def render(attributes: np.ndarray, rng: np.random.Generator, size: int = 64) -> Drawing:
    """Draw one bird whose four informative parts have the colours given by `attributes`.

    >>> drawing = render(np.array([0, 1, 2, 3]), np.random.default_rng(0))
    >>> drawing.image.shape, drawing.mask.shape, len(drawing.part_boxes)
    ((3, 64, 64), (64, 64), 4)
    """
    u = rng.random(65)
    canvas = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(canvas)
    points, feet = _pose(u[:11], size)
    points, (x, y) = 2 * points, 2 * feet

    # Scenery, behind the bird: leaves in birds' colours, then the branch under its feet.
    width = 2.0 * size
    for i in range(int(2 + 4 * u[63])):  # at most 5
        cx, cy, length, breadth, angle = u[11 + 5 * i :][:5]
        leaf = _LEAF * width * (0.04 + 0.06 * length, 0.03 + 0.03 * breadth)
        leaf = leaf @ _rotation(6.3 * angle) + (cx * width, cy * width)
        draw.polygon(leaf.ravel().tolist(), fill=_CLUTTER + i)
    slope, thick = 0.5 * (u[36] - 0.5), width * (0.025 + 0.02 * u[37])
    left, right = y - slope * x, y + slope * (width - x)
    draw.polygon([0, left, width, right, width, right + thick, 0, left + 1.3 * thick], fill=_WOOD)
    for (_, colour, _), polygon in zip(_SHAPES, np.split(points, _ENDS), strict=True):
        draw.polygon(polygon.ravel().tolist(), fill=_NUMBERS[colour])
    numbers = np.asarray(canvas)  # (2S, 2S)

    body = _BODIES[int(5 * u[38])] * (0.85 + 0.3 * u[39])
    jitter = 24 * u[40:52].reshape(4, 3) - 12
    palette = np.zeros((_COLOURS, 4), np.float32)  # red, green, blue, coverage
    palette[_CLUTTER:_WOOD, :3] = _ALL_COLOURS[(20 * u[52:58]).astype(int)] * 0.75 + 25
    palette[_WOOD, :3] = (85 + 40 * u[58], 65 + 30 * u[58], 50 + 20 * u[58])
    beak = (60, 55, 50) if u[59] < 0.5 else (225, 160, 60)
    plain = ((70, 60, 55), body, 0.72 * body, 0.5 * body, beak, (235, 235, 230), (10, 10, 10))
    palette[_FIRST_BIRD : _FIRST_BIRD + len(plain), :3] = plain  # in the order of _BIRD
    for part, (name, values) in enumerate(PARTS.items()):
        palette[_NUMBERS[name], :3] = list(values.values())[attributes[part]] + jitter[part]
    palette[_CLUTTER:, 3] = 1
    painted = _halve(palette[numbers]) / 4  # (S, S, 4)

    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    top, bottom = _SCENES[int(6 * u[60])]
    blur = _interpolation(size)
    # Rather lighter and darker than of another hue: one grey field and three weaker coloured ones.
    knots = rng.normal(0, [[[22]], [[8]], [[8]], [[8]]], (4, 6, 6)).astype(np.float32)
    soft = blur @ (knots[:1] + knots[1:]) @ blur.T  # (3, S, S)
    scene = top + (bottom - top) * ramp + soft.transpose(1, 2, 0)
    image = painted[..., :3] + (1 - painted[..., 3:]) * scene
    across = ramp.transpose(1, 0, 2) - 0.5
    # Light from above, and a little from one side.
    image *= 1.02 + 0.24 * (u[61] - 0.5) + 0.3 * (u[62] - 0.5) * across - 0.18 * (ramp - 0.5)
    image += rng.standard_normal((size, size, 3), dtype=np.float32) * (3 + 5 * np.float32(u[64]))
    np.clip(image, 0, 255, out=image)

    mask = _halve((numbers >= _FIRST_BIRD).view(np.uint8)) >= 2  # at least half of the pixel
    parts = [_box(_halve((numbers == _NUMBERS[name]).view(np.uint8)) >= 2) for name in PARTS]
    return Drawing((image + 0.5).astype(np.uint8).transpose(2, 0, 1), mask, _box(mask), parts)
