"""The reference task's reader: docstring questions and variable tracking, mixed in an endless stream, with a curriculum and pointers.

    python -m research.qa_finetune --config research/configs/qa_reference_512.yaml

`longattn train qa` trains on users' data. This adds what a model of 5 million parameters needed to learn the reference task: groups of
features with one token budget, crops, several questions per input (:mod:`research.qa_packing`), pointers (:mod:`research.qa_pointers`).
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_longattn.errors import OptionError
from hf_longattn.evaluation.qa_features import QAFormat, pad_features
from hf_longattn.training.args import QATrainingArguments, argument
from hf_longattn.training.lengths import PositionRange
from hf_longattn.training.qa import QACollator, QATrainer, describe_qa_training, format_for, load_qa_model, to_features
from hf_longattn.training.qa_data import load_qa
from hf_longattn.training.training_loop import begin, finish, run_training, train
from research import corpus
from research.docstring_qa import build_docstring_qa
from research.qa_packing import PackedFeature, packed_loss, share_found
from research.qa_pointers import attach_pointers, detach_pointers
from research.qa_stream import CURRICULUM, Curriculum, QAStream, Stage
from research.variable_tracking import Filler


@dataclass
class ReaderArguments(QATrainingArguments):
    """:class:`QATrainingArguments` with the reference tasks and what their reader needs."""

    data: list[str] = argument([], "'docstring', 'lookup', and any data of `longattn train qa`.")
    crop: list[int] = argument(
        [], "Two numbers: train on stretches of this many tokens, shortest and longest, cut at random around the answer."
    )
    min_tokens: int = argument(300, "Shortest docstring document, in tokens.")
    max_tokens: int = argument(8000, "Longest docstring document, in tokens.")
    questions_per_module: int = argument(4, "Maximum number of docstring questions per module.")
    max_questions: int = argument(0, "Maximum number of docstring questions, from modules in random order; 0 = all.")
    pack: int = argument(1, "Maximum number of questions in one training input, if a document has several.")
    lookup_share: float = argument(0.5, "Share of steps on lookup documents if there are other data as well.")
    lookup_lengths: list[int] = argument([], "Two numbers: tokens of lookup documents; default: a curriculum from 40 tokens to 500.")
    step_up: float = argument(0.8, "Exact answers at which the curriculum moves one step up.")
    pointer_layers: list[int] = argument([], "Layers whose output is trained to point at the trail of lookups, such as 1 2 3.")
    pointer_weight: float = argument(1.0, "Weight of the pointers' loss relative to the answer's.")
    tokens_per_step: int = argument(8192, "Tokens per forward pass and process: short documents share a batch.")
    per_device_train_batch_size: int = argument(1, "Groups of features per forward pass; tokens_per_step sets their size.")
    gradient_accumulation_steps: int = argument(1, "Forward passes per optimiser step.")
    train_sampling_strategy: str = argument("random", "Order of the groups.")

    def check(self) -> None:
        super().check()
        for name in ("crop", "lookup_lengths"):
            value = getattr(self, name)
            if value and (len(value) != 2 or value[0] > value[1] or value[0] < 1):
                raise OptionError(f"{name} takes two numbers, shortest and longest, not {value}; for instance 128 448")
        if self.num_train_epochs:
            raise OptionError("the stream of the reference task is endless: give max_steps or max_minutes instead of epochs")
        if self.max_minutes is None and self.max_steps <= 0:
            self.max_steps = 1000


def finetune_qa(args: ReaderArguments, on_log: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Train a question-answering model and write it to ``args.output_dir``.

    Args:
        args: what to train, on what, for how long.
        on_log: called with every log entry, in place of Trainer's printing.

    Returns:
        The log, as written to ``training_log.json``.
    """
    begin(args)
    model, tokenizer = load_qa_model(args.model)
    form = format_for(model, tokenizer, args)
    curriculum = _curriculum(args)
    data = _training_data(args, tokenizer, form, curriculum)
    if args.pointer_layers:
        attach_pointers(model, args.pointer_layers, args.pointer_weight)
    validation = to_features(load_qa(args.validation, args.validation_split), tokenizer, form) if args.validation else None
    args.remove_unused_columns = False
    trainer = ReaderTrainer(
        model,
        args,
        train_dataset=data,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=ReaderCollator(tokenizer),
        max_minutes=args.max_minutes,
        positions=PositionRange.of(model) if args.random_positions else None,
        windows=args.windows,
        curriculum=curriculum if "lookup" in args.data else None,
    )
    if on_log is not None:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Report(on_log))
    log: dict[str, Any] = {}
    before = None if validation is None else trainer.evaluate()["eval_loss"]
    train(trainer, args)
    if validation is not None:
        log["held_out_loss"] = {"before": before, "after": trainer.evaluate()["eval_loss"]}
    detach_pointers(model)
    return finish(trainer, args, log, describe_training)


