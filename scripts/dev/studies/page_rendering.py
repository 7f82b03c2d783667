"""Pages set in a font: where every word is printed, and the picture of a page.

Words run in lines between margins; marks are printed in the corners of the margins. Boxes are those of the ink, in pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1240, 1754
"""A4 at 150 dots per inch."""
MARGIN = 120
EDGE = 40
"""Pixels between a mark and the edges of the page."""
MARK_SIZE = 40
SIZES = (64, 57, 50, 44, 39, 34, 30, 27, 24, 21, 19, 17, 15, 13, 12, 11, 10, 9, 8)
"""Of fonts, in pixels."""
LINE = 1.3
"""Height of a line in sizes of its font."""
WORD = 3.2
"""Width of a word and the space after it in sizes of its font, about."""
CORNERS = ("top left", "top right", "bottom left", "bottom right")
Box = tuple[int, int, int, int]


class Printed(NamedTuple):
    """A word on a page: ``place`` is where its line begins (left, top), ``box`` its ink (left, top, right, bottom), both in pixels."""

    word: str
    place: tuple[int, int]
    size: int
    box: Box


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Serif, which matplotlib brings."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSerif.ttf"), size)


@functools.lru_cache(100_000)
def ink(word: str, size: int) -> Box:
    """The box of a word printed at (0, 0); a word without ink has one pixel."""
    left, top, right, bottom = font(size).getbbox(word)
    return math.floor(left), math.floor(top), max(math.ceil(right), math.floor(left) + 1), max(math.ceil(bottom), math.floor(top) + 1)


def printed(word: str, left: int, top: int, size: int) -> Printed:
    """A word at a place, which stays on the page."""
    box = ink(word, size)
    return Printed(word, (left, top), size, (max(0, left + box[0]), top + box[1], min(WIDTH, left + box[2]), top + box[3]))


def set_words(words: Sequence[str]) -> list[Printed]:
    """The words in lines that fill a page, in the largest font in which they fit.

    Raises:
        ValueError: they do not fit on a page.
    """
    area = (WIDTH - 2 * MARGIN) * (HEIGHT - 2 * MARGIN)
    largest = math.sqrt(area / (WORD * LINE * max(1, len(words))))
    for size in (size for size in SIZES if size <= largest):
        lines = in_lines(words, size)
        if lines is not None:
            return lines
    raise ValueError(f"{len(words):,} words do not fit on a page")


def in_lines(words: Sequence[str], size: int) -> list[Printed] | None:
    """The words in lines; ``None`` where they do not fit."""
    space, height = math.ceil(font(size).getlength(" ")), round(LINE * size)
    left, top, page = MARGIN, MARGIN, []
    for word in words:
        width = ink(word, size)[2]
        if left > MARGIN and left + width > WIDTH - MARGIN:
            left, top = MARGIN, top + height
        if top + height > HEIGHT - MARGIN:
            return None
        page.append(printed(word, left, top, size))
        left += width + space
    return page


def mark(word: str, corner: int) -> Printed:
    """A word in a corner of the margins, by its number in :data:`CORNERS`."""
    width = ink(word, MARK_SIZE)[2]
    left = EDGE if corner % 2 == 0 else WIDTH - EDGE - width
    top = EDGE if corner < 2 else HEIGHT - EDGE - round(LINE * MARK_SIZE)
    return printed(word, left, top, MARK_SIZE)


def picture(page: Sequence[Printed]) -> Image.Image:
    """A page, black on white."""
    image = Image.new("L", (WIDTH, HEIGHT), 255)
    draw = ImageDraw.Draw(image)
    for word in page:
        draw.text(word.place, word.word, fill=0, font=font(word.size))
    return image
