"""LongDebertaV2: DeBERTa-v2 and -v3 (He et al. 2021), with disentangled attention as terms of a mechanism's scores.

The mechanism must therefore allow terms on its scores. Global tokens are passed in the attention mask, since the base
hands no keyword arguments to its layers. Relative positions keep the buckets of the short model; larger distances have
the last bucket. A config with ``position_biased_input`` has a position table as well.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers.models.deberta_v2.configuration_deberta_v2 import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    ConvLayer,
    DebertaV2Embeddings,
    DebertaV2Encoder,
    DisentangledSelfAttention,
    make_log_bucket_position,
)

from ..engines.batch import in_graph
from ..engines.score_terms import DistanceTerm
from ..errors import OptionError
from ..modeling.attach.custom_attention import OnTheBackend, attend_by_mechanism, by_head
from ..modeling.attach.global_mask import takes_globals
from ..modeling.backend import mask_of_encoder
from ..modeling.classes import Family
from ..modeling.family.definition import PositionTable
from ..modeling.family.long_config import LongEncoderConfig, runs_mechanisms
from ..modeling.mixin import LongBaseModelMixin

GLOBALS, MASK = "global_attention_mask", "attention_mask"
ANNOTATED = torch.int32
"""The dtype of a mask with 2 at global tokens, as in Longformer."""


class MaskOfLayers(NamedTuple):
    """Padding and global tokens, as the mask argument of attention modules.

    padding: ``(B, N)``, ``None`` if all tokens are real.
    tokens: ``(B, N)`` bool, True = global.
    """

    padding: Tensor | None
    tokens: Tensor


def padding_mask(mask: Tensor) -> Tensor:
    """The padding mask ``(B, N)`` of ones and zeros in a mask that may be annotated (:data:`ANNOTATED`)."""
    return mask.clamp(max=1).long() if mask.dtype == ANNOTATED else mask


class GlobalsInTheMask(OnTheBackend):
    """Passes global tokens in the attention mask. Heads pass :data:`ANNOTATED` masks to the base model. This separates
    padding from global tokens, and passes an annotated mask to its layers. Other code of the base gets a
    :func:`padding_mask`."""

    hands_globals_down = False
    annotates_globals: ClassVar[bool] = True

    @classmethod
    def with_arguments(cls, base_forward: Any) -> Any:
        """A ``forward`` that takes the arguments of ``base_forward`` and those of a Long model."""
        names = [name for name in inspect.signature(base_forward).parameters if name != "self"]

        @functools.wraps(base_forward)
        def annotating(self: Any, **arguments: Any) -> Any:
            """Call ``base_forward`` with 0 at padding, 1 at real tokens and 2 at global tokens as its mask."""
            tokens, mask = arguments.pop(GLOBALS, None), arguments.get(MASK)
            if tokens is not None and runs_mechanisms(self):
                real = torch.ones_like(tokens) if mask is None else mask
                is_global = (tokens.view(real.shape) != 0).to(ANNOTATED)
                arguments[MASK] = ((real != 0) * (1 + is_global)).to(ANNOTATED)
            return base_forward(self, **arguments)

        long_forward = super().with_arguments(annotating)

        @functools.wraps(long_forward)
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            arguments = {**dict(zip(names, args, strict=False)), **kwargs}
            mask: Any = arguments.get(MASK)
            annotated = isinstance(mask, Tensor) and mask.dtype == ANNOTATED and mask.dim() == 2
            # If the head has annotated the mask, take the padding and the global tokens out of it.
            if annotated and isinstance(self, LongBaseModelMixin) and arguments.get(GLOBALS) is None:
                if in_graph():  # values cannot be read
                    has_globals = takes_globals(self)
                else:
                    has_globals = bool((mask > 1).any())
                arguments[MASK] = padding_mask(mask)
                if has_globals:
                    arguments[GLOBALS] = mask > 1
            return long_forward(self, **arguments)

        return forward


def disentangled(
    q: Tensor, k: Tensor, by_query: Tensor | None, by_key: Tensor | None, scaling: float, buckets: Tensor
) -> DistanceTerm:
    """DeBERTa's two relative score terms (He et al. 2021, equation 4), for query i, key j and the bucket δ(i - j) of
    their distance:

        (q_i · k_j + q_i · P^k_δ(i-j) + k_j · P^q_δ(i-j)) / sqrt(D · number of terms)

    Args:
        q, k: ``(B, H, Nq, D)`` and ``(B, H, N, D)``.
        by_query, by_key: P^k for the term of queries, and P^q for the term of keys, ``(H, buckets, D)`` each; ``None``
            if the model lacks this term.
        scaling: the factor 1 / sqrt(D · number of terms).
        buckets: δ of the distances ``-ahead … ahead``. Other distances are clamped to this range.
    """
    queries, table = q * scaling, by_query
    key_vectors = None if by_key is None else k * scaling
    if table is None:  # vectors of width 0
        assert by_key is not None
        queries, table = queries[..., :0], by_key[..., :0]
    return DistanceTerm(
        queries, table, len(buckets) // 2, k, key_vectors=key_vectors, key_table=by_key, buckets=buckets
    )


class LongDebertaV2Config(LongEncoderConfig, DebertaV2Config):
    """DebertaV2Config with ``long_attention``; the mechanism is ``window`` unless another one is given.

    ``max_relative_positions`` is written to the config, since its default, ``max_position_embeddings``, grows.
    """

    model_type = "long_deberta-v2"
    default_mechanism = "window"

    if TYPE_CHECKING:
        max_position_embeddings: int
        max_relative_positions: int

    def __post_init__(self, **kwargs: Any) -> None:
        if self.max_relative_positions < 1:
            self.max_relative_positions = self.max_position_embeddings
        super().__post_init__(**kwargs)


class LongDebertaV2Encoder(DebertaV2Encoder):
    """DebertaV2Encoder that builds no N×N tensor for a mechanism."""

    config: Any

    def get_attention_mask(self, attention_mask: Tensor) -> Any:
        """The mask for the layers: a :class:`MaskOfLayers` if the mask is annotated, otherwise the padding mask, or
        ``None`` if all tokens are real. If no mechanism runs, the base's N×N mask."""
        if not runs_mechanisms(self):
            return super().get_attention_mask(attention_mask)
        padding = mask_of_encoder(attention_mask)
        return MaskOfLayers(padding, attention_mask > 1) if attention_mask.dtype == ANNOTATED else padding

    def get_rel_pos(
        self, hidden_states: Tensor, query_states: Tensor | None = None, relative_pos: Tensor | None = None
    ) -> Any:
        """``None`` for a mechanism, since the attention modules compute distances themselves."""
        if not runs_mechanisms(self):
            return super().get_rel_pos(hidden_states, query_states, relative_pos)
        return None


