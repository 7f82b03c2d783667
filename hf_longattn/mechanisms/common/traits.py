"""The inputs that a mechanism takes and what it needs of its model, for the code around it. The defaults suit most mechanisms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ...engines.common.call import AttentionCall
from ...engines.common.document_rows import Stacking
from ...engines.common.grid import Grid
from ...errors import OptionError
from ...options import Options
from .token_rules import TokenRule

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclasses.dataclass(frozen=True)
class Recursion:
    """The segments in which a model processes a text, with memory tokens passed from each to the next.

    length: tokens of a segment, memory included.
    memory: memory tokens.
    depth: how many segments back gradients flow; ``None`` is all of them.
    """

    length: int
    memory: int
    depth: int | None = None

    def text(self, causal: bool) -> int:
        """Tokens of text in a segment: a causal one has its memory twice, to read in front and to write at the end."""
        return self.length - self.memory * (2 if causal else 1)


class Traits(nn.Module):
    """Inputs of a mechanism, and what it needs of its layer and model."""

    name: ClassVar[str]
    """Set by :func:`hf_longattn.register_mechanism`."""
    engine: ClassVar[str]
    causal: bool | str
    options: Options
    layer: int = 0
    """Index of its layer, by which the layers of a seeded mechanism differ; set when it is attached to a model."""
    is_cross_attention: bool = False
    """Whether the queries belong to another sequence than the keys, so that they are not cut where the keys have padding: set on the
    mechanism of a cross-attention module."""

    takes_globals: bool = False
    """Whether the mechanism uses ``global_mask``."""
    takes_score_mod: bool = True
    """Whether there are scores to which a term (``score_mod``, a position bias, a dense mask) can be added."""
    takes_fewer_queries: ClassVar[bool] = True
    """Whether there may be fewer queries than keys; otherwise that raises LengthError."""
    takes_hidden_states: bool = False
    """Whether this mechanism needs its layer's input, ``call.hidden_states (B, Nk, hidden_size)``."""
    takes_documents: ClassVar[bool] = False
    """Whether ``forward`` keeps packed documents apart on the CPU, each as if it were alone, so that rows need not be split."""
    is_plain_band: bool = False
    """Whether ``forward`` is the band engine alone, without global tokens or score terms, which on a GPU keeps packed documents apart."""

    order_matters: ClassVar[bool] = True
    """Whether neighbours along the sequence are something else than other tokens, so that a picture is read in some order."""
    remembers: ClassVar[bool] = False
    """Whether segments are read one after the other, each with a memory of those before it."""
    needs_grid: ClassVar[bool] = False
    """Whether the mechanism is defined by the places of tokens on a grid, ``call.grid``."""

    position_dependent: bool = True
    """Whether the output depends on where a sequence starts, as with blocks, columns and counted positions; otherwise left padding needs
    no more than a key mask."""
    trims_padding: bool = False
    """Whether the engine for long inputs cuts the outer padding off every row by itself, so that rows need not be split."""
    clears_padding: bool = False
    """Whether ``forward`` keeps the values of padding (NaN, infinities) from real rows by itself, so that they need not be cleared."""
    ignores_padding: bool = True
    """Whether padding changes nothing. False only where an option reproduces another implementation that counts it."""
    needs_whole_batch: bool = False
    """Whether the rows of a batch, or the documents packed into them, must be one call because the mechanism draws or learns something once
    per call."""
    bitwise_causal: ClassVar[bool] = True
    """Whether a causal row is bitwise unchanged when later tokens change; otherwise it is unchanged up to rounding (1e-6)."""

    exports: bool = True
    """Whether ``torch.export`` writes one graph for all lengths."""
    exports_definition: bool = False
    """Whether that graph is the definition, which takes N×N memory, because the engine's layout depends on the length or the data."""

    fits_activations: bool = False
    """Whether :meth:`init_from_activations` has parameters to set."""
    copies: Mapping[str, str] = MappingProxyType({})
    """Parameters initialised as copies of the layer's own: name below the mechanism -> "query", "key" or "value" with ".weight"/".bias"."""
    shared_by_layers: tuple[str, ...] = ()
    """Parameters tied across all layers of a model whose mechanisms have equal options."""

    @property
    def recursion(self) -> Recursion | None:
        """The segments in which the whole model runs; ``None`` where it does not."""
        return None

    @property
    def token_rule(self) -> TokenRule | None:
        """The tokens that are global by their ids, where no global mask is given; the model applies it. ``None`` where ids play no part."""
        return None

    @classmethod
    def covering_grid(cls, grid: Grid) -> dict[str, Any] | None:
        """Options by which a mechanism on a grid equals full softmax attention on this one; ``None`` where none are known."""
        return None

    def on(self, grid: Grid) -> Self:
        """The mechanism to ask for its mask and pairs on this grid; itself where they do not depend on it."""
        return self

    def grid_blocks(self, grid: Grid) -> tuple[int, ...] | None:
        """Cells along each axis of the blocks, counted from the first cell, whose cells see each other and no cell outside; those at the
        end of an axis may be smaller. ``None`` where there are no such blocks."""
        return None

    def check_grid(self, grid: Grid) -> None:
        """Raise :class:`GridError` for a grid on which these options make no sense."""

    def resolve_globals(self, k: Tensor, call: AttentionCall) -> Tensor | None:
        """The global tokens ``(B, Nk)`` bool of this call, for keys ``k (B, H_kv, Nk, D)``; ``None`` without global tokens."""
        return None

    def labels_documents(self, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
        """Whether ``forward`` keeps packed documents apart by ``call.documents``, in operations on whole rows: elsewhere than on the CPU,
        where documents are rows of a batch otherwise.

        k, v: ``(B, H_kv, Nk, D)``.
        """
        return False

    def stacking(self, causal: bool) -> Stacking | None:
        """Which packed documents may be rows of one batch, padded on the right; ``None`` where padding counts."""
        return (Stacking(most_calls=1) if self.needs_whole_batch else Stacking()) if self.ignores_padding else None

    def per_sequence(self, call: AttentionCall) -> bool:
        """Whether the sequences of a call are brought to index 0 before the mechanism runs; not where every row fills one grid, on which
        padding is a hole wherever it lies."""
        if call.batch is None:
            return False
        if call.batch.documents is not None or (isinstance(call.grid, tuple) and self.reads_grid):
            return True
        return self.ignores_padding and not (call.grid is not None and self.reads_grid)

    @property
    def reads_grid(self) -> bool:
        """Whether the places of tokens on their grid matter."""
        return self.needs_grid or self.options.order is not None

    @property
    def only_path(self) -> str:
        """Name of the path of a ``forward`` with a single path."""
        return self.engine.replace("_", "-")

    def fused_mask(self, key: Tensor, causal: bool) -> Tensor | bool:
        """The mask of the single fused call that equals this module on rows of real tokens with keys ``key (B, H_kv, N, D)``.

        ``True`` is causality or no mask; a tensor ``(1, 1, N, N)`` is added to the scores; ``False`` if there is no such call.
        """
        return False

    def wrong_form(self, causal: bool, where: str) -> OptionError:
        """The refusal of a form that ``where`` needs and that does not exist with these options, see :attr:`causal`."""
        chosen = "" if type(self).causal == self.causal else " with these options"
        return OptionError(
            f"Mechanism {self.name!r} exists only with causal={self.causal}{chosen}, but {where} needs causal={causal}; "
            f"choose {'others, or ' if chosen else ''}one of hf_longattn.list_mechanisms(causal={causal})."
        )

    def init_from_activations(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None = None, *, causal: bool = False) -> bool:
        """Set the parameters from what a trained layer of full attention computes on some text; returns whether there was anything to set.

        Args:
            q, k, v: ``(S, H, N, D)`` of S sequences, at least two.
            real: ``(S, N)`` bool, True = real token; ``None`` where all are.
            causal: whether the layer looks back only.
        """
        return False

    def stops_gradients(self, length: int) -> bool:
        """Whether, in a text of ``length`` tokens, gradients must stop at the hidden states that some keys and values are made from.

        A model then makes the keys and values of a call twice while gradients are computed, the second time from hidden states that are
        constants, and hands these to ``forward`` as ``detached_kv``, a pair ``(B, H_kv, n, D)`` of the call's own n tokens: what flows into
        them reaches the layer's projections, but not the hidden states.
        """
        return False

    def auxiliary_loss(self) -> Tensor | None:
        """A term, weighted already, that a model adds to its loss while it trains; ``None`` when there is none."""
        return None
