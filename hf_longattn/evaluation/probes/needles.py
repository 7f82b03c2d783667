"""Needles in a haystack: one generator for RULER's family, HELMET's JSON key-value recall and ∞Bench's retrieval.

RULER (Hsieh et al. 2024, arXiv 2404.06654): haystacks, prompts and numbers of keys, values and queries are those of NVIDIA/RULER (niah.py,
synthetic.yaml). The words are ours (:mod:`.words`), and so are the essays, by default.
HELMET (Yen et al. 2024, arXiv 2410.02694): prompt and examples are those of princeton-nlp/HELMET (data.py, recall.yaml), the JSON
object is that of Liu et al. (2023, arXiv 2307.03172). ∞Bench (Zhang et al. 2024, arXiv 2402.13718): texts are those of
OpenBMB/InfiniteBench (construct_synthetic_dataset.py), prompts those for models that are not tuned to chat (prompt.py).
"""

from __future__ import annotations

import random
import re
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from ...data.english import verification_text
from .task import DISTRACTORS, NOISE, CountTokens, ProbeSample, TextTask, register_probe
from .words import ADJECTIVES, NOUNS

RULER, HELMET, INFBENCH = "Hsieh et al. 2024, RULER", "Yen et al. 2024, HELMET", "Zhang et al. 2024, ∞Bench"
EXAMPLES = 2
"""Worked examples of HELMET's prompt: other keys of the same object, with their values."""


class Frame(NamedTuple):
    """The words around needles.

    before, question, prefix: formats with {key}, the keys that are asked for, and {some}, {are}, {are_all}, {kind}, whose number is that
        of the answers. {examples} in ``question`` are :data:`EXAMPLES` examples.
    needle, example: formats with {key}, {value} and {kinds}, such as "numbers".
    joint: stands between needles and pieces of the haystack. around: a format with {pieces}, the context.
    """

    before: str
    needle: str
    question: str
    prefix: str
    joint: str = "\n"
    around: str = "{pieces}"
    example: str = ""


QUIZ = Frame(
    "{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. I will quiz you about the {kind} "
    "afterwards.\n",
    "One of the special magic {kinds} for {key} is: {value}.",
    "\nWhat {are_all} the special magic {kind} for {key} mentioned in the provided text?",
    " The special magic {kind} for {key} mentioned in the provided text {are}",
)
EXTRACT = "Extract the value corresponding to the specified key in the JSON object below.\n\n"
HELMET_JSON = Frame(
    "", '"{key}": "{value}"', f"\n\n{EXTRACT}{{examples}}Key: {{key}}", "\nCorresponding value:", ",\n ", "{{{pieces}}}",
    "Key: {key}\nCorresponding value: {value}\n\n",
)  # fmt: skip
INFBENCH_JSON = Frame(
    f"{EXTRACT}JSON data:\n", '"{key}": "{value}"', '\n\n\nKey: "{key}"', "\nThe value associated with the specified key is:", ", ",
    "{{{pieces}}}",
)  # fmt: skip


def infbench_frame(name: str, order: str) -> Frame:
    """∞Bench's words for digits that it calls ``name``."""
    return Frame(
        f"There is an important info hidden inside a lot of irrelevant text. {order}\n\n",
        f"The {name} is {{value}}. Remember it. {{value}} is the {name}.",
        f"\n\n\nWhat is the {name}?",
        f"\n\nThe {name} is",
    )


PASSKEY = infbench_frame("pass key", "Find it and memorize it. I will quiz you about the important information.")
NUMBER = infbench_frame("sequence of digits", "Find it. I will quiz you about the important information there.")


def repeated_digits(rng: random.Random) -> str:
    """Ten digits: five random ones, and five times one of them once more beside itself."""
    digits = rng.choices(string.digits, k=5)
    for _ in range(5):
        place = rng.randrange(len(digits))
        digits.insert(place, digits[place])
    return "".join(digits)


KINDS: dict[str, Callable[[random.Random], str]] = {
    "words": lambda rng: f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}",
    "numbers": lambda rng: str(rng.randint(10**6, 10**7 - 1)),
    "uuids": lambda rng: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
    "digits": lambda rng: "".join(rng.choices(string.digits, k=5)),
    "repeated digits": repeated_digits,
}
"""Kind of keys or values -> what draws one."""


def new(kind: str, rng: random.Random, used: set[str]) -> str:
    """A key or value that was not ``used`` yet."""
    while True:
        drawn = KINDS[kind](rng)
        if drawn in used and kind == "words" and len(used) > 20_000:
            drawn = f"{drawn}-{rng.choice(NOUNS)}"  # more needles than pairs of words
        if drawn not in used:
            used.add(drawn)
            return drawn


@cache
def words_of(essay: Path | None) -> list[str]:
    """The words of a file, or of the English text that comes with this package and with Python."""
    return verification_text(essay)[0].split()


