"""Inputs of models with several towers. Each tower has its own kind of input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..configuration import LongAttentionConfig
from ..errors import OptionError
from ..files import IMAGE_PROCESSOR, TOKENIZER_CONFIG, ProcessorFile
from ..modeling.family.definition import Family, tower_field
from ..modeling.family.towers_config import TOWERS
from ..reports import Check
from .common.base import InputKind, InputSizes, kind_of, register_kind
from .common.examples import PILLOW, Example


def tower_inputs(towers: Sequence[InputSizes], texts: InputSizes) -> InputSizes:
    """The InputSizes of a model with these ``towers``. ``old`` and ``new`` are those of ``texts``, the sizes of the text tower."""
    old, new, longest = (" and ".join(getattr(tower, name) for tower in towers) for name in ("old_words", "new_words", "longest"))
    report = {name: value for tower in towers for name, value in tower.report.items()}
    return InputSizes(texts.kind, texts.old, texts.new, old, new, longest, "input", report=report)


def text_part(parts: Mapping[str, Any]) -> Any:
    """The plan or inspection that reads the longest texts. One of a model's ``parts``."""
    return max((part for part in parts.values() if not part.inputs.units), key=lambda part: part.inputs.new.tokens)


class WithTowers:
    """Facts about a model. If it has several towers, there are such facts about each of them in ``towers``, by name."""

    towers: Mapping[str, Any]
    attention: Any

    @property
    def parts(self) -> Mapping[str, Any]:
        """The facts about every tower by name; without towers, these facts under an empty name."""
        return self.towers or {"": self}

    @property
    def apart(self) -> tuple[str, ...]:
        """Names of the towers, which have mechanisms apart; empty without towers."""
        return tuple(self.towers)

    def long_attention(self) -> dict[str, Any]:
        """The mechanisms as in a config: those of every tower, or of the only stack."""
        if self.towers:
            return {TOWERS: {name: tower.attention.to_dict() for name, tower in self.towers.items()}}
        return dict(self.attention.to_dict())

    def report_of_towers(self) -> dict[str, Any]:
        """The towers' entry in a report; empty without towers."""
        return {TOWERS: {name: tower.to_dict() for name, tower in self.towers.items()}} if self.towers else {}


class VerificationTowers(dict[str, Any]):
    """Name of each tower -> its verification inputs."""

    def describe(self) -> str:
        """Description of the inputs for a report."""
        return ", ".join(f"{name}: {inputs.describe()}" for name, inputs in self.items())


@register_kind
class TowersKind(InputKind):
    """One input for each tower."""

    has_plain_class = True

    def __init__(self, family: Family) -> None:
        super().__init__(family)
        kinds = [*self.parts.values()]
        self.noun, self.nouns = "input", " and ".join(kind.nouns for kind in kinds)
        self.settings = tuple(name for kind in kinds for name in kind.settings)
        self.instead = {gives: words for kind in reversed(kinds) for gives, words in kind.instead.items()}  # first tower wins

    @cached_property
    def parts(self) -> Mapping[str, InputKind]:
        return {name: kind_of(tower) for name, tower in self.family.towers.items()}

    def configs(self, config: Any) -> Mapping[str, Any]:
        return {name: getattr(config, tower_field(name)) for name in self.parts}

    def check_parts(self, source: str, request: Any) -> None:
        if request.names_attention:
            raise OptionError(
                f"The towers of {source}, {' and '.join(self.parts)}, have mechanisms apart, to which --mechanism, --option and --layers "
                f"do not apply; give --towers {','.join(f'{name}=MECHANISM' for name in self.parts)}."
            )

    def sizes(self, config: Any) -> InputSizes:
        """Sizes of the tower that reads the longest texts."""
        sizes = [self.parts[name].sizes(part) for name, part in self.configs(config).items() if self.parts[name].family.reads_text]
        return max(sizes, key=lambda of_tower: int(of_tower.new.tokens))

    def example(self, folder: Path, config: Mapping[str, Any], length: int) -> Example:
        task = "zero-shot-image-classification"
        if not (folder / TOKENIZER_CONFIG).is_file() or ProcessorFile.find(folder, IMAGE_PROCESSOR) is None:
            return Example(task)
        lines = (
            'texts = ["A long caption starts here.", "Another one."]\n'
            'image = Image.new("RGB", (640, 480))  # or yours: Image.open("photo.jpg").convert("RGB")\n'
            f'inputs = processor(text=texts, images=image, padding="max_length", truncation=True, max_length={length}, return_tensors="pt")'
        )
        return Example(task, ("processor", "AutoProcessor"), lines, (PILLOW,))

    def tokens_of(self, config: Mapping[str, Any]) -> int:
        """Maximum length, in tokens, of the towers that read texts."""
        texts = {name: kind for name, kind in self.parts.items() if kind.family.reads_text}
        return max(kind.tokens_of(config.get(tower_field(name)) or {}) for name, kind in texts.items())

    def limits(self, config: Mapping[str, Any], attentions: Mapping[str, LongAttentionConfig], length: int) -> list[str]:
        parts = [(kind, config.get(tower_field(name)) or {}, attentions.get(name)) for name, kind in self.parts.items()]
        limits = [kind.limits(part, {"": of_tower}, kind.tokens_of(part)) for kind, part, of_tower in parts if of_tower is not None]
        return [*dict.fromkeys(limit for of_tower in limits for limit in of_tower)]

    @property
    def any_size(self) -> bool:
        return any(kind.any_size for kind in self.parts.values())

    def verification_inputs(self, plan: Any, text: tuple[str, str], recording: str | Path | None = None) -> VerificationTowers:
        return VerificationTowers({name: part.kind.verification_inputs(part, text, recording) for name, part in plan.towers.items()})

    def check_reader(self, plan: Any, result: Path, inputs: VerificationTowers) -> list[Check]:
        return [check for name, part in plan.towers.items() for check in part.kind.check_reader(part, result, inputs[name])]

    def training_step(self, plan: Any) -> dict[str, Any]:
        pairs = f"pairs of a text and an image ({plan.new_input})"
        return {"advice": f"fine-tune {{model}} with transformers' Trainer on {pairs}, of which it returns the loss"}

    def introduce(self, plan: Any) -> str:
        return str(plan.new_input)
