"""Models of sound are planned, converted and verified as models of text are."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import transformers
from transformers import AutoFeatureExtractor, AutoProcessor, AutoTokenizer, pipeline

from hf_longattn.cli import main
from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.errors import CheckpointError, InputError, LongAttentionError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.inspect import inspect_checkpoint
from tests.reports import check_of, statuses, tensor_counts
from tests.saved import read_json, run_card

from ..grids import every_other, quickly
from ..modeling import audio_models

CTC = "Wav2Vec2ForCTC"
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
MECHANISMS: dict[str, dict[str, Any]] = {"window": {"left": 20, "right": 10}, "longformer": {"window": 32}}
Checkpoint = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    """A small checkpoint as transformers saves it, with its feature extractor and tokenizer unless they are left
    out."""

    def save(head: str = CTC, base: str = "wav2vec2", processor: bool = True, **config: Any) -> Path:
        folder = tmp_path / head
        audio_models.saved(base, head, folder, **{"vocab_size": len(LETTERS), **config})
        if processor:
            (tmp_path / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}))
            tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
            extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
            transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
        return folder

    return save


def noise(samples: int) -> Any:
    return np.random.default_rng(0).standard_normal(samples).astype(np.float32)


@pytest.mark.parametrize("mechanism", quickly(MECHANISMS, ("window",)))
def test_sound_model_is_converted_and_verified(mechanism: str, saved: Checkpoint, tmp_path: Path) -> None:
    source, long = saved(), tmp_path / "long"
    report = convert_checkpoint(source, long, mechanism=mechanism, audio_seconds=20, **MECHANISMS[mechanism])
    checks = statuses(report)
    assert {
        *("tensors", "feature extractor", "tokenizer", "equal at the old size with full attention"),
        *("equal at the new size with full attention", "finite at the new size", "padding changes nothing"),
    } == {check for check, status in checks.items() if status == "passed"} - {"memory"}
    assert checks["at the old size"] == checks["at the new size"] == "needs training"
    assert tensor_counts(report)["kept"] == sum(tensor_counts(report).values())
    assert (report.plan["old_audio_seconds"], report.plan["new_audio_seconds"]) == (15, 20)
    assert shlex.split(report.train_command or "")[:3] == ["longattn", "train", "ctc"]
    config = read_json(long)
    assert config["long_audio_seconds"] == 20
    assert config["long_attention"]["mechanism"] == mechanism


@pytest.mark.thorough
@pytest.mark.parametrize("base", every_other(audio_models.BASES))
def test_every_family_of_sound_is_converted_and_loads_by_its_card(base: str, tmp_path: Path) -> None:
    """Converted, and loaded by its card's example."""
    head = sorted(FAMILIES[base].model_classes)[0]
    audio_models.saved(base, head, tmp_path / head)
    report = convert_checkpoint(tmp_path / head, tmp_path / "long", audio_seconds=20)
    checks = statuses(report)
    assert checks["equal at the new size with full attention"] == "passed"
    run_card(tmp_path / "long")


@pytest.mark.thorough
def test_padding_is_not_checked_where_a_layer_sees_the_whole_sound(saved: Checkpoint, tmp_path: Path) -> None:
    report = convert_checkpoint(saved(feat_extract_norm="group"), tmp_path / "long", audio_seconds=16)
    padding = check_of(report, "padding changes nothing")
    assert padding.status == "skipped"
    assert "feat_extract_norm='group'" in padding.detail


@pytest.mark.thorough
def test_sound_model_is_verified_on_a_given_recording(saved: Checkpoint, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "talk.wav", noise(80_000), 8_000)
    report = convert_checkpoint(saved(), tmp_path / "long", verify_audio=tmp_path / "talk.wav")
    assert report.text == "the recording talk.wav"


def test_window_that_covers_the_sound_equals_the_source(saved: Checkpoint, tmp_path: Path) -> None:
    report = convert_checkpoint(
        saved(), tmp_path / "long", mechanism="window", left=2000, right=2000, audio_seconds=18
    )
    checks = statuses(report)
    assert checks["equal where the mechanism covers the input"] == checks["at the new size"] == "passed"
    assert not report.needs_training


@pytest.mark.thorough
def test_converted_sound_models_run_in_pipelines(saved: Checkpoint, tmp_path: Path) -> None:
    sound = {"raw": noise(32_000), "sampling_rate": 16_000}
    convert_checkpoint(saved(), tmp_path / "long", mechanism="window", left=20, right=10)
    for loaded in (AutoProcessor, AutoFeatureExtractor, AutoTokenizer):
        assert type(loaded.from_pretrained(tmp_path / "long")) is type(loaded.from_pretrained(tmp_path / CTC))
    recognise = pipeline("automatic-speech-recognition", model=str(tmp_path / "long"), device="cpu")
    assert type(recognise.model).__name__ == "LongWav2Vec2ForCTC"
    whole = recognise(dict(sound), return_timestamps="char")
    assert isinstance(whole["text"], str)
    assert recognise(dict(sound), chunk_length_s=1, stride_length_s=0.2)["text"] is not None
    convert_checkpoint(
        saved("Wav2Vec2ForSequenceClassification"), tmp_path / "classes", mechanism="window", left=20, right=10
    )
    classify = pipeline("audio-classification", model=str(tmp_path / "classes"), device="cpu")
    assert {row["label"] for row in classify(dict(sound), top_k=5)} == {f"LABEL_{number}" for number in range(5)}