class LongDebertaV2Embeddings(DebertaV2Embeddings):
    """DebertaV2Embeddings for a mask in which global tokens are annotated."""

    def forward(self, *, mask: Tensor, **inputs: Any) -> Tensor:
        return super().forward(mask=padding_mask(mask), **inputs)


class LongDebertaV2Convolution(ConvLayer):
    """ConvLayer for a mask in which global tokens are annotated."""

    def forward(self, hidden_states: Tensor, residual_states: Tensor, input_mask: Tensor) -> Tensor:
        return super().forward(hidden_states, residual_states, padding_mask(input_mask))


class LongDisentangledSelfAttention(DisentangledSelfAttention):
    """The projections of DisentangledSelfAttention with the mechanism."""

    config: Any
    is_causal = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if not runs_mechanisms(self):
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        if isinstance(attention_mask, MaskOfLayers):
            kwargs["global_attention_mask"] = attention_mask.tokens
            attention_mask = attention_mask.padding
        q_states = hidden_states if query_states is None else query_states
        (query,) = by_head(q_states, self.attention_head_size, self.query_proj)
        key, value = by_head(hidden_states, self.attention_head_size, self.key_proj, self.value_proj)
        kinds = [kind for kind in ("c2p", "p2c") if kind in self.pos_att_type]
        scaling = (self.attention_head_size * (1 + len(kinds))) ** -0.5
        terms = None
        if kinds and self.relative_attention and rel_embeddings is not None:
            places = self.pos_dropout(rel_embeddings)[: 2 * self.pos_ebd_size]
            terms = self._terms(query, key, places, kinds, scaling)
        output, weights = attend_by_mechanism(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            position_bias=terms,
            output_attentions=output_attentions,
            **kwargs,
        )
        return output, weights if output_attentions else None

    def _terms(self, query: Tensor, key: Tensor, places: Tensor, kinds: list[str], scaling: float) -> DistanceTerm:
        """The terms ``kinds`` for query and key ``(B, H, N, D)``, see :func:`disentangled`.

        Args:
            places: ``(buckets, hidden_size)``, the embeddings of relative positions.
            kinds: ``c2p`` for the term of queries, ``p2c`` for the term of keys.
        """
        projections = ("key_proj", "query_proj") if self.share_att_key else ("pos_key_proj", "pos_query_proj")
        by_query, by_key = (
            by_head(places, self.attention_head_size, getattr(self, projection))[0] if kind in kinds else None
            for kind, projection in zip(("c2p", "p2c"), projections, strict=True)
        )
        if by_key is not None and self.long_attention.options.pools_keys():
            raise OptionError(
                f"DeBERTa adds a number for each key to its scores, but mechanism {self.long_attention.name!r} with "
                "these options attends to means of keys; choose for example 'window' or 'longformer'."
            )
        furthest = max(self.max_relative_positions, self.pos_ebd_size)
        bucket = torch.arange(-furthest, furthest + 1, device=query.device)  # the bucket of each distance
        if self.position_buckets > 0 and self.max_relative_positions > 0:
            bucket = make_log_bucket_position(bucket, self.position_buckets, self.max_relative_positions).long()
        buckets = (bucket + self.pos_ebd_size).clamp(0, 2 * self.pos_ebd_size - 1)
        return disentangled(query, key, by_query, by_key, scaling, buckets)


class DebertaV2OnTheBackend(GlobalsInTheMask):
    """Replaces the modules that read the mask or compute relative positions."""

    replaced = {
        ConvLayer: LongDebertaV2Convolution,
        DebertaV2Embeddings: LongDebertaV2Embeddings,
        DebertaV2Encoder: LongDebertaV2Encoder,
        DisentangledSelfAttention: LongDisentangledSelfAttention,
    }


FAMILY = Family(
    LongDebertaV2Config,
    position_tables=(PositionTable(r"position_embeddings\.weight$"),),
    mixin=DebertaV2OnTheBackend,
)
