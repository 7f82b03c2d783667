"""A checkpoint in memory whose layers can run any attention, like the result of a conversion."""

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
    """A checkpoint whose layers can run one attention after the other.

    Args:
        source: an opened checkpoint, long or not.
        config: settings of the conversion: length, positions.
        device: the device on which the model runs.
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
        """Maximum length in tokens of the checkpoint before the conversion."""
        return self.original.old_length

    @property
    def length(self) -> int:
        """Maximum length in tokens of the conversion's result."""
        return self.original.new_length

    @property
    def layers(self) -> int:
        return self.original.shape.layers

    @property
    def base_attention(self) -> LongAttentionConfig:
        """The layers' attention before the conversion: full attention or sliding windows, or the mechanisms of a long model."""
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
        """Layers with a sliding window in the base, which they keep unless a configuration names them."""
        return frozenset(layer for layer, width in enumerate(self._windows) if width is not None)

    @property
    def predicts_tokens(self) -> bool:
        """Whether the checkpoint has a language-modelling head and is not an encoder-decoder."""
        config: Any = self.original.config
        return not getattr(config, "is_encoder_decoder", False) and self.original.architecture.source_class.endswith(LANGUAGE_MODELS)

    def untrained_distances(self, mechanism: Mechanism) -> str:
        """Why the result's positions need training with this mechanism, as a clause. Empty if they do not, or if a conversion chooses
        positions by the mechanism."""
        return self.original.kind.untrained_distances(self.original, mechanism, self.conversion.positions)

    def planned(self, attention: LongAttentionConfig | None, *, short: bool = False) -> ConversionPlan:
        """The plan of a conversion with this attention (``None``: full attention).

        short: keep the checkpoint's own positions.
        """
        changes: dict[str, Any] = {"long_attention": attention or LongAttentionConfig("full")}
        if short:
            changes |= {"max_length": None, "positions": "auto"}
        return plan_conversion(self.source, config=dataclasses.replace(self.conversion, **changes))

    def run_with(self, attention: LongAttentionConfig, *, short: bool = False, weights: Mapping[int, Weights] | None = None) -> Any:
        """The model in fp32 with this attention, in evaluation mode.

        All calls return the same model, so the next call changes it, unless positions differ.

        Args:
            attention: the attention of all layers.
            short: keep the checkpoint's own positions, with which it was trained.
            weights: layer -> parameters of its mechanism; other layers get initial parameters.
        Raises:
            CheckpointError: the checkpoint cannot be loaded.
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
    """Refuse a checkpoint for which no held-out loss can be measured.

    Raises:
        OptionError: the checkpoint has no language-modelling head, or is an encoder-decoder.
    """
    if not model.predicts_tokens:
        raise OptionError(
            f"{model.source.name!r} is a {model.original.architecture.source_class}, which predicts no tokens, so it has no held-out loss."
        )


class LossAgainstChunks:
    """Measures how the loss on long texts changes, without training, if every layer runs a given attention.
    The reference is the checkpoint with its own attention, on chunks of at most its own maximum length.

    Args:
        model: the checkpoint; it must predict tokens.
        inputs: pairs of token ids to read and targets to predict, ``(N,)`` each, with at least one chunk of tokens.
    """

    def __init__(self, model: TrialModel, inputs: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.model, self.causal = model, model.original.shape.causal
        self.inputs = [self._whole_chunks(shown, target) for shown, target in inputs]
        self._before: list[Tensor] | None = None

    def _whole_chunks(self, shown: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Text and targets, ``(1, N)`` each, without the last tokens that do not fill a chunk; the text is on the model's device."""
        chunk = self.chunk(len(shown))
        tokens = len(shown) // chunk * chunk
        return shown[None, :tokens].to(self.model.device), target[None, :tokens]

    def chunk(self, tokens: int) -> int:
        """Number of tokens per chunk for a text of ``tokens`` tokens."""
        return min(tokens, self.model.trained_length)

    def __call__(self, attention: LongAttentionConfig, weights: Mapping[int, Weights] | None = None) -> LossChange | None:
        """The change over the tokens of all texts; ``None`` if no token is predicted."""
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
