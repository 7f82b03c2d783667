"""Every private name of other libraries that this package uses; no other module looks one up.

A private name can change with any version of its library. So each is listed in :data:`PRIVATE_APIS` and looked up by a function, and no
module's import fails without it: a missing name gives a :class:`BackendError` on use or, where results stay correct, a warning. Private
methods that our subclasses override are in those subclasses. ``tests/test_private_apis.py`` lists them, finds each name in the versions of
:data:`TESTED`, and removes each name to check the message.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import itertools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import BackendError
from .naming import LOGGER

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(LOGGER)

TESTED = {
    "torch": ("2.11", "2.13"),
    "transformers": ("5.20", "5.23"),
    "peft": ("0.21", "0.21"),
    "accelerate": ("1.10", "1.15"),
    "sentence_transformers": ("6.0", "6.2"),
}
"""Library -> (lowest version that pyproject.toml allows, pinned version). The tests pass with both."""
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16")
"""Names of ``torch.cpu.get_capabilities`` for bf16: three on x86, the last on ARM."""
ATEN = "torch:ops.aten._"
GGUF = "transformers.modeling_gguf_pytorch_utils:"
PRIVATE_APIS: dict[str, tuple[str, ...]] = {
    "cpu_flash": (f"{ATEN}scaled_dot_product_flash_attention_for_cpu", f"{ATEN}scaled_dot_product_flash_attention_for_cpu_backward"),
    "cuda_flash": (f"{ATEN}flash_attention_forward", f"{ATEN}flash_attention_backward"),
    "pair_scores": (f"{ATEN}embedding_bag_per_sample_weights_backward",),
    "packed_linear": (
        "torch:ops.mkldnn._reorder_linear_weight",
        "torch:ops.mkldnn._linear_pointwise",
        "torch:ops.mkldnn._is_mkldnn_bf16_supported",
    ),
    "int8_linear": ("torch:ops.onednn.qlinear_pointwise", "torch:ops.onednn.qlinear_prepack"),
    "amx": ("torch:cpu._is_amx_tile_supported",),
    "in_backward": ("torch:_C._current_graph_task_id",),
    "func_transforms": ("torch:_C._functorch.get_interpreter_stack", "torch.autograd.forward_ad:_current_level"),
    "assert_in_graph": ("torch:_assert_async",),
    "assume_in_graph": ("torch:_check",),
    "scan_in_graph": ("torch:_higher_order_ops.scan",),
    "trace_errors": ("torch:_dynamo.exc.UserError",),
    "compile_errors": ("torch:_dynamo.exc.TorchDynamoException",),
    "floats_as_constants": ("torch:_dynamo.config",),
    "stays_in_place": ("torch:_dynamo.mark_static_address",),
    "tensor_version": ("torch:Tensor._version",),
    "storage_offset": ("torch:UntypedStorage._checkpoint_offset",),
    "has_hooks": ("torch:nn.Module._forward_hooks", "torch:nn.Module._forward_pre_hooks"),
    "parameter_dict": ("torch:nn.Module._parameters",),
    "attention_implementation": (
        "transformers:PreTrainedConfig._attn_implementation",
        "transformers:PreTrainedConfig._attn_implementation_internal",
    ),
    "attentions_collected": ("transformers.utils.output_capturing:_active_collector",),
    "record_outputs": ("transformers.utils.output_capturing:_CAN_RECORD_REGISTRY", "transformers:PreTrainedModel._can_record_outputs"),
    "initialised": ("transformers.initialization:copy_",),  # skips tensors marked _is_hf_initialized
    "tied_weights": ("transformers:PreTrainedModel._tied_weights_keys",),
    "lazy_mapping": (
        "transformers.models.auto.auto_factory:_LazyAutoMapping._load_attr_from_module",
        "transformers:AutoModel._model_mapping",
    ),
    "load_weights": ("transformers:PreTrainedModel._load_pretrained_model",),
    "output_frames": (
        "transformers:Wav2Vec2PreTrainedModel._get_feat_extract_output_lengths",
        "transformers:ParakeetPreTrainedModel._get_subsampling_output_length",
    ),
    "distance_buckets": ("transformers.models.wavlm.modeling_wavlm:WavLMAttention._relative_positions_bucket",),
    "turned_states": (
        "transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer:Wav2Vec2ConformerSelfAttention._apply_rotary_embedding",
        "transformers.models.wav2vec2_bert.modeling_wav2vec2_bert:Wav2Vec2BertSelfAttention._apply_rotary_embedding",
    ),
    "set_implementation": ("transformers:PreTrainedModel._can_set_attn_implementation",),
    "gguf_readers": (f"{GGUF}TENSOR_PROCESSORS", f"{GGUF}TensorProcessor", f"{GGUF}get_gguf_hf_weights_map"),
    "context_parallel": ("accelerate:Accelerator._prepare_cp",),
    "tokenizer_overrides": ("transformers.models.auto.tokenization_auto:MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS",),
    "awq_scales": ("transformers.integrations.awq:AWQ_SCALES_MAPPINGS",),
    "response_templates": ("transformers.cli.serving.utils:_RESPONSE_TEMPLATE_FALLBACKS",),
    "standalone_encoders": ("sentence_transformers.base.modules.transformer:_ENCODER_ONLY_MODELS",),
    "feature_inputs": ("sentence_transformers.base.modules.transformer:_FEATURE_EXTRACTION_EDGE_CASES",),
    "logits_inputs": ("sentence_transformers.base.modules.transformer:_FILL_MASK_EDGE_CASES",),
    "generating_inputs": ("sentence_transformers.base.modules.transformer:_TEXT_GENERATION_EDGE_CASES",),
    "prompt_adapters": ("peft.tuners.adaption_prompt.config:TRANSFORMERS_MODEL_CONFIG",),
    "expert_adapters": ("peft.utils.transformers_weight_conversion:_MODEL_TO_CONVERSION_PATTERN",),
    "target_modules": ("peft.utils.constants:TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",),
}
"""Our name of an API -> the private names that it needs, as ``"module:name"`` or ``"module:Class.name"``."""


def sentence(name: str) -> str:
    """The message for a version of a library without the API ``name``."""
    where = PRIVATE_APIS[name][0]
    library = where.split(":")[0].split(".")[0]
    lowest, highest = TESTED[library]
    return (
        f"{library} {importlib.metadata.version(library)} has no {where.replace(':', '.')}, which hf_longattn uses; "
        f"install {library} {lowest} to {highest}, with which it is tested."
    )


def missing(name: str) -> BackendError:
    """The error to raise where the API ``name`` is used."""
    return BackendError(sentence(name))


_warned: set[str] = set()


def warn_missing(name: str) -> None:
    """Warn once per process that the API ``name`` is missing, where results stay correct."""
    if name not in _warned:
        _warned.add(name)
        logger.warning(sentence(name))


def look_up(name: str, which: int = 0) -> Any:
    """The object of the API ``name``.

    Raises:
        BackendError: the installed version does not have it.
    """
    module, _, path = PRIVATE_APIS[name][which].partition(":")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (AttributeError, ImportError):
        raise missing(name) from None


# ---- torch


def operator(name: str, which: int = 0) -> Callable[..., Any]:
    """An operator of PyTorch, or a function that raises if it is missing."""
    try:
        return look_up(name, which)
    except BackendError:

        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise missing(name)

        return refuse


def operator_arguments(name: str, which: int = 0) -> frozenset[str]:
    """The names of an operator's arguments; empty where PyTorch does not have it."""
    try:
        return frozenset(argument.name for argument in look_up(name, which).default._schema.arguments)
    except BackendError:
        return frozenset()


