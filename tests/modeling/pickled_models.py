"""Models with ``attn_implementation="longattn"`` in other processes. This file imports the package on one side only.

``write`` runs where the package is imported. ``read`` runs in a fresh process, and ``main`` is a user's script whose
workers are spawned.
"""

from __future__ import annotations

import copy
import functools
import io
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import torch
from torch import Tensor

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 60,
    "pad_token_id": 0,
}
IDS = torch.arange(3, 43)[None]
PACKAGE = "hf_longattn"


def stock(name: str) -> Any:
    from transformers import AutoConfig, AutoModel

    return AutoModel.from_config(AutoConfig.for_model(name, **SMALL), attn_implementation="longattn")


def chosen_later() -> Any:
    model = stock("bert")
    model.set_attn_implementation("eager")
    model.set_attn_implementation("longattn")
    return model


def encoder_of_two_towers() -> Any:
    from transformers import CLIPConfig, CLIPModel

    tower = {**SMALL, "projection_dim": 16, "image_size": 8, "patch_size": 4}
    return CLIPModel(CLIPConfig(text_config=tower, vision_config=tower, attn_implementation="longattn")).text_model


def adapted() -> Any:
    import peft

    return peft.get_peft_model(stock("bert"), peft.LoraConfig(target_modules=["query"]))


def enabled() -> Any:
    import hf_longattn

    model = stock("bert")
    model.set_attn_implementation("sdpa")
    return hf_longattn.enable_long_attention(model, {"mechanism": "window", "window": 4})


def long() -> Any:
    from hf_longattn import LongBertConfig, LongBertModel

    return LongBertModel(LongBertConfig(**SMALL, long_attention={"mechanism": "window", "window": 4}))


MODELS: dict[str, Callable[[], Any]] = {
    "bert": functools.partial(stock, "bert"),
    "mistral": functools.partial(stock, "mistral"),
    "clip": encoder_of_two_towers,
    "chosen later": chosen_later,
    "adapted": adapted,
    "enabled": enabled,
    "long": long,
}


def by_torch(model: Any) -> bytes:
    torch.save(model, stored := io.BytesIO())
    return stored.getvalue()


WRITERS: dict[str, Callable[[Any], bytes]] = {
    "pickle": pickle.dumps,
    "cloudpickle": cloudpickle.dumps,
    "torch": by_torch,
    "copy": lambda model: pickle.dumps(copy.deepcopy(model)),
}


def load(stored: bytes, writer: str) -> Any:
    return torch.load(io.BytesIO(stored), weights_only=False) if writer == "torch" else pickle.loads(stored)


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS)[0]


def write(path: Path, name: str, writer: str, *, runs_before: bool) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    expected = outputs(copy.deepcopy(model))
    if runs_before:
        outputs(model)
    path.write_bytes(pickle.dumps((WRITERS[writer](model), writer, expected)))


def read(folder: str) -> None:
    """Load each file of a folder in a process that has not imported the package, and compare outputs."""
    for path in sorted(Path(folder).iterdir()):
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0, path.name
            continue
        assert PACKAGE not in sys.modules
        stored, writer, expected = pickle.loads(path.read_bytes())
        torch.testing.assert_close(outputs(load(stored, writer)), expected, rtol=0, atol=0)
        sys.stdout.write(f"{path.name}\n")
        sys.stdout.flush()
        os._exit(0)


def put(model: Any, results: Any) -> None:
    results.put((outputs(model).numpy(), PACKAGE in sys.modules))


def main() -> None:
    import hf_longattn  # noqa: F401 - spawned workers import this file without running main

    model = stock("bert").eval()
    expected = outputs(model)
    spawned = multiprocessing.get_context("spawn")
    results = spawned.Queue()
    process = spawned.Process(target=put, args=(model, results))
    process.start()
    found, imported = results.get()
    process.join()
    assert imported
    torch.testing.assert_close(torch.from_numpy(found), expected)
    (found,) = joblib.Parallel(n_jobs=2, backend="loky")([joblib.delayed(outputs)(model)])
    torch.testing.assert_close(found, expected)
    print("equal in every worker")


if __name__ == "__main__":
    main()
