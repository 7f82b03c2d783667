"""LongParakeet: NeMo's local attention on transformers' checkpoints, an hour at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from hf_longattn.errors import OptionError
from hf_longattn.families import FAMILIES, LongParakeetCTCConfig, LongParakeetEncoderConfig
from hf_longattn.families import parakeet_encoder as family
from tests.cells import every_cell
from tests.modeling.audio_models import inputs_of, long_model, saved, small_model
from tests.modeling.test_audio_models import Largest

HEADS = {"parakeet_ctc": "ParakeetForCTC", "parakeet_rnnt": "ParakeetForRNNT", "parakeet_tdt": "ParakeetForTDT"}
BAND = {"mechanism": "window", "left": 9, "right": 4}


def test_the_default_is_nemo_s_context() -> None:
    for config in (LongParakeetEncoderConfig(), LongParakeetCTCConfig()):
        name, options = config.long_attention.for_layer(0)
        assert (name, options["left"], options["right"]) == ("window", 128, 128)


@pytest.mark.thorough
@torch.no_grad()
@every_cell("rows", [25, 31, 32, 33, 47, 48, 49])
@every_cell("masked", [False, True])
def test_convolutions_in_stretches_are_those_of_the_whole(rows: int, masked: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    saved("parakeet_encoder", "ParakeetEncoder", tmp_path)
    model = long_model("parakeet_encoder", "ParakeetEncoder", tmp_path)
    features = torch.randn(3, rows, 16)
    mask = (torch.arange(rows) < torch.tensor([rows, 17, 16])[:, None]).long() if masked else None
    expected = model.subsampling(features, mask)
    monkeypatch.setattr(family, "ROWS_PER_STRETCH", 20)
    torch.testing.assert_close(model.subsampling(features, mask), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_hour(tmp_path: Path) -> None:
    """45,000 frames, of which no tensor holds more than the window's pairs of some blocks."""
    saved("parakeet_encoder", "ParakeetEncoder", tmp_path, num_mel_bins=8)
    model = long_model("parakeet_encoder", "ParakeetEncoder", tmp_path)
    features = torch.randn(1, 360_000, 8)
    with Largest() as mode:
        states = model(features, attention_mask=torch.ones(1, 360_000)).last_hidden_state
    assert states.shape == (1, 45_000, 32)
    assert mode.elements <= features.numel() + 2 * 45_000 * 32


@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize("base", HEADS)
def test_generates_what_the_base_generates(base: str, tmp_path: Path) -> None:
    plain = saved(base, HEADS[base], tmp_path)
    model = long_model(base, HEADS[base], tmp_path, long_attention={"mechanism": "full"})
    inputs = {name: value for name, value in inputs_of(base, (1.2, 1.2)).items() if name != "decoder_input_ids"}
    start = {} if base == "parakeet_ctc" else {"decoder_start_token_id": 98}
    expected, sequences = (either.generate(**inputs, **start) for either in (plain, model))
    assert torch.equal(*(x if isinstance(x, torch.Tensor) else x.sequences for x in (expected, sequences)))


@pytest.mark.parametrize("base", ["parakeet_ctc", "parakeet_tdt"])
def test_losses_and_gradients_are_those_of_the_base(base: str, tmp_path: Path) -> None:
    plain = saved(base, HEADS[base], tmp_path).double()
    model = long_model(base, HEADS[base], tmp_path, long_attention={"mechanism": "full"}).double()
    inputs = inputs_of(base, dtype=torch.float64)
    labels = torch.tensor([[5, 6, 7, 8], [5, 6, 98, 98]])
    losses = []
    for either in (plain, model):
        losses.append(either(**inputs, labels=labels).loss)
        losses[-1].backward()
    torch.testing.assert_close(losses[1], losses[0])
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, rtol=1e-6, atol=1e-9, msg=name)


@torch.no_grad()
def test_global_frames_and_chunks_take_the_positions(tmp_path: Path) -> None:
    """Whatever sees all pairs equals the base."""
    plain = saved("parakeet_encoder", "ParakeetEncoder", tmp_path)
    inputs = inputs_of("parakeet_encoder", (1.2,))
    expected = plain(**inputs).last_hidden_state
    for attention in (
        {"mechanism": "longformer", "window": 2, "global_tokens": list(range(15))},
        {"mechanism": "segmented", "block_size": 15},
        {"mechanism": "window", "left": 15, "right": 15, "relative": "shaw"},
    ):
        model = long_model("parakeet_encoder", "ParakeetEncoder", tmp_path, long_attention=attention)
        torch.testing.assert_close(model(**inputs).last_hidden_state, expected, rtol=1e-4, atol=1e-5, msg=str(attention))


class TestConfigs:
    def test_the_encoder_s_is_the_base_s_in_files(self, tmp_path: Path) -> None:
        config = LongParakeetCTCConfig(long_attention=BAND)
        assert config.encoder_config.long_attention == config.long_attention
        values = config.to_dict()
        assert values["encoder_config"]["model_type"] == "parakeet_encoder"
        assert "long_attention" not in values["encoder_config"]
        config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert type(loaded) is LongParakeetCTCConfig
        assert loaded.encoder_config.long_attention == loaded.long_attention == config.long_attention

    def test_a_change_reaches_the_encoder(self) -> None:
        config = LongParakeetCTCConfig()
        config.long_attention = {"mechanism": "full"}
        assert config.encoder_config.long_attention.mechanism == "full"
        with pytest.raises(OptionError, match="'window2d'"):
            config.long_attention = {"mechanism": "window2d"}

    def test_the_encoder_alone_is_loaded_from_a_head(self, tmp_path: Path) -> None:
        model: Any = FAMILIES["parakeet_ctc"].model_class("ParakeetForCTC")
        heard = model(LongParakeetCTCConfig(**small_model("parakeet_ctc", "ParakeetForCTC").config.to_dict(), long_attention=BAND))
        heard.encoder.save_pretrained(tmp_path)
        assert type(AutoModel.from_pretrained(tmp_path)).__name__ == "LongParakeetEncoder"
