"""Studies that stay: questions about looked-up facts, what the demo shows, and a real decoder."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import InputError
from scripts.dev.studies import decoder
from scripts.dev.studies.demo import LOOKUP_LINE, Answer, share_right
from scripts.dev.studies.lookup_questions import GAP, Filler, count_lines, lookup_document, lookup_questions
from scripts.dev.tools.small_models import Shape, small_config
from tests.training.conftest import SOURCES


@pytest.fixture(scope="module")
def filler(tokenizer: PreTrainedTokenizerBase) -> Filler:
    return count_lines("\n".join(SOURCES).splitlines(), tokenizer)


def follow(context: str, question: str) -> tuple[str, int]:
    """The answer by following the lines, and the number of hops."""
    lines, word, hops = dict(LOOKUP_LINE.findall(context)), question.split()[-1], 0
    while word in lines:
        word, hops = lines[word], hops + 1
    return word, hops


@pytest.mark.parametrize("tokens", [1024, 2048])
def test_lookup_answers_follow_from_the_lines(tokens: int, filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    for seed in range(3):
        records = lookup_document(filler, tokens, random.Random(seed), tokenizer)
        assert [record["hops"] for record in records] == [2] * 4 + [1] * 4
        assert len({record["answers"]["text"][0] for record in records}) == 8
        for record in records:
            (answer,), (start,) = record["answers"]["text"], record["answers"]["answer_start"]
            assert follow(record["context"], record["question"]) == (answer, record["hops"])
            assert record["context"].startswith(answer, start)
            assert 0.85 * tokens < len(tokenizer(record["question"], record["context"])["input_ids"]) <= tokens


def test_hops_of_a_lookup_are_further_apart_than_a_window(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    for record in lookup_document(filler, 1024, random.Random(0), tokenizer)[:4]:
        lines = {line[1]: line for line in LOOKUP_LINE.finditer(record["context"])}
        first = lines[record["question"].split()[-1]]
        between = sorted((first.start(), lines[first[2]].start()))
        assert len(tokenizer(record["context"][slice(*between)], add_special_tokens=False)["input_ids"]) > 0.95 * GAP


@pytest.mark.slow
def test_lookup_questions_have_each_length_and_hop(tokenizer: PreTrainedTokenizerBase) -> None:
    data = lookup_questions("validation", tokenizer, lengths=(1024, 2048), documents=2)
    assert [record["length"] for record in data] == [1024] * 8 + [2048] * 8
    assert [record["hops"] for record in data] == [1, 1, 2, 2] * 4
    assert len({record["id"] for record in data}) == len(data)
    assert data == lookup_questions("validation", tokenizer, lengths=(1024, 2048), documents=2)


def test_lookup_documents_too_short_for_their_lines_are_refused(
    filler: Filler, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(InputError, match="make documents of at least 1,024 tokens"):
        lookup_document(filler, 300, random.Random(0), tokenizer)


def test_demo_counts_right_answers_with_their_standard_error() -> None:
    answers = [Answer("ours", 2, 1024, right, 1.0) for right in (True, True, True, False)] + [
        Answer("ours", 1, 1024, False, 1.0)
    ]
    assert share_right(answers, "ours", 2) == (75.0, pytest.approx(21.65, abs=0.01), 4)


@pytest.fixture
def small_decoder(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for a small Gemma 3 in place of the real one, of which three rows are measured."""
    torch.manual_seed(0)
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 256}
    config = small_config("gemma3_text", Shape(tokens=4096, vocabulary=len(tokenizer)), bos_token_id=2, **layers)
    transformers.Gemma3ForCausalLM(config).save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "short", bos_token=tokenizer.cls_token).save_pretrained(
        tmp_path / "short"
    )
    rows = {
        decoder.STOCK: decoder.Row(),
        "narrow": decoder.window(480),
        decoder.STREAMING: decoder.Row(cache={"window": 480, "sinks": 4}),
        "trained": decoder.Row(trained="--mechanism taylor"),
    }
    monkeypatch.setattr(decoder, "ROWS", rows)
    monkeypatch.setattr(decoder, "QUICK_ROWS", (*rows,))
    return [
        "--quick",
        "--model",
        str(tmp_path / "short"),
        "--trained",
        str(tmp_path),
        "--output",
        str(tmp_path / "stored"),
    ]


@pytest.mark.thorough
def test_table_of_a_decoder_goes_on_where_it_stopped(
    small_decoder: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder.main(small_decoder)
    out, err = capsys.readouterr()
    assert "trained is left out; type first: longattn convert" in err
    record = json.loads((tmp_path / "stored.json").read_text())
    stock, narrow, streaming = record["rows"].values()
    assert narrow["losses"][0][0] == pytest.approx(stock["losses"][0][0], abs=5e-4)
    assert narrow["losses"][0][2] != pytest.approx(stock["losses"][0][2], abs=1e-3)
    assert streaming["losses"][0] == pytest.approx(narrow["losses"][0], abs=1e-5)
    assert (streaming["keys"], len(streaming["stream"]["step"])) == (narrow["keys"], decoder.TURNS)
    assert streaming["stream"]["largest_bytes"] <= 1.5 * streaming["bytes"]["512"]
    assert "| narrow | +0.000 [+0.000, +0.000] |" in out
    monkeypatch.setattr(decoder, "measure", lambda *_: pytest.fail("measured again"))
    decoder.main(small_decoder)
    assert capsys.readouterr().out == out


@pytest.mark.thorough
def test_rows_with_other_outputs_are_not_measured(small_decoder: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "TOLERANCE", -1.0)
    with pytest.raises(
        SystemExit, match=r"stock: outputs differ from stock by .* a pass by .* so the row is not measured"
    ):
        decoder.main(small_decoder)


def test_interval_is_that_of_the_mean_over_texts() -> None:
    assert decoder.interval([0.5, 0.5]) == (0.5, 0.5, 0.5)
    mean, low, high = decoder.interval([0.0, 1.0, 2.0, 3.0])
    assert (mean, 0 <= low < 1 < 2 < high <= 3) == (1.5, True)
