"""What a checkpoint cuts, pads and keeps of real texts is said before anything is computed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoTokenizer

import hf_longattn
from hf_longattn import convert_checkpoint
from hf_longattn.conversion.source import open_source
from hf_longattn.files import write_json
from hf_longattn.inspect import inspect_checkpoint, inspect_stock
from hf_longattn.inspect.real_texts import TextsInspection, inspect_texts
from hf_longattn.inspect.stock_layers import DeclaredAttention
from hf_longattn.memory.decode_cache import CACHE
from scripts.dev.benchmarks.memory import cache_bytes
from tests.cases import every_case
from tests.cli.test_commands import run
from tests.inspect.conftest import LENGTH

SHORT = "A short text about windows."


@pytest.fixture
def short(tmp_path: Path) -> Path:
    file = tmp_path / "short.txt"
    file.write_text(SHORT, encoding="utf-8")
    return file


def inspected(folder: Path, *files: Path) -> TextsInspection:
    return inspect_texts(open_source(folder, weights=False), files, inspect_stock(folder))


def sentence_folder(folder: Path, target: Path, length: int) -> Path:
    """The model under the modules of sentence-transformers, which cut at ``length``."""
    shutil.copytree(folder, target)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    write_json(target / "modules.json", modules)
    write_json(target / "sentence_bert_config.json", {"max_seq_length": length})
    return target


def test_lost_tokens_are_those_that_the_tokenizer_and_sentence_transformers_cut(
    checkpoint: Callable[[str], Path], text: Path, short: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "limited"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("bert"), model_max_length=128)
    transformers.BertForMaskedLM.from_pretrained(checkpoint("bert")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    texts = inspected(sentence_folder(folder, tmp_path / "modules", 64), text, short)
    whole, brief = (len(tokenizer(file.read_text())["input_ids"]) for file in (text, short))
    assert texts.tokens == (whole, brief)
    assert [(limit.tokens, limit.cuts) for limit in texts.limits] == [(64, True), (128, True), (LENGTH, False)]
    kept = len(tokenizer(text.read_text(), truncation=True)["input_ids"])
    assert texts.lost(texts.limits[1]) == whole - kept
    assert "a longer input fails" in texts.limits[2].effect
    assert (texts.padded, sum(texts.read)) == (2 * 64, 64 + brief)
    assert "hf_longattn.unpad(model)" in [line for _, line in texts.advice]


@every_case("length", [8, 40])
def test_caches_of_a_decoder_have_the_bytes_that_are_promised(length: int) -> None:
    config = transformers.Gemma3TextConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=32, sliding_window=16, layer_types=["sliding_attention", "full_attention"] * 2,
    )  # fmt: skip
    model = transformers.Gemma3ForCausalLM(config).eval()
    model.set_attn_implementation("longattn")
    layers = [DeclaredAttention(4, 40, 40, left=left, right=0, cached=2 * 2 * 8) for left in (15, None, 15, None)]
    stock = hf_longattn.inspect.StockInspection("", "", 0, "sdpa", False, layers=[("", layer) for layer in layers])
    ids = torch.arange(length)[None]
    for cache, most in ((None, None), (hf_longattn.StreamingCache(window=20, sinks=4), 24)):
        with torch.no_grad():
            output = model(ids[:, :-1], use_cache=True, **{CACHE: cache})
            held = cache_bytes(model(ids[:, -1:], **{CACHE: output[CACHE]})[CACHE])
        estimate = stock.cache_bytes(length, most)
        token = 2 * 2 * 8 * 4
        # transformers keeps one token less than a window, and ours at most 64 more
        assert estimate - 2 * token <= held <= estimate + 2 * 64 * token


def test_what_runs_and_what_to_type_fit_on_one_screen(
    checkpoint: Callable[[str], Path],
    text: Path,
    short: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, error = run(capsys, "inspect", checkpoint("bert"), "--text", text, "--text", short)
    assert (code, error) == (0, "")
    assert len(out.splitlines()) <= 40
    for words in ("padding", "a longer input fails", "full attention, fused", "read_whole(pipeline", "unpad(model)"):
        assert words in out
    code, out, _ = run(capsys, "inspect", checkpoint("bert"), "--text", text, "--json")
    values = json.loads(out)["texts"]
    assert values["real_tokens"] == values["padded_tokens"] == values["tokens"][0]
    assert values["limits"][-1]["lost_tokens"] == values["tokens"][0] - LENGTH


def test_a_decoder_is_told_its_cache_and_a_long_model_its_cost(
    checkpoint: Callable[[str], Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = inspected(checkpoint("llama"), text)
    assert decoder.cache_bytes == decoder.tokens[0] * 3 * 2 * 2 * 8 * 4
    assert decoder.streaming_bytes == 1028 * 3 * 2 * 2 * 8 * 4
    assert any("StreamingCache(1024, sinks=4)" in line for _, line in decoder.advice)
    code, out, _ = run(capsys, "inspect", checkpoint("llama"), "--text", text, "--text", text)
    assert (code, "unpad" in out) == (0, False)
    assert f"  $ longattn convert {checkpoint('llama')}" in out
    long = tmp_path / "long"
    convert_checkpoint(checkpoint("bert"), long, mechanism="longformer", max_length=4096, verify=False)
    texts = inspect_texts(open_source(long, weights=False), [text], inspect_checkpoint(long))
    assert {limit.tokens for limit in texts.limits} == {4096}
    assert not any(texts.lost(limit) for limit in texts.limits)
    code, out, _ = run(capsys, "inspect", long, "--text", text)
    assert code == 0
    assert f"{texts.longest:,}" in out
    assert "longformer" in out


@every_case(
    ("content", "words"),
    [(None, "No such file"), (b" \n", "is empty"), (b"\xff\xfe\x00\x80" * 20, "UTF-8"), ("folder", "is a folder")],
)
def test_texts_that_cannot_be_read_are_refused_in_a_sentence(
    content: bytes | str | None,
    words: str,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "text.txt"
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    code, out, error = run(capsys, "inspect", checkpoint("bert"), "--text", file)
    assert (code, out) == (1, "")
    assert words in error
    assert len(error.splitlines()) == 1


def test_a_model_without_tokenizer_and_a_second_input_are_refused(
    checkpoint: Callable[[str], Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers.BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    code, _, error = run(capsys, "inspect", tmp_path, "--text", text)
    assert (code, "has no tokenizer" in error) == (1, True)
    code, _, error = run(capsys, "inspect", checkpoint("bert"), text, "--text", text)
    assert (code, "leave one of them out" in error) == (2, True)
