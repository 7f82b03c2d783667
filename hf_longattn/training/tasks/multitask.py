"""Train one backbone with several named heads, on texts, images and sound.

A batch is of one task, drawn by the sizes of the tasks' data. The result is one checkpoint, whose heads load singly
(:func:`~hf_longattn.training.mixed.load_multitask_head`).
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch.utils.data import ConcatDataset

from hf_longattn.data.documents import label_names
from hf_longattn.data.words import tag_names
from hf_longattn.errors import OptionError, check_extra, nearest
from hf_longattn.training.arguments import DataArguments, LongTrainingArguments, ModelArguments, argument, batch_size_argument
from hf_longattn.training.mixed import Backbone, MixedCollator, MultiTaskModel, MultiTaskTrainer, PreparedTask
from hf_longattn.training.run import begin, finish
from hf_longattn.training.tasks import classify, qa, tokens


@dataclass
class MultiTaskDataArguments(DataArguments):
    """The data of several tasks.

    Attributes:
        parts: the task's name -> its kind, and its data arguments as in the command for this task alone.
    """

    data: list[str] = field(default_factory=list, init=False)
    tasks: list[str] = argument(
        [], "The tasks, NAME=KIND:DATA; KIND is classify, tokens, qa, images or audio, DATA as for that task (images and audio: as for "
        "classify), for example topic=classify:reviews.csv ask=qa:squad.json."
    )  # fmt: skip
    columns: list[str] = argument([], "Names of columns, NAME.ROLE=COLUMN, where they are not the usual ones: topic.label=stars.")
    validation: list[str] = argument(  # type: ignore[assignment]
        [], "NAME=DATA for each task that is evaluated on other data; default: a tenth of the task's own data."
    )
    image_size: int | None = argument(
        None, "Sides of the images in pixels, for a model of texts that is to read images in patches of 16 x 16; default: 224."
    )

    def __post_init__(self) -> None:
        self.parts: dict[str, tuple[str, Any]] = {}
        self.only_scores, self.scored_rows = False, {}
        validation = dict(text.partition("=")[::2] for text in self.validation)
        columns = [text.partition(".")[::2] for text in self.columns]
        for text in self.tasks:
            name, _, rest = text.partition("=")
            kind, _, data = rest.partition(":")
            if not name.isidentifier() or kind not in KINDS or not data or name in self.parts:
                raise OptionError(
                    f"A task is NAME=KIND:DATA, with a name that no other task has and a kind of {', '.join(KINDS)}, not {text!r}."
                    f"{nearest(kind, KINDS)}"
                )
            shared = {key: getattr(self, key) for key in ("split", "max_length", "max_train_samples", "max_eval_samples")}
            named = [column for task, column in columns if task == name]
            self.parts[name] = kind, KINDS[kind][0](data=[data], columns=named, validation=validation.pop(name, ""), **shared)
        if not self.parts:
            raise OptionError("No tasks given; add --tasks NAME=KIND:DATA NAME=KIND:DATA.")
        if unknown := [*validation, *(task for task, _ in columns if task not in self.parts)]:
            raise OptionError(
                f"--columns takes NAME.ROLE=COLUMN, and --validation takes NAME=DATA, with a NAME of {', '.join(self.parts)}, not "
                f"{unknown[0]!r}.{nearest(unknown[0], self.parts)}"
            )


@dataclass
class MultiTaskTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of training on several tasks at once. The best model is by default that with the highest mean of the tasks'
    main scores (``metric_for_best_model mean``)."""

    per_device_train_batch_size: int = batch_size_argument(2)
    gradient_accumulation_steps: int = argument(8, "Forward passes per optimiser step; they mix the tasks.")
    learning_rate: float = argument(5e-5, "Peak learning rate (MT-DNN, Liu et al. 2019: 5e-5).")

    def __post_init__(self) -> None:
        if self.tokens_per_batch:
            raise OptionError("--tokens-per-batch does not apply to batches of one task each; give --batch-size instead.")
        if self.load_best_model_at_end and not getattr(self, "metric_for_best_model", None):
            self.metric_for_best_model = "mean"
        super().__post_init__()
        self.label_names, self.ddp_find_unused_parameters = ["labels"], True


ARGUMENTS = (ModelArguments, MultiTaskDataArguments, MultiTaskTrainingArguments)


def main(model_args: ModelArguments, data_args: MultiTaskDataArguments, training_args: MultiTaskTrainingArguments) -> dict[str, Any]:
    """Train, and write the model to ``training_args.output_dir``. Returns the log."""
    kinds = {name: kind for name, (kind, _) in data_args.parts.items()}
    if "tokens" in kinds.values():
        check_extra("metrics", "seqeval")
    begin(model_args, data_args, training_args)
    backbone = Backbone(model_args.model, kinds.values(), data_args.image_size, complete=not training_args.do_train)
    tasks = {}
    for name, (kind, args) in data_args.parts.items():
        args.only_scores = data_args.only_scores
        _, read, labels_of, make_inputs = KINDS[kind]
        parts = read(args, seed=training_args.seed)
        model, names = backbone.head(name, kind, labels_of(*parts))
        processor = {"images": backbone.image_processor, "audio": backbone.feature_extractor}.get(kind, backbone.tokenizer)
        inputs = make_inputs(model, parts, names, args, training_args, processor)
        if kind == "audio":
            lengths = inputs["train_dataset"]["length"][:]
            longest = inputs["data_collator"]([inputs["train_dataset"][lengths.index(max(lengths))]])
            model.multimodal.embedded(None, longest["input_features"], longest.get("attention_mask"))  # refuses what is too long
        tasks[name] = PreparedTask(name, kind, model, {"compute_metrics": classify.class_scores, **inputs})
        for key, count in args.scored_rows.items():
            data_args.scored_rows[key] = data_args.scored_rows.get(key, 0) + count
    rows: Any = ConcatDataset([task.rows for task in tasks.values()])
    held_out = {name: task.held_out for name, task in tasks.items()}
    collator = MixedCollator({name: task.collator for name, task in tasks.items()})
    processor = backbone.tokenizer if backbone.model is None else backbone
    trainer = MultiTaskTrainer(MultiTaskModel(tasks), training_args, collator, rows, held_out, processor)
    return finish(trainer, model_args, data_args, heads=kinds)


KINDS: dict[str, Any] = {
    "classify": (classify.ClassificationDataArguments, partial(classify.read_labelled, role="text"), label_names, classify.text_inputs),
    "tokens": (tokens.TokenDataArguments, tokens.read_tagged, tag_names, tokens.tag_inputs),
    "qa": (qa.QADataArguments, qa.read_questions, lambda *parts: (), qa.question_inputs),
    "images": (classify.ClassificationDataArguments, partial(classify.read_labelled, role="image"), label_names, classify.image_inputs),
    "audio": (classify.ClassificationDataArguments, partial(classify.read_labelled, role="audio"), label_names, classify.audio_inputs),
}
"""Kind of task -> the data arguments of its command, and functions that read its rows, find their labels, and make Trainer's inputs."""
