"""RULER's variable tracking in real source files: questions whose evidence is spread over a document.

In data and tables it is called *lookup*, as its lines are.

Marked lines are inserted into source text. A one-hop question is answered by its own line, ``# lookup A VALUE``; a
two-hop question needs two lines, ``# lookup A B`` and ``# lookup B VALUE``, which stand more than 512 tokens
apart, so that no 512-token window contains both. All other lines are distractors, and every line ends in a word, so that
guessing among the values is right in one of eight cases.

Source: Hsieh et al. 2024, "RULER: What's the Real Context Size of Your Long-Context Language Models?" (arXiv:2404.06654).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import LengthError
from scripts.dev.studies import corpus

MARKER = "# lookup"
ATTEMPTS = 12
"""Stretches tried until one fits."""
LONG_LINE = 64
"""Tokens of a line that is left out of the text where it does not fit."""
# Short and common in source code, one piece each in a tokenizer that was trained on code. Names and values are disjoint, so that a reader
# can tell a hop from an answer.
_NAMES = """
    account action address alpha angle archive array axis basis batch beta block body bound branch bucket buffer cache canvas cell
    channel chunk client column config curve day degree depth device digest domain edge engine entry epoch error event face factory family
    field figure filter frame future gate graph grid group handle header host image index job kernel label layer leaf level library list
    lock loop matrix memory metric model module node offset option order package paper path pattern pixel plan point port process profile
    proxy queue radius range record region ring root row sample scale score screen seed signal socket source stack stage stone river
"""
_VALUES = """
    active back bad basic best big blue bottom clean closed common dense direct double early empty equal fast final fixed flat free full
    global good green half hard hidden high inner joint large last lazy left local long low main new normal old open outer private public
    raw real red right round safe shared short simple single slow small soft special static strict top true unique upper valid warm
"""
NAMES: tuple[str, ...] = tuple(_NAMES.split())
VALUES: tuple[str, ...] = tuple(_VALUES.split())
LENGTHS = (480, 1024, 2048, 4096, 8192)
PAIRS, CHAINS = 4, 4
"""One-hop lines and two-hop chains of two lines each in a document."""
LINES = PAIRS + 2 * CHAINS


class Filler:
    """Source lines with their token counts, from which stretches of any length are cut."""

    def __init__(self, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, max_lines: int = 200_000) -> None:
        self.lines: list[str] = []
        for text in texts:
            self.lines.extend(line + "\n" for line in text.splitlines() if not line.lstrip().startswith(MARKER))
            if len(self.lines) >= max_lines:
                break
        if not self.lines:
            raise LengthError("lookup documents need at least one line of source text to be inserted into")
        counts: list[int] = []
        for start in range(0, len(self.lines), 4096):
            group = self.lines[start : start + 4096]
            encoded = tokenizer(group, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            counts.extend(len(ids) for ids in encoded)
        self.counts = counts

    def stretch(self, tokens: int, rng: random.Random) -> list[int]:
        """Return the numbers of consecutive lines of at most ``tokens`` tokens in all, from a random start, cyclic."""
        start, total = rng.randrange(len(self.lines)), 0
        numbers: list[int] = []
        for step in range(len(self.lines)):
            number = (start + step) % len(self.lines)
            if total + self.counts[number] > tokens:
                if self.counts[number] <= LONG_LINE:
                    break
                continue  # a table or a blob in the way: left out
            total += self.counts[number]
            numbers.append(number)
        return numbers


def question_of(name: str) -> str:
    """Return the question for ``name``; it reads like the beginning of the line that answers it."""
    return f"{MARKER} {name}"


def make_document(filler: Filler, tokens: int, rng: random.Random, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Make one document with its questions: :data:`PAIRS` of one hop, and :data:`CHAINS` of two, which come first.

    From 1,024 tokens on, the two lines of a chain are more than 512 tokens apart.

    Args:
        filler: the source text to insert into.
        tokens: length of the whole input in tokens (question, special tokens and document); not exceeded.
        rng: decides everything.
        tokenizer: measures.

    Raises:
        LengthError: the inserted lines alone do not fit into ``tokens``, or a gap is impossible.
    """
    gap = 512 if tokens >= 1024 else 0
    names, values = rng.sample(NAMES, LINES), rng.sample(VALUES, PAIRS + CHAINS)
    lines, asked = _inserted_lines(names, values)
    insert_cost = len(tokenizer("\n".join(lines) + "\n", add_special_tokens=False)["input_ids"])
    asking = tokenizer([question_of(name) for name in names], add_special_tokens=True)["input_ids"]
    overhead = max(map(len, asking)) + 2  # the separators of a pair
    budget = tokens - insert_cost - overhead
    if budget < 0:
        raise LengthError(f"{LINES} lookup lines do not fit into {tokens} tokens; ask for a greater length")
    for _ in range(ATTEMPTS):
        numbers = filler.stretch(budget, rng)
        context, starts = _compose(filler, numbers, lines, _places(filler, numbers, gap, rng))
        excess = overhead + len(tokenizer(context, add_special_tokens=False, verbose=False)["input_ids"]) - tokens
        if excess <= 0:
            break
        budget = max(0, budget - excess - 8)
    else:
        raise LengthError(f"found no stretch of source text that fills {tokens} tokens with {LINES} lookup lines")
    return [
        {
            "context": context,
            "question": question_of(question.name),
            "answers": {"text": [question.value], "answer_start": [starts[question.line] + lines[question.line].rindex(" ") + 1]},
            "hops": question.hops,
            "length": tokens,
        }
        for question in asked
    ]


