"""The families that read sound, for the table of ``check_families.py``: their checkpoints, and what is checked differently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from hf_longattn.errors import ExportError
from hf_longattn.export import export_checkpoint
from scripts.dev.tools.family_checkpoints import SHAPE, Checkpoint
from scripts.dev.tools.family_checks import GROWTH, Differs, NotApplicable, Subject
from scripts.dev.tools.small_models import SOUND_FAMILIES, small_audio_config

__all__ = ["SOUND_FAMILIES", "SoundSubject", "make_sound_checkpoint"]

SECONDS = 4
"""The longest sound of a base whose table of positions says so (Whisper); of the others it is what their rule says."""
WRITES = ("ForConditionalGeneration", "ForCTC", "ForRNNT", "ForTDT")
"""Endings of the classes that write text, the ones first that an architecture is known for."""
DECODED = "decoder_input_ids"


def make_sound_checkpoint(base: str, folder: Path) -> Checkpoint:
    """Save a checkpoint with its feature extractor, where that needs no further library, through transformers."""
    family, rule = SOUND_FAMILIES[base], SOUND_FAMILIES[base].rule
    assert rule is not None
    head = next((name for ending in WRITES for name in family.model_classes if name.endswith(ending)), next(iter(family.model_classes)))
    config = small_audio_config(base, SHAPE, max_source_positions=SECONDS * 50)
    torch.manual_seed(0)
    model: Any = family.base_class(head)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.requires_grad:
                parameter.mul_(4)
    model.save_pretrained(folder)
    name = "seeded features, no feature extractor"
    if rule.features is None:
        transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
        name = "Wav2Vec2FeatureExtractor"
    return Checkpoint(base, head, folder, name, rule.frames(config, rule.length(rule.durations(config)[0])))


class SoundSubject(Subject):
    """A checkpoint of a family that reads sound, converted to four times the duration."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        super().__init__(checkpoint, folder)
        self.rule: Any = self.family.rule

    @property
    def command_options(self) -> list[str]:
        """A window as long as the sound before, unless the base has windows that the result keeps."""
        config = self.family.base_config_class.from_pretrained(self.checkpoint.folder)
        frames = self.checkpoint.length
        chosen = ["--mechanism", "window", "--option", f"left={frames}", "--option", f"right={frames}"]
        limit = self.rule.longest(config)
        seconds = GROWTH * self.rule.durations(config)[0]
        if limit is not None:
            seconds = min(seconds, self.rule.seconds(self.rule.length_of(config, limit)))
        return [*([] if self.family.own_attention else chosen), "--audio-seconds", f"{seconds:g}", "--needs-training"]

    def old_length(self) -> str:
        base = self.family.base_class(self.checkpoint.head).from_pretrained(self.checkpoint.folder).eval()
        inputs = self._inputs(2, self.checkpoint.length)
        return self._equal(self._logits(base, inputs), self._logits(self._long(), inputs), inputs)

    def compile(self) -> str:
        if not hasattr(self._long(), "joint"):
            return super().compile()
        model, inputs = self._long().get_encoder(), self._inputs(2, self.checkpoint.length + 40)
        inputs.pop(DECODED)
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")  # which does not take the decoder's LSTM
        return f"of the encoder, {self._equal(self._logits(model, inputs), self._logits(compiled, inputs), inputs)}"

    def export(self) -> str:
        try:
            report = export_checkpoint(self._converted, self.folder / "graph", format="torch", overwrite=True)
        except ExportError as error:
            if "is a transducer" not in str(error):
                raise
            raise NotApplicable("a transducer, whose encoder is exported by itself") from error
        return f"torch.export, {max(check.values['difference'] for check in report.checks):.0e}"

    def generate(self) -> str:
        raise NotApplicable("reads sound")

    def _auto(self) -> Any:
        return self.long_class

    def _inputs(self, batch: int, length: int, *, left: bool = False) -> dict[str, Tensor]:
        """Sounds of random samples or features with ``length`` frames, and some tokens for what writes text."""
        config = self.family.config_class.from_pretrained(self._converted)
        limit = self.rule.longest(config)
        frames = length if limit is None else min(length, limit)
        multiple = self.rule.multiple(config)
        longest = (self.rule.length_of(config, frames + 1) - 1) // multiple * multiple  # with these frames; Whisper reads no shorter one
        row = self.rule.seeded(config, self.rule.seconds(longest))
        rows = torch.cat([row.roll(number * 1000, self.rule.time_axis) for number in range(batch)])
        inputs: dict[str, Tensor] = self.rule.arguments(rows)
        if config.is_encoder_decoder:
            count = 1 if hasattr(config, "blank_token_id") else 6
            inputs[DECODED] = torch.arange(batch * count).view(batch, count)
        return inputs

    def _trained(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        return self._states(model(**inputs)).float().square().mean()

    def _logits(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self._states(model(**inputs))

    @staticmethod
    def _states(outputs: Any) -> Tensor:
        states: Tensor = outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state
        return states

    def _equal(self, expected: Tensor, measured: Tensor, inputs: dict[str, Tensor]) -> str:
        if expected.shape != measured.shape:
            raise Differs(f"outputs have the shapes {tuple(measured.shape)} and {tuple(expected.shape)}")
        return self._equal_at(torch.ones_like(expected, dtype=torch.bool), expected, measured)
