"""Train one backbone with several named heads.

A batch is of one task, drawn by the tasks' sizes and a temperature. The result is one checkpoint, whose heads load singly
(:func:`load_multitask_head`).
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader, Sampler
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES

from hf_longattn.data.batching import DocumentCollator, TokenCollator
from hf_longattn.data.documents import label_names, to_documents
from hf_longattn.data.lengths import input_length
from hf_longattn.data.qa_features import QAFormat
from hf_longattn.data.qa_inputs import TARGETS, QACollator, training_features
from hf_longattn.data.words import tag_names, to_windows
from hf_longattn.errors import OptionError, nearest
from hf_longattn.evaluation import load_metric
from hf_longattn.evaluation.qa_heads import qa_loss
from hf_longattn.evaluation.qa_reader import QAReader
from hf_longattn.evaluation.qa_scores import score_answers
from hf_longattn.modeling.attach.token_globals import carry_question
from hf_longattn.modeling.inference.optimize import evaluating
from hf_longattn.tasks import Task
from hf_longattn.training.args import DataArguments, ModelArguments, argument, batch_size_argument
from hf_longattn.training.loading import label_config, load_head, load_model, load_start
from hf_longattn.training.results import held_out_in_words, score_in_words, steps_of
from hf_longattn.training.tasks.classify import ClassificationDataArguments, read_labelled
from hf_longattn.training.tasks.qa import QADataArguments, read_questions
from hf_longattn.training.tasks.tokens import TokenDataArguments, read_tagged, tag_scores
from hf_longattn.training.trainer import MeasuringTrainer
from hf_longattn.training.training_args import LongTrainingArguments, TaskArguments
from hf_longattn.training.training_loop import prepare_run, save_run, train

LOADERS = {"classify": AutoModelForSequenceClassification, "tokens": AutoModelForTokenClassification, "qa": AutoModelForQuestionAnswering}
HEAD_SCORES = {"classify": ("accuracy", "document"), "tokens": ("f1", "document"), "qa": ("f1", "question")}
"""What each kind of head is judged by, and what is counted."""
Scores = dict[str, float]


@dataclass
class MultiTaskDataArguments(DataArguments):
    """The data of several tasks."""

    tasks: list[str] = argument(
        [], "Two or more NAME=KIND:DATA; KIND is classify, tokens or qa, DATA as for that task, for example topic=classify:reviews.csv "
        "ask=qa:mandarjoshi/trivia_qa:rc."
    )  # fmt: skip
    validation: list[str] = argument(
        [], "NAME=DATA for each task that is evaluated on other data, for example names=dev.conll; the others hold out a tenth of theirs."
    )
    max_length: int | None = argument(None, "Tokens of the longest input; default: the model's maximum.")

    def check(self) -> None:
        super().check()
        if len(self.tasks) < 2:
            raise OptionError("multitask needs two tasks or more; add --tasks NAME=KIND:DATA NAME=KIND:DATA")
        self.named_tasks()

    def named_tasks(self) -> dict[str, tuple[str, str, str]]:
        """Kind, data and validation ("" for none) of each task, by its name.

        Raises:
            OptionError: what is no task, or validation data of none.
        """
        tasks: dict[str, tuple[str, str, str]] = {}
        validation = dict(text.partition("=")[::2] for text in self.validation)
        for text in self.tasks:
            name, _, rest = text.partition("=")
            kind, _, data = rest.partition(":")
            if not name.isidentifier() or not data or name in tasks:
                raise OptionError(f"a task is NAME=KIND:DATA, with a name that no other task has, not {text!r}")
            if kind not in LOADERS:
                raise OptionError(f"the kind of task {name!r} must be one of {', '.join(LOADERS)}, not {kind!r}.{nearest(kind, LOADERS)}")
            first, _, second = data.rpartition(":")
            if Path(first).is_file():
                raise OptionError(f"the task {text!r} names a second file; give it by --validation {name}={second}")
            tasks[name] = (kind, data, validation.pop(name, ""))
        if validation:
            name = next(iter(validation))
            raise OptionError(f"--validation takes NAME=DATA of one of the tasks {', '.join(tasks)}, not {name!r}.{nearest(name, tasks)}")
        return tasks


@dataclass
class MultiTaskTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of training on several tasks at once. The best model is by default that with the highest mean of the tasks'
    scores (``metric_for_best_model mean``)."""

    shards: ClassVar[bool] = False
    without_effect: ClassVar[tuple[str, ...]] = ("label_smoothing_factor",)

    temperature: float = argument(
        2.0, "Tasks are drawn in proportion to (number of inputs)^(1/temperature); 1 = by size, large = all alike (T5, section 3.5.2)."
    )
    per_device_train_batch_size: int = batch_size_argument(2)
    per_device_eval_batch_size: int = argument(2, "Inputs per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(8, "Forward passes per optimiser step; they mix the tasks.")
    learning_rate: float = argument(5e-5, "Highest learning rate (MT-DNN, Liu et al. 2019: 5e-5).")

    def check(self) -> None:
        super().check()
        if self.tokens_per_batch:
            raise OptionError("tokens_per_batch does not apply to multitask, whose batches are of one task each; give --batch_size instead")
        if self.load_best_model_at_end and "metric_for_best_model" not in self.explicit:
            self.metric_for_best_model = "mean"
        if self.temperature <= 0:
            raise OptionError(f"temperature must be above 0, not {self.temperature}")


MULTITASK = (ModelArguments, MultiTaskDataArguments, MultiTaskTrainingArguments)


@dataclass
class TaskHead:
    """A task's head, inputs and batches, and what scores it. ``settings`` go into the config of the head when it is loaded singly."""

    kind: str
    model: PreTrainedModel
    rows: Dataset
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    scores: Callable[[], Scores]
    settings: dict[str, Any] = field(default_factory=dict)


class MultiTaskModel(nn.Module):
    """Several heads on the backbone of the first; parameters are named as in a checkpoint: the backbone's as in any model of the family,
    those of heads with ``heads.NAME.`` in front."""

    def __init__(self, models: Mapping[str, PreTrainedModel]) -> None:
        super().__init__()
        largest = max(models.values(), key=lambda model: sum(1 for _ in model.base_model.parameters()))  # the one with a pooler, if any
        prefix, backbone = largest.base_model_prefix, largest.base_model
        self.config = largest.config
        self.add_module(prefix, backbone)
        self.heads = nn.ModuleDict()
        for name, model in models.items():
            setattr(model, prefix, backbone)
            self.heads[name] = nn.ModuleDict({child: module for child, module in model.named_children() if module is not backbone})
        self.models = dict(models)  # no modules of this one: they hold the backbone each

    def train(self, mode: bool = True) -> MultiTaskModel:
        for model in self.models.values():
            model.training = mode
        return super().train(mode)

    def get_input_embeddings(self) -> nn.Module:
        """Called by Trainer, whose NEFTune adds noise to them."""
        return next(iter(self.models.values())).get_input_embeddings()

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer, before transformers 5.23 as :meth:`gradient_checkpointing_enable`."""
        next(iter(self.models.values())).activation_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        next(iter(self.models.values())).gradient_checkpointing_enable(*args, **kwargs)

    def forward(self, task: str, **inputs: Any) -> Any:
        """The outputs of a task's head, with its loss."""
        model_inputs = {name: value for name, value in inputs.items() if name not in TARGETS}
        outputs = self.models[task](**model_inputs)
        if "starts" in inputs:
            outputs.loss = qa_loss(outputs, inputs).mean()
        return outputs


class MixedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """The inputs of all tasks, by the task's name and their number."""

    def __init__(self, tasks: Mapping[str, TaskHead]) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return sum(len(task.rows) for task in self.tasks.values())

    def __getitem__(self, place: tuple[str, int]) -> dict[str, Any]:
        return {"task": place[0], **self.tasks[place[0]].rows[place[1]]}


class TaskBatches(Sampler[list[tuple[str, int]]]):
    """Batches of one task each. An epoch has as many batches as all tasks together; which task a batch is of is drawn with the temperature,
    in an order that depends on the seed and the epoch; each task's inputs come in turn."""

    def __init__(self, sizes: Mapping[str, int], batch_size: int, temperature: float, seed: int, processes: int = 1) -> None:
        self.sizes, self.size, self.seed, self.epoch = dict(sizes), batch_size, seed, 0
        self.weights = [size ** (1 / temperature) for size in sizes.values()]
        count = sum(-(-size // batch_size) for size in sizes.values())
        self.count = -(-count // processes) * processes
        self.batch_size, self.drop_last = None, False

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        choose = random.Random(f"{self.seed}:{self.epoch}")
        streams = {name: self._endless(size, random.Random(f"{self.seed}:{self.epoch}:{name}")) for name, size in self.sizes.items()}
        for name in choose.choices(list(self.sizes), self.weights, k=self.count):
            yield [(name, next(streams[name])) for _ in range(min(self.size, self.sizes[name]))]

    @staticmethod
    def _endless(size: int, choose: random.Random) -> Iterator[int]:
        while True:
            yield from choose.sample(range(size), size)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before every epoch."""
        self.epoch = epoch


class MultiTaskTrainer(MeasuringTrainer):
    """Trains on mixed batches, and saves the config with the heads beside the weights."""

    def __init__(self, model: MultiTaskModel, args: MultiTaskTrainingArguments, tasks: Mapping[str, TaskHead], **kwargs: Any) -> None:
        rows = MixedRows(tasks)
        super().__init__(model, args, measure=self.measured, train_dataset=rows, eval_dataset=rows, data_collator=self.collate, **kwargs)
        self.tasks, self.temperature = tasks, args.temperature

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of one task."""
        name = rows[0]["task"]
        return {"task": name, **self.tasks[name].collator([{key: value for key, value in row.items() if key != "task"} for row in rows])}

    def get_train_dataloader(self) -> Any:
        self.accelerator.even_batches = False  # there are as many batches for every process
        sizes, size = {name: len(task.rows) for name, task in self.tasks.items()}, self.args.train_batch_size
        batches = TaskBatches(sizes, size, self.temperature, self.args.seed, self.args.world_size)
        workers, pinned = self.args.dataloader_num_workers, self.args.dataloader_pin_memory
        loader: Any = DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.collate, num_workers=workers, pin_memory=pinned)
        return self.accelerator.prepare(loader)

    def scores(self) -> dict[str, Scores]:
        """The scores of every task on its held-out data, in all processes; the first one computes them."""
        with evaluating(self.accelerator.unwrap_model(self.model)):
            scores = {name: task.scores() for name, task in self.tasks.items()} if self.is_world_process_zero() else {}
        return dict(broadcast_object_list([scores])[0])

    def measured(self) -> dict[str, float]:
        """The scores of every task as ``NAME_accuracy`` …, and the mean of what each is judged by, ``mean``."""
        scores = self.scores()
        scores_by_metric = {f"{name}_{key}": value for name, values in scores.items() for key, value in values.items()}
        main_scores = [scores[name][HEAD_SCORES[task.kind][0]] for name, task in self.tasks.items()]
        return {**scores_by_metric, "mean": sum(main_scores) / len(main_scores)}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        heads = {name: {"kind": task.kind, "labels": _labels(task.model), **task.settings} for name, task in self.tasks.items()}
        self.accelerator.unwrap_model(self.model).config.multitask_heads = heads
        super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            self.accelerator.unwrap_model(self.model).config.save_pretrained(output_dir or self.args.output_dir)


def finetune_multitask(
    model_args: ModelArguments, data_args: MultiTaskDataArguments, training_args: MultiTaskTrainingArguments
) -> dict[str, Any]:
    """Train, and write the model to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, scores of every task before and after, Trainer's history.
    """
    run = prepare_run(model_args, data_args, training_args)
    _, tokenizer = load_start(model_args.model, "classes of words or documents", MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES)
    tokenizer.padding_side = tokenizer.truncation_side = "right"  # the tokens of a row have the places of its words, windows their order
    build = {"classify": _classify, "tokens": _tokens, "qa": _qa}
    tasks = {name: build[kind](run, tokenizer, data, held) for name, (kind, data, held) in data_args.named_tasks().items()}
    model = MultiTaskModel({name: task.model for name, task in tasks.items()})
    training_args.remove_unused_columns, training_args.ddp_find_unused_parameters = False, True
    trainer = MultiTaskTrainer(model, training_args, tasks, processing_class=tokenizer, max_minutes=training_args.max_minutes)
    before = train(trainer, run, trainer.scores)
    log = {"tasks": {name: task.kind for name, task in tasks.items()}, "held_out": {"before": before, "after": trainer.scores()}}
    return save_run(trainer, run, log, describe_multitask)


def load_multitask_head(name: str, head: str) -> PreTrainedModel:
    """One head of a checkpoint of ``longattn train multitask`` with the backbone, as an ordinary model.

    Args:
        name: a folder or a Hub name.
        head: the task's name.

    Raises:
        OptionError: the checkpoint has no such head.
    """
    heads = getattr(AutoConfig.from_pretrained(name), "multitask_heads", {})
    if head not in heads:
        raise OptionError(f"{name!r} has the heads {', '.join(heads) or 'none'}, not {head!r}.{nearest(head, heads)}")
    entry = heads[head]
    classes = label_config(entry["labels"])
    loader: Any = LOADERS[entry["kind"]]
    model = load_model(loader, name, elsewhere=("heads.",), key_mapping={rf"^heads\.{head}\.": ""}, **classes)
    for key, value in entry.items():
        if key not in ("kind", "labels"):
            setattr(model.config, key, value)
    return model


def _labels(model: PreTrainedModel) -> list[str]:
    return [model.config.id2label[number] for number in sorted(model.config.id2label)]


def _classify(run: TaskArguments, tokenizer: PreTrainedTokenizerBase, data: str, held: str) -> TaskHead:
    texts, held_texts = read_labelled(ClassificationDataArguments(data=[data], validation=held, **_limits(run)), run.training.seed)
    names = label_names(texts, held_texts)
    model = load_head(LOADERS["classify"], run.model.model, tokenizer, **label_config(names), problem_type="single_label_classification")
    length = input_length(model, tokenizer, run.data.max_length)
    rows, held_out = (to_documents(part, tokenizer, length, names) for part in (texts, held_texts))
    collator = DocumentCollator(tokenizer)

    def scores() -> Scores:
        predictions = [int(logits.argmax()) for logits in predicted(model, held_out, collator, run.training)]
        references = [{"label": label, "length": -1} for label in held_out["labels"]]
        result = load_metric("long_classification").compute(predictions=predictions, references=references)
        return {name: value for name, value in result.items() if name != "buckets"}

    return TaskHead("classify", model, rows, collator, scores)


def _tokens(run: TaskArguments, tokenizer: PreTrainedTokenizerBase, data: str, held: str) -> TaskHead:
    texts, held_texts = read_tagged(TokenDataArguments(data=[data], validation=held, **_limits(run)), run.training.seed)
    names = tag_names(texts, held_texts)
    model = load_head(LOADERS["tokens"], run.model.model, tokenizer, **label_config(names))
    length = input_length(model, tokenizer, run.data.max_length)
    rows, held_out = (to_windows(part, tokenizer, length, 128, names) for part in (texts, held_texts))
    collator, columns = TokenCollator(tokenizer), ["word_ids", "document"]

    def scores() -> Scores:
        return tag_scores(predicted(model, held_out.remove_columns(columns), collator, run.training), held_out, held_texts, names)

    return TaskHead("tokens", model, rows.remove_columns(columns), collator, scores)


def _qa(run: TaskArguments, tokenizer: PreTrainedTokenizerBase, data: str, held: str) -> TaskHead:
    model = load_head(LOADERS["qa"], run.model.model, tokenizer)
    carry_question(model, tokenizer)
    length = input_length(model, tokenizer, run.data.max_length)
    form = QAFormat(length, min(128, length // 4))
    records, validation = read_questions(QADataArguments(data=[data], validation=held, **_limits(run)), run.training.seed)
    rows = training_features(records, tokenizer, form, "windows")
    task = TaskHead("qa", model, rows, QACollator(tokenizer), dict)

    def scores() -> Scores:
        reader = QAReader("", model, tokenizer, form, batch_size=run.training.per_device_eval_batch_size)
        questions = validation.to_list()
        answers = reader.read(questions)
        results = score_answers(questions, answers)
        if "best_f1_threshold" in results:  # of "no answer", tuned on these questions
            task.settings["no_answer_threshold"] = results["best_f1_threshold"]
            results = score_answers(questions, answers, results["best_f1_threshold"])
        names = ("exact_match", "exact_match_se", "f1", "f1_se", "n", "best_f1_threshold")
        return {name: results[name] for name in names if name in results}

    task.scores = scores
    return task


def _limits(run: TaskArguments) -> dict[str, Any]:
    return {name: getattr(run.data, name) for name in ("max_train_samples", "max_eval_samples")}


@torch.no_grad()
def predicted(model: PreTrainedModel, rows: Dataset, collator: Any, args: LongTrainingArguments) -> Iterator[Any]:
    """The logits of every row, on the CPU."""
    size = args.per_device_eval_batch_size
    for first in range(0, len(rows), size):
        batch = collator([rows[place] for place in range(first, min(first + size, len(rows)))])
        yield from model(**{name: value.to(model.device) for name, value in batch.items()}).logits.float().cpu().numpy()


def describe_multitask(log: dict[str, Any]) -> str:
    """What a model card says about a run."""
    heads = ", ".join(f"`{name}` ({kind})" for name, kind in log["tasks"].items())
    return (
        f"{steps_of(log)} with `longattn train multitask`; heads: {heads}. Load one with "
        f"`hf_longattn.training.load_multitask_head(MODEL, NAME)`.\n\n{multitask_result(log)}"
    )


def multitask_result(log: dict[str, Any]) -> str:
    """What is printed at the end of a run."""
    lines = []
    for name, kind in log["tasks"].items():
        metric, rows = HEAD_SCORES[kind]
        scores = {when: (evaluation or {}).get(name) for when, evaluation in log["held_out"].items()}
        tuned = any("best_f1_threshold" in (evaluation or {}) for evaluation in scores.values())
        note = '; the threshold of "no answer" is the best one on these questions' if tuned else ""
        lines.append(f"- {name}: {held_out_in_words(scores, partial(score_in_words, name=metric), rows)}{note}")
    return "\n".join(lines)


TASK = Task(arguments=MULTITASK, train=finetune_multitask, result=multitask_result)
