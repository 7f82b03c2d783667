"""Queries, keys and values of a layer are found wherever its architecture keeps their projections, fused ones among them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import hf_longattn.families as families
from hf_longattn.modeling.attach.attention_sites import attention_projections, attention_sites, own_projections
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
