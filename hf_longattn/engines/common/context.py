"""Everything that the choice of a path depends on. Each engine reads it in ``why_not``, beside its code."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from .call import AttentionCall, Pattern
from .derivatives import no_fused_kernels
from .document_rows import Stacking

DENSE_CELLS = 256 * 256
"""Query-key pairs per head up to which one dense masked call replaces every sparse path. Measured on CPUs, where sparse paths take several
calls. Untuned on GPUs, where so few pairs should cost little besides the kernel launch."""
ANY_CALL = AttentionCall()
"""A placeholder for choices that do not depend on the call."""
ELSEWHERE = "the tensors are on another device"
NOT_IN_AN_EXPORTED_GRAPH = "an exported graph holds operations of every runtime only"


@dataclasses.dataclass(frozen=True, eq=False)
class DispatchContext:
    """Everything that the choice of a path depends on."""

    device: str
    q_len: Any
    kv_len: Any
    call: AttentionCall
    covered: bool = False
    """Whether the mechanism sees every pair."""
    global_tokens: bool = False
    """Whether there are global tokens. A graph does not know how many."""
    pattern: Pattern | None = None
    learned_bias: bool = False
    """Whether the tiles have a bias that needs gradients."""
    dtype: torch.dtype | None = None
    features: int = 0
    """Width of a query head; for linear mechanisms, the larger of feature and value width."""
    by_position: bool = False
    """Whether the output depends on where a sequence starts."""
    single_call: bool = False
    """Whether all rows or packed documents of a batch must be in one call."""
    separate_calls: bool = False
    """Whether every sequence must be its own call."""
    stacking: Stacking | None = None
    """Which documents may be rows of one batch, padded on the right. ``None`` if none may, for instance because padding counts."""
    trims_padding: bool = False
    """Whether the engine cuts off each row's outer padding itself."""
    selection: tuple[int, int] = (1, 1)
    """Query heads per selection of blocks, and tokens per block."""
    failed: tuple[tuple[str, str], ...] = ()
    """Paths whose attempt failed, and why."""

    @classmethod
    def of(cls, q: Tensor, k: Tensor, call: AttentionCall, **more: Any) -> DispatchContext:
        """The context of ``q (B, H, Nq, D)`` and ``k (B, H_kv, Nk, D)``."""
        return cls(q.device.type, q.shape[2], k.shape[2], call, **more)

    @property
    def few_pairs(self) -> Any:
        """Whether there are so few pairs that one dense masked call is fastest."""
        return self.q_len == 1 or not self.many_pairs

    @property
    def many_pairs(self) -> Any:
        """Whether there are more pairs than :data:`DENSE_CELLS`."""
        return self.q_len * self.kv_len > DENSE_CELLS

    @property
    def band(self) -> Pattern:
        """The pattern, which must be set. :attr:`pattern` defaults to ``None``, since Dynamo traces no default that is an object."""
        assert self.pattern is not None
        return self.pattern

    @functools.cached_property
    def plain_only(self) -> str | None:
        """Why only plain operations may run now. Asked once per call. Not for graphs, which may have fused kernels."""
        return no_fused_kernels()
