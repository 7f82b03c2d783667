"""Compare a language model's loss at the new length with the source's. The source reads chunks of its maximum length."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..checks import MEASURED, SKIPPED, Check
from ..data.masking import MASKED, masked_tokens
from ..evaluation.token_loss import LossChange, chunk_losses, token_losses, with_context
from ..inputs.text import VerificationText
from ..modeling.family.registration import auto_class_name
from .flops import cost_at, layer_mechanisms
from .plan import ConversionPlan
from .report import decision

LOSS = "language-model loss by position"
HEADS = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForPreTraining")
FLOPS_UNASKED, FLOPS_WITH_TEXT = 5e11, 8e12
LOGITS_BYTES, LOGITS_FROM_FILES = 2e9, 2e8
"""Maximum bytes of the logits, for models in memory and for models whose weights stay in their files."""


class LossCheck:
    """Measures the losses of source and result on the same text. Each is measured while it is loaded for the comparison of outputs.

    Args:
        old, new: the lengths in tokens at which the conversion is checked.
        from_files: whether the weights stay in their files.
        given_text: whether the text is the user's, so that more time is spent.
    """

    def __init__(self, plan: ConversionPlan, text: VerificationText, old: int, new: int, *, from_files: bool, given_text: bool) -> None:
        self.plan, self.text, self.from_files, self.given_text = plan, text, from_files, given_text
        self.causal = plan.shape.causal
        self.skipped = self._not_predicted()
        """Checks reported instead of the losses: a skipped one with its reason, or an empty list; ``None`` if the losses are measured."""
        if self.skipped is not None:
            return
        self.chunk = old if plan.new_length >= 2 * old else plan.new_length // -(-plan.new_length // old)
        """Tokens that the source reads at once: its maximum length, or equal parts of a text that is less than twice as long."""
        self.available = min(new, text.real_tokens()) // self.chunk * self.chunk
        self.count = self._affordable(self.available)
        if reason := self._why_not(new):
            self.skipped = [Check(LOSS, SKIPPED, reason)]
            return
        ids = text.tokens(self.count)
        self.shown, self.target = (ids, ids) if self.causal else masked_tokens(ids, text.tokenizer)

    def measure_source(self, source: Any) -> None:
        """Measure the losses of ``source``. The caller loads it without rounding its weights to the result's dtype."""
        if self.skipped is not None:
            return
        together = 1 if self.from_files else self.count // self.chunk  # weights in files are read for every pass
        self.of_source: Tensor = chunk_losses(
            source, self.shown, self.target, self.chunk, causal=self.causal, together=together, special=self.text.special
        )

    def check(self, result: Any, states: Mapping[str, Tensor]) -> list[Check]:
        """Measure the result's losses and compare them; return :attr:`skipped` if the losses are not measured."""
        if self.skipped is not None:
            return self.skipped
        old, new = self.of_source, token_losses(result, self.shown, self.target, causal=self.causal)
        buckets = [
            {
                "from": low,
                "to": high,
                "predicted": int((~old[low:high].isnan()).sum()),
                "source_on_chunks": float(old[low:high].nanmean()),
                "result": float(new[low:high].nanmean()),
            }
            for low, high in pairwise(_edges(self.chunk, self.count))
            if not new[low:high].isnan().all()
        ]
        listed = "; ".join(f"{b['from']}–{b['to']}: {b['source_on_chunks']:.3f} → {b['result']:.3f}" for b in buckets)
        shortened = (
            f" (of {self.available}: a large model, shortened{'' if self.given_text else '; --verify-text FILE allows more'})"
            if self.count < self.available
            else ""
        )
        change = LossChange.of(with_context(old, self.chunk, causal=self.causal), new)
        detail = (
            f"{self.count} tokens{shortened} of {self.text.describe()}, source on chunks of {self.chunk} → result in one pass: {listed}"
        )
        values = {
            "tokens": self.count,
            "chunk": self.chunk,
            "predicts": "the next token" if self.causal else f"{MASKED:.0%} masked tokens",
            "unit": "nats per token",
            "buckets": buckets,
        }
        if change is None:
            return [Check(LOSS, MEASURED, detail, values)]
        detail = f"{detail}; in all {change}: the result is {'worse' if change.worse else 'not worse'}"
        return [decision(LOSS, not change.worse, detail, {**values, "change": change.to_dict()})]

    def _not_predicted(self) -> list[Check] | None:
        """Checks (often none) for a model whose losses are not worth measuring. ``None`` if it predicts the tokens of the text."""
        plan = self.plan
        if auto_class_name(plan.config, plan.architecture.long_class) not in HEADS:
            return []
        if plan.skeleton.get_output_embeddings() is None:  # not pre-trained to predict tokens (ELECTRA's discriminator)
            return []
        if plan.decoder is not None:
            return [Check(LOSS, SKIPPED, "an encoder-decoder predicts its own output, not the positions of the text")]
        if plan.architecture.converter is not None and plan.new_length < 2 * plan.old_length:
            return []  # outputs are compared anyway, and the length grows too little
        return None

    def _affordable(self, count: int) -> int:
        """Maximum tokens within the limits: whole chunks, at least two if the result takes two. 0 if these exceed the limits."""
        plan, chunk = self.plan, self.chunk
        limit = FLOPS_WITH_TEXT if self.given_text else FLOPS_UNASKED
        logits = LOGITS_FROM_FILES if self.from_files else LOGITS_BYTES
        least = min(2 * chunk, plan.new_length // chunk * chunk)
        while count >= least:
            cost = cost_at(count, plan.shape, layer_mechanisms(plan.attention, plan.shape, plan.new_length))
            flops = 2 * (cost.total_flops + 2 * count * plan.config.vocab_size * plan.config.hidden_size)
            if flops <= limit and count * plan.config.vocab_size * 4 <= logits:
                return count
            count = max(count // 2 // chunk * chunk, least if count > least else 0)
        return 0

    def _why_not(self, new: int) -> str | None:
        """Why the losses cannot be measured; ``None`` if they can."""
        text, chunk, new_length = self.text, self.chunk, self.plan.new_length
        if chunk < 2:
            return "the source takes only one token, so nothing is predicted"
        if text.tokenizer is None:
            return f"{text.why_seeded}, and a loss needs real text"
        if not self.causal and text.tokenizer.mask_token_id is None:
            return "the tokenizer has no mask token"
        needed = min(2 * chunk, new_length // chunk * chunk)
        what = f"{'two chunks' if needed > chunk else 'one chunk'} of {chunk} tokens"
        if min(new, text.real_tokens()) < needed:
            are = "are" if needed > chunk else "is"
            return (
                f"{what} {are} needed; the text has {text.real_tokens()} (--verify-text FILE gives another), and"
                f" the result is checked at {new}"
            )
        if not self.count:
            return f"{what} would take too long for a model of this size; --verify-text FILE allows more time"
        return None


def _edges(old: int, count: int) -> list[int]:
    edges = [0, old]
    while edges[-1] * 2 < count:
        edges.append(edges[-1] * 2)
    return edges if edges[-1] == count else [*edges, count]
