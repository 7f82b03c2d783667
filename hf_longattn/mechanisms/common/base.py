"""Base class of every mechanism: documented options, a fast ``forward`` and a float64 definition.

A mechanism defines ``forward`` (fast) and ``dense_weights`` (the definition), or inherits both and defines a mask on a
band (:class:`~.masked.SparseMechanism`), a mask with listed pairs (:class:`~.masked.GatheredMechanism`), or features
(:class:`~.feature_map.LinearMechanism`). Everything else has a default:

- ``capabilities`` (:mod:`.capabilities`): supported features, and requirements on its model.
- ``locality``: how far a query sees. It sizes the decode cache and tables of relative positions. Conversion compares
  it with the length that positions were trained for (:mod:`.capabilities`).
- ``covers``: the lengths up to which the mechanism equals full attention.
- ``pairs``: the cost, in query-key products.
- ``attended_keys``: the keys that each query attends to.

Features of some mechanisms are in additional base classes: masks in :mod:`.masked`; a state for decoding, an auxiliary
loss and others in :mod:`.capabilities`.
"""

from __future__ import annotations

import functools
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...engines.call import AttentionCall, clear_padding
from ...engines.dense import at_least_fp32, grid_of, repeat_heads, softmax_beside
from ...engines.sequences import weights_per_sequence
from ...errors import InputError, OptionError
from ...positions.relative import RelativePositions, build_relative
from ...positions.trained_distances import Locality
from .capabilities import About, Capabilities, aligns_sequences
from .layout import full_pairs
from .options import Options
from .shared_options import AttendedKeys, add_relative, full_of, weights_by_length, with_dense_terms

DENSE_LIMIT = 4096
"""Maximum input length for which dense attention weights are returned, in tokens."""


class LayerSizes(NamedTuple):
    """The sizes of a layer: query heads, width of a head, width of the model, and the longest input in tokens, if it
    is known."""

    num_heads: int
    head_dim: int
    hidden_size: int
    max_length: int | None


