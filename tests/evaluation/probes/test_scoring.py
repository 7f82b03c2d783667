"""Scores on cases made by hand, and likelihoods against a forward pass over everything."""

from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from hf_longattn.data.qa_features import encode_qa
from hf_longattn.errors import LongAttentionError
from hf_longattn.evaluation.probes import (
    ProbeSample,
    TextTask,
    candidate_log_likelihoods,
    list_probes,
    masked_log_likelihoods,
    match_all,
    match_number,
    probe_task,
    scoring,
)
from hf_longattn.evaluation.probes.scoring import by_generation, by_likelihood, by_span, head_of, match, prompt_ids, score_tokens
from hf_longattn.evaluation.qa_reader import Answer
from tests.cells import every_cell

from .small import small_decoder, small_encoder

NAMES = ProbeSample("", "ab. cd. ef. gh", " Which?", " They are", ("ab", "cd"), ("ef", "gh"), 5)


def test_strings_match_as_in_ruler() -> None:
    assert match_all(" 1. Apple 2. pear", ["apple", "PEAR", "plum", "fig"]) == 0.5
    assert match_all("", ["apple"]) == 0
    assert match_all("the number is 1234567.", ["1234567"]) == 1
    assert match_all("123456", ["1234567"]) == 0


def test_the_first_number_counts() -> None:
    assert match_number(" 4312. Remember 7", "4312") == 1
    assert match_number(" 7 or 4312", "4312") == 0
    assert match_number("43121", "4312") == 0
    assert match_number("none", "4312") == 0


@every_cell(
    ("score", "answers", "prediction", "expected"),
    [
        ("string_match_all", ("1111111", "2222222", "3333333", "4444444"), " 1111111, 9999999 and 3333333.", 0.5),
        ("string_match_all", ("1111111",), "21111111", 1.0),  # RULER compares strings, not numbers
        ("first_number", ("431",), " 0431 7", 1.0),
        ("substring_exact_match", ("3B7F-0c",), " it is 3b7f-0C. Key:", 1.0),
        ("substring_exact_match", ("3b7f-0c",), "3b7f0c", 1.0),  # HELMET drops punctuation
        ("substring_exact_match", ("3b7f-0c",), "3b7f", 0.0),
        ("first_digits", ("01234",), " is 01234. 7", 1.0),
        ("first_digits", ("01234",), " 1234", 0.0),
        ("first_digits", ("01234",), " 7 01234", 0.0),
        ("first_digits", ("01234",), " 012345", 0.0),
        ("first_value", ("49",), " 49.0 or 50", 1.0),
        ("first_value", ("49",), " 49.5", 0.0),
        ("first_value", ("49",), "the 2nd: 49", 0.0),
        ("any_word", ("3b7f-0c",), 'value: "3b7f-0c".', 1.0),
        ("any_word", ("3b7f-0c",), "3B7F-0C", 0.0),
        ("any_word", ("3b7f-0c",), "x3b7f-0c", 0.0),
        ("last_word", ("-4",), "func_3(2) is 7 - 11, so '-4'.", 1.0),
        ("last_word", ("-4",), " -4 is it", 0.0),
        ("last_word", ("17",), " 17.5", 0.0),
        ("leading_values", ("[1, 4, 8]",), " [1, 4, 8]", 1.0),
        ("leading_values", ("[1, 4, 8]",), " 1, 4, 9", 0.5),
        ("leading_values", ("[8, 5, 7, 3]",), " [8, 6, 7, 3]", 0.0),
        ("leading_values", ("[8, 5, 7, 3]",), " [8]", 0.0),
    ],
)
def test_scores_are_the_papers(score: str, answers: tuple[str, ...], prediction: str, expected: float) -> None:
    assert match(dataclasses.replace(NAMES, answers=answers, score=score), prediction) == expected


@every_cell("name", [name for name in list_probes() if isinstance(probe_task(name), TextTask)])
def test_a_perfect_answer_scores_1_and_an_empty_or_wrong_one_0(name: str) -> None:
    task: Any = probe_task(name)
    sample = task.sample(3000, random.Random(1), len)
    assert match(sample, f" {', '.join(sample.answers)}") == 1
    assert match(sample, "") == 0
    for wrong in sample.distractors[:5]:
        assert match(sample, f" {wrong}") == 0
    if len(sample.answers) > 1:
        assert match(sample, f" {sample.answers[1]}, {sample.distractors[0]}") == 1 / len(sample.answers)


