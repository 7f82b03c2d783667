"""One attention transfer: from settings to a checkpoint, with the report of what each stage gained."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.errors import OptionError
from hf_longattn.mechanisms import Mechanism
from hf_longattn.training.course import begin, newest_checkpoint
from hf_longattn.training.lm_data import read_documents
from hf_longattn.training.lm_finetune import input_length, load_lm
from hf_longattn.training.settings import training_arguments
from hf_longattn.training.timed_trainer import average_over_batches
from hf_longattn.training.transfer.held_out import measured
from hf_longattn.training.transfer.inputs import Batch, EndlessInputs, collator, held_out_batches
from hf_longattn.training.transfer.lora import low_rank_updates
from hf_longattn.training.transfer.matching import Factors, MatchingModel, matching, without_cache
from hf_longattn.training.transfer.report import read_report, write_report
from hf_longattn.training.transfer.settings import TransferSettings
from hf_longattn.training.transfer.source import load_student, processes
from hf_longattn.training.transfer.trainer import TransferTrainer
from hf_longattn.training.versions import versions

LOG_NAME = "transfer_log.jsonl"
STAGE_1 = "stage1"


def transfer_attention(settings: TransferSettings) -> dict[str, Any]:
    """Train the mechanisms of a converted checkpoint to give what softmax attention gives, fine-tune, and write to ``settings.output``.

    The folder gets the checkpoint, ``transfer_report.json`` and ``.md``, ``transfer_log.jsonl``, the checkpoint after stage 1 in
    ``stage1``, and, where ``save_steps`` asks for them, checkpoints to resume from in ``checkpoints``.

    Returns:
        The report.

    Raises:
        LongAttentionError: with one sentence, for anything that is wrong with the settings, the model or the text.
        DivergenceError: a loss or gradient became NaN; the last good checkpoint stays.
    """
    begin(settings)
    model, tokenizer, objective = load_student(settings)
    length = input_length(model, tokenizer, settings.max_length)
    settings.check_length(length)
    if settings.runs(1):
        check_learns(model)
    with processes().main_process_first():
        documents, held_out = read_documents(settings)
    collate = collator(tokenizer, objective, length, settings)
    batches = held_out_batches(held_out, tokenizer, collate, settings.held_out_inputs, settings.batch_size)
    run = Run(settings, tokenizer, objective, length, documents, batches)
    return run.all_stages(model)


def check_learns(model: PreTrainedModel) -> None:
    """Refuse stage 1 for a model none of whose mechanisms has parameters."""
    mechanisms = [module for module in model.modules() if isinstance(module, Mechanism)]
    if not any(p.requires_grad for mechanism in mechanisms for p in mechanism.parameters()):
        names = ", ".join(dict.fromkeys(repr(mechanism.name) for mechanism in mechanisms))
        raise OptionError(
            f"stage 1 trains the mechanisms' own parameters, and {names} has none with these options; say --stage 2, which fine-tunes the "
            "model's projections"
        )


@dataclass
class Run:
    """The parts of a transfer that both stages share, and its report as it grows."""

    settings: TransferSettings
    tokenizer: PreTrainedTokenizerBase
    objective: str
    length: int
    documents: Dataset
    batches: list[Batch]
    report: dict[str, Any] = field(default_factory=dict)

    def all_stages(self, model: PreTrainedModel) -> dict[str, Any]:
        """Run the stages that are asked for, one after the other; of a resumed run, those that are not done."""
        settings, output = self.settings, Path(self.settings.output)
        done = read_report(output / STAGE_1) if settings.resume and settings.runs(1) else None
        if done is not None:
            model, _, _ = load_lm(str(output / STAGE_1), self.objective)
        with without_cache(model):
            if done is not None:
                self.report = {**done, "settings": vars(settings)}
            else:
                self.report = {
                    "settings": vars(settings), "objective": self.objective, "input_length": self.length, "versions": versions(),
                    "tokens": {}, "steps": {}, "before": measured(model, self.batches),
                }  # fmt: skip
                if settings.runs(1):
                    self.stage_1(model)
        if settings.runs(1) and settings.runs(2) and done is None:
            self.write(model, output / STAGE_1)
        if settings.runs(2):
            with without_cache(model):
                self.stage_2(model)
        self.write(model.to(getattr(torch, settings.dtype)), output)
        return self.report

    def stage_1(self, model: PreTrainedModel) -> None:
        """All mechanisms at once, each against the softmax attention of its layer."""
        settings = self.settings
        with matching(model, Factors(settings.output_factor, settings.weights_factor)) as layers:
            self.train(MatchingModel(model, layers), 1)
        self.report["stage1"] = measured(model, self.batches)

    def stage_2(self, model: PreTrainedModel) -> None:
        """The language-model loss with the mechanisms in place."""
        settings = self.settings
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with nullcontext() if settings.full else low_rank_updates(model, settings.lora_rank, settings.lora_alpha):
            self.train(model, 2)
        self.report["stage2"] = measured(model, self.batches)

    def train(self, model: nn.Module, stage: int) -> None:
        """Train with Trainer, from the newest checkpoint of this stage where the run is resumed."""
        settings, folder = self.settings, self.settings.checkpoints(stage)
        transformers.set_seed(settings.seed)
        trainer = TransferTrainer(
            model,
            training_arguments(
                settings.of_stage(stage),
                output_dir=str(folder),
                per_device_train_batch_size=settings.batch_size,
                include_num_input_tokens_seen="non_padding",
                label_names=["labels"],
                remove_unused_columns=False,
            ),
            train_dataset=EndlessInputs(self.documents, self.tokenizer, self.length, settings.seed),
            data_collator=collator(self.tokenizer, self.objective, self.length, settings),
            stage=stage,
            log_path=Path(settings.output) / LOG_NAME,
        )
        if stage == 1 or self.objective == "mlm":
            average_over_batches(trainer)
        newest = newest_checkpoint(folder) if settings.resume else None
        trainer.train(resume_from_checkpoint=newest)
        self.report["tokens"][f"stage{stage}"] = trainer.state.num_input_tokens_seen
        self.report["steps"][f"stage{stage}"] = trainer.state.global_step

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        """Write checkpoint, tokenizer and report; the first process does, the others wait."""
        if processes().is_main_process:
            model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            write_report(self.report, folder)
        processes().wait_for_everyone()
