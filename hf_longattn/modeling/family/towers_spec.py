"""Models with several towers, such as CLIP: their inputs, and their config with a Long config per tower."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import SubConfigSpec

from ...errors import OptionError, nearest
from ...files import TOKENIZER_CONFIG, check_config
from ...names import BACKEND
from .definition import Family, tower_field
from .input_spec import Example, InputSizes, InputSpec, has_processor
from .long_config import DEFAULTS, ConfigMixin, LongConfig

TOWERS = "towers"
"""The key of ``long_attention`` for separate towers:
``{"towers": {"text": {"mechanism": …}, "vision": {"mechanism": …}}}``."""


class TowersSpec(InputSpec):
    """The input spec of a model with several towers. Each tower has the spec of its own family."""

    reads, noun, nouns = "towers", "input", "texts and images"
    mixins = ("modeling.towers.LongTowersMixin", "modeling.towers.LongTowersMixin")
    docstring = """{base} whose towers have separate mechanisms, lengths and sizes.

They stand in ``config.text_config.long_attention`` and so on. ``forward`` takes the arguments of {base}.
:meth:`use_base_attention` computes the attention of {base} in every tower instead.
"""

    def sizes(self, family: Family, config: Any) -> InputSizes:
        """The sizes of the tower that reads texts."""
        name, tower = family.text_tower
        return tower.spec.sizes(tower, getattr(config, tower_field(name)))

    def example(self, folder: Path, config: Any, length: int) -> Example:
        """Code for a card that makes two texts and an image, if the folder has a tokenizer and an image processor."""
        task = "zero-shot-image-classification"
        if not (folder / TOKENIZER_CONFIG).is_file() or not has_processor(folder):
            return Example(task)
        lines = (
            'texts = ["A long caption starts here.", "Another one."]\n'
            'image = Image.new("RGB", (640, 480))  # or yours: Image.open("photo.jpg").convert("RGB")\n'
            'inputs = processor(text=texts, images=image, padding="max_length", truncation=True, '
            f'max_length={length}, return_tensors="pt")'
        )
        return Example(task, ("processor", "AutoProcessor"), lines, ("from PIL import Image",))


class LongTowersConfig(ConfigMixin):
    """Mixin before the base's config class: ``class LongCLIPConfig(LongTowersConfig, CLIPConfig)``.

    The mechanisms, lengths and sizes of a tower are in the tower's config, for example in
    ``config.text_config.long_attention``, and are saved there.

    long_attention: ``{"towers": {"text": {"mechanism": "window", "window": 64}}}`` sets the attention of towers by
        name. Towers that are not named keep the attention in their own config, or get their family's default.

    ``from_pretrained`` also reads the folder of a base model.
    """

    base_model_type: ClassVar[str]
    adds: ClassVar[str] = "the towers' Long configs"
    tower_classes: ClassVar[Mapping[str, type[LongConfig]]]
    """Name of each tower -> its Long config class."""
    score_cap: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the towers' configs Long configs, in a class that combines this mixin with a base's config class."""
        if "tower_classes" in vars(cls):
            cls.sub_configs_defaults = {
                tower_field(name): SubConfigSpec(tower) for name, tower in cls.tower_classes.items()
            }
        super().__init_subclass__(**kwargs)
        base: Any = cls.__bases__[-1]
        if hasattr(base, "model_type") and not hasattr(base, "base_model_type"):
            cls.base_model_type = base.model_type
            strict(cls)

    def __post_init__(self, **kwargs: Any) -> None:
        """Write the chosen attention into the towers' configs, before the base makes config objects of them."""
        chosen = self._read_attention(kwargs.pop("long_attention", None) or {})
        for name, config_class in self.tower_classes.items():
            field, base_type = tower_field(name), config_class.base_model_type
            config: Any = getattr(self, field)
            if config is not None and not isinstance(config, Mapping):
                config = config.to_dict()
            values = dict(config or {})
            # a config of the base: store its length, from which position tables are extended
            if values.pop("model_type", base_type) == base_type and "long_attention" not in values:
                base: Any = config_class.__bases__[-1]
                length = getattr(base.from_dict(dict(values)), "max_position_embeddings", None)
                if length is not None:
                    values.setdefault("extended_from", {"max_position_embeddings": length})
            if chosen.get(name) is not None:
                values["long_attention"] = chosen[name]
            setattr(self, field, values)
        super().__post_init__(**kwargs)

    def _read_attention(self, long_attention: Mapping[str, Any]) -> Mapping[str, Any]:
        """The attention of each tower that ``long_attention`` names.

        Raises:
            OptionError: there is a mechanism for all towers, or the name of a tower that does not exist.
        """
        name = type(self).__name__
        known = [*self.tower_classes]
        if others := sorted(set(long_attention) - {TOWERS}):
            raise OptionError(
                f"The towers of a {name} have separate mechanisms, but {others[0]!r} is given for all; give "
                f"long_attention as {{'towers': {{{known[0]!r}: {{'mechanism': 'window', 'window': 64}}}}}}."
            )
        chosen: Mapping[str, Any] = long_attention.get(TOWERS) or {}
        check_towers(chosen, known, name)
        return chosen

    @property
    def towers(self) -> dict[str, LongConfig]:
        """Config of each tower, by name."""
        return {name: getattr(self, tower_field(name)) for name in self.tower_classes}

    def resolve_implementation(self, requested: str | None) -> str:
        """The attention implementation to run in the whole model if the user requests ``requested``.

        It is ``longattn`` if a tower replaces a default of transformers by it, and ``requested`` otherwise. Each
        tower's config resolves the name again."""
        if requested in (None, BACKEND):
            return BACKEND
        towers = [self.__dict__.get(tower_field(name)) for name in self.tower_classes]
        accepted = all(
            tower.resolve_implementation(requested) == requested for tower in towers if isinstance(tower, LongConfig)
        )
        return str(requested) if accepted or requested not in DEFAULTS else BACKEND

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The base's ``from_dict``. A ``long_attention`` among the keyword arguments replaces that of the
        dictionary."""
        check_config(config_dict)
        chosen = kwargs.pop("long_attention", None)
        values = config_dict if chosen is None else {**config_dict, "long_attention": chosen}
        return super().from_dict(values, **kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the values of a config file. A file of the base gets the model type of this class."""
        values, kwargs = super().get_config_dict(*args, **kwargs)
        if values.get("model_type") == cls.base_model_type:
            values["model_type"] = cls.model_type
        return values, kwargs


def check_towers(chosen: Mapping[str, Any], known: list[str], name: str) -> None:
    """Raise :class:`OptionError` if ``chosen`` names a tower that does not exist.

    Args:
        chosen: the attention of towers by name.
        known: the names of the towers that exist.
        name: the model's or config's class name, for the message.
    """
    if unknown := [tower for tower in chosen if tower not in known]:
        towers = f"its towers are {' and '.join(known)}" if known else "it has one stack; give the mechanism alone"
        raise OptionError(f"A {name} has no tower {unknown[0]!r}; {towers}.{nearest(unknown[0], known)}")
