"""Features to padded batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_longattn.training.qa_features import QAFeature

_PADDING = {"token_type_ids": 0, "global_attention_mask": 0}


@dataclass(frozen=True)
class PositionRange:
    """The rows of a learned position table that tokens may use: ``first`` … ``first + count - 1``."""

    first: int
    count: int

    @staticmethod
    def of(model: PreTrainedModel) -> PositionRange | None:
        """Return the range of a model with a learned table of absolute positions; None for any other."""
        embeddings = getattr(model.base_model, "embeddings", None)
        table = getattr(embeddings, "position_embeddings", None)
        if not isinstance(table, torch.nn.Embedding):
            return None
        first = 0 if table.padding_idx is None else table.padding_idx + 1  # RoBERTa counts from padding_idx + 1
        return PositionRange(first, table.num_embeddings - first)


class QACollator:
    """Pad features (or groups of them, as :class:`~hf_longattn.training.qa_stream.QAStream` yields) to their longest.

    Args:
        pad_token_id: the id that pads ``input_ids``.
        positions: put question and document at random positions of this range, so that the whole table is trained and
            nothing depends on absolute places; None = the model's own positions.
        windows: per batch one of these numbers w is drawn, and document tokens see the question and the w tokens on
            either side; 0 = full attention. So a short model learns to read as its conversion will. Empty = never.
        seed: of positions and windows.
    """

    model_inputs = ("input_ids", "token_type_ids", "attention_mask", "global_attention_mask", "position_ids")
    """The keys of a batch that a model takes for inference."""

    def __init__(self, pad_token_id: int, positions: PositionRange | None = None, windows: Sequence[int] = (), seed: int = 0) -> None:
        self.pad_token_id = pad_token_id
        self.windows = tuple(windows)
        self.positions = positions
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, features: Iterable[QAFeature | list[QAFeature]]) -> dict[str, Any]:
        """Return input_ids, attention_mask (B, L), …, start_positions, end_positions (B,), and where there are trails or
        several questions: ask, starts, ends (B, K), trail (B, K, T), links (B, M, 2), padded with -1.
        """
        rows = [row for feature in features for row in (feature if isinstance(feature, list) else [feature])]
        length = max(len(row) for row in rows)
        batch: dict[str, Any] = {}
        for key in rows[0].inputs:
            padding = _PADDING.get(key, self.pad_token_id)
            batch[key] = torch.tensor([row.inputs[key] + [padding] * (length - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        batch["attention_mask"] = (torch.arange(length) < lengths[:, None]).long()
        batch["document_start"] = torch.tensor(
            [next((place for place, span in enumerate(row.offsets) if span is not None), len(row)) for row in rows]
        )
        batch["start_positions"] = torch.tensor([row.start for row in rows])
        batch["end_positions"] = torch.tensor([row.end for row in rows])
        batch |= _pointed(rows)
        batch["task"] = rows[0].task
        return self.vary(batch, self.generator)

    def vary(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """The batch at random positions and under a random window, where these are wanted; ``generator`` of the CPU decides."""
        first, real = batch["document_start"].cpu(), batch["attention_mask"]
        added: dict[str, torch.Tensor] = {}
        if self.positions is not None:
            added["position_ids"] = self._random_positions(first, real.shape[1], generator)
        mask = self._window_mask(first, real.cpu(), generator) if self.windows else None
        if mask is not None:
            added["attention_mask"] = mask
        return {**batch, **{name: tensor.to(real.device) for name, tensor in added.items()}}

    def _random_positions(self, first: torch.Tensor, length: int, generator: torch.Generator) -> torch.Tensor:
        """Place question and document independently in the table, the document running on from its end to its start.

        That is how they lie in a tiled table: anywhere, with a seam every so many tokens.
        """
        assert self.positions is not None
        places = torch.arange(length)
        starts = torch.randint(0, self.positions.count, (len(first), 2), generator=generator)
        start = torch.where(places < first[:, None], starts[:, :1], starts[:, 1:])
        return self.positions.first + (start + places) % self.positions.count

    def _window_mask(self, first: torch.Tensor, real: torch.Tensor, generator: torch.Generator) -> torch.Tensor | None:
        """Draw a window; return which tokens see which, (B, 1, L, L), or None when full attention was drawn."""
        half = self.windows[int(torch.randint(0, len(self.windows), (1,), generator=generator))]
        if not half:
            return None
        places = torch.arange(real.shape[1])
        near = (places[:, None] - places).abs() <= half
        question = places < first[:, None]
        seen = near | question[:, None, :] | question[:, :, None]
        return (seen & real[:, None, :].bool())[:, None]


def _pointed(rows: list[QAFeature]) -> dict[str, torch.Tensor]:
    """Return ask, starts, ends (B, K) and trail (B, K, T); empty when no row has a trail or several questions."""
    asked = [[(a.ask, a.start, a.end, list(a.trail)) for a in row.packed] or [(row.ask, row.start, row.end, row.trail)] for row in rows]
    steps = max(len(question[3]) for questions in asked for question in questions)
    most = max(map(len, asked))
    if not steps and most == 1:
        return {}
    none = (0, -1, -1, [-1] * steps)
    linked = max(len(row.links) for row in rows)
    full = [questions + [none] * (most - len(questions)) for questions in asked]
    trails = [[question[3] + [-1] * (steps - len(question[3])) for question in questions] for questions in full]
    links = [row.links + [(-1, -1)] * (linked - len(row.links)) for row in rows]
    return {
        "ask": torch.tensor([[question[0] for question in questions] for questions in full]),
        "starts": torch.tensor([[question[1] for question in questions] for questions in full]),
        "ends": torch.tensor([[question[2] for question in questions] for questions in full]),
        "links": torch.tensor(links, dtype=torch.long).view(len(rows), linked, 2),
        "trail": torch.tensor(trails, dtype=torch.long).view(len(rows), most, steps),
    }
