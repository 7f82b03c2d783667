"""Score terms of the distance and the query or the key on a band: the fused path against plain operations, equal first, then times of
one run and the memory of a pass in a process of its own.

The terms are those of speech models: Transformer-XL's (Parakeet, Wav2Vec2-Conformer), a row for each head and distance; Shaw's clipped
distances (Wav2Vec2-BERT), one table for all heads; and WavLM's, a gate of each query and head times a number for each distance. And
DeBERTa-v3's: a term of the query and one of the key, each with a row for each head and one of 512 logarithmic buckets of distances.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from hf_longattn.engines.block_sparse import block_sparse_attention
from hf_longattn.engines.common.call import AttentionCall, Pattern
from hf_longattn.engines.common.score_terms import DistanceTerm
from hf_longattn.errors import LongAttentionError
from hf_longattn.mechanisms.common.registry import prototype
from hf_longattn.positions.disentangled import disentangled

from .case import Case
from .implementations import Implementation
from .memory import answer, growth, in_a_new_process
from .report import machine, markdown_table
from .timing import time_in_turn, times_faster

OF_QUERIES = {"Transformer-XL": (True, True), "Shaw": (False, True), "WavLM": (True, False)}
"""Name -> whether each head has its own table, and whether rows are as wide as a head, or one number."""
DEBERTA, BUCKETS, FURTHEST = "DeBERTa-v3", 256, 512
"""The term of keys as well, its buckets on each side, and the distance from which all have the last one."""
TERMS = (*OF_QUERIES, DEBERTA)
CHUNKED_TERM, LEFT_CHUNKS = "Transformer-XL", 1
"""The term that is measured in chunks as well, of as many tokens as a query sees on each side of a band; and the chunks before each."""
CHECKED, TOLERANCE = 1024, 2e-6
"""Tokens of the input on which the paths are compared, and their largest difference, of the largest number."""


@dataclasses.dataclass(frozen=True)
class TermCase:
    """One term at one length: ``side`` keys on each side of a query; ``chunked``, chunks of ``side`` tokens and those before them."""

    term: str
    length: int
    side: int
    case: Case
    chunked: bool = False

    @property
    def ahead(self) -> int:
        """The furthest distance ahead."""
        return self.side - 1 if self.chunked else self.side

    @property
    def back(self) -> int:
        """The furthest distance back."""
        return (LEFT_CHUNKS + 1) * self.side - 1 if self.chunked else self.side

    @property
    def sees(self) -> str:
        """What a query sees, in words."""
        return f"its chunk of {self.side}, {LEFT_CHUNKS} before" if self.chunked else f"{self.side} keys on each side"

    def leaves(self) -> tuple[Tensor, ...]:
        """q, k and v, then the term's queries and its table; DeBERTa's tables, since its queries and keys are q and k."""
        heads, width = self.case.heads, self.case.head_dim
        generator = torch.Generator().manual_seed(self.case.seed)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        q, k, v = (drawn(1, self.length, heads, width).transpose(1, 2) for _ in range(3))
        if self.term == DEBERTA:
            of_term = drawn(heads, 2 * BUCKETS, width), drawn(heads, 2 * BUCKETS, width)
        else:
            of_heads, wide = OF_QUERIES[self.term]
            features = width if wide else 1
            p, table = (
                drawn(1, self.length, heads, features).transpose(1, 2),
                drawn(heads if of_heads else 1, self.back + self.ahead + 1, features),
            )
            of_term = p, table
        return tuple(x.requires_grad_() for x in (q, k, v, *of_term))

    def score_term(self, q: Tensor, k: Tensor, first: Tensor, second: Tensor) -> DistanceTerm:
        """The term for q, k and the leaves after v."""
        scale = self.case.head_dim**-0.5
        if self.term != DEBERTA:
            return DistanceTerm(first * scale, second, self.ahead, k)
        distances = make_log_bucket_position(torch.arange(-FURTHEST, FURTHEST + 1), BUCKETS, FURTHEST).long()
        return disentangled(q, k, first, second, scale, (distances + BUCKETS).clamp(0, 2 * BUCKETS - 1))


class _Path(Implementation):
    """One of the two paths, on the same inputs."""

    def __init__(self, case: TermCase, leaves: tuple[Tensor, ...], upstream: Tensor, *, fused: bool) -> None:
        self.case, self.leaves, self.upstream, self.fused = case, leaves, upstream, fused

    def forward(self) -> Tensor:
        q, k, v, first, second = self.leaves
        term = self.case.score_term(q, k, first, second)
        call = AttentionCall(score_mod=term if self.fused else term.written_out)
        if not self.case.chunked:
            return block_sparse_attention(q, k, v, Pattern(self.case.side, self.case.side, False), call)
        chunks: Tensor = prototype("chunked", {"chunk_size": self.case.side, "left_chunks": LEFT_CHUNKS})(q, k, v, call)
        return chunks


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
        pass, how many times as fast the fused one is, and the MiB that each takes on top of its inputs.
    Raises:
        LongAttentionError: their results differ.
    """
    results = []
    for term in TERMS:
        for side in sides:
            for chunked in (False, True)[: 1 + (term == CHUNKED_TERM)]:
                checked = TermCase(term, CHECKED, side, case, chunked)
                log(f"{term:<16} {checked.sees} differ by {_check(checked):.1e}")
                for length in lengths:
                    term_case = dataclasses.replace(checked, length=length)
                    about_case = {"term": term, "sees": term_case.sees, "length": length}
                    results.append({**about_case, **_timed(term_case, repeats), **_memory(term_case)})
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


def _memory(case: TermCase) -> dict[str, Any]:
    """MiB of a forward and backward pass of both paths, each in a process of its own."""
    mebibytes = {}
    for path in (Fused, Plain):
        request = {"name": path.name, "case": dataclasses.asdict(case)}
        mebibytes[path.name] = in_a_new_process(__name__, request, f"the memory of {path.name} at {case.length} tokens")["mebibytes"]
    return {"mebibytes": mebibytes}


def _measured(name: str, case: dict[str, Any]) -> dict[str, int]:
    """MiB by which this process grows in a forward and backward pass of one path."""
    shape = TermCase(**{**case, "case": Case(**case["case"])})
    short = dataclasses.replace(shape, length=CHECKED)
    _paths(short)[name == Plain.name].run(True)  # lazy imports and thread pools are not what is measured
    path = _paths(shape)[name == Plain.name]
    return {"mebibytes": round(growth(lambda: path.run(True)))}


def distance_table(record: dict[str, Any]) -> str:
    """Terms × bands and lengths: milliseconds of both paths, how many times as fast the fused one is, and their memory."""
    times = ["forward, ms", "plain", "times as fast", "with backward, ms", "plain", "times as fast"]
    header = ["term", "a query sees", "tokens", *times, "with backward, MiB", "plain"]
    rows = []
    for result in record["results"]:
        row = [result["term"], result["sees"], f"{result['length']:,}"]
        for name in ("forward", "with_backward"):
            numbers = result[name]
            row += [f"{numbers['cpu-distances']:,.0f}", f"{numbers['blockwise']:,.0f}", f"{numbers['times_faster']:.1f}×"]
        rows.append([*row, *(f"{result['mebibytes'][path.name]:,}" for path in (Fused, Plain))])
    return markdown_table(header, rows) + "\n"


if __name__ == "__main__":
    answer(_measured)
