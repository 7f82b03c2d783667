"""The tasks of `longattn train`: one table for the command line, scripts, documents and tests. Nothing of a task is imported before it is
used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class TrainingTask:
    """A task of `longattn train`.

    Args:
        name: what is typed.
        summary: a sentence for the help.
        module: in ``hf_longattn.training``.
        arguments: the name, in that module, of its (model, data, training) argument classes.
        train: the name of the function that takes these arguments, trains and returns the log.
        result: the name of the function that says what is printed of a log.
        option: where several tasks share a name, the option that asks for this one.
        extras: the package's extras that it needs.
    """

    name: str
    summary: str
    module: str
    arguments: str
    train: str
    result: str
    option: str = ""
    extras: tuple[str, ...] = ("train",)

    @property
    def title(self) -> str:
        """The name with the option: ``distill --method``."""
        return f"{self.name} --{self.option}" if self.option else self.name

    def load_arguments(self) -> tuple[Any, Any, Any]:
        """The classes of its model, data and training arguments."""
        kinds: tuple[Any, Any, Any] = self._load(self.arguments)
        return kinds

    def load_train(self) -> Callable[[Any, Any, Any], dict[str, Any]]:
        """The function that trains."""
        return self._load(self.train)

    def load_result(self) -> Callable[[dict[str, Any]], str]:
        """The function that says what is printed of a log."""
        return self._load(self.result)

    def _load(self, name: str) -> Any:
        return getattr(import_module(f"hf_longattn.training.{self.module}"), name)


TASKS = (
    TrainingTask(
        "qa", "Fine-tune for extractive question answering (SQuAD, MRQA, TriviaQA, Natural Questions, HotpotQA and data of their shape).",
        "qa", "QA", "finetune_qa", "qa_table",
    ),
    TrainingTask(
        "classify", "Fine-tune to classify long documents.",
        "classification", "CLASSIFICATION", "finetune_classification", "describe_classification_result",
    ),
    TrainingTask(
        "tokens", "Fine-tune to tag the words of long documents: named entities over whole documents.",
        "tokens", "TOKENS", "finetune_tokens", "tokens_result",
    ),
    TrainingTask(
        "choice", "Fine-tune for multiple choice over long documents (RACE, QuALITY, SWAG, WikiHop).",
        "choice", "CHOICE", "finetune_choice", "choice_result",
    ),
    TrainingTask(
        "mlm", "Continue training an encoder on long text: predict masked tokens.",
        "lm", "MLM", "finetune_lm", "describe_lm_result",
    ),
    TrainingTask(
        "clm", "Continue training a decoder on long text: predict the next token; with --segments N, segment by segment with a memory.",
        "lm", "CLM", "finetune_lm", "describe_lm_result",
    ),
    TrainingTask(
        "seq2seq", "Fine-tune an encoder-decoder to summarise long documents.",
        "seq2seq", "SEQ2SEQ", "finetune_seq2seq", "seq2seq_result",
    ),
    TrainingTask(
        "embed", "Train embeddings of long documents, or with --reranker a cross-encoder, by sentence-transformers' trainers.",
        "embed", "EMBED", "finetune_embeddings", "embeddings_result", extras=("train", "sentence"),
    ),
    TrainingTask(
        "multitask", "Train one backbone with several named heads, in batches mixed by a temperature; the heads load singly.",
        "multitask", "MULTITASK", "finetune_multitask", "multitask_result",
    ),
    TrainingTask(
        "distill", "Teach a converted model's mechanisms to reproduce softmax attention, or with --method a student to imitate a teacher.",
        "attention_distillation.distill", "DISTILLATION", "distill_attention", "markdown",
    ),
    TrainingTask(
        "distill", "Distil a teacher into a student (TinyBERT, or its logits alone).",
        "knowledge", "KNOWLEDGE", "distill_knowledge", "knowledge_result", option="method",
    ),
)  # fmt: skip


def task_names() -> list[str]:
    """What can be typed after `longattn train`."""
    return list(dict.fromkeys(task.name for task in TASKS))


def tasks_named(name: str) -> list[TrainingTask]:
    """The tasks of a name: one, or several that their options tell apart, the one without an option first."""
    return sorted((task for task in TASKS if task.name == name), key=lambda task: task.option)
