"""Train one backbone with several named heads.

A batch is of one task, drawn by the tasks' sizes and a temperature. The result is one checkpoint, whose heads load singly
(:func:`~hf_longattn.training.modalities.load_multitask_head`).
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_longattn.data.audio import Hearing
from hf_longattn.data.batching import DocumentCollator, EpochAwareCollator, EpochSampler, TokenCollator
from hf_longattn.data.documents import label_names, to_documents
from hf_longattn.data.lengths import input_length
from hf_longattn.data.qa_features import QACollator, answerable, qa_rows
from hf_longattn.data.sources import each_part
from hf_longattn.data.words import tag_names, to_windows
from hf_longattn.errors import OptionError, in_a_line, nearest
from hf_longattn.evaluation import load_metric
from hf_longattn.evaluation.qa_reader import QAReader
from hf_longattn.evaluation.qa_scores import score_answers
from hf_longattn.modeling.attach.token_globals import carry_question
from hf_longattn.modeling.family.grid_rule import image_size
from hf_longattn.modeling.inference.optimize import evaluating
from hf_longattn.modeling.multimodal import ImageInput
from hf_longattn.modeling.run.losses import label_count
from hf_longattn.training.args import DataArguments, ModelArguments, argument, batch_size_argument, check_positive
from hf_longattn.training.evaluation import evaluation_class
from hf_longattn.training.loading import labels_of
from hf_longattn.training.modalities import Start, load_multimodal_start
from hf_longattn.training.old_classify import NO_LENGTH, ClassificationDataArguments, read_labelled
from hf_longattn.training.old_qa import QADataArguments, read_questions
from hf_longattn.training.old_tokens import TokenDataArguments, read_tagged, tag_scores
from hf_longattn.training.old_trainer import MeasuringTrainer, rows_of
from hf_longattn.training.results import held_out_in_words, score_in_words, steps_of
from hf_longattn.training.task import Task
from hf_longattn.training.tasks.qa import span_loss
from hf_longattn.training.training_args import LongTrainingArguments, TaskArguments
from hf_longattn.training.training_loop import check_rows, prepare_run, save_run, train

HEAD_SCORES = {
    "classify": ("accuracy", "document"), "tokens": ("f1", "document"), "qa": ("f1", "question"), "images": ("accuracy", "image"),
    "audio": ("accuracy", "audio file"),
}  # fmt: skip
"""Kind of head -> its main score, and the name of its rows."""
DATA_OF: dict[str, tuple[Any, dict[str, Any]]] = {
    "classify": (ClassificationDataArguments, {}),
    "tokens": (TokenDataArguments, {}),
    "qa": (QADataArguments, {}),
    "images": (ClassificationDataArguments, {"images": True}),
    "audio": (ClassificationDataArguments, {"audio": True}),
}
"""Kind of task -> its data arguments, and their fixed values."""
WITHOUT_EFFECT = ("packing", "long_documents", "max_question_tokens", "images", "audio")
"""Options of single tasks that a file of tasks does not take."""
Scores = dict[str, float]


@dataclass
class MultiTaskModelArguments(ModelArguments):
    """The checkpoint to start from, and new embedders of images and audio files for a text model."""

    training_only: ClassVar[tuple[str, ...]] = ("image_size", "patch_size", "mel_bins", "frame_stride")

    image_size: list[int] = argument(
        [], "Height and width of the images (one number: both), for a model of texts that is to read images; the converted model's own "
        "image processor resizes them."
    )  # fmt: skip
    patch_size: int = argument(16, "Pixels of a side of a patch, which is one token.")
    mel_bins: int = argument(0, "Mel bins of spectrograms (80 is usual), for a model of texts that is to hear audio files; 0 = none.")
    frame_stride: int = argument(8, "Frames of 10 ms that become one token, a power of two.")

    def check(self) -> None:
        super().check()
        if len(self.image_size) > 2:
            raise OptionError(f"--image-size must be a height and a width, not {len(self.image_size)} numbers.")
        if "patch_size" in self.explicit and not self.image_size:
            raise OptionError("--patch-size requires --image-size; add it, or leave --patch-size out.")
        if "frame_stride" in self.explicit and not self.mel_bins:
            raise OptionError("--frame-stride requires --mel-bins; add it, or leave --frame-stride out.")


@dataclass
class MultiTaskDataArguments(DataArguments):
    """The data of several tasks."""

    training_only: ClassVar[tuple[str, ...]] = ("validation",)

    tasks: list[str] = argument(
        [], "Two or more NAME=KIND:DATA; KIND is classify, tokens, qa, images or audio, DATA as for that task (images and audio: as for "
        "classify), for example topic=classify:reviews.csv ask=qa:squad.json."
    )  # fmt: skip
    task_file: str = argument(
        "", "A .yaml or .json file of tasks: NAME with kind, data and options of that task, such as label_column, validation, augmentation "
        "or resample."
    )  # fmt: skip
    validation: list[str] = argument(
        [], "NAME=DATA for each task that is evaluated on other data, for example names=dev.conll; the others hold out a tenth of theirs."
    )
    max_length: int | None = argument(None, "Tokens of the longest input; default: the model's maximum.")

    def check(self) -> None:
        super().check()
        least, count = (1, "a task") if self.only_scores else (2, "two tasks or more")
        if len(self.tasks) < least and not self.task_file:
            example = " ".join(["NAME=KIND:DATA"] * least)
            raise OptionError(f"Multitask needs {count}; add --tasks {example}, or --task-file FILE.yaml.")
        if len(tasks := self.task_data()) < least:
            raise OptionError(f"Multitask needs {count}, not {', '.join(tasks) or 'none'}; add another to {self.task_file}.")

    def check_files(self) -> None:
        for _, data in self.task_data().values():
            data.check_files()

    def named_tasks(self) -> dict[str, tuple[str, str, str]]:
        """Task name -> kind, data and validation ("" for none), from ``tasks``.

        Raises:
            OptionError: a wrong task, or validation data of an unknown task.
        """
        tasks: dict[str, tuple[str, str, str]] = {}
        validation = dict(text.partition("=")[::2] for text in self.validation)
        for text in self.tasks:
            name, _, rest = text.partition("=")
            kind, _, data = rest.partition(":")
            if not name.isidentifier() or not data or name in tasks:
                raise OptionError(f"A task is NAME=KIND:DATA, with a name that no other task has, not {text!r}.")
            check_kind(name, kind)
            first, _, second = data.rpartition(":")
            if Path(first).is_file():
                raise OptionError(f"The task {text!r} names a second file; give it by --validation {name}={second}.")
            tasks[name] = (kind, data, validation.pop(name, ""))
        if validation:
            name = next(iter(validation))
            raise OptionError(f"--validation takes NAME=DATA of one of the tasks {', '.join(tasks)}, not {name!r}.{nearest(name, tasks)}")
        return tasks

    def task_data(self) -> dict[str, tuple[str, Any]]:
        """Task name -> kind, and data arguments as in the command for this task alone.

        Raises:
            OptionError: a wrong task, or an option that its kind lacks.
            MissingExtraError: a library that reads its data is not installed.
        """
        entries: dict[str, dict[str, Any]] = {
            name: {"kind": kind, "data": data, "validation": validation or None}
            for name, (kind, data, validation) in self.named_tasks().items()
        }
        for name, entry in read_task_file(self.task_file).items() if self.task_file else ():
            if name in entries:
                raise OptionError(f"The task {name!r} is in --tasks and in {self.task_file}; leave one of the two out.")
            entries[name] = entry
        shared = {name: getattr(self, name) for name in ("max_train_samples", "max_eval_samples")}
        tasks = {name: (entry["kind"], task_arguments(name, {**shared, **entry}, self.only_scores)) for name, entry in entries.items()}
        return tasks


def check_kind(name: str, kind: Any) -> None:
    """Raise :class:`OptionError` for a kind of task that does not exist."""
    if kind not in DATA_OF:
        raise OptionError(f"The kind of task {name!r} must be one of {', '.join(DATA_OF)}, not {kind!r}.{nearest(str(kind), DATA_OF)}")


def read_task_file(file: str) -> dict[str, dict[str, Any]]:
    """Task name -> entry of a file of tasks, with paths unchanged.

    Raises:
        OptionError: the file cannot be read, or an entry is not a task.
    """
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionError(f"The file of tasks {file!r} cannot be read ({in_a_line(error)}); give a .yaml or .json file.") from error
    if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
        raise OptionError(f"{file!r} is not a file of tasks; write NAME: {{kind: classify, data: reviews.csv}} for each.")
    for name, entry in content.items():
        if not str(name).isidentifier():
            raise OptionError(f"{file!r} has a task {name!r}; give it a name of letters, digits and _.")
        check_kind(name, entry.get("kind"))
    return content


def task_arguments(name: str, entry: Mapping[str, Any], only_scores: bool = False) -> Any:
    """The data arguments of a task, as in the command for this task alone.

    Args:
        name: the task's.
        entry: ``kind``, ``data`` and further options by their names.
        only_scores: use the arguments of `longattn evaluate`.

    Raises:
        OptionError: an option that does not exist, or a value that the task refuses.
    """
    arguments, always = DATA_OF[entry["kind"]]
    if only_scores:
        arguments = evaluation_class(arguments)
    values = {key: value for key, value in entry.items() if key != "kind" and value is not None}
    known = [field.name for field in fields(arguments) if field.init and field.name not in WITHOUT_EFFECT]
    if unknown := next((key for key in values if key not in known), None):
        raise OptionError(f"The task {name!r} has no option {unknown!r}; its options are {', '.join(known)}.{nearest(unknown, known)}")
    values["data"] = [values["data"]] if isinstance(values.get("data"), str) else list(values.get("data") or [])
    try:
        return arguments(**values, **always)
    except OptionError as error:
        raise OptionError(f"The task {name!r}: {error}") from error


@dataclass
class MultiTaskTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of training on several tasks at once. The best model is by default that with the highest mean of the tasks'
    scores (``metric_for_best_model mean``)."""

    shards: ClassVar[bool] = False
    without_effect: ClassVar[tuple[str, ...]] = ("label_smoothing_factor",)

    temperature: float = argument(
        2.0, "Tasks are drawn in proportion to (number of inputs)^(1/temperature); 1 = by size, large = equally often (T5, section 3.5.2)."
    )
    per_device_train_batch_size: int = batch_size_argument(2)
    per_device_eval_batch_size: int = argument(2, "Inputs per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(8, "Forward passes per optimiser step; they mix the tasks.")
    learning_rate: float = argument(5e-5, "Peak learning rate (MT-DNN, Liu et al. 2019: 5e-5).")

    def check(self) -> None:
        super().check()
        if self.tokens_per_batch:
            raise OptionError(
                "--tokens-per-batch does not apply to multitask, whose batches are of one task each; give --batch-size instead."
            )
        if self.load_best_model_at_end and "metric_for_best_model" not in self.explicit:
            self.metric_for_best_model = "mean"
        check_positive(self, "temperature")


MULTITASK = (MultiTaskModelArguments, MultiTaskDataArguments, MultiTaskTrainingArguments)


@dataclass
class TaskHead:
    """A task's head, inputs, collator and scores. ``settings`` go into the config of a singly loaded head, ``log`` into the run's log."""

    kind: str
    model: PreTrainedModel
    rows: Dataset
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    scores: Callable[[], Scores]
    settings: dict[str, Any] = field(default_factory=dict)
    log: dict[str, Any] = field(default_factory=dict)


class MultiTaskModel(nn.Module):
    """Several heads on one backbone. Parameters have the names of checkpoints: the backbone's as in its family, the heads' with the prefix
    ``heads.NAME.``."""

    def __init__(self, models: Mapping[str, PreTrainedModel]) -> None:
        super().__init__()
        largest = max(models.values(), key=lambda model: sum(1 for _ in model.base_model.parameters()))  # the one with a pooler, if any
        prefix, backbone = largest.base_model_prefix, largest.base_model
        if backbone is largest or len({type(model.base_model) for model in models.values()}) > 1:  # T5
            classes = ", ".join(type(model).__name__ for model in models.values())
            raise OptionError(f"The heads {classes} have no backbone in common, which multitask needs; train a model for each task.")
        self.config = largest.config
        self.add_module(prefix, backbone)
        self.heads = nn.ModuleDict()
        for name, model in models.items():
            setattr(model, prefix, backbone)
            self.heads[name] = nn.ModuleDict({child: module for child, module in model.named_children() if module is not backbone})
        self.models = dict(models)  # not registered as modules, since each holds the backbone

    def train(self, mode: bool = True) -> MultiTaskModel:
        for model in self.models.values():
            model.training = mode
        return super().train(mode)

    def get_input_embeddings(self) -> nn.Module:
        """Called by Trainer for NEFTune's noise."""
        return next(iter(self.models.values())).get_input_embeddings()

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Called by Trainer, which before transformers 5.23 calls :meth:`gradient_checkpointing_enable`."""
        next(iter(self.models.values())).activation_checkpointing_enable(*args, **kwargs)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        next(iter(self.models.values())).gradient_checkpointing_enable(*args, **kwargs)

    def forward(self, task: str, **inputs: Any) -> Any:
        """The outputs of a task's head, with its loss."""
        model = self.models[task]
        if not type(model).__name__.endswith("ForQuestionAnswering"):
            return model(**inputs)
        labels = inputs.pop("labels", None)
        outputs = model(**inputs)
        if labels is not None:
            outputs.loss = span_loss(outputs, labels)
        return outputs

    def items_of(self, task: str, **inputs: Any) -> Tensor:
        """The number of labels in a batch ``(tasks,)``: 0 for every task but the batch's."""
        count = label_count(type(self.models[task]).__name__, inputs)
        count = torch.as_tensor(rows_of(inputs) if count is None else count)
        return torch.stack([count if name == task else torch.zeros_like(count) for name in self.models])


class MixedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """The inputs of all tasks, by the task's name and their number."""

    def __init__(self, tasks: Mapping[str, TaskHead]) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return sum(len(task.rows) for task in self.tasks.values())

    def __getitem__(self, place: tuple[str, int]) -> dict[str, Any]:
        return {"task": place[0], **self.tasks[place[0]].rows[place[1]]}


class MixedCollator(EpochAwareCollator):
    """Batches of one task, made by that task's collator. All collators have the same epoch."""

    def __init__(self, tasks: Mapping[str, TaskHead]) -> None:
        self.count_epochs()
        self.collators = {name: task.collator for name, task in tasks.items()}
        for collator in self.collators.values():
            if isinstance(collator, EpochAwareCollator):
                collator.shared_epoch = self.shared_epoch

    def for_evaluation(self) -> MixedCollator:
        """This one: evaluations are made by the tasks."""
        return self

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch of rows of :class:`MixedRows`."""
        name = rows[0]["task"]
        return {"task": name, **self.collators[name]([{key: value for key, value in row.items() if key != "task"} for row in rows])}


class TaskBatches(EpochSampler):
    """Batches of one task each. An epoch has as many batches as all tasks together. The task of each batch is drawn with the temperature,
    by seed and epoch; a task's inputs come in turn."""

    def __init__(self, sizes: Mapping[str, int], batch_size: int, temperature: float, seed: int, processes: int = 1) -> None:
        self.sizes, self.size, self.seed = dict(sizes), batch_size, seed
        self.weights = [size ** (1 / temperature) for size in sizes.values()]
        count = sum(-(-size // batch_size) for size in sizes.values())
        self.count = -(-count // processes) * processes
        self.batch_size, self.drop_last = None, False

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[tuple[str, int]]]:
        choose = random.Random(f"{self.seed}:{self.epoch}")

        def endless(name: str, size: int) -> Iterator[int]:
            choose = random.Random(f"{self.seed}:{self.epoch}:{name}")
            while True:
                yield from choose.sample(range(size), size)

        streams = {name: endless(name, size) for name, size in self.sizes.items()}
        for name in choose.choices(list(self.sizes), self.weights, k=self.count):
            yield [(name, next(streams[name])) for _ in range(min(self.size, self.sizes[name]))]


class MultiTaskTrainer(MeasuringTrainer):
    """Trains on mixed batches, and saves the config with the heads beside the weights."""

    def __init__(self, model: MultiTaskModel, args: MultiTaskTrainingArguments, tasks: Mapping[str, TaskHead], **kwargs: Any) -> None:
        rows = MixedRows(tasks)
        super().__init__(
            model, args, measure=self.measured, train_dataset=rows, eval_dataset=rows, data_collator=MixedCollator(tasks), **kwargs
        )
        self.tasks, self.temperature = tasks, args.temperature

    def items_of(self, inputs: Mapping[str, Any]) -> Tensor:
        """The number of labels by task."""
        items: Tensor = self.accelerator.unwrap_model(self.model).items_of(**inputs)
        return items

    def items_of_step(self, batches: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
        """The number of labels by task, scaled so that tasks count by their batches and labels within a task count equally."""
        drawn = self.over_processes(torch.stack([self.items_of(batch) > 0 for batch in batches]).sum(0).to(device))
        return super().items_of_step(batches, device) * drawn.sum() / torch.where(drawn > 0, drawn, 1)

    def get_train_dataloader(self) -> Any:
        sizes, size = {name: len(task.rows) for name, task in self.tasks.items()}, self.args.train_batch_size
        return self.loader_of(TaskBatches(sizes, size, self.temperature, self.args.seed, self.args.world_size))

    def scores(self) -> dict[str, Scores]:
        """The scores of every task on its held-out data. The first process computes them for all."""
        with evaluating(self.accelerator.unwrap_model(self.model)):
            scores = {name: task.scores() for name, task in self.tasks.items()} if self.is_world_process_zero() else {}
        return dict(broadcast_object_list([scores])[0])

    def measured(self, rows: Any = None) -> dict[str, float]:
        """The scores of every task as ``NAME_accuracy`` …, and the mean of their main scores, ``mean``.

        Raises:
            OptionError: ``rows`` is not None.
        """
        if rows is not None:
            raise OptionError("Several tasks are scored on the held-out data of each; leave eval_dataset out.")
        scores = self.scores()
        scores_by_metric = {f"{name}_{key}": value for name, values in scores.items() for key, value in values.items()}
        main_scores = [scores[name][HEAD_SCORES[task.kind][0]] for name, task in self.tasks.items()]
        return {**scores_by_metric, "mean": sum(main_scores) / len(main_scores)}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        heads = {}
        for name, task in self.tasks.items():  # as load_multitask_head reads them
            config = task.model.config
            rule = {"question_separator_id": config.question_separator_id} if hasattr(config, "question_separator_id") else {}
            heads[name] = {"kind": task.kind, "labels": labels_of(config), **rule, **task.settings}
        self.accelerator.unwrap_model(self.model).config.multitask_heads = heads
        super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            self.accelerator.unwrap_model(self.model).config.save_pretrained(output_dir or self.args.output_dir)


def finetune_multitask(
    model_args: MultiTaskModelArguments, data_args: MultiTaskDataArguments, training_args: MultiTaskTrainingArguments
) -> dict[str, Any]:
    """Train, and write the model to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, scores of every task before and after, Trainer's history.
    """
    run = prepare_run(model_args, data_args, training_args)
    task_data = data_args.task_data()
    sides, images = model_args.image_size, None
    if sides:
        height, width = image_size(sides if len(sides) == 2 else sides[0])
        images = ImageInput((height, width), model_args.patch_size)
    kinds, embedders = {kind for kind, _ in task_data.values()}, (images, model_args.mel_bins, model_args.frame_stride)
    start = load_multimodal_start(model_args.model, kinds, *embedders, only_scores=training_args.only_scores)
    tokenizer = start.tokenizer
    tokenizer.padding_side = tokenizer.truncation_side = "right"  # the tokens of a row have the places of its words, windows their order
    build: dict[str, Callable[..., TaskHead]] = {"classify": _classify, "tokens": _tokens, "qa": _qa, "images": _files, "audio": _files}
    tasks = {name: build[kind](name, run, start, data) for name, (kind, data) in task_data.items()}
    for name, task in tasks.items():
        check_rows(task.rows, f"the task {name!r}", "train on")
    model = MultiTaskModel({name: task.model for name, task in tasks.items()})
    training_args.ddp_find_unused_parameters = True
    processors = tokenizer if start.model is None else start.processors
    trainer = MultiTaskTrainer(model, training_args, tasks, processing_class=processors)
    before = train(trainer, run, trainer.scores)
    log = {
        "tasks": {name: task.kind for name, task in tasks.items()},
        "inputs": {name: task.log for name, task in tasks.items() if task.log},
        "held_out": {"before": before, "after": trainer.scores()},
        "scored_rows": {name: data.scored_rows for name, (_, data) in task_data.items()},
    }
    return save_run(trainer, run, log, describe_multitask)


def _classify(name: str, run: TaskArguments, start: Start, data: ClassificationDataArguments) -> TaskHead:
    parts = read_labelled(data, run.training.seed)
    model, names = start.head(name, "classify", label_names(*parts))
    length = input_length(start.reads_text(model), start.tokenizer, data.max_length or run.data.max_length)
    rows, held_out = each_part(partial(to_documents, tokenizer=start.tokenizer, length=length, names=names), *parts)
    collator = DocumentCollator(start.tokenizer)
    return TaskHead("classify", model, rows, collator, _class_scores(model, held_out, collator, held_out["labels"], run))


def _files(name: str, run: TaskArguments, start: Start, data_args: ClassificationDataArguments) -> TaskHead:
    """A task of images or audio files, with the inputs of ``longattn train classify``."""
    parts = read_labelled(data_args, run.training.seed)
    kind, processor = ("images", start.processors.image_processor) if data_args.images else ("audio", start.processors.feature_extractor)
    model, names = start.head(name, kind, label_names(*parts))
    inputs = data_args.reader.inputs(model, processor, parts, names, data_args, run.training)
    if data_args.audio:
        lengths = inputs.train["length"]
        start.check_longest(Hearing(processor), inputs.train[lengths.index(max(lengths))])
    labels = [names.index(label) for label in inputs.held_out["label"]]
    scores = _class_scores(model, inputs.held_out, inputs.eval_collator, labels, run)
    return TaskHead(kind, model, inputs.train, inputs.collator, scores, log=inputs.log)


def _class_scores(model: PreTrainedModel, rows: Dataset, collator: Any, labels: Sequence[int], run: TaskArguments) -> Callable[[], Scores]:
    """Return the function that scores classes on held-out rows with these labels."""

    def scores() -> Scores:
        predictions = [int(logits.argmax()) for logits in predicted(model, rows, collator, run.training)]
        references = [{"label": label, "length": NO_LENGTH} for label in labels]
        result = load_metric("long_classification").compute(predictions=predictions, references=references)
        return {name: value for name, value in result.items() if name != "buckets"}

    return scores


def _tokens(name: str, run: TaskArguments, start: Start, data: TokenDataArguments) -> TaskHead:
    texts, held_texts = read_tagged(data, run.training.seed)
    model, names = start.head(name, "tokens", tag_names(texts, held_texts))
    length = input_length(start.reads_text(model), start.tokenizer, data.max_length or run.data.max_length)
    encode = partial(to_windows, tokenizer=start.tokenizer, length=length, stride=data.stride, names=names)
    rows, held_out = each_part(encode, texts, held_texts)
    check_rows(held_out, f"the task {name!r}", "evaluate on")
    collator, columns = TokenCollator(start.tokenizer), ["word_ids", "document"]

    def scores() -> Scores:
        return tag_scores(predicted(model, held_out.remove_columns(columns), collator, run.training), held_out, held_texts, names)

    return TaskHead("tokens", model, rows.remove_columns(columns), collator, scores)


def _qa(name: str, run: TaskArguments, start: Start, data: QADataArguments) -> TaskHead:
    tokenizer = start.tokenizer
    model, _ = start.head(name, "qa")
    carry_question(start.reads_text(model), tokenizer)
    if not run.training.only_scores:
        vars(model.config).pop("no_answer_threshold", None)  # of other weights
    length = input_length(start.reads_text(model), tokenizer, data.max_length or run.data.max_length)
    stride = data.shared_tokens(length)
    examples, validation = read_questions(data, run.training.seed)
    rows = qa_rows(answerable(examples), tokenizer, length, stride)
    task = TaskHead("qa", model, rows, QACollator(tokenizer), dict)

    def scores() -> Scores:
        reader = QAReader(model, tokenizer, length, stride, batch_size=run.training.per_device_eval_batch_size)
        answers = reader.read(validation)
        results = score_answers(validation, answers)
        tuned = None if run.training.only_scores else results.get("best_f1_threshold")  # of "no answer", on these questions
        if tuned is not None:
            task.settings["no_answer_threshold"] = tuned
            results = score_answers(validation, answers, tuned)
        named: Scores = {name: results[name] for name in ("exact_match", "exact_match_se", "f1", "f1_se", "n") if name in results}
        return named if tuned is None else {**named, "best_f1_threshold": tuned}

    task.scores = scores
    return task


@torch.no_grad()
def predicted(model: PreTrainedModel, rows: Dataset, collator: Any, args: LongTrainingArguments) -> Iterator[Any]:
    """The logits of every row, on the CPU."""
    size = args.per_device_eval_batch_size
    for first in range(0, len(rows), size):
        batch = collator([rows[place] for place in range(first, min(first + size, len(rows)))])
        yield from model(**{name: value.to(model.device) for name, value in batch.items()}).logits.float().cpu().numpy()


def describe_multitask(log: dict[str, Any]) -> str:
    """The text of the model card about a run."""
    heads = ", ".join(f"`{name}` ({kind})" for name, kind in log["tasks"].items())
    return (
        f"{steps_of(log)} with `longattn train multitask`; heads: {heads}. Load one with "
        f"`hf_longattn.training.load_multitask_head(MODEL, NAME)`.\n\n{multitask_result(log)}"
    )


def multitask_result(log: dict[str, Any]) -> str:
    """The result of a run for the terminal."""
    lines = []
    for name, kind in log["tasks"].items():
        metric, rows = HEAD_SCORES[kind]
        tuned = any("best_f1_threshold" in (evaluation or {}).get(name, {}) for evaluation in log["held_out"].values())
        note = '; the threshold of "no answer" is the best one on these questions' if tuned else ""
        lines.append(f"- {name}: {held_out_in_words(log, partial(score_in_words, name=metric), rows, name)}{note}")
    return "\n".join(lines)


TASK = Task(arguments=MULTITASK, train=finetune_multitask, result=multitask_result, evaluation="Score heads of a backbone with several.")
