"""Convert transformers' own long models: a Longformer, LED or BigBird becomes a Long model with equal outputs."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from ..configuration import LongAttentionConfig
from ..errors import CheckpointError
from ..modeling.family.definition import FAMILIES
from ..reports import Check, Difference, equality
from .running import decoder_start, floating_tensors
from .tokenizer import VerificationText

DECODED, QUESTION = 24, 16
"""Maximum tokens of the decoder's text, and of the question, in the inputs for comparing outputs. Untuned."""


@dataclass(frozen=True)
class Probe:
    """Inputs for comparing the outputs of two models in one forward pass."""

    name: str  # name in the report, for example "with padding and global tokens"
    inputs: dict[str, Tensor]  # the arguments of both forward passes
    real: Tensor  # (B, N) bool, True = compare this token. An output that is not (B, N, ...) is compared completely

    def check(self, name: str, source: Any, result: Any, reference: str, why: str = "") -> Check:
        """Compare the outputs that both models have, and all hidden states.

        Args:
            name: name of the check, to which the probe's name is added.
            reference: the source as a noun phrase, such as "transformers' led".
            why: the reason why outputs may differ; empty if they must be equal.
        """
        inputs = self.inputs
        outputs: list[dict[str, Tensor]] = []
        # a base model has no multiple-choice head, so the choices (B, choices, N) become rows
        if source.base_model is source and inputs["input_ids"].dim() == 3:
            inputs = {argument: value.flatten(0, 1) for argument, value in inputs.items()}
        for model in (source, result):
            with torch.no_grad():
                tensors = floating_tensors(model(**inputs, output_hidden_states=True, return_dict=True))
            for key, values in tensors.items():
                if values.shape[:2] == self.real.shape:
                    tensors[key] = values[self.real]
            outputs.append(tensors)
        common = sorted(outputs[0].keys() & outputs[1].keys())
        difference = Difference.of({key: outputs[0][key] for key in common}, outputs[1])
        length = self.real.shape[1]
        texts = f"outputs and hidden states of two texts of up to {length} tokens, {self.name}"
        facts = {"length": length, "tokens": int(self.real.sum()), "outputs": common}
        return equality(
            f"{name}, {self.name}", f"{texts}: largest difference from {reference}", difference, facts, why
        )


