"""LongBigBird reads a checkpoint of transformers' BigBird with its numbers, and takes any mechanism."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, BigBirdConfig, BigBirdModel

from hf_longattn import LongAttentionConfig
from hf_longattn.families import LongBigBirdConfig, LongBigBirdForCausalLM, LongBigBirdModel
from tests.reference.small_models import plain_config, tokens

ADOPTED = {
    "mechanism": "bigbird",
    "block_size": 16,
    "num_random_blocks": 2,
    "random_pattern": "hf_eval",
    "blocks_over": "input",
}


def saved(folder: Path, **changes: object) -> BigBirdModel:
    settings = {"attention_type": "block_sparse", "block_size": 16, "num_random_blocks": 2, **changes}
    model = BigBirdModel(plain_config("big_bird", **settings)).eval()
    model.save_pretrained(folder)
    return model


def test_a_big_bird_checkpoint_is_read_with_its_block_sparse_attention(tmp_path: Path) -> None:
    saved(tmp_path)
    config = LongBigBirdConfig.from_pretrained(tmp_path)
    assert config.long_attention == LongAttentionConfig(**ADOPTED)
    assert config.attention_type == "original_full"
    assert config.attention_probs_dropout_prob == 0.0, "block-sparse attention has no dropout"
    config.save_pretrained(tmp_path / "long")
    again = AutoConfig.from_pretrained(tmp_path / "long")
    assert type(again) is LongBigBirdConfig
    assert again.to_json_string() == config.to_json_string()


def test_a_full_big_bird_stays_full_unless_a_mechanism_is_chosen(tmp_path: Path) -> None:
    saved(tmp_path, attention_type="original_full", attention_probs_dropout_prob=0.3)
    config = LongBigBirdConfig.from_pretrained(tmp_path)
    assert config.long_attention == LongAttentionConfig("full")
    assert config.attention_probs_dropout_prob == 0.3
    window = {"mechanism": "window", "window": 32}
    assert LongBigBirdConfig.from_pretrained(tmp_path, long_attention=window).long_attention == LongAttentionConfig(
        **window
    )


def test_a_new_big_bird_config_has_the_block_size_of_the_base() -> None:
    assert LongBigBirdConfig(block_size=32).long_attention == LongAttentionConfig(
        "bigbird", block_size=32, num_random_blocks=3
    )
    assert BigBirdConfig().attention_type == "block_sparse"


def test_a_longer_big_bird_equals_the_base_and_reads_longer_texts(tmp_path: Path) -> None:
    plain = saved(tmp_path)
    config = LongBigBirdConfig.from_pretrained(tmp_path, max_position_embeddings=1500)
    longer = LongBigBirdModel.from_pretrained(tmp_path, config=config).eval()
    with torch.no_grad():
        assert (plain(tokens(2, 400)).last_hidden_state - longer(tokens(2, 400)).last_hidden_state).abs().max() < 1e-4
        assert longer(tokens(1, 1500)).last_hidden_state.isfinite().all()


def test_global_tokens_of_big_bird_reach_every_token() -> None:
    config = LongBigBirdConfig(
        **{**plain_config("big_bird").to_dict(), "long_attention": {**ADOPTED, "block_size": 8}}
    )
    model, ids = LongBigBirdModel(config).eval(), tokens(1, 400)
    marked = torch.zeros(1, 400, dtype=torch.long)
    marked[0, 200] = 1
    other = ids.clone()
    other[0, 200] = 7
    with torch.no_grad():
        seen = [
            model(x, global_attention_mask=marked, output_hidden_states=True).hidden_states[1] for x in (ids, other)
        ]
        unmarked = [model(x, output_hidden_states=True).hidden_states[1] for x in (ids, other)]
    assert ((seen[0] - seen[1]).abs().amax(-1) > 0).all()
    assert not ((unmarked[0] - unmarked[1]).abs().amax(-1) > 0).all()


@pytest.mark.parametrize("implementation", [None, "sdpa", "eager"])
def test_big_bird_as_a_decoder_generates_as_the_whole_forward(implementation: str | None) -> None:
    settings = {
        **plain_config("big_bird").to_dict(),
        "is_decoder": True,
        "long_attention": {**ADOPTED, "random_pattern": "seeded"},
    }
    model = LongBigBirdForCausalLM(LongBigBirdConfig(**settings)).eval()
    if implementation is not None:
        model.use_base_attention(implementation)
    ids = tokens(1, 130)
    written = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    with torch.no_grad():
        assert torch.equal(model(written).logits[0, 129:-1].argmax(-1), written[0, 130:])
