"""A small CLIP with its tokenizer and its image processor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import transformers

from scripts.dev.tools.small_models import Shape, small_towers_config

SHAPE = Shape(width=32, layers=2, heads=4, inner=48, tokens=77)
SIZE = 32
"""Height and width of its images, in pixels."""
LINES = ["a photo of a cat", "a photo of a dog on a bench in the park", "two cats and one dog"] * 20


def save_clip(folder: Path, *, together: bool = False) -> None:
    """Save the model with an image processor in a file of its own, or ``together`` with the tokenizer's in a
    processor's."""
    tokenizer = transformers.CLIPTokenizer().train_new_from_iterator(LINES, 90)
    tokenizer.model_max_length = SHAPE.tokens
    images = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    if together:
        transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    else:
        images.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = small_towers_config("clip", replace(SHAPE, vocabulary=len(tokenizer)), initializer_factor=10.0, **ids)
    transformers.CLIPModel(config).save_pretrained(folder)
