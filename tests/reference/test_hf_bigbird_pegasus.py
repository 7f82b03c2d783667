"""An adopted BigBird-Pegasus equals transformers' own: encoder states, logits, one step's gradients and generated text, on real text with
padding; with its counting of the first block in evaluation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

from hf_longattn.conversion import convert_checkpoint
from tests.cases import every_case
from tests.reference.summaries import real_texts, train_briefly, with_tokenizer
from tests.reports import tensor_counts

LENGTH, DECODED = 512, 48
SIZES: dict[str, Any] = {
    "vocab_size": 1000, "d_model": 64, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": LENGTH,
    "block_size": 16, "num_random_blocks": 2,
    "dropout": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module", params=[False, True], ids=["no bias", "bias"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """transformers' model, trained for a few steps and saved by transformers, and what it was converted to."""
    folder = tmp_path_factory.mktemp("bigbird_pegasus")
    torch.manual_seed(0)
    model = transformers.BigBirdPegasusForConditionalGeneration(transformers.BigBirdPegasusConfig(**SIZES, use_bias=request.param))
    train_briefly(model, 16 * 12, DECODED, model.config.pad_token_id)
    model.save_pretrained(folder / "theirs")
    with_tokenizer(folder / "theirs", LENGTH)
    report = convert_checkpoint(folder / "theirs", folder / "long")
    assert report.verified
    assert not report.needs_training
    assert tensor_counts(report)["kept"] == sum(tensor_counts(report).values())
    assert all(check.status == "passed" for check in report.checks if "equal to the source" in check.name)
    return model.eval(), transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "long").eval()


@pytest.mark.thorough
def test_bigbird_pegasus_states_logits_and_gradients_equal_transformers(both: tuple[Any, Any]) -> None:
    inputs = real_texts(LENGTH - 51, DECODED, 0)
    real = inputs["attention_mask"].bool()
    for model in both:
        model.eval().zero_grad()
    expected, found = (model(**inputs) for model in both)
    assert (expected.encoder_last_hidden_state - found.encoder_last_hidden_state)[real].abs().max() < 1e-4
    assert (expected.logits - found.logits).abs().max() < 1e-4
    expected.loss.backward()
    found.loss.backward()
    theirs = {name: p.grad for name, p in both[0].named_parameters()}
    for name, parameter in both[1].named_parameters():
        assert (theirs[name] - parameter.grad).abs().max() < 1e-4, name


@pytest.mark.thorough
@every_case("beams", [1, 3])
def test_bigbird_pegasus_generates_the_text_of_transformers(both: tuple[Any, Any], beams: int) -> None:
    inputs = {name: value for name, value in real_texts(LENGTH - 51, DECODED, 0).items() if name != "labels"}
    arguments = {"max_new_tokens": 16, "min_new_tokens": 16, "num_beams": beams, "do_sample": False}
    assert torch.equal(*(model.generate(**inputs, **arguments) for model in both))


@pytest.mark.thorough
def test_bigbird_pegasus_reads_short_texts_fully(both: tuple[Any, Any]) -> None:
    inputs = real_texts(90, DECODED, 0)
    theirs = transformers.BigBirdPegasusForConditionalGeneration(both[0].config).eval()  # it switches for good
    theirs.load_state_dict(both[0].state_dict())
    with torch.no_grad():
        assert (theirs(**inputs).logits - both[1](**inputs).logits).abs().max() < 1e-4


@pytest.mark.thorough
@every_case("implementation", ["sdpa", "eager"])
def test_base_attention_of_bigbird_pegasus_is_full_attention(both: tuple[Any, Any], implementation: str) -> None:
    inputs = real_texts(200, DECODED, 0)
    theirs = transformers.BigBirdPegasusForConditionalGeneration(both[0].config)
    theirs.load_state_dict(both[0].state_dict())
    theirs.model.encoder.set_attention_type("original_full")
    ours = type(both[1])(copy.deepcopy(both[1].config))
    ours.load_state_dict(both[1].state_dict())
    ours.use_base_attention(implementation)
    with torch.no_grad():
        assert (theirs.eval()(**inputs).logits - ours.eval()(**inputs).logits).abs().max() < 1e-4
