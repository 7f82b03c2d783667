"""Masked-token loss of a short checkpoint and of its conversions at several lengths, on the same masked tokens.

    python -m scripts.dev.studies.evaluate_mlm --model model_cards/bert-python-512
    python -m scripts.dev.studies.evaluate_mlm --model model_cards/bert-python-512 --lengths 4096 --tiled window:window=512 … \\
        --output scripts/dev/results/tiled

Rows: the original on chunks of its length; converted with random new positions; converted with tiled positions and a
window; with tiled positions and full attention. With --tiled: the original, and one row for each mechanism. Writes
OUTPUT.json and OUTPUT.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

import hf_longattn
from hf_longattn import LongAttentionConfig
from scripts.dev.benchmarks.report import machine, one_sentence_errors, store_study
from scripts.dev.studies.corpus import iter_modules
from scripts.dev.studies.text_loss import MaskedText, masked_loss, masked_texts, mlm_markdown, mlm_table


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="short masked language model: a folder or a Hub name")
    add("--text", nargs="*", default=[], help="text files to score on (default: the test packages of the reference corpus)")
    add("--lengths", type=int, nargs="+", default=[512, 2048, 4096], help="input lengths in tokens")
    add("--documents", type=int, default=32, help="documents, each at least as long as the greatest length (default: 32)")
    add("--mechanism", default="longformer", help="mechanism with a window (default: longformer)")
    add("--window", type=int, default=512, help="its window (default: 512)")
    add("--tiled", nargs="+", metavar="LAYERS", help="tiled positions with each of these, for example '0-2=window:window=512;3=full'")
    add("--short-length", type=int, default=512, help="chunks of the original (default: 512)")
    add("--threads", type=int, default=0, help="processor threads (default: torch's)")
    add("--seed", type=int, default=0, help="seed of the masked places")
    add("--output", default="scripts/dev/results/mlm", help="path without suffix (default: %(default)s)")
    return parser.parse_args(arguments)


def load_texts(options: argparse.Namespace) -> list[str]:
    """The given files, or the modules of the test packages, in a fixed order."""
    if options.text:
        return [Path(path).read_text(encoding="utf-8") for path in options.text]
    return [module.text for module in iter_modules("test")]


def build_systems(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[Sequence[MaskedText]], list[float]]]:
    """All rows of the table."""
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    load = partial(AutoModelForMaskedLM.from_pretrained, dtype=torch.float32)
    length = max(options.lengths)
    windowed = {"mechanism": options.mechanism, "window": options.window}
    conversions: dict[str, dict[str, Any]] = {
        f"converted, random positions, {options.mechanism} window {options.window}": {"positions": "random", **windowed},
        f"converted, tiled positions, {options.mechanism} window {options.window}": {"positions": "tile", **windowed},
        "converted, tiled positions, full attention": {"positions": "tile", "mechanism": "full"},
    }
    if options.tiled:
        conversions = {layers: {"long_attention": LongAttentionConfig(layers=layers)} for layers in options.tiled}
    original = f"original, chunks of {options.short_length}"
    rows: dict[str, Callable[[Sequence[MaskedText]], list[float]]] = {
        original: partial(masked_loss, load(options.model).eval(), tokenizer, chunk=options.short_length)
    }
    for number, (name, settings) in enumerate(conversions.items()):
        target = folder / str(number)
        hf_longattn.convert_checkpoint(options.model, target, max_length=length, verify=False, **settings)
        rows[name] = partial(masked_loss, load(target).eval(), tokenizer)
    return rows


@one_sentence_errors
def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = masked_texts(load_texts(options), tokenizer, max(options.lengths), options.documents, seed=options.seed)
    with tempfile.TemporaryDirectory() as folder:
        table = mlm_table(build_systems(options, Path(folder)), texts, options.lengths)
    about = {**machine(), "model": options.model, "documents": len(texts), "masked": "15 %, all by the mask token"}
    heading = "# Masked-token loss by input length\n\nNats per masked token ± standard error over documents.\n\n"
    notes = "\n".join(f"- {key}: {value}" for key, value in about.items())
    store_study(Path(options.output), {"about": about, "table": table}, f"{heading}{mlm_markdown(table)}\n{notes}\n")
    print(mlm_markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
