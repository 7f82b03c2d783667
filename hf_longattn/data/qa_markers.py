"""Markers that tell a model where question, paragraphs, sentences and candidates are, as in Longformer on HotpotQA and WikiHop (Beltagy et
al. 2020, appendix): special tokens of the tokenizer, put into the texts before they are tokenized.

HotpotQA: ``[q] question [/q]``, and in the document ``<t> title </t> sentence [s] sentence [s] <t> …``. A paragraph is scored at its
``<t>``, a sentence at the ``[s]`` after it. WikiHop: ``[q] question [/q] [ent] candidate [/ent] …``, scored at ``[ent]``. The question is
global as in every model of questions. ``config.global_token_ids`` makes paragraphs and sentences global, so that every caller computes the
same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTION, END_QUESTION, TITLE, END_TITLE, SENTENCE, CANDIDATE, END_CANDIDATE = "[q]", "[/q]", "<t>", "</t>", "[s]", "[ent]", "[/ent]"
EVIDENCE = (QUESTION, END_QUESTION, TITLE, END_TITLE, SENTENCE)
"""Markers of HotpotQA."""
CANDIDATES = (QUESTION, END_QUESTION, CANDIDATE, END_CANDIDATE)
"""Markers of WikiHop."""


def add_markers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, markers: Iterable[str]) -> None:
    """Add the markers to the tokenizer, and rows for them to the model's embeddings, with its usual initialisation."""
    known = tokenizer.get_vocab()
    new = [AddedToken(marker, lstrip=True, special=True, normalized=False) for marker in markers if marker not in known]
    if new:
        tokenizer.add_tokens(new, special_tokens=True)
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def make_global(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, markers: Iterable[str]) -> None:
    """Let the model make these markers global by itself, now and when it is loaded again; a short one after its conversion."""
    model.config.global_token_ids = [int(number) for number in tokenizer.convert_tokens_to_ids(list(markers))]


@dataclass(frozen=True)
class Marked:
    """A text with markers.

    Attributes:
        text: with markers, to be tokenized.
        origin: for each of its characters, and its end, the character of the text without markers.
        places: the last character of each marker.
    """

    text: str
    origin: list[int]
    places: list[int]


def insert(text: str, marks: Iterable[tuple[int, str]]) -> Marked:
    """``text`` with a marker before each of some characters; ``marks`` are in the order of their places."""
    parts, origin, places, at = [], [], [], 0
    for place, marker in [*marks, (len(text), "")]:
        parts += [text[at:place], marker]
        origin += [*range(at, place), *[place] * len(marker)]
        places.append(len(origin) - 1 - (len(marker) - len(marker.rstrip())))
        at = place
    return Marked("".join(parts), [*origin, len(text)], places[:-1])


def marked_document(example: Mapping[str, Any]) -> Marked:
    """An example's document with marked paragraphs and sentences. ``places`` holds the paragraphs' markers, then the sentences'."""
    context = plain(example["context"], (TITLE, END_TITLE, SENTENCE))
    paragraphs, sentences = example.get("paragraphs") or [], example.get("sentences") or []
    marks = [(span["start"], f"{TITLE} ") for span in paragraphs] + [(span["end"], f" {SENTENCE}") for span in sentences]
    marks += [(span["end"], f" {END_TITLE} ") for span in paragraphs]
    order = sorted(range(len(marks)), key=lambda number: (marks[number][0], -number))  # at one place, end markers come first
    marked = insert(context, [marks[number] for number in order])
    places = dict(zip(order, marked.places, strict=True))
    return Marked(marked.text, marked.origin, [places[number] for number in range(len(paragraphs) + len(sentences))])


def marked_question(question: str) -> str:
    """The question with its markers."""
    return f"{QUESTION} {plain(question, {*EVIDENCE, *CANDIDATES})} {END_QUESTION}"


def marked_texts(example: Mapping[str, Any]) -> tuple[str, str]:
    """Question and document as a model of HotpotQA reads them: ``model(**tokenizer(*marked_texts(example), return_tensors="pt"))``."""
    return marked_question(example["question"].lstrip()), marked_document(example).text


def plain(text: str, markers: Iterable[str]) -> str:
    """The text with every marker replaced, at the same length."""
    for marker in markers:
        text = text.replace(marker, "(" + marker[1:])
    return text
