"""The inputs of a mechanism, and what it needs from its model. The defaults suit most mechanisms."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ...engines.common.call import AttentionCall
from ...engines.common.document_rows import Stacking
from ...engines.common.grid import Grid
from ...options import Options
from .token_rules import TokenRule

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclasses.dataclass(frozen=True)
class Recursion:
    """The segments in which a model processes a text, passing memory tokens on between them.

    length: tokens of a segment, memory included.
    memory: memory tokens.
    depth: how many segments back gradients flow; ``None`` means all.
    """

    length: int
    memory: int
    depth: int | None = None

    def text(self, causal: bool) -> int:
        """Text tokens in a segment. A causal segment holds its memory twice: in front to read, at the end to write."""
        return self.length - self.memory * (2 if causal else 1)


class Traits(nn.Module):
    """Inputs of a mechanism, and what it needs from its layer and model."""

    name: ClassVar[str]
    """Set by :func:`hf_longattn.register_mechanism`."""
    causal: bool | str
    options: Options
    layer: int = 0
    """Index of its layer, set when it is attached to a model. Seeded mechanisms draw differently in each layer."""
    is_cross_attention: bool = False
    """Whether queries and keys belong to different sequences. The queries are then not cut where the keys have padding. Set on the
    mechanism of a cross-attention module."""

    takes_globals: bool = False
    """Whether the mechanism uses ``global_mask``."""
    takes_score_mod: bool = True
    """Whether its scores take a further term (``score_mod``, a position bias, a dense mask)."""
    takes_fewer_queries: ClassVar[bool] = True
    """Whether a call may have fewer queries than keys. If not, such a call raises LengthError."""
    takes_hidden_states: bool = False
    """Whether this mechanism needs its layer's input, ``call.hidden_states (B, Nk, hidden_size)``."""
    takes_documents: ClassVar[bool] = False
    """Whether ``forward`` separates packed documents on the CPU, each as if it were alone. Rows are then not split."""
    is_plain_band: bool = False
    """Whether ``forward`` is just the band engine, without global tokens or relative positions. On a GPU, it separates packed documents."""

    pictures_need_order: ClassVar[bool] = True
    """Whether a picture needs the option ``order``, since neighbours in the sequence are treated differently from other tokens."""
    remembers: ClassVar[bool] = False
    """Whether segments are read one after the other, each with a memory of earlier segments."""
    needs_grid: ClassVar[bool] = False
    """Whether the mechanism is defined by the coordinates of tokens on a grid, ``call.grid``."""

    position_dependent: bool = True
    """Whether the output depends on where a sequence starts. With blocks, columns and counted positions it does; otherwise a key mask
    is enough for left padding."""
    trims_padding: bool = False
    """Whether the engine for long inputs cuts the outer padding off every row. Rows then need not be split."""
    clears_padding: bool = False
    """Whether ``forward`` keeps padding values (NaN, infinities) out of real rows. They then need not be cleared."""
    ignores_padding: bool = True
    """Whether padding leaves outputs unchanged. False only if an option reproduces another implementation that counts padding."""
    needs_whole_batch: bool = False
    """Whether all rows or packed documents of a batch must be in one call. Such a mechanism draws or learns something once per
    call."""
    bitwise_causal: ClassVar[bool] = True
    """Whether later tokens leave a causal row bitwise unchanged. Otherwise they change it by rounding alone (1e-6)."""

    why_one_form: str = ""
    """Why these options have one form only, and what to change. ``{where}`` stands for what needs the other form."""
    exports: bool = True
    """Whether ``torch.export`` writes one graph for all lengths."""
    exports_definition: bool = False
    """Whether that graph is the definition, in N×N memory. For engines whose layout depends on the length or the data."""

    fits_activations: bool = False
    """Whether :meth:`init_from_activations` has parameters to set."""
    copies: Mapping[str, str] = MappingProxyType({})
    """Parameters initialised as copies of the layer's own: name below the mechanism -> "query", "key" or "value" with ".weight"/".bias"."""
    shared_by_layers: tuple[str, ...] = ()
    """Parameters tied across all layers of a model whose mechanisms have equal options."""

    @property
    def recursion(self) -> Recursion | None:
        """The segments in which the whole model runs; ``None`` if it runs on whole texts."""
        return None

    @property
    def token_rule(self) -> TokenRule | None:
        """The rule for tokens that are global by id, or ``None``. The model applies it to inputs without a global mask."""
        return None

    @classmethod
    def covering_grid(cls, grid: Grid) -> dict[str, Any] | None:
        """Options with which a mechanism on a grid equals full softmax attention on ``grid``; ``None`` if none are known."""
        return None

    def on(self, grid: Grid) -> Self:
        """The mechanism bound to ``grid``, which gives its mask and pairs there. Itself if they do not depend on a grid."""
        return self

    def grid_blocks(self, grid: Grid) -> tuple[int, ...] | None:
        """Block size in cells along each axis, if cells see exactly their own block; else ``None``. Blocks are counted
        from the first cell and may be smaller at the end of an axis."""
        return None

    def check_grid(self, grid: Grid) -> None:
        """Raise :class:`GridError` if these options make no sense on ``grid``."""

    def resolve_globals(self, k: Tensor, call: AttentionCall) -> Tensor | None:
        """The global tokens ``(B, Nk)`` bool of this call, for keys ``k (B, H_kv, Nk, D)``; ``None`` without global tokens."""
        return None

    def labels_documents(self, k: Tensor, v: Tensor, call: AttentionCall) -> bool:
        """Whether ``forward`` separates packed documents by ``call.documents``, in operations on whole rows. Asked on devices other than
        the CPU; if False, documents become rows of a batch there.

        k, v: ``(B, H_kv, Nk, D)``.
        """
        return False

    def stacking(self, causal: bool) -> Stacking | None:
        """Which packed documents may be rows of one batch, padded on the right; ``None`` if padding counts."""
        return (Stacking(most_calls=1) if self.needs_whole_batch else Stacking()) if self.ignores_padding else None

    @property
    def reads_grid(self) -> bool:
        """Whether the grid coordinates of tokens matter."""
        return self.needs_grid or self.options.order is not None

    def fused_mask(self, key: Tensor, causal: bool) -> Tensor | bool:
        """The mask of the equivalent single fused call, for rows of real tokens with keys ``key (B, H_kv, N, D)``.

        ``True`` means causality or no mask; a tensor ``(1, 1, N, N)`` is added to the scores; ``False`` means that there is no such call.
        """
        return False

    def init_from_activations(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor | None = None, *, causal: bool = False) -> bool:
        """Set the parameters from activations of a trained full-attention layer. Returns whether there was anything to set.

        Args:
            q, k, v: ``(S, H, N, D)``, the layer's, for S sequences, at least two.
            real: ``(S, N)`` bool, True = real token; ``None`` where all are.
            causal: whether the layer looks back only.
        """
        return False

    def stops_gradients(self, length: int) -> bool:
        """Whether some keys and values must be computed from detached hidden states at this length.

        While gradients are computed, a model then makes the keys and values of a call twice, the second time from detached hidden states.
        The second pair goes to ``forward`` as ``detached_kv``, each ``(B, H_kv, n, D)`` for the call's own n tokens. Its gradients reach
        the layer's projections, but not the hidden states.
        """
        return False

    def auxiliary_loss(self) -> Tensor | None:
        """A loss term, already weighted, that a model adds while it trains; ``None`` if there is none."""
        return None


def per_sequence(mechanism: Traits, call: AttentionCall) -> bool:
    """Whether the sequences of a call are moved to index 0 before the mechanism runs. False without a batch, for rows in which padding
    counts, and if every row fills one grid: there, padding is a hole wherever it lies."""
    if call.batch is None:
        return False
    if call.batch.documents is not None or (isinstance(call.grid, tuple) and mechanism.reads_grid):
        return True
    return mechanism.ignores_padding and not (call.grid is not None and mechanism.reads_grid)
