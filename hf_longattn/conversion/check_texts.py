"""Check the outputs of a converted text model, and measure whether it needs training.

The loss of a language model is measured by position. The embeddings of a sentence encoder are compared with the
source's. Models with other heads are not measured, since that would need labels.
"""

from __future__ import annotations

import bisect
import inspect
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import normalize

from ..data.batching import MASKED, masked_tokens
from ..data.tokenization import IGNORED, text_encoding
from ..evaluation.pooling import SentencePooling, sentence_pooling
from ..evaluation.token_loss import NEGLIGIBLE, PARAGRAPHS, LossChange, in_chunks, token_losses, with_context
from ..mechanisms import Mechanism
from ..modeling.costs import ModelShape, affordable_length, cost_at, layer_mechanisms
from ..modeling.family.definition import LANGUAGE_MODELS, UNLIMITED_LENGTH
from ..modeling.family.sliding_window import keeps_window, own_windows
from ..reports import FAILED, MEASURED, NEEDS_TRAINING, PASSED, SKIPPED, Check, Difference, equality
from .check import AS_CONFIGURED, BASE, MECHANISMS, Comparison, attending, check_finite
from .folders import READY, TRAIN, UNKNOWN, VERDICT, WOULD_TELL
from .modality import Modality
from .plan import ConversionPlan, plan_texts
from .running import all_finite, outputs
from .tokenizer import LONGER_TEXT, READABLE_TEXT, VerificationText, load_tokenizer, text_inputs, token_ids

COMPARED, LONGEST, PADDED = 3e11, 1e12, 4e10
"""Maximum FLOPs of one forward pass at the old length, at the new length, and over a padded text. Untuned. BERT-base
at 4,096 tokens is below the limit for the new length."""
SHORTEST_PADDED = 1024
"""Minimum tokens of a padded text, because engines compute shorter texts with a dense mask."""
MEASUREMENT, LEAST_MEASUREMENT = 4e12, 3e13
"""Maximum FLOPs for measuring source and result on one text. The second limit is for the shortest text on which they
can differ, and means some ten minutes on two cores. Untuned."""
MOST_TEXTS, SECONDS = 4, 45.0
"""Maximum number of texts for a decoder's loss, and maximum seconds for reading them."""
SMALLEST_BUCKET = 256
"""Tokens in the first bucket of a decoder's loss by position. Each further bucket ends at twice the position."""
LOGITS_BYTES = 2**31
"""Maximum bytes of the logits for a loss. A decoder's logits are computed for some positions only, to stay below it.
When outputs are compared, the logits have at most a quarter of these bytes."""


@dataclass(frozen=True)
class Lengths:
    """The lengths in tokens at which source and result are run."""

    # longest text for which every layer computes the source's attention, at most the old length; 0 if there is none
    covered: int
    old: int  # length at which outputs are compared
    new: int  # longest text that the result reads in the checks
    padded: int  # length of the text in the padding check
    read: int  # length of the text on which a loss or embeddings are measured; 0 if that is impossible
    chunk: int  # tokens of the measured text that the source reads at once
    every: int  # a decoder's loss is measured at every `every`-th position
    needed: int  # minimum of `read` at which the result can differ from the source
    at_once: bool  # whether the source reads the measured text in one pass, as the result does


