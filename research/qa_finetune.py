"""The reference tasks' reader: questions about source code and variable tracking, mixed in an endless stream, with curricula and pointers.

    python -m research.qa_finetune --config research/configs/qa_reference_512.yaml

`longattn train qa` trains on users' data. This adds what a model of 5 million parameters needed to learn the reference task: groups of
features with one token budget, curricula, several questions per input (:mod:`research.qa_packing`), pointers (:mod:`research.qa_pointers`).
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_longattn.errors import OptionError
from hf_longattn.evaluation.qa_features import QAFormat, pad_features
from hf_longattn.training.args import QADataArguments, QAModelArguments, QATrainingArguments, argument
from hf_longattn.training.lengths import PositionRange
from hf_longattn.training.qa import QACollator, QATrainer, describe_qa_training, format_for, load_qa_model, to_features
from hf_longattn.training.qa_data import load_qa
from hf_longattn.training.training_loop import begin, finish, run_training, train
from research import corpus
from research.code_qa import read_records
from research.qa_packing import PackedFeature, packed_loss, share_found
from research.qa_pointers import attach_pointers, detach_pointers
from research.qa_stream import LOOKUPS, Curriculum, Lookups, Programs, QAStream, Records, Source, Stage
from research.recombined import Pieces
from research.variable_tracking import Filler

_PROGRAM_MODULES = 800
"""Files from which programs are recombined."""


@dataclass
class ReaderDataArguments(QADataArguments):
    """:class:`QADataArguments` with the reference tasks."""

    data: list[str] = argument(
        [], "'lookup' (variable tracking), 'program' (argument -> parameter in recombined code), and .jsonl files of research.build_qa."
    )
    shares: list[float] = argument([], "Shares of the steps, one per name in data; default: equal.")
    max_tokens: int = argument(0, "Longest document of a file that is used, in tokens; default: what the model takes.")
    pack: int = argument(1, "Maximum number of questions in one training input, if a document has several.")
    lookup_lengths: list[int] = argument([], "Two numbers: tokens of lookup documents; default: a curriculum from 40 tokens to 500.")
    tokens_per_step: int = argument(8192, "Tokens per forward pass and process: short documents share a batch.")

    def check(self) -> None:
        super().check()
        value = self.lookup_lengths
        if value and (len(value) != 2 or value[0] > value[1] or value[0] < 1):
            raise OptionError(f"lookup_lengths takes two numbers, shortest and longest, not {value}; for instance 128 448")
        if self.shares and len(self.shares) != len(self.data):
            raise OptionError(f"shares has {len(self.shares)} numbers for {len(self.data)} data; give one each")


@dataclass
class ReaderTrainingArguments(QATrainingArguments):
    """:class:`QATrainingArguments` with what the reader of the reference tasks needs."""

    step_up: float = argument(0.8, "Exact answers at which the curriculum moves one step up.")
    pointer_layers: list[int] = argument([], "Layers whose output is trained to point at the trail of lookups, such as 1 2 3.")
    pointer_weight: float = argument(1.0, "Weight of the pointers' loss relative to the answer's.")
    guide_weight: float = argument(0.0, "Weight of the loss that teaches heads to look at the trail; 0 = none.")
    per_device_train_batch_size: int = argument(1, "Groups of features per forward pass; tokens_per_step sets their size.")
    gradient_accumulation_steps: int = argument(1, "Forward passes per optimiser step.")
    train_sampling_strategy: str = argument("random", "Order of the groups.")

    def check(self) -> None:
        super().check()
        if self.num_train_epochs:
            raise OptionError("the stream of the reference task is endless: give max_steps or max_minutes instead of epochs")
        if self.max_minutes is None and self.max_steps <= 0:
            self.max_steps = 1000


READER = (QAModelArguments, ReaderDataArguments, ReaderTrainingArguments)


def finetune_qa(
    model_args: QAModelArguments,
    data_args: ReaderDataArguments,
    training_args: ReaderTrainingArguments,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train a question-answering model and write it to ``training_args.output_dir``.

    Args:
        model_args, data_args, training_args: what to train, on what, for how long.
        on_log: called with every log entry, in place of Trainer's printing.

    Returns:
        The log, as written to ``training_log.json``.
    """
    run = begin(model_args, data_args, training_args)
    model, tokenizer = load_qa_model(model_args.model)
    form = format_for(model, tokenizer, model_args, data_args)
    data = _training_data(data_args, training_args, tokenizer, form)
    if training_args.pointer_layers:
        attach_pointers(model, training_args.pointer_layers, training_args.pointer_weight, training_args.guide_weight)
    validation = None
    if data_args.validation:
        validation = to_features(load_qa(data_args.validation, data_args.validation_split), tokenizer, form)
    training_args.remove_unused_columns = False
    trainer = ReaderTrainer(
        model,
        training_args,
        train_dataset=data,
        eval_dataset=validation,
        processing_class=tokenizer,
        data_collator=ReaderCollator(tokenizer),
        max_minutes=training_args.max_minutes,
        positions=PositionRange.of(model) if training_args.random_positions else None,
        windows=training_args.windows,
        curricula={name: source.curriculum for name, source in data.sources.items()},
    )
    if on_log is not None:
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Report(on_log))
    log: dict[str, Any] = {}
    before = None if validation is None else trainer.evaluate()["eval_loss"]
    train(trainer, run)
    if validation is not None:
        log["held_out_loss"] = {"before": before, "after": trainer.evaluate()["eval_loss"]}
    detach_pointers(model)
    return finish(trainer, run, log, describe_training)


class _Report(TrainerCallback):
    def __init__(self, on_log: Callable[[dict[str, Any]], None]) -> None:
        self.report = on_log

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            self.report(logs)


