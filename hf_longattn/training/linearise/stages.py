"""Both stages of one run, from a model to a checkpoint, and the report of what each stage gained."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_longattn.data.batching import processes
from hf_longattn.data.masking import RepeatableMasks
from hf_longattn.data.tokenization import to_inputs
from hf_longattn.errors import OptionError
from hf_longattn.evaluation.summaries import plus_minus
from hf_longattn.files import staged_folder, write_text
from hf_longattn.hub import push_model
from hf_longattn.names import LOGGER
from hf_longattn.training.adapters import low_rank_updates
from hf_longattn.training.checkpoints import DISTILLATION_REPORT, STAGE_1, newest_of_stage
from hf_longattn.training.linearise.args import FULL_RATE, LORA_RATE, LineariseModelArguments, LineariseTrainingArguments
from hf_longattn.training.linearise.layers import keep_softmax
from hf_longattn.training.linearise.matching import Batch, MatchingModel, matching, measured, without_cache
from hf_longattn.training.linearise.student import as_saved, predicts_tokens, student_source
from hf_longattn.training.linearise.teacher import Teacher
from hf_longattn.training.linearise.trainer import LineariseTrainer
from hf_longattn.training.old_lm import load_lm
from hf_longattn.training.results import counted, error_of, loss_name, scored_part, sources_in_words
from hf_longattn.training.training_args import TaskArguments
from hf_longattn.training.training_loop import RunSettings, check_rows, forget_model, save_whole, versions, write_trained_card

logger = logging.get_logger(LOGGER)
NO_GAP = 0.01
"""Minimum gap in nats of which a share is reported."""
SAME_INPUTS = "The choice was made on the same inputs, so the losses are somewhat lower than on others."
STAGE_TITLES = {
    "before": "converted", "stage1": "after stage 1", "softmax_layers": "with softmax layers", "stage2": "after stage 2"
}  # fmt: skip


@dataclass
class Stages:
    """State of both stages, with the report."""

    run: TaskArguments
    model_args: LineariseModelArguments
    args: LineariseTrainingArguments
    tokenizer: PreTrainedTokenizerBase
    objective: str
    length: int
    documents: Dataset
    masks: RepeatableMasks
    batches: list[Batch]
    report: dict[str, Any] = field(default_factory=dict)

    def all_stages(self, model: PreTrainedModel) -> dict[str, Any]:
        """Run the requested stages. A resumed run skips finished ones."""
        args, output = self.args, self.args.folder
        done = read_report(output / STAGE_1) if args.resume and args.runs(1) else None
        if done is not None:
            model, _, _ = load_lm(str(output / STAGE_1), self.objective)
        with without_cache(model):
            if done is not None:
                self.report = {**done, "settings": self.run.settings}
            else:
                self.report = {
                    "settings": self.run.settings, "objective": self.objective, "input_length": self.length, "versions": versions(),
                    "predicts_tokens": predicts_tokens(model), "scored_rows": self.run.data.scored_rows,
                    "tokens": {}, "steps": {}, "history": {}, "before": measured(model, self.batches),
                }  # fmt: skip
                if args.runs(1):  # all mechanisms at once, each against the softmax attention of its layer
                    with matching(model) as layers:
                        trainer = self.train(MatchingModel(model, layers), 1, self.length)
                    self.report["stage1"] = measured(model, self.batches)
                    trainer.check_held_out(self.report["stage1"]["loss"])
                if args.softmax_layers:
                    kept_layers = keep_softmax(model, args.softmax_layers, self.batches)
                    self.report["softmax_layers"] = {**kept_layers.to_dict(), **measured(model, self.batches)}
        if args.runs(1) and args.runs(2) and done is None:
            if processes().is_main_process:
                with staged_folder(output / STAGE_1, overwrite=True) as stage:
                    self.save(model, stage)
            processes().wait_for_everyone()
        if args.runs(2):
            with without_cache(model):
                self.stage_2(model)
        model = model.to(getattr(torch, self.run.model.dtype))
        if processes().is_main_process:
            forget_model(output, DISTILLATION_REPORT)
            self.save(model, output)
            write_trained_card(self.run.model.model, output, describe_distillation(self.report))
            if args.push_to_hub:
                push_model(output, args.repository, private=bool(args.hub_private_repo), token=args.hub_token, revision=args.hub_revision)
        processes().wait_for_everyone()
        return self.report

    def stage_2(self, model: PreTrainedModel) -> None:
        """Fine-tuning with the mechanisms in place, on the language-model loss, against the original, or both."""
        teacher, length = None, self.length
        if self.args.needs_teacher:
            teacher = Teacher.of(self.model_args, self.args, self.objective, self.args.device)
            length = min(length, teacher.length)
            if length < self.length:
                logger.warning(f"Stage 2 reads inputs of {length} tokens, which the original was trained for, not {self.length}.")
            divergence = {"input_length": length, "before": teacher.divergence(model.to(self.args.device), self.batches)}
        with low_rank_updates(model, self.model_args) if self.model_args.use_peft else nullcontext():
            trainer = self.train(model, 2, length, teacher)
        self.report["stage2"] = measured(model, self.batches)
        trainer.check_held_out(self.report["stage2"]["loss"])
        if teacher is not None:
            self.report["kl"] = {**divergence, "after": teacher.divergence(model, self.batches)}

    def train(self, model: nn.Module, stage: int, length: int, teacher: Teacher | None = None) -> LineariseTrainer:
        """Train, or resume from the latest checkpoint of this stage."""
        args, inputs = self.args, to_inputs(self.documents, self.tokenizer, length)
        check_rows(inputs, sources_in_words(self.run.settings), "train on")
        resumed = newest_of_stage(args.folder, stage) if args.resume else None
        transformers.set_seed(args.seed)
        usual = LORA_RATE if self.model_args.use_peft else FULL_RATE
        trainer = LineariseTrainer(
            model, args.stage_args(stage, usual), stage=stage, teacher=teacher, data_collator=self.masks, train_dataset=inputs,
        )  # fmt: skip
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise OptionError("Attention distillation does not run under FSDP or DeepSpeed; use accelerate launch --multi_gpu.")
        trainer.add_callback(RunSettings(self.run.settings))
        trainer.train(resume_from_checkpoint=resumed)
        self.report["tokens"][f"stage{stage}"] = trainer.state.num_input_tokens_seen
        self.report["steps"][f"stage{stage}"] = trainer.state.global_step
        self.report["history"][f"stage{stage}"] = trainer.state.log_history
        return trainer

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Checkpoint, tokenizer and report."""
        source = student_source(self.model_args, self.args)
        save_whole(as_saved(model, source), self.tokenizer, folder, source, output=self.args.folder)
        write_text((folder / DISTILLATION_REPORT).with_suffix(".md"), markdown(self.report))
        write_text(folder / DISTILLATION_REPORT, json.dumps(self.report, indent=1))  # which appears last, and whole


