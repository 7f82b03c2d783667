"""Stage 1's forward pass: the original's outputs, the error of each layer as it is defined, and gradients for the mechanisms alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from hf_longattn import attend, reference_attend
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms import Mechanism, build_mechanism, list_mechanisms, mechanism_class, mechanism_info
from hf_longattn.training.linearise.layers import number_to_restore, restore_softmax, with_softmax
from hf_longattn.training.linearise.matching import Matching, MatchingModel, matching
from tests.cases import every_case
from tests.modeling.test_sliding_window import CASES
from tests.reference.small_models import LANGUAGE_MODELS, long_like, plain_model, tokens
from tests.training.conftest import checkpoint

LENGTH = 96


def softmax(heads: int, width: int) -> Mechanism:
    return build_mechanism("full", num_heads=heads, head_dim=width)


@pytest.fixture(params=["mlm", "clm", "llama"])
def model(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    short = checkpoint(request.param, tmp_path / "short", tokenizer)
    convert_checkpoint(short, tmp_path / "long", mechanism="hedgehog", max_length=LENGTH, verify=False)
    return (AutoModelForMaskedLM if request.param == "mlm" else AutoModelForCausalLM).from_pretrained(tmp_path / "long").eval()


def padded(model: PreTrainedModel, side: str = "right") -> dict[str, Tensor]:
    ids = torch.randint(5, model.config.vocab_size, (2, LENGTH))
    mask = torch.ones_like(ids)
    mask[1, LENGTH - 30 :] = 0
    return {"input_ids": ids, "attention_mask": mask if side == "right" else mask.flip(1)}


@pytest.mark.parametrize("side", ["right", "left"])
def test_matching_model_gives_the_outputs_of_the_original(model: PreTrainedModel, side: str) -> None:
    batch = padded(model, side)
    ids = batch["input_ids"]
    batch["position_ids"] = model.running_base.own_positions(batch, ids.shape, ids.device)  # the original alone would count padding
    with torch.no_grad():
        with matching(model):
            found = model(**batch).logits
        model.use_base_attention("sdpa")
        expected = model(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("base", ["mistral", "gemma2", "smollm3"])
def test_matching_keeps_the_windows_of_the_base(base: str) -> None:
    """In all layers or some: what is imitated, and what layers that keep softmax attention are given back."""
    plain = plain_model(base, LANGUAGE_MODELS[base], **CASES[base])
    cheap = {"mechanism": "block_top_k", "block_size": 8, "num_blocks": 2}
    layers = range(plain.config.num_hidden_layers)
    model = long_like(plain, base, {"mechanism": "full", "layers": dict.fromkeys(layers, cheap)}, **CASES[base])
    ids = tokens(2, 100)
    with torch.no_grad():
        expected = plain(ids).logits
        assert (model(ids).logits - expected).abs().max() > 1e-3
        with matching(model):
            torch.testing.assert_close(model(ids).logits, expected, atol=2e-5, rtol=1e-5)
        with with_softmax(model, set(layers)):
            torch.testing.assert_close(model(ids).logits, expected, atol=2e-5, rtol=1e-5)
        assert number_to_restore(model, 1) == 1
        restore_softmax(model, set(layers))
        torch.testing.assert_close(model(ids).logits, expected, atol=2e-5, rtol=1e-5)
    with pytest.raises(OptionError, match="already"):
        number_to_restore(model, 1)


def test_matching_gives_gradients_to_mechanisms_from_their_own_layer_alone(model: PreTrainedModel) -> None:
    batch, before = padded(model), {name: p.requires_grad for name, p in model.named_parameters()}
    students = [module for module in model.modules() if isinstance(module, Mechanism)]
    with matching(model) as layers:
        trained = MatchingModel(model, layers).train()
        outputs = trained(**batch)
        outputs["loss"].backward()
        summed = {name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None}
        assert set(summed) == {name for name, p in trained.named_parameters() if p.requires_grad}
        assert all(".long_attention.student." in name for name in summed)
        trained.zero_grad()
        trained(**batch)
        second = list(layers.values())[1]
        assert second.loss is not None
        second.loss.backward()
        alone = {name: p.grad for name, p in trained.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert 0 < len(alone) < len(summed)
        assert all(torch.equal(summed[name], gradient) for name, gradient in alone.items())
    assert [module for module in model.modules() if isinstance(module, Mechanism)] == students
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


@pytest.mark.thorough
def test_matching_in_training_mode_leaves_the_original_without_dropout(model: PreTrainedModel) -> None:
    with matching(model) as layers:
        MatchingModel(model, layers).train()
        assert not model.base_model.training
        assert all(layer.student.training for layer in layers.values())


@pytest.mark.parametrize("causal", [False, True])
def test_matching_loss_is_its_definition_over_real_tokens(causal: bool) -> None:
    student = build_mechanism("hedgehog", num_heads=4, head_dim=8)
    for parameter in student.parameters():
        torch.nn.init.normal_(parameter)
    layer = Matching(student, softmax(4, 8), True)
    q, k, v = torch.randn(2, 4, 20, 8), torch.randn(2, 2, 20, 8), torch.randn(2, 2, 20, 8)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 13:] = False
    arguments = {"causal": causal, "padding_mask": mask}
    target = attend(q, k, v, layer, **arguments)
    full = build_mechanism("full", num_heads=4, head_dim=8)
    torch.testing.assert_close(target, attend(q, k, v, full, **arguments))

    squares, energies = [], []
    wanted, given = reference_attend(q, k, v, full, **arguments), reference_attend(q, k, v, student, **arguments)
    for b, length in enumerate((20, 13)):
        squares.append((wanted - given)[b, :, :length].square().mean())
        energies.append(wanted[b, :, :length].square().mean())
    squared, energy = (torch.stack(parts) for parts in (squares, energies))
    share = (squared / energy).mean()
    assert layer.loss is not None
    assert layer.errors is not None
    torch.testing.assert_close(layer.errors.double(), torch.stack([squared.mean(), share]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer.loss.double(), share, atol=1e-5, rtol=1e-5)
    first = layer.loss.clone()
    for tensor in (q, k, v):
        tensor[1, :, 13:] = 7.0
    attend(q, k, v, layer, **arguments)
    torch.testing.assert_close(layer.loss, first)


def test_matching_error_of_softmax_attention_is_zero() -> None:
    layer = Matching(build_mechanism("window", num_heads=2, head_dim=8, window=64), softmax(2, 8), False)
    attend(*torch.randn(3, 1, 2, 16, 8), mechanism=layer)
    assert layer.errors is not None
    assert float(layer.errors.max()) < 1e-10


@every_case("name", [name for name in list_mechanisms(grid=False) if mechanism_info(name).trains])
def test_matching_trains_every_mechanism_with_parameters(name: str) -> None:
    cls = mechanism_class(name)
    student = build_mechanism(name, **{"num_heads": 4, "head_dim": 16, "max_length": 640, **cls.sample})
    layer = Matching(student, softmax(4, 16), True).train()
    hidden = {"hidden_states": torch.randn(2, 96, 64)} if student.traits.takes_hidden_states else {}
    inputs, causal = torch.randn(3, 2, 4, 96, 16), student.causal is True
    if not attend(*inputs, mechanism=student, causal=causal, **hidden).requires_grad:
        with pytest.raises(OptionError, match="give --stage 2"):
            attend(*inputs, mechanism=layer, causal=causal, **hidden)
        return
    attend(*inputs, mechanism=layer, causal=causal, **hidden)
    assert layer.loss is not None
    layer.loss.backward()
    gradients = [p.grad for p in student.parameters() if p.requires_grad and p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    assert any(bool(gradient.abs().max() > 0) for gradient in gradients)
