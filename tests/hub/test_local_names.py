"""Nobody who downloads a model reads where its files were on the machine that made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import hf_longattn
from hf_longattn.cli import main
from hf_longattn.files import public_name
from hf_longattn.hub import push_model
from tests.cases import every_case
from tests.grids import quickly
from tests.stock_cases import save_long

from ..hub_state import WRITER, Hub
from ..trained import tokenizer_of

REPO, TEXT = "writer/pushed", "One bird sang on the hill, and another answered from the wood. " * 60
COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "convert": lambda at, out: ["convert", f"{at}/short", f"{out}", "--max-length", "256", "--verify-text", f"{at}/book.txt"],
    "compress": lambda at, out: ["compress", f"{at}/long", f"{out}", "--method", "bf16", "--length", "64", "--text", f"{at}/book.txt"],
    "native": lambda at, out: ["export", f"{at}/long", f"{out}", "--format", "native"],
    "torch": lambda at, out: ["export", f"{at}/long", f"{out}", "--format", "torch"],
    "clm": lambda at, out: [
        *("train", "clm", "--model", f"{at}/long", "--data", f"{at}/book.txt", f"{at}/other.txt", "--output", f"{out}"),
        *("--max-steps", "1", "--max-length", "64", "--batch-size", "1"),
    ],
    "distill": lambda at, out: [
        *("train", "distill", "--method", "logits", "--model", f"{at}/long", "--teacher", f"{at}/short"),
        *("--data", f"{at}/book.txt", f"{at}/other.txt"),
        *("--output", f"{out}", "--max-steps", "1", "--max-length", "64", "--batch-size", "1"),
    ],
}


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a long model, the short one that it could be of, and texts."""
    place = tmp_path_factory.mktemp("models") / "secret client"
    small = {"num_hidden_layers": 1, "max_position_embeddings": 128, "vocab_size": 1000}
    for name in ("long", "plain"):
        save_long(place / name, "llama", {"mechanism": "full"}, **small)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    LlamaForCausalLM(LlamaConfig(**small, **shape)).save_pretrained(place / "short")
    tokenizer = tokenizer_of("gpt2", 128)
    for name in ("long", "short"):
        tokenizer.save_pretrained(place / name)
    for name in ("book.txt", "other.txt"):
        (place / name).write_text(TEXT)
    return place


@pytest.mark.parametrize("command", quickly(COMMANDS, ("convert", "compress", "native", "distill")))
def test_pushed_files_name_no_folder_of_this_machine(
    command: str, private: Path, server: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(private)
    at, out = Path("../secret client") if command == "native" else private, private / command
    with pytest.raises(SystemExit) as ended:
        main(COMMANDS[command](at, out))
    assert not ended.value.code, capsys.readouterr().err
    push_model(out, REPO, token=WRITER)
    sent = server.repos[REPO].branches["main"]
    places = [private.name, *(str(Path(package.__file__ or "").parent) for package in (hf_longattn, torch))]
    assert [(name, place) for name, content in sent.items() for place in places if place.encode() in content] == []
    card = sent["README.md"].decode()
    assert "\n# pushed\n" in card
    assert f"model_name: {command}\n" not in card
    if command in ("native", "torch"):
        assert not [name for name in ("long", "plain") if f"`{name}`" in card]
        assert "from a local folder." in card


@every_case(
    ("typed", "shown"),
    [
        ("squad", "squad"),
        ("org/data:subset", "org/data:subset"),
        ("https://host/a/b", "https://host/a/b"),
        ("/home/a b/q.jsonl", "q.jsonl"),
        ("file:///home/me/q.jsonl", "q.jsonl"),
        ("../secret client/bert", "bert"),
        ("secret client/bert", "bert"),
        (r"C:\Users\me\q.jsonl", "q.jsonl"),
        ("topic=classify:/home/a b/q.jsonl", "topic=classify:q.jsonl"),
        ("moved away/q.jsonl", "q.jsonl"),
        ("moved-away/q.jsonl", "q.jsonl"),
        ("org/model-v1.5", "org/model-v1.5"),
        ("", ""),
    ],
)
def test_public_name_of_a_source_has_no_folders(typed: str, shown: str) -> None:
    assert public_name(typed) == shown
