"""Tiny stock checkpoints with the reach that every output must have, for the tests of serving engines (`fixtures.json`, `fixtures.md`)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ..conversion.model_loading import quiet_libraries
from ..errors import BackendError, DestinationExistsError
from ..loading import load_model
from ..reading import read_json_object
from ..staging import destination_path, give_usual_modes, staged_folder
from .declared import DeclaredReach, StackReach, text_stack
from .targets import ROUNDING

HERE = Path(__file__).parent
LENGTH = 48
"""Number of tokens of the text."""
SIZES: dict[str, Any] = {
    "vocab_size": 258, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2 * LENGTH, "initializer_range": 0.12,
    "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None,
}  # fmt: skip
"""Values of every config; classes without such a field keep it in their file."""
MIXES = ("o_proj.weight", "Wo.weight")
"""The last weights of an attention."""


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
    fixtures = read_json_object(HERE / "fixtures.json")
    with staged_folder(target) as folder:
        for name, fixture in fixtures.items():
            _write(folder / name, name, fixture)
        rows = [f"| `{name}` | {fixture['about']} |" for name, fixture in fixtures.items()]
        page = (HERE / "fixtures.md").read_text(encoding="utf-8").replace("VERSION", transformers.__version__)
        page = page.replace("FIXTURES", "\n".join(["| folder | what it is |", "|---|---|", *rows]))
        (folder / "README.md").write_text(page, encoding="utf-8")
        give_usual_modes(folder)
    return list(fixtures)


def _write(folder: Path, name: str, fixture: dict[str, Any]) -> None:
    """Write one checkpoint with its tokenizer and ``reach.json``."""
    silent, model_class = fixture.get("silent", []), getattr(transformers, fixture["class"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**{**SIZES, **fixture["config"]}))
    for parameter, values in model.named_parameters():
        if parameter.endswith(MIXES) and any(f"layers.{layer}." in parameter for layer in silent):
            values.data.zero_()
    model.save_pretrained(folder)
    config = read_json_object(folder / "config.json")
    config.pop("layer_types", None)  # as engines find a published config
    (folder / "config.json").write_text(json.dumps({**config, **fixture["config"]}, indent=2), encoding="utf-8")
    words = ["[PAD]", "[UNK]", *map("".join, itertools.product("bdfg", "aeio", "klmn", "aeuo"))]
    _write_tokenizer(folder, words)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, len(words), (LENGTH,), generator=generator)
    others = 2 + (ids - 2 + torch.randint(1, len(words) - 2, (LENGTH,), generator=generator)) % (len(words) - 2)
    reach, least_share = _reach(folder, name, silent, ids, others)
    values = {
        "format": 1, "architecture": fixture["class"], "about": fixture["about"], "silent_layers": silent,
        "text": " ".join(words[token] for token in ids), "input_ids": ids.tolist(), "replacement_ids": others.tolist(), "reach": reach,
        "least_share": least_share,
    }  # fmt: skip
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    (folder / "reach.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def _write_tokenizer(folder: Path, words: Sequence[str]) -> None:
    """A tokenizer with one token for each word between spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": words[0], "unk_token": words[1], "model_max_length": SIZES["max_position_embeddings"]}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@torch.no_grad()
def _reach(folder: Path, name: str, silent: Sequence[int], ids: Tensor, others: Tensor) -> tuple[list[list[int]], float]:
    """First and last token on which each output depends, and the smallest change within reach as a share of the same token's largest."""
    model = load_model(transformers.AutoModel, folder, attn_implementation="eager").eval()
    texts = ids.repeat(1 + LENGTH, 1)  # the text, and for every token the text with another one
    texts[1:].diagonal().copy_(others)
    states = model(texts).last_hidden_state
    shares = (states[1:] - states[0]).abs().amax(-1)  # (tokens, outputs)
    shares /= shares.amax(1, keepdim=True)
    changed, tokens = shares > ROUNDING, torch.eye(LENGTH, dtype=torch.bool)
    declared = DeclaredReach(model.config, text_stack(model.config, model), ids)
    stack = StackReach([layer for number, layer in enumerate(declared.layers) if number not in silent])
    if not torch.equal(changed, torch.stack([stack.influence(token) > 0 for token in tokens])):
        raise BackendError(f"transformers {transformers.__version__} does not run the windows of {name}; install another version.")
    ranges = [column.nonzero()[:, 0] for column in changed.t()]
    return [[int(seen[0]), int(seen[-1])] for seen in ranges], float(shares[changed].min())
