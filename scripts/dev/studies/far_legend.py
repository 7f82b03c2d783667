"""Pictures in which the label of every patch depends on a legend in a corner: dense features with far-apart evidence.

The picture is a mosaic of three colours on the texture of a photograph. Three framed signs in its upper left corner show the colours in
some order, and the label of a patch is the place of its colour in that order: only who reads the legend can be better than chance. In the
control pictures the legend is left out.
"""

from __future__ import annotations

import numpy as np

from .far_drawing import CELL, Textures
from .far_running import run_study
from .far_systems import PictureTask
from .far_task import Shown

COLOURS = np.array([(160, 40, 40), (40, 130, 40), (50, 60, 180)])
TINT = 0.5
"""Share of the colour in a patch of the mosaic; the rest is texture."""
FRAME = 3
"""Pixels of the white frame of a sign of the legend."""
BLOCK = 2
"""Patches along each side of a block of one colour."""


class Legend(PictureTask):
    """Every patch's label is the place of its colour in the legend; in easy pictures the legend is always the same."""

    name = "legend"
    classes = len(COLOURS)
    labelled = "tokens"
    easy_share = 0.5  # without it, no small model had found out within minutes that signs and colours belong together

    def __init__(self) -> None:
        self.textures = Textures()

    def picture(self, shown: Shown, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        cells = shown.size // CELL
        blocks = random.integers(0, self.classes, (-(-cells // BLOCK),) * 2)
        colours = blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)[:cells, :cells]
        tint = COLOURS[colours].repeat(CELL, 0).repeat(CELL, 1)
        picture = (self.textures.crop(shown.size, random) * (1 - TINT) + tint * TINT).astype(np.uint8)
        order = np.arange(self.classes) if random.random() < shown.easy else random.permutation(self.classes)
        labels = np.argsort(order)[colours]
        for place, colour in enumerate(order):
            sign = picture[:CELL, place * CELL : (place + 1) * CELL]
            if not shown.control:
                sign[:] = 255
                sign[FRAME:-FRAME, FRAME:-FRAME] = COLOURS[colour]
            labels[0, place] = -100
        return picture, labels.ravel()

    def sentence(self, size: int) -> str:
        return (
            f"A mosaic of three colours in a picture of {size} × {size} pixels; three framed signs of {CELL} pixels in a corner show the "
            "colours in some order, and the label of every patch is the place of its colour in it: accuracy over patches, chance 33 %. In "
            "the control the legend is left out."
        )


if __name__ == "__main__":
    run_study([Legend])
