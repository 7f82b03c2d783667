"""No attention implementation but ours computes a mechanism: a Long model runs ours, or refuses, whoever asks and however."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hf_longattn.errors import BackendError
from hf_longattn.families import FAMILIES
from scripts.dev.tools.small_models import TEXT_FAMILIES, small_values
from tests.alike import kind_of_family
from tests.cells import every_cell

WINDOW = {"mechanism": "window", "window": 6}
IDS = torch.randint(5, 90, (2, 40), generator=torch.Generator().manual_seed(0))
STRANGERS = ("mine", "mine_with_mask")
REFUSED = (*STRANGERS, "flex_attention", "paged|sdpa", "paged|flash_attention_2")
FLASH = ("flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2")
"""Implementations that compute plain windows, as soon as they are told them (``test_flash_windows.py``)."""


@pytest.fixture(autouse=True)
def strangers() -> Iterator[None]:
    """Functions that a serving engine registers, with and without a mask function."""
    AttentionInterface.register("mine", sdpa_attention_forward)
    AttentionInterface.register("mine_with_mask", sdpa_attention_forward)
    AttentionMaskInterface.register("mine_with_mask", sdpa_mask)
    yield
    for name in STRANGERS:
        AttentionInterface._global_mapping.pop(name)
    AttentionMaskInterface._global_mapping.pop("mine_with_mask")


def config_of(base: str, **changes: Any) -> Any:
    values = {**small_values(base, pad_token_id=1, init_std=0.3, initializer_range=0.3), "long_attention": WINDOW, **changes}
    return FAMILIES[base].config_class(**values)


def built(base: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoModel.from_config(config_of(base, **changes)).eval()


def hidden(model: Any) -> torch.Tensor:
    """Of the last layer that runs ``long_attention``."""
    decoded = {"decoder_input_ids": IDS[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        outputs = model(IDS, **decoded)
    return outputs.encoder_last_hidden_state if decoded else outputs.last_hidden_state


@every_cell("base", TEXT_FAMILIES, of=9, alike=kind_of_family)
class TestEveryFamily:
    @pytest.mark.thorough
    def test_transformers_defaults_run_the_mechanism(self, base: str, tmp_path: Path) -> None:
        model = built(base)
        expected = hidden(model)
        model.save_pretrained(tmp_path)
        for implementation in ("sdpa", "eager"):
            read = AutoModel.from_pretrained(tmp_path, attn_implementation=implementation).eval()
            assert read.config._attn_implementation == "longattn"
            assert torch.equal(hidden(read), expected)
            model.set_attn_implementation(implementation)
            assert torch.equal(hidden(model), expected)
            model.config._attn_implementation = implementation
            assert torch.equal(hidden(model), expected)

    @pytest.mark.thorough
    def test_anything_else_is_refused_and_nothing_changes(self, base: str, tmp_path: Path) -> None:
        model = built(base)
        expected = hidden(model)
        model.save_pretrained(tmp_path)
        for implementation in REFUSED:
            says = f"'{implementation.replace('|', '.')}' does not compute the mechanism 'window'.*use_base_attention"
            for ask in (
                lambda name: AutoModel.from_pretrained(tmp_path, attn_implementation=name),
                lambda name: AutoConfig.from_pretrained(tmp_path, attn_implementation=name),
                lambda name: AutoModel.from_config(config_of(base), attn_implementation=name),
                lambda name: config_of(base, attn_implementation=name),
                lambda name: model.set_attn_implementation(name),
                lambda name: model.set_attn_implementation({"": name}),
                lambda name: setattr(model.config, "_attn_implementation", name),
            ):
                with pytest.raises(BackendError, match=says):
                    ask(implementation)
        assert torch.equal(hidden(model), expected)

    def test_flash_attention_is_refused_for_more_than_plain_windows(self, base: str) -> None:
        for implementation in FLASH:
            with pytest.raises(BackendError, match=f"'{implementation}' does not compute the mechanism 'window'"):
                config_of(base, long_attention={**WINDOW, "num_sinks": 2}, attn_implementation=implementation)

    def test_the_base_on_purpose_and_back(self, base: str, tmp_path: Path) -> None:
        model = built(base)
        expected = hidden(model)
        model.use_base_attention()
        other = hidden(model)
        assert (other - expected).abs().max() > 1e-3
        model.save_pretrained(tmp_path)
        assert torch.equal(hidden(AutoModel.from_pretrained(tmp_path).eval()), expected), "the choice is not saved"
        model.use_base_attention("eager")
        torch.testing.assert_close(hidden(model), other, atol=1e-4, rtol=0)
        model.set_attn_implementation("longattn")
        assert torch.equal(hidden(model), expected)
        with pytest.raises(BackendError, match="'mine' does not compute"):
            model.set_attn_implementation("mine")
        with pytest.raises(ValueError, match="nonsense"):
            model.use_base_attention("nonsense")
        model.set_attn_implementation("sdpa")
        assert torch.equal(hidden(model), expected), "a base that cannot run was not chosen"

    @pytest.mark.thorough
    def test_mechanisms_that_are_the_bases_attention_take_any(self, base: str) -> None:
        model = built(base, long_attention={"mechanism": "full"}, **({"sliding_window": None} if "mistral" in base else {}))
        expected = hidden(model)
        implementation = "eager" if not model._supports_sdpa else "sdpa"
        model.set_attn_implementation(implementation)
        if model.config._computes_as_base:
            assert model.config._attn_implementation == implementation
        torch.testing.assert_close(hidden(model), expected, atol=1e-4, rtol=0)


def test_a_strangers_function_runs_where_it_computes_the_same() -> None:
    model = built("gpt2", long_attention={"mechanism": "full"})
    expected = hidden(model)
    model.set_attn_implementation("mine_with_mask")
    assert model.config._attn_implementation == "mine_with_mask"
    torch.testing.assert_close(hidden(model), expected, atol=1e-5, rtol=0)
    with pytest.raises(BackendError, match="'mine_with_mask' does not compute the mechanism 'window'"):
        model.config.long_attention = WINDOW


@pytest.mark.parametrize(
    "attention",
    [{"mechanism": "full", "relative": "alibi"}, {"mechanism": "full", "layers": {1: WINDOW}}, {"mechanism": "window", "window": 10**6}],
)
def test_one_layer_or_a_relative_term_that_differs_is_enough(attention: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match="'mine' does not compute"):
        config_of("gpt2", long_attention=attention, attn_implementation="mine")


def test_layers_that_keep_the_bases_own_windows_are_the_bases() -> None:
    model = built("mistral", sliding_window=8, long_attention=None)
    expected = hidden(model)
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(hidden(model), expected, atol=1e-4, rtol=0)
    with pytest.raises(BackendError, match="'mine' does not compute the mechanism 'full'"):
        config_of("mistral", sliding_window=8, long_attention={"mechanism": "full"}, attn_implementation="mine")


def test_a_decoder_beside_an_encoder_counts() -> None:
    with pytest.raises(BackendError, match="'mine' does not compute"):
        config_of("bart", long_attention={"mechanism": "full"}, decoder_long_attention=WINDOW, attn_implementation="mine")


def test_a_config_on_disk_that_names_one(tmp_path: Path) -> None:
    model = built("bert")
    model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"architectures"', '"_attn_implementation": "mine",\n  "architectures"'))
    with pytest.raises(BackendError, match="'mine' does not compute"):
        AutoModel.from_pretrained(tmp_path)


def test_a_plain_class_with_a_long_config_is_refused() -> None:
    from transformers import BertModel

    model = BertModel(config_of("bert")).eval()
    with pytest.raises(BackendError, match="carries no mechanism"):
        hidden(model)


@pytest.mark.thorough
@pytest.mark.parametrize("base", ["gpt2", "llama"])
def test_cached_generation_is_that_of_the_mechanism(base: str) -> None:
    torch.manual_seed(0)
    head = {"gpt2": "LongGPT2LMHeadModel", "llama": "LongLlamaForCausalLM"}[base]
    model = FAMILIES[base].model_class(head)(config_of(base)).eval()
    arguments = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    mask = torch.ones_like(IDS)
    mask[0, :9] = 0
    expected = model.generate(IDS, attention_mask=mask, **arguments)
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    assert torch.equal(twin.generate(IDS, attention_mask=mask, **arguments), expected)
