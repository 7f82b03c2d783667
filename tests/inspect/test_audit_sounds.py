"""Audits of models of sound: frames are replaced, and what changes is what the mechanisms let see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_longattn import export_checkpoint
from hf_longattn.cli import main
from hf_longattn.errors import LengthError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.inspect import audit_reach
from hf_longattn.inspect.numbered_inputs import AuditSounds
from tests.cells import every_cell
from tests.grids import every_other
from tests.modeling.audio_models import EVERY_FAMILY, THREE_CONVOLUTIONS, long_model, saved, small_model, smallest_head

WINDOW = {"mechanism": "window", "left": 5, "right": 3}
FRAMES = 48


@pytest.mark.thorough
@every_cell("base", every_other(EVERY_FAMILY), of=3)
def test_every_frame_reaches_what_the_mechanism_says(base: str, tmp_path: Path) -> None:
    saved(base, smallest_head(base), tmp_path / "short")
    model = long_model(base, smallest_head(base), tmp_path / "short", long_attention=WINDOW)
    model.save_pretrained(tmp_path / "long")
    audit = audit_reach(tmp_path / "long", length=FRAMES)
    assert audit.agrees, audit.to_dict()
    assert [stage.stage for stage in audit.stages][:2] == ["layer 0", "layer 1"]
    assert [(stage.declared, stage.measured) for stage in audit.stages[:2]] == [((5, 3), (5, 3))] * 2
    rule: Any = FAMILIES[base].rule
    assert (audit.stages[-1].stage == "output") == (rule.over_frames(model.config) is not None)
    assert all(stage.measured == stage.declared for stage in audit.stages)


@pytest.mark.parametrize("base", ["wav2vec2", "whisper"])
def test_the_base_s_attention_is_what_its_config_says(base: str) -> None:
    model = small_model(base, smallest_head(base))
    assert audit_reach(model, length=FRAMES if base != "whisper" else None).agrees


@pytest.mark.slow  # the graph of images is audited by the same code, in tests/export/test_images.py
def test_a_graph(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    saved("wav2vec2", "Wav2Vec2ForCTC", tmp_path / "short", num_hidden_layers=1, num_conv_pos_embeddings=4, **THREE_CONVOLUTIONS)
    for name, left in (("long", 5), ("wider", 9)):
        attention = {**WINDOW, "left": left}
        long_model("wav2vec2", "Wav2Vec2ForCTC", tmp_path / "short", long_attention=attention).save_pretrained(tmp_path / name)
    export_checkpoint(tmp_path / "wider", tmp_path / "graph")
    assert audit_reach(tmp_path / "wider", onnx=tmp_path / "graph", length=FRAMES).agrees
    assert not audit_reach(tmp_path / "long", onnx=tmp_path / "graph", length=FRAMES).agrees


@pytest.mark.thorough
@every_cell("base", EVERY_FAMILY)
@every_cell("frames", [9, 40])
def test_a_stretch_is_what_lies_between_two_frames(base: str, frames: int) -> None:
    config = small_model(base, smallest_head(base)).config
    sounds = AuditSounds(FAMILIES[base], config, frames)
    first, second = (sounds.inputs(torch.full((frames,), number))[sounds.argument] for number in (1, 2))
    rule: Any = FAMILIES[base].rule
    assert rule.frames(config, rule.as_input(first).shape[1]) == frames
    assert (first != second).any()


def test_what_is_not_audited_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LengthError, match=r"takes 8 to 131,072 frames, not 3; give --length 749"):
        audit_reach(small_model("wav2vec2", "Wav2Vec2Model"), length=3)
    with pytest.raises(LengthError, match=r"reads sounds of 1,500 frames, not of 64; leave --length out"):
        audit_reach(small_model("whisper", "WhisperModel"), length=64)
    saved("wav2vec2", "Wav2Vec2Model", tmp_path)
    with pytest.raises(OptionError, match=r"take texts, not sound; leave --url out"):
        audit_reach(tmp_path, url="http://localhost:1/embed")
    with pytest.raises(SystemExit) as ended:
        main(["audit", str(tmp_path), "--length", "3"])
    assert ended.value.code == 1
    assert "not 3; give --length 749." in capsys.readouterr().err
