"""Questions whose evidence is spread over a document: RULER's variable tracking in the source of installed packages.

Lines are inserted into source text. A question of one hop is answered by its own line, ``# lookup A VALUE``. A
question of two hops needs two lines, ``# lookup A B`` and ``# lookup B VALUE``, more than 512 tokens apart, so that no
window of 512 tokens has both. All other lines are distractors. Every line ends in a word, so a guess among the values
is right in one of eight cases.

Source: Hsieh et al. 2024, "RULER: What's the Real Context Size of Your Long-Context Language Models?"
(arXiv:2404.06654).
"""

from __future__ import annotations

import itertools
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import tomllib
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import InputError

PACKAGES = {"test": ("networkx", "pandas"), "validation": ("huggingface_hub", "numpy")}
"""Split -> installed packages whose source fills the documents. The committed model was trained on other packages."""
MARKER = "# lookup"
GAP = 512
"""Minimum tokens between the two lines of a question of two hops."""
LONG_LINE = 64
"""Maximum tokens of a line of source text. Longer ones are tables or encoded data, and are left out."""
PAIRS = CHAINS = 4
"""Questions of one hop and of two hops for each document."""
WORDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
NAMES, VALUES = WORDS["names"].split(), WORDS["values"].split()


class Filler(NamedTuple):
    """Lines of source text, and the number of tokens in each."""

    lines: list[str]
    counts: list[int]


def source_text(split: str, tokenizer: PreTrainedTokenizerBase, files: int = 400) -> Filler:
    """The lines of some source files of a split's packages, the same ones in each run with the same versions."""
    folders = [
        Path(str(spec.origin)).parent for package in PACKAGES[split] if (spec := find_spec(package)) is not None
    ]
    paths = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    random.Random(split).shuffle(paths)
    text = "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in paths[:files])
    return count_lines([line for line in text.splitlines() if MARKER not in line], tokenizer)


def count_lines(lines: list[str], tokenizer: PreTrainedTokenizerBase) -> Filler:
    """The lines of at most :data:`LONG_LINE` tokens, with their counts."""
    lines = [line + "\n" for line in lines]
    ids = tokenizer(lines, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    short = [(line, len(row)) for line, row in zip(lines, ids, strict=True) if len(row) <= LONG_LINE]
    return Filler([line for line, _ in short], [count for _, count in short])


def lookup_document(
    filler: Filler, tokens: int, rng: random.Random, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """One document with its questions in SQuAD's schema: :data:`CHAINS` of two hops, then :data:`PAIRS` of one.

    A question reads like the beginning of its line. Each record also has ``hops``, and ``length``, which is
    ``tokens``.

    Args:
        tokens: maximum length of question, special tokens and document together.
    Raises:
        InputError: ``tokens`` has no room for two lines more than :data:`GAP` tokens apart.
    """
    names, values = iter(rng.sample(NAMES, PAIRS + 2 * CHAINS)), iter(rng.sample(VALUES, PAIRS + CHAINS))
    questions, lines = [], list[str]()
    for hops in (2,) * CHAINS + (1,) * PAIRS:
        chain = [*itertools.islice(names, hops), next(values)]
        lines += [f"{MARKER} {first} {second}\n" for first, second in itertools.pairwise(chain)]
        questions.append((f"{MARKER} {chain[0]}", chain[-1], hops, len(lines) - 1))
    asking = max(len(tokenizer(question)["input_ids"]) for question, *_ in questions) + 2  # the separators of a pair
    budget = tokens - asking - len(tokenizer("".join(lines), add_special_tokens=False)["input_ids"])
    while budget > 1.3 * GAP:
        start, total, chosen = rng.randrange(len(filler.lines)), 0, list[int]()
        for number in itertools.islice(itertools.cycle(range(len(filler.lines))), start, start + len(filler.lines)):
            if (total := total + filler.counts[number]) > budget:
                break
            chosen.append(number)
        context, starts = insert_lines(filler, chosen, lines, rng)
        excess = asking + len(tokenizer(context, add_special_tokens=False, verbose=False)["input_ids"]) - tokens
        if excess <= 0:
            return [
                {
                    "context": context,
                    "question": question,
                    "answers": {"text": [value], "answer_start": [starts[line] + lines[line].rindex(" ") + 1]},
                    "hops": hops,
                    "length": tokens,
                }
                for question, value, hops, line in questions
            ]
        budget -= excess + 8  # lines together may have more tokens than lines alone
    raise InputError(
        f"{tokens} tokens have no room for lines more than {GAP} tokens apart; make documents of at least 1,024 "
        "tokens."
    )


def insert_lines(filler: Filler, chosen: list[int], lines: list[str], rng: random.Random) -> tuple[str, list[int]]:
    """The text with the lines at random positions, and the character at which each line starts."""
    before = list(itertools.accumulate((filler.counts[number] for number in chosen), initial=0))
    positions: list[int] = []
    for _ in range(CHAINS):
        first = second = 0
        while abs(before[first] - before[second]) <= GAP:
            first, second = rng.randrange(len(before)), rng.randrange(len(before))
        positions += [first, second]
    positions += [rng.randrange(len(before)) for _ in range(PAIRS)]
    starts, text = [0] * len(lines), ""
    for position in range(len(chosen) + 1):
        for line in (line for line, at in enumerate(positions) if at == position):
            starts[line] = len(text)
            text += lines[line]
        text += filler.lines[chosen[position]] if position < len(chosen) else ""
    return text, starts


def lookup_questions(
    split: str, tokenizer: PreTrainedTokenizerBase, *, lengths: tuple[int, ...], documents: int
) -> list[dict[str, Any]]:
    """Two questions of one hop and two of two hops about every document, the same for the same arguments.

    Args:
        split: "test" or "validation", of :data:`PACKAGES`.
        tokenizer: measures lengths and gaps.
        lengths: tokens of a document with its question.
        documents: number of documents of each length.
    """
    filler, records = source_text(split, tokenizer), list[dict[str, Any]]()
    for length, number in itertools.product(lengths, range(documents)):
        made = lookup_document(filler, length, random.Random(f"{split}:{length}:{number}"), tokenizer)
        for index, record in enumerate([*made[CHAINS : CHAINS + 2], *made[:2]]):
            records.append({**record, "id": f"lookup:{split}:{length}:{number}:{index}", "title": f"lookup {length}"})
    return records
