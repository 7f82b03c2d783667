"""Spectrogram transformers on longer sounds: positions along time, windows that are the base on each crop, and conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, ASTModel, AutoFeatureExtractor, pipeline

import hf_longattn
from hf_longattn.conversion import convert_checkpoint, inspect_checkpoint, plan_conversion
from hf_longattn.errors import ExportError, GridError, LongAttentionError, OptionError
from hf_longattn.export import export_checkpoint
from hf_longattn.families import LongASTConfig, LongASTForAudioClassification, LongASTModel
from hf_longattn.inputs import grid

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_length": 104, "num_mel_bins": 64,
    "num_labels": 5, "initializer_range": 0.3,
}  # fmt: skip
CELLS = (5, 9)
"""Patches of 16, one every 10: of 64 mel bins and 104 frames."""
FILES = ("model.safetensors", "config.json", "preprocessor_config.json")


def save(folder: Path, head: type[Any] = ASTForAudioClassification, layers: int = 2, **extractor: Any) -> Any:
    torch.manual_seed(0)
    model = head(ASTConfig(**{**SIZES, "num_hidden_layers": layers})).eval()
    for name, parameter in model.named_parameters():
        if "position" in name or "token" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(folder)
    ASTFeatureExtractor(**{"max_length": 104, "num_mel_bins": 64, **extractor}).save_pretrained(folder)
    return model


def spectrogram(frames: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, frames, 64, generator=torch.Generator().manual_seed(0))


def positions_by_hand(table: Tensor, frames: int, extension: str) -> Tensor:
    """The positions of a longer spectrogram, cell by cell: row r of frequency and column c of time."""
    rows, before, after = *CELLS, (frames - 16) // 10 + 1
    cells = []
    for row in range(rows):
        of_row = table[2 + row * before : 2 + (row + 1) * before]
        for column in range(after):
            place = column % before if extension == "tile" else (column + 0.5) * before / after - 0.5
            left, share = int(max(place, 0)), max(place, 0) % 1
            cells.append(of_row[left] * (1 - share) + of_row[min(left + 1, before - 1)] * share)
    return torch.cat([table[:2], torch.stack(cells)])


@pytest.mark.parametrize("extension", ["tile", "interpolate"])
@torch.no_grad()
def test_longer_sounds_are_the_base_with_its_table_extended_along_time(extension: str, tmp_path: Path) -> None:
    plain = save(tmp_path, ASTModel)
    model = LongASTModel.from_pretrained(tmp_path, long_attention={"mechanism": "full"}, position_extension=extension).eval()
    torch.testing.assert_close(model(spectrogram(104)).last_hidden_state, plain(spectrogram(104)).last_hidden_state, rtol=0, atol=0)
    table = plain.embeddings.position_embeddings[0]
    plain.embeddings.position_embeddings = nn.Parameter(positions_by_hand(table, 233, extension)[None])
    expected = plain(spectrogram(233)).last_hidden_state
    torch.testing.assert_close(model(spectrogram(233)).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_shorter_sound_has_the_first_positions(tmp_path: Path) -> None:
    plain = save(tmp_path, ASTModel)
    model = LongASTModel.from_pretrained(tmp_path, long_attention={"mechanism": "full"}).eval()
    table = plain.embeddings.position_embeddings
    first = [table[:, :2], *(table[:, 2 + 9 * row : 2 + 9 * row + 4] for row in range(5))]
    plain.embeddings.position_embeddings = nn.Parameter(torch.cat(first, 1))
    torch.testing.assert_close(model(spectrogram(46)).last_hidden_state, plain(spectrogram(46)).last_hidden_state)


@torch.no_grad()
def test_orders_of_tokens_and_mechanisms_on_the_grid_run(tmp_path: Path) -> None:
    save(tmp_path)
    for attention in (
        {"mechanism": "window2d", "window": [5, 9], "shift": "alternate"},
        {"mechanism": "window", "window": 16, "order": "columns"},
        {"mechanism": "longformer", "window": 16, "order": "tiles:5x4"},
    ):
        model = LongASTForAudioClassification.from_pretrained(tmp_path, long_attention=attention).eval()
        assert model(spectrogram(240, batch=2)).logits.isfinite().all()
    with pytest.raises(OptionError, match="'window' sees neighbours along a text"):
        LongASTConfig(**SIZES, long_attention={"mechanism": "window"})


class TestConversion:
    def test_windows_are_the_source_on_each_crop_and_come_back_to_the_same_bytes(self, tmp_path: Path) -> None:
        save(tmp_path / "short")
        report = convert_checkpoint(tmp_path / "short", tmp_path / "long", audio_seconds=3, prefix_tokens="none")
        checks = {check.name: check for check in report.checks}
        assert report.passed
        for name in ("feature extractor", "equal at the old size with full attention", "equal at the new size with full attention"):
            assert checks[name].status == "passed"
        assert (checks[grid.CROPS].status, checks[grid.CROPS].values["crops"]) == ("passed", 3)
        assert report.plan["tensor_counts"]["kept"] == sum(report.plan["tensor_counts"].values())
        assert (report.plan["old_spectrogram_size"], report.plan["new_spectrogram_size"]) == ([64, 104], [64, 300])
        config = json.loads((tmp_path / "long" / "config.json").read_text())
        assert (config["max_length"], config["long_max_length"], config["position_extension"]) == (104, 300, "tile")
        assert config["long_attention"]["window"] == list(CELLS)

    def test_the_feature_extractor_reads_the_new_length(self, tmp_path: Path) -> None:
        save(tmp_path / "short", mean=-3.0, std=2.0)
        convert_checkpoint(tmp_path / "short", tmp_path / "long", audio_seconds=3, verify=False)
        extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "long")
        assert (type(extractor), extractor.max_length, extractor.mean, extractor.std) == (ASTFeatureExtractor, 300, -3.0, 2.0)
        classify = pipeline("audio-classification", model=str(tmp_path / "long"))
        assert type(classify.model) is LongASTForAudioClassification
        sound = numpy.random.default_rng(0).standard_normal(40_000).astype("float32")
        features = extractor(sound, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            expected = classify.model(**features).logits.softmax(-1).max()
        assert classify(sound)[0]["score"] == pytest.approx(float(expected), rel=1e-5)

    @pytest.mark.thorough
    def test_the_code_of_the_card_runs(self, tmp_path: Path) -> None:
        for head in (ASTForAudioClassification, ASTModel):
            save(tmp_path / "short", head)
            for extractor in (True, False):
                if not extractor:
                    (tmp_path / "short" / "preprocessor_config.json").unlink()
                convert_checkpoint(tmp_path / "short", tmp_path / "long", audio_seconds=2, overwrite=True)
                card = (tmp_path / "long" / "README.md").read_text()
                assert "extended from spectrograms of 104 to 200 frames" in card
                exec(compile(card.partition("```python\n")[2].partition("```")[0], "card", "exec"), {})

    def test_an_inspection(self, tmp_path: Path) -> None:
        save(tmp_path / "short", layers=1)
        convert_checkpoint(tmp_path / "short", tmp_path / "long", audio_seconds=2, verify=False)
        assert inspect_checkpoint(tmp_path / "long").longest_input == "spectrograms of 200 frames (2 s), 97 tokens"
        with pytest.raises(ExportError, match="Models of spectrograms are not exported as graphs; run LongAST"):
            export_checkpoint(tmp_path / "long", tmp_path / "graph", format="torch")


class TestRefusals:
    @pytest.fixture
    def short(self, tmp_path: Path) -> Path:
        save(tmp_path / "short")
        return tmp_path / "short"

    def test_settings_of_other_inputs(self, short: Path) -> None:
        for settings, message in {
            "image_size": (64, r"--image-size is the size of images.* reads spectrograms; give the length as --audio-seconds 30"),
            "max_length": (4096, r"--max-length counts the tokens of a text.* give the length as --audio-seconds 30"),
            "audio_seconds": (0.5, r"spectrograms of 104 frames \(1\.04 s\).*50 frames \(0\.5 s\) are too few, .*--audio-seconds 1\.04"),
            "positions": ("random", r"does not apply to the positions of spectrograms; expected one of auto, tile, interpolate"),
            "search_text": ("x", r"--search-text is a text, .* reads spectrograms; give recordings as --search-audio FILE"),
        }.items():
            values = {settings: message[0], **({"mechanism": "auto"} if settings == "search_text" else {})}
            with pytest.raises(LongAttentionError, match=message[1]):
                plan_conversion(short, choose=lambda source, request: pytest.fail("searched"), **values)

    def test_seconds_of_a_text_or_a_image(self, tmp_path: Path) -> None:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
        transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(tmp_path / "bert")
        transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32)).save_pretrained(tmp_path / "vit")
        with pytest.raises(OptionError, match="--audio-seconds is the length of sounds, but a BertModel reads text; give its length as"):
            plan_conversion(tmp_path / "bert", audio_seconds=30)
        with pytest.raises(OptionError, match="a ViTModel reads images; give the size as --image-size 1024"):
            plan_conversion(tmp_path / "vit", audio_seconds=30)

    def test_a_feature_extractor_of_another_length(self, tmp_path: Path) -> None:
        save(tmp_path, max_length=1024)
        with pytest.raises(LongAttentionError, match=r"says max_length=1024, but its config.json says 104; correct max_length"):
            plan_conversion(tmp_path, audio_seconds=30)

    def test_inputs_that_are_no_spectrogram_of_this_model(self) -> None:
        model = LongASTModel(LongASTConfig(**SIZES))
        with pytest.raises(GridError, match="The input has 65 mel bins, but the model reads 64"):
            model(torch.randn(1, 104, 65))
        with pytest.raises(GridError, match="The input has 15 frames, fewer than the 16 of a patch"):
            model(torch.randn(1, 15, 64))

    @pytest.mark.parametrize("frames", [0, 3.5, True, "long"])
    def test_a_length_that_is_none(self, frames: Any) -> None:
        with pytest.raises(OptionError, match="must be a number of frames, for example 3000 for 30 seconds"):
            LongASTConfig(**SIZES, long_max_length=frames)


def test_public_names() -> None:
    assert hf_longattn.LongASTForAudioClassification is LongASTForAudioClassification
