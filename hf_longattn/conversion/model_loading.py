"""Load source and result through transformers' classes, and run them."""

from __future__ import annotations

import contextlib
import functools
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ..errors import CheckpointError, OptionError, in_a_line
from ..loading import load_weights, tied_weights
from ..mechanisms import Mechanism
from ..modeling.attach.memory_tokens import MemoryTokens
from ..modeling.family.definition import known_family
from ..modeling.family.registration import auto_class_name, quiet_torchao
from .adopt import decoder_start
from .sources import Architecture, Source


def result_class(architecture: Architecture, config: Any) -> Any:
    """The class that loads a result with this config: the Auto class of its head, or else its own class."""
    name = auto_class_name(config, architecture.long_class)
    return getattr(transformers, name) if name else architecture.model_class


def attached_mechanisms(model: nn.Module) -> dict[str, Mechanism]:
    """Module name -> mechanism, in layer order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Mechanism)}


def attached_memory(model: nn.Module) -> dict[str, MemoryTokens]:
    """Module name -> memory tokens."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MemoryTokens)}


def chosen_device(name: str | None) -> torch.device:
    """The device called ``name``, or :class:`OptionError`; for ``None`` the accelerator, or the CPU if there is none."""
    if name is None:
        return (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"There is no device {name!r:.40} here ({in_a_line(error, 120)}); leave --device out.") from error


def load_source(source: Source, architecture: Architecture, dtype: torch.dtype | str = torch.float32) -> tuple[Any, set[str]]:
    """Load the source with its class of transformers, as :func:`load_checked` does. Parameters that it lacks are random."""
    family, name = architecture.family, architecture.source_class
    # SDPA ignores a cap of the scores; transformers before 5.23 selects it nevertheless
    arguments: dict[str, Any] = {} if family.config_class.score_cap is None else {"attn_implementation": "eager"}
    model_class = family.base_class(name) if name in family.model_classes else getattr(transformers, name)
    return load_checked(model_class, source.folder, source.name, headless=True, allow_pickle=source.pickled, dtype=dtype, **arguments)


def load_as_result(
    source: Source, architecture: Architecture, config: Any, dtype: torch.dtype | None = torch.float32
) -> tuple[Any, set[str]]:
    """Load the source with the class and the config of a result, as users do. Loading extends its position tables.

    Returns what :func:`load_checked` does. New parameters of mechanisms have the same values at every call.

    Args:
        dtype: of all weights. ``None`` keeps that of each tensor, also where config.json names another.
    """
    stored = source.dtypes if dtype is None else {}
    loaded = dtype or (functools.reduce(torch.promote_types, stored.values()) if stored else "auto")
    model_class = result_class(architecture, config)
    folder: Path | None = source.folder
    arguments: dict[str, Any] = {"dtype": loaded, "allow_pickle": source.pickled}
    if architecture.converter is not None:
        original, lacking = load_source(source, architecture, loaded)
        random = {value.data_ptr() for name, value in original.state_dict().items() if name in lacking}
        state = {name: value for name, value in architecture.converter.state_dict(original).items() if value.data_ptr() not in random}
        model_class, folder, arguments = architecture.model_class, None, {"dtype": original.dtype, "state_dict": state}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, missing = load_checked(model_class, folder, source.name, headless=True, adds_mechanisms=True, config=config, **arguments)
    for name, value in model.named_parameters():
        value.data = value.data.to(stored.get(name, value.dtype))
    return model, missing


LAYER = re.compile(r"\.\d+\.")
"""The number of a layer in a tensor's name."""


