"""Every head of every family runs through its base model of a Long class, and hands down or refuses what that takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longattn.errors import InputError
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.attach.memory_tokens import FIELDS
from hf_longattn.modeling.mixin import LongBaseModelMixin
from scripts.dev.tools.small_models import TEXT_FAMILIES
from tests.cases import every_case
from tests.reference.small_models import long_model
from tests.shared_code import kind_of_family

WINDOW = {"mechanism": "window", "window": 16}
HEADS = [(base, head) for base, family in TEXT_FAMILIES.items() for head in family.model_classes]
LENGTH, FIRST = 20, 8


def small(base: str, head: str) -> Any:
    alone = {"is_decoder": True, "is_encoder_decoder": False} if FAMILIES[base].two_stacks and head.endswith("ForCausalLM") else {}
    start = {"decoder_start_token_id": 2} if FAMILIES[base].two_stacks else {}
    return long_model(base, head, WINDOW, **alone, **start)


def inputs_of(model: Any, head: str) -> dict[str, Any]:
    shape = (1, 2, LENGTH) if head.endswith(("MultipleChoice", "DoubleHeadsModel")) else (1, LENGTH)
    ids = torch.randint(5, 200, shape)
    if model.config.eos_token_id is not None:
        ids[..., -1] = model.config.eos_token_id  # sequence classification of BART reads it
    decoder = (
        {"decoder_input_ids": ids} if model.config.is_encoder_decoder and not head.endswith(("Classification", "EncoderModel")) else {}
    )
    return {"input_ids": ids, **decoder}


def runs_of(model: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments of every run of a base model."""
    runs: list[dict[str, Any]] = []
    hooks = [
        base.register_forward_pre_hook(lambda module, args, kwargs: runs.append(kwargs), with_kwargs=True)
        for base in model.modules()
        if isinstance(base, LongBaseModelMixin)
    ]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return runs


@pytest.mark.thorough
@every_case(("base", "head"), HEADS, of=9, code=kind_of_family)
def test_every_head_runs_its_base_with_documents_and_positions(base: str, head: str) -> None:
    """A head that calls a module inside its base instead, or drops an argument, would leave out what the base does, without a word.

    A base that takes no positions would read on after those that restart, with the documents kept apart at best.
    """
    model = small(base, head)
    inputs = inputs_of(model, head)
    bases = [module for module in model.modules() if isinstance(module, LongBaseModelMixin)]
    assert len(runs_of(model, inputs)) == len(bases)
    check_documents(model, inputs)
    check_positions(model, inputs, bases)


def check_documents(model: Any, inputs: dict[str, Any]) -> None:
    documents = torch.zeros_like(inputs["input_ids"])
    documents[..., FIRST:] = 1
    for name, value in {"documents": documents, "seq_idx": documents}.items():
        try:
            seen = [name in run for run in runs_of(model, {**inputs, name: value, **uncached(model)})]
        except InputError:
            continue
        assert seen
        assert all(seen), f"{name} did not reach the base"


def check_positions(model: Any, inputs: dict[str, Any], bases: list[LongBaseModelMixin]) -> None:
    positions = torch.cat([torch.arange(FIRST), torch.arange(LENGTH - FIRST)])[None]
    first = bases[0].first_position_id
    try:
        runs = runs_of(model, {**inputs, "position_ids": positions + first, **uncached(model)})
    except InputError:
        return
    assert all("position_ids" in run for run in runs), "position_ids did not reach the base"
    assert all(module.position_table is None or module.takes_positions for module in bases)


def uncached(model: Any) -> dict[str, Any]:
    return {"use_cache": False} if getattr(model.config, "is_decoder", False) or getattr(model.config, "use_cache", False) else {}


@pytest.mark.thorough
@every_case("base", TEXT_FAMILIES, of=4, code=kind_of_family)
def test_segments_know_every_field_of_a_base_s_output(base: str) -> None:
    """Segments give back the fields that :data:`FIELDS` knows, and refuse others."""
    family = FAMILIES[base]
    names: set[str] = set()
    head = next(head for head in family.model_classes if head.endswith("Model"))
    model = long_model(base, head, WINDOW)
    for module in model.modules():
        if isinstance(module, LongBaseModelMixin):
            module.register_forward_hook(lambda module, args, outputs: names.update(outputs))
    routers = {"output_router_logits": True} if hasattr(model.config, "output_router_logits") else {}
    with torch.no_grad():
        model(**inputs_of(model, head), output_hidden_states=True, output_attentions=True, **routers)
    assert names <= {*FIELDS}
