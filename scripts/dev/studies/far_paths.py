"""Pathfinder (Linsley et al. 2018, Learning long-range spatial dependencies; Long Range Arena, Tay et al. 2021): are two dots on one path?

Two dashed curves are drawn among shorter ones, which distract. Two dots lie on the ends of one of them, or on an end of each. Drawn by a
generator of our own after the papers' description; in the control pictures the long curves are left out.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from PIL import Image, ImageDraw

from .far_drawing import Shown, Task
from .far_running import run_study

DASH, GAP, WIDTH = 6, 4, 2
"""Pixels of a dash, between two dashes, and across."""
DOT = 4
"""Radius of a dot in pixels."""
LONG, SHORT = 0.9, 0.3
"""Length of a curve in sides of the picture: of those that may join the dots, and of those that distract."""
DISTRACTORS = 4
"""Curves that distract in a picture of 128 pixels; larger pictures have as many more as their side is larger."""
TURN = 0.25
"""Standard deviation in radians of the change of direction from dash to dash."""
MARGIN = 6
"""Pixels at the border without a curve, and between the two long ones."""


class Paths(Task):
    """Whether two dots are joined by a dashed curve."""

    name = "paths"
    classes = 2
    patch = 8

    def picture(self, shown: Shown, random: np.random.Generator) -> tuple[np.ndarray, int]:
        size = shown.size
        first, second = self._two_curves(size, random)
        joined = int(random.integers(2))
        image = Image.new("L", (size, size))
        draw = ImageDraw.Draw(image)
        for _ in range(round(DISTRACTORS * size / 128)):
            self._draw(draw, curve(size, SHORT * 128, random))
        if not shown.control:
            self._draw(draw, first)
            self._draw(draw, second)
        for row, column in (first[0], first[-1] if joined else second[-1]):
            draw.ellipse((column - DOT, row - DOT, column + DOT, row + DOT), fill=255)
        return np.repeat(np.asarray(image)[..., None], 3, 2), joined

    def _two_curves(self, size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        while True:
            first, second = (curve(size, LONG * size, random) for _ in range(2))
            if np.linalg.norm(first[:, None] - second[None], axis=-1).min() > MARGIN:
                return first, second

    def _draw(self, draw: ImageDraw.ImageDraw, points: np.ndarray) -> None:
        """Draw dashes between ``points (n, 2)``, which lie a dash and a gap apart."""
        for (row, column), (next_row, next_column) in itertools.pairwise(points):
            part = DASH / (DASH + GAP)
            end = (column + part * (next_column - column), row + part * (next_row - row))
            draw.line(((column, row), end), fill=200, width=WIDTH)

    def sentence(self, size: int) -> str:
        return (
            f"Pathfinder at {size} × {size} pixels: two dots lie on the ends of one dashed curve, or on ends of two; shorter curves "
            "distract. Chance 50 %; in the control the two long curves are left out."
        )


def curve(size: int, length: float, random: np.random.Generator) -> np.ndarray:
    """Points ``(n, 2)`` of a smooth curve inside the picture, a dash and a gap apart; a new one is drawn until it stays inside."""
    step = DASH + GAP
    while True:
        turns = np.cumsum(random.normal(0, TURN, max(2, round(length / step)))) + random.uniform(0, 2 * math.pi)
        moves = step * np.stack([np.sin(turns), np.cos(turns)], 1)
        points = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, 0)])
        room = size - 2 * MARGIN - np.ptp(points, axis=0)
        if (room > 0).all():
            return points - points.min(0) + MARGIN + random.uniform(0, room)


if __name__ == "__main__":
    run_study([Paths])
