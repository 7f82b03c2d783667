"""Several heads on one backbone: mixed batches, one checkpoint, heads that load singly."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase, T5Config, T5ForQuestionAnswering, T5ForTokenClassification

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.qa_schemas import save_qa
from hf_longattn.errors import OptionError
from hf_longattn.training import load_multitask_head
from hf_longattn.training.evaluation import evaluation_arguments
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.tasks.multitask import (
    MULTITASK,
    MultiTaskDataArguments,
    MultiTaskModel,
    TaskBatches,
    finetune_multitask,
    multitask_result,
)
from tests.training.conftest import FAST, SCORED, checkpoint
from tests.training.test_classification import rows, table
from tests.training.test_tokens import tagged, write

MIXED = {**FAST, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}


def test_multitask_batches_are_drawn_with_the_temperature() -> None:
    sizes = {"small": 100, "large": 10_000}
    for temperature, share in ((1.0, 100 / 10_100), (2.0, 10 / 110), (1e9, 0.5)):
        batches = TaskBatches(sizes, 4, temperature, seed=0, processes=2)
        found = list(batches)
        counts = Counter(batch[0][0] for batch in found)
        assert counts["small"] / len(found) == pytest.approx(share, abs=0.03)
        assert all(len({name for name, _ in batch}) == 1 for batch in found)
        assert len(found) == len(batches)
        assert len(found) % 2 == 0
        assert found == list(batches)
    seen = [number for batch in found for name, number in batch if name == "small"]
    assert set(seen[:100]) == set(range(100))  # an input comes again when all have come


def three_tasks(folder: Path) -> list[str]:
    """Tasks of three kinds, with their data in a folder."""
    records = [
        {"id": str(n), "question": "which?", "context": "for " * n + "tree", "answers": {"text": ["tree"], "answer_start": [4 * n]}}
        for n in range(10, 30)
    ]
    save_qa(records, folder / "qa.jsonl")
    tags = write(tagged(), folder / "tags.jsonl")
    return [f"topic=classify:{table(folder, rows())}", f"names=tokens:{tags}", f"ask=qa:{folder / 'qa.jsonl'}"]


@pytest.mark.thorough
def test_multitask_run_trains_all_heads_and_each_loads_singly(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    convert_checkpoint(
        checkpoint("mlm", tmp_path / "short", tokenizer), tmp_path / "long", mechanism="longformer", max_length=160, window=16, verify=False
    )
    given = {"model": str(tmp_path / "long"), "output_dir": str(tmp_path / "out"), "tasks": three_tasks(tmp_path)}
    args = build_arguments(MULTITASK, **given, max_steps=80, learning_rate=1e-2, per_device_train_batch_size=4, save_steps=40, **MIXED)
    log = finetune_multitask(*args)
    before, after = log["held_out"]["before"], log["held_out"]["after"]
    assert after["topic"]["accuracy"] == 100.0
    assert after["names"]["f1"] > max(60.0, before["names"]["f1"])
    assert after["ask"]["f1"] >= before["ask"]["f1"]
    said = multitask_result(log).splitlines()
    scores = r"[\d.]+ %"  # of fewer than ten documents
    assert re.fullmatch(rf"- topic: held out: accuracy {scores} before; accuracy 100.0 % after \(\d+ documents[^)]*\)", said[0]), said
    assert re.fullmatch(rf"- names: held out: F1 {scores} before; F1 {scores} after \(\d+ documents[^)]*\)", said[1]), said
    assert "head names" in (tmp_path / "out" / "README.md").read_text()
    topic, names, ask = (load_multitask_head(str(tmp_path / "out"), head) for head in ("topic", "names", "ask"))
    assert topic.config.id2label == {0: "files", 1: "loops"}
    assert names.config.num_labels == 3
    assert ask.config.question_separator_id == tokenizer.sep_token_id  # its question is global, as in the training
    assert topic.config.question_separator_id is names.config.question_separator_id is None
    assert torch.equal(topic.bert.embeddings.word_embeddings.weight, ask.bert.embeddings.word_embeddings.weight)
    ids = tokenizer("for while break continue " * 8, return_tensors="pt")["input_ids"]
    assert int(topic.eval()(input_ids=ids).logits.argmax()) == 1
    with pytest.raises(OptionError, match=r"has the heads ask, names, topic, not 'topics'\. Did you mean 'topic'"):
        load_multitask_head(str(tmp_path / "out"), "topics")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["multitask_heads"]["names"]["kind"] == "tokens"
    resumed = finetune_multitask(
        *build_arguments(MULTITASK, **given, max_steps=82, learning_rate=1e-2, per_device_train_batch_size=4, resume=True, **MIXED)
    )
    assert max(entry.get("step", 0) for entry in resumed["history"]) == 82


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (["a=classify:x.csv"], "two tasks or more"),
        (["a=classify:x.csv", "a=qa:y.json"], "with a name that no other task has"),
        (["a=classify:x.csv", "b=token:y.json"], "Did you mean 'tokens'"),
        (["a=classify:x.csv", "b"], "A task is NAME=KIND:DATA"),
        (["a=classify:x.csv", f"b=tokens:{__file__}:dev.conll"], "names a second file; give it by --validation b=dev.conll"),
    ],
)
def test_wrong_tasks_options_are_refused(tasks: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=words):
        build_arguments(MULTITASK, model="m", output_dir=str(tmp_path), tasks=tasks)


def test_tasks_option_takes_subsets_and_validation_data_per_task() -> None:
    """A colon belongs to the data, as in a subset of the Hub or a drive of Windows."""
    tasks = ["ask=qa:rajpurkar/squad:plain_text", r"topic=classify:C:\reviews.csv", "names=tokens:train.conll"]
    data = MultiTaskDataArguments(tasks=tasks, validation=["names=dev.conll", "ask=rajpurkar/squad_v2:squad_v2"])
    assert data.named_tasks() == {
        "ask": ("qa", "rajpurkar/squad:plain_text", "rajpurkar/squad_v2:squad_v2"),
        "topic": ("classify", r"C:\reviews.csv", ""),
        "names": ("tokens", "train.conll", "dev.conll"),
    }
    with pytest.raises(OptionError, match=r"one of the tasks ask, topic, names, not 'name'\. Did you mean 'names'"):
        MultiTaskDataArguments(tasks=tasks, validation=["name=dev.conll"])


def test_multitask_qa_head_keeps_its_no_answer_threshold(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """The threshold is tuned on the held-out questions, which the result says, and loaded with the head."""
    model = checkpoint("mlm", tmp_path / "short", tokenizer)
    answers = [{"text": ["tree"], "answer_start": [12]}, {"text": [], "answer_start": []}]
    records = [{"id": str(n), "question": "which?", "context": "for for for tree", "answers": answers[n % 2]} for n in range(40)]
    save_qa(records, tmp_path / "qa.jsonl")
    tasks = [f"ask=qa:{tmp_path / 'qa.jsonl'}", f"topic=classify:{table(tmp_path, rows())}"]
    given = {"model": model, "output_dir": str(tmp_path / "out"), "tasks": tasks, "validation": [f"ask={tmp_path / 'qa.jsonl'}"]}
    log = finetune_multitask(*build_arguments(MULTITASK, **given, max_steps=2, **FAST))
    threshold = log["held_out"]["after"]["ask"]["best_f1_threshold"]
    assert load_multitask_head(str(tmp_path / "out"), "ask").config.no_answer_threshold == threshold
    note = 'the threshold of "no answer" is the best one on these questions'
    assert note in multitask_result(log)
    again = {"model": str(tmp_path / "out"), "output_dir": str(tmp_path / "scored"), "tasks": [f"ask=qa:{tmp_path / 'qa.jsonl'}"]}
    scored = finetune_multitask(*build_arguments(evaluation_arguments(MULTITASK), **again, **SCORED))
    assert scored["held_out"]["after"]["ask"]["f1"] == log["held_out"]["after"]["ask"]["f1"]
    assert note not in multitask_result(scored)


def test_multitask_refuses_heads_without_a_common_backbone() -> None:
    """T5's question answering holds both stacks itself, and its token classification an encoder."""
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=99)
    heads = {"names": T5ForTokenClassification(config), "ask": T5ForQuestionAnswering(config)}
    for models in (heads, {"ask": heads["ask"]}):
        with pytest.raises(OptionError, match="T5ForQuestionAnswering have no backbone in common, which multitask needs; train a model"):
            MultiTaskModel(models)
