"""The checks that models of pictures and of sound share: outputs of source and result at the old and the new size of their inputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..mechanisms import Mechanism
from ..modeling.family.definition import known_family
from .differences import Difference
from .input_sizes import InputSize, InputSizes
from .plan import ConversionPlan
from .report import FAILED, PASSED, Check, equality
from .verify_outputs import all_finite

DECODER_INPUT = "decoder_input_ids"
"""The argument of ``forward`` with the tokens of a decoder, which is given one."""


def with_decoder_input(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``forward`` with a token for the decoder, where the model has one."""
    if DECODER_INPUT not in inspect.signature(type(model).forward).parameters:
        return dict(inputs)
    start = getattr(model.config, "decoder_start_token_id", None) or 0
    return {**inputs, DECODER_INPUT: torch.full((1, 1), min(start, model.config.vocab_size - 1))}


def run_model(model: Any, inputs: Mapping[str, Any], *, gradients: bool = False) -> dict[str, Tensor]:
    """All floating-point tensors that one forward pass returns, by name, those in tuples as well (the maps of a backbone)."""
    arguments = with_decoder_input(model, inputs)
    if (family := known_family(model.config)) is not None and family.grid is not None:
        arguments = family.grid.arguments_of_head(model, arguments)
    with torch.set_grad_enabled(gradients):
        returned = dict(model(**arguments, return_dict=True))
    for name, entries in list(returned.items()):
        if isinstance(entries, tuple):
            returned |= {f"{name}[{index}]": entry for index, entry in enumerate(entries)}
    return {name: value for name, value in returned.items() if isinstance(value, Tensor) and value.is_floating_point()}


@dataclass(frozen=True)
class SizeChecks:
    """Checks of what source and result return for inputs of two sizes.

    headless: whether the source has no weights for its head, so that hidden states are compared.
    """

    plan: ConversionPlan
    sizes: InputSizes
    headless: bool

    @property
    def base_attention(self) -> str:
        """What the source's attention is called."""
        return self.plan.architecture.family.base_attention_name

    @property
    def why_not_exact(self) -> str:
        """Why the result's mechanisms give other outputs than the source."""
        if self.plan.architecture.family.own_attention is not None:
            return "the mechanism is another one"
        return f"the mechanism does not cover the {self.sizes.noun}"

    def computes_source(self, layers: Sequence[Mechanism], lengths: Sequence[int]) -> bool:
        """Whether the mechanism of every layer computes the source's attention of this many tokens."""
        architecture = self.plan.architecture
        if architecture.family.own_attention is not None:
            return self.plan.attention.same_layers(architecture.family.own_attention(architecture.source_config), len(layers))
        return all(layer.covers(length) for layer, length in zip(layers, lengths, strict=True))

    def compare(
        self, name: str, size: InputSize, how: str, expected: dict[str, Tensor], measured: dict[str, Tensor], why: str = ""
    ) -> Check:
        """The result's outputs against the source's; ``why`` they may differ, empty if they must be equal."""
        source = "the source"
        if self.plan.architecture.family.base_classes is not None:  # transformers' class cannot be built
            source = "the source, by the definition of its attention in plain operations,"
        values = {**size.values, "outputs": sorted(expected)}
        return equality(name, f"{how}: largest difference from {source}", Difference.of(expected, measured), values, why)

    def at_old(self, expected: dict[str, Tensor], outputs: dict[str, Tensor], with_base_attention: dict[str, Tensor]) -> list[Check]:
        """``outputs`` at the old size, and those of the result with the source's attention; empty where the mechanisms compute it."""
        old, noun = self.sizes.old, self.sizes.size_noun
        what = f"{'hidden states (the source has no weights for its head)' if self.headless else 'outputs'} at {old.describe()}"
        if not with_base_attention:
            return [self.compare("equal where the mechanism covers the input", old, f"{what}, long attention", expected, outputs)]
        how = f"{what}, {self.base_attention} instead of the mechanism"
        return [
            self.compare(f"equal at the old {noun} with {self.base_attention}", old, how, expected, with_base_attention),
            self.compare(f"at the old {noun}", old, f"{what}, long attention", expected, outputs, self.why_not_exact),
        ]

    def at_new(
        self, new: InputSize, expected: dict[str, Tensor], states: dict[str, Tensor], with_base_attention: dict[str, Tensor], why: str
    ) -> list[Check]:
        """Hidden ``states`` at the new size, or a smaller one, and those of the result with the source's attention.

        why: the former may differ; empty if they must be equal.
        """
        sizes = self.sizes
        shortened = "" if new == sizes.new else f" (of {sizes.new.words}: a large model, a {sizes.smaller} {sizes.noun})"
        where = f"hidden states at {new.describe()}{shortened}"
        positions = f" and interpolated positions, the source with {sizes.resizing}" if sizes.resizing else ""
        resizing = f" and {sizes.resizing}" if sizes.resizing else ""
        how = f"{where}, long attention, the source with {self.base_attention}{resizing}"
        return [
            self.compare(
                f"equal at the new {sizes.size_noun} with {self.base_attention}",
                new,
                f"{where}, {self.base_attention}{positions}",
                expected,
                with_base_attention,
            ),
            self.compare(f"at the new {sizes.size_noun}", new, how, expected, states, why),
        ]

    def finite(self, new: InputSize, states: dict[str, Tensor]) -> Check:
        """Hidden states at the new size hold no NaN and nothing infinite."""
        finite = all_finite(states)
        detail = f"hidden states at {new.describe()} are {'' if finite else 'not '}finite"
        return Check(f"finite at the new {self.sizes.size_noun}", PASSED if finite else FAILED, detail, new.values)
