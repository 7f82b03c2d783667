"""Long models of sound: equal to their base with full attention, equal to the base under their definition as a dense
mask, and linear."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hf_longattn
from hf_longattn.engines.cpu.onednn import cpu_computes_bf16
from hf_longattn.errors import InputError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.mixin import TEXT_ARGUMENTS
from tests.cases import every_case
from tests.grids import alternately, grid
from tests.largest_tensor import LargestTensor
from tests.modeling.audio_models import (
    BASES,
    EVERY_FAMILY,
    HEADS,
    SECONDS,
    THREE_CONVOLUTIONS,
    base_model,
    defined,
    frames_of,
    inputs_of,
    long_model,
    saved,
    seeing,
    smallest_head,
    tensors,
)

BAND = {"mechanism": "window", "left": 9, "right": 4}
MECHANISMS = (BAND, {"mechanism": "longformer", "window": 8, "global_tokens": "none"})
QUICK_HEADS = grid(HEADS, lambda base, head: base == "wav2vec2" or head == base_model(base))


def real(base: str, model: Any, output: Tensor) -> list[Tensor]:
    """The rows of an output by frames without those of padding; an output by sounds as it is."""
    spec: Any = FAMILIES[base].spec
    counts = [spec.output_rows(model.config, spec.length(seconds)) for seconds in SECONDS]
    if output.dim() < 2 or output.shape[1] != counts[0]:
        return [output]
    return [row[:count] for row, count in zip(output, counts, strict=True)]


@every_case(("base", "head"), QUICK_HEADS)
@torch.no_grad()
def test_sound_with_full_attention_is_the_base(base: str, head: str, tmp_path: Path) -> None:
    plain = saved(base, head, tmp_path)
    model = long_model(base, head, tmp_path, long_attention={"mechanism": "full"})
    inputs = inputs_of(base)
    outputs = []
    for either in (plain, model):
        torch.manual_seed(0)
        outputs.append(tensors(either(**inputs)))
    for of_base, of_long in zip(*outputs, strict=True):
        torch.testing.assert_close(real(base, model, of_long), real(base, model, of_base), rtol=1e-5, atol=1e-5)


@every_case(
    ("base", "mechanism"),
    itertools.product(BASES, MECHANISMS),
    of=3,
    ids=lambda value: value if isinstance(value, str) else value["mechanism"],
)
def test_sound_with_a_mechanism_is_the_base_under_its_mask_with_gradients(
    base: str, mechanism: dict[str, Any], tmp_path: Path
) -> None:
    """Outputs and gradients of every parameter, in float64, with a padded batch."""
    head = base_model(base)
    plain = saved(base, head, tmp_path).double()
    model = long_model(base, head, tmp_path, long_attention=mechanism).double()
    inputs = inputs_of(base, dtype=torch.float64)
    with seeing(plain, *defined(model, frames_of(base, SECONDS[0]))):
        expected = real(base, model, plain(**inputs).last_hidden_state)
    states = real(base, model, model(**inputs).last_hidden_state)
    torch.testing.assert_close(states, expected, rtol=1e-9, atol=1e-9)
    for rows in (states, expected):
        sum(row.square().mean() for row in rows).backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, rtol=1e-7, atol=1e-9, msg=name)
    with torch.no_grad():
        full = real(base, model, plain(**inputs).last_hidden_state)
    assert (full[0] - expected[0]).abs().max() > 1e-2


@pytest.mark.thorough
@every_case(("base", "reentrant"), alternately(BASES))
def test_gradient_checkpointing_of_sound_changes_no_gradient(base: str, reentrant: bool, tmp_path: Path) -> None:
    saved(base, base_model(base), tmp_path)
    grads = []
    for settings in (None, {"use_reentrant": reentrant}):
        model = long_model(base, base_model(base), tmp_path, long_attention=BAND).train()
        if settings is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
        model(**inputs_of(base)).last_hidden_state.square().mean().backward()
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*grads)


@pytest.mark.thorough
@every_case(("base", "masked"), alternately(BASES), of=4)
def test_sound_with_a_window_makes_no_tensor_of_frames_times_frames(base: str, masked: bool, tmp_path: Path) -> None:
    """Forward and backward; twice the sound makes no tensor more than twice as large."""
    saved(base, base_model(base), tmp_path, conv_dim=[4] * len(getattr(FAMILIES[base].config_class(), "conv_dim", ())))
    model = long_model(base, base_model(base), tmp_path, long_attention=BAND)
    largest = []
    for seconds in (20, 40):
        with LargestTensor() as mode:
            model(
                **inputs_of(base, (seconds, seconds / 2) if masked else (seconds,))
            ).last_hidden_state.sum().backward()
        largest.append(mode.elements)
    assert largest[1] < 2.1 * largest[0]
    assert largest[1] < 2 * frames_of(base, 40) ** 2  # of four heads


@torch.no_grad()
def test_a_mask_of_frames_makes_them_global_as_the_option_does(tmp_path: Path) -> None:
    """A mask of frames, and the mechanism's own global tokens, make frames that see all others and are seen by all."""
    saved("wav2vec2", "Wav2Vec2ForCTC", tmp_path)
    options = {"mechanism": "longformer", "window": 4, "global_tokens": "none"}
    model = long_model("wav2vec2", "Wav2Vec2ForCTC", tmp_path, long_attention=options)
    by_option = long_model("wav2vec2", "Wav2Vec2ForCTC", tmp_path, long_attention={**options, "global_tokens": [3]})
    inputs = inputs_of("wav2vec2")
    frames = torch.zeros(2, frames_of("wav2vec2", SECONDS[0]), dtype=torch.long)
    frames[:, 3] = 1
    found = model(**inputs, global_attention_mask=frames).logits
    torch.testing.assert_close(found, by_option(**inputs).logits)
    assert (found - model(**inputs).logits).abs().max() > 1e-3


