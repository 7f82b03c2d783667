"""Documents for the questions of :mod:`code_questions`: whole files of the installed packages, split as in :mod:`corpus`."""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import OptionError
from scripts.dev.studies import corpus
from scripts.dev.studies.code_questions import Parsed, Question, argument_questions, base_questions

TASKS = {"argument": argument_questions, "base": base_questions}
"""Which parameter receives an argument; which module a base class comes from."""


class Document:
    """A file with its questions, measured by a tokenizer."""

    def __init__(self, title: str, text: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.title, self.text, self.tokenizer = title, text, tokenizer

    @cached_property
    def tokens(self) -> list[int]:
        """The first character of every token."""
        encoded = self.tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [start for start, _ in encoded["offset_mapping"]]

    def distance(self, question: Question) -> int:
        """Tokens between where a reader finds the question's words and the answer."""
        first, last = (bisect.bisect_left(self.tokens, character) for character in (question.trail[0], question.trail[-1]))
        return abs(last - first)

    def record(self, question: Question) -> dict[str, Any]:
        """The question over the whole text, SQuAD-shaped."""
        return {
            "id": f"{self.title}:{question.kind}:{question.trail[0]}:{question.trail[-1]}",
            "title": self.title,
            "context": self.text,
            "question": question.text,
            "answers": {"text": [question.answer], "answer_start": [question.trail[-1]]},
            "tokens": len(self.tokens),
            "distance": self.distance(question),
            "trail": list(question.trail),
        }


def build_code_qa(
    task: str,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    min_tokens: int = 1000,
    max_tokens: int = 8000,
    min_distance: int = 512,
    per_file: int = 6,
    modules: Iterable[corpus.Module] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Build the questions of one task and split.

    Args:
        task: one of :data:`TASKS`.
        split: of :data:`corpus.SPLITS`.
        tokenizer: measures the documents.
        min_tokens, max_tokens: lengths of documents.
        min_distance: fewest tokens between the call (the class) and the answer.
        per_file: most questions per file, chosen by the seed.
        modules: these modules instead of the split's.
        seed: of every choice.
    """
    if task not in TASKS:
        raise OptionError(f"unknown task {task!r}; the tasks are {', '.join(TASKS)}")
    order = sorted(corpus.iter_modules(split) if modules is None else modules, key=lambda module: module.path)
    random.Random(f"{seed}:{task}:{split}").shuffle(order)
    records: list[dict[str, Any]] = []
    for module in order:
        parsed = Parsed.of(module.text) if len(module.text) <= 8 * max_tokens else None
        questions = [] if parsed is None else list(TASKS[task](parsed))
        document = Document(module.path, module.text, tokenizer)
        if questions and min_tokens <= len(document.tokens) <= max_tokens:
            far = [question for question in questions if document.distance(question) >= min_distance]
            chosen = random.Random(f"{seed}:{document.title}").sample(far, min(per_file, len(far)))
            records += [document.record(question) for question in chosen]
    return records
