"""One decoder and its graph with a cache, which the tests of the export and of the example of generation read."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from hf_longattn import export_checkpoint
from hf_longattn.export.decoder import TASK
from tests.reference.small_models import long_model

LENGTH, WINDOW = 256, 24


def export_decoder(folder: Path) -> tuple[Path, Path]:
    """A Llama whose tokens are bytes, with a layer of windows and one of linear attention, and its graph."""
    source, out = folder / "long", folder / "graph"
    attention = {"mechanism": "window", "window": WINDOW, "layers": {1: {"mechanism": "linear"}}}
    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    long_model(
        "llama", "LlamaForCausalLM", attention, num_hidden_layers=2, vocab_size=len(vocabulary), max_position_embeddings=LENGTH
    ).save_pretrained(source)
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH).save_pretrained(source)
    export_checkpoint(source, out, task=TASK)
    return source, out
