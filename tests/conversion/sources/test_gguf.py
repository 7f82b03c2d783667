"""A GGUF file, written by the gguf package, converts to what transformers itself reads from it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_longattn.conversion import convert_checkpoint, plan_conversion
from hf_longattn.conversion.tensor_files import read_tensor
from hf_longattn.errors import CheckpointError, MissingExtraError

from ..conftest import LENGTH

gguf = pytest.importorskip("gguf", reason="the extra hf-longattn[gguf] is not installed")

Built = Callable[[str], Path]
ARGUMENTS = {"mechanism": "window", "window": 16, "max_length": 128}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of queries and keys."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(folder: Path, file: Path, kind: str, *, extra: str | None = None) -> Path:
    """The Llama of a folder as GGUF, its matrices of the type `kind`, with a byte-level vocabulary."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    config: Any = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = [*bytes_to_unicode().values(), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens + [f"<extra_{index}>" for index in range(config.vocab_size - len(tokens))])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(300)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if "q_proj" in name:
            values = permuted(values, config.num_attention_heads)
        elif "k_proj" in name:
            values = permuted(values, config.num_key_value_heads)
        quantisation = gguf.GGMLQuantizationType[kind if values.ndim == 2 and values.shape[-1] % 32 == 0 else "F32"]
        packed = gguf.quants.quantize(values, quantisation)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), packed, raw_dtype=quantisation)
    if extra:
        writer.add_tensor(extra, np.ones(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_a_gguf_file_converts_to_what_transformers_reads(kind: str, built: Built, tmp_path: Path) -> None:
    source = write_gguf(built("LlamaForCausalLM"), tmp_path / "model.gguf", kind)
    plan = plan_conversion(source, **ARGUMENTS)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").state_dict()
    assert plan.source.tensors.keys() == read.keys()
    for name, header in plan.source.tensors.items():
        assert torch.equal(read_tensor(header).float(), read[name])
    report = convert_checkpoint(source, tmp_path / "long", **ARGUMENTS)
    assert report.passed
    assert {check.name: check.status for check in report.checks}["tokenizer"] == "passed"
    matrix = load_file(tmp_path / "long" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert matrix.dtype == (torch.float16 if kind == "F16" else torch.float32)
    if kind == "F32":
        original = load_file(built("LlamaForCausalLM") / "model.safetensors")
        assert torch.equal(matrix, original["model.layers.0.self_attn.q_proj.weight"])
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "long")
    assert model.config.max_position_embeddings == 128
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "long")
    assert tokenizer.decode(tokenizer("back again")["input_ids"], skip_special_tokens=True) == "back again"


def test_a_folder_with_one_gguf_file_is_a_source_and_can_be_cast(built: Built, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write_gguf(built("LlamaForCausalLM"), tmp_path / "folder" / "model-q8.gguf", "Q8_0")
    report = convert_checkpoint(tmp_path / "folder", tmp_path / "long", dtype="bf16", **ARGUMENTS)
    assert report.passed
    assert report.plan["old_length"] == LENGTH
    assert {value.dtype for value in load_file(tmp_path / "long" / "model.safetensors").values()} == {torch.bfloat16}
    write_gguf(built("LlamaForCausalLM"), tmp_path / "folder" / "model-f16.gguf", "F16")
    with pytest.raises(CheckpointError, match="2 GGUF files; name the one"):
        plan_conversion(tmp_path / "folder")


@pytest.mark.thorough
@pytest.mark.usefixtures("from_their_files")
def test_it_is_verified_without_loading_it_whole(built: Built, tmp_path: Path) -> None:
    source = write_gguf(built("LlamaForCausalLM"), tmp_path / "model.gguf", "Q8_0")
    report = convert_checkpoint(source, tmp_path / "long", dtype="bf16", **ARGUMENTS)
    assert {check.name: check.status for check in report.checks}["equal at the old length with full attention"] == "passed"


def test_what_cannot_be_read_is_a_sentence(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_gguf(built("LlamaForCausalLM"), tmp_path / "model.gguf", "F16")
    factors = write_gguf(built("LlamaForCausalLM"), tmp_path / "factors.gguf", "F16", extra="rope_freqs.weight")
    (tmp_path / "half.gguf").write_bytes(whole.read_bytes()[:5000])
    (tmp_path / "text.gguf").write_text("no weights")
    raw = whole.read_bytes()
    key = b"llama.block_count" + (4).to_bytes(4, "little")
    (tmp_path / "blocks.gguf").write_bytes(raw.replace(key + (2).to_bytes(4, "little"), key + b"\xff" * 4))
    key = b"general.architecture"
    (tmp_path / "list.gguf").write_bytes(raw.replace(key + (8).to_bytes(4, "little"), key + (9).to_bytes(4, "little")))
    (tmp_path / "keys.gguf").write_bytes(raw[:16] + b"\xff" * 8 + raw[24:])
    (tmp_path / "empty.gguf").write_bytes(raw[:8] + bytes(8) + raw[16:])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "part-00001-of-00002.gguf").touch()
    for file, sentence in {
        factors: "'rope_freqs.weight', which transformers does not read",
        tmp_path / "half.gguf": "not a whole GGUF file",
        tmp_path / "text.gguf": "not a whole GGUF file",
        tmp_path / "part-00001-of-00002.gguf": "join the parts first",
        tmp_path / "blocks.gguf": "block_count=4294967295, which is more than its 21 tensors allow",
        tmp_path / "list.gguf": "not a whole GGUF file",
        tmp_path / "keys.gguf": "not a whole GGUF file",
        tmp_path / "empty.gguf": "holds only metadata and no tensors",
    }.items():
        with pytest.raises(CheckpointError, match=sentence):
            convert_checkpoint(file, tmp_path / "long", **ARGUMENTS)
        assert not list((tmp_path / "temporary").glob("longattn-gguf-*"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hf-longattn\[gguf\]'"):
        plan_conversion(whole)


@pytest.mark.thorough
@pytest.mark.parametrize("length", [1, 2])
def test_a_file_that_takes_hardly_any_tokens_is_converted(length: int, built: Built, tmp_path: Path) -> None:
    source = write_gguf(built("LlamaForCausalLM"), tmp_path / "model.gguf", "F32")
    key = b"llama.context_length" + (4).to_bytes(4, "little")
    raw = source.read_bytes()
    source.write_bytes(raw.replace(key + LENGTH.to_bytes(4, "little"), key + length.to_bytes(4, "little")))
    assert convert_checkpoint(source, tmp_path / "long", **ARGUMENTS).passed


def test_the_file_is_never_written(built: Built, tmp_path: Path) -> None:
    source = write_gguf(built("LlamaForCausalLM"), tmp_path / "model.gguf", "F32")
    with pytest.raises(CheckpointError, match="overlap"):
        convert_checkpoint(source, source, overwrite=True, **ARGUMENTS)
