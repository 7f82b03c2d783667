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
from ..inputs.text import LONGER_TEXT, READABLE_TEXT, VerificationText
from ..modeling.family.registration import auto_class_name
from ..reports import Check
from .lengths import Lengths
from .plan import ConversionPlan
from .report import decision, undecided

LOSS = "language-model loss by position"
HEADS = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForPreTraining")
READS = 0.1
"""Minimum share of the loss of chance by which the loss of a source that reads the text is lower. Untuned."""
BEYOND = "beyond the old length"
"""Name of the check of texts that the source cannot read, for heads that nothing is measured of."""


def why_no_loss(plan: ConversionPlan, text: VerificationText, lengths: Lengths, model: Any, given_text: bool) -> list[Check] | None:
    """The checks (often none) of a result whose loss is not measured; ``None`` if it is."""
    old, new, long_class = plan.old_length, plan.new_length, plan.architecture.long_class
    predicts = auto_class_name(plan.config, long_class) in HEADS and model.get_output_embeddings() is not None  # not ELECTRA's
    if not predicts or plan.decoder is not None:  # an encoder-decoder predicts its own output, not the positions of the text
        problem = f"the source reads no more than {old:,} tokens, and {long_class} has no loss without labels"
        would_tell = f"its scores on labelled texts of up to {new:,} tokens (longattn evaluate)"
        return [undecided(BEYOND, problem, would_tell)] if new > old else []
    if plan.architecture.converter is not None and new < 2 * old:
        return []  # outputs are compared anyway, and the length grows too little
    if text.tokenizer is None:
        return [undecided(LOSS, f"{text.why_seeded}, and a loss needs real text", text.would_be_real)]
    if not plan.shape.causal and text.tokenizer.mask_token_id is None:
        would_tell = "a tokenizer with the token that the source was trained on"
        return [undecided(LOSS, "the tokenizer has no mask token", would_tell)]
    if lengths.read:
        return None
    if text.real_tokens() < lengths.needed:
        problem = f"{lengths.needed:,} tokens are needed, and the text has {text.real_tokens():,}"
        return [undecided(LOSS, problem, LONGER_TEXT)]
    would_tell = _evaluation(plan) if given_text else f"{READABLE_TEXT}, which allows more time,"
    return [undecided(LOSS, f"{lengths.needed:,} tokens would take too long for a model of this size", would_tell)]


def _evaluation(plan: ConversionPlan) -> str:
    """The measurement that would tell, as a noun phrase."""
    return f"the losses of source and result on long texts (longattn evaluate {'clm' if plan.shape.causal else 'mlm'})"


def text_losses(plan: ConversionPlan, model: Any, text: VerificationText, lengths: Lengths, chunk: int) -> Tensor:
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
    count, chunk, causal = lengths.read, lengths.chunk, plan.shape.causal
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
    shortened = ""
    if count <= plan.new_length - chunk:
        more = "" if given_text or count > min(lengths.new, text.real_tokens()) - chunk else "; --verify-text FILE allows more"
        shortened = f" (of {plan.new_length}{more})"
    how = "source → result" if lengths.at_once else f"source on chunks of {chunk} → result in one pass"
    detail = f"{count} tokens{shortened} of {text.describe()}, {how}: {listed}"
    predicts = f"{MASKED:.0%} masked tokens" if not causal else "the next token" + f", every {lengths.every}th" * (lengths.every > 1)
    values = {"tokens": count, "chunk": chunk, "predicts": predicts, "unit": "nats per token", "buckets": buckets}

    old = with_context(old, chunk, causal=causal).masked_fill(torch.arange(count) < same, float("nan"))
    real = text.real_tokens()
    of_frequencies = -(text.tokens(real)[0].bincount()[text.tokens(count)[0]] / real).log()  # finite: the text contains them all
    change, gain = LossChange.of(old, new), LossChange.of(old, of_frequencies)
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
        return undecided(LOSS, f"{detail}: the result is not worse, but positions from {count} on were not read", _evaluation(plan), values)
    return decision(LOSS, True, f"{detail}: the result is not worse", values)
