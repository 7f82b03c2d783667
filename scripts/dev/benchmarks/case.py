"""What is measured: the shapes and dtype of one comparison, and the tensors that all its implementations share."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from hf_longattn.engines.call import AttentionCall
from hf_longattn.errors import OptionError, nearest
from hf_longattn.families import FAMILIES
from hf_longattn.mechanisms.common.masked import MaskedMechanism
from hf_longattn.mechanisms.common.registry import mechanism_from

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclasses.dataclass(frozen=True)
class Case:
    """One length of a comparison. Lengths in tokens; ``num_globals`` leading tokens are global."""

    mechanism: str = "window"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    length: int = 1024
    heads: int = 12
    head_dim: int = 64
    layers: int = 12
    dtype: str = "fp32"
    causal: bool = False
    num_globals: int = 0
    backward: bool = False
    base: str = "bert"
    """The family of whole models."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise OptionError(f"The dtype {self.dtype!r} is not known; choose one of {', '.join(DTYPES)}.")
        if self.base not in FAMILIES:
            raise OptionError(
                f"The family {self.base!r} is not known; choose one such as bert.{nearest(self.base, FAMILIES)}"
            )
        if not 0 <= self.num_globals <= self.length:
            raise OptionError(
                f"There cannot be {self.num_globals} global tokens in {self.length}; give --globals between 0 and the "
                "length."
            )

    @property
    def hidden_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def at(self, **changes: Any) -> Case:
        """The same case with some fields changed."""
        return dataclasses.replace(self, **changes)


class AttentionInputs:
    """Hidden states (1, N, H·D) and the q, k, v (1, H, N, D) projected from them, equal for every implementation."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (1, case.length, case.hidden_size)
        self.case = case
        self.hidden = torch.randn(shape, generator=generator).to(case.torch_dtype).requires_grad_(case.backward)
        self.upstream = torch.randn(shape, generator=generator).to(case.torch_dtype)
        square = (case.hidden_size, case.hidden_size)
        weights = [torch.randn(square, generator=generator) * case.hidden_size**-0.5 for _ in range(3)]
        with torch.no_grad():
            q, k, v = (self.split(self.hidden @ weight.to(self.hidden).T).contiguous() for weight in weights)
        self.qkv = (q, k, v)
        for tensor in self.qkv:
            tensor.requires_grad_(case.backward)
        sizes: dict[str, Any] = {"num_heads": case.heads, "head_dim": case.head_dim}
        sizes |= {"hidden_size": case.hidden_size, "max_length": case.length}
        self.mechanism = mechanism_from(case.mechanism, case.options, **sizes)
        self.global_mask: Tensor | None = None
        if case.num_globals:
            self.global_mask = torch.zeros(1, case.length, dtype=torch.bool)
            self.global_mask[:, : case.num_globals] = True

    @property
    def resolved_globals(self) -> Tensor | None:
        """The tokens (B, N) that are global in this case, by the call or by the mechanism's options."""
        if not isinstance(self.mechanism, MaskedMechanism):
            return self.global_mask
        keys = self.hidden.unflatten(-1, (-1, self.case.head_dim)).transpose(1, 2)
        return self.mechanism.resolve_globals(keys, AttentionCall(global_mask=self.global_mask))

    @property
    def beyond(self) -> dict[str, Any]:
        """What the mechanism takes besides q, k and v: global tokens where the case has some, the layer's input where
        it wants that."""
        arguments: dict[str, Any] = {} if self.global_mask is None else {"global_mask": self.global_mask}
        return (
            {**arguments, "hidden_states": self.hidden}
            if self.mechanism.capabilities.takes_hidden_states
            else arguments
        )

    def split(self, x: Tensor) -> Tensor:
        """(B, N, H·D) -> (B, H, N, D)."""
        return x.view(*x.shape[:2], self.case.heads, self.case.head_dim).transpose(1, 2)

    def upstream_heads(self) -> Tensor:
        """The gradient of the output, (B, H, N, D)."""
        return self.split(self.upstream)
