"""Models of several towers: each tower has mechanisms, lengths and sizes of its own, and similarities stay as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from hf_longattn import families
from hf_longattn.errors import InputError, LongAttentionError, OptionError
from hf_longattn.families import FAMILIES
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
    config = small_towers_config(base, SHAPE, eos_token_id=END, bos_token_id=97, pad_token_id=1, initializer_factor=10.0)
    model: Any = FAMILIES[base].base_class(next(iter(FAMILIES[base].model_classes)))(config).eval()
    with torch.no_grad():
        model.text_model.embeddings.position_embedding.weight.normal_()
    return model


def long_class(base: str) -> Any:
    return getattr(families, next(iter(FAMILIES[base].model_classes.values())))


def long_model(base: str, folder: Path, length: int = NEW, **values: Any) -> Any:
    config = FAMILIES[base].config_class.from_pretrained(folder, **{"long_attention": {"towers": TOWERS}, **values})
    config.text_config.max_position_embeddings = length
    return long_class(base).from_pretrained(folder, config=config).eval()


def captions(length: int, count: int = 3) -> Tensor:
    ids = torch.randint(5, 90, (count, length), generator=torch.Generator().manual_seed(length))
    ids[:, -1] = END
    return ids


def seeded_images(base: str, side: int = SIDE, count: int = 2) -> dict[str, Tensor]:
    """``count`` square images of ``side`` patches."""
    spec: Any = FAMILIES[base].towers["vision"].spec
    generator = torch.Generator().manual_seed(side)
    if spec.shapes is None:
        return {"pixel_values": torch.randn(count, 3, side * PATCH, side * PATCH, generator=generator)}
    return {
        "pixel_values": torch.randn(count, side * side, 3 * PATCH * PATCH, generator=generator),
        "pixel_attention_mask": torch.ones(count, side * side, dtype=torch.long),
        spec.shapes: torch.full((count, 2), side),
    }


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
        projections = [value.grad for name, value in tower.named_parameters() if name.endswith("self_attn.q_proj.weight")]
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
    model = long_model("clip", tmp_path, long_attention={"towers": {"vision": {"mechanism": "full"}, "text": towers["text"]}})
    assert model.get_expanded_tied_weights_keys(all_submodels=True) == {}


@pytest.mark.parametrize(
    ("long_attention", "sentence"),
    [
        ({"towers": {"txt": {"mechanism": "window"}}}, r"has no tower 'txt'; its towers are text and vision\. Did you mean 'text'\?"),
        ({"mechanism": "window", "window": 64}, r"have mechanisms apart, and 'mechanism' is given for all of them"),
    ],
)
def test_a_tower_that_does_not_exist_is_refused(long_attention: dict[str, Any], sentence: str, base: str, tmp_path: Path) -> None:
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
        InputError, match=r"global_attention_mask is for texts, and Long\w+ hands it to every tower; call get_text_features"
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
    with pytest.raises(LongAttentionError, match=f"compares texts with images, and {missing} is missing; give it, or call get_text"):
        long_model(base, tmp_path)(**{name: value for name, value in inputs.items() if name != missing})


def test_an_implementation_is_chosen_where_every_tower_takes_it(base: str, tmp_path: Path) -> None:
    plain_model(base).save_pretrained(tmp_path)
    full = {name: {"mechanism": "full"} for name in TOWERS}
    model = long_model(base, tmp_path, long_attention={"towers": full})
    model.set_attn_implementation("eager")
    assert {config._attn_implementation for config in (model.config, *model.config.towers.values())} == {"eager"}
    windowed = long_model(base, tmp_path)
    windowed.set_attn_implementation("eager")
    assert {config._attn_implementation for config in (windowed.config, *windowed.config.towers.values())} == {"longattn"}
