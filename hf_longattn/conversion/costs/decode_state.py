"""What each layer keeps while a text is decoded, in bytes of one sequence: a window, what a pattern reaches, a state, or everything."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ...mechanisms import Mechanism

FAR = 45 << 16
"""A length that most block and segment sizes divide."""
DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


@dataclass(frozen=True)
class KeyShape:
    """The keys and values that a layer makes of a token."""

    kv_heads: int
    head_dim: int
    hidden: int
    element_bytes: int

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's key and value."""
        return 2 * self.kv_heads * self.head_dim * self.element_bytes


@dataclass(frozen=True)
class DecodeState:
    """One layer after ``length`` tokens: its bytes, and how many each further token adds (0: the state is of constant size)."""

    bytes: int
    per_token: int


def decode_states(mechanisms: Iterable[Mechanism], shape: KeyShape, length: int) -> list[DecodeState]:
    """The state of every layer after ``length`` tokens."""
    known: dict[object, DecodeState] = {}
    states = []
    for mechanism in mechanisms:
        key = (mechanism.name, mechanism.options)
        if key not in known:
            known[key] = DecodeState(state_bytes(mechanism, shape, length), _growth(mechanism, shape))
        states.append(known[key])
    return states


def state_bytes(mechanism: Mechanism, shape: KeyShape, length: int) -> int:
    """What one layer keeps of ``length`` tokens, in bytes of one sequence."""
    if mechanism.recursion is not None:
        recursion = mechanism.recursion
        return (recursion.length - recursion.memory) * shape.token_bytes
    if mechanism.stateful:
        return _measured(mechanism, shape)
    reach = mechanism.reach(True)
    if reach is not None:
        return min(length, reach) * shape.token_bytes
    positions = torch.arange(length)[None]
    kept = [mechanism.kept(positions, torch.tensor([[upcoming]])) for upcoming in (length - 1, length)]
    return max(length if one is None else int(one.sum()) for one in kept) * shape.token_bytes


def _growth(mechanism: Mechanism, shape: KeyShape) -> int:
    """Bytes that a further token adds on average, far behind any window or segment."""
    if mechanism.stateful or mechanism.reach(True) is not None:
        return 0
    one, two = (state_bytes(mechanism, shape, tokens) for tokens in (FAR, 2 * FAR))
    return (two - one) // FAR if two - one > FAR * shape.token_bytes // 1000 else 0


def _measured(mechanism: Mechanism, shape: KeyShape) -> int:
    """The size of the state that a token leaves; it is the same after any number of them."""
    dtype = DTYPES[shape.element_bytes]
    layer = copy.deepcopy(mechanism).to(dtype)
    q = torch.zeros(1, layer.num_heads, 1, layer.head_dim, dtype=dtype)
    k = torch.zeros(1, shape.kv_heads, 1, shape.head_dim, dtype=dtype)
    hidden: dict[str, Any] = {"hidden_states": torch.zeros(1, 1, shape.hidden, dtype=dtype)} if layer.takes_hidden_states else {}
    with torch.no_grad():
        _, state = layer.advance(q, k, k, None, **hidden)
    return sum(tensor.nbytes for tensor in state.values())
