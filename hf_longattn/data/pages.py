"""Pages: words with their boxes, as datasets of documents have them, and a question and pages as a model's input.

A row has ``words`` and ``boxes`` (DocVQA), or words and ``bboxes`` (FUNSD): one list of the whole document, with the page of each word in
``pages``, or a list for each page. Boxes are (left, top, right, bottom) from 0 to 1,000 on their own page, or in pixels next to the width
and height of the pages. Web pages have ``xpaths`` in place of boxes: the words are the texts of their nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedTokenizerBase

from hf_longattn.data.answers import occurrences
from hf_longattn.data.page_words import page_encoding, reads_words, word_argument
from hf_longattn.errors import OptionError, PageError
from hf_longattn.modeling.family.definition import known_family
from hf_longattn.modeling.family.page_rule import BOX_LIMIT, BOX_SIDES, check_boxes

BOX_COLUMNS = ("boxes", "bboxes", "bounding_boxes")
"""Names of columns of boxes."""
PAGE_COLUMNS = ("pages", "page_numbers")
"""Names of columns of page numbers."""


@dataclass(frozen=True)
class Pages:
    """The words of a document, page after page.

    Attributes:
        words: in reading order.
        boxes: of each word, (left, top, right, bottom) from 0 to 1,000 on its page; empty where words have paths.
        paths: the XPath of each word's node; empty where words have boxes.
        numbers: the page of each word, from 0 by default; all 0 if the data have no pages.
    """

    words: list[str]
    boxes: list[list[int]]
    paths: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The words with a space between them."""
        return " ".join(self.words)

    def columns(self) -> dict[str, Any]:
        """These pages as columns of an example of ``load_qa``."""
        return {"words": self.words, "boxes": self.boxes, "xpaths": self.paths, "pages": self.numbers}


def word_starts(words: Sequence[str]) -> list[int]:
    """The first character of each word in ``" ".join(words)``."""
    return list(accumulate((len(word) + 1 for word in words), initial=0))[: len(words)]


def pages_of(row: Mapping[str, Any]) -> Pages:
    """The pages of a row of a dataset: ``words`` with ``boxes`` (or another name of :data:`BOX_COLUMNS`), or with ``xpaths``.

    Raises:
        PageError: see :func:`read_pages`; there are no such columns.
    """
    if row.get("xpaths"):
        return node_pages(row.get("words") or [], row["xpaths"])
    name = next((name for name in BOX_COLUMNS if row.get(name) is not None), None)
    if name is None or row.get("words") is None:
        raise PageError(f"It has no words with boxes; give the columns 'words' and {BOX_COLUMNS[0]!r} ({', '.join(BOX_COLUMNS[1:])}).")
    numbers = next((row[column] for column in PAGE_COLUMNS if row.get(column) is not None), None)
    return read_pages(row["words"], row[name], numbers=numbers, sizes=sizes_of(row))


def sizes_of(row: Mapping[str, Any]) -> Any:
    """The width and height of the pages of a row; ``None`` if the row has no sizes; its boxes are then from 0 to 1,000."""
    if row.get("page_sizes") is not None:
        return row["page_sizes"]
    width, height = row.get("width"), row.get("height")
    if width is None or height is None:
        return None
    return list(zip(width, height, strict=True)) if isinstance(width, list) else [(width, height)]


def node_pages(nodes: Sequence[Any], paths: Sequence[Any]) -> Pages:
    """The texts of a web page's nodes with their XPaths.

    Raises:
        PageError: there are no nodes, or not one path per node.
    """
    if len(nodes) != len(paths):
        raise PageError(f"{len(nodes)} nodes have {len(paths)} xpaths; give one for every node.")
    if not nodes:
        raise PageError("It has no nodes; leave such rows out.")
    return Pages([str(node) for node in nodes], [], [str(path) for path in paths], [0] * len(nodes))


