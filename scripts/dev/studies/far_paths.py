"""Pathfinder (Linsley et al. 2018, Learning long-range spatial dependencies; Long Range Arena, Tay et al. 2021): are two dots on one path?

Two dashed curves are drawn among shorter ones, which distract. Two dots lie on the ends of one of them, or on an end of each, at least
half the picture apart and about as far in both cases. Drawn by a generator of our own after the papers' description; in the control
pictures the long curves are left out.

One label a picture is little to learn from, so that in training patches have labels as well: whether the long curve that passes there has
no dot, one, or both. The class token is trained on the last two, and its answer alone is measured.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
from PIL import Image, ImageDraw

from .far_running import run_study
from .far_systems import PictureTask
from .far_task import Shown

DASH, GAP, WIDTH = 6, 4, 2
"""Pixels of a dash, between two dashes, and across."""
DOT = 4
"""Radius of a dot in pixels."""
LONG = 0.75
"""Length in sides of the picture of the two curves that may join the dots."""
SHORT = 24
"""Pixels of a curve that distracts."""
DISTRACTORS = 2
"""Curves that distract in a picture of 128 pixels; larger pictures have as many more as their side is larger."""
TURN = 0.1
"""Standard deviation in radians of the change of direction from dash to dash."""
MARGIN = 6
"""Pixels at the border without a curve."""
BETWEEN = 10
"""Pixels between the ends of dashes of different curves."""
ALIKE = 0.15
"""Sides of the picture by which two ends of one curve and two ends of different curves differ at most in their distance."""
TRIES = 256
"""Curves drawn at once, of which those inside the picture are used."""

NO_DOT, ONE_DOT, BOTH_DOTS = 0, 1, 2


class Paths(PictureTask):
    """Whether two dots are joined by a dashed curve."""

    name = "paths"
    classes = 3
    labelled = "both"
    positions = "interpolate"
    patch = 8

    def __init__(self) -> None:
        self.pairs: dict[int, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)

    def picture(self, shown: Shown, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        size = shown.size
        first, second = self._two_curves(size, random)
        joined = int(random.integers(2))
        image = Image.new("L", (size, size))
        draw = ImageDraw.Draw(image)
        if not shown.control:
            self._draw(draw, first)
            self._draw(draw, second)
        for points in curves(size, SHORT, round(DISTRACTORS * size / 128), random):
            if distances(points[None], np.concatenate([first, second])[None]).min() > BETWEEN:
                self._draw(draw, points)
        for row, column in (first[0], first[-1] if joined else second[-1]):
            draw.ellipse((column - DOT, row - DOT, column + DOT, row + DOT), fill=255)
        kinds = (BOTH_DOTS, NO_DOT) if joined else (ONE_DOT, ONE_DOT)
        labels = np.full(1 + (size // self.patch) ** 2, -100)
        labels[0] = kinds[0]
        if not shown.held_out:
            for points, kind in zip((first, second), kinds, strict=True):
                labels[1 + self._patches(size, points)] = kind
        return np.repeat(np.asarray(image)[..., None], 3, 2), labels

    def _patches(self, size: int, points: np.ndarray) -> np.ndarray:
        """The numbers of the patches that a curve passes."""
        rows, columns = (np.linspace(points[:-1], points[1:], 5).reshape(-1, 2) // self.patch).astype(int).T
        return rows * (size // self.patch) + columns

    def _two_curves(self, size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        pairs = self.pairs[size]
        while not pairs:
            pairs.extend(pairs_of_curves(size, random))
        return pairs.pop()

    def _draw(self, draw: ImageDraw.ImageDraw, points: np.ndarray) -> None:
        """Draw dashes between ``points (n, 2)``, which lie a dash and a gap apart."""
        for (row, column), (next_row, next_column) in itertools.pairwise(points):
            part = DASH / (DASH + GAP)
            end = (column + part * (next_column - column), row + part * (next_row - row))
            draw.line(((column, row), end), fill=200, width=WIDTH)

    def sentence(self, size: int) -> str:
        return (
            f"Pathfinder at {size} × {size} pixels: two dots, at least {size // 2} pixels apart, lie on the ends of one dashed curve, or "
            "of two, as far from each other; shorter curves distract. Chance 50 %; in the control the two long curves are left out. In "
            "training the patches that a long curve passes have labels as well: whether that curve has no dot, one, or both."
        )


def distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The smallest distances ``(b,)`` between points ``(b, n, 2)`` and others ``(b, m, 2)``."""
    return np.sqrt(np.square(points[:, :, None] - others[:, None]).sum(-1).min((1, 2)))


def pairs_of_curves(size: int, random: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of long curves apart from each other, of which ends of one and ends of both are about as far from each other."""
    first, second = (curves(size, LONG * size, TRIES, random) for _ in range(2))
    count = min(len(first), len(second))
    first, second = first[:count], second[:count]
    joined, apart = (np.linalg.norm(first[:, 0] - ends[:, -1], axis=1) for ends in (first, second))
    useful = (np.minimum(joined, apart) >= size / 2) & (np.abs(joined - apart) <= ALIKE * size)
    first, second = first[useful], second[useful]
    useful = distances(first, second) > BETWEEN
    return list(zip(first[useful], second[useful], strict=True))


def curves(size: int, length: float, tries: int, random: np.random.Generator) -> np.ndarray:
    """Smooth curves as points ``(curves, n, 2)``, a dash and a gap apart: those of ``tries`` that fit into the picture."""
    step = DASH + GAP
    dashes = max(2, round(length / step))
    angles = np.cumsum(random.normal(0, TURN, (tries, dashes)), 1) + random.uniform(0, 2 * math.pi, (tries, 1))
    moves = step * np.stack([np.sin(angles), np.cos(angles)], 2)
    points = np.concatenate([np.zeros((tries, 1, 2)), np.cumsum(moves, 1)], 1)
    points -= points.min(1, keepdims=True)
    room = size - 2 * MARGIN - points.max(1)
    inside = (room > 0).all(1)
    return points[inside] + MARGIN + random.uniform(0, room[inside])[:, None]


if __name__ == "__main__":
    run_study([Paths])
