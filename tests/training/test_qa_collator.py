"""Batches: padded to the longest, masked where padded, at random places of the position table when asked."""

from __future__ import annotations

import torch
from transformers import BertForQuestionAnswering, RobertaConfig, RobertaForQuestionAnswering

from hf_longattn.training.qa_collator import PositionRange, QACollator
from hf_longattn.training.qa_features import QAFeature


def feature(length: int, **extra: object) -> QAFeature:
    inputs = {"input_ids": [7] * length, "token_type_ids": [1] * length, "global_attention_mask": [1] * length}
    return QAFeature(inputs, [None] * length, **extra)  # type: ignore[arg-type]


def test_padding() -> None:
    batch = QACollator(pad_token_id=3)([feature(4, start=2, end=3, trail=[1]), feature(2)])
    assert batch["input_ids"].tolist() == [[7, 7, 7, 7], [7, 7, 3, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["token_type_ids"][1].tolist() == [1, 1, 0, 0]
    assert batch["global_attention_mask"][1].tolist() == [1, 1, 0, 0]
    assert batch["start_positions"].tolist() == [2, 0]
    assert batch["trail"].tolist() == [[[1]], [[-1]]]
    assert batch["starts"].tolist() == [[2], [0]]
    assert batch["links"].shape == (2, 0, 2)
    assert "position_ids" not in batch


def test_groups_are_flattened() -> None:
    assert QACollator(0)([[feature(4), feature(3)]])["input_ids"].shape == (2, 4)


def test_random_positions_stay_in_the_table(tiny_model: BertForQuestionAnswering) -> None:
    positions = PositionRange.of(tiny_model)
    assert positions == PositionRange(0, 512)
    collate = QACollator(0, positions)
    starts = set()
    for _ in range(20):
        ids = collate([feature(400), feature(10)])["position_ids"]
        assert ids.shape == (2, 400)
        assert bool((ids.diff(dim=1) == 1).all())
        assert ids.min() >= 0
        assert ids.max() < 512
        starts.add(int(ids[0, 0]))
    assert len(starts) > 10
    assert int(collate([feature(512)])["position_ids"][0, 0]) == 0


def test_roberta_counts_behind_its_padding_row() -> None:
    config = RobertaConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, max_position_embeddings=34
    )
    assert PositionRange.of(RobertaForQuestionAnswering(config)) == PositionRange(2, 32)


def test_a_model_without_a_table_has_no_range() -> None:
    class Rotary(torch.nn.Module):
        base_model = torch.nn.Module()

    assert PositionRange.of(Rotary()) is None  # type: ignore[arg-type]