def read_pages(words: Any, boxes: Any, *, numbers: Any = None, sizes: Any = None) -> Pages:
    """Check words and their boxes.

    Args:
        words, boxes: a list of the document, or a list for each page; a box is (left, top, right, bottom).
        numbers: the page of each word of one list, in ascending order; ``None`` = one page.
        sizes: (width, height) of every page in the units of ``boxes``; ``None`` = boxes are from 0 to 1,000.

    Raises:
        PageError: there are no words, or none on a page; words and boxes differ in number; a box is outside of its page, or in another
            order; page numbers or sizes do not fit.
    """
    if not isinstance(words, list) or not isinstance(boxes, list):
        raise PageError("Words and boxes must be lists, of the whole document or one for each page.")
    if any(isinstance(part, list) for part in words):
        words, boxes, numbers = _in_one_list(words, boxes)
    elif len(words) != len(boxes):
        raise PageError(f"{len(words):,} words have {len(boxes):,} boxes; give one for every word.")
    if not any(str(word).strip() for word in words):
        raise PageError("It has no words; leave such rows out.")
    if any(word is None for word in words):
        raise PageError(f"Word {words.index(None) + 1} is empty (null); leave it and its box out.")
    numbers = _page_numbers(numbers, len(words))
    texts = [str(word) for word in words]
    return Pages(texts, _checked_boxes(texts, boxes, numbers, sizes), [], numbers)


def _in_one_list(words: list[Any], boxes: list[Any]) -> tuple[list[Any], list[Any], list[int]]:
    """The words and boxes of all pages, and the page of each."""
    if len(words) != len(boxes):
        raise PageError(f"{len(words):,} pages of words have {len(boxes):,} pages of boxes; give one for every page.")
    for number, (on_page, of_page) in enumerate(zip(words, boxes, strict=True), start=1):
        if not isinstance(on_page, list) or not isinstance(of_page, list):
            raise PageError(f"Page {number} is not a list; give a list of words and one of boxes for every page.")
        if not on_page:
            raise PageError(f"Page {number} has no words; leave empty pages out.")
        if len(on_page) != len(of_page):
            raise PageError(f"Page {number} has {len(on_page):,} words and {len(of_page):,} boxes; give one for every word.")
    numbers = chain.from_iterable([number] * len(on_page) for number, on_page in enumerate(words))
    return list(chain.from_iterable(words)), list(chain.from_iterable(boxes)), list(numbers)


def _page_numbers(numbers: Any, count: int) -> list[int]:
    """The page of each of ``count`` words."""
    if numbers is None:
        return [0] * count
    if not isinstance(numbers, list) or len(numbers) != count or not all(isinstance(number, int) for number in numbers):
        raise PageError(f"Pages must be a list of {count:,} whole numbers, the page of every word.")
    falling = next((place for place in range(1, count) if numbers[place] < numbers[place - 1]), None)
    if falling is not None:
        raise PageError(
            f"Word {falling + 1} is on page {numbers[falling]}, after words of page {numbers[falling - 1]}; sort the words by their page."
        )
    return numbers


def _checked_boxes(words: list[str], boxes: list[Any], numbers: list[int], sizes: Any) -> list[list[int]]:
    """The boxes from 0 to 1,000, as transformers' LayoutLM processors normalise them."""
    try:
        sides = np.array(boxes, dtype=np.float64)
    except (TypeError, ValueError):
        sides = np.zeros(0)
    if sides.shape != (len(words), len(BOX_SIDES)):
        raise PageError(f"A box must be four numbers ({', '.join(BOX_SIDES)}); correct the boxes of its words.")
    firsts = dict.fromkeys(numbers)
    names = [f"Page {place}" for place in range(1, len(firsts) + 1)]
    if sizes is not None:
        scales = np.array(sizes, dtype=np.float64) if len(sizes) == len(firsts) else np.zeros(0)
        if scales.shape != (len(firsts), 2) or not (scales > 0).all():
            raise PageError(f"Its words are on {len(firsts)} pages, but page_sizes are {sizes}; give [width, height] of every page.")
        scale = dict(zip(firsts, scales[:, [0, 1, 0, 1]], strict=True))
        sides = np.trunc(BOX_LIMIT * (sides / np.stack([scale[number] for number in numbers])))
        names = [f"{name} of {width:g} × {height:g}" for name, (width, height) in zip(names, scales, strict=True)]
    elif (np.trunc(sides) != sides).any():
        raise PageError(f"Boxes must be whole numbers from 0 to {BOX_LIMIT}; multiply sides from 0 to 1 by {BOX_LIMIT}.")
    normalised, of_page = torch.from_numpy(sides).long(), np.array(numbers)
    for number, name in zip(firsts, names, strict=True):
        check_boxes(name, normalised[of_page == number])
    return normalised.tolist()


