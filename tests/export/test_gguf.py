"""GGUF files of native twins: read back by transformers with equal outputs, and refused where llama.cpp would compute another attention."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_longattn import convert_checkpoint, export_gguf
from hf_longattn.errors import CheckpointError, ExportError, MissingExtraError
from hf_longattn.export.gguf import gguf_refusal
from scripts.dev.tools.native_cases import save_long
from tests.cells import every_cell

gguf = pytest.importorskip("gguf", reason="the extra hf-longattn[gguf] is not installed")

FULL, WINDOW = {"mechanism": "full"}, {"mechanism": "window", "window": 8}
HEADS = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
GEMMA2 = {**HEADS, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
GEMMA3 = {**HEADS, "num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 128}),  # transformers' reader takes no other width from the file
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", GEMMA2),
    "gemma3": ("gemma3_text", GEMMA3),
    "smollm3": ("smollm3", {}),
    "phi3": ("phi3", {"vocab_size": 32064}),  # its reader takes no padding token from the file, and Phi-3's is 32000
}
NOT_READ = ("gemma", "smollm3")
"""Architectures of llama.cpp that transformers does not read."""


@every_cell("case", WRITTEN)
def test_a_file_holds_the_twin(case: str, tmp_path: Path) -> None:
    base, changes = WRITTEN[case]
    save_long(tmp_path / "long", base, FULL, **changes)
    report = export_gguf(tmp_path / "long", tmp_path / "out")
    assert {check.status for check in report.checks} == {"passed"}
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    known = fields["general.architecture"].contents()
    width = AutoConfig.from_pretrained(tmp_path / "long").to_dict().get("head_dim") or 8
    assert {part: fields[f"{known}.attention.{part}_length"].contents() for part in ("key", "value")} == {"key": width, "value": width}
    windows = [name for name in fields if name.endswith("attention.sliding_window")]
    assert [fields[name].contents() for name in windows] == ([8] if "layer_types" in changes else [])
    if known in NOT_READ:
        return
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf").eval()
    long = AutoModelForCausalLM.from_pretrained(tmp_path / "long").eval()
    ids = torch.randint(5, 90, (1, 40), generator=torch.Generator().manual_seed(0))
    if "layer_types" not in changes:  # transformers' reader makes up layer types and scales for Gemma
        with torch.no_grad():
            torch.testing.assert_close(read(ids).logits, long(ids).logits, atol=1e-4, rtol=1e-4)


def llama(file: Path) -> Any:
    """A file in llama.cpp, with keys and values in float32 as in the model."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed; CONTRIBUTING.md says how to run this")
    return llama_cpp.Llama(str(file), n_ctx=64, n_threads=1, type_k=0, type_v=0, logits_all=True, verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize("case", WRITTEN)
def test_llama_cpp_generates_the_same_beyond_the_window(case: str, tmp_path: Path) -> None:
    base, changes = WRITTEN[case]
    save_long(tmp_path / "long", base, FULL, **changes)
    export_gguf(tmp_path / "long", tmp_path / "out")
    long = AutoModelForCausalLM.from_pretrained(tmp_path / "long").eval()
    ids = torch.randint(5, 90, (1, 40), generator=torch.Generator().manual_seed(0))
    with contextlib.closing(llama(tmp_path / "out" / "model.gguf")) as reader:
        reader.eval(ids[0].tolist())
        for length in range(40, 56):  # windows are of 8 tokens
            with torch.no_grad():
                expected = long(ids).logits[0, -1]
            scores = torch.from_numpy(reader.scores[length - 1].copy())
            torch.testing.assert_close(scores, expected, atol=0.01, rtol=0)  # llama.cpp reads GELU from a table
            token = int(scores.argmax())
            assert token == int(expected.argmax())
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
            reader.eval([token])


@pytest.mark.slow
def test_llama_cpp_reads_the_tokenizer(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("LlamaForCausalLM", tokenizer="gpt2")
    convert_checkpoint(source, tmp_path / "long", mechanism="full", verify=False)
    export_gguf(tmp_path / "long", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(source)
    with contextlib.closing(llama(tmp_path / "out" / "model.gguf")) as reader:
        for text in ("A long document, with words", "numbers 1234 and\n\nlines"):
            assert reader.tokenize(text.encode(), add_bos=False) == tokenizer(text)["input_ids"]


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "llama": ("llama", WINDOW, {}, "Layer 0 has a window of 8 tokens, and llama.cpp computes none in the architecture 'llama'"),
    "some layers": ("qwen2", {"layers": "0=full;1=window:window=8"}, {}, "Layer 1 has a window of 8 tokens.*'qwen2'"),
    "phi3": ("phi3", WINDOW, {}, "computes none in the architecture 'phi3'"),
    "another pattern": ("gemma3_text", {"mechanism": "window", "window": 8}, {**GEMMA3, "num_hidden_layers": 6}, "Layer 5 has a window"),
    "scale": ("gemma2", FULL, {**GEMMA2, "query_pre_attn_scalar": 20}, "scaled by 20, and llama.cpp scales those of 4 layers by 8"),
    "architecture": ("gpt2", FULL, {}, "the native twin is a 'gpt2'"),
    "rope": (
        "llama", FULL,
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 32}},
        "high_freq_factor=4.0, which this GGUF writer does not know",
    ),
    "yarn": (
        "gemma3_text", FULL,
        {**GEMMA3, "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 8.0, "original_max_position_embeddings": 32}}},
        "rope_type='yarn', which .* expected default or linear .convert with --positions rope:linear",
    ),
    "no twin": ("llama", {"mechanism": "strided"}, {}, "has no native twin: Layer 0 has 'strided'"),
}  # fmt: skip


@every_cell("case", REFUSED)
def test_what_llama_cpp_would_compute_differently_is_refused(case: str, tmp_path: Path) -> None:
    base, attention, changes, says = REFUSED[case]
    save_long(tmp_path / "long", base, attention, **changes)
    with pytest.raises(ExportError, match=says):
        export_gguf(tmp_path / "long", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("model_type", "layers"), [("gemma2", 46), ("gemma3_text", 62)])
def test_the_scale_of_the_largest_gemma_is_the_width_over_the_heads(model_type: str, layers: int) -> None:
    """llama.cpp tells that size by its number of layers."""
    sizes = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    for count, scale, refused in ((layers, 24, False), (layers, 8, True), (layers - 1, 24, True), (layers - 1, 8, False)):
        config = CONFIG_MAPPING[model_type](
            **sizes, num_hidden_layers=count, query_pre_attn_scalar=scale, architectures=["Gemma2ForCausalLM"]
        )
        assert ("Scores are scaled by" in (gguf_refusal(config) or "")) == refused, (count, scale)


def test_the_tokenizer_is_in_the_file(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("LlamaForCausalLM", tokenizer="gpt2")
    convert_checkpoint(source, tmp_path / "long", mechanism="full", dtype="bf16", verify=False)
    report = export_gguf(tmp_path / "long", tmp_path / "out")
    assert {check.name: check.status for check in report.checks} == {"tensors": "passed", "tokenizer": "passed"}
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    own, read = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    for text in ("A long document, with words", "numbers 1234 and\n\nlines"):
        assert own(text)["input_ids"] == read(text)["input_ids"]
    back = convert_checkpoint(tmp_path / "out" / "model.gguf", tmp_path / "back", mechanism="full")
    assert back.passed
    model, long = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / one, dtype="float32") for one in ("back", "long"))
    ids = own("a long document " * 5, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, long(ids).logits, atol=1e-4, rtol=1e-4)


def test_scaled_rotary_positions_are_not_lost_when_the_file_is_converted(tmp_path: Path) -> None:
    save_long(
        tmp_path / "long", "llama", FULL,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16},
    )  # fmt: skip
    export_gguf(tmp_path / "long", tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"scales its rotary positions \(yarn, 4 times\), which transformers does not read"):
        convert_checkpoint(tmp_path / "out" / "model.gguf", tmp_path / "back", mechanism="full")


def test_without_gguf_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hf-longattn\[gguf\]'"):
        export_gguf(tmp_path, tmp_path / "out")
