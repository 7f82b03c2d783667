"""Fine-tune a model, short or converted, to sort long documents into classes, and measure it."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import SequentialSampler
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from hf_longattn.errors import CheckpointError, LongAttentionError
from hf_longattn.evaluation import load_metric
from hf_longattn.training import course
from hf_longattn.training.classification_data import class_names, read_labelled, to_documents
from hf_longattn.training.classification_settings import ClassificationSettings
from hf_longattn.training.lm_finetune import input_length
from hf_longattn.training.settings import training_arguments
from hf_longattn.training.timed_trainer import TimedTrainer, average_over_batches
from hf_longattn.training.versions import versions


def finetune_classification(settings: ClassificationSettings) -> dict[str, Any]:
    """Train and write to ``settings.output``.

    Returns:
        The log, as written to ``training_log.json``: settings, versions, classes, how many documents were cut, scores on the held-out
        documents before and after, Trainer's history. Of several processes the first one has the scores.
    """
    course.begin(settings)
    config, tokenizer = _load_start(settings.model)
    texts, held_texts = read_labelled(settings)
    names = class_names(texts, [str(config.id2label[number]) for number in sorted(config.id2label)])
    model = load_classifier(settings.model, tokenizer, names)
    length = input_length(model, tokenizer, settings.max_length)
    train, held_out = (to_documents(data, tokenizer, length, names) for data in (texts, held_texts))
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    size = settings.batch_size
    trainer = ClassificationTrainer(
        model,
        training_arguments(
            settings,
            per_device_train_batch_size=size,
            per_device_eval_batch_size=size,
            train_sampling_strategy="group_by_length",
        ),
        train_dataset=train,
        data_collator=DataCollatorWithPadding(tokenizer),
        preprocess_logits_for_metrics=_choices,
        max_minutes=settings.max_minutes,
    )
    average_over_batches(trainer)
    before = trainer.scores(held_out)
    course.train(trainer, settings)
    after = trainer.scores(held_out)
    log = {
        "settings": vars(settings), "input_length": length, "classes": names, "versions": versions(),
        "documents": {"train": len(train), "held_out": len(held_out), "cut": _cut(train) + _cut(held_out)},
        "held_out": {"before": before, "after": after}, "history": trainer.state.log_history,
    }  # fmt: skip
    return course.finish(trainer, model, tokenizer, settings, log)


class ClassificationTrainer(TimedTrainer):
    """Groups documents by length while it trains, and measures them in their order."""

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
        return SequentialSampler(eval_dataset)

    def scores(self, data: Dataset) -> dict[str, Any]:
        """Accuracy and macro F1, in per cent, by document length; nothing in the processes beside the first."""
        found = self.predict(data).predictions
        if not self.is_world_process_zero():
            return {}
        pairs = zip(data["labels"], data["document"], strict=True)
        references = [{"label": label, "length": length} for label, length in pairs]
        return load_metric("long_classification").compute(predictions=[int(one) for one in found], references=references)


def describe_classification(log: dict[str, Any]) -> str:
    """What a model card says about a run."""
    settings, scores, documents = log["settings"], log["held_out"], log["documents"]
    steps = max((entry.get("step", 0) for entry in log["history"]), default=0)
    return (
        f"{steps:,} steps with `scripts/train_classification.py` on {documents['train']:,} documents of {', '.join(settings['data'])} in "
        f"{len(log['classes'])} classes, inputs of up to {log['input_length']:,} tokens ({documents['cut']:,} documents were cut). "
        f"On {documents['held_out']:,} held-out documents: {_in_words(scores['before'])} before, {_in_words(scores['after'])} after."
    )


def describe_classification_result(log: dict[str, Any]) -> str:
    """What is printed at the end of a run."""
    scores, documents = log["held_out"], log["documents"]
    lines = [f"held out: {_in_words(scores['before'])} before, {_in_words(scores['after'])} after"]
    if documents["cut"]:
        lines.append(f"{documents['cut']:,} documents are longer than {log['input_length']:,} tokens and were cut")
    return "\n".join(lines)


def load_classifier(name: str, tokenizer: PreTrainedTokenizerBase, names: list[str]) -> PreTrainedModel:
    """Load a model with a head for these classes, in float32; the head is new unless the checkpoint has one of this size.

    Raises:
        CheckpointError: the architecture has no such head, or cannot be loaded.
    """
    numbers = {name: number for number, name in enumerate(names)}
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            name,
            dtype=torch.float32,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id=numbers,
            problem_type="single_label_classification",
            ignore_mismatched_sizes=True,
        )
    except LongAttentionError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load {name!r}: {str(error).splitlines()[0]}") from error
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model


def _load_start(name: str) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    try:
        config, tokenizer = AutoConfig.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load {name!r}: {str(error).splitlines()[0]}") from error
    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise CheckpointError(
            f"{name!r} ({config.model_type}) has no head that sorts texts into classes; take a model of another architecture"
        )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise CheckpointError(
                f"the tokenizer of {name!r} has neither a padding nor an end token; give it one (tokenizer.pad_token = ...)"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return config, tokenizer


def _choices(logits: Any, labels: Tensor) -> Tensor:
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def _cut(data: Dataset) -> int:
    return sum(document > length for document, length in zip(data["document"], data["length"], strict=True))


def _in_words(scores: dict[str, Any]) -> str:
    return f"accuracy {scores['accuracy']:.1f} ± {scores['accuracy_se']:.1f} %, macro F1 {scores['macro_f1']:.1f} %"