def choose_lengths(plan: ConversionPlan, text: VerificationText) -> Lengths:
    """Choose the lengths for this model and text. For a large model, they are shorter than the planned lengths."""
    old_length, new_length, shape = plan.old_length, plan.new_length, plan.shape
    layers = layer_mechanisms(plan.attention, shape, new_length)
    # the source's window in each layer; None for full attention
    windows = own_windows(plan.architecture.source_config) if plan.decoder is None else [None] * len(layers)
    changed = [number for number, width in enumerate(windows) if not keeps_window(plan.attention, number, width)]
    changed_layers = [layers[number] for number in changed]
    decoder = decoder_mechanisms(plan)

    def differs(length: int) -> bool:
        """Whether a layer's attention for a text of this length differs from the source's."""
        covered = covers(changed_layers, length, shape.causal) and covers(decoder, length, True)
        return not covered or any(length > (windows[number] or length) for number in changed)

    # lengths for comparing outputs and for the padding check
    vocabulary = width = 0
    head = plan.skeleton.get_output_embeddings()
    if head is not None:
        vocabulary, width = head.weight.shape
    old = min(affordable_length(old_length, shape, layers, COMPARED), LOGITS_BYTES // max(1, 16 * vocabulary))
    new = affordable_length(new_length, shape, layers, LONGEST)
    # the longest text at which no layer differs; none differs at shorter lengths either
    reach = bisect.bisect_left(range(1, max(old_length, new) + 1), True, key=differs)
    least = min(new, max(SHORTEST_PADDED, 5 * reach // 4))  # long enough that the mechanism hides tokens
    padded = affordable_length(new, shape, layers, PADDED, least)
    covered = min(reach, old_length)

    # `every` is this number times the measured tokens, rounded up, so that a decoder's logits fit into the memory
    per_logits = vocabulary * 4 / LOGITS_BYTES if shape.causal else 0.0

    def operations(count: int) -> float:
        """FLOPs of measuring source and result on ``count`` tokens."""
        every = max(1, math.ceil(count * per_logits))
        return 2 * (cost_at(count, shape, layers).total_flops + 2 * vocabulary * width * count / every)

    def affordable(count: int, chunk: int, least: int) -> int:
        """Halve ``count``, in whole chunks, until the measurement takes few enough FLOPs. 0 if even ``least`` tokens
        take too many."""
        count = count // chunk * chunk
        while count >= least:
            most = LEAST_MEASUREMENT if count == least else MEASUREMENT
            if operations(count) <= most and (shape.causal or count * vocabulary * 4 <= LOGITS_BYTES):
                return count
            if count == least:
                return 0
            count = max(count // 2 // chunk * chunk, least)
        return 0

    # the text for a loss or for embeddings
    longest = min(new, text.real_tokens())
    equal = max(covered, plan.short_texts.length)  # up to this length, the result equals the source
    chunk = read = needed = 0
    if new_length > old_length:
        # the source reads chunks of its length, or equal parts of a text of less than twice its length
        chunk = old_length
        if new_length < 2 * old_length:
            chunk = new_length // -(-new_length // old_length)
        needed = min(2 * chunk, new_length // chunk * chunk)
        read = affordable(longest, chunk, needed)
    if not read and equal < old_length:
        # source and result read the same text in one pass, at least half of it beyond `equal` if possible
        needed = min(max(2, 2 * equal), old_length)
        chunk = read = affordable(min(longest, old_length), 1, needed)
    if not read:
        chunk = 0
    return Lengths(
        covered=covered,
        old=old,
        new=new,
        padded=padded,
        read=read,
        chunk=chunk,
        every=max(1, math.ceil(read * per_logits)),
        needed=needed,
        at_once=read == chunk,
    )


def covers(layers: Sequence[Mechanism], length: int, causal: bool) -> bool:
    """Whether every layer computes full attention at this length, and has no memory tokens."""
    return all(
        layer.covers(length, causal) and not getattr(layer.capabilities.recursion, "memory", None) for layer in layers
    )


def decoder_mechanisms(plan: ConversionPlan) -> list[Mechanism]:
    """The mechanism of every layer of an encoder-decoder's decoder; empty without a decoder."""
    if plan.decoder is None:
        return []
    return layer_mechanisms(plan.config.decoder_attention, ModelShape.of(plan.config, causal=True), plan.decoder.new)


def decision(name: str, ready: bool, detail: str, values: dict[str, Any]) -> Check:
    """A check that tells whether the result needs training.

    Args:
        ready: whether the result can be used without training.
        detail: the measurement, as a sentence without a full stop.
        values: values for the report. ``tokens`` is the number of measured tokens.
    """
    status, verdict = NEEDS_TRAINING, TRAIN
    if ready:
        status, verdict = MEASURED, READY
    return Check(name, status, f"{detail}; {verdict}", {**values, VERDICT: verdict})


def undecided(name: str, reason: str, would_tell: str, values: dict[str, Any] | None = None) -> Check:
    """A check that cannot tell whether the result needs training.

    Args:
        reason: why it cannot tell, as a clause.
        would_tell: what would allow a verdict, as a noun phrase.
        values: values for the report; ``None`` if nothing was measured.
    """
    detail = f"{reason}, so this cannot tell whether the result is {READY}; {would_tell} would"
    status = SKIPPED if values is None else MEASURED
    return Check(name, status, detail, {**(values or {}), VERDICT: UNKNOWN, WOULD_TELL: would_tell})


@dataclass(frozen=True)
class LanguageLoss:
    """The loss of a language model by position.

    Chance is the loss of predicting every token by its frequency in the text. A verdict is given only if the source's
    loss is well below chance. Otherwise, even a destroyed position table would not raise the loss. Such sources are
    untrained, or were trained on another language, on code or on proteins.
    """

    plan: ConversionPlan
    text: VerificationText
    lengths: Lengths

    name = "language-model loss by position"
    least_gain = 0.1
    """Minimum gain of the source over chance, as a share of the chance loss. Untuned."""
    bearable = 0.05
    """Maximum share of the source's gain over chance that a decoder may lose, as the price of fewer keys, and still be
    ready to use. Untuned."""

    def compare(self, source: Any, result: Any) -> Check:
        """Measure both models, and judge the result. A decoder reads more texts if there is time (:data:`SECONDS`)."""
        started = time.monotonic()
        lengths = self.lengths
        texts = min(MOST_TEXTS, self.text.real_tokens() // lengths.read) if self.plan.shape.causal else 1
        old: list[Tensor] = []
        new: list[Tensor] = []
        for number in range(texts):
            old.append(self.measure(source, lengths.chunk, number))
            new.append(self.measure(result, lengths.read, number))
            seconds = time.monotonic() - started
            if seconds * (1 + 1 / len(old)) > SECONDS:  # another text would take too long
                break
        check = self.judge(torch.stack(old), torch.stack(new))
        return replace(check, values={**check.values, "seconds": round(time.monotonic() - started, 1)})

    def measure(self, model: Any, chunk: int, number: int = 0) -> Tensor:
        """The loss ``(N,)`` of each token of a text, in nats. It is NaN for a token that is not predicted.

        Args:
            model: source or result.
            chunk: number of tokens that the model reads at once.
            number: index of the text. All texts are consecutive parts of the verification text.
        """
        read, causal = self.lengths.read, self.plan.shape.causal
        ids = self.text.tokens((number + 1) * read)[:, number * read :]
        if causal:
            target = ids.masked_fill(torch.arange(read) % self.lengths.every != 0, IGNORED)
        else:
            ids, target = masked_tokens(ids, self.text.tokenizer)
        is_part = chunk < read or number > 0
        special = self.text.special if is_part else ([], [])
        return token_losses(model, *in_chunks(ids, target, chunk, special), causal=causal)

    def buckets(self, old: Tensor, new: Tensor, same: int) -> list[dict[str, Any]]:
        """Mean losses by position.

        Args:
            old, new: losses ``(texts, N)`` of source and result.
            same: number of first tokens whose losses cannot differ. If it is not 0, they may be the first bucket.
        """
        count = old.shape[1]
        first = self.lengths.chunk
        if self.plan.shape.causal and count > SMALLEST_BUCKET:
            first = SMALLEST_BUCKET
        elif same:
            first = same
        elif self.lengths.at_once:
            first = max(1, count // 8)
        edges = [0, first]
        while edges[-1] * 2 < count:
            edges.append(edges[-1] * 2)
        return [
            {
                "from": low,
                "to": high,
                "predicted": int((~old[:, low:high].isnan()).sum()),
                "source_on_chunks": float(old[:, low:high].nanmean()),
                "result": float(new[:, low:high].nanmean()),
            }
            for low, high in pairwise(sorted({*edges, count}))
            if not new[:, low:high].isnan().all()
        ]

    def judge(self, old: Tensor, new: Tensor) -> Check:
        """Judge the losses ``(texts, N)`` of source (``old``) and result (``new``) from :meth:`measure`."""
        plan, lengths, real = self.plan, self.lengths, self.text.real_tokens()
        causal = plan.shape.causal
        texts, count = old.shape
        same = 0
        # result and source are equal up to the covered length; counting these tokens would hide a worse loss
        if lengths.at_once and not plan.position_change and lengths.covered < count:
            same = lengths.covered
        predicts = "the next token"
        if not causal:
            predicts = f"{MASKED:.0%} masked tokens"
        elif lengths.every > 1:
            predicts = f"the next token, every {lengths.every}th"
        buckets = self.buckets(old, new, same)
        values = {
            "tokens": texts * count,
            "texts": texts,
            "chunk": lengths.chunk,
            "predicts": predicts,
            "unit": "nats per token",
            "buckets": buckets,
        }

        # the change from source to result, and the gain of the source over chance
        old = torch.stack([with_context(row, lengths.chunk, causal=causal) for row in old])
        old = old.masked_fill(torch.arange(count) < same, float("nan"))
        # the frequency of each measured token in the text, which contains it, so it is above 0
        frequency = self.text.tokens(real)[0].bincount()[self.text.tokens(texts * count)[0]] / real
        change = LossChange.of(old, new)
        gain = LossChange.of(old, -frequency.log().view(texts, count))

        # the sentence for the report
        read = f"{count} tokens"
        if texts > 1:
            read = f"{texts} texts of {read}"
        if count <= plan.new_length - lengths.chunk:
            read += f" (of {plan.new_length})"
        how = f"source on chunks of {lengths.chunk} → result in one pass"
        if lengths.at_once:
            how = "source → result"
        losses = "; ".join(
            "{from}–{to}: {source_on_chunks:.3f} → {result:.3f}".format_map(bucket) for bucket in buckets
        )
        detail = f"{read} of {self.text.describe()}, {how}: {losses}"
        if change is None or gain is None:
            return undecided(self.name, f"{detail}; no token is predicted by both", LONGER_TEXT, values)
        where = f"beyond {same}" if same else "in all"
        values |= {"change": change.to_dict(), "chance": gain.after}
        detail = f"{detail}; {where} {change}; chance, from token frequencies alone, {gain.after:.3f}"
        return self.verdict(change, gain, detail, values)

    def verdict(self, change: LossChange, gain: LossChange, detail: str, values: dict[str, Any]) -> Check:
        """Decide whether the result needs training.

        Args:
            change: change of the loss from source to result.
            gain: change of the loss from the source to chance.
            detail, values: the measurement for the report, as a sentence and as values.
        """
        plan, causal = self.plan, self.plan.shape.causal
        if not (gain.worse and gain.change >= self.least_gain * gain.after):
            detail = f"{detail}: the source does not predict this text much better than chance"
            return undecided(self.name, detail, READABLE_TEXT, values)
        if change.worse and causal and change.change <= self.bearable * gain.change:
            lost = f"{change.change / gain.change:.1%} of what the source gains over chance"
            return decision(self.name, True, f"{detail}: the result loses {lost}", values)
        if change.worse:
            return decision(self.name, False, f"{detail}: the result is worse", values)
        smallest_visible = max(NEGLIGIBLE, 2 * (change.error or 0.0))
        if smallest_visible > gain.change / 2:
            detail = f"{detail}: losing half of the source's gain over chance could go unnoticed"
            return undecided(self.name, detail, LONGER_TEXT, values)
        if self.lengths.at_once and plan.new_length > plan.old_length:
            task = "clm" if causal else "mlm"
            would_tell = f"the losses of source and result on long texts (longattn evaluate {task})"
            problem = f"the result is not worse, but no text of more than {plan.old_length:,} tokens was read"
            return undecided(self.name, f"{detail}: {problem}", would_tell, values)
        return decision(self.name, True, f"{detail}: the result is not worse", values)


@dataclass
class Embeddings:
    """Sentence embeddings of short passages, and of a document that is longer than the source reads.

    They are pooled and normalised as by sentence-transformers.

    The result's embedding of the document is compared with the mean of the source's embeddings of its chunks, which is
    the usual way to embed a long text. The first chunk has positions that the source knows, so it is left out of both.
    It stays if the pooling takes a single token. Chance is the cosine of different passages. For the document, it is
    at least the cosine of its first chunk with the mean.
    """

    plan: ConversionPlan
    text: VerificationText
    lengths: Lengths
    pooling: SentencePooling

    name = "embeddings"
    sizes = (16, 64, 256, 512)
    """Lengths of passages in tokens, used up to the source's maximum. The shortest is the length of a query."""
    most = 3
    """Maximum number of passages of each length."""
    alike = 0.95
    """Maximum mean cosine of different passages for a verdict. Above it, the source does not tell passages apart.
    Untuned."""
    share = 1 / 3
    """Maximum cosine distance between embeddings of source and result, as a share of the distance by chance.

    With all-MiniLM-L6-v2 at 1,024 to 4,096 tokens, tiled positions have at most 0.06 with windows, and 0.25 with full
    attention. Random new rows of the position table have 0.44 to 0.84.
    """

    def __post_init__(self) -> None:
        """Set ``passages`` (length -> number of passages), and ``left_out``, the number of first chunks of the
        document that are not compared (0 or 1)."""
        old, real, short = self.lengths.old, self.text.real_tokens(), self.plan.short_texts
        # the length to which sentence-transformers cuts the source's texts
        encoded = old
        if self.plan.encoded is not None:
            encoded = min(old, self.plan.encoded.tokens)
        sizes = sorted(length for length in {*self.sizes, encoded, old} if length <= old and real >= 2 * length)
        # the result equals the source up to `exact`, so the shorter lengths tell nothing
        exact = 0 if short.reason else short.length
        self.passages = {
            length: min(self.most, real // length)
            for length in sizes
            if length > exact or length == sizes[-1] or length == encoded < old
        }
        self.left_out = 0 if {"cls", "lasttoken"} & {*self.pooling.modes} else 1

    def compare(self, source: Any, result: Any) -> Check:
        return self.judge(self.measure(source, self.lengths.chunk), self.measure(result, self.lengths.read))

    def embed(self, model: Any, ids: Tensor, start: int = 0) -> Tensor:
        """Normalised embeddings ``(B, D)`` of texts ``(B, N)``, without their first ``start`` states."""
        states = outputs(model.base_model, ids)["last_hidden_state"][:, start:].float()
        return normalize(self.pooling(states, torch.ones(states.shape[:2])), dim=-1)

    def measure(self, model: Any, chunk: int) -> dict[int, Tensor]:
        """Passage length -> normalised embeddings ``(count, D)`` of the first passages.

        Lengths include special tokens. For the source, ``chunk`` is the length of the document's chunks. For the
        result, it is the length of the whole document.
        """
        counts, lengths = dict(self.passages), self.lengths
        if chunk < lengths.read:
            counts[chunk] = max(counts.get(chunk, 0), lengths.read // chunk)
        embeddings = {length: self.embed(model, self.text.passages(count, length)) for length, count in counts.items()}
        if chunk > lengths.chunk:
            embeddings[chunk] = self.embed(model, self.text.passages(1, chunk), self.left_out * lengths.chunk)
        return embeddings

    def judge(self, source: Mapping[int, Tensor], result: Mapping[int, Tensor]) -> Check:
        """Judge the embeddings of source and result from :meth:`measure`."""
        longest = max(self.passages)
        # the mean cosine of different passages
        different = float(torch.stack([a @ b for a, b in combinations(source[longest], 2)]).mean())
        least = self.required(different)
        cosines = {
            length: mean_cosine(result[length], source[length][:count]) for length, count in self.passages.items()
        }
        listed = ", ".join(f"{cosine:.3f} at {length:,}" for length, cosine in cosines.items())
        detail = (
            f"cosine with the source's: {listed} tokens (at least {least:.2f} is required, since different passages "
            f"have {different:.2f})"
        )
        values: dict[str, Any] = {
            "cosines": {str(length): cosine for length, cosine in cosines.items()},
            "different_passages": different,
            "least": least,
            "tokens": longest,
        }
        ready = all(cosine >= least for cosine in cosines.values())  # a comparison with NaN is false
        if not self.lengths.at_once:
            sentence, document = self.judge_document(source, result, different)
            detail += sentence
            values |= {"document": document, "tokens": self.lengths.read}
            ready = ready and document["cosine"] >= document["least"]
        if different > self.alike:
            detail = f"{detail}: the source does not tell these passages apart"
            return undecided(self.name, detail, READABLE_TEXT, values)
        if ready and self.lengths.at_once and self.plan.new_length > self.plan.old_length:
            would_tell = "its scores in retrieval (longattn evaluate embed)"
            if self.text.real_tokens() < self.lengths.needed:
                would_tell = LONGER_TEXT
            return undecided(self.name, f"{detail}: no longer text was embedded", would_tell, values)
        return decision(self.name, ready, detail, values)

    def required(self, chance: float) -> float:
        """The minimum cosine between embeddings of source and result. ``chance``: the cosine by chance."""
        return 1 - self.share * (1 - chance)

    def judge_document(
        self, source: Mapping[int, Tensor], result: Mapping[int, Tensor], different: float
    ) -> tuple[str, dict[str, Any]]:
        """Compare the result's embedding of the document with the mean of the source's embeddings of its chunks.

        Args:
            source, result: embeddings from :meth:`measure`.
            different: mean cosine of different passages by the source.
        Returns:
            A clause and values for the report.
        """
        tokens, chunk = self.lengths.read, self.lengths.chunk
        chunks = source[chunk][: tokens // chunk]
        mean = normalize(chunks[self.left_out :].mean(0, keepdim=True), dim=-1)
        cosine = mean_cosine(result[tokens], mean)
        first_chunk = mean_cosine(chunks[:1], mean)
        least = self.required(max(first_chunk, different))
        shortened = "" if tokens > self.plan.new_length - chunk else f" (of {self.plan.new_length:,})"
        without = ", both without the first chunk" if self.left_out else ""
        sentence = (
            f"; at {tokens:,} tokens{shortened}, {cosine:.3f} with the mean of the source's {len(chunks)} chunks"
            f"{without} (at least {least:.2f}, since the first chunk alone has {first_chunk:.3f})"
        )
        return sentence, {"chunk": chunk, "cosine": cosine, "first_chunk": first_chunk, "least": least}


def mean_cosine(a: Tensor, b: Tensor) -> float:
    """The mean cosine of each row of ``a`` with the same row of ``b``. Both are normalised ``(B, D)``."""
    return float((a * b).sum(-1).mean())


BEYOND = "beyond the old length"
"""Name of the check of texts beyond the old length, for models whose quality cannot be measured without labels."""
PADDING = 37
"""Tokens of padding in the padding check. It is not a multiple of any block size."""
DECODED = 32
"""Maximum tokens of an encoder-decoder's decoder in the checks at the new length."""


def check_texts(comparison: Comparison) -> list[Check]:
    """Run all output checks of a text model. A loss or embeddings are measured only if the outputs pass."""
    plan, source, result, text = comparison.plan, comparison.source, comparison.result, comparison.inputs
    lengths = choose_lengths(plan, text)
    if plan.architecture.converter is None:
        checks = compare_lengths(comparison, lengths)
    else:
        checks = compare_adopted(comparison, lengths.old)
    if any(check.status == FAILED for check in checks):
        return checks
    measurement: Any = LanguageLoss(plan, text, lengths)
    pooling = sentence_pooling(comparison.folder) if plan.decoder is None else None  # None without a sentence encoder
    if pooling is not None:
        measurement = Embeddings(plan, text, lengths, pooling)

    # measure a loss or embeddings
    deciding = why_not_measured(comparison, measurement)
    measured = deciding is None
    states: dict[str, Any] = {}
    if deciding is None:
        # the last forward pass often reads the longest text, so its hidden states are kept for the next check
        hook = result.base_model.register_forward_hook(lambda module, arguments, returned: states.update(returned))
        deciding = [measurement.compare(source, result)]
        hook.remove()

    # check hidden states at the new length, and padding
    decoded = None if plan.decoder is None else min(plan.decoder.old, DECODED)
    if not states or lengths.read != lengths.new or (pooling is not None and lengths.at_once):
        states = outputs(result.base_model, text.passages(1, lengths.new), decoder_tokens=decoded)
    tensors = {name: state for name, state in states.items() if isinstance(state, Tensor)}
    what = f"hidden states at {lengths.new} tokens"
    if lengths.new < plan.new_length:
        what += f" (of {plan.new_length}: a large model, shortened)"
    checks.append(check_finite("finite at the new length", what, tensors, {"length": lengths.new}))
    with attending(result, MECHANISMS):
        checks.append(check_padding(plan, result.base_model, text.passages(1, lengths.padded), decoded))
    if measured and any(check.status == FAILED for check in checks):
        return checks
    return [*checks, *deciding]


def why_not_measured(comparison: Comparison, measurement: LanguageLoss | Embeddings) -> list[Check] | None:
    """The reason why a loss or embeddings cannot or need not be measured.

    Returns ``None`` if the measurement is possible and needed. Otherwise, the list has a check that cannot tell
    whether the result needs training. It is empty if no measurement is needed.
    """
    plan, text = comparison.plan, comparison.inputs
    old, new, long_class = plan.old_length, plan.new_length, plan.architecture.long_class
    if measurement.lengths.covered == new:
        return []  # the result computes the source's attention at every length
    if isinstance(measurement, LanguageLoss):
        predicts = long_class.endswith(LANGUAGE_MODELS) and plan.skeleton.get_output_embeddings() is not None
        if not predicts or plan.decoder is not None:  # a decoder beside an encoder predicts an output, not the text
            problem = f"the source reads no more than {old:,} tokens, and {long_class} has no loss without labels"
            would_tell = f"its scores on labelled texts of up to {new:,} tokens (longattn evaluate)"
            return [undecided(BEYOND, problem, would_tell)] if new > old else []
        if plan.architecture.converter is not None and new < 2 * old:
            return []  # outputs are compared anyway, and the length grows too little
        if text.tokenizer is not None and not plan.shape.causal and text.tokenizer.mask_token_id is None:
            would_tell = "a tokenizer with the token that the source was trained on"
            return [undecided(measurement.name, "the tokenizer has no mask token", would_tell)]
        if comparison.headless:
            return [undecided(measurement.name, "the source has no weights for its head", "a training of the head")]
    if text.why_seeded:
        would_tell = "a source with its tokenizer" if text.tokenizer is None else READABLE_TEXT
        return [undecided(measurement.name, f"{text.why_seeded}, and real text is needed", would_tell)]
    real = text.real_tokens()
    if isinstance(measurement, Embeddings):
        measurable = bool(measurement.passages)
        needed = 2 * measurement.sizes[0]
    else:
        measurable = measurement.lengths.read > 0
        needed = measurement.lengths.needed
    if measurable:
        return None
    if real < needed:
        return [undecided(measurement.name, f"{needed:,} tokens are needed, and the text has {real:,}", LONGER_TEXT)]
    problem = f"{needed:,} tokens would take too long with a model of this size"
    task = "clm" if plan.shape.causal else "mlm"
    return [undecided(measurement.name, problem, f"its loss on long texts (longattn evaluate {task})")]


def compare_lengths(comparison: Comparison, lengths: Lengths) -> list[Check]:
    """Compare outputs of source and result at several lengths, up to the old length.

    Some outputs must be equal. For the others, the difference is reported.
    """
    plan, text = comparison.plan, comparison.inputs
    source, result = comparison.compared
    old, change = lengths.old, plan.position_change

    # the lengths, 0 for a comparison that does not apply, and the reasons why outputs may differ
    covered = min(lengths.covered, old)
    short = min(plan.short_texts.length, old)
    # up to this length, outputs are equal even if positions change in longer texts
    unchanged = min(plan.unchanged_tokens, old) if plan.unchanged_tokens > 1 else 0
    decoder_tokens = None
    if plan.decoder is not None and not plan.architecture.decoder_reads_text:
        decoder_tokens = plan.decoder.old
    why_short = plan.short_texts.reason
    if not why_short and not covers(decoder_mechanisms(plan), min(short, decoder_tokens or short), True):
        why_short = "the decoder's mechanism does not cover it"
    by_mechanisms = MECHANISMS
    if lengths.covered == plan.new_length:
        by_mechanisms += ", which is the source's attention at every length"
    differing = old if covered < old else 0
    why_differing = "the mechanism is full attention at no length"
    if covered:
        why_differing = f"the mechanism covers inputs up to {covered} tokens"
    if change:
        why_differing = f"{change} and {why_differing}"
    if short == old:
        why_differing += f", but only texts of more than {short} tokens are read by it"

    comparisons = [  # name, length, attention of the result, reason why outputs may differ (empty: must be equal)
        ("equal for short texts", short, AS_CONFIGURED, why_short),
        ("equal where positions are unchanged", unchanged, BASE if unchanged > covered else MECHANISMS, ""),
        ("equal where the mechanism covers the input", covered, by_mechanisms, change),
        ("equal at the old length with full attention", differing, BASE, change),
        ("at the old length", differing, MECHANISMS, why_differing),
    ]
    checks: list[Check] = []
    expected: dict[int, dict[str, Tensor]] = {}
    for name, length, attention, why in comparisons:
        if not length:
            continue
        ids = text.tokens(length)
        if length not in expected:
            expected[length] = outputs(source, ids, decoder_tokens=decoder_tokens)
        with attending(result, attention):
            difference = Difference.of(expected[length], outputs(result, ids, decoder_tokens=decoder_tokens))
        detail = (
            f"{comparison.outputs} at {length} tokens, {attention.format(plan.short_texts.length)}: largest "
            "difference from the source"
        )
        values = {"length": length, "tokens": ids.numel(), "outputs": sorted(expected[length])}
        check = equality(name, detail, difference, values, why)
        # texts of this length get full attention; the comparison runs the mechanism on them nevertheless
        unused = attention not in (AS_CONFIGURED, BASE) and length <= plan.short_texts.length
        if check.status == NEEDS_TRAINING and unused:
            check = replace(check, status=MEASURED)
        checks.append(check)
    return checks


def compare_adopted(comparison: Comparison, length: int) -> list[Check]:
    """Compare outputs with those of a long model of transformers, such as Longformer, on texts of ``length``
    tokens."""
    plan, text = comparison.plan, comparison.inputs
    source, result = comparison.compared
    architecture = plan.architecture
    adoption: Any = architecture.converter
    layers = layer_mechanisms(plan.attention, plan.shape, plan.new_length)
    takes_globals = any(layer.capabilities.takes_globals for layer in layers)
    why = plan.position_change
    if plan.attention != architecture.original_attention:
        why = "the attention differs from the source's"
    reference = f"transformers' {adoption.model_type}"
    checks = [
        probe.check("equal to the source", source, result, reference, why)
        for probe in adoption.probes(
            architecture.original_config, architecture.source_class, text, length, takes_globals
        )
    ]
    if comparison.headless:
        lacks = " (the source has no weights for its head)"
        checks = [replace(check, detail=check.detail + lacks) for check in checks]
    return checks


def check_padding(plan: ConversionPlan, backbone: Any, ids: Tensor, decoded: int | None) -> Check:
    """Check that padding on either side of a text changes no hidden state.

    The first tokens of a text are run alone, and padded to the length of the text.

    Args:
        backbone: the result without its head.
        ids: the text, ``(1, N)``.
        decoded: number of decoder tokens in an encoder-decoder, otherwise ``None``.
    """
    name, length = "padding changes nothing", ids.shape[1]
    short = length - PADDING
    layers = layer_mechanisms(plan.attention, plan.shape, length)
    if short < 1:
        return Check(name, SKIPPED, f"{length} tokens are too few for padding")
    if not all(layer.capabilities.ignores_padding for layer in layers):
        return Check(name, SKIPPED, "the mechanism's options count padding, for equality with another implementation")
    takes_globals = any(layer.capabilities.takes_globals for layer in layers)
    takes_positions = "position_ids" in inspect.signature(type(backbone).forward).parameters
    gaps = {"right": (0, PADDING)}  # side -> tokens of padding before and after the text
    if takes_positions:  # without position_ids, left padding would shift the text
        gaps["left"] = (PADDING, 0)
    sides = list(gaps)
    # models with exact_length number the tokens of a text themselves
    passes_positions = takes_positions and getattr(backbone, "exact_length", None) is None
    first_id = max((table.first_id(plan.config) for table in plan.architecture.family.position_tables), default=0)

    def pad(values: Tensor, fill: int = 0) -> Tensor:
        """One row ``(1, short, …)`` padded on each side, as a batch ``(sides, N, …)``."""
        no_padding = (0, 0) * (values.dim() - 2)  # in the dimensions after the tokens
        return torch.cat([functional.pad(values, (*no_padding, *gap), value=fill) for gap in gaps.values()])

    def hidden(ids: Tensor, arguments: dict[str, Tensor]) -> dict[str, Tensor]:
        """The last hidden states of each stack, by name."""
        if passes_positions:
            # only real tokens count; padding has the position of the token before it, or the first position
            positions = (arguments["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            arguments = {**arguments, "position_ids": positions + first_id}
        returned = outputs(backbone, ids, decoder_tokens=decoded, **arguments)
        return {key: state for key, state in returned.items() if key.endswith("last_hidden_state")}

    alone = ids[:, :short]
    arguments = {
        "attention_mask": torch.ones_like(alone),
        **plan.architecture.family.spec.further_inputs(plan.config, *alone.shape),
    }
    if takes_globals:
        global_mask = torch.zeros_like(alone)
        global_mask[:, :8] = global_mask[:, short // 2] = 1
        arguments["global_attention_mask"] = global_mask
    fill = max(0, plan.config.pad_token_id or 0)
    unpadded = hidden(alone, arguments)
    padded = hidden(pad(alone, fill), {key: pad(value) for key, value in arguments.items()})
    if not unpadded:
        return Check(name, SKIPPED, "the base returns no hidden states")
    real = [slice(short), slice(-short, None)]  # the text in the row with padding on the right, and on the left
    expected = {f"{key}, {side}": state[0] for side in sides for key, state in unpadded.items()}
    measured = {
        f"{key}, {side}": state[row, real[row]] for row, side in enumerate(sides) for key, state in padded.items()
    }
    difference = Difference.of(expected, measured)
    if not all_finite(padded):
        difference = Difference(output="padding")
    detail = f"a text of {short} tokens alone, and padded to {length} on the {' and on the '.join(sides)}"
    added = {"global tokens": takes_globals, "position_ids from the text": passes_positions}
    if any(added.values()):
        detail += f", with {' and '.join(name for name, is_added in added.items() if is_added)}"
    values = {"sides": sides, "length": length, "tokens": short}
    return equality(name, f"{detail}: largest difference", difference, values)


MAX_TRUNCATED = 2**20
"""Maximum length, in tokens, at which it is checked that the written tokenizer truncates a longer text. At this
length, the check takes seconds."""


def check_tokenizer(plan: ConversionPlan, result: Path, tokenizer: Any | None, text: str = PARAGRAPHS) -> list[Check]:
    """Check the tokenizer in the result's folder.

    It must give the same token ids as the source's, and truncate a longer text to the result's maximum length.

    Args:
        result: the folder of the result.
        tokenizer: the source's tokenizer; ``None`` if there is none.
        text: the text that both tokenizers read.
    """
    name, start = "tokenizer", text[:20_000]
    if tokenizer is None:
        return [Check(name, SKIPPED, "the source has no tokenizer")]
    written = load_tokenizer(result)
    if written is None or token_ids(written, start) != token_ids(tokenizer, start):
        classes = f"{type(tokenizer).__name__} and {type(written).__name__}"
        advice = (
            f"token ids differ from the source's: its tokenizer loads as {classes}; load it with "
            "AutoTokenizer.from_pretrained("
            f"{plan.source.name!r}), save it with save_pretrained over the source's files, and convert again"
        )
        return [Check(name, FAILED, advice)]
    limit, length = written.model_max_length, plan.tokenizer_length
    actual, planned = (
        f"model_max_length {number}" if number < UNLIMITED_LENGTH else "no maximum length"
        for number in (limit, length)
    )
    detail = f"token ids equal to the source's, {actual}"
    if length and limit != length:
        return [Check(name, FAILED, f"{detail} instead of {planned}")]
    if not 0 < length <= MAX_TRUNCATED:
        return [Check(name, PASSED, detail)]
    longer = " ".join([start] * (length // max(1, len(token_ids(written, start, special_tokens=False))) + 2))
    counts = {column: len(values) for column, values in text_encoding(written, longer, truncation=True).items()}
    if set(counts.values()) == {length}:
        return [Check(name, PASSED, f"{detail}; truncation cuts a longer text to {length:,} ({', '.join(counts)})")]
    cut = " and ".join(f"{count:,} {column}" for column, count in counts.items())
    return [Check(name, FAILED, f"{detail}; with truncation a longer text has {cut}")]


TEXTS = Modality(
    ("max_length", "max_decoder_length", "decoder_long_attention", "verify_text"),
    plan_texts,
    text_inputs,
    lambda plan, folder, inputs: check_tokenizer(plan, folder, inputs.tokenizer, inputs.text),
    check_texts,
)
