"""What every fine-tuning has in common: how it starts, how it resumes from a checkpoint, and what it writes."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from hf_longattn.errors import CheckpointError
from hf_longattn.naming import LOGGER
from hf_longattn.training.settings import RunSettings

LOG_NAME = "training_log.json"
LEAST_LOGS = 10
"""Log lines of a short run."""
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin")

logger = logging.get_logger(LOGGER)


def begin(settings: RunSettings) -> None:
    """Check the settings; set threads and seed by them.

    Raises:
        LongAttentionError: settings that cannot be.
    """
    settings.check()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    transformers.set_seed(settings.seed)


def train(trainer: Trainer, settings: RunSettings) -> None:
    """Train, from the newest whole checkpoint where the run is to be resumed.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    trainer.add_callback(LogEnough())
    newest = newest_checkpoint(Path(settings.output) / "checkpoints") if settings.resume else None
    trainer.train(resume_from_checkpoint=newest)


class LogEnough(TrainerCallback):
    """Logs a short run ``LEAST_LOGS`` times, and the last step of every run."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.logging_steps = max(1, min(state.logging_steps, state.max_steps // LEAST_LOGS))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        control.should_log |= control.should_training_stop or state.global_step >= state.max_steps


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint of Trainer in ``folder`` whose files are whole; ``None`` when there is no checkpoint.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    found = sorted((int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := CHECKPOINT.fullmatch(path.name)))
    torn: list[str] = []
    for _, path in reversed(found):
        why = damage(path)
        if why is None:
            if torn:
                logger.warning(f"Resuming from {path}, since {'; '.join(torn)}.")
            return str(path)
        torn.append(f"{path.name} {why}")
    if torn:
        raise CheckpointError(f"No checkpoint in {str(folder)!r} is whole: {'; '.join(torn)}; leave --resume out to start again.")
    return None


def damage(checkpoint: Path) -> str | None:
    """What a checkpoint of Trainer lacks, or which of its files is cut off; ``None`` when it is whole."""
    try:
        step = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    except FileNotFoundError:
        return "has no trainer_state.json"
    except (OSError, ValueError, KeyError, TypeError):
        return "has a damaged trainer_state.json"
    if f"checkpoint-{step}" != checkpoint.name:
        return f"has the trainer_state.json of step {step}"
    if any(path.is_dir() for path in checkpoint.iterdir()):  # FSDP and DeepSpeed keep weights and optimiser in folders of their own
        return None
    indexes = list(checkpoint.glob("*.index.json"))
    try:
        parts = {name for index in indexes for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "has a damaged index of its weights"
    weights = sorted(parts) or [name for name in WEIGHTS if (checkpoint / name).exists()]
    if not weights:
        return "has no weights"
    others = [path.name for pattern in ("rng_state*.pth", "*.safetensors") for path in sorted(checkpoint.glob(pattern))]
    for name in dict.fromkeys([*weights, "optimizer.pt", "scheduler.pt", *others]):
        whole = _whole_tensors if name.endswith(".safetensors") else zipfile.is_zipfile
        if not (checkpoint / name).is_file():
            return f"has no {name}"
        if not _reads(whole, checkpoint / name):
            return f"has a damaged {name}"
    return None


def _reads(whole: Callable[[Path], bool], path: Path) -> bool:
    try:
        return whole(path)
    except (OSError, SafetensorError):
        return False


def _whole_tensors(path: Path) -> bool:
    """A file that ends before the tensors that its header names is refused when it is opened."""
    with safe_open(path, framework="pt"):
        return True


def finish(
    trainer: Trainer, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: RunSettings, log: dict[str, Any]
) -> dict[str, Any]:
    """Write model, tokenizer and log; the first process does, the others wait. Returns the log."""
    if trainer.is_world_process_zero():
        save_trained(model, tokenizer, settings.output, settings.dtype)
        Path(settings.output, LOG_NAME).write_text(json.dumps(log, indent=1), encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    return log


def save_trained(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, dtype: str) -> None:
    """Write model (in ``dtype``) and tokenizer."""
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
