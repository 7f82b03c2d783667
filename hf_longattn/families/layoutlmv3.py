"""LongLayoutLMv3: LayoutLMv3 (Huang et al. 2022), RoBERTa with boxes of tokens and optionally patches of an image.

Scores have biases by buckets of distance in the text and along both axes of the page. The buckets are the short model's. A document's boxes
restart on each page. Patches follow the text and are global tokens: every token sees all patches, and each patch sees all tokens.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.layoutlmv3.configuration_layoutlmv3 import LayoutLMv3Config
from transformers.models.layoutlmv3.modeling_layoutlmv3 import LayoutLMv3Encoder, LayoutLMv3Layer, LayoutLMv3SelfAttention
from transformers.pytorch_utils import apply_chunking_to_forward

from ..engines.common.batch import in_graph
from ..engines.common.score_terms import PlaceTerm
from ..errors import MaskError, OptionError, PageError
from ..modeling.attach.custom_attention import OnTheBackend, attend_by_mechanism, split_heads
from ..modeling.attach.memory_tokens import MemoryTokens
from ..modeling.classes import Family, long_config
from ..modeling.family.config import LongEncoderConfig, runs_mechanisms
from ..modeling.family.definition import PositionTable
from ..modeling.family.page_rule import BOXES_AND_IMAGE
from ..modeling.family.position_table import input_of

BIAS = "position_bias" if "position_bias" in inspect.signature(LayoutLMv3SelfAttention.forward).parameters else "rel_pos"
"""The argument of the base's layers with the biases of scores. It has another name since transformers 5.24."""


