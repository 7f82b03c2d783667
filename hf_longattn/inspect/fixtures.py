"""Tiny stock checkpoints with the reach that every output must have, for the tests of serving engines (`fixtures.json`, `fixtures.md`)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from ..conversion.model_loading import quiet_libraries
from ..errors import BackendError, DestinationExistsError
from ..loading import load_model
from ..reading import read_json_object
from ..reports import markdown_table
from ..staging import destination_path, give_usual_modes, staged_folder
from .declared import DeclaredReach, StackReach, text_stack
from .targets import ROUNDING

HERE = Path(__file__).parent
LENGTH = 48
"""Number of tokens of the text."""
LAST_WEIGHTS = ("o_proj.weight", "Wo.weight")
"""Of an attention; with zeros it adds nothing."""


@quiet_libraries()
def make_fixtures(destination: str | Path) -> list[str]:
    """Write the checkpoints, and how to use them, into a new folder; returns their names.

    Raises:
        DestinationExistsError: the folder exists.
        CheckpointError: the folder cannot be written.
        BackendError: the installed transformers computes something else than a config declares.
    """
    target = destination_path(destination)
    if target.exists():
        raise DestinationExistsError(f"{str(target)!r} already exists; choose another folder.")
    every, fixtures = read_json_object(HERE / "fixtures.json").values()
    with staged_folder(target) as folder:
        for name, fixture in fixtures.items():
            _write(folder / name, every, **fixture)
        table = markdown_table(("folder", "what it is"), [(f"`{name}`", fixture["about"]) for name, fixture in fixtures.items()])
        page = (HERE / "fixtures.md").read_text(encoding="utf-8").replace("VERSION", transformers.__version__)
        (folder / "README.md").write_text(page.replace("FIXTURES", table), encoding="utf-8")
        give_usual_modes(folder)
    return list(fixtures)


def _write(
    folder: Path, every: Mapping[str, Any], architecture: str, config: Mapping[str, Any], silent_layers: Sequence[int], about: str
) -> None:
    """Write one checkpoint with its tokenizer and ``reach.json``. every: values of all configs."""
    model_class = getattr(transformers, architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**{**every, **config}))
    for name, parameter in model.named_parameters():
        if name.endswith(LAST_WEIGHTS) and any(f"layers.{layer}." in name for layer in silent_layers):
            parameter.data.zero_()
    model.save_pretrained(folder)
    written = read_json_object(folder / "config.json")
    written.pop("layer_types", None)  # they follow from other fields, as in a published config
    (folder / "config.json").write_text(json.dumps({**written, **config}, indent=2), encoding="utf-8")
    words = ["[PAD]", "[UNK]", *map("".join, itertools.product("bdfg", "aeio", "klmn", "aeuo"))]
    tokenizer: Any = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special: dict[str, Any] = {"pad_token": words[0], "unk_token": words[1], "model_max_length": every["max_position_embeddings"]}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    ids = torch.randint(2, len(words), (LENGTH,), generator=torch.Generator().manual_seed(0))
    others = 2 + (ids + len(words) // 2) % (len(words) - 2)
    reach, least_share = _reach(folder, silent_layers, ids, others)
    text = " ".join(words[token] for token in ids)
    about_text = {"text": text, "input_ids": ids.tolist(), "replacement_ids": others.tolist(), "reach": reach, "least_share": least_share}
    model_values = {"format": 1, "about": about, "architecture": architecture, "silent_layers": silent_layers}
    (folder / "reach.json").write_text(json.dumps({**model_values, **about_text}), encoding="utf-8")


@torch.no_grad()
def _reach(folder: Path, silent_layers: Sequence[int], ids: Tensor, others: Tensor) -> tuple[list[list[int]], float]:
    """First and last token on which each output depends, and the smallest change within reach as a share of the same token's largest."""
    model = load_model(transformers.AutoModel, folder, attn_implementation="eager").eval()
    texts = ids.repeat(1 + LENGTH, 1)  # the text, and for every token the text with another one
    texts[1:].diagonal().copy_(others)
    states = model(texts).last_hidden_state
    shares = (states[1:] - states[0]).abs().amax(-1)  # (tokens, outputs)
    shares /= shares.amax(1, keepdim=True)
    changed, tokens = shares > ROUNDING, torch.eye(LENGTH, dtype=torch.bool)
    declared = DeclaredReach(model.config, text_stack(model.config, model), ids)
    stack = StackReach([layer for number, layer in enumerate(declared.layers) if number not in silent_layers])
    if not torch.equal(changed, torch.stack([stack.influence(token) > 0 for token in tokens])):
        raise BackendError(f"transformers {transformers.__version__} does not run the windows of {folder.name}; install another version.")
    ranges = [column.nonzero()[:, 0] for column in changed.t()]
    return [[int(seen[0]), int(seen[-1])] for seen in ranges], float(shares[changed].min())
