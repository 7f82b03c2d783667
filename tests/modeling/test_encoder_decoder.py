"""Families with an encoder and a decoder: the encoder long, the decoder and cross-attention full unless chosen."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import hf_longattn.families as families
from hf_longattn.errors import MaskError, OptionError
from tests.modeling.two_stacks import BASES, GENERATING, LONGFORMER, WINDOW, inputs_of, long_like, plain_model
from tests.reference.small_models import TOKENS, tokens
from tools.small_models import Shape, small_values

HEADS = [(base, head) for base in BASES for head in families.FAMILIES[base].heads]


@pytest.mark.parametrize(("base", "head"), HEADS, ids=[head for _, head in HEADS])
def test_every_head_with_full_attention_gives_the_same_bits(base: str, head: str) -> None:
    plain = plain_model(base, head)
    longer = long_like(plain, base, {"mechanism": "full"})
    with torch.no_grad():
        expected, found = plain(**inputs_of(head)), longer(**inputs_of(head))
    compared = [name for name in expected if isinstance(expected[name], Tensor)]
    real = inputs_of()["attention_mask"].bool()
    for name in compared:
        rows = real if expected[name].shape[:2] == real.shape else ...
        assert torch.equal(expected[name][rows], found[name][rows]), name
    assert compared


@pytest.mark.parametrize(("base", "head"), HEADS, ids=[head for _, head in HEADS])
def test_a_long_class_is_its_base_class(base: str, head: str) -> None:
    made = getattr(families, f"Long{head}")
    assert issubclass(made, getattr(transformers, head))
    assert made.can_generate() == getattr(transformers, head).can_generate()
    assert pickle.loads(pickle.dumps(made)) is made


@pytest.mark.parametrize("base", BASES)
class TestEveryBase:
    def test_a_family_is_one_short_file(self, base: str) -> None:
        assert len(Path(families.__path__[0], f"{base}.py").read_text().splitlines()) <= 30

    def test_where_the_mechanisms_are(self, base: str) -> None:
        model = long_like(plain_model(base), base, {**WINDOW, "layers": {1: {"window": 4}}})
        found = {name: m.long_attention for name, m in model.named_modules() if hasattr(m, "long_attention")}
        assert [found[f"encoder.layers.{i}.self_attn"].options.window for i in range(2)] == [8, 4]
        others = [mechanism.name for name, mechanism in found.items() if name.startswith("decoder")]
        assert others == ["full"] * 4

    def test_the_encoder_runs_its_pattern(self, base: str) -> None:
        """Against transformers' own encoder with the pattern as a mask (B, 1, N, N)."""
        plain, inputs = plain_model(base), inputs_of()
        longer = long_like(plain, base, WINDOW)
        plain.set_attn_implementation("eager")
        near = (torch.arange(40)[:, None] - torch.arange(40)).abs() <= 4
        allowed = near & inputs["attention_mask"].bool()[:, None, None, :]
        allowed |= torch.eye(40, dtype=torch.bool) & ~inputs["attention_mask"].bool()[:, None, :, None]  # padding sees itself, not nothing
        mask = torch.zeros(2, 1, 40, 40).masked_fill(~allowed, torch.finfo(torch.float32).min)
        real = inputs["attention_mask"].bool()
        with torch.no_grad():
            encoded = plain.encoder(inputs["input_ids"], attention_mask=mask).last_hidden_state
            expected = plain(**inputs, encoder_outputs=(encoded,)).last_hidden_state
            found = longer(**inputs)
        assert (encoded - found.encoder_last_hidden_state)[real].abs().max() < 1e-5
        assert (expected - found.last_hidden_state).abs().max() < 1e-5

    def test_padding_changes_nothing(self, base: str) -> None:
        model, inputs = long_like(plain_model(base), base, LONGFORMER), inputs_of()
        is_global = torch.zeros(2, 40)
        is_global[:, :2] = 1
        with torch.no_grad():
            both = model(**inputs, global_attention_mask=is_global)
            alone = model(
                inputs["input_ids"][1:, :29], decoder_input_ids=inputs["decoder_input_ids"][1:], global_attention_mask=is_global[1:, :29]
            )
        assert (both.last_hidden_state[1:] - alone.last_hidden_state).abs().max() < 1e-5
        assert (both.encoder_last_hidden_state[1:, :29] - alone.encoder_last_hidden_state).abs().max() < 1e-5

    def test_global_tokens_are_the_encoder_s(self, base: str) -> None:
        inputs, plain = inputs_of(), plain_model(base)
        is_global = torch.zeros(2, 40)
        is_global[:, 7] = 1
        model = long_like(plain, base, LONGFORMER, decoder_long_attention=LONGFORMER)
        with torch.no_grad():
            without, given = model(**inputs), model(**inputs, global_attention_mask=is_global)
            through = model(**inputs, encoder_outputs=(without.encoder_last_hidden_state,), global_attention_mask=is_global)
        assert (without.encoder_last_hidden_state - given.encoder_last_hidden_state).abs().max() > 1e-3
        assert torch.equal(without.last_hidden_state, through.last_hidden_state)
        with pytest.raises(MaskError, match="no layer of this model takes global tokens"):
            long_like(plain, base, WINDOW)(**inputs, global_attention_mask=is_global)
        with pytest.raises(MaskError, match=r"global_attention_mask has shape \(2, 39\)"):
            model(**inputs, global_attention_mask=is_global[:, 1:])

    def test_a_long_decoder(self, base: str) -> None:
        plain = plain_model(base)
        narrow = long_like(plain, base, {"mechanism": "full"}, decoder_long_attention={"mechanism": "window", "window": 3})
        ids, targets = tokens(2, 20), tokens(2, 30, seed=3)
        with torch.no_grad():
            before = narrow(ids, decoder_input_ids=targets).last_hidden_state
            assert (before - plain(ids, decoder_input_ids=targets).last_hidden_state).abs().max() > 1e-3
            targets[:, 20:] = 7
            assert torch.equal(narrow(ids, decoder_input_ids=targets).last_hidden_state[:, :20], before[:, :20])
        with pytest.raises(OptionError, match="layer 5"):
            long_like(plain, base, WINDOW, decoder_long_attention={"mechanism": "window", "layers": {5: {"window": 4}}})

    @pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}], ids=str)
    @pytest.mark.parametrize("decoder", [None, {"mechanism": "window", "window": 6}], ids=["full decoder", "long decoder"])
    def test_generate(self, base: str, how: dict[str, Any], decoder: Any) -> None:
        """Every token is the most probable one of the whole forward pass; with beams, the same as without a cache."""
        model = long_like(plain_model(base, GENERATING[base]), base, LONGFORMER, decoder_long_attention=decoder)
        inputs = {name: value for name, value in inputs_of().items() if not name.startswith("decoder")}
        inputs["global_attention_mask"] = torch.zeros(2, 40, dtype=torch.long).index_fill(1, torch.tensor([0, 7]), 1)
        arguments = {"max_new_tokens": 14, "min_new_tokens": 14, "do_sample": False}
        with torch.no_grad():
            written = model.generate(**inputs, **arguments, **how)
            if "num_beams" in how:
                assert torch.equal(written, model.generate(**inputs, **arguments, **how, use_cache=False))
                return
            logits = model(**inputs, decoder_input_ids=written[:, :-1]).logits
        logits[..., TOKENS["eos_token_id"]] = -torch.inf  # min_new_tokens forbids it
        assert torch.equal(logits.argmax(-1), written[:, 1:])

    def test_the_decoder_alone(self, base: str) -> None:
        head = GENERATING[base].replace("ForConditionalGeneration", "ForCausalLM").replace("MTModel", "ForCausalLM")
        model = long_like(plain_model(base, head), base, WINDOW)
        assert model.config.layer_types == ["longattn_window_8"] * 2
        ids = tokens(2, 30)
        with torch.no_grad():
            written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False)
            logits = model(written[:, :-1]).logits
        logits[..., TOKENS["eos_token_id"]] = -torch.inf
        assert torch.equal(logits.argmax(-1)[:, 29:], written[:, 30:])

    def test_base_attention_gives_the_plain_base(self, base: str) -> None:
        plain = plain_model(base)
        longer = long_like(plain, base, WINDOW)
        for implementation in ("sdpa", "eager"):
            plain.set_attn_implementation(implementation)
            longer.use_base_attention(implementation)
            with torch.no_grad():
                assert torch.equal(plain(**inputs_of()).last_hidden_state, longer(**inputs_of()).last_hidden_state)

    def test_attentions(self, base: str) -> None:
        model = long_like(plain_model(base), base, WINDOW)
        with torch.no_grad():
            out = model(tokens(2, 30), decoder_input_ids=tokens(2, 7), output_attentions=True)
        assert [w.shape for w in out.encoder_attentions] == [(2, 4, 30, 30)] * 2
        assert [w.shape for w in out.decoder_attentions] == [(2, 2, 7, 7)] * 2
        assert [w.shape for w in out.cross_attentions] == [(2, 2, 7, 30)] * 2
        assert out.encoder_attentions[0][0, 0, 29, :20].max() == 0
        assert out.cross_attentions[0].min() > 0

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_gradient_checkpointing(self, base: str, reentrant: bool) -> None:
        gradients = []
        for checkpointing in (False, True):
            model = long_like(plain_model(base, GENERATING[base]), base, LONGFORMER).train()
            if checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
                model.enable_input_require_grads()
            inputs = {name: value for name, value in inputs_of().items() if not name.startswith("decoder")}
            model(**inputs, labels=tokens(2, 9, seed=4), global_attention_mask=torch.eye(2, 40)).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert gradients[0].keys() == gradients[1].keys()
        assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])

    def test_compiled(self, base: str) -> None:
        model = long_like(plain_model(base), base, LONGFORMER)
        inputs = {**inputs_of(), "global_attention_mask": torch.eye(2, 40), "use_cache": False}
        with torch.no_grad():
            expected = model(**inputs).last_hidden_state
            found = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).last_hidden_state
        assert (expected - found).abs().max() < 1e-5

    def test_copied_and_pickled(self, base: str) -> None:
        model = long_like(plain_model(base), base, LONGFORMER)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(twin.encoder) is type(model.encoder)
            with torch.no_grad():
                assert torch.equal(twin(**inputs_of()).last_hidden_state, model(**inputs_of()).last_hidden_state)


def test_padding_of_a_long_document_cuts_no_query_of_the_decoder_off() -> None:
    """Cross-attention with more pairs than one dense call takes: its queries are not the last of the keys' sequence."""
    config = families.LongBartConfig(**small_values("bart", Shape(tokens=1024), pad_token_id=1), long_attention=WINDOW)
    torch.manual_seed(0)
    model = families.LongBartModel(config).eval()
    ids, padding, decoded = torch.randint(5, 90, (1, 600)), torch.ones(1, 37, dtype=torch.long), torch.randint(5, 90, (1, 600))
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(padding)], 1)
    with torch.no_grad():
        alone = model(input_ids=ids, decoder_input_ids=decoded).last_hidden_state
        padded = model(input_ids=torch.cat([ids, padding], 1), attention_mask=mask, decoder_input_ids=decoded).last_hidden_state
    torch.testing.assert_close(alone, padded, atol=1e-4, rtol=0)
