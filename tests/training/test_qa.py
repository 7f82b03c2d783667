"""Question answering from arguments to files: on anyone's SQuAD file, resumable, stopped in time, saved as a plain model."""

from __future__ import annotations

import itertools
import json
import random
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, concatenate_datasets
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertForQuestionAnswering,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForQuestionAnswering,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_longattn import convert_checkpoint
from hf_longattn.data.lengths import PositionRange
from hf_longattn.data.qa_features import QACollator, QAEncodingConfig, encode_qa, to_features
from hf_longattn.data.qa_schemas import load_qa, save_qa
from hf_longattn.errors import InputError, OptionError
from hf_longattn.evaluation.qa_reader import QAReader, whole
from hf_longattn.training.checkpoints import newest_checkpoint
from hf_longattn.training.evaluation import evaluation_arguments
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.tasks.qa import (
    QA,
    QADataArguments,
    QATrainer,
    describe_qa_training,
    finetune_qa,
    load_qa_model,
    qa_table,
    random_positions,
    window_mask,
)
from tests.training.conftest import FAST, SCORED


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_model: BertForQuestionAnswering, tokenizer: PreTrainedTokenizerBase) -> str:
    tiny_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Documents of some hundred tokens, each with one line that answers the question."""
    choose, names = random.Random(0), ["tree", "file", "node", "path", "line", "code"]
    records = []
    for number in range(16):
        lines = [f"def {choose.choice(names)}_{choose.randrange(99)}(self, value): return value" for _ in range(choose.randint(8, 30))]
        answer = choose.choice(names)
        lines.insert(choose.randrange(len(lines)), f"# the module is {answer}")
        context = "\n".join(lines)
        found = {"text": [answer], "answer_start": [context.index("module is ") + len("module is ")]}
        records.append({"id": str(number), "question": "what is the module?", "context": context, "answers": found})
    save_qa(records, tmp_path / "data.jsonl")
    return str(tmp_path / "data.jsonl")


def losses(log: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in log["history"] if "loss" in entry]


@pytest.mark.thorough
@pytest.mark.parametrize(("wanted", "carried"), [(None, True), (True, True), (False, False)])
def test_qa_model_keeps_if_its_question_is_global(checkpoint: str, data: str, tmp_path: Path, wanted: bool | None, carried: bool) -> None:
    convert_checkpoint(checkpoint, tmp_path / "long", mechanism="longformer", window=16, max_length=700, verify=False)
    given = {"model": str(tmp_path / "long"), "output_dir": str(tmp_path / "out"), "data": [data]}
    finetune_qa(*build_arguments(QA, **given, max_steps=1, global_question=wanted, **FAST))
    saved = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out")
    assert (saved.config.question_separator_id is not None) == carried


def test_qa_trains_a_model_without_global_tokens(checkpoint: str, data: str, tmp_path: Path) -> None:
    convert_checkpoint(checkpoint, tmp_path / "long", mechanism="window", window=16, max_length=700, verify=False)
    given = {"model": str(tmp_path / "long"), "output_dir": str(tmp_path / "out"), "data": [data], "max_steps": 1, **FAST}
    finetune_qa(*build_arguments(QA, **given))
    with pytest.raises(OptionError, match=r"requires a mechanism with global tokens.*; leave it out"):
        finetune_qa(*build_arguments(QA, **given, global_question=True))


@pytest.mark.thorough
def test_qa_stops_early_and_keeps_the_best_model(checkpoint: str, data: str, tmp_path: Path) -> None:
    given = {"model": checkpoint, "output_dir": str(tmp_path / "out"), "data": [data], "validation": data, "max_steps": 40}
    how = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True, "early_stopping_patience": 2}
    log = finetune_qa(*build_arguments(QA, **given, **how, **{**FAST, "warmup_steps": 0}, learning_rate=3.0))  # diverges at once
    evaluated = [entry["eval_loss"] for entry in log["history"] if "eval_loss" in entry]
    assert len(losses(log)) < 40
    assert log["held_out_loss"]["after"] == pytest.approx(min(evaluated[1:]))


def test_qa_resumes_with_the_losses_of_an_uninterrupted_run(checkpoint: str, data: str, tmp_path: Path) -> None:
    """With dropout, random positions and windows: everything that is drawn belongs to its step."""

    def run(name: str, **more: Any) -> dict[str, Any]:
        given = {"model": checkpoint, "output_dir": str(tmp_path / name), "data": [data], "max_length": 256, "num_train_epochs": 1.5}
        varied = {"random_positions": True, "windows": [0, 16], **FAST, "gradient_accumulation_steps": 2}
        return finetune_qa(*build_arguments(QA, **given, **varied, **more))

    whole = run("whole")
    run("parts", save_steps=2)
    newest = newest_checkpoint(tmp_path / "parts")
    assert newest is not None
    shutil.rmtree(newest)
    resumed = run("parts", save_steps=2, resume=True)
    assert losses(resumed) == losses(whole)
    assert len(losses(whole)) >= 6


@pytest.mark.thorough
def test_qa_card_counts_inputs_and_minutes_of_sessions(checkpoint: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()  # half a minute each
    monkeypatch.setattr("hf_longattn.training.old_trainer.time", SimpleNamespace(monotonic=lambda: 30.0 * next(looks)))
    given = {"model": checkpoint, "output_dir": str(tmp_path / "out"), "data": [data], "validation": data, "max_length": 96, "stride": 16}
    first = finetune_qa(*build_arguments(QA, **given, max_steps=2, save_steps=1, **FAST))
    inputs = len(to_features(load_qa(data), load_qa_model(checkpoint)[1], QAEncodingConfig(96, 16)))
    assert inputs > 16
    assert first["held_out_loss"]["n"] == inputs
    assert f"after ({inputs} inputs)." in describe_qa_training(first)
    minutes = next(entry["minutes"] for entry in first["history"] if "train_runtime" in entry)
    again = finetune_qa(*build_arguments(QA, **given, max_steps=2, save_steps=1, resume=True, **FAST))  # which has no step left
    sentence = re.match(r"2 steps in ([\d.]+) minutes", describe_qa_training(again))
    assert sentence is not None
    assert float(sentence[1]) >= minutes > 1.0


@pytest.mark.thorough
def test_short_run_logs_more_often_than_logging_steps(checkpoint: str, data: str, tmp_path: Path) -> None:
    given = {"model": checkpoint, "output_dir": str(tmp_path / "out"), "data": [data], "max_steps": 25, "max_length": 64, "stride": 16}
    log = finetune_qa(*build_arguments(QA, **given, **{**FAST, "logging_steps": 20}))
    assert [entry["step"] for entry in log["history"] if "loss" in entry] == [*range(2, 25, 2), 25]


def test_qa_collator_pads_windows_with_their_spans_and_global_tokens(data: str, tokenizer: PreTrainedTokenizerBase) -> None:
    records = load_qa(data)
    features = to_features(records, tokenizer, QAEncodingConfig(96, stride=32, global_question=True), document_start=True)
    assert len(features) > len(records)
    assert max(features["length"]) == 96
    assert sum(starts != [0] for starts in features["starts"]) >= len(records)
    shortest, longest = min(features, key=lambda row: row["length"]), max(features, key=lambda row: row["length"])
    batch = QACollator(tokenizer)([shortest, longest])
    padding = 96 - shortest["length"]
    assert batch["input_ids"].shape == batch["global_attention_mask"].shape == batch["token_type_ids"].shape == (2, 96)
    assert batch["attention_mask"].sum(1).tolist() == [96 - padding, 96]
    assert batch["starts"].shape == batch["ends"].shape == (2, 1)
    assert batch["document_start"].shape == (2,)
    assert "length" not in batch


def test_random_positions_stay_in_the_position_table(tiny_model: BertForQuestionAnswering) -> None:
    positions = PositionRange.of(tiny_model)
    assert positions == PositionRange(0, 512)
    generator, starts = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        ids = random_positions(torch.tensor([5, 3]), 400, positions, generator)
        assert ids.shape == (2, 400)
        for part in (ids[0, :5], ids[0, 5:]):
            assert set((part.diff() % 512).tolist()) == {1}
        assert ids.min() >= 0
        assert ids.max() < 512
        starts.add((int(ids[0, 0]), int(ids[0, 5])))
    assert len(starts) > 10


def test_window_mask_hides_what_longformer_attention_hides() -> None:
    first, real = torch.tensor([3, 3]), torch.ones(2, 20, dtype=torch.long)
    real[1, 8:] = 0
    generator = torch.Generator().manual_seed(0)
    mask = window_mask(first, real, [4], generator)
    assert mask is not None
    assert mask.shape == (2, 1, 20, 20)
    places = torch.arange(20)
    expected = ((places[:, None] - places).abs() <= 4) | (places < 3) | (places[:, None] < 3)
    assert torch.equal(mask[0, 0], expected)
    assert torch.equal(mask[1, 0], expected & (places < 8))
    assert {window_mask(first, real, [0, 4], generator) is None for _ in range(20)} == {True, False}


def test_random_windows_hide_the_same_in_eager_and_sdpa_attention(tiny_model: BertForQuestionAnswering) -> None:
    first, real = torch.tensor([3, 3]), torch.ones(2, 40, dtype=torch.long)
    ids, logits = torch.randint(5, 1000, (2, 40)), {}
    for implementation in ("sdpa", "eager"):
        tiny_model.eval().set_attn_implementation(implementation)
        parts = {"positions": None, "windows": (4,), "model": tiny_model, "accelerator": SimpleNamespace(unwrap_model=lambda model: model)}
        given = QATrainer.varied(SimpleNamespace(**parts), first, real, torch.Generator().manual_seed(0))
        logits[implementation] = tiny_model(ids, attention_mask=given["attention_mask"]).start_logits
    assert torch.allclose(logits["eager"], logits["sdpa"], atol=1e-5)
    assert not torch.allclose(tiny_model(ids).start_logits, logits["sdpa"], atol=1e-5)


def test_position_range_of_roberta_begins_after_its_padding_row() -> None:
    config = RobertaConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, max_position_embeddings=34
    )
    assert PositionRange.of(RobertaForQuestionAnswering(config)) == PositionRange(2, 32)


def test_position_range_of_a_model_without_a_table_is_none() -> None:
    class Rotary(torch.nn.Module):
        base_model = torch.nn.Module()

    assert PositionRange.of(Rotary()) is None  # type: ignore[arg-type]


def converted(checkpoint: str, folder: Path) -> str:
    convert_checkpoint(checkpoint, folder / "long", mechanism="longformer", window=16, max_length=700, verify=False)
    return str(folder / "long")


def test_qa_windows_are_labelled_with_the_answers_they_hold(data: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Every span of every window reads as an answer of its document, and a window without a span holds none as a whole."""
    records = [
        {**record, "answers": {"text": [text] * 2, "answer_start": [start, record["context"].rindex(text)]}}
        for record in load_qa(data).to_list()
        for text, start in [(record["answers"]["text"][0], record["answers"]["answer_start"][0])]
    ]
    seen = set()
    for record in records:
        answers = {(start, start + len(text)) for text, start in zip(*record["answers"].values(), strict=True)}
        for feature in encode_qa(record, tokenizer, QAEncodingConfig(64, stride=24)):
            found = set()
            for start, end in feature.spans if feature.spans != [(0, 0)] else []:
                first, last = feature.offsets[start], feature.offsets[end]
                assert first is not None
                assert last is not None
                found |= {(a, b) for a, b in answers if first[0] <= a < first[1] and last[0] < b <= last[1]}
            inside = [offset for offset in feature.offsets if offset is not None]
            assert found == {(a, b) for a, b in answers if inside[0][0] <= a and b <= inside[-1][1]}
            seen.add(len(found))
    assert {0, 1} <= seen


