"""Inputs of a class of transformers that has no Long class: whatever its ``forward`` takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from ..errors import ExportError, OptionError
from ..modeling.family.definition import Family
from ..modeling.family.registration import auto_class_name
from ..modeling.generic import PlainRule
from ..processor_files import IMAGE_PROCESSOR, ProcessorFile
from ..reading import GENERIC_CLASS
from .common.base import SETTINGS, register_kind
from .common.examples import Example, Head
from .grid import PILLOW
from .text import TextKind, VerificationText

OTHER_INPUTS = {"pixel_values", "input_features", "input_values"}
"""Arguments of ``forward`` for pictures and sound."""


def reads_only_text(model_class: Any) -> bool:
    """Whether a class of transformers reads token ids and neither pictures nor sound."""
    taken = inspect.signature(model_class.forward).parameters.keys()
    return model_class.main_input_name == "input_ids" and not OTHER_INPUTS & taken


@register_kind
class PlainKind(TextKind):
    """The inputs of a plain class with mechanisms. Only the length of texts and series can change."""

    settings = ("max_length", "verify_text")

    @classmethod
    def reads(cls, family: Family) -> bool:
        return isinstance(family.rule, PlainRule)

    def check_settings(self, source: str, request: Any) -> None:
        """Raise :class:`OptionError` for the settings of decoders and of other sizes."""
        for name in SETTINGS:
            if getattr(request, name, None) is not None and name not in self.settings:
                flag = name.replace("long_attention", "mechanism").replace("_", "-")
                raise OptionError(f"--generic only replaces the attention of {source}, to which --{flag} does not apply; leave it out.")

    def check_parts(self, source: str, request: Any) -> None:
        """Accept mechanisms for towers, too."""

    def check_graph(self, model_class: Any) -> None:
        if not reads_only_text(model_class):
            raise ExportError(f"A graph of a plain class reads a text, and a {model_class.__name__} reads other inputs; run it in PyTorch.")

    def verification_inputs(self, plan: Any, text: tuple[str, str], recording: str | Path | None = None) -> VerificationText:
        inputs = super().verification_inputs(plan, text, recording)
        inputs.described = "seeded inputs"
        return inputs

    def training_step(self, plan: Any) -> dict[str, Any] | None:
        trained_here = plan.new_length and reads_only_text(getattr(transformers, plan.architecture.source_class))
        return None if trained_here else {"advice": "fine-tune {model} with transformers' Trainer"}

    def head(self, folder: Path, architecture: str) -> Head | None:
        plain = architecture.removeprefix(GENERIC_CLASS)
        if plain not in self.family.heads:
            return None
        model_class: Any = getattr(transformers, plain)
        if reads_only_text(model_class) and (head := super().head(folder, plain)) is not None:
            return head
        blocks = "picture outputs" if model_class.main_input_name == "pixel_values" else ""
        return Head(auto_class_name(self.family.config_class, architecture) or "", None, blocks)

    def example(self, folder: Path, config: Mapping[str, Any], head: Head, length: int, metadata: Mapping[str, Any]) -> Example | None:
        if head.blocks == "picture outputs" and ProcessorFile.find(folder, IMAGE_PROCESSOR) is not None:
            reader = ("processor", "AutoImageProcessor")
            return Example(head, head.blocks, {"processed": True, "width": 640, "height": 480}, reader, ((), (PILLOW,)))
        if head.blocks in ("picture outputs", ""):
            return Example(head, "", {}, None)
        return super().example(folder, {**config, "long_attention": None}, head, length, metadata)  # forward takes no global tokens
