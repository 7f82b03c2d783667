"""Initialise the parameters of mechanisms from what the source computes on a text, not at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..engines.call import AttentionCall
from ..engines.dense import repeat_heads
from ..errors import CheckpointError, OptionError
from ..mechanisms.base import Mechanism
from ..modeling.attention_sites import attention_sites
from ..modeling.generic import enable_long_attention
from .architectures import attached_mechanisms
from .model_loading import load_source
from .plan import ConversionPlan
from .report import MEASURED, Check
from .text import VerificationText, excerpt, load_tokenizer, verification_text
from .writing import built_mechanisms, named_values

LONGEST = 1024
"""Maximum tokens of a sequence: the attention matrix of every head is computed."""
SEQUENCES = 17
"""Maximum number: sixteen to initialise from, and the last to measure on."""


def check_can_initialise(plan: ConversionPlan) -> None:
    """Refuse a result without a mechanism that can be initialised from text, or a source that cannot be run with full attention."""
    skeleton = plan.architecture.skeleton(plan.config)
    added = attached_mechanisms(skeleton).values()
    if not any(type(one).init_from_activations is not Mechanism.init_from_activations for one in added):
        raise OptionError(f"Mechanism {plan.attention.mechanism!r} has no parameters to initialise from text; leave --init-from-text out.")
    shared = any(site.shared for site in attention_sites(skeleton))
    if plan.architecture.converter is not None or plan.decoder is not None or shared:
        raise CheckpointError(
            f"init_from_text does not support a {plan.architecture.source_class}, only models of one stack with full attention and without "
            "shared layers; leave --init-from-text out."
        )


def initial_values(plan: ConversionPlan, file: str | Path) -> tuple[dict[str, Tensor], list[Check]]:
    """The parameters of the mechanisms by their names in the result, initialised from the text in ``file``.

    The source runs on sequences of the text with full attention. Each mechanism is given the queries, keys and values of its layer for all
    but the last sequence, on which its output is compared with full attention before and after.

    Raises:
        OptionError, CheckpointError: see :func:`check_can_initialise`; or the text is too short, or there is no tokenizer.
    """
    check_can_initialise(plan)
    ids = _sequences(plan, file)
    measured = _activations(plan, ids)
    mechanisms, at_random = built_mechanisms(plan), built_mechanisms(plan)
    owners: dict[tuple[Any, ...], list[str]] = {}
    for prefix, mechanism in mechanisms.items():
        alone = () if mechanism.shared_by_layers else (prefix,)
        owners.setdefault((type(mechanism), mechanism.options, *alone), []).append(prefix)
    before, after = [], []
    for prefixes in owners.values():
        first = mechanisms[prefixes[0]]
        q, k, v = torch.cat([measured[one][:, :-1] for one in prefixes], 1)
        done = first.init_from_activations(q, k, v, causal=plan.shape.causal)
        for one in prefixes if done else ():
            last = measured[one][:, -1:]
            before.append(_error(at_random[one], last, plan.shape.causal))
            after.append(_error(first, last, plan.shape.causal))
    return named_values(mechanisms), [_check(before, after, Path(file).name, ids)]


def _sequences(plan: ConversionPlan, file: str | Path) -> Tensor:
    """``(S, N)`` ids of the text, each sequence between the tokenizer's special tokens."""
    content, origin = verification_text(file)
    tokenizer = load_tokenizer(plan.source.folder)
    if tokenizer is None:
        raise CheckpointError(f"{plan.source.name!r} has no tokenizer to read {origin!r} with; leave --init-from-text out.")
    special = tokenizer("")["input_ids"]
    opening, closing = special[: (len(special) + 1) // 2], special[(len(special) + 1) // 2 :]
    length = min(plan.old_length, LONGEST)
    inner = length - len(special)
    text = VerificationText(excerpt(content, SEQUENCES * length), origin, tokenizer, plan.config.vocab_size)
    count = min(SEQUENCES, (text.real_tokens() - len(special)) // inner)
    if count < 3:
        raise CheckpointError(
            f"{origin!r} has {text.real_tokens()} tokens, but init_from_text needs at least {3 * inner}; give a longer text."
        )
    ids = text.tokens(len(opening) + count * inner)[0, len(opening) :].view(count, inner)
    ends = [torch.tensor(part, dtype=ids.dtype).expand(count, -1) for part in (opening, closing)]
    return torch.cat([ends[0], ids, ends[1]], 1)


@torch.inference_mode()
def _activations(plan: ConversionPlan, ids: Tensor) -> dict[str, Tensor]:
    """Name of every mechanism of the result -> queries, keys and values ``(3, S, H, N, D)`` of its layer in the source."""
    source: Any = load_source(plan.source, plan.architecture, plan.config.dtype)[0]
    enable_long_attention(source, {"mechanism": "full"})
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, Tensor, Tensor, AttentionCall]) -> None:
            q, k, v, _ = args
            seen.setdefault(name, []).append(torch.stack([q, repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])]))

        return hook

    for site in attention_sites(source):
        attached: Any = site.mechanism
        attached.register_forward_pre_hook(keep(site.mechanism_name))
    for one in ids.split(1):
        source.base_model(input_ids=one)
    return {name: torch.cat(parts, 1) for name, parts in seen.items()}


@torch.no_grad()
def _error(mechanism: Mechanism, measured: Tensor, causal: bool) -> float:
    q, k, v = measured
    full = scaled_dot_product_attention(q, k, v, is_causal=causal)
    return float((mechanism(q, k, v, AttentionCall(causal=causal)) - full).norm() / full.norm())


def _check(before: list[float], after: list[float], file: str, ids: Tensor) -> Check:
    count, length = ids.shape
    mean = [sum(errors) / max(1, len(errors)) for errors in (before, after)]
    detail = (
        f"{len(after)} layers from {count - 1} sequences of {length} tokens of {file}: error of the attention's output on another, "
        f"relative to full attention, {mean[1]:.2f} instead of {mean[0]:.2f} at random"
    )
    return Check("initialised from text", MEASURED, detail, {"random": before, "from_text": after})