@pytest.mark.thorough
def test_qa_packed_and_padded_runs_have_the_same_losses(checkpoint: str, data: str, tmp_path: Path) -> None:
    """Questions of different length, with their global tokens; dropout draws other numbers, so there is none."""
    long = converted(without_dropout(checkpoint), tmp_path)

    def run(packing: bool) -> dict[str, Any]:
        given = {"model": long, "output_dir": str(tmp_path / str(packing)), "data": [data], "validation": data, "max_length": 256}
        settings = {**FAST, "per_device_train_batch_size": 3, "max_steps": 5, "learning_rate": 1e-3}
        return finetune_qa(*build_arguments(QA, **given, packing=packing, **settings))

    packed, padded = run(True), run(False)
    assert (packed["packed"], padded["packed"]) == (True, False)
    assert losses(packed) == pytest.approx(losses(padded), abs=1e-4)
    assert packed["held_out_loss"]["after"] == pytest.approx(padded["held_out_loss"]["after"], abs=1e-4)


def without_dropout(checkpoint: str) -> str:
    config = json.loads(Path(checkpoint, "config.json").read_text())
    Path(checkpoint, "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}))
    return checkpoint


@pytest.mark.thorough
def test_qa_losses_equal_those_of_a_plain_transformers_trainer(checkpoint: str, data: str, tmp_path: Path) -> None:
    """The script of docs/how-to/train.md: transformers alone, on the same converted model, with accumulated batches."""
    long = converted(without_dropout(checkpoint), tmp_path)
    settings = {"max_steps": 4, "learning_rate": 1e-3, "logging_steps": 1, "seed": 3, "warmup_steps": 0, "disable_tqdm": True}
    given = {"model": long, "output_dir": str(tmp_path / "ours"), "data": [data], "validation": data}
    given |= {"train_sampling_strategy": "random", "bf16": False}
    ours = finetune_qa(*build_arguments(QA, **given, **settings, per_device_train_batch_size=2, gradient_accumulation_steps=2))

    set_seed(3)
    model, tokenizer = AutoModelForQuestionAnswering.from_pretrained(long), AutoTokenizer.from_pretrained(long)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer(row["question"], row["context"], return_offsets_mapping=True, return_attention_mask=False)
        first, last = row["answers"]["answer_start"][0], row["answers"]["answer_start"][0] + len(row["answers"]["text"][0]) - 1
        places = [at for at, kind in enumerate(encoded.sequence_ids()) if kind == 1]
        offsets = encoded.pop("offset_mapping")
        encoded["start_positions"] = max(at for at in places if offsets[at][0] <= first)
        encoded["end_positions"] = max(at for at in places if offsets[at][0] <= last)
        return encoded

    rows = Dataset.from_json(data)
    plain = {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "weight_decay": 0.01,
        "use_cpu": True,
        "save_strategy": "no",
    }
    arguments = TrainingArguments(str(tmp_path / "plain"), **settings, **plain, report_to=[])
    trainer = Trainer(model, arguments, train_dataset=rows.map(encode, remove_columns=rows.column_names), processing_class=tokenizer)
    trainer.train()
    assert ours["packed"]
    assert losses({"history": trainer.state.log_history}) == pytest.approx(losses(ours), abs=1e-4)


@pytest.mark.thorough
def test_qa_reader_gives_the_predictions_of_the_evaluation(checkpoint: str, data: str, tmp_path: Path) -> None:
    """With questions without an answer: the threshold tuned on the validation data is in the config."""
    records = load_qa(data).to_list()
    for record in records[::3]:
        record |= {"answers": {"text": [], "answer_start": []}, "gold": []}
    save_qa([{name: record[name] for name in ("id", "question", "context", "answers")} for record in records], tmp_path / "some.jsonl")
    given = {"model": converted(checkpoint, tmp_path), "output_dir": str(tmp_path / "out"), "data": [str(tmp_path / "some.jsonl")]}
    log = finetune_qa(*build_arguments(QA, **given, validation=given["data"][0], max_steps=20, learning_rate=1e-2, **FAST))
    predictions = json.loads((tmp_path / "out" / "predictions.json").read_text())
    model, tokenizer = load_qa_model(str(tmp_path / "out"))
    reader = QAReader("row", model, tokenizer, whole(700))
    assert reader.null_threshold == log["held_out"]["after"]["best_f1_threshold"]
    assert {record["id"]: reader.answer(record) for record in records} == predictions
    for scores in log["held_out"].values():  # a threshold of its own before and after, so that the gain is not the threshold's
        assert scores["f1"] == pytest.approx(scores["best_f1"])
        assert scores["NoAns_total"] == 6
    assert "best on these very questions" in (tmp_path / "out" / "README.md").read_text()


def test_qa_training_drops_the_no_answer_threshold_of_an_earlier_one(checkpoint: str, data: str, tmp_path: Path) -> None:
    model = converted(checkpoint, tmp_path)
    config = AutoConfig.from_pretrained(model)
    config.no_answer_threshold = -9.0
    config.save_pretrained(model)
    finetune_qa(*build_arguments(QA, model=model, output_dir=str(tmp_path / "out"), data=[data], validation=data, max_steps=1, **FAST))
    assert getattr(AutoConfig.from_pretrained(tmp_path / "out"), "no_answer_threshold", None) is None


def test_evaluate_qa_uses_the_no_answer_threshold_of_the_model(checkpoint: str, data: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    for row in rows[::2]:
        row["answers"] = {"text": [], "answer_start": []}
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = converted(checkpoint, tmp_path)
    config = AutoConfig.from_pretrained(model)
    config.no_answer_threshold = 1e6
    config.save_pretrained(model)
    given = {"model": model, "output_dir": str(tmp_path / "scored"), "data": [str(tmp_path / "some.jsonl")], **SCORED}
    log = finetune_qa(*build_arguments(evaluation_arguments(QA), **given))
    assert (log["held_out"]["after"]["HasAns_f1"], log["held_out"]["after"]["NoAns_f1"]) == (0.0, 100.0)
    assert set(json.loads((tmp_path / "scored" / "predictions.json").read_text()).values()) == {""}
    assert "best on these" not in qa_table(log)


def test_qa_trainer_evaluates_the_questions_it_is_given_row_by_row(
    checkpoint: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the threshold of the trainer's questions, and without a list of all questions."""
    model, tokenizer = load_qa_model(checkpoint)
    records, nothing = load_qa(data), {"answers": {"text": [], "answer_start": []}, "gold": [], "kind": "none"}
    none = records.select(range(3)).map(lambda _: nothing, features=records.features)
    reader = QAReader("", model, tokenizer, whole(512), null_threshold=0.0)
    _, _, arguments = build_arguments(QA, model=checkpoint, output_dir=str(tmp_path / "out"), data=[data], **FAST)
    trainer = QATrainer(model, arguments, eval_dataset=concatenate_datasets([records, none]), reader=reader)
    monkeypatch.delattr(Dataset, "to_list")
    own = trainer.evaluate()
    threshold = trainer.threshold
    few = trainer.evaluate(records.select(range(2)))
    assert (own["eval_n"], few["eval_n"]) == (19, 2)
    alone = [loss for answer in reader.read(records.select(range(2))) for loss in answer.losses]
    assert few["eval_loss"] == pytest.approx(sum(alone) / len(alone))
    assert trainer.evaluate(none)["eval_n"] == 3
    assert trainer.threshold == threshold
    assert trainer.evaluate() == own


def test_qa_reads_long_documents_in_windows_cuts_or_refuses_them(checkpoint: str, data: str, tmp_path: Path) -> None:
    def run(**more: Any) -> dict[str, Any]:
        given = {"model": checkpoint, "output_dir": str(tmp_path / "out"), "data": [data], "max_length": 160, "max_steps": 1}
        return finetune_qa(*build_arguments(QA, **{**given, **more}, **FAST))

    for length, shared in ((64, 16), (128, 32), (384, 96), (512, 128), (4096, 128)):
        assert QADataArguments(data=[data]).shared_tokens(length) == shared
    assert run(max_length=64)["features"] > run(max_length=128)["features"] > 16
    with pytest.raises(InputError, match=r"--max-length 128 leaves 119 tokens .* not more than the stride 128; lower --stride"):
        run(max_length=128, stride=128)
    with pytest.raises(InputError, match="give --long-documents windows"):
        run(long_documents="refuse")
    with pytest.raises(OptionError, match="--stride has no effect with --long-documents truncate"):
        run(long_documents="truncate", stride=32)
    windows, cut = run(stride=32), run(long_documents="truncate")
    assert cut["features"] < cut["questions"] < windows["features"]
    with pytest.raises(OptionError, match="--long-documents must be one of windows"):
        run(long_documents="cut")
    with pytest.raises(OptionError, match="does not keep documents of one row apart"):
        run(packing=True)
