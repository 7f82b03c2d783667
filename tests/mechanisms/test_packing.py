"""Several documents packed into one row: every mechanism gives what it gives on each document alone, or refuses in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening

from hf_longattn import enable_long_attention, list_mechanisms
from hf_longattn.backend import separates_documents
from hf_longattn.errors import MaskError
from hf_longattn.mechanisms.base import Mechanism
from hf_longattn.mechanisms.registry import mechanism_class, packing_mechanisms
from tests.reference.small_models import long_like, long_model, padding, plain_model, tokens

SIZES = [60, 45, 190]
LENGTH = sum(SIZES)
RIGHT: dict[str, dict[str, Any]] = {
    "full": {"mechanism": "full"},
    "window": {"mechanism": "window", "window": 32},
    "dilated": {"mechanism": "window", "window": 6, "dilation": [1, 2, 3, 1]},
    "strided": {"mechanism": "strided", "window": 24, "stride": 16},
    "top_k": {"mechanism": "top_k", "num_keys": 8},
    "adaptive_span": {"mechanism": "adaptive_span", "max_span": 40, "ramp": 8, "init_span": 20},
    "no globals": {"mechanism": "longformer", "window": 32, "global_tokens": ()},
    "union": {"mechanism": "union", "of": "window:window=9+strided:window=3,stride=7"},
    "per_head": {"mechanism": "per_head", "heads": "window:window=9,full"},
    "relative": {"mechanism": "window", "window": 32, "relative": "alibi"},
}
"""What takes packed documents; everything else may refuse them."""
WAYS = ("position_ids", "bool mask", "float mask")


def forms(causal: bool) -> dict[str, dict[str, Any]]:
    """Every mechanism by its sample, and by options that make it full attention on so many tokens."""
    found = {}
    for name in list_mechanisms(causal=causal):
        cls = mechanism_class(name)
        found[name] = {"mechanism": name, **cls.sample}
        if (covering := cls.covering(LENGTH, causal)) is not None:
            found[f"{name}, covering"] = {"mechanism": name, **covering}
    return {**found, **RIGHT}


def packed(way: str, causal: bool) -> dict[str, Any]:
    positions = torch.cat([torch.arange(size) for size in SIZES])[None]
    seen = torch.block_diag(*[torch.ones(size, size) for size in SIZES]).bool()[None, None]
    seen = seen.tril() if causal else seen
    if way == "position_ids":
        return {"position_ids": positions}
    mask = seen if way == "bool mask" else torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return {"position_ids": positions, "attention_mask": mask}


def right_or_refused(model: Any, attention: dict[str, Any], arguments: dict[str, Any], causal: bool) -> None:
    ids = tokens(1, LENGTH)
    cacheless = {"use_cache": False} if causal else {}
    refusal = ""
    with torch.no_grad():
        try:
            found = model(ids, **arguments, **cacheless)[0]
        except MaskError as error:
            refusal = str(error)
        alone = torch.cat([model(document, **cacheless)[0] for document in ids.split(SIZES, 1)], 1)
    if refusal:
        assert attention not in RIGHT.values(), refusal
        assert "\n" not in refusal
        assert any(word in refusal for word in ("packed into one row", "must be (batch, tokens)", "no scores"))
        return
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("form", forms(True))
def test_a_decoder_keeps_documents_apart_or_refuses(form: str, way: str) -> None:
    attention = forms(True)[form]
    model = long_like(plain_model("llama", "LlamaForCausalLM"), "llama", attention).double()
    right_or_refused(model, attention, packed(way, True), True)


ENCODERS = [(form, base) for form in forms(False) for base in ("bert", "modernbert") if base == "bert" or "recurrent_memory" not in form]
"""Some layers of ModernBERT keep their own window, and memory tokens pass through all layers."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("form", "base"), ENCODERS)
def test_an_encoder_keeps_documents_apart_or_refuses(form: str, way: str, base: str) -> None:
    attention = forms(False)[form]
    model = long_model(base, None, attention).double()
    if way == "position_ids":  # which make no mask in an encoder of transformers
        with pytest.raises(MaskError, match="nothing keeps them apart in an encoder"):
            model(tokens(1, LENGTH), **packed(way, False))
    else:
        right_or_refused(model, attention, packed(way, False), False)


def test_those_named_in_the_refusal_take_them() -> None:
    names = packing_mechanisms(True)
    assert set(names) >= {"full", "window", "strided", "top_k", "adaptive_span"}
    model = long_like(plain_model("llama", "LlamaForCausalLM"), "llama", {"mechanism": "bigbird", **mechanism_class("bigbird").sample})
    with pytest.raises(MaskError, match=r"mechanism 'bigbird' .* does not support packing.* supports packing: " + ", ".join(names)):
        model(tokens(1, LENGTH), **packed("position_ids", True), use_cache=False)


