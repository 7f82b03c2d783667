"""`--positions rope:self-extend`: written, loaded, generated with, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_longattn import LongLlamaForCausalLM
from hf_longattn.conversion import convert_checkpoint
from hf_longattn.errors import LongAttentionError
from hf_longattn.export import export_checkpoint
from hf_longattn.inspect import inspect_checkpoint
from tests.cases import every_case
from tests.reference.small_models import tokens

OLD, NEW = 64, 256
WRITTEN = {
    "rope:self-extend": ("self_extend:window=16,group=6", 16),
    "rope:self-extend:window=8": ("self_extend:window=8,group=5", 8),
    "rope:self-extend:window=8,group=20": ("self_extend:window=8,group=20", 8),
}
"""`--positions` -> the option of the layers, and the longest text that is read as by the source."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=OLD, initializer_range=0.2, bos_token_id=3, eos_token_id=3, pad_token_id=3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("rotary") / "source"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def converted(source: Path, target: Path, positions: str, **settings: Any) -> Any:
    return convert_checkpoint(source, target, **{"mechanism": "full", "max_length": NEW, "positions": positions, **settings})


@pytest.mark.thorough
@every_case("positions", WRITTEN)
def test_self_extend_reads_short_texts_as_its_source_and_generates_as_it_reads(source: Path, tmp_path: Path, positions: str) -> None:
    relative, unchanged = WRITTEN[positions]
    target = tmp_path / positions.replace(":", "-")
    report = converted(source, target, positions)
    assert report.verified
    model, plain = LongLlamaForCausalLM.from_pretrained(target).eval(), LlamaForCausalLM.from_pretrained(source).eval()
    assert model.config.rope_parameters == plain.config.rope_parameters
    assert model.config.max_position_embeddings == NEW
    assert [layer["relative"] for layer in inspect_checkpoint(target).to_dict()["layers"]] == [relative] * 2
    ids = tokens(2, 100)
    with torch.no_grad():
        found, expected = model(ids).logits, plain(ids).logits
        torch.testing.assert_close(found[:, :unchanged], expected[:, :unchanged], atol=1e-4, rtol=0)
        assert not torch.allclose(found[:, -10:], expected[:, -10:], atol=1e-2)
        text = ids[:, :60]
        for _ in range(20):
            text = torch.cat([text, model(text, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    arguments: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None, "disable_compile": True}
    for cache in ("dynamic", "static"):
        assert torch.equal(model.generate(ids[:, :60], cache_implementation=cache, **arguments), text)


@pytest.mark.thorough
@every_case("positions", ["rope:self-extend"])
def test_compiled_and_exported_self_extend_equal_the_model(source: Path, tmp_path: Path, positions: str) -> None:
    """A compiled model, and an ONNX graph, whose export compares it at three lengths."""
    target = tmp_path / positions.replace(":", "-")
    converted(source, target, positions, verify=False)
    assert {check.status for check in export_checkpoint(target, tmp_path / f"{target.name}-graph").checks} == {"passed"}
    torch.compiler.reset()
    model = LongLlamaForCausalLM.from_pretrained(target).eval()
    compiled = torch.compile(model, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for length in (OLD // 2, NEW):
            ids = tokens(2, length)
            torch.testing.assert_close(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits, atol=1e-5, rtol=0)


def test_self_extend_keeps_the_scaling_of_its_source(source: Path, tmp_path: Path) -> None:
    scaled = LlamaForCausalLM.from_pretrained(source)
    scaled.config.rope_parameters = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}
    scaled.save_pretrained(tmp_path / "scaled")
    assert converted(tmp_path / "scaled", tmp_path / "longer", "rope:self-extend").verified
    assert LongLlamaForCausalLM.from_pretrained(tmp_path / "longer").config.rope_parameters["rope_type"] == "linear"


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a window of all distances": ("rope:self-extend:window=64", {}, r"all that the source was trained for \(64 tokens\); type a window of"),
    "a group of none": ("rope:self-extend:group=0", {}, "Setting 'group' of relative positions 'self_extend' is 0, but must be at least 1"),
    "too small a group": ("rope:self-extend:group=2", {}, r"distances of up to 135 at 256 tokens, .* type group=6 or more"),
    "no setting": ("rope:self-extend:groups=2", {}, "have no setting 'groups'; settings are: window, group. Did you mean 'group'"),
    "no number": ("rope:self-extend:window=many", {}, "'many', but must be a whole number"),
    "no full layer": ("rope:self-extend", {"mechanism": "window", "window": 32}, "in full attention, but no layer has that"),
    "a far layer": ("rope:self-extend", {"layers": {0: {"mechanism": "bigbird"}}}, "but mechanism 'bigbird' sees beyond the 64 tokens"),
    "another term": ("rope:self-extend", {"relative": "alibi"}, "contradicts relative='alibi'; leave out one of them"),
    "another mechanism": (
        "rope:none",
        {"mechanism": "window", "relative": "self_extend"},
        "are for mechanism 'full', but 'window' was given",
    ),
}


@every_case("case", REFUSED)
def test_self_extend_refuses_settings_that_cannot_be(source: Path, tmp_path: Path, case: str) -> None:
    positions, settings, message = REFUSED[case]
    with pytest.raises(LongAttentionError, match=message):
        converted(source, tmp_path / "refused", positions, **settings)


def test_self_extend_leaves_layers_with_near_windows_alone(source: Path, tmp_path: Path) -> None:
    settings = {"layers": {0: {"mechanism": "window", "window": 32}}}
    converted(source, tmp_path / "mixed", "rope:self-extend", verify=False, **settings)
    attention = LongLlamaForCausalLM.from_pretrained(tmp_path / "mixed").config.long_attention
    assert [attention.for_layer(layer)[1].get("relative") for layer in range(2)] == [None, "self_extend:window=16,group=6"]
