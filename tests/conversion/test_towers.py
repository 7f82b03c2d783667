"""Models of several towers, with Long classes and without, and generic models of videos and sounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModel, BertTokenizer
from typer.testing import CliRunner

import hf_longattn
from hf_longattn import convert_checkpoint, export_checkpoint, plan_conversion, search_design
from hf_longattn.cli import main
from hf_longattn.cli.app import app
from hf_longattn.errors import CheckpointError, LongAttentionError
from hf_longattn.inspect import inspect_checkpoint
from scripts.dev.tools.small_models import small_towers_config
from tests.cases import every_case
from tests.generic import load_generic
from tests.grids import quickly
from tests.modeling.test_generic import build_towers, output, tower_mechanisms
from tests.reports import check_of, statuses
from tests.towers import SHAPE, save_clip

NEW_SIZE, NEW_LENGTH = 64, 248
TOWERS = {"text": {"mechanism": "window", "window": 64}, "vision": {"mechanism": "window2d"}}


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A small CLIP whose image processor is in a file of its own ("apart"), or in that of the processor
    ("together")."""
    folders: dict[str, Path] = {}

    def make(processor: str) -> Path:
        if processor not in folders:
            folders[processor] = tmp_path_factory.mktemp(processor)
            save_clip(folders[processor], together=processor == "together")
        return folders[processor]

    return make


@pytest.mark.parametrize("processor", quickly(["apart", "together"], ("together",)))
def test_clip_is_converted_verified_and_runs_in_a_pipeline(
    processor: str, short: Callable[[str], Path], tmp_path: Path
) -> None:
    source = short(processor)
    settings: dict[str, Any] = {"towers": TOWERS, "max_length": NEW_LENGTH, "image_size": NEW_SIZE}
    report = convert_checkpoint(source, tmp_path / "long", **settings)
    assert report.needs_training
    assert {name for name, status in statuses(report).items() if status == "passed"} >= {
        "tensors",
        "tokenizer",
        "image processor",
        "text: equal where positions are unchanged",
        "text: finite at the new length",
        "vision: equal where the mechanism covers the input",
        "vision: equal at the new size with full attention",
        "similarities of text and image equal",
        "finite at the new sizes",
    }
    assert check_of(report, "similarities of text and image equal").values["relative_difference"] <= 1e-5
    assert report.plan["towers"]["text"]["positions"] == "stretch:20"
    assert report.plan["long_attention"]["towers"]["vision"]["mechanism"] == "window2d"
    assert report.plan["new_length"] == NEW_LENGTH
    assert report.plan["new_image_size"] == [NEW_SIZE, NEW_SIZE]
    card = (tmp_path / "long" / "README.md").read_text()
    assert "`window` attention in the tower text and `window2d` attention in the tower vision" in card
    assert "pipeline_tag: zero-shot-image-classification" in card

    pipeline = transformers.pipeline("zero-shot-image-classification", model=str(tmp_path / "long"))
    assert type(pipeline.model).__name__ == "LongCLIPModel"
    assert pipeline.tokenizer.model_max_length == NEW_LENGTH
    image = transformers.image_utils.PIL.Image.new("RGB", (50, 70), "red")
    assert {row["label"] for row in pipeline(image, candidate_labels=["a cat", "a dog " * 30])} == {
        "a cat",
        "a dog " * 30,
    }


def test_plan_gives_towers_without_a_choice_their_default(short: Callable[[str], Path]) -> None:
    plan = plan_conversion(short("apart"), image_size=NEW_SIZE)
    assert {name: tower.attention.mechanism for name, tower in plan.towers.items()} == {
        "text": "longformer",
        "vision": "window2d",
    }
    assert (plan.old_length, plan.new_length) == (SHAPE.tokens, SHAPE.tokens)


def test_plan_takes_positions_for_each_tower(short: Callable[[str], Path]) -> None:
    settings: dict[str, Any] = {"towers": TOWERS, "max_length": NEW_LENGTH, "image_size": NEW_SIZE}
    plan = plan_conversion(short("apart"), positions="text=tile,vision=interpolate", **settings)
    assert {name: tower.positions for name, tower in plan.towers.items()} == {"text": "tile", "vision": "interpolate"}
    assert not plan.position_change


