"""Code in a model card that runs the model once: how models with a head are loaded, and how their inputs are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Head:
    """How models with this head are loaded and run.

    auto_class: transformers' Auto class for the head; empty if there is none.
    task: name of the head's task on the Hub; ``None`` if the Hub has no such task.
    blocks: names of template blocks that run the loaded model once. For models of texts, these blocks make the inputs, too.
    """

    auto_class: str
    task: str | None
    blocks: str


def auto_head(head: str, task: str | None, blocks: str) -> Head:
    """A head whose Auto class is ``AutoModel`` followed by the name ``head``."""
    return Head(f"AutoModel{head}", task, blocks)


@dataclass(frozen=True)
class Example:
    """The part of a card's code that depends on the input kind. The template is ``hub/usage.jinja``.

    head: the model's head.
    blocks: names of template blocks that make the input and run the model.
    values: values of the template's variables.
    reader: variable and class name of the tokenizer or processor; ``None`` if the folder has neither.
    imports: (lines before the import of torch, lines between the imports of torch and of transformers).
    pipeline: whether the code also calls transformers' pipeline.
    """

    head: Head
    blocks: str
    values: Mapping[str, Any]
    reader: tuple[str, str] | None
    imports: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    pipeline: bool = False


def written_example(head: Head, code: str) -> Example:
    """An example in which ``code`` follows the loading of the model: lines that make an input and run ``model``."""
    return Example(head, "written", {"code": code}, None)


def head_of(architecture: str, heads: Mapping[str, Head]) -> Head | None:
    """The entry of ``heads`` for a model class, by the ending of the class's name; ``None`` if no ending matches."""
    return next((head for ending, head in heads.items() if architecture.endswith(ending)), None)
