"""The band's path in exported graphs: one graph for all lengths, which costs what the text has and not what a block has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_longattn import build_mechanism, reference_attend
from hf_longattn.engines.batch import Batch
from hf_longattn.engines.blockwise import QUERIES_PER_BLOCK as BLOCK
from hf_longattn.engines.call import AttentionCall
from tests.grids import quickly

HEADS, DIM, WINDOW = 2, 8, 48
PATTERNS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "band": ("window", {}, False),
    "causal band": ("window", {}, True),
    "band, columns and rows": ("longformer", {}, False),
}


class Attention(nn.Module):
    """A mechanism as a function of tensors."""

    def __init__(self, name: str) -> None:
        super().__init__()
        mechanism, options, self.causal = PATTERNS[name]
        self.mechanism = build_mechanism(mechanism, num_heads=HEADS, head_dim=DIM, window=WINDOW, **options)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor, chosen: Tensor) -> Tensor:
        call = AttentionCall(self.causal, Batch.of(real), chosen if self.mechanism.capabilities.takes_globals else None)
        return self.mechanism(q, k, v, call)


def inputs(length: int, batch: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(batch, HEADS, length, DIM, generator=generator) for _ in range(3))
    real = torch.arange(length)[None] < torch.tensor([length, max(1, length - length // 3)])[:batch, None]
    chosen = (torch.arange(length)[None] % 50 == 1) & real
    return q, k, v, real, chosen


@pytest.fixture(scope="module", params=quickly(PATTERNS, ("band, columns and rows",)))
def exported(request: pytest.FixtureRequest) -> tuple[Attention, Any]:
    attention = Attention(request.param).eval()
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2, max=4096)
    free = ({0: batch, 2: length},) * 3 + ({0: batch, 1: length},) * 2
    return attention, torch.export.export(attention, inputs(600), dynamic_shapes=free).module()


@pytest.mark.parametrize(
    "lengths",
    [
        range(2, BLOCK, 31),
        range(BLOCK - 2, BLOCK + 3),
        range(BLOCK + 9, 2 * BLOCK + 3, 60),
        (600, 700),
    ],
)
def test_an_exported_band_equals_the_definition_at_every_length(exported: tuple[Attention, Any], lengths: Any) -> None:
    attention, graph = exported
    for length in lengths:
        q, k, v, real, chosen = inputs(length)
        tokens = {"global_mask": chosen} if attention.mechanism.capabilities.takes_globals else {}
        expected = reference_attend(q, k, v, attention.mechanism, causal=attention.causal, padding_mask=real, **tokens)
        with torch.no_grad():
            out = graph(q, k, v, real, chosen)
        rows = real[:, None, :, None]
        torch.testing.assert_close(out.double() * rows, expected * rows, atol=1e-5, rtol=0, msg=lambda why, n=length: f"{n} tokens: {why}")


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.untyped_storage().nbytes() // result.element_size())
        return result


def test_an_exported_band_costs_the_tokens_of_the_text_and_not_a_block(exported: tuple[Attention, Any]) -> None:
    _, graph = exported
    with torch.no_grad(), Largest() as largest:
        graph(*inputs(3, batch=1))
    assert largest.elements <= HEADS * DIM * 3 * 4, "a row's tokens, a few times"
