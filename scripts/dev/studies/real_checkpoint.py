"""The first part of the demo: a sentence encoder that thousands use, converted. Short texts and times are compared with the original's.

Texts are Python's language reference, which every installation has.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from scripts.dev.benchmarks.run import in_turn
from scripts.dev.real import NAME, real_checkpoint

LENGTH = 4096
SHORT_TEXTS = (16, 128, 256, 384, 512)
"""Tokens of the texts whose vectors are compared; the original reads at most 512."""
EQUAL = 1e-5
"""Largest difference between equal vectors of length 1 in fp32."""
ROUNDS = 3


class Comparison(NamedTuple):
    """The vectors of one text by both models."""

    tokens: int
    cosine: float
    difference: float

    @property
    def equal(self) -> bool:
        return self.difference <= EQUAL


def show_real_checkpoint(console: Console, out: Path) -> None:
    """Convert all-MiniLM-L6-v2 into ``out / "minilm"``, and print how its vectors and times compare with the original's.

    Raises:
        CheckpointError: the checkpoint is neither installed nor downloadable, or is not the published one.
    """
    from sentence_transformers import SentenceTransformer

    from hf_longattn import convert_checkpoint
    from hf_longattn.cli.checkpoints import conversion_report
    from hf_longattn.cli.terminal import show

    source, target = real_checkpoint(), out / "minilm"
    console.print(f"   longattn convert {NAME} {target} --mechanism longformer --max-length {LENGTH}\n")
    report = convert_checkpoint(source, target, mechanism="longformer", max_length=LENGTH)
    show(report.to_dict(), conversion_report(report))
    original, converted = (SentenceTransformer(str(folder), device="cpu") for folder in (source, target))
    original.max_seq_length = SHORT_TEXTS[-1]  # shipped with 256, which is not the length of its position table
    comparisons = compare_short_texts(original, converted)
    console.print("\n   Texts that the original can read: its vector and the converted model's")
    console.print("   tokens   cosine   largest difference")
    for row in comparisons:
        console.print(f"   {row.tokens:>6}   {row.cosine:.4f}   {row.difference:.1e}{', equal' if row.equal else ''}", highlight=False)
    console.print(f"   {summary(comparisons)}")
    full, long = time_long_text(target)
    console.print(f"\n   Processor time for a text of {LENGTH:,} tokens, of which the original reads {SHORT_TEXTS[-1]} (fp32)")
    console.print(f"   full attention (transformers' BERT, SDPA)   {full:5.2f} s", highlight=False)
    console.print(f"   longformer                                  {long:5.2f} s, {full / long:.1f} times as fast", highlight=False)


def tokens_of(tokenizer: Any, count: int) -> dict[str, Tensor]:
    """The beginning of the language reference as a batch of one text of exactly ``count`` tokens."""
    text = " ".join(topics[name] for name in sorted(topics))[: 20 * count]
    return dict(tokenizer(text, truncation=True, max_length=count, return_tensors="pt"))


def compare_short_texts(original: Any, converted: Any, lengths: Sequence[int] = SHORT_TEXTS) -> list[Comparison]:
    """Compare the vectors of two SentenceTransformers for texts of these lengths in tokens."""
    comparisons = []
    for length in lengths:
        inputs = tokens_of(converted.tokenizer, length)
        with torch.inference_mode():
            expected, found = (model(dict(inputs))["sentence_embedding"][0] for model in (original, converted))
        cosine = torch.nn.functional.cosine_similarity(expected, found, dim=0)
        comparisons.append(Comparison(length, float(cosine), float((expected - found).abs().max())))
    return comparisons


def summary(comparisons: Sequence[Comparison]) -> str:
    """Up to which length the vectors are equal, and what that means for an index made with the original."""
    different = next((row for row in comparisons if not row.equal), None)
    if different is None:
        return f"All are equal: an index of texts of up to {comparisons[-1].tokens} tokens stays valid."
    last = max((row.tokens for row in comparisons if row.tokens < different.tokens), default=0)
    equal = f"Equal up to {last} tokens. " if last else ""
    return f"{equal}From {different.tokens} tokens on, vectors differ slightly: embed such texts again if an index has them."


def time_long_text(folder: Path, length: int = LENGTH) -> tuple[float, float]:
    """Processor seconds for a text of ``length`` tokens, with transformers' full attention and with the mechanism: best of three passes.

    Processor time says more than the wall's on a machine that does other things as well.
    """
    from transformers import AutoModel, AutoTokenizer, BertModel

    inputs = tokens_of(AutoTokenizer.from_pretrained(folder), length)
    full, long = BertModel.from_pretrained(folder).eval(), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        passes = {"full": partial(full, **inputs), "long": partial(long, **inputs)}
        taken = in_turn(passes, (ROUNDS, ROUNDS), clock=time.process_time)
    return min(taken["full"]) / 1e3, min(taken["long"]) / 1e3
