"""Families with an encoder and a decoder: the encoder long, the decoder and cross-attention full unless chosen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import hf_longattn.families as families
from scripts.dev.tools.small_models import Shape, small_values
from tests.cases import every_case
from tests.modeling.encoder_decoder_contract import LONGFORMER, WINDOW, EncoderDecoderContract
from tests.modeling.two_stacks import BASES, GENERATING, inputs_of, long_like, plain_model
from tests.reference.small_models import TOKENS, checkpoint_activations, tokens
from tests.shared_code import kind_of_family

HEADS = [(base, head) for base in BASES for head in families.FAMILIES[base].model_classes]


@every_case(
    ("base", "head"), HEADS, of=4, code=lambda base, head: head.rpartition("For")[2], ids=[head for _, head in HEADS]
)
def test_every_head_with_full_attention_gives_the_same_bits(base: str, head: str) -> None:
    plain = plain_model(base, head)
    longer = long_like(plain, base, {"mechanism": "full"})
    with torch.no_grad():
        expected = plain(**inputs_of(head))
        found = longer(**inputs_of(head))
    compared = [name for name in expected if isinstance(expected[name], Tensor)]
    real = inputs_of()["attention_mask"].bool()
    for name in compared:
        rows = real if expected[name].shape[:2] == real.shape else ...
        assert torch.equal(expected[name][rows], found[name][rows]), name
    assert compared


@every_case("base", BASES, of=9, code=kind_of_family)
class TestEveryBase(EncoderDecoderContract):
    answer, end = "last_hidden_state", TOKENS["eos_token_id"]
    decoder_layers, decoder_heads = 2, 2

    def plain(self, base: str, generates: bool = False, **changes: Any) -> Any:
        return plain_model(base, GENERATING[base] if generates else None, **changes)

    def long_like(self, plain: Any, base: str, long_attention: Any, **changes: Any) -> Any:
        return long_like(plain, base, long_attention, **changes)

    def inputs(self) -> dict[str, Tensor]:
        return inputs_of()

    def equal(self, a: Tensor, b: Tensor) -> None:
        assert (a - b).abs().max() < 1e-5

    def unchanged(self, a: Tensor, b: Tensor) -> None:
        assert torch.equal(a, b)

    def test_a_decoder_alone_generates_with_the_window(self, base: str) -> None:
        head = GENERATING[base].replace("ForConditionalGeneration", "ForCausalLM").replace("MTModel", "ForCausalLM")
        model = long_like(plain_model(base, head), base, WINDOW)
        assert model.config.layer_types == ["longattn_window_8"] * 2
        ids = tokens(2, 30)
        with torch.no_grad():
            written = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False
            )
            logits = model(written[:, :-1]).logits
        logits[..., TOKENS["eos_token_id"]] = -torch.inf
        assert torch.equal(logits.argmax(-1)[:, 29:], written[:, 30:])

    @every_case("reentrant", [True, False])
    def test_gradient_checkpointing_of_both_stacks_changes_no_gradient(self, base: str, reentrant: bool) -> None:
        gradients = []
        for checkpointing in (False, True):
            model = long_like(plain_model(base, GENERATING[base]), base, LONGFORMER).train()
            if checkpointing:
                checkpoint_activations(model, use_reentrant=reentrant)
                model.enable_input_require_grads()
            inputs = {name: value for name, value in inputs_of().items() if not name.startswith("decoder")}
            model(**inputs, labels=tokens(2, 9, seed=4), global_attention_mask=torch.eye(2, 40)).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert gradients[0].keys() == gradients[1].keys()
        assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


def test_padding_of_a_long_document_cuts_no_query_of_the_decoder_off() -> None:
    """Cross-attention with more pairs than one dense call takes: its queries are not the last of the keys'
    sequence."""
    config = families.LongBartConfig(**small_values("bart", Shape(tokens=1024), pad_token_id=1), long_attention=WINDOW)
    model = families.LongBartModel(config).eval()
    ids = torch.randint(5, 90, (1, 600))
    padding = torch.ones(1, 37, dtype=torch.long)
    decoded = torch.randint(5, 90, (1, 600))
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(padding)], 1)
    with torch.no_grad():
        alone = model(input_ids=ids, decoder_input_ids=decoded).last_hidden_state
        padded = model(
            input_ids=torch.cat([ids, padding], 1), attention_mask=mask, decoder_input_ids=decoded
        ).last_hidden_state
    torch.testing.assert_close(alone, padded, atol=1e-4, rtol=0)
