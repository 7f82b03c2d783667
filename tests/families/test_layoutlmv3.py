"""LayoutLMv3: biases of distances along the text and on the page are a term of the scores, and patches are global, however it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from hf_longattn.conversion import convert_checkpoint, revert_checkpoint
from hf_longattn.errors import OptionError, PageError
from hf_longattn.families import FAMILIES
from tests.grids import every_other
from tests.modes.cells import Cell
from tests.modes.ways import WAYS
from tests.reference.small_models import long_model, padding, plain_model, tokens
from tests.reference.test_hf_score_terms import pair

BASE, HEAD = "layoutlmv3", "LayoutLMv3Model"
LONGFORMER = {"mechanism": "longformer", "window": 16}
SIDE = 32
"""Pixels of an image of the small model, 4 × 4 patches."""
OTHER_WAYS = {
    **dict.fromkeys(("memory", "segments", "sharded"), "refused"),
    **dict.fromkeys(("cache", "forward mode", "gradient checkpointing", "router logits"), "none"),
}
"""It is no decoder and no mixture of experts; transformers' own takes no inputs_embeds, and cannot be checkpointed."""
MECHANISMS: tuple[dict[str, Any], ...] = tuple({"mechanism": name, "window": 1000} for name in ("longformer", "window"))


def boxes(config: Any, batch: int, length: int) -> Tensor:
    return FAMILIES[BASE].rule.seeded(config, batch, length)["bbox"]


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("way", every_other((name for name, way in WAYS.items() if not way.slow), 1))
def test_every_way_to_call_it_gives_what_the_sequences_give_alone(way: str) -> None:
    outcome = Cell(BASE, way).outcome()
    assert outcome.kind == OTHER_WAYS.get(way, "equal"), str(outcome)


@pytest.mark.parametrize("mechanism", [{"mechanism": "full"}, *MECHANISMS])
@pytest.mark.parametrize("with_image", [False, True])
@torch.no_grad()
def test_outputs_are_those_of_the_base_where_the_mechanism_covers_the_page(mechanism: dict[str, Any], with_image: bool) -> None:
    plain, model = pair(BASE, HEAD, mechanism, max_position_embeddings=514)
    ids, mask = tokens(2, 300), padding(2, 300)
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "bbox": boxes(plain.config, 2, 300)}
    if with_image:
        arguments["pixel_values"] = images(2)
    expected, states = plain(**arguments).last_hidden_state, model(**arguments).last_hidden_state
    assert states.shape == expected.shape
    real = torch.nn.functional.pad(mask, (0, states.shape[1] - 300), value=1).bool()
    assert (expected - states)[real].abs().max() < 2e-5


@torch.no_grad()
def test_patches_are_global_and_text_is_not() -> None:
    """Beyond the window, a change of the image reaches every token, and a change of a token none but its neighbours and the patches."""
    model = long_model(BASE, HEAD, {"mechanism": "longformer", "window": 8}, num_hidden_layers=1)
    ids, places, image = tokens(1, 100), boxes(model.config, 1, 100), images(1)
    states = model(ids, bbox=places, pixel_values=image).last_hidden_state[0]
    other_image = model(ids, bbox=places, pixel_values=-image).last_hidden_state[0]
    other_token = model(torch.cat([ids[:, :1] + 1, ids[:, 1:]], 1), bbox=places, pixel_values=image).last_hidden_state[0]
    assert ((states - other_image).abs().amax(-1) > 1e-6).all()
    changed = (states - other_token).abs().amax(-1) > 1e-7
    assert not changed[10:100].any()
    assert changed[100:].all()


@torch.no_grad()
def test_a_packed_row_may_be_longer_than_the_table() -> None:
    model = long_model(BASE, HEAD, LONGFORMER, max_position_embeddings=66)
    ids, places = tokens(2, 60), boxes(model.config, 2, 60)
    alone = model(ids, bbox=places).last_hidden_state
    documents = torch.arange(120)[None] // 60
    packed = model(ids.view(1, -1), bbox=places.view(1, -1, 4), documents=documents).last_hidden_state
    assert (packed.view(2, 60, -1) - alone).abs().max() < 1e-5


def test_gradients_with_a_image_are_those_of_the_base() -> None:
    plain, model = pair(BASE, HEAD, {"mechanism": "longformer", "window": 1000})
    for network in (plain, model):
        states = network(tokens(2, 60), bbox=boxes(plain.config, 2, 60), pixel_values=images(2)).last_hidden_state
        states.square().mul(torch.arange(states.shape[-1])).mean().backward()
    for (name, values), (_, others) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        assert (values.grad is None) == (others.grad is None), name
        assert values.grad is None or (values.grad - others.grad).abs().max() <= 1e-4 * (1 + values.grad.abs().max()), name


@pytest.mark.parametrize(
    ("mechanism", "change", "sentence"),
    [
        (
            "longformer",
            {"pixel_values": images(1)},
            "pixel_values has 1 images for 2 texts; give every text of a batch",
        ),
        ("window", {"pixel_values": images(2)}, "seen through global tokens, which mechanism 'window' does not have"),
        ("longformer", {"bbox": torch.full((2, 60, 4), 1001)}, "but sides lie from 0 to 1000"),
        ("longformer", {"bbox": torch.tensor([5, 0, 4, 9]).expand(2, 60, 4)}, "whose right side lies before its left one"),
    ],
)
def test_what_it_cannot_read_is_refused(mechanism: str, change: dict[str, Tensor], sentence: str) -> None:
    model = long_model(BASE, HEAD, {"mechanism": mechanism, "window": 16})
    with pytest.raises(PageError, match=sentence):
        model(**{"input_ids": tokens(2, 60), "bbox": boxes(model.config, 2, 60), **change})


def test_memory_tokens_are_refused() -> None:
    with pytest.raises(OptionError, match="Memory tokens are put before inputs_embeds, which LayoutLMv3 does not take"):
        long_model(BASE, HEAD, {"mechanism": "recurrent_memory", "num_memory_tokens": 2, "segment_length": 20})


def test_a_folder_with_a_processor_is_converted_and_reverted(tmp_path: Path) -> None:
    plain = plain_model(BASE, "LayoutLMv3ForTokenClassification", max_position_embeddings=66)
    plain.save_pretrained(tmp_path / "short")
    size = {"height": SIDE, "width": SIDE}
    transformers.LayoutLMv3ImageProcessor(apply_ocr=False, size=size).save_pretrained(tmp_path / "short")
    report = convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="longformer", window=128, max_length=256)
    names = {check.name: check.status for check in report.checks}
    assert report.passed
    assert names["equal where the mechanism covers the input"] == names["padding changes nothing"] == "passed"
    written = [(tmp_path / name / "preprocessor_config.json").read_bytes() for name in ("short", "long")]
    assert written[0] == written[1]
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "long")
    image = processor(Image.new("RGB", (50, 70), "white"), return_tensors="pt")["pixel_values"]
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "long").eval()
    with torch.no_grad():
        logits = model(tokens(1, 250), bbox=boxes(model.config, 1, 250), pixel_values=image).logits
    assert logits.shape[1] == 250
    assert logits.isfinite().all()
    assert revert_checkpoint(tmp_path / "long", tmp_path / "again").passed
