"""The loss of long inputs, of masked tokens or of next ones: the same documents and the same masked tokens for every model."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn.errors import LengthError


@dataclass(frozen=True)
class MaskedText:
    """One document: ``tokens`` (without special ones) and the sorted ``places`` that are masked."""

    tokens: tuple[int, ...]
    places: tuple[int, ...]


def masked_texts(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int, count: int, rate: float = 0.15, seed: int = 0
) -> list[MaskedText]:
    """Return the first ``count`` texts of at least ``length`` tokens, cut to ``length`` - 2, with ``rate`` of them masked.

    Raises:
        LengthError: there are fewer such texts.
    """
    found = []
    for number, tokens in enumerate(first_tokens(texts, tokenizer, length - 2, count)):
        rng = random.Random(f"{seed}:{number}")
        found.append(MaskedText(tokens, tuple(sorted(rng.sample(range(len(tokens)), round(rate * len(tokens)))))))
    return found


def first_tokens(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int, count: int) -> list[tuple[int, ...]]:
    """Return the first ``length`` tokens of the first ``count`` texts that have as many, without special tokens.

    Raises:
        LengthError: there are fewer such texts.
    """
    found: list[tuple[int, ...]] = []
    for text in texts:
        if len(found) == count:
            return found
        if len(text) >= length:  # a token has at least one character
            ids = tokenizer(text[: 12 * length], add_special_tokens=False, verbose=False)["input_ids"][:length]
            found += [tuple(ids)] if len(ids) == length else []
    if len(found) < count:
        raise LengthError(f"only {len(found)} of the texts have {length} tokens; ask for at most as many documents")
    return found


def shortened(texts: Sequence[MaskedText], length: int) -> list[MaskedText]:
    """Return the beginnings of the texts, ``length`` - 2 tokens each, with the masked places that lie in them."""
    return [MaskedText(text.tokens[: length - 2], tuple(p for p in text.places if p < length - 2)) for text in texts]


@torch.inference_mode()
def masked_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[MaskedText], chunk: int | None = None
) -> list[float]:
    """Return the mean cross-entropy in nats of each text's masked tokens.

    Args:
        model: a masked language model.
        tokenizer: gives the special tokens.
        texts: see :func:`masked_texts`.
        chunk: read the text in pieces of at most so many tokens, special ones included; None = in one.
    """
    losses = []
    for text in texts:
        size = len(text.tokens) if chunk is None else chunk - 2
        total = 0.0
        for start in range(0, len(text.tokens), size):
            total += _piece_loss(model, tokenizer, text, start, size)
        losses.append(total / len(text.places))
    return losses


@torch.inference_mode()
def next_token_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Sequence[int]]) -> list[float]:
    """Return the mean cross-entropy in nats of each text's tokens, given those before.

    Args:
        model: a causal language model.
        tokenizer: gives the token that stands before a text, where it has one.
        texts: tokens without special ones, see :func:`first_tokens`.
    """
    first = next((token for token in (tokenizer.cls_token_id, tokenizer.bos_token_id) if token is not None), None)
    losses = []
    for text in texts:
        ids = torch.tensor([[*([first] if first is not None else []), *text]], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        losses.append(float(nn.functional.cross_entropy(logits.float(), ids[0, 1:])))
    return losses


def mlm_table(
    systems: Mapping[str, Callable[[Sequence[MaskedText]], list[float]]], texts: Sequence[MaskedText], lengths: Sequence[int]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {system: {length: {loss, loss_se, n, tokens}}} for the beginnings of the same texts."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for name, measure in systems.items():
        table[name] = {}
        for length in lengths:
            cut = shortened(texts, length)
            losses = measure(cut)
            error = statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
            table[name][str(length)] = {
                "loss": statistics.fmean(losses),
                "loss_se": error,
                "n": len(losses),
                "tokens": sum(len(text.places) for text in cut),
            }
    return table


def mlm_markdown(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the table in markdown: nats per masked token ± standard error over documents."""
    lengths = list(next(iter(table.values())))
    lines = ["| model | " + " | ".join(f"{int(length):,} tokens" for length in lengths) + " |", "|---" * (len(lengths) + 1) + "|"]
    for name, row in table.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[k]['loss']:.3f} ± {row[k]['loss_se']:.3f}" for k in lengths) + " |")
    return "\n".join(lines) + "\n"


def _piece_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: MaskedText, start: int, size: int) -> float:
    """Return the summed loss of the masked tokens of one piece, wrapped in the special tokens."""
    piece = list(text.tokens[start : start + size])
    places = [place - start for place in text.places if start <= place < start + size]
    if not places:
        return 0.0
    labels = torch.tensor([piece[place] for place in places], device=model.device)
    for place in places:
        piece[place] = tokenizer.mask_token_id
    ids = torch.tensor([[tokenizer.cls_token_id, *piece, tokenizer.sep_token_id]], device=model.device)
    index = torch.tensor([place + 1 for place in places], device=model.device)
    # a small model's output layer costs as much as all others together, so it is only run at masked tokens
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][:, index], *args[1:]))
    try:
        logits: Tensor = model(input_ids=ids).logits[0]
    finally:
        hook.remove()
    return float(nn.functional.cross_entropy(logits.float(), labels, reduction="sum"))
