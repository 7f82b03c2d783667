"""The checkpoint of a search: any design in its layers, and the attention that they ran before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..conversion.architectures import converter_of
from ..conversion.plan import open_requested
from ..conversion.sources.base import Source
from ..errors import CheckpointError
from ..inputs.text import kind_in
from ..inspect import Candidate
from ..modeling.attach.attention_sites import attention_sites
from ..reading import is_generic, is_long
from .design import Design
from .trial_model import TrialModel

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..conversion.config import ConversionConfig


class SearchedModel(TrialModel):
    """A checkpoint that takes one design after the other."""

    @classmethod
    def open(cls, name: str | Path | Source, config: ConversionConfig, device: torch.device) -> Self:
        """Open a folder or a Hub repository.

        Raises:
            CheckpointError: it has several towers, or no Long class.
        """
        source = name if isinstance(name, Source) else open_requested(name, config)
        check_one_stack(source)
        return super().open(source, config, device)

    @property
    def base_design(self) -> Design:
        """The attention that its layers run before the conversion."""
        chosen = map(self.base_attention.for_layer, range(self.layers))
        return Design(tuple(Candidate(name, options) for name, options in chosen), self.named)


def check_one_stack(source: Source) -> None:
    """Raise :class:`CheckpointError` for a checkpoint of several towers, or one without a Long class, which a search does not take."""
    model_type = str(source.config.get("model_type"))
    kind = kind_in(source.config)
    if kind.apart:
        towers, first = " and ".join(kind.apart), kind.apart[0]
        stack = kind.parts[first].family
        long = is_long(source.config)
        name = stack.base_model_name
        whole = f"hf_longattn.{stack.model_classes[name]}" if long else f"transformers.{name}"
        raise CheckpointError(
            f"A search is of one stack, and {source.name!r} has the towers {towers}; save one, for example {whole}.from_pretrained("
            f"{source.name!r}).save_pretrained('{first}-tower'), and search that folder."
        )
    known = kind.family is not None or converter_of(source) is not None or "long_attention" in source.config
    if is_generic(source.config) or not known:
        raise CheckpointError(
            f"{source.name!r} is a {model_type!r} model, which has no Long class, and a search needs one; `longattn audit MODEL INPUT` "
            "says what mechanisms would keep of its attention."
        )


def layer_weights(model: nn.Module) -> dict[int, dict[str, Tensor]]:
    """Parameters of the mechanisms of self-attention, by layer."""
    return {
        site.layer: {name: value.detach().cpu().clone() for name, value in site.mechanism.named_parameters()}
        for site in attention_sites(model)
        if not site.cross
    }
