"""Global tokens by their ids: which ids are global in a model, and the ``global_attention_mask`` of a call."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...engines.batch import Batch, in_graph
from ...errors import InputError, OptionError, checkpoint_errors
from ...mechanisms.common.base import Mechanism
from ...mechanisms.common.global_tokens import GlobalTokenIds
from ...mechanisms.common.masked import MaskedMechanism
from ...mechanisms.common.shared_options import for_length
from ...memory.decode_cache import find_cache
from ...names import logger
from ..family.position_table import input_of
from .attention_sites import layer_mechanisms, with_members

LONGEST_QUESTION = 512
"""Maximum tokens of a question. If the first of two texts is longer than this and longer than the second, it is
probably the document, and users are warned."""


def global_token_ids(model: nn.Module) -> GlobalTokenIds | None:
    """The rule by which layers of ``model`` choose global tokens by id, from the mechanisms' options and the config.
    ``None`` if neither chooses tokens by id.

    Raises:
        OptionError: layers have different rules, or the separator that a rule needs is missing.
    """
    takers = _takers(model)
    config = getattr(model, "config", None)
    question = getattr(config, "question_separator_id", None)
    listed = tuple(getattr(config, "global_token_ids", None) or ())
    rules = {module.global_token_ids for module in takers if isinstance(module, MaskedMechanism)}
    if rules <= {None}:  # only the config may choose
        if not takers or (question is None and not listed):
            return None
        fixed = {position for part in with_members(takers) for position in getattr(part.options, "global_tokens", ())}
        return GlobalTokenIds(tuple(sorted(fixed)), listed, question_separator=question)
    if len(rules) > 1:
        raise OptionError(
            "The layers choose their global tokens by different rules, but ids are read once for the whole model; "
            "give every layer with global tokens the same global_tokens, global_token_ids and segments."
        )
    rule = rules.pop()
    assert rule is not None
    rule = rule.with_separator(getattr(config, "sep_token_id", None))
    token_ids = tuple(dict.fromkeys((*rule.token_ids, *listed)))  # without repetitions
    return dataclasses.replace(rule, token_ids=token_ids, question_separator=question)


def _takers(model: nn.Module) -> list[Mechanism]:
    """The mechanisms of ``model`` that take global tokens, including members of composite mechanisms."""
    outer = [mechanism for mechanism in layer_mechanisms(model) if mechanism.capabilities.takes_globals]
    return [mechanism for mechanism in with_members(outer) if mechanism.capabilities.takes_globals]


def chooses_by_ids(model: nn.Module) -> bool:
    """Whether the options of a mechanism choose global tokens by their ids."""
    return any(isinstance(taker, MaskedMechanism) and taker.global_token_ids is not None for taker in _takers(model))


def takes_globals(model: nn.Module) -> bool:
    """Whether the mechanism of some layer takes global tokens."""
    return any(mechanism.capabilities.takes_globals for mechanism in layer_mechanisms(model))


def check_globals(model: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` for a ``global_attention_mask`` that no layer takes. It is accepted if a layer has
    full attention at this length, in which every token is global anyway.

    arguments: the arguments of the model's ``forward``.
    """
    mask = arguments.get("global_attention_mask")
    tokens = input_of(arguments)
    if mask is None:
        return
    length = max(mask.shape[-1], 0 if tokens is None else tokens.shape[1])
    layers = layer_mechanisms(model)
    accepted = any(
        mechanism.capabilities.takes_globals or for_length(mechanism, length).covers(length)
        for mechanism in with_members(layers)
    )
    if not accepted:
        names = ", ".join(sorted({repr(mechanism.name) for mechanism in layers}))
        raise InputError(
            "global_attention_mask was given, but no layer of this model takes global tokens (its mechanism is "
            f"{names}); leave it out, or choose a mechanism with takes_globals=True in hf_longattn.mechanism_info."
        )


