"""Bases whose attention is not on transformers' interface: their Long classes are, with every head."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from transformers import Wav2Vec2Config

from hf_longattn.families import FAMILIES
from tests.conversion.conftest import config_of

HEADS = {"big_bird": "ForMaskedLM", "bigbird_pegasus": "ForConditionalGeneration"}


@pytest.mark.thorough
@pytest.mark.parametrize("base", HEADS)
def test_bigbird_heads_run_under_sdpa_and_eager(base: str, tmp_path: Path) -> None:
    config = FAMILIES[base].config_class.from_dict(config_of(base).to_dict() | {"long_attention": {"mechanism": "full"}})
    made = FAMILIES[base].model_class(FAMILIES[base].config_class.__name__.replace("Config", HEADS[base]))
    made(config).save_pretrained(tmp_path)
    ids = torch.randint(5, 30, (2, 20))
    logits = []
    for implementation in ("longattn", "sdpa", "eager"):
        model = made.from_pretrained(tmp_path, attn_implementation=implementation).eval()
        assert model.config._attn_implementation == model.base_model.config._attn_implementation == implementation
        with torch.no_grad():
            logits.append(model(ids).logits)
    torch.testing.assert_close(logits[1], logits[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[0], logits[2], atol=1e-5, rtol=0)


def test_a_module_with_a_class_that_was_made_for_it_is_pickled() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "num_conv_pos_embeddings": 16}
    config = FAMILIES["wav2vec2"].config_class.from_dict(Wav2Vec2Config(**sizes).to_dict())
    module = FAMILIES["wav2vec2"].model_class("LongWav2Vec2Model")(config).eval().encoder.layers[0].feed_forward
    assert (type(module).__name__, type(module).__module__) == ("LongWav2Vec2FeedForward", "hf_longattn.families.wav2vec2")
    states = torch.randn(1, 3, 32)
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(states), module(states), rtol=0, atol=0)
