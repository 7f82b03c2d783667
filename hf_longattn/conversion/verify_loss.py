"""Compare a language model's loss at the new length with the source's. The source reads chunks of its maximum length.

A loss decides only where the source reads the text: its loss is well below chance, the loss of predicting every token by its frequency in
the text. A source that does not read it (of another language, of code or proteins, untrained) loses nothing by a destroyed table.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..data.masking import MASKED, masked_tokens
from ..evaluation.token_loss import NEGLIGIBLE, LossChange, chunk_losses, token_losses, with_context
from ..inputs.text import LONGER_TEXT, READABLE_TEXT, VerificationText
from ..modeling.family.registration import auto_class_name
from ..reports import Check
from .flops import cost_at, layer_mechanisms
from .plan import ConversionPlan
from .report import decision, undecided

LOSS = "language-model loss by position"
HEADS = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForPreTraining")
FLOPS_UNASKED, FLOPS_WITH_TEXT = 5e11, 8e12
LOGITS_BYTES, LOGITS_FROM_FILES = 2e9, 2e8
"""Maximum bytes of the logits, for models in memory and for models whose weights stay in their files."""
READS = 0.1
"""Minimum share of the loss of chance by which the loss of a source that reads the text is lower. Untuned."""
BEYOND = "beyond the old length"
"""Name of the check of texts that the source cannot read, for heads that nothing is measured of."""


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
        if reasons := self._why_not(new):
            self.skipped = [undecided(LOSS, *reasons)]
            return
        self.ids = text.tokens(self.count)
        self.shown, self.target = (self.ids, self.ids) if self.causal else masked_tokens(self.ids, text.tokenizer)

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
        edges = [0, self.chunk]
        while edges[-1] * 2 < self.count:
            edges.append(edges[-1] * 2)
        buckets = [
            {
                "from": low,
                "to": high,
                "predicted": int((~old[low:high].isnan()).sum()),
                "source_on_chunks": float(old[low:high].nanmean()),
                "result": float(new[low:high].nanmean()),
            }
            for low, high in pairwise(sorted({*edges, self.count}))
            if not new[low:high].isnan().all()
        ]
        listed = "; ".join(f"{b['from']}–{b['to']}: {b['source_on_chunks']:.3f} → {b['result']:.3f}" for b in buckets)
        shortened = ""
        if self.count <= self.plan.new_length - self.chunk:
            more = "" if self.given_text or self.count == self.available else "; --verify-text FILE allows more"
            shortened = f" (of {self.plan.new_length}{more})"
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
        old = with_context(old, self.chunk, causal=self.causal)
        change, gain = LossChange.of(old, new), LossChange.of(old, self._chance())
        if change is None or gain is None:
            return [undecided(LOSS, f"{detail}; no token is predicted by both", LONGER_TEXT, values)]
        detail = f"{detail}; in all {change}; chance, from token frequencies alone, {gain.after:.3f}"
        values |= {"change": change.to_dict(), "chance": gain.after}
        if not (gain.worse and gain.change >= READS * gain.after):
            problem = "the source does not predict this text much better than chance"
            return [undecided(LOSS, f"{detail}: {problem}", READABLE_TEXT, values)]
        if not change.worse and not max(NEGLIGIBLE, 2 * (change.error or 0.0)) <= gain.change / 2:
            problem = "half of what the source gains over chance could be lost unseen"
            return [undecided(LOSS, f"{detail}: {problem}", LONGER_TEXT, values)]
        return [decision(LOSS, not change.worse, f"{detail}: the result is {'worse' if change.worse else 'not worse'}", values)]

    def _chance(self) -> Tensor:
        """The loss ``(N,)`` of predicting every token by its frequency in the text. Finite, since the text contains all of them."""
        count = self.text.real_tokens()
        return -(self.text.tokens(count)[0].bincount()[self.ids[0]] / count).log()

    def _not_predicted(self) -> list[Check] | None:
        """Checks (often none) for a model whose losses are not worth measuring. ``None`` if it predicts the tokens of the text."""
        plan, long_class = self.plan, self.plan.architecture.long_class
        predicts = auto_class_name(plan.config, long_class) in HEADS and plan.skeleton.get_output_embeddings() is not None  # not ELECTRA's
        if not predicts or plan.decoder is not None:  # an encoder-decoder predicts its own output, not the positions of the text
            problem = f"the source reads no more than {plan.old_length:,} tokens, and {long_class} has no loss without labels"
            would_tell = f"its scores on labelled texts of up to {plan.new_length:,} tokens (longattn evaluate)"
            return [undecided(BEYOND, problem, would_tell)] if plan.new_length > plan.old_length else []
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

    def _why_not(self, new: int) -> tuple[str, str] | None:
        """Why the losses cannot be measured, and with what they could; ``None`` if they can."""
        text, chunk, new_length = self.text, self.chunk, self.plan.new_length
        if chunk < 2:
            return "the source takes only one token, so nothing is predicted", "a source of more tokens"
        if text.tokenizer is None:
            return f"{text.why_seeded}, and a loss needs real text", text.would_be_real
        if not self.causal and text.tokenizer.mask_token_id is None:
            return "the tokenizer has no mask token", "a tokenizer with the token that the source was trained on"
        needed = min(2 * chunk, new_length // chunk * chunk)
        elsewhere = f"the losses of source and result on long texts (longattn evaluate {'clm' if self.causal else 'mlm'})"
        what = f"{'two chunks' if needed > chunk else 'one chunk'} of {chunk} tokens"
        if min(new, text.real_tokens()) < needed:
            are = "are" if needed > chunk else "is"
            problem = f"{what} {are} needed; the text has {text.real_tokens()}, and the result is checked at {new}"
            return problem, LONGER_TEXT if text.real_tokens() < needed else elsewhere
        if not self.count:
            problem = f"{what} would take too long for a model of this size"
            return problem, elsewhere if self.given_text else f"{READABLE_TEXT}, which allows more time,"
        return None
