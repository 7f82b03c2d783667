"""Several heads on one backbone of texts, images and sound: mixed batches, one checkpoint, heads that load singly."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
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
    BartModel,
    PreTrainedTokenizerBase,
    T5ForQuestionAnswering,
    T5ForTokenClassification,
)

from hf_longattn import LongBertConfig, LongBertModel
from hf_longattn.data.audio import AudioCollator
from hf_longattn.errors import BackendError, CheckpointError, InputError, LongAttentionError, OptionError
from hf_longattn.files import read_json
from hf_longattn.inspect import inspect_checkpoint
from hf_longattn.modeling.attach.global_mask import global_token_ids
from hf_longattn.modeling.multimodal import LongMultimodalForImageClassification, LongMultimodalModel
from hf_longattn.training import load_multitask_head
from hf_longattn.training.tasks import classify, multitask
from hf_longattn.training.tasks.multitask import MultiTaskDataArguments, MultiTaskModel, TaskBatches
from scripts.dev.tools.small_models import small_config, small_values
from tests.training.conftest import checkpoint, converted, launched, losses, quick, write_rows
from tests.training.test_classify import COLOURS, image_of, rows, table
from tests.training.test_options import DATA
from tests.training.test_tokens import tagged


def test_multitask_batches_are_of_one_task_drawn_by_the_root_of_its_size() -> None:
    sizes = {"small": 100, "large": 10_000}
    batches = TaskBatches(sizes, 4, seed=0, processes=2)
    found = list(batches)
    small = [batch for batch in found if batch[0] < 100]
    assert len(small) / len(found) == pytest.approx(10 / 110, abs=0.03)
    assert all(max(batch) < 100 for batch in small)
    assert all(min(batch) >= 100 for batch in found if batch not in small)
    assert len(found) == len(batches)
    assert len(found) % 2 == 0
    assert found == list(batches)
    # a row comes again when all have come
    assert {number for batch in small[:25] for number in batch} == set(range(100))


def three_tasks(folder: Path) -> list[str]:
    """Tasks of three kinds, with their data in a folder."""
    questions = write_rows(DATA["qa"][6:26], folder / "qa.jsonl")
    tags = write_rows(tagged(), folder / "tags.jsonl")
    return [f"topic=classify:{table(folder, rows())}", f"names=tokens:{tags}", f"ask=qa:{questions}"]


@pytest.mark.thorough
def test_multitask_run_trains_all_heads_and_each_loads_singly(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = converted("mlm", tmp_path, tokenizer, mechanism="longformer", max_length=160, window=16)
    run = {"tasks": three_tasks(tmp_path), "learning_rate": 1e-2, "per_device_train_batch_size": 4}
    run |= {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    log = quick("multitask", model, tmp_path / "out", **run, max_steps=80)
    before, after = log["metrics"]["before"], log["metrics"]["after"]
    assert after["topic_accuracy"] == 100.0
    assert after["names_f1"] > max(60.0, before["names_f1"])
    assert after["ask_f1"] >= before["ask_f1"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "head names" in card
    assert "Labels of the head `topic`: `files`, `loops`." in card
    topic, names, ask = (load_multitask_head(str(tmp_path / "out"), head) for head in ("topic", "names", "ask"))
    assert topic.config.id2label == {0: "files", 1: "loops"}
    assert names.config.num_labels == 3
    assert ask.config.question_separator_id == tokenizer.sep_token_id  # its question is global, as in the training
    assert topic.config.question_separator_id is names.config.question_separator_id is None
    assert torch.equal(topic.bert.embeddings.word_embeddings.weight, ask.bert.embeddings.word_embeddings.weight)
    ids = tokenizer("for while break continue " * 8, return_tensors="pt")["input_ids"]
    assert int(topic.eval()(input_ids=ids).logits.argmax()) == 1
    with pytest.raises(OptionError, match=r"has the heads ask, names, topic, not 'topics'\. Did you mean 'topic'"):
        load_multitask_head(str(tmp_path / "out"), "topics")
    config = read_json(tmp_path / "out" / "config.json")
    assert config["multitask_heads"]["names"]["kind"] == "tokens"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": ["a=classify:x", "a=qa:y"]}, "with a name that no other task has"),
        ({"tasks": ["a=classify:x", "b=token:y"]}, "Did you mean 'tokens'"),
        ({"tasks": ["a=classify:x", "b"]}, "A task is NAME=KIND:DATA"),
        (
            {"tasks": ["a=classify:x"], "columns": ["a.colour=red"]},
            "--columns takes ROLE=NAME, with a role of text, question, image",
        ),
        (
            {"tasks": ["names=classify:x"], "columns": ["name.label=red"]},
            "with a NAME of names, not 'name'. Did you mean 'names'",
        ),
        (
            {"tasks": ["names=classify:x"], "validation": ["name=y"]},
            "with a NAME of names, not 'name'. Did you mean 'names'",
        ),
    ],
)
def test_wrong_tasks_options_are_refused(options: dict[str, list[str]], words: str) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        MultiTaskDataArguments(**options)


def test_tasks_option_takes_subsets_columns_and_validation_data_per_task() -> None:
    """A colon belongs to the data, as in a subset of the Hub or a drive of Windows."""
    tasks = ["ask=qa:rajpurkar/squad:plain_text", r"topic=classify:C:\reviews", "names=tokens:train"]
    more = {
        "validation": ["names=dev", "ask=rajpurkar/squad_v2:squad_v2"],
        "columns": ["topic.label=stars", "topic.text=review"],
    }
    parts = MultiTaskDataArguments(tasks=tasks, max_length=64, **more).parts
    found = {
        name: (kind, data.data, data.validation, data.named, data.max_length) for name, (kind, data) in parts.items()
    }
    assert found == {
        "ask": ("qa", ["rajpurkar/squad:plain_text"], "rajpurkar/squad_v2:squad_v2", {}, 64),
        "topic": ("classify", [r"C:\reviews"], "", {"label": "stars", "text": "review"}, 64),
        "names": ("tokens", ["train"], "dev", {}, 64),
    }


@pytest.mark.slow
def test_multitask_in_two_processes_equals_one_with_its_evaluations(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Of two held-out rows of a task, the second process has none in the last batch."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = checkpoint("mlm", tmp_path / "short", tokenizer, **still)
    line = f"""train multitask --model {model} --tasks {" ".join(three_tasks(tmp_path))} --max-steps 4 --max-length 60
        --no-bf16 --use-cpu --learning-rate 1e-3 --logging-steps 1 --batch-size 2"""
    for processes in (1, 2):
        more = f"--gradient-accumulation-steps {2 // processes} --output {processes}"
        launched(f"{line} {more}".split(), tmp_path, processes)
    one, two = tmp_path / "1", tmp_path / "2"
    assert losses(one) == pytest.approx(losses(two), rel=1e-5)
    scores = [read_json(output / "training_log.json")["metrics"]["after"] for output in (one, two)]
    assert scores[0] == pytest.approx(scores[1])


def test_multitask_qa_head_keeps_its_no_answer_threshold(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """The threshold is tuned on the held-out questions, and loaded with the head."""
    model = checkpoint("mlm", tmp_path / "short", tokenizer)
    answers = [{"text": ["tree"], "answer_start": [12]}, {"text": [], "answer_start": []}]
    records = [
        {"id": str(n), "question": "which?", "context": "for for for tree", "answers": answers[n % 2]}
        for n in range(40)
    ]
    write_rows(records, tmp_path / "qa.jsonl")
    tasks = [f"ask=qa:{tmp_path / 'qa.jsonl'}", f"topic=classify:{table(tmp_path, rows())}"]
    validation = [f"ask={tmp_path / 'qa.jsonl'}"]
    log = quick("multitask", model, tmp_path / "out", tasks=tasks, validation=validation, max_steps=2)
    assert isinstance(load_multitask_head(str(tmp_path / "out"), "ask").config.no_answer_threshold, float)
    scored = quick("multitask", tmp_path / "out", tmp_path / "scored", tasks=tasks[:1], do_train=False)
    assert scored["metrics"]["after"]["ask_f1"] == log["metrics"]["after"]["ask_f1"]


def test_multitask_refuses_heads_without_a_common_backbone() -> None:
    """T5's question answering holds both stacks itself, and its token classification an encoder."""
    config = small_config("t5")
    models = {"names": T5ForTokenClassification(config), "ask": T5ForQuestionAnswering(config)}
    heads: Any = {name: SimpleNamespace(model=model) for name, model in models.items()}
    for tasks in (heads, {"ask": heads["ask"]}):
        with pytest.raises(
            OptionError,
            match="T5ForQuestionAnswering have no backbone in common, which multitask needs; train a model",
        ):
            MultiTaskModel(tasks)


