"""Diagnoses of images, sounds and towers: masses against the whole softmax, maps, the command, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoFeatureExtractor, BertConfig, BertModel, ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_longattn.cli import main
from hf_longattn.data.audio import read_audio
from hf_longattn.data.sources import DataError
from hf_longattn.engines.call import AttentionCall
from hf_longattn.engines.token_grid import Grid
from hf_longattn.errors import BackendError, CheckpointError, InputError, OptionError
from hf_longattn.families import FAMILIES, LongViTForImageClassification
from hf_longattn.inspect import diagnose
from hf_longattn.inspect.watching import tower_that_reads, watching
from hf_longattn.mechanisms.common.base import attention_weights
from hf_longattn.mechanisms.common.registry import mechanism_from
from tests.cases import every_case
from tests.modeling.audio_models import (
    EVERY_FAMILY,
    RATE,
    long_model,
    recording,
    small_model,
    smallest_head,
    with_extractor,
)
from tests.modeling.test_generic import build_towers
from tests.towers import LINES, SHAPE, save_clip

Image: Any = pytest.importorskip("PIL.Image")
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "patch_size": 4,
    "image_size": 32,
}
CANDIDATES = ["window2d:window=3", "window2d:window=5", "full"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**SIZES, initializer_range=0.3)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 40, "width": 48}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photo(folder: Path) -> Path:
    pixels = torch.randint(0, 256, (60, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.numpy()).save(folder / "photo.png")
    return folder / "photo.png"


def test_masses_of_images_are_those_of_the_whole_softmax(folder: Path, photo: Path) -> None:
    report = diagnose(folder, photo, candidates=CANDIDATES)
    grid = Grid((10, 12), prefix=1)
    assert report.image is not None
    assert (report.image.grid, report.last.queries) == (grid, 121)
    model = ViTForImageClassification.from_pretrained(folder, attn_implementation="eager").eval()
    processed = ViTImageProcessorPil.from_pretrained(folder)(Image.open(photo).convert("RGB"), return_tensors="pt")
    with torch.no_grad():
        weights = model(**processed, interpolate_pos_encoding=True, output_attentions=True).attentions
    tokens = torch.arange(121)
    for layer, expected in zip(report.last.layers, weights, strict=True):
        for text, mass in zip(CANDIDATES[:2], layer.captured.mean(0).tolist(), strict=False):
            name, _, option = text.partition(":")
            key, _, value = option.partition("=")
            mask = mechanism_from(name, {key: int(value)}, num_heads=4, head_dim=8).on_grid(grid).mask_mod(False, None)
            kept = mask(0, 0, tokens[:, None], tokens)
            assert mass == pytest.approx(float((expected[0] * kept).sum(-1).mean()), abs=1e-5)
        assert float(layer.captured[:, 2].mean()) == pytest.approx(1)
    assert 0 < report.last.pairs[0] < report.last.pairs[2] == report.last.full_pairs == 121**2


def test_the_mass_of_pooled_segments_is_what_they_share_with_the_softmax(folder: Path, photo: Path) -> None:
    pooled, ordered = (
        "segmented:block_size=16,integration=pooled,order=tiles:4x4",
        "segmented:block_size=16,integration=none,order=tiles:4x4",
    )
    report = diagnose(folder, photo, candidates=[pooled, ordered, "window2d:window=4,prefix_tokens=none"])
    model = ViTForImageClassification.from_pretrained(folder, attn_implementation="eager").eval()
    processed = ViTImageProcessorPil.from_pretrained(folder)(Image.open(photo).convert("RGB"), return_tensors="pt")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad(), watching(model.vit, lambda number, layer: seen.append((layer.q, layer.k))):
        model(**processed, interpolate_pos_encoding=True)
    mechanism = mechanism_from(
        "segmented", {"block_size": 16, "integration": "pooled", "order": "tiles:4x4"}, num_heads=4, head_dim=8
    )
    call = AttentionCall(causal=False, grid=Grid((10, 12), prefix=1))
    for layer, (q, k) in zip(report.last.layers, seen, strict=True):
        softmax, weights = (q @ k.mT / 8**0.5).softmax(-1), attention_weights(mechanism, q, k, call)
        expected = 1 - (softmax - weights).abs().sum(-1).mean() / 2
        mass = layer.captured.mean(0).tolist()
        assert mass[0] == pytest.approx(float(expected), abs=1e-5)
        assert mass[1] == pytest.approx(mass[2], abs=1e-6)
        assert mass[0] > mass[1]


def test_layers_with_an_order_are_shown_in_that_of_the_image(folder: Path, photo: Path) -> None:
    model = LongViTForImageClassification.from_pretrained(
        folder,
        long_attention={"mechanism": "segmented", "block_size": 200, "integration": "none", "order": "tiles:3x5"},
    )
    processor = ViTImageProcessorPil.from_pretrained(folder)
    ordered = diagnose(model, photo, processor=processor, candidates=CANDIDATES)
    plain = diagnose(folder, photo, candidates=CANDIDATES)
    for layer, expected in zip(ordered.last.layers, plain.last.layers, strict=True):
        assert layer.mechanism == "segmented"
        torch.testing.assert_close(layer.captured, expected.captured, rtol=0, atol=1e-5)


def test_the_inspect_command_says_how_attention_of_an_image_spreads(
    folder: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["inspect", str(folder), str(photo)]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    shown = " ".join(capsys.readouterr().out.split())
    assert "window2d:window=14" in shown
    assert "Image of 40 × 48 pixels" in shown
    assert "patches, 90 % within" in shown
    with pytest.raises(SystemExit):
        main([*command, "--json"])
    numbers = json.loads(capsys.readouterr().out)
    assert (numbers["grid"], len(numbers["lengths"][0]["layers"])) == ([10, 12], 2)


def test_a_diagnosis_of_images_refuses_files_and_options_that_do_not_fit(
    folder: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"The image .*cut\.png cannot be read .*, or give another file"):
        diagnose(folder, tmp_path / "cut.png")
    model = ViTForImageClassification.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        diagnose(ViTForImageClassification(model.config), photo)
    with pytest.raises(OptionError, match="reads images, which are measured at one size; leave --lengths out"):
        diagnose(folder, photo, lengths=[64])
    with pytest.raises(OptionError, match="sees neighbours along a text"):
        diagnose(folder, photo, candidates=["window:window=8"])
    (tmp_path / "text.txt").write_text("words " * 100)
    with pytest.raises(
        BackendError, match=r"reads images and no text; for images and recordings type longattn inspect MODEL FILE"
    ):
        diagnose(model, tmp_path / "text.txt")


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recording(tmp_path_factory.mktemp("talks") / "talk.wav", 4.5)


@every_case("base", EVERY_FAMILY, of=4)
def test_every_family_of_sound_is_diagnosed(base: str, talk: Path, tmp_path: Path) -> None:
    """What the model attends to is kept by full attention; by a window less, unless the base itself sees no more."""
    with_extractor(base, smallest_head(base), tmp_path, **({"max_source_positions": 100} if base == "whisper" else {}))
    report = diagnose(tmp_path, talk, lengths=[2], candidates=["window:left=3,right=3", "full"], queries=64)
    assert (report.unit, report.is_long, report.model_class) == ("frames", False, smallest_head(base))
    assert report.frame_seconds is not None
    assert report.last.length * report.frame_seconds == pytest.approx(2, abs=3 * report.frame_seconds)
    captured = report.last.captured()
    assert len(captured) == FAMILIES[base].base_config_class.from_pretrained(tmp_path).num_hidden_layers
    torch.testing.assert_close(captured[..., 1], torch.ones_like(captured[..., 1]), rtol=0, atol=1e-5)
    assert bool((captured[..., 0] > 0).all())
    assert bool((captured[..., 0] <= captured[..., 1] + 1e-5).all())


def test_masses_of_sounds_are_those_of_transformers_weights(talk: Path, tmp_path: Path) -> None:
    """By distance and by mechanism, mean over the excerpts of a recording."""
    base = with_extractor("wav2vec2", "Wav2Vec2Model", tmp_path)
    report = diagnose(tmp_path, talk, lengths=[1.5], candidates=["window:left=9,right=4"])
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    values = extractor(read_audio(talk, RATE), sampling_rate=RATE, return_tensors="pt").input_values
    base.set_attn_implementation("eager")
    with torch.no_grad():
        passes = [base(excerpt, output_attentions=True).attentions for excerpt in values.split(24_000, 1)]
    # (layers, H, N, N)
    weights = torch.stack([torch.cat(layers) for layers in zip(*passes, strict=True)]).double().mean(1)
    distance = torch.arange(weights.shape[-1])[:, None] - torch.arange(weights.shape[-1])
    kept = (weights * ((distance <= 9) & (distance >= -4))).sum(-1).mean(-1)
    torch.testing.assert_close(report.last.captured()[..., 0], kept, rtol=0, atol=1e-5)
    for number, (low, high) in enumerate(report.last.bins):
        mass = (weights * ((distance.abs() >= low) & (distance.abs() <= high))).sum(-1).mean(-1)
        measured = torch.stack([layer.distance[:, number] for layer in report.last.layers])
        torch.testing.assert_close(measured, mass, rtol=0, atol=1e-5)


@pytest.mark.thorough
def test_a_long_model_of_sound_and_its_checkpoint_have_the_same_attention(talk: Path, tmp_path: Path) -> None:
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path)
    stock = diagnose(tmp_path, talk, candidates=["window:window=32"], queries=50)
    model = long_model("wav2vec2", "Wav2Vec2ForCTC", tmp_path, long_attention={"mechanism": "full"})
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    long = diagnose(model, talk, processor=extractor, candidates=["window:window=32"], queries=50)
    assert (stock.is_long, long.is_long) == (False, True)
    torch.testing.assert_close(long.last.captured(), stock.last.captured(), rtol=0, atol=1e-6)
    assert stock.notes == ("The longest recording has 4.5 seconds; a longer one shows greater distances.",)


def test_longer_sounds_than_the_checkpoint_reads_are_refused(tmp_path: Path) -> None:
    with_extractor("whisper", "WhisperModel", tmp_path, max_source_positions=100)
    talk = recording(tmp_path / "talk.wav", 3.5)
    with pytest.raises(InputError, match=r"reads up to 2 seconds, but 3 seconds were given; convert it first"):
        diagnose(tmp_path, talk, lengths=[1, 3], candidates=["window:window=32"])
    assert [row.length for row in diagnose(tmp_path, talk, candidates=["window:window=32"], queries=8).lengths] == [
        100
    ]


def test_the_inspect_command_diagnoses_sound(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path / "short")
    typed = [
        "inspect",
        str(tmp_path / "short"),
        str(talk.parent),
        "--candidate",
        "window:window=32",
        "--candidate",
        "linear",
    ]
    capsys.readouterr()
    assert _run([*typed, "--lengths", "1,3"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "At 149 frames (2.98 s)",
        "Half of the attention of the average head lies within",
        "options count frames of 0.02 s",
        "add to longattn convert: --mechanism window",
    ):
        assert words in shown
    assert "tokens" not in shown
    assert _run([*typed, "--lengths", "1", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert (numbers["frame_seconds"], [row["length"] for row in numbers["lengths"]]) == (0.02, [49])


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--lengths", "9"], "The longest recording has 4.5 seconds, but 9 are needed"),
        (["--lengths", "0"], "must be a number of seconds above 0"),
        (["--lengths", "many"], "are not seconds; give for example --lengths 30"),
        (["--device", "toaster"], "There is no device 'toaster'"),
        (["--candidate", "transformer_xl"], "reads one segment of a text after the other"),
        (["--candidate", "window2d"], "reads an image's patches, but a sound is one line"),
    ],
)
def test_the_inspect_command_refuses_durations_and_candidates_that_do_not_fit(
    options: list[str], sentence: str, talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path)
    capsys.readouterr()
    assert _run(["inspect", str(tmp_path), str(talk), *options]) != 0
    assert sentence in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_diagnosis_refuses_models_that_read_something_else(
    talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_extractor("wav2vec2", "Wav2Vec2ForCTC", tmp_path / "short")
    (tmp_path / "text.txt").write_text("words " * 100)
    BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=99)).save_pretrained(
        tmp_path / "bert"
    )
    refusals = {
        (
            "short",
            str(tmp_path / "text.txt"),
        ): "reads sounds and no text; for images and recordings type longattn inspect MODEL FILE",
        ("bert", str(talk)): "reads no images on a grid of patches; give a text instead",
    }
    for (model, file), sentence in refusals.items():
        capsys.readouterr()
        assert _run(["inspect", str(tmp_path / model), file]) == 1
        assert sentence in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        diagnose(small_model("wav2vec2", "Wav2Vec2Model"), talk)
    with pytest.raises(BackendError, match=r"can only be watched in LongWav2Vec2Model; load that class"):
        diagnose(
            small_model("wav2vec2", "Wav2Vec2Model"),
            talk,
            processor=AutoFeatureExtractor.from_pretrained(tmp_path / "short"),
        )


def _run(arguments: list[str]) -> int:
    try:
        return main(arguments) or 0
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


def test_a_text_is_read_by_the_tower_of_texts(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(LINES))
    found = diagnose(clip, tmp_path / "text.txt", candidates=["window:window=16"], queries=8)
    assert (found.model_class, found.causal, found.last.length) == ("CLIPModel, tower text", True, SHAPE.tokens)
    assert found.flags(0) == ["--towers", "text=window:window=16"]


def test_a_photo_is_read_by_the_tower_of_images(clip: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    found = diagnose(clip, tmp_path / "photo.png", candidates=["window2d:window=2"])
    assert found.image is not None
    assert (found.model_class, found.image.grid.prefix) == ("CLIPModel, tower vision", 1)


@pytest.mark.parametrize(("case", "tower"), [("llava", "vision"), ("pixtral", None), ("qwen2_vl", None)])
def test_towers_of_language_models_are_chosen_by_their_input(case: str, tower: str | None) -> None:
    model, _ = build_towers(case)
    read, name = tower_that_reads(model, text=True)
    assert (name, read.main_input_name) == ("text", "input_ids")
    if tower is None:
        with pytest.raises(BackendError, match="packs images of different sizes, which are not watched; give a text"):
            tower_that_reads(model, text=False)
    else:
        assert tower_that_reads(model, text=False)[1] == tower
    assert tower_that_reads(torch.nn.Linear(1, 1), text=True)[1] == ""
