"""What a stock model declares about the keys that each query sees.

transformers makes a mask from a function over positions: causality, a sliding window, chunks, packed documents, blocks that see each other.
:class:`DeclaredMask` reads that function instead of evaluating it for every pair, so that nothing of size N×N is built for a window.
A function that it cannot read is evaluated by transformers, for a block of queries at a time.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from types import CodeType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers.masking_utils as masking
from torch import Tensor

from ..engines.batch import Batch, PassCache, in_graph
from ..engines.call import UNBOUNDED, Pattern

BLOCK_PAIRS = 1 << 26
"""Maximum pairs, over all batch rows, of a mask that is evaluated at once. Untuned."""
FEWEST_ROWS = 128
"""Minimum number of queries of a block. Untuned."""
MaskFunction = Callable[[Any, Any, Any, Any], Any]
"""``mask_function(batch, head, query, key) -> bool`` of transformers, over absolute positions."""


def _code(name: str, *arguments: Any) -> CodeType | None:
    """The code of the functions that transformers' ``name`` makes. ``None`` if the installed version has no ``name``."""
    make = getattr(masking, name, None)
    return None if make is None else make(*arguments).__code__


ALL_OF, ANY_OF = _code("and_masks", masking.causal_mask_function), _code("or_masks", masking.causal_mask_function)
WINDOW, WINDOW_AROUND = _code("sliding_window_overlay", 1), _code("sliding_window_bidirectional_overlay", 1)
CHUNKS, BLOCKS = _code("chunked_overlay", 1, torch.zeros(1)), _code("blockwise_overlay", torch.zeros(1, 1))
DOCUMENTS = _code("packed_sequence_mask_function", torch.zeros(1, 1))
MOVED = _code("remap_positions_for_packed_sequence", masking.causal_mask_function, torch.zeros(1, 1))
KNOWN = {ALL_OF, ANY_OF, WINDOW, WINDOW_AROUND, CHUNKS, BLOCKS, DOCUMENTS, MOVED} - {None}


def _settings(function: MaskFunction) -> dict[str, Any]:
    """The values with which transformers made a mask function, by name."""
    return {name: cell.cell_contents for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)}


class Region(NamedTuple):
    """Keys that a stock model's queries see, if a band, padding and documents describe them.

    keys: the number of keys in use. Further ones are empty slots of a static cache. Queries are at the last of them.
    cross: whether the queries may be another sequence than the keys, so that padding of keys says nothing about queries.
    """

    pattern: Pattern
    keys: int
    batch: Batch | None = None
    cross: bool = False

    def is_one_call(self, queries: int) -> bool:
        """Whether one call of scaled_dot_product_attention without a mask, causal or not, is enough."""
        aligned = queries in (1, self.keys) or not self.pattern.causal
        any_length = torch.compiler.is_exporting() and self.pattern.bounded  # which no window covers
        return self.batch is None and aligned and not any_length and self.pattern.covers(queries, self.keys)