def page_columns(config: PreTrainedConfig | None) -> dict[str, int]:
    """The columns of a model of pages beside the token ids, mapped to their padding. Empty for a model of text."""
    family = None if config is None else known_family(config)
    return {} if family is None else {name: family.rule.fill(config, name) for name in family.rule.names}


def chosen_columns(config: PreTrainedConfig, name: str, layout: bool | None) -> dict[str, int]:
    """As :func:`page_columns`, but empty if ``layout`` is False. ``name`` is the model's name in messages.

    Raises:
        OptionError: ``layout`` is True, but the model reads only text.
    """
    columns = page_columns(config)
    if layout and not columns:
        raise OptionError(f"--layout: {name!r} ({config.model_type}) reads text alone; take a LayoutLM, or leave --layout out.")
    return {} if layout is False else columns


def has_places(example: Mapping[str, Any]) -> bool:
    """Whether the words of an example have boxes or paths."""
    return bool(example.get("words")) and bool(example.get("boxes") or example.get("xpaths"))


def with_context(example: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add ``context`` (the words with a space between them) and the places of text answers to a question about pages. Other examples are
    returned unchanged.

    Raises:
        PageError: see :func:`read_pages`.
    """
    if example.get("context") is not None or not example.get("words"):
        return example
    pages, answers = pages_of(example), example.get("answers")
    located = occurrences(pages.text, map(str, answers)) if isinstance(answers, list) else answers
    return {**example, "context": pages.text, "answers": located, **pages.columns()}


def encode_pages(example: Mapping[str, Any], question: str | None, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> BatchEncoding:
    """Encode a question and the pages of an example, as ``tokenizer(question, context)`` does without boxes.

    Args:
        example: with ``words``, and ``boxes`` or ``xpaths``; ``context`` is the words with a space between them.
        question: None = only the words.
        settings: of the call of the tokenizer (truncation, max_length, stride …).

    Returns:
        The tokenizer's columns, and those of boxes or paths. Requested offsets are characters of the context.
    """
    encoded = page_encoding(tokenizer, example["words"], example.get("boxes") or example.get("xpaths"), question=question, **settings)
    if "offset_mapping" not in encoded:
        return encoded
    space = 0 if word_argument(tokenizer) or reads_words(tokenizer) else 1  # which `page_encoding` puts before every word
    starts = [start - space for start in word_starts(example["words"])]
    offsets, of_words = encoded["offset_mapping"], 0 if question is None else 1
    rows = offsets if settings.get("return_overflowing_tokens") else [offsets]
    shifted = [
        [
            (start, end) if sequence != of_words else (starts[word] + start, starts[word] + end)
            for (start, end), word, sequence in zip(row, encoded.word_ids(number), encoded.sequence_ids(number), strict=True)
        ]
        for number, row in enumerate(rows)
    ]
    encoded["offset_mapping"] = shifted if settings.get("return_overflowing_tokens") else shifted[0]
    return encoded


def pages_beside(question: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of tokens of the question and special tokens beside the pages."""
    encoded = encode_pages({"words": ["x"]}, question, tokenizer, verbose=False)
    return sum(sequence != 1 for sequence in encoded.sequence_ids(0))


def placed_words(row: Mapping[str, Any], words_column: str, places_column: str) -> Pages:
    """The words of a row of tagged documents, with their boxes, or XPaths where the column holds texts.

    Raises:
        PageError: see :func:`read_pages`.
    """
    words, places = row[words_column], row[places_column]
    if isinstance(words, list) and isinstance(places, list) and any(isinstance(place, str) for place in places):
        return node_pages(words, places)
    numbers = next((row[column] for column in PAGE_COLUMNS if row.get(column) is not None), None)
    return read_pages(words, places, numbers=numbers, sizes=sizes_of(row))
