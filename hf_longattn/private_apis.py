"""Every private name of other libraries that this package uses; no other module uses one.

A private name can change with any version of its library. So each is looked up when it is used, never on import, and :data:`PRIVATE_APIS`
records what it is for and what happens without it: a :class:`BackendError` or, if results stay correct, a warning.
``tests/test_private_apis.py`` finds each of them in the versions of :data:`TESTED`, and removes each to see the message.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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
"""Library -> the lowest version that pyproject.toml allows and the pinned one, with which the tests pass."""


@dataclass(frozen=True)
class PrivateApi:
    """A private name, or several that are used together.

    where: ``"module:name"``, or ``"module:Class.name"``.
    purpose: what it is needed for, after "needed to".
    without: what happens if it is missing.
    """

    where: tuple[str, ...]
    purpose: str
    without: str

    @property
    def library(self) -> str:
        return self.where[0].split(".")[0].split(":")[0]

    def sentence(self, detail: object = "") -> str:
        """The message for a version of the library that does not have it."""
        first, last = TESTED[self.library]
        name = self.where[0].replace(":", ".")
        return (
            f"{self.library} {importlib.metadata.version(self.library)} has no {name}{detail}, needed to {self.purpose}; {self.without}. "
            f"hf_longattn is tested with {self.library} {first} to {last}."
        )


REFUSED = "install a tested version"
"""What to do without an API that cannot be replaced."""
AUTO = "transformers.models.auto.auto_factory:_LazyAutoMapping."
PRIVATE_APIS = {
    "cpu_flash": PrivateApi(
        (
            "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu",
            "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu_backward",
        ),
        "run fused attention on the CPU with its log-sum-exp, which the public function does not return",
        REFUSED,
    ),
    "pair_scores": PrivateApi(
        ("torch:ops.aten._embedding_bag_per_sample_weights_backward",),
        "multiply queries with scattered keys on the CPU without a copy of the keys",
        "the keys are copied, which is slower",
    ),
    "packed_linear": PrivateApi(
        ("torch:ops.mkldnn._reorder_linear_weight", "torch:ops.mkldnn._linear_pointwise", "torch:ops.mkldnn._is_mkldnn_bf16_supported"),
        "lay the weights of linear layers out once, for inference in bf16 on the CPU",
        REFUSED,
    ),
    "int8_linear": PrivateApi(
        ("torch:ops.onednn.qlinear_pointwise", "torch:ops.onednn.qlinear_prepack"),
        "multiply 8-bit inputs with 8-bit weights on the CPU",
        "optimize_for_inference('bf16') does without, or " + REFUSED,
    ),
    "amx": PrivateApi(
        ("torch:cpu._is_amx_tile_supported",),
        "tell processors with AMX, which take other blocks of a band and signed 8-bit inputs",
        "every processor is taken for one without; results stay correct",
    ),
    "in_backward": PrivateApi(
        ("torch:_C._current_graph_task_id",),
        "tell a checkpointed layer that runs again during the backward pass from a new pass",
        "with gradient checkpointing performer counts each training pass twice towards redraw_interval",
    ),
    "func_transforms": PrivateApi(
        ("torch:_C._functorch.get_interpreter_stack", "torch.autograd.forward_ad:_current_level"),
        "take paths with every derivative within torch.func and forward-mode AD",
        "use neither: what they return would be wrong where fused kernels run",
    ),
    "assert_in_graph": PrivateApi(
        ("torch:_assert_async",), "refuse packed documents inside a compiled graph", "a compiled model does not refuse them"
    ),
    "assume_in_graph": PrivateApi(
        ("torch:_check",),
        "bound a length that an exported graph reads from its input",
        "models with global tokens cannot be exported: " + REFUSED,
    ),
    "scan_in_graph": PrivateApi(("torch:_higher_order_ops.scan",), "write a recurrence over tokens into an exported graph", REFUSED),
    "trace_errors": PrivateApi(
        ("torch:_dynamo.exc.UserError",), "tell an input that is too short to be traced from another error of torch.export", REFUSED
    ),
    "compile_errors": PrivateApi(
        ("torch:_dynamo.exc.TorchDynamoException",),
        "tell that a kernel cannot be compiled from other errors",
        "on a GPU some calls raise an error instead of running in plain operations",
    ),
    "floats_as_constants": PrivateApi(
        ("torch:_dynamo.config",),
        "compile score terms that hold Python numbers",
        "on a GPU these run in plain operations, which is slower",
    ),
    "tensor_version": PrivateApi(
        ("torch:Tensor._version",), "notice that a mask was changed in place", "what follows from a mask is computed again for every layer"
    ),
    "storage_offset": PrivateApi(
        ("torch:UntypedStorage._checkpoint_offset",), "find a tensor in a .bin file without reading the file into memory", REFUSED
    ),
    "has_hooks": PrivateApi(
        ("torch:nn.Module._forward_hooks", "torch:nn.Module._forward_pre_hooks"),
        "see whether a projection was changed by a hook",
        "a projection is taken for one that was",
    ),
    "parameter_dict": PrivateApi(
        ("torch:nn.Module._parameters",), "leave the weights of a model in their files until each is used", REFUSED
    ),
    "attention_implementation": PrivateApi(
        ("transformers:PreTrainedConfig._attn_implementation", "transformers:PreTrainedConfig._attn_implementation_internal"),
        "know which attention implementation a model runs",
        REFUSED,
    ),
    "attentions_collected": PrivateApi(
        ("transformers.utils.output_capturing:_active_collector",),
        "know inside attention whether attentions are collected",
        "they are returned only by models that pass output_attentions down to their attention",
    ),
    "record_outputs": PrivateApi(
        ("transformers.utils.output_capturing:_CAN_RECORD_REGISTRY", "transformers:PreTrainedModel._can_record_outputs"),
        "collect hidden states and attentions of the base model inside a head",
        "a head returns none",
    ),
    "initialised": PrivateApi(
        ("transformers.initialization:copy_",),
        "know which tensors transformers has loaded, by the mark _is_hf_initialized that its initialisers skip",
        REFUSED,
    ),
    "tied_weights": PrivateApi(
        ("transformers:PreTrainedModel._tied_weights_keys",), "save parameters that layers share once", "each layer saves its own"
    ),
    "lazy_mapping": PrivateApi(
        (f"{AUTO}_load_attr_from_module", "transformers:AutoModel._model_mapping"),
        "enter class names into the Auto classes without importing models, which their public register() needs as classes",
        "AutoModel and AutoTokenizer do not know the Long models: import the class, for example from hf_longattn import LongBertModel, or "
        + REFUSED,
    ),
    "load_weights": PrivateApi(
        ("transformers:PreTrainedModel._load_pretrained_model",), "load a model whose weights stay in files of any format", REFUSED
    ),
    "model_hooks": PrivateApi(
        (
            "transformers:PreTrainedModel._check_and_adjust_attn_implementation",
            "transformers:PreTrainedModel._can_set_attn_implementation",
            "transformers:GenerationMixin._update_model_kwargs_for_generation",
            "transformers:GenerationMixin._valid_auto_compile_criteria",
            "transformers:GenerationMixin._prepare_position_ids_for_generation",
            "transformers.utils:PushToHubMixin._upload_modified_files",
        ),
        "take part in choosing an attention implementation, in generation and in push_to_hub",
        REFUSED,
    ),
    "gguf_readers": PrivateApi(
        ("transformers.modeling_gguf_pytorch_utils:TENSOR_PROCESSORS", "transformers.modeling_gguf_pytorch_utils:get_gguf_hf_weights_map"),
        "read the tensors of a GGUF file as transformers does",
        "convert the checkpoint that the file was made from, or " + REFUSED,
    ),
    "context_parallel": PrivateApi(
        ("accelerate:Accelerator._prepare_cp", "transformers:Trainer._prepare_context_parallel_inputs"),
        "cut sequences over processes by our own sequence parallelism where accelerate is configured with cp_size",
        "use hf_longattn.sequence_parallel in your own training loop, or " + REFUSED,
    ),
    "run_epoch": PrivateApi(
        ("transformers:Trainer._run_epoch",),
        "take no step more when a run is resumed after its last one",
        "such a run takes one more step",
    ),
    "tokenizer_overrides": PrivateApi(
        ("transformers.models.auto.tokenization_auto:MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS",),
        "load for a Long model the tokenizer that transformers loads for its base where the checkpoint names another class",
        "name the class of the base's tokenizer in tokenizer_config.json",
    ),
    "awq_scales": PrivateApi(
        ("transformers.integrations.awq:AWQ_SCALES_MAPPINGS",),
        "load a Long model whose weights AWQ quantised",
        "quantise with another method",
    ),
    "response_templates": PrivateApi(
        ("transformers.cli.serving.utils:_RESPONSE_TEMPLATE_FALLBACKS",),
        "have `transformers serve` read reasoning and tool calls of a Long model as its base's",
        "they stay in the text",
    ),
    "standalone_encoders": PrivateApi(
        ("sentence_transformers.base.modules.transformer:_ENCODER_ONLY_MODELS",),
        "have SentenceTransformer load the encoder of a Long encoder-decoder with its mechanisms",
        "it loads the base's encoder with full attention: " + REFUSED,
    ),
    "prompt_adapters": PrivateApi(
        ("peft.tuners.adaption_prompt.config:TRANSFORMERS_MODEL_CONFIG",),
        "adapt a Long Llama or Mistral by adaption prompts",
        "choose another method of peft",
    ),
    "expert_adapters": PrivateApi(
        ("peft.utils.transformers_weight_conversion:_MODEL_TO_CONVERSION_PATTERN",),
        "adapt the experts of a Long mixture by the names that they had in transformers 4",
        "pass target_parameters to the config of peft",
    ),
    "target_modules": PrivateApi(
        ("peft.utils.constants:TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",),
        "adapt in a Long model what peft adapts in its base",
        "pass target_modules to the config of peft",
    ),
}
DECLARED = (
    "_keep_in_fp32_modules_strict",
    "_no_split_modules",
    "_supports_attention_backend",
    "_supports_flash_attn",
    "_supports_flex_attn",
    "_supports_sdpa",
)
"""Class attributes that transformers' documentation tells authors of models to set; a version that does not know one ignores it."""


