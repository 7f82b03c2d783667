"""Studies that stay: questions about looked-up facts, and real checkpoints."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import PreTrainedTokenizerBase

from hf_longattn.errors import InputError
from scripts.dev.studies.demo import LOOKUP_LINE, Answer, share_right
from scripts.dev.studies.lookup_questions import GAP, Filler, count_lines, lookup_document, lookup_questions
from scripts.dev.studies.real_checkpoint import ROUNDS, Comparison, compare_short_texts, summary, time_long_text, tokens_of
from tests.stock_cases import save_long
from tests.trained import tokenizer_of
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


def test_lookup_documents_too_short_for_their_lines_are_refused(filler: Filler, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(InputError, match="make documents of at least 1,024 tokens"):
        lookup_document(filler, 300, random.Random(0), tokenizer)


def test_demo_counts_right_answers_with_their_standard_error() -> None:
    answers = [Answer("ours", 2, 1024, right, 1.0) for right in (True, True, True, False)] + [Answer("ours", 1, 1024, False, 1.0)]
    assert share_right(answers, "ours", 2) == (75.0, pytest.approx(21.65, abs=0.01), 4)


@pytest.mark.slow
def test_comparison_of_short_texts_tells_equal_vectors_from_others(real_folder: Path, real_long: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    original, converted = (sentence_transformers.SentenceTransformer(str(folder), device="cpu") for folder in (real_folder, real_long))
    same, *_ = compare_short_texts(original, converted, [16])
    assert same.equal
    assert (same.tokens, same.cosine) == (16, pytest.approx(1))
    converted[0].auto_model.embeddings.word_embeddings.weight.data.mul_(2)
    assert not compare_short_texts(original, converted, [16])[0].equal


@pytest.mark.parametrize(
    ("equal", "sentence"),
    [
        ({16: True, 512: True}, "All are equal: an index of texts of up to 512 tokens stays valid."),
        (
            {16: True, 512: False},
            "Equal up to 16 tokens. From 512 tokens on, vectors differ slightly: embed such texts again if an index has them.",
        ),
        ({16: False, 512: False}, "From 16 tokens on, vectors differ slightly: embed such texts again if an index has them."),
    ],
)
def test_summary_says_up_to_which_length_vectors_are_equal(equal: dict[int, bool], sentence: str) -> None:
    assert summary([Comparison(tokens, 1.0, 0.0 if same else 0.1) for tokens, same in equal.items()]) == sentence


def test_timed_full_attention_is_that_of_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_long(tmp_path, "bert", {"mechanism": "window", "window": 8}, "BertModel", vocab_size=1000)
    tokenizer_of("bert").save_pretrained(tmp_path)

    ran: list[str] = []

    def recorded(self: Any, *args: Any, **inputs: Any) -> Any:
        ran.append(self.config._attn_implementation)
        return forward(self, *args, **inputs)

    forward = transformers.BertModel.forward
    monkeypatch.setattr(transformers.BertModel, "forward", recorded)
    assert all(seconds > 0 for seconds in time_long_text(tmp_path, 32))
    assert ran.count("sdpa") == ROUNDS
    assert tokens_of(transformers.AutoTokenizer.from_pretrained(tmp_path), 32)["input_ids"].shape == (1, 32)
