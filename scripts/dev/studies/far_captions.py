"""Captions of 200 words whose last sentence alone says which of eight pictures is meant: a small CLIP, with its text tower lengthened.

Every picture shows a shape of some colour at some place on a grey ground; the eight differ in these. The words before the last sentence are
about other things. A small CLIP learned captions of up to 60 words, of at most 77 tokens, from random weights. In the control, the last
sentence is left out.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from hf_longattn.families.clip import LongCLIPConfig, LongCLIPModel

from .far_running import FULL, Stage, run_study
from .far_task import Labelled, Shown, System, Task

SHAPES, COLOURS, PLACES = ("disc", "square", "triangle", "cross"), ("red", "green", "blue", "yellow", "cyan", "purple"), (0, 1, 2, 3)
TINTS = ((230, 40, 40), (40, 200, 60), (50, 80, 240), (235, 220, 40), (40, 220, 220), (190, 50, 210))
PLACE_WORDS = (("top", "left"), ("top", "right"), ("bottom", "left"), ("bottom", "right"))
NAMES = (*SHAPES, *COLOURS, "top", "bottom", "left", "right", "a", "at", "the", "shows", "picture", ".")
OTHERS = 200
"""Words of which the sentences before the last are made."""
PAD, BEGIN = 0, 1
IDS = {word: 2 + number for number, word in enumerate(NAMES)}
END = 2 + len(NAMES) + OTHERS
CANDIDATES, SIDE, PATCH = 8, 32, 8
SHORT_TOKENS, LONG_TOKENS = 77, 248
SENTENCE = (6, 12)
"""Least and most words of a sentence."""
PIXELS = CANDIDATES * 3 * SIDE * SIDE


class Captions(Task):
    """A caption and eight pictures, of which the one that it describes is the label; both are numbers of one row."""

    name = "captions"
    classes = CANDIDATES
    item = "caption"
    unit = "words"
    making = "writing and drawing"
    baselines = ("truncated",)
    baseline_word = "77 tokens"
    defaults = {
        "systems": ["truncated", "tile", "window", FULL],
        "stages": [Stage(120, 640, 32), Stage(200, 1280, 32)],
        "short_size": 60,
        "short_minutes": 1.5,
        "short_batch": 32,
        "halved": 0.5,
        "layers": 3,
        "width": 64,
        "rate": 1e-3,
        "test_examples": 400,
        "other_examples": 200,
    }

    def batch(self, shown: Shown, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Rows of :data:`LONG_TOKENS` token ids and the pixels of the pictures, and which picture is meant."""
        rows, labels = torch.zeros(count, LONG_TOKENS + PIXELS), torch.zeros(count, dtype=torch.long)
        for number in range(count):
            things = self.things(random)
            label = int(random.integers(CANDIDATES))
            ids = torch.tensor(self.caption(things[label], shown, random))
            rows[number, : len(ids)] = ids
            rows[number, LONG_TOKENS:] = torch.from_numpy(self.pictures(things, random)).flatten()
            labels[number] = label
        return rows, labels

    def things(self, random: np.random.Generator) -> list[tuple[int, int, int]]:
        """Shape, colour and place of the thing in each picture, no two alike."""
        numbers = random.choice(len(SHAPES) * len(COLOURS) * len(PLACES), CANDIDATES, replace=False)
        return [(number % 4, number // 4 % 6, number // 24) for number in numbers.tolist()]

    def caption(self, thing: tuple[int, int, int], shown: Shown, random: np.random.Generator) -> list[int]:
        """The token ids of a caption of about ``shown.size`` words; short ones have any number of words up to it."""
        shape, colour, place = thing
        words = ["the", "picture", "shows", "a", COLOURS[colour], SHAPES[shape], "at", "the", *PLACE_WORDS[place], "."]
        short = shown.size <= SHORT_TOKENS
        count = int(random.integers(len(words), shown.size + 1)) if short else shown.size
        ids = [] if shown.control else [IDS[word] for word in words]
        before: list[int] = []
        while (missing := count - len(words) - len(before)) > 1:
            length = min(missing, int(random.integers(*SENTENCE)))
            before += [*(2 + len(NAMES) + random.integers(0, OTHERS, length - 1)).tolist(), IDS["."]]
        return [BEGIN, *before, *ids, END]

    def pictures(self, things: list[tuple[int, int, int]], random: np.random.Generator) -> np.ndarray:
        """``(pictures, 3, side, side)`` from -1 to 1, all on the same ground."""
        ground, axis = random.integers(60, 140), np.arange(SIDE)
        drawn = np.empty((len(things), 3, SIDE, SIDE), np.float32)
        for number, (shape, colour, place) in enumerate(things):
            row, column = (SIDE // 4 + SIDE // 2 * half + random.integers(-2, 3) for half in divmod(place, 2))
            radius = random.integers(5, 8)
            down, right = (axis - row)[:, None], (axis - column)[None]
            inside = (
                down**2 + right**2 <= radius**2,
                (abs(down) < radius) & (abs(right) < radius),
                (abs(right) * 2 <= down + radius) & (down < radius),
                ((abs(down) < radius) & (abs(right) < 2)) | ((abs(right) < radius) & (abs(down) < 2)),
            )[shape]
            drawn[number] = np.where(inside, np.array(TINTS[colour])[:, None, None], ground)
        return (drawn + random.normal(0, 8, drawn.shape)) / 127.5 - 1

    def sentence(self, size: int) -> str:
        return (
            f"Captions of {size} words, whose last sentence alone says which of {CANDIDATES} pictures is meant (shape, colour and place of "
            "the thing in it); chance 12.5 %. In the control the last sentence is left out."
        )

    def about_model(self, settings: Mapping[str, Any]) -> str:
        return f"A CLIP of {settings['layers']} + {settings['layers']} layers, width {settings['width']} and 77 positions"

    def tokens(self, size: int) -> str:
        return f"{size + 2} tokens"

    def small_model(self, args: argparse.Namespace, seed: int) -> CLIPModel:
        tower = {
            "hidden_size": args.width,
            "intermediate_size": 2 * args.width,
            "num_hidden_layers": args.layers,
            "num_attention_heads": args.width // 16,
            "projection_dim": args.width,
        }
        text = {"vocab_size": END + 1, "pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
        config = CLIPConfig(
            text_config={**tower, **text, "max_position_embeddings": SHORT_TOKENS},
            vision_config={**tower, "image_size": SIDE, "patch_size": PATCH},
            projection_dim=args.width,
        )
        return CLIPModel(config)

    def small_logits(self, model: nn.Module, inputs: Tensor, labelled: Labelled) -> Tensor:
        return read(model, inputs, labelled, SHORT_TOKENS)

    def systems(self, args: argparse.Namespace) -> dict[str, System]:
        long = functools.partial(read, tokens=LONG_TOKENS)
        window = {"mechanism": "window", "window": 64}
        return {
            "truncated": System("CLIP, captions cut to 77 tokens", lambda folder, size: CLIPModel.from_pretrained(folder), truncated),
            "tile": System("LongCLIP, 248 positions by tiling", functools.partial(lengthened, positions="tile"), long, similarities),
            "window": System("LongCLIP, stretched, windows of 64", functools.partial(lengthened, attention=window), long, similarities),
            FULL: System("LongCLIP, stretched, full attention", lengthened, long, similarities),
        }


def lengthened(folder: Path, size: int, positions: str = "stretch", attention: Mapping[str, Any] | None = None) -> nn.Module:
    """The small model with a text tower of 248 positions; pictures are read as they were."""
    full = {"mechanism": "full"}
    config = LongCLIPConfig.from_pretrained(folder, long_attention={"towers": {"text": dict(attention or full), "vision": full}})
    config.text_config.max_position_embeddings, config.text_config.position_extension = LONG_TOKENS, positions
    model: nn.Module = LongCLIPModel.from_pretrained(folder, config=config)
    return model


def truncated(model: nn.Module, inputs: Tensor, labelled: Labelled) -> Tensor:
    """The logits of captions that are cut as a tokenizer cuts them: the last of 77 tokens is the end of the text."""
    ids = inputs[:, :LONG_TOKENS].long()
    lengths = (ids != PAD).sum(1)
    ids = ids[:, :SHORT_TOKENS].clone()
    ids[lengths > SHORT_TOKENS, -1] = END
    return read(model, torch.cat([ids, inputs[:, LONG_TOKENS:]], 1), labelled, SHORT_TOKENS)


def read(model: Any, inputs: Tensor, labelled: Labelled, tokens: int) -> Tensor:
    """The similarities of captions of up to ``tokens`` tokens and their pictures, ``(B, pictures)``, by the model's temperature."""
    pixels = inputs[:, inputs.shape[1] - PIXELS :].reshape(-1, 3, SIDE, SIDE)
    ids = inputs[:, : min(tokens, inputs.shape[1] - PIXELS)].long()
    ids = ids[:, : int((ids != PAD).sum(1).max())]
    text = model.get_text_features(input_ids=ids, attention_mask=(ids != PAD).long()).pooler_output
    seen = model.get_image_features(pixel_values=pixels).pooler_output.view(len(ids), CANDIDATES, -1)
    text, seen = (nn.functional.normalize(features, dim=-1) for features in (text, seen))
    return model.logit_scale.exp() * (seen @ text[:, :, None])[..., 0]


@torch.no_grad()
def similarities(folder: Path, model: nn.Module) -> str:
    """How far the similarities of short captions are from those of the small model, before training.

    Raises:
        RuntimeError: they are not equal.
    """
    small: Any = CLIPModel.from_pretrained(folder).eval()
    inputs, _ = Captions().batch(Shown(19), 64, np.random.default_rng(50_000))
    scale = small.logit_scale.exp()
    expected, measured = (read(each.eval(), inputs, "class", SHORT_TOKENS) / scale for each in (small, model))
    largest = float((measured - expected).abs().max())
    if largest > 1e-6:
        raise RuntimeError(f"The similarities of short captions differ by {largest:.1e} before training.")
    return (
        f"similarities of 64 captions of up to 21 tokens and 512 pictures before training equal CLIP's (largest difference {largest:.1e})"
    )


if __name__ == "__main__":
    run_study([Captions])
