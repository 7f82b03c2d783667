"""What every way to open a checkpoint gives: its config, the headers of its tensors, and how transformers loads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..tensor_files import TensorHeader

SIDECARS = (
    "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.codes", "LICENSE*", "LICENCE*", "NOTICE*",
)  # fmt: skip
"""Names of the files beside the weights that belong to a model: config, tokenizer, templates, licence."""


@dataclass(frozen=True)
class Source:
    """An opened source checkpoint.

    name: what the user typed.
    folder: where its config, its tokenizer and everything else but the weights are.
    config, tensors: its config.json, and the headers of its tensors by name.
    loading: the arguments with which transformers loads its weights from ``folder``.
    finish: what has to be done to a model loaded so, to be the source (an adapter merged into it).
    origin: the file or folder that was opened, where that is not ``folder``; a conversion must not write there.
    sentence: the sentence-transformers folder that it is the transformer of.
    adapter: the folder of a PEFT adapter on it, which goes into the result as it is.
    held: kept for as long as the source is, such as a temporary folder.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorHeader]
    loading: Mapping[str, Any] = field(default_factory=lambda: {"use_safetensors": True})
    finish: Callable[[nn.Module], nn.Module] | None = None
    origin: Path | None = None
    sentence: Path | None = None
    adapter: Path | None = None
    held: object = None

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def places(self) -> tuple[Path, ...]:
        """Everything that belongs to the source and must not be written."""
        return tuple(path for path in (self.folder, self.origin, self.adapter) if path is not None)


@dataclass(frozen=True)
class Place:
    """Where a source is, and how it may be read.

    name: what the user typed.
    folder: a folder of this machine.
    file: in it, where a file was typed.
    remote: the arguments with which the Hub gives the headers of the weights, where they have not been downloaded.
    token: of the Hub.
    allow_pickle: whether torch's .bin files may be read.
    """

    name: str
    folder: Path
    file: Path | None = None
    remote: tuple[str | None, str | bool | None] | None = None
    token: str | bool | None = None
    allow_pickle: bool = False
