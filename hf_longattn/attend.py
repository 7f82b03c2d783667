"""The functional API: attention of any registered mechanism on plain tensors, and its float64 definition."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from .engines.batch import Batch, documents_from
from .engines.call import AttentionCall
from .errors import LengthError, MaskError, OptionError
from .mechanisms.base import Mechanism, ScoreMod
from .mechanisms.registry import has_tensors, mechanism_from


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mechanism: str | Mechanism = "window",
    *,
    causal: bool = False,
    padding_mask: Tensor | None = None,
    documents: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    global_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout_p: float = 0.0,
    score_mod: ScoreMod | None = None,
    seed: int = 0,
    hidden_states: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Attention of ``mechanism`` from queries to keys and values.

    Args:
        q: ``(B, H, Nq, D)``.
        k, v: ``(B, H_kv, Nk, D)`` with H_kv dividing H. With Nq < Nk the queries are the last Nq positions.
        mechanism: a registered name, or a module from :func:`hf_longattn.build_mechanism`.
        causal: position i ignores the keys after i.
        padding_mask: ``(B, Nk)`` bool, True = real token.
        documents: ``(B, Nk)`` integers, the number of each token's document, ascending along each row: no document sees another, and
            windows, blocks, global tokens and positions start anew with each.
        cu_seqlens: the same for one row as offsets ``(documents + 1,)`` from 0 to Nk, as in flash-attn.
        global_mask: ``(B, Nk)`` bool, True = global token, for mechanisms that take global tokens.
        scaling: factor on q·k; ``D ** -0.5`` by default.
        dropout_p: dropout probability on the weights.
        score_mod: ``score_mod(score, b, h, q_idx, kv_idx)``, as in flex_attention, with absolute positions.
        seed: seed of randomised mechanisms.
        hidden_states: ``(B, Nk, hidden_size)``, the layer's input at every key, for mechanisms that compute more than q, k and v from it.
        options: the mechanism's options, when it is given by name; parameters that it trains are then drawn by ``seed``.
    Returns:
        ``(B, H, Nq, D)`` in the dtype of q. Rows of padding are finite and mean nothing.
    Raises:
        UnknownMechanismError, OptionError, MaskError, LengthError: one sentence each.
    """
    module, call = prepare(
        q, k, v, mechanism, options, causal=causal, padding_mask=padding_mask, documents=documents, cu_seqlens=cu_seqlens,
        global_mask=global_mask, scaling=scaling, dropout_p=dropout_p, score_mod=score_mod, seed=seed, hidden_states=hidden_states,
    )  # fmt: skip
    return module.attend(q, k, v, call)


def reference_attend(
    q: Tensor, k: Tensor, v: Tensor, mechanism: str | Mechanism = "window", *, dropout_p: float = 0.0, **arguments: Any
) -> Tensor:
    """The definition of :func:`attend` in float64 with the N×N matrix materialised; dropout is not part of it."""
    if dropout_p:
        raise OptionError(f"reference_attend is the exact definition and has no dropout, but dropout_p is {dropout_p}; leave it at 0.")
    given = {name: arguments.pop(name) for name in KEYWORDS & set(arguments)}
    module, call = prepare(q, k, v, mechanism, arguments, **given)
    return module.attend_exactly(q, k, v, call)


def prepare(
    q: Tensor, k: Tensor, v: Tensor, mechanism: str | Mechanism, options: dict[str, Any], *, causal: bool = False,
    padding_mask: Tensor | None = None, documents: Tensor | None = None, cu_seqlens: Tensor | None = None,
    global_mask: Tensor | None = None, scaling: float | None = None, dropout_p: float = 0.0, score_mod: ScoreMod | None = None,
    seed: int = 0, hidden_states: Tensor | None = None,
) -> tuple[Mechanism, AttentionCall]:  # fmt: skip
    """The mechanism of :func:`attend` and its call, whose arguments are checked here once for every mechanism."""
    if (
        q.dim() != 4
        or k.dim() != 4
        or k.shape != v.shape
        or q.shape[0] != k.shape[0]
        or q.shape[3] != k.shape[3]
        or q.shape[1] % k.shape[1]
    ):
        raise LengthError(
            "Expected q (B, H, Nq, D) and k, v (B, H_kv, Nk, D) with H_kv dividing H, "
            f"but got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}."
        )
    if q.shape[2] > k.shape[2]:
        raise LengthError(
            f"There are {q.shape[2]} queries for {k.shape[2]} keys, but queries are the last positions of the keys' sequence: "
            "pass at least as many keys as queries."
        )
    if isinstance(mechanism, Mechanism):
        if options:
            raise OptionError(
                f"Options {sorted(options)} were given with a built mechanism; "
                f"pass them to build_mechanism({mechanism.name!r}, ...) instead."
            )
        module = mechanism
    else:
        width = None if hidden_states is None else hidden_states.shape[-1]
        module = mechanism_from(
            mechanism, options, num_heads=q.shape[1], head_dim=q.shape[3], hidden_size=width, max_length=k.shape[2],
            generator=torch.Generator().manual_seed(seed),  # of the CPU, so that parameters are the same on every device
        )  # fmt: skip
        if has_tensors(module):
            module = module.to(q.device)
    module.check_form(causal, "this call")
    if score_mod is not None and not module.takes_score_mod:
        raise OptionError(f"Mechanism {module.name!r} has no scores to which score_mod could add; leave score_mod out.")
    if hidden_states is not None and not module.takes_hidden_states:
        raise OptionError(f"Mechanism {module.name!r} with these options needs nothing beyond q, k and v; leave hidden_states out.")
    mask = check_mask("padding_mask", padding_mask, k)
    packed = documents_from(documents, cu_seqlens, (k.shape[0], k.shape[2]))
    return module, AttentionCall(
        causal=causal, batch=Batch.of(mask, packed), global_mask=check_mask("global_mask", global_mask, k), scale=scaling,
        dropout=dropout_p, score_mod=score_mod, seed=seed, hidden_states=hidden_states,
    )  # fmt: skip


KEYWORDS = frozenset(inspect.signature(prepare).parameters) - {"q", "k", "v", "mechanism", "options"}
"""Keyword arguments of :func:`attend` that are no options of a mechanism."""


def check_mask(name: str, mask: Tensor | None, k: Tensor) -> Tensor | None:
    """Return ``mask`` as bool, or raise :class:`MaskError` when it is not ``(B, Nk)``."""
    if mask is None:
        return None
    expected = (k.shape[0], k.shape[2])
    if tuple(mask.shape) != expected:
        raise MaskError(
            f"{name} has shape {tuple(mask.shape)}, but must be (batch, key length) = {expected}, with 1 or True for the chosen tokens."
        )
    return mask if mask.dtype == torch.bool else mask != 0
