"""`longattn train linearise`: from the command line, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from hf_longattn.cli.train import train
from hf_longattn.training.parsing import parse_arguments
from hf_longattn.training.tasks.linearise import LINEARISE
from tests.byte_tokenizer import train_tokenizer
from tests.training.conftest import SOURCES, checkpoint

FAST = "--batch-size 1 --transfer-steps 4 --finetune-steps 4 --no-bf16 --disable-tqdm True --threads 1 --logging-steps 1"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(SOURCES, vocab_size=1024)


@pytest.fixture
def given(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A checkpoint and texts, as arguments."""
    for number, source in enumerate(SOURCES):
        (tmp_path / f"{number}.txt").write_text(source)
    texts = [str(tmp_path / f"{number}.txt") for number in range(len(SOURCES))]
    return ["--model", checkpoint("mlm", tmp_path / "short", tokenizer), "--text", *texts, *FAST.split()]


@pytest.mark.thorough
def test_linearise_by_one_command_from_a_short_checkpoint(tmp_path: Path, given: list[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mechanism: hedgehog\noption: [feature_dim=12]\nfinetune_steps: 3\ngradient_accumulation_steps: 1\n")
    out = tmp_path / "out"
    arguments = [*given, "--config", str(recipe), "--layers", "1=full", "--output", str(out), "--finetune-steps", "2"]
    assert train("linearise", arguments) == 0
    report = json.loads((out / "distillation_report.json").read_text())
    assert report["steps"] == {"stage1": 4, "stage2": 2}
    assert report["before"]["layers"][1]["share"] < 1e-9
    config = json.loads((out / "config.json").read_text())
    assert config["long_attention"] == {"mechanism": "hedgehog", "feature_dim": 12, "layers": {"1": {"mechanism": "full"}}}
    assert "Attention distillation with" in (out / "README.md").read_text()


def test_linearise_refuses_wrong_mechanism_and_missing_output(tmp_path: Path, given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("linearise", [*given, "--output", str(tmp_path / "out"), "--mechanism", "window"]) == 1
    error = capsys.readouterr().err
    assert "give --stage 2" in error
    assert "Traceback" not in error
    assert train("linearise", [*given, "--mechanism", "hedgehog"]) == 1
    assert "No output folder given" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "further",
    [
        [],
        ["--finetune-loss", "mixed", "--softmax-layers", "1"],
        ["--finetune-loss", "kl"],
    ],
)
def test_linearise_in_two_processes_equals_one(repository: Path, tmp_path: Path, given: list[str], further: list[str]) -> None:
    script, weights_file = [str(repository / "scripts" / "train.py"), "linearise"], tmp_path / "short" / "model.safetensors"
    if further:  # predictions shall depend on the attention
        scales, weights = {"attention": 30.0, "word_embeddings": 20.0}, load_file(weights_file)
        scaled = {name: value * next((scales[part] for part in scales if part in name), 1.0) for name, value in weights.items()}
        save_file(scaled, weights_file, metadata={"format": "pt"})
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Stage 2 masks tokens and drops units in each process by its own draws: in the first steps of a warm-up these hardly count.
    common = [*given, "--mechanism", "hedgehog", "--full", "True", "--save-steps", "2", "--warmup-steps", "30", *further]
    two = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"
    launch = [sys.executable, "-m", "accelerate.commands.launch", *two.split(), *script]
    for output, command, accumulation in (("one", [sys.executable, *script], "2"), ("two", launch, "1")):
        arguments = [*common, "--gradient-accumulation-steps", accumulation, "--output", str(tmp_path / output)]
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((tmp_path / output / "distillation_report.json").read_text()) for output in ("one", "two"))
    assert one["tokens"] == two["tokens"]
    assert one.get("softmax_layers", {}).get("kept") == two.get("softmax_layers", {}).get("kept")
    assert two["stage2"]["loss"] == pytest.approx(one["stage2"]["loss"], abs=1e-3 if further else 1e-4)
    trained = [load_file(tmp_path / output / "model.safetensors") for output in ("one", "two")]
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, atol=1e-3, rtol=1e-3, msg=name)


def test_linearise_takes_settings_from_recipe_and_command_line(repository: Path, tmp_path: Path) -> None:
    ready_model, _, ready = parse_arguments(LINEARISE, ["--config", "lolcats-llama-3-8b"], "", "longattn train linearise")
    assert (ready.transfer_steps, ready_model.lora_rank) == (2441, 8)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: a\noutput_dir: b\ntext: [c]\nmechanism: hybrid\noption: [window=32]\n")
    model_args, _, training_args = parse_arguments(
        LINEARISE, ["--config", str(recipe), "--transfer-steps", "7", "--option", "window=16"], ""
    )
    assert (training_args.transfer_steps, model_args.attention().options) == (7, {"window": 16})