COMPILED = {"wav2vec2": "Wav2Vec2ForCTC", "wav2vec2-bert": "Wav2Vec2BertForCTC", "wavlm": "WavLMForCTC"}
"""One of each kind of positions: none in the layers, by distance and query, by distance and gate."""


@pytest.mark.thorough
@pytest.mark.parametrize(("base", "head"), grid(COMPILED.items(), lambda base, head: base == "wav2vec2-bert"))
@torch.no_grad()
def test_a_compiled_model_of_sound_is_one_graph(base: str, head: str, tmp_path: Path) -> None:
    saved(base, head, tmp_path, num_hidden_layers=1, **THREE_CONVOLUTIONS)
    model = long_model(base, head, tmp_path, long_attention=BAND)
    inputs = inputs_of(base, SECONDS[:1])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits)


@every_case("base", BASES, of=3)
@torch.no_grad()
def test_models_of_sound_return_attentions_and_states(base: str, tmp_path: Path) -> None:
    saved(base, base_model(base), tmp_path)
    model = long_model(base, base_model(base), tmp_path, long_attention=BAND)
    frames = frames_of(base, SECONDS[0])
    output = model(**inputs_of(base, SECONDS[:1]), output_attentions=True, output_hidden_states=True)
    assert len(output.attentions) == model.config.num_hidden_layers
    for weights, visible in zip(output.attentions, defined(model, frames), strict=True):
        assert not weights[..., ~visible].any()
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1


@every_case("base", BASES, of=3)
@torch.no_grad()
def test_base_attention_of_a_long_model_of_sound_is_the_base(base: str, tmp_path: Path) -> None:
    plain = saved(base, base_model(base), tmp_path)
    model = long_model(base, base_model(base), tmp_path, long_attention=BAND)
    model.use_base_attention()
    torch.testing.assert_close(model(**inputs_of(base)).last_hidden_state, plain(**inputs_of(base)).last_hidden_state)


def frame_seconds(spec: Any, config: Any) -> float:
    """Seconds from one token of the layers with attention to the next."""
    hour = spec.length(3600)
    return spec.seconds(round(hour / spec.frames(config, hour)))


def test_frames_of_wav2vec2_are_counted_as_the_base_counts_them() -> None:
    spec: Any = FAMILIES["wav2vec2"].spec
    config = FAMILIES["wav2vec2"].config_class()
    assert frame_seconds(spec, config) == pytest.approx(1 / 50, rel=1e-3)
    for frames in (1, 2, 50, 15_000):
        length = spec.length_of(config, frames)
        assert spec.frames(config, length) == frames
        assert spec.frames(config, length - 1) < frames


def test_the_default_for_sound_is_a_window_of_ten_seconds_on_each_side() -> None:
    for base in BASES:
        name, options = FAMILIES[base].config_class().long_attention.for_layer(0)
        assert name == "window"
        assert options["left"] == options["right"]
        spec: Any = FAMILIES[base].spec
        assert options["left"] * frame_seconds(spec, FAMILIES[base].config_class()) == pytest.approx(10.24, rel=1e-3)


