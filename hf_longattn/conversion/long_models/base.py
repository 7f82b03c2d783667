"""The interface of checkpoint converters. The family, config and tensors of the result, and inputs to compare it with the source."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ...configuration import LongAttentionConfig
from ...errors import check_registration
from ...inputs.text import VerificationText
from ...lazy import load_modules
from ..sources import Source

DECODED = 24
"""Number of decoder tokens in the compared inputs (probes) of an encoder-decoder. Untuned."""


@dataclass(frozen=True)
class TensorRename:
    """The new name of one tensor of the source.

    target: its name in the result; ``None`` drops it.
    change: a linear map applied to its values (rows prepended, a transpose); also run on ``meta`` for the shape.
    reason: why it is dropped.
    """

    target: str | None
    change: Callable[[Tensor], Tensor] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Probe:
    """One forward pass of source and result whose outputs are compared.

    name: for the report, for example "with padding and global tokens".
    inputs: the arguments of both forward passes.
    real: ``(B, N)`` bool, the tokens whose outputs are compared; outputs without a token axis are compared whole.
    decoder_real: such a mask for the decoder's tokens of an encoder-decoder.
    result_inputs: arguments of the result that differ from ``inputs``.
    """

    name: str
    inputs: dict[str, Tensor]
    real: Tensor
    decoder_real: Tensor | None = None
    result_inputs: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, name: str, output: Tensor) -> Tensor:
        """The vectors of real tokens in the output called ``name``. The whole output if it has no token axis."""
        real = self.real if self.decoder_real is None or name.startswith("encoder_") else self.decoder_real
        return output[real] if output.shape[:2] == real.shape else output


class Probing:
    """The inputs on which two models are compared."""

    takes_globals: ClassVar[bool] = True
    """Whether the source's forward takes ``global_attention_mask``."""

    def probes(self, config: Any, source_class: str, text: VerificationText, length: int) -> list[Probe]:
        """Inputs to run both models on, without and with a global mask. Two texts, one of them padded. With a short text for a decoder that
        does not read the whole text itself."""
        ids, real = padded_texts(text, length, config.pad_token_id)
        ids = self.segmented(ids, real, config, source_class)
        inputs = {"input_ids": ids, "attention_mask": real.long()}
        marks = torch.zeros_like(ids)
        marks[:, :3] = 1
        marks[0, length // 2] = marks[0, length - 1] = 1
        if "MultipleChoice" in source_class:  # the two texts are the choices of one example
            inputs, marks = {name: value[None] for name, value in inputs.items()}, marks[None]
        probes = [Probe("with padding", inputs, real)]
        if self.takes_globals:
            probes.append(Probe("with padding and global tokens", {**inputs, "global_attention_mask": marks}, real))
        reads_text = source_class.endswith(("EncoderModel", "ForSequenceClassification", "ForCausalLM"))
        return with_decoder(probes, config) if config.is_encoder_decoder and not reads_text else probes

    def segmented(self, ids: Tensor, real: Tensor, config: Any, source_class: str) -> Tensor:
        """``ids (B, N)`` with the special tokens that a head looks for, such as separators.

        By default only for an encoder-decoder classifier: one end token, as the last token. The head reads its state.
        """
        if not (config.is_encoder_decoder and source_class.endswith("ForSequenceClassification")):
            return ids
        ids = ids.masked_fill(ids == config.eos_token_id, config.eos_token_id + 1)
        return ids.scatter(1, real.sum(-1, keepdim=True) - 1, config.eos_token_id)


class CheckpointConverter(Probing, ABC):
    """One source architecture; all methods but `probes` run before a tensor is read.

    ``config`` is the source's config as transformers' class reads it, with the defaults of values missing in config.json.
    """

    model_type: ClassVar[str]
    """transformers' model_type of the source."""
    family: ClassVar[str]
    """The base model type of the result's family, a key of ``FAMILIES``."""

    def recognises(self, source: Source) -> bool:
        """Whether this converter applies to a source; by its model_type unless overridden."""
        return source.config.get("model_type") == self.model_type

    def read_config(self, values: dict[str, Any]) -> Any:
        """The source's config from its config.json."""
        from transformers import AutoConfig

        return AutoConfig.for_model(self.model_type, **{name: value for name, value in values.items() if name != "model_type"})

    def base_class(self, source_class: str) -> str | None:
        """Name of the base class with the same head: "RobertaForMaskedLM" for "LongformerForMaskedLM". Such a class may not exist.

        By default the name is unchanged. ``None`` means that the converter does not know ``source_class``.
        """
        return source_class

    @abstractmethod
    def config_values(self, config: Any) -> dict[str, Any]:
        """The values of the family's base config."""

    @abstractmethod
    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        """The mechanism and options equal to the source's attention."""

    def rename(self, name: str, config: Any) -> TensorRename:
        """The new name of a tensor, by default unchanged. A tensor that the result lacks is dropped if it belongs to a mechanism that was
        not chosen, and otherwise kept."""
        return TensorRename(name)

    def source_model(self, config: Any, source_class: str) -> tuple[type[Any], dict[str, Any]]:
        """transformers' class of the source, and further arguments of its ``from_pretrained``."""
        import transformers

        return getattr(transformers, source_class), {}


def padded_texts(text: VerificationText, length: int, pad_token_id: int | None) -> tuple[Tensor, Tensor]:
    """``(2, length)`` ids of two texts, and a bool mask of real tokens. The second text fills two thirds and is padded on the right."""
    short = max(1, 2 * length // 3)
    ids = text.tokens(length + short)[0]
    batch = torch.full((2, length), pad_token_id if pad_token_id is not None and pad_token_id >= 0 else 0)
    batch[0], batch[1, :short] = ids[:length], ids[length:]
    real = torch.ones(2, length, dtype=torch.bool)
    real[1, short:] = False
    return batch, real


def decoder_start(config: Any) -> int:
    """The decoder's start token. If the config has none (mBART, some T5), the end token or the padding token."""
    named = (getattr(config, name, None) for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"))
    return next((token for token in named if isinstance(token, int)), 0)


def with_decoder(probes: list[Probe], config: Any) -> list[Probe]:
    """The probes with a short text for the decoder. It is the start of the encoder's text, shifted right by one."""
    decoder_probes = []
    for probe in probes:
        ids = probe.inputs["input_ids"]
        start = torch.full_like(ids[:, :1], decoder_start(config))
        decoded = torch.cat([start, ids[:, : DECODED - 1]], dim=1)
        inputs = {**probe.inputs, "decoder_input_ids": decoded}
        decoder_probes.append(Probe(probe.name, inputs, probe.real, torch.ones_like(decoded, dtype=torch.bool)))
    return decoder_probes


def layer_options(mechanism: str, name: str, values: int | Sequence[int], **options: Any) -> LongAttentionConfig:
    """A configuration in which the option ``name`` has one value, or one for each layer. ``options`` are the same in all."""
    listed = list(values) if isinstance(values, Sequence) else [values]
    usual = max(listed, key=listed.count)
    layers = {index: {name: value} for index, value in enumerate(listed) if value != usual}
    return LongAttentionConfig(mechanism, layers=layers, **{name: usual}, **options)


CONVERTERS: dict[str, CheckpointConverter] = {}
C = TypeVar("C", bound=type[CheckpointConverter])


def register_checkpoint_converter(name: str) -> Callable[[C], C]:
    """Class decorator that makes a :class:`CheckpointConverter` known under ``name``.

    Raises:
        RegistrationError: it is not a CheckpointConverter, lacks a method, or the name is taken.
    """

    def register(cls: C) -> C:
        check_registration("checkpoint converter", name, cls, CheckpointConverter, type(CONVERTERS[name]) if name in CONVERTERS else None)
        CONVERTERS[name] = cls()
        return cls

    return register


def checkpoint_converters() -> tuple[CheckpointConverter, ...]:
    """Every converter, in the order of their names."""
    load_modules("conversion.long_models")
    return tuple(CONVERTERS[name] for name in sorted(CONVERTERS))


def converter_of(source: Source) -> CheckpointConverter | None:
    """The converter that recognises a source. ``None`` when it is a plain model of a family, or unknown."""
    return next((converter for converter in checkpoint_converters() if converter.recognises(source)), None)