@pytest.mark.parametrize("name", ["linear", "hybrid", "performer", "delta"])
def test_nobody_is_told_of_a_mask_that_was_not_given(name: str) -> None:
    model = long_like(plain_model("llama", "LlamaForCausalLM"), "llama", {"mechanism": name, **mechanism_class(name).sample})
    with pytest.raises(MaskError, match=f"mechanism '{name}' .* does not support packing"):
        model(tokens(1, LENGTH), **packed("position_ids", True), use_cache=False)
    prefix = torch.ones(60, 60, dtype=torch.bool).tril()
    prefix[:, :10] = True
    with pytest.raises(MaskError, match="A four-dimensional attention_mask was given, but mechanism"):
        model(tokens(1, 60), attention_mask=prefix[None, None], use_cache=False)


def test_what_the_collator_of_transformers_makes() -> None:
    features = [{"input_ids": document[0].tolist()} for document in tokens(1, LENGTH).split(SIZES, 1)]
    model = long_like(plain_model("llama", "LlamaForCausalLM"), "llama", RIGHT["window"]).double()
    alone = torch.cat([model(torch.tensor([feature["input_ids"]])).logits for feature in features], 1)
    batch = DataCollatorWithFlattening(return_tensors="pt", return_flash_attn_kwargs=True, return_seq_idx=True)(features)
    batch.pop("labels")
    torch.testing.assert_close(model(**batch, use_cache=False).logits, alone, atol=1e-5, rtol=0)
    with pytest.raises(MaskError, match="with a cache nothing keeps them apart; pass use_cache=False"):
        model(**batch, use_cache=True)
    for name in ("cu_seq_lens_q", "seq_idx"):
        with pytest.raises(MaskError, match=f"{name} says that several documents are packed"):
            model(batch["input_ids"], **{name: batch[name]}, use_cache=False)


def test_one_document_is_not_several() -> None:
    model = long_like(plain_model("llama", "LlamaForCausalLM"), "llama", {"mechanism": "bigbird", **mechanism_class("bigbird").sample})
    ids, places = tokens(2, 90), torch.arange(90)[None]
    expected = model(ids, use_cache=False).logits
    lengths = {"cu_seq_lens_q": torch.tensor([0, 90]), "seq_idx": torch.zeros(1, 90, dtype=torch.int32)}
    for arguments in ({"position_ids": places}, {"position_ids": places, "use_cache": True}, {"position_ids": places, **lengths}):
        torch.testing.assert_close(model(ids, **{"use_cache": False, **arguments}).logits, expected)


def test_a_model_without_a_long_class_refuses_too() -> None:
    model = enable_long_attention(plain_model("llama", "LlamaForCausalLM"), {"mechanism": "linear"})
    with pytest.raises(MaskError, match="does not support packing"):
        model(tokens(1, LENGTH), **packed("position_ids", True), use_cache=False)


@pytest.mark.parametrize("form", ["window", "bigbird"])
def test_a_compiled_model_keeps_them_apart_or_refuses(form: str) -> None:
    attention = forms(True)[form]
    model = long_like(plain_model("llama", "LlamaForCausalLM"), "llama", attention)
    torch._dynamo.reset()
    compiled, ids = torch.compile(model, backend="aot_eager"), tokens(1, LENGTH)
    with torch.no_grad():
        whole = compiled(ids, position_ids=torch.arange(LENGTH)[None], use_cache=False).logits
        torch.testing.assert_close(whole, model(ids, use_cache=False).logits, atol=1e-4, rtol=0)
        if form == "bigbird":  # positions are values, so that the refusal comes out of the graph
            with pytest.raises(RuntimeError, match="does not support packing"):
                compiled(ids, **packed("position_ids", True), use_cache=False)
            return
        found = compiled(ids, **packed("position_ids", True), use_cache=False).logits
        alone = torch.cat([model(document, use_cache=False).logits for document in ids.split(SIZES, 1)], 1)
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)


def masks() -> dict[str, tuple[Tensor, bool]]:
    """Dense masks of 12 tokens, and whether they separate documents."""
    places = torch.arange(12)
    causal, blocks = places[:, None] >= places, torch.block_diag(torch.ones(5, 5), torch.ones(7, 7)).bool()
    left = padding(1, 12, left=True)[0].bool() & (places >= 4)
    return {
        "causal": (causal, False),
        "everything": (torch.ones(12, 12, dtype=torch.bool), False),
        "window": (causal & (places[:, None] - places < 3), False),
        "every second": ((places[:, None] - places) % 2 == 0, False),
        "left padding": (causal & left, False),
        "right padding": (causal & (places < 7), False),
        "prefix": (causal | (places < 5), False),
        "documents": (blocks, True),
        "causal documents": (blocks & causal, True),
        "documents with padding": (blocks & causal & (places < 10), True),
    }


@pytest.mark.parametrize("name", masks())
def test_what_separates_documents(name: str) -> None:
    mask, apart = masks()[name]
    some = torch.stack([torch.ones(12, 12, dtype=torch.bool), mask])[:, None]
    for form in (some, torch.zeros(some.shape).masked_fill(~some, float("-inf")), some.expand(-1, 4, -1, -1)):
        assert separates_documents(form) is apart
        assert separates_documents(form) is apart  # remembered


def test_every_mechanism_says_whether_it_takes_them() -> None:
    for name in list_mechanisms():
        assert isinstance(mechanism_class(name).takes_packed, bool | property), name
    assert Mechanism.takes_packed is False
