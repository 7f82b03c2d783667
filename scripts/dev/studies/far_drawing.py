"""What pictures with far-apart evidence are drawn from: photographs as texture, handwritten digits, and places that lie far apart."""

from __future__ import annotations

import abc
import math
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

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


Labelled = Literal["class", "patches", "both"]


class Shown(NamedTuple):
    """Which pictures are drawn.

    size: their side in pixels.
    held_out: whether their signs are those that training pictures do not have.
    control: whether the evidence is left out, so that no model can be better than chance.
    easy: the share of pictures of an easier form of the task, by which a model starts to learn it.
    """

    size: int
    held_out: bool = False
    control: bool = False
    easy: float = 0.0


class Task(abc.ABC):
    """Pictures and their labels."""

    name: ClassVar[str]
    classes: ClassVar[int]
    labelled: ClassVar[Labelled] = "class"
    """The tokens that have labels: the class token, the patches, or both, in this order."""
    easy_first: ClassVar[bool] = False
    """Whether a model starts with pictures of the easier form alone."""
    easy_share: ClassVar[float] = 0.0
    """Share of the easier form with which the training of a small model begins; it falls to none by half of the time."""
    patch: ClassVar[int] = CELL
    positions: ClassVar[Literal["tile", "interpolate"]] = "tile"
    """How the position table is extended to larger pictures; one that is interpolated begins with sines and cosines of rows and columns,
    by which a small model finds out within minutes where patches lie."""

    @abc.abstractmethod
    def picture(self, shown: Shown, random: np.random.Generator) -> tuple[np.ndarray, int | np.ndarray]:
        """A picture ``(size, size, 3)`` of uint8 and its label, or the labels ``(patches,)`` of its patches, or
        ``(1 + patches,)`` of the class token and them; -100 = without a label."""

    @abc.abstractmethod
    def sentence(self, size: int) -> str:
        """What is drawn and what the label says, for the page."""

    def batch(self, shown: Shown, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Pictures ``(count, 3, size, size)`` with values from -1 to 1, and labels ``(count,)`` or ``(count, tokens)``."""
        pictures, labels = zip(*(self.picture(shown, random) for _ in range(count)), strict=True)
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        return pixels.float().div_(127.5).sub_(1), torch.from_numpy(np.array(labels, dtype=np.int64))


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
