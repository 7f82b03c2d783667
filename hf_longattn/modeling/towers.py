"""Mixin for Long models with several towers. Each tower is the Long model of its own family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..errors import InputError, LongAttentionError
from ..files import TAGS
from ..names import BACKEND
from .attach.weights import check_tables, drop_tables, freeze_tables
from .family.definition import tower_field
from .family.long_config import IMPLEMENTATION_FIELD, attention_implementation
from .grids import REFUSED_ARGUMENTS
from .mixin import LongAttentionMixin

if TYPE_CHECKING:
    from typing_extensions import Self


class LongTowersMixin(LongAttentionMixin):
    """Mixin before the base's model class. Its towers are the attributes ``text_model``, ``vision_model`` …, one for
    each name in the config's ``tower_classes``."""

    added_arguments = ()

    def read_arguments(self, arguments: dict[str, Any]) -> None:
        """Check the arguments of ``forward``.

        Raises:
            InputError: an argument for texts was given. The base would pass it to every tower.
            LongAttentionError: the input of a tower is missing.
        """
        for name in REFUSED_ARGUMENTS:
            if arguments.pop(name, None) is not None:
                raise InputError(
                    f"{name} is for texts, and {type(self).__name__} hands it to every tower; call "
                    f"get_text_features(input_ids, {name}=...) and get_image_features instead."
                )
        for tower in self.towers.values():
            name = tower.main_input_name
            if arguments.get(name) is None:
                raise LongAttentionError(
                    f"A {type(self).__name__} compares texts with images, and {name} is missing; give it, or call "
                    "get_text_features for texts alone, and get_image_features for images."
                )

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        for tower in config.towers.values():
            # towers are built as the base's classes, which would choose transformers' default implementation
            if attention_implementation(tower) is None:
                setattr(tower, IMPLEMENTATION_FIELD, BACKEND)
        super().__init__(config, *args, **kwargs)

    def post_init(self) -> None:
        """Make each tower a Long model with its mechanisms. The base calls this at the end of its ``__init__``."""
        for name, tower in self.towers.items():
            module: Any = tower
            module.__class__ = self.family.towers[name].long_class_of(type(tower))
            module.after_class_swap()
            module.post_init()
        super(LongAttentionMixin, self).post_init()  # LongAttentionMixin would attach mechanisms to the whole model
        self.add_model_tags(list(TAGS))

    @property
    def towers(self) -> dict[str, LongAttentionMixin]:
        """The Long model of each tower, by name."""
        return {name: getattr(self, f"{name}_model") for name in self.config_class.tower_classes}

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialise missing weights. Position tables that a tower does not use become zero."""
        super().initialize_weights()
        for tower in self.towers.values():
            drop_tables(tower, tower.family)

    def use_base_attention(self, implementation: str | None = None) -> None:
        """Compute the plain base's attention in every tower; see :meth:`LongAttentionMixin.use_base_attention`."""
        for tower in self.towers.values():
            tower.use_base_attention(implementation)

    @property
    def runs_mechanisms(self) -> bool:
        """Whether mechanisms run in every tower."""
        return all(tower.runs_mechanisms for tower in self.towers.values())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load a model as the base's ``from_pretrained`` does. The position tables of a short checkpoint are extended
        to the length in each tower's config.

        Raises:
            OptionError: a tower's config is shorter than the checkpoint.
        """
        for name, family in cls.family.towers.items():
            config = getattr(kwargs.get("config"), tower_field(name), None)
            check_tables(family, pretrained_model_name_or_path, {**kwargs, "config": config})
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for tower in model.towers.values():
            freeze_tables(tower, tower.family)
        return loaded
