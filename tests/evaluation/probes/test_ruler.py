"""RULER's tasks are what its paper and code define: prompts, needles, chains, frequencies, lengths."""

from __future__ import annotations

import itertools
import random
import re
import uuid
from collections import Counter
from typing import Any

import pytest

from hf_longattn.errors import LengthError
from hf_longattn.evaluation.probes import ProbeSample, TextTask, list_probes, probe_task
from hf_longattn.evaluation.probes.task import NOISE
from hf_longattn.evaluation.probes.words import WORDS, invented_words
from tests.cells import every_cell

RULER = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt", "cwe", "fwe")
NEEDLE = re.compile(r"One of the special magic (\w+) for ([\w-]+) is: ([\w-]+)\.")


def words(text: str) -> int:
    """Tokens of a tokenizer that splits at spaces, digits and signs."""
    return len(re.findall(r"[a-zA-Z]+|\d|[^\w\s]", text))


def sample(name: str, length: int, seed: int = 0, depth: float | None = None) -> ProbeSample:
    task = probe_task(name)
    assert isinstance(task, TextTask)
    return task.sample(length, random.Random(seed), words, depth)


@pytest.mark.thorough
@every_cell("name", [name for name in list_probes() if isinstance(probe_task(name), TextTask)])
@every_cell("length", [1500, 5000])
def test_texts_fill_their_budget_and_repeat(name: str, length: int) -> None:
    made = sample(name, length)
    assert made == sample(name, length)
    assert made.prompt != sample(name, length, seed=1).prompt
    used = words(made.prompt) + made.new_tokens
    assert used <= length
    assert used > (0.2 if name == "listops" else 0.93) * length
    assert made.prompt.startswith(made.before)
    assert made.prompt.endswith(made.prefix)
    assert len(set(made.answers)) == len(made.answers)
    assert bool(made.distractors) == ("likelihood" in probe_task(name).modes)
    assert not set(made.answers) & set(made.distractors)


@every_cell("name", [name for name in list_probes() if isinstance(probe_task(name), TextTask)])
def test_every_candidate_fits_beside_its_text(name: str) -> None:
    """An encoder reads the whole text, a candidate and a full stop."""
    task = probe_task(name)
    assert isinstance(task, TextTask)
    for length in range(4000, 4003):
        made = task.sample(length, random.Random(length), len)
        assert max(len(f"{made.prompt}{text}.") for text in made.continuations(64)[0]) <= length


def test_one_needle_in_noise() -> None:
    made = sample("niah_single_1", 1500)
    lines = made.context.split("\n")
    ((kind, key, value),) = NEEDLE.findall(made.context)
    assert kind == "numbers"
    assert made.answers == (value,)
    assert re.fullmatch(r"\d{7}", value)
    assert lines.count(NOISE) == len(lines) - 1
    assert made.depth == lines.index(f"One of the special magic numbers for {key} is: {value}.") / (len(lines) - 1)
    assert made.prompt.count(value) == 1
    assert made.before == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards.\n"
    )
    assert made.question == f"\nWhat is the special magic number for {key} mentioned in the provided text?"
    assert made.prefix == f" The special magic number for {key} mentioned in the provided text is"
    assert not any(wrong in made.context for wrong in made.distractors)
    assert {len(wrong) for wrong in made.distractors} == {7}
    assert made.new_tokens == 128


@every_cell("depth", [0.0, 0.25, 1.0])
@every_cell("name", ["niah_single_1", "niah_multikey_2", "niah_multikey_3", "passkey"])
def test_a_needle_lies_at_its_depth(name: str, depth: float) -> None:
    made = sample(name, 3000, depth=depth)
    assert made.depth == pytest.approx(depth, abs=0.05)
    assert made.context.index(made.answers[0]) / len(made.context) == pytest.approx(depth, abs=0.08)


@pytest.mark.parametrize("name", ["niah_multikey_2", "niah_multikey_3"])
def test_the_haystack_is_made_of_needles(name: str) -> None:
    made = sample(name, 3000)
    result = [NEEDLE.fullmatch(line) for line in made.context.split("\n")]
    pairs = {one.group(2): one.group(3) for one in result if one is not None}
    assert len(pairs) == len(result) == len(set(pairs.values())) > 10
    asked = re.search(r"magic \w+ for (\S+) mentioned", made.question)
    assert asked is not None
    assert made.answers == (pairs[asked.group(1)],)
    assert made.prompt.count(made.answers[0]) == 1
    assert set(made.distractors) <= set(pairs.values())
    if name == "niah_multikey_3":
        assert all(uuid.UUID(one).version == 4 and str(uuid.UUID(one)) == one for pair in pairs.items() for one in pair)
        assert made.before.startswith("A special magic uuid is hidden")
    else:
        assert all(re.fullmatch(r"[a-z]+-[a-z]+", key) and re.fullmatch(r"\d{7}", value) for key, value in pairs.items())


