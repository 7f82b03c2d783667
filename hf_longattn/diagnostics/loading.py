"""Load the checkpoint that is diagnosed: as it is, or with more positions, as a conversion would give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

from ..configuration import LongAttentionConfig
from ..conversion import plan_conversion
from ..conversion.config import ConversionConfig
from ..conversion.model_loading import chosen_device, load_as_result
from ..conversion.sources.base import Source, open_source
from ..conversion.sources.quantised import refuse_quantised
from ..conversion.text import load_tokenizer
from ..errors import LengthError, OptionError, checkpoint_errors
from ..modeling.generic import load_generic
from ..reading import is_generic


def load_for_diagnosis(
    name: str | Path,
    lengths: Sequence[int] | None,
    *,
    extend: str | None = None,
    mechanism: Mapping[str, Any] | None = None,
    device: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> tuple[nn.Module, Any | None, int | None]:
    """The model in fp32, its tokenizer, ``None`` if the checkpoint has none, and with ``extend`` the tokens that it read before.

    Args:
        name: a folder or a Hub repository id.
        lengths: that will be read; with ``extend``, positions are extended to the longest.
        extend: ``positions`` of a conversion.
        mechanism: what the layers run while positions are extended, such as ``{"mechanism": "window", "window": "512"}``; by default what
            a conversion would make.
    Raises:
        CheckpointError: it cannot be loaded, or is quantised.
        OptionError: ``mechanism`` without ``extend``, or no such device.
        PositionError, LengthError: positions cannot be extended so.
    """
    if mechanism is not None and extend is None:
        raise OptionError("A mechanism is chosen for a model whose positions are extended; add --extend tile, or leave --mechanism out.")
    if extend is not None and lengths is None:
        raise OptionError("Positions are extended to the longest length; give for example --lengths 512,2K,8K.")
    place = chosen_device(device)
    source = open_source(name, revision=revision, token=token)
    refuse_quantised(source)
    if extend is None:
        model, trained = _load(source), None
    elif "long_attention" in source.config:
        raise LengthError(f"{source.name!r} is a long model already; leave --extend out, or give the checkpoint that it was made from.")
    else:
        chosen = None if mechanism is None else LongAttentionConfig.from_dict(mechanism)
        asked = ConversionConfig(max_length=max(lengths or ()), positions=extend, long_attention=chosen)
        plan = plan_conversion(source, config=asked)
        model, trained = load_as_result(source, plan.architecture, plan.config), plan.old_length
    return model.eval().to(place), load_tokenizer(source.folder), trained


def _load(source: Source) -> nn.Module:
    with checkpoint_errors(f"transformers cannot load {source.name!r}"):
        if is_generic(source.config):
            return load_generic(source.folder, dtype=torch.float32)
        return source.finish(source.load(AutoModel, dtype=torch.float32))


def refuse_longer(name: str, length: int, limit: int) -> LengthError:
    """What is said of a length that the model's positions do not reach."""
    return LengthError(
        f"{name!r} ends at {limit:,} tokens, and {length:,} were asked for; add --extend tile (rotary positions: rope:yarn) to diagnose it "
        f"with more, or type longattn convert {name} DST --max-length {length} and diagnose the result."
    )
