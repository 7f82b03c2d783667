"""Calls of the CUDA engine, lowered for an H100 that is not there: ``python -m tests.engines.lowering`` prints a JSON
line for each.

Each line has the case, the kernels that were generated and what went wrong; one line with ``lacking`` says what this
machine lacks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hf_longattn import build_mechanism
from hf_longattn.engines.batch import Batch
from hf_longattn.engines.block_sparse import block_sparse_attention
from hf_longattn.engines.byte_cache import BYTE_CACHE
from hf_longattn.engines.call import AttentionCall, Pattern
from hf_longattn.engines.cuda import flash_band, flex, flex_kernel
from hf_longattn.engines.score_terms import ColumnTerm, DistanceBias, ScoreMod, as_term
from hf_longattn.families.deberta_v2 import disentangled
from hf_longattn.modeling.masks import score_terms
from hf_longattn.positions.relative import RELATIVE, build_relative

from .pretended_h100 import Lowered, fake_tensors, pretend, started

PATTERN = Pattern.window(160, causal=True)
Case = Callable[[], Any]
CASES: dict[str, Case] = {}


def qkv(
    length: int = 700, head_dim: int = 64, dtype: torch.dtype = torch.bfloat16, grad: bool = False, batch: int = 2
) -> list[Tensor]:
    return [torch.empty(batch, 4, length, head_dim, device="cuda", dtype=dtype, requires_grad=grad) for _ in range(3)]


def case(
    name: str,
    term: Callable[[Tensor], ScoreMod] | None = None,
    padded: bool = False,
    queries: int | None = None,
    pattern: Pattern = PATTERN,
    **sizes: Any,
) -> None:
    """A call of the band, by its queries, keys and values, and the score term for the queries."""

    def run() -> Tensor:
        q, k, v = qkv(**sizes)
        mask = torch.empty(2, k.shape[2], device="cuda", dtype=torch.bool) if padded else None
        q = q[:, :, -(queries or q.shape[2]) :]
        call = AttentionCall(batch=Batch.of(mask), score_mod=term and term(q)).written_out()
        return flex.flex_band(q, k, v, pattern, call)

    CASES[name] = run


def relative(name: str) -> Callable[[Tensor], ScoreMod]:
    def term(q: Tensor) -> ScoreMod:
        with torch.device("cuda"):
            module = build_relative(name, 4, 64, 256)
        return module.score_term(q, q, True, 0.125, (160, 0)).written_out

    return term


def softcap(q: Tensor) -> ScoreMod:
    return score_terms(None, None, 30.0, q, q.shape[2])


def bias(q: Tensor) -> ScoreMod:
    return score_terms(None, torch.empty(1, 4, 700, 700, device="cuda"), None, q, 700)


def users_own(q: Tensor) -> ScoreMod:
    slope = 0.25
    return lambda score, b, h, i, j: score - slope * (i - j)


def deberta(q: Tensor) -> ScoreMod:
    tables = [torch.empty(4, 64, 64, device="cuda") for _ in range(2)]
    return disentangled(
        q.float(), q.float(), *tables, 0.1, torch.empty(2 * q.shape[2] - 1, device="cuda", dtype=torch.long)
    )


def in_graph(dynamic: bool | None) -> Case:
    """A user's own graph, with a cap on the scores that it holds as a number."""

    class Attention(torch.nn.Module):
        cap = 30.0

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            term = score_terms(None, None, self.cap, q, k.shape[2])
            return block_sparse_attention(q, k, v, PATTERN, AttentionCall(causal=True, score_mod=term))

    return lambda: torch.compile(Attention(), dynamic=dynamic, fullgraph=True)(*qkv())


def of_mechanism(name: str, padded: bool = False, kv_heads: int = 4, **sizes: Any) -> Case:
    """A mechanism that visits listed blocks."""

    def run() -> Tensor:
        q, k, v = qkv(2048, **sizes)
        mask = torch.empty(2, k.shape[2], device="cuda", dtype=torch.bool) if padded else None
        module = build_mechanism(name, num_heads=4, head_dim=q.shape[3])
        return module(q, k[:, :kv_heads], v[:, :kv_heads], AttentionCall(batch=Batch.of(mask)))

    return run


