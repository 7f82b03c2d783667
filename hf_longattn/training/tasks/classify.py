"""Fine-tune to classify long documents, images or audio files, depending on the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import transformers
from datasets import Dataset, concatenate_datasets
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_longattn.data.audio import AudioCollator, to_utterances
from hf_longattn.data.batching import (
    DataCollatorWithGlobals,
    DataCollatorWithPacking,
    chosen_packing,
    first_tokens,
    pooling_module,
)
from hf_longattn.data.images import AUGMENTATIONS, ImageCollator, augmentation_of, checked_size, read_image
from hf_longattn.data.rows import each_part, read_rows
from hf_longattn.data.sources import DataError
from hf_longattn.data.tokenization import input_length
from hf_longattn.errors import CheckpointError, listed
from hf_longattn.evaluation import load_metric
from hf_longattn.loading import (
    call_tokenizer,
    label_fields,
    load_config,
    load_model,
    load_padding_tokenizer,
    load_part,
)
from hf_longattn.modeling.attach.global_mask import carry_question
from hf_longattn.modeling.family.registration import auto_mapping, mapped_names
from hf_longattn.names import logger
from hf_longattn.training.arguments import (
    DataArguments,
    LongTrainingArguments,
    ModelArguments,
    argument,
    batch_size_argument,
)
from hf_longattn.training.run import begin, finish
from hf_longattn.training.trainer import LongTrainer, highest


@dataclass
class ClassificationDataArguments(DataArguments):
    """Documents, images or audio files with a label. A document may have a question, which the model reads first."""

    roles = {
        "text": ("text",),
        "question": (),
        "image": ("image", "file_name"),
        "audio": ("audio", "file_name"),
        "label": ("label",),
    }
    choices = {"augmentation": AUGMENTATIONS}

    packing: bool | None = argument(
        None,
        "Pack the documents of a training batch into one row without padding; default: yes where model and head allow "
        "it.",
    )
    augmentation: str = argument(
        "",
        "Random changes of images in training: crop+flip, crop, flip or none; default: crop+flip where torchvision is "
        "installed.",
    )


@dataclass
class ClassificationTrainingArguments(LongTrainingArguments):
    """``TrainingArguments`` with the defaults of this task."""

    per_device_train_batch_size: int = batch_size_argument(2)
    gradient_accumulation_steps: int = argument(4, "Forward passes per optimiser step.")
    train_sampling_strategy: str = argument(
        "group_by_length", "Order of the training data; group_by_length pads least."
    )


ARGUMENTS = (ModelArguments, ClassificationDataArguments, ClassificationTrainingArguments)
Parts = tuple[Dataset, Dataset]
"""Training rows and evaluation rows."""


def main(
    model_args: ModelArguments, data_args: ClassificationDataArguments, training_args: ClassificationTrainingArguments
) -> dict[str, Any]:
    """Train a classifier of documents, images or audio files, evaluate and save it. Returns the log."""
    begin(model_args, data_args, training_args)

    # A model type may have heads for several modalities. The first one whose columns the data have is trained.
    model_type = load_config(model_args.model).model_type
    modalities = [modality for modality in MODALITIES if model_type in mapped_names(auto_mapping(modality[0]))]
    modalities = modalities or MODALITIES[:1]
    for modality in modalities:
        loader, roles, make_inputs = modality
        try:
            parts = read_labelled(data_args, roles, training_args.seed)
            break
        except DataError:
            if modality is modalities[-1]:
                raise

    model, names = load_classifier(
        loader,
        model_args.model,
        label_names(*parts),
        complete=not training_args.do_train,
        problem_type="single_label_classification",
    )
    inputs = make_inputs(model, parts, names, data_args, training_args)
    by_length: dict[str, Any] = {}
    compute_metrics = partial(class_scores, lengths=inputs.pop("lengths", None), by_length=by_length)
    trainer = ClassificationTrainer(
        model, training_args, compute_metrics=compute_metrics, preprocess_logits_for_metrics=highest, **inputs
    )
    return finish(trainer, model_args, data_args, classes=names, by_length=by_length)


def class_scores(
    prediction: EvalPrediction, lengths: list[int] | None = None, by_length: dict[str, Any] | None = None
) -> dict[str, float]:
    """Classification scores by name.

    Args:
        lengths: tokens of each document; ``None`` = unknown.
        by_length: a dictionary into which the scores by document length are written.
    """
    if lengths is None:
        lengths = [-1] * len(prediction.label_ids)
    references = [
        {"label": label, "length": length} for label, length in zip(prediction.label_ids, lengths, strict=True)
    ]
    scores: dict[str, Any] = load_metric("long_classification").compute(
        predictions=prediction.predictions, references=references
    )
    buckets = scores.pop("buckets")
    if by_length is not None:
        by_length.update(buckets)
    return scores


def read_labelled(args: ClassificationDataArguments, inputs: tuple[str, ...], seed: int) -> Parts:
    """Training and evaluation rows: texts, images or audio files with labels.

    ``inputs`` are the roles of the columns to read besides the label.
    """
    roles = {name: args.roles[name] for name in (*inputs, "label")}
    train, held_out = read_rows(args, seed, roles, classes="label")
    check_classes(args, label_names(train), label_names(held_out))
    return train, held_out


def text_inputs(
    model: Any,
    parts: Parts,
    names: list[str],
    data_args: ClassificationDataArguments,
    args: LongTrainingArguments,
    processor: Any = None,
) -> dict[str, Any]:
    """Arguments of Trainer for documents: their tokens, packed if model and head support it.

    Args:
        names: names of the classes by number.
        processor: tokenizer; default: the tokenizer of the model's checkpoint.
    """
    tokenizer = processor or load_padding_tokenizer(model.name_or_path, model.config)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if "question" in parts[0].column_names and args.do_train:  # the saved model then makes questions global by itself
        carry_question(model, tokenizer)
    length = input_length(model, tokenizer, data_args.max_length)
    train, held_out = each_part(partial(encode_documents, tokenizer=tokenizer, length=length, names=names), *parts)
    cut = sum(tokens > length for rows in {train, held_out} for tokens in rows["document"])
    if cut:
        logger.warning(f"{cut:,} documents are longer than {length:,} tokens and are cut.")
    problem = None
    if pooling_module(model) is None:
        problem = "The head picks the first token of a row itself."
    pack = chosen_packing(model, data_args.packing, args, problem)
    padded = DataCollatorWithGlobals(tokenizer)
    return {
        "train_dataset": train.remove_columns("document"),
        "eval_dataset": held_out.remove_columns("document"),
        "lengths": held_out["document"][:],
        "processing_class": tokenizer,
        "data_collator": DataCollatorWithPacking() if pack else padded,
        "eval_collator": padded,
    }


def image_inputs(
    model: Any,
    parts: Parts,
    names: list[str],
    data_args: ClassificationDataArguments,
    args: LongTrainingArguments,
    processor: Any = None,
) -> dict[str, Any]:
    """Arguments of Trainer for images: pixels from the image processor, with augmentation in training.

    Every image is read once, so that a damaged image is refused before the training.

    Args:
        names: names of the classes by number.
        processor: image processor; default: the processor of the model's checkpoint.
    """
    args.train_sampling_strategy = "random"
    for row in concatenate_datasets([*dict.fromkeys(parts)]):
        read_image(row["image"], row["name"])
    processor = processor or load_part(AutoImageProcessor, model.name_or_path, "processor")
    size = checked_size(model, processor, parts[0][0])
    collator = ImageCollator(processor, names, augmentation_of(data_args.augmentation, size), args.seed)
    return {
        "train_dataset": parts[0],
        "eval_dataset": parts[1],
        "processing_class": processor,
        "data_collator": collator,
    }


def audio_inputs(
    model: Any,
    parts: Parts,
    names: list[str],
    data_args: ClassificationDataArguments,
    args: LongTrainingArguments,
    processor: Any = None,
) -> dict[str, Any]:
    """Arguments of Trainer for audio files: inputs from the feature extractor.

    Files of similar length share a batch.

    Args:
        names: names of the classes by number.
        processor: feature extractor; default: the feature extractor of the model's checkpoint.
    """
    extractor = processor or load_part(AutoFeatureExtractor, model.name_or_path, "processor")
    model_frames = getattr(model.config, "long_max_length", None)
    extractor_frames = getattr(extractor, "max_length", None)
    if model_frames is not None and model_frames != extractor_frames:
        raise CheckpointError(
            f"The feature extractor of {model.name_or_path!r} makes spectrograms of {extractor_frames} frames, but "
            f"the model was converted for {model_frames}; set max_length in its preprocessor_config.json to "
            f"{model_frames}."
        )
    collator = AudioCollator(extractor)
    train, held_out = each_part(
        lambda rows: to_utterances(rows, [names.index(label) for label in rows["label"]], collator), *parts
    )
    limit = collator.most_samples
    if limit:
        cut = sum(samples > limit for rows in {train, held_out} for samples in rows["length"])
        if cut:
            logger.warning(
                f"{cut:,} audio files are longer than the {limit / collator.sampling_rate:g} seconds of the model's "
                "input and are cut."
            )
    return {"train_dataset": train, "eval_dataset": held_out, "processing_class": extractor, "data_collator": collator}


def label_names(*parts: Dataset) -> list[str]:
    """All labels of ``parts``, in alphabetical order. If all labels are whole numbers, they are ordered by value."""
    names = sorted({label for part in parts for label in part["label"]})
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        names.sort(key=int)
    return names


def encode_documents(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, names: Sequence[str]) -> Dataset:
    """Tokens as in ``run_classification``, label numbers, and ``document`` (number of tokens before truncation).

    If there is a column ``question``, the tokens of the question come before the text, as in ``run_glue``. If both
    together are too long, the longer one is truncated.
    """
    numbers = {name: number for number, name in enumerate(names)}
    has_questions = "question" in data.column_names

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The new columns of some rows."""
        texts = [rows["text"]]
        settings: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False}
        if has_questions:
            texts = [rows["question"], *texts]
            settings |= {"return_token_type_ids": None, "split_special_tokens": True}
        encoded = call_tokenizer(tokenizer, *texts, **settings, truncation=True, max_length=length)
        counts = [len(ids) for ids in encoded["input_ids"]]
        full = [row for row, count in enumerate(counts) if count == length]  # these may have been truncated
        if full:
            full_texts = ([part[row] for row in full] for part in texts)
            uncut = call_tokenizer(tokenizer, *full_texts, **settings, verbose=False)
            for row, ids in zip(full, uncut["input_ids"], strict=True):
                counts[row] = len(ids)
        return {**encoded, "labels": [numbers[label] for label in rows["label"]], "document": counts}

    return data.map(encode, batched=True, batch_size=200, remove_columns=data.column_names)


