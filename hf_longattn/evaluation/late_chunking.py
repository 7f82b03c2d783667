"""Late chunking (Günther et al. 2024, arXiv 2409.04701): embeddings of passages in the context of their document.

A document is embedded in one pass, and the token states are then averaged passage by passage. Passages that are
embedded alone lose their references ("the city", "this function").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.tokenization import special_ids
from ..errors import InputError, LongAttentionError
from ..loading import call_tokenizer
from ..modeling.family.definition import known_length
from ..modeling.inference import evaluating
from .windows import token_windows

Span = tuple[int, int]
PIECE = 1_000_000
"""Characters of a text that are tokenised at once."""


def late_chunks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    spans: Sequence[Sequence[Span]],
    *,
    prefix: str = "",
    max_length: int | None = None,
) -> list[Tensor]:
    """Embed every document in one pass, and average the states of each passage (the paper's equation 2). Embeddings
    have length 1.

    An encoder with mean pooling needs no training for late chunking; an encoder with CLS pooling does. A passage that
    is the whole text, such as a query, is averaged together with the special tokens and the prefix, as in
    sentence-transformers' ``encode``. For passages of equal length, see :class:`.Embedder`.

    Args:
        model: an encoder without head, such as ``AutoModel.from_pretrained("bert-4096")`` or
            ``sentence_transformer[0].auto_model``.
        tokenizer: its tokenizer, a fast one.
        documents: texts of any length.
        spans: for each document the passages as (start, end) in characters, for example sentences. A token belongs to
            the passage in which it starts.
        prefix: the model's prompt for documents, such as "search_document: ". A passage that is only a part of its
            text is averaged without the prompt.
        max_length: tokens of one pass; the tokenizer's ``model_max_length`` and the model's length if not given. A
            longer document is read in windows, as by :func:`token_states`.
    Returns:
        For each document the embeddings of its passages ``(P, hidden_size)``, in the order of ``spans``; fp32 on the
        CPU.
    Raises:
        InputError: the prefix leaves too little of a window.
        LongAttentionError: the tokenizer is slow, spans are outside their document, or a passage has no token.
    """
    if not tokenizer.is_fast:
        raise LongAttentionError(
            "Late chunking needs a fast tokenizer, which knows every token's characters; load one with AutoTokenizer."
        )
    if isinstance(documents, str) or len(spans) != len(documents):
        raise LongAttentionError(
            "Late chunking takes a list of texts, and for each of them a list of its passages (start, end)."
        )
    longest = max_length or known_length(model.config, tokenizer, model)
    embeddings = []
    with evaluating(model):  # as sentence-transformers does
        for number, (text, passages) in enumerate(zip(documents, spans, strict=True)):
            read = read_tokens(tokenizer, text, prefix)
            states, around = map(torch.cat, zip(*token_states(model, read, longest), strict=True))
            means = [states[:0]]
            for span in passages:
                if not (
                    isinstance(span, Sequence) and len(span) == 2 and all(hasattr(edge, "__index__") for edge in span)
                ):
                    raise LongAttentionError(
                        "A passage is (start, end) in characters, and a document has a list of them, [(0, 120)]; not "
                        f"{span!r}."
                    )
                start, end = map(int, span)
                if not 0 <= start < end <= len(text):
                    raise LongAttentionError(
                        f"Document {number} has {len(text):,} characters and no passage {span}; give 0 <= start < end "
                        "<= length."
                    )
                inside = (read.starts >= start) & (read.starts < end)
                if not inside.any():
                    raise LongAttentionError(
                        f"No token of document {number} starts in the passage {span}, {text[start:end][:40]!r}; leave "
                        "it out."
                    )
                averaged = states[inside]
                if inside.all():
                    averaged = torch.cat([states, around])
                means.append(averaged.mean(0, keepdim=True))
            embeddings.append(F.normalize(torch.cat(means), dim=1))
    return embeddings


class Tokens(NamedTuple):
    """The tokens of a text.

    ids, starts: their ids, and the character at which each begins ``(T,)``.
    before, after: ids of the special tokens and the prefix around them.
    """

    ids: Tensor
    starts: Tensor
    before: list[int]
    after: list[int]


def read_tokens(tokenizer: PreTrainedTokenizerBase, text: str, prefix: str) -> Tokens:
    """Tokenise a text. Long texts are tokenised in pieces, since Python's token lists take a hundred times the text's
    memory."""
    frame = call_tokenizer(tokenizer, "")["input_ids"]
    _, after = special_ids(tokenizer)
    before, ids, starts = [*frame[: len(frame) - len(after)]], [], []

    # Cuts are before a space between two words, at most PIECE characters apart, so that the tokens are those of the
    # whole text.
    cuts = [0]
    while len(text) - cuts[-1] > PIECE:
        space = text.rfind(" ", cuts[-1] + 1, cuts[-1] + PIECE)
        while space > 0 and (text[space - 1] + text[space + 1]).strip() != text[space - 1] + text[space + 1]:
            space = text.rfind(" ", cuts[-1] + 1, space)
        if space <= 0:
            space = cuts[-1] + PIECE
        cuts.append(space)
    opening = prefix
    for first, last in pairwise([*cuts, len(text)]):
        read = call_tokenizer(
            tokenizer, opening + text[first:last], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        offsets = read["offset_mapping"]
        # a token may belong to prefix and text, such as the space between
        begin = next(
            (at for at, (start, end) in enumerate(offsets) if max(start + 1, end) > len(opening)), len(offsets)
        )
        before += read["input_ids"][:begin]
        ids.append(torch.tensor(read["input_ids"][begin:], dtype=torch.long))
        places = [first + max(start - len(opening), 0) for start, _ in offsets[begin:]]
        starts.append(torch.tensor(places, dtype=torch.long))
        opening = ""
    return Tokens(torch.cat(ids), torch.cat(starts), before, after)


@torch.no_grad()
def token_states(model: PreTrainedModel, tokens: Tokens, longest: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the token states of a text, window by window.

    A text longer than ``longest`` tokens is read in windows that share 128 tokens, and at most a quarter of a window.
    Each state comes from the window that its token belongs to (:func:`.token_windows`).

    Yields:
        The last hidden states of the next tokens ``(T, hidden_size)``, and those of the prefix and special tokens at
        the start of the first and the end of the last window; fp32 on the CPU.
    """
    before, after, count = tokens.before, tokens.after, len(tokens.ids)
    fixed = len(before) + len(after)
    overlap = min(128, (longest or 0) // 4)
    if longest is not None and longest - fixed < min(count, overlap + 1):
        raise InputError(
            f"A window of {longest:,} tokens is too short for an overlap of {overlap:,} and {fixed:,} tokens of "
            "prompt and special tokens; give a shorter prompt, or convert the model to a greater length."
        )
    body = count if longest is None else longest - fixed
    for first, begin, end in token_windows(count, body, overlap):
        part = tokens.ids[first : first + body]
        row = torch.tensor([[*before, *part.tolist(), *after]], dtype=torch.long, device=model.device)
        output = model(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state[0].float().cpu()
        opening, inside, closing = output.split([len(before), len(part), len(after)])
        if first > 0:
            opening = opening[:0]
        if end < count:
            closing = closing[:0]
        yield inside[begin - first : end - first], torch.cat([opening, closing])