def has_operator(name: str) -> bool:
    """Whether PyTorch has the operator; warns if not."""
    try:
        look_up(name)
    except BackendError:
        warn_missing(name)
        return False
    return True


def cpu_computes_bf16() -> bool:
    """Whether oneDNN has kernels for bf16, and the processor the instructions. Without these oneDNN emulates them, which is slow."""
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", None)  # newer than the oldest PyTorch that this package runs with
    native = capabilities is None or any(capabilities().get(name) for name in BF16_INSTRUCTIONS)
    return native and bool(_onednn("packed_linear", 2)())


def check_bf16(instead: str) -> None:
    """Raise :class:`BackendError` if the processor has no bf16, since a product then takes minutes. It names what to choose ``instead``."""
    if not cpu_computes_bf16():
        raise BackendError(f"This processor computes no bf16 (it needs avx512_bf16 or AMX); choose {instead}.")


def pack_weight(weight: Tensor) -> Tensor:
    """A weight ``(out, in)`` in the layout of oneDNN's kernels."""
    return _onednn("packed_linear", 0)(weight, None)


def packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """``x (M, in)`` times a packed weight, ``(M, out)``."""
    return _onednn("packed_linear", 1)(x, packed, bias, "none", [], "")


def pack_int8(weight: Tensor) -> Tensor:
    """An int8 weight ``(out, in)`` in the layout of oneDNN's kernels."""
    return _onednn("int8_linear", 1)(weight, None)