SOUND = torch.zeros(1, 16_000)
REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "too short": ({"input_values": SOUND[:, :399]}, r"has 399 samples, but a frame takes 400 \(0.025 s\)"),
    "stereo": (
        {"input_values": torch.zeros(1, 2, 16_000)},
        r"shape \(1, 2, 16000\), but must be \(batch, samples\); mix stereo down to one channel",
    ),
    "integers": (
        {"input_values": SOUND.to(torch.int16)},
        "input_values are int16 numbers; give floats as the model's feature extractor does",
    ),
    "a mask of frames": (
        {"input_values": SOUND, "attention_mask": torch.ones(1, 49)},
        r"has shape \(1, 49\), but must be \(batch, samples\) = \(1, 16000\)",
    ),
    "padding before the sound": (
        {"input_values": SOUND, "attention_mask": (torch.arange(16_000) >= 500)[None].float()},
        'padding before sound, but padding must come after it; pad with padding_side="right"',
    ),
    **{
        f"a row of {samples} samples": (
            {
                "input_values": SOUND.expand(2, -1),
                "attention_mask": (torch.arange(16_000) < torch.tensor([[16_000], [samples]])).float(),
            },
            f"sound of the batch has {samples} samples, but a frame takes 400",
        )
        for samples in (0, 300)
    },
    **{
        name: (
            {"input_values": SOUND, name: torch.zeros(1, 49)},
            f"{name} is for texts, but LongWav2Vec2ForCTC reads input_values; leave {name} out",
        )
        for name in TEXT_ARGUMENTS
    },
}


def test_wav2vec2_refuses_sounds_masks_and_arguments_that_do_not_fit(tmp_path: Path) -> None:
    saved("wav2vec2", "Wav2Vec2ForCTC", tmp_path)
    model = long_model("wav2vec2", "Wav2Vec2ForCTC", tmp_path, long_attention=BAND)
    for inputs, message in REFUSED.values():
        with pytest.raises(InputError, match=message):
            model(**inputs)
    assert model(SOUND[:, :400]).logits.shape[1] == 1


def test_hubert_refuses_global_frames_that_its_layers_do_not_get(tmp_path: Path) -> None:
    saved("hubert", "HubertForCTC", tmp_path)
    model = long_model("hubert", "HubertForCTC", tmp_path, long_attention={"mechanism": "longformer"})
    with pytest.raises(InputError, match=r"does not hand global_attention_mask down to its layers.*global_tokens=0"):
        model(SOUND, global_attention_mask=torch.ones(1, 49))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"long_attention": {"mechanism": "recurrent_memory"}}, "one segment of a text after the other.*'window'"),
        ({"long_attention": {"mechanism": "window2d"}}, "reads an image's patches, but a sound is one line; choose"),
        (
            {"long_attention": {"mechanism": "longformer", "global_token_ids": [5]}},
            "global tokens by their ids, but frames of a sound have none",
        ),
        *(
            ({"long_audio_seconds": seconds}, "must be a number of seconds above 0, for example 600")
            for seconds in (0, -1, "ten", True)
        ),
    ],
)
def test_wav2vec2_configs_refuse_mechanisms_for_something_else_and_durations_that_are_none(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        FAMILIES["wav2vec2"].config_class(**values)


NARROW = {"mechanism": "window", "left": 6, "right": 3}


def model_of(base: str, folder: Path) -> Any:
    saved(base, smallest_head(base), folder)
    return long_model(base, smallest_head(base), folder, long_attention=NARROW)


def distance(states: Tensor, expected: Tensor) -> float:
    return float((states.float() - expected).norm() / expected.norm())


@pytest.mark.thorough
@every_case("base", EVERY_FAMILY, of=4)
@torch.no_grad()
def test_models_of_sound_are_optimised_for_inference_and_explained(base: str, tmp_path: Path) -> None:
    model = model_of(base, tmp_path)
    inputs = inputs_of(base, (1.2,))
    layers = [answer for answer in hf_longattn.explain(model, inputs) if answer.mechanism == "window"]
    assert len({answer.layer for answer in layers}) == 2
    expected = model(**inputs)[0].float()
    precisions: dict[str, float] = {"fp32": 1e-5}
    if cpu_computes_bf16():
        half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs.items()}
        rounding = distance(model_of(base, tmp_path).bfloat16()(**half)[0], expected)
        precisions["int8"] = 1.1 * rounding + 0.05
    for precision, most in precisions.items():
        fast = hf_longattn.optimize_for_inference(model_of(base, tmp_path), precision)
        states = fast(**inputs)[0]
        assert states.isfinite().all()
        assert distance(states, expected) < most, precision
