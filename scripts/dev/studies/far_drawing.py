"""What pictures with far-apart evidence are drawn from: photographs as texture, handwritten digits, and places that lie far apart."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

CELL = 16
"""Pixels of a digit or another sign along each side; they lie on multiples of it."""
TRAINING_DIGITS = 1_400
"""The first digits are drawn in training pictures, the others, of other writers, in those that are measured."""
VARIANTS = 8
"""Slightly turned, moved and resized copies of a training digit, the first of which is the digit itself."""
CANVAS = 3_072
"""Pixels along each side of a photograph that is continued by its mirror images, from which textures are cut."""
CONTRAST = 0.35
"""Share of a photograph's brightness in a texture."""


class Textures:
    """Dark crops of scikit-learn's photographs."""

    def __init__(self, canvas: int = CANVAS) -> None:
        self.canvases = []
        for photograph in load_sample_images().images:
            rows, columns = (max(0, canvas - length) for length in photograph.shape[:2])
            dark = (photograph * CONTRAST).astype(np.uint8)
            self.canvases.append(np.pad(dark, ((0, rows), (0, columns), (0, 0)), mode="symmetric"))

    def crop(self, size: int, random: np.random.Generator) -> np.ndarray:
        """A crop ``(size, size, 3)``, one half of them mirrored."""
        canvas = self.canvases[int(random.integers(len(self.canvases)))]
        top, left = (int(random.integers(length - size + 1)) for length in canvas.shape[:2])
        crop = canvas[top : top + size, left : left + size]
        return (crop[:, ::-1] if random.random() < 0.5 else crop).copy()


class Handwriting:
    """The strokes of scikit-learn's 1,797 handwritten digits as opacities ``(CELL, CELL)``."""

    def __init__(self) -> None:
        digits = load_digits()
        self.names = digits.target
        random = np.random.default_rng(0)
        images = [Image.fromarray((15.9 * image).astype(np.uint8)) for image in digits.images]
        self.strokes = [
            [_stroke(image, random if variant else None) for variant in range(VARIANTS if number < TRAINING_DIGITS else 1)]
            for number, image in enumerate(images)
        ]

    def draw(
        self, picture: np.ndarray, place: tuple[int, int], digit: int, tint: tuple[int, int, int], random: np.random.Generator
    ) -> None:
        """Draw a digit in ``picture`` with its upper left corner at ``place``."""
        variants = self.strokes[digit]
        opacity = variants[int(random.integers(len(variants)))][..., None]
        row, column = place
        cells = picture[row : row + CELL, column : column + CELL]
        cells[:] = cells * (1 - opacity) + np.array(tint) * opacity


def _stroke(image: Image.Image, random: np.random.Generator | None) -> np.ndarray:
    """A digit of 8 × 8 cells in ``CELL`` pixels, as it is or slightly changed."""
    turn, scale, *shift = (0.0, 1.0, 0.0, 0.0) if random is None else (
        random.normal(0, 0.12), random.uniform(0.88, 1.12), *random.normal(0, 0.35, 2)
    )  # fmt: skip
    middle, step = (CELL - 1) / 2, 8 / CELL / scale
    cosine, sine = step * math.cos(turn), step * math.sin(turn)
    offsets = [4 + moved - middle * (cosine + sign * sine) for moved, sign in zip(shift, (1, -1), strict=True)]
    coefficients = (cosine, sine, offsets[0], -sine, cosine, offsets[1])
    changed = image.transform((CELL, CELL), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(changed).astype(np.float32) / 255


def far_places(size: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """The upper left corners of two signs on multiples of ``CELL``, at least half the picture's side apart."""
    while True:
        rows, columns = (CELL * random.integers(0, size // CELL, 2) for _ in range(2))
        if math.hypot(rows[0] - rows[1], columns[0] - columns[1]) >= size / 2:
            return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True)]
