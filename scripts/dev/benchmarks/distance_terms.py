"""Score terms of the query and the distance on a band: the fused path against plain operations, equal first, then times of one run.

The terms are those of speech models: Transformer-XL's (Parakeet, Wav2Vec2-Conformer), a row for each head and distance; Shaw's clipped
distances (Wav2Vec2-BERT), one table for all heads; and WavLM's, a gate of each query and head times a number for each distance.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_longattn.engines.block_sparse import block_sparse_attention
from hf_longattn.engines.common.call import AttentionCall, Pattern
from hf_longattn.engines.common.distance_term import DistanceTerm
from hf_longattn.errors import LongAttentionError

from .case import Case
from .implementations import Implementation
from .report import machine, markdown_table
from .timing import time_in_turn, times_faster

TERMS = {"Transformer-XL": (True, True), "Shaw": (False, True), "WavLM": (True, False)}
"""Name -> whether each head has its own table, and whether rows are as wide as a head, or one number."""
CHECKED, TOLERANCE = 1024, 2e-6
"""Tokens of the input on which the paths are compared, and their largest difference, of the largest number."""


@dataclasses.dataclass(frozen=True)
class TermCase:
    """One term at one length: ``side`` keys on each side of a query."""

    term: str
    length: int
    side: int
    case: Case

    def leaves(self) -> tuple[Tensor, ...]:
        """q, k, v, the term's queries and its table."""
        of_heads, wide = TERMS[self.term]
        heads, width = self.case.heads, self.case.head_dim
        generator = torch.Generator().manual_seed(self.case.seed)
        tokens = [torch.randn(1, self.length, heads, features, generator=generator) for features in [width] * 3 + [width if wide else 1]]
        table = torch.randn(heads if of_heads else 1, 2 * self.side + 1, width if wide else 1, generator=generator)
        return tuple(x.requires_grad_() for x in (*(x.transpose(1, 2) for x in tokens), table))


class _Path(Implementation):
    """One of the two paths, on the same inputs."""

    def __init__(self, case: TermCase, leaves: tuple[Tensor, ...], upstream: Tensor, *, fused: bool) -> None:
        self.case, self.leaves, self.upstream, self.fused = case, leaves, upstream, fused

    def forward(self) -> Tensor:
        q, k, v, p, table = self.leaves
        term = DistanceTerm(p * q.shape[-1] ** -0.5, table, self.case.side, k)
        pattern = Pattern(self.case.side, self.case.side, False)
        return block_sparse_attention(q, k, v, pattern, AttentionCall(score_mod=term if self.fused else term.written_out))


class Fused(_Path):
    name = "cpu-distances"


class Plain(_Path):
    name = "blockwise"


def run_distance_terms(
    lengths: Sequence[int], sides: Sequence[int], case: Case, *, repeats: int, log: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Compare and measure both paths.

    Args:
        lengths: tokens.
        sides: keys on each side of a query.
        case: heads, their width and the seed.
        repeats: timed rounds; the median over them is stored.
    Returns:
        The record that is stored: for each term, length and side milliseconds of the processor of both paths, forward and with the backward
        pass, and how many times as fast the fused one is.
    Raises:
        LongAttentionError: their results differ.
    """
    results = []
    for term in TERMS:
        for side in sides:
            log(f"{term:<16} {side:>4} differ by {_check(TermCase(term, CHECKED, side, case)):.1e}")
            for length in lengths:
                results.append({"term": term, "side": side, "length": length, **_timed(TermCase(term, length, side, case), repeats)})
                log(str(results[-1]))
    about = {key: value for key, value in dataclasses.asdict(case).items() if key in ("heads", "head_dim", "seed")}
    return {"machine": machine(), "kind": "distance terms", "clock": "processor", "case": about, "results": results}


def _paths(case: TermCase) -> tuple[_Path, _Path]:
    leaves = case.leaves()
    upstream = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(1))
    return Fused(case, leaves, upstream, fused=True), Plain(case, leaves, upstream, fused=False)


def _check(case: TermCase) -> float:
    """The largest difference of outputs and gradients between the paths, of the largest number."""
    fused, plain = _paths(case)
    outputs = [path.run(True) for path in (fused, plain)]
    pairs = [tuple(outputs), *zip(fused.gradients, plain.gradients, strict=True)]
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    if not error <= TOLERANCE:
        raise LongAttentionError(
            f"The paths of {case.term} differ by {error:.1e}, so nothing was timed; run tests/engines/test_distance_band.py."
        )
    return error


def _timed(case: TermCase, repeats: int) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for backward, name in ((False, "forward"), (True, "with_backward")):
        fused, plain = time_in_turn(_paths(case), case.length, backward=backward, repeats=repeats, clock=time.process_time)
        numbers[name] = {
            "cpu-distances": round(fused.median, 1),
            "blockwise": round(plain.median, 1),
            "times_faster": round(times_faster(fused, plain), 2),
        }
    return numbers


def distance_table(record: dict[str, Any]) -> str:
    """Terms × bands and lengths: milliseconds of both paths, and how many times as fast the fused one is."""
    header = ["term", "keys on each side", "tokens", "forward, ms", "plain", "times as fast", "with backward, ms", "plain", "times as fast"]
    rows = []
    for result in record["results"]:
        row = [result["term"], str(result["side"]), f"{result['length']:,}"]
        for name in ("forward", "with_backward"):
            numbers = result[name]
            row += [f"{numbers['cpu-distances']:,.0f}", f"{numbers['blockwise']:,.0f}", f"{numbers['times_faster']:.1f}×"]
        rows.append(row)
    return markdown_table(header, rows) + "\n"
