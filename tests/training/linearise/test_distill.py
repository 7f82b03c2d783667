"""A whole distillation: what each stage changes and gains, resuming, and what is refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.conversion.convert import training_step
from hf_longattn.errors import CheckpointError, LongAttentionError, OptionError
from hf_longattn.mechanisms import mechanism_class
from hf_longattn.training.linearise import student
from hf_longattn.training.linearise.stages import recovered
from hf_longattn.training.old_trainer import DivergenceError
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.processes import how_to_resume
from hf_longattn.training.tasks.linearise import LINEARISE, linearise_attention
from tests.grids import grid, quickly
from tests.ranks import Ranks, announce
from tests.training.conftest import written_texts
from tests.training.linearise.conftest import FAST, Kill, Start


@pytest.mark.thorough
@pytest.mark.parametrize("kind", quickly(("mlm", "llama"), ("mlm",)))
def test_linearise_stage_1_trains_mechanisms_and_stage_2_projections(kind: str, start: Start, tmp_path: Path) -> None:
    texts = written_texts(tmp_path / "whole texts")  # of which no row that is drawn here is a shorter last one
    report = linearise_attention(*start(kind=kind, text=[texts], transfer_steps=30, transfer_learning_rate=3e-2))
    out = tmp_path / "out"
    shares = {stage: [row["share"] for row in report[stage]["layers"]] for stage in ("before", "stage1")}
    assert all(after < before for before, after in zip(shares["before"], shares["stage1"], strict=True))
    assert report["stage1"]["original"] == pytest.approx(report["before"]["original"], abs=1e-6)
    assert report["tokens"] == {"stage1": 30 * 4 * 64, "stage2": 6 * 4 * 64}
    assert json.loads((out / "distillation_report.json").read_text())["stage2"] == report["stage2"]
    assert "after stage 2" in (out / "distillation_report.md").read_text()

    converted, first, second = (load_file(folder / "model.safetensors") for folder in (out / "converted", out / "stage1", out))
    own = {name for name in converted if ".long_attention." in name}
    assert set(converted) == set(first) == set(second)
    assert all(torch.equal(converted[name], first[name]) != (name in own) for name in converted)
    changed = {name for name in converted if not torch.equal(first[name], second[name])}
    assert own < changed
    frozen = ("mlp", "intermediate", "embed", "wte", "wpe", "norm", "Norm", "ln_", "bias")
    assert not [name for name in changed if any(part in name for part in frozen)], "LoRA updates the projections alone"

    history = json.loads((out / "distillation_report.json").read_text())["history"]
    assert [line["step"] for line in history["stage1"] if "loss" in line][:3] == [2, 4, 6]
    assert history["stage1"][0]["num_input_tokens_seen"] == 2 * 4 * 64
    assert len(history["stage1"][0]["layers"]) == 2
    assert {2, 4, 6} <= {line["step"] for line in history["stage2"]}


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("config.json", "holds a model"),
        ("stage1/config.json", "holds checkpoints of an earlier run"),
        ("converted/config.json", "converted', which --model is converted into, holds something else"),
    ],
)
def test_linearise_overwrites_no_model_in_its_output(file: str, words: str, start: Start, tmp_path: Path) -> None:
    mine = tmp_path / "out" / file
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(OptionError, match=f"{words}.*--overwrite"):
        linearise_attention(*start())
    assert [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["mine"]


def test_linearise_without_lora_changes_all_weights(start: Start, tmp_path: Path) -> None:
    report = linearise_attention(*start(use_peft=False))
    assert report["stage1"]["layers"][0]["share"] != report["before"]["layers"][0]["share"]
    before, after = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out" / "stage1", tmp_path / "out"))
    assert not [name for name in before if torch.equal(before[name], after[name])]


@pytest.mark.parametrize("stage", quickly((1, 2), (1,)))
def test_killed_linearise_run_resumes_to_the_same_result(stage: int, start: Start, tmp_path: Path, kill: Kill) -> None:
    """The quick tests of the second stage are those with a teacher."""
    uninterrupted = linearise_attention(*start("whole", save_steps=2))
    kill(stage, start("killed", save_steps=2))
    report = linearise_attention(*start("killed", save_steps=2, resume=True))
    whole, resumed = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert report["tokens"] == {"stage1": 6 * 4 * 64, "stage2": 6 * 4 * 64}
    logs = [log["history"]["stage1"] + log["history"]["stage2"] for log in (uninterrupted, report)]
    steps = [[(line["step"], line["num_input_tokens_seen"]) for line in log if "train_loss" not in line] for log in logs]
    assert steps[0] == steps[1]


@pytest.mark.parametrize(
    ("stage", "where"),
    grid([(1, "output"), (2, "output"), (1, "gradient"), (2, "gradient")], lambda stage, where: (stage == 1) == (where == "gradient")),
)
def test_linearise_ends_at_nan(stage: int, where: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hedgehog = mechanism_class("hedgehog")
    forward, passes = hedgehog.forward, []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("nan")

    def poisoned(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = forward(self, *args, **kwargs)
        if self.layer == 1 and self.training:
            passes.append(1)
        if self.layer == 1 and len(passes) > 3 and self.training:
            if where == "output":
                return output * float("nan")
            output.register_hook(spoil)
        return output

    monkeypatch.setattr(hedgehog, "forward", poisoned)
    what = "loss" if where == "output" else "gradient"
    with pytest.raises(DivergenceError, match=rf"The {what} is not a finite number at step 4; .*stage{stage}.*checkpoint-2;"):
        linearise_attention(*start(stage=str(stage), save_steps=2))
    newest = tmp_path / "out" / "checkpoints" / f"stage{stage}" / "checkpoint-2" / "model.safetensors"
    assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(newest).values())


@pytest.mark.parametrize("stage", quickly([1, 2], [2]))
def test_linearise_leaves_fp16_overflows_to_the_scaler(stage: int, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp16 the first steps overflow, until the scaler has found a scale."""
    prepare, scalers = Accelerator.__init__, []

    def with_scaler(self: Accelerator, *args: Any, **kwargs: Any) -> None:
        prepare(self, *args, **kwargs)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
        scalers.append(self.scaler)

    monkeypatch.setattr(Accelerator, "__init__", with_scaler)
    linearise_attention(*start(stage=str(stage)))
    assert scalers[-1].get_scale() < 2.0**127, "no step has overflowed"
    weights = load_file(tmp_path / "out" / "model.safetensors").values()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights)


