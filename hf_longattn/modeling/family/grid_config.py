"""The config of a Long model for images, videos or spectrograms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...configuration import LongAttentionConfig
from ...errors import OptionError
from ...mechanisms.common.registry import mechanism_class, prototype
from ...options import ORDER
from .config import LongEncoderConfig
from .grid_rule import image_size

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
        self._take_size(kwargs)
        super().__post_init__(**kwargs)

    def _take_size(self, values: dict[str, Any]) -> None:
        """Set the size for which the model was converted. Removes it from ``values``, the other fields."""
        size = values.pop("long_image_size", None)
        self.long_image_size = None if size is None else list(image_size(size))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "long_attention":
            for layer in range(self.num_hidden_layers):
                check_mechanism_for_grid(*self.long_attention.for_layer(layer))


class LongVideoConfig(LongGridConfig):
    """Mixin before the base's config class for videos.

    long_image_size: ``(height, width)`` of the frames, in pixels, for which the model was converted.
    long_num_frames: number of frames for which the model was converted. Videos of other sizes are read as well.
    position_extension: as for images; ``"tile"`` also repeats positions along time.
    """

    if TYPE_CHECKING:
        long_num_frames: int | None
    else:
        long_num_frames = None

    def _take_size(self, values: dict[str, Any]) -> None:
        super()._take_size(values)
        frames = values.pop("long_num_frames", None)
        if frames is not None and (not isinstance(frames, int) or isinstance(frames, bool) or frames < 1):
            raise OptionError(f"long_num_frames is {frames!r}, but must be a number of frames, for example 32.")
        self.long_num_frames = frames


class LongMaskedAutoencoderConfig(LongGridConfig):
    """Mixin before the base's config class, for pre-training. The head has a decoder that sees all cells.

    decoder_long_attention: the attention of that decoder; ``None`` for full attention.
    """

    adds = "``long_attention`` and, for the decoder, ``decoder_long_attention``"

    if TYPE_CHECKING:
        decoder_long_attention: LongAttentionConfig | None
        decoder_num_hidden_layers: int
    else:
        decoder_long_attention = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.decoder_long_attention = kwargs.pop("decoder_long_attention", None)
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "decoder_long_attention" and value is not None:
            value = LongAttentionConfig.from_dict(value)
            value.check_forms(self.decoder_num_hidden_layers, False)
            for layer in range(self.decoder_num_hidden_layers):
                check_mechanism_for_grid(*value.for_layer(layer))
        super().__setattr__(name, value)

    def to_dict(self) -> dict[str, Any]:
        values, attention = super().to_dict(), self.decoder_long_attention
        return values if attention is None else {**values, "decoder_long_attention": attention.to_dict()}

    @property
    def decoder_attention(self) -> LongAttentionConfig:
        """The mechanisms of the decoder."""
        return LongAttentionConfig("full") if self.decoder_long_attention is None else self.decoder_long_attention

    @property
    def _computes_as_base(self) -> bool:
        decoder = self.decoder_attention
        full = all(decoder.for_layer(layer)[0] == "full" for layer in range(self.decoder_num_hidden_layers))
        return full and super()._computes_as_base


def check_mechanism_for_grid(mechanism: str, options: dict[str, Any]) -> None:
    """Raise :class:`OptionError` for a mechanism that would not read an image as a grid. It reads a line of text or segments."""
    if mechanism_class(mechanism).traits.images_need_order and options.get(ORDER) is None:
        raise OptionError(
            f"Mechanism {mechanism!r} sees neighbours along a text, and an image has none; say in which order it is read, for example "
            "with the option order=tiles:8x8, or choose a mechanism on a grid such as 'window2d'."
        )
    built = prototype(mechanism, options)
    if built.traits.recursion is not None or built.traits.remembers:
        raise OptionError(
            f"Mechanism {mechanism!r} reads one segment of a text after the other and remembers the earlier ones, and the patches of a "
            "image have no such order; choose a mechanism on a grid such as 'window2d'."
        )
