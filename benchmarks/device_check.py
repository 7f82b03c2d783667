"""Every registered mechanism on one device against its float64 definition: forms, dtypes, paddings, forward and backward."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hf_longattn.attend import attend, reference_attend
from hf_longattn.errors import LongAttentionError
from hf_longattn.mechanisms import Mechanism, build_mechanism, check_options, list_mechanisms, mechanism_info

from .case import DTYPES
from .verify import GRADIENT_TOLERANCE, TOLERANCE, difference

BATCH, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 64


@dataclasses.dataclass(frozen=True)
class DeviceCheck:
    """Largest differences from the definition, relative to the larger of 1 and the largest expected value."""

    mechanism: str
    dtype: str
    causal: bool
    length: int
    output_error: float | None
    gradient_error: float | None
    failure: str = ""

    @property
    def passed(self) -> bool:
        if self.output_error is None or self.gradient_error is None:
            return False
        return self.output_error <= TOLERANCE[self.dtype] and self.gradient_error <= GRADIENT_TOLERANCE[self.dtype]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"passed": self.passed}


def check_device(device: str, lengths: Sequence[int], dtypes: Sequence[str], log: Callable[[str], None]) -> Iterator[DeviceCheck]:
    """Check every mechanism in both its forms; a batch holds one full and one padded sequence, heads are grouped in pairs."""
    for name in list_mechanisms():
        form = mechanism_info(name).causal
        for causal in [False, True] if form == "both" else [bool(form)]:
            for dtype in dtypes:
                for length in lengths:
                    check = _check(name, dtype, causal, length, device)
                    measured = check.failure or f"output {check.output_error:.1e}, gradients {check.gradient_error:.1e}"
                    mark = "" if check.passed else "  FAILED"
                    log(f"{name:<14} {'causal' if causal else 'both ways':<10} {dtype} {length:>6}  {measured}{mark}")
                    yield check


def _check(name: str, dtype: str, causal: bool, length: int, device: str) -> DeviceCheck:
    generator = torch.Generator().manual_seed(length)
    heads = (HEADS, KV_HEADS, KV_HEADS)
    q, k, v = (torch.randn(BATCH, h, length, HEAD_DIM, generator=generator).to(device, DTYPES[dtype]).requires_grad_() for h in heads)
    real = torch.arange(length, device=device) < torch.tensor([[length], [max(1, 2 * length // 3)]], device=device)
    upstream = torch.randn(q.shape, generator=generator).to(device, DTYPES[dtype]) * real[:, None, :, None]
    longest = max(length, check_options(name, {}).sample_length())
    mechanism = build_mechanism(name, num_heads=HEADS, head_dim=HEAD_DIM, max_length=longest).to(device).eval()
    try:
        arguments: dict[str, Any] = {"causal": causal, "padding_mask": real}
        if mechanism.takes_hidden_states:
            shape = (BATCH, length, mechanism.hidden_size)
            arguments["hidden_states"] = torch.randn(shape, generator=generator).to(device, DTYPES[dtype])
        found = _pass(partial(attended, mechanism), (q, k, v), upstream, **arguments)
        doubles = (q.detach().double().requires_grad_(), k.detach().double().requires_grad_(), v.detach().double().requires_grad_())
        expected = _pass(partial(defined, mechanism), doubles, upstream.double(), **arguments)
    except (RuntimeError, LongAttentionError) as error:
        return DeviceCheck(name, dtype, causal, length, None, None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
    rows = real[:, None, :, None]
    errors = [difference(one, other) for one, other in zip(found[1:], expected[1:], strict=True)]
    return DeviceCheck(name, dtype, causal, length, difference(found[0] * rows, expected[0] * rows), max(errors))


def attended(mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
    """What is checked: the mechanism's fast path."""
    return attend(q, k, v, mechanism, **arguments)


def defined(mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, **arguments: Any) -> Tensor:
    """What it is checked against: the mechanism's definition in float64."""
    return reference_attend(q, k, v, mechanism, **arguments)


def _pass(function: Callable[..., Tensor], inputs: tuple[Tensor, Tensor, Tensor], upstream: Tensor, **arguments: Any) -> list[Tensor]:
    """Output and the gradients of q, k, v; zeros for unused inputs."""
    output = function(*inputs, **arguments)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream, materialize_grads=True)]
