"""Late chunking (Günther et al. 2024, arXiv 2409.04701): embeddings of passages that know the rest of their document.

A document is embedded in one pass, and the states of its tokens are averaged passage by passage afterwards. Splitting first and embedding
each passage alone, as usual, loses what a passage refers to ("the city", "this function").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenization import special_ids
from ..errors import LengthError, LongAttentionError
from ..modeling.family.validation import known_length
from ..modeling.inference.optimize import evaluating

Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Chunk:
    """A passage of a document.

    start, end: characters of the document, ``text = document[start:end]``.
    embedding: ``(hidden_size,)``, fp32 on the CPU.
    """

    start: int
    end: int
    text: str
    embedding: Tensor


def late_chunks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: str | Sequence[str],
    *,
    spans: Sequence[Sequence[Span]] | Sequence[Span] | None = None,
    chunk_tokens: int = 256,
    prefix: str = "",
    max_length: int | None = None,
    overlap: int = 128,
    normalize: bool = True,
) -> list[list[Chunk]]:
    """Embed every document in one pass, and average the states of each of its passages: the paper's equation 2.

    An encoder whose embeddings are averages over tokens needs no training for it; one that reads its first token (CLS pooling) does.
    A text that is one passage, such as a query, is averaged with its special tokens and prefix, as sentence-transformers' ``encode`` does.

    Args:
        model: an encoder without head, such as ``AutoModel.from_pretrained("bert-4096")`` or ``sentence_transformer[0].auto_model``.
        tokenizer: its tokenizer, a fast one.
        documents: texts of any length.
        spans: for each document the passages as (start, end) in characters, for example sentences; of a single text, also the passages
            themselves. A token belongs to the passage in which it starts. If not given, passages of ``chunk_tokens`` tokens, the last one
            shorter.
        prefix: what the model was trained to read before documents, such as "search_document: "; in no passage that is a part of a text.
        max_length: tokens of one pass; the tokenizer's ``model_max_length`` and the model's length if not given.
        overlap: a longer document is read in windows that share so many tokens, and each token's state is that of the window in which it
            is further from an end (the paper's algorithm 2 keeps the earlier window's).
        normalize: scale embeddings to length 1.
    Returns:
        For each document its passages, in the order of ``spans``.
    Raises:
        LengthError: a window that is too short for its overlap.
        LongAttentionError: a slow tokenizer, spans that are not in their document, or a passage without a token.
    """
    texts = [documents] if isinstance(documents, str) else list(documents)
    if not tokenizer.is_fast:
        raise LongAttentionError("Late chunking needs a fast tokenizer, which knows every token's characters; load one with AutoTokenizer.")
    passages = None if spans is None else _passages(spans, len(texts), isinstance(documents, str))
    if chunk_tokens < 1:
        raise LongAttentionError(f"chunk_tokens is {chunk_tokens}, but a passage has at least 1 token, for example 256.")
    longest = known_length(model.config, tokenizer, model) if max_length is None else max_length
    fixed = tokenizer.num_special_tokens_to_add() + len(tokenizer(prefix, add_special_tokens=False)["input_ids"])
    if longest is not None and longest - fixed - overlap < 1:
        raise LengthError(
            f"A window of {longest:,} tokens is too short for an overlap of {overlap:,} and {fixed} further tokens; "
            "give a smaller overlap, or convert the model to a greater length."
        )
    chunks = []
    with evaluating(model):  # as sentence-transformers does
        for number, text in enumerate(texts):
            starts, states, around = _token_states(model, tokenizer, prefix, text, longest, overlap)
            inside = list(_even_spans(starts, len(text), chunk_tokens)) if passages is None else passages[number]
            chunks.append([_chunk(text, span, starts, states, around, normalize, number) for span in inside])
    return chunks


def _passages(spans: Sequence[Any], count: int, is_single: bool) -> list[list[Span]]:
    """The passages of each document.

    Raises:
        LongAttentionError: something other than (start, end) in whole numbers, or lists for another number of documents.
    """
    lists = [spans] if is_single and all(_is_span(span) for span in spans) else list(spans)
    if len(lists) != count:
        raise LongAttentionError(f"There are spans for {len(lists)} documents, but {count} texts; give a list of (start, end) for each.")
    wrong = next((span for passages in lists for span in passages if not _is_span(span)), None)
    if wrong is not None:
        raise LongAttentionError(f"A passage is (start, end) in characters, and a document has a list of them, [(0, 120)]; not {wrong!r}.")
    return [[(int(start), int(end)) for start, end in passages] for passages in lists]


def _is_span(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(hasattr(edge, "__index__") for edge in value)


@torch.no_grad()
def _token_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prefix: str, text: str, longest: int | None, overlap: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The first characters, the states and the surrounding states of a document's tokens.

    Returns:
        The index of each token's first character ``(T,)``, the tokens' last hidden states ``(T, hidden_size)`` in fp32, and those of the
        prefix and the special tokens.
    """
    read = tokenizer(
        prefix + text, add_special_tokens=False, return_offsets_mapping=True
    )  # a token may hold both, such as the space between
    places = read["offset_mapping"]
    begin = next((at for at, (start, end) in enumerate(places) if max(start + 1, end) > len(prefix)), len(places))
    ids, starts = read["input_ids"][begin:], torch.tensor([max(start - len(prefix), 0) for start, _ in places[begin:]], dtype=torch.long)
    frame = tokenizer("")["input_ids"]
    _, after = special_ids(tokenizer)
    before = [*frame[: len(frame) - len(after)], *read["input_ids"][:begin]]
    body = len(ids) if longest is None else longest - len(before) - len(after)
    states: Tensor | None = None
    around: list[Tensor] = []
    margins = torch.full((len(ids),), -1)
    for first in range(0, max(len(ids), 1), max(body - overlap, 1)):
        part = ids[first : first + body]
        row = torch.tensor([[*before, *part, *after]], device=model.device)
        output = model(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state[0].float().cpu()
        opening, inside, closing = output.split([len(before), len(part), len(after)])
        if states is None:
            around.append(opening)
            states = inside.new_zeros(len(ids), inside.shape[-1])
        place = torch.arange(len(part))
        back = place if first else torch.full_like(place, len(ids))  # the document itself ends at its ends
        ahead = place.flip(0) if first + body < len(ids) else torch.full_like(place, len(ids))
        margin = torch.minimum(back, ahead)
        better = margin > margins[first : first + len(part)]
        states[first : first + len(part)][better] = inside[better]
        margins[first : first + len(part)][better] = margin[better]
        if first + body >= len(ids):
            around.append(closing)
            break
    assert states is not None
    return starts, states, torch.cat(around)


def _even_spans(starts: Tensor, end: int, count: int) -> Iterator[Span]:
    """Passages of ``count`` tokens; together the whole document."""
    yield from pairwise([0, *starts[count::count].tolist(), end] if len(starts) else [])


def _chunk(text: str, span: Span, starts: Tensor, states: Tensor, around: Tensor, normalize: bool, number: int) -> Chunk:
    start, end = span
    if not 0 <= start < end <= len(text):
        raise LongAttentionError(f"Document {number} has {len(text):,} characters and no passage {span}; give 0 <= start < end <= length.")
    inside = (starts >= start) & (starts < end)
    if not inside.any():
        raise LongAttentionError(f"No token of document {number} starts in the passage {span}, {text[start:end][:40]!r}; leave it out.")
    embedding = (torch.cat([states, around]) if inside.all() else states[inside]).mean(0)
    return Chunk(start, end, text[start:end], F.normalize(embedding, dim=0) if normalize else embedding)
