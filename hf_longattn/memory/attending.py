"""What a cache layer is that keeps something else than all keys, and so computes the attention itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ..errors import LengthError, MaskError
from ..mechanisms.base import Mechanism


@dataclass(frozen=True)
class Call:
    """What the model passes along with queries, keys and values.

    causal: the queries look back only.
    mask: ``(B, tokens seen so far)`` bool, True = real token; ``None`` when all are.
    restricts_pairs: a four-dimensional mask or a position bias was given.
    hidden_states: the layer's input ``(B, Nq, hidden_size)``, for mechanisms that take it.
    weights_wanted: attentions are to be returned.
    """

    causal: bool
    mask: Tensor | None
    restricts_pairs: bool
    scaling: float | None
    dropout_p: float
    hidden_states: Tensor | None
    weights_wanted: bool

    def refuse_restricted_pairs(self) -> None:
        """Raise :class:`MaskError` where single pairs are masked or biased: what was dropped from a cache cannot be restricted."""
        if self.restricts_pairs:
            raise MaskError(
                "A four-dimensional mask or a position bias was given together with a cache that keeps only what the mechanism needs; "
                "pass a padding mask (batch, tokens), or use_cache=False."
            )


class AttendingLayer(ABC):
    """Beside transformers' own base of a cache layer: the backend asks it before it calls the mechanism itself."""

    @abstractmethod
    def takes_over(self, mechanism: Mechanism, q: Tensor, call: Call) -> bool:
        """Whether :meth:`attend` is to be called in this step; otherwise ``update`` returned all keys and values there are."""

    @abstractmethod
    def note_padding(self, mask: Tensor | None) -> None:
        """Learn from the padding mask ``(B, tokens seen so far)``, before every step."""

    @abstractmethod
    def attend(self, mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
        """Attention of the queries ``(B, H, Nq, D)`` of this step.

        Args:
            k, v: what ``update`` of this layer returned.
        Returns:
            ``(B, H, Nq, D)``, and the weights ``(B, H, Nq, tokens seen so far)`` where they are wanted.
        """


def tokens_back(tokens_to_remove: int) -> int:
    """How many tokens ``crop`` takes back: transformers counts them with a negative number.

    Raises:
        LengthError: a positive number, which once was the length to keep.
    """
    if tokens_to_remove > 0:
        raise LengthError(f"crop({tokens_to_remove}) is not understood: say how many tokens to take back, as in crop(-{tokens_to_remove}).")
    return -tokens_to_remove
