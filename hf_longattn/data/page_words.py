"""The words of a page, each with its box or its path, as the tokenizer of a model of pages reads them.

The tokenizers of LayoutLMv2, LayoutLMv3, LayoutXLM and UDOP take ``boxes=``, that of MarkupLM takes ``xpaths=``. Other tokenizers
(LayoutLM, most of LiLT) take neither; their tokens get the boxes of their words afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from ..errors import PageError
from ..loading import call_tokenizer
from ..modeling.family.page_rule import BOX_LIMIT, check_boxes

BOXES, PATHS = "boxes", "xpaths"
"""Arguments of tokenizers with a place of every word."""
SEPARATOR_BOX, NO_BOX = (BOX_LIMIT,) * 4, (0,) * 4
"""Boxes of the separator and of tokens without a place, as in LayoutLM's training."""
WORDS_PER_LINE, LINES_PER_PAGE = 10, 50
LEAD, WORDS = "x", ("Lisbon", "the", "don't", "12", ".")
"""A first word and later words. They show how a tokenizer reads a list of words."""

Box = Sequence[int]


def word_argument(tokenizer: PreTrainedTokenizerBase | type) -> str | None:
    """The argument, ``boxes`` or ``xpaths``, in which a tokenizer takes the place of every word; ``None`` if it takes only text."""
    tokenizer_class: Any = tokenizer if isinstance(tokenizer, type) else type(tokenizer)
    parameters = inspect.signature(tokenizer_class.__call__).parameters
    if BOXES in parameters or hasattr(tokenizer_class, "call_boxes"):
        return BOXES
    return PATHS if PATHS in parameters else None


