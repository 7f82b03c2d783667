"""Makes text tokens global in a language model that also reads images. A window then limits only image tokens."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from ...errors import InputError, OptionError
from ...memory.decode_cache import CACHE
from .attention_sites import Call
from .token_globals import takes_globals

TEXT_GLOBAL = "text_global"
"""The key of ``long_attention`` that makes text tokens global."""
TEXT_TOKENS = "text_tokens"
"""Keyword for the mask ``(B, n)`` bool of new text tokens, from a model to its language model."""
IMAGE_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "audio_token_id")
"""Config fields with the ids of placeholder tokens for images, videos and sounds."""
GLOBAL_MASK, IDS = "global_attention_mask", "input_ids"


def make_text_global(model: PreTrainedModel, language_model: PreTrainedModel | None) -> None:
    """Make all tokens but image placeholders global in the language model of ``model``.

    Raises:
        OptionError: the model has no token for images, or no mechanism of the language model takes global tokens.
    """
    if not _image_tokens(model):
        raise OptionError(f"{TEXT_GLOBAL} is for models that read images in place of a token, and a {type(model).__name__} has none.")
    if language_model is None or not takes_globals(language_model):
        raise OptionError(
            f"{TEXT_GLOBAL} needs a mechanism with global tokens in the tower 'text'; give it longformer, for example (--towers "
            "text=longformer:window=1024)."
        )
    if vars(model).get("tells_text_tokens"):
        return
    model.tells_text_tokens = True
    model.register_forward_pre_hook(_tell_text_tokens, with_kwargs=True)
    language_model.register_forward_pre_hook(_take_text_tokens, with_kwargs=True)
    language_model.register_forward_hook(_keep_text_tokens, with_kwargs=True)


def _image_tokens(model: Any) -> list[int]:
    ids = (getattr(model.config, name, None) for name in IMAGE_TOKENS)
    return sorted({token for token in ids if isinstance(token, int)})


def arguments_by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``model.forward`` by name; ``args`` are positional."""
    names = [name for name in inspect.signature(type(model).forward).parameters if name != "self"]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _tell_text_tokens(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Forward pre-hook of the whole model: finds the text tokens. No other module sees token ids."""
    if not (getattr(model.config, "long_attention", None) or {}).get(TEXT_GLOBAL) or GLOBAL_MASK in kwargs:
        return None
    ids = arguments_by_name(model, args, kwargs).get(IDS)
    if not isinstance(ids, Tensor):
        raise InputError(
            "Text tokens are global here, but inputs_embeds came without input_ids, which say what is text; pass input_ids as well, or "
            "global_attention_mask (batch, tokens)."
        )
    return args, {**kwargs, TEXT_TOKENS: ~torch.isin(ids, torch.tensor(_image_tokens(model), device=ids.device))}


def _take_text_tokens(language_model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """Forward pre-hook of the language model: appends new text tokens to the cache's."""
    tokens: Tensor | None = kwargs.get(TEXT_TOKENS)
    if tokens is None:
        return None
    cache = kwargs.get(CACHE)
    seen = int(cache.get_seq_length()) if isinstance(cache, Cache) else 0
    if seen:
        known = getattr(cache, TEXT_TOKENS, None)
        if known is None or known.shape[1] < seen or len(known) != len(tokens):
            raise InputError(
                "Text tokens are global here, but which tokens of the cache are text is not known, since another model or batch filled it; "
                "start with an empty cache."
            )
        tokens = torch.cat([known[:, :seen], tokens], 1)
    padding = kwargs.get("attention_mask")
    if isinstance(padding, Tensor) and padding.shape == tokens.shape:
        tokens = tokens & padding.bool()
    return args, {**{name: value for name, value in kwargs.items() if name != TEXT_TOKENS}, GLOBAL_MASK: tokens}


def _keep_text_tokens(language_model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    """Forward hook of the language model: stores in the cache which tokens are text."""
    cache = getattr(output, CACHE, None)
    if isinstance(cache, Cache) and GLOBAL_MASK in kwargs:
        setattr(cache, TEXT_TOKENS, kwargs[GLOBAL_MASK])