@checkpoint_errors("The tokenizer is damaged")
def question_separator(tokenizer: Any) -> int | None:
    """The id of the token that ``tokenizer`` puts between a question and a document. ``None`` if it puts none (GPT-2,
    Llama)."""
    # the ids of the pair "a", "b", and of "b" alone
    backend = getattr(tokenizer, "backend_tokenizer", None)  # tokenizers of pages do not take texts without boxes
    if backend is None:
        ids = list(tokenizer("a", "b")["input_ids"])
        document = list(tokenizer("b", add_special_tokens=False)["input_ids"])
    else:
        encodings = backend.encode("a", "b"), backend.encode("b", add_special_tokens=False)
        ids, document = (
            [token for token, real in zip(x.ids, x.attention_mask, strict=True) if real] for x in encodings
        )
    # index in the pair at which the document starts
    starts = [start for start in range(len(ids)) if document and ids[start : start + len(document)] == document]
    first = max(starts, default=0)
    if not first or ids[first - 1] not in tokenizer.all_special_ids:
        return None
    # accept the special token before the document if it marks all tokens before the document as the question
    row = torch.tensor([ids])
    question = GlobalTokenIds(question_separator=ids[first - 1]).question(row, torch.ones_like(row, dtype=torch.bool))
    return ids[first - 1] if int(question.sum()) == first else None


def carry_question(model: nn.Module, tokenizer: Any) -> None:
    """Make the question before a document global in ``model``, now and when it is loaded again.

    Sets ``config.question_separator_id``, unless the mechanisms' options already choose global tokens by id.
    """
    if not takes_globals(model) or chooses_by_ids(model):
        return
    config: Any = model.config
    if getattr(config, "question_separator_id", None) is None:
        config.question_separator_id = question_separator(tokenizer)


def global_tokens_of(chosen: GlobalTokenIds, arguments: Mapping[str, Any], documents: Tensor | None = None) -> Tensor:
    """The ``global_attention_mask (B, N)`` for a forward pass without one, from the ids of tokens.

    Args:
        chosen: the rule of the model.
        arguments: the arguments of ``forward``.
        documents: ``(B, N)``, the numbers of packed documents, in each of which the rule applies.

    Raises:
        InputError: the ids of the input, or of tokens in the cache, are not known.
    """
    ids = arguments.get("input_ids")
    if not isinstance(ids, Tensor):
        raise InputError(
            "Tokens are global by their ids here, but inputs_embeds came without input_ids; "
            "pass global_attention_mask (batch, tokens) with 1 for global tokens."
        )
    past = find_cache(arguments.values())
    if past is not None and not torch.compiler.is_compiling() and int(past.get_seq_length()) > 0:
        raise InputError(
            "Tokens are global by their ids here, but the ids of the tokens in the cache are not known; "
            "pass global_attention_mask (batch, tokens seen so far) with 1 for global tokens."
        )
    mask = arguments.get("attention_mask")
    real = torch.ones_like(ids, dtype=torch.bool)
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        real = mask.bool()
    # segments of a row, (B, N)
    types = arguments.get("token_type_ids")
    if not isinstance(types, Tensor) or types.shape != ids.shape:
        types = None
    if chosen.question_separator is not None and not in_graph():
        _warn_of_question(chosen, ids, real)
    if documents is None:
        return chosen.mask(ids, real, types).long()
    global_tokens = torch.zeros_like(ids)
    for sequence in Batch(real, documents).sequences:
        at = slice(sequence.row, sequence.row + 1), slice(sequence.start, sequence.stop)
        global_tokens[at] = chosen.mask(ids[at], real[at], None if types is None else types[at]).long()
    return global_tokens


def _warn_of_question(chosen: GlobalTokenIds, ids: Tensor, real: Tensor) -> None:
    """Warn if the first text of a row seems to be the document, and not the question.

    ids: ``(B, N)``.
    real: ``(B, N)`` bool, False at padding.
    """
    if ids.shape[-1] <= LONGEST_QUESTION:
        return
    question = chosen.question(ids, real).sum(-1)
    if bool(((question > LONGEST_QUESTION) & (2 * question > real.sum(-1))).any()):
        logger.warning_once(  # type: ignore[attr-defined]
            "The first of the two texts is taken as the question, whose tokens are all global, but it is longer "
            "than the document; call tokenizer(question, document), or pass global_attention_mask (batch, tokens) "
            "with 1 for global tokens."
        )


def arguments_by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call of ``model.forward`` by name, including the positional arguments ``args``."""
    names = [name for name in inspect.signature(type(model).forward).parameters if name != "self"]
    return {**dict(zip(names, args, strict=False)), **kwargs}
