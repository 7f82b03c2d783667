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
from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import InputError
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
        self.counts: list[int] = []
        for start in range(0, len(self.lines), 4096):
            group = self.lines[start : start + 4096]
            encoded = tokenizer(group, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            self.counts.extend(len(ids) for ids in encoded)

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


def make_document(filler: Filler, tokens: int, rng: random.Random, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Make one document with its questions: :data:`CHAINS` of two hops first, then :data:`PAIRS` of one.

    From 1,024 tokens on, the two lines of a chain are more than 512 tokens apart. A question reads like the beginning of its line.

    Args:
        filler: the source text to insert into.
        tokens: length of the whole input in tokens (question, special tokens and document); not exceeded.
        rng: decides everything.
        tokenizer: measures.

    Raises:
        InputError: no stretch of the source text fits with the inserted lines.
    """
    gap = 512 if tokens >= 1024 else 0
    names = rng.sample(NAMES, LINES + 1)  # one more than needed, as in the stored results
    values = rng.sample(VALUES, PAIRS + CHAINS)
    lines: list[str] = []
    asked: list[tuple[str, str, int, int]] = []  # the name, its value, the hops to it, and the line that has it
    for chain, value in enumerate(values):
        hops = 2 if chain < CHAINS else 1
        name, other = names[2 * chain : 2 * chain + 2] if hops == 2 else (names[CHAINS + chain], names[CHAINS + chain])
        lines += [f"{MARKER} {name} {other}"] * (hops - 1) + [f"{MARKER} {other} {value}"]
        asked.append((name, value, hops, len(lines) - 1))
    insert_cost = len(tokenizer("\n".join(lines) + "\n", add_special_tokens=False)["input_ids"])
    asking = tokenizer([f"{MARKER} {name}" for name in names], add_special_tokens=True)["input_ids"]
    overhead = max(map(len, asking)) + 2  # the separators of a pair
    budget = tokens - insert_cost - overhead
    for attempt in range(_ATTEMPTS if budget >= 0 else 0):
        numbers = filler.stretch(budget, rng)
        if gap and sum(filler.counts[number] for number in numbers) < min(budget, 1.3 * gap):
            continue
        context, starts = _compose(filler, numbers, lines, _places(filler, numbers, gap, rng))
        excess = overhead + len(tokenizer(context, add_special_tokens=False, verbose=False)["input_ids"]) - tokens
        if excess <= 0 and (budget == 0 or -excess <= _SLACK * tokens or attempt >= _ATTEMPTS // 2):
            break
        budget = max(0, budget - excess - (8 if excess > 0 else 0))
    else:
        raise InputError(f"found no stretch of source text that fills {tokens} tokens with {LINES} lookup lines")
    return [
        {
            "context": context,
            "question": f"{MARKER} {name}",
            "answers": {"text": [value], "answer_start": [starts[line] + lines[line].rindex(" ") + 1]},
            "hops": hops,
            "length": tokens,
        }
        for name, value, hops, line in asked
    ]


def build_variable_tracking(
    split: str, tokenizer: PreTrainedTokenizerBase, *, lengths: Sequence[int], documents: int
) -> list[dict[str, Any]]:
    """The lookup set of a split: two one-hop and two two-hop questions about every document.

    SQuAD's schema with hops (1 or 2) and length (the target length of the input in tokens).

    Args:
        split: "train", "validation" or "test": the packages that the text comes from.
        tokenizer: measures lengths and gaps.
        lengths: input lengths in tokens.
        documents: documents per length.
    """
    texts = [module.text for module in corpus.iter_modules(split)]
    random.Random(f"0:{split}").shuffle(texts)
    filler = Filler(texts, tokenizer)
    records: list[dict[str, Any]] = []
    for length in lengths:
        for number in range(documents):
            made = make_document(filler, length, random.Random(f"0:{split}:{length}:{number}"), tokenizer)
            for place, record in enumerate([*made[CHAINS:][:2], *made[:2]]):
                records.append({**record, "id": f"lookup:{split}:{length}:{number}:{place}", "title": f"lookup {length}"})
    return records


def _places(filler: Filler, numbers: list[int], gap: int, rng: random.Random) -> list[int]:
    """The filler line before which each line stands; lines of a chain are more than ``gap`` tokens apart."""
    before = list(itertools.accumulate((filler.counts[n] for n in numbers), initial=0))
    places: list[int] = []
    for _ in range(CHAINS):
        first, second = rng.randrange(len(before)), rng.randrange(len(before))
        while gap and abs(before[first] - before[second]) <= gap:
            first, second = rng.randrange(len(before)), rng.randrange(len(before))
        places += [first, second]
    return places + [rng.randrange(len(before)) for _ in range(PAIRS)]


def _compose(filler: Filler, numbers: list[int], lines: list[str], places: list[int]) -> tuple[str, list[int]]:
    """Join filler and inserted lines; also return the character offset at which every inserted line starts."""
    starts, parts = [0] * len(lines), list[str]()
    for place in range(len(numbers) + 1):
        for line in (line for line, its in enumerate(places) if its == place):
            starts[line] = sum(map(len, parts))
            parts.append(lines[line] + "\n")
        if place < len(numbers):
            parts.append(filler.lines[numbers[place]])
    return "".join(parts), starts
