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
from ..inputs.text import LONGER_TEXT, READABLE_TEXT, VerificationText
from ..reports import Check
from .lengths import Lengths
from .model_loading import outputs
from .plan import ConversionPlan
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


def passages(text: VerificationText, lengths: Lengths) -> dict[int, int]:
    """Tokens of a passage -> number of passages."""
    real = text.real_tokens()
    sizes = sorted(length for length in {*LENGTHS, lengths.old} if length <= lengths.old and real >= 2 * length)
    return {length: min(PASSAGES, real // length) for length in sizes}


def why_no_embeddings(text: VerificationText, lengths: Lengths) -> list[Check] | None:
    """The check of a result whose embeddings are not measured; ``None`` if they are."""
    if text.tokenizer is None:
        return [undecided(EMBEDDINGS, f"{text.why_seeded}, and embeddings need real text", text.would_be_real)]
    if not passages(text, lengths):
        problem = f"two passages of {min(LENGTHS[0], lengths.old)} tokens are needed, and the text has {text.real_tokens()}"
        return [undecided(EMBEDDINGS, problem, LONGER_TEXT)]
    return None


def embeddings(model: Any, text: VerificationText, pooling: SentencePooling, counts: Mapping[int, int]) -> dict[int, Tensor]:
    """Normalised embeddings ``(count, D)`` of the first passages, special tokens included, by their length."""
    states = {length: outputs(model.base_model, text.passages(count, length))["last_hidden_state"] for length, count in counts.items()}
    return {length: pooled(pooling, of_length) for length, of_length in states.items()}


def source_embeddings(model: Any, text: VerificationText, pooling: SentencePooling, lengths: Lengths) -> dict[int, Tensor]:
    """The source's embeddings of the passages, and of the document's chunks."""
    counts = passages(text, lengths)
    chunks = 0 if lengths.at_once else lengths.read // lengths.chunk
    return embeddings(model, text, pooling, {**counts, lengths.chunk: max(counts.get(lengths.chunk, 0), chunks)} if chunks else counts)


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
    document: Tensor,
) -> Check:
    """Compare embeddings of source and result.

    Args:
        source: from :func:`source_embeddings`. result: from :func:`embeddings` of the same passages.
        document: the result's states ``(1, N, D)`` of the text of ``lengths.read`` tokens; not used if the source reads it at once.
    """
    longest = source[max(result)]
    different = float(torch.stack([a @ b for a, b in combinations(longest, 2)]).mean())
    least = 1 - SHARE * (1 - different)
    cosines = {length: _cosine(embedded, source[length][: len(embedded)]) for length, embedded in result.items()}
    listed = ", ".join(f"{cosine:.3f} at {length:,}" for length, cosine in cosines.items())
    detail = f"cosine with the source's: {listed} tokens (at least {least:.2f} is required, since different passages have {different:.2f})"
    values: dict[str, Any] = {"cosines": {str(length): cosine for length, cosine in cosines.items()}, "different_passages": different,
                              "least": least, "tokens": lengths.read if not lengths.at_once else max(result)}  # fmt: skip
    ready = all(cosine >= least for cosine in cosines.values())  # false for NaN
    if not lengths.at_once:
        first = 0 if {"cls", "lasttoken"} & {*pooling.modes} else 1  # chunk that is compared
        chunks = source[lengths.chunk][: lengths.read // lengths.chunk]
        mean = normalize(chunks[first:].mean(0, keepdim=True), dim=-1)
        cosine, alone = _cosine(pooled(pooling, document[:, first * lengths.chunk :]), mean), _cosine(chunks[:1], mean)
        required = 1 - SHARE * (1 - max(alone, different))
        shortened = "" if lengths.read > plan.new_length - lengths.chunk else f" (of {plan.new_length:,})"
        detail += (
            f"; at {lengths.read:,} tokens{shortened}, {cosine:.3f} with the mean of the source's {len(chunks)} chunks"
            f"{', both without the first' * first} (at least {required:.2f}, since the first chunk alone has {alone:.3f})"
        )
        values["document"] = {"chunk": lengths.chunk, "cosine": cosine, "first_chunk": alone, "least": required}
        ready = ready and cosine >= required
    if different > ALIKE:
        return undecided(EMBEDDINGS, f"{detail}: the source does not tell these passages apart", READABLE_TEXT, values)
    if ready and lengths.at_once and plan.new_length > plan.old_length:
        would_tell = LONGER_TEXT if text.real_tokens() < lengths.needed else "its scores in retrieval (longattn evaluate embed)"
        return undecided(EMBEDDINGS, f"{detail}: no longer text was embedded", would_tell, values)
    return decision(EMBEDDINGS, ready, detail, values)


def _cosine(a: Tensor, b: Tensor) -> float:
    """The mean cosine of normalised rows."""
    return float((a * b).sum(-1).mean())
