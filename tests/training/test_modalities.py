"""Text, images and recordings with heads on one converted backbone: what is fed, what is saved, runs, bad input in a sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
    BartConfig,
    BartModel,
    PreTrainedTokenizerBase,
)

from hf_longattn import LongBertConfig, LongBertModel
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.data.audio import Hearing
from hf_longattn.errors import BackendError, CheckpointError, InputError, LongAttentionError, OptionError, flag
from hf_longattn.inspect import inspect_checkpoint
from hf_longattn.modeling.multimodal import LongMultimodalForImageClassification, LongMultimodalModel
from hf_longattn.training import load_multitask_head
from hf_longattn.training.evaluation import evaluation_arguments
from hf_longattn.training.old_classify import CLASSIFICATION, finetune_classification
from hf_longattn.training.parsing import build_arguments
from hf_longattn.training.tasks import multitask
from hf_longattn.training.tasks.multitask import MULTITASK, MultiTaskTrainer, finetune_multitask
from tests.cases import every_case
from tests.training.conftest import FAST, SCORED, checkpoint
from tests.training.test_classification import rows, table
from tests.training.test_images import COLOURS, image_of

RATE = 16_000
EMBEDDERS: dict[str, Any] = {"image_size": [16, 24], "patch_size": 8, "mel_bins": 20}


def tone(pitch: float, number: int, seconds: float = 0.4, rate: int = RATE) -> np.ndarray:
    """A tone with noise."""
    generator = np.random.default_rng(number)
    times = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * pitch * times) + 0.01 * generator.standard_normal(len(times))).astype(np.float32)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> str:
    """A tiny BERT, converted to 160 tokens."""
    folder = tmp_path_factory.mktemp("backbone")
    short = checkpoint("mlm", folder / "short", tokenizer)
    convert_checkpoint(short, folder / "long", mechanism="longformer", max_length=160, window=16, verify=False)
    return str(folder / "long")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The data of a task of each modality: two topics, two colours, two pitches."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, colour in COLOURS.items():
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(12):
            image_of(colour, number).save(folder / "photos" / name / f"{number}.png")
    for name, pitch in {"high": 3000.0, "low": 300.0}.items():
        (folder / "tones" / name).mkdir(parents=True)
        for number in range(12):
            soundfile.write(folder / "tones" / name / f"{number}.wav", tone(pitch, number, 0.3 + 0.02 * number), RATE)
    return {"topic": str(table(folder, rows())), "photo": str(folder / "photos"), "tone": str(folder / "tones")}


def lines(tasks: dict[str, str]) -> list[str]:
    """The tasks as on the command line."""
    kinds = {"topic": "classify", "photo": "images", "tone": "audio"}
    return [f"{name}={kinds[name]}:{data}" for name, data in tasks.items()]


def settings(model: str, output: Path, tasks: list[str], **changes: Any) -> Any:
    values = {"model": model, "output_dir": str(output), "tasks": tasks, **EMBEDDERS, **FAST, "max_steps": 2, **changes}
    return build_arguments(MULTITASK, **values)


@pytest.mark.slow
def test_one_backbone_learns_text_images_and_sound(backbone: str, tasks: dict[str, str], tmp_path: Path) -> None:
    """One run; heads load singly, the whole by AutoModel, its processors from the same folder; a run goes on from its checkpoint, and
    another begins with the trained model."""
    output = tmp_path / "out"
    run = {"learning_rate": 5e-3, "per_device_train_batch_size": 4, "save_steps": 30, "gradient_checkpointing": True}
    run |= {"eval_strategy": "steps", "eval_steps": 30, "load_best_model_at_end": True}
    log = finetune_multitask(*settings(backbone, output, lines(tasks), max_steps=60, **run))
    after = log["held_out"]["after"]
    assert {name: after[name]["accuracy"] for name in tasks} == dict.fromkeys(tasks, 100.0)
    assert log["inputs"]["photo"]["input_size"] == [16, 24]
    card = (output / "README.md").read_text()
    assert "heads: `topic` (classify), `photo` (images), `tone` (audio)" in card
    assert f"| head photo | {Path(tasks['photo']).name} (held out) | accuracy | 100" in card
    with pytest.raises(CheckpointError, match=r"one backbone with embedders .* load it with AutoModel and a head with"):
        inspect_checkpoint(output)

    whole = AutoModel.from_pretrained(output)
    assert isinstance(whole, LongMultimodalModel)
    photo, sound, topic = (load_multitask_head(str(output), name).eval() for name in ("photo", "tone", "topic"))
    assert isinstance(photo, LongMultimodalForImageClassification)
    for head in (photo, sound, topic):
        assert all(torch.equal(tensor, head.multimodal.state_dict()[name]) for name, tensor in whole.state_dict().items())
    pixels = AutoImageProcessor.from_pretrained(output)(image_of(COLOURS["red"], 99), return_tensors="pt")
    assert photo.config.id2label[photo(**pixels).logits.argmax().item()] == "red"
    heard = Hearing(AutoFeatureExtractor.from_pretrained(output)).inputs([tone(300.0, 99), tone(3000.0, 99, 0.5)])
    assert [sound.config.id2label[number] for number in sound(**heard).logits.argmax(-1).tolist()] == ["low", "high"]
    text = AutoTokenizer.from_pretrained(output)("for while break continue " * 8, return_tensors="pt")
    assert topic.config.id2label[topic(**text).logits.argmax().item()] == "loops"

    resumed = finetune_multitask(*settings(backbone, output, lines(tasks), max_steps=62, resume=True, **run))
    assert max(entry.get("step", 0) for entry in resumed["history"]) == 62
    values = {"model": str(output), "tasks": lines(tasks), **SCORED}
    further = finetune_multitask(*build_arguments(MULTITASK, **values, output_dir=str(tmp_path / "next"), max_steps=1, learning_rate=1e-9))
    scores = finetune_multitask(*build_arguments(evaluation_arguments(MULTITASK), **values, output_dir=str(tmp_path / "scores")))
    for of_heads in (further["held_out"]["before"], scores["held_out"]["after"]):
        assert {name: of_heads[name]["accuracy"] for name in tasks} == dict.fromkeys(tasks, 100.0)
    single = {"model": str(output), "output_dir": str(tmp_path / "single"), "data": [tasks["photo"]], "images": True, **FAST}
    finetune_classification(*build_arguments(CLASSIFICATION, **single, max_steps=1))
    assert isinstance(AutoModelForImageClassification.from_pretrained(tmp_path / "single"), LongMultimodalForImageClassification)


def test_multimodal_batches_are_those_of_the_single_tasks(
    backbone: str, tasks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows, the held-out rows and the batches of every task, tensor by tensor, as its own command makes them."""
    trainers: list[MultiTaskTrainer] = []
    monkeypatch.setattr(multitask, "train", lambda trainer, *_: trainers.append(trainer))
    monkeypatch.setattr(multitask, "save_run", lambda trainer, run, log, describe: log)
    monkeypatch.setattr(MultiTaskTrainer, "scores", lambda self: {})
    finetune_multitask(*settings(backbone, tmp_path / "out", lines(tasks)))
    (tmp_path / "start").mkdir()
    trainers[0].model.models["photo"].multimodal.save_pretrained(tmp_path / "start")
    trainers[0].processing_class.save_pretrained(tmp_path / "start")
    for name, kind in {"topic": {"packing": False}, "photo": {"images": True}, "tone": {"audio": True}}.items():
        values = {"model": str(tmp_path / "start"), "output_dir": str(tmp_path / name), "data": [tasks[name]], **FAST, **kind}
        batches = single_batches(build_arguments(CLASSIFICATION, **values), monkeypatch)
        task = trainers[0].tasks[name]
        shared_batches = [trainers[0].data_collator([{"task": name, **row} for row in part]) for part in pairs(task.rows)]
        assert len(batches) == len(shared_batches)
        for batch, shared in zip(batches, shared_batches, strict=True):
            assert shared.pop("task") == name
            assert batch.keys() == shared.keys()
            assert all(torch.equal(batch[key], shared[key]) for key in batch)


