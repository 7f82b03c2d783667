"""Realistic random checkpoints of any architecture: its default shape scaled down, a tokenizer of its class trained on text."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
from transformers.models.esm.configuration_esm import get_default_vocab_list

from hf_longattn.families import FAMILIES
from scripts.dev import ROOT
from scripts.dev.tools.small_models import Shape, small_config, token_model

WIKITEXT = ROOT.parent / "shared" / "data" / "wikitext-2" / "valid.txt"
CHARACTERS = 300_000
VOCABULARY = 2000
LENGTH = 512
"""Tokens of the checkpoint: the defaults of most architectures, and what the others are cut to."""
SHAPE = Shape(width=64, layers=4, heads=4, inner=128)
SPECIAL = ("pad", "bos", "eos", "cls", "sep", "mask")


PAGE_TAGS = {"MarkupLMTokenizer": {"tags_dict": {tag: number for number, tag in enumerate(("html", "body", "p", "span"))}}}
"""What a tokenizer of pages is made with."""


@dataclass(frozen=True)
class Checkpoint:
    """A saved checkpoint of a base architecture."""

    base: str
    head: str
    folder: Path
    tokenizer: str
    """Its class, or which one took its place and why; of pictures, the image processor's."""
    length: int
    """Tokens it takes, without those before patches."""

    @property
    def kind(self) -> str:
        """ "encoder", "labels" of tokens, "decoder", "encoder-decoder", "embedder" of texts (CLIP's), "pictures", "sound" or "towers"."""
        if FAMILIES[self.base].towers:
            return "towers"
        if FAMILIES[self.base].rule.reads == "grid":
            return "pictures"
        if FAMILIES[self.base].rule.reads == "sound":
            return "sound"
        if FAMILIES[self.base].two_stacks:
            return "encoder-decoder"
        if self.head.endswith("ForTokenClassification"):
            return "labels"
        if self.head == FAMILIES[self.base].base_model_name:
            return "embedder"
        return "encoder" if self.head.endswith("ForMaskedLM") else "decoder"


def make_checkpoint(base: str, folder: Path) -> Checkpoint:
    """Save a checkpoint with its tokenizer and generation config through transformers."""
    tokenizer, described = trained_tokenizer(base, training_text(), VOCABULARY)
    missing = {f"{name}_token": f"<{name}>" for name in ("pad", "eos") if getattr(tokenizer, f"{name}_token_id") is None}
    tokenizer.add_special_tokens(missing)
    config = config_of(base, tokenizer)
    torch.manual_seed(0)
    model = getattr(transformers, token_model(base))(config)
    # initial values of trained size: with those of an untrained model attention hardly shows in the outputs; T5's are large
    factor = 1 if hasattr(config, "initializer_factor") else 4
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.requires_grad:
                parameter.mul_(factor)
    model.save_pretrained(folder)
    tables = FAMILIES[base].position_tables
    length = tables[0].tokens(config) if tables else FAMILIES[base].base_length(config)
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)
    return Checkpoint(base, token_model(base), folder, described, length)


def config_of(base: str, tokenizer: Any) -> Any:
    """The default config of an architecture, narrower and with fewer layers; everything else is its own."""
    default = CONFIG_MAPPING[base]()
    values: dict[str, Any] = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in SPECIAL}
    if getattr(default, "max_position_embeddings", 2 * LENGTH + 1) <= 2 * LENGTH:
        values["max_position_embeddings"] = default.max_position_embeddings
    if default.is_encoder_decoder:
        values |= {"decoder_start_token_id": tokenizer.eos_token_id, "forced_eos_token_id": None}
    return small_config(base, replace(SHAPE, tokens=LENGTH, vocabulary=len(tokenizer)), **values)


def trained_tokenizer(base: str, texts: Sequence[str], size: int) -> tuple[Any, str]:
    """A tokenizer of the architecture's own class with a vocabulary from these texts, and its name; GPT-2's class, and why, where that one
    cannot be trained."""
    named = TOKENIZER_MAPPING_NAMES.get(base)
    kind = getattr(transformers, named, None) if isinstance(named, str) else None
    described = str(named)
    try:
        if kind is None:
            raise ValueError("transformers names none")
        if kind is transformers.EsmTokenizer:
            return esm_tokenizer(), described
        tokenizer = kind(**PAGE_TAGS.get(kind.__name__, {})).train_new_from_iterator(texts, size)
        described = kind.__name__
    except Exception as error:  # tokenizers raise what they like where a vocabulary is missing
        tokenizer = transformers.GPT2Tokenizer(pad_token="<pad>", mask_token="<mask>").train_new_from_iterator(texts, size)
        described = f"GPT2Tokenizer (own class: {' '.join(str(error).split())[:60]})"
    return tokenizer, described


def esm_tokenizer() -> Any:
    """ESM's, whose vocabulary is not learned: the letters that stand for amino acids."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(get_default_vocab_list()), encoding="utf-8")
        return transformers.EsmTokenizer(str(file))


def training_text() -> list[str]:
    """WikiText-2's lines where they are at hand, otherwise the sources of this project."""
    if WIKITEXT.is_file():
        return WIKITEXT.read_text(encoding="utf-8")[:CHARACTERS].splitlines()
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "hf_longattn").rglob("*.py")))
    return sources[:CHARACTERS].splitlines()
