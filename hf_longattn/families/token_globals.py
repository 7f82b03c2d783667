"""Global tokens that follow from the token ids, turned into a ``global_attention_mask`` before the layers run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from ..errors import MaskError, OptionError
from ..mechanisms.base import Mechanism
from ..mechanisms.token_rules import TokenRule


def token_rule(model: nn.Module) -> TokenRule | None:
    """The one rule by which the layers of ``model`` choose global tokens by their ids, its separator filled in from the config.

    Raises:
        OptionError: layers with different rules, or a segment without a separator.
    """
    takers = [module for module in model.modules() if isinstance(module, Mechanism) and module.takes_globals]
    rules = {module.token_rule for module in takers}
    if rules <= {None}:
        return None
    if len(rules) > 1:
        raise OptionError(
            "The layers choose their global tokens by different rules, but ids are read once for the whole model; "
            "give every layer with global tokens the same global_tokens, global_token_ids and segments."
        )
    rule = rules.pop()
    assert rule is not None
    return rule.with_separator(getattr(getattr(model, "config", None), "sep_token_id", None))


def global_tokens_of(rule: TokenRule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The ``global_attention_mask (B, N)`` of a forward pass that was given none.

    Raises:
        MaskError: the ids, or those of the tokens in the cache, are not at hand.
    """
    ids = args[0] if args else kwargs.get("input_ids")
    if not isinstance(ids, Tensor):
        raise MaskError(
            "Tokens are global by their ids here, but inputs_embeds came without input_ids; "
            "pass global_attention_mask (batch, tokens) with 1 for global tokens."
        )
    past = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
    if past is not None and not torch.compiler.is_compiling() and int(past.get_seq_length()) > 0:
        raise MaskError(
            "Tokens are global by their ids here, but the ids of the tokens in the cache are not at hand; "
            "pass global_attention_mask (batch, tokens seen so far) with 1 for global tokens."
        )
    mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool)
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        real = mask.bool()
    return rule.mask(ids, real).long()
