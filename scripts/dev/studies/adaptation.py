"""A short continued training on long documents, the same for every row of a table: data of the reference corpus, and steps of Trainer."""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hf_longattn.data.batching import packing_refusal
from hf_longattn.data.masking import DataCollatorForPackedText, RepeatableMasks
from hf_longattn.data.sources import load_text
from hf_longattn.data.tokenization import to_inputs
from hf_longattn.errors import LengthError
from hf_longattn.training.lm import TextTrainingArguments, load_lm
from hf_longattn.training.trainer import TimedTrainer
from scripts.dev.studies.corpus import Corpus, InstalledPackages, without_near_duplicates

PARTIAL = ".partial"
MASKED = 0.15
"""The share of the tokens that a masked language model is trained on, as in BERT."""


def write_long_documents(path: Path, least: int, characters: int, seed: int = 0, corpus: Corpus | None = None) -> Path:
    """Write documents of the corpus's train split, of at least ``least`` characters each, until they have ``characters`` in all; done once.

    Copies of one another and of held-out files are left out, as in pre-training.

    Raises:
        LengthError: the corpus has fewer.
    """
    if path.exists():
        return path
    corpus = corpus or InstalledPackages()
    held_out = [module for split in ("validation", "test") for module in corpus.iter_modules(split)]
    long = [module for module in corpus.iter_modules("train") if len(module.text) >= least]
    random.Random(seed).shuffle(long)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, written = path.with_name(path.name + PARTIAL), 0
    with partial.open("w", encoding="utf-8") as file:
        for module in without_near_duplicates(long, held_out):
            if written >= characters:
                break
            file.write(json.dumps({"text": module.text}) + "\n")
            written += len(module.text)
    if written < characters:
        partial.unlink()
        raise LengthError(f"documents of {least:,} characters or more have only {written:,} of the {characters:,} asked for; ask for less")
    partial.replace(path)
    return path


def adapt(
    source: Path,
    destination: Path,
    text: Path,
    *,
    objective: str,
    length: int,
    steps: int,
    rows: int,
    learning_rate: float,
    new_rows_of: str | None = None,
    old_rows: int = 0,
    seed: int = 0,
    bf16: bool = True,
) -> Path:
    """Train ``source`` for ``steps`` optimiser steps of ``rows`` inputs of ``length`` tokens, and write it; done once.

    Args:
        source: a checkpoint with a head for the objective; a Long one reads packed documents that do not see one another.
        destination: its folder appears when the training is complete.
        text: a file of documents, see :func:`write_long_documents`.
        objective: mlm or clm.
        learning_rate: the highest one, after a warm-up over a tenth of the steps and before a linear decay.
        new_rows_of: train nothing but the rows of this parameter (the end of its name) from ``old_rows`` on.
    """
    if destination.exists():
        return destination
    partial = destination.with_name(destination.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    args = TextTrainingArguments(
        output_dir=str(partial), max_steps=steps, learning_rate=learning_rate, per_device_train_batch_size=1,
        gradient_accumulation_steps=rows, weight_decay=0.0 if new_rows_of else 0.01, save_strategy="no", report_to="none", seed=seed,
        bf16=bf16,
    )  # fmt: skip
    model, tokenizer, _ = load_lm(str(source), objective)
    torch.manual_seed(seed)
    if new_rows_of:
        train_rows(model, new_rows_of, old_rows)
    pack = packing_refusal(model, args) is None
    kind = DataCollatorForPackedText if pack else RepeatableMasks
    collator = kind(tokenizer, mlm=objective == "mlm", mlm_probability=MASKED, seed=seed)
    inputs = to_inputs(load_text([str(text)]), tokenizer, length, pack)
    trainer = TimedTrainer(model, args, train_dataset=inputs, data_collator=collator, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    trainer.state.save_to_json(str(partial / "trainer_state.json"))
    partial.replace(destination)
    return destination


def train_rows(model: torch.nn.Module, name: str, first: int) -> None:
    """Freeze everything but the rows of one parameter from ``first`` on."""

    def keep_new(gradient: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(gradient[:first]), gradient[first:]])

    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key.endswith(name))
        if parameter.requires_grad:
            parameter.register_hook(keep_new)


def training_losses(folder: Path) -> list[float]:
    """The training losses that an adaptation logged."""
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def standard_error(losses: Sequence[float]) -> float:
    """Of the mean over documents."""
    return statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0


def paired(losses: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """Mean difference from the baseline on the same documents, and its standard error."""
    away = [a - b for a, b in zip(losses, baseline, strict=True)]
    return statistics.fmean(away), standard_error(away)