@pytest.mark.parametrize(
    "attention",
    [
        {},
        {"mechanism": "window", "window": 8},
        {"mechanism": "linear"},
        {"mechanism": "strided", "stride": 5},
        {"mechanism": "block_top_k"},
    ],
    ids=lambda one: one.get("mechanism", "plain"),
)
def test_likelihoods_with_a_cache_equal_a_pass_over_everything(attention: dict[str, Any], tokenizer: Any) -> None:
    model, prompt, candidates = small_decoder(**attention), "one two three " * 6 + "four", [" a", " four", " five six"]
    result = candidate_log_likelihoods(model, tokenizer, prompt, candidates)
    for candidate, likelihood in zip(candidates, result, strict=True):
        ids = [1, *tokenizer(prompt + candidate, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(ids) - len(candidate)
        assert likelihood == pytest.approx(sum(float(logits[at - 1, ids[at]]) for at in range(start, len(ids))), abs=2e-4)


def test_candidates_that_begin_each_other(tokenizer: Any) -> None:
    result = candidate_log_likelihoods(small_decoder(), tokenizer, "x", [" 12", " 123"])
    assert result[0] > result[1]


def test_masked_likelihoods_mask_the_candidate_only(tokenizer: Any) -> None:
    model = small_encoder("MaskedLM")
    result = masked_log_likelihoods(model, tokenizer, "is it", [" cat", " dog", " bird"])
    for candidate, likelihood in zip((" cat", " dog", " bird"), result, strict=True):
        ids = tokenizer(f"is it{candidate}.")["input_ids"]
        masked = [*ids[:6], *[3] * len(candidate), *ids[6 + len(candidate) :]]
        with torch.no_grad():
            logits = model(torch.tensor([masked])).logits[0].log_softmax(-1)
        assert likelihood == pytest.approx(sum(float(logits[6 + at, ids[6 + at]]) for at in range(len(candidate))), abs=1e-5)
    tokenizer_without = SimpleNamespace(is_fast=True, mask_token_id=None)
    with pytest.raises(LongAttentionError, match="mask token"):
        masked_log_likelihoods(model, tokenizer_without, "is it", [" cat"])  # type: ignore[arg-type]


def test_the_most_likely_candidates_are_the_answer(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    likely = {" ab": -1.0, " cd": -6.0, " ef": -3.0, " gh": -9.0}
    monkeypatch.setattr(scoring, "candidate_log_likelihoods", lambda model, tokenizer, prompt, texts: [likely[one] for one in texts])
    result = by_likelihood(None, tokenizer, NAMES, 4, masked=False)  # type: ignore[arg-type]
    assert (result.score, result.chance, result.text) == (0.5, 0.5, "ab, ef")
    assert result.tokens == len(NAMES.prompt) + 2
    few = by_likelihood(None, tokenizer, NAMES, 3, masked=False)  # type: ignore[arg-type]
    assert few.chance == 0.5, "two answers have two wrong ones beside them, even of three choices"


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_model_that_tells_no_candidates_apart_has_nothing_right(value: float, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right candidates came first in the list, and so among equal ones."""
    monkeypatch.setattr(scoring, "candidate_log_likelihoods", lambda model, tokenizer, prompt, texts: [value] * len(texts))
    assert by_likelihood(SimpleNamespace(), tokenizer, NAMES, 4, masked=False).score == 0  # type: ignore[arg-type]

    class Equal(LooksBack):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=torch.full((1, input_ids.shape[1], 500), value))

    task: Any = probe_task("induction")
    assert score_tokens(Equal(), tokenizer, task.sample(120, torch.arange(4, 260), 1, 8), "likelihood", masked=False).score == 0  # type: ignore[arg-type]


def test_generated_text_is_matched(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[int], int]] = []

    def generated(model: Any, tokenizer: Any, ids: list[int], new_tokens: int) -> list[int]:
        asked.append((ids, new_tokens))
        return tokenizer(" AB or so", add_special_tokens=False)["input_ids"]

    monkeypatch.setattr(scoring, "generated_ids", generated)
    result = by_generation(SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False)), tokenizer, NAMES)  # type: ignore[arg-type]
    assert (result.score, result.text) == (0.5, " AB or so")
    assert asked == [(prompt_ids(tokenizer, NAMES.prompt), 5)]
    assert asked[0][0][0] == tokenizer.cls_token_id
    assert asked[0][0][-1] != tokenizer.sep_token_id


def test_generation_continues_greedily(tokenizer: Any) -> None:
    model = small_decoder(mechanism="window", window=8)
    model.generation_config.eos_token_id = None
    ids = prompt_ids(tokenizer, "one two three")
    made = scoring.generated_ids(model, tokenizer, ids, 6)
    for _ in range(6):
        with torch.no_grad():
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    assert made == ids[-6:]


def test_spans_that_do_not_overlap(tokenizer: Any) -> None:
    model = small_encoder("QuestionAnswering")
    result = by_span(model, tokenizer, NAMES, 64)
    spans = result.text.split("\n")
    assert len(spans) == 2
    assert all(span in NAMES.context for span in spans)
    assert result.score in (0, 0.5, 1)


def test_a_long_question_and_a_long_answer_are_read_whole(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of 36 characters at the end of a question, and a value as long, have more tokens than a reader's usual limits."""
    read: list[Any] = []
    monkeypatch.setattr(scoring.QAReader, "read", lambda self, examples: read.append((self, examples)) or [Answer("", [])])
    task: Any = probe_task("json_kv")
    sample = task.sample(4000, random.Random(0), len)
    by_span(small_encoder("QuestionAnswering"), tokenizer, sample, 1024)
    ((reader, (example,)),) = read
    feature = encode_qa(example, tokenizer, reader.encoding)[0]
    assert sample.question.strip() in tokenizer.decode(feature.inputs["input_ids"])
    assert reader.max_answer_tokens >= len(sample.answers[0])


class LooksBack(nn.Module):
    """An ideal induction head: after a token comes what followed it the last time (or the first)."""

    def __init__(self, first: bool = False) -> None:
        super().__init__()
        self.first, self.device = first, torch.device("cpu")
        self.config = SimpleNamespace(is_encoder_decoder=False)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        row = input_ids[0].tolist()
        logits = torch.zeros(1, len(row), 500)
        followed: dict[int, int] = {}
        for place, one in enumerate(row):
            logits[0, place, followed.get(one, 0)] = 1.0
            if place + 1 < len(row) and not (self.first and one in followed):
                followed[one] = row[place + 1]
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("name", ["mqar", "forgetting", "induction", "copy"])
def test_an_ideal_induction_head_scores_all(name: str, tokenizer: Any) -> None:
    task: Any = probe_task(name)
    sample = task.sample(120, torch.arange(4, 260), 1, 8)
    context = {"mqar": 16, "forgetting": 24}.get(name)
    if context is not None:  # without the random tokens between, which may repeat a key
        ids = (*sample.ids[:context], *(sample.ids[place] for place in sample.places))
        sample = dataclasses.replace(sample, ids=ids, places=tuple(range(context, len(ids))))
    result = score_tokens(LooksBack(), tokenizer, sample, "likelihood", masked=False)  # type: ignore[arg-type]
    assert result.score == 1 if name != "copy" else result.score > 0.6, "random tokens of a copy may repeat"
    assert result.chance == 1 / len(sample.candidates)
    if name == "forgetting":
        old = score_tokens(LooksBack(first=True), tokenizer, sample, "likelihood", masked=False)  # type: ignore[arg-type]
        assert old.score == 0.5, "four of eight keys have another value"


def test_heads_are_told_by_their_class() -> None:
    assert head_of(small_encoder("MaskedLM")) == "masked"
    assert head_of(small_encoder("QuestionAnswering")) == "span"
    assert head_of(small_decoder(mechanism="window")) == "decoder"
    with pytest.raises(LongAttentionError, match="BertForSequenceClassification has no head that a probe can ask"):
        head_of(small_encoder("SequenceClassification"))
    vit = ViTForImageClassification(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(LongAttentionError, match="reads images, and probes ask what lies where in a text"):
        head_of(vit)
