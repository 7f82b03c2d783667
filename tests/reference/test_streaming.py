"""Sinks stand where StreamingLLM has them: Long decoders equal transformers' models that attend from a cache with
positions of its own."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StaticCache

from tests.cases import every_case
from tests.grids import grid
from tests.reference.definitions._streaming import streaming
from tests.reference.small_models import in_float64, in_one_pass, in_pieces, long_like, plain_model, singly, tokens

SHORT = {"max_position_embeddings": 24}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 3.0, "original_max_position_embeddings": 24}
TWO_KINDS = {
    f"{kind}_attention": {"rope_type": "default", "rope_theta": base}
    for kind, base in (("full", 1e5), ("sliding", 1e3))
}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {}),
    "llama, yarn": ("LlamaForCausalLM", {"rope_parameters": YARN}),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "glm": (
        "GlmForCausalLM",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 6,
            "rope_parameters": TWO_KINDS,
        },
    ),
    "qwen3": ("Qwen3ForCausalLM", {}),
}
"""Rotations of all features, scaled, of a part of them, of neighbours, of two kinds of layers, and of normalised
queries and keys."""


def models(name: str, sinks: int, window: int) -> tuple[Any, Any, list[tuple[int, int]]]:
    """A model of transformers, its Long model, and the sizes of every layer's cache, both in float64."""
    head, changes = DECODERS[name]
    base = name.partition(",")[0]
    plain = plain_model(base, head, **SHORT, **changes)
    choice = {"mechanism": "window", "window": window, "num_sinks": sinks}
    kinds = changes.get("layer_types", ["full_attention"] * plain.config.num_hidden_layers)
    sizes = [(sinks, window) if kind == "full_attention" else (0, changes["sliding_window"]) for kind in kinds]
    return in_float64(plain), in_float64(long_like(plain, base, choice, **SHORT, **changes)), sizes


def by_definition(plain: Any, sizes: list[tuple[int, int]], texts: list[Tensor]) -> list[Tensor]:
    """The logits ``(n, vocabulary)`` of every text, read alone."""
    with streaming(plain, sizes) as model:
        return [model(text[None], use_cache=False).logits[0] for text in texts]


def assert_equal(found: Tensor, expected: Tensor, what: str, tolerance: float = 2e-5) -> None:
    """Equal up to the rounding of angles, which transformers computes in float32."""
    atol = tolerance * float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, atol=atol, rtol=0, msg=lambda text: f"{what}: {text}")


CASES = [(name, case) for name in DECODERS for case in range(8)]


@every_case(("name", "case"), grid(CASES, lambda name, case: case == 0 or (name, case) == ("llama", 1)))
def test_prompts_padding_and_decoding_equal_the_definition(name: str, case: int) -> None:
    random = Random(case)
    sinks, window = random.randint(0, 6), random.randint(1, 20)
    lengths = [random.randint(1, 100 if case else 40) for _ in range(3)]
    plain, model, sizes = models(name, sinks, window)
    ids, longest, cut = tokens(3, max(lengths), seed=case), max(lengths), random.randint(1, max(lengths) - 1)
    texts = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    with torch.no_grad():
        expected = by_definition(plain, sizes, texts)
    for left in (False, True):
        beside = [(longest - length, 0) if left else (0, longest - length) for length in lengths]
        padded = [nn.functional.pad(text, sides, value=-1) for text, sides in zip(texts, beside, strict=True)]
        mask, batch = (torch.stack(padded) >= 0).long(), torch.stack(padded).clamp(min=1)
        static = StaticCache(config=model.config, max_cache_len=longest)
        steps = [(0, cut), *singly(cut, longest)]
        for way, logits in {
            "one pass": in_one_pass(model, batch, mask),
            "pieces": in_pieces(model, None, batch, mask, [(0, cut), (cut, longest)]),
            "steps": in_pieces(model, None, batch, mask, steps),
            "static cache": in_pieces(model, static, batch, mask, steps),
        }.items():
            for row, (before, _), of_text in zip(logits, beside, expected, strict=True):
                assert_equal(
                    row[before : before + len(of_text)],
                    of_text,
                    f"{way}, {left=}, {sinks=}, {window=}, {lengths=}, {cut=}",
                )


@every_case("name", DECODERS)
def test_packed_documents_and_all_gradients_equal_the_definition(name: str) -> None:
    plain, model, sizes = models(name, 3, 8)
    lengths, ids = (5, 11, 40, 24), tokens(1, 80)
    expected = torch.cat(by_definition(plain, sizes, [*ids[0].split(lengths)]))
    documents = torch.arange(4).repeat_interleave(torch.tensor(lengths))[None]
    logits = model(ids, documents=documents, use_cache=False).logits[0]
    assert_equal(logits, expected, "documents")
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    assert_equal(model(ids, position_ids=positions, use_cache=False).logits[0], expected, "positions that start again")
    weights = torch.randn(logits.shape, dtype=logits.dtype)
    for of_model in (expected, logits):
        (of_model * weights).sum().backward()
    gradients = dict(model.named_parameters())
    for parameter, of_plain in plain.named_parameters():
        found = gradients[parameter].grad
        assert_equal(found, of_plain.grad, f"gradient of {parameter}", 1e-4)


@every_case(("name", "cache"), [(name, cache) for name in ("llama", "gemma3_text") for cache in ("dynamic", "static")])
def test_generation_beyond_the_trained_length_equals_the_definition(name: str, cache: str) -> None:
    plain, model, sizes = models(name, 2, 6)
    arguments: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": 40,
        "eos_token_id": None,
        "disable_compile": True,
    }
    text = model.generate(tokens(1, 20), cache_implementation=cache, **arguments)[0]
    with torch.no_grad():
        (logits,) = by_definition(plain, sizes, [text])
    assert torch.equal(logits[19:-1].argmax(-1), text[20:])


def test_leading_global_tokens_are_sinks() -> None:
    plain, _, sizes = models("llama", 3, 8)
    model = in_float64(
        long_like(plain, "llama", {"mechanism": "longformer", "window": 8, "global_tokens": (0, 1, 2)}, **SHORT)
    )
    ids = tokens(1, 60)
    with torch.no_grad():
        assert_equal(
            in_one_pass(model, ids, torch.ones_like(ids))[0], by_definition(plain, sizes, [ids[0]])[0], "longformer"
        )