def build_variable_tracking(
    split: str, tokenizer: PreTrainedTokenizerBase, *, lengths: Sequence[int] = LENGTHS, documents: int = 50,
    questions_per_document: int = 4,
) -> list[dict[str, Any]]:  # fmt: skip
    """The lookup set of a split: as many one-hop as two-hop questions at every length.

    SQuAD's schema with hops (1 or 2) and length (the target length of the input in tokens).

    Args:
        split: "train", "validation" or "test": the packages that the text comes from.
        tokenizer: measures lengths and gaps.
        lengths: input lengths in tokens.
        documents: documents per length.
        questions_per_document: an even number up to 8, half one-hop and half two-hop.
    """
    texts = [module.text for module in corpus.iter_modules(split)]
    random.Random(f"0:{split}").shuffle(texts)
    filler, half = Filler(texts, tokenizer), questions_per_document // 2
    records: list[dict[str, Any]] = []
    for length in lengths:
        for number in range(documents):
            made = make_document(filler, length, random.Random(f"0:{split}:{length}:{number}"), tokenizer)
            for place, record in enumerate([*made[CHAINS:][:half], *made[:CHAINS][:half]]):
                records.append({**record, "id": f"lookup:{split}:{length}:{number}:{place}", "title": f"lookup {length}"})
    return records


@dataclass(frozen=True)
class _Asked:
    """A question, and the number of the line that holds its answer."""

    name: str
    value: str
    hops: int
    line: int


def _inserted_lines(names: list[str], values: list[str]) -> tuple[list[str], list[_Asked]]:
    """Return the lines, each chain's two lines first, and the questions."""
    lines: list[str] = []
    asked: list[_Asked] = []
    for chain in range(CHAINS):
        first, second, value = names[2 * chain], names[2 * chain + 1], values[chain]
        lines += [f"{MARKER} {first} {second}", f"{MARKER} {second} {value}"]
        asked.append(_Asked(first, value, 2, len(lines) - 1))
    for name, value in zip(names[2 * CHAINS :], values[CHAINS:], strict=True):
        lines.append(f"{MARKER} {name} {value}")
        asked.append(_Asked(name, value, 1, len(lines) - 1))
    return lines, asked


def _places(filler: Filler, numbers: list[int], gap: int, rng: random.Random) -> list[int]:
    """The filler line before which each line stands; lines of a chain are more than ``gap`` tokens apart."""
    before = list(itertools.accumulate((filler.counts[n] for n in numbers), initial=0))
    total = before[-1]
    if gap and total <= gap:
        raise LengthError(f"a gap of {gap} tokens needs a longer document than {total} tokens of text")
    places: list[int] = []
    for _ in range(CHAINS):
        for _attempt in range(10_000):
            first, second = rng.randrange(len(before)), rng.randrange(len(before))
            if not gap or abs(before[first] - before[second]) > gap:
                break
        else:
            raise LengthError(f"found no two lines more than {gap} tokens apart in {total} tokens of text")
        places += [first, second]
    return places + [rng.randrange(len(before)) for _ in range(PAIRS)]


def _compose(filler: Filler, numbers: list[int], lines: list[str], places: list[int]) -> tuple[str, list[int]]:
    """Join filler and inserted lines; also return the character offset at which every inserted line starts."""
    starts, parts, length = [0] * len(lines), [], 0
    at: dict[int, list[int]] = {}
    for line, place in enumerate(places):
        at.setdefault(place, []).append(line)
    for place in range(len(numbers) + 1):
        for line in at.get(place, ()):
            starts[line] = length
            parts.append(lines[line] + "\n")
            length += len(parts[-1])
        if place < len(numbers):
            parts.append(filler.lines[numbers[place]])
            length += len(parts[-1])
    return "".join(parts), starts