class _Report(TrainerCallback):
    def __init__(self, on_log: Callable[[dict[str, Any]], None]) -> None:
        self.report = on_log

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            self.report(logs)


class ReaderTrainer(QATrainer):
    """A trainer of groups of packed features: it counts exact answers, and moves the curriculum by them.

    Args:
        curriculum: told the recent lookup accuracy at every log entry.
        *args, **kwargs: :class:`QATrainer`'s.
    """

    def __init__(self, *args: Any, curriculum: Curriculum | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.exact: dict[str, list[Tensor]] = defaultdict(list)
        self.curriculum = curriculum
        if curriculum is not None:
            self.add_callback(_CurriculumState(curriculum))

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return the model's loss; remember per task how many answers started at the right token."""
        if "task" not in inputs:  # an evaluation
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        task, given = inputs.pop("task"), inputs
        inputs.pop("real", None)
        starts = inputs.get("starts", inputs["start_positions"][:, None])
        if not hasattr(self.accelerator.unwrap_model(model), "trail_pointers"):
            inputs = {key: value for key, value in given.items() if key not in ("ask", "trail", "links", "starts", "ends")}
        outputs = model(**inputs)
        if "ends" in given and "ends" not in inputs and starts.shape[1] > 1:
            outputs.loss = packed_loss(outputs.start_logits, outputs.end_logits, starts, given["ends"])
        self.exact[task].append(share_found(outputs.start_logits.detach(), starts))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the tasks' recent exact match and the curriculum's stage; move the curriculum."""
        for task, share in self._recent().items():
            logs[f"exact_{task}"] = round(share, 4)
            if self.curriculum is not None and task == "lookup":
                self.curriculum.report(share)
        if self.curriculum is not None:
            logs["stage"] = self.curriculum.stage
        pointers = getattr(self.accelerator.unwrap_model(self.model), "trail_pointers", None)
        if pointers is not None:
            logs.update({f"pointer_{step}": round(loss, 3) for step, loss in enumerate(pointers.recent, 1)})
        super().log(logs, start_time)

    def _recent(self) -> dict[str, float]:
        """Return the exact match by task since the last call, over all processes."""
        tasks = sorted({"lookup", "qa"})
        sums = torch.zeros(len(tasks), 2, device=self.args.device)
        for place, task in enumerate(tasks):
            if self.exact[task]:
                rows = torch.cat(self.exact.pop(task))
                sums[place] = torch.stack([rows.sum(), torch.tensor(float(len(rows)), device=rows.device)])
        sums = self.accelerator.reduce(sums, reduction="sum")
        return {task: float(right / count) for task, (right, count) in zip(tasks, sums, strict=True) if count}


class _CurriculumState(TrainerCallback):
    """Restores the stage from the trainer's state when a run is resumed."""

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        stages = [entry["stage"] for entry in state.log_history if "stage" in entry]
        self.curriculum.stage = max([self.curriculum.stage, *stages])


class ReaderCollator(QACollator):
    """Pads groups of features, as :class:`research.qa_stream.QAStream` yields them; rows of an evaluation as :class:`QACollator`."""

    def __call__(self, features: list[Any]) -> dict[str, Any]:
        """Return input_ids, attention_mask (B, L), …, start_positions, end_positions (B,), and if there are trails or several questions
        ask, starts, ends (B, K), trail (B, K, T), links (B, M, 2), padded with -1.
        """
        if isinstance(features[0], dict):
            return super().__call__(features)
        rows: list[PackedFeature] = [row for group in features for row in group]
        batch: dict[str, Any] = pad_features(rows, self.tokenizer.pad_token_id or 0)
        batch["document_start"] = torch.tensor([row.document_start for row in rows])
        batch["start_positions"] = torch.tensor([row.start for row in rows])
        batch["end_positions"] = torch.tensor([row.end for row in rows])
        return {**batch, **_pointed(rows), "task": rows[0].task}


def _pointed(rows: list[PackedFeature]) -> dict[str, torch.Tensor]:
    """Return ask, starts, ends (B, K) and trail (B, K, T); empty if no row has a trail or several questions."""
    asked = [[(a.ask, a.start, a.end, list(a.trail)) for a in row.packed] for row in rows]
    steps = max(len(question[3]) for questions in asked for question in questions)
    most = max(map(len, asked))
    if not steps and most == 1:
        return {}
    none = (0, -1, -1, [-1] * steps)
    linked = max(len(row.links) for row in rows)
    full = [questions + [none] * (most - len(questions)) for questions in asked]
    trails = [[question[3] + [-1] * (steps - len(question[3])) for question in questions] for questions in full]
    links = [row.links + [(-1, -1)] * (linked - len(row.links)) for row in rows]
    return {
        "ask": torch.tensor([[question[0] for question in questions] for questions in full]),
        "starts": torch.tensor([[question[1] for question in questions] for questions in full]),
        "ends": torch.tensor([[question[2] for question in questions] for questions in full]),
        "links": torch.tensor(links, dtype=torch.long).view(len(rows), linked, 2),
        "trail": torch.tensor(trails, dtype=torch.long).view(len(rows), most, steps),
    }


def describe_training(log: dict[str, Any]) -> str:
    """What a model card says about a run, with the answers found in the last batches."""
    last = {key: value for entry in log["history"] for key, value in entry.items()}
    exact = {key.removeprefix("exact_"): value for key, value in last.items() if key.startswith("exact_")}
    found = ", ".join(f"{task} {100 * share:.0f} %" for task, share in exact.items())
    return describe_qa_training(log, "research.qa_finetune") + (
        f"\n\nAnswers found in the last training batches: {found}." if exact else ""
    )


def _curriculum(args: ReaderArguments) -> Curriculum:
    if not args.lookup_lengths:
        return Curriculum(CURRICULUM, args.step_up)
    shortest, longest = args.lookup_lengths
    gap = 512 if shortest >= 1024 else 0
    return Curriculum((Stage(shortest, longest, 4, 4, gap),), args.step_up)


def _training_data(args: ReaderArguments, tokenizer: PreTrainedTokenizerBase, form: QAFormat, curriculum: Curriculum) -> QAStream:
    modules = _shuffled_modules(args) if {"docstring", "lookup"} & set(args.data) else []
    parts = [_records(name, args, tokenizer, modules) for name in args.data if name != "lookup"]
    columns = ["id", "question", "context", "answers"]
    records = datasets.concatenate_datasets([part.select_columns(columns) for part in parts]) if parts else None
    filler = None
    if "lookup" in args.data:
        filler = Filler((module.text for module in modules), tokenizer)
    return QAStream(
        tokenizer,
        form,
        records=records,
        filler=filler,
        curriculum=curriculum,
        lookup_share=args.lookup_share,
        tokens_per_group=args.tokens_per_step,
        seed=args.seed,
        pack=args.pack,
        crop=(args.crop[0], args.crop[1]) if args.crop else None,
    )


def _records(name: str, args: ReaderArguments, tokenizer: PreTrainedTokenizerBase, modules: list[corpus.Module]) -> datasets.Dataset:
    if name != "docstring":
        return load_qa(name, args.split)
    return build_docstring_qa(
        args.split,
        tokenizer=tokenizer,
        min_tokens=args.min_tokens,
        max_tokens=args.max_tokens,
        questions_per_module=args.questions_per_module,
        limit=args.max_questions or None,
        modules=modules,
        seed=args.seed,
    )


def _shuffled_modules(args: ReaderArguments) -> list[corpus.Module]:
    modules = list(corpus.iter_modules(args.split))
    random.Random(args.seed).shuffle(modules)
    return modules


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_training(ReaderArguments, arguments, __doc__, train=finetune_qa)


if __name__ == "__main__":
    sys.exit(main())