class ReaderTrainer(QATrainer):
    """A trainer of groups of packed features: it counts exact answers, and moves the curricula by them.

    Args:
        curricula: by task; each is told its task's recent accuracy at every log entry.
        *args, **kwargs: :class:`QATrainer`'s.
    """

    def __init__(self, *args: Any, curricula: Mapping[str, Curriculum], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.exact: dict[str, list[Tensor]] = defaultdict(list)
        self.curricula = curricula
        self.add_callback(_CurriculumState(curricula))

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return the model's loss; remember per task how many answers started at the right token."""
        if "task" not in inputs:  # an evaluation
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        task, given = inputs.pop("task"), inputs
        inputs.pop("real", None)
        starts = inputs.get("starts", inputs["start_positions"][:, None])
        if not hasattr(self.accelerator.unwrap_model(model), "trail_pointers"):
            inputs = {key: value for key, value in given.items() if key not in ("ask", "trail", "links", "places", "starts", "ends")}
        outputs = model(**inputs)
        if "ends" in given and "ends" not in inputs and starts.shape[1] > 1:
            outputs.loss = packed_loss(outputs.start_logits, outputs.end_logits, starts, given["ends"])
        self.exact[task].append(share_found(outputs.start_logits.detach(), starts))
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the tasks' recent exact match and the curricula's stages; move the curricula."""
        for task, share in self._recent().items():
            logs[f"exact_{task}"] = round(share, 4)
            self.curricula[task].report(share)
        logs.update({f"stage_{task}": c.stage for task, c in self.curricula.items() if len(c.stages) > 1})
        pointers = getattr(self.accelerator.unwrap_model(self.model), "trail_pointers", None)
        if pointers is not None:
            logs.update({f"pointer_{step}": round(loss, 3) for step, loss in enumerate(pointers.recent, 1)})
        super().log(logs, start_time)

    def _recent(self) -> dict[str, float]:
        """Return the exact match by task since the last call, over all processes."""
        tasks = sorted(self.curricula)
        sums = torch.zeros(len(tasks), 2, device=self.args.device)
        for place, task in enumerate(tasks):
            if self.exact[task]:
                rows = torch.cat(self.exact.pop(task))
                sums[place] = torch.stack([rows.sum(), torch.tensor(float(len(rows)), device=rows.device)])
        sums = self.accelerator.reduce(sums, reduction="sum")
        return {task: float(right / count) for task, (right, count) in zip(tasks, sums, strict=True) if count}


class _CurriculumState(TrainerCallback):
    """Restores the stages from the trainer's state when a run is resumed."""

    def __init__(self, curricula: Mapping[str, Curriculum]) -> None:
        self.curricula = curricula

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        for task, curriculum in self.curricula.items():
            stages = [entry[f"stage_{task}"] for entry in state.log_history if f"stage_{task}" in entry]
            curriculum.stage = max([curriculum.stage, *stages])


class ReaderCollator(QACollator):
    """Pads groups of features, as :class:`research.qa_stream.QAStream` yields them; rows of an evaluation as :class:`QACollator`."""

    def __call__(self, features: list[Any]) -> dict[str, Any]:
        """Return input_ids, attention_mask (B, L), …, start_positions, end_positions (B,), and if there are trails or several questions
        ask, starts, ends (B, K), trail (B, K, T), links (B, M, 2), places (B, P, 2), padded with -1.
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
    placed = max(1, *(len(row.places) for row in rows))
    places = [row.places + [(-1, -1)] * (placed - len(row.places)) for row in rows]
    return {
        "ask": torch.tensor([[question[0] for question in questions] for questions in full]),
        "starts": torch.tensor([[question[1] for question in questions] for questions in full]),
        "ends": torch.tensor([[question[2] for question in questions] for questions in full]),
        "links": torch.tensor(links, dtype=torch.long).view(len(rows), linked, 2),
        "places": torch.tensor(places, dtype=torch.long).view(len(rows), placed, 2),
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


def _training_data(
    args: ReaderDataArguments, training_args: ReaderTrainingArguments, tokenizer: PreTrainedTokenizerBase, form: QAFormat
) -> QAStream:
    modules: list[corpus.Module] = []
    if {"lookup", "program"} & set(args.data):
        modules = [module for module in corpus.iter_modules(args.split) if module.package not in corpus.STANDARD_LIBRARY]
        random.Random(training_args.seed).shuffle(modules)
    sources: dict[str, Source] = {}
    for name in args.data:
        if name == "lookup":
            filler = Filler((module.text for module in modules), tokenizer)
            sources[name] = Lookups(
                tokenizer, filler, _lookup_curriculum(args.lookup_lengths, training_args.step_up), form.max_length, args.pack
            )
        elif name == "program":
            sources[name] = Programs(Pieces(module.text for module in modules[:_PROGRAM_MODULES]), training_args.step_up, args.pack)
        else:
            room = form.max_length - form.max_question_tokens - 3
            sources[Path(name).stem] = Records(read_records(name), min(args.max_tokens or room, room), args.pack)
    shares = args.shares or [1.0] * len(sources)
    return QAStream(tokenizer, form, sources, shares, tokens_per_group=args.tokens_per_step, seed=training_args.seed)


def _lookup_curriculum(lengths: list[int], step_up: float) -> Curriculum:
    if not lengths:
        return Curriculum(LOOKUPS, step_up)
    shortest, longest = lengths
    return Curriculum((Stage(shortest, longest, 4, 4, 512 if shortest >= 1024 else 0),), step_up)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_training(READER, arguments, __doc__, train=finetune_qa)


if __name__ == "__main__":
    sys.exit(main())
