"""Stock decoders with a cache of sinks and a window: equal to StreamingLLM's definition and to converted models."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from hf_longattn import StreamingCache
from hf_longattn.errors import BackendError, InputError, OptionError
from hf_longattn.memory.decode_cache import CACHE
from scripts.dev.tools.every_config import model_class, small_config
from tests.cases import every_case
from tests.reference.small_models import in_pieces, long_like, padding, plain_model, singly, tokens
from tests.reference.test_streaming import DECODERS, assert_equal, by_definition, models

GREEDY = {"do_sample": False, "max_new_tokens": 90, "eos_token_id": None}
FURTHER: dict[str, str] = {"mistral": "MistralForCausalLM", "phi": "PhiForCausalLM", "gpt2": "GPT2LMHeadModel"}


def stock(base: str, head: str, **changes: Any) -> Any:
    model = plain_model(base, head, **changes)
    model.set_attn_implementation("longattn")
    return model


@every_case("name", DECODERS)
def test_prompts_pieces_and_steps_equal_the_definition(name: str) -> None:
    plain, _, sizes = models(name, 3, 9)
    lengths, left = (90, 41, 7), padding(3, 90, left=True)
    ids = tokens(3, 90)
    for row, length in enumerate(lengths):
        left[row] = (torch.arange(90) >= 90 - length).long()
    texts = [row[90 - length :] for row, length in zip(ids, lengths, strict=True)]
    with torch.no_grad():
        expected = by_definition(plain, sizes, texts)
    plain.set_attn_implementation("longattn")
    for cuts in ([(0, 90)], [(0, 30), (30, 72), (72, 90)], [(0, 20), *singly(20, 90)]):
        logits = in_pieces(plain, StreamingCache(9, 3), ids, left, cuts)
        for row, text, of_text in zip(logits, texts, expected, strict=True):
            assert_equal(row[-len(text) :], of_text, f"{cuts[0]}")


@every_case("base", ["llama", "qwen3", "gemma3_text", "gpt_neox", "mistral", "phi", "gpt2"])
def test_generation_is_bitwise_that_of_the_converted_model(base: str) -> None:
    head, changes = DECODERS.get(base, (FURTHER.get(base, ""), {}))
    plain = stock(base, head, **changes)
    choice = {"mechanism": "window", "window": 9, "num_sinks": 3}
    converted = long_like(plain, base, choice, **changes)
    inputs = {"input_ids": tokens(3, 50), "attention_mask": padding(3, 50, left=True)}
    further = {"output_logits": True, "return_dict_in_generate": True}
    ours = plain.generate(**inputs, **{CACHE: StreamingCache(9, 3)}, **GREEDY, **further)
    theirs = converted.generate(**inputs, **GREEDY, **further)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert torch.equal(torch.stack(ours.logits), torch.stack(theirs.logits))


def test_texts_up_to_sinks_and_window_get_full_attention_and_longer_ones_a_bounded_cache() -> None:
    model, ids = stock("llama", "LlamaForCausalLM"), tokens(2, 80)
    caches = StreamingCache(28, 4), DynamicCache(config=model.config)
    short = [model(ids[:, :32], use_cache=True, **{CACHE: cache}).logits for cache in caches]
    torch.testing.assert_close(*short, rtol=0, atol=1e-5)
    cache = StreamingCache(28, 4)
    model.generate(ids, **{CACHE: cache}, **GREEDY, prefill_chunk_size=16)
    assert {layer.keys.shape[2] for layer in cache.layers} <= {*range(28 + 4, 28 + 4 + 64 + 16)}
    assert cache.get_seq_length() == 80 + 89


def test_beams_copies_and_saved_prompts_go_on_alike() -> None:
    model, ids = stock("gemma3_text", *DECODERS["gemma3_text"][:1], **DECODERS["gemma3_text"][1]), tokens(1, 60)
    cache = StreamingCache(9, 3)
    with torch.no_grad():
        model(ids[:, :50], use_cache=True, **{CACHE: cache})
    expected = model.generate(ids, **{CACHE: StreamingCache(9, 3)}, **GREEDY)
    for saved in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert torch.equal(model.generate(ids, **{CACHE: saved}, **GREEDY), expected)
    beams = model.generate(ids, **{CACHE: StreamingCache(9, 3)}, **{**GREEDY, "num_beams": 3})
    assert beams.shape == expected.shape


@every_case(
    ("base", "head", "words"),
    [
        ("gemma2", "Gemma2ForCausalLM", "by a bias or a cap"),
        ("deepseek_v2", "DeepseekV2ForCausalLM", "changes no keys in its cache"),
        ("llama, sdpa", "LlamaForCausalLM", "attn_implementation='longattn'"),
        ("llama, eager", "LlamaForCausalLM", "attn_implementation='longattn'"),
        ("llama, long", "LlamaForCausalLM", "has a mechanism"),
        ("llama, dynamic", "LlamaForCausalLM", "depend on the length of the text"),
        ("gptj", "GPTJForCausalLM", "its config does not say how"),
        ("gpt_oss", "GptOssForCausalLM", "by rotate_half alone"),
    ],
)
def test_models_that_the_cache_does_not_know_are_refused(base: str, head: str, words: str) -> None:
    base, _, case = base.partition(", ")
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = stock(base, head, **({"rope_parameters": rope} if case == "dynamic" else {}))
    if case in ("sdpa", "eager"):
        model.set_attn_implementation(case)
    if case == "long":
        model = long_like(model, base, {"mechanism": "window", "window": 9})
    with pytest.raises((BackendError, InputError), match=words):
        model.generate(tokens(1, 20), **{CACHE: StreamingCache(9, 3)}, **GREEDY)


@every_case(
    ("model_type", "words"),
    [
        ("codegen", "its config does not say how"),
        ("doge", "a mask of pairs of tokens"),
        ("lfm2", "layers with a state"),
        ("bloom", "AttentionInterface"),
    ],
)
def test_models_without_long_classes_that_the_cache_does_not_know_are_refused(model_type: str, words: str) -> None:
    config = small_config(model_type)
    if model_type == "lfm2":
        config.layer_types = ["conv", "full_attention"]
    model = model_class(model_type)._from_config(config, attn_implementation="longattn").eval()
    with pytest.raises(BackendError, match=words):
        model(tokens(1, 20) % config.vocab_size, use_cache=True, **{CACHE: StreamingCache(9, 3)})


@every_case("sizes", [(0, 4), (-3, 4), (8, 0), (8, -1), (8.5, 4), (True, 4)])
def test_impossible_sizes_are_refused(sizes: tuple[Any, Any]) -> None:
    with pytest.raises(OptionError, match="of a StreamingCache is"):
        StreamingCache(*sizes)
