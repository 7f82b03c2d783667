"""Families that follow from transformers alone: what is derived, against what was written by hand, and what is
refused."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

import hf_longattn.families
from hf_longattn.errors import CheckpointError, OptionError
from hf_longattn.modeling.family import definition
from hf_longattn.modeling.family.definition import FACTS_FILE, FAMILIES, stored_facts
from scripts.dev.benchmarks.report import stored_study
from scripts.dev.tools import check_derived
from scripts.dev.tools.derived import REFUSED, derive, text_model_types
from tests.cases import every_case
from tests.reference.small_models import plain_model, tokens


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("hy_v4", "an indexer beside its attention chooses the keys"),
        ("deepseek_v4", "its layers append compressed keys"),
        ("bloom", "does not use transformers' AttentionInterface"),
        ("gemma3", "reads other inputs than a text"),
        ("t5", "no position table.*no rotary positions"),
        ("gpt-sw3", "the classes of another base, such as GPT2Model"),
        ("siglip_text_model", "no single model class without a head"),
        ("lama", r"no model type 'lama'; expected one such as 'llama'"),
    ],
)
def test_a_base_without_a_family_is_refused_with_the_reason(base: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        derive(base)


@every_case("base", sorted({*REFUSED} & {*CONFIG_MAPPING_NAMES}))
def test_a_refusal_by_name_is_stored_with_its_reason(base: str) -> None:
    assert base not in FAMILIES
    with pytest.raises(CheckpointError) as caught:
        derive(base)
    assert str(caught.value) == REFUSED[base]
    assert stored_facts()["refused"].get(base, REFUSED[base]) == REFUSED[base]


def test_every_derived_family_is_stored_as_verified() -> None:
    stored = stored_study(check_derived.STORED)["families"]
    assert {*stored} <= {*stored_facts()["derived"]}
    assert {*stored.values()} <= {check_derived.VERIFIED, check_derived.UNSCALED}


SAMPLE = ("biogpt", "blenderbot", "cohere2", "deepseek_v3", "ernie", "lfm2", "olmoe", "xmod")
"""Tables with rows that are no positions, two stacks, windows, latent attention, an encoder, convolutions, experts,
adapters."""


@every_case("base", SAMPLE)
def test_the_stored_facts_are_those_of_a_probe(base: str) -> None:
    assert stored_facts()["derived"][base] == derive(base)


@pytest.mark.thorough
@every_case("base", SAMPLE)
def test_a_derived_family_converts_and_decodes(base: str) -> None:
    assert check_derived.check(base) == stored_study(check_derived.STORED)["families"][base]


@pytest.mark.slow
@pytest.mark.parametrize("base", text_model_types())
def test_every_model_type_of_texts_converts_and_decodes_or_is_refused(base: str) -> None:
    if base not in FAMILIES:
        with pytest.raises(CheckpointError) as caught:
            derive(base)
        assert str(caught.value) == stored_facts()["refused"][base]
    elif FAMILIES[base].spec.reads == "text":
        result = check_derived.check(base)
        assert result in (check_derived.VERIFIED, check_derived.UNSCALED)
        assert result == stored_study(check_derived.STORED)["families"].get(base, result)


@pytest.mark.thorough
@pytest.mark.parametrize("mechanism", ["hedgehog", "transformer_xl", "longformer", "strided"])
def test_values_narrower_than_keys_decode_as_in_one_pass(mechanism: str, tmp_path: Path) -> None:
    """Latent attention: a state, features with parameters, segments and scattered keys decode as they read in one
    pass."""
    auto, short = check_derived.small_model("deepseek_v3")
    assert short.config.v_head_dim < short.config.qk_head_dim
    short.save_pretrained(tmp_path / "short")
    hf_longattn.convert_checkpoint(
        tmp_path / "short", tmp_path / "long", mechanism=mechanism, max_length=256, verify=False
    )
    long = auto.from_pretrained(tmp_path / "long").eval()
    ids = torch.randint(5, 150, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert check_derived.decoded(long, ids, long(input_ids=ids).logits) < 1e-5


class TestModulesOfDerivedFamilies:
    def test_a_module_without_a_file_is_a_module(self) -> None:
        from hf_longattn.families import olmo
        from hf_longattn.families.olmo import LongOlmoConfig, LongOlmoModel

        assert isinstance(olmo, ModuleType)
        assert olmo.FAMILY is FAMILIES["olmo"]
        assert olmo.__file__ == str(FACTS_FILE)
        assert hf_longattn.LongOlmoModel is LongOlmoModel
        assert pickle.loads(pickle.dumps(LongOlmoConfig)) is LongOlmoConfig
        assert LongOlmoModel._can_set_attn_implementation()

    def test_an_unknown_module_is_not_found(self) -> None:
        with pytest.raises(ModuleNotFoundError, match=r"No module named 'hf_longattn\.families\.nothing'"):
            __import__("hf_longattn.families.nothing")

    def test_faulty_facts_break_their_own_family_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = {
            **definition.family_rows(),
            "olmoe": ("olmoe", {"config": "modeling.family.long_config.LongNothing", "rope": True}),
        }
        monkeypatch.setattr(definition, "family_rows", lambda: rows)
        monkeypatch.delitem(sys.modules, "hf_longattn.families.olmoe", raising=False)
        with pytest.raises(AttributeError, match="has no attribute 'LongNothing'"):
            FAMILIES["olmoe"]
        assert FAMILIES["bert"].rope is False


def test_a_model_initialises_tensors_of_its_layers(tmp_path: Path) -> None:
    """Falcon-H1's model computes a buffer of its layers that no file holds. transformers skips this for custom
    code."""
    auto, model = check_derived.small_model("falcon_h1")
    model.save_pretrained(tmp_path / "short")
    hf_longattn.convert_checkpoint(tmp_path / "short", tmp_path / "long", mechanism="window", verify=False)
    torch.use_deterministic_algorithms(True)  # torch.empty is then filled with NaN
    try:
        loaded = auto.from_pretrained(tmp_path / "long")
    finally:
        torch.use_deterministic_algorithms(False)
    expected = dict(model.named_buffers())
    buffers = dict(loaded.named_buffers())
    for name in [name for name in expected if "mup_vector" in name]:
        assert torch.equal(buffers[name], expected[name])


@pytest.mark.thorough
def test_rotary_positions_of_a_fixed_table_are_not_scaled(tmp_path: Path) -> None:
    plain_model("gptj", "GPTJForCausalLM").save_pretrained(tmp_path / "short")
    settings: dict[str, Any] = {"mechanism": "window", "window": 16, "max_length": 2048}
    report = hf_longattn.convert_checkpoint(tmp_path / "short", tmp_path / "long", **settings)
    assert report.plan["positions"] == "rope:none"
    model = FAMILIES["gptj"].model_class("LongGPTJForCausalLM").from_pretrained(tmp_path / "long").eval()
    assert model.config.max_position_embeddings == 2048
    with torch.no_grad():
        assert model(tokens(1, 2000)).logits.isfinite().all()
    with pytest.raises(OptionError, match="a GPTJForCausalLM has rotary positions that transformers cannot scale"):
        hf_longattn.plan_conversion(tmp_path / "short", **settings, positions="rope:yarn")
