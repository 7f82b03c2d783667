"""Needle tasks of RULER, HELMET and ∞Bench: what their papers hide and ask for, checked by reading the text again."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from hf_longattn.errors import CheckpointError
from hf_longattn.evaluation.probes import ProbeSample, probe_task
from hf_longattn.evaluation.probes.needles import repeated_digits, words_of
from hf_longattn.evaluation.probes.task import NOISE
from tests.cells import every_cell

from .test_ruler import NEEDLE, sample, words

RULERS = {
    # haystack, kind of values, keys, values of a key, keys asked for: NVIDIA/RULER, scripts/synthetic.yaml
    "niah_single_1": ("noise", "numbers", 1, 1, 1),
    "niah_single_2": ("essay", "numbers", 1, 1, 1),
    "niah_single_3": ("essay", "uuids", 1, 1, 1),
    "niah_multikey_1": ("essay", "numbers", 4, 1, 1),
    "niah_multikey_2": ("needles", "numbers", 1, 1, 1),
    "niah_multikey_3": ("needles", "uuids", 1, 1, 1),
    "niah_multivalue": ("essay", "numbers", 1, 4, 1),
    "niah_multiquery": ("essay", "numbers", 4, 1, 4),
}
FORMS = {"numbers": r"\d{7}", "uuids": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"}


@every_cell("seed", [0, 1, 2])
@every_cell("name", list(RULERS))
def test_rulers_needles_are_its_configs(name: str, seed: int) -> None:
    haystack, kind, keys, values, queries = RULERS[name]
    made = sample(name, 4000, seed)
    hidden: dict[str, list[str]] = {}
    for what, key, value in NEEDLE.findall(made.context):
        assert what == kind
        assert re.fullmatch(FORMS[kind], value)
        hidden.setdefault(key, []).append(value)
    plural = values * queries > 1
    asked = re.search(r"special magic (\w+) for (.+) mentioned in the provided text\?$", made.question)
    assert asked is not None
    assert asked.group(1) == (kind if plural else kind[:-1])
    names = re.split(r", and |, ", asked.group(2))
    assert len(set(names)) == queries
    assert sorted(made.answers) == sorted(value for one in names for value in hidden[one])
    assert len(made.answers) == len(set(made.answers)) == values * queries
    assert all(made.prompt.count(answer) == 1 for answer in made.answers)
    if haystack == "needles":
        assert len(hidden) > 10
        assert {len(one) for one in hidden.values()} == {1}
    else:
        assert len(hidden) == keys
        assert {len(one) for one in hidden.values()} == {values}
        others = [value for key, of_key in hidden.items() if key not in names for value in of_key]
        assert sorted(made.distractors[: len(others)]) == sorted(others)
        assert not any(wrong in made.context for wrong in made.distractors[len(others) :])
        rest = NEEDLE.sub("", made.context).split()
        noise = words_of(None) if haystack == "essay" else NOISE.split()
        assert rest == [noise[place % len(noise)] for place in range(len(rest))], "the haystack in its order"
    some, are = ("Some", "are") if plural else ("A", "is")
    assert made.before.startswith(f"{some} special magic {asked.group(1)} {are} hidden within the following text.")
    assert made.question.startswith("\nWhat are all the special" if plural else "\nWhat is the special")
    assert made.prefix == f" The special magic {asked.group(1)} for {asked.group(2)} mentioned in the provided text {are}"
    assert (made.new_tokens, made.score) == (128, "string_match_all")
    assert (made.depth is None) == plural


def test_needles_lie_between_sentences_of_the_essay(tmp_path: Path) -> None:
    essay = tmp_path / "essay.txt"
    essay.write_text("\ufeffOne is here.  Two is there!\nIs three\nhere? Four ends.", encoding="utf-8")
    plain: Any = probe_task("niah_multiquery")
    made = dataclasses.replace(plain, essay=essay).sample(1000, random.Random(3), words)
    rest = NEEDLE.sub("|", made.context)
    assert rest.count("|") == 4
    for piece in rest.split("|"):
        assert re.fullmatch(r" ?((One is here\.|Two is there!|Is three here\?|Four ends\.)( |$))*( ?[A-Z]?[\w ]*)?", piece), piece
    assert "One is here" not in plain.sample(1000, random.Random(3), words).context
    with pytest.raises(CheckpointError, match="nowhere"):
        dataclasses.replace(plain, essay=tmp_path / "nowhere.txt")


@every_cell("depth", [0.0, 0.5, 1.0])
@every_cell(
    "name",
    ["niah_single_2", "niah_single_3", "niah_multikey_1", "json_kv", "infbench_passkey", "infbench_number_string", "infbench_kv_retrieval"],
)
def test_the_needle_that_is_asked_for_lies_at_its_depth(name: str, depth: float) -> None:
    made = sample(name, 5000, depth=depth)
    assert made.depth == pytest.approx(depth, abs=0.02)
    assert made.context.index(made.answers[0]) / len(made.context) == pytest.approx(depth, abs=0.05)


@pytest.mark.parametrize("name", ["json_kv", "infbench_kv_retrieval"])
def test_the_json_object_has_the_key_once(name: str) -> None:
    made = sample(name, 6000)
    pairs = json.loads(made.context.removeprefix("JSON data:\n"), object_pairs_hook=list)
    known = dict(pairs)
    assert len(known) == len(set(known.values())) == len(pairs) > 20
    assert all(re.fullmatch(FORMS["uuids"], one) for pair in pairs for one in pair)
    assert not set(known) & set(known.values())
    key = re.findall(r'Key: "?([0-9a-f-]+)', made.question)[-1]
    assert made.answers == (known[key],)
    assert made.prompt.count(known[key]) == 1
    assert set(made.distractors) <= set(known.values()) - {known[key]}


def test_the_prompt_of_helmet() -> None:
    made = sample("json_kv", 6000)
    known = json.loads(made.context)
    asked = re.fullmatch(
        r"\n\nExtract the value corresponding to the specified key in the JSON object below\.\n\n"
        r"Key: (\S+)\nCorresponding value: (\S+)\n\nKey: (\S+)\nCorresponding value: (\S+)\n\nKey: (\S+)",
        made.question,
    )
    assert asked is not None
    first, its, second, others, key = asked.groups()
    assert (known[first], known[second]) == (its, others)
    assert len({first, second, key}) == 3
    assert '",\n "' in made.context
    assert (made.before, made.prefix, made.new_tokens, made.score) == ("", "\nCorresponding value:", 100, "substring_exact_match")


def test_the_prompts_of_infinitebench() -> None:
    made = sample("infbench_kv_retrieval", 3000)
    assert made.before == "Extract the value corresponding to the specified key in the JSON object below.\n\nJSON data:\n"
    assert '", "' in made.context
    assert made.prefix == "\nThe value associated with the specified key is:"
    assert (made.new_tokens, made.score) == (50, "any_word")
    for name, what, tokens, form in (
        ("infbench_passkey", "pass key", 6, r"\d{5}"),
        ("infbench_number_string", "sequence of digits", 12, r"\d{10}"),
    ):
        made = sample(name, 1500)
        (answer,) = made.answers
        assert re.fullmatch(form, answer)
        assert all(re.fullmatch(form, wrong) and wrong != answer for wrong in made.distractors)
        lines = made.context.split("\n")
        assert lines.count(f"The {what} is {answer}. Remember it. {answer} is the {what}.") == 1
        assert lines.count(NOISE) == len(lines) - 1
        assert made.prompt.count(answer) == 2
        assert made.prompt.endswith(f"\n\n\nWhat is the {what}?\n\nThe {what} is")
        assert (made.new_tokens, made.score) == (tokens, "first_digits")


def test_repeated_digits_stand_beside_one_another() -> None:
    for seed in range(200):
        drawn = repeated_digits(random.Random(seed))
        assert len(drawn) == 10
        assert sum(one == after for one, after in itertools.pairwise(drawn)) >= 5


def texts(name: str, count: int = 40, length: int = 1500) -> list[ProbeSample]:
    return [sample(name, length, seed) for seed in range(count)]


def test_every_place_of_a_needle_is_drawn() -> None:
    depths = [made.depth or 0.0 for made in texts("niah_single_2")]
    assert min(depths) < 0.15
    assert max(depths) > 0.85
