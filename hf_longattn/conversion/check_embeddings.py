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

from ..evaluation.pooling import SentencePooling
from ..inputs.tokenizer import LONGER_TEXT, READABLE_TEXT, VerificationText
from ..reports import Check
from .folders import decision, undecided
from .lengths import Lengths
from .model_loading import outputs
from .plan import ConversionPlan

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


def passages(text: VerificationText, lengths: Lengths) -> dict[int, int]:
    """Tokens of a passage -> number of passages. Empty if there is no real text of two."""
    sizes = sorted(length for length in {*LENGTHS, lengths.old} if length <= lengths.old and text.real_tokens() >= 2 * length)
    return {length: min(PASSAGES, text.real_tokens() // length) for length in sizes}


def embeddings(pooling: SentencePooling, text: VerificationText, lengths: Lengths, model: Any, chunk: int) -> dict[int, Tensor]:
    """Normalised embeddings ``(count, D)`` of the first passages, special tokens included, by their length.

    Args:
        model: source or result. chunk: tokens of the document that it reads at once: if not all, its chunks are embedded as well.
    """
    counts = passages(text, lengths)
    if chunk < lengths.read:
        counts[chunk] = max(counts.get(chunk, 0), lengths.read // chunk)
    return {
        length: pooled(pooling, outputs(model.base_model, text.passages(count, length))["last_hidden_state"])
        for length, count in counts.items()
    }


def pooled(pooling: SentencePooling, states: Tensor) -> Tensor:
    """Normalised embeddings ``(B, D)`` of states ``(B, N, D)``."""
    return normalize(pooling(states.float(), torch.ones(states.shape[:2])), dim=-1)


def check_embeddings(
    plan: ConversionPlan,
    text: VerificationText,
    lengths: Lengths,
    pooling: SentencePooling,
    source: Mapping[int, Tensor],
    result: Mapping[int, Tensor],
    document: Tensor | None,
) -> Check:
    """Compare embeddings of source and result.

    Args:
        source, result: from :func:`embeddings`. The source's include the chunks of the document.
        document: the result's states ``(1, N, D)`` of the document; ``None`` without one.
    """
    different = float(torch.stack([a @ b for a, b in combinations(source[max(result)], 2)]).mean())
    least = 1 - SHARE * (1 - different)
    cosines = {length: _cosine(embedded, source[length][: len(embedded)]) for length, embedded in result.items()}
    listed = ", ".join(f"{cosine:.3f} at {length:,}" for length, cosine in cosines.items())
    detail = f"cosine with the source's: {listed} tokens (at least {least:.2f} is required, since different passages have {different:.2f})"
    values: dict[str, Any] = {"cosines": {str(length): cosine for length, cosine in cosines.items()}}
    values |= {"different_passages": different, "least": least, "tokens": max(result)}
    ready = all(cosine >= least for cosine in cosines.values())  # false for NaN
    if document is not None:
        tokens, chunk = document.shape[1], lengths.chunk
        first = 0 if {"cls", "lasttoken"} & {*pooling.modes} else 1  # chunk that is compared
        chunks = source[chunk][: tokens // chunk]
        mean = normalize(chunks[first:].mean(0, keepdim=True), dim=-1)
        cosine, alone = _cosine(pooled(pooling, document[:, first * chunk :]), mean), _cosine(chunks[:1], mean)
        required = 1 - SHARE * (1 - max(alone, different))
        shortened = "" if tokens > plan.new_length - chunk else f" (of {plan.new_length:,})"
        detail += (
            f"; at {tokens:,} tokens{shortened}, {cosine:.3f} with the mean of the source's {len(chunks)} chunks"
            f"{', both without the first' * first} (at least {required:.2f}, since the first chunk alone has {alone:.3f})"
        )
        values |= {"document": {"chunk": chunk, "cosine": cosine, "first_chunk": alone, "least": required}, "tokens": tokens}
        ready = ready and cosine >= required
    if different > ALIKE:
        return undecided(EMBEDDINGS, f"{detail}: the source does not tell these passages apart", READABLE_TEXT, values)
    if ready and document is None and plan.new_length > plan.old_length:
        would_tell = LONGER_TEXT if text.real_tokens() < lengths.needed else "its scores in retrieval (longattn evaluate embed)"
        return undecided(EMBEDDINGS, f"{detail}: no longer text was embedded", would_tell, values)
    return decision(EMBEDDINGS, ready, detail, values)


def _cosine(a: Tensor, b: Tensor) -> float:
    """The mean cosine of normalised rows."""
    return float((a * b).sum(-1).mean())
