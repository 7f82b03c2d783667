"""Load a source with its own class or with the class of its result, and check that no weights are missing."""

from __future__ import annotations

import contextlib
import functools
import pickle
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils import logging as hub_logging
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from transformers.utils import logging

from ..errors import CheckpointError
from ..files import named_class
from ..loading import LAYER, load_weights, tied_weights
from ..mechanisms import Mechanism
from ..modeling.attach.memory_tokens import MemoryTokens
from ..modeling.family.definition import CAUSAL_LANGUAGE_MODELS, known_family
from ..modeling.family.registration import auto_class_name, quiet_torchao
from .architecture import Architecture
from .running import seeded
from .source import Source


def result_class(architecture: Architecture, config: Any) -> Any:
    """The class that loads a result with this config: the Auto class of its head, or else its Long class."""
    name = auto_class_name(config, architecture.long_class)
    return getattr(transformers, name) if name else architecture.model_class


def source_class(architecture: Architecture) -> Any:
    """transformers' class of a source."""
    family, name = architecture.family, architecture.source_class
    return family.base_class(name) if name in family.model_classes else getattr(transformers, name)


def load_source(source: Source, architecture: Architecture, dtype: torch.dtype | str) -> tuple[Any, set[str]]:
    """Load the source with its class of transformers. Returns the model, and the names of the parameters that its
    files lack, which are random."""
    arguments: dict[str, Any] = {}
    if architecture.family.config_class.score_cap is not None:
        # transformers before 5.23 would select SDPA, which ignores a cap of the scores
        arguments["attn_implementation"] = "eager"
    return load_checked(
        source_class(architecture),
        source.folder,
        source.name,
        headless=True,
        allow_pickle=source.pickled,
        dtype=dtype,
        **arguments,
    )


def load_as_result(
    source: Source, architecture: Architecture, config: Any, dtype: torch.dtype | None = torch.float32
) -> tuple[Any, set[str]]:
    """Load the source's weights into the class of its result. Loading extends the position tables.

    Mechanisms may have new parameters, which have the same values at every call.

    Args:
        config: the config of the result.
        dtype: dtype of all weights. ``None`` keeps the dtype of each stored tensor, even if config.json names another.
    Returns:
        The model in evaluation mode, and the names of the parameters that the source's files lack.
    """
    stored: Mapping[str, torch.dtype] = {}
    loaded: Any = dtype
    if dtype is None:
        stored = source.dtypes
        loaded = functools.reduce(torch.promote_types, stored.values()) if stored else "auto"
    model_class = result_class(architecture, config)
    folder: Path | None = source.folder
    arguments: dict[str, Any] = {"dtype": loaded, "allow_pickle": source.pickled}
    if architecture.converter is not None:
        # rename the tensors of a long model of transformers, without those that its files lack
        original, lacking = load_source(source, architecture, loaded)
        random = {value.data_ptr() for name, value in original.state_dict().items() if name in lacking}
        tensors = architecture.converter.state_dict(original)
        state = {name: value for name, value in tensors.items() if value.data_ptr() not in random}
        model_class, folder = architecture.model_class, None
        arguments = {"dtype": original.dtype, "state_dict": state}
    with seeded():
        model, missing = load_checked(model_class, folder, source.name, headless=True, config=config, **arguments)
    refuse_lost_head(source, model, missing)
    for name, value in model.named_parameters():
        value.data = value.data.to(stored.get(name, value.dtype))
    return model, missing


def refuse_lost_head(source: Source, model: Any, missing: set[str]) -> None:
    """Refuse a source whose files lack the matrix that predicts tokens.

    The matrix is needed if the class generates text, or if the files have the rest of the head. Without its whole
    head, another model can still be trained.

    Args:
        model: the result.
        missing: names of the parameters that the files lack.
    """
    head = model.get_output_embeddings()
    matrices = [name for name, value in model.named_parameters() if head is not None and value is head.weight]
    head_parameters = {
        name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")
    }
    generates = type(model).__name__.endswith((*CAUSAL_LANGUAGE_MODELS, "ForConditionalGeneration"))
    if {*matrices} & missing and (generates or head_parameters - missing):
        class_name = named_class(source.config, "")
        headless = MODEL_MAPPING_NAMES.get(source.config["model_type"])
        raise CheckpointError(
            f"{source.name!r} has no {matrices[0]}, the head of a {class_name}, and its config.json does not tie the "
            f'head to the embeddings; write "tie_word_embeddings": true there if they are the head, or '
            f'"architectures": ["{headless}"] for the model without a head.'
        )


