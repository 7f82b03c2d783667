"""Tokenised corpora on disk, and the batches drawn from them.

:func:`prepare` trains the tokenizer and writes every split once as a flat ``uint16`` array (documents separated by
``[SEP]``), which training maps into memory. A batch is a pure function of its arguments, so a resumed run continues exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_longattn.errors import LongAttentionError
from hf_longattn.staging import staged_file, write_text
from scripts.dev.studies.corpus import SPLITS, Corpus, Module, without_near_duplicates
from scripts.dev.studies.tokenizer import SPECIAL_TOKENS, train_tokenizer

CLS, SEP, MASK = (SPECIAL_TOKENS.index(token) for token in ("[CLS]", "[SEP]", "[MASK]"))
_TOKENIZER_SAMPLE = 30_000_000  # characters; more changes hardly a merge


@dataclass(frozen=True)
class Batch:
    """One step's input: ``input_ids`` and ``position_ids`` (B, L), the flat ``picked`` positions (K,) and their ``labels`` (K,)."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    picked: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``."""
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


def prepare(corpus: Corpus, work_dir: Path, vocab_size: int = 8192, model_max_length: int = 512) -> dict:
    """Train the tokenizer on the train split and write every split's tokens below ``work_dir``; done once.

    Returns:
        The description stored in ``data.json``: tokens, documents and characters by split, and the corpus's versions.
    """
    manifest = work_dir / "data.json"
    if manifest.exists():
        return json.loads(manifest.read_text(encoding="utf-8"))
    work_dir.mkdir(parents=True, exist_ok=True)
    held_out = {split: list(corpus.iter_modules(split)) for split in SPLITS if split != "train"}
    avoid = [module for modules in held_out.values() for module in modules]
    documents = {"train": list(without_near_duplicates(corpus.iter_modules("train"), avoid)), **held_out}
    if not documents["train"] or not documents["validation"]:
        raise LongAttentionError("the corpus is too small: its train or its validation split is empty")
    tokenizer = train_tokenizer(_sample(documents["train"]), vocab_size, model_max_length)
    tokenizer.save_pretrained(work_dir / "tokenizer")
    splits = {split: _write_tokens(modules, tokenizer, work_dir / f"{split}.bin") for split, modules in documents.items()}
    description = {"splits": splits, "versions": corpus.describe(), "vocab_size": len(tokenizer)}
    write_text(manifest, json.dumps(description, indent=1))
    return description


def load_tokenizer(work_dir: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer that :func:`prepare` wrote."""
    return AutoTokenizer.from_pretrained(work_dir / "tokenizer")


def load_tokens(work_dir: Path, split: str) -> np.ndarray:
    """Map the tokens of ``split`` into memory, read-only: (n,) uint16."""
    path = work_dir / f"{split}.bin"
    if not path.exists():
        raise LongAttentionError(f"{path} does not exist; run the prepare command first")
    return np.memmap(path, dtype=np.uint16, mode="r")


def sequences(tokens: np.ndarray, position: int, count: int, length: int, seed: int) -> np.ndarray:
    """Cut ``count`` training sequences of ``length`` pieces, ``[CLS]`` … ``[SEP]``, from the endless shuffled stream.

    ``position`` is the number of pieces drawn so far; every epoch passes once over all chunks in a new order.

    Returns:
        (count, length) int64.
    """
    body = length - 2
    chunks = len(tokens) // body - 1
    if chunks < 1:
        raise LongAttentionError(f"the corpus has only {len(tokens)} tokens, too few for sequences of {length}")
    out = np.empty((count, length), dtype=np.int64)
    out[:, 0], out[:, -1] = CLS, SEP
    for row in range(count):
        epoch, chunk = divmod(position // body + row, chunks)
        order, shift = _epoch_order(chunks, body, epoch, seed)
        start = int(order[chunk]) * body + shift
        out[row, 1:-1] = tokens[start : start + body]
    return out


def masked_batch(ids: np.ndarray, positions: int, rate: float, vocab_size: int, rng: np.random.Generator) -> Batch:
    """Mask ``rate`` of every sequence as BERT does (80 % ``[MASK]``, 10 % random, 10 % kept); special pieces are never picked."""
    count, length = ids.shape
    per_row = max(1, round(rate * length))
    scores = rng.random(ids.shape, dtype=np.float32)
    scores[ids < len(SPECIAL_TOKENS)] += 1.0
    columns = np.sort(np.argpartition(scores, per_row - 1, axis=1)[:, :per_row], axis=1)
    picked = (columns + np.arange(count)[:, None] * length).ravel()
    labels = ids.ravel()[picked]
    fate = rng.random(picked.shape, dtype=np.float32)
    random_ids = rng.integers(len(SPECIAL_TOKENS), vocab_size, picked.shape)
    corrupted = ids.copy().ravel()
    corrupted[picked] = np.where(fate < 0.8, MASK, np.where(fate < 0.9, random_ids, labels))
    return Batch(
        torch.from_numpy(corrupted.reshape(ids.shape)),
        _position_ids(count, length, positions, rng),
        torch.from_numpy(picked),
        torch.from_numpy(labels),
    )


def causal_batch(ids: np.ndarray, positions: int, share: float, rng: np.random.Generator) -> Batch:
    """Predict the next piece at a random ``share`` of the positions (the head is the dear part of a small model)."""
    count, length = ids.shape
    per_row = max(1, round(share * (length - 1)))
    columns = np.sort(rng.random((count, length - 1)).argpartition(per_row - 1, axis=1)[:, :per_row], axis=1)
    picked = (columns + np.arange(count)[:, None] * length).ravel()
    return Batch(
        torch.from_numpy(ids),
        _position_ids(count, length, positions, rng),
        torch.from_numpy(picked),
        torch.from_numpy(ids.ravel()[picked + 1]),
    )


def _position_ids(count: int, length: int, positions: int, rng: np.random.Generator) -> torch.Tensor:
    """Start every sequence at a random offset, so that short sequences train the whole position table."""
    offsets = rng.integers(0, positions - length + 1, (count, 1))
    return torch.from_numpy(offsets + np.arange(length))


@lru_cache(maxsize=4)
def _epoch_order(chunks: int, body: int, epoch: int, seed: int) -> tuple[np.ndarray, int]:
    rng = np.random.default_rng((seed, epoch, body))
    return rng.permutation(chunks), int(rng.integers(body))


def _sample(modules: list[Module]) -> Iterator[str]:
    """Yield evenly spaced modules that add up to about the size of the tokenizer's sample."""
    total = sum(len(module.text) for module in modules)
    yield from (module.text for module in modules[:: max(1, round(total / _TOKENIZER_SAMPLE))])


def _write_tokens(modules: Iterable[Module], tokenizer: PreTrainedTokenizerBase, path: Path) -> dict[str, int]:
    """Tokenise the documents into ``path``, each followed by ``[SEP]``; written beside and renamed."""
    counts = {"documents": 0, "characters": 0, "tokens": 0}
    with staged_file(path) as stage, stage.open("wb") as file:
        for group in _grouped(modules, 256):
            encoded = tokenizer(
                [m.text for m in group], add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
            )
            for module, ids in zip(group, encoded["input_ids"], strict=True):
                file.write(np.asarray([*ids, SEP], dtype=np.uint16).tobytes())
                counts["documents"] += 1
                counts["characters"] += len(module.text)
                counts["tokens"] += len(ids) + 1
    return counts


def _grouped(modules: Iterable[Module], size: int) -> Iterator[list[Module]]:
    group: list[Module] = []
    for module in modules:
        group.append(module)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
