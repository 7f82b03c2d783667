"""Models of several towers have separate mechanisms, lengths and sizes, and unchanged similarities. CLIP reads a
caption at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection
from transformers.models.clip.configuration_clip import CLIPVisionConfig

from hf_longattn import convert_checkpoint, families
from hf_longattn.errors import InputError, LongAttentionError, OptionError
from hf_longattn.families import FAMILIES
from hf_longattn.families.clip_text_model import LongCLIPTextConfig, LongCLIPTextModel, LongCLIPTextModelWithProjection
from hf_longattn.families.clip_vision_model import LongCLIPVisionConfig, LongCLIPVisionModelWithProjection
from scripts.dev.tools.small_models import TOWER_FAMILIES, Shape, small_towers_config

SHAPE = Shape(width=32, layers=2, heads=4, inner=48, tokens=77, vocabulary=99)
TRAINED, NEW, KEPT = 77, 248, 20
"""Positions before and after, and tokens of captions whose positions are the same in both."""
END = 98
PATCH, SIDE = 4, 8
"""Pixels of a patch, and patches along each axis of the images for which the models were trained."""
TOWERS = {"text": {"mechanism": "window", "window": 64}, "vision": {"mechanism": "window2d", "window": SIDE}}


@pytest.fixture(params=TOWER_FAMILIES)
def base(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def plain_model(base: str) -> Any:
    torch.manual_seed(0)
    config = small_towers_config(
        base, SHAPE, eos_token_id=END, bos_token_id=97, pad_token_id=1, initializer_factor=10.0
    )
    model: Any = FAMILIES[base].base_class(next(iter(FAMILIES[base].model_classes)))(config).eval()
    with torch.no_grad():
        model.text_model.embeddings.position_embedding.weight.normal_()
    return model


def long_model(base: str, folder: Path, length: int = NEW, **values: Any) -> Any:
    config = FAMILIES[base].config_class.from_pretrained(folder, **{"long_attention": {"towers": TOWERS}, **values})
    config.text_config.max_position_embeddings = length
    return (
        getattr(families, next(iter(FAMILIES[base].model_classes.values())))
        .from_pretrained(folder, config=config)
        .eval()
    )


def captions(length: int) -> Tensor:
    ids = torch.randint(5, 90, (3, length), generator=torch.Generator().manual_seed(length))
    ids[:, -1] = END
    return ids


def seeded_images(base: str, side: int = SIDE, count: int = 2) -> dict[str, Tensor]:
    """``count`` square images of ``side`` patches."""
    generator = torch.Generator().manual_seed(side)
    return {"pixel_values": torch.randn(count, 3, side * PATCH, side * PATCH, generator=generator)}


@torch.no_grad()
def similarities(model: Any, ids: Tensor, images: dict[str, Tensor]) -> Tensor:
    """Cosines ``(captions, images)``."""
    outputs = model(input_ids=ids, **images)
    return outputs.text_embeds @ outputs.image_embeds.T


def test_similarities_of_short_captions_are_those_of_the_plain_model(base: str, tmp_path: Path) -> None:
    plain = plain_model(base)
    plain.save_pretrained(tmp_path)
    model = long_model(base, tmp_path)
    assert [type(tower) for tower in model.towers.values()] == [
        family.model_class(family.base_model_name) for family in FAMILIES[base].towers.values()
    ]
    ids, images = captions(KEPT), seeded_images(base)
    expected = similarities(plain, ids, images)
    assert torch.allclose(similarities(model, ids, images), expected, rtol=0, atol=1e-6)
    model.use_base_attention()
    assert not model.runs_mechanisms
    assert torch.allclose(similarities(model, ids, images), expected, rtol=0, atol=1e-6)
    model.set_attn_implementation("longattn")
    assert model.runs_mechanisms
    assert all(tower.runs_mechanisms for tower in model.towers.values())


@pytest.mark.thorough
def test_long_captions_and_large_images_train_every_tower(base: str, tmp_path: Path) -> None:
    plain_model(base).save_pretrained(tmp_path)
    model = long_model(base, tmp_path).train()
    outputs = model(input_ids=captions(NEW), **seeded_images(base, 2 * SIDE, 3), return_loss=True)
    outputs.loss.backward()
    assert outputs.logits_per_text.shape == (3, 3)
    for tower in model.towers.values():
        projections = [
            value.grad for name, value in tower.named_parameters() if name.endswith("self_attn.q_proj.weight")
        ]
        assert projections
        assert all(float(gradient.abs().max()) > 0 for gradient in projections)


@pytest.mark.thorough
def test_a_saved_model_is_read_by_auto_classes_and_its_towers_by_their_own(base: str, tmp_path: Path) -> None:
    plain_model(base).save_pretrained(tmp_path / "short")
    model = long_model(base, tmp_path / "short")
    model.save_pretrained(tmp_path / "long")
    assert type(AutoConfig.from_pretrained(tmp_path / "long")) is FAMILIES[base].config_class
    again = AutoModel.from_pretrained(tmp_path / "long").eval()
    assert type(again) is type(model)
    assert {name: config.long_attention.mechanism for name, config in again.config.towers.items()} == {
        "text": "window",
        "vision": "window2d",
    }
    ids, images = captions(NEW), seeded_images(base, 2 * SIDE)
    assert torch.equal(similarities(again, ids, images), similarities(model, ids, images))
    text: Any = type(model.towers["text"]).from_pretrained(tmp_path / "long").eval()
    with torch.no_grad():
        assert torch.equal(text(ids).last_hidden_state, model.text_model(ids).last_hidden_state)
    again.save_pretrained(tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "long" / name).read_bytes()


def test_towers_share_no_parameters_of_mechanisms(tmp_path: Path) -> None:
    plain_model("clip").save_pretrained(tmp_path)
    towers = {"text": {"mechanism": "linear"}, "vision": {"mechanism": "synthesizer"}}
    with pytest.raises(OptionError):
        long_model("clip", tmp_path, long_attention={"towers": {"text": {"mechanism": "linformer"}}})
    model = long_model(
        "clip", tmp_path, long_attention={"towers": {"vision": {"mechanism": "full"}, "text": towers["text"]}}
    )
    assert model.get_expanded_tied_weights_keys(all_submodels=True) == {}


@pytest.mark.parametrize(
    ("long_attention", "sentence"),
    [
        (
            {"towers": {"txt": {"mechanism": "window"}}},
            r"has no tower 'txt'; its towers are text and vision\. Did you mean 'text'\?",
        ),
        ({"mechanism": "window", "window": 64}, r"have separate mechanisms, but 'mechanism' is given for all"),
    ],
)
def test_a_tower_that_does_not_exist_is_refused(
    long_attention: dict[str, Any], sentence: str, base: str, tmp_path: Path
) -> None:
    plain_model(base).save_pretrained(tmp_path)
    with pytest.raises(OptionError, match=sentence):
        long_model(base, tmp_path, long_attention=long_attention)


def test_towers_refuse_lengths_and_masks_that_do_not_fit(base: str, tmp_path: Path) -> None:
    plain_model(base).save_pretrained(tmp_path)
    model = long_model(base, tmp_path)
    with pytest.raises(InputError, match=rf"needs {NEW + 1} positions, but this model has {NEW}"):
        model(input_ids=captions(NEW + 1), **seeded_images(base))
    marks = torch.ones(3, KEPT, dtype=torch.long)
    with pytest.raises(
        InputError,
        match=r"global_attention_mask is for texts, and Long\w+ hands it to every tower; call get_text_features",
    ):
        model(input_ids=captions(KEPT), **seeded_images(base), global_attention_mask=marks)
    with pytest.raises(OptionError, match=rf"has {TRAINED} positions and the config asks for {TRAINED - 1}"):
        long_model(base, tmp_path, length=TRAINED - 1)


@pytest.mark.slow
def test_both_towers_are_one_compiled_graph(tmp_path: Path) -> None:
    plain_model("clip").save_pretrained(tmp_path)
    model = long_model("clip", tmp_path)
    arguments = {"input_ids": captions(20), **seeded_images("clip")}
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**arguments).logits_per_image, model(**arguments).logits_per_image)


@pytest.mark.parametrize("missing", ["input_ids", "pixel_values"])
def test_a_text_or_an_image_alone_is_refused(base: str, missing: str, tmp_path: Path) -> None:
    plain_model(base).save_pretrained(tmp_path)
    inputs = {**seeded_images(base), "input_ids": captions(TRAINED)}
    with pytest.raises(
        LongAttentionError, match=f"compares texts with images, and {missing} is missing; give it, or call get_text"
    ):
        long_model(base, tmp_path)(**{name: value for name, value in inputs.items() if name != missing})


def test_an_implementation_is_chosen_where_every_tower_takes_it(base: str, tmp_path: Path) -> None:
    plain_model(base).save_pretrained(tmp_path)
    full = {name: {"mechanism": "full"} for name in TOWERS}
    model = long_model(base, tmp_path, long_attention={"towers": full})
    model.set_attn_implementation("eager")
    assert {config._attn_implementation for config in (model.config, *model.config.towers.values())} == {"eager"}
    windowed = long_model(base, tmp_path)
    windowed.set_attn_implementation("eager")
    assert {config._attn_implementation for config in (windowed.config, *windowed.config.towers.values())} == {
        "longattn"
    }


UNCHANGED = 21
"""Tokens of the longest caption whose positions are unchanged after CLIP's are stretched as in Long-CLIP."""
BEGIN, OLD_END = 97, 2
CLIP_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "projection_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT = {
    **CLIP_SIZES,
    "vocab_size": 99,
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "pad_token_id": 1,
    "initializer_factor": 10.0,
}
FULL = {"mechanism": "full"}


