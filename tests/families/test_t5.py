"""T5 and mT5: the encoder long, the decoder and cross-attention full unless chosen, T5's relative positions in every
mechanism."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.t5.modeling_t5 import T5Attention

import hf_longattn
import hf_longattn.families as families
from hf_longattn import convert_checkpoint, list_mechanisms, plan_conversion, reference_attend
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.common.registry import mechanism_class
from scripts.dev.tools.small_models import Shape, language_model, small_values
from tests.cases import every_case
from tests.modeling.encoder_decoder_contract import FULL, WINDOW, EncoderDecoderContract
from tests.modeling.two_stacks import inputs_of
from tests.reference.small_models import checkpoint_activations, tokens
from tests.samples import sample_of
from tests.shared_code import engine_of_form

BASES = ("t5", "mt5")
HEADS = [(base, head) for base in BASES for head in families.FAMILIES[base].model_classes]
SHAPE = Shape(width=32, layers=2, heads=4, inner=40, tokens=96, vocabulary=200)
EOS = 3


def values_of(base: str, **changes: Any) -> dict[str, Any]:
    given = {
        "pad_token_id": 1,
        "eos_token_id": EOS,
        "decoder_start_token_id": EOS,
        "dropout_rate": 0.0,
        "num_decoder_layers": 3,
    }
    return {**small_values(base, SHAPE, **given), **changes}


def plain_model(base: str, head: str | None = None, **changes: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, head or language_model(base))(
        CONFIG_MAPPING[base](**values_of(base, **changes))
    ).eval()


def long_like(plain: Any, base: str, long_attention: Any, **changes: Any) -> Any:
    """The Long model of ``plain``'s class with the same weights."""
    family = families.FAMILIES[base]
    config: Any = family.config_class(**values_of(base, **changes), long_attention=long_attention)
    model = family.model_class(type(plain).__name__)(config).eval()
    left = model.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert all(".long_attention." in name for name in left.missing_keys)
    return model


def equal(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4 * max(1.0, float(a.abs().max())), rtol=0)


@every_case(("base", "head"), HEADS, ids=[head for _, head in HEADS])
def test_every_head_of_t5_with_full_attention_equals_the_base(base: str, head: str) -> None:
    plain = plain_model(base, head)
    longer = long_like(plain, base, {"mechanism": "full"})
    made = type(longer)
    assert issubclass(made, type(plain))
    assert made.can_generate() == plain.can_generate()
    assert pickle.loads(pickle.dumps(made)) is made
    assert getattr(hf_longattn, made.__name__) is made
    inputs = inputs_of(head)
    with torch.no_grad():
        expected, found = plain(**inputs), longer(**inputs)
    real, compared = inputs["attention_mask"].bool(), 0
    for name in expected:
        if isinstance(expected[name], Tensor):
            rows = real if expected[name].shape[:2] == real.shape else ...
            equal(expected[name][rows], found[name][rows])
            compared += 1
    assert compared


def test_our_long_t5_is_not_longt5_of_transformers() -> None:
    assert families.FAMILIES["t5"].model_classes["T5Model"] == "LongAttentionT5Model"
    assert not hasattr(families, "LongT5Model")
    assert type(transformers.AutoConfig.for_model("longt5")) is transformers.LongT5Config
    assert type(transformers.AutoConfig.for_model("long_t5")).__name__ == "LongAttentionT5Config"


