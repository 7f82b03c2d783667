"""Every mechanism in models whose heads together are not as wide as their hidden states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from hf_longattn import enable_long_attention, list_mechanisms
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.modeling.attach.attention_sites import attention_sites
from scripts.dev.tools.small_models import Shape, small_values
from tests.cases import every_case

SHAPE = Shape(width=32, heads=4, tokens=128)
HEADS = {"qwen3": "LongQwen3ForCausalLM", "gemma": "LongGemmaForCausalLM", "gemma3_text": "LongGemma3ForCausalLM"}
MECHANISMS = [
    *((name, mechanism_class(name).about.sample) for name in list_mechanisms(causal=True, grid=False)),
    ("window", {"window": 16, "relative": "transformer_xl"}),
]


@pytest.mark.thorough
@every_case(("base", "name", "options"), [(base, *mechanism) for mechanism in MECHANISMS for base in HEADS], of=len(HEADS) + 1)
def test_mechanisms_train_and_generate_with_heads_wider_than_hidden_states(base: str, name: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    values = small_values(base, SHAPE, pad_token_id=1, initializer_range=0.2)
    values |= {"head_dim": 12, "layer_types": ["full_attention"] * 2} if "layer_types" in values else {"head_dim": 12}
    model = FAMILIES[base].model_class(HEADS[base])(FAMILIES[base].config_class(**values, long_attention={"mechanism": name, **options}))
    for site in attention_sites(model):
        assert (site.mechanism.num_heads * site.mechanism.head_dim, site.mechanism.sizes.hidden_size) == (48, 32)
    ids = torch.randint(5, 90, (2, 70))
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in model.named_parameters() if "long_attention" in n)
    if attention_sites(model)[0].mechanism.capabilities.recursion is not None:
        return  # decoding in segments is tested in tests/modeling/test_segment_memory.py
    model.eval()
    with torch.no_grad():
        written = model.generate(ids[:1], max_new_tokens=6, do_sample=False, pad_token_id=1, eos_token_id=None)
        assert torch.equal(model(written).logits[0, 69:-1].argmax(-1), written[0, 70:])


def test_separate_projections_read_hidden_states_of_their_width() -> None:
    config = AutoConfig.for_model("t5", d_model=32, d_kv=12, num_heads=4, d_ff=48, num_layers=1, vocab_size=50)
    model = AutoModel.from_config(config)
    enable_long_attention(model, {"mechanism": "full"})
    assert {site.mechanism.sizes.hidden_size for site in attention_sites(model)} == {32}
