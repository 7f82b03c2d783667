"""Longformer and LED checkpoints, adopted without another weight, equal transformers' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from hf_longattn import attend, build_mechanism
from hf_longattn.conversion import convert_checkpoint
from tests.cases import every_case
from tests.grids import quickly
from tests.reference import summaries
from tests.reference.summaries import adopted, assert_same_summaries, assert_same_texts, real_texts
from tests.trained import REAL_TEXT, tokenizer_of

LENGTH, WINDOWS, STEPS = 320, [16, 32, 64], 24
CLS, SEP, MASK = 2, 3, 4
HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering", "ForTokenClassification")
TOLERANCE = 1e-4


@every_case("length", [40, 384])
@every_case("count", [1, 5, 30])
def test_longformer_equals_the_self_attention_of_transformers(length: int, count: int) -> None:
    """The module of one layer with the mechanism in its place: same weights, same hidden states, padding and scattered
    global tokens."""
    config = transformers.LongformerConfig(
        hidden_size=48, num_attention_heads=4, attention_window=[8], num_hidden_layers=1
    )
    theirs = LongformerSelfAttention(config, 0).eval()
    ours = build_mechanism("longformer", num_heads=4, head_dim=12, window=8, separate_global=True)
    names = ("query", "key", "value")
    ours.load_state_dict(
        {
            f"separate.{n}.{p}": theirs.get_parameter(f"{n}_global.{p}").detach().clone()
            for n in names
            for p in ("weight", "bias")
        }
    )
    hidden = torch.randn(2, length, 48)
    real, marked = torch.ones(2, length, dtype=torch.bool), torch.zeros(2, length, dtype=torch.bool)
    real[1, 2 * length // 3 :] = False
    marked[0, torch.randperm(length)[:count]] = True
    marked[1, : count // 2] = True
    results = []
    for run in (_their_attention, _our_attention):
        leaf = hidden.clone().requires_grad_()
        out = run(theirs, ours, leaf, real, marked)
        (out * real[..., None]).sin().sum().backward()
        results.append((out[real], leaf.grad))
    torch.testing.assert_close(*results, atol=TOLERANCE, rtol=0)
    for name in names:
        a, b = theirs.get_parameter(f"{name}_global.weight").grad, ours.get_parameter(f"separate.{name}.weight").grad
        assert (a - b).abs().max() <= TOLERANCE
        assert b.abs().max() > 0


def _their_attention(theirs: Any, ours: Any, hidden: Tensor, real: Tensor, marked: Tensor) -> Tensor:
    mask = torch.zeros(real.shape).masked_fill(~real, -1e4).masked_fill(marked & real, 1e4)
    return theirs(hidden, mask, ~real, marked & real, True)[0]


def _our_attention(theirs: Any, ours: Any, hidden: Tensor, real: Tensor, marked: Tensor) -> Tensor:
    q, k, v = (
        getattr(theirs, name)(hidden).unflatten(-1, (4, 12)).transpose(1, 2) for name in ("query", "key", "value")
    )
    return (
        attend(q, k, v, ours, padding_mask=real, global_mask=marked, hidden_states=hidden).transpose(1, 2).flatten(2)
    )


@pytest.fixture(scope="module")
def texts() -> Tensor:
    """Real text as ``(8, LENGTH)`` ids."""
    tokenizer = tokenizer_of("bert")
    assert [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id] == [CLS, SEP, MASK]
    ids = tokenizer(REAL_TEXT, verbose=False, add_special_tokens=False)["input_ids"]
    return torch.tensor(ids[: 8 * LENGTH]).view(8, LENGTH)


@pytest.fixture(scope="module")
def pretrained(texts: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Longformer with another window in each layer, trained on masked words for a few steps, and its
    tokenizer."""
    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        vocab_size=1000,
        hidden_size=64,
        num_hidden_layers=len(WINDOWS),
        num_attention_heads=4,
        intermediate_size=128,
        attention_window=WINDOWS,
        max_position_embeddings=LENGTH + 2,
        pad_token_id=1,
        sep_token_id=SEP,
        bos_token_id=CLS,
        initializer_range=0.1,
    )
    model = transformers.LongformerForMaskedLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(STEPS):
        ids = texts[step % 8 : step % 8 + 1, :192]
        hidden = torch.rand(ids.shape) < 0.15
        marks = torch.zeros_like(ids)
        marks[:, :2] = 1
        loss = model(
            ids.masked_fill(hidden, MASK), global_attention_mask=marks, labels=ids.masked_fill(~hidden, -100)
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("longformer")
    model.save_pretrained(folder)
    tokenizer_of("bert", LENGTH).save_pretrained(folder)
    return folder


def source_of(head: str, pretrained: Path, folder: Path) -> Any:
    """The pretrained weights under this head, saved with its tokenizer."""
    torch.manual_seed(1)
    model = (
        getattr(transformers, f"Longformer{head}")
        .from_pretrained(pretrained, num_labels=3 if "Classification" in head else 2)
        .eval()
    )
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(pretrained).save_pretrained(folder)
    return model


def calls(head: str, texts: Tensor) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Arguments, and which tokens are real: as a user calls the head, and with a global mask of the user's own."""
    ids = texts[:2].clone()
    real = torch.ones_like(ids, dtype=torch.bool)
    real[1, 201:] = False
    ids[:, 0] = CLS
    for row, last in enumerate((LENGTH - 1, 200)):
        ids[row, [20, 21, last]] = SEP
    ids[~real] = 1
    marks = torch.zeros_like(ids)
    marks[0, [0, 3, 150, 319]] = marks[1, [0, 7]] = 1
    inputs = {"input_ids": ids, "attention_mask": real.long()}
    yield inputs, real
    yield {**inputs, "global_attention_mask": marks}, real


def labels(head: str, texts: Tensor, real: Tensor) -> dict[str, Tensor]:
    return {
        "Model": {},
        "ForMaskedLM": {"labels": texts[:2].masked_fill(~real, -100)},
        "ForSequenceClassification": {"labels": torch.tensor([2, 0])},
        "ForQuestionAnswering": {"start_positions": torch.tensor([30, 40]), "end_positions": torch.tensor([35, 90])},
        "ForTokenClassification": {"labels": (texts[:2] % 3).masked_fill(~real, -100)},
    }[head]


def their_name(name: str) -> str:
    """The source's name of one of our parameters."""
    for kind in ("query", "key", "value"):
        name = name.replace(f"long_attention.separate.{kind}.", f"{kind}_global.")
    return name.replace("roberta.", "longformer.", 1)


@pytest.mark.thorough
@pytest.mark.parametrize("head", quickly(HEADS, ("ForMaskedLM", "ForSequenceClassification", "ForQuestionAnswering")))
def test_an_adopted_longformer_equals_transformers_with_its_gradients(
    head: str, pretrained: Path, texts: Tensor, tmp_path: Path
) -> None:
    """Saved by transformers, converted, loaded by an Auto class: the same call gives the same outputs and the same
    step."""
    theirs = source_of(head, pretrained, tmp_path / "source")
    report = convert_checkpoint(tmp_path / "source", tmp_path / "ours")
    assert report.verified
    assert not report.needs_training
    ours = getattr(transformers, f"AutoModel{head.removeprefix('Model')}").from_pretrained(tmp_path / "ours")
    assert type(ours).__name__ == f"LongRoberta{head}"
    for inputs, real in calls(head, texts):
        outputs = []
        for model in (theirs, ours):
            model.zero_grad()
            found = model(**inputs, **labels(head, texts, real), output_hidden_states=True)
            loss = found.loss if "loss" in found else (found.last_hidden_state * real[..., None]).sin().mean()
            loss.backward()
            outputs.append(dict(_tensors(found)))
        assert outputs[0].keys() == outputs[1].keys()
        for name, wanted in outputs[0].items():
            at = real if wanted.shape[:2] == real.shape else ...
            assert (wanted[at] - outputs[1][name][at]).abs().max() <= TOLERANCE, name
        _assert_same_gradients(theirs, ours)


def _tensors(found: Any) -> Iterator[tuple[str, Tensor]]:
    for name, value in found.items():
        if isinstance(value, Tensor):
            yield name, value.detach()
        elif name == "hidden_states":
            yield from ((f"{name}[{layer}]", state.detach()) for layer, state in enumerate(value))


def _assert_same_gradients(theirs: nn.Module, ours: nn.Module) -> None:
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        wanted = expected[their_name(name)].grad
        if wanted is None and parameter.grad is None:
            continue
        zeros = torch.zeros_like(parameter)
        difference = (zeros if parameter.grad is None else parameter.grad) - (zeros if wanted is None else wanted)
        assert difference.abs().max() <= TOLERANCE, name


LED_LENGTH, DECODED = 512, 48
SIZES: dict[str, Any] = {
    **summaries.SIZES,
    "max_encoder_position_embeddings": LED_LENGTH,
    "max_decoder_position_embeddings": 64,
    "attention_window": [32, 64, 32],
}
GRADIENT_OF = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """transformers' LED, trained for a few steps and saved by transformers, and what it was converted to."""
    folder = tmp_path_factory.mktemp("led")
    torch.manual_seed(0)
    model = transformers.LEDForConditionalGeneration(transformers.LEDConfig(**SIZES))
    return adopted(model, folder, LED_LENGTH, DECODED, LED_LENGTH // 4)


def inputs_of(model: Any, *, marked: bool) -> dict[str, Tensor]:
    inputs = real_texts(LED_LENGTH - 51, DECODED, model.config.pad_token_id)
    if marked:
        inputs["global_attention_mask"] = torch.zeros_like(inputs["input_ids"])
        inputs["global_attention_mask"][:, [0, 1, 200]] = 1
    return inputs


@pytest.mark.parametrize("marked", [False, True], ids=["no global tokens", "global tokens"])
def test_led_states_logits_and_gradients_equal_transformers(both: tuple[Any, Any], marked: bool) -> None:
    assert_same_summaries(both, inputs_of(both[0], marked=marked), gradient_of_led)


def gradient_of_led(name: str, gradient: Tensor | None) -> tuple[str, Tensor | None]:
    """The name of a parameter in LED, and its gradient there."""
    source = name.replace("model.", "led.", 1) if name.startswith("model.") else name
    if ".encoder.layers." in name and ".self_attn." in name:
        source = source.replace("self_attn.out_proj", "self_attn.output")
        source = source.replace(".long_attention.separate.", ".longformer_self_attn.")
        if "separate" in name:
            source = source.replace(".weight", "_global.weight").replace(".bias", "_global.bias")
        for ours_name, theirs_name in GRADIENT_OF.items():
            source = source.replace(f"self_attn.{ours_name}", f"self_attn.longformer_self_attn.{theirs_name}")
    if gradient is not None and "embed_positions" in name:
        gradient = gradient[2:]
    return source, gradient


@pytest.mark.thorough
@every_case("beams", [1, 3])
@every_case("marked", [False, True], ids=["no global tokens", "global tokens"])
def test_led_generates_the_text_of_transformers(both: tuple[Any, Any], beams: int, marked: bool) -> None:
    assert_same_texts(both, inputs_of(both[0], marked=marked), beams)


def test_an_adopted_led_has_the_windows_and_lengths_of_its_source(both: tuple[Any, Any], tmp_path: Path) -> None:
    config = both[1].config
    assert (config.max_position_embeddings, config.max_decoder_position_embeddings) == (LED_LENGTH, 64)
    assert config.long_attention.to_dict() == {
        "mechanism": "longformer",
        "window": 32,
        "global_tokens": [],
        "separate_global": True,
        "layers": {"1": {"window": 64}},
    }
    assert config.forced_eos_token_id is None  # BART's default is 2, LED has none
    config.save_pretrained(tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).forced_eos_token_id is None
