"""Realistic random checkpoints of any architecture: its own default shape scaled down, a tokenizer of its own class trained on text.

What a scaled-down config looks like is said once for all architectures by the names of its fields, so that a new family needs nothing here.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from hf_longattn.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
WIKITEXT = ROOT.parent / "shared" / "data" / "wikitext-2" / "valid.txt"
CHARACTERS = 300_000
VOCABULARY = 2000
LENGTH = 512
"""Tokens of the checkpoint: the defaults of most architectures, and what the others are cut to."""

SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "pooler_hidden_size", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "hidden_dim", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), 128),
    **dict.fromkeys(("head_dim", "d_kv", "query_pre_attn_scalar"), 16),
    "embedding_size": 32,
    "rotary_dim": 8,
}
"""What a field of a config is set to, where it has one."""
SPECIAL = ("pad", "bos", "eos", "cls", "sep", "mask")
HEADS = ("ForMaskedLM", "ForConditionalGeneration", "MTModel", "ForCausalLM", "LMHeadModel")
"""Which head a checkpoint has: the first of these that its architecture knows."""


@dataclass(frozen=True)
class Checkpoint:
    """A saved checkpoint of a base architecture."""

    base: str
    head: str
    folder: Path
    tokenizer: str
    """Its class, or which one took its place and why."""
    length: int
    """Tokens it takes."""

    @property
    def kind(self) -> str:
        """ "encoder", "decoder" or "encoder-decoder"."""
        return "encoder-decoder" if FAMILIES[self.base].two_stacks else "encoder" if self.head.endswith("ForMaskedLM") else "decoder"


def head_of(base: str) -> str:
    """The class of the checkpoint that stands for an architecture."""
    heads = FAMILIES[base].heads
    return next(head for suffix in HEADS for head in heads if head.endswith(suffix))


def make_checkpoint(base: str, folder: Path) -> Checkpoint:
    """Save a checkpoint with its tokenizer and generation config through transformers."""
    tokenizer, described = trained_tokenizer(base)
    config = small_config(FAMILIES[base].base_config_class, tokenizer)
    torch.manual_seed(0)
    model = getattr(transformers, head_of(base))(config)
    with torch.no_grad():  # initial values of trained size: with those of an untrained model attention hardly shows in the outputs
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.requires_grad:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tables = FAMILIES[base].position_tables
    length = tables[0].tokens(config) if tables else config.max_position_embeddings
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)
    return Checkpoint(base, head_of(base), folder, described, length)


def small_config(config_class: type[Any], tokenizer: Any) -> Any:
    """The default config of an architecture, narrower and with fewer layers; everything else is its own."""
    default = config_class()
    fields = default.to_dict()
    values: dict[str, Any] = {name: size for name, size in SIZES.items() if isinstance(fields.get(name), int)}
    if isinstance(grouped := fields.get("num_key_value_heads"), int):
        values["num_key_value_heads"] = 4 if grouped == default.num_attention_heads else 2
    for name in ("max_position_embeddings", "n_positions", "max_decoder_position_embeddings"):
        if isinstance(given := fields.get(name), int) and given > 2 * LENGTH:
            values[name] = LENGTH
    if "layer_types" in fields:
        values["layer_types"] = None  # one for each layer: made anew
    values["vocab_size"] = len(tokenizer)
    for name in SPECIAL:
        if f"{name}_token_id" in fields:
            values[f"{name}_token_id"] = getattr(tokenizer, f"{name}_token_id")
    if default.is_encoder_decoder:
        values |= {"decoder_start_token_id": tokenizer.eos_token_id, "forced_eos_token_id": None}
    return config_class(**values)


def trained_tokenizer(base: str) -> tuple[Any, str]:
    """A tokenizer of the architecture's own class with a vocabulary from real text; GPT-2's class where that one cannot be trained."""
    named = TOKENIZER_MAPPING_NAMES.get(base)
    kind = getattr(transformers, named, None) if isinstance(named, str) else None
    described = str(named)
    try:
        if kind is None:
            raise ValueError("transformers names none")
        if kind is transformers.EsmTokenizer:
            return esm_tokenizer(), described
        tokenizer = kind().train_new_from_iterator(training_text(), VOCABULARY)
        described = kind.__name__
    except Exception as error:  # tokenizers raise what they like where a vocabulary is missing
        tokenizer = transformers.GPT2Tokenizer().train_new_from_iterator(training_text(), VOCABULARY)
        described = f"GPT2Tokenizer (own class: {' '.join(str(error).split())[:60]})"
    missing = {f"{name}_token": f"<{name}>" for name in ("pad", "eos") if getattr(tokenizer, f"{name}_token_id") is None}
    tokenizer.add_special_tokens(missing)
    return tokenizer, described


def esm_tokenizer() -> Any:
    """ESM's, whose vocabulary is not learned: the letters that stand for amino acids."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.txt"
        file.write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<mask>"]), encoding="utf-8")
        return transformers.EsmTokenizer(str(file))


def training_text() -> list[str]:
    """WikiText-2's lines where they are at hand, otherwise the sources of this project."""
    if WIKITEXT.is_file():
        return WIKITEXT.read_text(encoding="utf-8")[:CHARACTERS].splitlines()
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "hf_longattn").rglob("*.py")))
    return sources[:CHARACTERS].splitlines()
