"""Language-model loss at the new length by position, compared with the source on chunks of its maximum length."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .flops import cost_at, layer_mechanisms
from .model_loading import auto_class_name, load_result, load_source, outputs
from .plan import ConversionPlan
from .report import MEASURED, SKIPPED, Check
from .text import VerificationText
from .verify_outputs import Lengths

NAME = "language-model loss by position"
FLOPS_UNASKED, FLOPS_WITH_TEXT = 5e11, 8e12
LOGITS_BYTES, LOGITS_FROM_FILES = 2e9, 2e8
"""Maximum bytes of the logits; fewer if the weights stay in their files."""
LOSS_ROWS = 256
"""Number of tokens whose loss is computed at once."""
MASKED = 0.15


def check_loss(
    plan: ConversionPlan, result: Path, text: VerificationText, lengths: Lengths, scratch: Path | None = None, *, given_text: bool
) -> list[Check]:
    """Measure the loss if the checkpoint has a language-model head; if it is not measured, the check says why.

    `scratch`: if given, the weights stay in their files, see `load_source`.
    """
    head = auto_class_name(plan.config, plan.architecture.long_class)
    if head not in ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForPreTraining"):
        return []
    skeleton: Any = plan.architecture.skeleton(plan.config)
    if skeleton.get_output_embeddings() is None:  # not pre-trained to predict tokens (ELECTRA's discriminator)
        return []
    if plan.decoder is not None:
        return [Check(NAME, SKIPPED, "an encoder-decoder predicts its own output, not the positions of the text")]
    if plan.architecture.converter is not None and plan.new_length < 2 * plan.old_length:
        return []  # the outputs are compared, and no longer length is new
    whole = min(lengths.new, text.real_tokens()) // lengths.old * lengths.old
    logits = LOGITS_BYTES if scratch is None else LOGITS_FROM_FILES
    count = _affordable(plan, whole, lengths.old, FLOPS_WITH_TEXT if given_text else FLOPS_UNASKED, logits)
    reason = _why_not(plan, text, count, lengths)
    if reason:
        return [Check(NAME, SKIPPED, reason)]
    ids = text.tokens(count)
    shown, target = (ids, ids) if plan.shape.causal else _mask(ids, text.tokenizer)
    source = load_source(plan.source, plan.architecture, None, scratch)[0]
    together = 1 if scratch is None else count // lengths.old  # weights in files are read for every pass
    old = _chunked_losses(source, shown, target, lengths.old, plan.shape.causal, together)
    del source
    new = _losses(load_result(result, plan.architecture, plan.config, scratch=scratch)[0], shown, target, plan.shape.causal)
    edges = _edges(lengths.old, count)
    measured = [
        {
            "from": low,
            "to": high,
            "predicted": int((~old[low:high].isnan()).sum()),
            "source_on_chunks": _mean(old[low:high]),
            "result": _mean(new[low:high]),
        }
        for low, high in pairwise(edges)
    ]
    buckets = [bucket for bucket in measured if bucket["result"] is not None]
    listed = "; ".join(f"{b['from']}–{b['to']}: {b['source_on_chunks']:.3f} → {b['result']:.3f}" for b in buckets)
    shortened = (
        f" (of {whole}: a large model, shortened{'' if given_text else '; --verify-text FILE allows more'})" if count < whole else ""
    )
    detail = f"{count} tokens{shortened} of {text.describe()}, source on chunks of {lengths.old} → result in one pass: {listed}"
    values = {
        "tokens": count,
        "chunk": lengths.old,
        "predicts": "the next token" if plan.shape.causal else f"{MASKED:.0%} masked tokens",
        "unit": "nats per token",
        "buckets": buckets,
    }
    return [Check(NAME, MEASURED, detail, values)]


def _affordable(plan: ConversionPlan, count: int, chunk: int, limit: float, logits: float) -> int:
    """The largest number of tokens, in whole chunks and at least two, within the limits; 0 if two are too many."""
    while count >= 2 * chunk:
        cost = cost_at(count, plan.shape, layer_mechanisms(plan.attention, plan.shape, plan.new_length))
        flops = 2 * (cost.total_flops + 2 * count * plan.config.vocab_size * plan.config.hidden_size)
        if flops <= limit and count * plan.config.vocab_size * 4 <= logits:
            return count
        count = max(count // 2 // chunk * chunk, 2 * chunk if count > 2 * chunk else 0)
    return 0


def _why_not(plan: ConversionPlan, text: VerificationText, count: int, lengths: Lengths) -> str | None:
    if lengths.old < 2:
        return "the source takes only one token, so nothing is predicted"
    if text.tokenizer is None:
        return f"{text.why_seeded}, and a loss needs real text"
    if not plan.shape.causal and text.tokenizer.mask_token_id is None:
        return "the tokenizer has no mask token"
    if plan.new_length < 2 * lengths.old:
        return f"two chunks of {lengths.old} tokens are needed, and the result takes {plan.new_length} tokens"
    if min(lengths.new, text.real_tokens()) < 2 * lengths.old:
        return (
            f"two chunks of {lengths.old} tokens are needed; the text has {text.real_tokens()} (--verify-text FILE gives another), and"
            f" the result is checked at {lengths.new}"
        )
    if not count:
        return f"two chunks of {lengths.old} tokens would take too long for a model of this size; --verify-text FILE allows more time"
    return None


def _mask(ids: Tensor, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Mask 15 % of the tokens, seeded; targets are -100 elsewhere."""
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < MASKED
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    chosen &= ~torch.isin(ids, special)
    return ids.masked_fill(chosen, tokenizer.mask_token_id), ids.masked_fill(~chosen, -100)


def _losses(model: Any, shown: Tensor, target: Tensor, causal: bool) -> Tensor:
    """(N,) loss of each token; NaN where it is not predicted."""
    returned = outputs(model, shown)
    logits = returned["logits"] if "logits" in returned else returned["prediction_logits"]
    if causal:
        logits, target = logits[:, :-1], target[:, 1:]
    pieces = zip(logits.flatten(0, 1).split(LOSS_ROWS), target.flatten().split(LOSS_ROWS), strict=True)  # each piece copies its logits
    losses = torch.cat([functional.cross_entropy(*piece, reduction="none", ignore_index=-100) for piece in pieces])
    losses = losses.masked_fill(target.flatten() == -100, float("nan")).view(shown.shape[0], -1)
    return functional.pad(losses, (int(causal), 0), value=float("nan")).flatten()


def _chunked_losses(model: Any, shown: Tensor, target: Tensor, chunk: int, causal: bool, together: int) -> Tensor:
    """`together`: number of chunks in a batch."""
    parts = zip(shown.reshape(-1, chunk).split(together), target.reshape(-1, chunk).split(together), strict=True)
    return torch.cat([_losses(model, some, wanted, causal) for some, wanted in parts])


def _mean(losses: Tensor) -> float | None:
    asked = losses[~losses.isnan()]
    return float(asked.mean()) if asked.numel() else None


def _edges(old: int, count: int) -> list[int]:
    edges = [0, old]
    while edges[-1] * 2 < count:
        edges.append(edges[-1] * 2)
    return edges if edges[-1] == count else [*edges, count]