class LongLayoutLMv3Encoder(LayoutLMv3Encoder):
    """LayoutLMv3Encoder that passes its biases as a score term and makes patches global."""

    def forward(
        self,
        hidden_states: Tensor,
        bbox: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        patch_height: int | None = None,
        patch_width: int | None = None,
        **kwargs: Any,
    ) -> Any:
        if not runs_mechanisms(self):
            return super().forward(hidden_states, bbox, attention_mask, position_ids, patch_height, patch_width, **kwargs)
        if patch_height is not None:
            patches = 1 + patch_height * int(patch_width or 0)
            kwargs["global_attention_mask"] = self.with_patches(kwargs.get("global_attention_mask"), hidden_states, patches)
        term = self.place_term(hidden_states, bbox, position_ids)
        for layer in self.layer:
            hidden_states = layer(hidden_states, attention_mask, **{BIAS: term}, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def with_patches(self, tokens: Tensor | None, hidden_states: Tensor, patches: int) -> Tensor:
        """Global tokens ``(B, N)``, 1 = global. ``tokens (B, text)`` (``None``: no global ones), then 1 for each of the ``patches``.

        Raises:
            PageError: a mechanism neither takes global tokens nor covers all N tokens.
        """
        batch, length, _ = hidden_states.shape
        for layer in self.layer:
            mechanism = layer.attention.self.long_attention
            if not mechanism.traits.takes_globals and not mechanism.covers(length):
                raise PageError(
                    f"The image of a page is seen through global tokens, which mechanism {mechanism.name!r} does not have; leave "
                    "pixel_values out, or choose one that has them, for example mechanism='longformer'."
                )
        text = hidden_states.new_zeros(batch, length - patches, dtype=torch.long) if tokens is None else tokens.long()
        return F.pad(text, (0, patches), value=1)

    def place_term(self, hidden_states: Tensor, bbox: Tensor | None, position_ids: Tensor | None) -> PlaceTerm | None:
        """The biases by text and page distance as a score term. In the dtype of ``hidden_states (B, N, C)``, for ``bbox (B, N, 4)`` and
        ``position_ids (B, N)``; ``None`` for a model without biases."""
        kinds: list[tuple[Tensor, nn.Module, int, int]] = []
        if self.has_relative_attention_bias and position_ids is not None:
            kinds.append((position_ids, self.rel_pos_bias, self.rel_pos_bins, self.max_rel_pos))
        if self.has_spatial_attention_bias and bbox is not None:
            for side, layer in ((0, self.rel_pos_x_bias), (3, self.rel_pos_y_bias)):  # left and bottom
                kinds.append((bbox[..., side], layer, self.rel_2d_pos_bins, self.max_rel_2d_pos))
        if not kinds:
            return None
        tables = tuple(self.table(layer, bins, furthest, hidden_states) for _, layer, bins, furthest in kinds)
        return PlaceTerm(torch.stack(torch.broadcast_tensors(*(axis for axis, *_ in kinds)), -1), tables)

    @torch.no_grad()
    def table(self, layer: nn.Module, bins: int, furthest: int, like: Tensor) -> Tensor:
        """Biases ``(H, 2·furthest + 1)`` of the distances from ``-furthest`` to ``furthest``. Further distances have the outermost
        buckets. As in the base, biases are divided by the root of the head size and get no gradient."""
        distances = torch.arange(-furthest, furthest + 1, device=like.device)
        buckets = self.relative_position_bucket(distances, num_buckets=bins, max_distance=furthest)
        biases = layer(F.one_hot(buckets, bins).to(like.dtype))  # layers optimised for inference do not expose their weight
        return biases.t() / (self.config.hidden_size // self.config.num_attention_heads) ** 0.5


class LongLayoutLMv3Layer(LayoutLMv3Layer):
    """LayoutLMv3Layer that passes keyword arguments to its attention."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> Tensor:
        attended = self.attention(hidden_states, attention_mask, **kwargs)
        return apply_chunking_to_forward(self.feed_forward_chunk, self.chunk_size_feed_forward, self.seq_len_dim, attended)


class LongLayoutLMv3SelfAttention(LayoutLMv3SelfAttention):
    """The projections of LayoutLMv3SelfAttention with the mechanism."""

    config: Any
    is_causal = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if not runs_mechanisms(self):
            return super().forward(hidden_states, attention_mask, **kwargs)
        if self.long_attention.shard is not None:
            raise MaskError(
                "The biases of LayoutLMv3 need the boxes of all tokens, so that its sequences are not split across processes; leave "
                "sequence_parallel out."
            )
        query, key, value = (split_heads(self, projection(hidden_states)) for projection in (self.query, self.key, self.value))
        term = kwargs.pop(BIAS, None)
        kwargs.pop("rel_2d_pos", None)
        return attend_by_mechanism(self, query, key, value, attention_mask, position_bias=term, **kwargs)


class LayoutLMv3OnTheBackend(OnTheBackend):
    """Replaces modules of the base."""

    replaced = {
        LayoutLMv3Encoder: LongLayoutLMv3Encoder,
        LayoutLMv3Layer: LongLayoutLMv3Layer,
        LayoutLMv3SelfAttention: LongLayoutLMv3SelfAttention,
    }

    def check_inputs(self, arguments: dict[str, Any]) -> None:
        """As in every base model. Also enlarge the embeddings' ``position_ids`` if a packed or padded batch is longer than the table."""
        super().check_inputs(arguments)
        tokens, embeddings = input_of(arguments), getattr(self, "embeddings", None)
        if tokens is not None and embeddings is not None and not in_graph() and tokens.shape[1] > embeddings.position_ids.shape[1]:
            embeddings.position_ids = torch.arange(tokens.shape[1], device=tokens.device)[None]

    def post_init(self) -> None:
        super().post_init()
        if any(isinstance(module, MemoryTokens) for module in self.modules()):
            raise OptionError(
                "Memory tokens are put before inputs_embeds, which LayoutLMv3 does not take without an image; choose a mechanism without "
                "them, for example mechanism='longformer'."
            )


FAMILY = Family(
    long_config(__name__, LongEncoderConfig, LayoutLMv3Config),
    position_tables=(PositionTable(r"embeddings\.position_embeddings\.weight$", offset="padding", skips_padding=True),),
    rule=BOXES_AND_IMAGE,
    mixin=LayoutLMv3OnTheBackend,
)
