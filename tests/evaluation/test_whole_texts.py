"""Pipelines that read long texts whole equal windows written by hand, and short texts are read as by the pipeline."""

from __future__ import annotations

import logging
import re
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    pipeline,
)

from hf_longattn import read_whole
from hf_longattn.errors import InputError, OptionError
from hf_longattn.evaluation.qa_reader import QAReader
from scripts.dev.tools.small_models import Shape, small_values
from tests.cases import every_case

LIMIT, STRIDE = 64, 16
SHORT = "The court of Geneva ruled that the contract was void."
WORDS = "in the year of the treaty many people from Geneva wrote letters to the court of Vienna about wheat and salt "
LONG = SHORT + " " + WORDS * 12


@pytest.fixture(scope="module")
def tokenizer(real_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(real_folder, model_max_length=LIMIT)


def small(model_class: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    shape = Shape(heads=2, inner=64, tokens=LIMIT, vocabulary=30522)
    return model_class(BertConfig(**small_values("bert", shape), initializer_range=0.3, **changes)).eval()


def windows_by_hand(
    tokenizer: Any, text: str, beside: str | None = None, *, second: bool = False
) -> list[dict[str, Any]]:
    """The windows as token ids, cut by slices: every window has the last tokens of the one before it."""
    ids = tokenizer(text, add_special_tokens=False, truncation=False)["input_ids"]
    other = [] if beside is None else [*tokenizer(beside, add_special_tokens=False)["input_ids"], 102]
    room, start, windows = LIMIT - 2 - len(other), 0, []
    while True:
        part = ids[start : start + room]
        first, last = (other[:-1], part) if second else (part, other[:-1])
        row = [101, *first, 102, *([*last, 102] if other else [])]
        types = [0] * (len(first) + 2) + [1] * (len(row) - len(first) - 2)
        windows.append(
            {
                "input_ids": torch.tensor([row]),
                "token_type_ids": torch.tensor([types]),
                "start": start,
                "size": len(part),
            }
        )
        if start + room >= len(ids):
            return windows
        start += room - STRIDE


def run(model: Any, window: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=window["input_ids"], token_type_ids=window["token_type_ids"])[0]


def short_task(task: str, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    classes = {
        "text-classification": BertForSequenceClassification,
        "zero-shot-classification": BertForSequenceClassification,
        "token-classification": BertForTokenClassification,
        "feature-extraction": BertModel,
        "fill-mask": BertForMaskedLM,
    }
    labels = {"num_labels": 3, "id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
    model = small(classes[task], **({"label2id": {"entailment": 2}, **labels} if "class" in task else {}))
    arguments = {"candidate_labels": ["law", "sport in the open air"]} if task.startswith("zero") else {}
    return pipeline(task, model, tokenizer=tokenizer, device="cpu"), arguments


@every_case(
    "task",
    ["text-classification", "zero-shot-classification", "token-classification", "feature-extraction", "fill-mask"],
)
def test_texts_of_one_pass_have_the_results_of_the_pipeline(task: str, tokenizer: Any) -> None:
    reader, arguments = short_task(task, tokenizer)
    text = SHORT.replace("contract", "[MASK]") if task == "fill-mask" else SHORT
    expected, result = reader(text, **arguments), read_whole(reader)(text, **arguments)
    assert type(expected).__name__ in str(type(result).__mro__)
    assert str_rounded(result) == str_rounded(expected)
    assert result.windows == [(0, len(text))]
    for texts in ([text], [text, text]):
        assert str_rounded(read_whole(reader)(texts, **arguments)) == str_rounded(reader(texts, **arguments))
    assert len(read_whole(reader)(iter([text, text]), **arguments)) == 2
    assert read_whole(reader)([], **arguments) == []


@every_case("constructed", [{}, {"top_k": None}, {"top_k": 2}])
def test_classes_nest_as_those_of_the_pipeline(constructed: dict[str, Any], tokenizer: Any) -> None:
    model = short_task("text-classification", tokenizer)[0].model
    reader = pipeline("text-classification", model, tokenizer=tokenizer, device="cpu", **constructed)
    pair = {"text": SHORT, "text_pair": "Who ruled?"}
    for settings in ({}, {"top_k": None}, {"top_k": 1}):
        for texts in (SHORT, "", [SHORT], [SHORT, "b"], pair, [pair], [pair, {"text": "b", "text_pair": ""}]):
            result = read_whole(reader)(texts, **settings)
            assert str_rounded(result) == str_rounded(reader(texts, **settings))
            assert hasattr(result[0] if isinstance(texts, list) else result, "windows")


@every_case("task", ["text-classification", "token-classification", "feature-extraction", "fill-mask", "QAReader"])
def test_results_do_not_depend_on_the_side_where_a_tokenizer_cuts(task: str, tokenizer: Any) -> None:
    from_left = copy(tokenizer)
    from_left.truncation_side = "left"
    text: Any = LONG.replace("treaty", "[MASK]", 1) + " and the [MASK] of Geneva."
    if task == "QAReader":
        text = {"question": "Who ruled?", "context": LONG}
        readers = [QAReader(small(BertForQuestionAnswering), each) for each in (tokenizer, from_left)]
    else:
        readers = [short_task(task, each)[0] for each in (tokenizer, from_left)]
    merge = "mean" if task == "text-classification" else None
    right, left = (read_whole(reader, merge=merge, stride=STRIDE)(text) for reader in readers)
    assert str_rounded(left) == str_rounded(right)
    assert left.windows == right.windows
    assert from_left.truncation_side == "left"


def str_rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: str_rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [str_rounded(part) for part in value]
    return round(float(value), 4) if isinstance(value, float) or hasattr(value, "dtype") else value


@every_case("merge", ["mean", "max"])
def test_classes_of_long_texts_have_the_merged_odds_of_their_windows(merge: str, tokenizer: Any) -> None:
    reader, _ = short_task("text-classification", tokenizer)
    with pytest.raises(InputError, match=r"windows of 64 tokens; say how to merge"):
        read_whole(reader, stride=STRIDE)(LONG)
    result = read_whole(reader, merge=merge, stride=STRIDE)(LONG, top_k=None)
    windows = windows_by_hand(tokenizer, LONG)
    odds = []
    for window in windows:
        p = run(reader.model, window)[0].softmax(-1)
        odds.append((p / (1 - p)).log())
    combined = torch.stack(odds).mean(0) if merge == "mean" else torch.stack(odds).max(0).values
    expected = {reader.model.config.id2label[n]: score for n, score in enumerate(combined.sigmoid().tolist())}
    assert {row["label"]: row["score"] for row in result} == pytest.approx(expected, abs=1e-5)
    assert [row["score"] for row in result] == sorted((row["score"] for row in result), reverse=True)
    assert len(result.windows) == len(windows) > 3
    assert result.windows[0][0] == 0
    assert result.windows[-1][1] == len(LONG.strip())


@every_case(("merge", "multi"), [("mean", False), ("max", True)])
def test_hypotheses_about_long_texts_have_the_merged_odds_of_their_windows(
    merge: str, multi: bool, tokenizer: Any
) -> None:
    reader, arguments = short_task("zero-shot-classification", tokenizer)
    result = read_whole(reader, merge=merge, stride=STRIDE)(LONG, **arguments, multi_label=multi)
    longest = max(len(tokenizer(f"This example is {label}.")["input_ids"]) for label in arguments["candidate_labels"])
    assert sorted(result["labels"]) == sorted(arguments["candidate_labels"])
    assert all(0 < score < 1 for score in result["scores"])
    room = LIMIT - 1 - longest
    tokens = len(tokenizer(LONG, add_special_tokens=False)["input_ids"])
    assert len(result.windows) == -(-(tokens - STRIDE) // (room - STRIDE))


@every_case("strategy", ["none", "simple", "max"])
def test_entities_of_long_texts_are_found_once_at_their_places(strategy: str, tokenizer: Any) -> None:
    reader, _ = short_task("token-classification", tokenizer)
    result = read_whole(reader, stride=STRIDE)(LONG, aggregation_strategy=strategy, ignore_labels=[])
    assert result.windows[-1][1] == len(LONG.strip())
    if strategy != "none":
        assert str_rounded(result) == str_rounded(
            reader(LONG, stride=STRIDE, aggregation_strategy=strategy, ignore_labels=[])
        )
        return
    encoded = tokenizer(LONG, add_special_tokens=False, truncation=False, return_offsets_mapping=True)
    assert [(entity["start"], entity["end"]) for entity in result] == encoded["offset_mapping"]
    assert [entity["index"] for entity in result] == [*range(1, len(result) + 1)]
    windows = windows_by_hand(tokenizer, LONG)
    for number in (3, 50, 58, 120, len(result) - 1):
        window = min(
            windows,
            key=lambda window: (
                abs(window["start"] + window["size"] / 2 - number)
                if window["start"] <= number < window["start"] + window["size"]
                else 1e9
            ),
        )
        scores = run(reader.model, window)[0, number - window["start"] + 1].softmax(-1)
        assert result[number]["score"] == pytest.approx(float(scores.max()), abs=1e-5)


def test_features_of_long_texts_are_those_of_every_token(tokenizer: Any) -> None:
    reader, _ = short_task("feature-extraction", tokenizer)
    (states,) = read_whole(reader, stride=STRIDE)(LONG)
    windows = windows_by_hand(tokenizer, LONG)
    count = windows[-1]["start"] + windows[-1]["size"]
    assert len(states) == count + 2
    expected = run(reader.model, windows[1])[0, 1 + 20].tolist()
    assert states[1 + windows[1]["start"] + 20] == pytest.approx(expected, abs=1e-5)
    assert states[0] == pytest.approx(run(reader.model, windows[0])[0, 0].tolist(), abs=1e-5)
    assert states[-1] == pytest.approx(run(reader.model, windows[-1])[0, -1].tolist(), abs=1e-5)


def test_masks_of_long_texts_are_filled_each_in_its_window(
    tokenizer: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    reader, _ = short_task("fill-mask", tokenizer)
    text = LONG.replace("treaty", "[MASK]", 1) + " and the [MASK] of Geneva."
    with caplog.at_level("WARNING", logger="transformers"):
        first, last = read_whole(reader, stride=STRIDE)(text)
    assert not caplog.messages  # such as that a text is too long
    assert len(first) == len(last) == 5
    windows = windows_by_hand(tokenizer, text)
    place = int((windows[-1]["input_ids"][0] == tokenizer.mask_token_id).nonzero()[-1])
    expected = run(reader.model, windows[-1])[0, place].softmax(-1).topk(5)
    assert [row["score"] for row in last] == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert [row["token"] for row in last] == expected.indices.tolist()
    with pytest.raises(InputError, match=r"has no \[MASK\]"):
        read_whole(reader)(SHORT)


def test_answers_and_pairs_are_read_in_windows_of_the_second_text(tokenizer: Any) -> None:

    model = small(BertForQuestionAnswering)
    reader = QAReader(model, tokenizer, stride=None)
    result = read_whole(reader, stride=STRIDE)({"question": "Who ruled?", "context": LONG})
    expected = QAReader(model, tokenizer, stride=STRIDE).answer({"question": "Who ruled?", "context": LONG})
    assert result["answer"] == expected
    assert len(result.windows) == len(windows_by_hand(tokenizer, LONG, "Who ruled?", second=True))
    assert reader.stride is None
    with pytest.raises(InputError, match="leaves no room"):
        read_whole(reader)({"question": LONG, "context": LONG})
    long_question = {"question": "Who ruled " + "in Geneva " * 22, "context": LONG}  # leaves less than the stride
    result = read_whole(reader, stride=STRIDE)(long_question)
    room = LIMIT - len(tokenizer(long_question["question"], "a")["input_ids"]) + 1
    assert 4 < room < STRIDE
    assert result["answer"] == QAReader(model, tokenizer, stride=room // 2).answer(long_question)
    assert result.windows[-1][1] == len(LONG.strip())


def test_cross_encoders_score_all_windows_of_a_document(tokenizer: Any, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    small(BertForSequenceClassification, num_labels=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = CrossEncoder(str(tmp_path), device="cpu")
    whole = read_whole(encoder, merge="max", stride=STRIDE)
    short, long = whole([("Who ruled?", SHORT), ("Who ruled?", LONG)])
    assert short == pytest.approx(float(encoder.predict([("Who ruled?", SHORT)])[0]), abs=1e-5)
    windows = windows_by_hand(tokenizer, LONG, "Who ruled?", second=True)
    logits = [float(run(encoder[0].model, window)) for window in windows]
    assert long == pytest.approx(float(torch.tensor(max(logits)).sigmoid()), abs=1e-5)
    assert whole(("Who ruled?", LONG)) == long
    assert len(long.windows) == len(windows)
    pairs = [("Who ruled?", ""), ("", SHORT), ("", ""), ("Who ruled?", SHORT)]
    for settings in ({}, {"activation_fn": torch.nn.Identity()}, {"activation_fn": None, "apply_softmax": True}):
        expected = pytest.approx(encoder.predict(pairs, **settings), abs=1e-5)
        assert whole((pair for pair in pairs), **settings) == expected
        assert whole(np.array(pairs), **settings) == expected
    with pytest.raises(OptionError, match="takes activation_fn and apply_softmax alone; leave batch_size out"):
        whole(pairs, batch_size=4)
    for wrong in ("abc", None, ("Who ruled?",), ("a", "b", "c"), [("a", None)], {"text": "a", "text_pair": "b"}):
        with pytest.raises(InputError, match=r"CrossEncoder reads a pair of two texts, such as .*, not "):
            whole(wrong)
    with pytest.raises(InputError, match=r"first text of the pair takes .* of 64 tokens, which leaves no room"):
        whole((LONG, SHORT))
    encoder.max_seq_length = 32
    lower = read_whole(encoder, merge="max")
    assert (lower.limit, lower.stride) == (32, 8)
    assert len(lower(("Who ruled?", LONG)).windows) > len(windows)


def test_cross_encoders_with_labels_have_the_scores_of_the_encoder(tokenizer: Any, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    small(BertForSequenceClassification, num_labels=3).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = CrossEncoder(str(tmp_path), device="cpu")
    for settings in ({}, {"apply_softmax": True}, {"activation_fn": torch.nn.Softmax(dim=1)}):
        expected = encoder.predict(("Who ruled?", SHORT), **settings)
        assert read_whole(encoder)(("Who ruled?", SHORT), **settings) == pytest.approx(expected, abs=1e-5)
    prompted = CrossEncoder(str(tmp_path), device="cpu", prompts={"law": "Law: "}, default_prompt_name="law")
    with pytest.raises(OptionError, match="of one module without a prompt; set default_prompt_name to None"):
        read_whole(prompted)


class Names:
    """GLiNER's methods: the names of people are capitalised words, and cut words are unsure."""

    config = type("Config", (), {"max_len": 40})
    data_processor = type("Data", (), {})()

    def __init__(self) -> None:
        self.data_processor.words_splitter = lambda text: ((m[0], *m.span()) for m in re.finditer(r"\w+|\S", text))
        self.lengths: list[int] = []

    def predict_entities(self, text: str, labels: list[str], flat_ner: bool = True) -> list[dict[str, Any]]:
        self.lengths.append(len(text.split()))
        found = re.finditer(r"[A-Z]\w+( [A-Z]\w+)*", text)
        return [
            {"start": m.start(), "end": m.end(), "text": m[0], "label": labels[0], "score": 0.5 + len(m[0]) / 100}
            for m in found
        ]


@every_case("flat", [True, False])
def test_entities_of_gliner_are_found_once_at_their_places(flat: bool) -> None:
    text = "ab Anna Smith cd and more of it " * 30
    reader = Names()
    result = read_whole(reader, stride=8)(text, ["person"], flat_ner=flat)
    places = [m.span() for m in re.finditer("Anna Smith", text)]
    assert set(places) <= {(entity["start"], entity["end"]) for entity in result}
    if flat:
        assert [(entity["start"], entity["end"]) for entity in result] == places
    assert max(reader.lengths) == 40
    assert len(result.windows) == len(reader.lengths) == -(-(8 * 30 - 8) // 32)
    assert read_whole(reader)("", ["person"]) == []


@every_case(
    ("reader", "settings", "words"),
    [
        (
            "model",
            {},
            "CrossEncoder, GLiNER, QAReader, .*, zero-shot-classification, not .*; wrap a model in pipeline",
        ),
        ("pipeline", {"merge": "median"}, "give 'max', 'mean'"),
        ("pipeline", {"stride": -1}, "stride is -1"),
        ("pipeline", {"stride": True}, "stride is True"),
        ("pipeline", {"stride": 17}, "stride is 17, but must be a number of tokens from 0 to 16, a quarter"),
        ("pipeline", {"merge": "max"}, "has no scores of whole texts to merge; leave merge='max' out"),
    ],
)
def test_other_readers_and_settings_are_refused(
    reader: str, settings: dict[str, Any], words: str, tokenizer: Any
) -> None:
    model = small(BertForTokenClassification)
    chosen = model if reader == "model" else pipeline("token-classification", model, tokenizer=tokenizer, device="cpu")
    with pytest.raises(OptionError, match=words):
        read_whole(chosen, **settings)


@every_case(
    ("task", "text", "settings", "words"),
    [
        ("token-classification", None, {}, "token-classification reads a text, or a list of such, not None"),
        ("feature-extraction", b"bytes", {}, "reads a text, or a list of such, not b'bytes'"),
        ("fill-mask", [["a [MASK]"]], {}, "reads a text, or a list of such, not ['a [MASK]']"),
        ("token-classification", {"text": "a"}, {}, "reads a text, or a list of such, not {'text': 'a'}"),
        (
            "text-classification",
            {"txt": "a"},
            {},
            "reads a text, or {'text': ..., 'text_pair': ...}, or a list of such",
        ),
        ("text-classification", [["a", "b"]], {}, "or a list of such, not ['a', 'b']"),
        ("text-classification", {"text": "a", "text_pair": "a " * 61}, {}, "The text_pair takes 64 of 64 tokens"),
        (
            "zero-shot-classification",
            SHORT,
            {"candidate_labels": ["a", "a " * 61]},
            "The longest label takes 68 of 64 tokens",
        ),
        ("zero-shot-classification", SHORT, {"candidate_labels": []}, "must include at least one label"),
        ("zero-shot-classification", SHORT, {"candidate_labels": ""}, "must include at least one label"),
        ("zero-shot-classification", SHORT, {}, "must include at least one label"),
        (
            "zero-shot-classification",
            SHORT,
            {"candidate_labels": ["a"], "hypothesis_template": "x"},
            "not able to be formatted",
        ),
        ("token-classification", ["a", "b"], {"is_split_into_words": True}, "join the words with spaces"),
        (
            "token-classification",
            "a",
            {"offset_mapping": [(0, 1)]},
            "leave is_split_into_words and offset_mapping out",
        ),
        (
            "token-classification",
            "a",
            {"stride": 8, "aggregation_strategy": "simple"},
            "sets a stride; remove it there, and pass it to read_whole(..., stride=128)",
        ),
        (
            "QAReader",
            {"question": "a"},
            {},
            "QAReader reads {'question': ..., 'context': ...}, or a list of such, not",
        ),
        ("QAReader", SHORT, {}, "QAReader reads {'question': ..., 'context': ...}"),
        (
            "QAReader",
            {"question": "a " * 61, "context": SHORT},
            {},
            "The question takes 64 of 64 tokens, which leaves no room",
        ),
    ],
)
def test_texts_and_settings_that_windows_cannot_have_are_refused(
    task: str, text: Any, settings: dict[str, Any], words: str, tokenizer: Any
) -> None:
    if task == "QAReader":
        reader: Any = QAReader(small(BertForQuestionAnswering), tokenizer)
    else:
        reader = short_task(task, tokenizer)[0]
    with pytest.raises(ValueError, match=re.escape(words)):
        read_whole(reader)(text, **settings)


def test_a_stride_that_the_pipeline_was_made_with_is_refused(tokenizer: Any) -> None:
    model = small(BertForTokenClassification)
    settings = {"stride": 8, "aggregation_strategy": "simple"}
    reader = pipeline("token-classification", model, tokenizer=tokenizer, device="cpu", **settings)
    with pytest.raises(OptionError, match="The pipeline sets a stride"):
        read_whole(reader)(LONG)
