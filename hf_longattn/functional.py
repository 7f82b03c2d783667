"""The functional API: attention of any registered mechanism on plain tensors, and its float64 reference."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from contextlib import nullcontext
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .engines import accelerator
from .engines.batch import (
    Batch,
    autocasts,
    documents_from,
    has_values,
    in_graph,
    no_fused_kernels,
    nothing_seen,
    shape_in_words,
    shapes_only,
)
from .engines.block_sparse import why_not_one_call
from .engines.call import DENSE_CELLS, AttentionCall, AttentionFunction, DispatchContext, PathName
from .engines.cpu.kernels import drops_in_tiles
from .engines.dispatch import OBSERVERS, report, reporting, running
from .engines.score_terms import GridBias, ScoreMod
from .engines.sequences import aligned_documents, cleared, rolled, split
from .engines.token_grid import Grid, grid_of_argument
from .errors import BackendError, InputError, OptionError
from .mechanisms.common.base import Mechanism
from .mechanisms.common.capabilities import aligns_sequences, needs_whole_batch
from .mechanisms.common.masked import MaskedMechanism, SparseMechanism
from .mechanisms.common.options import LARGEST, SEED
from .mechanisms.common.registry import has_tensors, mechanism_from, options_of, why_not_exported, without_tensors
from .mechanisms.common.shared_options import check_form, for_length, full_of, in_full_if_short, is_full


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
    grid: Grid | Sequence[int] | None = None,
    prefix: int = 0,
    sink_scores: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Run the attention of a mechanism on queries, keys and values.

    An argument that the mechanism does not support raises an error. :func:`hf_longattn.mechanism_info` lists the
    supported arguments.

    Args:
        q: ``(B, H, Nq, D)``.
        k, v: ``(B, H_kv, Nk, D)`` with H_kv dividing H, in the dtype and on the device of q. With Nq < Nk the queries
            are the last Nq positions.
        mechanism: a registered name, or a module from :func:`hf_longattn.build_mechanism`. A name runs in eval mode. A
            module runs in the mode that it is in; a new module is in training mode, so call ``.eval()`` yourself.
            Within ``torch.compile(fullgraph=True)``, a module is required.
        causal: whether position i ignores the keys after i.
        padding_mask: ``(B, Nk)``, bool with True = real token, or numbers with 1 = real token. Additive masks are
            refused.
        documents: ``(B, Nk)`` integers, the document id of each token, ascending along each row. Tokens attend within
            their document only. Windows, blocks, global tokens and positions restart in each document. Padding belongs
            to the document before it.
        cu_seqlens: documents of a single row as offsets ``(documents + 1,)`` from 0 to Nk, as in flash-attn.
        global_mask: ``(B, Nk)`` bool, True = global token, for mechanisms with global tokens.
        scaling: factor on q·k, above 0; ``D ** -0.5`` by default.
        dropout_p: dropout probability on the weights, from 0 to 1.
        score_mod: ``score_mod(score, b, h, q_idx, kv_idx)``, as in flex_attention, with absolute positions.
        seed: seed of randomised mechanisms, and of the parameters of mechanisms given by name. If a module draws
            random numbers in every call, this seed is added to the module's seed. Other modules ignore it.
        hidden_states: ``(B, Nk, hidden_size)``, the layer's input at every key, for mechanisms that need it besides q,
            k and v.
        grid: the grid of every sequence, for mechanisms on a grid: sizes such as ``(64, 64)``, or a :class:`Grid`.
            Tokens are in raster order, the last axis fastest.
        prefix: number of tokens before the grid, such as a class token, if ``grid`` is given as sizes.
        sink_scores: ``(H,)``, the score of an additional softmax column without a value, as in gpt-oss (``s_aux`` in
            transformers). The score is neither scaled nor masked, and may require gradients.
        options: the mechanism's options, when it is given by name.
    Returns:
        ``(B, H, Nq, D)`` in the dtype of q; empty if there are no sequences or no tokens. Outputs at padding are
        finite but meaningless. Values in padding, even NaN, do not affect the outputs of real tokens or their
        gradients.
    Raises:
        OptionError: a mechanism or option is unknown, or a value is invalid.
        InputError: masks, lengths or a grid do not fit q, k and v, or are not supported by the mechanism.
    """
    module, call = prepare(
        q,
        k,
        v,
        mechanism,
        causal=causal,
        padding_mask=padding_mask,
        documents=documents,
        cu_seqlens=cu_seqlens,
        global_mask=global_mask,
        scaling=scaling,
        dropout_p=dropout_p,
        score_mod=score_mod,
        seed=seed,
        hidden_states=hidden_states,
        grid=grid,
        prefix=prefix,
        sink_scores=sink_scores,
        **options,
    )
    return run_batch(module, q, k, v, call if call.batch is None else call.replace(padding_values="any"))


