"""How far a call goes: its calls of functions of the package, their files, and its changes of file. These numbers only fall."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForMaskedLM

from hf_longattn import attend
from hf_longattn.families.bert import LongBertConfig
from tests.warm import ROOT, run_fresh

LIMITS = {
    "window": (86, 10),
    "nsa": (205, 17),
    "neighborhood": (435, 16),
    "bert": (197, 20),
    "load": (1170, 24),
}
"""Walk -> maximum calls and files, as measured when they fell last. Calls vary by a few with the number of threads."""
ARGUMENTS: dict[str, tuple[int, dict[str, Any]]] = {
    "window": (2048, {"window": 256}),
    "nsa": (1024, {"causal": True}),
    "neighborhood": (1024, {"grid": (32, 32), "kernel_size": 7}),
}


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


def attention(name: str) -> Callable[[], Any]:
    length, arguments = ARGUMENTS[name]
    q, k, v = torch.randn(3, 1, 4, length, 64).unbind(0)
    return lambda: attend(q, k, v, name, **arguments)


def padded_bert() -> Callable[[], Any]:
    config = LongBertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=100, max_position_embeddings=2048,
        long_attention={"mechanism": "window", "window": 128},
    )  # fmt: skip
    model, ids, mask = AutoModel.from_config(config).eval(), torch.randint(5, 99, (2, 1024)), torch.ones(2, 1024, dtype=torch.long)
    mask[1, 700:] = 0
    return lambda: model(ids, attention_mask=mask)


def loading() -> Callable[[], Any]:
    """Loading a head of two layers from a folder, once its classes are made."""
    config = LongBertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=100, max_position_embeddings=256,
        long_attention={"mechanism": "longformer", "window": 16},
    )  # fmt: skip
    folder = tempfile.mkdtemp()
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return lambda: AutoModelForMaskedLM.from_pretrained(folder)


def test_walks_are_no_longer_than_before() -> None:
    """They are walked in a process of their own: what other tests left in this one may lengthen them."""
    done = run_fresh("-m", "tests.test_walks", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    walks = json.loads(done.stdout.splitlines()[-1])
    longer = {
        name: (len(files), sorted(set(files)))
        for name, files in walks.items()
        if len(files) > LIMITS[name][0] or len(set(files)) > LIMITS[name][1]
    }
    assert walks.keys() == LIMITS.keys()
    assert not longer, "\n".join(f"{name}: {calls} calls of {files}" for name, (calls, files) in longer.items())


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    models = {"bert": padded_bert, "load": loading}
    print(json.dumps({name: walked(models[name]() if name in models else attention(name)) for name in LIMITS}))
