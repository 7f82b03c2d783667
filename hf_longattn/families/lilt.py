"""LongLiLT: LiLT (Wang et al. 2022), RoBERTa with a second, narrower stream for boxes.

Both streams use the sum of their scores, q · k / sqrt(D) + r · s / sqrt(d); D and d are the head sizes of text and boxes. So the mechanism
runs once, on concatenated queries, keys and values of head size D + d.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import bidirectional_mask_function
from transformers.models.lilt.configuration_lilt import LiltConfig
from transformers.models.lilt.modeling_lilt import LiltEncoder, LiltSelfAttention

from ..errors import OptionError
from ..mechanisms.common.base import Mechanism
from ..modeling.attach.custom_attention import ReplacedModules, attend_by_mechanism, split_heads
from ..modeling.classes import Family, long_config
from ..modeling.family.config import LongEncoderConfig, runs_mechanisms
from ..modeling.family.definition import PositionTable
from ..modeling.family.page_rule import BOXES
from ..modeling.marked_mask import MARKED, GlobalsInTheMask, MaskOfLayers


class LongLiltEncoder(LiltEncoder):
    """LiltEncoder that passes global tokens to its layers."""

    def forward(self, hidden_states: Tensor, layout_inputs: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        mask: Any = attention_mask
        if mask is not None and mask.dtype == MARKED:
            mask = MaskOfLayers.of(mask[:, 0, 0], bidirectional_mask_function)
        return super().forward(hidden_states, layout_inputs, mask, *args, **kwargs)


class LongLiltSelfAttention(LiltSelfAttention):
    """The projections of both streams with the mechanism."""

    config: Any
    is_causal = False

    @property
    def layout_head_size(self) -> int:
        """Head size of the box stream."""
        return self.attention_head_size // self.channel_shrink_ratio

    @property
    def head_dim(self) -> int:
        """Head size of the concatenated streams."""
        return self.attention_head_size + self.layout_head_size

    def adapt_mechanism(self, mechanism: Mechanism) -> None:
        """Refuse a mechanism that projects hidden states itself. It would get only the text's hidden states."""
        if mechanism.traits.takes_hidden_states:
            raise OptionError(
                f"Mechanism {mechanism.name!r} projects hidden states of its own with these options, but LiLT attends by text and boxes "
                "together; leave the option out, or choose mechanism='window'."
            )

    def forward(
        self,
        hidden_states: Tensor,
        layout_inputs: Tensor,
        attention_mask: Any = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor | None, ...]:
        if not runs_mechanisms(self):
            return super().forward(hidden_states, layout_inputs, attention_mask, output_attentions)
        if isinstance(attention_mask, MaskOfLayers):
            kwargs["global_attention_mask"], attention_mask = attention_mask.tokens, attention_mask.padding
        text = [split_heads(self, projection(hidden_states)) for projection in (self.query, self.key, self.value)]
        boxes = [split_heads(self, projection(layout_inputs)) for projection in (self.layout_query, self.layout_key, self.layout_value)]
        sizes = self.attention_head_size, self.layout_head_size
        boxes[0] = boxes[0] * (sizes[0] / sizes[1]) ** 0.5
        query, key, value = (torch.cat(flows, -1) for flows in zip(text, boxes, strict=True))
        output, weights = attend_by_mechanism(
            self, query, key, value, attention_mask, scaling=sizes[0] ** -0.5, output_attentions=output_attentions, **kwargs
        )
        outputs = (flow.flatten(2) for flow in output.unflatten(2, (self.num_attention_heads, -1)).split(sizes, -1))
        return (*outputs, weights) if output_attentions else tuple(outputs)


class LiltOnTheBackend(GlobalsInTheMask, ReplacedModules):
    """Replaces modules of the base."""

    _supports_attention_backend = True
    hands_globals_down = False
    marks_four_dimensions = True
    replaced = {LiltEncoder: LongLiltEncoder, LiltSelfAttention: LongLiltSelfAttention}


FAMILY = Family(
    long_config(__name__, LongEncoderConfig, LiltConfig),
    position_tables=tuple(
        PositionTable(rf"{table}_embeddings\.weight$", offset="padding", skips_padding=True)
        for table in (r"embeddings\.position", r"layout_embeddings\.box_position")
    ),
    rule=BOXES,
    mixin=LiltOnTheBackend,
)
