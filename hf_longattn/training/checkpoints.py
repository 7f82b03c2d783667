"""Which of Trainer's checkpoints a run can resume from: the latest one whose files are complete."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from hf_longattn.errors import CheckpointError
from hf_longattn.naming import LOGGER

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin")

logger = logging.get_logger(LOGGER)


def newest_checkpoint(folder: Path) -> str | None:
    """The latest checkpoint in ``folder`` whose files are complete; ``None`` if there is no checkpoint.

    Raises:
        CheckpointError: there are checkpoints, but none is complete.
    """
    found = sorted((int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := CHECKPOINT.fullmatch(path.name)))
    damaged: list[str] = []
    for _, path in reversed(found):
        why = damage(path)
        if why is None:
            if damaged:
                logger.warning(f"Resuming from {path}, because {'; '.join(damaged)}.")
            return str(path)
        damaged.append(f"{path.name} {why}")
    if damaged:
        raise CheckpointError(f"no checkpoint in {str(folder)!r} is complete: {'; '.join(damaged)}; leave --resume out to start again")
    return None


def damage(checkpoint: Path) -> str | None:
    """What a checkpoint lacks, or which of its files is truncated; ``None`` if it is complete."""
    try:
        step = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    except FileNotFoundError:
        return "has no trainer_state.json"
    except (OSError, ValueError, KeyError, TypeError):
        return "has a damaged trainer_state.json"
    if f"checkpoint-{step}" != checkpoint.name:
        return f"has the trainer_state.json of step {step}"
    if any(path.is_dir() for path in checkpoint.iterdir()):  # FSDP and DeepSpeed keep weights and optimiser in folders
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
        complete = _complete_tensors if name.endswith(".safetensors") else zipfile.is_zipfile
        if not (checkpoint / name).is_file():
            return f"has no {name}"
        if not _reads(complete, checkpoint / name):
            return f"has a damaged {name}"
    return None


def _reads(complete: Callable[[Path], bool], path: Path) -> bool:
    try:
        return complete(path)
    except (OSError, SafetensorError):
        return False


def _complete_tensors(path: Path) -> bool:
    """safetensors refuses to open a file that ends before the tensors its header names."""
    with safe_open(path, framework="pt"):
        return True
