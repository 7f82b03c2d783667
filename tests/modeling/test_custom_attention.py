"""Bases whose attention is not on transformers' interface, and parameters of methods that override other libraries' methods."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Wav2Vec2Config

import hf_longattn
from hf_longattn.families import FAMILIES
from tests.conversion.every_family import config_of

HEADS = {"big_bird": "ForMaskedLM", "bigbird_pegasus": "ForConditionalGeneration"}


@pytest.mark.thorough
@pytest.mark.parametrize("base", HEADS)
def test_bigbird_heads_run_under_sdpa_and_eager(base: str, tmp_path: Path) -> None:
    config = FAMILIES[base].config_class.from_dict(config_of(base).to_dict() | {"long_attention": {"mechanism": "full"}})
    made = FAMILIES[base].model_class(FAMILIES[base].config_class.__name__.replace("Config", HEADS[base]))
    made(config).save_pretrained(tmp_path)
    ids = torch.randint(5, 30, (2, 20))
    logits = []
    for implementation in ("longattn", "sdpa", "eager"):
        model = made.from_pretrained(tmp_path, attn_implementation=implementation).eval()
        assert model.config._attn_implementation == model.base_model.config._attn_implementation == implementation
        with torch.no_grad():
            logits.append(model(ids).logits)
    torch.testing.assert_close(logits[1], logits[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[0], logits[2], atol=1e-5, rtol=0)


def test_a_module_with_a_class_that_was_made_for_it_is_pickled() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "num_conv_pos_embeddings": 16}
    config = FAMILIES["wav2vec2"].config_class.from_dict(Wav2Vec2Config(**sizes).to_dict())
    module = FAMILIES["wav2vec2"].model_class("LongWav2Vec2Model")(config).eval().encoder.layers[0].feed_forward
    assert (type(module).__name__, type(module).__module__) == ("LongWav2Vec2FeedForward", "hf_longattn.families.wav2vec2")
    states = torch.randn(1, 3, 32)
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(states), module(states), rtol=0, atol=0)


LIBRARIES = ("transformers", "peft", "sentence_transformers", "accelerate")
ADDED = {
    "resize_positional_embeddings": {"self"},  # a static method of the base
    "on_evaluate": {"metrics"},  # Trainer passes these to every callback, as keywords
    "on_epoch_begin": {"train_dataloader"},
    "on_optimizer_step": {"model"},
    "on_substep_end": {"model"},
    "on_train_begin": {"lr_scheduler"},
    "init_hf_repo": {"private"},  # not in transformers 5.20
    "push_to_hub": {"private"},
    "convert": {"config"},
}
"""Method -> parameters that the base takes as keywords, without naming them."""
ADDED_BY_CALLERS = {"places", "grid", "first"}
"""Parameters that modules of ours pass to modules of ours."""


def is_ours(value: Any) -> bool:
    """Not a class that was made on first use for an architecture of transformers, in its module."""
    return isinstance(value, type) and value.__module__.startswith("hf_longattn")


def overrides() -> Iterator[tuple[str, str, set[str]]]:
    """Class, method, and the parameters of it that no base of another library names, for every method of our classes that one has."""
    names = [module.name for module in pkgutil.walk_packages(hf_longattn.__path__, "hf_longattn.") if not module.name.endswith("__main__")]
    classes = {value for name in names for value in vars(importlib.import_module(name)).values() if is_ours(value)}
    for cls in classes:
        for place, ours in enumerate(cls.__mro__):
            if not ours.__module__.startswith("hf_longattn"):
                continue
            for method, function in vars(ours).items():
                function = getattr(function, "__func__", function)
                foreign = [
                    vars(base)[method]
                    for base in cls.__mro__[place + 1 :]
                    if method in vars(base) and base.__module__.startswith(LIBRARIES)
                ]
                callables = [base for base in foreign if callable(getattr(base, "__func__", base))]
                if callables and inspect.isfunction(function) and not method.startswith("__") and not hasattr(function, "__signature__"):
                    yield f"{ours.__module__}.{ours.__qualname__}", method, parameters(function).difference(*map(parameters, callables))


def parameters(function: Any) -> set[str]:
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    signature = inspect.signature(getattr(function, "__func__", function))
    return {name for name, parameter in signature.parameters.items() if parameter.kind not in variadic}


def test_overriding_methods_name_no_parameter_that_the_base_lacks() -> None:
    """A parameter that the base has renamed would never be passed: past_key_values of attention modules, for example."""
    lacking = {
        f"{cls}.{method}: {sorted(unknown)}"
        for cls, method, unnamed in overrides()
        if (unknown := unnamed - ADDED.get(method, set()) - ADDED_BY_CALLERS)
    }
    assert not lacking, "\n".join(sorted(lacking))