def test_linearise_student_takes_the_weights_of_the_teacher(start: Start, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    teacher = AutoModelForMaskedLM.from_pretrained(start()[0].model)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.01)
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    linearise_attention(*start(stage="1", teacher=str(tmp_path / "teacher"), max_length=128))
    theirs, ours = (load_file(tmp_path / folder / "model.safetensors") for folder in ("teacher", "out"))
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs if "position_embeddings" not in name)
    table = next(name for name in theirs if "position_embeddings" in name)
    assert torch.equal(ours[table], theirs[table].repeat(2, 1))


def test_linearise_refuses_unfit_models_teachers_and_options(start: Start, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    plain = start()[0].model
    convert_checkpoint(plain, tmp_path / "windowed", mechanism="window", window=16, verify=False)
    other = BertForMaskedLM(BertConfig(vocab_size=1024, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=32))
    other.save_pretrained(tmp_path / "other")
    (tmp_path / "old" / "checkpoints" / "stage1").mkdir(parents=True)
    cases: list[tuple[type[LongAttentionError], str, dict[str, Any]]] = [
        (OptionError, "'window' has none with these options; give --stage 2", {"model": str(tmp_path / "windowed"), "mechanism": ""}),
        (OptionError, "has no long attention yet", {"mechanism": ""}),
        (CheckpointError, "num_hidden_layers is 3, not 2; num_attention_heads is 4, not 2", {"teacher": str(tmp_path / "other")}),
        (OptionError, "--transfer-steps must be at least 1", {"transfer_steps": 0}),
        (OptionError, "require --mechanism", {"mechanism": "", "option": ["feature_dim=4"]}),
        (OptionError, "must be even|even", {"option": ["feature_dim=5"]}),
        (OptionError, "add --resume", {"output": "old"}),
    ]
    for error, words, changes in cases:
        with pytest.raises(error, match=words):
            linearise_attention(*start(**changes))


@pytest.mark.parametrize(("family", "sentence"), [("bert", "is a BertForQuestionAnswering, which predicts no tokens"),
                                                  ("t5", "has no language-modelling head")])  # fmt: skip
def test_linearise_refuses_models_without_tokens(family: str, sentence: str, start: Start, tokenizer: PreTrainedTokenizerBase) -> None:
    arguments = start(stage="1", mechanism="hedgehog" if family == "bert" else "adaptive_span")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": len(tokenizer)}
    model = (
        BertForQuestionAnswering(BertConfig(**small))
        if family == "bert"
        else T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2))
    )
    model.save_pretrained(arguments[0].model)
    with pytest.raises(LongAttentionError, match=sentence):
        linearise_attention(*arguments)
    assert not Path(arguments[2].output_dir, "converted").exists()


