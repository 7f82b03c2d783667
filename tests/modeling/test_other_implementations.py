"""No attention implementation but ours computes a mechanism: a Long model runs ours, or refuses, whoever asks and however."""

from __future__ import annotations

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
from tests.cases import every_case
from tests.shared_code import kind_of_family

WINDOW = {"mechanism": "window", "window": 6}
IDS = torch.randint(5, 90, (2, 40), generator=torch.Generator().manual_seed(0))
STRANGERS = ("mine", "mine_with_mask")
REFUSED = (*STRANGERS, "flex_attention", "paged|sdpa", "paged|flash_attention_2")


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


@every_case("base", TEXT_FAMILIES, of=24, code=kind_of_family)
class TestEveryFamily:
    @pytest.mark.thorough
    def test_sdpa_and_eager_by_default_run_the_mechanism(self, base: str, tmp_path: Path) -> None:
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
    def test_other_implementations_are_refused_and_nothing_changes(self, base: str, tmp_path: Path) -> None:
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

    def test_use_base_attention_runs_the_base_and_is_not_saved(self, base: str, tmp_path: Path) -> None:
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
    def test_full_attention_takes_any_implementation(self, base: str) -> None:
        model = built(base, long_attention={"mechanism": "full"}, **({"sliding_window": None} if "mistral" in base else {}))
        expected = hidden(model)
        implementation = "eager" if not model._supports_sdpa else "sdpa"
        model.set_attn_implementation(implementation)
        if model.config._computes_as_base:
            assert model.config._attn_implementation == implementation
        torch.testing.assert_close(hidden(model), expected, atol=1e-4, rtol=0)


def test_a_registered_implementation_runs_full_attention() -> None:
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
def test_one_other_layer_or_a_relative_term_refuses_implementations(attention: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match="'mine' does not compute"):
        config_of("gpt2", long_attention=attention, attn_implementation="mine")


def test_layers_with_windows_of_the_base_take_its_implementation() -> None:
    model = built("mistral", sliding_window=8, long_attention=None)
    expected = hidden(model)
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(hidden(model), expected, atol=1e-4, rtol=0)
    with pytest.raises(BackendError, match="'mine' does not compute the mechanism 'full'"):
        config_of("mistral", sliding_window=8, long_attention={"mechanism": "full"}, attn_implementation="mine")


def test_a_long_decoder_beside_an_encoder_refuses_implementations() -> None:
    with pytest.raises(BackendError, match="'mine' does not compute"):
        config_of("bart", long_attention={"mechanism": "full"}, decoder_long_attention=WINDOW, attn_implementation="mine")


def test_an_implementation_named_in_a_config_file_is_refused(tmp_path: Path) -> None:
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
