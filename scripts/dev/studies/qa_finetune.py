"""The reference tasks' reader: questions about source code and variable tracking, mixed in an endless stream, with curricula and guides.

    python -m scripts.dev.studies.qa_finetune --config scripts/dev/studies/configs/qa_reference_512.yaml

`longattn train qa` trains on users' data. This adds what a model of 5 million parameters needed to learn the reference task: groups of
features with one token budget, curricula, several questions per input (:mod:`qa_packing`), guides (:mod:`qa_guides`).
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import copy
import dataclasses
import math
import random
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_longattn.data.lengths import PositionRange
from hf_longattn.data.qa_features import QAFormat, pad_features, pad_lists
from hf_longattn.data.qa_inputs import QACollator, to_features
from hf_longattn.data.qa_schemas import load_qa
from hf_longattn.errors import OptionError
from hf_longattn.evaluation.metrics.long_qa import score_answer
from hf_longattn.evaluation.qa_reader import QAReader
from hf_longattn.tasks import Task
from hf_longattn.training.args import argument
from hf_longattn.training.tasks.qa import (
    QADataArguments,
    QAModelArguments,
    QATrainer,
    QATrainingArguments,
    describe_qa_training,
    format_for,
    load_qa_model,
)
from hf_longattn.training.training_loop import begin, finish, run_training, train
from scripts.dev.studies import corpus
from scripts.dev.studies.code_labels import Code, Names, label_files
from scripts.dev.studies.code_qa import modules_of, read_records
from scripts.dev.studies.qa_guides import KINDS, attach_guides, detach_guides
from scripts.dev.studies.qa_packing import PackedFeature, packed_loss, share_found
from scripts.dev.studies.qa_stream import LOOKUPS, Curriculum, Lookups, QAStream, Records, Source, Stage
from scripts.dev.studies.variable_tracking import Filler

_WAVES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
"""How often the waves of :func:`add_waves` go through the position table."""
_HELD_OUT = 250
"""Most questions of a held-out file that are asked while training."""


@dataclass
class ReaderDataArguments(QADataArguments):
    """:class:`QADataArguments` with the reference tasks."""

    data: list[str] = argument(
        [], "'lookup' (variable tracking), 'code' (labelled excerpts of the corpus), and .jsonl files of scripts.dev.studies.build_qa."
    )
    shares: list[float] = argument([], "Shares of the steps, one per name in data; default: equal.")
    max_tokens: int = argument(0, "Longest document of a file that is used, in tokens; default: what the model takes.")
    pack: int = argument(1, "Maximum number of questions in one training input, if a document has several.")
    lookup_lengths: list[int] = argument([], "Two numbers: tokens of lookup documents; default: a curriculum from 40 tokens to 500.")
    wrapped_length: int = argument(
        0, "Longest input in tokens, if more than the model's: positions then start anew, as after a conversion (with random_positions)."
    )
    cache: str | None = argument(None, "A .jsonl file that keeps the labels of 'code' for the next run.")
    code_files: int = argument(0, "Files that 'code' is taken from, drawn by the seed; 0 = all (minutes to label).")
    code_lengths: list[int] = argument([64, 430], "Two numbers: tokens of the excerpts of 'code'.")
    base_share: float = argument(0.3, "Share of 'code' that asks where base classes come from.")
    held_out: list[str] = argument([], ".jsonl files of scripts.dev.studies.build_qa that are answered while training.")
    tokens_per_step: int = argument(8192, "Tokens per forward pass and process: short documents share a batch.")

    def check(self) -> None:
        super().check()
        for name, value in (("lookup_lengths", self.lookup_lengths), ("code_lengths", self.code_lengths)):
            if (value or name == "code_lengths") and (len(value) != 2 or value[0] > value[1] or value[0] < 1):
                raise OptionError(f"{name} takes two numbers, shortest and longest, not {value}; for instance 128 448")
        if self.shares and len(self.shares) != len(self.data):
            raise OptionError(f"shares has {len(self.shares)} numbers for {len(self.data)} data; give one each")


@dataclass
class ReaderTrainingArguments(QATrainingArguments):
    """:class:`QATrainingArguments` with what the reader of the reference tasks needs."""

    step_up: float = argument(0.8, "Exact answers at which the curriculum moves one step up.")
    guide_weight: float = argument(0.0, "Weight of the losses that teach heads where to look, relative to the answer's; 0 = none.")
    layers: list[int] = argument([], "Build the encoder from these layers (0 = first), such as 0 1 2 3 2 3; default: all, once.")
    waves: float = argument(0.0, "Amplitude of slow waves to add to the position table; 0 = none.")
    held_out_steps: int = argument(500, "Steps between two rounds of held-out questions.")
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
    if data_args.wrapped_length:
        form = dataclasses.replace(form, max_length=data_args.wrapped_length)
    data = _training_data(data_args, training_args, tokenizer, form)
    if training_args.layers:
        model = deepen(model, training_args.layers)
    if training_args.waves:
        add_waves(model, training_args.waves)
    if training_args.guide_weight:
        attach_guides(model, training_args.guide_weight)
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
    if data_args.held_out:
        trainer.add_callback(_HeldOut(trainer, data_args.held_out, training_args.held_out_steps, form))
    log: dict[str, Any] = {}
    before = train(trainer, run, None if validation is None else lambda: trainer.evaluate()["eval_loss"])
    if validation is not None:
        log["held_out_loss"] = {"before": before, "after": trainer.evaluate()["eval_loss"]}
    detach_guides(model)
    return finish(trainer, run, log, describe_training)


def deepen(model: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Return a model whose encoder has copies of the given layers, in that order (progressive stacking, Gong et al. 2019)."""
    config = copy.deepcopy(model.config)
    if not layers or min(layers) < 0 or max(layers) >= config.num_hidden_layers:
        raise OptionError(f"layers takes numbers from 0 to {config.num_hidden_layers - 1}, not {list(layers)}")
    config.num_hidden_layers = len(layers)
    deeper = type(model)(config)
    weights = model.state_dict()
    pattern = re.compile(r"(.*\.layers?\.)(\d+)(\..*)")
    own = {}
    for name in deeper.state_dict():
        match = pattern.fullmatch(name)
        own[name] = weights[f"{match[1]}{layers[int(match[2])]}{match[3]}" if match else name]
    deeper.load_state_dict(own)
    return deeper


