"""Recurrent memory in whole models: segments written out with plain loops, heads, gradients over borders, and calls one after the other."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import LongBartConfig, LongBartModel, enable_long_attention
from hf_longattn.errors import BackendError, InputError, OptionError
from tests.cases import every_case
from tests.grids import grid
from tests.reference.small_models import (
    BASES,
    DECODERS,
    ENCODERS,
    LANGUAGE_MODELS,
    base_class,
    long_like,
    long_model,
    padding,
    plain_model,
    tokens,
)

MEMORY = 3
RMT = {"mechanism": "recurrent_memory", "segment_length": 40, "num_memory_tokens": MEMORY}
ONE_STACK = [base for base in BASES if base in (*ENCODERS, *DECODERS)]


def pair(base: str, head: str | None = None, **options: Any) -> tuple[Any, Any]:
    plain = plain_model(base, head)
    return plain, long_like(plain, base, {**RMT, **options})


def by_hand(plain: Any, learned: Tensor, ids: Tensor, causal: bool) -> Tensor:
    """The last hidden states of ``ids (1, N)`` without padding, one segment after the other."""
    embeddings, memory, states = plain.get_input_embeddings()(ids), learned[None], []
    if causal:
        for piece in embeddings.split(40 - 2 * MEMORY, 1):
            hidden = plain(inputs_embeds=torch.cat([memory, piece, memory], 1)).last_hidden_state
            states.append(hidden[:, MEMORY:-MEMORY])
            memory = hidden[:, -MEMORY:]
        return torch.cat(states, 1)
    size, first = 40 - MEMORY, embeddings[:, :1]
    rest = embeddings[:, size:].split(size - 1, 1)
    for piece in (embeddings[:, :size], *(torch.cat([first, piece], 1) for piece in rest)):
        hidden = plain(inputs_embeds=torch.cat([memory, piece], 1)).last_hidden_state
        states.append(hidden[:, MEMORY:])
        memory = hidden[:, :MEMORY]
    return torch.cat([states[-1][:, :1], *(state[:, 1:] for state in states)], 1)


@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize("base", ONE_STACK)
def test_segments_equal_a_loop_over_the_plain_model(base: str) -> None:
    plain, longer = pair(base)
    ids = tokens(1, 600)  # beyond the position table
    found = longer(ids, output_hidden_states=True)
    expected = by_hand(plain, longer.long_memory.tokens, ids, base in DECODERS)
    assert (found.last_hidden_state - expected).abs().max() < 1e-4
    assert [state.shape for state in found.hidden_states] == [(1, 600, 64)] * 4
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    if found.get("pooler_output") is not None:
        assert (found.pooler_output - longer.pooler(expected)).abs().max() < 1e-4


@pytest.mark.parametrize("depth", [None, 0, 1, 2])
def test_gradients_flow_back_over_bptt_depth_segments(depth: int | None) -> None:
    _, longer = pair("gpt2", bptt_depth=depth)
    text = 40 - 2 * MEMORY
    embeddings = longer.get_input_embeddings()(tokens(1, 4 * text)).detach().requires_grad_()
    longer(inputs_embeds=embeddings).last_hidden_state[:, -5:].sum().backward()
    reached = [bool((part != 0).any()) for part in embeddings.grad.split(text, 1)]
    assert reached == {None: [True] * 4, 0: [False] * 3 + [True], 1: [False, False, True, True], 2: [False, True, True, True]}[depth]
    reaches_the_beginning = depth is None
    assert bool((longer.long_memory.tokens.grad != 0).any()) == reaches_the_beginning


HEADED = [
    ("bert", "BertForQuestionAnswering"),
    ("bert", "BertForSequenceClassification"),
    ("bert", "BertForMaskedLM"),
    ("bert", "BertForMultipleChoice"),
    ("roberta", "RobertaForSequenceClassification"),
    ("gpt2", "GPT2LMHeadModel"),
    ("gpt2", "GPT2ForSequenceClassification"),
    ("opt", "OPTForCausalLM"),
    ("llama", "LlamaForCausalLM"),
    ("llama", "LlamaForTokenClassification"),
]


@pytest.mark.thorough
@every_case(("base", "head"), HEADED)
def test_every_head_with_memory_tokens_trains_them(base: str, head: str) -> None:
    _, longer = pair(base, head)
    ids = tokens(2, 120)
    longer.train()
    choices = head.endswith("MultipleChoice")
    ids = ids[:, None].repeat(1, 2, 1) if choices else ids
    out = longer(ids)
    first = out[0] if not isinstance(out[0], tuple) else out[0][0]
    assert base_class(base, head).__name__ in type(longer).__name__
    first.float().pow(2).sum().backward()
    (learned,) = (parameter for name, parameter in longer.named_parameters() if name.endswith("long_memory.tokens"))
    assert (learned.grad != 0).any()
    assert isinstance(longer(ids, return_dict=False), tuple)


@torch.no_grad()
@pytest.mark.parametrize("base", ["mixtral", "qwen3_moe"])
def test_the_loss_of_a_router_is_that_of_all_segments(base: str) -> None:
    longer = long_model(base, LANGUAGE_MODELS[base], RMT, output_router_logits=True, router_aux_loss_coef=0.5)
    mask, ids = padding(2, 100), tokens(2, 100)
    labels = ids.masked_fill(mask == 0, -100)
    out = longer(ids, attention_mask=mask, labels=labels, use_cache=False)
    first = longer(ids[:, :34], use_cache=False)
    real = mask.bool()
    for router, beginning in zip(out.router_logits, first.router_logits, strict=True):
        by_token = router.view(2, 100, -1)
        torch.testing.assert_close(by_token[:, :34], beginning.view(2, 34, -1), atol=1e-4, rtol=0)
        assert (by_token[real] != 0).any(-1).all()
    predicted = longer.loss_function(out.logits, labels, longer.config.vocab_size)
    torch.testing.assert_close(out.loss, predicted + 0.5 * out.aux_loss)
    experts, chosen = longer.num_experts, longer.num_experts_per_tok
    probabilities = torch.stack([router.view(2, 100, -1)[real] for router in out.router_logits]).flatten(0, 1).softmax(-1)
    share = torch.zeros(len(probabilities), experts).scatter(1, probabilities.topk(chosen, -1).indices, 1.0).mean(0)
    torch.testing.assert_close(out.aux_loss, experts * (share * probabilities.mean(0)).sum())


@torch.no_grad()
@pytest.mark.parametrize("base", ONE_STACK)
def test_calls_with_memory_tokens_are_one_call_over_the_whole_text(base: str) -> None:
    _, longer = pair(base)
    text = 40 - MEMORY * (2 if base in DECODERS else 1)
    ids = tokens(2, 4 * text)
    whole = longer(ids).last_hidden_state
    memory, states = longer.new_memory(), []
    for piece in ids.split(2 * text if base in DECODERS else text, 1):
        out = longer(piece, memory=memory)
        memory = out.memory
        states.append(out.last_hidden_state)
    if base in DECODERS:
        assert (torch.cat(states, 1) - whole).abs().max() < 1e-4
    other = longer(ids[:, :text], memory=memory).last_hidden_state
    fresh = longer(ids[:, :text], memory=memory, memory_reset=torch.tensor([True, False])).last_hidden_state
    assert (fresh[0] - longer(ids[:1, :text]).last_hidden_state[0]).abs().max() < 1e-4
    assert torch.equal(fresh[1], other[1])


def test_memory_tokens_are_saved_and_read(tmp_path: Any) -> None:
    _, longer = pair("bert", "BertForMaskedLM")
    longer.save_pretrained(tmp_path)
    again = type(longer).from_pretrained(tmp_path)
    assert torch.equal(again.bert.long_memory.tokens, longer.bert.long_memory.tokens)
    plain_model("bert", "BertForMaskedLM").save_pretrained(tmp_path / "plain")
    fresh = type(longer).from_pretrained(tmp_path / "plain", config=longer.config)
    assert 0 < fresh.bert.long_memory.tokens.std() < 1


@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize(
    ("base", "options"),
    grid(
        itertools.product(DECODERS, ({}, {"relative": "alibi"}, {"relative": "t5_buckets"})),
        lambda base, options: options.get("relative") == {"gpt2": "alibi", "llama": None}[base],
    ),
    ids=str,
)
def test_generation_with_memory_tokens_equals_that_without_a_cache(base: str, options: dict[str, str]) -> None:
    head = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[base]
    _, longer = pair(base, head, **options)
    ids, mask = tokens(3, 90), padding(3, 90, left=True)
    arguments = {"attention_mask": mask, "max_new_tokens": 34, "do_sample": False, "eos_token_id": None}
    assert torch.equal(longer.generate(ids, **arguments), longer.generate(ids, use_cache=False, **arguments))
    with pytest.raises(InputError, match="generates after input_ids"):
        longer.generate(inputs_embeds=longer.get_input_embeddings()(ids), **arguments)


def test_memory_tokens_refuse_inputs_options_and_models_that_do_not_fit() -> None:
    _, longer = pair("gpt2")
    ids = tokens(2, 100)
    memory = longer(ids, memory=longer.new_memory()).memory
    with pytest.raises(InputError, match="batch of 2, but the input has 3 rows"):
        longer(tokens(3, 100), memory=memory)
    with pytest.raises(InputError, match="another kind of model"):
        long_like(plain_model("gpt2"), "gpt2", {"mechanism": "full"})(ids, memory=memory)
    with pytest.raises(InputError, match="there is no cache; pass use_cache=False"):
        longer(ids, use_cache=True)
    with pytest.raises(OptionError, match="Attentions were asked for"):
        longer(ids, output_attentions=True)
    with pytest.raises(OptionError, match="give every layer the same"):
        pair("gpt2", layers={1: {"mechanism": "full"}})
    with pytest.raises(OptionError, match="512 positions; give segment_length=512"):
        pair("gpt2", segment_length=600)
    with pytest.raises(OptionError, match="segment_length=8 or more"):
        pair("gpt2", segment_length=7)
    with pytest.raises(OptionError, match=r"'bptt_depth'.*at least 0"):
        pair("gpt2", bptt_depth=-1)
    two = LongBartConfig(d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=50, long_attention=RMT)
    with pytest.raises(OptionError, match="one of two stacks"):
        LongBartModel(two)
    for base in ("albert", "clip_text_model"):  # its embeddings are narrower; it takes none
        with pytest.raises(OptionError, match="cannot read hidden states as embeddings; choose another mechanism"):
            long_model(base, None, RMT)
    with pytest.raises(BackendError, match="only the Long classes"):
        enable_long_attention(plain_model("gpt2"), RMT)
