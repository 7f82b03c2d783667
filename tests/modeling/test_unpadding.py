"""Encoders without padding: outputs and gradients are those of the padded batch, and layers see real tokens alone."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload
from torch import Tensor, nn

from hf_longattn import unpad
from hf_longattn.errors import BackendError
from hf_longattn.modeling import unpadding
from hf_longattn.modeling.unpadding import unpadded
from tests.cases import every_case
from tests.reference.small_models import (
    BASES,
    CAUSAL,
    base_class,
    checkpoint_activations,
    long_model,
    padding,
    plain_config,
    plain_model,
    tokens,
)

REFUSED = {
    "big_bird": "no text encoder on transformers' AttentionInterface",
    "layoutlm": "do not get the mask of the batch",
    "markuplm": "do not get the mask of the batch",
    "siglip_text_model": "its outputs change",
}
"""Bases whose padding stays. SigLIP pools the last column, also if that is padding."""
RUN = [base for base in BASES if base not in REFUSED]


def batch(length: int = 40) -> dict[str, Tensor]:
    return {"input_ids": tokens(3, length), "attention_mask": padding(3, length)}


def arguments_of(base: str) -> dict[str, Any]:
    return {"use_cache": False} if base in CAUSAL else {}


def assert_close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6 * max(1.0, float(expected.abs().max())))


@every_case("base", RUN)
def test_hidden_states_and_pooler_equal_the_padded_batch(base: str) -> None:
    model, inputs = plain_model(base), batch()
    model.set_attn_implementation("longattn")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = model(**inputs, **arguments_of(base), output_hidden_states=True)
        outputs = unpad(model)(**inputs, **arguments_of(base), output_hidden_states=True)
    for ours, padded in zip(outputs.hidden_states, expected.hidden_states, strict=True):
        assert ours.shape == padded.shape
        assert_close(ours[real], padded[real])
    if getattr(expected, "pooler_output", None) is not None:
        assert_close(outputs.pooler_output, expected.pooler_output)


@every_case("base", REFUSED)
def test_models_that_depend_on_padding_are_refused_and_stay_as_they_were(base: str) -> None:
    model = plain_model(base)
    before = model.config._attn_implementation
    with pytest.raises(BackendError, match=REFUSED[base]):
        unpad(model)
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.config._attn_implementation == before


@every_case("name", ["T5EncoderModel", "XmodModel", "ViTModel", "batch norm"])
def test_layers_that_read_pairs_or_rows_are_refused(name: str) -> None:
    sizes = {"num_layers": 2, "d_model": 32, "d_ff": 32, "num_heads": 2, "d_kv": 16, "vocab_size": 99}
    if name == "XmodModel":
        sizes = {"languages": ["en"], "default_language": "en", "num_hidden_layers": 2, "vocab_size": 99}
    model_class = getattr(transformers, name, transformers.BertModel)
    config = model_class.config_class(**sizes) if name[0] in "TX" else model_class.config_class(num_hidden_layers=2)
    model = model_class(config)
    if name == "batch norm":
        model.encoder.layer[0].output.LayerNorm = nn.BatchNorm1d(768)
    with pytest.raises(BackendError, match=r"cannot run without padding|no text encoder"):
        unpad(model)


@every_case("base", ["bert", "siglip_text_model", "layoutlm"])
def test_models_are_as_before_after_the_context(base: str) -> None:
    model, inputs = plain_model(base), batch()
    model.set_attn_implementation("sdpa")
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = model(**inputs)
        with unpadded(model):
            assert any("forward" in vars(module) for module in model.modules()) == (base == "bert")
            assert_close(model(**inputs)[0][real], expected[0][real])
        assert not any("forward" in vars(module) for module in model.modules())
        assert model.config._attn_implementation == "sdpa"
        assert torch.equal(model(**inputs)[0], expected[0])
        if base == "bert":
            layer = unpad(model).encoder.layer[0].forward
            with unpadded(model):
                pass
            assert model.encoder.layer[0].forward is layer


def test_what_holds_no_model_is_refused() -> None:
    with pytest.raises(BackendError, match=r"unpad takes a model of transformers, .* but got a list"):
        unpad([])
    with pytest.raises(BackendError, match="Linear has no text encoder"):
        unpad(nn.Linear(2, 2))


@every_case("base", ["bert", "modernbert", "llama"])
def test_feed_forward_networks_see_real_tokens_alone_in_groups(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpadding, "PASS_TOKENS", 70)
    model, inputs = unpad(plain_model(base)), batch()
    rows: list[tuple[int, ...]] = []
    wide = next(
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features > 64 and module.in_features == 64
    )
    wide.register_forward_hook(lambda module, args, output: rows.append(tuple(args[0].shape[:2])))
    model(**inputs, **arguments_of(base))
    lengths = inputs["attention_mask"].sum(1).tolist()
    assert lengths == [40, 34, 27]
    assert rows == [(1, 40), (1, 34 + 27)]


@every_case("base", ["bert", "modernbert", "gemma3_text", "distilbert"])
def test_gradients_equal_those_of_the_padded_batch(base: str) -> None:
    for checkpoints in (False, True):
        padded, inputs = plain_model(base).double(), batch()
        padded.set_attn_implementation("longattn")
        ours = unpad(copy.deepcopy(padded))
        weights = torch.randn(3, 40, 64, dtype=torch.float64) * inputs["attention_mask"][..., None]
        for model in (padded, ours):
            if checkpoints:
                checkpoint_activations(model, use_reentrant=False)
            model.train()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            (model(**inputs, **arguments_of(base)).last_hidden_state * weights).sum().backward()
        for (name, mine), theirs in zip(ours.named_parameters(), padded.parameters(), strict=True):
            if theirs.grad is not None:
                torch.testing.assert_close(
                    mine.grad, theirs.grad, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
                )


def test_autocast_and_compiled_calls_equal_the_padded_batch() -> None:
    padded, inputs = plain_model("bert"), batch()
    padded.set_attn_implementation("longattn")
    ours, real = unpad(copy.deepcopy(padded)), inputs["attention_mask"].bool()
    compiled = torch.compile(ours, backend="eager")
    with torch.no_grad():
        assert_close(compiled(**inputs)[0][real], padded(**inputs)[0][real])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half, expected = ours(**inputs)[0], padded(**inputs)[0]
    torch.testing.assert_close(half[real], expected[real], rtol=0, atol=0.1)


@every_case("case", ["cache", "attentions", "left padding", "holes", "one length"])
def test_calls_that_need_padding_run_as_before(case: str) -> None:
    base = "llama" if case == "cache" else "bert"
    model, inputs = plain_model(base), batch()
    model.set_attn_implementation("longattn")
    if case == "left padding":
        inputs["attention_mask"] = padding(3, 40, left=True)
    elif case == "holes":
        inputs["attention_mask"][0, 5:20] = 0
    elif case == "one length":
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    inputs |= {"output_attentions": True} if case == "attentions" else {}
    with torch.no_grad():
        expected = model(**inputs)
        outputs = unpad(model)(**inputs)
    for ours, padded in zip(outputs.to_tuple(), expected.to_tuple(), strict=True):
        if isinstance(padded, Tensor):
            assert torch.equal(ours, padded)


@every_case("mechanism", ["longformer", "window", "linear", "nystrom", "full"])
def test_long_models_equal_their_padded_batch(mechanism: str) -> None:
    options = {"window": 8} if mechanism in ("longformer", "window") else {}
    model, inputs = long_model("bert", None, {"mechanism": mechanism, **options}), batch()
    real = inputs["attention_mask"].bool()
    if mechanism == "longformer":
        inputs["global_attention_mask"] = torch.zeros_like(inputs["input_ids"])
        inputs["global_attention_mask"][:, 3] = 1
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        outputs = unpad(model)(**inputs).last_hidden_state
    assert_close(outputs[real], expected[real])


def test_heads_copies_and_pickles_run_without_padding() -> None:
    padded = plain_model("bert", "BertForSequenceClassification")
    padded.set_attn_implementation("longattn")
    ours, inputs = unpad(copy.deepcopy(padded)), batch()
    for model in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        layer = model.bert.encoder.layer[0]
        assert layer.forward.layer is layer
        with torch.no_grad():
            assert_close(model(**inputs).logits, padded(**inputs).logits)


@every_case("case", ["hooks of accelerate", "a function in place of a forward", "twice"])
def test_layers_keep_a_forward_of_their_own(case: str) -> None:
    model, inputs = plain_model("bert"), batch()
    model.set_attn_implementation("longattn")
    layer, calls = model.encoder.layer[0], []
    with torch.no_grad():
        expected = model(**inputs).pooler_output
        if case == "hooks of accelerate":
            cpu_offload(model, execution_device=torch.device("cpu"))
        else:
            own = layer.forward
            layer.forward = lambda *args, **kwargs: calls.append(args[0].shape[0]) or own(*args, **kwargs)
        if case == "twice":
            unpad(model)
        unpad(model)
        calls.clear()
        assert_close(model(**inputs).pooler_output, expected)
    assert calls == ([] if case == "hooks of accelerate" else [1])


def test_models_of_few_tokens_and_positions_are_compared_on_shorter_texts() -> None:
    model = plain_model("bert", vocab_size=4, max_position_embeddings=12)
    inputs = {"input_ids": tokens(3, 10) % 4, "attention_mask": padding(3, 10)}
    with torch.no_grad():
        expected = model(**inputs).pooler_output
        assert_close(unpad(model)(**inputs).pooler_output, expected)


def test_pipelines_and_sentence_encoders_are_unpadded_inside(real_folder: Any) -> None:
    from sentence_transformers import SentenceTransformer

    texts = [
        "short",
        "a longer text about encoders and their padding " * 8,
        "of a middle length, with seventeen words",
    ]
    encoder = SentenceTransformer(str(real_folder), device="cpu")
    expected = encoder.encode(texts)
    assert unpad(encoder) is encoder
    torch.testing.assert_close(torch.tensor(encoder.encode(texts)), torch.tensor(expected), rtol=0, atol=1e-6)
    states = transformers.pipeline("feature-extraction", str(real_folder), device="cpu")
    before = states(texts, batch_size=3)
    after = unpad(states)(texts, batch_size=3)
    assert [len(state[0]) for state in after] == [len(state[0]) for state in before]


def test_every_layer_of_a_base_is_found() -> None:
    for base in RUN:
        with torch.device("meta"):
            model = base_class(base)(plain_config(base))
        (layers,) = unpadding._stacks(model).values()
        assert len(layers) in (1, model.config.num_hidden_layers), base