def held_out_batches(inputs: Dataset, masks: RepeatableMasks, count: int, size: int) -> list[Batch]:
    """The first ``count`` inputs in batches of ``size``, masked once."""
    rows, collate = inputs.select(range(min(count, len(inputs)))), masks.for_evaluation()
    return [collate(rows.select(range(at, min(at + size, len(rows)))).to_list()) for at in range(0, len(rows), size)]


def read_report(folder: Path) -> dict[str, Any] | None:
    """The report in a folder, or ``None``."""
    path = folder / DISTILLATION_REPORT
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def has_loss(report: dict[str, Any]) -> bool:
    """Whether a report has losses. The loss of a random head is meaningless."""
    return bool(report.get("predicts_tokens", True))


def recovered(original: float, before: float, after: float) -> float | None:
    """The fraction of the loss added by the conversion that training has recovered; ``None`` if it added less than ``NO_GAP``."""
    return (before - after) / (before - original) if before - original >= NO_GAP else None


def markdown(report: dict[str, Any]) -> str:
    """The report as a page: loss by stage if the model has a trained head, tokens used, and each layer's error."""
    before, stages = report["before"], {name: title for name, title in STAGE_TITLES.items() if name in report}
    inputs = f"{counted(before['n'], 'input')} of {report['input_length']:,} tokens ({scored_part(report)})"
    trained = f"{inputs}, {sum(report['tokens'].values()):,} tokens in training."
    lines = [
        "# Attention distillation",
        "",
        *(loss_by_stage(report, stages, inputs) if has_loss(report) else [trained]),
        "",
        "Squared error of each layer's attention output, as a share of the softmax output's mean square:",
        "",
        "| layer | " + " | ".join(stages.values()) + " |",
        "|---" * (len(stages) + 1) + "|",
    ]
    for number, row in enumerate(before["layers"]):
        cells = " | ".join(f"{report[name]['layers'][number]['share']:.4f}" for name in stages)
        lines.append(f"| {row['layer']} | {cells} |")
    return "\n".join(lines) + "\n"


