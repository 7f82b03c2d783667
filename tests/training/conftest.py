"""A small tokenizer and a tiny model, made once."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import BertForQuestionAnswering, PreTrainedTokenizerBase

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.training.run import LOG_NAME
from hf_longattn.training.tasks import load_task
from scripts.dev.tools.small_models import Shape, language_model, small_config
from tests.byte_tokenizer import train_tokenizer
from tests.ranks import free_port

ROOT = Path(__file__).resolve().parents[2]

FAST: dict[str, Any] = {
    "bf16": False,
    "disable_tqdm": True,
    "warmup_steps": 1,
    "gradient_accumulation_steps": 1,
    "logging_steps": 1,
    "overwrite": True,
    "per_device_eval_batch_size": 8,
}
"""Settings of a short run: every step logged, several inputs in a pass of an evaluation; it may run twice in its
folder."""
SOURCES = [inspect.getsource(module) for module in (ast, inspect, json, textwrap)]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(SOURCES, vocab_size=1024)


@pytest.fixture
def tiny_model() -> BertForQuestionAnswering:
    torch.manual_seed(0)
    shape = Shape(width=16, layers=3, heads=2, inner=32, tokens=512, vocabulary=1024)
    return BertForQuestionAnswering(small_config("bert", shape))


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """A folder of text files, the beginnings of long ones."""
    return written_texts(tmp_path / "texts", 12_000)


def written_texts(folder: Path, most: int) -> str:
    """A new folder with the sources in text files, of at most so many characters each."""
    folder.mkdir()
    for number, source in enumerate(SOURCES):
        (folder / f"{number}.txt").write_text(source[:most])
    return str(folder)


def checkpoint(kind: str, folder: Path, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> str:
    """A tiny short checkpoint: BERT ("mlm"), GPT-2 ("clm") or Llama ("llama"), with changes of its config."""
    torch.manual_seed(0)
    base = {"mlm": "bert", "clm": "gpt2"}.get(kind, kind)
    if base != "bert":
        ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
        changes = {"num_key_value_heads": 1, **ends, **changes}
    shape = Shape(width=16, layers=2, heads=2, inner=32, vocabulary=len(tokenizer))
    model = getattr(transformers, language_model(base))(small_config(base, shape, **changes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def converted(kind: str, folder: Path, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> str:
    """A checkpoint of :func:`checkpoint` in ``short``, converted into ``long``; by default a window and 128 tokens."""
    short = checkpoint(kind, folder / "short", tokenizer)
    convert_checkpoint(
        short, folder / "long", **{"mechanism": "window", "max_length": 128, "verify": False, **settings}
    )
    return str(folder / "long")


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> str:
    """Write rows as JSON lines, and return the file's name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def losses(run: dict[str, Any] | Path) -> list[float]:
    """The losses of a log, or of the log in a folder."""
    log = json.loads((run / LOG_NAME).read_text()) if isinstance(run, Path) else run
    return [entry["loss"] for entry in log["history"] if "loss" in entry]


def launched(words: Sequence[str], folder: Path, processes: int = 2) -> None:
    """Run ``longattn WORDS`` in a folder, in several processes on the CPU."""
    launcher = []
    if processes > 1:
        line = f"-m torch.distributed.run --nproc_per_node {processes} --master_port {free_port()}"
        launcher = line.split()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    command = [sys.executable, *launcher, "-m", "hf_longattn", *words]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=1800, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def start_task(name: str, **values: Any) -> dict[str, Any]:
    """Run a task with arguments by their names, and return its log."""
    task = load_task(name)
    kinds = [{each.name for each in fields(kind) if each.init} for kind in task.ARGUMENTS]
    assert values.keys() <= set().union(*kinds), values
    parts = [{name: values[name] for name in values.keys() & names} for names in kinds]
    log: dict[str, Any] = task.main(*(kind(**part) for kind, part in zip(task.ARGUMENTS, parts, strict=True)))
    return log


def quick(task: str, model: str | Path, output: Path, data: Any = None, **changes: Any) -> Any:
    """The log of a short run with the settings :data:`FAST`. ``data`` is a source, or a list of them."""
    values = {"model": str(model), "output_dir": str(output), **FAST, **changes}
    if data is not None:
        values["data"] = data if isinstance(data, list) else [str(data)]
    return start_task(task, **values)
