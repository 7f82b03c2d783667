"""Labelled images: reading, augmentation, and batches from the model's image processor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from ..errors import CheckpointError, check_extra, in_a_line
from ..names import logger
from .batching import EVALUATION, EpochAwareCollator, seed_of
from .sources import DataError, path_and_content

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from transformers import PreTrainedModel

AUGMENTATIONS = ("crop+flip", "crop", "flip", "none")
"""Names of augmentations. crop is a resized random crop, and flip a horizontal flip with a probability of 1/2."""
EXTRA = "images"
Augmentation: TypeAlias = tuple[Callable[["PillowImage"], "PillowImage"], dict[str, Any]]
"""A random transform of an image by torchvision, and the image processor's arguments for transformed images."""


def read_image(image: Path | Mapping[str, Any], name: str = "", otherwise: str = "leave it out") -> PillowImage:
    """Read an image in any format of Pillow as RGB, rotated by its EXIF data.

    Of several frames, the first one is read. Transparent parts become white, as on a web page, because their stored
    colour is arbitrary. 16-bit grey values are scaled to 8 bits.

    Args:
        image: a path, or a cell of ``datasets.Image(decode=False)``, which has ``path`` or ``bytes``.
        name: name of the image in messages; default: its path.
        otherwise: the last advice in messages, after "or".

    Raises:
        DataError: the image does not exist, is empty or damaged, has more pixels than Pillow reads, or is not an
            image.
    """
    check_extra(EXTRA, "PIL")
    from PIL import Image as Pillow
    from PIL import ImageOps

    path, content = path_and_content(image)
    name = name or str(path)
    try:
        with warnings.catch_warnings():  # Pillow warns of images with half as many pixels as it refuses
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)
            with Pillow.open(content) as opened:
                opened.load()
                upright = ImageOps.exif_transpose(opened)
    except Exception as error:  # formats raise errors of many kinds: SyntaxError, struct.error, zlib.error, EOFError
        reason = f"{type(error).__name__}: {in_a_line(error)}"
        raise DataError(
            f"The image {name} cannot be read ({reason}); correct its path, save it as PNG, or {otherwise}."
        ) from error
    if upright.mode in ("I", "F"):
        raise DataError(
            f"The image {name} has values without a range (Pillow's mode {upright.mode}); save it with 8 or 16 bits."
        )
    if upright.mode.startswith("I;16"):  # convert would make every value above 255 white
        upright = upright.point(lambda value: value * (1 / 256), "L")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    background = Pillow.new("RGBA", upright.size, "white")
    return Pillow.alpha_composite(background, upright.convert("RGBA")).convert("RGB")


def checked_size(model: PreTrainedModel, processor: Any, row: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the images that an image processor makes, found by running it on one image.

    Args:
        row: a row with ``image``, ``name`` and ``label``.

    Raises:
        CheckpointError: the model was converted for another size. The processor would silently shrink the images.
    """
    batch = ImageCollator(processor, [row["label"]])([dict(row)])
    height, width = batch["pixel_values"].shape[-2:]
    converted = getattr(model.config, "long_image_size", None)
    if converted is not None and tuple(converted) != (height, width):
        raise CheckpointError(
            f"The image processor of {model.name_or_path!r} makes images of {height} × {width} pixels, but the model "
            f"was converted for {' × '.join(map(str, converted))}; set size in its preprocessor_config.json to that."
        )
    return height, width


class ImageCollator(EpochAwareCollator):
    """Makes batches of ``pixel_values (B, 3, H, W)``, by the image processor, and ``labels (B,)``.

    The augmentation of an image depends only on the seed, ``epoch`` and the image's name. A resumed run therefore
    draws the same augmentations, with any number of workers. Evaluations do not augment images.

    Args:
        processor: the model's image processor.
        names: label names, in the order of their numbers.
        augmentation: see :func:`augmentation_of`; ``None`` = none.
    """

    def __init__(
        self, processor: Any, names: Sequence[str], augmentation: Augmentation | None = None, seed: int = 0
    ) -> None:
        self.processor, self.augmentation, self.seed = processor, augmentation, seed
        self.numbers = {name: number for number, name in enumerate(names)}

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The batch of rows with ``image``, ``name`` and ``label``; see :func:`.rows.rows_of`."""
        images = [read_image(row["image"], row["name"]) for row in features]
        settings: dict[str, Any] = {}
        if self.augmentation is not None and self.epoch != EVALUATION:
            transform, settings = self.augmentation
            with torch.random.fork_rng(devices=[]):
                for number, row in enumerate(features):
                    seed = seed_of(self.seed, self.epoch, row["name"])
                    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs, too
                    images[number] = transform(images[number])
        pixels = [torch.as_tensor(image) for image in self.processor(images, **settings)["pixel_values"]]
        sizes = {tuple(image.shape[-2:]) for image in pixels}
        if len(sizes) > 1:
            examples = " and ".join(f"{height} × {width}" for height, width in sorted(sizes)[:2])
            raise DataError(
                f"The model's image processor makes images of several sizes, such as {examples} pixels; set do_resize "
                "to true, and size to a height and a width, in its preprocessor_config.json."
            )
        return {
            "pixel_values": torch.stack(pixels),
            "labels": torch.tensor([self.numbers[row["label"]] for row in features]),
        }


def augmentation_of(name: str, size: tuple[int, int]) -> Augmentation | None:
    """The augmentation of a training, as in transformers' ``run_image_classification``; ``None`` = no augmentation.

    Args:
        name: one of :data:`AUGMENTATIONS`. "" is the first one, or no augmentation, with a warning, if torchvision is
            not installed.
        size: height and width of the images that the image processor makes. A crop is resized to them.
    """
    if name == "none":
        return None
    if not name and find_spec("torchvision") is None:
        logger.warning(
            "The images are not augmented: random crops and flips need a torchvision that fits the installed torch; "
            f"type pip install '.[{EXTRA}]' in a clone of hf_longattn, or --augmentation none."
        )
        return None
    check_extra(EXTRA, "torchvision")
    from torchvision.transforms import Compose, RandomHorizontalFlip, RandomResizedCrop

    transforms = {"crop": RandomResizedCrop(size), "flip": RandomHorizontalFlip()}
    chosen = (name or AUGMENTATIONS[0]).split("+")
    settings = {}
    if "crop" in chosen:  # crops already have the size of the processor's images
        settings = {"do_resize": False, "do_center_crop": False}
    return Compose([transforms[key] for key in chosen]), settings
