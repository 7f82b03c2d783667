"""Features to padded batches."""

from __future__ import annotations

from collections.abc import Iterable
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
        positions: start every row at a random position of this range, so that the whole table is trained and nothing
            depends on absolute places; None = the model's own positions.
        seed: of the random positions.
    """

    model_inputs = ("input_ids", "token_type_ids", "attention_mask", "global_attention_mask", "position_ids")
    """The keys of a batch that a model takes for inference."""

    def __init__(self, pad_token_id: int, positions: PositionRange | None = None, seed: int = 0) -> None:
        self.pad_token_id = pad_token_id
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
        batch["start_positions"] = torch.tensor([row.start for row in rows])
        batch["end_positions"] = torch.tensor([row.end for row in rows])
        batch |= _pointed(rows)
        if self.positions is not None:
            batch["position_ids"] = self._random_positions(len(rows), length)
        batch["task"] = rows[0].task
        return batch

    def _random_positions(self, rows: int, length: int) -> torch.Tensor:
        assert self.positions is not None
        free = max(1, self.positions.count - length + 1)
        offsets = torch.randint(0, free, (rows, 1), generator=self.generator)
        return (self.positions.first + offsets + torch.arange(length)).clamp(max=self.positions.first + self.positions.count - 1)


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
    return {
        "ask": torch.tensor([[question[0] for question in questions] for questions in full]),
        "starts": torch.tensor([[question[1] for question in questions] for questions in full]),
        "ends": torch.tensor([[question[2] for question in questions] for questions in full]),
        "links": torch.tensor([row.links + [(-1, -1)] * (linked - len(row.links)) for row in rows]).view(len(rows), linked, 2),
        "trail": torch.tensor([[question[3] + [-1] * (steps - len(question[3])) for question in questions] for questions in full]),
    }