class DeclaredMask(PassCache):
    """The mask of a stock model, in place of the tensor ``(B, 1, Nq, Nk)`` bool that transformers would make.

    It alone says which keys a query sees. Attention modules get it as they get flex-attention's ``BlockMask``. Any operation of a model
    on it, and any attribute of a tensor, is that of :meth:`dense`. Scores to which it is added get 0 and the lowest number.

    left, right: the band that contains every visible pair: from ``query - left`` to ``query + right``.
    exact: whether the band, :attr:`padding` and documents describe the mask completely.
    padding: ``(B, Nk)`` bool, True = real key; ``None`` if every key is real.
    chunk: tokens of a chunk, one of the documents; ``None`` without chunks.
    """

    ndim, dtype = 4, torch.bool
    chunk: int | None = None

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.queries, self.keys = arguments["q_length"], arguments["kv_length"]
        if isinstance(arguments["q_offset"], Tensor):  # of a static cache, which changes it before the mask is evaluated
            arguments["q_offset"] = arguments["q_offset"].clone() if in_graph() else int(arguments["q_offset"])
        self.first_query, self.first_key = arguments["q_offset"], arguments["kv_offset"]
        self.shape = torch.Size((arguments["batch_size"], 1, self.queries, self.keys))
        self.left, self.right, self.exact = UNBOUNDED, UNBOUNDED, True
        self._labels: list[Tensor] = []
        real = masking.prepare_padding_mask(arguments["attention_mask"], self.keys, self.first_key)
        self.padding = None if real is None else real[:, self.first_key : self.first_key + self.keys]
        if in_graph():
            self._read_in_graph(arguments["mask_function"])
            return
        self._read(arguments["mask_function"], None)
        if self.padding is not None and bool(self.padding.all()):
            self.padding = arguments["attention_mask"] = None

    def _read(self, function: MaskFunction, positions: Tensor | None) -> None:
        """Narrow the band to ``function``, and collect its documents. A function that is not known leaves the band as it is.

        positions: ``(B, N)``, by which the function counts instead of by the token's index.
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
            self.left, self.right = min(self.left, settings["sliding_window"]), min(self.right, settings["sliding_window"])
        elif code is CHUNKS:
            padding = settings["left_padding"][:, None]
            places = torch.arange(self.first_key, self.first_key + self.keys, device=padding.device) if positions is None else positions
            self._labels.append((places - padding) // settings["chunk_size"])
            self.chunk = settings["chunk_size"]
        elif code is MOVED:
            self._read(settings["mask_function"], settings["position_ids"])
        elif code is DOCUMENTS:
            self._labels.append(settings["packed_sequence_mask"])
        elif code is ANY_OF and getattr(settings["mask_functions"][1], "__code__", None) is BLOCKS and len(settings["mask_functions"]) == 2:
            base, blocks = settings["mask_functions"]
            self._read(base, positions)
            longest = _longest_block(_settings(blocks)["block_sequence_ids"])
            if longest > 1:
                self.left, self.right, self.exact = max(self.left, longest - 1), max(self.right, longest - 1), False
        elif function is not masking.bidirectional_mask_function:
            self.exact = False

    def _read_in_graph(self, function: MaskFunction) -> None:
        """:meth:`_read` by the other arguments of transformers, because a graph cannot look into a function."""
        config, local_size = self.arguments.get("config"), self.arguments.get("local_size")
        causal = bool(self.arguments.get("allow_is_causal_skip"))
        usual = causal or self.arguments.get("allow_is_bidirectional_skip")  # no documents, blocks or functions of a model
        if function is masking.causal_mask_function:
            self.right = 0
        elif function is masking.bidirectional_mask_function:
            return
        elif not usual or local_size != getattr(config, "sliding_window", None) or hasattr(config, "attention_chunk_size"):
            self.exact = False
        elif local_size is not None:
            self.left, self.right = (local_size - 1, 0) if causal else (local_size, local_size)

    @property
    def hides_padding_alone(self) -> bool:
        """Whether every query sees every real key."""
        return self.exact and not self._labels and min(self.left, self.right) == UNBOUNDED

    def region(self, documents: Tensor | None = None) -> Region | None:
        """The visible keys, within the ``documents (B, Nq)`` of the call, too.

        ``None`` if a band, padding and documents do not describe them, or if a graph does not know where they are.
        """
        return self.cached(("region", documents is None), lambda: self._region(documents))

    def _region(self, documents: Tensor | None) -> Region | None:
        pattern, whole = Pattern(self.left, self.right, self.right == 0), self.hides_padding_alone
        keys = self.keys if isinstance(self.first_query, Tensor) else self.first_query + self.queries - self.first_key
        if whole and keys != self.keys:  # the queries are another sequence
            keys = self.keys
        elif not self.exact or isinstance(self.first_query, Tensor) or not (keys == self.keys or (pattern.causal and 0 < keys < self.keys)):
            return None
        labels = [label.expand(self.shape[0], -1)[:, :keys] for label in self._labels] + ([] if documents is None else [documents])
        numbers = None
        if labels:
            numbers = F.pad(functools.reduce(torch.logical_or, (label[:, 1:] != label[:, :-1] for label in labels)), (1, 0)).cumsum(1)
            numbers = numbers if bool(numbers[:, -1:].any()) else None
        batch = Batch.of(None if self.padding is None else self.padding[:, :keys], numbers)
        return Region(pattern, keys, batch, cross=whole and numbers is None)

    def dense(self) -> Tensor:
        """The mask that transformers makes for its sdpa attention, ``(B, 1, Nq, Nk)`` bool, True = visible."""
        return self.rows(0, self.queries, 0, self.keys).expand(self.shape)

    def added(self, dtype: torch.dtype) -> Tensor:
        """:meth:`dense` as it is added to scores: 0 where a key is visible, else the lowest number of ``dtype``."""
        hidden = torch.zeros((), dtype=dtype, device=self.device)
        return torch.where(self.dense(), hidden, torch.finfo(dtype).min)

    def rows(self, start: int, stop: int, first: int, last: int) -> Tensor:
        """The part of :meth:`dense` for queries ``start … stop - 1`` and keys ``first … last - 1``. Stored if it is most of the mask.

        With equal rows, it has one: ``(B, 1, 1, keys)``.
        """
        if self.hides_padding_alone and self.padding is not None:
            return self.padding[:, None, None, first:last]
        if 2 * (stop - start) * (last - first) >= self.queries * self.keys:
            return self.cached((start, stop, first, last), lambda: self._evaluated(start, stop, first, last))
        return self._evaluated(start, stop, first, last)

    def _evaluated(self, start: int, stop: int, first: int, last: int) -> Tensor:
        changes = {"q_length": stop - start, "kv_length": last - first, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        offsets = {"q_offset": self.arguments["q_offset"] + start, "kv_offset": self.first_key + first}
        return masking.sdpa_mask(**{**self.arguments, **changes, **offsets})

    def blocks(self, rows: int) -> list[tuple[int, int, int, int]]:
        """Queries ``start … stop - 1`` with the keys ``first … last - 1`` that they may see, of some :data:`BLOCK_PAIRS` pairs each.

        rows: the number of masks or of score matrices that are held at once.
        """
        known = not isinstance(self.first_query, Tensor)
        shift = self.first_query - self.first_key if known else 0
        reach = min(self.keys, self.left + self.right) if known else self.keys
        size = max(FEWEST_ROWS, min(BLOCK_PAIRS // (rows * max(reach, FEWEST_ROWS)), reach))
        blocks = []
        for start in range(0, self.queries, size):
            stop = min(start + size, self.queries)
            first, last = (max(0, start + shift - self.left), min(self.keys, stop + shift + self.right)) if known else (0, self.keys)
            blocks.append((start, stop, first, max(last, first + 1)))
        return blocks

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """The mask on another device, or :meth:`dense` in another dtype."""
        device = kwargs.get("device", args[0] if args else None)
        if not isinstance(device, int | str | torch.device) or kwargs.get("dtype") is not None or len(args) > 1:
            return self.dense().to(*args, **kwargs)
        moved, mask = copy.copy(self), self.arguments["attention_mask"]
        moved.arguments = {**self.arguments, "device": device, "attention_mask": None if mask is None else mask.to(device)}
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

        if function in (Tensor.add, Tensor.__add__, torch.add, Tensor.add_, Tensor.__iadd__) and isinstance(args[1], cls):
            return function(args[0], args[1].added(args[0].dtype))
        return function(*dense(args), **{name: dense(value) for name, value in (kwargs or {}).items()})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.dense(), name)


def _operator(name: str) -> Callable[..., Any]:
    return lambda mask, *args: getattr(mask.dense(), name)(*args)


OPERATORS = "getitem invert and rand or ror xor rxor eq ne lt le gt ge sub rsub mul rmul truediv bool len neg"
for _name in OPERATORS.split():
    setattr(DeclaredMask, f"__{_name}__", _operator(f"__{_name}__"))
DeclaredMask.__hash__ = object.__hash__  # type: ignore[method-assign]


def _longest_block(ids: Tensor) -> int:
    """The largest number of tokens from the first to the last of a block, for ``ids (B, N)``; -1 is in no block. 0 without blocks."""
    row, place = (ids >= 0).nonzero(as_tuple=True)
    if not len(row):
        return 0
    block = row * (int(ids.max()) + 1) + ids[row, place]
    ends = place.new_zeros(2, int(block.max()) + 1)
    first = ends[0].scatter_reduce(0, block, place, "amin", include_self=False)
    return int((ends[1].scatter_reduce(0, block, place, "amax", include_self=False) - first).max()) + 1
