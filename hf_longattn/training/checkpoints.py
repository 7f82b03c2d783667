"""Which of Trainer's checkpoints a run can resume from: the latest one whose files are complete."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from hf_longattn.errors import CheckpointError
from hf_longattn.naming import LOGGER

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"
"""The file that is written last."""
WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin")

logger = logging.get_logger(LOGGER)


def newest_checkpoint(folder: Path) -> str | None:
    """The latest checkpoint in ``folder`` whose files are complete; ``None`` if there is no checkpoint, or a single one whose last file
    is not complete: the run was killed while it wrote it.

    Raises:
        CheckpointError: there are checkpoints, but none is complete.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(folder)):
        why = damage(path)
        if why is None:
            if damaged:
                logger.warning(f"Resuming from {path}, because {'; '.join(damaged)}.")
            return str(path)
        damaged.append(f"{path.name} {why}")
    if len(damaged) == 1 and damaged[0].endswith(STATE):
        logger.warning(f"The run ended while it wrote its first checkpoint: {damaged[0]}.")
    elif damaged:
        told = "; ".join(damaged)
        raise CheckpointError(f"no checkpoint in {str(folder)!r} is complete: {told}; to start again, give --overwrite without --resume")
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Trainer's checkpoints in ``folder``, complete or not, the latest last."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := CHECKPOINT.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def check_checkpoint(checkpoint: Path) -> str:
    """Return a checkpoint that was named explicitly.

    Raises:
        CheckpointError: it is not there, or not complete.
    """
    if not checkpoint.is_dir():
        beside = ", ".join(str(path) for path in checkpoints(checkpoint.parent))
        raise CheckpointError(f"there is no checkpoint {str(checkpoint)!r}; " + (f"there are {beside}" if beside else "leave it out"))
    why = damage(checkpoint)
    if why is not None:
        raise CheckpointError(
            f"the checkpoint {str(checkpoint)!r} {why}; give another one, or --resume, which finds the latest complete one"
        )
    return str(checkpoint)


def damage(checkpoint: Path) -> str | None:
    """What a checkpoint lacks, or which of its files is truncated; ``None`` if it is complete."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        step, processes = state["global_step"], processes_of(state)
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
    missing = [name for name in (f"rng_state_{rank}.pth" for rank in range(processes)) if not (checkpoint / name).exists()]
    if processes > 1 and missing:
        return f"has no {missing[0]}"
    others = [path.name for pattern in ("rng_state*.pth", "*.safetensors") for path in sorted(checkpoint.glob(pattern))]
    for name in dict.fromkeys([*weights, "optimizer.pt", "scheduler.pt", *others]):
        complete = _complete_tensors if name.endswith(".safetensors") else zipfile.is_zipfile
        if not (checkpoint / name).is_file():
            return f"has no {name}"
        if not _reads(complete, checkpoint / name):
            return f"has a damaged {name}"
    return None


def processes_of(state: dict[str, Any]) -> int:
    """How many processes wrote a checkpoint, by its trainer_state.json; 1 if it does not tell."""
    return int(state.get("stateful_callbacks", {}).get("Processes", {}).get("attributes", {}).get("count", 1))


def _reads(complete: Callable[[Path], bool], path: Path) -> bool:
    try:
        return complete(path)
    except (OSError, SafetensorError):
        return False


def _complete_tensors(path: Path) -> bool:
    """safetensors refuses to open a file that ends before the tensors its header names."""
    with safe_open(path, framework="pt"):
        return True