def plain_boxes(count: int) -> list[list[int]]:
    """Boxes of ``count`` words in reading order, ten a line and 50 lines a page."""
    width, height = BOX_LIMIT // WORDS_PER_LINE, BOX_LIMIT // LINES_PER_PAGE
    corners = [(width * (word % WORDS_PER_LINE), height * (word // WORDS_PER_LINE % LINES_PER_PAGE)) for word in range(count)]
    return [[left, top, left + width - 10, top + height - 5] for left, top in corners]


def plain_paths(count: int) -> list[str]:
    """Paths of ``count`` words, ten to a paragraph."""
    return [f"/html/body/p[{word // WORDS_PER_LINE}]/span[{word % WORDS_PER_LINE}]" for word in range(count)]


def page_encoding(
    tokenizer: PreTrainedTokenizerBase,
    words: str | Sequence[str],
    boxes_or_paths: Sequence[Box] | Sequence[str] | None = None,
    *,
    question: str | None = None,
    **tokenizer_kwargs: Any,
) -> BatchEncoding:
    """One page, or the pages of one document, as a model of pages reads them.

    Args:
        tokenizer: of any model; without ``boxes=`` or ``xpaths=`` it must be a fast one.
        words: of the page, or its text.
        boxes_or_paths: of every word, ``(left, top, right, bottom)`` from 0 to 1,000 on its own page, or a path in the tree
            (``/html/body/p[2]``) where the tokenizer takes ``xpaths``; default: those of a plain page.
        question: read before the page. Its tokens have no place.
        tokenizer_kwargs: further arguments of ``tokenizer(...)``: ``truncation``, ``max_length``, ``stride``,
            ``return_overflowing_tokens``, ``return_tensors`` …

    Returns:
        ``input_ids``, ``attention_mask`` and ``bbox`` ``(N, 4)``, or ``xpath_tags_seq`` and ``xpath_subs_seq`` ``(N, depth)``; in lists,
        with a batch axis where tensors or overflowing tokens are returned. ``word_ids(row)`` and ``sequence_ids(row)`` map tokens to words.

    Raises:
        PageError: there are no words, boxes or paths do not match the words, boxes lie outside of the page, or the tokenizer takes the
            other kind.
    """
    words = words.split() if isinstance(words, str) else list(words)
    if not any(word.strip() for word in words):
        raise PageError("The page has no words; read it with OCR (or give its text) before it is encoded, or leave it out.")
    argument = word_argument(tokenizer)
    if boxes_or_paths is None:
        boxes_or_paths = plain_paths(len(words)) if argument == PATHS else plain_boxes(len(words))
    places: list[Any] = list(boxes_or_paths)
    if len(places) != len(words):
        one, many = ("path", "paths") if argument == PATHS else ("box", "boxes")
        raise PageError(f"The page has {len(words)} words, but {len(places)} {many}; give one {one} for every word.")
    if any(isinstance(place, str) for place in places) != (argument == PATHS):
        present, read, other = ("boxes", "XPaths", "LayoutLM") if argument == PATHS else ("XPaths", "boxes", "MarkupLM")
        raise PageError(f"The words have {present}, but this model reads {read} ({type(tokenizer).__name__}); take a {other} for them.")
    if argument != PATHS:
        places = _checked_boxes(places)
    if argument is not None:
        texts = [words] if question is None else [question, words]
        return call_tokenizer(tokenizer, *texts, **{argument: places}, **tokenizer_kwargs)
    return _with_boxes(tokenizer, words, places, question, **tokenizer_kwargs)


def text_encoding(tokenizer: PreTrainedTokenizerBase, text: str, **tokenizer_kwargs: Any) -> BatchEncoding:
    """The result of ``tokenizer(text, …)``. A tokenizer that requires boxes or paths gets those of a plain page."""
    if word_argument(tokenizer) is None:
        return call_tokenizer(tokenizer, text, **tokenizer_kwargs)
    return page_encoding(tokenizer, text, **tokenizer_kwargs)


def reads_words(tokenizer: PreTrainedTokenizerBase, original: PreTrainedTokenizerBase | None = None) -> bool:
    """Whether a list of words gets the same ids as the text, as tokenised by ``original`` if it is given."""
    lead = call_tokenizer(original or tokenizer, LEAD, add_special_tokens=False)["input_ids"]
    for word in WORDS:
        ids = call_tokenizer(original or tokenizer, f"{LEAD} {word}", add_special_tokens=False)["input_ids"]
        encoded = call_tokenizer(tokenizer, [LEAD, word], is_split_into_words=True, add_special_tokens=False)
        alone = [token for token, number in zip(encoded["input_ids"], encoded.word_ids(), strict=True) if number == 1]
        if ids[: len(lead)] == lead and ids[len(lead) :] != alone:
            return False
    return True


def _checked_boxes(boxes: Sequence[Any]) -> list[list[int]]:
    import torch

    lists = [box.tolist() if hasattr(box, "tolist") else list(box) for box in boxes]
    wrong = next((box for box in lists if len(box) != 4 or any(isinstance(side, float) and not side.is_integer() for side in box)), None)
    if wrong is not None:
        raise PageError(f"The box {wrong} is not four whole numbers; give (left, top, right, bottom), scaled to 0 to {BOX_LIMIT}.")
    sides = [[int(side) for side in box] for box in lists]
    check_boxes("boxes", torch.tensor(sides), BOX_LIMIT)
    return sides


def _with_boxes(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], boxes: list[list[int]], question: str | None, **tokenizer_kwargs: Any
) -> BatchEncoding:
    """The encoding of a tokenizer that knows no boxes, and the boxes of its tokens."""
    if not tokenizer.is_fast:
        raise PageError(
            f"{type(tokenizer).__name__} does not say which token is which word's, so that boxes cannot be laid on tokens; load the fast "
            "tokenizer of the checkpoint (tokenizer.json)."
        )
    tensors = tokenizer_kwargs.pop("return_tensors", None)
    read = list(words) if reads_words(tokenizer) else [f" {word}" for word in words]
    texts = [read] if question is None else [question.split(), read]
    encoding = call_tokenizer(tokenizer, *texts, is_split_into_words=True, **tokenizer_kwargs)
    rows = [_token_boxes(tokenizer, row, boxes, len(texts) - 1) for row in encoding.encodings]
    batched = bool(encoding["input_ids"]) and isinstance(encoding["input_ids"][0], list)
    encoding["bbox"] = rows if batched else rows[0]
    return encoding.convert_to_tensors(tensors, prepend_batch_axis=not batched)


def _token_boxes(tokenizer: PreTrainedTokenizerBase, row: Any, boxes: list[list[int]], page: int) -> list[list[int]]:
    """The boxes of a row's tokens; ``page`` is the number of the text that has the page's words, after the question."""
    tokens = zip(row.ids, row.word_ids, row.sequence_ids, strict=True)
    return [
        boxes[word]
        if text == page and word is not None
        else list(SEPARATOR_BOX if token == tokenizer.sep_token_id and text is None else NO_BOX)
        for token, word, text in tokens
    ]