def test_linearise_stage_1_keeps_a_sentence_encoder(start: Start, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Stage 1 saves the encoder without the head that it was loaded with; what needs a trained head is refused."""
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": len(tokenizer)}
    words = BertModel(BertConfig(**small, max_position_embeddings=64))
    for parameter in words.parameters():
        torch.nn.init.normal_(parameter)
    words.save_pretrained(tmp_path / "words")
    tokenizer.save_pretrained(tmp_path / "words")
    modules = [Transformer(str(tmp_path / "words"), max_seq_length=32), Pooling(32, "mean")]
    SentenceTransformer(modules=modules, prompts={"query": "Q: "}).save(str(tmp_path / "encoder"))
    commands = {}
    for mechanism in ("hedgehog", "linear"):
        plan = plan_conversion(tmp_path / "encoder", mechanism=mechanism, max_length=128)
        command = training_step(plan)["command"]
        convert_checkpoint(tmp_path / "encoder", tmp_path / mechanism, mechanism=mechanism, max_length=128, verify=False)
        commands[mechanism] = command[2], "--stage" in command
    assert commands == {"hedgehog": ("linearise", True), "linear": ("embed", False)}
    converted = {"mechanism": "", "model": str(tmp_path / "hedgehog"), "stage": "1", "transfer_steps": 2}
    for words, changes in (
        ("is a LongBertModel, which predicts no tokens; add --stage 1", {"stage": "both"}),
        ("is a LongBertModel, which predicts no tokens; add --stage 1", {"softmax_layers": 1.0}),
        ("'linear' has none with these options; convert with a mechanism that has some", {"model": str(tmp_path / "linear")}),
    ):
        with pytest.raises(OptionError, match=words):
            linearise_attention(*start("refused", **{**converted, **changes}))
    for output, changes in (("out", {}), ("at once", {"model": str(tmp_path / "encoder"), "mechanism": "hedgehog"})):
        out = tmp_path / output
        linearise_attention(*start(output, **{**converted, **changes}))
        source = tmp_path / "hedgehog" if output == "out" else out / "converted"
        before, after = (load_file(folder / "model.safetensors") for folder in (source, out))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert (set(after), changed) == (set(before), {name for name in before if ".long_attention." in name})
        assert json.loads((out / "config.json").read_text())["architectures"] == ["LongBertModel"]
        model, theirs = SentenceTransformer(str(out), device="cpu"), SentenceTransformer(str(source), device="cpu")
        assert (model.max_seq_length, model.prompts) == (theirs.max_seq_length, theirs.prompts)
        assert [type(module) for module in model] == [type(module) for module in theirs]
        assert np.isfinite(model.encode("some words " * 20)).all()
        assert "loss" not in (out / "distillation_report.md").read_text() + (out / "README.md").read_text().partition("Fine-tuned")[2]


def test_recovered_share_is_none_where_nothing_was_lost() -> None:
    assert recovered(2.0, 6.0, 3.0) == pytest.approx(0.75)
    assert recovered(2.0, 2.0, 1.9) is None
    assert recovered(2.0, 2.001, 1.9) is None


def test_failed_linearise_run_leaves_nothing_that_stops_the_next_one(start: Start, tmp_path: Path, kill: Kill) -> None:
    """It fails after the conversion, and in stage 1 without checkpoints; then another checkpoint is distilled into the same folder."""
    with pytest.raises(LongAttentionError, match="missing"):
        linearise_attention(*start(text=[str(tmp_path / "missing.txt")]))
    assert not (tmp_path / "out").exists()
    kill(1, start(save_strategy="no", disable_tqdm=True))
    assert not (tmp_path / "out").exists()
    assert how_to_resume(tmp_path / "out").endswith("run again from the beginning, with --overwrite")
    kill(2, start(kind="clm", save_strategy="no"))
    out = tmp_path / "out"
    assert how_to_resume(out) == f"stage 1 is complete in {out}/stage1; run again with --resume"
    assert not list(out.glob(".*"))
    (out / "checkpoints" / "stage2" / "checkpoint-2").mkdir(parents=True)  # whose save was interrupted
    assert linearise_attention(*start(kind="clm", save_strategy="no", resume=True))["steps"] == {"stage1": 6, "stage2": 6}


def refusal_of_a_slow_process(values: dict[str, Any]) -> str:
    announce()
    load = student.load_lm

    def late(*arguments: Any) -> Any:
        time.sleep(dist.get_rank())
        return load(*arguments)

    settings = build_arguments(LINEARISE, **values)
    with mock.patch.object(student, "load_lm", late), pytest.raises(LongAttentionError) as refused:
        linearise_attention(*settings)
    return str(refused.value)


@pytest.mark.slow
def test_linearise_in_several_processes_refuses_with_the_same_sentence(start: Start, tmp_path: Path) -> None:
    """The first one removes what was converted when all have read it."""
    model_args, data_args, _ = start()
    values = {"model": model_args.model, "text": data_args.text, "output_dir": str(tmp_path / "out"), "mechanism": "linear", **FAST}
    with Ranks(2, tmp_path) as ranks:
        one, two = ranks.run(refusal_of_a_slow_process, {**values, "use_cpu": True})
    assert one == two
    assert "Stage 1 trains the mechanisms' parameters" in one
    assert not (tmp_path / "out").exists()
