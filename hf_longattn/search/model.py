"""The checkpoint of a search: any design in its layers, and the attention that they ran before."""

from __future__ import annotations

from torch import Tensor, nn

from ..diagnostics import Candidate
from ..diagnostics.trial_model import TrialModel
from ..modeling.attach.attention_sites import attention_sites
from .design import Design


class SearchedModel(TrialModel):
    """A checkpoint that takes one design after the other."""

    @property
    def base_design(self) -> Design:
        """The attention that its layers run before the conversion."""
        chosen = map(self.base_attention.for_layer, range(self.layers))
        return Design(tuple(Candidate(name, options) for name, options in chosen), self.named)


def layer_weights(model: nn.Module) -> dict[int, dict[str, Tensor]]:
    """Parameters of the mechanisms of self-attention, by layer."""
    return {
        site.layer: {name: value.detach().cpu().clone() for name, value in site.mechanism.named_parameters()}
        for site in attention_sites(model)
        if not site.cross
    }