class Mechanism(nn.Module, ABC):
    """One attention mechanism, built for one layer by :func:`hf_longattn.build_mechanism`.

    Tensors are ``q (B, H, Nq, D)`` and ``k, v (B, H_kv, Nk, D)`` with ``H_kv`` dividing ``H``. With ``Nq < Nk`` the
    queries are the last ``Nq`` positions of the keys' sequence (decoding with a cache).
    """

    name: ClassVar[str]
    """Set by :func:`hf_longattn.register_mechanism`."""
    about: ClassVar[About] = About()
    """Facts for lists and pages of mechanisms."""
    causal: bool | str = "both"
    """``True`` if there is only a causal form, ``False`` if there is only a bidirectional form, otherwise
    ``"both"``."""
    capabilities: Capabilities = Capabilities()
    """Supported features of the mechanism, and its requirements on layer and model."""
    per_head_tensors: tuple[str, ...] | None = None
    """Names, relative to the mechanism, of tensors whose first axis is the heads. Pruning heads cuts them. ``None`` if
    heads depend on each other, on their index or on their number."""
    _options_type: ClassVar[type[Options]] = (
        Options  # the class of `options`, from the annotation `options: MineOptions` of a subclass
    )
    _relative_by_hook: ClassVar[bool] = True  # whether relative positions are added before `forward`, not inside it
    _layer: int = 0
    _full: tuple[Mechanism, ...] = ()  # set by the registry; in a tuple, so that torch does not register a submodule

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take the options class from the annotation ``options: MineOptions`` of a subclass, if it has one."""
        super().__init_subclass__(**kwargs)
        annotation = inspect.get_annotations(cls).get("options")
        if annotation is None:
            return
        options_type = annotation
        if isinstance(annotation, str):  # in modules with ``from __future__ import annotations``
            options_type = getattr(sys.modules[cls.__module__], annotation, None)
        if options_type is None:
            raise OptionError(
                f"{cls.__name__} has options of {annotation}, which its module does not define; define it there, "
                "above the class."
            )
        cls._options_type = options_type

    def __init__(self, sizes: LayerSizes, options: Options) -> None:
        """``sizes`` describes the layer; ``options`` are checked."""
        super().__init__()
        self.sizes = sizes
        self.num_heads = sizes.num_heads
        self.head_dim = sizes.head_dim
        self.options = options
        self.is_cross_attention = False
        """Whether queries and keys belong to different sequences, so that the padding of keys says nothing about
        queries. Set for the mechanism of a cross-attention module."""
        self.relative: RelativePositions | None = None
        if options.relative is not None:
            self.relative = build_relative(options.relative, sizes.num_heads, sizes.head_dim, sizes.hidden_size)
            if self._relative_by_hook:
                self.register_forward_pre_hook(add_relative)

    @property
    def layer(self) -> int:
        """Index of the layer, set when the mechanism is attached. Seeded mechanisms draw different numbers in each
        layer."""
        return self._layer

    @layer.setter
    def layer(self, layer: int) -> None:
        self._layer = layer
        self._enter(layer)

    def _enter(self, layer: int) -> None:
        """Prepare what depends on the layer's index. Called when :attr:`layer` is set."""

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise every parameter and buffer, including those of relative positions and of contained mechanisms.

        A mechanism that adds tensors extends this method, and initialises them nowhere else. To load a model, its
        mechanisms are built without storage, and then this method is called. The result must equal a newly built
        mechanism.

        Args:
            generator: source of random values, on the tensors' device; torch's default generator if None.
        """
        initialised: set[int] = set()
        for part in _parts(self):
            part.reset_parameters(generator)
            initialised |= {id(tensor) for tensor in (*part.parameters(), *part.buffers())}
        if type(self).reset_parameters is not Mechanism.reset_parameters:
            return  # the class initialises its own tensors
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            if id(tensor) not in initialised:
                raise OptionError(
                    f"Mechanism {self.name!r} owns a tensor, {name!r}, that nothing initialises; "
                    "define reset_parameters(self, generator=None) in its class."
                )

    @abstractmethod
    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The attention output ``(B, H, Nq, D)`` in the dtype of ``q``, for sequences that start at index 0.

        ``call.key_mask`` is False for padding, which comes after a sequence or between its tokens. Padding before a
        sequence is allowed only if ``capabilities.position_dependent`` is False or, on accelerators,
        ``SparseMechanism.finds_starts`` is True.
        """

    @abstractmethod
    def dense_weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        """The definition of the mechanism: the weights ``(B, H, Nq, Nk)`` that multiply the values, in ``q``'s dtype.

        ``call.score_mod`` must include the relative positions. :meth:`defined` and :func:`attention_weights` add them
        before they call this method.
        """

    def defined(self, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """The output by the definition, ``(B, H, Nq, D)``, without dropout. ``torch.export`` traces this method for
        mechanisms whose engine cannot be exported."""
        return self._weights(q, k, call) @ repeat_heads(v, q.shape[1])

    def _weights(self, q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
        return self.dense_weights(*with_dense_terms(self, q, k, call))

    def labels_documents(self, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
        """Whether ``forward`` separates packed documents by ``call.documents``. If not, each document becomes its own
        batch row.

        k, v: ``(B, H_kv, N, D)``.
        """
        return False

    def covers(self, length: int, causal: bool = False) -> bool:
        """Whether the mechanism equals full softmax attention for every input of up to ``length`` tokens."""
        return False

    def pairs(self, length: int, causal: bool = False) -> int:
        """The number of query-key products of one head for ``length`` tokens, the unit of cost.

        A closed form, since listing the pairs takes 0.1 to 0.5 s at 131,072 tokens. Tests compare the number with
        the listed pairs.
        """
        return full_pairs(length, causal)

    def locality(self, causal: bool) -> Locality | None:
        """The distances at which a query sees keys; ``None`` if unbounded or dependent on content."""
        return None

    def attended_keys(self, q: Tensor, k: Tensor, call: AttentionCall) -> AttendedKeys | None:
        """A function that returns a mask of the attended keys (:data:`~.shared_options.AttendedKeys`).

        ``None`` if the output is not one softmax over keys. :mod:`hf_longattn.inspect` measures how much of full
        attention's weight falls on these keys. It calls the function for a few queries at a time, so that its memory
        is linear in N.

        Args:
            q, k: ``(B, H, N, D)`` and ``(B, H_kv, N, D)``, of whole sequences. Data-dependent mechanisms select the
                keys by these values.
        """
        return None

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.to_dict().items())


def attention_weights(
    mechanism: Mechanism, q: Tensor, k: Tensor, call: AttentionCall | None = None, **arguments: Any
) -> Tensor:
    """The attention weights, ``(B, H, Nq, Nk)``, for ``output_attentions=True`` and plots.

    Rows and columns of padding are zeros, unless ``ignores_padding`` is False. Queries of cross-attention are never
    padding.

    Args:
        arguments: if ``call`` is ``None``, the arguments of :meth:`AttentionCall.of` that build it.

    Raises:
        InputError: there are more than :data:`DENSE_LIMIT` keys, so that the dense matrix would be too large.
    """
    if k.shape[2] > DENSE_LIMIT:
        raise InputError(
            f"Attention weights were requested for {k.shape[2]} tokens, but are returned for at most {DENSE_LIMIT}; "
            "pass shorter inputs or output_attentions=False."
        )
    if 0 in q.shape:
        return q.new_zeros(*q.shape[:3], k.shape[2])
    dtype, q, k = q.dtype, at_least_fp32(q), at_least_fp32(k)
    call = (AttentionCall.of(**arguments) if call is None else call).with_term_on_grid()
    weights_of: Any = mechanism._weights
    if mechanism.is_cross_attention:
        q, k, _, call = clear_padding(q, k, k, call, cross=True)
        return weights_of(q, k, call).to(dtype)

    full = full_of(mechanism)
    if full is not None and not call.causal:
        weights_of = functools.partial(weights_by_length, full._weights, weights_of, full.sizes.max_length)
    ignores_padding = mechanism.capabilities.ignores_padding
    if aligns_sequences(mechanism, call):
        if call.batch is not None and not ignores_padding:
            call = call.replace(batch=call.batch.counting_padding())
        weights = weights_per_sequence(weights_of, q, k, call)
    else:
        q, k, _, call = clear_padding(q, k, k, call)
        weights = weights_of(q, k, call)
    if call.key_mask is not None and ignores_padding:
        real_queries = call.key_mask[:, k.shape[2] - q.shape[2] :]  # queries are the last positions
        weights = weights.masked_fill(~real_queries[:, None, :, None], 0.0)
    return weights.to(dtype)


def _parts(module: nn.Module) -> Iterator[Mechanism | RelativePositions]:
    """The mechanisms and relative positions directly below a module, or in its containers."""
    for child in module.children():
        if isinstance(child, Mechanism | RelativePositions):
            yield child
        else:
            yield from _parts(child)


def scaled_scores(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
    """``q·k · scale`` for all pairs, with the call's score term applied, ``(B, H, Nq, Nk)``."""
    scores = (q @ repeat_heads(k, q.shape[1]).mT) * call.scale_for(q.shape[-1])
    if call.score_mod is not None:
        scores = call.score_mod(scores, *grid_of(q, k))
    return scores


def visible_in_full_attention(q: Tensor, k: Tensor, call: AttentionCall) -> Tensor:
    """Mask of the pairs that causality and padding leave visible, ``(B or 1, 1, Nq, Nk)`` bool."""
    _, _, q_idx, kv_idx = grid_of(q, k)
    seen = (kv_idx <= q_idx) if call.causal else (kv_idx >= 0).expand(1, 1, q.shape[2], -1)
    if call.key_mask is not None:
        seen = seen & call.key_mask[:, None, None, :]
    return seen


def softmax_over(scores: Tensor, visible: Tensor, sink_scores: Tensor | None = None) -> Tensor:
    """Softmax over the last axis of ``scores (B, H, …)`` where ``visible`` (broadcastable). Rows without a visible
    key are zeros.

    sink_scores: ``(H,)``, an additional column of scores. It takes part in the softmax, but its weights are not in
        the result.
    """
    weights = softmax_beside(scores.masked_fill(~visible, float("-inf")), sink_scores)
    return torch.where(
        visible.any(-1, keepdim=True), weights, torch.zeros((), dtype=weights.dtype, device=weights.device)
    )


def normalised(weights: Tensor) -> Tensor:
    """Non-negative ``weights (…, Nk)`` divided by their row sums; rows of zeros stay zeros."""
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total)


def check_all_queries(mechanism: Mechanism, q: Tensor, k: Tensor) -> None:
    """Raise :class:`InputError` unless there are as many queries as keys. For mechanisms without the capability
    ``takes_fewer_queries``."""
    if q.shape[2] != k.shape[2]:
        raise InputError(
            f"Mechanism {mechanism.name!r} reads all tokens at once, but {q.shape[2]} queries came with {k.shape[2]} "
            "keys; give as many queries as keys, or choose another mechanism."
        )


def pad_queries(q: Tensor, length: int) -> Tensor:
    """``q (B, H, Nq, D)``, the last queries of a sequence, padded in front with zeros to ``length`` tokens."""
    missing = length - q.shape[2]
    return F.pad(q, (0, 0, missing, 0)) if missing else q


def drop_keys(v: Tensor, dropout_p: float) -> Tensor:
    """Values ``(B, H, Nk, D)`` after dropout of whole keys. For mechanisms without a weight matrix to apply dropout
    to."""
    return v * F.dropout(v.new_ones(*v.shape[:3], 1), dropout_p) if dropout_p else v
