"""Stand-ins for the pages on text: encoders, decoders, what is converted from them, tables and books."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM

from tests.stand_ins import made, stand_in


@stand_in("google-bert/bert-base-uncased")
def bert(folder: Path) -> None:
    """A BERT of 512 tokens."""
    from tests.trained import tokenizer_of

    tokenizer = tokenizer_of("bert", 512)
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def converted(source: str, folder: Path, mechanism: str, **settings: Any) -> None:
    """A stand-in made from another one by a conversion."""
    from hf_longattn import convert_checkpoint

    convert_checkpoint(made(source), folder, mechanism=mechanism, verify=False, **settings)


@stand_in("bert-4096")
def bert_4096(folder: Path) -> None:
    converted("google-bert/bert-base-uncased", folder, "longformer", window=512, max_length=4096)


@stand_in("questions.jsonl")
def questions(file: Path) -> None:
    """Those of the quickstart, often enough that a tenth can be held out."""
    from tests.pages import ROOT, blocks

    quickstart = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    file.write_text(next(block.content for block in blocks(quickstart) if block.file == file.name) * 10, encoding="utf-8")
