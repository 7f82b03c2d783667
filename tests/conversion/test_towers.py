"""Conversion of models of several towers: each is planned and verified with its own settings, and both together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hf_longattn import convert_checkpoint, export_checkpoint, plan_conversion
from hf_longattn.cli import main
from hf_longattn.errors import CheckpointError, LongAttentionError
from scripts.dev.tools.small_models import small_towers_config
from tests.cases import every_case
from tests.grids import quickly
from tests.towers import SHAPE, save_clip

NEW_SIZE, NEW_LENGTH = 64, 248
TOWERS = {"text": {"mechanism": "window", "window": 64}, "vision": {"mechanism": "window2d"}}


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A small CLIP whose image processor is in a file of its own ("apart"), or in that of the processor ("together")."""
    folders: dict[str, Path] = {}

    def make(processor: str) -> Path:
        if processor not in folders:
            folders[processor] = tmp_path_factory.mktemp(processor)
            save_clip(folders[processor], together=processor == "together")
        return folders[processor]

    return make


@pytest.mark.parametrize("processor", quickly(["apart", "together"], ("together",)))
def test_clip_is_converted_verified_and_runs_in_a_pipeline(processor: str, short: Callable[[str], Path], tmp_path: Path) -> None:
    source = short(processor)
    settings: dict[str, Any] = {"towers": TOWERS, "max_length": NEW_LENGTH, "image_size": NEW_SIZE}
    report = convert_checkpoint(source, tmp_path / "long", **settings)
    checks = {check.name: check for check in report.checks}
    assert report.verified
    assert report.needs_training
    assert {name for name, check in checks.items() if check.status == "passed"} >= {
        "tensors", "tokenizer", "image processor", "text: equal where positions are unchanged", "text: finite at the new length",
        "vision: equal where the mechanism covers the input", "vision: equal at the new size with full attention",
        "similarities of text and image equal", "finite at the new sizes",
    }  # fmt: skip
    assert checks["similarities of text and image equal"].values["relative_difference"] <= 1e-5
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
    assert {row["label"] for row in pipeline(image, candidate_labels=["a cat", "a dog " * 30])} == {"a cat", "a dog " * 30}


def test_plan_gives_towers_without_a_choice_their_default(short: Callable[[str], Path]) -> None:
    plan = plan_conversion(short("apart"), image_size=NEW_SIZE)
    assert {name: tower.attention.mechanism for name, tower in plan.towers.items()} == {"text": "longformer", "vision": "window2d"}
    assert (plan.old_length, plan.new_length) == (SHAPE.tokens, SHAPE.tokens)


def test_plan_takes_positions_for_each_tower(short: Callable[[str], Path]) -> None:
    settings: dict[str, Any] = {"towers": TOWERS, "max_length": NEW_LENGTH, "image_size": NEW_SIZE}
    plan = plan_conversion(short("apart"), positions="text=tile,vision=interpolate", **settings)
    assert {name: tower.positions for name, tower in plan.towers.items()} == {"text": "tile", "vision": "interpolate"}
    assert not plan.position_change


@every_case(
    ("settings", "sentence"),
    [
        ({"mechanism": "window"}, r"text and vision, have mechanisms apart, to which --mechanism, --option and --layers do not apply"),
        ({"towers": {"txt": {"mechanism": "full"}}}, r"A CLIPModel has no tower 'txt'; its towers are text and vision\."),
        ({"towers": {"vision": {"mechanism": "window"}}}, r"window.*neighbours along a text, and an image has none"),
        ({"positions": "tile"}, r"have positions apart; give --positions text=RULE,vision=RULE"),
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


def test_plan_refuses_towers_for_a_model_of_one_stack(tmp_path: Path) -> None:
    transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, hidden_size=24, num_attention_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(LongAttentionError, match="--towers is for models of several towers, but a BertModel reads texts; leave it out"):
        plan_conversion(tmp_path, towers=TOWERS)


def run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


def test_plan_convert_and_inspect_print_both_towers(
    short: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--towers", "text=window:window=64,vision=window2d", "--max-length", str(NEW_LENGTH), "--image-size", str(NEW_SIZE)]
    run(["plan", str(short("apart")), *flags])
    shown = capsys.readouterr().out
    assert "248 tokens and 64 × 64 pixels" in " ".join(shown.split())
    assert "window2d" in shown
    run(["plan", str(short("apart")), *flags, "--json"])
    comparison = json.loads(capsys.readouterr().out)["comparison"]
    assert comparison.keys() == {"text", "vision"}
    run(["convert", str(short("apart")), str(tmp_path / "long"), *flags, "--no-verify"])
    assert "→ 248 tokens and 64 × 64 pixels" in " ".join(capsys.readouterr().out.split())
    run(["inspect", str(tmp_path / "long")])
    assert {"LongCLIPModel,", "LongCLIPTextModel,", "LongCLIPVisionModel,"} <= set(capsys.readouterr().out.replace("(", " ").split())
    with pytest.raises(
        CheckpointError, match=r"has the towers text and vision; save one apart: hf_longattn\.LongCLIPTextModel\.from_pretrained"
    ):
        export_checkpoint(tmp_path / "long", tmp_path / "graph")


def save_siglip(folder: Path, base: str) -> Path:
    torch.manual_seed(0)
    config = small_towers_config(base, replace(SHAPE, tokens=64, vocabulary=99), eos_token_id=98, bos_token_id=97, pad_token_id=1)
    (transformers.SiglipModel if base == "siglip" else transformers.Siglip2Model)(config).save_pretrained(folder)
    return folder


@pytest.mark.thorough
def test_converted_siglip_reads_captions_of_the_old_length_as_before(tmp_path: Path) -> None:
    source = save_siglip(tmp_path / "short", "siglip")
    report = convert_checkpoint(source, tmp_path / "long", towers=TOWERS, max_length=256, image_size=NEW_SIZE)
    checks = {check.name: check for check in report.checks}
    assert report.plan["towers"]["text"]["positions"] == "tile"
    assert checks["similarities of text and image equal"].values["length"] == 64
    assert checks["similarities of text and image equal"].status == "passed"


def test_plan_refuses_siglip2_whose_images_have_any_size(tmp_path: Path) -> None:
    source = save_siglip(tmp_path / "short", "siglip2")
    with pytest.raises(LongAttentionError, match=r"no size to convert; load it with its Long class"):
        plan_conversion(source, max_length=256)
