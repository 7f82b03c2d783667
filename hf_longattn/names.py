"""Names of this package that are imported on first use, and private names of other libraries that it uses.

A private name can change with any version of its library, so :data:`PRIVATE_APIS` lists them all. The package can be
imported if a name is missing. Using the name then raises a :class:`BackendError` (:func:`look_up`, :func:`missing`).
If results stay correct without it, the package only warns (:func:`warn_missing`).

``tests/test_private_apis.py`` checks that the package uses no private name outside of the list, and that all names
exist in the versions of :data:`TESTED`. It also removes each name, and checks the message.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.metadata
import logging
import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from .errors import BackendError

BACKEND = "longattn"
"""The ``attn_implementation`` of Long models. The mask function has the same name in transformers, and the names of
this package's cache layer types start with it."""
LOGGER = "transformers.hf_longattn"
"""Name of the package's logger. As a child of transformers' logger, it has the verbosity set for transformers."""
logger = logging.getLogger(LOGGER)


def public_names(package: str) -> tuple[Callable[[str], Any], list[str]]:
    """The functions ``__getattr__`` and the list ``__all__`` for a package that imports its modules on first use.

    The names are those that the package's source imports relatively under ``if TYPE_CHECKING``.
    """
    tree = ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8"))
    modules: dict[str, str] = {}  # public name -> relative name of its module, such as ".errors"
    for block in tree.body:
        if not isinstance(block, ast.If) or ast.unparse(block.test) != "TYPE_CHECKING":
            continue
        for node in block.body:
            if isinstance(node, ast.ImportFrom) and node.level:
                module = "." * node.level + str(node.module)
                modules |= {alias.name: module for alias in node.names if alias.name != "*"}

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name], package), name)

    return load, sorted(modules)


def module_names(package: str) -> list[str]:
    """The names of all modules in a sub-package such as ``mechanisms``, sorted.

    The sub-package is not imported for this, since its imports may be slow.
    """
    imported = sys.modules.get(f"hf_longattn.{package}")
    if imported is None:
        folders = [str(Path(__file__).parent.joinpath(*package.split(".")))]
    else:
        folders = list(imported.__path__)
    return sorted(module.name for module in pkgutil.iter_modules(folders) if not module.ispkg)


def load_module(package: str, name: str) -> ModuleType:
    return importlib.import_module(f"hf_longattn.{package}.{name}")


