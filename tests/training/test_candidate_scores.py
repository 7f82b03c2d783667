"""WikiHop: candidates read together with all documents, in as many inputs as they need; trained, saved, and found again."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from hf_longattn.cli.train import evaluate
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.choices import CandidateCollator, encode_candidates, read_qangaroo, tidy, to_candidates
from hf_longattn.data.sources import DataError
from hf_longattn.errors import LengthError, OptionError
from hf_longattn.training.candidate_scores import candidate_scores, load_candidate_model
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.tasks.choice import CHOICE, choice_result, finetune_choice
from tests.training.conftest import checkpoint

FAST: dict[str, Any] = {
    "bf16": False, "disable_tqdm": True, "threads": 1, "warmup_steps": 1, "gradient_accumulation_steps": 1, "logging_steps": 1,
}  # fmt: skip


def wikihop(count: int = 24) -> list[dict[str, Any]]:
    """Questions in WikiHop's schema: the right candidate is "tree", wherever it stands among two to four."""
    choose, rows = random.Random(0), []
    for number in range(count):
        candidates = ["tree", *choose.sample(["file", "node", "path", "line"], choose.randint(1, 3))]
        choose.shuffle(candidates)
        supports = [f"for value in {name} :" * choose.randint(1, 6) for name in candidates]
        row = {"id": f"WH_dev_{number}", "query": "instance_of value", "answer": "tree", "candidates": candidates, "supports": supports}
        rows.append({**row, "annotations": [["follows", "likely"]]})
    return rows


def write(rows: list[dict[str, Any]], path: Path) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def long_model(folder: Path, tokenizer: PreTrainedTokenizerBase, length: int = 128) -> str:
    short = checkpoint("mlm", folder / "short", tokenizer)
    convert_checkpoint(short, folder / "long", mechanism="longformer", max_length=length, window=16, verify=False)
    return str(folder / "long")


def test_inputs_have_all_candidates_and_together_all_documents(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model, marked = load_candidate_model(long_model(tmp_path, tokenizer), complete=False)
    record = {"question": "which [ent]?", "candidates": ["the tree", "a [ent] file"], "supports": ["one value " * 40, "[q] two"]}
    inputs, places = encode_candidates(record, marked, 64)
    assert len(inputs) > 1
    assert len(places) == 2
    separator = marked.sep_token_id
    first = inputs[0]["input_ids"].index(separator) + 1
    for one in inputs:
        assert len(one["input_ids"]) <= 64
        assert one["input_ids"][:first] == inputs[0]["input_ids"][:first]
        assert [one["input_ids"][place] for place in places] == [marked.convert_tokens_to_ids("[ent]")] * 2
    read = [number for one in inputs for number in one["input_ids"][first:-1]]
    joined = f" {marked.sep_token} ".join([tidy(record["supports"][0]), "(q] two"])
    assert read == marked(joined, add_special_tokens=False)["input_ids"]
    assert len(encode_candidates(record, marked, 64, truncate=True)[0]) == 1
    with pytest.raises(LengthError, match=r"its 2 candidates take .* convert the model to a greater length"):
        encode_candidates(record, marked, 24)
    assert model.config.question_separator_id == separator
    with torch.inference_mode():  # question and candidates are global by the config
        ids = torch.tensor([inputs[0]["input_ids"]])
        mask = (torch.arange(ids.shape[1]) < first).long()[None]
        torch.testing.assert_close(model.eval()(ids).logits, model(ids, global_attention_mask=mask).logits)


def test_scores_are_means_over_the_inputs_of_a_question(tokenizer: PreTrainedTokenizerBase) -> None:
    logits = torch.randn(3, 5, 1, generator=torch.Generator().manual_seed(0))
    found = candidate_scores(logits, torch.tensor([0, 0, 1]), torch.tensor([[1, 3, 4], [2, 4, -1]]))
    torch.testing.assert_close(found[0], logits[:2, [1, 3, 4], 0].mean(0))
    torch.testing.assert_close(found[1, :2], logits[2, [2, 4], 0])
    assert found[1, 2] == -torch.inf


@pytest.mark.thorough
def test_it_is_learned_saved_and_found_again(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = write(wikihop(), tmp_path / "train.json")
    given = {"model": long_model(tmp_path, tokenizer), "output_dir": str(tmp_path / "out"), "data": [data], "validation": data}
    settings = {**FAST, "max_length": 64, "max_steps": 60, "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    log = finetune_choice(*build_arguments(CHOICE, **given, **settings))
    assert log["joint"]
    assert log["held_out"]["after"]["accuracy"] > 90 > log["held_out"]["before"]["accuracy"]
    assert "accuracy" in choice_result(log)
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    records = read_qangaroo(data, "train").to_list()
    saved = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    model, marked = load_candidate_model(str(tmp_path / "out"))
    assert all(torch.equal(one, other) for one, other in zip(saved.parameters(), model.parameters(), strict=True))
    for record in records:  # the mean over the inputs of a question, one after the other
        inputs, places = encode_candidates(record, marked, 64)
        with torch.inference_mode():
            scores = [model.eval()(torch.tensor([one["input_ids"]])).logits[0, places, 0] for one in inputs]
        assert predictions[record["id"]] == record["candidates"][int(torch.stack(scores).mean(0).argmax())]
    command = ["--model", str(tmp_path / "out"), "--data", data, "--max-length", "64", "--output", str(tmp_path / "scored"), "--no-bf16"]
    assert evaluate("choice", command) == 0
    assert json.loads((tmp_path / "scored" / "predictions.json").read_text()) == predictions
    batch = CandidateCollator(marked)(to_candidates(read_qangaroo(data, "train"), marked, 64).to_list()[:3])
    assert batch["places"].shape[0] == batch["labels"].shape[0] == 3
    assert batch["owners"].max() == 2


def test_other_data_may_have_different_numbers_of_choices(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    row = {"context": "c", "question": "q", "choices": ["x", "y"], "label": 1}
    data = write([row, {**row, "choices": ["x", "y", "z"]}, row], tmp_path / "rows.json")
    given = {"model": long_model(tmp_path, tokenizer), "output_dir": str(tmp_path / "out"), "data": [data], "max_steps": 1}
    log = finetune_choice(*build_arguments(CHOICE, **given, candidates="joint", **FAST))
    assert (log["joint"], log["questions"]) == (True, 2)
    with pytest.raises(DataError, match="give --candidates joint"):
        finetune_choice(*build_arguments(CHOICE, **{**given, "output_dir": str(tmp_path / "one")}, **FAST))
    with pytest.raises(OptionError, match="candidates must be one of auto"):
        build_arguments(CHOICE, **given, candidates="all", **FAST)


def test_bad_rows_of_wikihop(tmp_path: Path) -> None:
    row = {"id": "1", "query": "q", "answer": "x", "candidates": ["x", "y"], "supports": ["s"]}
    cases = [
        ("lacks the column 'answer'", [{name: row[name] for name in row if name != "answer"}]),
        ("Row 2 .* 'z' is none of its 2 candidates", [row, {**row, "answer": "z"}]),
        ("'x' is none of its 1 candidates", [{**row, "candidates": ["x"]}]),
        ("supports must be a list of texts", [{**row, "supports": "s"}]),
    ]
    for number, (words, rows) in enumerate(cases):
        with pytest.raises(DataError, match=words):
            read_qangaroo(write(rows, tmp_path / f"{number}.json"), "train")
    assert tidy("The Hanging Gardens , in ( Mumbai ) 's city .") == "The Hanging Gardens, in (Mumbai)'s city."
