"""Compare a language model's loss with the source's, by position.

The source reads chunks of its maximum length, or the same text at once where a longer one takes too long. A loss decides only where the
source reads the text: its loss is well below chance, the loss of predicting every token by its frequency in the text. A source that does
not read it (of another language, of code or proteins, untrained) loses nothing by a destroyed table.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..data.masking import MASKED, masked_tokens
from ..data.tokenization import IGNORED
from ..evaluation.token_loss import NEGLIGIBLE, LossChange, chunk_losses, with_context
from ..inputs.tokenizer import LONGER_TEXT, READABLE_TEXT, VerificationText
from ..reports import Check
from .folders import decision, undecided
from .lengths import Lengths
from .plan import ConversionPlan

LOSS = "language-model loss by position"
READS = 0.1
"""Minimum share of the loss of chance by which the loss of a source that reads the text is lower. Untuned."""


def text_losses(plan: ConversionPlan, text: VerificationText, lengths: Lengths, model: Any, chunk: int) -> Tensor:
    """The loss of each token, ``(N,)``; NaN where none is predicted.

    Args:
        model: source or result. chunk: tokens that it reads at once.
    """
    target = ids = text.tokens(lengths.read)
    if plan.shape.causal:
        target = ids.masked_fill(torch.arange(lengths.read) % lengths.every != 0, IGNORED)
    else:
        ids, target = masked_tokens(ids, text.tokenizer)
    special = text.special if chunk < lengths.read else ([], [])
    return chunk_losses(model, ids, target, chunk, causal=plan.shape.causal, together=lengths.read // chunk, special=special)


def check_loss(
    plan: ConversionPlan, text: VerificationText, lengths: Lengths, old: Tensor, new: Tensor, *, given_text: bool = False
) -> Check:
    """Judge the losses of source and result, ``old`` and ``new``, from :func:`text_losses`."""
    count, chunk, causal, real = lengths.read, lengths.chunk, plan.shape.causal, text.real_tokens()
    # up to the covered length the result is the source, which would hide what the mechanism costs
    same = lengths.covered if lengths.at_once and not plan.position_change and lengths.covered < count else 0
    edges = [0, same or (max(1, count // 8) if lengths.at_once else chunk)]
    while edges[-1] * 2 < count:
        edges.append(edges[-1] * 2)
    buckets = [
        {
            "from": low,
            "to": high,
            "predicted": int((~old[low:high].isnan()).sum()),
            "source_on_chunks": float(old[low:high].nanmean()),
            "result": float(new[low:high].nanmean()),
        }
        for low, high in pairwise(sorted({*edges, count}))
        if not new[low:high].isnan().all()
    ]
    listed = "; ".join(f"{b['from']}–{b['to']}: {b['source_on_chunks']:.3f} → {b['result']:.3f}" for b in buckets)
    more = "" if given_text or count > min(lengths.new, real) - chunk else "; --verify-text FILE allows more"
    shortened = "" if count > plan.new_length - chunk else f" (of {plan.new_length}{more})"
    how = "source → result" if lengths.at_once else f"source on chunks of {chunk} → result in one pass"
    predicts = f"{MASKED:.0%} masked tokens" if not causal else "the next token" + f", every {lengths.every}th" * (lengths.every > 1)
    values = {"tokens": count, "chunk": chunk, "predicts": predicts, "unit": "nats per token", "buckets": buckets}

    old = with_context(old, chunk, causal=causal).masked_fill(torch.arange(count) < same, float("nan"))
    of_frequencies = -(text.tokens(real)[0].bincount()[text.tokens(count)[0]] / real).log()  # finite: the text contains them all
    change, gain = LossChange.of(old, new), LossChange.of(old, of_frequencies)
    detail = f"{count} tokens{shortened} of {text.describe()}, {how}: {listed}"
    if change is None or gain is None:
        return undecided(LOSS, f"{detail}; no token is predicted by both", LONGER_TEXT, values)
    detail = f"{detail}; {f'beyond {same}' if same else 'in all'} {change}; chance, from token frequencies alone, {gain.after:.3f}"
    values |= {"change": change.to_dict(), "chance": gain.after}
    if not (gain.worse and gain.change >= READS * gain.after):
        return undecided(LOSS, f"{detail}: the source does not predict this text much better than chance", READABLE_TEXT, values)
    if change.worse:
        return decision(LOSS, False, f"{detail}: the result is worse", values)
    if not max(NEGLIGIBLE, 2 * (change.error or 0.0)) <= gain.change / 2:
        return undecided(LOSS, f"{detail}: half of what the source gains over chance could be lost unseen", LONGER_TEXT, values)
    if lengths.at_once and plan.new_length > plan.old_length:
        would_tell = f"the losses of source and result on long texts (longattn evaluate {'clm' if causal else 'mlm'})"
        problem = f"the result is not worse, but no text of more than {plan.old_length:,} tokens was read"
        return undecided(LOSS, f"{detail}: {problem}", would_tell, values)
    return decision(LOSS, True, f"{detail}: the result is not worse", values)