def missing(name: str, detail: object = "") -> BackendError:
    """The error to raise where an API is used."""
    return BackendError(PRIVATE_APIS[name].sentence(detail))


_warned: set[str] = set()


def warn_missing(name: str) -> None:
    """Warn once in a process that something is lost, though results are correct."""
    if name not in _warned:
        _warned.add(name)
        logger.warning(PRIVATE_APIS[name].sentence())


# ---- torch


def aten(api: str, which: int = 0) -> Callable[..., Any]:
    """An operator of PyTorch; if it is missing, a function that raises."""
    import torch

    try:
        return getattr(torch.ops.aten, _operator(api, which))
    except AttributeError:

        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise missing(api)

        return refuse


def has_aten(api: str) -> bool:
    import torch

    return hasattr(torch.ops.aten, _operator(api))


def _operator(api: str, which: int = 0) -> str:
    return PRIVATE_APIS[api].where[which].rpartition(".")[2]


def cpu_computes_bf16() -> bool:
    """Whether oneDNN has kernels for bf16 on this processor."""
    return bool(_linear("packed_linear", 2)())


def pack_weight(weight: Tensor) -> Tensor:
    """A weight ``(out, in)`` as oneDNN's kernels read it."""
    return _linear("packed_linear", 0)(weight, None)


def packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """``x (M, in)`` times a packed weight, ``(M, out)``."""
    return _linear("packed_linear", 1)(x, packed, bias, "none", [], "")


def pack_int8(weight: Tensor) -> Tensor:
    """An int8 weight ``(out, in)`` as oneDNN's kernels read it."""
    return _linear("int8_linear", 1)(weight, None)


def int8_product(x: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor, dtype: Any) -> Tensor:
    """int8 ``x (M, in)`` times a packed int8 weight times ``scale (out,)``, in ``dtype``; ``zeros (out,)`` int32 are zero points.

    VNNI multiplies unsigned by signed numbers. Without AMX, oneDNN has only its reference code for signed inputs, which takes thousands of
    times as long, so they are moved to 0 … 255. Sums are exact either way.
    """
    import torch

    zero = 0 if has_amx() else 128
    x = x.view(torch.uint8).bitwise_xor(zero) if zero else x  # the sign bit the other way round: 128 more
    return _linear("int8_linear", 0)(x, 1.0, zero, packed, scale, zeros, None, 1.0, 0, dtype, "none", [], "")


def has_amx() -> bool:
    """Whether the processor multiplies tiles of matrices in bf16 and 8 bits (AMX)."""
    import torch

    if not hasattr(torch.cpu, "_is_amx_tile_supported"):
        warn_missing("amx")
        return False
    return bool(torch.cpu._is_amx_tile_supported())


