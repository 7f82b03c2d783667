"""Models of images: conversion, verification and the files of their processors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForImageClassification,
    LayoutLMConfig,
    LayoutLMModel,
    LayoutLMv3Tokenizer,
    ViTImageProcessor,
)

import hf_longattn
from hf_longattn.conversion import check_texts, convert_checkpoint, plan_conversion
from hf_longattn.conversion.images import CROPS, processed_size, size_fields
from hf_longattn.conversion.sized import FILE, IMAGE_PROCESSOR, PROCESSOR_FILE, load_processor
from hf_longattn.data.tokenization import text_encoding
from hf_longattn.errors import CheckpointError, InputError, LongAttentionError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.modeling.attach.attention_sites import attention_sites, layer_mechanisms
from hf_longattn.reports import Check
from tests.families import test_whisper as whisper
from tests.grids import every_other
from tests.modeling import grid_models
from tests.modeling.audio_models import whisper_processor
from tests.reports import statuses, tensor_counts
from tests.saved import read_json, run_card

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 4,
}
SQUARE = {"height": 32, "width": 32}
CROPPED_SQUARE = {"size": {"height": 36, "width": 36}, "crop_size": SQUARE}
CROPPED = {"size": {"shortest_edge": 36}, "crop_size": SQUARE}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ViTForImageClassification": ("ViT", "ViTImageProcessor", {"size": SQUARE}),
    "DeiTForImageClassification": ("DeiT", "DeiTImageProcessor", CROPPED_SQUARE),
    "DeiTForImageClassificationWithTeacher": ("DeiT", "DeiTImageProcessor", CROPPED_SQUARE),
    "Dinov2Model": ("Dinov2", "BitImageProcessor", CROPPED),
    "Dinov2ForImageClassification": ("Dinov2", "BitImageProcessor", CROPPED),
    "SiglipVisionModel": ("SiglipVision", "SiglipImageProcessor", {"size": SQUARE}),
    "ViTForMaskedImageModeling": ("ViT", "ViTImageProcessor", {"size": SQUARE}),
}
VIT = "ViTForImageClassification"
Checkpoint = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Checkpoint:
    """A small checkpoint as transformers saves it, with its image processor unless that is left out."""

    def save(name: str = VIT, processor: bool = True, **config: Any) -> Path:
        stem, processor_name, sizes = MODELS[name]
        folder = tmp_path / name
        torch.manual_seed(0)
        model_config = getattr(transformers, f"{stem}Config")(**{**SIZES, "num_labels": 5, **config})
        getattr(transformers, name)(model_config).save_pretrained(folder)
        if processor:
            getattr(transformers, processor_name)(**sizes).save_pretrained(folder)
        return folder

    return save


@pytest.mark.parametrize("name", every_other(MODELS))
def test_image_model_is_converted_and_verified(name: str, saved: Checkpoint, tmp_path: Path) -> None:
    source, long = saved(name), tmp_path / "long"
    prefix = {} if name == "SiglipVisionModel" else {"prefix_tokens": "none"}
    report = convert_checkpoint(source, long, image_size=64, **prefix)
    checks = statuses(report)
    assert {
        "tensors",
        "image processor",
        "equal at the new size with full attention",
        CROPS,
        "finite at the new size",
    } <= {check for check, status in checks.items() if status == "passed"}
    assert tensor_counts(report)["kept"] == sum(tensor_counts(report).values())
    config = read_json(long)
    assert (config["image_size"], config["long_image_size"], config["position_extension"]) == (32, [64, 64], "tile")
    assert config["long_attention"]["window"] == [8]
    assert (report.plan["old_grid"], report.plan["new_grid"]) == ([8, 8], [16, 16])


@pytest.mark.thorough
@pytest.mark.parametrize("base", every_other(grid_models.BASES))
def test_every_family_of_images_is_converted_and_loads_by_its_card(base: str, tmp_path: Path) -> None:
    head = sorted(FAMILIES[base].model_classes)[0]
    grid_models.saved(base, head, tmp_path / head)
    report = convert_checkpoint(tmp_path / head, tmp_path / "long", image_size=64)
    checks = statuses(report)
    run_card(tmp_path / "long")
    assert (
        checks["equal where the mechanism covers the input"]
        == checks["equal at the new size with full attention"]
        == "passed"
    )


@pytest.mark.thorough
@pytest.mark.parametrize("name", [VIT, "DeiTForImageClassification", "Dinov2Model"])
def test_converted_image_processor_makes_images_of_the_new_size(name: str, saved: Checkpoint, tmp_path: Path) -> None:
    report = convert_checkpoint(saved(name), tmp_path / "long", image_size="48x64")
    assert statuses(report)["image processor"] == "passed"
    processor = AutoImageProcessor.from_pretrained(tmp_path / "long")
    for size in ((48, 64), (200, 90), (20, 30)):
        image = torch.zeros(*size, 3, dtype=torch.uint8).numpy()
        assert processor(images=image, return_tensors="pt")["pixel_values"].shape == (1, 3, 48, 64)
    again = tmp_path / "saved"
    processor.save_pretrained(again)
    assert processed_size(load_processor(again, IMAGE_PROCESSOR)) == (48, 64)


def test_full_attention_on_images_equals_the_source_at_both_sizes(saved: Checkpoint, tmp_path: Path) -> None:
    report = convert_checkpoint(saved(), tmp_path / "long", mechanism="full", image_size=(48, 64))
    checks = statuses(report)
    assert checks["equal where the mechanism covers the input"] == checks["at the new size"] == "passed"
    assert not report.needs_training
    assert checks[CROPS] == "skipped"
    assert report.plan["positions"] == "interpolate"
    source = transformers.ViTForImageClassification.from_pretrained(tmp_path / VIT).eval()
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "long").eval()
    pixels = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            model(pixels).logits, source(pixels, interpolate_pos_encoding=True).logits, rtol=1e-5, atol=1e-6
        )


@pytest.mark.thorough
def test_zero_padding_of_image_windows_is_the_bias_of_the_projections(saved: Checkpoint, tmp_path: Path) -> None:
    """Copied by a conversion, and by loading the short checkpoint."""
    source, long = saved(), tmp_path / "long"
    model = transformers.ViTForImageClassification.from_pretrained(source)
    for name, parameter in model.named_parameters():  # those of a new model are zeros
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(source)
    convert_checkpoint(source, long, mechanism="window2d", window=3, padding="zeros", image_size=44)
    chosen = {"mechanism": "window2d", "window": 3, "padding": "zeros"}
    kind = hf_longattn.LongViTForImageClassification
    for model in (kind.from_pretrained(long), kind.from_pretrained(source, long_attention=chosen)):
        mechanisms = layer_mechanisms(model)
        assert len(mechanisms) == SIZES["num_hidden_layers"]
        for site in attention_sites(model):
            mechanism, attention = cast(Any, site.mechanism), cast(Any, site.module)
            assert attention.k_proj.bias.any()
            assert torch.equal(mechanism.pad_key.flatten(), attention.k_proj.bias)
            assert torch.equal(mechanism.pad_value.flatten(), attention.v_proj.bias)


@pytest.mark.parametrize("name", ["DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def test_deit_with_and_without_teacher_loads_as_the_class_that_was_saved(
    name: str, saved: Checkpoint, tmp_path: Path
) -> None:
    convert_checkpoint(saved(name), tmp_path / "long", image_size=64, verify=False)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "long")
    assert type(model).__name__ == f"Long{name}"


def test_card_of_an_image_model_names_its_task_and_its_example_runs(saved: Checkpoint, tmp_path: Path) -> None:
    convert_checkpoint(saved(), tmp_path / "long", image_size=64, verify=False)
    card = (tmp_path / "long" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "extended from images of 32 × 32 to 64 × 64 pixels (65 to 257 tokens; positions: tile)" in card
    assert "It was made for images of up to 64 × 64 pixels." in card
    run_card(tmp_path / "long")
    convert_checkpoint(saved("Dinov2Model", processor=False), tmp_path / "states", image_size=64, verify=False)
    card = (tmp_path / "states" / "README.md").read_text()
    assert "pipeline_tag: image-feature-extraction" in card
    assert "AutoImageProcessor" not in card
    run_card(tmp_path / "states")


def test_report_says_that_a_source_has_no_image_processor(saved: Checkpoint, tmp_path: Path) -> None:
    report = convert_checkpoint(saved(processor=False), tmp_path / "long", image_size=64)
    assert statuses(report)["image processor"] == "skipped"


@pytest.mark.thorough
def test_image_model_without_three_colours_is_compared_on_seeded_images(saved: Checkpoint, tmp_path: Path) -> None:
    report = convert_checkpoint(saved(num_channels=1, processor=False), tmp_path / "long", image_size=64)
    assert report.text == "seeded images"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("settings", "rule", "warned"),
    [
        ({}, "tile", ""),
        ({"mechanism": "window2d", "options": {"window": 4}}, "tile", ""),
        ({"mechanism": "window2d", "options": {"window": 6}}, "interpolate", "interpolated positions lie closer"),
        ({"mechanism": "full"}, "interpolate", ""),
        ({"mechanism": "window2d", "layers": "1=full"}, "interpolate", "window2d:window=8 in layer 0"),
        ({"positions": "interpolate"}, "interpolate", "Window Attention is Bugged"),
        ({"mechanism": "full", "positions": "tile"}, "tile", "tiled positions repeat every 8 × 8 cells"),
        ({"mechanism": "window2d", "options": {"shift": "alternate"}}, "interpolate", "layer 0"),
    ],
)
def test_image_plan_chooses_positions_by_mechanism_and_warns(
    settings: dict[str, Any], rule: str, warned: str, saved: Checkpoint
) -> None:
    plan = plan_conversion(saved(), image_size=64, **settings)
    assert plan.positions == rule
    assert warned in " ".join(map(str, plan.warnings))
    assert bool(warned) == bool(plan.warnings)


@pytest.mark.thorough
def test_rotary_and_relative_positions_of_images_are_tiled_with_windows(tmp_path: Path) -> None:
    rules = {}
    for base in ("dinov3_vit", "beit"):
        grid_models.saved(base, grid_models.base_model(base), tmp_path / base)
        for mechanism in ("window2d", "full"):
            rules[base, mechanism] = plan_conversion(
                tmp_path / base, mechanism=mechanism, image_size=64
            ).config.position_extension
    expected = {"window2d": "tile", "full": "interpolate"}
    assert rules == {(base, mechanism): expected[mechanism] for base, mechanism in rules}


def test_plan_of_an_image_model_counts_pairs_on_the_grid(saved: Checkpoint) -> None:
    plan = plan_conversion(saved(), image_size="48x96")
    assert [cost.size.value for cost in plan.costs] == [(32, 32), (48, 64), (48, 96)]
    assert (plan.old_length, plan.new_length) == (65, 289)
    cells, windows = 12 * 24, 3 * (8 * 8) ** 2 + 3 * (4 * 8) ** 2
    pairs = windows + 1 + 2 * cells
    assert plan.costs[-1].attention_flops == 2 * pairs * 4 * 32
    shown = plan.to_dict()
    assert (shown["old_image_size"], shown["new_image_size"], shown["new_grid"]) == ([32, 32], [48, 96], [12, 24])


REFUSED: list[tuple[dict[str, Any], type[LongAttentionError], str]] = [
    ({"image_size": 30}, InputError, "not a multiple of the patch's 4"),
    (
        {"image_size": 16},
        InputError,
        "only enlarges them: 16 × 16 pixels are too few, give at least --image-size 32x32",
    ),
    ({"image_size": "64 by 64"}, InputError, "must be pixels, or height and width"),
    ({"image_size": "64x64x64"}, InputError, "must be pixels, or height and width"),
    ({"image_size": -64}, InputError, "must be pixels"),
    (
        {"image_size": 64, "mechanism": "window2d", "options": {"window": 17}},
        InputError,
        "larger than the grid of 16 × 16.*'full'",
    ),
    ({"image_size": 64, "mechanism": "window2d", "options": {"window": "8+8+8"}}, InputError, "has 3 numbers"),
    ({"image_size": 64, "mechanism": "longformer"}, OptionError, "neighbours along a text"),
    (
        {"image_size": 64, "mechanism": "recurrent_memory"},
        OptionError,
        "remembers the earlier ones",
    ),
    (
        {"image_size": 64, "mechanism": "transformer_xl"},
        OptionError,
        "remembers the earlier ones",
    ),
    ({"image_size": 64, "positions": "rope:yarn"}, OptionError, "expected one of auto, tile, interpolate"),
    ({"image_size": 64, "positions": "alibi"}, OptionError, "does not apply to the positions of images"),
    (
        {"max_length": 4096},
        OptionError,
        "counts the tokens of a text, but a ViTForImageClassification reads images; leave it out",
    ),
    ({"max_decoder_length": 4096}, OptionError, "encoder-decoder"),
    (
        {"image_size": 64, "mechanism": "auto", "window": 7},
        OptionError,
        "--mechanism auto and --option exclude each other",
    ),
    ({"image_size": 64, "budget": "0.25"}, OptionError, "--budget"),
    ({"image_size": 64, "layers": {2: {"mechanism": "full"}}}, OptionError, "the model has 2 layers"),
    ({"image_size": 64, "generic": True}, CheckpointError, "has Long classes; leave --generic out"),
]


@pytest.mark.parametrize(("settings", "error", "sentence"), REFUSED)
def test_conversion_of_an_image_model_refuses_settings_that_do_not_apply(
    settings: dict[str, Any], error: type[LongAttentionError], sentence: str, saved: Checkpoint, tmp_path: Path
) -> None:
    source = saved()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(error, match=sentence) as raised:
        convert_checkpoint(source, tmp_path / "long", choose=hf_longattn.search.choose_mechanisms, **settings)
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_refuses_an_image_processor_that_disagrees_with_the_config(saved: Checkpoint, tmp_path: Path) -> None:
    source = saved()
    transformers.ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(source)
    with pytest.raises(
        CheckpointError, match=r"makes images of 48 × 48 pixels, but its config\.json says image_size=32"
    ):
        plan_conversion(source, image_size=64)
    (source / FILE).write_text("[]")
    with pytest.raises(CheckpointError, match=FILE):
        plan_conversion(source, image_size=64)
    # its own class resizes the table, and the published ones crop to less than they were trained on
    dinov2 = saved("Dinov2Model")
    transformers.BitImageProcessor(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}).save_pretrained(
        dinov2
    )
    plan = plan_conversion(dinov2, image_size=64)
    assert plan.files[FILE]["crop_size"] == {"height": 64, "width": 64}
    assert plan.files[FILE]["size"] == {"shortest_edge": 80}


def test_verification_fails_if_the_image_processor_scales_down(
    saved: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr("hf_longattn.conversion.images.size_fields", lambda processor, size: {})
    with pytest.raises(CheckpointError, match="become inputs of 32 × 32 pixels instead of 64 × 64"):
        convert_checkpoint(saved(), tmp_path / "long", image_size=64)
    assert not (tmp_path / "long").exists()


def test_image_processor_without_a_fixed_size_stays_as_it_is(tmp_path: Path) -> None:
    edge = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "do_center_crop": False}
    (tmp_path / FILE).write_text(json.dumps(edge))
    assert size_fields(load_processor(tmp_path, IMAGE_PROCESSOR), (64, 64)) == {}


def test_short_vit_folder_loads_as_a_long_model_of_a_given_size(saved: Checkpoint) -> None:
    model: Any = hf_longattn.LongViTForImageClassification.from_pretrained(
        saved(), long_image_size=[48, 64], position_extension="tile"
    )
    assert model.family.spec.pixels(model.config)[1] == (48, 64)
    assert model(torch.zeros(1, 3, 48, 64)).logits.shape == (1, 5)


Made = Callable[[Path], tuple[int, ...]]
"""The size of what the processor of a folder makes of data that is larger."""


def nested(folder: Path, part: str, values: dict[str, Any]) -> None:
    """Save a processor's values as transformers 5 does."""
    folder.joinpath(PROCESSOR_FILE).write_text(
        json.dumps({part: values, "processor_class": "SomeProcessor"}, indent=2) + "\n"
    )


