"""Caches, memories, mechanisms and whole models, pickled here and loaded by a process that has seen none of them, go
on equally."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from hf_longattn import list_mechanisms
from hf_longattn.engines.call import AttentionCall
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.cases import every_case
from tests.fresh_processes import run_fresh
from tests.memory.test_cache_layers import PATTERNS
from tests.reference.small_models import long_model, tokens
from tests.samples import sample_of, sampled

FORMS: dict[str, dict[str, Any]] = {
    name: sample_of(name) for name in list_mechanisms(causal=True, grid=False) if name != "recurrent_memory"
}
FORMS |= {pattern: attention for pattern, (attention, _) in PATTERNS.items()}
FORMS["relative"] = {"mechanism": "block_top_k", "block_size": 16, "num_blocks": 2, "relative": "t5_buckets"}
STATIC = ("window", "sinks", "linear", "block_top_k", "full")
LENGTH, SEEN = 90, 80
PROGRAM = """
import json, pickle, sys, torch
assert "hf_longattn" not in sys.modules
with open(sys.argv[1], "rb") as file:
    kept = pickle.load(file)
different = {}
with torch.no_grad():
    for name, data in kept.items():
        try:
            call, arguments, expected = pickle.loads(data)
            found = call(**arguments)
            found = found if isinstance(found, torch.Tensor) else found[0]
            different[name] = (found - expected).abs().max().item()
        except Exception as error:
            different[name] = f"{type(error).__name__}: {error}"
print(json.dumps(different))
"""


def decoding(attention: dict[str, Any], static: bool) -> bytes:
    """A model with its cache after a few steps, and what it says next."""
    layers = {"num_hidden_layers": 2}
    model, ids = (
        long_model("gpt2", "GPT2LMHeadModel", attention, **layers),
        tokens(2, LENGTH),
    )
    cache = StaticCache(config=model.config, max_cache_len=LENGTH) if static else DynamicCache(config=model.config)
    with torch.no_grad():
        for begin, end in ((0, 76), *((i, i + 1) for i in range(76, SEEN))):
            mask = torch.ones(2, end, dtype=torch.long)
            model(ids[:, begin:end], attention_mask=mask, past_key_values=cache)
        arguments = {
            "input_ids": ids[:, SEEN:],
            "attention_mask": torch.ones(2, LENGTH, dtype=torch.long),
            "past_key_values": cache,
        }
        data = pickle.dumps((model, arguments))
        return pickle.dumps((*pickle.loads(data), model(**arguments).logits))


def alone(name: str) -> bytes:
    """A mechanism, and what it makes of some tensors."""
    causal = mechanism_class(name).causal is not False
    built = sampled(name, 300)
    q, k, v = torch.randn(3, 1, 4, 300, 16)
    with torch.no_grad():
        call = AttentionCall(causal=causal)
        return pickle.dumps((built, {"q": q, "k": k, "v": v, "call": call}, built(q, k, v, call)))


def remembering() -> bytes:
    """A model with its memory of a first segment, and what it says of a second."""
    model, ids = (
        long_model("gpt2", "GPT2LMHeadModel", {"mechanism": "window", "window": 9}),
        tokens(2, 60),
    )
    with torch.no_grad():
        outputs = model(ids[:, :30], memory=model.new_memory())
        arguments = {"input_ids": ids[:, 30:], "memory": pickle.loads(pickle.dumps(outputs.memory))}
        return pickle.dumps((model, arguments, model(**arguments).logits))


def compared(pickled: dict[str, bytes], folder: Path) -> dict[str, Any]:
    """By how much another process differs, of everything in one start of it."""
    path = folder / "pickled"
    path.write_bytes(pickle.dumps(pickled))
    run = run_fresh("-c", PROGRAM, path)
    assert run.returncode == 0, run.stderr[-2000:]
    return dict(json.loads(run.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Those of static caches, mechanisms and a memory."""
    pickled = {f"static {form}": decoding(FORMS[form], True) for form in STATIC}
    pickled |= {f"mechanism {name}": alone(name) for name in list_mechanisms(grid=False)}
    return compared(pickled | {"memory": remembering()}, tmp_path_factory.mktemp("pickled"))


@pytest.mark.thorough
def test_a_pickled_model_with_its_cache_decodes_on_in_another_process(tmp_path: Path) -> None:
    found = compared({form: decoding(attention, False) for form, attention in FORMS.items()}, tmp_path)
    assert found == pytest.approx(dict.fromkeys(FORMS, 0), abs=1e-5)


@every_case("form", STATIC)
def test_a_pickled_model_with_a_static_cache_decodes_on_in_another_process(
    differences: dict[str, Any], form: str
) -> None:
    assert differences[f"static {form}"] == pytest.approx(0, abs=1e-5)


@every_case("name", list_mechanisms(grid=False))
def test_a_pickled_mechanism_computes_the_same_in_another_process(differences: dict[str, Any], name: str) -> None:
    assert differences[f"mechanism {name}"] == pytest.approx(0, abs=1e-5)


def test_a_pickled_memory_goes_on_in_another_process(differences: dict[str, Any]) -> None:
    assert differences["memory"] == pytest.approx(0, abs=1e-5)
