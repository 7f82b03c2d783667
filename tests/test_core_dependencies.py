"""What the core dependencies are enough for: everything but training, whose packages come with an extra."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hf_longattn.errors import LongAttentionError, MissingExtraError, needs_extra

EXTRAS = (
    "accelerate", "datasets", "evaluate", "gguf", "matplotlib", "onnx", "onnxruntime", "onnxscript", "optuna", "pandas", "peft", "psutil",
    "pyarrow", "sentence_transformers", "sklearn",
)  # fmt: skip
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS!r}))\n"
"""As where none of these is installed: an import of them fails, and find_spec finds nothing."""


def python_without_extras(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", WITHOUT + textwrap.dedent(code)], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_converting_inspecting_publishing_and_the_way_back(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(repository))
    found = python_without_extras(
        """
        from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM
        import hf_longattn
        from hf_longattn.cli import main

        shape = dict(vocab_size=99, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
        BertForMaskedLM(BertConfig(**shape, max_position_embeddings=64)).save_pretrained("short")

        def run(line):
            try:
                main(line.split())
            except SystemExit as ended:
                assert not ended.code, line

        run("convert short long --max-length 128 --mechanism window --option window=8")
        run("plan short --max-length 128")
        run("inspect long")
        run("mechanisms window")
        run("card long")
        run("push --help")
        run("export long graph --format torch")
        run("revert long back")
        try:
            hf_longattn.export_checkpoint("long", "graph.onnx")
        except hf_longattn.LongAttentionError as error:
            print(error)
        assert type(AutoModelForMaskedLM.from_pretrained("long")).__name__ == "LongBertForMaskedLM"
        assert not any(sys.modules[name] for name in ("accelerate", "datasets", "evaluate"))
        print("all of them ran")
        """,
        tmp_path,
    )
    assert "pip install onnx" in found
    assert "all of them ran" in found


@pytest.mark.parametrize(
    "code",
    [
        "from hf_longattn.evaluation import load_metric; load_metric()",
        "from hf_longattn.training import DataCollatorWithGlobals",
        "from hf_longattn.training.qa import finetune_qa",
    ],
)
def test_training_says_which_extra_brings_what_is_missing(
    code: str, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(repository))
    refused = f"""
        from hf_longattn.errors import MissingExtraError
        try:
            {code}
        except MissingExtraError as error:
            print(error)
        """
    assert "type pip install '.[train]' in your clone" in python_without_extras(refused, tmp_path)


def test_a_missing_package_is_a_sentence_and_an_import_error() -> None:
    with pytest.raises(MissingExtraError, match=r"'no_such_package'.*pip install '\.\[train\]'") as refused, needs_extra("train"):
        import no_such_package  # noqa: F401
    assert isinstance(refused.value, LongAttentionError)
    assert isinstance(refused.value, ImportError)
    with pytest.raises(ModuleNotFoundError, match="hf_longattn"), needs_extra("train"):
        import hf_longattn.no_such_module  # noqa: F401
