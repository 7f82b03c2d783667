"""Docstring QA: which definition of this module does the sentence describe?

* question: the first sentence(s) of a docstring;
* context: the module's source with **all** docstrings removed (removing only the one asked for would give the answer
  away: the one undocumented definition);
* answer: the name after ``def`` or ``class``, as an exact character span.

Kept out, and counted in :class:`Rejections`: questions that contain the answer's name as a word, names that are defined
more than once in the module, sentences that the stripped source still contains (in a comment, say), and sentences that
two definitions of the module share. What remains needs the code to be read, or a match between the sentence's words and
the names, which is what the lexical baseline measures.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_longattn.training.qa_data import QA_FEATURES
from research import corpus
from research.docstrings import Definition, StrippedSource, first_sentences, normalised, strip_docstrings

_CHARACTERS_PER_TOKEN = 3.0  # a cheap bound that saves tokenising what is too short or far too long


@dataclass
class Rejections:
    """Why candidates were left out of a docstring set."""

    unparsable_modules: int = 0
    no_sentence: int = 0
    name_in_question: int = 0
    name_defined_twice: int = 0
    sentence_in_document: int = 0
    sentence_shared: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return the counts by reason."""
        return asdict(self)


def build_docstring_qa(
    split: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    min_tokens: int = 500,
    max_tokens: int = 8000,
    questions_per_module: int = 4,
    limit: int | None = None,
    packages: Iterable[str] | None = None,
    modules: Iterable[corpus.Module] | None = None,
    seed: int = 0,
    rejections: Rejections | None = None,
) -> Dataset:
    """Build the docstring QA set of one split of the reference corpus, in SQuAD's schema.

    Args:
        split: "train", "validation" or "test"; no package is in two of them.
        tokenizer: measures the documents; without one, three characters count as a token.
        min_tokens: shortest document kept, in tokens of the context.
        max_tokens: longest document kept.
        questions_per_module: at most so many questions per module, chosen by the seed.
        limit: stop after so many questions; modules come in an order chosen by the seed.
        packages: only these packages of the split.
        modules: these modules instead of the corpus, in an order of the caller's.
        seed: choice of questions and order of modules.
        rejections: filled with the reasons for leaving candidates out.

    Returns:
        A dataset with id, title (the module's path), context, question, answers {text, answer_start} and tokens.
    """
    if modules is None:
        modules = list(corpus.iter_modules(split, packages))
        random.Random(f"{seed}:{split}").shuffle(modules)
    rejections = Rejections() if rejections is None else rejections
    records: list[dict[str, Any]] = []
    for module in modules:
        if len(module.text) < min_tokens * 2 or len(module.text) > max_tokens * 40:
            continue
        stripped = strip_docstrings(module.text)
        if stripped is None:
            rejections.unparsable_modules += 1
            continue
        tokens = count_tokens(stripped.text, tokenizer, max_tokens)
        if not min_tokens <= tokens <= max_tokens:
            continue
        asked = list(questions(stripped, rejections))
        rng = random.Random(f"{seed}:{module.path}")
        for definition, question in sorted(rng.sample(asked, min(questions_per_module, len(asked))), key=lambda pair: pair[0].start):
            records.append(to_record(module.path, stripped.text, definition, question, tokens))
        if limit is not None and len(records) >= limit:
            break
    return Dataset.from_list(records[:limit], features=QA_FEATURES)


def questions(stripped: StrippedSource, rejections: Rejections) -> Iterator[tuple[Definition, str]]:
    """Yield the definitions of a module that can be asked for, each with its question."""
    names = Counter(definition.name for definition in stripped.definitions)
    sentences = {d: first_sentences(d.docstring) for d in stripped.definitions if d.docstring}
    shared = Counter(normalised(sentence) for sentence in sentences.values())
    document = f" {normalised(stripped.text)} "
    for definition, sentence in sentences.items():
        plain = normalised(sentence)
        if not plain:
            rejections.no_sentence += 1
        elif names[definition.name] > 1:
            rejections.name_defined_twice += 1
        elif contains_name(sentence, definition.name):
            rejections.name_in_question += 1
        elif shared[plain] > 1:
            rejections.sentence_shared += 1
        elif f" {plain} " in document:
            rejections.sentence_in_document += 1
        else:
            yield definition, sentence


def contains_name(question: str, name: str) -> bool:
    """Say whether the question contains the name, as an identifier or word by word, whatever the case."""
    plain, words = f" {question.lower()} ", f" {normalised(question)} "
    return name.lower() in plain if len(name) > 3 else f" {normalised(name)} " in words


def to_record(path: str, text: str, definition: Definition, question: str, tokens: int) -> dict[str, Any]:
    """Return one question in SQuAD's schema."""
    return {
        "id": f"{path}:{definition.start}",
        "title": path,
        "context": text,
        "question": question,
        "answers": {"text": [definition.name], "answer_start": [definition.start]},
        "tokens": tokens,
    }


def count_tokens(text: str, tokenizer: PreTrainedTokenizerBase | None, stop_above: int) -> int:
    """Count the tokens of ``text``; a text far longer than ``stop_above`` tokens is estimated."""
    estimate = int(len(text) / _CHARACTERS_PER_TOKEN)
    if tokenizer is None or estimate > 4 * stop_above:
        return estimate
    return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])