class Adoption:
    """The conversion of one architecture of transformers: its config, its tensors, and inputs for a comparison.

    The result is a Long model of another architecture, the base: a Longformer becomes a Long RoBERTa. In the methods,
    ``config`` is the source's config with transformers' defaults, and ``source_class`` is the name of its class.
    """

    model_type: ClassVar[str]  # transformers' model_type of the source
    family: ClassVar[str]  # transformers' model_type of the base
    stems: ClassVar[tuple[str, str]]  # prefixes of class names of the source and of the base
    unused: ClassVar[tuple[str, ...]] = ()  # fields of the source's config that are dropped
    names: ClassVar[Mapping[str, Any]] = {}  # regular expression for a part of a tensor's name -> its replacement
    # ending of a class whose head chooses global tokens -> mechanism options that choose the same tokens
    head_globals: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    unused_rows: ClassVar[int] = 0  # rows before position 0 that only the base's position tables have
    # ending of a class whose head looks for separators -> where it needs them, in tokens after the end of the question
    # (0, 1), or from the end of the text (-1)
    separators: ClassVar[Mapping[str, tuple[int, ...]]] = {}

    def settings(self, config: Any, source_class: str) -> tuple[dict[str, Any], LongAttentionConfig]:
        """The values of the base's config, and a configuration of attention that is equal to the source's."""
        values = {name: value for name, value in config.to_dict().items() if name not in self.unused}
        if "MultipleChoice" in source_class:
            raise CheckpointError(f"{source_class} makes candidate answers global; convert it without this head.")
        widths = config.attention_window
        if not isinstance(widths, Sequence):
            widths = [widths]
        most_common = max(widths, key=widths.count)
        layers = {layer: {"window": width} for layer, width in enumerate(widths) if width != most_common}
        options: dict[str, Any] = {"global_tokens": (), "separate_global": True}
        for head, global_options in self.head_globals.items():
            if source_class.endswith(head):
                options |= global_options
        if "global_first_segment" in options:
            options["separator_token_id"] = config.sep_token_id
        return values, LongAttentionConfig("longformer", layers=layers, window=most_common, **options)

    def state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors of a loaded source under the Long model's names."""
        state = {renamed(name, self.names): tensor for name, tensor in model.state_dict().items()}
        for name, tensor in state.items():
            if self.unused_rows and name.endswith("embed_positions.weight"):
                state[name] = nn.functional.pad(tensor, (0, 0, self.unused_rows, 0))
        return state

    def probes(
        self, config: Any, source_class: str, text: VerificationText, length: int, takes_globals: bool
    ) -> list[Probe]:
        """Inputs to run both models on: two texts, the second of them padded.

        If both models take a global attention mask, a second probe adds one. A decoder that does not read the whole
        text gets the text's start.

        Args:
            length: tokens of the first text. The second text has two thirds of them.
            takes_globals: whether the result takes a global attention mask.
        """
        short = max(1, 2 * length // 3)
        tokens = text.tokens(length + short)[0]
        ids = torch.full((2, length), max(0, config.pad_token_id or 0))
        ids[0] = tokens[:length]
        ids[1, :short] = tokens[length:]
        real = torch.ones(2, length, dtype=torch.bool)
        real[1, short:] = False

        # both texts get exactly the separators that the head expects
        places = next((places for head, places in self.separators.items() if source_class.endswith(head)), ())
        if places:
            question = min(QUESTION, length // 4)
            separator = config.eos_token_id if config.is_encoder_decoder else config.sep_token_id
            ids[ids == separator] = (separator + 1) % config.vocab_size
            for row, count in enumerate(real.sum(-1).tolist()):
                for place in places:
                    ids[row, place + (question if place >= 0 else count)] = separator

        inputs = {"input_ids": ids, "attention_mask": real.long()}
        global_mask = torch.zeros_like(ids)
        global_mask[:, :3] = 1
        global_mask[0, length // 2] = global_mask[0, length - 1] = 1
        if "MultipleChoice" in source_class:  # the two texts are the choices of one example
            inputs = {name: value[None] for name, value in inputs.items()}
            global_mask = global_mask[None]
        probes = [Probe("with padding", inputs, real)]
        arguments = inspect.signature(getattr(transformers, source_class).forward).parameters
        if takes_globals and "global_attention_mask" in arguments:
            inputs = {**inputs, "global_attention_mask": global_mask}
            probes.append(Probe("with padding and global tokens", inputs, real))

        one_stack = ("EncoderModel", "ForSequenceClassification", "ForCausalLM")
        if not config.is_encoder_decoder or source_class.endswith(one_stack):
            return probes
        # the decoder reads the start of the encoder's text, shifted right by one
        decoded = torch.cat([torch.full_like(ids[:, :1], decoder_start(config)), ids[:, : DECODED - 1]], dim=1)
        return [replace(probe, inputs={**probe.inputs, "decoder_input_ids": decoded}) for probe in probes]


def renamed(name: str, names: Mapping[str, Any]) -> str:
    """The name of a tensor in another architecture. ``names``: regular expression for a part of the name -> its
    replacement."""
    for pattern, replacement in names.items():
        name = re.sub(pattern, replacement, name)
    return name


HEAD_GLOBALS: dict[str, dict[str, Any]] = {
    "ForSequenceClassification": {"global_tokens": (0,)},
    "ForQuestionAnswering": {"global_first_segment": True},
}
"""Ending of a Longformer class whose head chooses global tokens -> mechanism options that choose the same tokens."""


class LongformerAdoption(Adoption):
    """Longformer (Beltagy et al. 2020): a RoBERTa with a window, and separate projections for global tokens."""

    model_type, family, stems = "longformer", "roberta", ("Longformer", "Roberta")
    unused = (
        "attention_window",
        "attention_mode",
        "attention_dilation",
        "autoregressive",
        "ignore_attention_mask",
        "onnx_export",
    )
    names: ClassVar = {
        r"^longformer\.": "roberta.",
        r"\.attention\.self\.(query|key|value)_global\.": r".attention.self.long_attention.separate.\1.",
    }
    head_globals: ClassVar = HEAD_GLOBALS
    separators: ClassVar = {"ForQuestionAnswering": (0, 1, -1)}


class LEDAdoption(Adoption):
    """LED: a BART with Longformer's attention in its encoder. BART's position tables have two unused rows before
    position 0, and LED's have none."""

    model_type, family, stems = "led", "bart", ("LED", "Bart")
    unused, unused_rows = ("attention_window", "max_encoder_position_embeddings"), 2
    names: ClassVar = {
        r"^led\.": "model.",
        r"\.longformer_self_attn\.(query|key|value)_global\.": r".long_attention.separate.\1.",
        r"\.longformer_self_attn\.(query|key|value)\.": lambda match: f".{match[1][0]}_proj.",
        r"\.self_attn\.output\.": ".self_attn.out_proj.",
    }

    def settings(self, config: Any, source_class: str) -> tuple[dict[str, Any], LongAttentionConfig]:
        values, attention = super().settings(config, source_class)
        settings = {
            # defaults of LED, which differ from BART's
            "scale_embedding": False,
            "forced_eos_token_id": None,
            **values,
            "max_position_embeddings": config.max_encoder_position_embeddings,
        }
        return settings, attention


class BigBirdPegasusAdoption(Adoption):
    """BigBird-Pegasus (Zaheer et al. 2020), whose layers, heads and tensors do not change.

    The encoder gets the mechanism ``bigbird`` with transformers' blocks. transformers cuts blocks from the padded
    input, so outputs depend on padding. With ``blocks_over="text"``, outputs equal transformers' outputs for the text
    without padding.
    """

    model_type = family = "bigbird_pegasus"
    stems = ("BigBird", "BigBird")
    separators: ClassVar = {"ForSequenceClassification": (-1,)}  # the head reads the state of the end token

    def settings(self, config: Any, source_class: str) -> tuple[dict[str, Any], LongAttentionConfig]:
        if self.model_type == "big_bird" and config.is_decoder and config.attention_type != "original_full":
            raise CheckpointError(
                f"A {source_class} with attention_type={config.attention_type!r} sees future tokens in long texts, so "
                "it is not a decoder; set attention_type to 'original_full' in its config.json to convert it with "
                "full causal attention."
            )
        config_class: Any = FAMILIES[self.family].config_class
        values = {**config.to_dict(), **config_class.equivalent_settings(config.to_dict())}
        attention = LongAttentionConfig.from_dict(values.pop("long_attention"))
        return values, attention


class BigBirdAdoption(BigBirdPegasusAdoption):
    """BigBird: like BigBird-Pegasus, but without a decoder."""

    model_type = family = "big_bird"
    separators: ClassVar = {"ForQuestionAnswering": (0,)}


ADOPTIONS: dict[str, Adoption] = {
    adoption.model_type: adoption
    for adoption in (BigBirdAdoption(), BigBirdPegasusAdoption(), LEDAdoption(), LongformerAdoption())
}
"""transformers' model_type of a source -> its adoption."""
