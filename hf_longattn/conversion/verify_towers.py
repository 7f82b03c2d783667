"""Compare the similarity of a text and an image in source and result of a model of towers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..inputs.common.base import InputSize
from ..inputs.common.running import all_finite, run_model
from ..inputs.towers import TowersKind, VerificationTowers
from ..mechanisms import Mechanism
from ..mechanisms.common.exact import for_length
from ..reports import FAILED, PASSED, Check, Difference, equality
from .flops import layer_mechanisms, mechanisms_on
from .lengths import choose_lengths
from .model_loading import load_result, load_source
from .plan import ConversionPlan
from .verify_sizes import affordable_size

LONGEST_CAPTION = 512
"""Maximum number of tokens of the text whose similarity with an image is compared."""


def check_together(
    kind: TowersKind, plan: ConversionPlan, result: Path, inputs: VerificationTowers, scratch: Path | None, given_text: bool
) -> list[Check]:
    """Check a text's similarity with an image, and the loss at new sizes.
    The text is the longest with unchanged positions, the image has the old size.

    `scratch`: if given, the weights stay in their files, see `load_source`.
    """
    length, why = min(plan.old_length, LONGEST_CAPTION), ""
    if plan.position_change and plan.unchanged_tokens <= 1:
        why = plan.position_change
    elif plan.position_change:
        length = min(length, plan.unchanged_tokens)
    compared = {name: _at_old(part, length) for name, part in plan.towers.items()}
    old = _arguments(plan, inputs, {name: size for name, (size, _) in compared.items()})
    source, _ = load_source(plan.source, plan.architecture, plan.cast, scratch)
    expected = run_model(source, old)
    del source
    model: Any = load_result(result, plan.architecture, plan.config, scratch=scratch)[0]
    covered = all(
        layer.covers(size.tokens, plan.towers[name].shape.causal) for name, (size, layers) in compared.items() for layer in layers
    )
    if not covered:
        model.use_base_attention()
    how = "with long attention" if covered else "with full attention"
    measured = run_model(model, old)
    read = " and ".join(f"one {plan.towers[name].kind.noun} of {size.describe()}" for name, (size, _) in compared.items())
    detail = f"similarity of {read}, {how}: largest difference from the source"
    checks = [equality("similarities of text and image equal", detail, Difference.of(expected, measured), {"length": length}, why)]
    model.set_attn_implementation("longattn")
    sizes = {}
    for name, part in plan.towers.items():
        longer = part.kind.lengthens
        sizes[name] = part.kind.size(part.config, choose_lengths(part).new) if longer else affordable_size(part, inputs[name])[0]
    new = _arguments(plan, inputs, sizes)
    with torch.no_grad():
        returned = model(**new, return_loss=True, return_dict=True)
    finite = all_finite({name: returned[name] for name in ("loss", "logits_per_text")})
    detail = f"similarity and loss at the new sizes are {'' if finite else 'not '}finite"
    return [*checks, Check("finite at the new sizes", PASSED if finite else FAILED, detail)]


def _arguments(plan: ConversionPlan, inputs: VerificationTowers, sizes: Mapping[str, InputSize]) -> dict[str, Tensor]:
    """Arguments of ``forward``: an input of the given size for every tower."""
    parts = plan.towers.items()
    return {key: value for name, part in parts for key, value in part.kind.arguments_at(inputs[name], part.config, sizes[name]).items()}


def _at_old(plan: ConversionPlan, length: int) -> tuple[InputSize, list[Mechanism]]:
    """The size of a tower's compared input, and every layer's mechanism for it. A text has ``length`` tokens."""
    if not plan.kind.lengthens:
        return plan.inputs.old, mechanisms_on(plan.inputs.old, plan.attention, plan.shape)
    layers = layer_mechanisms(plan.attention, plan.shape, plan.new_length)
    return plan.kind.size(plan.config, length), [for_length(layer, length, plan.shape.causal) for layer in layers]
