"""The study of rotary positions: lookups repeat their values, needles have an answer, and the stored page has the stored figures."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

import torch

from scripts.dev import RESULTS
from scripts.dev.studies.rotary_lengths import ANSWERS, KINDS, NOISE, haystack, interval, needles, page, with_lookups


def test_a_name_has_one_value_in_a_document() -> None:
    lookups = [line.split()[2:] for line in with_lookups(["x = 1"] * 100, random.Random(0)) if line.startswith("#")]
    values = dict(lookups)
    assert len(values) < len(lookups)
    assert all(values[name] == value for name, value in lookups)


def test_every_question_has_its_answer_in_a_needle() -> None:
    ids, labels = haystack(torch.Generator().manual_seed(0), 4, 60, 3)
    for row, wanted in zip(ids.tolist(), labels.tolist(), strict=True):
        found = [divmod(token - NOISE - KINDS - ANSWERS, ANSWERS) for token in row if token >= NOISE + KINDS + ANSWERS]
        answers = dict(found)
        assert sorted(answers) == list(range(KINDS))
        assert wanted[:54:] == [-100] * 54
        assert [wanted[at + 1] - NOISE - KINDS for at in (54, 56, 58)] == [answers[row[at] - NOISE] for at in (54, 56, 58)]


def test_who_looks_for_needles_finds_them() -> None:
    def finds(ids: torch.Tensor, **_: Any) -> Any:
        needles = ids - NOISE - KINDS - ANSWERS
        asked = (needles >= 0) & (needles // ANSWERS == ids[:, -1:] - NOISE)
        answer = NOISE + KINDS + needles[asked] % ANSWERS
        return SimpleNamespace(logits=torch.nn.functional.one_hot(answer[:, None], NOISE + KINDS + ANSWERS))

    assert all(needles(finds, 64, 20, 0))
    assert not all(needles(lambda ids, **_: finds(torch.cat([ids[:, :-1], ids[:, -1:] ^ 1], 1)), 64, 20, 0))


def test_an_interval_holds_the_share() -> None:
    for right in (20, 0, 5):
        low, high = interval(right, 20)
        assert low <= right / 20 <= high


def test_the_page_is_that_of_the_numbers() -> None:
    record = json.loads((RESULTS / "rotary_lengths.json").read_text(encoding="utf-8"))
    assert (RESULTS / "rotary_lengths.md").read_text(encoding="utf-8") == page(record)
