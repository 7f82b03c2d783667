"""Train one backbone with several named heads, on texts, images and sound.

A batch is of one task, drawn by the sizes of the tasks' data. The result is one checkpoint, whose heads load singly
(:func:`~hf_longattn.training.mixed.load_multitask_head`).
"""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch.utils.data import ConcatDataset
from transformers import EvalPrediction

from hf_longattn.data.batching import DataCollatorWithGlobals
from hf_longattn.data.documents import label_names
from hf_longattn.data.lengths import input_length
from hf_longattn.data.qa_features import QACollator, answerable, qa_rows
from hf_longattn.data.qa_schemas import load_qa
from hf_longattn.data.rows import each_part, read_rows
from hf_longattn.data.words import tag_names, to_windows
from hf_longattn.errors import OptionError, check_extra, nearest
from hf_longattn.evaluation import load_metric
from hf_longattn.evaluation.qa_reader import best_answers
from hf_longattn.evaluation.qa_scores import score_answers
from hf_longattn.modeling.attach.token_globals import carry_question
from hf_longattn.training.arguments import DataArguments, LongTrainingArguments, ModelArguments, argument, batch_size_argument
from hf_longattn.training.mixed import Backbone, MixedCollator, MultiTaskModel, MultiTaskTrainer, PreparedTask
from hf_longattn.training.run import begin, finish, run_task
from hf_longattn.training.tasks.classify import ClassificationDataArguments, audio_inputs, image_inputs, read_labelled, text_inputs
from hf_longattn.training.tasks.qa import QADataArguments
from hf_longattn.training.tasks.tokens import TokenDataArguments, read_tagged, tag_scores


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
            arguments, _ = KINDS[kind]
            self.parts[name] = kind, arguments(data=[data], columns=named, validation=validation.pop(name, ""), **shared)
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
            raise OptionError(
                "--tokens-per-batch does not apply to multitask, whose batches are of one task each; give --batch-size instead."
            )
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
        _, prepare = KINDS[kind]
        tasks[name] = prepare(name, kind, backbone, args, training_args)
        for key, count in args.scored_rows.items():
            data_args.scored_rows[key] = data_args.scored_rows.get(key, 0) + count
    trainer = MultiTaskTrainer(
        MultiTaskModel(tasks),
        training_args,
        MixedCollator({name: task.collator for name, task in tasks.items()}),
        ConcatDataset([task.rows for task in tasks.values()]),
        {name: task.held_out for name, task in tasks.items()},
        backbone.tokenizer if backbone.model is None else backbone,
    )
    return finish(trainer, model_args, data_args, heads=kinds)


def prepare_classes(
    name: str, kind: str, backbone: Backbone, args: ClassificationDataArguments, run: LongTrainingArguments
) -> PreparedTask:
    """Texts, images or audio files with a class, as in ``classify``."""
    make_inputs: Any
    role, make_inputs, processor = {
        "classify": ("text", text_inputs, backbone.tokenizer),
        "images": ("image", image_inputs, backbone.image_processor),
        "audio": ("audio", audio_inputs, backbone.feature_extractor),
    }[kind]
    parts = read_labelled(args, role, run.seed)
    model, names = backbone.head(name, kind, label_names(*parts))
    inputs = make_inputs(model, parts, names, args, run, processor)
    rows, held_out, collator = inputs["train_dataset"], inputs["eval_dataset"], inputs.get("eval_collator", inputs["data_collator"])
    if kind == "audio":
        longest = collator([rows[max(range(len(rows)), key=rows["length"][:].__getitem__)]])
        model.multimodal.embedded(None, longest["input_features"], longest.get("attention_mask"))  # refuses what is too long

    def scores(prediction: EvalPrediction) -> dict[str, float]:
        references = [{"label": label, "length": -1} for label in prediction.label_ids]
        results = load_metric("long_classification").compute(predictions=prediction.predictions, references=references)
        return {metric: score for metric, score in results.items() if metric != "buckets"}

    return PreparedTask(name, kind, model, rows, held_out, collator, scores)


def prepare_tags(name: str, kind: str, backbone: Backbone, args: TokenDataArguments, run: LongTrainingArguments) -> PreparedTask:
    """Documents with a tag for each word, as in ``tokens``."""
    tokenizer, (texts, held_texts) = backbone.tokenizer, read_tagged(args, run.seed)
    model, names = backbone.head(name, kind, tag_names(texts, held_texts))
    length = input_length(model, tokenizer, args.max_length)
    encode = partial(to_windows, tokenizer=tokenizer, length=length, stride=args.stride, names=names)
    rows, held_out = each_part(encode, texts, held_texts)

    def scores(prediction: EvalPrediction) -> dict[str, float]:
        return tag_scores(prediction.predictions, held_out, held_texts, names)

    inputs = [part.remove_columns(["word_ids", "document"]) for part in (rows, held_out)]
    return PreparedTask(name, kind, model, inputs[0], inputs[1], DataCollatorWithGlobals(tokenizer), scores)


def prepare_questions(name: str, kind: str, backbone: Backbone, args: QADataArguments, run: LongTrainingArguments) -> PreparedTask:
    """Questions about documents, as in ``qa``."""
    tokenizer = backbone.tokenizer
    examples, questions = read_rows(args, run.seed, read=partial(load_qa, named=args.named), unit="id", classes="kind")
    model, _ = backbone.head(name, kind)
    carry_question(model if backbone.model is None else backbone.model.text_model, tokenizer)
    if not args.only_scores:
        vars(model.config).pop("no_answer_threshold", None)  # of other weights
    length = input_length(model, tokenizer, args.max_length)
    encode = partial(qa_rows, tokenizer=tokenizer, length=length, stride=min(args.stride, length // 4))
    held_out = encode(questions)

    def scores(prediction: EvalPrediction) -> dict[str, float]:
        answers = best_answers(questions, held_out, *prediction.predictions)
        best = score_answers(questions, answers).get("best_f1_threshold")
        if best is not None and not args.only_scores:
            model.config.no_answer_threshold = best
        threshold = getattr(model.config, "no_answer_threshold", None)
        results = score_answers(questions, [replace(answer, text=answer.above(threshold)) for answer in answers])
        return {metric: results[metric] for metric in ("exact_match", "exact_match_se", "f1", "f1_se") if metric in results}

    rows = held_out if args.only_scores else encode(answerable(examples))
    return PreparedTask(name, kind, model, rows, held_out, QACollator(tokenizer), scores)


KINDS: dict[str, tuple[Any, Callable[..., PreparedTask]]] = {
    "classify": (ClassificationDataArguments, prepare_classes),
    "tokens": (TokenDataArguments, prepare_tags),
    "qa": (QADataArguments, prepare_questions),
    "images": (ClassificationDataArguments, prepare_classes),
    "audio": (ClassificationDataArguments, prepare_classes),
}
"""Kind of task -> its data arguments, and the function that prepares it."""


if __name__ == "__main__":
    sys.exit(run_task(sys.modules["__main__"], sys.argv[1:]))