def loss_by_stage(report: dict[str, Any], stages: dict[str, str], inputs: str) -> list[str]:
    """The lines about losses; ``stages``: titles by name, ``inputs``: the held-out inputs in words."""
    before, tokens, kl = report["before"], report["tokens"], report.get("kl")
    unit = {"mlm": "masked", "clm": "next"}[report["objective"]]
    lines = [
        f"Nats per {unit} token on {inputs}. The original is the same model with softmax attention in every layer.",
        "",
        "| model | loss | gap recovered | tokens |",
        "|---|---|---|---|",
        f"| original | {before['original']:.3f} | | |",
    ]
    used = 0
    for name, title in stages.items():
        used += tokens.get(name, 0)
        won = recovered(before["original"], before["loss"], report[name]["loss"])
        share = "" if name == "before" or won is None else f"{100 * won:.1f} %"
        loss = plus_minus(report[name]["loss"], error_of(report[name], "loss"), 3)
        lines.append(f"| {title} | {loss} | {share} | {used:,} |")
    if (chosen := report.get("softmax_layers")) is not None:
        gains = ", ".join(f"{layer}: {gain:.4f}" for layer, gain in chosen["importance"].items())
        choices = ", ".join(f"{name} {divergence:.4f}" for name, divergence in chosen["compared"].items())
        kept = ", ".join(map(str, chosen["kept"]))
        lines += [
            "",
            f"{f'Layers {kept} keep' if ',' in kept else f'Layer {kept} keeps'} "
            f"softmax attention. What restoring a layer alone gains, in nats of KL divergence from the "
            f"original: {gains}. The divergence by choice of these layers: {choices}. {SAME_INPUTS}",
        ]
    if kl is not None:
        lines += [
            "",
            f"KL divergence of its predictions from the original's, on inputs of {kl['input_length']:,} tokens: {kl['before']:.3f} nats "
            f"before stage 2, {kl['after']:.3f} after.",
        ]
    return lines


def describe_distillation(report: dict[str, Any]) -> str:
    """The text of the model card about a run."""
    last = [name for name in STAGE_TITLES if name in report][-1]
    run = (
        f"Attention distillation with `longattn train linearise` on {sources_in_words(report['settings'])}, "
        f"{sum(report['tokens'].values()):,} tokens: "
    )
    if not has_loss(report):
        before, after = (fmean(layer["share"] for layer in report[name]["layers"]) for name in ("before", last))
        error = loss_name(report, "squared error of the attention outputs")
        return f"{run}{error} {before:.4f} of their mean square before, {after:.4f} after ({counted(report['before']['n'], 'input')})."
    return (
        f"{run}{loss_name(report)} {report['before']['original']:.3f} with softmax attention, "
        f"{report['before']['loss']:.3f} after conversion, {report[last]['loss']:.3f} now ({counted(report['before']['n'], 'input')})."
        + (f" Layers were chosen by their losses. {SAME_INPUTS}" if report.get("softmax_layers") else "")
    )