def saved_whisper(folder: Path) -> None:
    whisper.save(folder, max_source_positions=150)
    whisper_processor(16, 3).save_pretrained(folder)


def saved_vit(folder: Path) -> None:
    grid_models.saved("vit", "ViTForImageClassification", folder)
    nested(folder, "image_processor", json.loads(ViTImageProcessor(size={"height": 32, "width": 32}).to_json_string()))


def heard(folder: Path, name: str) -> tuple[int, ...]:
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    sound = np.random.default_rng(0).normal(size=8 * 16_000).astype(np.float32)
    return tuple(extractor(sound, sampling_rate=16_000, return_tensors="pt")[name].shape)


def seen(folder: Path) -> tuple[int, ...]:
    image = torch.zeros(90, 70, 3, dtype=torch.uint8).numpy()
    return tuple(AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"].shape)


CASES: dict[str, tuple[Callable[[Path], None], dict[str, Any], str, Made, tuple[int, ...]]] = {
    "Whisper": (
        saved_whisper,
        {"audio_seconds": 6, "needs_training": True},
        "feature extractor",
        lambda folder: heard(folder, "input_features"),
        (1, 16, 600),
    ),
    "ViT": (saved_vit, {"image_size": "48x64"}, "image processor", seen, (1, 3, 48, 64)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_nested_processor_makes_inputs_of_the_new_size(name: str, tmp_path: Path) -> None:
    save, settings, check, made, size = CASES[name]
    save(tmp_path / "short")
    assert not (tmp_path / "short" / FILE).exists()
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", **settings)
    assert (statuses(report)[check], made(tmp_path / "long")) == ("passed", size)


@pytest.mark.parametrize("name", CASES)
def test_verification_fails_if_the_processor_keeps_the_old_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, settings, _, made, size = CASES[name]
    save(tmp_path / "short")
    for module in ("images", "sounds"):
        monkeypatch.setattr(f"hf_longattn.conversion.{module}.changed_file", lambda *_: {})
    with pytest.raises(CheckpointError, match=r"becomes? an? inputs? of 3 seconds|become inputs of .* instead of"):
        convert_checkpoint(tmp_path / "short", tmp_path / "long", **settings)
    assert made(tmp_path / "short") != size
    assert not (tmp_path / "long").exists()


@pytest.mark.thorough
def test_processor_part_is_read_before_a_separate_file(tmp_path: Path) -> None:
    """As transformers reads them."""
    saved_vit(tmp_path / "short")
    ViTImageProcessor(size={"height": 99, "width": 99}).save_pretrained(tmp_path / "short")
    before = (tmp_path / "short" / FILE).read_bytes()
    convert_checkpoint(tmp_path / "short", tmp_path / "long", image_size=64)
    assert seen(tmp_path / "long") == (1, 3, 64, 64)
    assert (tmp_path / "long" / FILE).read_bytes() == before


class TestText:
    @pytest.mark.thorough
    def test_tokenizer_of_pages_cuts_longer_texts_to_the_new_length(self, tmp_path: Path) -> None:
        checks = self.checks(self.page(tmp_path), tmp_path / "long")
        assert checks["tokenizer"].status == "passed"
        assert "truncation cuts a longer text to 120 (input_ids, attention_mask, bbox)" in checks["tokenizer"].detail

    def test_verification_fails_if_the_tokenizer_cuts_at_another_length(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.cut(monkeypatch, {"input_ids": 64})
        with pytest.raises(
            CheckpointError, match="model_max_length 120; with truncation a longer text has 64 input_ids"
        ):
            self.checks(self.page(tmp_path), tmp_path / "long")
        assert not (tmp_path / "long").exists()
        self.cut(monkeypatch, {"input_ids": 120, "bbox": 200})
        with pytest.raises(CheckpointError, match="with truncation a longer text has 120 input_ids and 200 bbox"):
            self.checks(tmp_path / "short", tmp_path / "long")

    def cut(self, monkeypatch: pytest.MonkeyPatch, lengths: dict[str, int]) -> None:
        """Let truncation give outputs of these lengths."""

        def encoded(*args: Any, truncation: bool = False, **settings: Any) -> Any:
            outputs = text_encoding(*args, truncation=truncation, **settings)
            return {name: range(length) for name, length in lengths.items()} if truncation else outputs

        monkeypatch.setattr(check_texts, "text_encoding", encoded)

    def page(self, folder: Path) -> Path:
        """A LayoutLM of 60 words and boxes, with the tokenizer of its RoBERTa checkpoints."""
        letters = [*map(chr, range(33, 127)), "Ġ"]
        vocabulary = {
            piece: number for number, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters])
        }
        LayoutLMv3Tokenizer(vocab=vocabulary, merges=[], model_max_length=60).save_pretrained(folder / "short")
        sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        places = {"max_position_embeddings": 60, "pad_token_id": 1}
        LayoutLMModel(LayoutLMConfig(vocab_size=len(vocabulary), **sizes, **places)).save_pretrained(folder / "short")
        return folder / "short"

    def checks(self, source: Path, target: Path) -> dict[str, Check]:
        return {
            check.name: check
            for check in convert_checkpoint(source, target, mechanism="window", max_length=120).checks
        }
