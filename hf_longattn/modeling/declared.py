"""Reads a stock model's own attention mask.

transformers makes a mask from a function over positions: causality, a sliding window, chunks, packed documents, blocks
that see each other. :class:`DeclaredMask` reads that function instead of evaluating it for every pair, so that nothing
of size N×N is built for a window. If it cannot read a function, transformers evaluates that function, for one block of
queries at a time.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers.masking_utils as masking
from torch import Tensor

from ..engines.batch import Batch, PassCache, has_values, in_graph
from ..engines.call import UNBOUNDED, Pattern
from ..engines.cpu.visible_blocks import BLOCK, VisibleBlocks
from ..errors import BackendError
from ..mechanisms.common.options import LARGEST
from .lazy_tensor import LazyTensor

BLOCK_PAIRS = 1 << 26
"""Maximum query-key pairs, over all batch rows, of the part of a mask that is evaluated at once. Untuned."""
PIECE_PAIRS = 1 << 22
"""Maximum query-key pairs, over all batch rows, of the part that is evaluated at once while a mask is reduced to
:class:`VisibleBlocks`. Small parts are evaluated faster, since they stay in the CPU cache."""
FEWEST_ROWS = 128
"""Minimum queries per block. Untuned."""
MaskFunction = Callable[[Any, Any, Any, Any], Any]
"""``mask_function(batch, head, query, key) -> bool`` of transformers, over absolute positions."""
ADDITIONS = (Tensor.add, Tensor.__add__, torch.add, Tensor.add_, Tensor.__iadd__)
"""Functions by which models add a mask to scores."""


def _code(name: str, *arguments: Any) -> Any:
    """The code object that all mask functions created by transformers' function ``name`` share, by which they are
    recognised. If this version of transformers lacks ``name``, an object that equals no code."""
    create = getattr(masking, name, None)
    return object() if create is None else create(*arguments).__code__


ALL_OF = _code("and_masks", masking.causal_mask_function)
ANY_OF = _code("or_masks", masking.causal_mask_function)
WINDOW = _code("sliding_window_overlay", 1)
WINDOW_AROUND = _code("sliding_window_bidirectional_overlay", 1)
CHUNKS = _code("chunked_overlay", 1, torch.zeros(1))
BLOCKS = _code("blockwise_overlay", torch.zeros(1, 1))
PACKED = _code("packed_sequence_mask_function", torch.zeros(1, 1))
MOVED = _code("remap_positions_for_packed_sequence", masking.causal_mask_function, torch.zeros(1, 1))
KNOWN = {ALL_OF, ANY_OF, WINDOW, WINDOW_AROUND, CHUNKS, BLOCKS, PACKED, MOVED}
"""Code objects of the mask functions that :class:`DeclaredMask` reads."""


def _settings(function: MaskFunction) -> dict[str, Any]:
    """The arguments with which transformers created a mask function, by name. They are read from its closure."""
    return {
        name: cell.cell_contents
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    }


class Region(NamedTuple):
    """Visible keys of a stock model, described by a band, padding and documents.

    keys: number of keys in use. Keys after them are empty slots of a static cache. The queries belong to the last
        tokens in use.
    cross: whether the queries may be from another sequence than the keys (cross-attention). The padding of keys then
        says nothing about queries.
    """

    pattern: Pattern
    keys: int
    batch: Batch | None = None
    cross: bool = False


class DeclaredMask(LazyTensor, PassCache):
    """The mask of a stock model, in place of the tensor ``(B, 1, Nq, Nk)`` bool that transformers would build.

    It fully determines which keys a query sees. Attention modules receive it like flex-attention's ``BlockMask``.
    If it is added to scores, visible keys get 0 and hidden keys the lowest number.

    left, right: the band that contains every visible pair: from ``query - left`` to ``query + right``.
    exact: whether the band, :attr:`padding` and documents describe the mask completely.
    padding: ``(B, Nk)`` bool, True = real key; ``None`` if every key is real.
    chunk: tokens per chunk, if the mask has chunks; else ``None``. Each chunk counts as a document.
    """

    ndim, dtype = 4, torch.bool
    chunk: int | None = None

    def __init__(self, *, traced: bool | None = None, **arguments: Any) -> None:
        """Read the mask that transformers' ``arguments`` for mask functions describe.

        traced: whether to read the mask without inspecting the mask function, which a graph cannot do. The default is
            whether this call is in a graph.
        """
        self.arguments = arguments
        self.queries, self.keys = arguments["q_length"], arguments["kv_length"]
        offset = arguments["q_offset"]
        if isinstance(offset, Tensor):
            # copied, because a static cache changes its offset in place before the mask is evaluated
            arguments["q_offset"] = offset.clone() if in_graph() or not has_values(offset) else int(offset)
        self.first_query, self.first_key = arguments["q_offset"], arguments["kv_offset"]
        self.shape = torch.Size((arguments["batch_size"], 1, self.queries, self.keys))
        self.left = self.right = UNBOUNDED
        self.exact = True
        self._labels: list[Tensor] = []
        self.padding = masking.prepare_padding_mask(arguments["attention_mask"], self.keys, self.first_key)
        if self.padding is not None:
            self.padding = self.padding[:, self.first_key : self.first_key + self.keys]
        if traced is None:
            traced = in_graph()
        if traced:
            self._read_in_graph(arguments["mask_function"])
            return
        self._read(arguments["mask_function"], None)
        if self.padding is not None and bool(self.padding.all()):
            self.padding = arguments["attention_mask"] = None

    def _read(self, function: MaskFunction, positions: Tensor | None) -> None:
        """Narrow the band to the keys that ``function`` shows, and collect its labels of documents. An unknown
        function does not change the band, and makes it inexact.

        positions: ``(B, N)``, the positions that the function uses in place of token indices.
        """
        code = getattr(function, "__code__", None)
        settings = _settings(function) if code in KNOWN else {}
        parts = settings.get("mask_functions", ())
        if function is masking.causal_mask_function:
            self.right = 0
        elif code is ALL_OF:
            for part in parts:
                self._read(part, positions)
        elif code is WINDOW:
            self.left = min(self.left, settings["sliding_window"] - 1)
        elif code is WINDOW_AROUND:
            self.left = min(self.left, settings["sliding_window"])
            self.right = min(self.right, settings["sliding_window"])
        elif code is CHUNKS:
            self.chunk = settings["chunk_size"]
            padding = settings["left_padding"][:, None]
            if positions is None:
                positions = torch.arange(self.first_key, self.first_key + self.keys, device=padding.device)
            self._labels.append((positions - padding) // self.chunk)
        elif code is MOVED:
            self._read(settings["mask_function"], settings["position_ids"])
        elif code is PACKED:
            self._labels.append(settings["packed_sequence_mask"])
        elif code is ANY_OF and len(parts) == 2 and getattr(parts[1], "__code__", None) is BLOCKS:
            # tokens of a block also see each other, so the band has to reach across the longest block
            self._read(parts[0], positions)
            numbers = _settings(parts[1])["block_sequence_ids"]
            reach = _longest_block(numbers) - 1 if has_values(numbers) else 0
            if reach > 0:
                self.left, self.right = max(self.left, reach), max(self.right, reach)
                self.exact = False
        elif function is not masking.bidirectional_mask_function:
            self.exact = False

    def _read_in_graph(self, function: MaskFunction) -> None:
        """Like :meth:`_read`, for a graph, which cannot inspect the function. It reads the band from the other
        arguments of the mask."""
        config: Any = self.arguments.get("config")
        local_size = self.arguments.get("local_size")
        causal = bool(self.arguments.get("allow_is_causal_skip"))
        # transformers sets neither flag if documents, blocks or a function of the model change the mask
        usual = causal or self.arguments.get("allow_is_bidirectional_skip")
        if function is masking.causal_mask_function:
            self.right = 0
        elif function is masking.bidirectional_mask_function:
            return
        elif hasattr(config, "attention_chunk_size"):
            self.exact = False
            if local_size == config.attention_chunk_size:
                self.chunk = local_size
        elif not usual or local_size != getattr(config, "sliding_window", None):
            self.exact = False
        elif local_size is not None:
            self.left, self.right = (local_size - 1, 0) if causal else (local_size, local_size)

    def for_documents(self, documents: Tensor) -> DeclaredMask:
        """This mask with chunks that begin anew in each document of ``documents (B, Nq)``. The mask itself does not
        hide other documents: the caller does.

        Raises:
            BackendError: in a graph, the mask has more than chunks and causality, so its function cannot be changed.
        """
        if self.chunk is None:
            return self
        size = self.chunk

        def make() -> DeclaredMask:
            # each token's index and the number of its document, (B, Nq)
            index = torch.arange(documents.shape[1], device=documents.device).expand(documents.shape)
            number = F.pad((documents[:, 1:] != documents[:, :-1]).long().cumsum(1), (1, 0))
            real = index if self.padding is None else index.masked_fill(~self.padding[:, : index.shape[1]], LARGEST)
            # chunks are counted from the first real token of a document
            start = torch.full_like(number, LARGEST).scatter_reduce(1, number, real, "amin").gather(1, number)
            chunks = F.pad((index - start) // size, (0, self.keys - index.shape[1]))
            arguments = {**self.arguments, "mask_function": self._with_chunks(chunks)}
            return DeclaredMask(**arguments)

        return self.cached("for documents", make)

    def _with_chunks(self, chunks: Tensor) -> MaskFunction:
        """The mask function, with ``chunks (B, Nk)`` in place of its own chunks. Tokens see each other only if they
        have the same number there."""
        same_chunk = masking.packed_sequence_mask_function(chunks)
        if in_graph():
            # A graph cannot look into the mask function. transformers allows the skip of a causal mask without further
            # rules alone: such a mask is chunks and causality.
            if not self.arguments.get("allow_is_causal_skip"):
                raise BackendError(
                    "A compiled graph cannot count the chunks of this mask (attention_chunk_size) from each document; "
                    "call the model without torch.compile, or give each document its own row with padding."
                )
            return masking.and_masks(same_chunk, masking.causal_mask_function)

        def replace(function: MaskFunction) -> MaskFunction:
            """``function`` with the given chunks in place of its own, also inside unions and intersections."""
            code = getattr(function, "__code__", None)
            if code is CHUNKS:
                return same_chunk
            if code is ALL_OF or code is ANY_OF:
                combine = masking.and_masks if code is ALL_OF else masking.or_masks
                return combine(*map(replace, _settings(function)["mask_functions"]))
            return function  # without chunks, or with positions of its own (MOVED), by which it counts its chunks

        return replace(self.arguments["mask_function"])

    @property
    def hides_padding_alone(self) -> bool:
        """Whether every query sees every real key."""
        return self.exact and not self._labels and min(self.left, self.right) == UNBOUNDED

    def region(self, documents: Tensor | None = None) -> Region | None:
        """The visible keys as a :class:`Region`. ``None`` if a band, padding and documents do not describe them, or if
        a graph does not know the offset of the queries.

        documents: ``(B, Nq)``, the documents of the call. They separate tokens in addition to the mask's documents.
        """

        def make() -> Region | None:
            pattern = Pattern(self.left, self.right, self.right == 0)
            # the keys up to the last query are in use, and further ones only if the mask hides nothing but padding
            keys = self.keys
            if not self.hides_padding_alone:
                if not self.exact or isinstance(self.first_query, Tensor):
                    return None
                keys = self.first_query + self.queries - self.first_key
                in_a_static_cache = pattern.causal and 0 < keys < self.keys
                if keys != self.keys and not in_a_static_cache:
                    return None
            # a document ends wherever one of its labels changes
            labels = [label.expand(self.shape[0], -1)[:, :keys] for label in self._labels]
            if documents is not None:
                labels.append(documents)
            changes = [label[:, 1:] != label[:, :-1] for label in labels if has_values(label)]
            numbers = None
            if changes:
                starts = functools.reduce(torch.logical_or, changes)
                if bool(starts.any()):
                    numbers = F.pad(starts, (1, 0)).cumsum(1)
            padding = None if self.padding is None else self.padding[:, :keys]
            cross = self.hides_padding_alone and numbers is None
            return Region(pattern, keys, Batch.of(padding, numbers), cross)

        return self.cached(("region", documents is None), make)

    def dense(self) -> Tensor:
        """The mask of transformers' sdpa attention, ``(B, 1, Nq, Nk)`` bool, True = visible."""
        return self.rows(0, self.queries, 0, self.keys).expand(self.shape)

    def added(self, dtype: torch.dtype) -> Tensor:
        """:meth:`dense` in additive form: 0 where a key is visible, else the lowest number of ``dtype``."""
        hidden = torch.zeros((), dtype=dtype, device=self.device)
        return torch.where(self.dense(), hidden, torch.finfo(dtype).min)

    def rows(self, start: int, stop: int, first: int, last: int) -> Tensor:
        """The part of :meth:`dense` for queries ``start … stop - 1`` and keys ``first … last - 1``. It is cached for
        the other layers if it is at least half of the mask.

        ``(B, 1, queries, keys)`` bool, or ``(B, 1, 1, keys)`` if all queries see the same keys.
        """
        if self.hides_padding_alone and self.padding is not None:
            return self.padding[:, None, None, first:last]

        def evaluate() -> Tensor:
            part = {
                **self.arguments,
                "q_length": stop - start,
                "kv_length": last - first,
                "q_offset": self.first_query + start,
                "kv_offset": self.first_key + first,
                "allow_is_causal_skip": False,
                "allow_is_bidirectional_skip": False,
            }
            return masking.sdpa_mask(**part)

        if 2 * (stop - start) * (last - first) >= self.queries * self.keys:
            return self.cached((start, stop, first, last), evaluate)
        return evaluate()

    def blocks(self, rows: int, pairs: int | None = None, multiple: int = 1) -> list[tuple[int, int, int, int]]:
        """Divide the queries into blocks of a limited size. Each is ``(start, stop, first, last)``: queries
        ``start … stop - 1`` see only keys among ``first … last - 1``.

        rows: the number of masks or of score matrices in memory at once.
        pairs: the approximate number of pairs that a block has in all of these together; :data:`BLOCK_PAIRS` by
            default.
        multiple: ``start`` and ``first`` are multiples of this number.
        """
        left = right = UNBOUNDED
        shift = 0  # the key at a query's position, minus the query
        if not isinstance(self.first_query, Tensor):
            left, right, shift = self.left, self.right, self.first_query - self.first_key
        # a block is at most as long as the band is wide, so that most of its pairs are visible
        reach = min(self.keys, left + right)
        size = max(FEWEST_ROWS, min((pairs or BLOCK_PAIRS) // (rows * max(reach, FEWEST_ROWS)), reach))
        size += -size % multiple
        blocks = []
        for start in range(0, self.queries, size):
            stop = min(start + size, self.queries)
            first = max(0, start + shift - left)
            first -= first % multiple
            last = min(self.keys, stop + shift + right)
            blocks.append((start, stop, first, max(last, first + 1)))  # at least one key
        return blocks

    def visible_blocks(self, documents: Tensor | None) -> VisibleBlocks | None:
        """The mask as :class:`VisibleBlocks`, made once for all layers. ``None`` if a masked call costs less.

        documents: as in :meth:`region`.
        """

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

        def there(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor.to(device)

        moved = copy.copy(self)
        moved._cache = {}
        moved.arguments = {
            **self.arguments,
            "device": device,
            "attention_mask": there(self.arguments["attention_mask"]),
        }
        moved.padding, moved._labels = there(self.padding), [there(label) for label in self._labels]
        return moved

    def __add__(self, scores: Tensor) -> Tensor:
        return scores + self.added(scores.dtype)

    __radd__ = __add__

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in ADDITIONS and isinstance(args[1], cls):
            return function(args[0], args[1].added(args[0].dtype))
        return super().__torch_function__(function, types, args, kwargs)


AnyMask = Tensor | DeclaredMask | None
"""The mask of an attention module: a tensor from the caller or the model, or a stock model's :class:`DeclaredMask`."""


def _longest_block(ids: Tensor) -> int:
    """Tokens from the first to the last one of the longest block; 0 without blocks.

    ids: ``(B, N)``, the number of each token's block in its row, -1 outside blocks.
    """
    row, column = (ids >= 0).nonzero(as_tuple=True)
    if not len(row):
        return 0
    block = row * (int(ids.max()) + 1) + ids[row, column]  # numbers that differ between rows
    zeros = column.new_zeros(int(block.max()) + 1)
    first = zeros.scatter_reduce(0, block, column, "amin", include_self=False)
    last = zeros.scatter_reduce(0, block, column, "amax", include_self=False)
    return int((last - first).max()) + 1
