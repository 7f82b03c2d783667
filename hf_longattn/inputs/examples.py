"""Code in a model card that makes the inputs of a model. Each kind of input writes its own lines; the hub's template runs the model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """The part of a card's code that only the kind of input knows. The rest is in ``hub/card.md``.

    task: the Hub's name for the task of a model without a head. ``None`` if the card of such a model names no task, whatever its head.
    reader: variable and class name of the tokenizer or processor; ``None`` if the folder has neither.
    inputs: Python lines that make ``inputs``, for ``model(**inputs)``; empty if the card only loads the model.
    imports: import lines that ``inputs`` needs, besides those of torch and of transformers.
    """

    task: str | None
    reader: tuple[str, str] | None = None
    inputs: str = ""
    imports: tuple[str, ...] = ()


TEXT_TASK = "feature-extraction"
"""The task of a model of texts or sounds without a head."""
IMAGE_READER = ("processor", "AutoImageProcessor")
PILLOW = "from PIL import Image"


def image_lines(height: int, width: int) -> str:
    """Lines that make an image of this many pixels, with the folder's image processor."""
    return (
        f'image = Image.new("RGB", ({width}, {height}), "white")  # or yours: Image.open("photo.jpg").convert("RGB")\n'
        'inputs = processor(image, return_tensors="pt")'
    )
