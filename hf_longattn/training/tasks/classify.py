"""Fine-tune to classify long documents."""

# ruff: noqa: RUF009 (`argument` makes a field)
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    EvalPrediction,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from hf_longattn.data.batching import DocumentCollator, chosen_packing, first_tokens, pooling_module
from hf_longattn.data.documents import label_names, to_documents
from hf_longattn.data.lengths import input_length
from hf_longattn.data.sources import DataError, class_names, held_back, load_labelled
from hf_longattn.errors import OptionError
from hf_longattn.evaluation import load_metric
from hf_longattn.tasks import Task
from hf_longattn.training.args import LabelledDataArguments, ModelArguments, argument, batch_size_argument
from hf_longattn.training.loading import label_config, load_head, load_start
from hf_longattn.training.results import Scores, held_out_in_words, score_in_words, steps_of
from hf_longattn.training.trainer import TimedTrainer
from hf_longattn.training.training_args import LongTrainingArguments
from hf_longattn.training.training_loop import prepare_run, save_run, train


@dataclass
class ClassificationDataArguments(LabelledDataArguments):
    """Documents to classify."""

    shape: ClassVar[str] = "a labelled file"

    data: list[str] = argument(
        [], "Files, folders or names on the Hub, one or several: "
        "a .csv, .tsv, .jsonl or .parquet file, a folder with one sub-folder of text files per label, a folder "
        "written by datasets, the name of a dataset on the Hub (NAME:SUBSET)."
    )  # fmt: skip
    text_column: str = argument("text", "The column that holds the text.")
    label_column: str = argument("label", "The column that holds the label: a name or a whole number.")
    validation: str = argument(
        "", "Labelled data to evaluate on, all of them; default: a tenth of every source of --data, chosen by --seed."
    )
    packing: bool | None = argument(
        None, "Pack the documents of a training batch into one row without padding; default: yes where model and head allow it."
    )

    def check(self) -> None:
        super().check()
        if self.text_column == self.label_column:
            raise OptionError(f"text_column and label_column are both {self.text_column!r}; name two columns")


