"""A question-answering model that was converted reads as it was trained to, wherever it is called from."""

from __future__ import annotations

import inspect
import json
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from hf_longattn import convert_checkpoint, export_checkpoint
from hf_longattn.evaluation.qa_reader import QAReader
from tests.lookups import lookups
from tests.trained import tokenizer_of

LONGFORMER: dict[str, Any] = {"mechanism": "longformer", "window": 16}
SOURCES = [inspect.getsource(module) for module in (inspect, json, textwrap)]


def separator_in(folder: Path) -> int | None:
    return json.loads((folder / "config.json").read_text()).get("question_separator_id")


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["BertForQuestionAnswering", "BartForQuestionAnswering", "DistilBertForQuestionAnswering"])
def test_converted_question_answering_head_makes_questions_global(name: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    source = with_tokenizer(built(name), tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(source)
    report = convert_checkpoint(source, tmp_path / "long", **LONGFORMER, max_length=200)
    assert report.verified
    assert separator_in(tmp_path / "long") == tokenizer.sep_token_id
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "long").eval()
    for side in ("right", "left"):
        tokenizer.padding_side = side
        encoded = [tokenizer("who built the house", text) for text in ("the keeper " * 40, "the town")]
        before = [[int(place < row.sequence_ids(0).index(1)) for place in range(len(row["input_ids"]))] for row in encoded]
        inputs = DataCollatorWithPadding(tokenizer)(encoded)
        length = inputs["input_ids"].shape[1]
        pad = [([0] * (length - len(row)), row) for row in before]
        marks = torch.tensor([row + gap if side == "right" else gap + row for gap, row in pad])
        with torch.no_grad():
            found, marked = model(**inputs), model(**inputs, global_attention_mask=marks)
        assert torch.equal(found.start_logits, marked.start_logits)


@pytest.mark.thorough
@pytest.mark.parametrize("saved", ["with modules", "sentence_transformers", "sbert_ce_default_activation_function"])
def test_converted_cross_encoder_makes_the_first_text_global(saved: str, built: Callable[[str], Path], tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    source = with_tokenizer(built("BertForQuestionAnswering"), tmp_path / "source")
    AutoModelForSequenceClassification.from_pretrained(source, num_labels=1).save_pretrained(source)
    if saved == "with modules":
        st.CrossEncoder(str(source), device="cpu").save(str(tmp_path / "ranks"))
        source = tmp_path / "ranks"
    else:
        config = json.loads((source / "config.json").read_text())
        value = {"version": "5.0.0"} if saved == "sentence_transformers" else "torch.nn.modules.linear.Identity"
        (source / "config.json").write_text(json.dumps({**config, saved: value}))
    convert_checkpoint(source, tmp_path / "long", **LONGFORMER, max_length=200)
    encoder = st.CrossEncoder(str(tmp_path / "long"), device="cpu")
    assert separator_in(tmp_path / "long") == encoder.tokenizer.sep_token_id
    pair = ("who built the house", "the keeper " * 60)
    inputs = encoder.tokenizer(*pair, return_tensors="pt")
    marks = torch.tensor([[int(place < inputs.sequence_ids(0).index(1)) for place in range(inputs["input_ids"].shape[1])]])
    with torch.no_grad():
        network = encoder.transformers_model.eval()
        assert torch.equal(network(**inputs).logits, network(**inputs, global_attention_mask=marks).logits)


def with_tokenizer(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    config = json.loads((model / "config.json").read_text())
    tokenizer_of(config["model_type"], 64).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "options"), [("BertForQuestionAnswering", {"mechanism": "window", "window": 16}), ("BertForMaskedLM", LONGFORMER)]
)
def test_other_heads_and_mechanisms_get_no_question_separator(
    name: str, options: dict[str, Any], built: Callable[[str], Path], tmp_path: Path
) -> None:
    source = with_tokenizer(built(name), tmp_path / "source")
    convert_checkpoint(source, tmp_path / "long", **options, max_length=200, verify=False)
    assert separator_in(tmp_path / "long") is None


@pytest.mark.thorough
def test_separator_of_a_global_first_segment_is_that_of_the_tokenizer(built: Callable[[str], Path], tmp_path: Path) -> None:
    source = with_tokenizer(built("BertForMaskedLM"), tmp_path / "source")
    convert_checkpoint(source, tmp_path / "long", **LONGFORMER, global_first_segment=True, max_length=200)
    attention = json.loads((tmp_path / "long" / "config.json").read_text())["long_attention"]
    assert attention["separator_token_id"] == AutoTokenizer.from_pretrained(source).sep_token_id


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The project's own question-answering model for 4,096 tokens."""
    folder = tmp_path_factory.mktemp("questions") / "long"
    asset = repository / "model_cards" / "bert-python-512-qa"
    convert_checkpoint(asset, folder, mechanism="longformer", window=256, max_length=4096, verify=False)
    return folder


@pytest.mark.slow
def test_plain_call_answers_what_a_call_with_the_question_mask_answers(converted: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(converted), AutoModelForQuestionAnswering.from_pretrained(converted).float().eval()
    records = [record for seed in range(5) for record in lookups(SOURCES, tokenizer, 1500, seed)]
    right = {"plain": 0, "mask": 0, "first token only": 0}
    for record in records:
        inputs = tokenizer(record["question"], record["context"], return_tensors="pt")
        places = torch.arange(inputs["input_ids"].shape[1])[None]
        masks = {"plain": None, "mask": places < inputs.sequence_ids(0).index(1), "first token only": places < 1}
        for name, mask in masks.items():
            given = {} if mask is None else {"global_attention_mask": mask.long()}
            with torch.no_grad():
                outputs = model(**inputs, **given)
            right[name] += answer(tokenizer, inputs, outputs.start_logits, outputs.end_logits) == record["answers"]["text"][0]
    assert right["plain"] == right["mask"] > 3 * right["first token only"]
    assert right["plain"] > len(records) / 2
    reader = QAReader(model, tokenizer, 4096)
    assert sum(reader.answer(record) == record["answers"]["text"][0] for record in records) >= right["plain"]


@pytest.mark.slow
def test_onnx_graph_of_question_answering_needs_no_global_mask(converted: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    tokenizer, model = AutoTokenizer.from_pretrained(converted), AutoModelForQuestionAnswering.from_pretrained(converted).float().eval()
    report = export_checkpoint(converted, tmp_path / "graph")
    assert report.inputs == ("input_ids", "attention_mask", "token_type_ids")
    session = onnxruntime.InferenceSession(str(tmp_path / "graph" / "model.onnx"), providers=["CPUExecutionProvider"])
    for record in lookups(SOURCES, tokenizer, 1500, seed=0):
        inputs = tokenizer(record["question"], record["context"], return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
        start, end = session.run(["start_logits", "end_logits"], {name: value.numpy() for name, value in inputs.items()})
        found = answer(tokenizer, inputs, torch.from_numpy(start), torch.from_numpy(end))
        assert found == answer(tokenizer, inputs, outputs.start_logits, outputs.end_logits)


def answer(tokenizer: Any, inputs: Any, starts: torch.Tensor, ends: torch.Tensor) -> str:
    return tokenizer.decode(inputs["input_ids"][0, starts.argmax() : ends.argmax() + 1]).strip()
