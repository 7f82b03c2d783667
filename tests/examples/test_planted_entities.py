"""The example of planted entities makes the texts that it describes, and scores as seqeval and scikit-learn do."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from sklearn.metrics import roc_auc_score

from examples import planted_entities as planted
from tests.stand_ins.text import small
from tests.trained import tokenizer_of

KINDS = {
    "PERSON": r"[A-Z][a-z]*\.?(?: [A-Z]\.)?(?: [A-Z][a-z]+)?",
    "EMAIL": r"[a-z\d._]+@[a-z.]+",
    "CARD": r"(?:\d{4}[ "
    r"-]?){4}",
    "KEY": r"(?:[\w-]+[-_])?\w{20,}",
}


def test_planted_spans_are_what_their_kinds_say_and_texts_have_at_most_their_length() -> None:
    tokenizer = tokenizer_of("bert", 512)
    lengths = [300, 700, 2000]
    made = planted.documents("test", lengths, tokenizer, planted.sentences("test"), (1,))
    assert len(made) == 3
    for document, length in zip(made, lengths, strict=True):
        assert 0.2 * length < len(tokenizer(document.text, verbose=False)["input_ids"]) <= length
        assert document.entities
        for start, end, kind in document.entities:
            assert re.fullmatch(KINDS[kind], document.text[start:end]), (kind, document.text[start:end])
    assert made == planted.documents("test", lengths, tokenizer, planted.sentences("test"), (1,))


def test_parts_share_no_paragraph_and_no_sentence() -> None:
    train, test = ({each for page in planted.pages(part) for each in page} for part in ("train", "test"))
    assert train
    assert test
    assert not train & test
    assert not {*planted.sentences("train")} & {*planted.sentences("test")}


def test_f1_of_spans_is_that_of_seqeval() -> None:
    choose = random.Random(0)
    document = planted.plant(
        "One. Two.", "{PERSON} wrote to {EMAIL} with {KEY}, and {PERSON} paid by {CARD}.", "test", choose
    )
    true, counts, tags = [planted.tagged(document)["ner_tags"]], [], []
    spans = sorted(document.entities)
    for predicted in (document.entities, spans[:3], [*spans[1:], (0, 3, "PERSON")], [(*spans[0][:2], "KEY")]):
        counts.append([[len({*predicted} & document.entities), len(predicted), len(spans)]])
        tags.append([planted.tagged(planted.Document(document.text, frozenset(predicted)))["ner_tags"]])
    ours = planted.f1(torch.tensor(counts, dtype=torch.float64)).tolist()
    assert ours == pytest.approx(
        [100 * f1_score(true, each, mode="strict", scheme=IOB2, zero_division=0) for each in tags]
    )
    assert planted.interval(planted.f1, counts[0] * 3, counts[0] * 3) == "+0.0 [+0.0, +0.0]"


def test_area_is_that_of_scikit_learn() -> None:
    scores = torch.rand(20, 2, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    assert planted.area(scores).item() == pytest.approx(100 * roc_auc_score([0] * 20 + [1] * 20, scores.T.flatten()))


@pytest.mark.slow
def test_command_trains_and_compares_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small("bert", "BertModel", tmp_path / "encoder", 512)
    words = ["planted_entities.py", "--quick", "--model", str(tmp_path / "encoder"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    planted.main()
    table = capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [len(row["counts"]) for row in record["tags"].values()] == [3, 3, 2, 3, 3, 3]
    assert [(len(row["clean"]), len(row["injected"])) for row in record["guard"].values()] == [(3, 3)] * 4
    monkeypatch.setattr(planted, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(planted, "found", lambda *_, **__: frozenset())
    planted.main()
    assert table.splitlines()[-14:] == capsys.readouterr().out.splitlines()[-14:]
