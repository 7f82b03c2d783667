"""The families of models of several towers, for the table of ``check_families.py``: their checkpoints, and what is checked differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from scripts.dev.tools.family_checkpoints import SHAPE, VOCABULARY, Checkpoint, trained_tokenizer, training_text
from scripts.dev.tools.family_checks import GROWTH, Differs, NotApplicable, Subject
from scripts.dev.tools.picture_families import PATCH, SIDE
from scripts.dev.tools.small_models import TOWER_FAMILIES, small_towers_config

__all__ = ["TOWER_FAMILIES", "TowersSubject", "make_towers_checkpoint"]

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def make_towers_checkpoint(base: str, folder: Path) -> Checkpoint:
    """Save a checkpoint with its tokenizer and its image processor through transformers."""
    family = TOWER_FAMILIES[base]
    tokenizer, described = trained_tokenizer(base, training_text(), VOCABULARY)
    ids = {name: getattr(tokenizer, name) for name in SPECIAL if getattr(tokenizer, name, None) is not None}
    length = family.towers["text"].longest(family.base_config_class().text_config)
    values = {"patch_size": PATCH, "image_size": PATCH * SIDE, "num_patches": SIDE**2, "vocab_size": len(tokenizer)}
    config = small_towers_config(base, SHAPE, max_position_embeddings=length, **values, **ids)
    torch.manual_seed(0)
    model: Any = family.base_class(family.base_model_name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and not hasattr(config.text_config, "initializer_factor"):
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)
    size = {"height": PATCH * SIDE, "width": PATCH * SIDE}
    rule: Any = family.towers["vision"].rule
    sizes = {"patch_size": PATCH, "max_num_patches": SIDE**2} if rule.shapes else {"size": size, "crop_size": size}
    getattr(transformers, str(IMAGE_PROCESSOR_MAPPING_NAMES[base]["pil"]))(**sizes).save_pretrained(folder)
    return Checkpoint(base, family.base_model_name, folder, described, length)


class TowersSubject(Subject):
    """A checkpoint of texts and pictures, converted to four times the length, and to twice the height and width."""

    trained_length = SIDE + 4

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        super().__init__(checkpoint, folder)
        self.auto_class = "AutoModel"
        self.rule: Any = self.family.towers["vision"].rule

    @property
    def command_options(self) -> list[str]:
        """Windows of all that the base sees; tiled positions of texts, which keep all old texts as they were."""
        length = self.checkpoint.length
        size = [] if self.rule.shapes else ["--image-size", str(2 * PATCH * SIDE)]
        towers = f"text=window:window={2 * length},vision=window2d:window={SIDE}"
        return ["--towers", towers, "--max-length", str(GROWTH * length), *size, "--positions", "text=tile"]

    def old_length(self) -> str:
        base = self.family.base_class(self.checkpoint.head).from_pretrained(self.checkpoint.folder).eval()
        inputs = {**self._inputs(2, SIDE), **self._captions(2, self.checkpoint.length)}
        return self._equal(self._logits(base, inputs), self._logits(self._long(), inputs), inputs)

    def compile(self) -> str:
        if self.rule.shapes is not None:
            raise NotApplicable("sizes of pictures are read from a tensor, which no graph knows")
        return super().compile()

    def export(self) -> str:
        raise NotApplicable("each tower is exported by itself")

    def generate(self) -> str:
        raise NotApplicable("an embedder")

    def convert(self) -> str:
        if self.rule.shapes is not None:
            raise NotApplicable("reads pictures of any size, so that there is no size to convert; loaded with long_attention")
        return super().convert()

    def _captions(self, batch: int, length: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {"input_ids": torch.randint(5, VOCABULARY // 2, (batch, length), generator=generator)}

    def _inputs(self, batch: int, length: int, *, left: bool = False) -> dict[str, Tensor]:
        """Captions longer than the base's, and pictures with ``length`` patches along each axis."""
        config = self.family.config_class.from_pretrained(self._converted).vision_config
        side = min(length, 2 * SIDE)
        pixels = torch.randn(batch, config.num_channels, *2 * [PATCH * side], generator=torch.Generator().manual_seed(0))
        return {**self.rule.arguments_for_all(config, pixels), **self._captions(batch, 2 * self.checkpoint.length)}

    @property
    def _converted(self) -> Path:
        if self.rule.shapes is None:
            return super()._converted
        folder = self.folder / "loaded"
        if not folder.is_dir():
            towers = {
                "text": {"mechanism": "window", "window": 2 * self.checkpoint.length},
                "vision": {"mechanism": "window2d", "window": SIDE},
            }
            config = self.family.config_class.from_pretrained(self.checkpoint.folder, long_attention={"towers": towers})
            config.text_config.max_position_embeddings = GROWTH * self.checkpoint.length
            self.long_class.from_pretrained(self.checkpoint.folder, config=config).save_pretrained(folder)
        return folder

    def _trained(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        return model(**inputs, return_loss=True).loss

    def _logits(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            similarities: Tensor = model(**inputs).logits_per_text
        return similarities

    def _equal(self, expected: Tensor, measured: Tensor, inputs: dict[str, Tensor]) -> str:
        if expected.shape != measured.shape:
            raise Differs(f"outputs have the shapes {tuple(measured.shape)} and {tuple(expected.shape)}")
        return self._equal_at(torch.ones_like(expected, dtype=torch.bool), expected, measured)
