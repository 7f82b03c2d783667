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
    begin(model_args, data_args, training_args)
    model_type = load_config(model_args.model).model_type
    modalities = [each for each in MODALITIES if model_type in mapped_names(auto_mapping(each[0]))] or MODALITIES[:1]
    for modality in modalities:  # a model of texts, images and sound reads what the data hold
        try:
            parts = read_labelled(data_args, modality[1], training_args.seed)
            break
        except DataError:
            if modality is modalities[-1]:
                raise
    head, _, inputs_of = modality
    model, names = load_classifier(
        head,
        model_args.model,
        label_names(*parts),
        complete=not training_args.do_train,
        problem_type="single_label_classification",
    )
    inputs = inputs_of(model, parts, names, data_args, training_args)
    by_length: dict[str, Any] = {}
    compute_metrics = partial(class_scores, lengths=inputs.pop("lengths", None), by_length=by_length)
    trainer = ClassificationTrainer(
        model, training_args, compute_metrics=compute_metrics, preprocess_logits_for_metrics=highest, **inputs
    )
    return finish(trainer, model_args, data_args, classes=names, by_length=by_length)


def class_scores(
    prediction: EvalPrediction, lengths: list[int] | None = None, by_length: dict[str, Any] | None = None
) -> dict[str, float]:
    """Classification scores. Scores by document length (``lengths``, in tokens) are written into ``by_length``."""
    lengths = [-1] * len(prediction.label_ids) if lengths is None else lengths
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
    """Training and evaluation rows: files or texts with labels. ``inputs``: the roles of the other columns."""
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
    """Trainer's arguments for documents, as tokens, packed if model and head support it."""
    tokenizer = processor or load_padding_tokenizer(model.name_or_path, model.config)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if "question" in parts[0].column_names and args.do_train:
        carry_question(model, tokenizer)
    length = input_length(model, tokenizer, data_args.max_length)
    train, held_out = each_part(partial(encode_documents, tokenizer=tokenizer, length=length, names=names), *parts)
    if cut := sum(document > length for rows in {train, held_out} for document in rows["document"]):
        logger.warning(f"{cut:,} documents are longer than {length:,} tokens and are cut.")
    no_pooling = "The head picks the first token of a row itself." if pooling_module(model) is None else None
    pack = chosen_packing(model, data_args.packing, args, no_pooling)
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
    """Trainer's arguments for images, as pixels from the image processor, with augmentation in training.

    Every image is read once, so that a damaged image is refused before the training.
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
    """Trainer's arguments for audio files, as inputs from the feature extractor. Files of similar length share a
    batch."""
    extractor = processor or load_part(AutoFeatureExtractor, model.name_or_path, "processor")
    converted, read = getattr(model.config, "long_max_length", None), getattr(extractor, "max_length", None)
    if converted is not None and converted != read:
        raise CheckpointError(
            f"The feature extractor of {model.name_or_path!r} makes spectrograms of {read} frames, but the model was "
            "converted for "
            f"{converted}; set max_length in its preprocessor_config.json to that."
        )
    collator = AudioCollator(extractor)
    train, held_out = each_part(
        lambda rows: to_utterances(rows, [names.index(label) for label in rows["label"]], collator), *parts
    )
    most = collator.most_samples
    if most and (cut := sum(length > most for rows in {train, held_out} for length in rows["length"])):
        logger.warning(
            f"{cut:,} audio files are longer than the {most / collator.sampling_rate:g} seconds of the model's input "
            "and are cut."
        )
    return {"train_dataset": train, "eval_dataset": held_out, "processing_class": extractor, "data_collator": collator}


def label_names(*parts: Dataset) -> list[str]:
    """All labels of ``parts``, sorted. If all are whole numbers, sorted by value."""
    names = {label for part in parts for label in part["label"]}
    numbers = all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def encode_documents(data: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, names: Sequence[str]) -> Dataset:
    """Tokens as in ``run_classification``, label numbers, and ``document`` (number of tokens before truncation).

    A ``question`` stands before the text, as in ``run_glue``. The longer of the two is truncated.
    """
    numbers = {name: number for number, name in enumerate(names)}
    has_questions = "question" in data.column_names

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        texts = [rows["text"]]
        columns: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False}
        if has_questions:
            texts = [rows["question"], *texts]
            columns |= {"return_token_type_ids": None, "split_special_tokens": True}
        encoded = call_tokenizer(tokenizer, *texts, **columns, truncation=True, max_length=length)
        counts = {row: len(ids) for row, ids in enumerate(encoded["input_ids"])}
        if full := [row for row, count in counts.items() if count == length]:
            uncut = call_tokenizer(
                tokenizer, *([part[row] for row in full] for part in texts), **columns, verbose=False
            )
            counts |= {row: len(ids) for row, ids in zip(full, uncut["input_ids"], strict=True)}
        return {**encoded, "labels": [numbers[label] for label in rows["label"]], "document": list(counts.values())}

    return data.map(encode, batched=True, batch_size=200, remove_columns=data.column_names)


class ClassificationTrainer(LongTrainer):
    """Trains on packed rows, too: the head reads the first token of each document."""

    def mean_loss(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
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
"""What models read: the class that loads them, the roles of their columns, and the function that makes their
inputs."""


def load_classifier(
    loader: Any, name: str, labels: Sequence[str], *, complete: bool, **config: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A model with a head for classes, in float32, and the names of its classes by :func:`class_names`.

    ``config`` are fields of its config. ``complete`` refuses a checkpoint without the head, and labels that it does
    not know.
    """
    if complete:
        model = load_model(loader, name, complete=True, **config)
        return model, class_names(labels, known_classes(model.config), only_known=True)
    names = class_names(labels, known_classes(load_config(name)))  # the checkpoint may lack the head
    return load_model(loader, name, ignore_mismatched_sizes=True, **label_fields(names), **config), names


def known_classes(config: Any) -> list[str]:
    """The names of a model's classes by their numbers."""
    return [str(name) for _, name in sorted(config.id2label.items())]


def class_names(labels: Sequence[str], known: Sequence[str], *, only_known: bool = False) -> list[str]:
    """The names of the classes by their numbers.

    They are the model's own, ``known``, if it knows all ``labels``: its head then stays valid. Otherwise they are the
    ``labels``. ``only_known`` refuses labels that the model does not know. If it numbers its classes (LABEL_0, LABEL_1
    …), it knows whole numbers.
    """
    names, numbers = list(known), [str(number) for number in range(len(known))]
    if only_known and names == [f"LABEL_{number}" for number in numbers] and not set(labels) <= set(names):
        names = numbers
    if unknown := set(labels) - set(names):
        if not only_known:
            return list(labels)
        raise DataError(
            f"The model does not know the labels {listed(unknown)} of the data; its classes are {listed(names)}, so "
            "write the labels like these, or the names into id2label of its config.json."
        )
    return names


def check_classes(args: DataArguments, trained: Sequence[str], scored: Sequence[str]) -> None:
    """Refuse training data of one class, and classes of ``--validation`` that no training row has."""
    sources = ", ".join(args.data)
    validation = args.validation if args.max_train_samples is None else ""
    if args.only_scores:
        return
    if len(trained) < 2:
        raise DataError(f"All rows of {sources} have the label {trained[0]!r}; give data with two labels or more.")
    if validation and (new := set(scored) - set(trained)):
        raise DataError(
            f"{validation} has the labels {listed(new)}, but {sources} only {listed(trained)}; write the same in "
            "both, or leave such rows out."
        )