TESTED = {
    "torch": ("2.13", "2.15"),
    "transformers": ("5.20", "5.24"),
    "peft": ("0.21", "0.21"),
    "accelerate": ("1.10", "1.15"),
    "sentence_transformers": ("6.2", "6.2"),
}
"""Library -> (lowest version that pyproject.toml allows, newest version). The tests pass with both."""
ATEN = "torch:ops.aten._"
MODEL_MAPPING = "transformers.models.auto.modeling_auto:MODEL_MAPPING."
PRIVATE_APIS: dict[str, tuple[str, ...]] = {
    "cpu_flash": (
        f"{ATEN}scaled_dot_product_flash_attention_for_cpu",
        f"{ATEN}scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "cuda_flash": (f"{ATEN}flash_attention_forward", f"{ATEN}flash_attention_backward"),
    "pair_scores": (f"{ATEN}embedding_bag_per_sample_weights_backward",),
    "bf16_products": ("torch:ops.mkldnn._is_mkldnn_bf16_supported",),
    "int8_linear": ("torch:ops.onednn.qlinear_pointwise", "torch:ops.onednn.qlinear_prepack"),
    "fp32_linear": ("torch:ops.mkldnn._linear_pointwise",),
    "amx": ("torch:cpu._is_amx_tile_supported",),
    "in_backward": ("torch:_C._current_graph_task_id",),
    "fake_tensors": ("torch:_C._get_dispatch_mode", "torch:_C._TorchDispatchModeKey.FAKE"),
    "functorch": (
        "torch:_C._are_functorch_transforms_active",
        "torch:_C._functorch.get_interpreter_stack",
        "torch:_C._functorch.TransformType.Vmap",
    ),
    "assert_in_graph": ("torch:_assert_async",),
    "assume_in_graph": ("torch:_check",),
    "compile_errors": ("torch:_dynamo.exc.TorchDynamoException",),
    "floats_as_constants": ("torch:_dynamo.config",),
    "stays_in_place": ("torch:_dynamo.mark_static_address",),
    "tensor_version": ("torch:Tensor._version",),
    "has_hooks": ("torch:nn.Module._forward_hooks", "torch:nn.Module._forward_pre_hooks"),
    "attention_implementation": (
        "transformers:PreTrainedConfig._attn_implementation",
        "transformers:PreTrainedConfig._attn_implementation_internal",
    ),
    "attentions_collected": ("transformers.utils.output_capturing:_active_collector",),
    "record_outputs": (
        "transformers.utils.output_capturing:_CAN_RECORD_REGISTRY",
        "transformers:PreTrainedModel._can_record_outputs",
    ),
    "unread_weights": ("transformers:PreTrainedModel._keys_to_ignore_on_load_unexpected",),
    "lazy_mapping": (
        "transformers.models.auto.auto_factory:_LazyAutoMapping._load_attr_from_module",
        "transformers:AutoModel._model_mapping",
        *(
            f"{MODEL_MAPPING}{name}"
            for name in ("_model_mapping", "_config_mapping", "_modules", "_reverse_config_mapping")
        ),
    ),
    "output_frames": (
        "transformers:Wav2Vec2PreTrainedModel._get_feat_extract_output_lengths",
        "transformers:ParakeetPreTrainedModel._get_subsampling_output_length",
    ),
    "distance_buckets": ("transformers.models.wavlm.modeling_wavlm:WavLMAttention._relative_positions_bucket",),
    "turned_states": (
        "transformers.models.wav2vec2_bert.modeling_wav2vec2_bert:Wav2Vec2BertSelfAttention._apply_rotary_embedding",
    ),
    "overridden_methods": (
        "transformers:PreTrainedModel._can_set_attn_implementation",
        "transformers:PreTrainedModel._check_and_adjust_attn_implementation",
        "transformers:PreTrainedModel._from_config",
        "transformers:PreTrainedModel._initialize_weights",
        "transformers:PreTrainedModel.initialize_weights",
        "transformers:GenerationMixin._get_stopping_criteria",
        "transformers:GenerationMixin._prefill",
        "transformers:GenerationMixin._prepare_decoder_input_ids_for_generation",
        "transformers:GenerationMixin._prepare_generated_length",
        "transformers:GenerationMixin._prepare_position_ids_for_generation",
        "transformers:GenerationMixin._update_model_kwargs_for_generation",
        "transformers:GenerationMixin._valid_auto_compile_criteria",
        "transformers:GenerationMixin._validate_generation_mode",
        "transformers.generation.continuous_batching:ContinuousMixin.init_continuous_batching",
        "transformers.utils:PushToHubMixin._upload_modified_files",
    ),
    "set_implementation": (
        "transformers:PreTrainedModel._can_set_attn_implementation",
        "transformers:PreTrainedModel._can_set_experts_implementation",
    ),
    "tokenizer_overrides": ("transformers.models.auto.tokenization_auto:MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS",),
    "standalone_encoders": ("sentence_transformers.base.modules.transformer:_ENCODER_ONLY_MODELS",),
    "message_formats": ("sentence_transformers.base.modality:KNOWN_MODEL_TYPES_MESSAGE_FORMATS",),
    "feature_inputs": ("sentence_transformers.base.modules.transformer:_FEATURE_EXTRACTION_EDGE_CASES",),
    "logits_inputs": ("sentence_transformers.base.modules.transformer:_FILL_MASK_EDGE_CASES",),
    "generating_inputs": ("sentence_transformers.base.modules.transformer:_TEXT_GENERATION_EDGE_CASES",),
    "expert_adapters": ("peft.utils.transformers_weight_conversion:_MODEL_TO_CONVERSION_PATTERN",),
    "target_modules": ("peft.utils.constants:TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",),
}
"""This package's name of an API -> the private names that it consists of, as ``"module:name"`` or
``"module:Class.name"``."""


def release(version: str) -> tuple[int, ...]:
    """Major and minor number of a version: ``(5, 24)`` for ``5.24.0rc1``."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def warn_untested() -> None:
    """Log one warning if installed libraries are newer than the tested versions."""
    newer = []
    tested = []
    for library, (_, newest) in TESTED.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # an optional library
            installed = importlib.metadata.version(library)
            if release(installed) > release(newest):
                newer.append(f"{library} {installed} (tested up to {newest})")
                tested.append(f"'{library}=={newest}.*'")
    if newer:
        logger.warning(
            f"Newer than the versions with which hf_longattn is tested: {', '.join(newer)}. If a result or an error "
            f"surprises you, type pip install {' '.join(tested)}."
        )


def look_up(name: str, which: int = 0, *, when_called: bool = False) -> Any:
    """The object that a private name stands for, such as a function or a class.

    Args:
        name: a key of :data:`PRIVATE_APIS`.
        which: index into the private names under this key.
        when_called: for a missing function, return a function that raises the error. By default, the look-up itself
            raises.

    Raises:
        BackendError: the installed version of the library has no such object.
    """
    module, _, path = PRIVATE_APIS[name][which].partition(":")
    try:
        return functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (AttributeError, ImportError):
        if not when_called:
            raise missing(name, which) from None

        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise missing(name, which)

        return refuse


@functools.cache
def require(name: str) -> None:
    """Raise :class:`BackendError` if a private name of the API ``name`` is missing in the installed library."""
    for which in range(len(PRIVATE_APIS[name])):
        look_up(name, which)


def missing(name: str, which: int = 0) -> BackendError:
    """The error for the use of an API that the installed library does not have. It names versions that have it."""
    where = PRIVATE_APIS[name][which]
    library = where.split(":")[0].split(".")[0]
    lowest, highest = TESTED[library]
    return BackendError(
        f"{library} {importlib.metadata.version(library)} has no {where.replace(':', '.')}, which hf_longattn uses; "
        f"install {library} {lowest} to {highest}, with which it is tested."
    )


@functools.cache
def warn_missing(name: str) -> None:
    """Warn once per process that the API ``name`` is missing. Use this where results stay correct without it."""
    logger.warning(str(missing(name)))
