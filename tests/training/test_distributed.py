"""Several processes: steps of one, an end of all when one ends, DeepSpeed, and the configs of
``accelerate launch``."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainingArguments

import hf_longattn
from hf_longattn import LongBertForMaskedLM
from hf_longattn.training.recipes import CONFIGS
from hf_longattn.training.trainer import LongTrainer
from scripts.dev.tools.small_models import Shape, small_values
from tests.ranks import Ranks, announce, free_port
from tests.training.conftest import ROOT, checkpoint, converted, losses
from tests.training.kills import run_rank

ROUTING = {"mechanism": "routing", "num_clusters": 4, "window_per_cluster": 48, "decay": 0.9}


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    ids = [row["input_ids"] for row in rows]
    longest = max(map(len, ids))

    def padded(tensors: list[Tensor], value: int) -> Tensor:
        return torch.stack([torch.nn.functional.pad(x, (0, longest - len(x)), value=value) for x in tensors])

    return {
        "input_ids": padded(ids, 0),
        "labels": padded(ids, -100),
        "attention_mask": padded([torch.ones_like(x) for x in ids], 0),
    }


def trainer_for(attention: dict[str, Any], epochs: int, rate: float) -> LongTrainer:
    torch.manual_seed(0)
    model = hf_longattn.LongLlamaForCausalLM(
        hf_longattn.LongLlamaConfig(
            **small_values("llama", Shape(tokens=256)), long_attention=attention, use_cache=False
        )
    )
    # 24 examples: accelerate fills a last batch that is short with the first examples
    data = [{"input_ids": torch.randint(5, 99, (int(torch.randint(90, 200, (1,))),))} for _ in range(24)]
    arguments = TrainingArguments(
        output_dir="out",
        per_device_train_batch_size=8 // dist.get_world_size(),
        num_train_epochs=epochs,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=rate,
        seed=1,
        average_tokens_across_devices=True,
        train_sampling_strategy="sequential",
    )
    return LongTrainer(model=model, args=arguments, train_dataset=data, data_collator=collate)


def losses_and_norms(attention: dict[str, Any], epochs: int, rate: float) -> list[float]:
    announce()
    trainer = trainer_for(attention, epochs, rate)
    trainer.train()
    return [entry[key] for entry in trainer.state.log_history if "loss" in entry for key in ("loss", "grad_norm")]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    "attention",
    [
        {"mechanism": "window", "window": 32},
        ROUTING,
        {"mechanism": "adaptive_span", "max_span": 64},
        {"mechanism": "recurrent_memory", "segment_length": 64, "num_memory_tokens": 2},
    ],
    ids=lambda attention: attention["mechanism"],
)
def test_several_processes_take_the_steps_of_one(tmp_path: Path, attention: dict[str, Any], ranks: int) -> None:
    # Centroids that part do so slowly; at a high learning rate, rounding alone moves a token to another cluster within
    # 20 steps.
    epochs, rate = (10, 5e-4) if attention is ROUTING else (2, 1e-2)
    steps = []
    for count in (1, ranks):
        with Ranks(count, tmp_path) as processes:
            steps.append(processes.run(losses_and_norms, attention, epochs, rate)[0])
    assert steps[1] == pytest.approx(steps[0], abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install deepspeed"
)
@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_zero_trains_packed_texts_in_2_ranks(
    stage: int, tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The processes' batches hold different numbers of documents, and the loss is measured before training."""
    model = converted("mlm", tmp_path, tokenizer, max_length=256, window=32)
    command = f"""{sys.executable} -m accelerate.commands.launch --config_file {CONFIGS}/accelerate/zero{stage}.yaml
        --num_processes 2 --mixed_precision no -m hf_longattn train mlm --model {model} --data {texts}
        --output-dir {tmp_path / "out"} --max-steps 6 --learning-rate 3e-3 --warmup-steps 1
        --gradient-accumulation-steps 1""".split()
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((tmp_path / "out" / "training_log.json").read_text())
    assert log["metrics"]["after"]["loss"] < log["metrics"]["before"]["loss"]
    assert LongBertForMaskedLM.from_pretrained(tmp_path / "out").config.max_position_embeddings == 256


LINE = """--no-bf16 --disable-tqdm True --warmup-steps 1 --gradient-accumulation-steps 1 --logging-steps 1
    --max-steps 6
    --save-steps 2 --batch-size 2 --use-cpu True --packing false"""


@pytest.fixture
def arguments(tmp_path: Path, texts: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    (tmp_path / "held.txt").write_text("def held(out):\n    return out\n" * 20)
    model = checkpoint("mlm", tmp_path / "short", tokenizer)
    return [*LINE.split(), "--model", model, "--data", texts, "--validation", str(tmp_path / "held.txt")]


class Processes:
    """Two processes of one training, started together without a launcher. The second one ends as ``how`` says."""

    def __init__(self, folder: Path, arguments: list[str], how: str = "") -> None:
        context, port = multiprocessing.get_context("forkserver"), free_port()
        context.set_forkserver_preload(["tests.training.kills"])
        self.said = [folder.parent / f"{folder.name}-{how}-{rank}.txt" for rank in range(2)]
        line = [*arguments, "--output", str(folder)]
        self.processes: list[Any] = [
            context.Process(target=run_rank, args=("mlm", line, (rank, 2, port), str(said), how * rank))
            for rank, said in enumerate(self.said)
        ]
        for process in self.processes:
            process.start()

    def end(self, seconds: float) -> list[int | None]:
        """Wait for all; exit codes, ``None`` for one that ran on and was killed."""
        until = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return codes


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "raise"])
def test_two_processes_end_when_one_of_them_does_and_resume(how: str, arguments: list[str], tmp_path: Path) -> None:
    ranks = Processes(tmp_path / "out", arguments, how)
    codes = ranks.end(300)
    assert None not in codes, ranks.said[0].read_text()[-3000:]
    assert all(codes)
    if how == "raise":
        assert ranks.said[1].read_text().strip().splitlines()[-1] == "Error: row 7 of train.jsonl cannot be read"
    for output, more in (("out", ["--resume"]), ("whole", [])):
        ranks = Processes(tmp_path / output, [*arguments, *more])
        assert ranks.end(1200) == [0, 0], ranks.said[0].read_text()[-3000:]
    assert len(losses(tmp_path / "whole")) == 6
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


FILES = sorted((CONFIGS / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_each_shipped_config_as_written(path: Path) -> None:
    load_config_from_file(str(path))
    args = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    args, _, _ = _validate_launch_command(args)
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert args.num_processes == written["num_processes"]
    assert args.mixed_precision == written["mixed_precision"]
    assert args.use_fsdp == (written["distributed_type"] == "FSDP")
    assert args.use_deepspeed == (written["distributed_type"] == "DEEPSPEED")
    for section in ("fsdp_config", "deepspeed_config", "parallelism_config"):
        for name, value in written.get(section, {}).items():
            assert str(getattr(args, name)).lower() == str(value).lower(), name


def test_accelerate_configs_are_ddp_fsdp2_zero2_and_zero3() -> None:
    assert [path.stem for path in FILES] == ["ddp", "fsdp2", "zero2", "zero3"]
