"""What each layer keeps while a text is decoded, in bytes of one sequence: a window, what a pattern reaches, a state, or everything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from ...mechanisms import Mechanism

Found = TypeVar("Found")

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
    return _of_each(mechanisms, lambda one: DecodeState(_bytes(one, shape, length), _growth(one, shape)))


def state_bytes(mechanisms: Iterable[Mechanism], shape: KeyShape, length: int) -> int:
    """What all layers keep of ``length`` tokens, in bytes of one sequence."""
    return sum(_of_each(mechanisms, lambda one: _bytes(one, shape, length)))


def _of_each(mechanisms: Iterable[Mechanism], find: Callable[[Mechanism], Found]) -> list[Found]:
    """What is found for every layer, looked for once where layers have the same options."""
    known: dict[object, Found] = {}
    found = []
    for mechanism in mechanisms:
        key = (mechanism.name, mechanism.options)
        if key not in known:
            known[key] = find(mechanism)
        found.append(known[key])
    return found


def _bytes(mechanism: Mechanism, shape: KeyShape, length: int) -> int:
    """What one layer keeps of ``length`` tokens, in bytes of one sequence."""
    if mechanism.recursion is not None:
        recursion = mechanism.recursion
        return (recursion.length - recursion.memory) * shape.token_bytes
    if mechanism.stateful:
        return _measured(mechanism, shape)
    reach = mechanism.reach(True)
    if reach is not None:
        return min(length, reach) * shape.token_bytes
    none = torch.zeros(1, 1, dtype=torch.long)
    if mechanism.kept(none, none) is None:
        return length * shape.token_bytes
    positions = torch.arange(length)[None]
    kept = [mechanism.kept(positions, torch.tensor([[upcoming]])) for upcoming in (length - 1, length)]
    return max(length if one is None else int(one.sum()) for one in kept) * shape.token_bytes


def _growth(mechanism: Mechanism, shape: KeyShape) -> int:
    """Bytes that a further token adds on average, far behind any window or segment."""
    if mechanism.stateful or mechanism.reach(True) is not None:
        return 0
    one, two = (_bytes(mechanism, shape, tokens) for tokens in (FAR, 2 * FAR))
    return (two - one) // FAR if two - one > FAR * shape.token_bytes // 1000 else 0


def _measured(mechanism: Mechanism, shape: KeyShape) -> int:
    """The size of the state that a token leaves; it is the same after any number of them."""
    dtype = DTYPES[shape.element_bytes]
    sizes = mechanism.num_heads, mechanism.head_dim, mechanism.hidden_size, mechanism.max_length
    layer = type(mechanism)(*sizes, mechanism.options).to(dtype)  # anew, since the one at hand may have no values
    q = torch.zeros(1, layer.num_heads, 1, layer.head_dim, dtype=dtype)
    k = torch.zeros(1, shape.kv_heads, 1, shape.head_dim, dtype=dtype)
    hidden: dict[str, Any] = {"hidden_states": torch.zeros(1, 1, shape.hidden, dtype=dtype)} if layer.takes_hidden_states else {}
    with torch.no_grad():
        _, state = layer.advance(q, k, k, None, **hidden)
    return sum(tensor.nbytes for tensor in state.values())