def assigned(text: str) -> dict[str, str]:
    """Variables and their values, by executing the assignments in order."""
    values: dict[str, str] = {}
    for name, source in re.findall(r"VAR ([A-Z]+) = (\d+|VAR [A-Z]+)", text):
        assert name not in values
        values[name] = values[source.removeprefix("VAR ")] if source.startswith("VAR") else source
    return values


@pytest.mark.parametrize("length", [1500, 6000])
def test_a_chain_of_variables(length: int) -> None:
    made = sample("vt", length)
    values = assigned(made.context)
    (value,) = set(values.values())
    assert tuple(values) == made.answers
    assert len(values) == 5
    assert {len(name) for name in values} == {5}
    assert made.question == f"\nQuestion: Find all variables that are assigned the value {value} in the text above."
    assert made.prefix.endswith(f"5 variables are assigned the value {value}, they are: ")
    assert 10_000 <= int(value) < 99_999
    assert set(made.context.split("\n")) == {NOISE} | {line for line in made.context.split("\n") if line.startswith("VAR")}
    shown = assigned(made.before)
    assert {len(name) for name in shown} == {3}
    assert " ".join(shown) in made.before
    assert words(made.before) <= min(500, length // 2) + 30


def test_common_words_and_their_counts() -> None:
    for length, often, seldom, shown in ((1500, 6, 1, (3, 1)), (9000, 30, 3, (10, 3))):
        made = sample("cwe", length)
        listed = re.findall(r"(\d+)\. ([a-z]+)", made.context)
        assert [int(number) for number, _ in listed] == list(range(1, len(listed) + 1))
        counts = Counter(word for _, word in listed)
        assert {word for word, count in counts.items() if count == often} == set(made.answers)
        assert set(counts.values()) == {often, seldom}
        example = Counter(word for _, word in re.findall(r"(\d+)\. ([a-z]+)", made.before.split("\nQuestion")[0]))
        assert set(example.values()) == set(shown)
        seldom_listed = len(set(counts) - set(made.answers))
        assert set(made.distractors[:seldom_listed]) <= set(counts)
        assert set(made.distractors[seldom_listed:]) <= set(example) - set(counts)
    assert made.continuations(12)[0][0] == f" 1. {made.answers[0]}"


@pytest.mark.thorough
@every_cell("length", [800, 1500, 5000])
@every_cell("name", [name for name in RULER if name != "niah_multikey_3"])
def test_guessing_is_right_half_of_the_time_at_most(name: str, length: int) -> None:
    made = sample(name, length)
    for most in (2, 8, 40):
        texts, right = made.continuations(most)
        assert right == len(made.answers)
        assert len(set(texts)) == len(texts) >= 2 * right
        assert len(texts) <= max(most, 2 * right)


def test_the_most_frequent_coded_words() -> None:
    made = sample("fwe", 1500)
    counts = Counter(made.context.split(" "))
    ordered = [word for word, _ in counts.most_common()]
    assert ordered[0] == "..."
    assert tuple(ordered[1:4]) == made.answers
    assert counts[ordered[3]] > counts[ordered[4]]
    assert counts[ordered[1]] == pytest.approx(counts["..."] / 4, abs=1), "the zeta distribution of alpha 2"
    assert all(re.fullmatch("[a-z]{6}", word) for word in ordered[1:])


@pytest.mark.parametrize("name", RULER)
def test_a_length_that_nothing_fits_into(name: str) -> None:
    with pytest.raises(LengthError, match=rf"{name}.*does not fit into 60 tokens.*greater --lengths"):
        sample(name, 60)


def test_no_word_is_part_of_another() -> None:
    assert len(WORDS) == len(set(WORDS))
    assert not [(word, longer) for word in WORDS for longer in WORDS if word != longer and word in longer]
    further = list(itertools.islice(invented_words(), 500))
    assert len(set(further)) == 500
    assert not [(word, longer) for word in WORDS for longer in further if word in longer]


def test_the_passkey_is_the_papers_text() -> None:
    passkey: Any = sample("passkey", 800, depth=0.5)
    assert passkey.prompt.startswith(
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        "I will quiz you about the important information there.\nThe grass is green."
    )
    key = passkey.answers[0]
    assert f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n" in passkey.prompt
    assert passkey.prompt.endswith("\nWhat is the pass key? The pass key is")
    assert passkey.prompt.count(key) == 2
    assert 1 <= int(key) <= 50_000
    assert {len(wrong) for wrong in passkey.distractors} == {len(key)}