def reference_attend(
    q: Tensor, k: Tensor, v: Tensor, mechanism: str | Mechanism = "window", *, dropout_p: float = 0.0, **arguments: Any
) -> Tensor:
    """The float64 reference for :func:`attend`, computed with the full N×N matrix of weights.

    It takes the arguments of :func:`attend` except dropout, and raises the same errors.
    """
    if dropout_p:
        raise OptionError(
            f"reference_attend is the exact definition and has no dropout, but dropout_p is {dropout_p}; leave it at "
            "0."
        )
    module, call = prepare(q, k, v, mechanism, **arguments)
    return run_batch(module, q.double(), k.double(), v.double(), call, by_definition=True)


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mechanism: str | Mechanism,
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
    grid: Grid | Sequence[int] | None = None,
    prefix: int = 0,
    sink_scores: Tensor | None = None,
    **options: Any,
) -> tuple[Mechanism, AttentionCall]:
    """Check the arguments of :func:`attend`. Returns the mechanism's module, and the other arguments as a call."""
    if torch.jit.is_tracing():
        check_trace(mechanism if isinstance(mechanism, Mechanism) and score_mod is None else None, causal)
    _check_tensors(q, k, v)
    _check_numbers(scaling, dropout_p, seed)
    if isinstance(mechanism, Mechanism):
        if options:
            raise OptionError(
                f"Options {sorted(options)} were given with a built mechanism; "
                f"pass them to build_mechanism({mechanism.name!r}, ...) instead."
            )
        module = mechanism
        if (module.num_heads, module.head_dim) != (q.shape[1], q.shape[3]):
            raise OptionError(
                f"Mechanism {module.name!r} was built for {module.num_heads} heads of width {module.head_dim}, but q "
                f"has {q.shape[1]} of width {q.shape[3]}; build it with num_heads={q.shape[1]}, head_dim={q.shape[3]}."
            )
    else:
        width = hidden_states.shape[-1] if isinstance(hidden_states, Tensor) and hidden_states.dim() else None
        sizes = {
            "num_heads": q.shape[1],
            "head_dim": q.shape[3],
            "hidden_size": width,
            "max_length": max(1, k.shape[2]),
        }
        module = _build_named(mechanism, options, sizes, seed, q.device)
        if seed and SEED in options_of(mechanism):
            seed = 0  # it is an option of the module already
    batch = None
    if padding_mask is not None or documents is not None or cu_seqlens is not None:
        mask = check_mask("padding_mask", padding_mask, k, refuse_zeros=True)
        labels = documents_from(documents, cu_seqlens, (k.shape[0], k.shape[2]))
        if labels is not None and not has_values(labels):  # a fake tensor, on which each row counts as one document
            labels = None
        batch = Batch.of(mask, labels)
    call = AttentionCall(
        causal=causal,
        batch=batch,
        global_mask=None if global_mask is None else check_mask("global_mask", global_mask, k),
        scale=scaling,
        dropout=dropout_p,
        score_mod=score_mod,
        seed=seed,
        hidden_states=hidden_states,
        grid=None if grid is None and not prefix else grid_of_argument(grid, prefix),
        sink_scores=sink_scores,
    )
    _check_supported(module, q, k, call)
    return for_length(module, k.shape[2], True, q.shape[2]) if call.causal else module, call


