"""Documents packed into one row: finds them in the arguments of a call, and refuses calls in which nothing separates
them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..engines.batch import for_one_pass, has_values, in_graph, positions_in
from ..errors import InputError
from ..mechanisms.common.base import Mechanism
from ..memory.decode_cache import CACHE
from ..names import warn_missing
from .attach.attention_sites import is_causal
from .family.position_table import input_of
from .keywords import DOCUMENTS
from .masks import documents_of, packing_refused, several_in_a_row, takes_masked_documents

# Parts of messages.
PACKED_DOCUMENTS = "Several documents are packed into one row, but"
OWN_ROWS = "give each document its own row with padding."
WITH_A_CACHE = f"{PACKED_DOCUMENTS} with a cache nothing keeps them apart; pass use_cache=False, or {OWN_ROWS}"
MIXED = f"{PACKED_DOCUMENTS} convolutions or recurrent layers of this model read across their borders;"
CANNOT_TELL = "cannot tell its attention where each starts"


def find_documents(model: Any, arguments: dict[str, Any]) -> None:
    """Set ``documents (B, N)`` in the ``arguments`` of a Long base model, if a row has several documents.

    They are found in document numbers, in offsets, or in ``position_ids`` that restart. Further arguments are set as
    packed documents need them: positions, no cache, and a mask.

    Raises:
        InputError: the model or this call cannot keep documents apart.
    """
    # layers share what they derive from these tensors
    if not in_graph():
        for name, value in arguments.items():
            if name in DOCUMENTS or (name == "attention_mask" and getattr(value, "ndim", 0) == 4):
                arguments[name] = for_one_pass(value)
    tokens = input_of(arguments)
    if tokens is None:
        return
    if not has_values(tokens):  # each row counts as one document
        for name in DOCUMENTS:
            arguments.pop(name, None)
        return
    shape = (tokens.shape[0], tokens.shape[1])
    documents = documents_of(arguments, shape)
    if (documents is not None or _begins_anew(model, arguments)) and seen_before(arguments):
        raise InputError(WITH_A_CACHE)
    if documents is None:
        documents = _documents_of_positions(model, arguments, shape)
    if documents is None or not several_in_a_row(documents):
        return
    refusal = refusal_of_documents(model, arguments)
    if refusal is not None:
        raise InputError(refusal)
    # complete the arguments
    arguments["documents"] = for_one_pass(documents)
    if arguments.get("position_ids") is None and model.takes_positions:
        arguments["position_ids"] = positions_in(documents) + model.first_position_id
    if arguments.get("use_cache") is None and getattr(model.config, "use_cache", False):
        arguments["use_cache"] = False
    rule_out_packing(arguments)


def _documents_of_positions(model: Any, arguments: dict[str, Any], shape: tuple[int, int]) -> Tensor | None:
    """Document numbers ``(B, N)`` from ``position_ids`` that restart within a row; ``None`` if they do not restart.

    ``None`` also in a graph, which does not know the values of positions while it is traced. If the model cannot keep
    documents apart in a graph, the graph raises an error when it runs on positions that restart."""
    restarts = _restarts(arguments, shape)
    if restarts is None:
        return None
    if not in_graph():
        return restarts.cumsum(1).expand(shape) if restarts.any() else None
    refusal = _refusal_of_packing(model, shape[1], arguments.get("use_cache"))
    if refusal is not None:
        assert_in_graph(~restarts.any(), refusal)
        rule_out_packing(arguments)
    return None


def _restarts(arguments: dict[str, Any], shape: tuple[int, int]) -> Tensor | None:
    """Whether a document starts at each token, ``(B or 1, N)`` bool: at real tokens whose position is not larger than
    that of the real token before.

    ``None`` if positions or padding say nothing about documents."""
    positions, mask = arguments.get("position_ids"), arguments.get("attention_mask")
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or arguments.get(CACHE) is not None:
        return None
    if not isinstance(positions, Tensor) or positions.dim() != 2 or positions.shape[1] != shape[1] or shape[1] < 2:
        return None
    if mask is None:
        return nn.functional.pad(positions[:, 1:] <= positions[:, :-1], (1, 0))
    if mask.shape != shape:
        return None
    real = mask.bool()
    columns = torch.arange(shape[1], device=positions.device)
    # column of the last real token before each token, -1 without one
    before = torch.where(real, columns, -1).cummax(1).values[:, :-1]
    positions = positions.expand(shape)
    not_larger = positions[:, 1:] <= positions.gather(1, before.clamp(min=0))
    return nn.functional.pad(real[:, 1:] & (before >= 0) & not_larger, (1, 0))


def _begins_anew(model: Any, arguments: dict[str, Any]) -> bool:
    """Whether the new tokens of some row start at the first position, although the cache has tokens of this row."""
    positions, mask, cache = arguments.get("position_ids"), arguments.get("attention_mask"), arguments.get(CACHE)
    if (
        cache is None
        or in_graph()
        or getattr(cache, "positions_restart", False)
        or not isinstance(positions, Tensor)
        or positions.dim() != 2
    ):
        return False
    rows = positions[:, 0] <= model.first_position_id
    if not bool(rows.any()):
        return False
    if isinstance(mask, Mapping):  # one mask per layer type, all with the same padding
        mask = next(iter(mask.values()), None)
    if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > positions.shape[1]:
        # Leave out rows that have only padding in the cache. The mask of a static cache also covers slots for later
        # tokens.
        cached = min(mask.shape[1] - positions.shape[1], int(cache.get_seq_length()))
        rows = rows & mask[:, :cached].bool().any(1)
    return bool(rows.any())


def refusal_of_documents(model: Any, arguments: dict[str, Any]) -> str | None:
    """Why this call cannot have documents packed into one row; ``None`` if it can."""
    if model.recursion is not None:
        return f"{PACKED_DOCUMENTS} {type(model).__name__} runs in segments with memory tokens; {OWN_ROWS}"
    if model.config.is_encoder_decoder or not model.hands_globals_down:
        return f"{PACKED_DOCUMENTS} {type(model).__name__} {CANNOT_TELL}; {OWN_ROWS}"
    if model.mixes_beside_attention:
        return f"{MIXED} {OWN_ROWS}"
    if arguments.get("use_cache") or arguments.get(CACHE) is not None:
        return WITH_A_CACHE
    if model.position_table is not None and not model.takes_positions:
        return (
            f"{PACKED_DOCUMENTS} {type(model).__name__} takes no position_ids that could restart with each; {OWN_ROWS}"
        )
    return None


def _refusal_of_packing(model: Any, length: int, use_cache: bool | None) -> str | None:
    """Why a traced graph cannot have several documents in a row of ``length`` tokens. ``None`` if it can, because
    transformers' mask separates them and every mechanism can do with a mask (:func:`takes_masked_documents`)."""
    if model.mixes_beside_attention:
        return f"{MIXED} {OWN_ROWS}"
    causal = any(map(is_causal, model.attention_modules))
    if not causal:
        return (
            f"{PACKED_DOCUMENTS} nothing keeps them apart in a compiled encoder; call it without torch.compile, or "
            f"{OWN_ROWS}"
        )
    for mechanism in model.modules():
        if isinstance(mechanism, Mechanism) and (
            model.recursion is not None or not takes_masked_documents(mechanism, length, causal)
        ):
            return packing_refused(mechanism)
    if use_cache is None:
        use_cache = getattr(model.config, "use_cache", False)
    return WITH_A_CACHE if use_cache else None