def _linear(api: str, which: int) -> Callable[..., Any]:
    """One of oneDNN's operators.

    Raises:
        BackendError: this PyTorch has none.
    """
    import torch

    _, space, name = PRIVATE_APIS[api].where[which].split(":")[1].split(".")
    found = getattr(getattr(torch.ops, space), name, None)
    if found is None:
        raise missing(api)
    return found


def in_backward() -> bool:
    """Whether a backward pass is running, which runs checkpointed layers again."""
    import torch

    if not hasattr(torch._C, "_current_graph_task_id"):
        warn_missing("in_backward")
        return False
    return torch._C._current_graph_task_id() != -1


def func_transforms() -> bool:
    """Whether a transform of torch.func, or a level of forward-mode AD, is active."""
    import torch

    try:
        return torch.autograd.forward_ad._current_level >= 0 or torch._C._functorch.get_interpreter_stack() is not None
    except AttributeError:
        warn_missing("func_transforms")
        return False


def values_mapped() -> bool:
    """Whether torch.vmap is active, so that Python cannot look at the values of tensors."""
    import torch

    if not hasattr(torch._C._functorch, "get_interpreter_stack"):
        return False
    stack = torch._C._functorch.get_interpreter_stack()
    return stack is not None and any(level.key() == torch._C._functorch.TransformType.Vmap for level in stack)


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
    """``state, out = step(state, entries)`` for each entry along axis 0 of ``inputs``: the last state, and every ``out`` along axis 0."""
    scan = getattr(importlib.import_module("torch._higher_order_ops"), "scan", None)
    if not callable(scan):
        raise missing("scan_in_graph")
    state, out = scan(step, first, inputs)
    return list(state), out


def trace_errors() -> tuple[type[Exception], ...]:
    """What torch.export raises for an input that is too short to represent all lengths."""
    try:
        from torch._dynamo.exc import UserError
    except ImportError:
        raise missing("trace_errors") from None
    return (UserError, AssertionError)  # PyTorch asserts if its guards contradict each other


def compile_errors() -> tuple[type[Exception], ...]:
    """What PyTorch raises for a function that it cannot compile."""
    import torch._dynamo

    found = getattr(torch._dynamo.exc, "TorchDynamoException", None)
    if found is None:
        warn_missing("compile_errors")
    return () if found is None else (found,)


def floats_as_constants() -> AbstractContextManager[None]:
    """A context in which PyTorch compiles Python floats as constants, not as tensors on the CPU, which no GPU kernel takes."""
    import torch._dynamo

    config = getattr(torch._dynamo, "config", None)
    if config is None:
        warn_missing("floats_as_constants")
        return nullcontext()
    return config.patch(specialize_float=True)


_fresh = itertools.count(1)


def tensor_version(tensor: Tensor) -> int:
    """A number that grows whenever ``tensor`` is changed in place; 0 for one made in inference mode, which has none."""
    if tensor.is_inference():
        return 0
    try:
        return tensor._version
    except AttributeError:
        warn_missing("tensor_version")
        return next(_fresh)


