"""`longattn train qa` for a short model that will be converted: it is trained under windows and at positions of its later conversion.

    python -m scripts.dev.studies.varied_windows --model first --data second.jsonl --output second

In every step, document tokens see the question and 64 or 128 tokens on either side, or everything. Without this, a model connects two
places by attention between distant tokens, which the conversion removes. Question and document are placed at random rows of the position
table, so that all rows are trained.
"""

from __future__ import annotations

import random
import sys
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from hf_longattn.cli.train import train
from hf_longattn.training.tasks import qa
from hf_longattn.training.trainer import LongTrainer

WINDOWS = (0, 64, 128)
"""Tokens on either side of a document's token, drawn for each batch; 0 = all."""


class VariedTrainer(LongTrainer):
    """Trains with positions and windows that are drawn anew for each batch, and are the same again in a resumed run."""

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        draw = random.Random(repr(inputs["input_ids"].tolist()))
        first, real = inputs["token_type_ids"].argmax(1), inputs["attention_mask"]
        rows = self.accelerator.unwrap_model(model).config.max_position_embeddings  # of BERT's table
        positions = random_positions(first, real.shape[1], rows, torch.Generator().manual_seed(draw.getrandbits(63)))
        half = draw.choice(WINDOWS)
        varied = {**inputs, "position_ids": positions, **({"attention_mask": window_mask(first, real, half)} if half else {})}
        return super().training_step(model, varied, *args, **kwargs)


def random_positions(first: Tensor, length: int, count: int, generator: torch.Generator) -> Tensor:
    """Position ids ``(B, length)`` with question and document placed independently in a table of ``count`` rows.

    A document wraps around the end of the table. A tiled table looks the same: any row at any place, with a seam between copies.

    Args:
        first: (B,), where documents start.
    """
    places = torch.arange(length, device=first.device)
    starts = torch.randint(0, count, (len(first), 2), generator=generator).to(first.device)
    return (torch.where(places < first[:, None], starts[:, :1], starts[:, 1:]) + places) % count


def window_mask(first: Tensor, real: Tensor, half: int) -> Tensor:
    """A boolean mask ``(B, 1, L, L)``: document tokens see the question and ``half`` tokens on either side, as after a conversion.

    Args:
        first: (B,), where documents start.
        real: (B, L), 1 for tokens that are not padding.
    """
    places = torch.arange(real.shape[1], device=real.device)
    question = places < first[:, None]
    seen = ((places[:, None] - places).abs() <= half) | question[:, None, :] | question[:, :, None]
    return (seen & real[:, None, :].bool())[:, None]


if __name__ == "__main__":
    with patch.object(qa, "LongTrainer", VariedTrainer):
        sys.exit(train("qa", sys.argv[1:]))
