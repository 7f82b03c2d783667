#!/usr/bin/env python
"""Pre-train a reference checkpoint from scratch on the Python source of the installed packages, or on any text folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from hf_longattn.errors import LongAttentionError
from scripts.dev.studies.corpus import InstalledPackages, TextFolder
from scripts.dev.studies.pretraining.data import prepare as prepare_data
from scripts.dev.studies.pretraining.export import export as export_checkpoint
from scripts.dev.studies.pretraining.loop import Pretraining, Recipe

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
WorkDir = Annotated[Path, typer.Option(help="Folder of tokens, checkpoints and logs; kept between runs.")]
DEFAULT_WORK_DIR = Path.home() / ".cache" / "hf_longattn" / "reference"


@app.command()
def prepare(
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    text: Annotated[Path | None, typer.Option(help="Folder of text files instead of the installed packages.")] = None,
    vocab_size: Annotated[int, typer.Option(help="Pieces of the byte-level BPE tokenizer.")] = 8192,
) -> None:
    """Train the tokenizer and tokenise the corpus, once."""
    corpus = TextFolder(text) if text else InstalledPackages()
    print(json.dumps(prepare_data(corpus, work_dir, vocab_size)["splits"], indent=1))


@app.command()
def train(
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    architecture: Annotated[str, typer.Option(help="bert, gpt2 or llama.")] = "bert",
    hours: Annotated[float | None, typer.Option(help="Budget in hours of active steps, decay included.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Budget in tokens, decay included.")] = None,
    decay_at: Annotated[int | None, typer.Option(help="Start the decay at this number of tokens.")] = None,
    decay_share: Annotated[float, typer.Option(help="Length of the decay as a share of the tokens seen.")] = Recipe.decay_share,
    batch_tokens: Annotated[int, typer.Option(help="Tokens per step.")] = Recipe.batch_tokens,
    full_every: Annotated[int, typer.Option(help="Every n-th step uses the whole position table.")] = Recipe.full_every,
    causal_tokens: Annotated[int, typer.Option(help="Length of BERT's causal phase.")] = Recipe.causal_tokens,
    mask_rate: Annotated[float, typer.Option(help="Share of pieces masked in training.")] = Recipe.mask_rate,
    optimizer: Annotated[str, typer.Option(help="muon or adamw.")] = Recipe.optimizer,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW: embeddings, biases, norms.")] = Recipe.learning_rate,
    matrix_learning_rate: Annotated[float, typer.Option(help="Of Muon: the layers' matrices.")] = Recipe.matrix_learning_rate,
    evaluate_tokens: Annotated[int, typer.Option(help="Tokens between held-out losses.")] = Recipe.evaluate_tokens,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compile: Annotated[bool, typer.Option(help="Compile the loss (needs a C++ compiler).")] = False,
    seed: Annotated[int, typer.Option(help="Of the initial weights, the data's order and the masks.")] = 0,
) -> None:
    """Train, or resume. Without a budget it runs until the file DECAY appears in the architecture's folder."""
    options = {key: value for key, value in locals().items() if key in Recipe.__dataclass_fields__}
    if threads:
        torch.set_num_threads(threads)
    Pretraining(Recipe(**options), work_dir, device).run()


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist unless --overwrite is given.")],
    work_dir: WorkDir = DEFAULT_WORK_DIR,
    architecture: Annotated[str, typer.Option(help="bert, gpt2 or llama.")] = "bert",
    checkpoint: Annotated[str, typer.Option(help="checkpoint.pt, or stable.pt from before the decay.")] = "checkpoint.pt",
    overwrite: Annotated[bool, typer.Option(help="Replace the folder if it exists.")] = False,
) -> None:
    """Write a checkpoint as an ordinary transformers folder: fp16 safetensors, tokenizer, log and card."""
    print(export_checkpoint(work_dir, architecture, out, checkpoint, overwrite))


if __name__ == "__main__":
    try:
        app(standalone_mode=True)
    except LongAttentionError as error:
        raise SystemExit(f"error: {error}") from None