def load_checked(
    model_class: Any, folder: Path | None, name: str, *, headless: bool = False, adds_mechanisms: bool = False, **arguments: Any
) -> tuple[Any, set[str]]:
    """Load a model whose files must have all of its weights, in evaluation mode.

    A pooler that they lack would be random. A model without a head works without it, so it is removed there.

    Args:
        folder: of the files; ``None`` if ``arguments`` give config and state_dict.
        name: of the checkpoint in messages.
        headless: the weights of a head may be missing.
        adds_mechanisms: the files are of a model without mechanisms, whose parameters are new.
        arguments: of ``from_pretrained``.

    Returns:
        The model, and the names of the parameters that are missing.
    """
    try:
        model, info = load_weights(
            model_class, folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
        )
    except CheckpointError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise CheckpointError(f"The .bin files of {name!r} hold more than tensors, which is never read.") from error
        raise
    for tensor, stored, expected in sorted(info["mismatched_keys"]):
        needed = f"but its config requires {tuple(expected)}"
        raise CheckpointError(f"Tensor {tensor!r} of {name!r} has the shape {tuple(stored)}, {needed}.")
    missing = {*info["missing_keys"]}
    if adds_mechanisms:
        new = tuple(f"{place}." for place in (*attached_mechanisms(model), *attached_memory(model)))
        missing = {tensor for tensor in missing if not tensor.startswith(new)}
    missing -= {tensor for tensor, other in tied_weights(model).items() if other not in missing}
    if lost := {tensor for tensor in (of_body(model, missing) if headless else missing) if "pooler" not in tensor}:
        raise CheckpointError(
            f"{len(lost)} tensors that a {type(model).__name__} needs are missing in {name!r}, the first is {min(lost)!r};"
            " is every weight file there, and does its config.json belong to it?"
        )
    # tensors of layers that the model does not have; other surplus tensors do no harm (a pooler, a head of pretraining)
    known, prefix = {LAYER.sub(".0.", tensor) for tensor in model.state_dict()}, f"{model.base_model_prefix}."
    surplus = [tensor for tensor in sorted(info["unexpected_keys"]) if LAYER.search(tensor)]
    if surplus := [tensor for tensor in surplus if {LAYER.sub(".0.", tensor), prefix + LAYER.sub(".0.", tensor)} & known]:
        raise CheckpointError(
            f"{name!r} has tensors of layers that its config.json does not have, the first is {surplus[0]!r}; correct its number of layers "
            f"there ({model.config.num_hidden_layers} now), or save it again without them."
        )
    return model.eval(), without_random_pooler(model, missing)


def of_body(model: Any, missing: set[str]) -> set[str]:
    """The missing weights that are not of a head or a computed table."""
    family, prefix = known_family(model.config), f"{model.base_model_prefix}."
    tables = {name: None if family is None else family.table(name) for name in missing - {*tied_weights(model)}}
    stored = {name for name, table in tables.items() if table is None or table.learned}
    return stored if model.base_model is model else {name for name in stored if name.startswith(prefix)}


def without_random_pooler(model: Any, missing: set[str]) -> set[str]:
    """Remove a pooler that the checkpoint lacks and that would be initialised at random. The class works without it.

    Returns:
        The names that are still missing; for a model with a head, all of `missing`.
    """
    base = model.base_model
    pooler = "pooler." if base is model else f"{model.base_model_prefix}.pooler."
    if pooler_names := {name for name in missing if name.startswith(pooler)}:
        base.pooler = None
    return missing - pooler_names if base is model else missing


def outputs(model: Any, ids: Tensor, *, decoder_tokens: int | None = None, **arguments: Any) -> dict[str, Tensor]:
    """All tensors that one forward pass over ``ids (B, N)`` returns, by name. Without the cache.

    `decoder_tokens`: number of decoder tokens for an encoder-decoder, which are ``ids`` shifted right by one; ``None`` means all.
        Sequence classifiers always get all.
    """
    if "MultipleChoice" in type(model).__name__:
        ids = ids.unsqueeze(1)
    if model.config.is_encoder_decoder:
        if type(model).__name__.endswith("ForSequenceClassification"):  # the head reads the end token's state
            ids = torch.cat([ids[:, :-1], torch.full_like(ids[:, :1], model.config.eos_token_id)], dim=1)
            decoder_tokens = None
        start = torch.full_like(ids[:, :1], decoder_start(model.config))
        arguments["decoder_input_ids"] = torch.cat([start, ids], dim=1)[:, : min(ids.shape[1], decoder_tokens or ids.shape[1])]
    if (family := known_family(model.config)) is not None:
        arguments = {**family.rule.further_inputs(model.config, *ids.shape[:2]), **arguments}
    with torch.no_grad():
        returned = model(input_ids=ids, return_dict=True, **arguments)
    return {name: value for name, value in returned.items() if isinstance(value, Tensor)}


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Context (or decorator) in which transformers, huggingface_hub and torchao log only errors. They draw no progress bars."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, hub_verbosity, bars = logging.get_verbosity(), hub_logging.get_verbosity(), logging.is_progress_bar_enabled()
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