@every_case(
    ("settings", "sentence"),
    [
        (
            {"mechanism": "window"},
            r"text and vision, have separate mechanisms, to which --mechanism, --option and --layers do not apply",
        ),
        (
            {"towers": {"txt": {"mechanism": "full"}}},
            r"A CLIPModel has no tower 'txt'; its towers are text and vision\.",
        ),
        ({"towers": {"vision": {"mechanism": "window"}}}, r"window.*neighbours along a text, and an image has none"),
        ({"positions": "tile"}, r"have separate positions; give --positions text=RULE,vision=RULE"),
        ({"positions": "txt=tile"}, r"has no tower 'txt'"),
        ({"positions": "text=tile,vision=stretch"}, r"'stretch' does not apply to the positions of images"),
        ({"max_length": 76}, r"takes 77 tokens and conversion only extends it"),
        ({"image_size": 30}, r"30"),
        ({"audio_seconds": 30}, r"but a CLIPModel reads texts and images; leave it out"),
    ],
)
def test_conversion_of_clip_refuses_settings_that_do_not_fit(
    settings: dict[str, Any], sentence: str, short: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(LongAttentionError, match=sentence):
        convert_checkpoint(short("apart"), tmp_path / "long", **settings)
    assert not (tmp_path / "long").exists()


def run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


def test_plan_convert_and_inspect_print_both_towers(
    short: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        "--towers",
        "text=window:window=64,vision=window2d",
        "--max-length",
        str(NEW_LENGTH),
        "--image-size",
        str(NEW_SIZE),
    ]
    run(["plan", str(short("apart")), *flags])
    shown = capsys.readouterr().out
    assert "248 tokens and 64 × 64 pixels" in " ".join(shown.split())
    assert "window2d" in shown
    run(["plan", str(short("apart")), *flags, "--json"])
    assert json.loads(capsys.readouterr().out)["towers"].keys() == {"text", "vision"}
    run(["convert", str(short("apart")), str(tmp_path / "long"), *flags, "--no-verify"])
    assert "→ 248 tokens and 64 × 64 pixels" in " ".join(capsys.readouterr().out.split())
    run(["inspect", str(tmp_path / "long")])
    assert {"LongCLIPModel,", "LongCLIPTextModel,", "LongCLIPVisionModel,"} <= set(
        capsys.readouterr().out.replace("(", " ").split()
    )
    with pytest.raises(CheckpointError, match="A graph reads a text, and a LongCLIPModel reads other inputs"):
        export_checkpoint(tmp_path / "long", tmp_path / "graph")


@pytest.mark.thorough
def test_converted_siglip_reads_captions_of_the_old_length_as_before(tmp_path: Path) -> None:
    shape = replace(SHAPE, tokens=64, vocabulary=99)
    config = small_towers_config("siglip", shape, eos_token_id=98, bos_token_id=97, pad_token_id=1)
    source = tmp_path / "short"
    transformers.SiglipModel(config).save_pretrained(source)
    report = convert_checkpoint(source, tmp_path / "long", towers=TOWERS, max_length=256, image_size=NEW_SIZE)
    check = check_of(report, "similarities of text and image equal")
    assert report.plan["towers"]["text"]["positions"] == "tile"
    assert (check.values["length"], check.status) == (64, "passed")


@every_case("generic", [False, True])
def test_plan_of_siglip2_says_what_to_convert_or_load(generic: bool, tmp_path: Path) -> None:
    config = transformers.Siglip2Config(
        text_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    )
    transformers.Siglip2Model(config).save_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r'attn_implementation="longattn", or convert a SigLIP 2 for images of o'
    ):
        plan_conversion(tmp_path, generic=generic, towers={"vision": {"mechanism": "full"}} if generic else None)


WINDOW = {"mechanism": "window", "window": 4}
CASES = ["siglip", "llava", "pixtral", "qwen2_vl", "qwen2_5_vl"]


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_generic_towers_are_each_planned_written_compared_and_loaded(case: str, tmp_path: Path) -> None:
    model, inputs = build_towers(case)
    model.save_pretrained(tmp_path / "plain")
    text = {"mechanism": "window", "window": 8}
    report = convert_checkpoint(
        tmp_path / "plain", tmp_path / "long", generic=True, towers={"text": text, "vision": {"mechanism": "full"}}
    )
    checks = statuses(report)
    assert checks["equal with the source's attention"] == checks["finite"] == "passed"
    assert checks["with the mechanism of the tower text"] == checks["with the mechanism"] == "needs training"
    assert set(report.plan["towers"]) == {"text", "vision"}
    assert report.plan["long_attention"] == {"towers": {"text": text, "vision": {"mechanism": "full"}}}
    card = (tmp_path / "long" / "README.md").read_text()
    assert "`window` attention in the tower text and `full` attention in the tower vision" in card
    assert "import hf_longattn  # registers the model with transformers" in card
    loaded = load_generic(tmp_path / "long")
    assert tower_mechanisms(loaded) == {
        "text": {"window"},
        "vision": {"full"},
    }
    hf_longattn.enable_long_attention(model, {"towers": {"text": text, "vision": {"mechanism": "full"}}})
    assert torch.allclose(output(loaded, inputs), output(model, inputs), rtol=0, atol=1e-6)
    assert tower_mechanisms(AutoModel.from_pretrained(tmp_path / "long")) == tower_mechanisms(model)