def rule_out_packing(arguments: dict[str, Any]) -> None:
    """Set a mask of ones in a call without mask and cache. Without a mask, transformers would look for packed
    documents in positions, and build an N×N mask to separate them in a causal model."""
    tokens = input_of(arguments)
    if arguments.get("attention_mask") is None and arguments.get(CACHE) is None and tokens is not None:
        arguments["attention_mask"] = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)


def seen_before(arguments: Mapping[str, Any]) -> bool:
    """Whether a call's cache contains tokens. In a graph, which does not know this, whether the call has a cache."""
    cache = arguments.get(CACHE)
    return cache is not None and hasattr(cache, "get_seq_length") and (in_graph() or int(cache.get_seq_length()) > 0)


def leave_out_documents(model: Any, arguments: dict[str, Any]) -> None:
    """Remove document numbers from the arguments of a model that cannot pass them to its layers. One document per row
    needs none.

    Raises:
        InputError: there are several documents in a row, or global tokens that do not reach the layers.
    """
    passes_globals = model.annotates_globals or model.hands_globals_down
    if arguments.get("global_attention_mask") is not None and not passes_globals:
        raise InputError(f"{type(model).__name__} cannot pass a global_attention_mask to its attention; leave it out.")
    tokens = input_of(arguments)
    if tokens is None or DOCUMENTS.isdisjoint(arguments):
        return
    if seen_before(arguments):
        raise InputError(WITH_A_CACHE)
    numbers = {name: arguments[name] for name in DOCUMENTS & arguments.keys()}
    if tokens.dim() == 3 and "input_ids" in arguments:  # (B, choices, N)
        tokens = tokens.flatten(0, 1)
        numbers = {name: values.flatten(0, 1) for name, values in numbers.items()}
    documents = documents_of(numbers, (tokens.shape[0], tokens.shape[1]))
    if documents is not None and several_in_a_row(documents):
        raise InputError(f"{PACKED_DOCUMENTS} {type(model).__name__} {CANNOT_TELL}; {OWN_ROWS}")
    for name in DOCUMENTS:
        arguments.pop(name, None)


def assert_in_graph(condition: Tensor, message: str) -> None:
    """Make a compiled graph raise RuntimeError with ``message`` if ``condition``, a bool scalar, is False when the
    graph runs."""
    if hasattr(torch, "_assert_async"):
        torch._assert_async(condition, message)
    else:
        warn_missing("assert_in_graph")
