"""Batches: padded to the longest, masked where padded, at random places of the position table when asked."""

from __future__ import annotations

import torch
from transformers import BertForQuestionAnswering, RobertaConfig, RobertaForQuestionAnswering

from hf_longattn.training.qa_features import QAFeature
from research.qa_collator import PositionRange, QACollator


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
        row = feature(400)
        row.offsets[5:] = [(0, 1)] * 395
        ids = collate([row, feature(10)])["position_ids"]
        assert ids.shape == (2, 400)
        for part in (ids[0, :5], ids[0, 5:]):
            assert set((part.diff() % 512).tolist()) == {1}
        assert ids.min() >= 0
        assert ids.max() < 512
        starts.add((int(ids[0, 0]), int(ids[0, 5])))
    assert len(starts) > 10


def test_windows_hide_what_the_conversion_will_hide() -> None:
    row, short = feature(20), feature(8)
    row.offsets[3:] = [(0, 1)] * 17
    short.offsets[3:] = [(0, 1)] * 5
    mask = QACollator(0, windows=[4])([row, short])["attention_mask"]
    assert mask.shape == (2, 1, 20, 20)
    places = torch.arange(20)
    expected = ((places[:, None] - places).abs() <= 4) | (places < 3) | (places[:, None] < 3)
    assert torch.equal(mask[0, 0], expected)
    assert torch.equal(mask[1, 0], expected & (places < 8))
    drawn = {QACollator(0, windows=[0, 4], seed=seed)([row])["attention_mask"].ndim for seed in range(9)}
    assert drawn == {2, 4}


def test_roberta_counts_behind_its_padding_row() -> None:
    config = RobertaConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, max_position_embeddings=34
    )
    assert PositionRange.of(RobertaForQuestionAnswering(config)) == PositionRange(2, 32)


def test_a_model_without_a_table_has_no_range() -> None:
    class Rotary(torch.nn.Module):
        base_model = torch.nn.Module()

    assert PositionRange.of(Rotary()) is None  # type: ignore[arg-type]
