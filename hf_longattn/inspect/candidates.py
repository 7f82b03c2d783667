"""The candidates of a diagnosis: mechanisms with options, and which keys each of them would keep in a layer."""

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
"""More default candidates for causal layers. Bidirectional layers have global tokens instead of attention sinks."""


@dataclass(frozen=True)
class Candidate:
    """A mechanism with options, which a diagnosis compares.

    Attributes:
        by_user: whether the user named it. If it cannot be built for a layer, a candidate from the user raises an
            error, and a default candidate is left out.
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
        """The text that :meth:`read` reads. Values that are lists or mechanisms are in brackets."""
        choice: dict[str, Any] = {"mechanism": self.mechanism}
        for name, value in self.options.items():
            if any(separator in str(value) for separator in ",;+"):
                value = f"[{value}]"
            choice[name] = value
        return write_choice(choice)

    def sized(self, length: int, heads: int, head_dim: int) -> Mechanism:
        """The mechanism for a layer of ``heads`` heads and texts of up to ``length`` tokens, in evaluation mode."""
        return mechanism_from(
            self.mechanism, self.options, num_heads=heads, head_dim=head_dim, max_length=length
        ).eval()


def usual_candidates(causal: bool) -> list[Candidate]:
    """The default candidates of a diagnosis.

    They are :data:`USUAL`, for causal layers also :data:`USUAL_CAUSAL`, and all other mechanisms with default options.
    """
    texts = (*USUAL, *USUAL_CAUSAL) if causal else USUAL
    usual = read_candidates(texts, by_user=False)
    named = {candidate.mechanism for candidate in usual}
    return usual + [Candidate(name) for name in list_mechanisms(grid=False) if name not in named]


def read_candidates(texts: Iterable[str | Candidate], by_user: bool = True) -> list[Candidate]:
    """Candidates from texts such as ``window:window=512``, without duplicates.

    Raises:
        OptionError: a mechanism or an option does not exist.
    """
    unique: dict[str, Candidate] = {}
    for text in texts:
        candidate = Candidate.read(text, by_user) if isinstance(text, str) else text
        unique.setdefault(str(candidate), candidate)
    return list(unique.values())


def reading_of(candidate: Candidate, layer: LayerAttention, number: int) -> AttendedKeys | str:
    """Which keys ``candidate`` would keep in a layer.

    A mechanism that selects keys by content selects them by the queries and keys of the layer.

    Args:
        number: number of the layer.

    Returns:
        A function ``reading(rows, scores)`` that returns a mask of the kept keys. If the candidate is not applicable:
        the reason, as a sentence without its subject.

    Raises:
        LongAttentionError: a candidate from the user cannot be built for this layer.
    """
    causal = layer.call.causal
    form = mechanism_class(candidate.mechanism).causal  # True, False or "both"
    if form not in ("both", causal):
        names: dict[Any, str] = {True: "causal", False: "bidirectional"}
        return f"exists in the {names[form]} form only, and these layers are {names[causal]}."
    try:
        mechanism = candidate.sized(layer.length, layer.heads, layer.q.shape[-1]).to(layer.k.device)
        mechanism.layer = number
        check_form(mechanism, causal, "the model")
        call = layer.call
        if not mechanism.capabilities.takes_globals:
            call = call.replace(global_mask=None)
        reading = attended_keys_of(mechanism, layer.q, layer.k, call)
    except LongAttentionError as error:
        if candidate.by_user:
            raise
        return str(error)
    if reading is None:
        summary = mechanism_info(candidate.mechanism).summary
        return f"is not a softmax over some of the keys ({summary}), so no part of the mass is kept or lost."
    return reading