@dataclass
class ClassificationTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` of document classification."""

    per_device_train_batch_size: int = batch_size_argument(2, "Documents per forward pass and process.")
    per_device_eval_batch_size: int = argument(2, "Documents per forward pass and process in evaluation.")
    gradient_accumulation_steps: int = argument(4, "Forward passes per optimiser step.")
    train_sampling_strategy: str = argument("group_by_length", "Order of the training data; group_by_length pads least.")


CLASSIFICATION = (ModelArguments, ClassificationDataArguments, ClassificationTrainingArguments)


def finetune_classification(
    model_args: ModelArguments, data_args: ClassificationDataArguments, training_args: ClassificationTrainingArguments
) -> dict[str, Any]:
    """Train, and write the model to ``training_args.output_dir``.

    Returns:
        The log, as written to ``training_log.json``: arguments, versions, classes, how many documents were cut, scores on the held-out
        documents before and after, Trainer's history. Of several processes only the first has the scores.
    """
    run = prepare_run(model_args, data_args, training_args)
    config, tokenizer = load_start(model_args.model, "text classification", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    texts, held_texts = read_labelled(data_args, training_args.seed)
    names = class_names(label_names(texts, held_texts), config)
    classes = {**label_config(names), "problem_type": "single_label_classification"}
    model = load_head(AutoModelForSequenceClassification, model_args.model, tokenizer, **classes)
    length = input_length(model, tokenizer, data_args.max_length)
    no_pooling = "the head picks the first token of a row itself" if pooling_module(model) is None else None
    pack = chosen_packing(model, data_args.packing, training_args, no_pooling)
    training_args.remove_unused_columns = False
    documents, held_out = (to_documents(data, tokenizer, length, names) for data in (texts, held_texts))
    trainer = ClassificationTrainer(
        model,
        training_args,
        train_dataset=documents,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=DocumentCollator(tokenizer, pack=pack),
        eval_collator=DocumentCollator(tokenizer),  # several processes gather a row for each document
        preprocess_logits_for_metrics=_choices,
        compute_metrics=_accuracy,
        max_minutes=training_args.max_minutes,
    )
    before = train(trainer, run, lambda: trainer.scores(held_out))
    after = trainer.scores(held_out)
    counts = {"train": len(documents), "held_out": len(held_out), "cut": _cut(documents) + _cut(held_out)}
    log = {"input_length": length, "packed": pack, "classes": names, "documents": counts, "held_out": {"before": before, "after": after}}
    return save_run(trainer, run, log, describe_classification)


class ClassificationTrainer(TimedTrainer):
    """Trains on packed rows or padded ones, and scores documents by their length."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if "lengths" not in inputs:
            return super().compute_loss(model, inputs, *args, **kwargs)
        model_inputs = {name: value for name, value in inputs.items() if name != "lengths"}
        with first_tokens(self.accelerator.unwrap_model(model), inputs["lengths"]):
            return super().compute_loss(model, model_inputs, *args, **kwargs)

    def scores(self, data: Dataset) -> dict[str, Any]:
        """Accuracy and macro F1 in per cent, by document length; empty in all processes but the first."""
        predictions = self.predict(data).predictions
        if not self.is_world_process_zero():
            return {}
        pairs = zip(data["labels"], data["document"], strict=True)
        references = [{"label": label, "length": length} for label, length in pairs]
        return load_metric("long_classification").compute(predictions=[int(number) for number in predictions], references=references)


def read_labelled(args: ClassificationDataArguments, seed: int) -> tuple[Dataset, Dataset]:
    """The documents to train on and those to evaluate on: see :func:`held_back`.

    Raises:
        DataError: as :func:`load_labelled`; or fewer than two classes.
        OptionError: too few documents to hold some back.
    """
    columns: dict[str, str] = {"text_column": args.text_column, "label_column": args.label_column}
    train, held_out = held_back(args, lambda source, split: load_labelled(source, split=split, **columns), seed, least=3)
    if not len(held_out):
        raise DataError(f"there is no text in {args.validation}")
    if len(set(train["label"])) < 2:
        raise DataError(
            f"all documents of {', '.join(args.data)} have the label {train['label'][0]!r}; there is nothing to learn"
            if len(train) else f"there is no text in {', '.join(args.data)}"
        )  # fmt: skip
    return train, held_out


def describe_classification(log: dict[str, Any]) -> str:
    """What a model card says about a run."""
    settings, documents = log["settings"], log["documents"]
    return (
        f"{steps_of(log)} with `longattn train classify` on {documents['train']:,} documents of {', '.join(settings['data'])} in "
        f"{len(log['classes'])} classes, inputs of up to {log['input_length']:,} tokens ({documents['cut']:,} documents were cut). "
        f"{held_out_in_words(log['held_out'], _in_words, 'document').capitalize()}."
    )


def describe_classification_result(log: dict[str, Any]) -> str:
    """What is printed at the end of a run."""
    documents, lines = log["documents"], [held_out_in_words(log["held_out"], _in_words, "document")]
    if documents["cut"]:
        lines.append(f"{documents['cut']:,} documents are longer than {log['input_length']:,} tokens and were cut")
    return "\n".join(lines)


def _choices(logits: Any, labels: Tensor) -> Tensor:
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def _accuracy(evaluation: EvalPrediction) -> dict[str, float]:
    """What an evaluation during training logs beside the loss."""
    references = [{"label": label, "length": -1} for label in evaluation.label_ids.tolist()]
    scores = load_metric("long_classification").compute(predictions=evaluation.predictions.tolist(), references=references)
    return {name: scores[name] for name in ("accuracy", "macro_f1")}


def _cut(data: Dataset) -> int:
    return sum(document > length for document, length in zip(data["document"], data["length"], strict=True))


def _in_words(scores: Scores) -> str:
    return f"{score_in_words(scores, 'accuracy')}, {score_in_words(scores, 'macro_f1')}"


TASK = Task(arguments=CLASSIFICATION, train=finetune_classification, result=describe_classification_result)
