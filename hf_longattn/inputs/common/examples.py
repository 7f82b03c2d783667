"""The code in a card that runs a model once: how models of a head are loaded, and what makes their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Head:
    """How models of one head are loaded and run.

    auto_class: of transformers; empty where there is none.
    task: its name on the Hub.
    blocks: of the template, which run the loaded model once; in a model of texts they make its inputs, too.
    """

    auto_class: str
    task: str | None
    blocks: str


def auto_head(head: str, task: str | None, blocks: str) -> Head:
    """A head whose Auto class has the head's name."""
    return Head(f"AutoModel{head}", task, blocks)


@dataclass(frozen=True)
class Example:
    """The code that runs one model once, as far as the kind of its input decides it. The hub's ``usage.jinja`` has its blocks.

    head: of the model.
    blocks: of the template, which make the input and run the model.
    values: of the template.
    reader: the variable and the class of what makes inputs; ``None`` where the folder has no such file.
    imports: lines before those of torch and of transformers, and between them.
    pipeline: whether the code calls transformers' pipeline as well.
    """

    head: Head
    blocks: str
    values: Mapping[str, Any]
    reader: tuple[str, str] | None
    imports: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    pipeline: bool = False


def written_example(head: Head, code: str) -> Example:
    """An example whose lines after the model was loaded are ``code``, which makes ``model``'s input and runs it."""
    return Example(head, "written", {"code": code}, None)


def head_of(architecture: str, heads: Mapping[str, Head]) -> Head | None:
    """The head of a model class, of these; ``None`` for one without a snippet."""
    return next((head for ending, head in heads.items() if architecture.endswith(ending)), None)
