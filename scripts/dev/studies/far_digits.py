"""Pictures whose label needs two places that lie far apart: a small ViT that read small pictures, converted to large ones.

Two of scikit-learn's 1,797 handwritten digits are drawn on a crop of one of its photographs, at least half the picture's side apart. The
label is their sum modulo 10 (``--task sum``), or whether the red one is smaller than, equal to or larger than the blue one
(``compare``). In the control pictures one digit is left out: no model can be better than chance at the sum, nor right in more than 52 % of
the comparisons, since a large digit is more often the larger one.
"""

from __future__ import annotations

import numpy as np

from .far_drawing import CELL, TRAINING_DIGITS, Handwriting, Textures, far_places
from .far_running import run_study
from .far_systems import PictureTask
from .far_task import Shown

WHITE, RED, BLUE = (255, 255, 255), (255, 60, 60), (60, 120, 255)


class TwoDigits(PictureTask):
    """Two digits far apart, whose label is a function of both."""

    tints = (WHITE, WHITE)
    easy_first = True

    def __init__(self) -> None:
        self.textures, self.handwriting = Textures(), Handwriting()

    def label(self, first: int, second: int) -> int:
        """The label of two digits."""
        raise NotImplementedError

    def easy_label(self, place: int, digit: int) -> int:
        """The label of an easier picture, which has the first or the second digit alone."""
        raise NotImplementedError

    def picture(self, shown: Shown, random: np.random.Generator) -> tuple[np.ndarray, int]:
        digits, label = self.two_digits(shown, random)
        picture = self.textures.crop(shown.size, random)
        easy = random.random() < shown.easy
        absent = int(random.integers(2))
        for number, (digit, place, tint) in enumerate(zip(digits, far_places(shown.size, random), self.tints, strict=True)):
            if number != absent or not (easy or shown.control):
                self.handwriting.draw(picture, place, digit, tint, random)
        return picture, self.easy_label(1 - absent, int(self.handwriting.names[digits[1 - absent]])) if easy else label

    def two_digits(self, shown: Shown, random: np.random.Generator) -> tuple[tuple[int, int], int]:
        """Two digits and their label, of which each is as frequent as any other."""
        names = self.handwriting.names
        low, high = (TRAINING_DIGITS, len(names)) if shown.held_out else (0, TRAINING_DIGITS)
        wanted = int(random.integers(self.classes))
        while True:
            first, second = (int(number) for number in random.integers(low, high, 2))
            if self.label(int(names[first]), int(names[second])) == wanted:
                return (first, second), wanted

    def about(self, size: int) -> str:
        """What all pictures of two digits have in common."""
        return (
            f"Two handwritten digits of {CELL} pixels, at least {size // 2} pixels apart in a picture of {size} × {size} pixels; digits of "
            "other writers are measured than were learned."
        )


class Sum(TwoDigits):
    """The sum of two white digits modulo 10; easier pictures have one digit, and their label is that digit."""

    name = "sum"
    classes = 10

    def label(self, first: int, second: int) -> int:
        return (first + second) % 10

    def easy_label(self, place: int, digit: int) -> int:
        return digit

    def sentence(self, size: int) -> str:
        return f"{self.about(size)} The label is their sum modulo 10, chance 10 %; in the control one digit is left out."


class Compare(TwoDigits):
    """Whether the red digit is smaller than, equal to or larger than the blue one; an absent one counts as 4 and as 5."""

    name = "compare"
    classes = 3
    tints = (RED, BLUE)

    def label(self, first: int, second: int) -> int:
        return 1 + (first > second) - (first < second)

    def easy_label(self, place: int, digit: int) -> int:
        larger = int(digit > 5) - int(digit < 4)
        return 1 + (larger if place == 0 else -larger)

    def sentence(self, size: int) -> str:
        return (
            f"{self.about(size)} The label is whether the red one is smaller than, equal to or larger than the blue one, chance 33 %; "
            "in the control one digit is left out, and no model can be right in more than 52 %."
        )


if __name__ == "__main__":
    run_study([Sum, Compare])
