"""Attention alone: implementations that compute it from the same q, k, v, and their verification against float64.

An implementation is built once for each case, which is not timed, and then called many times.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from hf_longattn.errors import LongAttentionError
from hf_longattn.functional import attend, reference_attend
from hf_longattn.mechanisms.common.masked import GatheredMechanism, SparseMechanism

from .case import AttentionInputs

MaskMod = Callable[[Any, Any, Any, Any], Tensor]
ROWS = 512
"""Queries whose scores are computed at once in float64."""
DENSE_LENGTH = 1024
"""Maximum tokens for a mechanism that is more than a mask: its N×N definition checks it. Longer inputs are checked at
this length."""
ALL_HEADS_LENGTH = 1024
"""Maximum tokens for which every head is checked. Above, the first and the last are."""
TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 2e-2}
GRADIENT_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 5e-2}


class LeftOut(LongAttentionError):
    """An implementation that cannot run this case. The message is stored with the results."""


class Implementation(ABC):
    """An output that is verified and timed.

    ``computes`` names what the output must equal: ``"mechanism"``, or ``"full"`` for softmax over all keys.
    """

    name: ClassVar[str]
    computes: ClassVar[str] = "mechanism"
    leaves: Sequence[Tensor] = ()
    """Tensors whose gradients the backward pass computes."""
    upstream: Tensor
    """The gradient of the output."""
    gradients: tuple[Tensor, ...] = ()
    """Gradients of ``leaves`` after a run with the backward pass."""

    @abstractmethod
    def forward(self) -> Tensor:
        """One forward pass."""

    def run(self, backward: bool) -> Tensor:
        """The timed call: the forward pass without a graph, or the forward and the backward pass."""
        if not backward:
            with torch.no_grad():
                return self.forward()
        output = self.forward()
        self.gradients = torch.autograd.grad(output, list(self.leaves), self.upstream)
        return output.detach()


class OnHeads(Implementation):
    """An implementation on q, k and v ``(B, H, N, D)``."""

    def __init__(self, inputs: AttentionInputs) -> None:
        self.inputs, self.leaves, self.upstream = inputs, inputs.qkv, inputs.upstream_heads()
        self.q, self.k, self.v = inputs.qkv


class Ours(OnHeads):
    """``attend(q, k, v, mechanism)``."""

    name = "longattn"

    def forward(self) -> Tensor:
        return attend(
            self.q, self.k, self.v, self.inputs.mechanism, causal=self.inputs.case.causal, **self.inputs.beyond
        )


class Sdpa(OnHeads):
    """Full (or causal) softmax attention by PyTorch's fused kernel."""

    name, computes = "sdpa", "full"

    def forward(self) -> Tensor:
        return scaled_dot_product_attention(self.q, self.k, self.v, is_causal=self.inputs.case.causal)


class Flex(OnHeads):
    """``torch.compile(flex_attention)`` with the mechanism's mask."""

    name = "flex"

    def __init__(self, inputs: AttentionInputs) -> None:
        super().__init__(inputs)
        case, mask = inputs.case, mask_of(inputs)
        if case.backward:
            raise LeftOut("compiled flex_attention has no backward pass on the CPU")
        if mask is None:
            raise LeftOut(f"{case.mechanism} is not a mask over positions, which a block mask of flex_attention needs")
        self.mask = create_block_mask(mask, None, None, case.length, case.length, device="cpu")
        torch.compiler.reset()  # else it stops compiling after a few lengths and runs unfused
        self.kernel = torch.compile(flex_attention, dynamic=False)

    def forward(self) -> Tensor:
        return self.kernel(self.q, self.k, self.v, block_mask=self.mask)


ATTENTION: dict[str, type[OnHeads]] = {made.name: made for made in (Ours, Sdpa, Flex)}
"""Name in ``--against`` -> implementation."""


@dataclasses.dataclass(frozen=True)
class Check:
    """The largest absolute difference, relative to the larger of 1 and the largest expected value."""

    implementation: str
    length: int
    what: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


