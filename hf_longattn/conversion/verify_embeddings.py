"""Compare a result's sentence embeddings with the source's. For short passages, and for a document longer than the source reads.

Embeddings are pooled and normalised as sentence-transformers does. For the document, the reference is the mean over its chunks, each
embedded by the source: the usual way to embed a text that is too long for a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..checks import SKIPPED, Check
from ..inputs.text import VerificationText
from .flops import cost_at, layer_mechanisms
from .model_loading import outputs
from .plan import ConversionPlan
from .pooling import SentencePooling
from .report import decision

EMBEDDINGS = "embeddings"
LENGTHS = (16, 64, 256, 512)
"""Lengths of passages in tokens, used up to the source's maximum. The shortest is the length of a query."""
PASSAGES = 3
"""Maximum number of passages of each length."""
SAME = 0.98
"""Maximum cosine that is required of a result, however similar different passages are. Untuned."""
SHARE = 0.5
"""Maximum distance from the source's embedding, as a share of the distance between different passages. Untuned: with all-MiniLM-L6-v2 at
8,192 tokens, Nyström attention (0.4) loses 4 points of MRR in retrieval, and interpolated positions (2.1) lose 48."""
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
        self.document = self._affordable(min(new, real) // old * old, old)
        self.chunk = old
        self.skipped = None if self.counts else [Check(EMBEDDINGS, SKIPPED, self._why_not(old))]

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
        least = min(SAME, 1 - SHARE * (1 - different))
        cosines = {
            length: _cosine(self._embedded(result, count, length), self.of_source[length][:count]) for length, count in self.counts.items()
        }
        listed = ", ".join(f"{cosine:.3f} at {length:,}" for length, cosine in cosines.items())
        detail = f"cosine with the source's: {listed} tokens"
        values = {"cosines": {str(length): cosine for length, cosine in cosines.items()}, "different_passages": different, "least": least}
        ready = all(cosine >= least for cosine in cosines.values())  # false for NaN
        if self.document:
            last = states["last_hidden_state"]
            document = self._pooled(last) if last.shape[1] == self.document else self._embedded(result, 1, self.document)
            chunks = self.of_source[self.chunk][: self.document // self.chunk]
            mean = normalize(chunks.mean(0, keepdim=True), dim=-1)
            cosine, alone = _cosine(document, mean), _cosine(chunks[:1], mean)
            shortened = "" if self.document > self.plan.new_length - self.chunk else f" (of {self.plan.new_length:,})"
            detail += (
                f"; at {self.document:,} tokens{shortened}, {cosine:.3f} with the mean of the source's {len(chunks)} chunks "
                f"(its first chunk alone: {alone:.3f})"
            )
            values |= {"document": {"tokens": self.document, "chunk": self.chunk, "cosine": cosine, "first_chunk": alone}}
            ready = ready and cosine >= least
        detail += f"; different passages have {different:.2f}, so at least {least:.2f} is required"
        return [decision(EMBEDDINGS, ready, detail, values)]

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

    def _why_not(self, old: int) -> str:
        """Reason why no passage is embedded."""
        if self.text.tokenizer is None:
            return f"{self.text.why_seeded}, and embeddings need real text"
        return f"two passages of {min(LENGTHS[0], old)} tokens are needed, and the text has {self.text.real_tokens()}"


def _cosine(a: Tensor, b: Tensor) -> float:
    """The mean cosine of normalised rows."""
    return float((a * b).sum(-1).mean())
