"""The config of a Long model for images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import OptionError
from ...mechanisms.common.options import ORDER
from ...mechanisms.common.registry import mechanism_class, prototype
from .grid_spec import image_size
from .long_config import LongEncoderConfig

INTERPOLATE, TILE = "interpolate", "tile"


class LongGridConfig(LongEncoderConfig):
    """Mixin before the base's config class: ``class LongViTConfig(LongGridConfig, ViTConfig)``.

    long_attention: as in a text model; default: ``window2d`` if the base's attention is full.
    image_size: the base's, unchanged: the size of the images for which the position table was trained.
    long_image_size: ``(height, width)``, in pixels, for which the model was converted. Other sizes are read as well.
    position_extension: the positions of larger images. ``"interpolate"`` resizes the table by the base's own method. ``"tile"`` repeats
        the table along both axes, so every whole repetition has exactly the trained positions (Bolya et al. 2023, Window Attention is
        Bugged). Both leave the stored table unchanged.
    """

    default_mechanism = "window2d"

    if TYPE_CHECKING:
        long_image_size: list[int] | None
    else:
        long_image_size = None

    def __post_init__(self, **kwargs: Any) -> None:
        extension = kwargs.setdefault("position_extension", INTERPOLATE)
        if extension not in (INTERPOLATE, TILE):
            raise OptionError(f"position_extension is {extension!r}, but must be {INTERPOLATE!r} or {TILE!r} for a model of images.")
        size = kwargs.pop("long_image_size", None)
        self.long_image_size = None if size is None else list(image_size(size))
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "long_attention":
            for layer in range(self.num_hidden_layers):
                check_mechanism_for_grid(*self.long_attention.for_layer(layer))


def check_mechanism_for_grid(mechanism: str, options: dict[str, Any]) -> None:
    """Raise :class:`OptionError` for a mechanism that would not read an image as a grid. It reads a line of text or segments."""
    if mechanism_class(mechanism).capabilities.images == "ordered" and options.get(ORDER) is None:
        raise OptionError(
            f"Mechanism {mechanism!r} sees neighbours along a text, and an image has none; say in which order it is read, for example "
            "with the option order=tiles:8x8, or choose a mechanism on a grid such as 'window2d'."
        )
    built = prototype(mechanism, options)
    if built.capabilities.images == "never":
        raise OptionError(
            f"Mechanism {mechanism!r} reads one segment of a text after the other and remembers the earlier ones, and the patches of a "
            "image have no such order; choose a mechanism on a grid such as 'window2d'."
        )
