"""Verification of whole models: each against the plain one under the mechanism's mask as a dense 4-D mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hf_longattn.engines.cpu.kernels import additive_mask

from ..case import AttentionInputs
from ..definition import mask_of
from ..implementations import Implementation
from ..verify import Check, difference
from .inputs import ModelInputs

DENSE_LENGTH = 2048
"""Longest input for which the plain model runs under a dense mask."""
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-1, "fp16": 2e-2}


def verify_model(inputs: ModelInputs, candidates: Sequence[Implementation]) -> list[Check]:
    """Hidden states and, when training is measured, the gradient of the word embeddings."""
    case = inputs.case
    if case.length > DENSE_LENGTH:
        return []
    mask = mask_of(AttentionInputs(case))
    expected: dict[str, list[Any]] = {}
    checks = []
    for candidate in candidates:
        if candidate.computes == "mechanism" and mask is None:
            continue
        if candidate.computes not in expected:
            expected[candidate.computes] = _plain_under(mask if candidate.computes == "mechanism" else None, inputs)
        found = candidate.run(case.backward)
        checks.append(
            Check(
                candidate.name,
                case.length,
                "hidden states",
                difference(found, expected[candidate.computes][0]),
                TOLERANCE[case.dtype],
            )
        )
        if case.backward:
            error = difference(candidate.gradients[0], expected[candidate.computes][1])
            checks.append(Check(candidate.name, case.length, "gradient of the word embeddings", error, TOLERANCE[case.dtype]))
    return checks


def _plain_under(mask: Any, inputs: ModelInputs) -> list[Any]:
    index = torch.arange(inputs.case.length, device=inputs.input_ids.device)
    dense = None
    if mask is not None:
        batch = torch.arange(inputs.case.batch, device=index.device).view(-1, 1, 1, 1)
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=index.device)
        dense = mask(batch, zero, index.view(1, 1, -1, 1), index.view(1, 1, 1, -1)).expand(inputs.case.batch, 1, -1, -1)

    def see(encoder: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """The mask in place of that which the model made of padding."""
        named = dict(zip(("hidden_states", "attention_mask"), arguments, strict=False)) | keywords
        if dense is None:
            return None
        added = inputs.plain._supports_sdpa  # DeBERTa's own attention takes what is seen as bool
        return (), {**named, "attention_mask": additive_mask(~dense, inputs.case.torch_dtype) if added else dense}

    hook = inputs.plain.encoder.register_forward_pre_hook(see, with_kwargs=True)
    with torch.set_grad_enabled(inputs.case.backward):
        output = inputs.plain(inputs.input_ids).last_hidden_state
    hook.remove()
    if not inputs.case.backward:
        return [output]
    words = inputs.plain.embeddings.word_embeddings.weight
    return [output.detach(), *torch.autograd.grad(output, [words], inputs.upstream)]