def check_trace(mechanism: Mechanism | None, causal: bool) -> None:
    """Refuse ``torch.jit.trace`` except for full attention, which is one operation for all lengths.

    Args:
        mechanism: the mechanism; ``None`` for a mechanism given by name, or with a ``score_mod``.

    Raises:
        BackendError: the mechanism is not full attention at every length, or it adds terms to the scores.
    """
    if torch.compiler.is_compiling():
        return
    without_terms = mechanism is not None and mechanism.relative is None and not mechanism.options.exact_length
    if not without_terms or not is_full(mechanism, LARGEST, causal):
        raise BackendError(
            "torch.jit.trace, which torch.onnx.export(dynamo=False) runs too, stores the choices that attention makes "
            "for the example's length, so the graph would compute something else for other lengths; type longattn "
            "export MODEL DESTINATION, which writes one graph of an encoder for all lengths."
        )


def _check_supported(mechanism: Mechanism, q: Tensor, k: Tensor, call: AttentionCall) -> None:
    """Raise an error for arguments of :func:`attend` that ``mechanism`` does not support."""
    name = mechanism.name
    if call.causal or mechanism.causal != "both":
        check_form(mechanism, call.causal, "this call")
    if call.score_mod is not None and not mechanism.capabilities.takes_score_mod:
        raise OptionError(f"Mechanism {name!r} computes no scores that score_mod could change; leave score_mod out.")
    if call.sink_scores is not None:
        if not mechanism.capabilities.takes_sinks:
            raise OptionError(
                f"Mechanism {name!r} with these options is not one softmax over keys, to which sink_scores could be "
                "added; leave sink_scores out, or choose for example window."
            )
        sinks: Any = call.sink_scores
        fits = (
            isinstance(sinks, Tensor)
            and sinks.shape == q.shape[1:2]
            and sinks.is_floating_point()
            and sinks.device == q.device
        )
        if not fits:
            raise OptionError(
                f"sink_scores {shape_in_words(sinks)}, but must be floating-point numbers (heads,) = ({q.shape[1]},) "
                "on the device of q."
            )
    if call.global_mask is not None and not mechanism.capabilities.takes_globals:
        raise InputError(
            f"Mechanism {name!r} has no global tokens; leave global_mask out, or choose a mechanism with global "
            "tokens, for example 'longformer'."
        )
    if call.grid is not None and not (mechanism.capabilities.needs_grid or isinstance(call.score_mod, GridBias)):
        raise InputError(
            f"Mechanism {name!r} with these options reads no grid; leave grid out, or choose a mechanism on a grid: "
            "'window2d'."
        )
    hidden = call.hidden_states
    if hidden is None:
        return
    if not mechanism.capabilities.takes_hidden_states:
        raise OptionError(
            f"Mechanism {name!r} with these options needs nothing beyond q, k and v; leave hidden_states out."
        )
    expected = (len(k), k.shape[2], mechanism.sizes.hidden_size)
    only_queries = (len(k), q.shape[2], mechanism.sizes.hidden_size)  # accepted, too
    if not isinstance(hidden, Tensor) or tuple(hidden.shape) not in (expected, only_queries):
        raise InputError(
            f"hidden_states {shape_in_words(hidden)}, but must be (batch, key length, hidden size) = {expected}."
        )