def add_waves(model: PreTrainedModel, amplitude: float) -> None:
    """Add slow sines and cosines to a table of learned positions, in the directions that its words and positions use least.

    The nearest ``def`` before a token is 50 or 100 tokens away; the table of an encoder that has learnt to predict words from their
    neighbours tells such distances badly. All periods divide the table, so that it continues across the seam of a tiled one.
    """
    embeddings: Any = model.base_model.embeddings
    table, words = embeddings.position_embeddings.weight.data, embeddings.word_embeddings.weight.data
    centred = table - table.mean(0)
    _, directions = torch.linalg.eigh(words.T @ words / len(words) + centred.T @ centred / len(table))
    angles = 2 * math.pi / len(table) * torch.arange(len(table), dtype=table.dtype)[:, None] * torch.tensor(_WAVES, dtype=table.dtype)
    table += amplitude * torch.cat([angles.cos(), angles.sin()], 1) @ directions[:, : 2 * len(_WAVES)].T


class _Report(TrainerCallback):
    def __init__(self, on_log: Callable[[dict[str, Any]], None]) -> None:
        self.report = on_log

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            self.report(logs)


class _HeldOut(TrainerCallback):
    """Logs the exact answers to held-out questions."""

    def __init__(self, trainer: ReaderTrainer, held_out: Sequence[str], steps: int, form: QAFormat) -> None:
        self.trainer, self.steps, self.form = trainer, steps, form
        self.sets: dict[str, list[dict[str, Any]]] = {}
        for path in held_out:
            short = [record for record in read_records(path) if record["tokens"] <= form.max_length - form.max_question_tokens - 3]
            self.sets[Path(path).stem] = random.Random(0).sample(short, min(_HELD_OUT, len(short)))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self.steps == 0:
            self.trainer.log(self.scores())

    def scores(self) -> dict[str, float]:
        """Exact match by set."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model).eval()
        reader = QAReader("", model, self.trainer.processing_class, self.form, dtype=torch.bfloat16)
        found = {}
        for name, records in self.sets.items():
            answers = reader.read(records)
            exact = [score_answer(one.text, record["answers"]["text"])[0] for one, record in zip(answers, records, strict=True)]
            found[f"held_out_{name}"] = round(sum(exact) / len(exact), 4)
        model.train()
        return found


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
        if not hasattr(self.accelerator.unwrap_model(model), "guides"):
            inputs = {key: value for key, value in given.items() if key not in ("guides", "places", "starts", "ends")}
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
        guides = getattr(self.accelerator.unwrap_model(self.model), "guides", None)
        if guides is not None:
            logs.update({f"guide_{kind}": round(loss, 3) for kind, loss in guides.recent.items()})
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
    """Pads groups of features, as :class:`qa_stream.QAStream` yields them; rows of an evaluation as :class:`QACollator`."""

    def __call__(self, features: list[Any]) -> dict[str, Any]:
        """Return input_ids, attention_mask (B, L), …, start_positions, end_positions (B,), and if there are guides or several questions
        starts, ends (B, K), padded with -1, guides (N, 4) and places (P, 4).
        """
        if isinstance(features[0], dict):
            return super().__call__(features)
        rows: list[PackedFeature] = [row for group in features for row in group]
        batch: dict[str, Any] = pad_features(rows, self.tokenizer.pad_token_id or 0)
        batch["document_start"] = torch.tensor([row.document_start for row in rows])
        batch["start_positions"] = torch.tensor([row.start for row in rows])
        batch["end_positions"] = torch.tensor([row.end for row in rows])
        return {**batch, **_guided(rows), "task": rows[0].task}


def _guided(rows: list[PackedFeature]) -> dict[str, torch.Tensor]:
    """Return starts, ends (B, K), padded with -1, and the guides (N, 4) and places (P, 4); empty if there is nothing but an answer."""
    most = max(len(row.packed) for row in rows)
    guides = [(number, KINDS.index(kind), one, other) for number, row in enumerate(rows) for kind, one, other in row.guides]
    places = [(number, *place) for number, row in enumerate(rows) for place in row.places]
    if not guides and most == 1:
        return {}
    return {
        "starts": pad_lists([[asked.start for asked in row.packed] for row in rows], -1),
        "ends": pad_lists([[asked.end for asked in row.packed] for row in rows], -1),
        "guides": torch.tensor(guides, dtype=torch.long).view(-1, 4),
        "places": torch.tensor(places, dtype=torch.long).view(-1, 4),
    }


def describe_training(log: dict[str, Any]) -> str:
    """What a model card says about a run, with the answers found in the last batches."""
    last = {key: value for entry in log["history"] for key, value in entry.items()}
    exact = {key.removeprefix("exact_"): value for key, value in last.items() if key.startswith("exact_")}
    found = ", ".join(f"{task} {100 * share:.0f} %" for task, share in exact.items())
    return describe_qa_training(log, "scripts.dev.studies.qa_finetune") + (
        f"\n\nAnswers found in the last training batches: {found}." if exact else ""
    )


def _training_data(
    args: ReaderDataArguments, training_args: ReaderTrainingArguments, tokenizer: PreTrainedTokenizerBase, form: QAFormat
) -> QAStream:
    modules: list[corpus.Module] = []
    cached = args.cache is not None and Path(args.cache).is_file()
    if "code" in args.data and not cached:
        modules = list(modules_of(args.split))
    elif "lookup" in args.data:
        modules = list(_installed(args.split))
    random.Random(training_args.seed).shuffle(modules)
    sources: dict[str, Source] = {}
    for name in args.data:
        if name == "lookup":
            filler = Filler((module.text for module in modules), tokenizer)
            sources[name] = Lookups(
                tokenizer, filler, _lookup_curriculum(args.lookup_lengths, training_args.step_up), form.max_length, args.pack
            )
        elif name == "code":
            files = label_files(modules[: args.code_files or None], args.cache)
            lengths = (args.code_lengths[0], args.code_lengths[1])
            sources[name] = Code(files, Names(files), pack=args.pack, base=args.base_share, tokens=lengths)
        else:
            most = form.max_length - form.max_question_tokens - 3
            sources[Path(name).stem] = Records(read_records(name), min(args.max_tokens or most, most), args.pack)
    shares = args.shares or [1.0] * len(sources)
    return QAStream(tokenizer, form, sources, shares, tokens_per_group=args.tokens_per_step, seed=training_args.seed)


@lru_cache(maxsize=1)
def _installed(split: str) -> tuple[corpus.Module, ...]:
    """The modules that lookups are hidden in; several runs of one process read them once."""
    return tuple(module for module in corpus.iter_modules(split) if module.package not in corpus.STANDARD_LIBRARY)


def _lookup_curriculum(lengths: list[int], step_up: float) -> Curriculum:
    if not lengths:
        return Curriculum(LOOKUPS, step_up)
    shortest, longest = lengths
    return Curriculum((Stage(shortest, longest, 4, 4, 512 if shortest >= 1024 else 0),), step_up)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_training(Task(READER, finetune_qa, result=lambda log: ""), arguments, __doc__.split("\n\n")[0])


if __name__ == "__main__":
    sys.exit(main())