RATE = 16_000


def tone(pitch: float, number: int, seconds: float = 0.4) -> np.ndarray:
    """A tone with noise."""
    generator = np.random.default_rng(number)
    times = np.arange(int(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * pitch * times) + 0.01 * generator.standard_normal(len(times))).astype(np.float32)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> str:
    """A tiny BERT, converted to 160 tokens."""
    return converted(
        "mlm", tmp_path_factory.mktemp("backbone"), tokenizer, mechanism="longformer", max_length=160, window=16
    )


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
    return quick("multitask", model, output, tasks=tasks, **{"image_size": 32, "max_steps": 2, **changes})


@pytest.mark.slow
def test_one_backbone_learns_text_images_and_sound(backbone: str, tasks: dict[str, str], tmp_path: Path) -> None:
    """One run; heads load singly, the whole by AutoModel, its processors from the same folder; another run begins with
    the trained model."""
    output = tmp_path / "out"
    run = {"learning_rate": 5e-3, "per_device_train_batch_size": 4, "save_steps": 30, "gradient_checkpointing": True}
    run |= {"eval_strategy": "steps", "eval_steps": 30, "load_best_model_at_end": True}
    log = start(backbone, output, lines(tasks), max_steps=60, **run)
    assert {name: log["metrics"]["after"][f"{name}_accuracy"] for name in tasks} == dict.fromkeys(tasks, 100.0)
    assert (
        f"| head photo | photo=images:{Path(tasks['photo']).name} (held out) | accuracy | 100"
        in (output / "README.md").read_text()
    )
    with pytest.raises(
        CheckpointError, match=r"one backbone with embedders .* load it with AutoModel and a head with"
    ):
        inspect_checkpoint(output)

    whole = AutoModel.from_pretrained(output)
    assert isinstance(whole, LongMultimodalModel)
    photo, sound, topic = (load_multitask_head(str(output), name).eval() for name in ("photo", "tone", "topic"))
    assert isinstance(photo, LongMultimodalForImageClassification)
    for head in (photo, sound, topic):
        assert all(
            torch.equal(tensor, head.multimodal.state_dict()[name]) for name, tensor in whole.state_dict().items()
        )
    pixels = AutoImageProcessor.from_pretrained(output)(image_of(COLOURS["red"], 99), return_tensors="pt")
    assert photo.config.id2label[photo(**pixels).logits.argmax().item()] == "red"
    heard = AudioCollator(AutoFeatureExtractor.from_pretrained(output)).inputs(
        [tone(300.0, 99), tone(3000.0, 99, 0.5)]
    )
    assert [sound.config.id2label[number] for number in sound(**heard).logits.argmax(-1).tolist()] == ["low", "high"]
    text = AutoTokenizer.from_pretrained(output)("for while break continue " * 8, return_tensors="pt")
    assert topic.config.id2label[topic(**text).logits.argmax().item()] == "loops"

    further = quick("multitask", output, tmp_path / "next", tasks=lines(tasks), max_steps=1, learning_rate=1e-9)
    scores = quick("multitask", output, tmp_path / "scores", tasks=lines(tasks), do_train=False)
    for of_heads in (further["metrics"]["before"], scores["metrics"]["after"]):
        assert {name: of_heads[f"{name}_accuracy"] for name in tasks} == dict.fromkeys(tasks, 100.0)
    quick("classify", output, tmp_path / "single", tasks["photo"], max_steps=1)
    assert isinstance(
        AutoModelForImageClassification.from_pretrained(tmp_path / "single"), LongMultimodalForImageClassification
    )


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
        single = quick("classify", tmp_path / "start", tmp_path / name, tasks[name], packing=False)
        batches = [single.data_collator(part) for part in pairs(single.train_dataset)]
        mixed = [trainer.data_collator(part) for part in pairs(trainer.tasks[name].rows)]
        for batch, shared in zip(batches, mixed, strict=True):
            assert shared.pop("task") == name
            assert batch.keys() == shared.keys()
            assert all(torch.equal(batch[key], shared[key]) for key in batch)


