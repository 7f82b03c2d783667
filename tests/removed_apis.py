"""Removes private names of other libraries, one after the other; run by ``tests/test_private_apis.py``.

``python -m tests.removed_apis`` prints the message of each API when it is used without its name, one a line.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

from hf_longattn import errors
from hf_longattn import names as apis

TABLES = (
    *("tokenizer_overrides", "standalone_encoders", "expert_adapters"),
    *("message_formats", "feature_inputs", "logits_inputs", "generating_inputs"),
)
"""Tables by model type."""
INSTANCES = (
    *("has_hooks", "attention_implementation", "unread_weights", "target_modules", "output_frames"),
    *("distance_buckets", "turned_states"),
    *TABLES,
)
"""APIs that are tried on an object without the name; of the others the name itself is removed."""


def resolve(where: str) -> Any:
    """The object at ``"module:attribute.attribute"``; what modules have as instances only is looked up on one."""
    module, _, names = where.partition(":")
    value: Any = importlib.import_module(module)
    for name in names.split("."):
        value = value() if value in (nn.Module, PreTrainedConfig) and not hasattr(value, name) else value
        value = getattr(value, name)
    return value


class Without:
    """A namespace of operators without one of them."""

    def __init__(self, namespace: Any, removed_name: str) -> None:
        self.__dict__.update(namespace=namespace, removed_name=removed_name)

    def __getattr__(self, name: str) -> Any:
        if name == self.removed_name:
            raise AttributeError(name)
        return getattr(self.namespace, name)


@contextlib.contextmanager
def removed(where: str) -> Iterator[None]:
    """Within the context ``"module:Class.name"`` is not there."""
    module, _, names = where.partition(":")
    path, _, name = names.rpartition(".")
    owner = resolve(f"{module}:{path}") if path else importlib.import_module(module)
    namespace = next((space for space in ("aten", "mkldnn", "onednn") if owner is getattr(torch.ops, space)), None)
    if namespace is not None:
        setattr(torch.ops, namespace, Without(owner, name))
        yield
        setattr(torch.ops, namespace, owner)
    elif name in vars(owner):
        value = vars(owner)[name]
        delattr(owner, name)
        yield
        setattr(owner, name, value)
    else:  # inherited, or set by __init__

        def refuse(self: Any) -> Any:
            raise AttributeError(name)

        setattr(owner, name, property(refuse))
        yield
        delattr(owner, name)


def uses() -> dict[str, Callable[[], Any]]:
    """Our name of each API -> a function that uses it. The package is imported here."""
    from transformers.models.auto import modeling_auto

    from hf_longattn import loading
    from hf_longattn.engines import byte_cache, topk
    from hf_longattn.engines.cpu import onednn
    from hf_longattn.engines.cuda import flex_kernel
    from hf_longattn.families import wav2vec2_bert, wavlm
    from hf_longattn.mechanisms import performer
    from hf_longattn.mechanisms.common import masked
    from hf_longattn.memory import attention_cache
    from hf_longattn.modeling import backend, classes
    from hf_longattn.modeling import packed_documents as documents
    from hf_longattn.modeling.family import long_config, registration
    from hf_longattn.training.tasks import ctc

    nothing: Any = types.SimpleNamespace()
    ones = torch.ones(2)
    row = torch.ones(1, 1, 2, 3)
    return {
        "cpu_flash": lambda: apis.look_up("cpu_flash", when_called=True)(ones),
        "cuda_flash": lambda: apis.look_up("cuda_flash", when_called=True)(ones),
        "pair_scores": lambda: topk.pair_scores(row, row, torch.zeros(1, 1, 2, 1, dtype=torch.long)),
        "bf16_products": onednn.cpu_computes_bf16,
        "int8_linear": lambda: onednn.int8_product(ones, ones, ones, ones, torch.float32),
        "fp32_linear": lambda: onednn.fp32_product(ones, ones, None),
        "amx": onednn.has_amx,
        "in_backward": performer.in_backward,
        "fake_tensors": lambda: apis.look_up("fake_tensors", when_called=True)(),
        "functorch": lambda: apis.look_up("functorch", when_called=True)(),
        "assert_in_graph": lambda: documents.assert_in_graph(torch.tensor(True), "no"),
        "assume_in_graph": lambda: apis.look_up("assume_in_graph", when_called=True)(True),
        "compile_errors": flex_kernel.compile_errors,
        "floats_as_constants": flex_kernel.floats_as_constants,
        "stays_in_place": lambda: attention_cache.stays_in_place(ones),
        "tensor_version": lambda: byte_cache.tensor_version(ones),
        "has_hooks": lambda: masked.has_hooks(nothing),
        "attention_implementation": lambda: long_config.attention_implementation(nothing),
        "attentions_collected": lambda: backend.weights_requested({}),
        "record_outputs": lambda: classes.record_outputs(transformers.BertModel),
        "unread_weights": lambda: loading.ignored_weights(nothing),
        "overridden_methods": functools.partial(apis.require.__wrapped__, "overridden_methods"),
        "lazy_mapping": lambda: registration.lazy_mappings(modeling_auto),
        "output_frames": lambda: ctc.output_frames(nothing, 1),
        "distance_buckets": lambda: wavlm.distance_buckets(nothing, torch.zeros(1)),
        "turned_states": lambda: wav2vec2_bert.turned_states(nothing, torch.zeros(1), None),
        "set_implementation": lambda: classes.check_interface(transformers.BertModel),
        "target_modules": lambda: registration.register_adapters(types.ModuleType("constants")),
        **{
            name: functools.partial(registration.model_type_table, name, types.ModuleType("module")) for name in TABLES
        },
    }


def sentences() -> None:
    """Print what the use of each API says without its name."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    apis.logger.addHandler(handler)
    used = uses()
    assert used.keys() == apis.PRIVATE_APIS.keys()
    for name in ("BertModel", "AutoModel"):  # loaded before anything is removed
        getattr(transformers, name)
    importlib.import_module("transformers.utils.output_capturing")
    for name, where in apis.PRIVATE_APIS.items():
        messages.clear()
        with contextlib.nullcontext() if name in INSTANCES else removed(where[0]):
            try:
                used[name]()
            except errors.BackendError as error:
                messages.append(str(error))
        assert messages == [str(apis.missing(name))], (name, messages)
        print(messages[0])


if __name__ == "__main__":
    sentences()
