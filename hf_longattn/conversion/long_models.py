"""Long models of other architectures, which become Long models with equal outputs: transformers' Longformer, LED and BigBird.

A converter names the family, config and tensors of the result, and makes inputs to compare it with the source.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..configuration import LongAttentionConfig
from ..errors import CheckpointError
from ..inputs.text import VerificationText
from .sources import Source

DECODED = 24
"""Number of decoder tokens in the compared inputs (probes) of an encoder-decoder. Untuned."""


@dataclass(frozen=True)
class TensorRename:
    """The new name of one tensor of the source.

    target: its name in the result.
    change: a linear map applied to its values (rows prepended, a transpose); also run on ``meta`` for the shape.
    """

    target: str
    change: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Probe:
    """One forward pass of source and result whose outputs are compared.

    name: for the report, for example "with padding and global tokens".
    inputs: the arguments of both forward passes.
    real: ``(B, N)`` bool, the tokens whose outputs are compared; outputs without a token axis are compared whole.
    decoder_real: such a mask for the decoder's tokens of an encoder-decoder.
    """

    name: str
    inputs: dict[str, Tensor]
    real: Tensor
    decoder_real: Tensor | None = None

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
        short = max(1, 2 * length // 3)
        both, pad = text.tokens(length + short)[0], config.pad_token_id
        ids = torch.full((2, length), pad if pad is not None and pad >= 0 else 0)
        ids[0], ids[1, :short] = both[:length], both[length:]
        real = torch.ones(2, length, dtype=torch.bool)
        real[1, short:] = False
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
        if not config.is_encoder_decoder or source_class.endswith(("EncoderModel", "ForSequenceClassification", "ForCausalLM")):
            return probes
        # the decoder reads the start of the encoder's text, shifted right by one
        decoded = torch.cat([torch.full_like(ids[:, :1], decoder_start(config)), ids[:, : DECODED - 1]], dim=1)
        every = torch.ones_like(decoded, dtype=torch.bool)
        return [Probe(probe.name, {**probe.inputs, "decoder_input_ids": decoded}, real, every) for probe in probes]

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
    stems: ClassVar[tuple[str, str]]
    """The beginning of the names of the source's classes, and of the base's."""

    def base_class(self, source_class: str) -> str | None:
        """Name of the base class with the same head: "RobertaForMaskedLM" for "LongformerForMaskedLM". Such a class may not exist.

        ``None`` means that the converter does not know ``source_class``.
        """
        own, base = self.stems
        return source_class.replace(own, base, 1) if source_class.startswith(own) else None

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


def decoder_start(config: Any) -> int:
    """The decoder's start token. If the config has none (mBART, some T5), the end token or the padding token."""
    named = (getattr(config, name, None) for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"))
    return next((token for token in named if isinstance(token, int)), 0)


def layer_options(mechanism: str, name: str, values: int | Sequence[int], **options: Any) -> LongAttentionConfig:
    """A configuration in which the option ``name`` has one value, or one for each layer. ``options`` are the same in all."""
    listed = list(values) if isinstance(values, Sequence) else [values]
    usual = max(listed, key=listed.count)
    layers = {index: {name: value} for index, value in enumerate(listed) if value != usual}
    return LongAttentionConfig(mechanism, layers=layers, **{name: usual}, **options)


# Longformer (Beltagy et al. 2020) becomes LongRoberta: RoBERTa's layers and positions, a window, separate projections for global tokens.

NOT_ROBERTAS = ("attention_window", "attention_mode", "attention_dilation", "autoregressive", "ignore_attention_mask", "onnx_export")
"""Settings of the source's attention; some were never used by transformers."""
GLOBAL_PROJECTION = re.compile(r"\.attention\.self\.(query|key|value)_global\.")
QUESTION = 16
"""Position of the first separator in the compared texts, or a quarter of a shorter text."""


class LongformerConverter(CheckpointConverter):
    """LongformerModel and all its heads."""

    model_type = "longformer"
    family = "roberta"
    stems = ("Longformer", "Roberta")

    def config_values(self, config: Any) -> dict[str, Any]:
        windows = config.attention_window
        if not isinstance(windows, int) and len(windows) != config.num_hidden_layers:
            raise ValueError(f"attention_window names {len(windows)} layers, but the model has {config.num_hidden_layers}")
        return {name: value for name, value in config.to_dict().items() if name not in NOT_ROBERTAS}

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        options: dict[str, Any] = {"global_tokens": (), "separate_global": True}
        if source_class.endswith("ForSequenceClassification"):
            options["global_tokens"] = (0,)
        elif source_class.endswith("ForQuestionAnswering"):
            options |= {"global_first_segment": True, "separator_token_id": config.sep_token_id}
        elif source_class.endswith("ForMultipleChoice"):
            options |= {"global_second_segment": True, "separator_token_id": config.sep_token_id}
        return layer_options("longformer", "window", config.attention_window, **options)

    def rename(self, name: str, config: Any) -> TensorRename:
        name = re.sub(r"^longformer\.", "roberta.", name)
        return TensorRename(GLOBAL_PROJECTION.sub(r".attention.self.long_attention.separate.\1.", name))

    def segmented(self, ids: Tensor, real: Tensor, config: Any, source_class: str) -> Tensor:
        """A question and a text as the tokenizer formats them. Exactly three separators, two of them between the segments."""
        question = min(QUESTION, ids.shape[1] // 4)
        if not source_class.endswith(("ForQuestionAnswering", "ForMultipleChoice")) or not question:
            return ids
        ids = ids.masked_fill(ids == config.sep_token_id, config.bos_token_id)
        for row, count in enumerate(real.sum(-1).tolist()):
            ids[row, [question, question + 1, count - 1]] = config.sep_token_id
        return ids


# LED, a BART with Longformer's attention in its encoder, becomes LongBart. Its tables start with position 0, BART's with two unused rows.

NOT_BARTS = ("attention_window", "max_encoder_position_embeddings")
OFFSET = 2
PARTS: dict[str, Any] = {
    r"^led\.": "model.",
    r"\.longformer_self_attn\.(query|key|value)_global\.": r".long_attention.separate.\1.",
    r"\.longformer_self_attn\.(query|key|value)\.": lambda match: f".{match[1][0]}_proj.",
    r"\.self_attn\.output\.": ".self_attn.out_proj.",
}


class LEDConverter(CheckpointConverter):
    """LEDModel and its heads."""

    model_type = "led"
    family = "bart"
    stems = ("LED", "Bart")

    def config_values(self, config: Any) -> dict[str, Any]:
        values = {name: value for name, value in config.to_dict().items() if name not in NOT_BARTS}
        defaults = {"scale_embedding": False, "forced_eos_token_id": None}  # BART has other defaults, or none
        return {**defaults, **values, "max_position_embeddings": config.max_encoder_position_embeddings}

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        return layer_options("longformer", "window", config.attention_window, global_tokens=(), separate_global=True)

    def rename(self, name: str, config: Any) -> TensorRename:
        target = name
        for pattern, replacement in PARTS.items():
            target = re.sub(pattern, replacement, target)
        if name.endswith("embed_positions.weight"):
            return TensorRename(target, lambda table: nn.functional.pad(table, (0, 0, OFFSET, 0)))
        return TensorRename(target)


# BigBird and BigBird-Pegasus (Zaheer et al. 2020) keep layers, heads and tensors. The attention of their encoder is the mechanism `bigbird`
# with random_pattern="hf_eval" and blocks_over="input". With the latter, outputs of a text depend on the padding of its batch, as in
# transformers; with blocks_over="text", outputs are transformers' for the text without padding.


class BlockSparseConverter(CheckpointConverter):
    """A BigBird of any kind."""

    takes_globals = False
    stems = ("BigBird", "BigBird")

    def config_values(self, config: Any) -> dict[str, Any]:
        return {name: value for name, value in {**config.to_dict(), **self._settings(config)}.items() if name != "long_attention"}

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        return LongAttentionConfig.from_dict(self._settings(config)["long_attention"])

    def _settings(self, config: Any) -> dict[str, Any]:
        from ..families import FAMILIES

        settings: dict[str, Any] = FAMILIES[self.family].config_class.equivalent_settings(config.to_dict())
        return settings


class BigBirdPegasusConverter(BlockSparseConverter):
    """BigBirdPegasusModel and all its heads."""

    model_type = family = "bigbird_pegasus"


class BigBirdConverter(BlockSparseConverter):
    """BigBirdModel and all its heads."""

    model_type = family = "big_bird"

    def attention(self, config: Any, source_class: str) -> LongAttentionConfig:
        if config.is_decoder and config.attention_type != "original_full":
            raise CheckpointError(
                f"A {source_class} with attention_type={config.attention_type!r} sees future tokens in long texts, so it is not a "
                "decoder; set attention_type to 'original_full' in its config.json to convert it with full causal attention."
            )
        return super().attention(config, source_class)

    def segmented(self, ids: Tensor, real: Tensor, config: Any, source_class: str) -> Tensor:
        """A question and a text. To the head, the tokens before the first separator are the question."""
        if not source_class.endswith("ForQuestionAnswering") or ids.shape[1] <= QUESTION:
            return ids
        ids = ids.clone()
        ids[:, QUESTION] = config.sep_token_id
        return ids


CONVERTERS: tuple[CheckpointConverter, ...] = (BigBirdConverter(), BigBirdPegasusConverter(), LEDConverter(), LongformerConverter())


def converter_of(source: Source) -> CheckpointConverter | None:
    """The converter of a source's model_type. ``None`` for a plain model of a family, or an unknown one."""
    return next((converter for converter in CONVERTERS if converter.model_type == source.config.get("model_type")), None)
