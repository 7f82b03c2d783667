"""Sentence embeddings from token states, computed like the sentence-transformers modules beside a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import (
    MODULES,
    SENTENCE_LIMIT,
    TOKENIZER_LIMIT,
    TRANSFORMER_SETTINGS,
    limits_of,
    sentence_modules,
    sentence_values,
    tokenizer_values,
)
from .tensor_files import write_json


def _mean(states: Tensor, real: Tensor) -> Tensor:
    return (states * real).sum(1) / real.sum(1).clamp(min=1e-9)


def _largest(states: Tensor, real: Tensor) -> Tensor:
    return states.masked_fill(real == 0, float("-inf")).amax(1)


def _first(states: Tensor, real: Tensor) -> Tensor:
    return _at(states, real.cumsum(1) == 1, real)


def _last(states: Tensor, real: Tensor) -> Tensor:
    return _at(states, real.cumsum(1) == real.sum(1, keepdim=True), real)


def _at(states: Tensor, here: Tensor, real: Tensor) -> Tensor:
    return (states * (here * real)).sum(1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len_tokens": lambda states, real: (states * real).sum(1) / real.sum(1).clamp(min=1e-9).sqrt(),
    "weightedmean": lambda states, real: _mean(states, real * real.cumsum(1)),
    "lasttoken": _last,
}
"""sentence-transformers' name -> function of states ``(B, N, D)`` and real tokens ``(B, N, 1)``, 1 or 0."""
OLD_KEYS = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "lasttoken": "lasttoken", "weightedmean": "weightedmean_tokens",
            "mean_sqrt_len_tokens": "mean_sqrt_len_tokens"}  # fmt: skip
"""Pooling mode -> the end of its key ``pooling_mode_…`` in files of versions before 6."""


class SentencePooling(nn.Module):
    """States ``(B, N, D)`` and mask ``(B, N)`` -> embeddings ``(B, D·modes)``, normalised or not."""

    def __init__(self, modes: tuple[str, ...], normalize: bool) -> None:
        super().__init__()
        self.modes, self.normalize = modes, normalize

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        real = mask[..., None].to(states.dtype)
        pooled = torch.cat([POOLINGS[mode](states, real) for mode in self.modes], dim=-1)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled


def sentence_pooling(folder: Path) -> SentencePooling | None:
    """The pooling after the transformer, with normalisation if there is one. ``None`` if there are other modules.

    Raises:
        CheckpointError: the list of modules is damaged.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = sentence_modules(folder)[1:]
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    file = folder / modules[0]["path"] / "config.json" if modules else folder
    if kinds not in (["Pooling"], ["Pooling", "Normalize"]) or not file.is_file():
        return None
    values = sentence_values(file)
    mode = values.get("pooling_mode")
    if mode is None:
        modes = tuple(name for name, key in OLD_KEYS.items() if values.get(f"pooling_mode_{key}") is True)
    else:
        modes = (mode,) if isinstance(mode, str) else tuple(map(str, mode))
    if not modes or not set(modes) <= set(POOLINGS) or values.get("include_prompt") is False:
        return None
    return SentencePooling(modes, normalize=len(kinds) == 2)


def write_for_servers(folder: Path, max_length: int) -> None:
    """Rewrite the files about modules as servers and all versions of sentence-transformers read them.

    text-embeddings-inference takes ``max_seq_length`` and the keys ``pooling_mode_…`` only, and sentence-transformers before version 6 the
    old names of modules.

    Args:
        folder: of an exported graph, with modules.json and the modules' folders.
        max_length: tokens that the graph takes.
    """
    if not (folder / MODULES).is_file():
        return
    modules, pooling = sentence_modules(folder), sentence_pooling(folder)
    for settings in folder.glob(TRANSFORMER_SETTINGS):
        limit = limits_of(tokenizer_values(folder)).get(TOKENIZER_LIMIT, max_length)
        values = {SENTENCE_LIMIT: min(max_length, limit), **sentence_values(settings)}
        if pooling is not None:  # fields of version 6; older versions behave the same without them
            values = {
                name: value for name, value in values.items() if name not in ("transformer_task", "modality_config", "module_output_name")
            }
        write_json(settings, values)
    if pooling is None:
        return
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    old_names = [{**module, "type": f"sentence_transformers.models.{kind}"} for module, kind in zip(modules, kinds, strict=True)]
    write_json(folder / MODULES, old_names)
    file = folder / modules[1]["path"] / "config.json"
    values = sentence_values(file)
    flags = {f"pooling_mode_{key}": name in pooling.modes for name, key in OLD_KEYS.items()}
    width = values.get("embedding_dimension", values.get("word_embedding_dimension"))
    write_json(file, {"word_embedding_dimension": width, **flags, "include_prompt": values.get("include_prompt", True)})
