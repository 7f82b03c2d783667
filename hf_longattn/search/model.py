"""The checkpoint of a search: any design in its layers, and the attention that they ran before."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from ..configuration import LongAttentionConfig
from ..conversion import plan_conversion
from ..conversion.architectures import converter_of
from ..conversion.config import ConversionConfig
from ..conversion.model_loading import load_as_result
from ..conversion.plan import ConversionPlan
from ..conversion.sources import Source, open_source
from ..errors import CheckpointError
from ..inputs.text import kind_in, load_tokenizer
from ..inspect import Candidate
from ..modeling.attach.attachment import attach_mechanisms
from ..modeling.family.definition import LANGUAGE_MODELS
from ..modeling.family.sliding_window import base_attention
from ..reading import is_generic, is_long
from .design import Design


class SearchedModel:
    """A checkpoint in memory whose layers can run one attention after the other, like the result of a conversion.

    Args:
        source: a folder, a Hub repository or an opened checkpoint, long or not.
        config: settings of the conversion: length, positions.
        device: the device on which the model runs.
    Raises:
        CheckpointError: it has several towers, or no Long class.

    trained_length, length: maximum lengths in tokens of the checkpoint and of the conversion's result.
    base_attention, base_design: the layers' attention before the conversion: full attention or sliding windows, or the mechanisms of a long
        model. named: layers with a sliding window, which they keep unless a configuration names them.
    """

    def __init__(self, source: str | Source, config: ConversionConfig, device: torch.device) -> None:
        self.source = open_source(source, revision=config.revision, token=config.token) if isinstance(source, str) else source
        check_one_stack(self.source)
        self.conversion, self.device = config, device
        plan = self.original = self.planned(None)
        self.tokenizer = load_tokenizer(self.source.folder)
        self.trained_length, self.length, self.layers = plan.old_length, plan.new_length, plan.shape.layers
        windows = plan.kind.base_windows(plan.architecture.source_config, self.layers)
        self.named = frozenset(layer for layer, width in enumerate(windows) if width is not None)
        attention = plan.architecture.original_attention()
        self.base_attention: LongAttentionConfig = base_attention(windows) if attention is None else attention
        chosen = map(attention.for_layer, range(self.layers))
        self.base_design = Design(tuple(Candidate(name, options) for name, options in chosen), self.named)
        self._model: Any = None
        self._key: object = None

    @property
    def predicts_tokens(self) -> bool:
        """Whether the checkpoint has a language-modelling head and is not an encoder-decoder."""
        config: Any = self.original.config
        return not getattr(config, "is_encoder_decoder", False) and self.original.architecture.source_class.endswith(LANGUAGE_MODELS)

    @property
    def no_loss(self) -> str:
        """Why no held-out loss can be measured, as a clause; empty if it can."""
        if self.predicts_tokens:
            return ""
        name = self.original.architecture.source_class
        return f"{self.source.name!r} is a {name}, which predicts no tokens, so it has no held-out loss"

    def planned(self, attention: LongAttentionConfig | None, *, short: bool = False) -> ConversionPlan:
        """The plan of a conversion with this attention (``None``: full attention).

        short: keep the checkpoint's own positions.
        """
        changes: dict[str, Any] = {"long_attention": attention or LongAttentionConfig("full")}
        if short:
            changes |= {"max_length": None, "positions": "auto"}
        return plan_conversion(self.source, config=dataclasses.replace(self.conversion, **changes))

    def run_with(self, attention: LongAttentionConfig, *, short: bool = False) -> Any:
        """The model in fp32 with this attention, in evaluation mode.

        All calls return the same model, so the next call changes it, unless positions differ.

        Args:
            attention: the attention of all layers.
            short: keep the checkpoint's own positions, with which it was trained.
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
            attach_mechanisms(self._model, plan.attention, getattr(plan.config, "decoder_attention", None))
        return self._model.eval()

    def _load(self, plan: ConversionPlan) -> nn.Module:
        model: Any = load_as_result(self.source, plan.architecture, plan.config)
        if hasattr(model.config, "use_cache"):
            model.config.use_cache = False
        return model.to(self.device)


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
            f"{source.name!r} is a {model_type!r} model, which has no Long class, and a search needs one; `longattn inspect MODEL INPUT` "
            "says what mechanisms would keep of its attention."
        )
