"""Late chunking (Günther et al. 2024, arXiv 2409.04701): embeddings of passages in the context of their document.

A document is read in one pass, and the token states of each passage are averaged. If a passage were embedded without
its document, the references in it ("the city", "this function") would be lost.
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
"""Start and end of a passage in characters, the end exclusive."""
PIECE = 1_000_000
"""Maximum characters of a text that are tokenised at once."""


def late_chunks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[str],
    spans: Sequence[Sequence[Span]],
    *,
    prefix: str = "",
    max_length: int | None = None,
) -> list[Tensor]:
    """Read every document in one pass, and average the token states of each passage (the paper's equation 2).

    Embeddings have length 1. An encoder with mean pooling needs no training for late chunking, but an encoder with CLS
    pooling does. If a passage is the whole text, such as a query, the states of the special tokens and of the prefix
    are averaged too, as in sentence-transformers' ``encode``. For passages of equal length, see :class:`.Embedder`.

    Args:
        model: an encoder without head, such as ``AutoModel.from_pretrained("bert-4096")`` or
            ``sentence_transformer[0].auto_model``.
        tokenizer: its tokenizer, a fast one.
        documents: texts of any length.
        spans: for each document, its passages as (start, end) in characters, for example sentences. A token belongs to
            the passage in which it starts.
        prefix: the model's prompt for documents, such as "search_document: ". It does not count in the average of a
            passage that is only a part of its text.
        max_length: maximum tokens of one pass; default: what the config and the tokenizer say. A longer document is
            read in windows, see :func:`token_states`.

    Returns:
        For each document, the embeddings of its passages ``(P, hidden_size)``, in the order of ``spans``, in fp32 on
        the CPU.

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
            tokens = read_tokens(tokenizer, text, prefix)
            # states of the text, and of the special tokens and prefix around it
            states, around = map(torch.cat, zip(*token_states(model, tokens, longest), strict=True))
            means = [states[:0]]
            for span in passages:
                is_pair = isinstance(span, Sequence) and len(span) == 2
                if not is_pair or not all(hasattr(edge, "__index__") for edge in span):
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
                inside = (tokens.starts >= start) & (tokens.starts < end)
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

    Attributes:
        ids: ids of the text's tokens, ``(T,)``.
        starts: the character of the text at which each token begins, ``(T,)``.
        before: ids of the special tokens and of the prefix before the text.
        after: ids of the special tokens after the text.
    """

    ids: Tensor
    starts: Tensor
    before: list[int]
    after: list[int]


def read_tokens(tokenizer: PreTrainedTokenizerBase, text: str, prefix: str) -> Tokens:
    """Tokenise ``prefix`` and ``text``.

    A long text is tokenised in pieces, because Python's lists of tokens need a hundred times the memory of the text.
    """
    frame = call_tokenizer(tokenizer, "")["input_ids"]
    _, after = special_ids(tokenizer)
    before = [*frame[: len(frame) - len(after)]]
    ids, starts = [], []

    # Cut the text before spaces between two words, at most PIECE characters apart. The tokens are then the same as
    # those of the whole text.
    cuts = [0]
    while len(text) - cuts[-1] > PIECE:
        space = text.rfind(" ", cuts[-1] + 1, cuts[-1] + PIECE)
        while space > 0 and (text[space - 1].isspace() or text[space + 1].isspace()):
            space = text.rfind(" ", cuts[-1] + 1, space)
        if space <= 0:
            space = cuts[-1] + PIECE
        cuts.append(space)

    for first, last in pairwise([*cuts, len(text)]):
        opening = "" if first else prefix
        encoded = call_tokenizer(
            tokenizer, opening + text[first:last], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        offsets = encoded["offset_mapping"]
        # Tokens that end within the prefix are before the text. A token of both, such as a space, is of the text.
        prefix_tokens = 0
        for start, end in offsets:
            if max(start + 1, end) > len(opening):
                break
            prefix_tokens += 1
        before += encoded["input_ids"][:prefix_tokens]
        ids.append(torch.tensor(encoded["input_ids"][prefix_tokens:], dtype=torch.long))
        characters = [first + max(start - len(opening), 0) for start, _ in offsets[prefix_tokens:]]
        starts.append(torch.tensor(characters, dtype=torch.long))
    return Tokens(torch.cat(ids), torch.cat(starts), before, after)


@torch.no_grad()
def token_states(model: PreTrainedModel, tokens: Tokens, longest: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the token states of a text, window by window.

    A text longer than ``longest`` tokens is read in windows. Two windows share 128 tokens, or a quarter of a shorter
    window. The state of a token comes from the window to which :func:`.token_windows` assigns the token.

    Yields:
        Two tensors of last hidden states in fp32 on the CPU: of the next tokens of the text, ``(T, hidden_size)``, and
        of the prefix and special tokens. The second is empty except in the first window (those before the text) and in
        the last window (those after the text).

    Raises:
        InputError: a window is too short.
    """
    before, after, count = tokens.before, tokens.after, len(tokens.ids)
    fixed = len(before) + len(after)  # tokens that every window has
    overlap = min(128, (longest or 0) // 4)
    if longest is not None and longest - fixed < min(count, overlap + 1):
        raise InputError(
            f"A window of {longest:,} tokens is too short for an overlap of {overlap:,} and {fixed:,} tokens of "
            "prompt and special tokens; give a shorter prompt, or convert the model to a greater length."
        )
    size = count if longest is None else longest - fixed
    for first, begin, end in token_windows(count, size, overlap):
        part = tokens.ids[first : first + size]
        row = torch.tensor([[*before, *part.tolist(), *after]], dtype=torch.long, device=model.device)
        output = model(input_ids=row, attention_mask=torch.ones_like(row)).last_hidden_state[0].float().cpu()
        opening, inside, closing = output.split([len(before), len(part), len(after)])
        if first > 0:
            opening = opening[:0]
        if end < count:
            closing = closing[:0]
        yield inside[begin - first : end - first], torch.cat([opening, closing])
