"""`longattn convert --generic` of a model that writes speech: the same frames as the plain class, through a cache, and the same sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hf_longattn.conversion import convert_checkpoint
from hf_longattn.modeling.attach.attention_sites import attention_sites, mechanisms_on
from hf_longattn.modeling.generic import towers_of
from tests.conversion.test_generic import FRAMES
from tests.generic import load_generic
from tests.unsupported import CHANNELS_OF_SOUND, SYNTHESIS

CODEBOOK = {"vocab_size": 64, "codebook_pad_token_id": 63}  # frames that the codec can decode, whatever random weights choose
PROMPT, NEW = 24, 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speech") / "plain"
    values = {**FRAMES, **CODEBOOK, "depth_decoder_config": {**FRAMES["depth_decoder_config"], "vocab_size": CODEBOOK["vocab_size"]}}
    torch.manual_seed(0)
    config = getattr(transformers, f"{SYNTHESIS}Config")(**values)
    getattr(transformers, f"{SYNTHESIS}ForConditionalGeneration")(config).save_pretrained(folder)
    return folder


def plain(source: Path) -> Any:
    return getattr(transformers, f"{SYNTHESIS}ForConditionalGeneration").from_pretrained(source).eval()


@torch.no_grad()
def frames(model: Any, **arguments: Any) -> Any:
    """What the model says after a prompt, greedily."""
    ids = torch.randint(5, 90, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    return model.generate(ids, max_new_tokens=NEW, do_sample=False, depth_decoder_do_sample=False, **arguments)


def mechanisms(model: Any) -> set[str]:
    return {mechanism.name for site in attention_sites(model) for mechanism in mechanisms_on(site.module).values()}


@pytest.mark.thorough
def test_the_backbone_of_csm_is_a_tower_beside_frame_decoder_and_codec(source: Path, tmp_path: Path) -> None:
    towers = {"backbone": {"mechanism": "window", "window": 8}}
    report = convert_checkpoint(source, tmp_path / "long", generic=True, towers=towers, max_length=256)
    statuses = {check.name: check.status for check in report.checks}
    assert statuses["equal with the source's attention"] == "passed"
    assert statuses["with the mechanism"] == "needs training"  # windows are shorter than the input
    model = load_generic(tmp_path / "long")
    parts = towers_of(model)
    assert {name: mechanisms(part) for name, part in parts.items()} == {"backbone": {"window"}, "depth_decoder": set(), "codec": set()}
    assert {name: part.config._attn_implementation for name, part in parts.items()} == {
        "backbone": "longattn",
        "depth_decoder": "sdpa",
        "codec": "sdpa",
    }
    assert model.config.max_position_embeddings == 256
    assert (report.plan["old_length"], report.plan["new_length"]) == (64, 256)
    assert not torch.equal(frames(model), frames(plain(source)))
    codes = torch.randint(1, CODEBOOK["vocab_size"], (1, NEW, FRAMES["num_codebooks"]), generator=torch.Generator().manual_seed(0))
    backbone, cache = model.backbone_model, transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        one_pass = backbone(input_ids=codes).last_hidden_state
        steps = [backbone(input_ids=codes[:, [step]], past_key_values=cache).last_hidden_state for step in range(NEW)]
    assert torch.allclose(torch.cat(steps, 1), one_pass, atol=1e-5)


@pytest.mark.thorough
def test_generic_dia_says_what_the_source_says_within_the_window(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 8}
    shape |= {"max_position_embeddings": 64}
    codes = {"vocab_size": 40, "num_channels": 3, "pad_token_id": 37, "eos_token_id": 36, "bos_token_id": 38, "num_key_value_heads": 2}
    cross = {"cross_num_attention_heads": 4, "cross_num_key_value_heads": 4, "cross_head_dim": 8, "cross_hidden_size": 32}
    encoder = {**shape, "vocab_size": 64, "num_key_value_heads": 4}
    config = getattr(transformers, f"{CHANNELS_OF_SOUND}Config")(
        encoder_config=encoder, decoder_config={**shape, **codes, **cross}, delay_pattern=[0, 1, 2]
    )
    model_class = getattr(transformers, f"{CHANNELS_OF_SOUND}ForConditionalGeneration")
    torch.manual_seed(0)
    model_class(config).save_pretrained(tmp_path / "plain")
    report = convert_checkpoint(tmp_path / "plain", tmp_path / "long", generic=True, mechanism="window", window=2 * 48)
    details = {check.name: check.detail for check in report.checks}
    assert "decoder_input_ids [1, 8, 3]" in details["equal with the source's attention"]
    assert report.verified
    assert not report.needs_training

    random = torch.Generator().manual_seed(0)
    text, prompt = torch.randint(5, 60, (1, PROMPT), generator=random), torch.randint(0, 30, (1, 10, 3), generator=random)
    masks = {"attention_mask": torch.ones_like(text), "decoder_attention_mask": torch.ones(1, 10, dtype=torch.long)}

    def said(model: Any) -> Tensor:
        return model.generate(input_ids=text, decoder_input_ids=prompt, **masks, max_new_tokens=NEW, do_sample=False)

    with torch.no_grad():
        expected: Tensor = said(model_class.from_pretrained(tmp_path / "plain").eval())
        assert expected.shape == (1, 10 + NEW, 3)
        assert torch.equal(said(load_generic(tmp_path / "long")), expected)