def sentences(essay: Path | None, size: int) -> list[str]:
    """The first ``size`` words of an essay, which is repeated as often as needed, as sentences."""
    words = words_of(essay)
    return re.split(r"(?<=[.!?]) ", " ".join((words * (size // len(words) + 1))[:size]))


@dataclass
class Niah(TextTask):
    """Needles in a haystack. The values of the keys that are asked for are the answers.

    values, keys: kinds of :data:`KINDS`.
    haystack: "noise", "essay" or "needles".
    num_keys, num_values, num_queries: keys in the haystack, values of each, and keys that are asked for.
    essay: a UTF-8 text file for the haystack "essay"; default: see :func:`words_of`.
    """

    name: str
    summary: str
    values: str = "numbers"
    keys: str = "words"
    haystack: str = "noise"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    frame: Frame = QUIZ
    paper: str = RULER
    new_tokens: int = 128
    score: str = "string_match_all"
    essay: Path | None = None

    def __post_init__(self) -> None:
        self.placed = self.num_values * self.num_queries == 1
        if self.essay is not None:
            words_of(self.essay)  # a file that cannot be read is refused here

    def build(self, size: int, rng: random.Random, length: int, count: CountTokens, depth: float | None) -> ProbeSample:
        frame, used, pairs = self.frame, set[str](), list[tuple[str, str]]()
        needle = partial(frame.needle.format, kinds=self.values)
        hidden = [(new(self.keys, rng, used), [new(self.values, rng, used) for _ in range(self.num_values)]) for _ in range(self.num_keys)]
        asked, others = hidden[: self.num_queries], hidden[self.num_queries :]
        wrong = [value for _, values in others for value in values]
        if self.haystack == "needles":
            pairs = [(new(self.keys, rng, used), new(self.values, rng, used)) for _ in range(size)]
            pieces = [needle(key=key, value=value) for key, value in pairs]
            wrong += [value for _, value in pairs]
            rng.shuffle(wrong)
        else:
            pieces = [NOISE] * size if self.haystack == "noise" else sentences(self.essay, size)
            wrong += [new(self.values, rng, used) for _ in range(DISTRACTORS)]
        needles = [needle(key=key, value=value) for key, values in hidden for value in values]
        end = len(pieces)
        places = rng.sample(range(max(end, len(needles))), len(needles))
        places[0] = min(places[0], end) if depth is None else round(depth * end)
        for place, text in sorted(zip(places, needles, strict=True), reverse=True):
            pieces.insert(place, text)
        *most, last = [key for key, _ in asked]
        words = {"key": f"{', '.join(most)}, and {last}" if most else last, "some": "Some", "are": "are", "are_all": "are all"}
        words |= {"kind": self.values} if not self.placed else {"some": "A", "are": "is", "are_all": "is", "kind": self.values[:-1]}
        shown = rng.sample(pairs, min(EXAMPLES, len(pairs))) if frame.example else []
        words["examples"] = "".join(frame.example.format(key=key, value=value) for key, value in shown)
        return ProbeSample(
            frame.before.format(**words),
            frame.around.format(pieces=(" " if self.haystack == "essay" else frame.joint).join(pieces)),
            frame.question.format(**words),
            frame.prefix.format(**words),
            tuple(value for _, values in asked for value in values),
            tuple(wrong[:DISTRACTORS]),
            self.new_tokens,
            depth=places[0] / end if self.placed else None,
            score=self.score,
        )


for _task in (
    Niah("niah_single_1", "one number in noise"),
    Niah("niah_single_2", "one number in an essay", haystack="essay"),
    Niah("niah_single_3", "one UUID in an essay", "uuids", haystack="essay"),
    Niah("niah_multikey_1", "one number in an essay, beside three with other keys", haystack="essay", num_keys=4),
    Niah("niah_multikey_2", "one number among others, each with its key", haystack="needles"),
    Niah("niah_multikey_3", "one UUID among others, each with its key, a UUID as well", "uuids", "uuids", "needles"),
    Niah("niah_multivalue", "the four numbers of a key in an essay", haystack="essay", num_values=4),
    Niah("niah_multiquery", "the numbers of four keys in an essay", haystack="essay", num_keys=4, num_queries=4),
    Niah(
        "json_kv", "the value of a key in a JSON object of UUIDs", "uuids", "uuids", "needles", frame=HELMET_JSON, paper=HELMET,
        new_tokens=100, score="substring_exact_match",
    ),
    Niah("infbench_passkey", "five digits in noise", "digits", frame=PASSKEY, paper=INFBENCH, new_tokens=6, score="first_digits"),
    Niah(
        "infbench_number_string", "ten digits in noise, many of them repeated", "repeated digits", frame=NUMBER, paper=INFBENCH,
        new_tokens=12, score="first_digits",
    ),
    Niah(
        "infbench_kv_retrieval", "the value of a key in a JSON object of UUIDs", "uuids", "uuids", "needles", frame=INFBENCH_JSON,
        paper=INFBENCH, new_tokens=50, score="any_word",
    ),
):  # fmt: skip
    register_probe(_task)


@register_probe
class Passkey(TextTask):
    """A number in repeated sentences, which may end within a word (arXiv 2305.16300, section 4.2 and appendix)."""

    name = "passkey"
    paper = "Mohtashami & Jaggi 2023, Landmark Attention"
    summary = "a number in repeated sentences"
    placed = True
    smallest = 0
    new_tokens = 10

    def build(self, size: int, rng: random.Random, length: int, count: CountTokens, depth: float | None) -> ProbeSample:
        garbage = " ".join([NOISE] * (size // len(NOISE) + 1))
        before = rng.randint(0, size) if depth is None else round(depth * size)
        key = str(rng.randint(1, 50_000))
        least, most = (10 ** (len(key) - 1), min(10 ** len(key) - 1, 50_000))  # as many digits, so about as many tokens
        wrong = dict.fromkeys(str(rng.randint(least, most)) for _ in range(DISTRACTORS))  # in the order in which they are drawn
        wrong.pop(key, None)
        return ProbeSample(
            "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
            "I will quiz you about the important information there.\n",
            f"{garbage[:before]}\nThe pass key is {key}. Remember it. {key} is the pass key.\n{garbage[: size - before]}",
            "\nWhat is the pass key?",
            " The pass key is",
            (key,),
            tuple(wrong),
            self.new_tokens,
            depth=before / size if size else 0.0,
            score="first_number",
        )
