"""Load source and result through transformers' public classes, and run them."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, in_a_line
from ..private_apis import auto_classes
from .architectures import Architecture
from .disk_offload import WeightsInFiles
from .sources import Source, open_source
from .tensor_files import TensorHeader


def auto_class_name(config: Any, class_name: str) -> str | None:
    """The Auto class that gives `class_name` for this config, for example "AutoModelForQuestionAnswering"."""
    for name, mapping in sorted(auto_classes(), key=lambda found: found[0] == "AutoModelForPreTraining"):  # it has other heads as well
        if type(config) not in mapping:
            continue
        found = mapping[type(config)]
        if class_name in [one.__name__ for one in (found if isinstance(found, tuple | list) else [found])]:
            return name
    return None


def load_source(
    source: Source, architecture: Architecture, dtype: torch.dtype | None, scratch: Path | None = None
) -> tuple[nn.Module, set[str]]:
    """The source as transformers loads it, in fp32.

    Args:
        source: opened.
        architecture: of the source.
        dtype: to round its weights to; `None` does not round.
        scratch: if given, the weights stay in their files (see `WeightsInFiles`), and tensors that are computed from several are written to
            this folder. They are then read by this package's readers.

    Returns:
        The model, and the names of its parameters that are missing in the source.

    Raises:
        CheckpointError: it does not load, or weights below its head are missing.
    """
    import transformers

    own: dict[str, Any] = {}
    if architecture.converter is not None:
        model_class, own = architecture.converter.source_model(architecture.original_config, architecture.source_class)
    else:
        model_class = getattr(transformers, architecture.source_class)
    if architecture.family.config_class.score_cap is not None:
        own["attn_implementation"] = "eager"  # SDPA ignores the cap; transformers before 5.23 selects it nevertheless
    model, missing = _model_of(source, model_class, architecture, dtype, scratch, own)
    _check_complete(missing, model, source.folder, architecture)
    return model, missing


def load_plain(source: Source, architecture: Architecture, dtype: torch.dtype | None, scratch: Path | None = None) -> nn.Module:
    """The same for an architecture without a family; missing weights are not checked."""
    return _model_of(source, architecture.model_class, architecture, dtype, scratch, {})[0]


def _model_of(
    source: Source, model_class: Any, architecture: Architecture, dtype: torch.dtype | None, scratch: Path | None, own: Mapping[str, Any]
) -> tuple[nn.Module, set[str]]:
    """`own`: further arguments of ``from_pretrained``."""
    if scratch is None:
        model, missing = _load(partial(source.load, model_class), source.folder, dtype, **own)
        return source.finish(model), missing
    config = architecture.source_config if architecture.original_config is None else architecture.original_config
    arguments = {"config": config, "state_dict": {}, **own}  # transformers must not look for the weights itself
    return _load_from_files(model_class, None, source.folder, dtype, source.tensors, scratch, **arguments)


def _check_complete(missing: set[str], model: nn.Module, folder: Path, architecture: Architecture) -> None:
    """Refuse missing weights, except those of a head, a pooler or computed tables."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    own = missing if getattr(model, "base_model", model) is model else {name for name in missing if name.startswith(prefix)}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    tables = {name: architecture.family.table(name) for name in own}
    computed = {name for name, table in tables.items() if table is not None and not table.learned}
    lost = sorted(name for name in own - tied - computed if "pooler" not in name)
    if lost:
        raise CheckpointError(
            f"{len(lost)} tensors that a {type(model).__name__} needs are missing in {str(folder)!r}, the first is {lost[0]!r};"
            " is every weight file there, and does its config.json belong to it?"
        )


def load_result(
    folder: Path,
    architecture: Architecture,
    config: Any,
    dtype: torch.dtype | None = None,
    scratch: Path | None = None,
    *,
    config_instead: Any = None,
) -> tuple[nn.Module, set[str]]:
    """The result through the Auto class of its head, in fp32; `dtype` and `scratch` as in `load_source`.

    config_instead: replaces its config.
    """
    import transformers

    arguments = {"use_safetensors": True, **({} if config_instead is None else {"config": config_instead})}
    if scratch is not None:
        tensors = open_source(folder).tensors
        return _load_from_files(architecture.model_class, folder, folder, dtype, tensors, scratch, **arguments)
    name = auto_class_name(config, architecture.long_class)
    model_class: Any = getattr(transformers, name) if name else architecture.model_class
    return _load(partial(model_class.from_pretrained, folder), folder, dtype, local_files_only=True, **arguments)


