"""Searches for models of images and sounds: as for texts, at the size of the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import hf_longattn
from hf_longattn.conversion import plan_conversion
from hf_longattn.conversion.images import Images
from hf_longattn.data.sources import DataError
from hf_longattn.engines.token_grid import Grid
from hf_longattn.errors import BackendError, CheckpointError, InputError, LongAttentionError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.files import read_json
from hf_longattn.inspect import Candidate, captured_mass
from hf_longattn.modeling.family.input_spec import PLAIN_TEXT
from hf_longattn.search import choose_mechanisms, search_design
from hf_longattn.search.costs import layer_seconds
from hf_longattn.search.design import FULL, unsuitable, usual_candidates

from ..cli.test_commands import output
from ..grids import quickly
from ..modeling import grid_models
from ..modeling.audio_models import recording, saved, with_extractor

Image: Any = pytest.importorskip("PIL.Image")
VIT = "ViTForImageClassification"
CANDIDATES = [
    "window2d:window=8",
    "window2d:window=4",
    "top_k:num_keys=16",
    "full",
]
SOUND_CANDIDATES = [
    "window:left=8,right=8",
    "window:left=64,right=64",
    "segmented:block_size=16,integration=previous",
    "full",
]
COSTS = dict(zip((*CANDIDATES, *SOUND_CANDIDATES), (0.2, 0.1, 0.15, 1.0, 0.1, 0.2, 0.15, 1.0), strict=True))


@pytest.fixture(autouse=True)
def _priced(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Costs that do not depend on the machine. Those of images are asked for on a grid."""

    def priced(candidates: Any, shape: Any, length: int, device: Any, grid: Any, progress: Any) -> Any:
        assert (grid is not None) == ("image_folder" in request.fixturenames)
        return {str(candidate): COSTS.get(str(candidate), 0.5) for candidate in candidates}, {}

    monkeypatch.setattr("hf_longattn.search.search.layer_seconds", priced)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "vit"
    grid_models.saved("vit", VIT, folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(6):
        pixels = torch.randint(0, 256, (9, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        (folder / f"part{number % 2}").mkdir(exist_ok=True)
        Image.fromarray(pixels.numpy()).resize((90, 70)).save(folder / f"part{number % 2}" / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.thorough
def test_auto_for_images_chooses_what_the_search_chooses_and_says_why(
    vit: Path, image_folder: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"mechanism": "auto", "image_size": 64, "budget": "0.3", "search_input": image_folder}
    report = hf_longattn.convert_checkpoint(vit, tmp_path / "long", choose=choose_mechanisms, **settings)
    chosen = search_design(vit, image_folder, budget="0.3", image_size=64).chosen
    assert report.verified
    assert hf_longattn.LongAttentionConfig.from_dict(report.plan["long_attention"]) == chosen.design.attention()
    choice = read_json(tmp_path / "long" / "conversion_report.json")["plan"]["choice"]
    assert choice["reason"].endswith("keeps the most of the layers' attention within 0.3 of full attention's time.")
    assert (choice["images"], choice["compared_at"], choice["compared_image_size"]) == (
        image_folder.name,
        257,
        [64, 64],
    )
    assert report.config["search_input"] == image_folder.name
    model = hf_longattn.LongViTForImageClassification.from_pretrained(tmp_path / "long")
    assert model.config.long_image_size == [64, 64]


def test_auto_without_images_asks_for_them(vit: Path) -> None:
    with pytest.raises(OptionError, match="reads images; give a file or a folder of images"):
        plan_conversion(vit, choose=choose_mechanisms, mechanism="auto", image_size="48x64")


@pytest.mark.thorough
def test_a_searched_design_of_images_is_converted_by_command(
    vit: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, candidates = tmp_path / "design.yaml", [word for text in CANDIDATES for word in ("--candidate", text)]
    typed = ["search", vit, image_folder, "--output", file, "--image-size", "64", *candidates]
    assert "length 64 × 64 pixels, 257 tokens" in " ".join(output(capsys, *typed).split())
    assert yaml.safe_load(file.read_text())["image_size"] == "64x64"
    file.unlink()
    report = json.loads(output(capsys, *typed, "--json"))
    assert (report["image_size"], report["length"], report["command"].split()[-1]) == ([64, 64], 257, str(file))
    output(capsys, "convert", vit, tmp_path / "long", "--config", file, "--no-verify")
    model = hf_longattn.LongViTForImageClassification.from_pretrained(tmp_path / "long")
    assert model.config.long_attention.to_dict() == report["long_attention"]


@pytest.mark.thorough
@pytest.mark.parametrize("base", quickly(["dinov3_vit", "beit", "clip_vision_model"], ["dinov3_vit", "beit"]))
def test_every_family_of_images_is_searched(base: str, image_folder: Path, tmp_path: Path) -> None:
    grid_models.saved(base, grid_models.base_model(base), tmp_path / base)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / base)
    result = search_design(
        tmp_path / base, image_folder, image_size=64 if FAMILIES[base].spec.interpolates else 32, candidates=CANDIDATES
    )
    assert all(
        0 < scores["window2d:window=4"] < scores["full"] == pytest.approx(1, abs=1e-5) for scores in result.scores
    )


def test_every_mechanism_on_a_grid_is_a_candidate(vit: Path) -> None:
    sizes = plan_conversion(vit, image_size=64).inputs
    usual = usual_candidates(sizes)
    assert set(hf_longattn.list_mechanisms(grid=True)) | {"full"} <= {candidate.mechanism for candidate in usual}
    assert usual[0] == Candidate("window2d", {"window": (8,)}) or str(usual[0]) == "window2d:window=8"
    assert all(not candidate.by_user for candidate in usual)
    assert "sees neighbours along a text" in unsuitable(Candidate("window"), False, sizes)
    assert unsuitable(FULL, False, sizes) == ""
    assert "the model reads a text" in unsuitable(Candidate("window2d"), False, PLAIN_TEXT.between(None, 64, 64))


def test_searched_images_are_those_of_the_image_processor(vit: Path, image_folder: Path) -> None:
    plan = plan_conversion(vit, image_size="48x64")
    config, folder = plan.architecture.source_config, plan.source.folder
    pieces = Images(plan.inputs.spec, config, folder, image_folder, count=3).pieces(plan.inputs.new)
    sized = ViTImageProcessorPil.from_pretrained(vit, size={"height": 48, "width": 64})
    files = sorted(image_folder.rglob("*.png"))
    for piece, file in zip(pieces, (files[0], files[2], files[5]), strict=True):
        torch.testing.assert_close(
            piece["pixel_values"], sized(images=Image.open(file), return_tensors="pt")["pixel_values"]
        )


def test_costs_of_images_are_measured_on_the_grid(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    shape, device = plan_conversion(vit).shape, torch.device("cpu")
    seconds, _ = layer_seconds([Candidate("window2d"), Candidate("top_k")], shape, 65, device, Grid((8, 8), 1))
    assert seconds.keys() >= {"window2d"}


REFUSED: list[tuple[dict[str, Any], type[LongAttentionError], str]] = [
    ({"text": "words " * 99}, OptionError, "reads images; give a file or a folder of images"),
    ({"text": Path("missing")}, DataError, "does not exist; give a file, or a folder"),
    ({"length": 512}, OptionError, "reads images; leave it out"),
    ({"image_size": 30}, InputError, "not a multiple of the patch's 4"),
    ({"compare_at": 96}, InputError, "images of up to 64 × 64 pixels"),
    ({"compare_at": 33}, InputError, "not a multiple of the patch's 4"),
    ({"candidates": ["window:window=8"]}, OptionError, "sees neighbours along a text"),
    (
        {"candidates": ["window2d:window=16"], "positions": "tile"},
        OptionError,
        "give one that sees less with --candidate",
    ),
]


def test_a_text_or_images_for_the_wrong_model_are_refused(
    vit: Path, encoder: Path, text: Path, image_folder: Path, tmp_path: Path
) -> None:
    for model, path, sentence in (
        (vit, text, "The image .*text.txt cannot be read"),
        (encoder, image_folder, "is a folder"),
    ):
        with pytest.raises(LongAttentionError, match=sentence):
            plan_conversion(model, choose=choose_mechanisms, mechanism="auto", search_input=path)
    with pytest.raises(OptionError, match="are for --mechanism auto"):
        plan_conversion(vit, image_size=64, search_input=image_folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        plan_conversion(vit, choose=choose_mechanisms, mechanism="auto", search_input=tmp_path / "empty")
    grid_models.saved("vit", VIT, tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        plan_conversion(tmp_path / "bare", choose=choose_mechanisms, mechanism="auto", search_input=image_folder)
    assert not (tmp_path / "long").exists()


def test_captured_mass_of_a_model_of_images_in_memory(vit: Path, tmp_path: Path) -> None:
    model = hf_longattn.LongViTForImageClassification.from_pretrained(vit)
    measured = captured_mass(
        model, {"pixel_values": torch.randn(1, 3, 40, 48)}, ["window2d:window=4", "full"], queries=1000
    )
    assert measured.mass.shape == (4, model.config.num_attention_heads, 2)
    with pytest.raises(BackendError, match="reads no images on a grid of patches"):
        captured_mass(hf_longattn.LongBertModel(hf_longattn.LongBertConfig(num_hidden_layers=1)), {}, ["full"])


CTC = "Wav2Vec2ForCTC"


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "wav2vec2"
    with_extractor("wav2vec2", CTC, folder)
    return folder


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talks")
    for number in range(3):
        recording(folder / f"{number}.wav", 3 + number, number)
    return folder


@pytest.mark.thorough
def test_auto_for_sound_chooses_by_recordings_and_says_why(wav2vec2: Path, talks: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "mechanism": "auto",
        "audio_seconds": 16,
        "budget": "0.6",
        "search_input": recording(tmp_path / "a.wav", 17),
    }
    report = hf_longattn.convert_checkpoint(wav2vec2, tmp_path / "long", choose=choose_mechanisms, **settings)
    assert report.verified
    choice = read_json(tmp_path / "long" / "conversion_report.json")["plan"]["choice"]
    assert (choice["sounds"], choice["compared_audio_seconds"], choice["compared_at"]) == ("a.wav", 16, 799)
    model = hf_longattn.LongWav2Vec2ForCTC.from_pretrained(tmp_path / "long")
    assert model.config.long_audio_seconds == 16


def test_usual_candidates_for_sound_suit_it(wav2vec2: Path) -> None:
    sizes = plan_conversion(wav2vec2).inputs
    usual = usual_candidates(sizes)
    assert {"window", "full", "longformer"} <= {candidate.mechanism for candidate in usual}
    assert all(unsuitable(candidate, False, sizes) == "" for candidate in usual)
    assert "a sound is one line" in unsuitable(Candidate("window2d"), False, sizes)


def test_a_search_reads_a_recording_of_the_duration_asked_for(wav2vec2: Path, talks: Path) -> None:
    """All have three seconds."""
    assert search_design(wav2vec2, talks, candidates=SOUND_CANDIDATES[:1], compare_at=3, pieces=1).scores


SOUND_REFUSED: list[tuple[dict[str, Any], type[LongAttentionError], str]] = [
    ({"text": "words " * 99}, OptionError, "reads recordings; give a file or a folder of recordings"),
    ({"text": Path("missing")}, DataError, "does not exist; give a file, or a folder"),
    ({"length": 512}, OptionError, "reads sounds; leave it out"),
    ({"image_size": 512}, OptionError, "reads sounds; leave it out"),
    ({"audio_seconds": 3}, InputError, "3 seconds are too few"),
    ({}, InputError, r"The longest recording has 5\.0 seconds, but 15 are needed"),
    ({"compare_at": 16}, InputError, "on sounds of up to 15 seconds, which the checkpoint reads, not of 16"),
    ({"candidates": ["window2d:window=16"], "compare_at": 2}, OptionError, "reads an image's patches"),
]


@pytest.mark.parametrize(
    ("model", "settings", "error", "sentence"),
    [*(("vit", *row) for row in REFUSED), *(("wav2vec2", *row) for row in SOUND_REFUSED)],
)
def test_a_search_refuses_inputs_and_options_that_do_not_fit(
    model: str,
    settings: dict[str, Any],
    error: type[LongAttentionError],
    sentence: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    sizes = {"image_size": 64} if model == "vit" and "length" not in settings else {}
    data = request.getfixturevalue("image_folder" if model == "vit" else "talks")
    with pytest.raises(error, match=sentence):
        search_design(
            request.getfixturevalue(model), **{"text": data, **sizes, **settings, "output": tmp_path / "design.yaml"}
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_a_search_for_sound_needs_a_feature_extractor(talks: Path, tmp_path: Path) -> None:
    saved("wav2vec2", CTC, tmp_path)
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json, which says how it reads recordings"):
        search_design(tmp_path, talks)
    with pytest.raises(OptionError, match="--search-input"):
        plan_conversion(tmp_path, choose=choose_mechanisms, mechanism="auto")