@pytest.mark.parametrize("case", quickly(CASES, ("siglip", "llava", "qwen2_5_vl")))
def test_full_attention_in_every_generic_tower_equals_the_source(case: str, tmp_path: Path) -> None:
    build_towers(case)[0].save_pretrained(tmp_path / "plain")
    full = {"mechanism": "full"}
    report = convert_checkpoint(
        tmp_path / "plain", tmp_path / "long", generic=True, towers={"text": full, "vision": full}
    )
    assert not report.needs_training
    names = ["with the mechanism of the tower text", "with the mechanism of the tower vision", "with the mechanism"]
    assert [statuses(report)[name] for name in names] == ["passed"] * 3
    written = load_file(tmp_path / "long" / "model.safetensors")
    assert all(
        torch.equal(written[name], values)
        for name, values in load_file(tmp_path / "plain" / "model.safetensors").items()
    )


@pytest.mark.thorough
def test_generic_conversion_extends_the_language_model_of_llava(tmp_path: Path) -> None:
    build_towers("llava")[0].save_pretrained(tmp_path / "plain")
    towers = {"text": {"mechanism": "window", "window": 64}}
    report = convert_checkpoint(tmp_path / "plain", tmp_path / "long", generic=True, towers=towers, max_length=8192)
    assert (report.plan["old_length"], report.plan["new_length"]) == (2048, 8192)
    assert load_generic(tmp_path / "long").config.text_config.max_position_embeddings == 8192


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"towers": {"audio": WINDOW}}, "has no tower 'audio'; its towers are "),
        ({"towers": {"text": WINDOW}, "mechanism": "full"}, "--towers and --mechanism full exclude each other"),
        ({"towers": {"text": {"mechanism": "windw"}}}, "windw"),
        ({"towers": {"text": {"mechanism": "window", "widow": 4}}}, "widow"),
        ({"towers": {"text": WINDOW}, "max_length": 4096}, "cannot change the positions of a SiglipModel"),
    ],
)
def test_generic_conversion_refuses_towers_that_do_not_fit(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    build_towers("siglip")[0].save_pretrained(tmp_path)
    with pytest.raises(LongAttentionError, match=sentence) as caught:
        plan_conversion(tmp_path, generic=True, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", quickly(CASES, ("siglip", "llava", "qwen2_5_vl")))
def test_plan_and_inspection_say_what_each_generic_tower_reads_and_costs(case: str, tmp_path: Path) -> None:
    build_towers(case)[0].save_pretrained(tmp_path / "plain")
    packs = case in ("pixtral", "qwen2_vl", "qwen2_5_vl")
    on_patches = WINDOW if packs else {"mechanism": "window2d", "window": 2}
    towers = {"text": {"mechanism": "window", "window": 8}, "vision": on_patches}
    plan = plan_conversion(tmp_path / "plain", generic=True, towers=towers)
    text, vision = plan.towers["text"], plan.towers["vision"]
    sizes = "images of any size" if packs else "32 × 32 pixels, 64 tokens"
    assert vision.input_in_words("new") == (sizes if case != "llava" else "32 × 32 pixels, 65 tokens")
    assert text.input_in_words("new") == f"{text.config.max_position_embeddings} tokens"
    assert all(tower.parameters > 1000 for tower in plan.towers.values())
    assert all(
        cost.attention_flops < cost.full_attention_flops for tower in plan.towers.values() for cost in tower.costs
    )
    assert text.shape.causal is (case != "siglip")
    convert_checkpoint(
        tmp_path / "plain", tmp_path / "long", generic=True, towers={"vision": towers["vision"]}, verify=False
    )
    inspected = inspect_checkpoint(tmp_path / "long")
    assert list(inspected.towers) == ["vision"]
    assert inspected.other_towers == ("text",)
    assert (inspected.generic, inspected.class_name) == (True, type(build_towers(case)[0]).__name__)
    assert inspected.towers["vision"].parameters == vision.parameters
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "long")])
    said = " ".join(shown.output.split())
    assert "of transformers, with mechanisms" in said
    assert "towers as in their class text" in said


