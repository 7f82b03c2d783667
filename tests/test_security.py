"""What SECURITY.md promises of a hostile checkpoint: none of its code runs, whatever a command is asked to do with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM
from typer.testing import CliRunner

from hf_longattn import convert_checkpoint
from hf_longattn.cli import app
from hf_longattn.conversion import ConversionConfig
from tests.trained import tokenizer_of

EVIL = "from pathlib import Path\nPath({marker!r}).touch()\n"
COMMANDS = (
    ("plan", "{source}", "--mechanism", "window", "--max-length", "256"),
    ("convert", "{source}", "{out}", "--mechanism", "window", "--max-length", "256", "--no-verify"),
    ("convert", "{source}", "{out}", "--generic", "--mechanism", "window", "--max-length", "256"),
    ("inspect", "{source}"),
    ("card", "{source}"),
    ("audit", "{source}"),
    ("probe", "{source}"),
    ("train", "mlm", "--model", "{source}", "--text", "{source}/vocab.txt", "--output", "{out}", "--max_steps", "1"),
)


class Runs:
    """What a hostile pickle holds: unpickled, it would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    tokenizer = tokenizer_of("bert", 64)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    folder = tmp_path / "source"
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("known", [True, False], ids=["a known model_type", "one of its own"])
def test_its_python_is_never_run(known: bool, source: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for module in ("modeling_evil", "configuration_evil", "tokenization_evil"):
        (source / f"{module}.py").write_text(EVIL.format(marker=str(marker)), encoding="utf-8")
    names = {"AutoConfig": "configuration_evil.Evil", "AutoModel": "modeling_evil.Evil", "AutoModelForMaskedLM": "modeling_evil.Evil"}
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"auto_map": names} | ({} if known else {"model_type": "evil"})))
    described = json.loads((source / "tokenizer_config.json").read_text())
    code = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}
    (source / "tokenizer_config.json").write_text(json.dumps(described | code))
    for number, command in enumerate(COMMANDS):
        typed = [part.format(source=source, out=tmp_path / f"out-{number}") for part in command]
        CliRunner().invoke(app, typed, input="")
        assert not marker.exists(), typed


@pytest.mark.parametrize("allowed", [False, True])
def test_a_pickle_that_runs_code_is_refused(allowed: bool, source: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    weights = BertForMaskedLM.from_pretrained(source).state_dict()
    (source / "model.safetensors").unlink()
    torch.save({**weights, "bert.extra": Runs(marker)}, source / "pytorch_model.bin")
    settings = ConversionConfig(mechanism="window", max_length=256, allow_pickle=allowed)
    with pytest.raises(Exception, match=r"weights_only|--allow-pickle"):
        convert_checkpoint(source, tmp_path / "out", settings)
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
