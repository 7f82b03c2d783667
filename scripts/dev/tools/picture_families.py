"""The families that read pictures, or spectrograms in patches, for the table of ``check_families.py``: their checkpoints, and what is
checked differently."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from hf_longattn.export import export_checkpoint
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.family.grid_rule import StagedGrid
from scripts.dev.tools.family_checkpoints import SHAPE, Checkpoint
from scripts.dev.tools.family_checks import Differs, NotApplicable, Subject
from scripts.dev.tools.small_models import small_picture_config

PICTURE_FAMILIES = {base: family for base, family in FAMILIES.items() if family.rule.reads == "grid"}
"""The families whose input is a grid of patches, of pixels or of a spectrogram, by their base."""
PATCH, SIDE = 8, 8
"""Pixels of a patch, and patches along each axis of the pictures for which the checkpoints are made; those of a spectrogram overlap."""
TASKS = ("ImageClassification", "VideoClassification", "AudioClassification", "PreTraining")
"""The heads that are checked, the first that a base has; a base without one is checked as it is."""
USUAL_PROCESSOR = "ViTImageProcessorPil"
"""Of bases for which transformers names none that needs Pillow alone."""


def make_picture_checkpoint(base: str, folder: Path) -> Checkpoint:
    """Save a checkpoint with its image processor through transformers."""
    heads = FAMILIES[base].model_classes
    head = next((name for task in TASKS for name in heads if name.endswith(f"For{task}")), None)
    patch = PATCH // 2 if isinstance(FAMILIES[base].rule, StagedGrid) else PATCH  # DiNAT's has one size alone
    config = small_picture_config(base, SHAPE, patch, PATCH * SIDE // patch)
    torch.manual_seed(0)
    model: Any = FAMILIES[base].base_class(head or FAMILIES[base].base_model_name)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("bias_table", "rpb", "rel_pos", "register_tokens")):  # zeros in a model that is untrained
                nn.init.normal_(parameter)
            elif parameter.ndim == 2 and parameter.requires_grad:
                parameter.mul_(4)
    model.save_pretrained(folder)
    rule: Any = FAMILIES[base].rule
    if rule.noun == "video":
        crop = {"height": PATCH * SIDE, "width": PATCH * SIDE}
        transformers.VideoMAEImageProcessorPil(size={"shortest_edge": PATCH * SIDE}, crop_size=crop).save_pretrained(folder)
        return Checkpoint(base, type(model).__name__, folder, "VideoMAEImageProcessorPil", rule.most_tokens(FAMILIES[base], config))
    if not rule.reads_pictures:
        transformers.ASTFeatureExtractor(num_mel_bins=PATCH * SIDE, max_length=PATCH * SIDE).save_pretrained(folder)
        return Checkpoint(base, type(model).__name__, folder, "ASTFeatureExtractor", SIDE**2)
    towers = (base, base.removesuffix("_vision_model"))
    name = next((names["pil"] for tower in towers if "pil" in (names := IMAGE_PROCESSOR_MAPPING_NAMES.get(tower) or {})), USUAL_PROCESSOR)
    size = {"height": PATCH * SIDE, "width": PATCH * SIDE}
    sizes = {"patch_size": PATCH, "max_num_patches": SIDE**2} if rule.shapes else {"size": size, "crop_size": size}
    getattr(transformers, name)(**sizes).save_pretrained(folder)
    return Checkpoint(base, type(model).__name__, folder, name, SIDE**2)


class PictureSubject(Subject):
    """A checkpoint of a family that reads pictures, converted to twice the height and width; one of spectrograms, to twice the time."""

    trained_length = SIDE + 4
    """Patches along each axis of the pictures that are trained on."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        super().__init__(checkpoint, folder)
        task = next((task for task in TASKS if checkpoint.head.endswith(f"For{task}")), None)
        self.auto_class = "AutoModel" if task is None else f"AutoModelFor{task}"
        self.rule: Any = self.family.rule
        self.windows = {"mechanism": "window2d", "window": SIDE}

    @property
    def command_options(self) -> list[str]:
        """Windows as large as the picture before, unless the base has an attention that the result keeps."""
        config = self.family.base_config_class.from_pretrained(self.checkpoint.folder)
        size = self.rule.sizes(config)[0]
        side = max(self.rule.of_size(config, size).sizes)
        chosen = [] if self.family.own_attention else ["--mechanism", "window2d", "--option", f"window={side}"]
        return [*chosen, self.rule.size_flag, *self.rule.typed(self.rule.doubled(size)).split()]

    def convert(self) -> str:
        self._check_size()
        return super().convert()

    def on_the_fly(self) -> str:
        self._check_size()
        return super().on_the_fly()

    def old_length(self) -> str:
        base = self.family.base_class(self.checkpoint.head).from_pretrained(self.checkpoint.folder).eval()
        inputs = self._inputs(2, SIDE)
        return self._equal(self._logits(base, inputs), self._logits(self._long(), inputs), inputs)

    def compile(self) -> str:
        if self.rule.shapes is not None:
            raise NotApplicable("sizes of pictures are read from a tensor, which no graph knows")
        model, inputs = self._long(), self._inputs(2, SIDE + 5)
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        return self._equal(self._logits(model, inputs), self._logits(compiled, inputs), inputs)

    def export(self) -> str:
        report = export_checkpoint(self._converted, self.folder / "graph", overwrite=True)
        return f"ONNX, {max(check.values['difference'] for check in report.checks):.0e}"

    def generate(self) -> str:
        raise NotApplicable(f"reads {self.rule.noun}s")

    def _check_size(self) -> None:
        if self.rule.shapes is not None:
            raise NotApplicable("reads pictures of any size, so that there is no size to convert; loaded with long_attention")

    @cached_property
    def _loaded(self) -> Path:
        """The Long model of a base that reads any size, with windows."""
        folder = self.folder / "long"
        self.long_class.from_pretrained(self.checkpoint.folder, long_attention=self.windows).save_pretrained(folder)
        for file in self.checkpoint.folder.glob("*processor*.json"):
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    @property
    def _converted(self) -> Path:
        return super()._converted if self.rule.shapes is None else self._loaded

    def _inputs(self, batch: int, length: int, *, left: bool = False) -> dict[str, Tensor]:
        """Pictures of random pixels with ``length`` patches along each axis, or spectrograms of as many pixels along time."""
        config = self.family.config_class.from_pretrained(self._converted)
        if self.rule.noun == "video":
            shape = (batch, self.rule.channels(config), self.rule.sizes(config)[0][0], *2 * [PATCH * length])
            return self.rule.arguments(config, torch.randn(shape, generator=torch.Generator().manual_seed(0)))
        if not self.rule.reads_pictures:
            bins, frames = PATCH * SIDE, PATCH * length
            return self.rule.arguments(config, torch.randn(batch, 1, bins, frames, generator=torch.Generator().manual_seed(0)))
        pixels = torch.randn(batch, config.num_channels, *2 * [PATCH * length], generator=torch.Generator().manual_seed(0))
        return self.rule.arguments_for_all(config, pixels)

    def _trained(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        return model(**inputs)[0].float().square().mean()

    def _logits(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            outputs = model(**inputs)
        states: Tensor = outputs.logits if hasattr(outputs, "logits") else outputs[0]
        return states

    def _equal(self, expected: Tensor, measured: Tensor, inputs: dict[str, Tensor]) -> str:
        if expected.shape != measured.shape:
            raise Differs(f"outputs have the shapes {tuple(measured.shape)} and {tuple(expected.shape)}")
        return self._equal_at(torch.ones_like(expected, dtype=torch.bool), expected, measured)
