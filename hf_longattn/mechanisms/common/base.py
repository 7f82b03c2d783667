"""Base class of every mechanism: documented options, a fast ``forward`` and a float64 definition.

A mechanism defines ``forward`` (fast) and ``dense_weights`` (the definition), or inherits both: from a mask on a band
(:class:`~.masked.SparseMechanism`), a mask with listed pairs (:class:`~.masked.GatheredMechanism`), or features
(:class:`~.feature_map.LinearMechanism`). The base classes of this class hold defaults for everything else:

- :mod:`.traits`: which inputs it takes, and what it needs from its model.
- :mod:`.decoding`: how it decodes with a cache.
- :mod:`.scores`: relative positions, and functions for writing definitions.
- :mod:`.sharding`: how it computes one process's shard of a sequence.
- :mod:`.cost`: what it costs, and where it equals full attention.

Several attributes and methods describe which keys a query sees, each for one purpose:

- ``mask_mod``, ``visible``: the exact keys; the definition of a mask.
- ``pattern``: the band around the diagonal, and global rows and columns, that the block-sparse engine visits.
- ``parts``: tiles (rows of queries with their keys) for the gathered engine.
- ``covers``: whether the mechanism equals full attention up to a length; ``covering``: options with which it does.
- ``reach``: the number of past keys that a causal query sees; sizes the decode cache. ``kept``: the scattered keys that the cache keeps.
- ``span``: the furthest distances in one call, for tables of relative positions.
- ``locality``: the neighbouring tokens that a process needs when a sequence is sharded.
- ``extent``: the range of one query's keys, to compare with the length that positions were trained for.
- ``band``: the visible distances, if the mechanism is exactly a window or full attention, as in transformers' own models.
- ``kept_keys``: the keys of full attention that a query keeps; ``row_weights``: the weight of every key; ``reading``: the first of the two
  that the mechanism has. All three are for diagnoses.
- ``pairs``: the number of query-key pairs.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...engines.common.call import AttentionCall, without_padding
from ...engines.common.dense import repeat_heads
from ...engines.common.exact import weights_by_length
from ...engines.common.sequences import weights_per_sequence
from ...errors import LengthError, OptionError
from ...options import Options
from ...positions.relative import RelativePositions
from .cost import Cost
from .decoding import Decoding
from .ordered import weights_in_order
from .scores import ScoreTerms
from .sharding import Shardable
from .short_texts import exact_length_of, full_of
from .traits import Traits, per_sequence

DENSE_LIMIT = 4096
"""Maximum input length for which dense attention weights are returned, in tokens."""


class Mechanism(Cost, Shardable, ScoreTerms, Decoding, Traits, ABC):
    """One attention mechanism, built for one layer by :func:`hf_longattn.build_mechanism`.

    Tensors are ``q (B, H, Nq, D)`` and ``k, v (B, H_kv, Nk, D)`` with ``H_kv`` dividing ``H``. With ``Nq < Nk`` the queries are the
    last ``Nq`` positions of the keys' sequence (decoding with a cache).
    """

    summary: ClassVar[str] = ""
    """One line for lists of mechanisms."""
    paper: ClassVar[str] = ""
    """Author, year, title, section or equation."""
    when: ClassVar[str] = ""
    """Good use cases, as a noun or a clause without a full stop."""
    engine: str = "its own"
    """Engine that ``forward`` runs on, for lists of mechanisms."""
    cost: ClassVar[str] = "not stated"
    """How time grows with the length N, such as ``"N·w"``."""
    causal: bool | str = "both"
    """``True`` if there is only a causal form, ``False`` if there is only a bidirectional form, otherwise ``"both"``."""
    trains: bool = False
    """Whether the mechanism adds parameters, so that a converted checkpoint needs training."""
    options_type: ClassVar[type[Options]] = Options
    _full: tuple[Mechanism, ...] = ()  # set by the registry; in a tuple, so that torch does not register a submodule
    sample: ClassVar[dict[str, Any]] = {}
    """Options for inputs of a few hundred tokens, for tests and pictures."""

    @classmethod
    def covering(cls, length: int, causal: bool) -> dict[str, Any] | None:
        """Options with which the mechanism equals full softmax attention up to ``length`` tokens. ``None`` if none are known."""
        return None

    def __init__(self, num_heads: int, head_dim: int, hidden_size: int, max_length: int | None, options: Options) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.hidden_size, self.max_length = num_heads, head_dim, hidden_size, max_length
        self.options = options
        self.ignores_exact_length = False
        """Whether ``exact_length`` is switched off for now, to measure the mechanism on short texts."""
        self.build_relative(options, num_heads, head_dim, hidden_size)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise every parameter and buffer, including those of relative positions and members.

        A mechanism that adds tensors extends this method. Nothing else may initialise them: models are loaded by building a mechanism
        without storage and filling it with this method, and the result must equal a newly built mechanism.

        Args:
            generator: source of random values, on the tensors' device; torch's default generator if None.
        """
        inside: set[int] = set()
        for part in _parts(self):
            reset(part, generator)
            inside |= {id(tensor) for tensor in (*part.parameters(), *part.buffers())}
        owned = next((name for name, tensor in (*self.named_parameters(), *self.named_buffers()) if id(tensor) not in inside), None)
        if owned is not None and type(self).reset_parameters is Mechanism.reset_parameters:
            raise OptionError(
                f"Mechanism {self.name!r} owns a tensor, {owned!r}, that nothing initialises; "
                "define reset_parameters(self, generator=None) in its class."
            )

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The attention output ``(B, H, Nq, D)`` in the dtype of ``q``, for sequences that start at index 0.

        ``call.key_mask`` marks padding, which comes after a sequence or between its tokens. Only a mechanism that is not
        :attr:`position_dependent` may be given padding in front of a sequence.
        """

    @abstractmethod
    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The definition: the N×N matrix ``(B, H, Nq, Nk)`` that multiplies the values, in the dtype of ``q``.

        Relative positions are part of ``call.score_mod``, as in the engines; :meth:`defined` and :meth:`weights` add them.
        """

    def defined(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The definition in the inputs' dtype, without dropout. Exported in place of an engine that cannot be."""
        return self._weights(q, k, call) @ repeat_heads(v, q.shape[1])

    def weights(self, q: Tensor, k: Tensor, call: AttentionCall | None = None, **arguments: Any) -> Tensor:
        """The attention weights, ``(B, H, Nq, Nk)``, for ``output_attentions=True`` and plots.

        Rows and columns of padding are zeros, unless the mechanism counts padding. Queries of cross-attention are never padding.

        Raises:
            LengthError: more than :data:`DENSE_LIMIT` tokens, for which the dense matrix would be too large.
        """
        if k.shape[2] > DENSE_LIMIT:
            raise LengthError(
                f"Attention weights were asked for {k.shape[2]} tokens, but the dense matrix is returned up to {DENSE_LIMIT} only; "
                "pass shorter inputs or output_attentions=False."
            )
        if 0 in q.shape:
            return q.new_zeros(*q.shape[:3], k.shape[2])
        precise = torch.promote_types(q.dtype, torch.float32)
        call = (AttentionCall.of(**arguments) if call is None else call).with_bias_on_grid()
        weights: Any = self._weights if self.options.order is None else weights_in_order(self.options.order, self._weights)
        dtype, q, k = q.dtype, q.to(precise), k.to(precise)
        if self.is_cross_attention:
            q, k, _, call = without_padding(q, k, k, call, cross=True)
            return weights(q, k, call).to(dtype)
        if not call.causal and (full := full_of(self)) is not None:
            weights = functools.partial(weights_by_length, full._weights, weights, exact_length_of(self))
        if per_sequence(self, call):
            matrix = weights_per_sequence(weights, q, k, call)
        else:
            q, k, _, call = without_padding(q, k, k, call) if self.ignores_padding else (q, k, k, call)
            matrix = weights(q, k, call)
        if (real := call.key_mask) is not None and self.ignores_padding:
            matrix = matrix.masked_fill(~real[:, None, k.shape[2] - q.shape[2] :, None], 0.0)
        return matrix.to(dtype)

    def _weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return self.dense_weights(q, k, self.with_dense_terms(q, k, call))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.to_dict().items())


def reset(module: Any, generator: torch.Generator | None) -> None:
    """Call ``module.reset_parameters(generator)``. The argument is left out for classes that do not take it, such as torch's own."""
    takes = "generator" in inspect.signature(module.reset_parameters).parameters
    module.reset_parameters(*([generator] if takes else []))


def _parts(module: nn.Module) -> Iterator[Mechanism | RelativePositions]:
    """The mechanisms and relative positions directly inside a module, looking through containers."""
    for child in module.children():
        if isinstance(child, Mechanism | RelativePositions):
            yield child
        else:
            yield from _parts(child)
