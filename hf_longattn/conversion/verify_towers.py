"""Run source and result of a model of several towers on a text and a picture together, and compare their similarity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import FAILED, PASSED, Check, Difference, equality
from ..inputs.common.base import TEXT
from ..inputs.common.running import run_model
from ..inputs.towers import VerificationTowers
from ..mechanisms.common.exact import for_length
from .flops import layer_mechanisms, mechanisms_on
from .model_loading import load_result, load_source
from .plan import ConversionPlan
from .verify_outputs import all_finite, choose_lengths
from .verify_sizes import affordable_size

LONGEST_CAPTION = 512
"""Maximum number of tokens of the text whose similarity with a picture is compared."""


def check_together(plan: ConversionPlan, result: Path, inputs: VerificationTowers, scratch: Path | None = None) -> list[Check]:
    """Check the similarity of the longest text with unchanged positions and a picture of the old size; and the loss at the new sizes.

    `scratch`: if given, the weights stay in their files, see `load_source`.
    """
    length, why = _caption_length(plan)
    old = _arguments(plan, inputs, length)
    source, _ = load_source(plan.source, plan.architecture, plan.cast, scratch)
    expected = run_model(source, old)
    del source
    model: Any = load_result(result, plan.architecture, plan.config, scratch=scratch)[0]
    covered = all(_covers(part, length) for part in plan.towers.values())
    if not covered:
        model.use_base_attention()
    how = "with long attention" if covered else "with full attention"
    measured = run_model(model, old)
    pictures = " and ".join(part.old_input for part in plan.towers.values() if part.kind.planned_as != TEXT)
    detail = f"similarity of a text of {length} tokens and a picture of {pictures}, {how}: largest difference from the source"
    checks = [equality("similarities of text and picture equal", detail, Difference.of(expected, measured), {"length": length}, why)]
    model.set_attn_implementation("longattn")
    new = _arguments(plan, inputs)
    with torch.no_grad():
        returned = model(**new, return_loss=True, return_dict=True)
    finite = all_finite({name: returned[name] for name in ("loss", "logits_per_text")})
    detail = f"similarity and loss at the new sizes are {'' if finite else 'not '}finite"
    return [*checks, Check("finite at the new sizes", PASSED if finite else FAILED, detail)]


def _caption_length(plan: ConversionPlan) -> tuple[int, str]:
    """Length of the compared text in tokens, and the reason why its outputs may differ; empty if they must be equal."""
    if plan.position_change and plan.unchanged_tokens <= 1:
        return min(plan.old_length, LONGEST_CAPTION), plan.position_change
    return min(plan.unchanged_tokens if plan.position_change else plan.old_length, plan.old_length, LONGEST_CAPTION), ""


def _arguments(plan: ConversionPlan, inputs: VerificationTowers, length: int | None = None) -> dict[str, Tensor]:
    """Arguments of ``forward``: a text of ``length`` tokens with an end token, and inputs of the old size; new sizes for ``None``."""
    arguments: dict[str, Tensor] = {}
    for name, part in plan.towers.items():
        of_tower = inputs[name]
        if part.kind.planned_as == TEXT:
            ids = of_tower.tokens(choose_lengths(part).new if length is None else length).clone()
            if isinstance(end := getattr(part.config, "eos_token_id", None), int) and end < part.config.vocab_size:
                ids[:, -1] = end
            arguments["input_ids"] = ids
        else:
            arguments |= of_tower.at(affordable_size(part, of_tower)[0] if length is None else part.inputs.old)
    return arguments


def _covers(plan: ConversionPlan, length: int) -> bool:
    """Whether every layer of a tower is full attention on a text of ``length`` tokens, or on an input of the old size."""
    if plan.kind.planned_as != TEXT:
        layers = mechanisms_on(plan.inputs.old, plan.attention, plan.shape)
        return all(layer.covers(tokens) for layer, tokens in zip(layers, plan.inputs.old.layer_tokens(len(layers)), strict=True))
    causal = plan.shape.causal
    return all(
        for_length(layer, length, causal).covers(length, causal) for layer in layer_mechanisms(plan.attention, plan.shape, plan.new_length)
    )
