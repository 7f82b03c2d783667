"""Decoding: time per new token and memory of the cache after texts of growing length, for models with random weights."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from hf_longattn.configuration import LongAttentionConfig
from hf_longattn.errors import OptionError
from hf_longattn.memory import cache_bytes

from .report import machine, markdown_table

CHECKED = 300
"""Tokens after which decoding is compared with the full forward pass before anything is timed."""
TOLERANCE = 1e-4
BASELINE = "full"
VOCAB = 1000


@dataclasses.dataclass(frozen=True)
class DecodeShape:
    """The model: a LongLlama of ``layers`` layers with ``heads`` heads of ``head_dim``; ``steps`` tokens are timed after each length."""

    layers: int = 2
    heads: int = 8
    head_dim: int = 64
    steps: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        if self.head_dim % 2:
            raise OptionError(
                f"--head-dim is {self.head_dim}, but rotary positions turn pairs of numbers; give an even one, for example 64."
            )


@dataclasses.dataclass(frozen=True)
class Decoded:
    """After ``length`` tokens: median milliseconds per token, MiB in the cache."""

    attention: str
    length: int
    milliseconds: float
    mebibytes: float


class _Clock(StoppingCriteria):
    """Notes the time at every new token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def decoding_model(attention: LongAttentionConfig, shape: DecodeShape, longest: int) -> Any:
    """A LongLlama with random weights."""
    from hf_longattn import families

    torch.manual_seed(shape.seed)
    width = shape.heads * shape.head_dim
    config = families.LongLlamaConfig(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads, max_position_embeddings=longest + shape.steps + 1,
        long_attention=attention, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return families.LongLlamaForCausalLM(config).eval()


@torch.no_grad()
def difference(model: Any, seed: int, cache: str | None = None) -> float:
    """Largest difference between the scores of decoded tokens and those of one forward pass over the whole text.

    Args:
        cache: transformers' ``cache_implementation``; the growing cache by default.
    """
    ids = torch.randint(1, VOCAB, (1, CHECKED), generator=torch.Generator().manual_seed(seed)).to(model.device)
    done = model.generate(
        ids, max_new_tokens=8, do_sample=False, eos_token_id=None, output_logits=True, return_dict_in_generate=True,
        cache_implementation=cache,
    )  # fmt: skip
    full_pass = model(done.sequences, use_cache=False).logits[:, CHECKED - 1 : -1]
    return (torch.stack(done.logits, 1) - full_pass).abs().max().item()


@torch.no_grad()
def decode_after(model: Any, attention: str, length: int, shape: DecodeShape, cache: str | None = None) -> Decoded:
    """Generate :attr:`DecodeShape.steps` tokens after ``length`` random ones; ``cache`` as for :func:`difference`."""
    ids = torch.randint(1, VOCAB, (1, length), generator=torch.Generator().manual_seed(shape.seed)).to(model.device)
    clock = _Clock()
    done = model.generate(
        ids, max_new_tokens=shape.steps + 1, do_sample=False, eos_token_id=None, return_dict_in_generate=True,
        stopping_criteria=StoppingCriteriaList([clock]), cache_implementation=cache,
    )  # fmt: skip
    steps = [1e3 * (b - a) for a, b in zip(clock.times, clock.times[1:], strict=False)]
    size = cache_bytes(done.past_key_values)
    return Decoded(attention, length, statistics.median(steps), size / 2**20)


def run_decoding(
    attentions: dict[str, LongAttentionConfig],
    lengths: Sequence[int],
    shape: DecodeShape,
    *,
    baseline_up_to: int,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Check each attention, then measure it at every length; full attention, whose prompt costs N², up to ``baseline_up_to``.

    Returns:
        The record that is stored: machine, shape, checks and results.
    Raises:
        OptionError: no length, or decoding differs from the full forward pass by more than :data:`TOLERANCE`.
    """
    if not lengths or min(lengths) < 1:
        raise OptionError("Decoding is measured after one length or more, all of them 1 or more; for example --lengths 2K,8K,64K.")
    checks, results = {}, []
    for name, attention in attentions.items():
        model = decoding_model(attention, shape, max(*lengths, CHECKED + 8))
        checks[name] = difference(model, shape.seed)
        log(f"{name}: decoded scores differ from the full pass by {checks[name]:.1e}")
        if not checks[name] <= TOLERANCE:
            raise OptionError(f"Decoding with {name!r} differs from the full forward pass by {checks[name]:.1e}, so nothing was timed.")
        for length in lengths:
            if attention.mechanism == BASELINE and length > baseline_up_to:
                continue
            results.append(decode_after(model, name, length, shape))
            log(f"{length:>7} {name:<40} {results[-1].milliseconds:8.2f} ms/token {results[-1].mebibytes:10.2f} MiB")
    return {
        "machine": machine(),
        "kind": "decode",
        "shape": dataclasses.asdict(shape),
        "attention": {name: attention.to_dict() for name, attention in attentions.items()},
        "lengths": list(lengths),
        "checks": checks,
        "results": [dataclasses.asdict(result) for result in results],
    }


def decoding_table(record: dict[str, Any]) -> str:
    """Attention × lengths: milliseconds per token and MiB of cache, and how time grows from the first length to the last."""
    cells = {(result["attention"], result["length"]): result for result in record["results"]}
    rows = []
    for name in record["attention"]:
        row = [cells.get((name, length)) for length in record["lengths"]]
        first, last = row[0], row[-1]
        growth = f"{last['milliseconds'] / first['milliseconds']:.2f}×" if first and last else "–"
        rows.append(
            [f"`{name}`", *(f"{result['milliseconds']:.1f} / {result['mebibytes']:.2f}" if result else "–" for result in row), growth]
        )
    return markdown_table(["ms per token / MiB", *(f"{length:,}" for length in record["lengths"]), "time, last / first"], rows)
