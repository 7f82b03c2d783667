"""RULER's variable tracking in real source files: questions whose evidence is spread over a document.

In data and tables it is called *lookup*, as its lines are.

Marked lines are inserted into source text. A one-hop question is answered by its own line, ``# lookup A VALUE``; a
two-hop question needs two lines, ``# lookup A B`` and ``# lookup B VALUE``, which stand more than ``min_gap`` tokens
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

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from hf_longattn.data.qa_schemas import ANSWERS
from hf_longattn.errors import LengthError
from scripts.dev.studies import corpus

MARKER = "# lookup"
_ATTEMPTS = 12  # stretches tried until one fills the length
_LONG_LINE = 64  # tokens
_SLACK = 0.02  # a document may be shorter than asked by this share
# Short and common in source code, one piece each in a tokenizer that was trained on code. Names and values are disjoint, so that a reader
# can tell a hop from an answer.
_NAMES = """
    account action address alpha angle archive argument array attribute axis basis batch beta bias binary bit block
    body bound branch bucket buffer builder byte cache canvas case cell center channel character child chunk client
    cluster code color column config current curve date day decimal degree delta depth device digest domain edge
    element engine entry epoch error event face factor factory family field figure file filter force form format
    fraction frame function future gamma gate gradient graph grid group handle handler hash head header height host
    image index integer item job kernel key label layer layout leaf length level library limit line link list loader
    lock log loop manager map mask matrix member memory merge message method metric mock mode model module moment
    name node norm number object offset option order origin package paper parent parser past patch path pattern pipe
    pixel plan plot point policy pool port power present process product profile program project proxy queue radius
    random range rank ratio reader record region release report result ring root row sample scalar scale score
    screen script second section seed series server shadow shape sigma signal size socket source space speed square
    stack stage state status step storage store stream string style sum symbol system table tag target task team
    tensor term test text theta thread time title token tool trace track train tree trust tuple type unit user
    vector version video view weight width window word worker world writer
"""
_VALUES = """
    active back bad basic best big blue bottom clean close closed common complex dense direct double down dynamic
    eager early empty equal exact false fast final first fixed flat free frozen full global good green half hard
    hidden high inner joint large last lazy left linear local long low lower main new normal old one open outer
    private public raw read real red right round safe shared short simple single slow small soft sparse special
    static strict three top true two unique up upper valid warm write zero
"""
NAMES: tuple[str, ...] = tuple(_NAMES.split())
VALUES: tuple[str, ...] = tuple(_VALUES.split())
LENGTHS = (480, 1024, 2048, 4096, 8192)
TRACKING_FEATURES = Features(
    {
        **{name: Value("string") for name in ("id", "title", "context", "question")},
        "answers": ANSWERS,
        **{name: Value("int32") for name in ("tokens", "hops")},
        "trail": List(Value("int32")),
        "length": Value("int32"),
    }
)
"""SQuAD's schema and: tokens (of the context), hops (1 or 2; 0 = unanswerable), trail, length (the target length of the input in tokens).

