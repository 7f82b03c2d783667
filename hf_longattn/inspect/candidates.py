"""Mechanisms that a diagnosis compares, and the share of a layer's softmax that each would retain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..errors import LongAttentionError
from ..mechanisms import Mechanism, list_mechanisms, mechanism_info
from ..mechanisms.common.options import read_choice, write_choice
from ..mechanisms.common.registry import check_options, mechanism_class, mechanism_from
from ..mechanisms.common.shared_options import AttendedKeys, attended_keys_of, check_form
from .layer_attention import LayerAttention

USUAL = (
    "window:window=128",
    "window:window=256",
    "window:window=512",
    "window:window=1024",
    "longformer:window=256",
    "longformer:window=512",
    "bigbird",
    "strided",
    "fixed",
    "union:of=[window:window=256+strided]",
    "segmented:block_size=512,integration=previous",
    "transformer_xl",
    "top_k:num_keys=64",
    "top_k:num_keys=256",
    "block_top_k:num_blocks=4",
    "block_top_k:num_blocks=8",
    "lsh",
    "routing",
)
"""Default candidates with options. All other mechanisms are compared with their default options."""
USUAL_CAUSAL = tuple(f"window:window={window},num_sinks=4" for window in (256, 512, 1024))
"""Further default candidates for causal layers. In bidirectional layers, global tokens serve as attention sinks."""


@dataclass(frozen=True)
class Candidate:
    """A mechanism with options.

    by_user: whether the user named it. It then raises an error if it cannot be built for a layer; others are left out.
    """

    mechanism: str
    options: dict[str, Any] = field(default_factory=dict)
    by_user: bool = False

    @classmethod
    def read(cls, text: str, by_user: bool = True) -> Candidate:
        """Read ``window:window=512``. Raises :class:`OptionError` if the mechanism or an option does not exist."""
        values = read_choice(text)
        name = mechanism_class(values.pop("mechanism")).name
        check_options(name, values)
        return cls(name, values, by_user)

    def __str__(self) -> str:
        choice: dict[str, Any] = {"mechanism": self.mechanism}
        for name, value in self.options.items():
            has_mark = any(mark in str(value) for mark in ",;+")
            choice[name] = f"[{value}]" if has_mark else value
        return write_choice(choice)

    def sized(self, length: int, heads: int, head_dim: int) -> Mechanism:
        """Build the mechanism for one layer, in evaluation mode."""
        return mechanism_from(
            self.mechanism, self.options, num_heads=heads, head_dim=head_dim, max_length=length
        ).eval()


def usual_candidates(causal: bool) -> list[Candidate]:
    """:data:`USUAL`, for causal layers also :data:`USUAL_CAUSAL`, and all other mechanisms with their default
    options."""
    usual = read_candidates((*USUAL, *USUAL_CAUSAL * causal), by_user=False)
    named = {candidate.mechanism for candidate in usual}
    return usual + [Candidate(name) for name in list_mechanisms(grid=False) if name not in named]


def read_candidates(texts: Iterable[str | Candidate], by_user: bool = True) -> list[Candidate]:
    """Candidates from texts such as ``window:window=512``; raises as :meth:`Candidate.read`. Of equal ones, the first
    stays."""
    unique: dict[str, Candidate] = {}
    for text in texts:
        candidate = Candidate.read(text, by_user) if isinstance(text, str) else text
        unique.setdefault(str(candidate), candidate)
    return list(unique.values())


def reading_of(candidate: Candidate, layer: LayerAttention, number: int) -> AttendedKeys | str:
    """The keys that ``candidate`` retains in a layer. Mechanisms that select by content use the layer's queries and
    keys.

    Returns:
        A function ``reading(rows, scores)`` that returns a mask of the retained keys; or a sentence why there is none.
    Raises:
        LongAttentionError: a candidate from the user cannot be built for this layer.
    """
    causal = layer.call.causal
    form = mechanism_class(candidate.mechanism).causal
    if form not in ("both", causal):
        names: dict[Any, str] = {True: "causal", False: "bidirectional"}
        return f"exists in the {names[form]} form only, and these layers are {names[causal]}."
    try:
        mechanism = candidate.sized(layer.length, layer.heads, layer.q.shape[-1]).to(layer.k.device)
        mechanism.layer = number
        check_form(mechanism, causal, "the model")
        call = layer.call if mechanism.capabilities.takes_globals else layer.call.replace(global_mask=None)
        reading = attended_keys_of(mechanism, layer.q, layer.k, call)
    except LongAttentionError as error:
        if candidate.by_user:
            raise
        return str(error)
    if reading is None:
        what = mechanism_info(candidate.mechanism).summary
        return f"is not a softmax over some of the keys ({what}), so no part of the mass is kept or lost."
    return reading