def test_generic_conversion_of_llava_by_command(tmp_path: Path) -> None:
    """The tokenizer belongs to the language model, whose vocabulary the vision tower does not have."""
    model, inputs = build_towers("llava")
    model.save_pretrained(tmp_path / "plain")
    words = [f"w{number}" for number in range(190)]
    BertTokenizer(
        {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    ).save_pretrained(tmp_path / "plain")
    arguments = ["--generic", "--towers", "text=longformer:window=8,vision=full"]
    shown = CliRunner().invoke(app, ["plan", str(tmp_path / "plain"), *arguments])
    assert (shown.exit_code, "tower text" in shown.output, "tower vision" in shown.output) == (0, True, True), (
        shown.output
    )
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "plain"), str(tmp_path / "long"), *arguments])
    assert done.exit_code == 0, done.output
    assert "transformers' Trainer on pairs" not in done.output
    towers = {"text": {"mechanism": "longformer", "window": 8}, "vision": {"mechanism": "full"}}
    hf_longattn.enable_long_attention(model, {"towers": towers})
    assert torch.allclose(output(load_generic(tmp_path / "long"), inputs), output(model, inputs), rtol=0, atol=1e-6)


def test_generic_folder_with_one_attention_is_inspected_as_a_whole(tmp_path: Path) -> None:
    build_towers("siglip")[0].save_pretrained(tmp_path / "plain")
    convert_checkpoint(tmp_path / "plain", tmp_path / "long", generic=True, mechanism="window", window=4, verify=False)
    inspected = inspect_checkpoint(tmp_path / "long")
    assert (inspected.towers, inspected.attention.mechanism, inspected.class_name) == ({}, "window", "SiglipModel")


@pytest.mark.parametrize(("case", "settings"), [("siglip", {}), ("siglip", {"generic": True}), ("llava", {})])
def test_search_refuses_several_towers_and_says_what_to_type(
    case: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    build_towers(case)[0].save_pretrained(tmp_path / "model")
    folder = tmp_path / "model"
    if settings:
        convert_checkpoint(folder, tmp_path / "long", generic=True, towers={"text": WINDOW}, verify=False)
        folder = tmp_path / "long"
    said = "SiglipTextModel.from_pretrained" if case == "siglip" and not settings else "longattn inspect"
    with pytest.raises(CheckpointError, match=said):
        search_design(folder, "a text " * 2000, output=tmp_path / "design.yaml")


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SMALL, "intermediate_size": 48}
PREDICTOR = {"pred_num_hidden_layers": 1, "pred_hidden_size": 32, "pred_num_attention_heads": 4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "VideoMAEForVideoClassification": ("VideoMAEConfig", {**WIDE, "image_size": 32, "patch_size": 8, "num_frames": 4}),
    "VJEPA2Model": ("VJEPA2Config", {**SMALL, **PREDICTOR, "crop_size": 32, "patch_size": 8, "frames_per_clip": 4}),
    "ASTForAudioClassification": ("ASTConfig", {**WIDE, "patch_size": 8, "num_mel_bins": 32, "max_length": 64}),
    "ParakeetForCTC": (
        "ParakeetCTCConfig",
        {"vocab_size": 30, "encoder_config": {**WIDE, "subsampling_conv_channels": 8}},
    ),
}


@every_case("name", MODELS)
def test_generic_models_of_videos_and_sounds_are_compared_with_their_source(name: str, tmp_path: Path) -> None:
    config, values = MODELS[name]
    getattr(transformers, name)(getattr(transformers, config)(**values)).save_pretrained(tmp_path / "short")
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", generic=True, mechanism="window", window=4)
    checks = statuses(report)
    assert checks["equal with the source's attention"] == checks["finite"] == "passed"
    assert checks["with the mechanism"] == "needs training"
    with pytest.raises(CheckpointError, match="has no Long classes; --generic may add mechanisms to its plain class"):
        convert_checkpoint(tmp_path / "short", tmp_path / "other", mechanism="window", window=4)