def test_inspection_plan_and_check_of_sound_count_seconds(
    saved: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = saved()
    plan = plan_conversion(source, audio_seconds=120)
    assert [cost.size.value for cost in plan.costs] == [15, 30, 60, 120]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(source), "--audio-seconds", "120"])
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "120 seconds, 5,999 tokens" in shown
    assert "one sound" in shown
    convert_checkpoint(source, tmp_path / "long", audio_seconds=120, verify=False)
    inspected = inspect_checkpoint(tmp_path / "long")
    assert inspected.longest_input == "up to 120 seconds, 5,999 tokens"
    assert inspected.to_dict()["audio_seconds"] == 120


def test_plan_of_a_sound_model_counts_convolutions(saved: Checkpoint) -> None:
    """Wav2Vec2's feature encoder costs more than a small model's layers."""
    plan = plan_conversion(saved())
    convolved = sum(
        2 * kernel * (plan.config.conv_dim[layer - 1] if layer else 1) * plan.config.conv_dim[layer] * length
        for layer, (kernel, length) in enumerate(
            zip(plan.config.conv_kernel, lengths(plan.config, 10 * 16_000), strict=True)
        )
    )
    frames = lengths(plan.config, 10 * 16_000)[-1]
    matrices = 2 * plan.shape.matrix_parameters * frames
    assert convolved < matrices < convolved + 4e8


def lengths(config: Any, length: int) -> list[int]:
    outputs = []
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        length = (length - kernel) // stride + 1
        outputs.append(length)
    return outputs


REFUSED: tuple[tuple[dict[str, Any], type[LongAttentionError], str], ...] = (
    (
        {"max_length": 4096},
        OptionError,
        r"--max-length counts the tokens of a text, but a Wav2Vec2ForCTC reads sounds; leave it out",
    ),
    ({"image_size": 64}, OptionError, "--image-size is the size of images, but a Wav2Vec2ForCTC reads sounds"),
    ({"verify_text": "x"}, OptionError, "--verify-text is a text, but .* reads sounds; leave it out"),
    (
        {"positions": "tile"},
        OptionError,
        "A Wav2Vec2ForCTC has no position table or rotary positions; leave --positions out",
    ),
    (
        {"audio_seconds": 5},
        InputError,
        "sounds of up to 15 seconds and conversion only extends it: 5 seconds are too few",
    ),
    ({"audio_seconds": -1}, OptionError, "--audio-seconds is -1, but must be a number of seconds above 0"),
    ({"mechanism": "window2d"}, OptionError, "reads an image's patches, but a sound is one line"),
    ({"mechanism": "recurrent_memory"}, OptionError, "one segment of a text after the other"),
    ({"mechanism": "windw"}, LongAttentionError, "window"),
    ({"decoder_long_attention": {"mechanism": "window"}}, OptionError, "--decoder-mechanism is for the decoder"),
)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    REFUSED,
    ids=[next(iter(row[0])) + str(number) for number, row in enumerate(REFUSED)],
)
def test_plan_of_a_sound_model_refuses_settings_that_do_not_apply(
    settings: dict[str, Any], kind: type[Exception], message: str, saved: Checkpoint
) -> None:
    choose = {"choose": lambda *args: None} if settings.get("mechanism") == "auto" else {}
    with pytest.raises(kind, match=message):
        plan_conversion(saved(processor=False), **settings, **choose)


class TestDamage:
    def test_conversion_refuses_a_file_that_is_no_recording(self, saved: Checkpoint, tmp_path: Path) -> None:
        (tmp_path / "talk.wav").write_bytes(b"RIFF")
        with pytest.raises(InputError, match=r"talk\.wav"):
            convert_checkpoint(saved(), tmp_path / "long", verify_audio=tmp_path / "talk.wav")
        assert not (tmp_path / "long").exists()

    def test_conversion_refuses_a_damaged_feature_extractor(self, saved: Checkpoint, tmp_path: Path) -> None:
        file = next(
            path
            for path in (saved() / name for name in ("preprocessor_config.json", "processor_config.json"))
            if path.exists()
        )
        file.write_text("{")
        with pytest.raises(CheckpointError, match=file.name):
            convert_checkpoint(tmp_path / CTC, tmp_path / "long")

    def test_conversion_refuses_a_feature_extractor_of_another_rate(self, saved: Checkpoint, tmp_path: Path) -> None:
        folder = saved(processor=False)
        transformers.Wav2Vec2FeatureExtractor(sampling_rate=8_000).save_pretrained(folder)
        with pytest.raises(
            InputError, match="takes 8,000 samples a second, but the model reads 16,000; correct sampling_rate"
        ):
            convert_checkpoint(folder, tmp_path / "long")

    def test_conversion_refuses_a_feature_extractor_of_another_model(self, saved: Checkpoint, tmp_path: Path) -> None:
        folder = saved(processor=False)
        transformers.WhisperFeatureExtractor().save_pretrained(folder)
        with pytest.raises(
            CheckpointError,
            match="gives input_features, but the model reads input_values; it belongs to another model",
        ):
            convert_checkpoint(folder, tmp_path / "long")
