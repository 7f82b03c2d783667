"""CLIP's text tower: short captions stay as they are, and every caption is read at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection
from transformers.models.clip.configuration_clip import CLIPVisionConfig

from hf_longattn import convert_checkpoint
from hf_longattn.families.clip_text_model import LongCLIPTextConfig, LongCLIPTextModel, LongCLIPTextModelWithProjection
from hf_longattn.families.clip_vision_model import LongCLIPVisionConfig, LongCLIPVisionModelWithProjection

TRAINED, NEW, UNCHANGED = 77, 248, 21
"""CLIP's positions, Long-CLIP's, and the tokens of the longest caption that its stretched positions leave as it was."""
BEGIN, END, OLD_END = 97, 98, 2
SIZES = {"hidden_size": 32, "intermediate_size": 48, "projection_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SIZES, "vocab_size": 99, "bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": 1, "initializer_factor": 10.0}
FULL = {"mechanism": "full"}


def tower(**changes: Any) -> CLIPTextModelWithProjection:
    torch.manual_seed(0)
    return CLIPTextModelWithProjection(CLIPTextConfig(**{**TEXT, **changes})).eval()


def long_tower(folder: Path, **changes: Any) -> Any:
    values = {"max_position_embeddings": NEW, "long_attention": FULL, **changes}
    return LongCLIPTextModelWithProjection.from_pretrained(folder, config=LongCLIPTextConfig.from_pretrained(folder, **values)).eval()


def caption(length: int, seed: int = 0) -> Tensor:
    ids = torch.randint(5, 90, (1, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, -1] = BEGIN, END
    return ids


@torch.no_grad()
def embedding(model: Any, ids: Tensor, **arguments: Any) -> Tensor:
    """``(B, D)`` of length 1, of which similarities are made."""
    return torch.nn.functional.normalize(model(ids, **arguments).text_embeds, dim=-1)


@pytest.mark.parametrize(
    ("changes", "unchanged"), [({}, UNCHANGED), ({"position_extension": "stretch:40"}, 41), ({"position_extension": "tile"}, TRAINED)]
)
def test_captions_within_the_kept_positions_have_the_same_embeddings(changes: dict[str, Any], unchanged: int, tmp_path: Path) -> None:
    short = tower()
    short.save_pretrained(tmp_path)
    model = long_tower(tmp_path, **changes)
    for length in (2, 10, unchanged):
        assert torch.allclose(embedding(model, caption(length)), embedding(short, caption(length)), rtol=0, atol=1e-6)
    if unchanged < TRAINED:
        longer = caption(unchanged + 1)
        assert not torch.allclose(embedding(model, longer), embedding(short, longer), rtol=0, atol=1e-4)
    assert embedding(model, caption(NEW)).isfinite().all()


def test_clip_positions_are_stretched_by_default_and_tiled_on_request(tmp_path: Path) -> None:
    tower().save_pretrained(tmp_path / "short")
    for positions, changes in (("auto", True), ("tile", False)):
        report = convert_checkpoint(tmp_path / "short", tmp_path / positions, mechanism="full", max_length=NEW, positions=positions)
        assert report.verified
        assert any(check.name == "equal where positions are unchanged" for check in report.checks) == changes
        rows = {check.values.get("length") for check in report.checks if check.status == "needs training"}
        assert (TRAINED in rows) == changes


@pytest.mark.parametrize("end", [END, OLD_END], ids=["its-id", "the-highest-id"])
def test_every_caption_of_a_batch_is_read_at_its_own_end(end: int, tmp_path: Path) -> None:
    tower(eos_token_id=end).save_pretrained(tmp_path)
    model = long_tower(tmp_path, long_attention={"mechanism": "window", "window": 32})
    captions = [caption(12, 1), caption(200, 2), caption(90, 3)]
    alone = torch.cat([embedding(model, ids) for ids in captions])
    rows, mask = torch.full((3, 200), 1), torch.zeros(3, 200, dtype=torch.long)
    for row, ids in enumerate(captions):
        rows[row, : ids.shape[1]], mask[row, : ids.shape[1]] = ids[0], 1
    assert torch.allclose(embedding(model, rows, attention_mask=mask), alone, rtol=0, atol=1e-5)


def test_no_token_of_a_caption_sees_a_later_one(tmp_path: Path) -> None:
    tower().save_pretrained(tmp_path)
    model = long_tower(tmp_path, long_attention={"mechanism": "window", "window": 16})
    ids, changed = caption(100), caption(100)
    changed[:, 60] = 4
    with torch.no_grad():
        before, after = (model(tokens).last_hidden_state for tokens in (ids, changed))
    assert torch.equal(before[:, :60], after[:, :60])
    assert not torch.equal(before[:, 60:70], after[:, 60:70])


def test_towers_of_clip_are_read_from_a_folder_of_the_whole_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**SIZES, image_size=32, patch_size=4)
    whole = CLIPModel(CLIPConfig(text_config=CLIPTextConfig(**TEXT), vision_config=vision, projection_dim=16)).eval()
    whole.save_pretrained(tmp_path)
    text = LongCLIPTextModel.from_pretrained(
        tmp_path, config=LongCLIPTextConfig.from_pretrained(tmp_path, max_position_embeddings=NEW, long_attention=FULL)
    ).eval()
    assert text.config.extended_from["max_position_embeddings"] == TRAINED
    with torch.no_grad():
        expected = whole.text_model(caption(UNCHANGED)).pooler_output
        assert torch.allclose(text(caption(UNCHANGED)).pooler_output, expected, rtol=0, atol=1e-5)
        pixels = torch.randn(1, 3, 32, 32)
        config = LongCLIPVisionConfig.from_pretrained(tmp_path, long_attention={"mechanism": "full"})
        images = LongCLIPVisionModelWithProjection.from_pretrained(tmp_path, config=config).eval()
        assert torch.allclose(images(pixels).image_embeds, whole.get_image_features(pixels).pooler_output, rtol=0, atol=1e-5)
