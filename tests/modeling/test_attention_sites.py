"""Queries, keys and values of a layer are found wherever its architecture has their projections, of any width."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

import hf_longattn.families as families
from hf_longattn import enable_long_attention, list_mechanisms
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.modeling.attach.attention_sites import attention_projections, attention_sites, own_projections
from scripts.dev.tools.small_models import Shape, small_values
from tests.cases import every_case
from tests.reference.small_models import BASES, OFF_THE_INTERFACE, plain_model, tokens

ROTATED = [base for base in BASES if families.FAMILIES[base].rope]


@every_case("base", [base for base in BASES if base not in OFF_THE_INTERFACE])
def test_own_projections_make_the_queries_keys_and_values_of_attention(base: str) -> None:
    model = families.enable_long_attention(plain_model(base), {"mechanism": "full"})
    site = attention_sites(model)[0]
    seen: dict[str, Tensor] = {}
    site.module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(input=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    site.module.long_attention.register_forward_pre_hook(
        lambda module, args: seen.update(zip(("query", "key", "value"), args[:3], strict=True))
    )
    with torch.no_grad():
        model(tokens(2, 9))
    own = own_projections(site.module)
    for kind in ("value",) if base in ROTATED else ("query", "key", "value"):
        names = [f"{kind}.weight", f"{kind}.bias"]
        weight, bias = (own[name](site.module.get_parameter(own[name].name)) if name in own else None for name in names)
        made = torch.nn.functional.linear(seen["input"], weight, bias).unflatten(-1, (seen[kind].shape[1], -1)).transpose(1, 2)
        scale = made.shape[-1] ** -0.5 if base in ("opt", "esm") and kind == "query" else 1.0  # they scale their queries themselves
        assert (scale * made - seen[kind]).abs().max() < 1e-5, kind


@pytest.mark.thorough
@every_case("base", BASES)
def test_attention_projections_names_two_or_four_modules(base: str) -> None:
    model = plain_model(base)
    for site in attention_sites(model):
        names = attention_projections(model, site.name)
        assert len(names) in (2, 4)
        assert all(isinstance(model.get_submodule(name), torch.nn.Module) for name in names)


def test_a_fused_projection_in_another_layout_is_not_guessed() -> None:
    attention = torch.nn.Module()
    attention.c_attn = torch.nn.Linear(16, 24)
    assert own_projections(attention) == {}


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
