"""The text towers of CLIP and SigLIP: packed rows, and pooling over all segments of a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..engines.batch import last_real
from ..modeling.attach.custom_attention import ModuleMixin, ReplacedModules


class TakesPackedRows(ModuleMixin):
    """Mixin before a base's text embeddings. A packed row may have more tokens than the table has positions, since
    positions restart with every text."""

    def forward(
        self, input_ids: Tensor | None = None, position_ids: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        if input_ids is None or position_ids is None:
            return super().forward(input_ids, position_ids, inputs_embeds)
        return self.token_embedding(input_ids) + self.position_embedding(position_ids)


class PoolsEndToken(ReplacedModules):
    """Pools every text at its end token, also if the base ran in segments (CLIP)."""

    def call_base(self, base_forward: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Set ``pooler_output`` from the hidden states of the whole batch."""
        ids = arguments.get("input_ids")
        outputs = super().call_base(base_forward, arguments)
        if not isinstance(outputs, ModelOutput) or outputs.get("pooler_output") is None or ids is None:
            return outputs
        ids = ids.view(-1, ids.shape[-1]).int()
        end = self.config.eos_token_id
        if end == 2:  # configs of 2023 have this wrong id: the end token is the one with the highest id
            ends = ids.argmax(-1)
        else:
            ends = (ids == end).int().argmax(-1)
        states = outputs["last_hidden_state"]
        outputs["pooler_output"] = states[torch.arange(states.shape[0], device=states.device), ends.to(states.device)]
        return outputs


class PoolsLastToken(ReplacedModules):
    """Pools every text at its last real token, also if the base ran in segments (SigLIP). Without a mask, it pools at
    the last position."""

    head: nn.Module

    def call_base(self, base_forward: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Replace ``pooler_output`` by the head's output for the hidden states of the whole batch."""
        mask = arguments.get("attention_mask")
        outputs = super().call_base(base_forward, arguments)
        states = outputs[0]
        if mask is None or mask.dim() != 2:
            pooled = self.head(states[:, -1])
        else:
            rows = torch.arange(states.shape[0], device=states.device)
            pooled = self.head(states[rows, last_real(mask.ne(0)).to(states.device)])
        if not isinstance(outputs, ModelOutput):
            return (states, pooled, *outputs[2:])
        outputs["pooler_output"] = pooled
        return outputs
