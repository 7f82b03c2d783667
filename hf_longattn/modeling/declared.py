"""Reads a stock model's own attention mask, and computes attention to the keys that it shows.

transformers makes a mask from a function over positions: causality, a sliding window, chunks, packed documents, blocks
that see each other. :class:`DeclaredMask` reads that function instead of evaluating it for every pair, so that nothing
of size N×N is built for a window. A function that it cannot read is evaluated by transformers, for a block of queries
at a time. :func:`attend_as_declared` is the attention function of modules without a mechanism.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers.masking_utils as masking
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..engines.batch import Batch, PassCache, has_values, in_graph
from ..engines.block_sparse import block_sparse_attention
from ..engines.byte_cache import BYTE_CACHE, tensor_bytes
from ..engines.call import UNBOUNDED, AttentionCall, Pattern
from ..engines.cpu.visible_blocks import BLOCK, VisibleBlocks, visible_block_attention
from ..engines.dense import fused_attention, masked_softmax, products, repeat_heads
from ..engines.dense_masks import hidden_pairs, only_hides
from ..engines.dispatch import OBSERVERS, choose
from ..errors import BackendError
from ..functional import check_trace, run_batch
from ..mechanisms.common.base import Mechanism
from ..mechanisms.common.options import LARGEST
from ..mechanisms.common.registry import mechanism_from
from . import masks

BLOCK_PAIRS = 1 << 26
"""Maximum query-key pairs, over all batch rows, of a mask that is evaluated at once. Untuned."""
PIECE_PAIRS = 1 << 22
"""Maximum query-key pairs, over all batch rows, of a piece of a mask that is reduced to blocks. Small pieces are
evaluated faster, since they stay in the CPU cache."""
FEWEST_ROWS = 128
"""Minimum queries per block. Untuned."""
FEW_QUERIES = 32
"""Maximum new tokens for one masked call over all keys. Untuned."""
SINKS = "s_aux"
"""The keyword for the scores ``(H,)`` of sinks, one more column of the softmax (gpt-oss)."""
MaskFunction = Callable[[Any, Any, Any, Any], Any]
"""``mask_function(batch, head, query, key) -> bool`` of transformers, over absolute positions."""


def _code(name: str, *arguments: Any) -> Any:
    """The code object of the mask functions that transformers' ``name`` creates. If this version has no ``name``, an
    object that is no function's code."""
    make = getattr(masking, name, None)
    return object() if make is None else make(*arguments).__code__


ALL_OF, ANY_OF = _code("and_masks", masking.causal_mask_function), _code("or_masks", masking.causal_mask_function)
WINDOW, WINDOW_AROUND = _code("sliding_window_overlay", 1), _code("sliding_window_bidirectional_overlay", 1)
CHUNKS, BLOCKS = _code("chunked_overlay", 1, torch.zeros(1)), _code("blockwise_overlay", torch.zeros(1, 1))
DOCUMENTS = _code("packed_sequence_mask_function", torch.zeros(1, 1))
MOVED = _code("remap_positions_for_packed_sequence", masking.causal_mask_function, torch.zeros(1, 1))
KNOWN = {ALL_OF, ANY_OF, WINDOW, WINDOW_AROUND, CHUNKS, BLOCKS, DOCUMENTS, MOVED}


def _settings(function: MaskFunction) -> dict[str, Any]:
    """Arguments with which transformers created a mask function, by name."""
    return {
        name: cell.cell_contents
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    }


class Region(NamedTuple):
    """Visible keys of a stock model, described by a band, padding and documents.

    keys: number of keys in use. Later keys are empty slots of a static cache. The queries are the last of the keys in
        use.
    cross: whether queries may be a different sequence, so that the key padding says nothing about queries.
    """

    pattern: Pattern
    keys: int
    batch: Batch | None = None
    cross: bool = False