def load_checked(
    model_class: Any, folder: Path | None, name: str, *, headless: bool = False, **arguments: Any
) -> tuple[Any, set[str]]:
    """Load a model in evaluation mode, and check that its files have all weights.

    A pooler without weights would be random. It is removed from a model without a head.

    Args:
        model_class: the class of the model, or an Auto class.
        folder: folder of the files; ``None`` if ``arguments`` have a state_dict.
        name: the checkpoint as typed by the user, for messages.
        headless: whether weights of the head may be missing.
        arguments: further arguments of :func:`~hf_longattn.loading.load_weights`. With a ``config``, parameters of
            mechanisms may be missing, too.
    Returns:
        The model, and the names of the missing parameters.
    """
    try:
        model, info = load_weights(
            model_class,
            folder,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **arguments,
        )
    except CheckpointError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise CheckpointError(
                f"The .bin files of {name!r} hold more than tensors, which this package never reads; give a "
                "checkpoint with safetensors files."
            ) from error
        raise
    for tensor, stored, expected in sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"Tensor {tensor!r} of {name!r} has the shape {tuple(stored)}, but its config requires {tuple(expected)}."
        )
    missing = {*info["missing_keys"]}
    if "config" in arguments:
        missing = {tensor for tensor in missing if not tensor.startswith(added_modules(model))}
    missing -= {tensor for tensor, other in tied_weights(model).items() if other not in missing}
    lost = needed_below_head(model, missing) if headless else missing
    lost = {tensor for tensor in lost if "pooler" not in tensor}
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors that a {type(model).__name__} needs are missing in {name!r}, the first is "
            f"{min(lost)!r}; is every weight file there, and does its config.json belong to it?"
        )
    refuse_further_layers(model, info["unexpected_keys"], name)
    return model.eval(), without_random_pooler(model, missing)


def needed_below_head(model: Any, missing: set[str]) -> set[str]:
    """The missing parameters that a model cannot run without: those below its head, except tied weights and position
    tables that are computed."""
    needed = missing - {*tied_weights(model)}
    family = known_family(model.config)
    if family is not None:
        tables = {name: family.table(name) for name in needed}
        needed = {name for name, table in tables.items() if table is None or table.learned}
    if model.base_model is not model:
        needed = {name for name in needed if name.startswith(f"{model.base_model_prefix}.")}
    return needed


def refuse_further_layers(model: Any, unexpected: Iterable[str], name: str) -> None:
    """Refuse a checkpoint that has more layers than its config says. Other unexpected tensors, such as a pooler, do no
    harm.

    Args:
        unexpected: names of the tensors that the model does not have.
        name: the checkpoint as typed by the user, for messages.
    """
    known = {LAYER.sub(".0.", tensor) for tensor in model.state_dict()}
    for tensor in sorted(unexpected):
        in_first_layer = LAYER.sub(".0.", tensor)
        if LAYER.search(tensor) and {in_first_layer, f"{model.base_model_prefix}.{in_first_layer}"} & known:
            raise CheckpointError(
                f"{name!r} has tensors of layers that its config.json does not have, the first is {tensor!r}; correct "
                f"its number of layers there ({model.config.num_hidden_layers} now), or save it again without them."
            )


def without_random_pooler(model: Any, missing: set[str]) -> set[str]:
    """Remove a pooler whose weights are missing.

    Returns the missing parameters that the model still has. With a head, the pooler's are among them, because the
    caller reports them.
    """
    base = model.base_model
    pooler = "pooler." if base is model else f"{model.base_model_prefix}.pooler."
    pooler_names = {name for name in missing if name.startswith(pooler)}
    if pooler_names:
        base.pooler = None
    return missing - pooler_names if base is model else missing


def attached_mechanisms(model: nn.Module) -> dict[str, Mechanism]:
    """Name of a module in the model -> the mechanism that it is."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Mechanism)}


def added_modules(model: nn.Module) -> tuple[str, ...]:
    """The modules that mechanisms and memory tokens add to the base, as prefixes of their parameters' names."""
    return tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Mechanism | MemoryTokens))


_LOCK = threading.Lock()
"""Held while :func:`quiet_libraries` begins or ends in a thread."""
_USERS: list[None] = []
"""An entry for each active context :func:`quiet_libraries`, in any thread. The first context changes the settings of
the process, and the last one restores them."""
_RESTORE = contextlib.ExitStack()
"""Restores the settings when it is closed."""


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Within the context, libraries log only errors, and draw no progress bars. Also a decorator."""
    with _LOCK:
        if not _USERS:
            _RESTORE.enter_context(_errors_only())
        _USERS.append(None)
    try:
        yield
    finally:
        with _LOCK:
            _USERS.pop()
            if not _USERS:
                _RESTORE.close()


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """As :func:`quiet_libraries`, but for one thread at a time."""
    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), quiet_torchao():
            warnings.filterwarnings("ignore", module=r"(transformers|torch|huggingface_hub)\b")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()
