"""The course of every fine-tuning: how it begins, goes on from a checkpoint, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import get_last_checkpoint

from hf_longattn.training.settings import RunSettings

LOG_NAME = "training_log.json"


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
    """Train, from the newest checkpoint where the run is to go on."""
    folder = str(Path(settings.output) / "checkpoints")
    newest = get_last_checkpoint(folder) if settings.resume and Path(folder).is_dir() else None
    trainer.train(resume_from_checkpoint=newest)


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
