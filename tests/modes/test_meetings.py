"""Two modes in one call: together, one alone, or refused, as the table of modes says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_longattn import sequence_parallel
from hf_longattn.errors import LongAttentionError
from hf_longattn.modeling.run.modes import MODE_INTERACTIONS, REFUSALS, Mode, ModeInteraction, should_run
from hf_longattn.modeling.run.packing import Packing, packing_refusal
from hf_longattn.modeling.run.segments import Segments
from hf_longattn.modeling.run.sharding import Sharding
from tests.cells import every_cell
from tests.reference.small_models import long_model, padding, tokens

WINDOW = {"mechanism": "window", "window": 16}
MEMORY_TOKENS = {"mechanism": "recurrent_memory", "segment_length": 32, "num_memory_tokens": 2}
MODES = ("sharding", "packing", "segments", "memory")
pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modes of base models that run."""
    names: list[str] = []
    for kind, name in ((Sharding, "sharding"), (Packing, "packing"), (Segments, "segments")):

        def run(self: Mode[Any], *args: Any, original: Any = kind.run, name: str = name) -> Any:
            names.append(name)
            return original(self, *args)

        monkeypatch.setattr(kind, "run", run)
    return names


def padded() -> dict[str, Tensor]:
    return {"input_ids": tokens(2, 40), "attention_mask": padding(2, 40)}


def test_the_table_has_every_pair() -> None:
    assert {frozenset(pair) for pair in MODE_INTERACTIONS} == {frozenset(pair) for pair in itertools.combinations(MODES, 2)}


@every_cell("pair", MODE_INTERACTIONS)
def test_a_mode_enters_as_the_table_says(pair: tuple[str, str]) -> None:
    first, second = pair
    if MODE_INTERACTIONS[pair] is ModeInteraction.REFUSED:
        for mode, met in (pair, (second, first)):
            with pytest.raises(REFUSALS[pair][0]):
                should_run(mode, [mode, met], None)
        return
    assert should_run(first, pair, None) == (MODE_INTERACTIONS[pair] is not ModeInteraction.SECOND)
    assert should_run(second, pair, None) == (MODE_INTERACTIONS[pair] is not ModeInteraction.FIRST)


def test_every_refused_pair_has_its_sentence() -> None:
    assert set(REFUSALS) == {pair for pair, meeting in MODE_INTERACTIONS.items() if meeting is ModeInteraction.REFUSED}


def test_another_entry_is_another_call(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODE_INTERACTIONS, ("sharding", "packing"), ModeInteraction.SECOND)  # type: ignore[arg-type]
    model = long_model("bert", None, WINDOW).optimize_for_inference("fp32")
    with sequence_parallel(model):
        model(**padded())
    assert ran == ["packing"]


def test_a_sharded_call_is_not_packed(ran: list[str]) -> None:
    assert MODE_INTERACTIONS["sharding", "packing"] is ModeInteraction.FIRST
    model = long_model("bert", None, WINDOW).optimize_for_inference("fp32")
    with sequence_parallel(model):
        model(**padded())
    assert ran == ["sharding"]


def test_a_model_in_segments_is_not_sharded() -> None:
    assert MODE_INTERACTIONS["sharding", "segments"] is ModeInteraction.REFUSED
    model = long_model("bert", None, MEMORY_TOKENS)
    with pytest.raises(LongAttentionError, match="runs over its text in segments, which cannot be split"), sequence_parallel(model):
        pass


def test_a_sharded_call_takes_no_memory() -> None:
    assert MODE_INTERACTIONS["sharding", "memory"] is ModeInteraction.REFUSED
    model = long_model("llama", "LlamaForCausalLM", WINDOW)
    with sequence_parallel(model), pytest.raises(LongAttentionError, match="cannot be given memory"):
        model(tokens(2, 40), memory=model.new_memory())


def test_a_sharded_base_model_takes_no_memory() -> None:
    model = long_model("llama", None, WINDOW)
    with sequence_parallel(model), pytest.raises(LongAttentionError, match="cannot be given memory"):
        model(tokens(2, 40), memory=model.new_memory())


def test_a_model_in_segments_is_not_packed(ran: list[str]) -> None:
    assert MODE_INTERACTIONS["packing", "segments"] is ModeInteraction.SECOND
    model = long_model("bert", None, MEMORY_TOKENS)
    assert "runs in segments with memory tokens" in str(packing_refusal(model))
    model.optimize_for_inference("fp32")(**padded())
    assert ran == ["segments"]


def test_a_call_with_a_memory_is_not_packed(ran: list[str]) -> None:
    assert MODE_INTERACTIONS["packing", "memory"] is ModeInteraction.SECOND
    model = long_model("llama", None, WINDOW).optimize_for_inference("fp32")
    model(**padded(), use_cache=False)
    assert ran == ["packing"]
    assert model(**padded(), memory=model.new_memory()).memory is not None
    assert ran == ["packing"]


def test_segments_carry_a_memory_on(ran: list[str]) -> None:
    assert MODE_INTERACTIONS["segments", "memory"] is ModeInteraction.BOTH
    model = long_model("bert", None, MEMORY_TOKENS)
    with torch.no_grad():
        outputs = model(tokens(2, 40), memory=model.new_memory())
        alone = model(tokens(2, 40)).last_hidden_state
        following = model(tokens(2, 40), memory=outputs.memory).last_hidden_state
    assert ran == ["segments"] * 3
    assert torch.equal(outputs.last_hidden_state, alone)
    assert not torch.allclose(following, alone)
