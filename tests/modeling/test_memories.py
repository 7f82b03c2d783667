"""Memory tokens that pass from segment to segment, and memories that pass from call to call."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import LongBartConfig, LongBartModel, enable_long_attention, list_mechanisms
from hf_longattn.errors import BackendError, InputError, OptionError
from hf_longattn.memory.decode_cache import CACHE
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
from tests.samples import sample_of
from tests.shared_code import engine_of_form

MEMORY = 3
RMT = {"mechanism": "recurrent_memory", "segment_length": 40, "num_memory_tokens": MEMORY}
ONE_STACK = [base for base in BASES if base in (*ENCODERS, *DECODERS)]


def pair(base: str, head: str | None = None, **options: Any) -> tuple[Any, Any]:
    plain = plain_model(base, head)
    return plain, long_like(plain, base, {**RMT, **options})


def by_hand(plain: Any, learned: Tensor, ids: Tensor, causal: bool) -> Tensor:
    """The last hidden states of ``ids (1, N)`` without padding, one segment after the other."""
    embeddings = plain.get_input_embeddings()(ids)
    memory = learned[None]
    states = []
    if causal:
        for piece in embeddings.split(40 - 2 * MEMORY, 1):
            hidden = plain(inputs_embeds=torch.cat([memory, piece, memory], 1)).last_hidden_state
            states.append(hidden[:, MEMORY:-MEMORY])
            memory = hidden[:, -MEMORY:]
        return torch.cat(states, 1)
    size = 40 - MEMORY
    first = embeddings[:, :1]
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


@pytest.mark.parametrize(("depth", "segments"), [(None, 4), (0, 1), (1, 2), (2, 3)])
def test_gradients_flow_back_over_bptt_depth_segments(depth: int | None, segments: int) -> None:
    _, longer = pair("gpt2", bptt_depth=depth)
    text = 40 - 2 * MEMORY
    embeddings = longer.get_input_embeddings()(tokens(1, 4 * text)).detach().requires_grad_()
    longer(inputs_embeds=embeddings).last_hidden_state[:, -5:].sum().backward()
    reached = [bool((part != 0).any()) for part in embeddings.grad.split(text, 1)]
    assert reached == [False] * (4 - segments) + [True] * segments
    assert bool((longer.long_memory.tokens.grad != 0).any()) == reached[0]


HEADED = [
    ("bert", "BertForQuestionAnswering"),
    ("bert", "BertForMultipleChoice"),
    ("gpt2", "GPT2ForSequenceClassification"),
    ("opt", "OPTForCausalLM"),
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
def test_the_loss_of_a_router_is_that_of_all_segments() -> None:
    longer = long_model("mixtral", "MixtralForCausalLM", RMT, output_router_logits=True, router_aux_loss_coef=0.5)
    mask = padding(2, 100)
    ids = tokens(2, 100)
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


@torch.no_grad()
@pytest.mark.parametrize("base", ONE_STACK)
def test_calls_with_memory_tokens_are_one_call_over_the_whole_text(base: str) -> None:
    _, longer = pair(base)
    text = 40 - MEMORY * (2 if base in DECODERS else 1)
    ids = tokens(2, 4 * text)
    whole = longer(ids).last_hidden_state
    memory = longer.new_memory()
    states = []
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
@every_case(("base", "options"), [("gpt2", {"relative": "alibi"}), ("llama", {})])
def test_generation_with_memory_tokens_equals_that_without_a_cache(base: str, options: dict[str, str]) -> None:
    head = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[base]
    _, longer = pair(base, head, **options)
    ids = tokens(3, 90)
    mask = padding(3, 90, left=True)
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
        long_model("gpt2", None, {"mechanism": "full"})(ids, memory=memory)
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
    with pytest.raises(BackendError, match="only Long classes"):
        enable_long_attention(plain_model("gpt2"), RMT)


XL = {"mechanism": "transformer_xl", "segment_length": 32, "memory_length": 48}


def model(base: str, long_attention: dict[str, Any] = XL, **changes: Any) -> Any:
    return long_model(base, LANGUAGE_MODELS[base], long_attention, **changes)


def segment_by_segment(
    longer: Any, ids: Tensor, size: int, positions: str | None = "continue", **along: Tensor
) -> tuple[Tensor, Any]:
    memory = longer.new_memory(positions)
    logits = []
    for first in range(0, ids.shape[1], size):
        piece = slice(first, first + size)
        out = longer(ids[:, piece], memory=memory, **{name: value[:, piece] for name, value in along.items()})
        memory = out.memory
        logits.append(out.logits)
    return torch.cat(logits, 1), memory


@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize(
    ("base", "changes"),
    [
        *((base, {}) for base in (*DECODERS, "opt")),
        *(("roberta", {"is_decoder": True, "pad_token_id": pad}) for pad in (1, 4)),
    ],
    ids=str,
)
def test_segments_with_a_covering_memory_are_one_long_causal_text(base: str, changes: dict[str, Any]) -> None:
    head = {**LANGUAGE_MODELS, "opt": "OPTForCausalLM", "roberta": "RobertaForCausalLM"}[base]
    ids = tokens(2, 300).clamp(min=5)
    plain = plain_model(base, head, **changes)
    found, _ = segment_by_segment(long_like(plain, base, {**XL, "memory_length": 400}, **changes), ids, 32)
    assert (found - plain(ids, use_cache=False).logits).abs().max() < 1e-4


@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize(
    ("base", "size"),
    grid(itertools.product(DECODERS, (32, 50, 1)), lambda base, size: (base == DECODERS[0]) == (size == 32)),
)
def test_segments_with_a_memory_are_one_call_over_the_whole_text(base: str, size: int) -> None:
    longer = model(base)
    length = 300 if size > 1 else 140
    ids = tokens(3, length)
    mask = padding(3, length, left=True)
    whole = longer(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    found, memory = segment_by_segment(longer, ids, size, attention_mask=mask)
    assert (found - whole)[mask.bool()].abs().max() < 1e-4
    assert memory.mask.shape[1] < 32 + 48 + 64 + 64 + 2 * size


@pytest.mark.thorough
@torch.no_grad()
def test_positions_of_segments_continue_where_rotary_and_restart_with_a_table() -> None:
    ids = tokens(1, 200)
    for base, continues in (("llama", True), ("gpt2", False)):
        longer = model(base)
        by_default, _ = segment_by_segment(longer, ids, 32, None)
        named, _ = segment_by_segment(longer, ids, 32, "continue" if continues else "restart")
        other, _ = segment_by_segment(longer, ids, 32, "restart" if continues else "continue")
        assert torch.equal(by_default, named)
        assert not torch.allclose(by_default, other, atol=1e-3)
    longer = model("gpt2")
    beyond, _ = segment_by_segment(longer, tokens(1, 700), 100, None)  # the table has 512 rows
    assert beyond.isfinite().all()
    with pytest.raises(InputError, match="positions"):
        segment_by_segment(longer, tokens(1, 700), 100, "continue")


@pytest.mark.thorough
@torch.no_grad()
@every_case("name", list_mechanisms(causal=True, grid=False), of=9, code=engine_of_form)
def test_a_row_of_a_memory_begins_anew_and_leaves_the_others(name: str) -> None:
    """Row 0 reads a second document; row 1 goes on with its first, as if nothing had happened."""
    longer = model("gpt2", sample_of(name))
    ids = tokens(2, 180)
    size = 60
    memory = longer.new_memory()
    logits = []
    for first in range(0, 180, size):
        reset = torch.tensor([first == 60, False])
        out = longer(ids[:, first : first + size], memory=memory, memory_reset=reset)
        memory = out.memory
        logits.append(out.logits)
    found = torch.cat(logits, 1)
    alone, _ = segment_by_segment(longer, ids[:1, size:], size, None)
    undisturbed, _ = segment_by_segment(longer, ids, size, None)
    assert (found[0, size:] - alone[0]).abs().max() < 1e-4
    assert (found[1] - undisturbed[1]).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("long_attention", [XL, {"mechanism": "linear"}, {"mechanism": "window", "window": 40}])
def test_a_memory_is_not_changed_by_a_call_and_does_not_grow(long_attention: dict[str, Any]) -> None:
    longer = model("llama", long_attention)
    ids = tokens(2, 32)
    memory = longer.new_memory()
    sizes = []
    for _ in range(12):
        before = copy.deepcopy(memory.state_dict())
        following = longer(ids, memory=memory).memory
        assert all(torch.equal(tensor, before[key]) for key, tensor in memory.state_dict().items())
        memory = following
        sizes.append(sum(tensor.nbytes for tensor in memory.state_dict().values() if tensor.dim()))
    assert max(sizes[6:]) <= max(sizes[:6])


def test_a_memory_carries_no_gradient_of_earlier_calls() -> None:
    longer = model("gpt2").train()
    ids = tokens(2, 96)
    memory = longer.new_memory()
    for first in range(0, 96, 32):
        out = longer(ids[:, first : first + 32], labels=ids[:, first : first + 32], memory=memory)
        out.loss.backward()
        memory = out.memory
    assert all(not tensor.requires_grad for tensor in memory.state_dict().values())
    assert all(parameter.grad is not None for parameter in longer.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", ["transformer_xl", "linear", "window", "recurrent_memory", "full"])
def test_a_memory_is_saved_and_read(name: str) -> None:
    longer = model("llama", sample_of(name))
    ids = tokens(2, 300)
    memory = longer.new_memory()
    for first in range(0, 200, 40):
        memory = longer(ids[:, first : first + 40], memory=memory).memory
    read = longer.new_memory()
    read.load_state_dict({key: tensor.clone() for key, tensor in memory.state_dict().items()})
    for first in (200, 240):
        outs = [longer(ids[:, first : first + 40], memory=one) for one in (memory, read)]
        assert torch.equal(outs[0].logits, outs[1].logits)
        memory = outs[0].memory
        read = outs[1].memory


def test_the_memory_is_a_field_of_the_output() -> None:
    longer = model("gpt2")
    ids = tokens(2, 32)
    out = longer(ids, memory=longer.new_memory())
    assert "memory" in out
    assert out["memory"] is out.memory
    assert longer(ids, memory=out.memory, return_dict=False)[-1].batch_size == 2
    assert longer.transformer(ids, memory=longer.transformer.new_memory()).memory.batch_size == 2
    assert "memory" not in longer(ids)


def test_a_memory_refuses_batches_masks_and_models_that_do_not_fit() -> None:
    longer = model("gpt2")
    ids = tokens(2, 32)
    memory = longer(ids, memory=longer.new_memory()).memory
    with pytest.raises(InputError, match="batch of 2, but the input has 3 rows"):
        longer(tokens(3, 32), memory=memory)
    with pytest.raises(InputError, match="one flag for each row"):
        longer(ids, memory=memory, memory_reset=torch.zeros(3))
    with pytest.raises(InputError, match="without a memory"):
        longer(ids, memory_reset=torch.zeros(2))
    with pytest.raises(InputError, match=f"Both memory and {CACHE}"):
        longer(ids, memory=memory, past_key_values=longer(ids, use_cache=True).past_key_values)
    with pytest.raises(InputError, match="is a list"):
        longer(ids, memory=[])
    with pytest.raises(InputError, match="that of the new tokens"):
        longer(ids, memory=memory, attention_mask=torch.ones(2, 64))
    with pytest.raises(OptionError, match="positions is 'absolute'"):
        longer.new_memory("absolute")
    with pytest.raises(InputError, match="is not a decoder"):
        long_model("bert", None, {"mechanism": "window"}).new_memory()
    longer.transformer.gradient_checkpointing = True
    with pytest.raises(InputError, match="Gradient checkpointing"):
        longer.train()(ids, memory=memory)
    longer.use_base_attention("sdpa")
    with pytest.raises(InputError, match="'sdpa', which has no memory"):
        longer.new_memory()


def test_a_memory_is_refused_where_layers_get_no_cache() -> None:
    """It would read every segment as if it were the first, without a word."""
    model = long_model("clip_text_model", "CLIPTextModel", {"mechanism": "window", "window": 8})
    with pytest.raises(InputError, match="remembers nothing; use a decoder without its head"):
        model(tokens(1, 8), memory=model.new_memory())
