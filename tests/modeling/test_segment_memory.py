"""`model(input_ids, memory=memory)`: segments one after the other are the whole text, rows begin anew, and the memory does not grow."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import list_mechanisms
from hf_longattn.errors import InputError, OptionError
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.memory.decode_cache import CACHE
from tests.cases import every_case
from tests.grids import grid
from tests.reference.small_models import DECODERS, LANGUAGE_MODELS, long_like, long_model, padding, plain_model, tokens
from tests.shared_code import engine_of_form

XL = {"mechanism": "transformer_xl", "segment_length": 32, "memory_length": 48}


def model(base: str, long_attention: dict[str, Any] = XL, **changes: Any) -> Any:
    return long_like(plain_model(base, LANGUAGE_MODELS[base], **changes), base, long_attention, **changes)


def segment_by_segment(longer: Any, ids: Tensor, size: int, positions: str | None = "continue", **along: Tensor) -> tuple[Tensor, Any]:
    memory, logits = longer.new_memory(positions), []
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
    [*((base, {}) for base in (*DECODERS, "opt")), *(("roberta", {"is_decoder": True, "pad_token_id": pad}) for pad in (1, 4))],
    ids=str,
)
def test_segments_with_a_covering_memory_are_one_long_causal_text(base: str, changes: dict[str, Any]) -> None:
    head, ids = {**LANGUAGE_MODELS, "opt": "OPTForCausalLM", "roberta": "RobertaForCausalLM"}[base], tokens(2, 300).clamp(min=5)
    plain = plain_model(base, head, **changes)
    found, _ = segment_by_segment(long_like(plain, base, {**XL, "memory_length": 400}, **changes), ids, 32)
    assert (found - plain(ids, use_cache=False).logits).abs().max() < 1e-4


@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize(
    ("base", "size"), grid(itertools.product(DECODERS, (32, 50, 1)), lambda base, size: (base == DECODERS[0]) == (size == 32))
)
def test_segments_with_a_memory_are_one_call_over_the_whole_text(base: str, size: int) -> None:
    longer, length = model(base), 300 if size > 1 else 140
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
    longer = model("gpt2", {"mechanism": name, **mechanism_class(name).about.sample})
    ids, size = tokens(2, 180), 60
    memory, logits = longer.new_memory(), []
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
    longer, ids = model("llama", long_attention), tokens(2, 32)
    memory, sizes = longer.new_memory(), []
    for _ in range(12):
        before = copy.deepcopy(memory.state_dict())
        following = longer(ids, memory=memory).memory
        assert all(torch.equal(tensor, before[key]) for key, tensor in memory.state_dict().items())
        memory = following
        sizes.append(memory.nbytes())
    assert max(sizes[6:]) <= max(sizes[:6])


def test_a_memory_carries_no_gradient_of_earlier_calls() -> None:
    longer, ids = model("gpt2").train(), tokens(2, 96)
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
    longer, ids = model("llama", {"mechanism": name, **mechanism_class(name).about.sample}), tokens(2, 300)
    memory = longer.new_memory()
    for first in range(0, 200, 40):
        memory = longer(ids[:, first : first + 40], memory=memory).memory
    read = longer.new_memory()
    read.load_state_dict({key: tensor.clone() for key, tensor in memory.state_dict().items()})
    for first in (200, 240):
        outs = [longer(ids[:, first : first + 40], memory=one) for one in (memory, read)]
        assert torch.equal(outs[0].logits, outs[1].logits)
        memory, read = outs[0].memory, outs[1].memory


def test_the_memory_is_a_field_of_the_output() -> None:
    longer, ids = model("gpt2"), tokens(2, 32)
    out = longer(ids, memory=longer.new_memory())
    assert "memory" in out
    assert out["memory"] is out.memory
    assert longer(ids, memory=out.memory, return_dict=False)[-1].batch_size == 2
    assert longer.transformer(ids, memory=longer.transformer.new_memory()).memory.batch_size == 2
    assert "memory" not in longer(ids)


def test_a_memory_refuses_batches_masks_and_models_that_do_not_fit() -> None:
    longer, ids = model("gpt2"), tokens(2, 32)
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
    with pytest.raises(InputError, match="is no decoder"):
        long_like(plain_model("bert"), "bert", {"mechanism": "window"}).new_memory()
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
