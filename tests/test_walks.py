"""How far a call goes: its calls of functions of the package, and their files. These numbers only fall."""

from __future__ import annotations

import contextlib
import gc
import inspect
import json
import string
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, BertForMaskedLM, BertTokenizerFast

from hf_longattn import attend
from hf_longattn.cli import main
from hf_longattn.families.bert import LongBertConfig
from tests.fresh_processes import ROOT, run_fresh

CONVERSION = {"files": 68, "depth": 25}
"""Maximum files of the package that `longattn convert` runs, and how deep it calls, as measured when they fell last.

Calls of a module's first import, lambdas and comprehensions do not count, but a lambda counts as a step of the depth.
"""
LIMITS = {"window": (60, 9), "bert": (111, 16), "load": (382, 20)}
"""Walk -> maximum calls and files, as measured when they fell last. Calls vary by a few with the number of threads."""


def walked(run: Callable[[], Any]) -> list[str]:
    """The file of every call of a function of the package, in order. The first two runs fill caches."""
    files: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and "/hf_longattn/" in (file := frame.f_code.co_filename):
            files.append(file)

    with torch.no_grad():
        run(), run()
        gc.collect()
        gc.disable()  # callbacks of freed objects are no part of the walk
        sys.setprofile(note)
        try:
            run()
        finally:
            sys.setprofile(None)
            gc.enable()
    return files


def attention() -> Callable[[], Any]:
    q, k, v = torch.randn(3, 1, 4, 2048, 64).unbind(0)
    return lambda: attend(q, k, v, "window", window=256)


def padded_bert() -> Callable[[], Any]:
    config = LongBertConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=100,
        max_position_embeddings=2048,
        long_attention={"mechanism": "window", "window": 128},
    )
    model, ids, mask = (
        AutoModel.from_config(config).eval(),
        torch.randint(5, 99, (2, 1024)),
        torch.ones(2, 1024, dtype=torch.long),
    )
    mask[1, 700:] = 0
    return lambda: model(ids, attention_mask=mask)


def loading() -> Callable[[], Any]:
    """Loading a head of two layers from a folder, once its classes are made."""
    config = LongBertConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=100,
        max_position_embeddings=256,
        long_attention={"mechanism": "longformer", "window": 16},
    )
    folder = tempfile.mkdtemp()
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return lambda: AutoModelForMaskedLM.from_pretrained(folder)


def converted() -> dict[str, int]:
    """Files and depth of the command that converts a BERT with a WordPiece tokenizer of letters."""
    folder = Path(tempfile.mkdtemp())
    letters = [
        *string.ascii_lowercase,
        *(f"##{letter}" for letter in string.ascii_lowercase),
        *string.punctuation,
        *string.digits,
    ]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=len(vocabulary),
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(folder / "bert")
    vocab = {piece: number for number, piece in enumerate(vocabulary)}
    BertTokenizerFast(vocab=vocab, model_max_length=64).save_pretrained(folder / "bert")
    options = ("--mechanism", "longformer", "--option", "window=16", "--max-length", "256")
    files, deepest = set[str](), 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal deepest
        code = frame.f_code
        if (
            event != "call"
            or not code.co_flags & inspect.CO_OPTIMIZED
            or code.co_name[0] == "<"
            or "/hf_longattn/" not in code.co_filename
        ):
            return
        outer, depth = frame, 0
        while outer is not None:
            if "/hf_longattn/" in outer.f_code.co_filename:
                if outer.f_code.co_name == "<module>":
                    return
                depth += 1
            outer = outer.f_back
        files.add(code.co_filename)
        deepest = max(deepest, depth)

    sys.setprofile(note)
    with contextlib.suppress(SystemExit):
        main(["convert", str(folder / "bert"), str(folder / "long"), *options])
    sys.setprofile(None)
    assert (folder / "long" / "config.json").is_file()
    return {"files": len(files), "depth": deepest}


def test_walks_make_no_more_calls_of_functions_than_their_ceilings() -> None:
    """In a process of their own: what other tests left in this one may lengthen them."""
    done = run_fresh("-m", "tests.test_walks", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    walks = json.loads(done.stdout.splitlines()[-1])
    conversion = walks.pop("convert")
    assert all(conversion[name] <= CONVERSION[name] for name in CONVERSION), conversion
    longer = {
        name: (len(files), sorted(set(files)))
        for name, files in walks.items()
        if len(files) > LIMITS[name][0] or len(set(files)) > LIMITS[name][1]
    }
    assert walks.keys() == LIMITS.keys()
    assert not longer, "\n".join(f"{name}: {calls} calls of {files}" for name, (calls, files) in longer.items())


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    runs = {"window": attention, "bert": padded_bert, "load": loading}
    print(json.dumps({"convert": converted(), **{name: walked(make()) for name, make in runs.items()}}))
