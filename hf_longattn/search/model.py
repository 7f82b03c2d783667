"""The checkpoint in memory with any design in its layers, as a conversion would make it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration import LongAttentionConfig
from ..conversion import plan_conversion
from ..conversion.config import ConversionConfig
from ..conversion.model_loading import load_as_result
from ..conversion.plan import ConversionPlan, open_asked
from ..conversion.sources.base import Source
from ..conversion.text import load_tokenizer
from ..diagnostics import Candidate
from ..modeling.attachment import attach_mechanisms
from ..modeling.attention_sites import attention_sites
from ..modeling.sliding_window import base_attention, own_windows
from .design import Design

Weights = Mapping[str, Tensor]
"""Parameters of a mechanism by name."""


class SearchedModel:
    """A checkpoint that takes one design after the other.

    Args:
        source: an opened checkpoint, long or not.
        asked: settings of the conversion that the search is for: length, positions.
        device: where it runs.
    """

    def __init__(self, source: Source, asked: ConversionConfig, device: torch.device) -> None:
        self.source, self.asked, self.device = source, asked, device
        self.original = self.planned(None)
        self.tokenizer = load_tokenizer(source.folder)
        self._model: Any = None
        self._key: object = None

    @classmethod
    def open(cls, name: str | Path | Source, asked: ConversionConfig, device: torch.device) -> SearchedModel:
        """Open a folder or a Hub repository."""
        return cls(name if isinstance(name, Source) else open_asked(name, asked), asked, device)

    @property
    def trained_length(self) -> int:
        """Tokens that the checkpoint reads before the conversion."""
        return self.original.old_length

    @property
    def length(self) -> int:
        """Tokens that the result reads."""
        return self.original.new_length

    @property
    def layers(self) -> int:
        return self.original.shape.layers

    @property
    def own_attention(self) -> LongAttentionConfig:
        """What the checkpoint's layers run before the conversion: full attention or sliding windows, unless it is a long model."""
        found = self.original.architecture.original_attention()
        return base_attention(self._windows) if found is None else found

    @property
    def _windows(self) -> list[int | None]:
        return own_windows(self.original.architecture.source_config)

    @property
    def named(self) -> frozenset[int]:
        """Layers that keep a sliding window of the base where a configuration does not name them."""
        return frozenset(layer for layer, width in enumerate(self._windows) if width is not None)

    @property
    def own_design(self) -> Design:
        """The same, as a design."""
        chosen = map(self.own_attention.for_layer, range(self.layers))
        return Design(tuple(Candidate(name, options) for name, options in chosen), self.named)

    def planned(self, attention: LongAttentionConfig | None, *, short: bool = False) -> ConversionPlan:
        """The plan of a conversion with this attention; full attention for ``None``.

        short: without more positions.
        """
        changes: dict[str, Any] = {"long_attention": attention or LongAttentionConfig("full")}
        if short:
            changes |= {"max_length": None, "positions": "auto"}
        return plan_conversion(self.source, config=dataclasses.replace(self.asked, **changes))

    def run_with(self, attention: LongAttentionConfig, *, short: bool = False, weights: Mapping[int, Weights] | None = None) -> Any:
        """The model in fp32 with this attention.

        It is one model: the next call changes what this one returned.

        Args:
            attention: of all layers.
            short: with the checkpoint's own positions, as it was trained.
            weights: parameters of the mechanisms of some layers, by layer.
        Raises:
            CheckpointError: it cannot be loaded.
        """
        plan = self.planned(attention, short=short)
        text = plan.config.get_text_config()
        key = (short, repr(getattr(text, "rope_parameters", None)))
        if key != self._key:
            self._model = None
            self._model, self._key = self._load(plan), key
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sites = attach_mechanisms(self._model, plan.attention, getattr(plan.config, "decoder_attention", None))
        for site in sites:
            if not site.cross and site.layer in (weights or {}) and not (site.decoding and self._model.config.is_encoder_decoder):
                own = dict(site.mechanism.state_dict())
                site.mechanism.load_state_dict({**own, **weights[site.layer]})  # type: ignore[index]
        return self._model

    def _load(self, plan: ConversionPlan) -> nn.Module:
        model: Any = load_as_result(self.source, plan.architecture, plan.config)
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
        return model.to(self.device)


def layer_weights(model: nn.Module) -> dict[int, dict[str, Tensor]]:
    """Parameters of the mechanisms of self-attention, by layer."""
    return {
        site.layer: {name: value.detach().cpu().clone() for name, value in site.mechanism.named_parameters()}
        for site in attention_sites(model)
        if not site.cross
    }
