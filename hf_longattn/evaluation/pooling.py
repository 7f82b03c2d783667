"""Sentence embeddings from token states, by the sentence-transformers modules of a model."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import (
    MODULES,
    SENTENCE_LIMIT,
    TRANSFORMER_SETTINGS,
    sentence_modules,
    sentence_values,
    write_json,
)

OLD_KEYS = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
"""Pooling mode -> the end of its key ``pooling_mode_…`` in files of sentence-transformers before version 6."""


class SentencePooling(nn.Module):
    """States ``(B, N, D)`` and mask ``(B, N)`` -> embeddings ``(B, D·modes)``, normalised or not."""

    def __init__(self, modes: tuple[str, ...], normalize: bool) -> None:
        super().__init__()
        self.modes, self.normalize = modes, normalize

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        real = mask[..., None].to(states.dtype)
        pooled = torch.cat([pool(mode, states, real) for mode in self.modes], dim=-1)
        return F.normalize(pooled, dim=-1) if self.normalize else pooled


def pool(mode: str, states: Tensor, real: Tensor) -> Tensor:
    """Pool states ``(B, N, D)`` over real tokens ``(B, N, 1)``, 1 or 0, by a mode in :data:`OLD_KEYS`."""
    if mode == "max":
        return states.masked_fill(real == 0, float("-inf")).amax(1)
    number = real.cumsum(1)  # index of a real token in its text, from 1
    if mode == "cls":
        real = real * (number == 1)
    elif mode == "lasttoken":
        real = real * (number == real.sum(1, keepdim=True))
    elif mode == "weightedmean":
        real = real * number
    total = real.sum(1).clamp(min=1e-9)
    if mode == "mean_sqrt_len_tokens":
        total = total.sqrt()
    return (states * real).sum(1) / total


def sentence_pooling(folder: Path) -> SentencePooling | None:
    """The pooling after the transformer, with normalisation if there is one. ``None`` if there are other modules.

    Raises:
        CheckpointError: the list of modules is damaged.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = sentence_modules(folder)[1:]
    types = [str(module["type"]).rpartition(".")[2] for module in modules]
    if types not in (["Pooling"], ["Pooling", "Normalize"]):
        return None
    file = folder / modules[0]["path"] / "config.json"
    if not file.is_file():
        return None
    values = sentence_values(file)
    mode = values.get("pooling_mode")
    if not mode:
        mode = [name for name, key in OLD_KEYS.items() if values.get(f"pooling_mode_{key}") is True]
    modes = (mode,) if isinstance(mode, str) else tuple(map(str, mode))
    if not modes or not set(modes) <= OLD_KEYS.keys() or values.get("include_prompt") is False:
        return None
    return SentencePooling(modes, normalize=len(types) == 2)


def write_for_servers(folder: Path, max_length: int) -> None:
    """Rewrite the files about modules so that servers and all versions of sentence-transformers can read them.

    text-embeddings-inference reads only ``max_seq_length`` and the keys ``pooling_mode_…``. sentence-transformers
    before version 6 reads only old module names.

    Args:
        folder: folder of an exported graph, with modules.json and the modules' folders.
        max_length: maximum tokens of an input, by graph and tokenizer.
    """
    if not (folder / MODULES).is_file():
        return
    modules, pooling = sentence_modules(folder), sentence_pooling(folder)
    for settings in folder.glob(TRANSFORMER_SETTINGS):
        values = {SENTENCE_LIMIT: max_length, **sentence_values(settings)}
        if pooling is not None:  # new fields that change nothing
            for name in ("transformer_task", "modality_config", "module_output_name"):
                values.pop(name, None)
        write_json(settings, values)
    if pooling is None:
        return
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    write_json(folder / MODULES, modules)
    file = folder / modules[1]["path"] / "config.json"
    values = sentence_values(file)
    flags = {f"pooling_mode_{key}": name in pooling.modes for name, key in OLD_KEYS.items()}
    width = values.get("embedding_dimension", values.get("word_embedding_dimension"))
    write_json(
        file, {"word_embedding_dimension": width, **flags, "include_prompt": values.get("include_prompt", True)}
    )
