"""The example that generates from an exported decoder, in a process without torch: the tokens of `model.generate`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hf_longattn import export_checkpoint
from tests.reference.small_models import long_model

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "generate_onnx.py"
WITHOUT_TORCH = (
    "import runpy, sys; sys.modules.update(torch=None, transformers=None, hf_longattn=None); sys.argv = sys.argv[1:];"
    " runpy.run_path(sys.argv[0], run_name='__main__')"
)
PROMPT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on."
"""67 tokens, past the window."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small long model whose tokens are bytes, and its graph."""
    source, out = tmp_path_factory.mktemp("generate") / "long", tmp_path_factory.mktemp("generate") / "graph"
    attention = {"mechanism": "window", "window": 24, "layers": {1: {"mechanism": "linear"}}}
    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    long_model(
        "llama", "LlamaForCausalLM", attention, num_hidden_layers=2, vocab_size=len(vocabulary), max_position_embeddings=256
    ).save_pretrained(source)
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256).save_pretrained(source)
    export_checkpoint(source, out, task="text-generation-with-past")
    return source, out


def run(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(PROGRAM), *arguments, "--threads", "1"]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=300, check=False)


def test_the_tokens_are_those_of_generate_whatever_the_pieces_of_the_prompt(folders: tuple[Path, Path]) -> None:
    source, out = folders
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), PreTrainedTokenizerFast.from_pretrained(source)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    wanted = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :].tolist()
    sizes = set()
    for piece in ("16", "512"):
        done = run(str(out), PROMPT, "--max-new-tokens", "40", "--ids", "--piece", piece)
        assert done.returncode == 0, done.stderr
        assert list(map(int, done.stdout.split())) == wanted
        sizes |= set(re.findall(r"state ([\d,]+) bytes", done.stderr))
    keys, linear = 2 * 2 * 23 * 16 * 4, 2 * (16 * 16 + 16) * 4
    assert sizes == {f"{keys + linear:,}"}


def test_text_is_streamed_from_standard_input(folders: tuple[Path, Path]) -> None:
    source, out = folders
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), PreTrainedTokenizerFast.from_pretrained(source)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    wanted = tokenizer.decode(model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True)
    done = run(str(out), "-", "--max-new-tokens", "24", given=PROMPT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n").rstrip("\ufffd") == wanted.rstrip("\ufffd")


def test_what_it_cannot_do_is_one_sentence(folders: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = folders
    assert "the model takes 256" in run(str(out), PROMPT, "--max-new-tokens", "250").stderr
    assert "has no tokens" in run(str(out), "").stderr
    (tmp_path / "export_report.json").write_text('{"max_length": 256, "decoding": null}')
    assert "--task text-generation-with-past" in run(str(tmp_path), PROMPT).stderr
