"""The example that generates from an exported decoder, in a process without torch: the tokens of `model.generate`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "generate_onnx.py"
WITHOUT_TORCH = (
    "import runpy, sys; sys.modules.update(torch=None, transformers=None, hf_longattn=None); sys.argv = sys.argv[1:];"
    " runpy.run_path(sys.argv[0], run_name='__main__')"
)
PROMPT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on."
"""67 tokens, past the window."""


def run(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(PROGRAM), *arguments, "--threads", "1"]
    return subprocess.run(command, input=given, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_tokens_are_those_of_generate_whatever_the_pieces_of_the_prompt(decoder_graph: tuple[Path, Path]) -> None:
    source, out = decoder_graph
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


@pytest.mark.thorough
def test_text_is_streamed_from_standard_input(decoder_graph: tuple[Path, Path]) -> None:
    source, out = decoder_graph
    model, tokenizer = AutoModelForCausalLM.from_pretrained(source).eval(), PreTrainedTokenizerFast.from_pretrained(source)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    wanted = tokenizer.decode(model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :], skip_special_tokens=True)
    done = run(str(out), "-", "--max-new-tokens", "24", given=PROMPT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n").rstrip("\ufffd") == wanted.rstrip("\ufffd")


def test_what_it_cannot_do_is_one_sentence(decoder_graph: tuple[Path, Path], tmp_path: Path) -> None:
    _, out = decoder_graph
    assert "the model takes 256" in run(str(out), PROMPT, "--max-new-tokens", "250").stderr
    assert "has no tokens" in run(str(out), "").stderr
    (tmp_path / "export_report.json").write_text('{"max_length": 256, "decoding": null}')
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert "--task text-generation-with-past" in run(str(folder), PROMPT).stderr