class ClassificationTrainer(LongTrainer):
    """A trainer that also trains on packed rows. The head reads the first token of each document in a row."""

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """As in LongTrainer. A packed batch has ``lengths``, the number of tokens of each document."""
        if "lengths" not in inputs:
            return super().mean_loss(model, inputs)
        model_inputs = {name: value for name, value in inputs.items() if name != "lengths"}
        with first_tokens(self.accelerator.unwrap_model(model), inputs["lengths"]):
            return super().mean_loss(model, model_inputs)


MODALITIES: Any = (
    (transformers.AutoModelForSequenceClassification, ("text", "question"), text_inputs),
    (transformers.AutoModelForImageClassification, ("image",), image_inputs),
    (transformers.AutoModelForAudioClassification, ("audio",), audio_inputs),
)
"""Documents, images and audio files: the class that loads a model for them, the roles of the columns to read, and the
function that makes Trainer's arguments."""


def load_classifier(
    loader: Any, name: str, labels: Sequence[str], *, complete: bool, **config: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A model with a head for classes, in float32, and the names of its classes from :func:`class_names`.

    Args:
        loader: transformers' auto class for the head.
        labels: labels of the data.
        complete: refuse a checkpoint without the head, and labels that are no classes of the head.
        config: fields of the model's config.
    """
    if complete:
        model = load_model(loader, name, complete=True, **config)
        return model, class_names(labels, known_classes(model.config), only_known=True)
    names = class_names(labels, known_classes(load_config(name)))  # the checkpoint may lack the head
    return load_model(loader, name, ignore_mismatched_sizes=True, **label_fields(names), **config), names


def known_classes(config: Any) -> list[str]:
    """The names of a model's classes, in the order of their numbers."""
    return [str(name) for _, name in sorted(config.id2label.items())]


def class_names(labels: Sequence[str], known: Sequence[str], *, only_known: bool = False) -> list[str]:
    """The names of the classes of a head, in the order of their numbers.

    If the model's classes include all labels of the data, these are the model's classes, so that its head stays valid.
    Otherwise, they are the labels.

    Args:
        labels: labels of the data.
        known: names of the model's classes.
        only_known: raise :class:`DataError` for labels that are not among ``known``. If the classes have no names but
            LABEL_0, LABEL_1 …, the labels 0, 1 … are accepted.
    """
    names, numbers = list(known), [str(number) for number in range(len(known))]
    unnamed = names == [f"LABEL_{number}" for number in numbers]
    if only_known and unnamed and not set(labels) <= set(names):
        names = numbers
    unknown = set(labels) - set(names)
    if unknown:
        if not only_known:
            return list(labels)
        raise DataError(
            f"The model does not know the labels {listed(unknown)} of the data; its classes are {listed(names)}; "
            "change the labels of the data to these, or write them into id2label of its config.json."
        )
    return names


def check_classes(args: DataArguments, trained: Sequence[str], scored: Sequence[str]) -> None:
    """Refuse training data of a single class, and classes of ``--validation`` that the training data lack.

    With ``--max-train-samples``, the training data may lack classes. If nothing is trained, all data are accepted.

    Args:
        trained: classes of the training rows.
        scored: classes of the evaluation rows.
    """
    if args.only_scores:
        return
    sources = ", ".join(args.data)
    if len(trained) < 2:
        raise DataError(f"All rows of {sources} have the label {trained[0]!r}; give data with two labels or more.")
    new = set(scored) - set(trained)
    if new and args.validation and args.max_train_samples is None:
        raise DataError(
            f"{args.validation} has the labels {listed(new)}, but {sources} only {listed(trained)}; write the same in "
            "both, or leave such rows out."
        )
