"""Models whose attention has sinks: small random ones, against transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import hf_longattn
from hf_longattn.errors import OptionError
from scripts.dev.tools.check_derived import LONG, TOKENS, decoded, small_model
from tests.cases import every_case

BASES = ("flint", "gpt_oss", "granite_swa", "granitemoe_swa", "mimo_v2_flash")


def with_large_sinks(model: nn.Module) -> nn.Module:
    """The model with sinks that take a good part of the softmax; random ones are near 0."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, sinks in model.named_parameters():
            if name.endswith(".sinks"):
                sinks.copy_(2 * torch.randn(sinks.shape, generator=generator) + 1)
    return model


def converted(base: str, folder: Path, **attention: Any) -> tuple[Any, Any]:
    """A small stock model, and what it was converted to."""
    _, stock = small_model(base)
    with_large_sinks(stock).save_pretrained(folder / "short")
    hf_longattn.convert_checkpoint(folder / "short", folder / "long", max_length=LONG, verify=False, positions="rope:none", **attention)
    return stock, AutoModelForCausalLM.from_pretrained(folder / "long").eval()


def ids(length: int = TOKENS) -> torch.Tensor:
    return torch.randint(5, 150, (2, length), generator=torch.Generator().manual_seed(1))


@every_case("base", BASES)
def test_models_with_sinks_equal_the_stock_model(base: str, tmp_path: Path) -> None:
    stock, long = converted(base, tmp_path, mechanism="window", options={"window": 2 * LONG})
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, :9] = 0
    with torch.no_grad():
        expected, found = (model(ids(), attention_mask=mask).logits[mask.bool()] for model in (stock, long))
        without = with_large_sinks(stock).requires_grad_(False)
        for name, sinks in without.named_parameters():
            if name.endswith(".sinks"):
                sinks.fill_(-30)
        changed = without(ids(), attention_mask=mask).logits[mask.bool()]
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (changed - expected).abs().max() > 1e-3 * expected.abs().max()


@every_case("mechanism", ["window", "longformer", "strided", "top_k", "block_top_k", "bigbird"], of=2)
def test_decoding_with_sinks_equals_one_pass(mechanism: str, tmp_path: Path) -> None:
    options = {"window": {"window": 16, "num_sinks": 2}, "longformer": {"window": 16}, "top_k": {"num_keys": 9}}.get(mechanism, {})
    _, long = converted("gpt_oss", tmp_path, mechanism=mechanism, options=options, layers={"0": {"mechanism": mechanism, **options}})
    texts = ids(200)
    with torch.no_grad():
        assert decoded(long, texts, long(texts).logits, prompt=175) < 1e-4


def test_a_model_with_sinks_keeps_the_windows_of_its_source(tmp_path: Path) -> None:
    stock, long = converted("gpt_oss", tmp_path, mechanism="full")
    assert {"sliding_attention", "full_attention"} <= {*stock.config.layer_types}
    texts = ids(200)
    with torch.no_grad():
        expected, found = stock(texts).logits, long(texts).logits
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_gradients_of_sinks_equal_those_of_the_stock_model(tmp_path: Path) -> None:
    stock, long = converted("gpt_oss", tmp_path, mechanism="window", options={"window": 2 * LONG})
    for model in (stock, long):
        model(ids(), labels=ids()).loss.backward()
    expected = {name: parameter.grad for name, parameter in stock.named_parameters() if "sinks" in name}
    found = {name: parameter.grad for name, parameter in long.named_parameters() if "sinks" in name}
    assert len(expected) == 2
    for name, grad in expected.items():
        assert grad.abs().max() > 0
        assert (found[name] - grad).abs().max() < 1e-4 * grad.abs().max()


def test_attention_weights_leave_the_sinks_out(tmp_path: Path) -> None:
    stock, long = converted("gpt_oss", tmp_path, mechanism="window", options={"window": 2 * LONG})
    stock.set_attn_implementation("eager")
    with torch.no_grad():
        expected, found = (model(ids(), output_attentions=True).attentions for model in (stock, long))
    for one, other in zip(expected, found, strict=True):
        assert (one - other).abs().max() < 1e-5
        assert float(other.sum(-1).max()) < 1


def test_a_mechanism_without_softmax_is_refused_for_models_with_sinks(tmp_path: Path) -> None:
    _, stock = small_model("gpt_oss")
    stock.save_pretrained(tmp_path / "short")
    with pytest.raises(OptionError, match=r"LongGptOssForCausalLM has sinks.*'linear'"):
        hf_longattn.convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="linear", max_length=LONG)
    with pytest.raises(OptionError, match=r"GptOssForCausalLM has sinks.*'linear'"):
        hf_longattn.enable_long_attention(stock, {"mechanism": "linear"})
