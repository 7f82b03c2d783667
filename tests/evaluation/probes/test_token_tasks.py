"""Rows of tokens: every answer is in the text as often as it should be, and no shortcut tells it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_longattn.errors import LengthError, OptionError
from hf_longattn.evaluation.probes import IGNORED, Compositional, Copy, Forgetting, Induction, Mqar, TokenTask, probe_task
from tests.cells import every_cell

SEED = 3


def drawn(task: Any, size: int = 40) -> list[tuple[list[int], dict[int, int]]]:
    """(tokens, label by place) of each text; the same again from the same seed."""
    tokens, labels = task.batch(size, torch.Generator().manual_seed(SEED))
    again = task.batch(size, torch.Generator().manual_seed(SEED))
    assert torch.equal(tokens, again[0])
    assert torch.equal(labels, again[1])
    assert tokens.shape == labels.shape
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < task.vocab
    return [
        (row.tolist(), {place: int(wanted[place]) for place in (wanted != IGNORED).nonzero().flatten().tolist()})
        for row, wanted in zip(tokens, labels, strict=True)
    ]


def test_recall_asks_for_every_pair_once() -> None:
    for row, labels in drawn(Mqar(pairs=5, length=40, vocab=32)):
        known = dict(zip(row[:10:2], row[1:10:2], strict=True))
        assert len(known) == len(labels) == 5
        assert {row[place] for place in labels} == set(known)
        assert all(known[row[place]] == value for place, value in labels.items())


def test_neither_key_alone_tells_a_compositional_value() -> None:
    task = Compositional(side=3, length=90, vocab=60)
    for row, labels in drawn(task):
        known = {(row[at], row[at + 1]): row[at + 2] for at in range(0, 27, 3)}
        assert len(known) == len(set(known.values())) == 9
        firsts, seconds = {first for first, _ in known}, {second for _, second in known}
        assert len(firsts) == len(seconds) == 3
        assert max(firsts) < 20 <= min(seconds)
        assert max(seconds) < 40 <= min(known.values())
        asked = [(row[place - 1], row[place]) for place in labels]
        assert sorted(asked) == sorted(known)
        assert all(known[row[place - 1], row[place]] == value and place >= 27 for place, value in labels.items())


def test_the_latest_value_is_asked_for() -> None:
    for row, labels in drawn(Forgetting(pairs=6, updates=3, length=60, vocab=32)):
        first = dict(zip(row[:12:2], row[1:12:2], strict=True))
        second = dict(zip(row[12:18:2], row[13:18:2], strict=True))
        assert len(first) == 6
        assert len(second) == 3
        assert set(second) <= set(first)
        assert all(second[key] != first[key] for key in second)
        assert {row[place] for place in labels} == set(first)
        assert all((first | second)[row[place]] == value >= 16 and place >= 18 for place, value in labels.items())


@pytest.mark.parametrize("depth", [None, 0.0, 0.5, 1.0])
def test_the_pair_of_induction_occurs_once(depth: float | None) -> None:
    places = set()
    for row, labels in drawn(Induction(length=30, vocab=12, depth=depth)):
        ((asked, value),) = labels.items()
        assert asked == 29
        assert row.count(row[-1]) == 2
        assert row.count(value) == 1
        assert row[row.index(row[-1]) + 1] == value
        places.add(row.index(row[-1]))
    assert places == {0: {0}, 0.5: {14}, 1: {27}}[depth] if depth is not None else len(places) > 10


def test_a_copy_repeats_its_text() -> None:
    for row, labels in drawn(Copy(length=22, vocab=9, given=3)):
        assert len(row) == 21
        assert row[:10] == row[11:]
        assert row[10] == 8
        assert max(row[:10]) < 8
        assert list(labels) == list(range(13, 20))
        assert all(row[place + 1] == value for place, value in labels.items())


@every_cell(
    ("make", "said"),
    [
        (lambda: Mqar(pairs=9, length=32), "does not fit: .* need 36 tokens"),
        (lambda: Compositional(side=1), "side 2 or more, not 1"),
        (lambda: Compositional(side=5, length=60), "does not fit: .* need 150 tokens"),
        (lambda: Compositional(side=3, vocab=20), "vocabulary of 27"),
        (lambda: Forgetting(updates=9), "0 to 8"),
        (lambda: Forgetting(length=39), "need 40 tokens"),
        (lambda: Forgetting(pairs=20, updates=0, vocab=32), "vocabulary of 40"),
        (lambda: Mqar(pairs=0), "does not fit"),
        (lambda: Induction(length=3), "4 tokens or more"),
        (lambda: Copy(length=9, given=4), "give 11 or more"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        make()


@pytest.mark.parametrize("name", ["mqar", "compositional", "forgetting", "induction", "copy"])
def test_the_same_for_a_tokenizers_ids(name: str) -> None:
    task = probe_task(name)
    assert isinstance(task, TokenTask)
    ids = torch.arange(100, 400)
    made = task.sample(200, ids, 7, 8)
    assert made == task.sample(200, ids, 7, 8)
    assert made != task.sample(200, ids, 8, 8)
    assert set(made.ids) <= set(ids.tolist())
    assert len(made.ids) in (199, 200)
    assert set(made.targets) <= set(made.candidates) <= set(made.ids)
    assert len(set(made.candidates)) == len(made.candidates) > 1
    assert made.is_tail == (name in ("induction", "copy"))
    if name == "induction":
        assert len(made.candidates) == 8
        assert made.ids[-1] not in made.candidates
    if name == "copy":
        assert [made.ids[place + 1] for place in made.places] == list(made.targets)
    with pytest.raises(LengthError, match=r"needs .* tokens"):
        task.sample(3, ids, 7, 8)