def int8_product(x: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor, dtype: Any) -> Tensor:
    """int8 ``x (M, in)`` times a packed int8 weight times ``scale (out,)``, in ``dtype``; ``zeros (out,)`` int32 are zero points.

    VNNI multiplies unsigned by signed numbers. Without AMX, oneDNN has only its reference code for signed inputs, which is thousands of
    times slower, so inputs are shifted to 0 … 255. Sums are exact either way.
    """
    import torch

    zero = 0 if has_amx() else 128
    x = x.view(torch.uint8).bitwise_xor(zero) if zero else x  # flipping the sign bit adds 128
    return _onednn("int8_linear", 0)(x, 1.0, zero, packed, scale, zeros, None, 1.0, 0, dtype, "none", [], "")


def has_amx() -> bool:
    """Whether the processor multiplies tiles of matrices in bf16 and 8 bits (AMX)."""
    import torch

    if not hasattr(torch.cpu, "_is_amx_tile_supported"):
        warn_missing("amx")
        return False
    return bool(torch.cpu._is_amx_tile_supported())


def _onednn(name: str, which: int) -> Callable[..., Any]:
    """One of oneDNN's operators, looked up in steps that torch.compile can trace.

    Raises:
        BackendError: this PyTorch has none.
    """
    import torch

    _, space, operator_name = PRIVATE_APIS[name][which].split(":")[1].split(".")
    function = getattr(getattr(torch.ops, space), operator_name, None)
    if function is None:
        raise missing(name)
    return function


def in_backward() -> bool:
    """Whether a backward pass is running, which runs checkpointed layers again."""
    import torch

    if not hasattr(torch._C, "_current_graph_task_id"):
        warn_missing("in_backward")
        return False
    return torch._C._current_graph_task_id() != -1


def transform_readers() -> tuple[Callable[[], int], Callable[[], Any]]:
    """Functions that return the level of forward-mode AD and torch.func's stack of transforms: -1 and ``None`` if there are none.
    They are looked up once, since every call of a mechanism needs them."""
    import torch

    read_level = functools.partial(getattr, torch.autograd.forward_ad, "_current_level")
    try:
        read_level()
        return read_level, torch._C._functorch.get_interpreter_stack
    except AttributeError:
        warn_missing("func_transforms")
        return (lambda: -1), (lambda: None)


def holds_vmap(transforms: Sequence[Any]) -> bool:
    """Whether torch.vmap is in the stack of torch.func's transforms."""
    import torch

    return any(level.key() == torch._C._functorch.TransformType.Vmap for level in transforms)


def assert_in_graph(condition: Tensor, message: str) -> None:
    """Raise RuntimeError with ``message`` when a compiled graph runs and ``condition ()`` is false."""
    import torch

    if hasattr(torch, "_assert_async"):
        torch._assert_async(condition, message)
    else:
        warn_missing("assert_in_graph")


def assume_in_graph(condition: Any) -> None:
    """Tell torch.export that ``condition`` holds for every input."""
    import torch

    if not hasattr(torch, "_check"):
        raise missing("assume_in_graph")
    torch._check(condition)


