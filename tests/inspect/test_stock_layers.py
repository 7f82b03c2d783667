"""What a stock model's layers declare is read from its code, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from hf_longattn.errors import CheckpointError
from hf_longattn.inspect import StockInspection, inspect_stock
from hf_longattn.inspect.stock_layers import DeclaredAttention
from hf_longattn.modeling.backend import BACKEND, longattn_attention_forward
from tests.cases import every_case
from tests.cli.test_commands import run
from tests.saved import change_json

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 99,
    "intermediate_size": 32,
    "pad_token_id": 0,
}
EVERY_OTHER = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 8}
CASES: dict[str, tuple[dict[str, Any], str, dict[str, list[int]]]] = {
    "bert": ({}, "sdpa", {"all tokens": [0, 1, 2, 3]}),
    "modernbert": (
        {"local_attention": 16, "global_attn_every_n_layers": 2},
        "sdpa",
        {"all tokens": [0, 2], "a window of 8 tokens on either side": [1, 3]},
    ),
    "gemma3_text": (
        EVERY_OTHER,
        "sdpa",
        {"a window of 8 tokens, itself the last": [0, 2], "all earlier tokens": [1, 3]},
    ),
    "gemma2": (
        EVERY_OTHER,
        "sdpa" if Gemma2PreTrainedModel._supports_sdpa else "eager",  # in transformers 5.20, though it caps no score
        {
            "a window of 8 tokens, itself the last, scores capped at 50": [0, 2],
            "all earlier tokens, scores capped at 50": [1, 3],
        },
    ),
    "gpt_oss": (
        {**EVERY_OTHER, "num_local_experts": 4},
        "eager",
        {"a window of 8 tokens, itself the last, sinks": [0, 2], "all earlier tokens, sinks": [1, 3]},
    ),
    "openai_privacy_filter": (  # whose experts look up which tokens chose them
        {"sliding_window": 8, "num_local_experts": 4},
        "eager",
        {"a window of 8 tokens on either side, sinks": [0, 1, 2, 3]},
    ),
    "llama4_text": (
        {
            "attention_chunk_size": 8,
            "no_rope_layers": [1, 0, 1, 0],
            "num_local_experts": 2,
            "intermediate_size_mlp": 32,
        },
        "sdpa",
        {"earlier tokens of the same chunk of 8": [0, 2], "all earlier tokens": [1, 3]},
    ),
    "vit": ({"image_size": 32, "patch_size": 8}, "sdpa", {"all tokens": [0, 1, 2, 3]}),
    "t5": (
        {"d_model": 32, "num_decoder_layers": 1, "d_kv": 8, "num_heads": 4},
        "sdpa",
        {
            "all tokens, a position bias": [0, 1, 2, 3],
            "all earlier tokens, a position bias": [0],
            "all keys of another sequence, a position bias": [0],
        },
    ),
}


def inspected(folder: Path, model_type: str, changes: dict[str, Any] | None = None) -> StockInspection:
    """The inspection of a small model of which only the config is saved."""
    config: PreTrainedConfig = AutoConfig.for_model(model_type, **{**SMALL, **(changes or {})})
    config.save_pretrained(folder)
    return inspect_stock(folder)


@every_case("model_type", CASES)
def test_layers_are_grouped_by_what_they_declare(model_type: str, tmp_path: Path) -> None:
    changes, implementation, groups = CASES[model_type]
    stack = inspected(tmp_path, model_type, changes)
    assert (stack.why_not, stack.implementation) == ("", implementation)
    assert {str(layer): numbers for (_, layer), numbers in stack.groups().items()} == groups
    assert (stack.verdict() == "runs as sdpa does") == (model_type in ("bert", "vit"))
    assert ALL_ATTENTION_FUNCTIONS[BACKEND] is longattn_attention_forward


def test_towers_are_inspected_one_by_one(tmp_path: Path) -> None:
    towers = inspected(tmp_path, "gemma3").towers
    assert towers.keys() == {"text", "vision"}
    assert {layer.left for _, layer in towers["text"].layers} == {4095, None}
    assert {str(layer) for _, layer in towers["vision"].layers} == {"all tokens"}
    assert [length for length, *_ in towers["vision"].memory([16])] == [196]  # its own patches, not the text's length


@pytest.mark.parametrize("model_type", ["bloom", "mamba"])
def test_the_backend_has_no_effect_on_a_model_without_the_interface(model_type: str, tmp_path: Path) -> None:
    stack = inspected(tmp_path, model_type)
    assert stack.why_not.startswith(f"no effect: {stack.class_name} has no attention on")
    assert stack.memory([16]) == []
    assert ALL_ATTENTION_FUNCTIONS[BACKEND] is longattn_attention_forward


def test_a_tower_with_other_inputs_is_named_as_not_read(tmp_path: Path) -> None:
    towers = inspected(tmp_path, "qwen2_vl", {"hidden_size": 512}).towers
    assert towers["vision"].why_not.startswith(
        "not read, since Qwen2VisionTransformerPretrainedModel needs other inputs"
    )
    assert not towers["text"].why_not


def test_memory_of_a_window_is_quadratic_in_transformers_and_constant_here() -> None:
    window = DeclaredAttention(heads=4, queries=40, keys=40, left=127, right=0)
    assert [window.stock_bytes(length, "sdpa") for length in (64, 1024, 2048)] == [0, 5 * 2**20, 5 * 2**22]
    assert window.stock_bytes(1024, "eager") == 4 * 2**20 * (2 * 4 + 1)
    assert window.longattn_bytes(64) == 0
    assert 0 < window.longattn_bytes(8192) == window.longattn_bytes(32768) < 2**20


def test_the_estimate_for_sdpa_is_what_its_mask_takes() -> None:
    length = 256
    mask = torch.ones(length, length, dtype=torch.bool).tril().triu(-63)
    taken = mask.nbytes + torch.zeros(length, length).masked_fill(~mask, float("-inf")).nbytes
    assert DeclaredAttention(4, 40, 40, left=63, right=0).stock_bytes(length, "sdpa") == taken


@pytest.mark.parametrize(
    "changes", [{"auto_map": {"AutoModel": "evil.Evil"}}, {"quantization_config": {"quant_method": "mxfp4"}}]
)
def test_code_of_a_checkpoint_and_its_quantisation_are_left_alone(changes: dict[str, Any], tmp_path: Path) -> None:
    inspected(tmp_path, "bert")
    change_json(tmp_path, **changes, architectures=["BertForMaskedLM"])
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    found = inspect_stock(tmp_path)
    assert found.class_name == "BertForMaskedLM"
    assert found.parameters == transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)).num_parameters()


def test_an_unknown_type_and_a_config_of_too_many_layers_are_refused(tmp_path: Path) -> None:
    for changes, sentence in (
        ({"model_type": "unheard_of"}, "has no class for it"),
        ({"num_hidden_layers": 10**7}, "at most"),
    ):
        inspected(tmp_path, "bert")
        change_json(tmp_path, **changes)
        with pytest.raises(CheckpointError, match=sentence):
            inspect_stock(tmp_path)


def test_the_command_shows_windows_and_memory_of_a_stock_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    inspected(tmp_path, "gpt_oss", CASES["gpt_oss"][0])
    code, shown, error = run(capsys, "inspect", tmp_path, "--lengths", "1K,2K")
    assert (code, error) == (0, "")
    assert all(len(line) <= 80 for line in shown.splitlines())
    for words in ("eager, since GptOssModel does not support SDPA", "0,2", "a window of 8 tokens", "1,024", "2,048"):
        assert words in shown
    code, shown, _ = run(capsys, "inspect", tmp_path, "--json")
    values = json.loads(shown)
    assert code == 0
    assert [row["length"] for row in values["memory"]] == [2048, 8192, 32768]
    assert [layer["left"] for layer in values["layers"]] == [7, None, 7, None]
