"""Pooling of token states to sentence embeddings, as the sentence-transformers modules of a model define it."""

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
"""Pooling mode -> end of its key ``pooling_mode_…`` in the files of sentence-transformers before version 6."""


class SentencePooling(nn.Module):
    """Pools token states by one or several modes, whose results are concatenated, and may normalise the embedding.

    ``forward`` takes states ``(B, N, D)`` and a mask of real tokens ``(B, N)``, and returns ``(B, D · modes)``.
    """

    def __init__(self, modes: tuple[str, ...], normalize: bool) -> None:
        super().__init__()
        self.modes, self.normalize = modes, normalize

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        real = mask[..., None].to(states.dtype)
        pooled = torch.cat([pool(mode, states, real) for mode in self.modes], dim=-1)
        if self.normalize:
            pooled = F.normalize(pooled, dim=-1)
        return pooled


def pool(mode: str, states: Tensor, real: Tensor) -> Tensor:
    """Pool states ``(B, N, D)`` to ``(B, D)`` by a mode in :data:`OLD_KEYS`.

    ``real`` is 1 for real tokens and 0 for padding, ``(B, N, 1)``.
    """
    if mode == "max":
        return states.masked_fill(real == 0, float("-inf")).amax(1)
    weights = real
    number = real.cumsum(1)  # of a real token in its text, from 1
    if mode == "cls":
        weights = real * (number == 1)
    elif mode == "lasttoken":
        weights = real * (number == real.sum(1, keepdim=True))
    elif mode == "weightedmean":
        weights = real * number
    total = weights.sum(1).clamp(min=1e-9)
    if mode == "mean_sqrt_len_tokens":
        total = total.sqrt()
    return (states * weights).sum(1) / total


def sentence_pooling(folder: Path) -> SentencePooling | None:
    """The pooling of a sentence encoder in ``folder``, with its normalisation if it has one.

    ``None`` if the model is no sentence encoder, or has other modules or settings than :class:`SentencePooling`.

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
    mode = values.get("pooling_mode")  # a name, or a list of names
    if not mode:
        mode = [name for name, key in OLD_KEYS.items() if values.get(f"pooling_mode_{key}") is True]
    modes = (mode,) if isinstance(mode, str) else tuple(map(str, mode))
    if not modes or not set(modes) <= OLD_KEYS.keys() or values.get("include_prompt") is False:
        return None
    return SentencePooling(modes, normalize=len(types) == 2)


def write_for_servers(folder: Path, max_length: int) -> None:
    """Rewrite the files about modules so that servers and all versions of sentence-transformers can read them.

    text-embeddings-inference reads only ``max_seq_length`` and the keys ``pooling_mode_…``. sentence-transformers
    before version 6 reads only old names of modules.

    Args:
        folder: folder of an exported graph, with modules.json and the folders of the modules.
        max_length: maximum tokens of an input, for the graph and for the tokenizer.
    """
    if not (folder / MODULES).is_file():
        return
    modules, pooling = sentence_modules(folder), sentence_pooling(folder)

    # Settings of the transformer
    for settings in folder.glob(TRANSFORMER_SETTINGS):
        values = {SENTENCE_LIMIT: max_length, **sentence_values(settings)}
        if pooling is not None:  # remove fields that only new versions know, and that have no effect here
            for name in ("transformer_task", "modality_config", "module_output_name"):
                values.pop(name, None)
        write_json(settings, values)
    if pooling is None:
        return

    # Names of the modules, and settings of the pooling
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
