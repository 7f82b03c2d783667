"""Models of sound: equal to the stock model before any time is taken, and one table."""

from __future__ import annotations

import pytest
import torch

from scripts.dev.benchmarks import sound_models

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_conv_pos_embedding_groups": 4}


@pytest.mark.slow
def test_chunks_give_a_frame_for_each_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in the middle of a chunk, so that they hardly differ where a model sees a few seconds."""
    monkeypatch.setattr(sound_models, "CHUNK_SECONDS", 6)
    monkeypatch.setattr(sound_models, "STRIDE_SECONDS", 2)
    model = sound_models.build(sound_models.STOCK, 1, **SMALL)
    sound = sound_models.sound_of(model, 17)
    with torch.no_grad():
        whole = sound_models.states(model, sound_models.STOCK, sound, 17)
        chunks = sound_models.states(model, sound_models.CHUNKS, sound, 17)
    assert abs(chunks.shape[1] - whole.shape[1]) <= 1
    same = min(chunks.shape[1], whole.shape[1])
    assert torch.nn.functional.cosine_similarity(chunks[0, :same], whole[0, :same]).median() > 0.95


@pytest.mark.thorough
@torch.no_grad()
def test_a_model_of_sound_is_the_stock_one_with_full_attention() -> None:
    outputs = []
    for implementation in (sound_models.STOCK, sound_models.FULL):
        model = sound_models.build(implementation, 1, **SMALL)
        outputs.append(model(sound_models.sound_of(model, 1)).last_hidden_state)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_the_table_of_models_has_a_line_for_each_pass() -> None:
    row = {"model": "wav2vec2", "minutes": 5, "layers": 24, "seconds": 2.0, "mebibytes": 100, "frames": 3750}
    window = {"implementation": sound_models.WINDOW, "side": 128}
    results = [row | window, row | {"implementation": sound_models.CHUNKS, "seconds": 5.0}, row | {"implementation": sound_models.STOCK}]
    results += [row | window | {"minutes": 60, "layers": 4, "mebibytes": 1_200, "frames": 45_000}]
    table = sound_models.sound_table({"results": results})
    assert "| wav2vec2 | 24 | 5 | 3,750 | window, 128 frames to each side | 2.0 | 100 | 1.0× | 2.5× |" in table
    assert "| wav2vec2 | 24 | 5 | 3,750 | stock, chunks of 30 s | 5.0 | 100 | 0.4× | 1.0× |" in table
    assert "| wav2vec2 | 4 | 60 | 45,000 | window, 128 frames to each side | 2.0 | 1,200 | – | – |" in table
    assert "wav2vec2: from 3,750 to 45,000 frames, memory of windows grows as frames^1.00." in table