def scan_in_graph(
    step: Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], Tensor]], first: list[Tensor], inputs: list[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Run ``state, out = step(state, entries)`` along axis 0 of ``inputs``; return the last state, and all ``out`` along axis 0."""
    scan = getattr(importlib.import_module("torch._higher_order_ops"), "scan", None)
    if not callable(scan):
        raise missing("scan_in_graph")
    state, out = scan(step, first, inputs)
    return list(state), out


def trace_errors() -> tuple[type[Exception], ...]:
    """The errors of torch.export for an input that is too short to represent all lengths."""
    importlib.import_module("torch._dynamo")
    return (look_up("trace_errors"), AssertionError)  # PyTorch asserts if its guards contradict each other


def compile_errors() -> tuple[type[Exception], ...]:
    """The errors that PyTorch raises for a function that it cannot compile."""
    import torch._dynamo

    if not hasattr(torch._dynamo.exc, "TorchDynamoException"):
        warn_missing("compile_errors")
        return ()
    return (torch._dynamo.exc.TorchDynamoException,)


def floats_as_constants() -> AbstractContextManager[None]:
    """A context in which PyTorch compiles Python floats as constants. Otherwise they are CPU tensors, which no GPU kernel takes."""
    import torch._dynamo

    config = getattr(torch._dynamo, "config", None)
    if config is None:
        warn_missing("floats_as_constants")
        return nullcontext()
    return config.patch(specialize_float=True)


def constant_in_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compiler.assume_constant_result`` without importing the compiler."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def stays_in_place(tensor: Tensor) -> None:
    """Tell compiled graphs that ``tensor`` keeps its address, as CUDA graphs need. Does nothing inside of a graph."""
    import torch._dynamo

    if torch.compiler.is_compiling():
        return
    mark = getattr(torch._dynamo, "mark_static_address", None)
    if mark is None:
        warn_missing("stays_in_place")
        return
    mark(tensor)


_fresh = itertools.count(1)


def tensor_version(tensor: Tensor) -> int:
    """A number that grows whenever ``tensor`` is changed in place. 0 for tensors made in inference mode, which have no version."""
    if tensor.is_inference():
        return 0
    try:
        return tensor._version
    except AttributeError:
        warn_missing("tensor_version")
        return next(_fresh)


def storage_offset(tensor: Tensor) -> int:
    """Byte offset of a tensor's storage in its checkpoint file, for tensors loaded on the meta device."""
    offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if offset is None:
        raise missing("storage_offset")
    return offset


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook may change the inputs or outputs of ``module``."""
    try:
        return bool(module._forward_hooks or module._forward_pre_hooks)
    except AttributeError:
        warn_missing("has_hooks")
        return True


def replace_parameters(module: nn.Module, parameters: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace the mapping in which ``module`` keeps its direct parameters."""
    if not isinstance(getattr(module, "_parameters", None), dict):
        raise missing("parameter_dict")
    module._parameters = parameters(module._parameters)


# ---- transformers: attention

IMPLEMENTATION_FIELD = "_attn_implementation_internal"
"""The config field that holds the attention implementation; :class:`LongConfig` checks values set there."""


def attention_implementation(config: Any) -> str | None:
    """The attention implementation of a config; ``None`` without a config."""
    if config is None:
        return None
    try:
        return config._attn_implementation
    except AttributeError:
        raise missing("attention_implementation") from None


def attentions_collected() -> bool:
    """Whether the running model's attentions are collected."""
    return any("attentions" in key for key in outputs_collected())


def outputs_collected() -> Collection[str]:
    """The layer outputs that are collected from the running model: hidden_states, attentions …"""
    import torch
    from transformers.utils import output_capturing

    active = getattr(output_capturing, "_active_collector", None)
    if active is None:
        if not torch.compiler.is_compiling():
            warn_missing("attentions_collected")
        return ()
    collector = active.global_var if torch.compiler.is_compiling() else active.get()
    return () if collector is None else tuple(collector)


def record_outputs(model_class: Any) -> None:
    """Tell transformers which outputs of ``model_class`` can be recorded.

    transformers registers a class when an instance is built, but the model inside a head becomes a Long model after that.
    """
    from transformers.utils import output_capturing

    if not hasattr(output_capturing, "_CAN_RECORD_REGISTRY") or not hasattr(model_class, "_can_record_outputs"):
        warn_missing("record_outputs")
        return
    dict.__setitem__(output_capturing._CAN_RECORD_REGISTRY, str(model_class), model_class._can_record_outputs)


# ---- transformers: weights


def kept_in_float32(model: Any) -> Collection[str]:
    """Names of modules whose weights stay in float32 when a model is loaded in bf16."""
    return getattr(model, "_keep_in_fp32_modules_strict", None) or ()


def is_initialised(value: Any) -> bool:
    """Whether transformers has loaded a tensor, or initialised a module."""
    return getattr(value, "_is_hf_initialized", False)


def tie_parameters(model: Any, shared: Mapping[str, str]) -> None:
    """Tie parameters of ``model``, so that they are saved once. ``shared``: name -> name of the parameter that is saved."""
    if not hasattr(model, "_tied_weights_keys"):
        warn_missing("tied_weights")
        return
    model._tied_weights_keys = {**(model._tied_weights_keys or {}), **shared}


def output_frames(model: Any, length: int) -> int:
    """Number of frames for which a speech model has logits. The input has ``length`` samples or rows of features.

    Raises:
        BackendError: the model has no method for it.
    """
    import torch

    for where in PRIVATE_APIS["output_frames"]:
        count = getattr(model, where.rpartition(".")[2], None)
        if count is not None:
            return int(count(torch.tensor([length]))[0])
    raise missing("output_frames")


def distance_buckets(module: Any, distances: Tensor) -> Tensor:
    """The buckets of distances (key - query) of a module with WavLM's relative positions.

    Raises:
        BackendError: the module has no method for it.
    """
    buckets = getattr(module, PRIVATE_APIS["distance_buckets"][0].rpartition(".")[2], None)
    if buckets is None:
        raise missing("distance_buckets")
    result: Tensor = buckets(distances)
    return result


def turned_states(module: Any, states: Tensor, positions: Any) -> Tensor:
    """Hidden states ``(B, N, C)`` rotated by their positions, as a Conformer's attention does before its projections.

    Raises:
        BackendError: the module has no method for it.
    """
    turn = getattr(module, PRIVATE_APIS["turned_states"][0].rpartition(".")[2], None)
    if turn is None:
        raise missing("turned_states")
    result: Tensor = turn(states, positions)
    return result


def with_loader(model_class: Any, load: Callable[..., Any]) -> Any:
    """A ``model_class`` that ``from_pretrained`` fills by ``load(original, model, state_dict, files, config, *more)``."""
    original = getattr(model_class, "_load_pretrained_model", None)
    if original is None:
        raise missing("load_weights")

    def load_pretrained(*arguments: Any) -> Any:
        return load(original, *arguments)

    members = {"__module__": model_class.__module__, "_load_pretrained_model": staticmethod(load_pretrained)}
    return type(model_class.__name__, (model_class,), members)


def gguf_readers() -> tuple[Mapping[str, Any], type[Any], Callable[..., Any]]:
    """transformers' tensor processors by architecture, the default one, and a name mapping. The last maps a file's names to a model's."""
    return look_up("gguf_readers"), look_up("gguf_readers", 1), look_up("gguf_readers", 2)


# ---- transformers: Auto classes


def lazy_mappings(module: ModuleType) -> list[Any]:
    """The tables in a module of transformers where Auto classes look up their classes."""
    tables = [table for table in vars(module).values() if hasattr(table, "_model_mapping") and hasattr(table, "_config_mapping")]
    return [table for table in tables if not isinstance(table, type) and _is_lazy(table)]


def _is_lazy(table: Any) -> bool:
    if all(hasattr(table, name) for name in ("_modules", "_reverse_config_mapping", "_load_attr_from_module")):
        return True
    warn_missing("lazy_mapping")
    return False


def enter_config(mapping: Any, module_name: str, module: ModuleType) -> bool:
    """Let ``CONFIG_MAPPING`` find a config in ``module``."""
    if not hasattr(mapping, "_modules"):
        warn_missing("lazy_mapping")
        return False
    mapping._modules[module_name] = module
    return True


def mapped_names(table: Any) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Two mappings from model type: to the name of its class, and to the name of its config."""
    return table._model_mapping, table._config_mapping


def enter_class(table: Any, model_type: str, name: Any, config: str, module_name: str, module: ModuleType) -> None:
    """Enter the class ``name`` of ``module`` in a table, for the config class ``config``. It is imported on first use. For a table of
    tuples, ``name`` is a tuple of names."""
    table._model_mapping[model_type] = name
    table._modules[module_name] = module
    table._reverse_config_mapping[config] = model_type


def auto_mapping(auto_class: Any) -> Any:
    """An Auto class's mapping from config class to model class; ``None`` for other classes."""
    return getattr(auto_class, "_model_mapping", None)


def auto_classes() -> Iterator[tuple[str, Any]]:
    """Name and table of every ``AutoModel...``, sorted by name."""
    from transformers.models.auto import modeling_auto

    tables = {name: auto_mapping(value) for name, value in sorted(vars(modeling_auto).items()) if name.startswith("AutoModel")}
    if all(table is None for table in tables.values()):
        raise missing("lazy_mapping")
    yield from ((name, table) for name, table in tables.items() if table is not None)


def can_set_implementation(model_class: Any) -> bool:
    """Whether a class takes its attention from the AttentionInterface."""
    if not hasattr(model_class, "_can_set_attn_implementation"):
        raise missing("set_implementation")
    return model_class._can_set_attn_implementation()


# ---- accelerate


def leave_context_parallelism(accelerator: Any) -> None:
    """Disable accelerate's preparation for torch's context parallelism. It supports only full causal attention, so no Long model."""
    if not hasattr(accelerator, "_prepare_cp"):
        raise missing("context_parallel")
    accelerator._prepare_cp = lambda *prepared: prepared


# ---- tables of other libraries by model type


def model_type_table(name: str, module: ModuleType) -> Any:
    """The table ``name`` of :data:`PRIVATE_APIS` in ``module``. If this version has none, warns and returns ``None``."""
    table = getattr(module, PRIVATE_APIS[name][0].partition(":")[2], None)
    if table is None:
        warn_missing(name)
    return table


def target_module_tables(constants: ModuleType) -> list[dict[str, Any]]:
    """One table for every method of peft: model type -> modules to adapt."""
    tables = [value for name, value in vars(constants).items() if name.endswith("_MODULES_MAPPING") and isinstance(value, dict)]
    if not tables:
        warn_missing("target_modules")
    return tables
