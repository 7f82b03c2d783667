"""Text, images and recordings with heads on one converted backbone: what is fed, what is saved, runs, bad input in a sentence."""

from __future__ import annotations

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
from hf_longattn.data.qa_schemas import save_qa
from hf_longattn.errors import BackendError, CheckpointError, InputError, LongAttentionError, OptionError
from hf_longattn.inspect import inspect_checkpoint
from hf_longattn.modeling.attach.global_mask import global_token_ids
from hf_longattn.modeling.multimodal import LongMultimodalForImageClassification, LongMultimodalModel
from hf_longattn.training import load_multitask_head
from hf_longattn.training.tasks import classify, multitask
from tests.training.conftest import FAST, SCORED, checkpoint, start_task
from tests.training.test_classification import rows, table
from tests.training.test_images import COLOURS, image_of

RATE = 16_000


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


def start(model: str, output: Path, tasks: list[str], **changes: Any) -> Any:
    """Run the task, with images of two by two patches."""
    values = {"model": model, "output_dir": str(output), "tasks": tasks, "image_size": 32, **FAST, "max_steps": 2, **changes}
    return start_task("multitask", **values)


@pytest.mark.slow
def test_one_backbone_learns_text_images_and_sound(backbone: str, tasks: dict[str, str], tmp_path: Path) -> None:
    """One run; heads load singly, the whole by AutoModel, its processors from the same folder; a run goes on from its checkpoint, and
    another begins with the trained model."""
    output = tmp_path / "out"
    run = {"learning_rate": 5e-3, "per_device_train_batch_size": 4, "save_steps": 30, "gradient_checkpointing": True}
    run |= {"eval_strategy": "steps", "eval_steps": 30, "load_best_model_at_end": True}
    log = start(backbone, output, lines(tasks), max_steps=60, **run)
    assert {name: log["metrics"]["after"][f"{name}_accuracy"] for name in tasks} == dict.fromkeys(tasks, 100.0)
    assert f"| head photo | photo=images:{Path(tasks['photo']).name} (held out) | accuracy | 100" in (output / "README.md").read_text()
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

    resumed = start(backbone, output, lines(tasks), max_steps=62, **{**run, "resume": True, "overwrite": False})
    assert max(entry.get("step", 0) for entry in resumed["history"]) == 62
    values = {"model": str(output), "tasks": lines(tasks), **SCORED}
    further = start_task("multitask", **values, output_dir=str(tmp_path / "next"), max_steps=1, learning_rate=1e-9)
    scores = start_task("multitask", **values, output_dir=str(tmp_path / "scores"), do_train=False)
    for of_heads in (further["metrics"]["before"], scores["metrics"]["after"]):
        assert {name: of_heads[f"{name}_accuracy"] for name in tasks} == dict.fromkeys(tasks, 100.0)
    start_task("classify", model=str(output), output_dir=str(tmp_path / "single"), data=[tasks["photo"]], **FAST, max_steps=1)
    assert isinstance(AutoModelForImageClassification.from_pretrained(tmp_path / "single"), LongMultimodalForImageClassification)


def test_multimodal_batches_are_those_of_the_single_tasks(
    backbone: str, tasks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows and the batches of every task, tensor by tensor, as its own command makes them."""
    for module in (multitask, classify):
        monkeypatch.setattr(module, "finish", lambda trainer, *_, **__: trainer)
    trainer = start(backbone, tmp_path / "out", lines(tasks))
    (tmp_path / "start").mkdir()
    trainer.model.models["photo"].multimodal.save_pretrained(tmp_path / "start")
    trainer.processing_class.save_pretrained(tmp_path / "start")
    for name in tasks:
        values = {"model": str(tmp_path / "start"), "output_dir": str(tmp_path / name), "data": [tasks[name]], **FAST}
        single = start_task("classify", **values, packing=False)
        batches = [single.data_collator(part) for part in pairs(single.train_dataset)]
        mixed = [trainer.data_collator(part) for part in pairs(trainer.tasks[name].rows)]
        for batch, shared in zip(batches, mixed, strict=True):
            assert shared.pop("task") == name
            assert batch.keys() == shared.keys()
            assert all(torch.equal(batch[key], shared[key]) for key in batch)


def test_multimodal_model_keeps_questions_global_when_saved(backbone: str, tasks: dict[str, str], tmp_path: Path) -> None:
    answers = {"text": ["tree"], "answer_start": [12]}
    save_qa(
        [{"id": str(n), "question": "which?", "context": "for for for tree", "answers": answers} for n in range(20)], tmp_path / "q.jsonl"
    )
    start(backbone, tmp_path / "out", [f"ask=qa:{tmp_path / 'q.jsonl'}", f"photo=images:{tasks['photo']}"])
    head, tokenizer = load_multitask_head(str(tmp_path / "out"), "ask"), AutoTokenizer.from_pretrained(tmp_path / "out")
    rule = global_token_ids(head.multimodal.text_model)
    assert rule is not None
    assert rule.question_separator == tokenizer.sep_token_id


def pairs(data: Any) -> list[list[dict[str, Any]]]:
    """Rows two at a time, in their order."""
    return [[data[place] for place in range(first, min(first + 2, len(data)))] for first in range(0, len(data), 2)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 30}, r"Images of 30 × 30 pixels are not filled by patches of 16 × 16"),
        ({"image_size": 256}, r"are 257 tokens, but the backbone reads 160; .*--max-length 257"),
    ],
)
def test_images_that_do_not_fit_the_backbone_are_refused(
    changes: dict[str, Any], words: str, backbone: str, tasks: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(LongAttentionError, match=words) as refusal:
        start(backbone, tmp_path / "out", lines(tasks), **changes)
    assert "\n" not in str(refusal.value)


def test_image_size_without_a_new_embedder_is_refused(backbone: str, tasks: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--image-size is for a task of kind images, on a model that does not read images yet"):
        start(backbone, tmp_path / "out", lines(tasks)[:1])


def test_audio_files_that_the_backbone_cannot_read_are_refused(backbone: str, tasks: dict[str, str], tmp_path: Path) -> None:
    """Audio files of another rate are converted, and images of other sizes are resized."""
    for name, pitch in {"high": 3000.0, "low": 300.0}.items():
        (tmp_path / "long" / name).mkdir(parents=True)
        (tmp_path / "slow" / name).mkdir(parents=True)
        for number in range(6):
            soundfile.write(tmp_path / "long" / name / f"{number}.wav", tone(pitch, number, 14.0), RATE)
            soundfile.write(tmp_path / "slow" / name / f"{number}.wav", tone(pitch, number, 0.4, RATE // 2), RATE // 2)
    with pytest.raises(InputError, match="--max-length 176"):
        start(backbone, tmp_path / "out", [*lines(tasks)[:2], f"tone=audio:{tmp_path / 'long'}"])
    for name, colour in COLOURS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            image_of(colour, number, (10 + 7 * number, 40)).save(tmp_path / "photos" / name / f"{number}.png")
    log = start(backbone, tmp_path / "sizes", [f"photo=images:{tmp_path / 'photos'}", f"tone=audio:{tmp_path / 'slow'}"])
    assert log["metrics"]["after"]["photo_n"] == log["metrics"]["after"]["tone_n"] == 1


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