@every_case("base", ["t5"])
class TestT5(EncoderDecoderContract):
    """mT5's is T5's."""

    answer, end = "logits", EOS
    decoder_layers, decoder_heads = 3, 4

    def plain(self, base: str, generates: bool = False, **changes: Any) -> Any:
        return plain_model(base, **changes)

    def long_like(self, plain: Any, base: str, long_attention: Any, **changes: Any) -> Any:
        return long_like(plain, base, long_attention, **changes)

    def inputs(self) -> dict[str, Tensor]:
        return inputs_of()

    def equal(self, a: Tensor, b: Tensor) -> None:
        equal(a, b)

    unchanged = equal

    def test_left_padding_changes_nothing(self, base: str) -> None:
        self.padding_changes_nothing(base, left=True)

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_gradients_are_the_base_s_with_checkpointing_too(self, base: str, reentrant: bool) -> None:
        """Those of the table of relative positions, which all layers share, among them."""
        plain, gradients = plain_model(base), []
        inputs = {name: value for name, value in inputs_of().items() if not name.startswith("decoder")}
        for checkpointing, model in (
            (False, plain),
            (False, long_like(plain, base, FULL)),
            (True, long_like(plain, base, FULL)),
        ):
            model.train()
            if checkpointing:
                checkpoint_activations(model, use_reentrant=reentrant)
                model.enable_input_require_grads()
            model(**inputs, labels=tokens(2, 9, seed=4)).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" in gradients[0]
        for found in gradients[1:]:
            assert found.keys() == gradients[0].keys()
            for name, gradient in gradients[0].items():
                torch.testing.assert_close(
                    found[name], gradient, atol=1e-4 * max(1.0, float(gradient.abs().max())), rtol=1e-3, msg=name
                )

    def test_mechanisms_without_scores_are_refused(self, base: str) -> None:
        for name in ("performer", "nystrom"):
            with pytest.raises(
                OptionError, match=rf"adds relative positions to its attention scores, but mechanism '{name}' has no"
            ):
                long_like(plain_model(base), base, {"mechanism": name})

    @pytest.mark.thorough
    @pytest.mark.parametrize("head", ["", "EncoderModel", "ForSequenceClassification"])
    def test_lengths_through_a_conversion_and_back(self, base: str, head: str, tmp_path: Path) -> None:
        """The encoder's grows; a decoder's stays, unless it reads the text or is asked for."""
        name = next(
            one for one in families.FAMILIES[base].model_classes if one.endswith(head or "ForConditionalGeneration")
        )
        plain = plain_model(base, name)
        plain.save_pretrained(tmp_path / "short")
        report = convert_checkpoint(tmp_path / "short", tmp_path / "long", **WINDOW, max_length=400)
        assert "failed" not in {check.status for check in report.checks}
        model = families.FAMILIES[base].model_class(name).from_pretrained(tmp_path / "long").eval()
        decoder = 400 if head == "ForSequenceClassification" else 96
        assert model.config.max_position_embeddings == 400
        assert head == "EncoderModel" or model.config.max_decoder_position_embeddings == decoder
        with torch.no_grad():
            outputs = model(**inputs_of(name, 390))
        assert all(value.isfinite().all() for value in outputs.values() if isinstance(value, Tensor))
        with pytest.raises(
            OptionError, match="adds its positions to the scores, which works at any length; leave --positions out"
        ):
            plan_conversion(tmp_path / "short", **WINDOW, max_length=400, positions="tile")


CROSSED = {
    name: sample_of(name) for name in list_mechanisms(grid=False) if mechanism_class(name).capabilities.takes_score_mod
}


@pytest.mark.thorough
@every_case("mechanism", CROSSED, of=9, code=engine_of_form)
def test_every_mechanism_over_scores_adds_the_relative_positions_of_t5(mechanism: str) -> None:
    """A layer's output is that of the mechanism's definition, in float64, with the bias of T5's own code."""
    try:
        model = long_like(plain_model("t5"), "t5", CROSSED[mechanism])
    except OptionError as refused:
        assert "form" in str(refused)  # noqa: PT017 - the others are built
        return
    attention, seen = model.encoder.block[0].layer[0].SelfAttention, {}
    attention.register_forward_hook(lambda module, args, output: seen.update(input=args[0], output=output[0]))
    ids, length = tokens(2, 300), 300
    with torch.no_grad():
        model.encoder(ids)
        query, key, value = (
            one(seen["input"]).unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
            for one in (attention.q, attention.k, attention.v)
        )
        states = seen["input"] if attention.long_attention.capabilities.takes_hidden_states else None
        bias = T5Attention.compute_bias(attention, length, length)[0].double()
        expected = reference_attend(
            query,
            key,
            value,
            attention.long_attention,
            scaling=1.0,
            hidden_states=states,
            score_mod=lambda score, b, h, q_idx, kv_idx: (
                score + bias[h, q_idx.clamp(0, length - 1), kv_idx.clamp(0, length - 1)]
            ),
        )
        expected = attention.o(expected.float().transpose(1, 2).flatten(2))
    equal(expected, seen["output"])


@pytest.mark.slow
def test_t5_compiles_to_one_graph() -> None:
    """One graph, without breaks."""
    TestT5().check_compiled("t5", num_layers=1, num_decoder_layers=1)
