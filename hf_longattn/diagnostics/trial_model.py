"""The checkpoint in memory with any attention in its layers, as a conversion would make it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..configuration import LongAttentionConfig
from ..conversion import plan_conversion
from ..conversion.config import ConversionConfig
from ..conversion.model_loading import load_as_result
from ..conversion.plan import ConversionPlan, open_requested
from ..conversion.sources.base import Source
from ..data.tokenization import special_ids
from ..errors import OptionError
from ..evaluation.token_loss import LossChange, chunk_losses, token_losses, with_context
from ..inputs.text import load_tokenizer
from ..mechanisms import Mechanism
from ..modeling.attach.attachment import attach_mechanisms
from ..modeling.family.definition import LANGUAGE_MODELS
from ..modeling.family.sliding_window import base_attention

if TYPE_CHECKING:
    from typing_extensions import Self

Weights = Mapping[str, Tensor]
"""Parameters of a mechanism by name."""


class TrialModel:
    """A checkpoint with any attention in its layers, one after the other.

    Args:
        source: an opened checkpoint, long or not.
        config: settings of the conversion: length, positions.
        device: where it runs.
    """

    def __init__(self, source: Source, config: ConversionConfig, device: torch.device) -> None:
        self.source, self.conversion, self.device = source, config, device
        self.original = self.planned(None)
        self.tokenizer = load_tokenizer(source.folder)
        self._model: Any = None
        self._key: object = None

    @classmethod
    def open(cls, name: str | Path | Source, config: ConversionConfig, device: torch.device) -> Self:
        """Open a folder or a Hub repository."""
        return cls(name if isinstance(name, Source) else open_requested(name, config), config, device)

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
    def base_attention(self) -> LongAttentionConfig:
        """What the checkpoint's layers run before the conversion: full attention or sliding windows, unless it is a long model."""
        architecture = self.original.architecture
        original = architecture.original_attention()
        if original is None and architecture.family.own_attention is not None:
            return architecture.family.own_attention(architecture.source_config)
        return base_attention(self._windows) if original is None else original

    @property
    def _windows(self) -> list[int | None]:
        if self.original.architecture.family.own_attention is not None:
            return [None] * self.layers
        return self.original.kind.base_windows(self.original.architecture.source_config, self.layers)

    @property
    def named(self) -> frozenset[int]:
        """Layers that keep a sliding window of the base where a configuration does not name them."""
        return frozenset(layer for layer, width in enumerate(self._windows) if width is not None)

    @property
    def predicts_tokens(self) -> bool:
        """Whether it has a language-modelling head and needs no second text for a decoder."""
        config: Any = self.original.config
        return not getattr(config, "is_encoder_decoder", False) and self.original.architecture.source_class.endswith(LANGUAGE_MODELS)

    def untrained_distances(self, mechanism: Mechanism) -> str:
        """Why the result's positions do not hold for a mechanism without training, a clause; empty if they do, or if a conversion chooses
        positions by the mechanism."""
        return self.original.kind.untrained_distances(self.original, mechanism, self.conversion.positions)

    def planned(self, attention: LongAttentionConfig | None, *, short: bool = False) -> ConversionPlan:
        """The plan of a conversion with this attention; full attention for ``None``.

        short: without more positions.
        """
        changes: dict[str, Any] = {"long_attention": attention or LongAttentionConfig("full")}
        if short:
            changes |= {"max_length": None, "positions": "auto"}
        return plan_conversion(self.source, config=dataclasses.replace(self.conversion, **changes))

    def run_with(self, attention: LongAttentionConfig, *, short: bool = False, weights: Mapping[int, Weights] | None = None) -> Any:
        """The model in fp32 with this attention, in evaluation mode.

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
        key = (short, repr(getattr(text, "rope_parameters", None)), getattr(plan.config, "position_extension", None))
        if key != self._key:
            self._model = None
            self._model, self._key = self._load(plan), key
        with torch.random.fork_rng():
            torch.manual_seed(0)
            sites = attach_mechanisms(self._model, plan.attention, getattr(plan.config, "decoder_attention", None))
        for site in sites:
            if not site.cross and site.layer in (weights or {}) and not (site.decoding and self._model.config.is_encoder_decoder):
                initial = dict(site.mechanism.state_dict())
                site.mechanism.load_state_dict({**initial, **weights[site.layer]})  # type: ignore[index]
        return self._model.eval()

    def _load(self, plan: ConversionPlan) -> nn.Module:
        model: Any = load_as_result(self.source, plan.architecture, plan.config)
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
        return model.to(self.device)


def check_predicts_tokens(model: TrialModel) -> None:
    """Refuse a checkpoint that has no held-out loss.

    Raises:
        OptionError: it has no language-modelling head.
    """
    if not model.predicts_tokens:
        raise OptionError(
            f"{model.source.name!r} is a {model.original.architecture.source_class}, which predicts no tokens, so it has no held-out loss."
        )


class LossAgainstChunks:
    """How an attention in every layer changes the loss of texts as long as the result reads, against the checkpoint that reads them in
    chunks of its own length; without training.

    Args:
        model: the checkpoint; it must predict tokens.
        inputs: what is read and what should be predicted, ``(N,)`` each, one chunk or more.
    """

    def __init__(self, model: TrialModel, inputs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.model, self.causal = model, model.original.shape.causal
        self.inputs = [self._whole_chunks(shown, target) for shown, target in inputs]
        self._before: list[Tensor] | None = None

    def _whole_chunks(self, shown: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The text without the rest that does not fill a chunk, on the model's device, and its targets, ``(1, N)`` each."""
        chunk = self.chunk(len(shown))
        tokens = len(shown) // chunk * chunk
        return shown[None, :tokens].to(self.model.device), target[None, :tokens]

    def chunk(self, tokens: int) -> int:
        """Tokens that the checkpoint reads at once of a text of ``tokens``."""
        return min(tokens, self.model.trained_length)

    def __call__(self, attention: LongAttentionConfig, weights: Mapping[int, Weights] | None = None) -> LossChange | None:
        """The change, over the tokens of all texts; ``None`` if they have none that is predicted."""
        if self._before is None:
            original = self.model.run_with(self.model.base_attention, short=True)
            special = ([], []) if self.model.tokenizer is None else special_ids(self.model.tokenizer)
            self._before = [
                chunk_losses(original, *pair, self.chunk(pair[0].shape[1]), causal=self.causal, special=special) for pair in self.inputs
            ]
        converted = self.model.run_with(attention, weights=weights)
        before, after = list[Tensor](), list[Tensor]()
        for chunked, (shown, target) in zip(self._before, self.inputs, strict=True):
            before.append(with_context(chunked, self.chunk(len(chunked)), causal=self.causal))
            after.append(token_losses(converted, shown, target, causal=self.causal))
        return LossChange.of(torch.cat(before), torch.cat(after))
