"""A padded batch as one packed row, so that no layer works on padding: documents see what they see alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ...backend import DOCUMENTS
from ...engines.common.batch import Batch, in_graph
from ...private_apis import outputs_collected
from ..attach.attention_sites import attention_sites
from .outputs import Kind, joined, scattered, wants_tuple

Forward = Callable[..., Any]
SCALARS = (bool, int, float, str)
"""Arguments of these types hold for all rows."""


class Packing:
    """Runs the padded batches of a base model as one packed row.

    A batch is run as it is, if it asks for attentions or for a cache, has padding between real tokens, other arguments than tensors
    ``(B, N, …)``, or is given to a compiled model.
    """

    def __init__(self, base: Any) -> None:
        self.causal = any(getattr(site.module, "is_causal", False) for site in attention_sites(base))
        """Whether it is a decoder, which returns a cache by default."""
        _pool_first_tokens(base)

    def real_tokens(self, base: Any, arguments: dict[str, Any]) -> Tensor | None:
        """The real tokens ``(B, N)`` of a call that is to be packed; ``None`` for one that is to run as it is."""
        mask = arguments.get("attention_mask")
        if in_graph() or not base.runs_mechanisms or not isinstance(mask, Tensor) or mask.dim() != 2:
            return None
        flags = {name: value for name, value in arguments.items() if value is not None}
        if not DOCUMENTS.isdisjoint(flags) or flags.get("output_attentions", base.config.output_attentions) or outputs_collected():
            return None
        if flags.get("use_cache", self.causal and getattr(base.config, "use_cache", False)):
            return None
        tensors = [value for value in flags.values() if not isinstance(value, SCALARS)]
        if not all(isinstance(value, Tensor) and value.shape[:2] == mask.shape for value in tensors):
            return None
        real = mask.bool()
        sequences = Batch(real).sequences
        if not sequences or sum(one.stop - one.start for one in sequences) == real.numel() or any(one.holes for one in sequences):
            return None
        return real

    def run(self, base: Any, forward: Forward, arguments: dict[str, Any], real: Tensor) -> Any:
        """The outputs of the batch ``arguments`` with the real tokens ``(B, N)``; rows of padding are zeros."""
        rows, length = real.shape
        places = real.flatten().nonzero()[:, 0]
        packed = {
            name: value.flatten(0, 1)[places][None] if isinstance(value, Tensor) else value
            for name, value in arguments.items()
            if value is not None and name != "attention_mask"
        }
        packed["documents"] = (places // length)[None]
        if base.position_table is not None and base.takes_positions and "position_ids" not in packed:
            positions = base.own_positions({**arguments, "attention_mask": real}, (rows, length), real.device)
            packed["position_ids"] = positions.flatten()[places][None]
        counts = real.sum(1)
        pooling = _POOLING.set(_Pooling((counts.cumsum(0) - counts).clamp(max=len(places) - 1)))
        try:
            outputs = base.run_whole(forward, {**packed, "return_dict": True})
        finally:
            _POOLING.reset(pooling)

        def tokens(values: Sequence[Tensor]) -> Tensor:
            return scattered(values[0][0], places, rows, length)

        def routes(values: Sequence[Tensor]) -> Tensor:
            return scattered(values[0], places, rows, length).flatten(0, 1)

        joins = {Kind.TOKENS: tokens, Kind.ROUTES: routes, Kind.SEQUENCES: lambda values: values[0]}
        outputs = joined([outputs], joins, "packed batches")
        return outputs.to_tuple() if wants_tuple(base, arguments) else outputs


def packing_refusal(model: Any) -> str | None:
    """Why padded batches of this base model cannot be run as one packed row; ``None`` where they can."""
    if not hasattr(model, "refusal_of_documents"):
        return f"{type(model).__name__} does not keep documents of one row apart; only the base models of Long classes do"
    if any(isinstance(module, nn.Conv1d) for module in model.modules()):
        return f"{type(model).__name__} convolves neighbouring tokens beside its attention"
    if getattr(model.config, "token_dropout", False):
        return f"{type(model).__name__} scales embeddings by each row's share of masked tokens (token_dropout)"
    return model.refusal_of_documents({})


# ---- poolers, which read the first token of a row


@dataclass
class _Pooling:
    """Where the documents of the packed row start that a base model is running, and the hidden states that its pooling reads."""

    starts: Tensor
    hidden: Tensor | None = field(default=None)


_POOLING: ContextVar[_Pooling | None] = ContextVar("pooling", default=None)


def _pool_first_tokens(base: nn.Module) -> None:
    """Let the pooling of ``base``, which reads the first token of a row, read that of every document of a packed row."""
    pooler: Any = getattr(base, "pooler", None)
    if hasattr(pooler, "out_features"):  # a linear layer, as it is or packed: the model takes the first token itself
        base.encoder.register_forward_hook(_remember_hidden)  # type: ignore[union-attr]
        pooler.register_forward_pre_hook(_first_tokens_of_encoder)
    elif isinstance(pooler, nn.Module):
        pooler.register_forward_pre_hook(_first_tokens)


def _remember_hidden(module: nn.Module, args: Any, output: Any) -> None:
    if (pooling := _POOLING.get()) is not None:
        pooling.hidden = output[0]


def _first_tokens_of_encoder(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    pooling = _POOLING.get()
    return None if pooling is None or pooling.hidden is None else (pooling.hidden[0, pooling.starts], *args[1:])


def _first_tokens(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    pooling = _POOLING.get()
    return None if pooling is None else (args[0][0, pooling.starts][:, None], *args[1:])
