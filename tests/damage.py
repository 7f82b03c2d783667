"""Whole small checkpoints, and how to damage them: for tests of what a conversion does with bad files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from hf_longattn.cli import main
from scripts.dev.tools.small_models import Shape, language_model, small_config

LENGTH = 64
WORDS = ("the", "of", "and", "a", "to", "in", "is", "it", "was", "on", "we", "they", "storm", "boat", "school", "sea")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
MODELS = ("bert", "gpt2", "llama", "bart")
SHARDED = ("gpt2", "llama")
"""These are saved in shards, the others in one file."""
CONVERT = ["--mechanism", "window", "--option", "window=16", "--max-length", "128"]


def make_checkpoint(name: str, folder: Path) -> Path:
    """Save a small model with its tokenizer."""
    torch.manual_seed(0)
    model = getattr(transformers, language_model(name))(
        small_config(name, Shape(tokens=LENGTH, vocabulary=40), **TOKENS)
    )
    model.save_pretrained(folder, max_shard_size="20KB" if name in SHARDED else "1GB")
    plain = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, model_max_length=LENGTH, **names).save_pretrained(
        folder
    )
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Everything below a folder: hash of a file, target of a link, and "folder"."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = "folder" if path.is_dir() else "other"
        if path.is_file():
            small = path.stat().st_size < 10**7 and os.access(path, os.R_OK, effective_ids=True)
            kind = hashlib.sha256(path.read_bytes()).hexdigest() if small else f"{path.stat().st_size} bytes"
        found[str(path.relative_to(folder))] = f"link to {os.readlink(path)}" if path.is_symlink() else kind
    return found


def convert(source: str | Path, destination: Path, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `longattn convert`, in this process."""
    out = io.StringIO()
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(["convert", str(source), str(destination), *(arguments or CONVERT)])
        except SystemExit as ended:
            return int(ended.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("the command line always ends with an exit code")


def refused(source: str | Path, place: Path, *arguments: str) -> str:
    """Convert from `source` into a folder of `place`: one sentence, exit 1, and nothing below `place` has changed.
    Returns the sentence."""
    before = contents(place)
    code, out, err = convert(source, place / "long", *arguments)
    assert code == 1, f"exit code {code}: {out or err}"
    check_sentence(err, out)
    assert contents(place) == before
    return err


def check_sentence(err: str, out: str = "") -> None:
    """One line on stderr that a person can read, nothing on stdout."""
    assert out == ""
    assert err.startswith("Error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert err.rstrip()[-1] in ".?!)'\"", err
    assert len(err) < 1200, err
    assert "Traceback" not in err


def refused_or_whole(source: Path, place: Path, *arguments: str) -> bool:
    """The same, or a finished conversion with every check passed and the source as it was. Returns whether it
    finished."""
    before = contents(place)
    code, out, err = convert(source, place / "long", *arguments)
    after = contents(place)
    if code == 1:
        check_sentence(err, out)
        assert after == before
        return False
    assert code == 0, err
    assert {name: what for name, what in after.items() if name.split("/")[0] != "long"} == before
    report = json.loads((place / "long" / "conversion_report.json").read_text())
    assert report["verified"]
    return True


# --- single parts
# -----------------------------------------------------------------------------------------------------------------

Damage = Callable[[Path], object]
Cases = dict[str, tuple[Damage, str]]
"""Name -> a damage and a regular expression for the sentence that refuses it."""


def weights(source: Path) -> Path:
    """The only weight file, or the last shard."""
    return sorted(source.glob("*.safetensors"))[-1]


def edit_tensor(edit: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    """Replace the values of the first matrix; `None` takes it out."""

    def damage(source: Path) -> None:
        for file in sorted(source.glob("*.safetensors")):
            tensors = load_file(file)
            name = next((name for name in tensors if tensors[name].ndim == 2), None)
            if name is not None:
                changed = edit(tensors.pop(name).clone())
                tensors |= {} if changed is None else {name: changed}
                save_file(tensors, file, metadata={"format": "pt"})
                return
        raise AssertionError("there is no matrix")

    return damage


def edit_json(file: str, **changes: Any) -> Damage:
    """Set keys of a JSON file; `...` takes one out."""

    def damage(source: Path) -> None:
        values = {**json.loads((source / file).read_text()), **changes}
        (source / file).write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))

    return damage


def write(file: str, content: str | bytes) -> Damage:
    """Put something else in the place of a file."""
    return lambda source: (source / file).write_bytes(content.encode() if isinstance(content, str) else content)


def unreadable(file: str) -> Damage:
    return lambda source: (weights(source) if file == "weights" else source / file).chmod(0)


def instead(file: str, make: Callable[[Path], object]) -> Damage:
    """Take a file away, then make something of the same name."""

    def damage(source: Path) -> None:
        path = weights(source) if file == "weights" else source / file
        if path.exists():
            path.rename(source.parent / "elsewhere")
        make(path)

    return damage


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def outside(path: Path) -> None:
    path.symlink_to(path.parent.parent / "elsewhere")
