"""Why a batch does not get a :data:`~.paths.Layout`, each as a clause. :func:`.call.attend_per_sequence` describes the layouts."""

from __future__ import annotations

from .batch import in_graph
from .call import groups_of_documents
from .context import DispatchContext
from .derivatives import no_fused_kernels

UNKNOWN_STARTS = "a graph does not know where sequences start"


def why_not_masked(context: DispatchContext) -> str | None:
    """Why the rows do not run in one call with a mask."""
    batch = context.call.batch
    return "its positions count from each row's first token" if context.by_position and batch is not None and batch.padded_left else None


def why_not_split(context: DispatchContext, *, trimmed: bool) -> str | None:
    """Why the sequences do not run in separate calls.

    trimmed: whether the engine of this call cuts off each row's outer padding itself.
    """
    if in_graph():
        return UNKNOWN_STARTS
    if context.single_call:
        return "the mechanism draws or learns something once per call, or its queries belong to another sequence"
    if context.separate_calls or (context.by_position and context.q_len < context.kv_len):  # rolling would copy all keys for a few queries
        return None
    if context.device != "cpu":
        return "one call serves all rows of a batch on this device"
    if trimmed and why_not_masked(context) is None:
        return "the band engine cuts padding off every row by itself"
    return None if context.many_pairs else "one call with a mask costs less for so few pairs"


def why_not_packed(context: DispatchContext) -> str | None:
    """Why the mechanism does not run on whole packed rows and separate the documents itself."""
    if in_graph():
        return UNKNOWN_STARTS
    if context.separate_calls or context.q_len < context.kv_len:
        return "every document is to be run alone, or the queries are not those of the keys"
    if context.device != "cpu":
        return None
    if context.call.batch is not None and any(sequence.holes for sequence in context.call.batch.sequences):
        return "there is padding between the tokens of a document"
    return no_fused_kernels()


def why_not_stacked(context: DispatchContext) -> str | None:
    """Why packed documents are not gathered into the rows of a batch."""
    if context.device == "cpu" and not context.single_call:
        return "on the CPU a document alone costs what its tokens cost"
    if context.stacking is None or context.q_len < context.kv_len:
        return "padding counts, every document is to be run alone, or the queries are not those of the keys"
    if in_graph():
        return UNKNOWN_STARTS
    if (why := no_fused_kernels()) is not None:
        return why
    batch, groups = context.call.batch, groups_of_documents(context.call, context.stacking)
    return "no two documents may share a call" if batch is None or len(groups) == len(batch.sequences) else None