``trail`` holds the character offsets of the names that a reader passes: the asked name where it is defined, the name it
leads to (for one hop: the value), and the name at the start of the line that holds the answer.
"""


@dataclass(frozen=True)
class DocumentShape:
    """What is inserted into a document.

    Attributes:
        pairs: one-hop lines.
        chains: two-hop chains of two lines each.
        min_gap: two lines of a chain are more than this many tokens apart; 0 = anywhere.
    """

    pairs: int = 4
    chains: int = 4
    min_gap: int = 0

    @property
    def lines(self) -> int:
        """The number of inserted lines."""
        return self.pairs + 2 * self.chains

    @staticmethod
    def for_length(length: int) -> DocumentShape:
        """The shape of the published table: hops of more than 512 tokens from 1,024 tokens on."""
        return DocumentShape(min_gap=512 if length >= 1024 else 0)


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
                if self.counts[number] <= _LONG_LINE:
                    break
                continue  # a table or a blob in the way: left out
            total += self.counts[number]
            numbers.append(number)
        return numbers


def question_of(name: str) -> str:
    """Return the question for ``name``; it reads like the beginning of the line that answers it."""
    return f"{MARKER} {name}"


def make_document(
    filler: Filler, tokens: int, shape: DocumentShape, rng: random.Random, tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """Make one document with its questions.

    Args:
        filler: the source text to insert into.
        tokens: length of the whole input in tokens (question, special tokens and document); not exceeded.
        shape: what to insert.
        rng: decides everything.
        tokenizer: measures.

    Returns:
        One record per answerable question (``shape.pairs`` + ``shape.chains``), and one that has no answer, last. They
        also hold ``links``: per inserted line the characters at which its last word and its name start.

    Raises:
        LengthError: the inserted lines alone do not fit into ``tokens``, or a gap is impossible.
    """
    names = rng.sample(NAMES, shape.pairs + 2 * shape.chains + 1)
    values = rng.sample(VALUES, shape.pairs + shape.chains)
    absent = names.pop()
    lines, asked = _inserted_lines(names, values, shape)
    insert_cost = len(tokenizer("\n".join(lines) + "\n", add_special_tokens=False)["input_ids"])
    asking = tokenizer([question_of(name) for name in (*names, absent)], add_special_tokens=True)["input_ids"]
    overhead = max(map(len, asking)) + 2  # the separators of a pair
    budget = tokens - insert_cost - overhead
    if budget < 0:
        raise LengthError(f"{shape.lines} lookup lines do not fit into {tokens} tokens; ask for fewer lines or a greater length")
    for attempt in range(_ATTEMPTS):
        numbers = filler.stretch(budget, rng)
        if shape.min_gap and sum(filler.counts[number] for number in numbers) < min(budget, 1.3 * shape.min_gap):
            continue
        context, starts = _compose(filler, numbers, lines, _places(filler, numbers, shape, rng))
        excess = overhead + len(tokenizer(context, add_special_tokens=False, verbose=False)["input_ids"]) - tokens
        if excess <= 0 and (budget == 0 or -excess <= _SLACK * tokens or attempt >= _ATTEMPTS // 2):
            break
        budget = max(0, budget - excess - (8 if excess > 0 else 0))
    else:
        raise LengthError(f"found no stretch of source text that fills {tokens} tokens with {shape.lines} lookup lines")
    links = [[start + len(line.rpartition(" ")[0]) + 1, start + len(MARKER) + 1] for start, line in zip(starts, lines, strict=True)]
    records = []
    for question in asked:
        record = _record(context, question.name, question.hops, tokens)
        record["links"] = links
        record["trail"] = [starts[line] + (len(MARKER) + 1 if at_name else lines[line].rindex(" ") + 1) for line, at_name in question.trail]
        line = question.trail[-1][0]
        record["answers"] = {"text": [question.value], "answer_start": [starts[line] + lines[line].rindex(" ") + 1]}
        records.append(record)
    records.append(_record(context, absent, 0, tokens))
    return records


def build_variable_tracking(
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    lengths: Sequence[int] = LENGTHS,
    documents: int = 50,
    questions_per_document: int = 4,
    unanswerable: bool = False,
    packages: Iterable[str] | None = None,
    seed: int = 0,
) -> Dataset:
    """Build the lookup set of one split of the reference corpus: as many one-hop as two-hop questions at every length.

    Args:
        split: "train", "validation" or "test": the packages that the text comes from.
        tokenizer: measures lengths and gaps.
        lengths: input lengths in tokens.
        documents: documents per length.
        questions_per_document: an even number up to 8, half one-hop and half two-hop.
        unanswerable: also ask, once per document, for a name that does not occur.
        packages: only these packages of the split.
        seed: decides everything.
    """
    filler = Filler(_shuffled_texts(split, packages, seed), tokenizer)
    records: list[dict[str, Any]] = []
    for length in lengths:
        for number in range(documents):
            rng = random.Random(f"{seed}:{split}:{length}:{number}")
            made = make_document(filler, length, DocumentShape.for_length(length), rng, tokenizer)
            half = questions_per_document // 2
            chosen = [r for r in made if r["hops"] == 1][:half] + [r for r in made if r["hops"] == 2][:half]
            for place, record in enumerate(chosen + (made[-1:] if unanswerable else [])):
                record.pop("links", None)
                records.append({**record, "id": f"lookup:{split}:{length}:{number}:{place}", "title": f"lookup {length}"})
    return Dataset.from_list(records, features=TRACKING_FEATURES)


def _shuffled_texts(split: str, packages: Iterable[str] | None, seed: int) -> list[str]:
    texts = [module.text for module in corpus.iter_modules(split, packages)]
    random.Random(f"{seed}:{split}").shuffle(texts)
    return texts


@dataclass(frozen=True)
class _Asked:
    """A question: the trail holds (line, at its name or at its last word); the last entry's line holds the answer."""

    name: str
    value: str
    hops: int
    trail: tuple[tuple[int, bool], ...]


def _inserted_lines(names: list[str], values: list[str], shape: DocumentShape) -> tuple[list[str], list[_Asked]]:
    """Return the lines, each chain's two lines first, and the questions."""
    lines: list[str] = []
    asked: list[_Asked] = []
    for chain in range(shape.chains):
        first, second, value = names[2 * chain], names[2 * chain + 1], values[chain]
        here = len(lines)
        lines += [f"{MARKER} {first} {second}", f"{MARKER} {second} {value}"]
        asked.append(_Asked(first, value, 2, ((here, True), (here, False), (here + 1, True))))
    for name, value in zip(names[2 * shape.chains :], values[shape.chains :], strict=True):
        here = len(lines)
        lines.append(f"{MARKER} {name} {value}")
        asked.append(_Asked(name, value, 1, ((here, True), (here, False), (here, True))))
    return lines, asked


def _places(filler: Filler, numbers: list[int], shape: DocumentShape, rng: random.Random) -> list[int]:
    """Choose, for every inserted line, the filler line it stands before; chains keep their distance."""
    before = list(itertools.accumulate((filler.counts[n] for n in numbers), initial=0))
    total = before[-1]
    if shape.min_gap and total <= shape.min_gap:
        raise LengthError(f"a gap of {shape.min_gap} tokens needs a longer document than {total} tokens of text")
    places: list[int] = []
    for _ in range(shape.chains):
        for _attempt in range(10_000):
            first, second = rng.randrange(len(before)), rng.randrange(len(before))
            if not shape.min_gap or abs(before[first] - before[second]) > shape.min_gap:
                break
        else:
            raise LengthError(f"found no two lines more than {shape.min_gap} tokens apart in {total} tokens of text")
        places += [first, second]
    return places + [rng.randrange(len(before)) for _ in range(shape.pairs)]


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


def _record(context: str, name: str, hops: int, length: int) -> dict[str, Any]:
    return {
        "id": "",
        "title": "",
        "context": context,
        "question": question_of(name),
        "answers": {"text": [], "answer_start": []},
        "tokens": length,
        "hops": hops,
        "trail": [],
        "length": length,
    }
