"""Designs as configurations, and as recipes that `longattn convert` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from hf_longattn import LongAttentionConfig, convert_checkpoint
from hf_longattn.cli import main
from hf_longattn.inspect import Candidate
from hf_longattn.search.design import Design

WIDE, NARROW, FULL = (Candidate.read(text) for text in ("window:window=32", "window:window=8", "full"))
NESTED = Candidate.read("union:of=[window:window=8,dilation=2+strided:stride=4]")
GLOBALS = Candidate.read("longformer:window=8,global_tokens=0+3")


def test_the_candidate_of_most_layers_is_the_default() -> None:
    design = Design((NARROW, WIDE, FULL, WIDE))
    assert design.attention() == LongAttentionConfig(
        "window", window=32, layers={0: {"mechanism": "window", "window": 8}, 2: {"mechanism": "full"}}
    )
    assert str(design) == "0=window:window=8; 1,3=window:window=32; 2=full"
    assert str(Design((FULL,) * 3)) == "full in every layer"


@pytest.mark.thorough
@pytest.mark.parametrize(
    "layers", [(NARROW, WIDE, FULL), (NESTED, NESTED, GLOBALS), (GLOBALS, NESTED, NESTED), (FULL, FULL, FULL)], ids=str
)
def test_a_recipe_converts_to_the_same_attention(layers: tuple[Candidate, ...], encoder: Path, tmp_path: Path) -> None:
    design = Design(layers)
    file = tmp_path / "design.yaml"
    file.write_text(yaml.safe_dump(design.recipe(max_length=128)), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(encoder), str(tmp_path / "long"), "--config", str(file), "--no-verify"])
    assert not ended.value.code
    written = json.loads((tmp_path / "long" / "config.json").read_text(encoding="utf-8"))
    assert written["max_position_embeddings"] == 128
    typed = LongAttentionConfig.from_dict(written["long_attention"])
    convert_checkpoint(encoder, tmp_path / "same", long_attention=design.attention(), max_length=128, verify=False)
    config = json.loads((tmp_path / "same" / "config.json").read_text(encoding="utf-8"))
    assert typed == LongAttentionConfig.from_dict(config["long_attention"])