def pairs(data: Any) -> list[list[dict[str, Any]]]:
    """Rows two at a time, in their order."""
    return [[data[place] for place in range(first, min(first + 2, len(data)))] for first in range(0, len(data), 2)]


def single_batches(arguments: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """All batches of two that ``longattn train classify`` makes of its rows, in their order."""
    trainers: list[Any] = []
    module = sys.modules[finetune_classification.__module__]
    monkeypatch.setattr(module, "train", lambda trainer, *_: trainers.append(trainer))
    monkeypatch.setattr(module.ClassificationTrainer, "scores", lambda self, data: {})
    monkeypatch.setattr(module, "save_run", lambda *_: {})
    finetune_classification(*arguments)
    return [trainers[0].data_collator(part) for part in pairs(trainers[0].train_dataset)]


def test_task_file_names_tasks_with_their_columns(backbone: str, tasks: dict[str, str], tmp_path: Path) -> None:
    tones = sorted(Path(tasks["tone"]).rglob("*.wav"))
    listed = "".join(f"{file},{file.parent.name}\n" for file in tones)
    (tmp_path / "tones.csv").write_text(f"file,pitch\n{listed}")
    entries = {
        "photo": {"kind": "images", "data": tasks["photo"], "augmentation": "none"},
        "tone": {"kind": "audio", "data": [str(tmp_path / "tones.csv")], "audio_column": "file", "label_column": "pitch"},
    }
    (tmp_path / "tasks.json").write_text(json.dumps(entries))
    arguments = settings(backbone, tmp_path / "out", [], task_file=str(tmp_path / "tasks.json"))
    kinds = {name: (kind, data.audio_column, data.label_column) for name, (kind, data) in arguments[1].task_data().items()}
    assert kinds == {"photo": ("images", "audio", "label"), "tone": ("audio", "file", "pitch")}
    log = finetune_multitask(*arguments)
    assert log["held_out"]["after"]["tone"]["n"] == 2
    assert log["inputs"]["photo"]["augmented"] is False


@every_case(
    ("content", "words"),
    [
        ("photo: {kind: videos, data: a}", "The kind of task 'photo' must be one of classify, tokens, qa, images, audio, not 'videos'"),
        ("photo: {kind: image, data: a}", r"Did you mean 'images'"),
        ("photo: {kind: images, data: a, colum: b}", r"The task 'photo' has no option 'colum'"),
        ("photo: {kind: images, data: a, audio_column: b}", "The task 'photo': --audio-column is an option for audio"),
        ("9: {kind: images, data: a}", "give it a name of letters"),
        ("- photo", "is not a file of tasks"),
        ("photo: [", "cannot be read"),
        ("twice: {kind: images, data: a}", "The task 'twice' is in --tasks and in"),
    ],
)
def test_wrong_entries_of_a_task_file_are_refused(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text(content)
    with pytest.raises(OptionError, match=words):
        settings("m", tmp_path / "out", ["twice=images:b"], task_file=str(tmp_path / "tasks.yaml"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"image_size": [], "patch_size": 16},
            r"kind images needs an embedder of images, and '.*' has none; add --image-size",
        ),
        ({"mel_bins": 0}, r"kind audio needs an embedder of audio, and '.*' has none; add --mel-bins"),
        ({"mel_bins": 4}, "--mel-bins must be from 8"),
        ({"image_size": [16, 23]}, r"Images of 16 × 23 pixels are not filled by patches of 8 × 8"),
        ({"image_size": [256], "patch_size": 4}, r"are 4,097 tokens, but the backbone reads 160; .*--max-length 4097"),
        ({"frame_stride": 3}, "must be a power of two, such as 8, not 3"),
    ],
)
def test_images_and_audio_without_a_fitting_embedder_are_refused(
    changes: dict[str, Any], words: str, backbone: str, tasks: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(LongAttentionError, match=words) as refusal:
        finetune_multitask(*settings(backbone, tmp_path / "out", lines(tasks), **changes))
    assert "\n" not in str(refusal.value)


def test_embedder_options_without_a_task_are_refused(backbone: str, tasks: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--mel-bins is for tasks of kind audio"):
        finetune_multitask(*settings(backbone, tmp_path / "out", lines(tasks)[:2]))
    for name in ("patch_size", "frame_stride"):
        with pytest.raises(OptionError, match=f"{flag(name)} requires --"):
            build_arguments(MULTITASK, model="m", output_dir=str(tmp_path), tasks=lines(tasks)[:2], **{name: 2})


def test_recordings_that_do_not_fit_the_backbone_are_refused(backbone: str, tasks: dict[str, str], tmp_path: Path) -> None:
    """A recording of another rate, and one that is longer than the backbone reads; images of other sizes are resized."""
    for rate, seconds, words in ((8_000, 0.4, "has 8,000 samples a second, but the model reads 16,000"), (RATE, 14.0, "--max-length 176")):
        folder = tmp_path / f"{rate}"
        for name, pitch in {"high": 3000.0, "low": 300.0}.items():
            (folder / name).mkdir(parents=True)
            for number in range(6):
                soundfile.write(folder / name / f"{number}.wav", tone(pitch, number, seconds, rate), rate)
        with pytest.raises(InputError, match=words):
            finetune_multitask(*settings(backbone, tmp_path / "out", [*lines(tasks)[:2], f"tone=audio:{folder}"]))
    for name, colour in COLOURS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            image_of(colour, number, (10 + 7 * number, 40)).save(tmp_path / "photos" / name / f"{number}.png")
    photos = f"photo=images:{tmp_path / 'photos'}"
    log = finetune_multitask(*settings(backbone, tmp_path / "sizes", [lines(tasks)[0], photos, lines(tasks)[2]]))
    assert log["inputs"]["photo"]["input_size"] == [16, 24]


def test_multimodal_model_refuses_inputs_without_an_embedder(backbone: str) -> None:
    text_model = AutoModel.from_pretrained(backbone, add_pooling_layer=False)
    model = LongMultimodalModel.of(text_model).eval()
    ids, pixels, features = torch.ones(1, 8, dtype=torch.long), torch.zeros(1, 3, 16, 24), torch.zeros(1, 8, 20)
    with pytest.raises(BackendError, match="This model has no embedder of images"):
        model(pixel_values=pixels)
    with pytest.raises(BackendError, match="This model has no embedder of audio"):
        model(input_features=features)
    with pytest.raises(OptionError, match="give one of input_ids, pixel_values, input_features, not input_ids and pixel_values"):
        model(input_ids=ids, pixel_values=pixels)
    with pytest.raises(OptionError, match="not none"):
        model()
    assert torch.equal(model(input_ids=ids).last_hidden_state, text_model(input_ids=ids).last_hidden_state)


def test_multimodal_model_refuses_encoder_decoders_and_grid_mechanisms() -> None:
    """Encoder-decoders, and mechanisms that compare places on a grid."""
    shape = {"vocab_size": 99, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    bart = BartModel(BartConfig(**shape, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64))
    with pytest.raises(BackendError, match="BartModel is not an encoder or decoder of texts that takes inputs_embeds"):
        LongMultimodalModel.of(bart)
    sizes = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    for attention in ({"mechanism": "window2d", "window": 3}, {"mechanism": "window", "window": 8, "order": "hilbert"}):
        with pytest.raises(LongAttentionError, match="grid"):
            LongMultimodalModel.of(LongBertModel(LongBertConfig(**sizes, long_attention=attention)))
