"""Compare a result's sentence embeddings with the source's. For short passages, and for a document longer than the source reads.

Embeddings are pooled and normalised as sentence-transformers does. For the document, the reference is the mean over its chunks, each
embedded by the source: the usual way to embed a text that is too long for a model. The first chunk has old positions, so it is left out of
both, unless the pooling takes a single token. Chance is the cosine of another passage, and for a document that of its first chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..inputs.text import LONGER_TEXT, READABLE_TEXT, VerificationText
from ..reports import Check
from .flops import cost_at, layer_mechanisms
from .model_loading import outputs
from .plan import ConversionPlan
from .pooling import SentencePooling
from .report import decision, undecided

EMBEDDINGS = "embeddings"
LENGTHS = (16, 64, 256, 512)
"""Lengths of passages in tokens, used up to the source's maximum. The shortest is the length of a query."""
PASSAGES = 3
"""Maximum number of passages of each length."""
ALIKE = 0.95
"""Cosine of different passages above which the source does not tell them apart. Untuned."""
SHARE = 1 / 3
"""Maximum distance from the source's embedding, as a share of the distance by chance. With all-MiniLM-L6-v2 and documents of 1,024 to 4,096
tokens, tiled positions have at most 0.06 with windows and 0.25 with full attention; new rows that are random have 0.44 to 0.84."""
FLOPS = 1e12
"""Maximum FLOPs for one document. Untuned."""


class EmbeddingCheck:
    """Measures the embeddings of source and result. Each is measured while it is loaded for the comparison of outputs.

    Args:
        pooling: of the source.
        old, new: the lengths in tokens at which the conversion is checked.
    """

    def __init__(self, plan: ConversionPlan, text: VerificationText, pooling: SentencePooling, old: int, new: int) -> None:
        self.plan, self.text, self.pooling = plan, text, pooling
        real = text.real_tokens()
        self.counts = {length: min(PASSAGES, real // length) for length in sorted({*LENGTHS, old}) if length <= old and real >= 2 * length}
        """Tokens of a passage -> number of passages."""
        self.chunk = old if new >= 2 * old else new // -(-new // old)
        self.document = self._affordable(min(new, real) // self.chunk * self.chunk, self.chunk)
        self.skipped = None
        if text.tokenizer is None:
            self.skipped = [undecided(EMBEDDINGS, f"{text.why_seeded}, and embeddings need real text", text.would_be_real)]
        elif not self.counts:
            problem = f"two passages of {min(LENGTHS[0], old)} tokens are needed, and the text has {real}"
            self.skipped = [undecided(EMBEDDINGS, problem, LONGER_TEXT)]

    def measure_source(self, source: Any) -> None:
        """Embed the passages, and the chunks of the document."""
        if self.skipped is not None:
            return
        counts = {**self.counts, self.chunk: max(self.counts.get(self.chunk, 0), self.document // self.chunk)}
        self.of_source = {length: self._embedded(source, count, length) for length, count in counts.items() if count}

    def check(self, result: Any, states: Mapping[str, Tensor]) -> list[Check]:
        """Compare the result's embeddings with the source's."""
        if self.skipped is not None:
            return self.skipped
        longest = self.of_source[max(self.counts)]
        different = float(torch.stack([a @ b for a, b in combinations(longest, 2)]).mean())
        least = 1 - SHARE * (1 - different)
        cosines = {
            length: _cosine(self._embedded(result, count, length), self.of_source[length][:count]) for length, count in self.counts.items()
        }
        listed = ", ".join(f"{cosine:.3f} at {length:,}" for length, cosine in cosines.items())
        detail = f"cosine with the source's: {listed} tokens"
        values = {"cosines": {str(length): cosine for length, cosine in cosines.items()}, "different_passages": different, "least": least}
        ready = all(cosine >= least for cosine in cosines.values())  # false for NaN
        detail += f" (at least {least:.2f} is required, since different passages have {different:.2f})"
        if self.document:
            last = states["last_hidden_state"]
            if last.shape[1] != self.document:
                last = outputs(result.base_model, self.text.passages(1, self.document))["last_hidden_state"]
            first = 0 if {"cls", "lasttoken"} & {*self.pooling.modes} else 1  # chunk that is compared
            chunks = self.of_source[self.chunk][: self.document // self.chunk]
            mean = normalize(chunks[first:].mean(0, keepdim=True), dim=-1)
            cosine, alone = _cosine(self._pooled(last[:, first * self.chunk :]), mean), _cosine(chunks[:1], mean)
            required = 1 - SHARE * (1 - max(alone, different))
            shortened = "" if self.document > self.plan.new_length - self.chunk else f" (of {self.plan.new_length:,})"
            detail += (
                f"; at {self.document:,} tokens{shortened}, {cosine:.3f} with the mean of the source's {len(chunks)} chunks"
                f"{', both without the first' * first} (at least {required:.2f}, since the first chunk alone has {alone:.3f})"
            )
            values |= {"document": {"chunk": self.chunk, "cosine": cosine, "first_chunk": alone, "least": required}}
            ready = ready and cosine >= required
        if different > ALIKE:
            return [undecided(EMBEDDINGS, f"{detail}: the source does not tell these passages apart", READABLE_TEXT, values)]
        if ready and not self.document and self.plan.new_length > self.chunk:
            would_tell = LONGER_TEXT if self.text.real_tokens() < 2 * self.chunk else "its scores in retrieval (longattn evaluate embed)"
            return [undecided(EMBEDDINGS, f"{detail}: no longer text was embedded", would_tell, values)]
        return [decision(EMBEDDINGS, ready, detail, {**values, "tokens": self.document or self.chunk})]

    def _embedded(self, model: Any, count: int, length: int) -> Tensor:
        """Normalised embeddings ``(count, D)`` of the first passages of ``length`` tokens, special tokens included."""
        return self._pooled(outputs(model.base_model, self.text.passages(count, length))["last_hidden_state"])

    def _pooled(self, states: Tensor) -> Tensor:
        """Normalised embeddings ``(B, D)`` of states ``(B, N, D)``."""
        return normalize(self.pooling(states.float(), torch.ones(states.shape[:2])), dim=-1)

    def _affordable(self, tokens: int, chunk: int) -> int:
        """Tokens of a document within the limit, in whole chunks. 0 if these are fewer than two."""
        layers = layer_mechanisms(self.plan.attention, self.plan.shape, self.plan.new_length)
        while tokens >= 2 * chunk and 2 * cost_at(tokens, self.plan.shape, layers).total_flops > FLOPS:
            tokens = tokens // 2 // chunk * chunk
        return tokens if tokens >= 2 * chunk else 0


def _cosine(a: Tensor, b: Tensor) -> float:
    """The mean cosine of normalised rows."""
    return float((a * b).sum(-1).mean())