def newly_initialised(missing: set[str], model: nn.Module) -> bool:
    """Whether parameters of the head were initialised at random, so that its outputs cannot be compared."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    return bool(missing - tied)


def _load(load: Callable[..., Any], folder: Path, dtype: torch.dtype | None, **arguments: Any) -> tuple[nn.Module, set[str]]:
    """Call `load`, a ``from_pretrained``, with the common arguments; `folder` is for messages."""
    try:
        model, info = load(dtype=dtype or torch.float32, output_loading_info=True, **arguments)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"transformers cannot load {str(folder)!r}: {in_a_line(error)}.") from error
    # not model.float(), which a model from GGUF refuses although its weights are plain
    return nn.Module.float(model).eval(), without_random_pooler(model, set(info["missing_keys"]))


def weights_in_files(tensors: Mapping[str, TensorHeader], scratch: Path) -> WeightsInFiles:
    """The weights of one of several models, with a separate folder in `scratch`."""
    return WeightsInFiles(tensors, Path(tempfile.mkdtemp(dir=scratch)))


def _load_from_files(
    model_class: Any,
    path: Path | None,
    folder: Path,
    dtype: torch.dtype | None,
    tensors: Mapping[str, TensorHeader],
    scratch: Path,
    **arguments: Any,
) -> tuple[nn.Module, set[str]]:
    weights = weights_in_files(tensors, scratch)
    model, missing = _load(partial(weights.loading(model_class).from_pretrained, path), folder, dtype, local_files_only=True, **arguments)
    model.__class__ = model_class  # the loading class adds no state
    weights.give_to(model)
    return model, missing


def without_random_pooler(model: Any, missing: set[str]) -> set[str]:
    """Remove a pooler that the checkpoint lacks and that would be initialised at random; the class works without it.

    Returns:
        What is still missing; for a model with a head, everything that was.
    """
    base = model.base_model
    pooler = "pooler." if base is model else f"{model.base_model_prefix}.pooler."
    found = {name for name in missing if name.startswith(pooler)}
    if found:
        base.pooler = None
    return missing - found if base is model else missing


def outputs(model: Any, ids: Tensor, *, decoder_tokens: int | None = None, **arguments: Any) -> dict[str, Tensor]:
    """All tensors that one forward pass returns, by name, without the cache.

    Args:
        model: any model of transformers.
        ids: ``(B, N)``.
        decoder_tokens: how many of the tokens, shifted right by one, the decoder of an encoder-decoder is given; ``None`` is all.
        arguments: of the forward pass.
    """
    if "MultipleChoice" in type(model).__name__:
        ids = ids.unsqueeze(1)
    if model.config.is_encoder_decoder:
        if type(model).__name__.endswith("ForSequenceClassification"):  # it reads the position of the end token
            ids = torch.cat([ids[:, :-1], torch.full_like(ids[:, :1], model.config.eos_token_id)], dim=1)
        first = model.config.decoder_start_token_id  # in mBART it is a language, chosen by the caller of generate
        start = torch.full_like(ids[:, :1], model.config.eos_token_id if first is None else first)
        arguments["decoder_input_ids"] = torch.cat([start, ids], dim=1)[:, : min(ids.shape[1], decoder_tokens or ids.shape[1])]
    with torch.no_grad():
        returned = model(input_ids=ids, return_dict=True, **arguments)
    return {name: value for name, value in returned.items() if isinstance(value, Tensor)}


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Context (or decorator) in which transformers and huggingface_hub log only errors and draw no progress bars."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, hub_verbosity, bars = logging.get_verbosity(), hub_logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(transformers|torch|huggingface_hub)\b")
            yield
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if bars:
            logging.enable_progress_bar()
