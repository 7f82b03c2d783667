"""What a model of images attends to on a photo: masses against the whole softmax, maps, the command, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_longattn.cli import main
from hf_longattn.data.sources import DataError
from hf_longattn.engines.call import AttentionCall
from hf_longattn.engines.token_grid import Grid
from hf_longattn.errors import BackendError, CheckpointError, OptionError
from hf_longattn.families import LongViTForImageClassification
from hf_longattn.inspect import diagnose
from hf_longattn.inspect.watching import watching
from hf_longattn.mechanisms.common.base import attention_weights
from hf_longattn.mechanisms.common.registry import mechanism_from

Image: Any = pytest.importorskip("PIL.Image")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "patch_size": 4, "image_size": 32}
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


def test_masses_and_maps_of_images_are_those_of_the_whole_softmax(folder: Path, photo: Path) -> None:
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
        attention = expected[0, :, 0, 1:].mean(0)
        assert layer.attention is not None
        torch.testing.assert_close(layer.attention.flatten().float(), attention / attention.sum(), rtol=1e-4, atol=1e-6)
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
    mechanism = mechanism_from("segmented", {"block_size": 16, "integration": "pooled", "order": "tiles:4x4"}, num_heads=4, head_dim=8)
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
        folder, long_attention={"mechanism": "segmented", "block_size": 200, "integration": "none", "order": "tiles:3x5"}
    )
    processor = ViTImageProcessorPil.from_pretrained(folder)
    ordered = diagnose(model, photo, processor=processor, candidates=CANDIDATES)
    plain = diagnose(folder, photo, candidates=CANDIDATES)
    for layer, expected in zip(ordered.last.layers, plain.last.layers, strict=True):
        assert layer.mechanism == "segmented"
        torch.testing.assert_close(layer.captured, expected.captured, rtol=0, atol=1e-5)
        torch.testing.assert_close(layer.attention, expected.attention, rtol=1e-4, atol=1e-6)


def test_the_inspect_command_says_how_attention_of_an_image_spreads(folder: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert (numbers["grid"], len(numbers["lengths"][0]["layers"][0]["attention"])) == ([10, 12], 10)


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
    with pytest.raises(BackendError, match=r"reads images and no text; type longattn inspect MODEL FILE"):
        diagnose(model, tmp_path / "text.txt")
