"""Classification of documents and images: files of every shape, batches, classes that are learned, bad input in a
sentence."""

from __future__ import annotations

import io
import random
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
    ViTForImageClassification,
)

from hf_longattn import LongViTForImageClassification
from hf_longattn.cli.train import train
from hf_longattn.data import images as images_module
from hf_longattn.data.images import Augmentation, ImageCollator, augmentation_of, read_image
from hf_longattn.data.rows import rows_of
from hf_longattn.data.sources import CELL, DataError
from hf_longattn.errors import CheckpointError, LongAttentionError, MissingExtraError, OptionError
from hf_longattn.files import read_json, write_json
from hf_longattn.modeling.attach.global_mask import global_token_ids
from hf_longattn.training.run import LOG_NAME
from hf_longattn.training.tasks import classify
from hf_longattn.training.tasks.classify import (
    ClassificationDataArguments,
    class_names,
    encode_documents,
    label_names,
    read_labelled,
)
from scripts.dev.tools.small_models import Shape, small_image_config
from tests.grids import quickly
from tests.training.conftest import checkpoint, converted, quick, write_rows

WORDS = {"loops": "for while break continue range next", "files": "open read write close path folder"}


def rows(count: int = 40) -> list[dict[str, str]]:
    """Documents of one of two sets of words, 20 to 120 of them."""
    choose = random.Random(0)
    labels = [label for label in WORDS for _ in range(count // 2)]
    return [
        {"text": " ".join(choose.choices(WORDS[label].split(), k=choose.randint(20, 120))), "label": label}
        for label in labels
    ]


def table(folder: Path, data: list[dict[str, Any]], name: str = "data.jsonl") -> str:
    return write_rows(data, folder / name)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", quickly(["mlm", "clm"], ["mlm"]))
def test_converted_model_learns_two_classes_of_documents(
    kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(classify.logger, "warning", said.append)
    run = {"gradient_accumulation_steps": 2, "max_steps": 60, "learning_rate": 3e-3}
    model = converted(kind, tmp_path, tokenizer, window=32)
    log = quick("classify", model, tmp_path / "out", table(tmp_path, rows()), **run)
    assert (log["classes"], log["metrics"]["after"]["n"]) == (["files", "loops"], 4)
    assert any("documents are longer than 128 tokens and are cut" in words for words in said)
    # of a batch, not of the two that a step has
    assert all(entry["loss"] < 0.8 for entry in log["history"] if "loss" in entry)
    assert log["metrics"]["after"]["accuracy"] == 100.0
    assert sum(bucket["n"] for bucket in log["by_length"].values()) == 4
    assert read_json(tmp_path / "out" / LOG_NAME)["by_length"] == log["by_length"]
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert trained.config.id2label == {0: "files", 1: "loops"}
    assert trained.config.pad_token_id is not None


@pytest.mark.thorough
def test_question_column_of_classify_is_read_and_global(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    data = [{"text": "next path", "claim": row["text"], "label": row["label"]} for row in rows()]
    model = converted("mlm", tmp_path, tokenizer, mechanism="longformer", window=32)
    run = {"max_steps": 60, "learning_rate": 3e-3, "packing": False, "columns": ["question=claim"]}
    log = quick("classify", model, tmp_path / "out", table(tmp_path, data), **run)
    assert log["metrics"]["after"]["accuracy"] == 100.0
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    pair = tokenizer("for while", "next path open", return_tensors="pt")
    rule = global_token_ids(trained)
    assert rule is not None
    marked = rule.mask(pair["input_ids"], pair["attention_mask"].bool()).sum()
    assert marked == pair["input_ids"][0].tolist().index(tokenizer.sep_token_id) + 1


def test_classes_are_sorted_as_whole_numbers_or_as_texts_unless_the_model_has_an_order() -> None:
    def sorted_labels(*parts: list[str]) -> list[str]:
        return label_names(*(Dataset.from_dict({"label": labels}) for labels in parts))

    names = sorted_labels(["10", "9", "-1"])
    assert names == ["-1", "9", "10"]
    for known, expected in ((["LABEL_0", "LABEL_1"], names), (["10", "9", "8", "-1"], ["10", "9", "8", "-1"])):
        assert class_names(names, known) == expected
    # also those of held-out documents alone
    assert sorted_labels(["b", "a"], ["c", "1", "01"]) == ["01", "1", "a", "b", "c"]
    assert sorted_labels(["1", "10", "01", "9"]) == ["01", "1", "9", "10"]
    for labels in (["²", "①", "³"], ["--1", "1", "-"], ["9" * 5000, "1"], ["١", "2"]):  # no whole numbers
        assert sorted_labels(labels) == sorted(labels)


def test_validation_labels_must_be_those_of_the_training_data(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "text,label\n" + "".join(f"{code} text,{code}\n" for code in ("001", "010", "X99"))
    )
    (tmp_path / "held.csv").write_text("text,label\n001 text,001\n010 text,010\n")
    table(tmp_path, [{"text": "a", "label": "001"}], "held.jsonl")
    table(tmp_path, [{"text": "a", "label": 1}], "numbers.jsonl")

    def classes(held: str) -> list[str]:
        data_args = ClassificationDataArguments(data=[str(tmp_path / "train.csv")], validation=str(tmp_path / held))
        return label_names(*read_labelled(data_args, ("text", "question"), seed=0))

    for held in ("held.csv", "held.jsonl", "train.csv"):
        assert classes(held) == ["001", "010", "X99"]
    with pytest.raises(
        DataError, match=r"numbers.jsonl has the labels 1, but .*train.csv only 001, 010, X99; write the same"
    ):
        classes("numbers.jsonl")


def test_predictions_are_scored_by_lengths_of_their_documents(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: Any
) -> None:
    """Predictions meet the lengths of their own documents, however training groups them."""
    seen: list[dict[str, int]] = []

    class Metric:
        def compute(self, predictions: list[int], references: list[dict[str, int]]) -> dict[str, Any]:
            seen[:] = references
            return {"accuracy": 0.0, "buckets": {}}

    monkeypatch.setattr(classify, "load_metric", lambda name: Metric())
    held, model = rows(10)[::-1], converted("mlm", tmp_path, tokenizer, window=32)
    run = {"validation": table(tmp_path, held, "held.jsonl"), "per_device_train_batch_size": 3, "max_steps": 1}
    quick("classify", model, tmp_path / "out", table(tmp_path, rows()), **run)
    expected = encode_documents(Dataset.from_list(held), tokenizer, 128, ["files", "loops"])
    assert [row["length"] for row in seen] == expected["document"][:]
    assert [row["label"] for row in seen] == expected["labels"][:]


def test_classify_refuses_labels_and_texts_that_do_not_fit(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    short = checkpoint("mlm", tmp_path / "short", tokenizer)
    data, one = table(tmp_path, rows()), table(tmp_path, rows()[:20], "one.jsonl")
    floats = table(tmp_path, [{"text": "x", "label": 0.5}] * 4, "floats.jsonl")
    cases: list[tuple[type[LongAttentionError], str, dict[str, Any]]] = [
        (OptionError, "exceeds the 64 tokens", {"max_length": 65}),
        (
            OptionError,
            "--columns takes ROLE=NAME, with a role of text, question, image, audio, label",
            {"columns": ["labels=a"]},
        ),
        (
            DataError,
            "not 'labels'; name one with --columns label=NAME.*Did you mean 'label'",
            {"columns": ["label=labels"]},
        ),
        (DataError, "All rows .* have the label 'loops'", {"data": [one]}),
        (DataError, r"Row 1 of .* has '0.5' in the column 'label'", {"data": [floats]}),
    ]
    for error, words, changes in cases:
        with pytest.raises(error, match=words):
            quick("classify", short, tmp_path / "o", **{"data": data, **changes})
    assert train("classify", ["--model", short, "--output", str(tmp_path / "o"), "--data", one]) == 1
    assert capsys.readouterr().err.count("Error: ") == 1
    assert not (tmp_path / "o").exists()


COLOURS = {"blue": (20, 40, 220), "red": (220, 40, 20)}
ORIENTATION = 0x0112


def labelled(source: str, column: str = "image", label_column: str = "label") -> Dataset:
    return rows_of(source, "train", {"image": (column,), "label": (label_column,)}, {})


def image_of(colour: tuple[int, int, int], number: int, size: tuple[int, int] = (40, 30)) -> Pillow.Image:
    """An image of one colour with noise."""
    noise = np.random.default_rng(number).integers(-20, 20, (size[1], size[0], 3))
    return Pillow.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 images with one sub-folder per class."""
    folder = tmp_path_factory.mktemp("photos")
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(12):
            image_of(colour, number).save(folder / name / f"{number}.png")
    (folder / "red" / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A tiny ViT for 16 × 16 pixels, "short", and the same for 32 × 48, "long"; "disagreeing" has the processor of the
    short one."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = small_image_config("vit", Shape(width=16, heads=2, inner=32), side=4)
    ViTForImageClassification(config).save_pretrained(folder / "short")
    for name, (height, width) in {"short": (16, 16), "long": (32, 48), "disagreeing": (16, 16)}.items():
        if name != "short":
            settings: dict[str, Any] = {
                "long_attention": {"mechanism": "window2d", "window": 4},
                "long_image_size": [32, 48],
            }
            LongViTForImageClassification.from_pretrained(folder / "short", **settings).save_pretrained(folder / name)
        values = {"size": {"height": height, "width": width}, "image_processor_type": "ViTImageProcessor"}
        write_json(folder / name / "preprocessor_config.json", values)
    return {name: str(folder / name) for name in ("short", "long", "disagreeing")}


@pytest.mark.thorough
def test_converted_vit_learns_two_colours(photos: Path, models: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    run = {"max_steps": 20, "learning_rate": 5e-3, "per_device_train_batch_size": 4}
    log = quick("classify", models["long"], output, photos, **run)
    assert log["classes"] == ["blue", "red"]
    assert (log["metrics"]["after"]["accuracy"], log["metrics"]["after"]["n"], log["by_length"]) == (100.0, 2, {})
    trained = AutoModelForImageClassification.from_pretrained(output)
    assert isinstance(trained, LongViTForImageClassification)
    assert (trained.config.id2label, trained.config.long_image_size) == ({0: "blue", 1: "red"}, [32, 48])
    processor = AutoImageProcessor.from_pretrained(output)
    pixels = processor(image_of(COLOURS["red"], 99), return_tensors="pt")["pixel_values"]
    assert trained.eval()(pixels).logits.argmax().item() == 1


def test_images_are_the_same_from_every_kind_of_source(photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    labels = [file.parent.name for file in files]
    encoded = [{"path": None, "bytes": file.read_bytes()} for file in files]
    table = Dataset.from_dict({"photo": [str(file.relative_to(photos)) for file in files], "kind": labels})
    table.to_csv(str(photos / "table.csv"), index=False)
    features = Features({"photo": Image(), "kind": ClassLabel(names=sorted(COLOURS))})
    numbers = [sorted(COLOURS).index(label) for label in labels]
    stored = Dataset.from_dict({"photo": encoded, "kind": numbers}, features=features)
    stored.save_to_disk(str(tmp_path / "saved"))
    stored.to_parquet(str(tmp_path / "data.parquet"))
    content = Dataset.from_dict({"photo": [row["bytes"] for row in encoded], "kind": labels})
    content.cast_column("photo", Value("binary")).to_parquet(str(tmp_path / "bytes.parquet"))
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "train").symlink_to(photos)
    columns = {"column": "photo", "label_column": "kind"}
    sources: list[tuple[Path, dict[str, str]]] = [
        (photos, {}),
        (tmp_path / "parts", {}),
        (photos / "table.csv", columns),
        (tmp_path / "saved", columns),
        (tmp_path / "data.parquet", columns),
        (tmp_path / "bytes.parquet", columns),
    ]
    for source, names in sources:
        rows = labelled(str(source), **names)
        assert rows.features == Features({"image": CELL, "name": Value("string"), "label": Value("string")})
        assert rows["label"][:] == labels, source
        for row, file in zip(rows, files, strict=True):
            assert read_image(row["image"], row["name"]).tobytes() == Pillow.open(file).tobytes()
    (photos / "table.csv").unlink()


def test_folder_of_images_may_have_a_table_of_metadata(photos: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(photos / "red", images)
    lines = [f"{number}.png,{number % 2:02}" for number in range(12)]
    (images / "metadata.csv").write_text("\n".join(["file_name,label", *lines]) + "\n")
    train, held_out = read_labelled(ClassificationDataArguments(data=[str(images)]), ("image",), seed=0)
    assert sorted((Path(row["name"]).stem, row["label"]) for part in (train, held_out) for row in part) == sorted(
        (str(number), f"{number % 2:02}") for number in range(12)
    )


def test_image_batches_are_what_the_image_processor_makes(photos: Path, models: dict[str, str]) -> None:
    """As in the model card's example of transformers: ``AutoImageProcessor(image, return_tensors="pt")``."""
    processor = AutoImageProcessor.from_pretrained(models["long"])
    rows = labelled(str(photos))
    batch = ImageCollator(processor, sorted(COLOURS))([rows[0], rows[20]])
    examples = [
        processor(Pillow.open(rows[number]["image"]["path"]), return_tensors="pt")["pixel_values"]
        for number in (0, 20)
    ]
    torch.testing.assert_close(batch["pixel_values"], torch.cat(examples), rtol=0, atol=0)
    assert batch["labels"].tolist() == [0, 1]


def saved(image: Pillow.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def images_to_read() -> Iterator[Any]:
    """Images of every mode, and what a viewer shows of them: on white, turned, the first frame."""
    black, white = [0, 0, 0], [255, 255, 255]
    grey, clear = Pillow.fromarray(np.array([[0, 255]], np.uint8)), Pillow.new("RGBA", (2, 1), (0, 0, 0, 255))
    palette, exif, frames = (
        Pillow.new("P", (2, 1), 0),
        Pillow.Exif(),
        [Pillow.new("RGB", (2, 2), name) for name in ("red", "blue")],
    )
    clear.putpixel((1, 0), (0, 0, 0, 0))
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    exif[ORIENTATION] = 6  # turned by 90 degrees
    for mode in ("1", "P", "CMYK"):
        yield pytest.param(
            saved(grey.convert("RGB").convert(mode), "TIFF" if mode == "CMYK" else "PNG"), [[black, white]], id=mode
        )
    for name, content, pixels in (
        ("I;16", saved(Pillow.fromarray(np.array([[0, 65_535]], np.uint16))), [[black, white]]),
        ("transparent RGBA", saved(clear), [[black, white]]),
        ("transparent LA", saved(clear.convert("LA")), [[black, white]]),
        ("transparent P", saved(palette, transparency=1), [[black, white]]),
        ("half transparent", saved(Pillow.new("RGBA", (1, 1), (0, 0, 0, 128))), [[[127] * 3]]),
        ("orientation", saved(Pillow.new("RGB", (4, 2)), "JPEG", exif=exif), [[black] * 2] * 4),
        ("animation", saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), [[[255, 0, 0]] * 2] * 2),
    ):
        yield pytest.param(content, pixels, id=name)


@pytest.mark.parametrize(("content", "pixels"), [*images_to_read()])
def test_every_image_becomes_rgb_and_looks_as_a_viewer_shows_it(content: bytes, pixels: list[Any]) -> None:
    read = read_image({"bytes": content, "path": None}, "x")
    assert read.mode == "RGB"
    assert np.asarray(read).tolist() == pixels


def bomb(side: int = 20_000) -> bytes:
    """A PNG of a few bytes whose header names ``side`` × ``side`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def truncated(form: str) -> bytes:
    content = saved(image_of((100, 150, 200), 0, (200, 200)), form)
    return content[: len(content) // 2]


BAD_IMAGES = {
    "half.jpg": (truncated("JPEG"), "cannot be read .*truncated.*; correct its path, save it as PNG, or leave it out"),
    "large.png": (bomb(11_000), "cannot be read"),  # of more pixels than those of which Pillow warns
    "bomb.png": (bomb(), "cannot be read .*exceeds limit of 178956970 pixels"),
    "text.png": (b"a text", "cannot be read .*UnidentifiedImageError"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_damaged_and_oversized_images_are_refused_with_their_file(
    name: str, photos: Path, models: dict[str, str], tmp_path: Path
) -> None:
    content, words = BAD_IMAGES[name]
    for label in COLOURS:
        (tmp_path / "photos" / label).mkdir(parents=True)
        for file in sorted((photos / label).glob("*.png"))[:3]:
            (tmp_path / "photos" / label / file.name).write_bytes(file.read_bytes())
    (tmp_path / "photos" / "red" / name).write_bytes(content)
    with pytest.raises(DataError, match=f"red/{name} {words}"):
        quick("classify", models["short"], tmp_path / "out", tmp_path / "photos", augmentation="none")
    assert not (tmp_path / "out").exists()


def test_images_of_floating_point_values_are_refused() -> None:
    with pytest.raises(DataError, match=r"row 1 has values without a range .*mode F.*; save it with 8 or 16 bits"):
        read_image({"bytes": saved(Pillow.new("F", (2, 2)), "TIFF"), "path": None}, "row 1")


def test_classify_images_refuses_models_options_and_data_that_do_not_fit(
    photos: Path, models: dict[str, str], tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    short, text_model = models["short"], checkpoint("mlm", tmp_path / "text", tokenizer)
    (tmp_path / "texts.csv").write_text("text,label\na,1\nb,2\n")
    (tmp_path / "flat").mkdir()
    (tmp_path / "gap.csv").write_text(f"image,label\n{photos}/red/0.png,a\n,b\n")
    (tmp_path / "numbers.jsonl").write_text('{"image": 1, "label": "a"}\n{"image": 2, "label": "b"}\n')
    missing = tmp_path / "no processor"
    ViTForImageClassification.from_pretrained(short).save_pretrained(missing)
    cases: list[tuple[type[LongAttentionError], str, dict[str, Any]]] = [
        (
            DataError,
            "not 'text'; name one with --columns text=NAME",
            {"model": text_model, "data": [str(tmp_path / "gap.csv")]},
        ),
        (CheckpointError, "The processor of .*no processor' cannot be loaded", {"model": str(missing)}),
        (
            CheckpointError,
            "makes images of 16 × 16 pixels, but the model was converted for 32 × 48; set size",
            {"model": models["disagreeing"]},
        ),
        (
            OptionError,
            "--augmentation must be one of crop.flip, crop, flip, none, not 'mixup'",
            {"augmentation": "mixup"},
        ),
        (
            DataError,
            "not 'image' or 'file_name'; name one with --columns image=NAME",
            {"data": [str(tmp_path / "texts.csv")]},
        ),
        (
            DataError,
            "The column 'image' of .* holds no images or paths of them",
            {"data": [str(tmp_path / "numbers.jsonl")]},
        ),
        (DataError, "Row 2 of .*gap.csv has no image", {"data": [str(tmp_path / "gap.csv")]}),
        (DataError, "flat' holds no images", {"data": [str(tmp_path / "flat")]}),
    ]
    for error, words, changes in cases:
        with pytest.raises(error, match=words):
            quick("classify", **{"model": short, "output": tmp_path / "o", "data": photos, **changes})
        assert not (tmp_path / "o").exists()


class TestAugmentation:
    """Drawn from the seed, the pass and the image, so that a resumed run sees what an uninterrupted one sees."""

    def noisy(self) -> Augmentation:
        def shift(image: Pillow.Image) -> Pillow.Image:
            moved = (1, 0, float(torch.rand(())) * 10, 0, 1, 0)
            # by parts of pixels, too
            return image.transform(image.size, Pillow.Transform.AFFINE, moved, Pillow.Resampling.BILINEAR)

        return shift, {}

    def test_augmentation_depends_on_epoch_and_image_and_is_off_in_evaluation(
        self, photos: Path, models: dict[str, str]
    ) -> None:
        processor = AutoImageProcessor.from_pretrained(models["short"])
        rows = [*labelled(str(photos)).select([0, 20])]
        collator = ImageCollator(processor, sorted(COLOURS), self.noisy(), seed=1)
        plain = ImageCollator(processor, sorted(COLOURS))(rows)["pixel_values"]
        state = torch.random.get_rng_state()
        first = collator(rows)["pixel_values"]
        assert torch.equal(torch.random.get_rng_state(), state)
        assert torch.equal(collator(rows[::-1])["pixel_values"].flip(0), first)
        collator.epoch = 1
        assert not torch.equal(collator(rows)["pixel_values"], first)
        assert not torch.equal(first, plain)
        assert torch.equal(collator.for_evaluation()(rows)["pixel_values"], plain)

    def test_augmentation_without_torchvision_is_left_out_with_a_warning(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        warnings: list[str] = []
        monkeypatch.setattr(images_module, "find_spec", lambda name: None)
        monkeypatch.setattr("hf_longattn.errors.importlib.util.find_spec", lambda name: None)
        monkeypatch.setattr(images_module.logger, "warning", warnings.append)
        assert augmentation_of("", (8, 8)) is None
        assert "type pip install '.[images]' in a clone of hf_longattn, or --augmentation none" in warnings[0]
        assert augmentation_of("none", (8, 8)) is None
        with pytest.raises(MissingExtraError, match="torchvision"):
            augmentation_of("flip", (8, 8))

    def test_torchvision_augmentation_crops_and_flips(self, photos: Path, models: dict[str, str]) -> None:
        pytest.importorskip("torchvision")
        processor = AutoImageProcessor.from_pretrained(models["long"])
        rows = [*labelled(str(photos)).select([0, 20])]
        plain = ImageCollator(processor, sorted(COLOURS))(rows)["pixel_values"]
        for name in ("", "crop+flip", "crop", "flip"):
            collator = ImageCollator(processor, sorted(COLOURS), augmentation_of(name, (32, 48)))
            assert collator(rows)["pixel_values"].shape == plain.shape
        flipped = set()
        collator = ImageCollator(processor, sorted(COLOURS), augmentation_of("flip", (32, 48)))
        for number in range(8):
            collator.epoch = number
            pixels = collator(rows[:1])["pixel_values"]
            forms = {"as is": plain[:1], "flipped": plain[:1].flip(-1)}
            flipped.add(next(name for name, form in forms.items() if torch.allclose(pixels, form, atol=0.02)))
        assert flipped == {"as is", "flipped"}
