"""Language models: masked and next tokens, documents in segments with a memory, and a plain Trainer with the same
losses."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

import hf_longattn
from hf_longattn import LongBertForMaskedLM
from hf_longattn.cli.train import train
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.batching import RepeatableMasks
from hf_longattn.data.tokenization import IGNORED, input_length
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.training.arguments import LongTrainingArguments
from hf_longattn.training.lm import SegmentBatches, Segments, SegmentTrainer, load_lm
from hf_longattn.training.run import LOG_NAME
from scripts.dev.tools.small_models import Shape, small_values
from tests.byte_tokenizer import train_tokenizer
from tests.grids import quickly
from tests.training.conftest import SOURCES, checkpoint, converted, launched, losses, quick, written_texts
from tests.training.test_classify import rows


@pytest.mark.thorough
@pytest.mark.parametrize("kind", quickly(["mlm", "clm"], ["clm"]))
def test_converted_language_model_learns_from_long_text(
    kind: str, tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = converted(kind, tmp_path, tokenizer, max_length=256, window=32)
    log = quick(kind, model, tmp_path / "out", texts, max_steps=20, learning_rate=3e-3)
    assert log["input_length"] == 256
    assert log["metrics"]["after"]["loss"] < log["metrics"]["before"]["loss"] - 0.1
    assert json.loads((tmp_path / "out" / LOG_NAME).read_text())["settings"]["max_steps"] == 20
    if kind == "mlm":
        assert LongBertForMaskedLM.from_pretrained(tmp_path / "out").config.max_position_embeddings == 256


def test_language_model_training_refuses_unfit_models_and_texts(
    tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    short = checkpoint("clm", tmp_path / "short", tokenizer)
    encoder = checkpoint("mlm", tmp_path / "encoder", tokenizer)
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("exceeds the 64 tokens", "clm", {"max_length": 65}),
        ("does not predict masked tokens", "mlm", {}),
        ("does not predict the next token", "clm", {"model": encoder}),
        ("only one document|only one row", "clm", {"data": [f"{texts}/0.txt"]}),
        ("--mlm-probability must lie between 0 and 1", "mlm", {"mlm_probability": 1.0}),
    ]
    for words, task, changes in cases:
        with pytest.raises(OptionError, match=words):
            quick(task, **{"model": short, "output": tmp_path / "o", "data": texts, **changes})


def test_training_refuses_quantised_weights(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = checkpoint("clm", tmp_path / "short", tokenizer)
    monkeypatch.setattr(PreTrainedModel, "is_quantized", True, raising=False)
    with pytest.raises(CheckpointError, match="holds quantised weights, which cannot be trained"):
        load_lm(short, "auto")


def test_model_without_a_length_needs_max_length(tokenizer: PreTrainedTokenizerBase) -> None:
    class Endless(torch.nn.Module):
        config: Any = None
        base_model = torch.nn.Module()

    tokenizer.model_max_length, usual = int(1e30), tokenizer.model_max_length
    try:
        with pytest.raises(OptionError, match="give --max-length"):
            input_length(Endless(), tokenizer, None)  # type: ignore[arg-type]
        assert input_length(Endless(), tokenizer, 300) == 300  # type: ignore[arg-type]
    finally:
        tokenizer.model_max_length = usual


DOCUMENTS = [
    {"input_ids": list(range(100 * number, 100 * number + size))} for number, size in enumerate((7, 4, 9, 2, 5), 1)
]
XL = {"mechanism": "transformer_xl", "segment_length": 16, "memory_length": 16}


def small_model(long_attention: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    values = small_values("gpt2", Shape(width=16, heads=2, vocabulary=700), resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    return hf_longattn.LongGPT2LMHeadModel(hf_longattn.LongGPT2Config(**values, long_attention=long_attention))


def segments(length: int = 4, documents: list[dict[str, Any]] = DOCUMENTS) -> Segments:
    return Segments(Dataset.from_list(documents), length)


def test_rows_hold_whole_documents_one_after_the_other(tokenizer: PreTrainedTokenizerBase) -> None:
    read: list[list[list[int]]] = [[], []]
    rows: Any = SegmentBatches(segments(), 2)
    for batch in DataLoader(segments(), batch_sampler=rows, collate_fn=RepeatableMasks(tokenizer, mlm=False, seed=0)):
        assert batch["input_ids"].shape == (2, 4)
        assert set(batch) == {"input_ids", "attention_mask", "labels", "memory_reset"}
        for row in range(2):
            ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
            assert (batch["labels"][row] != IGNORED).sum() == len(ids)
            if batch["memory_reset"][row]:
                read[row].append([])
            read[row][-1] += ids
    everything = [document for row in read for document in row if document]
    assert sorted(everything) == sorted(document["input_ids"] for document in DOCUMENTS)
    # rows take the next document when theirs ends
    assert read[0][:2] == [DOCUMENTS[0]["input_ids"], DOCUMENTS[3]["input_ids"]]
    assert read[1][:2] == [DOCUMENTS[1]["input_ids"], DOCUMENTS[2]["input_ids"]]


def test_every_pass_of_every_seed_reads_the_documents_in_its_own_order() -> None:
    """Pass 1 of seed 42 was pass 0 of seed 43."""
    of_sixty, orders = segments(2, [{"input_ids": [0, number]} for number in range(60)]), set()
    for seed in (42, 43, 44):
        read = [place for (place,) in itertools.islice(SegmentBatches(of_sixty, 1, seed), 180)]
        assert [place for (place,) in itertools.islice(SegmentBatches(of_sixty, 1, seed), 180)] == read
        orders |= {
            tuple(place[1] for place in read if place is not None and place[0] == number) for number in range(3)
        }
    assert len(orders) == 9
    assert all(sorted(order) == list(range(60)) for order in orders)


def test_segment_training_refuses_options_that_do_not_fit() -> None:
    for wrong in ({"segments": 1}, {"segments": 8, "max_length": 64}):
        with pytest.raises(OptionError, match="segments is"):
            quick("clm", "m", Path("o"), "t", **wrong)
    for setting, words in (
        ({"gradient_checkpointing": True}, "drops what the layers remember"),
        ({"tokens_per_batch": 9}, "known length"),
    ):
        with pytest.raises(OptionError, match=words):
            SegmentTrainer(None, LongTrainingArguments("o", **setting))


def trainer(
    folder: Path, steps: int = 12, save: int = 0, long_attention: dict[str, Any] = XL, bf16: bool = False
) -> SegmentTrainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        save_strategy="steps" if save else "no",
        save_steps=save or 500,
        logging_steps=1,
        disable_tqdm=True,
        lr_scheduler_type="constant",
        dataloader_pin_memory=False,
        bf16=bf16,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=3,
    )
    collator = RepeatableMasks(train_tokenizer(SOURCES, vocab_size=300), mlm=False)
    data: dict[str, Any] = {"train_dataset": segments(), "eval_dataset": segments()}
    return SegmentTrainer(small_model(long_attention), arguments, data_collator=collator, **data)


@pytest.mark.parametrize("mechanism", ["transformer_xl", "recurrent_memory"])
def test_segment_training_resumes_with_its_memory_to_the_same_weights(tmp_path: Path, mechanism: str) -> None:
    options = {"recurrent_memory": {"num_memory_tokens": 2}}.get(mechanism, {})
    long_attention = {"mechanism": mechanism, "segment_length": 16, **options}
    whole = trainer(tmp_path / "whole", save=5, long_attention=long_attention)
    whole.train()
    resumed = trainer(tmp_path / "resumed", long_attention=long_attention)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert resumed.state.global_step == 12
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)
    (tmp_path / "whole" / "checkpoint-5" / "segment_memory_0.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no segment_memory_0\.safetensors"):
        trainer(tmp_path / "other").train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))


def test_segment_training_learns_and_evaluates_with_memory(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=30, bf16=True)
    before = run.evaluate()["eval_loss"]
    assert run.evaluate()["eval_n"] == len(DOCUMENTS)
    run.train()
    assert run.evaluate()["eval_loss"] < before - 0.5
    # the measured loss is that of whole documents, whose first token is not predicted in any segment
    with torch.no_grad():
        total, count = 0.0, 0
        model = run.model.eval()
        for document in DOCUMENTS:
            memory = model.new_memory()
            for first in range(0, len(document["input_ids"]), 4):
                ids = torch.tensor([document["input_ids"][first : first + 4]])
                out = model(ids, labels=ids, memory=memory)
                memory = out.memory
                if ids.shape[1] > 1:
                    total, count = total + out.loss.item() * (ids.shape[1] - 1), count + ids.shape[1] - 1
    assert abs(total / count - run.evaluate()["eval_loss"]) < 0.02


@pytest.mark.slow
def test_segment_training_in_two_processes_shares_rows_and_resumes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    short = checkpoint("clm", tmp_path / "short", tokenizer, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    options = {"segment_length": 32, "memory_length": 32}
    convert_checkpoint(short, tmp_path / "long", mechanism="transformer_xl", max_length=64, verify=False, **options)
    line = f"""train clm --segments 32 --max-steps 12 --save-steps 6 --logging-steps 1 --learning-rate 3e-3
        --warmup-steps 1 --gradient-accumulation-steps 1 --no-bf16 --disable-tqdm True
        --model {tmp_path / "long"} --data {written_texts(tmp_path / "texts", 8000)}""".split()
    launched([*line, "--output", "two", "--batch-size", "1"], tmp_path)
    launched([*line, "--output", "one", "--batch-size", "2", "--use-cpu"], tmp_path, processes=1)
    assert len(losses(tmp_path / "two")) == 12
    # the same rows, in one process or in two
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-3)
    checkpoints = tmp_path / "two"
    memories = [load_file(checkpoints / "checkpoint-6" / f"segment_memory_{rank}.safetensors") for rank in range(2)]
    assert not torch.equal(memories[0]["0.keys"], memories[1]["0.keys"])
    weights = load_file(tmp_path / "two" / "model.safetensors")
    for later in (checkpoints / "checkpoint-12").iterdir():
        later.unlink()
    (checkpoints / "checkpoint-12").rmdir()
    launched([*line, "--output", "two", "--batch-size", "1", "--resume", "True"], tmp_path)
    resumed = load_file(tmp_path / "two" / "model.safetensors")
    assert all(torch.allclose(weights[name], resumed[name], atol=1e-5) for name in weights)


STEPS: dict[str, Any] = {
    "max_steps": 6,
    "logging_steps": 1,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}
LINE = """--no-bf16 --disable-tqdm True --packing false --train-sampling-strategy random --no-eval-on-start
    --warmup-steps 0 --max-steps 6
    --logging-steps 1 --save-strategy no --validation reviews.csv"""


def test_plain_trainer_of_the_page_has_the_losses_of_the_command(
    repository: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    convert_checkpoint(
        checkpoint("mlm", tmp_path / "short", tokenizer), "bert-4096", mechanism="window", max_length=128, verify=False
    )
    Dataset.from_list(rows()).to_csv("reviews.csv", index=False)
    assert train("classify", ["--model", "bert-4096", "--data", "reviews.csv", "--output", "out", *LINE.split()]) == 0
    page = (repository / "docs" / "how-to" / "train.md").read_text(encoding="utf-8")
    (code,) = re.findall(
        r"```python\n(.*?)```", page.partition("## Without our command line")[2].partition("\n## ")[0], re.DOTALL
    )
    assert len(code.splitlines()) <= 30
    monkeypatch.setattr(
        "transformers.TrainingArguments", lambda *given, **more: TrainingArguments(*given, **{**more, **STEPS})
    )
    names: dict[str, Any] = {}
    exec(code.replace("max_length=4096", "max_length=128"), names)
    assert len(losses(tmp_path / "out")) == 6
    assert losses({"history": names["trainer"].state.log_history}) == losses(tmp_path / "out")
