"""An adopted LED equals transformers' own: encoder states, logits, one step's gradients and generated text, on real text with padding
and global tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hf_longattn.conversion import convert_checkpoint
from tests.cases import every_case
from tests.reference.summaries import real_texts, train_briefly, with_tokenizer

LENGTH, DECODED = 512, 48
SIZES: dict[str, Any] = {
    "vocab_size": 1000, "d_model": 64, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_encoder_position_embeddings": LENGTH,
    "max_decoder_position_embeddings": 64, "attention_window": [32, 64, 32], "dropout": 0.0,
}  # fmt: skip
GRADIENT_OF = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """transformers' LED, trained for a few steps and saved by transformers, and what it was converted to."""
    folder = tmp_path_factory.mktemp("led")
    torch.manual_seed(0)
    model = transformers.LEDForConditionalGeneration(transformers.LEDConfig(**SIZES))
    train_briefly(model, LENGTH // 4, DECODED, model.config.pad_token_id)
    model.save_pretrained(folder / "led")
    with_tokenizer(folder / "led", LENGTH)
    report = convert_checkpoint(folder / "led", folder / "long")
    assert report.verified
    assert not report.needs_training
    assert all(check.status == "passed" for check in report.checks if "equal to the source" in check.name)
    return model.eval(), transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "long").eval()


def inputs_of(model: Any, *, marked: bool) -> dict[str, Tensor]:
    inputs = real_texts(LENGTH - 51, DECODED, model.config.pad_token_id)
    if marked:
        inputs["global_attention_mask"] = torch.zeros_like(inputs["input_ids"])
        inputs["global_attention_mask"][:, [0, 1, 200]] = 1
    return inputs


@pytest.mark.parametrize("marked", [False, True], ids=["no global tokens", "global tokens"])
def test_led_states_logits_and_gradients_equal_transformers(both: tuple[Any, Any], marked: bool) -> None:
    led, ours = both
    inputs = inputs_of(led, marked=marked)
    real = inputs["attention_mask"].bool()
    expected, found = led(**inputs), ours(**inputs)
    assert (expected.encoder_last_hidden_state - found.encoder_last_hidden_state)[real].abs().max() < 1e-4
    assert (expected.logits - found.logits).abs().max() < 1e-4
    for model, outputs in ((led, expected), (ours, found)):
        model.zero_grad()
        outputs.loss.backward()
    theirs = {name: p.grad for name, p in led.named_parameters()}
    compared = 0
    for name, parameter in ours.named_parameters():
        source = name.replace("model.", "led.", 1) if name.startswith("model.") else name
        if ".encoder.layers." in name and ".self_attn." in name:
            source = source.replace("self_attn.out_proj", "self_attn.output")
            source = source.replace(".long_attention.separate.", ".longformer_self_attn.")
            if "separate" in name:
                source = source.replace(".weight", "_global.weight").replace(".bias", "_global.bias")
            for ours_name, theirs_name in GRADIENT_OF.items():
                source = source.replace(f"self_attn.{ours_name}", f"self_attn.longformer_self_attn.{theirs_name}")
        wanted, got = theirs[source], parameter.grad
        if wanted is None or got is None:  # without global tokens their projections take no part
            assert "separate" in name or "_global" in source, name
            assert all(one is None or not one.any() for one in (wanted, got)), name
            continue
        got = got[2:] if "embed_positions" in name else got
        assert (wanted - got).abs().max() < 1e-4, name
        compared += 1
    assert compared > 70


@pytest.mark.thorough
@every_case("beams", [1, 3])
@every_case("marked", [False, True], ids=["no global tokens", "global tokens"])
def test_led_generates_the_text_of_transformers(both: tuple[Any, Any], beams: int, marked: bool) -> None:
    led, ours = both
    inputs = {name: value for name, value in inputs_of(led, marked=marked).items() if name != "labels"}
    arguments = {"max_new_tokens": 16, "min_new_tokens": 16, "num_beams": beams, "do_sample": False}
    assert torch.equal(led.generate(**inputs, **arguments), ours.generate(**inputs, **arguments))


def test_an_adopted_led_has_the_windows_and_lengths_of_its_source(both: tuple[Any, Any], tmp_path: Path) -> None:
    config = both[1].config
    assert (config.max_position_embeddings, config.max_decoder_position_embeddings) == (LENGTH, 64)
    assert config.long_attention.to_dict() == {
        "mechanism": "longformer", "window": 32, "global_tokens": [], "separate_global": True, "layers": {"1": {"window": 64}},
    }  # fmt: skip
    assert config.forced_eos_token_id is None  # BART's default is 2, LED has none
    config.save_pretrained(tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).forced_eos_token_id is None
