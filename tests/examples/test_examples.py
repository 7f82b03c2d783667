"""The programs in examples/ do what their pages say."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import pytest
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

import hf_longattn
from examples.patch_features import main
from tests.examples.embedding_server import serving_embeddings
from tests.fresh_processes import run_fresh

Pillow = pytest.importorskip("PIL.Image")


def test_patch_features_writes_a_drawing_of_the_size_of_the_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )
    ViTModel(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    hf_longattn.convert_checkpoint(
        tmp_path / "vit", tmp_path / "long", mechanism="window2d", image_size="64x96", verify=False
    )
    Pillow.effect_noise((120, 80), 80).save(tmp_path / "photo.png")
    monkeypatch.setattr(
        sys, "argv", ["patch_features.py", *(str(tmp_path / name) for name in ("long", "photo.png", "drawing.png"))]
    )
    main()
    drawing = Pillow.open(tmp_path / "drawing.png")
    assert drawing.size == (120, 80)
    assert len(drawing.convert("RGB").getcolors(10_000)) > 10


EXAMPLE = Path(__file__).parents[2] / "examples" / "server_reach.py"
READS: dict[str, tuple[int | None, int | None, str]] = {
    "everything": (0, None, "It reads every word tried.\n"),
    "the beginning": (0, 512, "The server does not read words 575, 639, 703, 767, 831, 895, 959, 1023 of 1024.\n"),
    "the end": (-512, None, "The server does not read words 0, 63, 127, 191, 255, 319, 383, 447, 511 of 1024.\n"),
}


@pytest.mark.parametrize(("reads", "route"), [*zip(READS, ("/embed", "/v1/embeddings", "/api/embed"), strict=True)])
def test_server_reach_names_words_that_a_server_does_not_read(reads: str, route: str) -> None:
    first, last, sentence = READS[reads]
    with serving_embeddings(
        lambda text: [1.0, float(zlib.crc32(" ".join(text.split()[first:last]).encode()))]
    ) as address:
        done = run_fresh(EXAMPLE, address + route, 1024, "small")
    assert (done.stdout, done.returncode) == (sentence, int(reads != "everything")), done.stderr
