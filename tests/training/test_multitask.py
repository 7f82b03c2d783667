"""Several heads on one backbone: mixed batches, one checkpoint, heads that load singly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase, T5Config, T5ForQuestionAnswering, T5ForTokenClassification

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.qa_schemas import save_qa
from hf_longattn.errors import OptionError
from hf_longattn.training import load_multitask_head
from hf_longattn.training.tasks.multitask import MultiTaskDataArguments, MultiTaskModel, TaskBatches
from tests.ranks import free_port
from tests.training.conftest import FAST, SCORED, checkpoint, start_task
from tests.training.test_classification import rows, table
from tests.training.test_tokens import tagged, write

MIXED = {**FAST, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}


def test_multitask_batches_are_of_one_task_drawn_by_the_root_of_its_size() -> None:
    sizes = {"small": 100, "large": 10_000}
    batches = TaskBatches(sizes, 4, seed=0, processes=2)
    found = list(batches)
    small = [batch for batch in found if batch[0] < 100]
    assert len(small) / len(found) == pytest.approx(10 / 110, abs=0.03)
    assert all(max(batch) < 100 for batch in small)
    assert all(min(batch) >= 100 for batch in found if batch not in small)
    assert len(found) == len(batches)
    assert len(found) % 2 == 0
    assert found == list(batches)
    assert {number for batch in small[:25] for number in batch} == set(range(100))  # a row comes again when all have come


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
    run = {**given, "learning_rate": 1e-2, "per_device_train_batch_size": 4, **MIXED}
    log = start_task("multitask", **run, max_steps=80, save_steps=40)
    before, after = log["metrics"]["before"], log["metrics"]["after"]
    assert after["topic_accuracy"] == 100.0
    assert after["names_f1"] > max(60.0, before["names_f1"])
    assert after["ask_f1"] >= before["ask_f1"]
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
    resumed = start_task("multitask", **{**run, "resume": True, "overwrite": False}, max_steps=82)
    assert max(entry.get("step", 0) for entry in resumed["history"]) == 82


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "No tasks given; add --tasks NAME=KIND:DATA"),
        ({"tasks": ["a=classify:x", "a=qa:y"]}, "with a name that no other task has"),
        ({"tasks": ["a=classify:x", "b=token:y"]}, "Did you mean 'tokens'"),
        ({"tasks": ["a=classify:x", "b"]}, "A task is NAME=KIND:DATA"),
        ({"tasks": ["a=classify:x"], "columns": ["a.colour=red"]}, "--columns takes ROLE=NAME, with a role of text, question, image"),
        ({"tasks": ["names=classify:x"], "columns": ["name.label=red"]}, "with a NAME of names, not 'name'. Did you mean 'names'"),
        ({"tasks": ["names=classify:x"], "validation": ["name=y"]}, "with a NAME of names, not 'name'. Did you mean 'names'"),
    ],
)
def test_wrong_tasks_options_are_refused(options: dict[str, list[str]], words: str) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        MultiTaskDataArguments(**options)


def test_tasks_option_takes_subsets_columns_and_validation_data_per_task() -> None:
    """A colon belongs to the data, as in a subset of the Hub or a drive of Windows."""
    tasks = ["ask=qa:rajpurkar/squad:plain_text", r"topic=classify:C:\reviews", "names=tokens:train"]
    more = {"validation": ["names=dev", "ask=rajpurkar/squad_v2:squad_v2"], "columns": ["topic.label=stars", "topic.text=review"]}
    parts = MultiTaskDataArguments(tasks=tasks, max_length=64, **more).parts
    found = {name: (kind, data.data, data.validation, data.named, data.max_length) for name, (kind, data) in parts.items()}
    assert found == {
        "ask": ("qa", ["rajpurkar/squad:plain_text"], "rajpurkar/squad_v2:squad_v2", {}, 64),
        "topic": ("classify", [r"C:\reviews"], "", {"label": "stars", "text": "review"}, 64),
        "names": ("tokens", ["train"], "dev", {}, 64),
    }


@pytest.mark.slow
def test_multitask_in_two_processes_equals_one_with_its_evaluations(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, repository: Path
) -> None:
    """Of two held-out rows of a task, the second process has none in the last batch."""
    model = checkpoint("mlm", tmp_path / "short", tokenizer)
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "short" / "config.json").write_text(json.dumps(config))
    line = ["train", "multitask", "--model", model, "--tasks", *three_tasks(tmp_path), "--max-steps", "4", "--max-length", "60"]
    line += ["--no-bf16", "--use-cpu", "--learning-rate", "1e-3", "--logging-steps", "1", "--batch-size", "2"]
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    logs = []
    for processes, accumulated in (([], 2), (launcher, 1)):
        output = tmp_path / f"out{accumulated}"
        command = [sys.executable, *processes, "-m", "hf_longattn", *line, "--gradient-accumulation-steps", str(accumulated)]
        command += ["--output", str(output)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        logs.append(json.loads((output / "training_log.json").read_text()))
    losses = [[entry["loss"] for entry in log["history"] if "loss" in entry] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert logs[0]["metrics"]["after"] == pytest.approx(logs[1]["metrics"]["after"])


def test_multitask_qa_head_keeps_its_no_answer_threshold(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """The threshold is tuned on the held-out questions, and loaded with the head."""
    model = checkpoint("mlm", tmp_path / "short", tokenizer)
    answers = [{"text": ["tree"], "answer_start": [12]}, {"text": [], "answer_start": []}]
    records = [{"id": str(n), "question": "which?", "context": "for for for tree", "answers": answers[n % 2]} for n in range(40)]
    save_qa(records, tmp_path / "qa.jsonl")
    tasks = [f"ask=qa:{tmp_path / 'qa.jsonl'}", f"topic=classify:{table(tmp_path, rows())}"]
    given = {"model": model, "output_dir": str(tmp_path / "out"), "tasks": tasks, "validation": [f"ask={tmp_path / 'qa.jsonl'}"]}
    log = start_task("multitask", **given, max_steps=2, **FAST)
    assert isinstance(load_multitask_head(str(tmp_path / "out"), "ask").config.no_answer_threshold, float)
    again = {"model": str(tmp_path / "out"), "output_dir": str(tmp_path / "scored"), "tasks": tasks[:1], "do_train": False}
    scored = start_task("multitask", **again, **SCORED)
    assert scored["metrics"]["after"]["ask_f1"] == log["metrics"]["after"]["ask_f1"]


def test_multitask_refuses_heads_without_a_common_backbone() -> None:
    """T5's question answering holds both stacks itself, and its token classification an encoder."""
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=99)
    models = {"names": T5ForTokenClassification(config), "ask": T5ForQuestionAnswering(config)}
    heads: Any = {name: SimpleNamespace(model=model) for name, model in models.items()}
    for tasks in (heads, {"ask": heads["ask"]}):
        with pytest.raises(OptionError, match="T5ForQuestionAnswering have no backbone in common, which multitask needs; train a model"):
            MultiTaskModel(tasks)