def storage_offset(tensor: Tensor) -> int:
    """The offset in its file, in bytes, of the storage of a tensor loaded on the meta device."""
    found = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if found is None:
        raise missing("storage_offset")
    return found


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook may change what ``module`` is given or returns."""
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
"""The field of a config with its attention implementation; :class:`LongConfig` checks what is set."""


def attention_implementation(config: Any) -> str | None:
    """The attention implementation of a config; ``None`` without a config."""
    if config is None:
        return None
    try:
        return config._attn_implementation
    except AttributeError:
        raise missing("attention_implementation") from None


def attentions_collected() -> bool:
    """Whether attentions of the running model are collected."""
    return any("attentions" in key for key in outputs_collected())


def outputs_collected() -> Collection[str]:
    """The outputs of layers of the running model that are collected: hidden_states, attentions …"""
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
    """Names of modules whose weights transformers leaves in float32 when a model is loaded in bf16."""
    return getattr(model, "_keep_in_fp32_modules_strict", None) or ()


def is_initialised(value: Any) -> bool:
    """Whether transformers has loaded a tensor, or initialised a module."""
    return getattr(value, "_is_hf_initialized", False)


def tie_parameters(model: Any, shared: Mapping[str, str]) -> None:
    """Save the parameters ``shared`` (name -> name of the one that is kept) of ``model`` once."""
    if not hasattr(model, "_tied_weights_keys"):
        warn_missing("tied_weights")
        return
    model._tied_weights_keys = {**(model._tied_weights_keys or {}), **shared}


def with_loader(model_class: Any, load: Callable[..., Any]) -> Any:
    """``model_class`` whose ``from_pretrained`` fills the model by ``load(original, model, state_dict, files, config, *more)``."""
    original = getattr(model_class, "_load_pretrained_model", None)
    if original is None:
        raise missing("load_weights")

    def load_pretrained(*arguments: Any) -> Any:
        return load(original, *arguments)

    own = {"__module__": model_class.__module__, "_load_pretrained_model": staticmethod(load_pretrained)}
    return type(model_class.__name__, (model_class,), own)


def gguf_readers() -> tuple[Mapping[str, Any], type[Any], Callable[..., Any]]:
    """transformers' tensor processors by architecture, the default one, and the function that maps names in the file to a model's."""
    from transformers import modeling_gguf_pytorch_utils as gguf

    try:
        return gguf.TENSOR_PROCESSORS, gguf.TensorProcessor, gguf.get_gguf_hf_weights_map
    except AttributeError:
        raise missing("gguf_readers") from None


# ---- transformers: Auto classes


def lazy_mappings(module: ModuleType) -> list[Any]:
    """The tables of a module of transformers from which Auto classes take their classes."""
    found = [table for table in vars(module).values() if hasattr(table, "_model_mapping") and hasattr(table, "_config_mapping")]
    return [table for table in found if not isinstance(table, type) and _is_lazy(table)]


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
    """Model type -> name of its class, and -> name of its config."""
    return table._model_mapping, table._config_mapping


def enter_class(table: Any, model_type: str, name: str, config: str, module_name: str, module: ModuleType) -> None:
    """Let a table find the class ``name`` for the config class ``config`` in ``module``, on first use."""
    table._model_mapping[model_type] = name
    table._modules[module_name] = module
    table._reverse_config_mapping[config] = model_type


def auto_mapping(auto_class: Any) -> Any:
    """Config class -> model class, of an Auto class; ``None`` for another class."""
    return getattr(auto_class, "_model_mapping", None)


def auto_classes() -> Iterator[tuple[str, Any]]:
    """Name and table of every ``AutoModel...``, sorted by name."""
    from transformers.models.auto import modeling_auto

    found = [(name, auto_mapping(one)) for name, one in sorted(vars(modeling_auto).items()) if name.startswith("AutoModel")]
    if not any(table is not None for _, table in found):
        raise missing("lazy_mapping")
    yield from ((name, table) for name, table in found if table is not None)


# ---- transformers: methods of models


class ModelHooks:
    """Private methods of PreTrainedModel that a Long model extends, each by a public method of :class:`LongAttentionMixin`."""

    config: Any

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """Every Long class is on the AttentionInterface; transformers looks for it in the base's source, which may not be (BigBird)."""
        return True

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        """Resolved before transformers looks for kernels, which it would download."""
        chosen = self.config.resolve_implementation(attn_implementation)
        return super()._check_and_adjust_attn_implementation(chosen, *args, **kwargs)  # type: ignore[misc]

    def _update_model_kwargs_for_generation(self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        return self.after_generated_token(updated)

    def _prepare_position_ids_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """transformers counts from 0, also where the model itself does not."""
        return super()._prepare_position_ids_for_generation(*args, **kwargs) + self.first_position_id  # type: ignore[misc]

    def _valid_auto_compile_criteria(self, model_kwargs: dict[str, Any], generation_config: Any) -> bool:
        return self.may_compile_generation() and super()._valid_auto_compile_criteria(model_kwargs, generation_config)  # type: ignore[misc]

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        self.before_upload(working_dir, repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)  # type: ignore[misc]

    @property
    def first_position_id(self) -> int:
        """The first of a text's ``position_ids``."""
        return 0

    def after_generated_token(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the next call of the model during generation."""
        return model_kwargs

    def may_compile_generation(self) -> bool:
        """Whether ``generate`` may compile the model by itself, as it does for static caches."""
        return True

    def before_upload(self, working_dir: Any, repo_id: str) -> None:
        """Called by ``push_to_hub`` with the folder that is about to be uploaded."""


class TrainerHooks:
    """Private methods of Trainer that ours takes part in, by public ones."""

    control: Any

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.is_done():
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def is_done(self) -> bool:
        """Whether no step is left before an epoch begins."""
        return False

    def _prepare_context_parallel_inputs(self, model: Any, inputs: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any]]:
        cutter = self.input_cutter(model)
        return super()._prepare_context_parallel_inputs(model, inputs) if cutter is None else (cutter, inputs)  # type: ignore[misc]

    def input_cutter(self, model: Any) -> Callable[[], Any] | None:
        """A context manager in which ``model`` cuts its inputs over processes; ``None``: accelerate's own."""
        return None


def epochs_can_be_skipped() -> None:
    """Warn where :class:`TrainerHooks` cannot leave an epoch out."""
    from transformers import Trainer

    if not hasattr(Trainer, "_run_epoch"):
        warn_missing("run_epoch")


def can_set_implementation(model_class: Any) -> bool:
    """Whether a class takes its attention from the AttentionInterface."""
    if not hasattr(model_class, "_can_set_attn_implementation"):
        raise missing("model_hooks", " (_can_set_attn_implementation)")
    return model_class._can_set_attn_implementation()


# ---- accelerate


def leave_context_parallelism(accelerator: Any) -> None:
    """Keep accelerate's preparation for torch's context parallelism, which computes full causal attention alone, from a Long model."""
    if not hasattr(accelerator, "_prepare_cp"):
        raise missing("context_parallel")
    accelerator._prepare_cp = lambda *prepared: prepared


# ---- tables of other libraries by model type


def model_type_table(name: str, module: ModuleType) -> Any:
    """The table ``name`` of :data:`PRIVATE_APIS` in ``module``; ``None``, after a warning, where this version has none."""
    table = getattr(module, PRIVATE_APIS[name].where[0].partition(":")[2], None)
    if table is None:
        warn_missing(name)
    return table


def target_module_tables(constants: ModuleType) -> list[dict[str, Any]]:
    """Model type -> modules to adapt, for every method of peft."""
    found = [value for name, value in vars(constants).items() if name.endswith("_MODULES_MAPPING") and isinstance(value, dict)]
    if not found:
        warn_missing("target_modules")
    return found