def tower(**changes: Any) -> CLIPTextModelWithProjection:
    torch.manual_seed(0)
    return CLIPTextModelWithProjection(CLIPTextConfig(**{**TEXT, **changes})).eval()


def long_tower(folder: Path, **changes: Any) -> Any:
    values = {"max_position_embeddings": NEW, "long_attention": FULL, **changes}
    return LongCLIPTextModelWithProjection.from_pretrained(
        folder, config=LongCLIPTextConfig.from_pretrained(folder, **values)
    ).eval()


def caption(length: int, seed: int = 0) -> Tensor:
    ids = torch.randint(5, 90, (1, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, -1] = BEGIN, END
    return ids


@torch.no_grad()
def embedding(model: Any, ids: Tensor, **arguments: Any) -> Tensor:
    """``(B, D)`` of length 1, of which similarities are made."""
    return torch.nn.functional.normalize(model(ids, **arguments).text_embeds, dim=-1)


@pytest.mark.parametrize(
    ("changes", "unchanged"),
    [({}, UNCHANGED), ({"position_extension": "stretch:40"}, 41), ({"position_extension": "tile"}, TRAINED)],
)
def test_captions_within_the_kept_positions_have_the_same_embeddings(
    changes: dict[str, Any], unchanged: int, tmp_path: Path
) -> None:
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
        report = convert_checkpoint(
            tmp_path / "short", tmp_path / positions, mechanism="full", max_length=NEW, positions=positions
        )
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
    vision = CLIPVisionConfig(**CLIP_SIZES, image_size=32, patch_size=4)
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
        assert torch.allclose(
            images(pixels).image_embeds, whole.get_image_features(pixels).pooler_output, rtol=0, atol=1e-5
        )
