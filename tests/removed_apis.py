"""Removes private names of other libraries, one after the other or all at once; run by ``tests/test_private_apis.py``.

python -m tests.removed_apis sentences     # the message of each API when it is used without its name, one a line
python -m tests.removed_apis imports       # import the whole package without them
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

from hf_longattn import errors
from hf_longattn import private_apis as apis

TABLES = (
    *("tokenizer_overrides", "awq_scales", "response_templates", "standalone_encoders", "prompt_adapters", "expert_adapters"),
    *("feature_inputs", "logits_inputs", "generating_inputs"),
)
"""Tables by model type."""
INSTANCES = (
    *("has_hooks", "attention_implementation", "parameter_dict", "tied_weights", "set_implementation", "target_modules", "output_frames"),
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


def auto_tables() -> Any:
    from transformers.models.auto import modeling_auto

    return apis.lazy_mappings(modeling_auto)


def pair_scores() -> Any:
    from hf_longattn.engines.topk import pair_scores as scores

    return scores(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 4, 3), torch.zeros(1, 1, 2, 1, dtype=torch.long))


def accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


ones = torch.ones(2)
USES: dict[str, Callable[[], Any]] = {
    "cpu_flash": lambda: apis.operator("cpu_flash")(ones),
    "cuda_flash": lambda: apis.operator("cuda_flash")(ones),
    "pair_scores": pair_scores,
    "packed_linear": lambda: apis.pack_weight(torch.ones(2, 2)),
    "int8_linear": lambda: apis.int8_product(ones, ones, ones, ones, torch.float32),
    "amx": apis.has_amx,
    "in_backward": apis.in_backward,
    "func_transforms": apis.transform_readers,
    "context_parallel": lambda: apis.leave_context_parallelism(accelerator()),
    "assert_in_graph": lambda: apis.assert_in_graph(torch.tensor(True), "no"),
    "assume_in_graph": lambda: apis.assume_in_graph(True),
    "scan_in_graph": lambda: apis.scan_in_graph(lambda state, entries: (state, entries[0]), [ones], [ones]),
    "trace_errors": apis.trace_errors,
    "compile_errors": apis.compile_errors,
    "floats_as_constants": apis.floats_as_constants,
    "stays_in_place": lambda: apis.stays_in_place(ones),
    "tensor_version": lambda: apis.tensor_version(ones),
    "storage_offset": lambda: apis.storage_offset(ones),
    "has_hooks": lambda: apis.has_hooks(types.SimpleNamespace()),  # type: ignore[arg-type]
    "parameter_dict": lambda: apis.replace_parameters(types.SimpleNamespace(), dict),  # type: ignore[arg-type]
    "attention_implementation": lambda: apis.attention_implementation(types.SimpleNamespace()),
    "attentions_collected": apis.attentions_collected,
    "record_outputs": lambda: apis.record_outputs(transformers.BertModel),
    "initialised": lambda: None,
    "tied_weights": lambda: apis.tie_parameters(types.SimpleNamespace(), {}),
    "lazy_mapping": auto_tables,
    "output_frames": lambda: apis.output_frames(types.SimpleNamespace(), 1),
    "distance_buckets": lambda: apis.distance_buckets(types.SimpleNamespace(), torch.zeros(1)),
    "turned_states": lambda: apis.turned_states(types.SimpleNamespace(), torch.zeros(1), None),
    "load_weights": lambda: apis.with_loader(transformers.BertModel, print),
    "set_implementation": lambda: apis.can_set_implementation(types.SimpleNamespace()),
    "gguf_readers": apis.gguf_readers,
    "target_modules": lambda: apis.target_module_tables(types.ModuleType("constants")),
    **{name: functools.partial(apis.model_type_table, name, types.ModuleType("module")) for name in TABLES},
}


def sentences() -> None:
    """Print what the use of each API says without its name."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    apis.logger.addHandler(handler)
    assert USES.keys() == apis.PRIVATE_APIS.keys()
    for name in ("BertModel", "AutoModel"):  # loaded before anything is removed
        getattr(transformers, name)
    importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    importlib.import_module("transformers.utils.output_capturing")
    for name, where in apis.PRIVATE_APIS.items():
        if name == "initialised":
            continue
        messages.clear()
        with contextlib.nullcontext() if name in INSTANCES else removed(where[0]):
            try:
                USES[name]()
            except errors.BackendError as error:
                messages.append(str(error))
        assert messages == [apis.sentence(name)], (name, messages)
        print(messages[0])


def imports() -> None:
    """Import every module of the package without private names, except for those that torch and transformers need themselves."""
    sys.modules["torchao"] = None  # type: ignore[assignment]  # needs some of the names itself
    with contextlib.ExitStack() as stack:
        for name, places in apis.PRIVATE_APIS.items():
            if name not in (*INSTANCES, "initialised", "lazy_mapping", "record_outputs"):
                for where in places:
                    if not where.startswith(("transformers:", "torch:_check", "torch:_assert", "torch:_C", "torch:Tensor")):
                        stack.enter_context(removed(where))
        package = importlib.import_module("hf_longattn")
        for module in pkgutil.walk_packages(package.__path__, "hf_longattn."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    print("imported")


if __name__ == "__main__":
    {"sentences": sentences, "imports": imports}[sys.argv[1]]()