def _check_tensors(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise :class:`InputError` for wrong shapes, and :class:`OptionError` for mixed dtypes or devices."""
    if not (isinstance(q, Tensor) and isinstance(k, Tensor) and isinstance(v, Tensor)):
        raise OptionError(
            f"q, k and v are {type(q).__name__}, {type(k).__name__} and {type(v).__name__}, but must be tensors."
        )
    fits = q.dim() == k.dim() == 4 and k.shape == v.shape and (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3])
    if not fits or not k.shape[1] or q.shape[1] % k.shape[1]:
        raise InputError(
            "Expected q (B, H, Nq, D) and k, v (B, H_kv, Nk, D) with H_kv dividing H, "
            f"but got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}."
        )
    if q.shape[2] > k.shape[2]:
        raise InputError(
            f"There are {q.shape[2]} queries for {k.shape[2]} keys, but queries are the last positions of the keys' "
            "sequence: pass at least as many keys as queries."
        )
    if not (q.device == k.device == v.device):
        raise OptionError(f"q, k and v are on {q.device}, {k.device} and {v.device}; move them to one device.")
    one_dtype = q.dtype == k.dtype == v.dtype or autocasts(q)  # autocast converts them
    if not (one_dtype and q.is_floating_point() and k.is_floating_point() and v.is_floating_point()):
        raise OptionError(
            f"q, k and v have dtypes {q.dtype}, {k.dtype} and {v.dtype}; convert them to one floating-point dtype."
        )


def _check_numbers(scaling: Any, dropout_p: Any, seed: Any) -> None:
    """Raise :class:`OptionError` unless ``scaling``, ``dropout_p`` and ``seed`` are numbers in their ranges."""
    if scaling is not None and (
        isinstance(scaling, bool) or not (isinstance(scaling, int | float) and 0 < scaling < math.inf)
    ):
        raise OptionError(f"scaling is {scaling!r}, but must be a finite number above 0; for example scaling=0.125.")
    if isinstance(dropout_p, bool) or not (isinstance(dropout_p, int | float) and 0 <= dropout_p <= 1):
        raise OptionError(
            f"dropout_p is {dropout_p!r}, but must be a probability from 0 to 1; for example dropout_p=0.1."
        )
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) <= LARGEST:
        raise OptionError(f"seed is {seed!r}, but must be a whole number from 0 to {LARGEST}; for example seed=1.")


def _build_named(
    name: str, options: dict[str, Any], sizes: dict[str, Any], seed: int, device: torch.device
) -> Mechanism:
    """A module of the mechanism ``name``, in eval mode. A module without tensors is built once and cached.

    Args:
        sizes: ``num_heads``, ``head_dim``, ``hidden_size`` and ``max_length``.
        seed: seed for new parameters, and for the option ``seed`` if the mechanism has one.
        device: device of the parameters.
    """
    if seed and SEED in options_of(name):
        options = {**options, SEED: seed}
    # only options of these types can be keys of the cache
    if not torch.compiler.is_compiling() and {*map(type, options.values())} <= {type(None), bool, int, float, str}:
        module = without_tensors(name, *sizes.values(), **options)
        if module is not None:
            return module
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that parameters are the same for every device
    module = mechanism_from(name, options, **sizes, generator=generator)
    return (module.to(device) if has_tensors(module) else module).eval()


def check_mask(name: str, mask: Tensor | None, k: Tensor, *, refuse_zeros: bool = False) -> Tensor | None:
    """Check a mask ``(B, Nk)`` for keys ``k (B, H_kv, Nk, D)``, and return it as bool.

    A mask on the meta device or in a fake mode has no values. It becomes ``None``: all tokens count as real.

    Args:
        name: name of the argument, for messages.
        refuse_zeros: whether a float mask of only zeros is an error. It could be an additive mask, in which 0 means
            visible.
    Raises:
        InputError: the shape or device is wrong, or a float is neither 0 nor 1. A graph refuses all float masks,
            because their values cannot be checked there. The check synchronises with the device.
    """
    if mask is None:
        return None
    expected = (k.shape[0], k.shape[2])
    if not isinstance(mask, Tensor) or tuple(mask.shape) != expected:
        raise InputError(
            f"{name} {shape_in_words(mask)}, but must be (batch, key length) = {expected}, with 1 or True for the "
            "chosen tokens."
        )
    if mask.device != k.device:
        raise InputError(f"{name} is on {mask.device} and k on {k.device}; move them to one device.")
    if not has_values(mask):
        return None
    if mask.is_floating_point():
        chosen = mask == 1
        accepted = not in_graph() and bool((chosen | (mask == 0)).all())  # a graph cannot read values
        if accepted and refuse_zeros and mask.numel():
            accepted = bool(chosen.any())
        if not accepted:
            raise InputError(
                f"{name} has dtype {mask.dtype}, whose values may be added to the scores; pass booleans with True for "
                f"the chosen tokens, or for an additive mask {name}=(mask == 0)."
            )
    return mask if mask.dtype == torch.bool else mask != 0


def run_batch(
    mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, *, by_definition: bool = False
) -> Tensor:
    """Run a mechanism on a batch, which may have padding anywhere and packed documents.

    The mechanism itself gets sequences that start at index 0. With its option ``exact_length``, sequences up to that
    length get full attention.

    Args:
        by_definition: whether the mechanism's ``defined`` runs in place of its ``forward``. Every sequence then runs
            in a separate call, on any device and at any length.
    Returns:
        ``(B, H, Nq, D)``. Outputs at padding are finite but meaningless. Gradients of an empty output are zeros.
    """
    full = None
    if not call.causal and mechanism.options.exact_length:
        full = full_of(mechanism)
    if full is None:
        return run_mechanism(mechanism, q, k, v, call, by_definition=by_definition)
    if call.batch is None and not in_graph():  # all sequences have the same length
        return run_mechanism(for_length(mechanism, k.shape[2]), q, k, v, call, by_definition=by_definition)
    alone = functools.partial(run_batch, mechanism, by_definition=by_definition)
    by_mechanism = functools.partial(run_mechanism, mechanism, by_definition=by_definition)
    in_full = functools.partial(run_mechanism, full, by_definition=by_definition)
    run = in_full_if_short(in_full, by_mechanism, alone, full.sizes.max_length, needs_whole_batch(mechanism))
    return run(q, k, v, call)


def run_mechanism(
    mechanism: Mechanism, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall, *, by_definition: bool = False
) -> Tensor:
    """As :func:`run_batch`, but ignore ``exact_length``: the mechanism runs at every length."""
    exporting = torch.compiler.is_exporting()
    if exporting:
        reason = why_not_exported(mechanism)
        if reason is not None:
            raise BackendError(reason)
    elif 0 in q.shape:  # not in an export, where sizes may be symbols
        return nothing_seen(q, k, v)
    if call.grid is not None:
        call = call.with_term_on_grid()
    run: AttentionFunction = mechanism.defined if by_definition else mechanism
    observing: Any = nullcontext()
    if OBSERVERS and not torch.compiler.is_compiling():
        run = reporting(mechanism, run)
        observing = running(mechanism)
    without_values: Any = nullcontext()
    if q.is_meta and not in_graph():
        without_values = shapes_only()
    with observing, without_values:
        if call.batch is not None:
            run, call = _in_layout_of_batch(mechanism, run, by_definition, q, k, v, call)
        return run(q, k, v, call)


def _in_layout_of_batch(
    mechanism: Mechanism,
    run: AttentionFunction,
    by_definition: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: AttentionCall,
) -> tuple[AttentionFunction, AttentionCall]:
    """Adapt a mechanism's function to a batch with padding or packed documents.

    :mod:`.engines.sequences` explains the three layouts of a batch: "split", "unchanged" and "aligned".

    Args:
        run: the mechanism's ``forward``, or its definition if ``by_definition``.
    Returns:
        The function that brings a batch into the layout and calls ``run``, and the call to pass to it.
    """
    assert call.batch is not None
    cross = mechanism.is_cross_attention
    packed = call.batch.documents is not None
    layout = "unchanged"
    hides_padding = False  # whether the mechanism itself keeps values in padding from real tokens
    if isinstance(mechanism, MaskedMechanism) and not by_definition:
        hides_padding = mechanism.hides_padding(k, call)
    if aligns_sequences(mechanism, call):
        if not mechanism.capabilities.ignores_padding:
            call = call.replace(batch=call.batch.counting_padding())
        one_call = cross or (not by_definition and needs_whole_batch(mechanism))
        if packed:
            if in_graph():
                raise InputError(
                    "Documents packed into one row are kept apart by their numbers, which neither a traced graph nor "
                    "torch.func.vmap knows; call the model without it, or give each document its own row with padding."
                )
            layout, refused = _layout_of_documents(mechanism, by_definition, one_call, hides_padding, q, k, v, call)
        else:
            layout, refused = _layout_of_rows(mechanism, by_definition, one_call, q, k, call)
        if OBSERVERS:
            report(layout, refused)
    if layout == "split":
        run = functools.partial(split, run)
    elif layout == "aligned":
        run = functools.partial(aligned_documents if packed else rolled, run)
    if cross or not (hides_padding or layout == "split"):
        run = cleared(run, cross)
    return run, call


Layout = tuple[PathName, list[tuple[str, str]]]
"""The chosen layout, and ``(layout, reason)`` for each layout that was refused before it."""


def _layout_of_rows(
    mechanism: Mechanism, by_definition: bool, one_call: bool, q: Tensor, k: Tensor, call: AttentionCall
) -> Layout:
    """Choose the layout of padded rows.

    Args:
        by_definition: whether the mechanism's definition runs, which needs a call for each sequence.
        one_call: whether all rows must be in one call.
    """
    assert call.batch is not None
    # whether the output depends on the index at which a sequence starts in its row
    by_position = mechanism.capabilities.position_dependent
    if isinstance(mechanism, SparseMechanism) and mechanism.finds_starts and accelerator.accelerated(q):
        by_position = False
    # whether a row may have padding before its first token; a graph cannot read the padding
    starts_later = by_position and (in_graph() or any(span.start > 0 for span in call.batch.sequences))

    # "split" is the first choice: it returns unless there is a reason against it
    if in_graph():
        reason = "a graph does not know where sequences start"
    elif one_call:
        reason = "the mechanism draws or learns something once per call, or its queries belong to another sequence"
    elif by_definition or (by_position and q.shape[2] < k.shape[2]):  # "aligned" would copy all keys for few queries
        return "split", []
    elif accelerator.accelerated(q):
        reason = "one call serves all rows of a batch on this device"
    elif not starts_later and _cuts_padding(mechanism, q, k, call):
        reason = "the band engine cuts padding off every row by itself"
    elif q.shape[2] * k.shape[2] <= DENSE_CELLS:
        reason = "one call with a mask costs less for so few pairs"
    else:
        return "split", []
    refused = [("split", reason)]
    if starts_later:
        return "aligned", [*refused, ("unchanged", "its positions count from each row's first token")]
    return "unchanged", refused


def _cuts_padding(mechanism: Mechanism, q: Tensor, k: Tensor, call: AttentionCall) -> bool:
    """Whether the CPU's band engine runs this call, and skips the padding at the ends of its rows."""
    if not isinstance(mechanism, SparseMechanism) or not mechanism.pattern(call.causal).bounded:
        return False
    return not call.dropout or drops_in_tiles(DispatchContext.of(q, k, call))


def _layout_of_documents(
    mechanism: Mechanism,
    by_definition: bool,
    one_call: bool,
    hides_padding: bool,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: AttentionCall,
) -> Layout:
    """Choose the layout of packed documents. They run unchanged if the mechanism itself keeps them apart.

    Args:
        by_definition: whether the mechanism's definition runs, which needs a call for each document.
        one_call: whether all documents must be in one call.
        hides_padding: whether the mechanism itself keeps the values in padding from real tokens.
    """
    assert call.batch is not None
    # the reason against "unchanged"; None if there is none
    reason: str | None = "the mechanism does not keep packed documents apart"
    separates = not (by_definition or mechanism.is_cross_attention)
    if separates and mechanism.labels_documents(k, v, call):
        if q.shape[2] < k.shape[2]:
            reason = "there are fewer queries than keys"
        elif accelerator.accelerated(q):
            reason = None
        elif call.batch.has_holes:
            reason = "there is padding between the tokens of a document"
        else:
            reason = no_fused_kernels()
    elif (
        separates
        and hides_padding
        and isinstance(mechanism, SparseMechanism)
        and not mechanism.capabilities.position_dependent
    ):
        reason = why_not_one_call(q, k, mechanism.pattern(call.causal), call)
    if reason is None:
        return "unchanged", []
    refused = [("unchanged", reason)]
    if not one_call:
        return "split", [*refused, ("aligned", "a call per document costs no more than its tokens")]
    if call.grid is not None or q.shape[2] < k.shape[2]:
        return "split", [*refused, ("aligned", "documents have grids, or there are fewer queries than keys")]
    return "aligned", refused