def flash_in_graph(dropout: float = 0.0, grad: bool = False) -> Case:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_sparse_attention(q, k, v, PATTERN, AttentionCall(causal=True, dropout=dropout)) * 2

    def run() -> Tensor:
        q, k, v = qkv(grad=grad)
        return torch.compile(attend, dynamic=grad or None, fullgraph=True)(q, k[:, :2], v[:, :2])

    return run


BY_OPERATOR = ("flash in a graph", "flash in a graph for all lengths, dropout, gradients")
"""Cases in a user's graph whose kernels are PyTorch's flash-attention operator, and are not generated."""
case("window")
case("window, padded", padded=True)
case("window, gradients", grad=True)
case("window, one block", length=100)
case("window, batch of one", batch=1)
case("window, few queries", queries=40)
case("softcap", softcap)
case("softcap, gradients", softcap, grad=True)
case("a user's number", users_own)
case("bias for all pairs", bias)
case("full attention with a cap on the scores, gradients", softcap, pattern=Pattern.everything(True), grad=True)
case("bias of some heads", lambda q: as_term(bias(q)).of_heads([0, 2, 3, 3], q.device))
case(
    "table of distances, gradients",
    lambda _: DistanceBias(torch.empty(4, 600, device="cuda", requires_grad=True), 300),
    grad=True,
)
case(
    "table of columns, gradients",
    lambda _: ColumnTerm(torch.empty(2, 4, 700, 3, device="cuda", requires_grad=True), 0),
    grad=True,
)
case("disentangled", deberta)
case("disentangled, some heads", lambda q: as_term(deberta(q)).of_heads([3, 2, 1, 0], q.device))
for name in RELATIVE:
    case(f"relative {name}", relative(name))
    case(f"relative {name}, gradients", relative(name), grad=True)
for width, dtype in (
    (16, torch.float16),
    (80, torch.float32),
    (96, torch.bfloat16),
    (128, torch.float32),
    (256, torch.bfloat16),
):
    case(f"heads of {width} in {dtype}, gradients", head_dim=width, dtype=dtype, grad=True)
CASES["softcap in a graph"] = in_graph(None)
CASES["softcap in a graph for all lengths"] = in_graph(True)
for name in BY_OPERATOR:
    CASES[name] = flash_in_graph(*(0.1, True) if "dropout" in name else ())
for name in ("bigbird", "block_top_k"):
    CASES[name] = of_mechanism(name)
    for condition, arguments in {
        "padded": {"padded": True},
        "grouped heads": {"kv_heads": 2},
        "heads of 80": {"head_dim": 80},
        "in float32": {"dtype": torch.float32},
    }.items():
        CASES[f"{name}, {condition}, gradients"] = of_mechanism(name, **arguments, grad=True)
case("heads of 8", head_dim=8)
REFUSED = ("heads of 8",)
"""Cases that have no kernel, which must be said in the way that lets other paths run."""


def main() -> None:
    """Lower the cases named on the command line, or all, in a process of their own."""
    if not started(__spec__.name):
        return
    kernels = pretend()
    flash_band.refused = lambda *_: None  # which would ask the operator itself
    for name in sys.argv[1:] or CASES:
        torch._dynamo.reset()
        kernels.clear()
        flex_kernel._kernels.clear()
        BYTE_CACHE.clear()
        failure = "nothing was lowered"
        try:
            with fake_tensors(), torch.set_grad_enabled("gradients" in name):
                CASES[name]()
        except Lowered:
            failure = ""
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"[:2000]
        print(
            json.dumps({"case": name, "kernels": [kernel.name for kernel in kernels], "failure": failure}), flush=True
        )


if __name__ == "__main__":
    main()
