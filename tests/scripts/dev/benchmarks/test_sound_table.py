"""Models of sound: equal to the stock model before any time is taken, and one table."""

from __future__ import annotations

import pytest

from scripts.dev.benchmarks import sound_models


@pytest.mark.parametrize("name", sound_models.SHAPES)
def test_a_model_of_sound_is_the_stock_one_with_full_attention(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, config_class, model_class, values = sound_models.SHAPES[name]
    small = {**values, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_conv_pos_embedding_groups": 4}
    known = config_class().to_dict()
    small = {field: value for field, value in small.items() if field in known}
    monkeypatch.setitem(sound_models.SHAPES, name, (base, config_class, model_class, small))
    monkeypatch.setattr(sound_models, "CHECKED_SECONDS", 1.0)
    assert sound_models._check(name, 1) <= sound_models.TOLERANCE


def test_the_table_of_models_has_a_line_for_each_duration() -> None:
    row = {"model": "parakeet", "minutes": 5, "layers": 24, "seconds": 2.0, "mebibytes": 100, "frames": 3750}
    window = {"implementation": sound_models.WINDOW, "side": 128}
    results = [row | window, row | {"implementation": sound_models.FULL, "seconds": 5.0}, row | {"implementation": sound_models.STOCK}]
    results += [row | window | {"side": 64, "seconds": 1.0}]
    results += [row | window | {"minutes": 60, "layers": 4, "mebibytes": 1_200, "frames": 45_000}]
    table = sound_models.sound_table({"results": results})
    assert "| parakeet | 24 | 5 | 3,750 | 128 | 2.0 | 100 | 5.0 | 100 | 2.0 | 100 | 1.0× | 2.5× |" in table
    assert "| parakeet | 24 | 5 | 3,750 | 64 | 1.0 | 100 | 5.0 | 100 | 2.0 | 100 | 2.0× | 5.0× |" in table
    assert "| parakeet | 4 | 60 | 45,000 | 128 | 2.0 | 1,200 | – | – | – | – | – | – |" in table
    assert "parakeet: from 3,750 to 45,000 frames, memory of windows grows as frames^1.00." in table
