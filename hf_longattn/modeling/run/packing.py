"""Runs a padded batch as one packed row, so that no layer works on padding. Documents do not see each other."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ...backend import DOCUMENTS, outputs_collected
from ...engines.common.batch import Batch, in_graph
from ..attach.attention_sites import attention_sites
from .modes import Forward, Mode
from .outputs import Kind, joined, scattered

SCALAR_TYPES = (bool, int, float, str)
"""Types of arguments that hold for all rows."""


@dataclass(frozen=True)
class PackedInputs:
    """The packed row: its arguments, and where its tokens belong. ``places (T,)`` are their flat indices in the batch, ``starts (B,)`` the
    batch's rows in it; then the batch's number of rows and length."""

    arguments: dict[str, Any]
    places: Tensor
    starts: Tensor
    rows: int
    length: int


class Packing(Mode[PackedInputs]):
    """Runs padded batches of a base model as one packed row. Outputs at padding are zeros.

    A batch is not packed if it requests attentions or a cache, has padding between real tokens, or has arguments other than tensors
    ``(B, N, …)``. Compiled models do not pack.
    """

    name, key = "packed batches", "packing"

    def __init__(self, base: Any) -> None:
        self.causal = any(site.causal for site in attention_sites(base))
        """Whether the base is a decoder, which returns a cache by default."""
        _pool_first_tokens(base)

    def prepare(self, model: Any, arguments: dict[str, Any]) -> PackedInputs | None:
        real = self._real_tokens(model, arguments)
        if real is None:
            return None
        rows, length = real.shape
        places = real.flatten().nonzero()[:, 0]
        packed = {
            name: value.flatten(0, 1)[places][None] if isinstance(value, Tensor) else value
            for name, value in arguments.items()
            if value is not None and name != "attention_mask"
        }
        packed["documents"] = (places // length)[None]
        if model.position_table is not None and model.takes_positions and "position_ids" not in packed:
            positions = model.own_positions({**arguments, "attention_mask": real}, (rows, length), real.device)
            packed["position_ids"] = positions.flatten()[places][None]
        counts = real.sum(1)
        starts = (counts.cumsum(0) - counts).clamp(max=len(places) - 1)
        return PackedInputs({**packed, "return_dict": True}, places, starts, rows, length)

    def _real_tokens(self, base: Any, arguments: dict[str, Any]) -> Tensor | None:
        """The real tokens ``(B, N)`` of a call to be packed. ``None`` if the call is not packed."""
        mask = arguments.get("attention_mask")
        if in_graph() or not base.runs_mechanisms or not isinstance(mask, Tensor) or mask.dim() != 2:
            return None
        flags = {name: value for name, value in arguments.items() if value is not None}
        if not DOCUMENTS.isdisjoint(flags) or flags.get("output_attentions", base.config.output_attentions) or outputs_collected():
            return None
        if flags.get("use_cache", self.causal and getattr(base.config, "use_cache", False)):
            return None
        tensors = [value for value in flags.values() if not isinstance(value, SCALAR_TYPES)]
        if not all(isinstance(value, Tensor) and value.shape[:2] == mask.shape for value in tensors):
            return None
        real = mask.bool()
        sequences = Batch(real).sequences
        without_padding = sum(sequence.length for sequence in sequences) == real.numel()
        if not sequences or without_padding or any(sequence.holes for sequence in sequences):
            return None
        return real

    def run(self, model: Any, forward: Forward, inputs: PackedInputs) -> list[Any]:
        pooling = _POOLING.set(_Pooling(inputs.starts))
        try:
            return [model.run_whole(forward, inputs.arguments)]
        finally:
            _POOLING.reset(pooling)

    def restore(self, model: Any, inputs: PackedInputs, parts: Sequence[Any]) -> Any:
        def tokens(values: Sequence[Tensor]) -> Tensor:
            return scattered(values[0][0], inputs.places, inputs.rows, inputs.length)

        def routes(values: Sequence[Tensor]) -> Tensor:
            return scattered(values[0], inputs.places, inputs.rows, inputs.length).flatten(0, 1)

        return joined(parts, {Kind.TOKENS: tokens, Kind.ROUTES: routes, Kind.SEQUENCES: lambda values: values[0]}, self.name)


def packing_refusal(model: Any) -> str | None:
    """Why padded batches of this base model cannot run as one packed row. ``None`` if they can."""
    if not hasattr(model, "refusal_of_documents"):
        return f"{type(model).__name__} does not keep documents of one row apart; only the base models of Long classes do"
    if model.main_input_name != "input_ids":
        return f"{type(model).__name__} reads {model.main_input_name}, which have no padding"
    if getattr(model.config, "token_dropout", False):
        return f"{type(model).__name__} scales embeddings by each row's share of masked tokens (token_dropout)"
    return model.refusal_of_documents({})


# ---- poolers that read the first token of a row


@dataclass
class _Pooling:
    """The starts of documents in the packed row that a base model is running. With the hidden states for its pooling."""

    starts: Tensor
    hidden: Tensor | None = field(default=None)


_POOLING: ContextVar[_Pooling | None] = ContextVar("pooling", default=None)


def _pool_first_tokens(base: nn.Module) -> None:
    """Make the pooling of ``base`` read each document's first token. By itself it reads the first token of a row."""
    pooler: Any = getattr(base, "pooler", None)
    if hasattr(pooler, "out_features"):  # a linear layer, packed or not: the model itself takes the first token
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
