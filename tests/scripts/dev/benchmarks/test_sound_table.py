"""Models of sound: equal to the stock model before any time is taken, and one table."""

from __future__ import annotations

import pytest
import torch

from scripts.dev.benchmarks import sound_models


@pytest.mark.thorough
@pytest.mark.parametrize("name", sound_models.SHAPES)
def test_a_model_of_sound_is_the_stock_one_with_full_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(name, monkeypatch)
    monkeypatch.setattr(sound_models, "CHECKED_SECONDS", 1.0)
    assert sound_models._check(name, 1) <= sound_models.TOLERANCE


def shrink(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape in small."""
    base, config_class, model_class, values = sound_models.SHAPES[name]
    small = {**values, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_conv_pos_embedding_groups": 4}
    known = config_class().to_dict()
    small = {field: value for field, value in small.items() if field in known}
    monkeypatch.setitem(sound_models.SHAPES, name, (base, config_class, model_class, small))


@pytest.mark.slow
@pytest.mark.parametrize("name", sound_models.SHAPES)
def test_chunks_give_a_frame_for_each_of_one_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in the middle of a chunk, so that they hardly differ where a model sees a few seconds."""
    shrink(name, monkeypatch)
    monkeypatch.setattr(sound_models, "CHUNK_SECONDS", 6)
    monkeypatch.setattr(sound_models, "STRIDE_SECONDS", 2)
    model = sound_models.build(name, sound_models.STOCK, 1)
    sound = sound_models.sound_of(name, model, 17)
    with torch.no_grad():
        whole = sound_models.states(model, sound_models.STOCK, sound, 17)
        chunks = sound_models.states(model, sound_models.CHUNKS, sound, 17)
    assert abs(chunks.shape[1] - whole.shape[1]) <= 1
    same = min(chunks.shape[1], whole.shape[1])
    assert torch.nn.functional.cosine_similarity(chunks[0, :same], whole[0, :same]).median() > 0.95


def test_the_table_of_models_has_a_line_for_each_pass() -> None:
    row = {"model": "parakeet", "minutes": 5, "layers": 24, "seconds": 2.0, "mebibytes": 100, "frames": 3750}
    window = {"implementation": sound_models.WINDOW, "side": 128}
    results = [row | window, row | {"implementation": sound_models.CHUNKS, "seconds": 5.0}, row | {"implementation": sound_models.STOCK}]
    results += [row | window | {"minutes": 60, "layers": 4, "mebibytes": 1_200, "frames": 45_000}]
    table = sound_models.sound_table({"results": results})
    assert "| parakeet | 24 | 5 | 3,750 | window, 128 frames to each side | 2.0 | 100 | 1.0× | 2.5× |" in table
    assert "| parakeet | 24 | 5 | 3,750 | stock, chunks of 30 s | 5.0 | 100 | 0.4× | 1.0× |" in table
    assert "| parakeet | 4 | 60 | 45,000 | window, 128 frames to each side | 2.0 | 1,200 | – | – |" in table
    assert "parakeet: from 3,750 to 45,000 frames, memory of windows grows as frames^1.00." in table