def test_multimodal_model_keeps_questions_global_when_saved(
    backbone: str, tasks: dict[str, str], tmp_path: Path
) -> None:
    answers = {"text": ["tree"], "answer_start": [12]}
    write_rows(
        [{"id": str(n), "question": "which?", "context": "for for for tree", "answers": answers} for n in range(20)],
        tmp_path / "q.jsonl",
    )
    start(backbone, tmp_path / "out", [f"ask=qa:{tmp_path / 'q.jsonl'}", f"photo=images:{tasks['photo']}"])
    head, tokenizer = (
        load_multitask_head(str(tmp_path / "out"), "ask"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
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
    with pytest.raises(
        OptionError, match="--image-size is for a task of kind images, on a model that does not read images yet"
    ):
        start(backbone, tmp_path / "out", lines(tasks)[:1])


def test_audio_files_that_the_backbone_cannot_read_are_refused(
    backbone: str, tasks: dict[str, str], tmp_path: Path
) -> None:
    for name, pitch in {"high": 3000.0, "low": 300.0}.items():
        (tmp_path / "long" / name).mkdir(parents=True)
        for number in range(6):
            soundfile.write(tmp_path / "long" / name / f"{number}.wav", tone(pitch, number, 14.0), RATE)
    with pytest.raises(InputError, match="--max-length 176"):
        start(backbone, tmp_path / "out", [*lines(tasks)[:2], f"tone=audio:{tmp_path / 'long'}"])


def test_multimodal_model_refuses_inputs_without_an_embedder(backbone: str) -> None:
    text_model = AutoModel.from_pretrained(backbone, add_pooling_layer=False)
    model = LongMultimodalModel.of(text_model).eval()
    ids, pixels, features = torch.ones(1, 8, dtype=torch.long), torch.zeros(1, 3, 16, 24), torch.zeros(1, 8, 20)
    with pytest.raises(BackendError, match="This model has no embedder of images"):
        model(pixel_values=pixels)
    with pytest.raises(BackendError, match="This model has no embedder of audio"):
        model(input_features=features)
    with pytest.raises(
        OptionError, match="give one of input_ids, pixel_values, input_features, not input_ids and pixel_values"
    ):
        model(input_ids=ids, pixel_values=pixels)
    with pytest.raises(OptionError, match="not none"):
        model()
    assert torch.equal(model(input_ids=ids).last_hidden_state, text_model(input_ids=ids).last_hidden_state)


def test_multimodal_model_refuses_encoder_decoders_and_grid_mechanisms() -> None:
    """Encoder-decoders, and mechanisms that compare places on a grid."""
    with pytest.raises(BackendError, match="BartModel is not an encoder or decoder of texts that takes inputs_embeds"):
        LongMultimodalModel.of(BartModel(small_config("bart")))
    attention = {"mechanism": "window2d", "window": 3}
    with pytest.raises(LongAttentionError, match="grid"):
        LongMultimodalModel.of(LongBertModel(LongBertConfig(**small_values("bert"), long_attention=attention)))
