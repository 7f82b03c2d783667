"""NVIDIA's streaming FastConformer: its chunks are the mechanism's, without a mask or a bias of frames × frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    NemotronAsrStreamingConfig,
    NemotronAsrStreamingEncoder,
    NemotronAsrStreamingEncoderConfig,
    NemotronAsrStreamingForRNNT,
)

from hf_longattn.conversion import convert_checkpoint, revert_checkpoint
from hf_longattn.errors import BackendError
from hf_longattn.families import LongNemotronAsrStreamingEncoder, LongNemotronAsrStreamingForRNNT
from tests.modeling.test_audio_models import Largest

ENCODER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "subsampling_conv_channels": 8,
    "num_mel_bins": 16, "sliding_window": 9, "default_num_lookahead_tokens": 3, "max_position_embeddings": 200, "dropout": 0.0,
    "layerdrop": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip
CHUNKS = {"mechanism": "chunked", "chunk_size": 4, "left_chunks": 2}


def save(folder: Path, *, transducer: bool = False) -> Any:
    torch.manual_seed(0)
    config: Any = NemotronAsrStreamingEncoderConfig(**ENCODER)
    if transducer:
        config = NemotronAsrStreamingConfig(
            encoder_config=config, vocab_size=30, decoder_hidden_size=16, num_decoder_layers=1, blank_token_id=29
        )
    model: Any = (NemotronAsrStreamingForRNNT if transducer else NemotronAsrStreamingEncoder)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def inputs_of(rows: int = 240, *, padding: int = 0) -> dict[str, Tensor]:
    features = torch.randn(2, rows, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, rows, dtype=torch.long)
    mask[1, rows - padding :] = 0
    return {"input_features": features, **({"attention_mask": mask} if padding else {})}


@pytest.mark.thorough
@pytest.mark.parametrize("padding", [0, 110])
def test_the_chunks_are_those_of_the_base(padding: int, tmp_path: Path) -> None:
    """Outputs of the frames that are sound, and gradients, in float64."""
    plain, model = save(tmp_path).double(), LongNemotronAsrStreamingEncoder.from_pretrained(tmp_path).double().eval()
    assert model.config.long_attention.to_dict() == CHUNKS
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs_of(padding=padding).items()}
    outputs = plain(**inputs), model(**inputs)
    masks = [output.attention_mask for output in outputs]
    assert (masks[0] is None and masks[1] is None) if not padding else masks[0].equal(masks[1])
    sound = torch.ones(2, 31, dtype=torch.bool) if masks[0] is None else masks[0].bool()
    states = [output.last_hidden_state[sound] for output in outputs]
    torch.testing.assert_close(states[1], states[0], rtol=1e-8, atol=1e-8)
    for state in states:
        state.square().mean().backward()
    of_base = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, of_base[name].grad, rtol=1e-6, atol=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("padding", [0, 500])
def test_nothing_of_frames_times_frames_and_no_longest_sound(padding: int, tmp_path: Path) -> None:
    save(tmp_path)
    model = LongNemotronAsrStreamingEncoder.from_pretrained(tmp_path)
    largest = []
    for rows in (4_000, 8_000):
        with Largest() as mode:
            model(**inputs_of(rows, padding=padding)).last_hidden_state.sum().backward()
        largest.append(mode.elements)
    assert largest[1] < 2.1 * largest[0]


@pytest.mark.thorough
@torch.no_grad()
def test_the_transducer_reads_with_them(tmp_path: Path) -> None:
    plain = save(tmp_path / "short", transducer=True)
    model = LongNemotronAsrStreamingForRNNT.from_pretrained(tmp_path / "short").eval()
    inputs = inputs_of(padding=110)
    expected = plain.get_audio_features(**inputs)
    sound = expected.attention_mask.bool()
    torch.testing.assert_close(model.get_audio_features(**inputs).pooler_output[sound], expected.pooler_output[sound], rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "long")
    loaded = LongNemotronAsrStreamingForRNNT.from_pretrained(tmp_path / "long").eval()
    assert loaded.config.long_attention.to_dict() == CHUNKS
    torch.testing.assert_close(
        loaded.get_audio_features(**inputs).pooler_output[sound], expected.pooler_output[sound], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("transducer", [False, True])
def test_a_conversion_keeps_the_chunks_and_comes_back(transducer: bool, tmp_path: Path) -> None:
    save(tmp_path / "short", transducer=transducer)
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", audio_seconds=20)
    checks = {check.name: check.status for check in report.checks}
    assert report.plan["long_attention"] == CHUNKS
    assert checks["equal where the mechanism covers the input"] == checks["finite at the new duration"] == "passed"
    assert checks["equal at the new duration with the attention of the base"] == "skipped"  # of which the base has no sinusoids
    revert_checkpoint(tmp_path / "long", tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (tmp_path / "short" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("padding", [0, 110])
@torch.no_grad()
def test_eager_attention_sees_the_same_chunks(padding: int, tmp_path: Path) -> None:
    """transformers' own sees what is hidden, since it takes a mask of numbers for one of truth values."""
    save(tmp_path)
    model, inputs = LongNemotronAsrStreamingEncoder.from_pretrained(tmp_path).eval(), inputs_of(padding=padding)
    expected = model(**inputs)
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    outputs = model(**inputs)
    sound = torch.ones(2, 31, dtype=torch.bool) if outputs.attention_mask is None else outputs.attention_mask.bool()
    torch.testing.assert_close(outputs.last_hidden_state[sound], expected.last_hidden_state[sound], rtol=1e-4, atol=1e-5)


def test_caches_and_other_lookaheads_are_the_base_s(tmp_path: Path) -> None:
    plain = save(tmp_path)
    model = LongNemotronAsrStreamingEncoder.from_pretrained(tmp_path).eval()
    with pytest.raises(
        BackendError, match=r"num_lookahead_tokens=1 was given.*made for 3; load the model with default_num_lookahead_tokens=1"
    ):
        model(**inputs_of(), num_lookahead_tokens=1)
    with pytest.raises(BackendError, match=r"keeps no caches of a stream; call model\.use_base_attention\(\).* leave use_cache out"):
        model(**inputs_of(), use_cache=True)
    model.use_base_attention()
    with torch.no_grad():
        expected = plain(**inputs_of(), num_lookahead_tokens=1).last_hidden_state
        torch.testing.assert_close(model(**inputs_of(), num_lookahead_tokens=1).last_hidden_state, expected)
