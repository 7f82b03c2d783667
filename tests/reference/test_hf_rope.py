"""A LongLlama with scaled rotary positions equals transformers' own Llama configured the same, below and beyond the old length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_longattn import LongLlamaForCausalLM
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import OptionError
from tests.cases import every_case
from tests.reference.small_models import tokens

OLD, NEW = 64, 256
KINDS = ["none", "linear", "dynamic", "yarn", "longrope"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=OLD, initializer_range=0.2, bos_token_id=3, eos_token_id=3, pad_token_id=3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "source")
    factors = {"short_factor": [1.0 + 0.01 * n for n in range(8)], "long_factor": [1.0 + 0.5 * n for n in range(8)]}
    (tmp_path / "factors.json").write_text(json.dumps(factors))
    return tmp_path / "source"


def both(source: Path, kind: str) -> tuple[Any, Any]:
    """The converted model, and transformers' own with the same weights and the same rotary parameters."""
    positions = f"rope:{kind}" + (f":{source.parent / 'factors.json'}" if kind == "longrope" else "")
    report = convert_checkpoint(source, source.parent / kind, mechanism="full", max_length=NEW, positions=positions)
    assert report.verified
    longer = LongLlamaForCausalLM.from_pretrained(source.parent / kind).eval()
    config = LlamaConfig.from_pretrained(source)
    config.rope_parameters = dict(longer.config.rope_parameters)
    config.max_position_embeddings = longer.config.max_position_embeddings
    plain = LlamaForCausalLM(config).eval()
    plain.load_state_dict(longer.state_dict())
    return longer, plain


@every_case("kind", KINDS)
def test_a_llama_with_longer_rope_has_the_logits_and_texts_of_transformers(source: Path, kind: str) -> None:
    longer, plain = both(source, kind)
    for length in (20, OLD, OLD + 1, 150, NEW, 30):  # and short again: dynamic kinds go back
        ids = tokens(2, length)
        with torch.no_grad():
            torch.testing.assert_close(longer(ids).logits, plain(ids).logits, atol=1e-5, rtol=0)
    arguments = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None}
    ids = tokens(2, OLD - 10)
    assert torch.equal(longer.generate(ids, **arguments), plain.generate(ids, **arguments))


@pytest.mark.thorough
@every_case("kind", ["linear", "yarn", "longrope"])
def test_scaled_rope_differs_from_plain_beyond_the_old_length(source: Path, kind: str) -> None:
    longer, _ = both(source, kind)
    plain = LlamaForCausalLM.from_pretrained(source).eval()
    ids = tokens(1, NEW)
    with torch.no_grad():
        assert not torch.allclose(longer(ids).logits, plain(ids).logits, atol=1e-3)


@every_case("wrong", [[1.0] * 5, ["a"] * 8, [0.0] * 8])
def test_longrope_factors_that_do_not_fit_are_refused(source: Path, wrong: list[Any]) -> None:
    file = source.parent / "wrong.json"
    file.write_text(json.dumps({"short_factor": [1.0] * 8, "long_factor": wrong}))
    with pytest.raises(OptionError, match=r"long_factor must be a list of 8 positive numbers, one for each rotary frequency"):
        convert_checkpoint(source, source.parent / "long", mechanism="full", max_length=NEW, positions=f"rope:longrope:{file}")