class DeclaredMask(PassCache):
    """The mask of a stock model, in place of the tensor ``(B, 1, Nq, Nk)`` bool that transformers would build.

    It fully determines which keys a query sees. Attention modules receive it like flex-attention's ``BlockMask``.
    Tensor operations and attributes are forwarded to :meth:`dense`. If it is added to scores, visible keys get 0 and
    hidden keys the lowest number.

    left, right: the band that contains every visible pair: from ``query - left`` to ``query + right``.
    exact: whether the band, :attr:`padding` and documents describe the mask completely.
    padding: ``(B, Nk)`` bool, True = real key; ``None`` if every key is real.
    chunk: tokens per chunk, if the mask has chunks; else ``None``. Each chunk counts as a document.
    """

    ndim, dtype = 4, torch.bool
    chunk: int | None = None

    def __init__(self, *, traced: bool | None = None, **arguments: Any) -> None:
        """Read the mask for transformers' ``arguments``. ``traced``: whether as in a graph; by default, if in one."""
        self.arguments = arguments
        self.queries, self.keys = arguments["q_length"], arguments["kv_length"]
        if isinstance(arguments["q_offset"], Tensor):  # a static cache changes its offset before the mask is evaluated
            offset = arguments["q_offset"]
            arguments["q_offset"] = offset.clone() if in_graph() or not has_values(offset) else int(offset)
        self.first_query, self.first_key = arguments["q_offset"], arguments["kv_offset"]
        self.shape = torch.Size((arguments["batch_size"], 1, self.queries, self.keys))
        self.left, self.right, self.exact = UNBOUNDED, UNBOUNDED, True
        self._labels: list[Tensor] = []
        real = masking.prepare_padding_mask(arguments["attention_mask"], self.keys, self.first_key)
        self.padding = None if real is None else real[:, self.first_key : self.first_key + self.keys]
        if in_graph() if traced is None else traced:
            self._read_in_graph(arguments["mask_function"])
            return
        self._read(arguments["mask_function"], None)
        if self.padding is not None and bool(self.padding.all()):
            self.padding = arguments["attention_mask"] = None

    def _read(self, function: MaskFunction, positions: Tensor | None) -> None:
        """Narrow the band to ``function``, and collect its documents. An unknown function does not change the band.

        positions: ``(B, N)``, the positions that the function uses instead of token indices.
        """
        code = getattr(function, "__code__", None)
        settings = _settings(function) if code in KNOWN else {}
        if function is masking.causal_mask_function:
            self.right = 0
        elif code is ALL_OF:
            for part in settings["mask_functions"]:
                self._read(part, positions)
        elif code is WINDOW:
            self.left = min(self.left, settings["sliding_window"] - 1)
        elif code is WINDOW_AROUND:
            self.left, self.right = (
                min(self.left, settings["sliding_window"]),
                min(self.right, settings["sliding_window"]),
            )
        elif code is CHUNKS:
            padding, self.chunk = settings["left_padding"][:, None], settings["chunk_size"]
            columns = torch.arange(self.first_key, self.first_key + self.keys, device=padding.device)
            self._labels.append(((columns if positions is None else positions) - padding) // self.chunk)
        elif code is MOVED:
            self._read(settings["mask_function"], settings["position_ids"])
        elif code is DOCUMENTS:
            self._labels.append(settings["packed_sequence_mask"])
        elif code is ANY_OF and [getattr(part, "__code__", None) for part in settings["mask_functions"][1:]] == [
            BLOCKS
        ]:
            base, blocks = settings["mask_functions"]
            self._read(base, positions)
            numbers = _settings(blocks)["block_sequence_ids"]
            longest = _longest_block(numbers) if has_values(numbers) else 1
            if longest > 1:
                self.left, self.right, self.exact = max(self.left, longest - 1), max(self.right, longest - 1), False
        elif function is not masking.bidirectional_mask_function:
            self.exact = False

    def _read_in_graph(self, function: MaskFunction) -> None:
        """Like :meth:`_read`, from transformers' other arguments, because a graph cannot inspect a function."""
        config, local_size = self.arguments.get("config"), self.arguments.get("local_size")
        causal = bool(self.arguments.get("allow_is_causal_skip"))
        # no documents, blocks or functions of a model
        usual = causal or self.arguments.get("allow_is_bidirectional_skip")
        if function is masking.causal_mask_function:
            self.right = 0
        elif function is masking.bidirectional_mask_function:
            return
        elif (
            config is not None
            and hasattr(config, "attention_chunk_size")
            and local_size == config.attention_chunk_size
        ):
            self.chunk, self.exact = local_size, False
        elif (
            not usual
            or local_size != getattr(config, "sliding_window", None)
            or hasattr(config, "attention_chunk_size")
        ):
            self.exact = False
        elif local_size is not None:
            self.left, self.right = (local_size - 1, 0) if causal else (local_size, local_size)

    def for_documents(self, documents: Tensor) -> DeclaredMask:
        """This mask with chunks that begin anew in each document of ``documents (B, Nq)``. It does not hide other
        documents; the documents of the call do.

        Raises:
            BackendError: in a graph, the mask has more than chunks, and cannot be made anew.
        """
        if self.chunk is None:
            return self
        size = self.chunk

        def make() -> DeclaredMask:
            index = torch.arange(documents.shape[1], device=documents.device).expand(documents.shape)
            number = F.pad((documents[:, 1:] != documents[:, :-1]).long().cumsum(1), (1, 0))
            real = index if self.padding is None else index.masked_fill(~self.padding[:, : index.shape[1]], LARGEST)
            # chunks are counted from the first real token of a document
            start = torch.full_like(number, LARGEST).scatter_reduce(1, number, real, "amin").gather(1, number)
            chunks = F.pad((index - start) // size, (0, self.keys - index.shape[1]))
            arguments = {**self.arguments, "mask_function": self._function_of(chunks)}
            return DeclaredMask(**arguments)

        return self.cached("for documents", make)

    def _function_of(self, chunks: Tensor) -> MaskFunction:
        """The mask function with the given chunk of each token, ``(B, Nk)``, unless positions say where chunks are."""
        same_chunk = masking.packed_sequence_mask_function(chunks)
        if in_graph():
            if not self.arguments.get("allow_is_causal_skip"):
                raise BackendError(
                    "A compiled graph cannot count the chunks of this mask (attention_chunk_size) from each document; "
                    "call the model without torch.compile, or give each document its own row with padding."
                )
            return masking.and_masks(same_chunk, masking.causal_mask_function)

        def replace(function: MaskFunction) -> MaskFunction:
            code = getattr(function, "__code__", None)
            if code is CHUNKS:
                return same_chunk
            if code is ALL_OF or code is ANY_OF:
                combine = masking.and_masks if code is ALL_OF else masking.or_masks
                return combine(*map(replace, _settings(function)["mask_functions"]))
            return function

        return replace(self.arguments["mask_function"])

    @property
    def hides_padding_alone(self) -> bool:
        """Whether every query sees every real key."""
        return self.exact and not self._labels and min(self.left, self.right) == UNBOUNDED

    def region(self, documents: Tensor | None = None) -> Region | None:
        """The visible keys. ``documents (B, Nq)`` of the call separate tokens, in addition to those of the mask.

        ``None`` if a band, padding and documents do not describe the keys, or if a graph does not know their offsets.
        """

        def make() -> Region | None:
            pattern, everything = Pattern(self.left, self.right, self.right == 0), self.hides_padding_alone
            keys = (
                self.keys if isinstance(self.first_query, Tensor) else self.first_query + self.queries - self.first_key
            )
            if everything and keys != self.keys:  # the queries are a different sequence
                keys = self.keys
            elif (
                not self.exact
                or isinstance(self.first_query, Tensor)
                or not (keys == self.keys or (pattern.causal and 0 < keys < self.keys))
            ):
                return None
            labels = [label.expand(self.shape[0], -1)[:, :keys] for label in self._labels] + (
                [] if documents is None else [documents]
            )
            labels = [label for label in labels if has_values(label)]
            numbers = None
            if labels:  # a document ends wherever one of its labels changes
                numbers = F.pad(
                    functools.reduce(torch.logical_or, (label[:, 1:] != label[:, :-1] for label in labels)), (1, 0)
                ).cumsum(1)
                numbers = numbers if bool(numbers[:, -1:].any()) else None
            batch = Batch.of(None if self.padding is None else self.padding[:, :keys], numbers)
            return Region(pattern, keys, batch, cross=everything and numbers is None)

        return self.cached(("region", documents is None), make)

    def dense(self) -> Tensor:
        """The mask of transformers' sdpa attention, ``(B, 1, Nq, Nk)`` bool, True = visible."""
        return self.rows(0, self.queries, 0, self.keys).expand(self.shape)

    def added(self, dtype: torch.dtype) -> Tensor:
        """:meth:`dense` in additive form: 0 where a key is visible, else the lowest number of ``dtype``."""
        hidden = torch.zeros((), dtype=dtype, device=self.device)
        return torch.where(self.dense(), hidden, torch.finfo(dtype).min)

    def rows(self, start: int, stop: int, first: int, last: int) -> Tensor:
        """The part of :meth:`dense` for queries ``start … stop - 1`` and keys ``first … last - 1``. Cached if it is at
        least half.

        ``(B, 1, 1, keys)`` if all queries see the same keys.
        """
        if self.hides_padding_alone and self.padding is not None:
            return self.padding[:, None, None, first:last]

        def evaluate() -> Tensor:
            sizes = {
                "q_length": stop - start,
                "kv_length": last - first,
                "allow_is_causal_skip": False,
                "allow_is_bidirectional_skip": False,
            }
            offsets = {"q_offset": self.arguments["q_offset"] + start, "kv_offset": self.first_key + first}
            return masking.sdpa_mask(**{**self.arguments, **sizes, **offsets})

        if 2 * (stop - start) * (last - first) >= self.queries * self.keys:
            return self.cached((start, stop, first, last), evaluate)
        return evaluate()

    def blocks(self, rows: int, pairs: int | None = None, multiple: int = 1) -> list[tuple[int, int, int, int]]:
        """Queries ``start … stop - 1`` with the keys ``first … last - 1`` that they may see.

        rows: the number of masks or of score matrices in memory at once.
        pairs: about how many pairs these have for a block; :data:`BLOCK_PAIRS` by default.
        multiple: ``start`` and ``first`` are multiples of this number.
        """
        known = not isinstance(self.first_query, Tensor)
        shift = self.first_query - self.first_key if known else 0
        reach = min(self.keys, self.left + self.right) if known else self.keys
        size = max(FEWEST_ROWS, min((pairs or BLOCK_PAIRS) // (rows * max(reach, FEWEST_ROWS)), reach))
        size += -size % multiple
        blocks = []
        for start in range(0, self.queries, size):
            stop = min(start + size, self.queries)
            first, last = (
                (max(0, start + shift - self.left), min(self.keys, stop + shift + self.right))
                if known
                else (0, self.keys)
            )
            first -= first % multiple
            blocks.append((start, stop, first, max(last, first + 1)))
        return blocks

    def visible_blocks(self, documents: Tensor | None) -> VisibleBlocks | None:
        """The mask reduced to blocks, once for all layers. ``documents`` as in :meth:`region`. ``None`` if a masked
        call costs less."""

        def pieces() -> Iterator[tuple[int, int, Tensor]]:
            for start, stop, first, last in self.blocks(self.shape[0], PIECE_PAIRS, BLOCK):
                seen = self.rows(start, stop, first, last).expand(-1, -1, stop - start, last - first)[:, 0]
                if documents is not None:
                    seen = seen & (documents[:, start:stop, None] == documents[:, None, first:last])
                yield start, first, seen

        return self.cached(("blocks", documents is None), lambda: VisibleBlocks.of(self.shape, pieces()))

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """The mask on another device, or :meth:`dense` in another dtype."""
        device = kwargs.get("device", args[0] if args else None)
        if not isinstance(device, int | str | torch.device) or kwargs.get("dtype") is not None or len(args) > 1:
            return self.dense().to(*args, **kwargs)
        moved, mask = copy.copy(self), self.arguments["attention_mask"]
        moved.arguments = {
            **self.arguments,
            "device": device,
            "attention_mask": None if mask is None else mask.to(device),
        }
        moved.padding = None if self.padding is None else self.padding.to(device)
        moved._labels, moved._cache = [label.to(device) for label in self._labels], {}
        return moved

    def __add__(self, scores: Tensor) -> Tensor:
        return scores + self.added(scores.dtype)

    __radd__ = __add__

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def dense(x: Any) -> Any:
            return x.dense() if isinstance(x, cls) else type(x)(map(dense, x)) if type(x) in (list, tuple) else x

        if function in (Tensor.add, Tensor.__add__, torch.add, Tensor.add_, Tensor.__iadd__) and isinstance(
            args[1], cls
        ):
            return function(args[0], args[1].added(args[0].dtype))
        return function(*dense(args), **{name: dense(value) for name, value in (kwargs or {}).items()})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.dense(), name)


OPERATORS = "getitem invert and rand or ror xor rxor eq ne lt le gt ge sub rsub mul rmul truediv bool len neg"
for _name in OPERATORS.split():  # Python looks these up on the class, not by __getattr__
    setattr(
        DeclaredMask, f"__{_name}__", lambda mask, *args, _name=f"__{_name}__": getattr(mask.dense(), _name)(*args)
    )
DeclaredMask.__hash__ = object.__hash__  # type: ignore[method-assign]


def _longest_block(ids: Tensor) -> int:
    """Extent in tokens (from first to last) of the largest block; 0 without blocks. ``ids (B, N)``: each token's
    block, -1 for none."""
    row, column = (ids >= 0).nonzero(as_tuple=True)
    if not len(row):
        return 0
    block = row * (int(ids.max()) + 1) + ids[row, column]
    ends = column.new_zeros(2, int(block.max()) + 1)
    first = ends[0].scatter_reduce(0, block, column, "amin", include_self=False)
    return int((ends[1].scatter_reduce(0, block, column, "amax", include_self=False) - first).max()) + 1


# ---- attention of a stock model


def in_words(module: nn.Module) -> str:
    """The class of an attention module for messages, with its layer number if known."""
    layer = getattr(module, "layer_idx", None)
    return f"{type(module).__name__} of layer {layer}" if isinstance(layer, int) else type(module).__name__


def attend_as_declared(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | DeclaredMask | None,
    causal: bool,
    scaling: float | None,
    dropout: float,
    with_weights: bool,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """The attention function of a stock model's ``module``: softmax attention to the keys that its mask shows.

    Without a mask, every query sees every key. Arguments, results and errors are those of
    ``longattn_attention_forward``.
    """
    batch_size, heads, q_len, _ = query.shape
    kv_len, width = key.shape[2], value.shape[-1]
    if mask is None and q_len > 1 and causal:
        raise BackendError(
            f"{in_words(module)} is causal and got no mask, without which transformers' sdpa attention hides later "
            "keys, but its eager attention does not; pass an attention_mask, or load the model with the attention "
            "that you mean."
        )
    if mask is not None and mask.ndim == 4 and not (mask.shape[2] in (1, q_len) and mask.shape[3] in (1, kv_len)):
        raise BackendError(
            f"{in_words(module)} attends from {q_len} queries to {kv_len} keys, but its mask is for {mask.shape[2]} "
            "queries and "
            f"{mask.shape[3]} keys; pass a mask that fits, or load the model with attn_implementation='eager'."
        )
    if isinstance(mask, Tensor) and mask.ndim == 4:
        masks.check_pairs(mask, query)
    if isinstance(mask, DeclaredMask) and mask.shape[2:] != (q_len, kv_len):  # one row for all queries (BridgeTower)
        mask = mask.dense()
    region, documents = _region_of(mask, kv_len), None
    if not masks.DOCUMENTS.isdisjoint(kwargs) and q_len == (kv_len if region is None else region.keys):
        packed, _ = masks.with_documents(None, None, None, (batch_size, q_len), False, kwargs)
        if packed is not None and packed.documents is not None:
            documents = packed.documents
            mask = mask.for_documents(documents) if isinstance(mask, DeclaredMask) else mask
            region = _region_of(mask, kv_len, packed)
    terms: dict[str, Any] = {
        "documents": documents,
        "bias": kwargs.get("position_bias"),
        "softcap": kwargs.get("softcap"),
    }
    settings: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "sink_scores": kwargs.get(SINKS)}

    scores = terms["bias"] is None and terms["softcap"] is None and not with_weights
    in_blocks = region is None or region.pattern.bounded or documents is not None or not scores
    if in_blocks and torch.jit.is_tracing():
        check_trace(None, causal)
    # Five ways, cheapest first: one unmasked call, as in transformers' sdpa attention; one masked call, for few
    # queries or for the padding mask of a different key sequence; an engine, for a band; the visible blocks of any
    # other mask; blocks of query-key pairs, for everything else.
    if terms["bias"] is not None or terms["softcap"] is not None or with_weights:
        return _attend_pairs(query, key, value, mask, settings, **terms, with_weights=with_weights)
    if region is None:
        return _attend_mask(query, key, value, mask, settings, documents)
    pattern, aligned = region.pattern, q_len in (1, region.keys) or not region.pattern.causal
    any_length = torch.compiler.is_exporting() and pattern.bounded  # no window covers every length
    one_call = region.batch is None and aligned and not any_length and pattern.covers(q_len, region.keys)
    if one_call and not OBSERVERS and not (dropout and query.device.type == "cpu"):
        key, value = key[:, :, : region.keys], value[:, :, : region.keys]
        output = fused_attention(query, key, value, is_causal=pattern.causal and q_len > 1, **settings)
        return output.transpose(1, 2).contiguous(), None
    few = not torch.compiler.is_exporting() and q_len <= FEW_QUERIES  # an exported graph takes any number of queries
    few = few and (documents is None or region.keys == kv_len)
    if mask is not None and not OBSERVERS and (few or (region.cross and region.batch is not None)):
        return _attend_pairs(query, key, value, mask, settings, **terms)
    key, value = key[:, :, : region.keys], value[:, :, : region.keys]
    query, key, value, scale = _of_one_width(query, key, value, scaling)
    call = AttentionCall(pattern.causal, region.batch, scale=scale, dropout=dropout, sink_scores=kwargs.get(SINKS))
    if in_graph():  # a graph cannot build a mechanism
        output = block_sparse_attention(query, key, value, pattern, call)
    else:
        cross = region.cross or (q_len != region.keys and not pattern.causal and not pattern.bounded)
        output = run_batch(
            _declared_mechanism(heads, query.shape[-1], pattern.left, pattern.right, cross), query, key, value, call
        )
    return output[..., :width].transpose(1, 2).contiguous(), None


@functools.lru_cache(64)
def _declared_mechanism(heads: int, head_dim: int, left: int, right: int, cross: bool) -> Mechanism:
    """The mechanism that a stock model declares: a band from ``query - left`` to ``query + right``, or full
    attention."""
    bounded = left < LARGEST or 0 < right < LARGEST
    options = {"left": min(left, LARGEST), "right": min(right, LARGEST)} if bounded else {}
    mechanism = mechanism_from("window" if bounded else "full", options, num_heads=heads, head_dim=head_dim).eval()
    mechanism.is_cross_attention = cross
    return mechanism


def _of_one_width(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Queries, keys and values with as many features as the widest (latent attention, DeepSeek), and the scale of the
    scores. Zeros add nothing to scores or outputs."""
    scale, widest = query.shape[-1] ** -0.5 if scaling is None else scaling, max(query.shape[-1], value.shape[-1])
    if query.shape[-1] != value.shape[-1]:
        query, key, value = (F.pad(x, (0, widest - x.shape[-1])) for x in (query, key, value))
    return query, key, value, scale


def _blocks_of_tensor(mask: Tensor) -> VisibleBlocks | None:
    """A model's or user's mask ``(B, 1, Nq, Nk)`` reduced to blocks, once for all layers that get this tensor.

    ``None`` if a masked call costs less, or if the mask does more than hide pairs. An additive mask that lowers all
    scores of a query alike hides none of them.
    """
    if mask.is_inference():  # a change of its values would not be noticed
        return None
    size = max(BLOCK, PIECE_PAIRS // (mask.shape[0] * mask.shape[3]) // BLOCK * BLOCK)

    def make() -> VisibleBlocks | None:
        pieces = mask.split(size, 2)
        for piece in pieces:
            if mask.dtype != torch.bool and (not only_hides(piece) or bool(hidden_pairs(piece).all(-1).any())):
                return None
        return VisibleBlocks.of(
            mask.shape, ((number * size, 0, ~hidden_pairs(piece)[:, 0]) for number, piece in enumerate(pieces))
        )

    return BYTE_CACHE.of([mask], ("visible blocks",), make, lambda made: tensor_bytes(made) or 0)


def _region_of(mask: Tensor | DeclaredMask | None, kv_len: int, packed: Batch | None = None) -> Region | None:
    """The keys that a mask shows, within the documents of ``packed``. ``None`` if they have to be read from the mask
    itself, or if a graph would have to read the documents."""
    if packed is not None and in_graph():
        return None
    if isinstance(mask, DeclaredMask):
        return mask.region(None if packed is None else packed.documents)
    return Region(Pattern.everything(False), kv_len, packed) if mask is None else None


def _attend_mask(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | DeclaredMask | None,
    settings: dict[str, Any],
    documents: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of a stock module by a mask of any kind: over its visible blocks, or else over pairs.

    Arguments as in :func:`_attend_pairs`.
    """

    def blocks() -> VisibleBlocks | None:
        if isinstance(mask, DeclaredMask):
            return mask.visible_blocks(documents)
        if mask is None or documents is not None or mask.shape[1:] != (1, query.shape[2], key.shape[2]):
            return None
        return _blocks_of_tensor(mask)

    call = AttentionCall(scale=settings["scale"], dropout=settings["dropout_p"], sink_scores=settings["sink_scores"])
    if in_graph() or choose("mask", query, key, call, blocks=blocks) != "cpu-visible-blocks":
        return _attend_pairs(query, key, value, mask, settings, documents=documents)
    width = value.shape[-1]
    query, key, value, scale = _of_one_width(query, key, value, settings["scale"])
    output = visible_block_attention(query, key, value, blocks(), call.replace(scale=scale))  # type: ignore[arg-type]
    return output[..., :width].transpose(1, 2).contiguous(), None


def _attend_pairs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | DeclaredMask | None,
    settings: dict[str, Any],
    *,
    documents: Tensor | None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    with_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention of a stock module by a mask over query-key pairs. Many pairs are computed in blocks of queries.

    Args:
        mask: as in ``longattn_attention_forward``. Fewer axes broadcast.
        settings: dropout, scale and sinks for :func:`fused_attention`.
        documents: ``(B, Nk)``; pairs of different documents are hidden.
        bias: ``(B or 1, H or 1, Nq or 1, Nk)``, added to the scores.
        softcap: bound of the scores by tanh, before the bias and an additive mask are added.
        with_weights: whether to return the weights ``(B, H, Nq, Nk)`` too.
    """
    (batch, heads, q_len, width), kv_len = query.shape, key.shape[2]
    plain = softcap is not None or with_weights  # plain operations store all scores of a block

    def rows_of(term: Tensor, start: int, stop: int) -> Tensor:  # a mask or bias may have one row for all queries
        return term if term.dim() < 2 or term.shape[-2] == 1 else term[..., start:stop, :]

    def attend(
        q: Tensor, k: Tensor, v: Tensor, start: int, stop: int, first: int, last: int
    ) -> tuple[Tensor, Tensor | None]:
        terms: list[Tensor] = []
        if mask is not None:
            terms.append(
                mask.rows(start, stop, first, last) if isinstance(mask, DeclaredMask) else rows_of(mask, start, stop)
            )
        if documents is not None:
            terms.append((documents[:, start:stop, None] == documents[:, None, first:last])[:, None])
        if bias is not None:
            terms.append(rows_of(bias, start, stop)[..., first:last])
        hidden = [term for term in terms if term.dtype == torch.bool]
        # PyTorch's CPU kernel misreads masks of another dtype than the query's.
        added = [term.to(q.dtype) for term in terms if term.dtype != torch.bool]
        visible = functools.reduce(torch.logical_and, hidden) if hidden else None
        total = sum(added[1:], added[0]) if added else None
        if not plain:
            if total is not None:
                visible = total if visible is None else torch.where(visible, total, torch.finfo(total.dtype).min)
            return fused_attention(q, k, v, attn_mask=visible, **settings), None
        scores = products(q, repeat_heads(k, heads)) * (
            width**-0.5 if settings["scale"] is None else settings["scale"]
        )
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        weights = masked_softmax(scores if total is None else scores + total, visible, settings["sink_scores"]).to(
            v.dtype
        )
        return F.dropout(weights, settings["dropout_p"]) @ repeat_heads(v, heads), weights if with_weights else None

    rows = 16 * batch * heads if plain else batch  # four bytes a score, and several copies at once
    if with_weights or rows * q_len * kv_len <= BLOCK_PAIRS:
        blocks = [(0, q_len, 0, kv_len)]
    elif isinstance(mask, DeclaredMask):
        blocks = mask.blocks(rows)
    else:
        size = max(1, BLOCK_PAIRS // (rows * kv_len))
        blocks = [(start, min(start + size, q_len), 0, kv_len) for start in range(0, q_len, size)]
    run = (
        functools.partial(checkpoint, use_reentrant=False)
        if len(blocks) > 1 and torch.is_grad_enabled()
        else lambda call, *x: call(*x)
    )
    results = [
        run(attend, query[:, :, start:stop], key[:, :, first:last], value[:, :, first:last], start, stop, first, last)
        # causal blocks grow, and memory is only reused for smaller tensors
        for start, stop, first, last in reversed(blocks)
    ]
    output = torch.cat([out for out, _ in reversed(results)], 2) if len(results) > 1 else results[0][0]
    return output.transpose(1, 2).contiguous(), results[0][1]