def difference(measured: Tensor, expected: Tensor) -> float:
    """max |measured − expected| / max(1, max |expected|); infinite if a value is not finite."""
    error = (measured.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1.0)
    return float(error) if bool(torch.isfinite(error)) else float("inf")


def mask_of(inputs: AttentionInputs, computes: str = "mechanism") -> MaskMod | None:
    """``mask(b, h, q_idx, kv_idx)`` with causality included, or ``None`` for a mechanism that is not a mask over
    positions."""
    case, mechanism = inputs.case, inputs.mechanism
    if computes == "full":
        visible: MaskMod = lambda b, h, q_idx, kv_idx: (q_idx >= 0) & (kv_idx >= 0)  # noqa: E731
    elif isinstance(mechanism, SparseMechanism | GatheredMechanism) and mechanism.options.is_mask():
        visible = mechanism.mask_mod(case.causal, inputs.resolved_globals)
    else:
        return None
    if case.causal:
        return lambda b, h, q_idx, kv_idx: visible(b, h, q_idx, kv_idx) & (kv_idx <= q_idx)
    return lambda b, h, q_idx, kv_idx: visible(b, h, q_idx, kv_idx)  # flex_attention takes no bound methods


def define(inputs: AttentionInputs, computes: str, heads: Sequence[int]) -> list[Tensor]:
    """Output and, when the case has a backward pass, the gradients of q, k and v, for some heads: float64 (B, heads,
    N, D)."""
    case, mask = inputs.case, mask_of(inputs, computes)
    if mask is None:
        q, k, v = (tensor.detach().double().requires_grad_(case.backward) for tensor in inputs.qkv)
        output = reference_attend(q, k, v, inputs.mechanism, causal=case.causal, **inputs.beyond)
        grads = torch.autograd.grad(output, [q, k, v], inputs.upstream_heads().double()) if case.backward else ()
        return [tensor.detach()[:, heads] for tensor in (output, *grads)]
    q, k, v = (tensor.detach()[:, heads].double().requires_grad_(case.backward) for tensor in inputs.qkv)
    upstream = inputs.upstream_heads()[:, heads].double()
    pieces = []
    index, zero = torch.arange(case.length), torch.zeros(1, 1, 1, 1, dtype=torch.long)
    head = torch.tensor(heads).view(1, -1, 1, 1)
    for start in range(0, case.length, ROWS):
        rows = slice(start, start + ROWS)
        seen = mask(zero, head, index[rows].view(1, 1, -1, 1), index.view(1, 1, 1, -1))
        scores = (q[:, :, rows] @ k.transpose(-1, -2)) * case.head_dim**-0.5
        output = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v
        if case.backward:
            output.backward(upstream[:, :, rows])
        pieces.append(output.detach())
    return [torch.cat(pieces, dim=2), *(tensor.grad for tensor in (q, k, v) if tensor.grad is not None)]


def verify_attention(inputs: AttentionInputs, candidates: Sequence[Implementation]) -> list[Check]:
    """Compare all implementations with the definition. If its matrix would be too large, at :data:`DENSE_LENGTH`."""
    case = inputs.case
    if case.length > DENSE_LENGTH and mask_of(inputs) is None:
        inputs = AttentionInputs(case.at(length=DENSE_LENGTH))
        return verify_attention(inputs, [type(candidate)(inputs) for candidate in candidates])  # type: ignore[call-arg]
    heads = list(range(case.heads)) if case.length <= ALL_HEADS_LENGTH else sorted({0, case.heads - 1})
    definitions = {
        computes: define(inputs, computes, heads) for computes in {candidate.computes for candidate in candidates}
    }
    checks = []
    for candidate in candidates:
        expected, output = definitions[candidate.computes], candidate.run(case.backward)
        checks.append(
            Check(
                candidate.name, case.length, "output", difference(output[:, heads], expected[0]), TOLERANCE[case.dtype]
            )
        )
        if case.backward:
            errors = [
                difference(grad[:, heads], wanted)
                for grad, wanted in zip(candidate.gradients, expected[1:], strict=True)
            ]
            checks.append(
                Check(candidate.name, case.length, "gradients of q, k, v", max(errors), GRADIENT_TOLERANCE[case.dtype])
            )
    return checks
