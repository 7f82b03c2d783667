"""Checks that this package reads the masks of the installed transformers correctly.

If a version of transformers lacks a name, an error or warning says so where the name is used
(:mod:`~hf_longattn.names`). If its mask functions come to mean something else, nothing would fail: outputs would be
wrong, or memory would grow. The check here therefore compares some of transformers' masks with how this package reads
them. It runs once per process, and costs nothing in a call.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import torch
import transformers.masking_utils as masking
from torch import Tensor
from transformers import AttentionMaskInterface

from ..memory.decode_cache import CACHE
from ..names import BACKEND, TESTED, logger
from .declared import DeclaredMask

TOKENS, WINDOW = 8, 3
"""Tokens of the masks that are checked, and the size of their windows and chunks."""
ARGUMENTS = f"{BACKEND}_arguments"
"""The name of an attention implementation with which transformers' functions return the arguments of a mask instead of
the mask."""
AttentionMaskInterface.register(ARGUMENTS, dict)
problems: list[str] = []
"""The message that every call raises if the check fails; empty if it succeeds."""


def check_masks(mechanism_mask: Callable[..., Tensor | None]) -> None:
    """Run the check, and fill :data:`problems`. The check runs in a thread, so that modes of the importing code, such
    as ``torch.device("meta")`` or fake tensors, do not reach it.

    mechanism_mask: the function of :mod:`.backend`.
    """
    problems.clear()

    def note_problem() -> None:
        try:
            problem = mask_problem(mechanism_mask)
        except Exception as error:  # for example, an argument of transformers' functions has another name
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
        if problem is not None:
            lowest, highest = TESTED["transformers"]
            problems.append(
                f"transformers {version('transformers')} is not what hf_longattn takes it for ({problem}), and "
                f"outputs would be wrong; install transformers {lowest} to {highest}, with which it is tested, or "
                "load the model with attn_implementation='sdpa'."
            )

    thread = threading.Thread(target=note_problem)
    thread.start()
    thread.join()


def mask_arguments() -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """Yield the masks to check: the name of each, whether a band and padding describe it, and the arguments with which
    transformers would make it."""
    sizes = {
        "causal": {},
        "sliding_window_causal": {"sliding_window": WINDOW},
        "chunked_causal": {"attention_chunk_size": WINDOW},
        "bidirectional": {},
        "bidirectional_sliding_window": {"sliding_window": WINDOW},
    }
    padding = torch.ones(1, TOKENS, dtype=torch.bool)
    padding[0, :2] = False
    blocks = torch.full((1, TOKENS), -1)
    blocks[0, 3:6] = 0

    def prefix(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query < 5) & (key < 5)

    for name, size in sizes.items():
        config = SimpleNamespace(_attn_implementation=ARGUMENTS, **size)
        create = functools.partial(
            getattr(masking, f"create_{name}_mask"), config, torch.zeros(1, TOKENS, 1), **{CACHE: None}
        )
        yield name, True, create(attention_mask=None)
        yield f"{name} with padding", True, create(attention_mask=padding)
        yield f"{name} with a union", False, create(attention_mask=None, or_mask_function=prefix)
        yield f"{name} with an intersection", False, create(attention_mask=None, and_mask_function=prefix)
        if "causal" in name:
            restarting = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
            yield f"{name} with documents", False, create(attention_mask=None, position_ids=restarting)
            yield f"{name} with blocks", False, create(attention_mask=None, block_sequence_ids=blocks)


def reads_alike(mask: DeclaredMask, shown: Tensor) -> bool:
    """Whether the pairs in ``shown (Nq, Nk)``, bool, are those that ``mask`` is read to show. If its band is not
    exact, whether they are all within the band."""
    band = torch.ones(TOKENS, TOKENS, dtype=torch.bool)
    expected = band.tril(min(mask.right, TOKENS)).triu(-min(mask.left, TOKENS))
    if not mask.exact:
        return not bool((shown & ~expected).any())
    if mask.padding is not None:
        expected = expected & mask.padding[0]
    for label in mask._labels:
        expected = expected & (label[0, :, None] == label[0])
    return torch.equal(shown, expected)


def mask_problem(mechanism_mask: Callable[..., Tensor | None]) -> str | None:
    """How a mask of transformers differs from how this package reads it. ``None`` if all masks are read correctly.

    mechanism_mask: the function of :mod:`.backend` that makes masks for mechanisms.
    """
    unread = []
    for name, plain, arguments in mask_arguments():
        mask, traced = (DeclaredMask(traced=traced, **arguments) for traced in (False, True))
        shown = mask.dense()[0, 0]
        if not reads_alike(mask, shown):
            return f"a mask, {name}, shows other keys"
        if not reads_alike(traced, shown):
            return f"a mask, {name}, shows other keys than in a compiled graph"
        if plain and getattr(mechanism_mask(**arguments), "ndim", 2) != 2:
            return f"a mask, {name}, does not say that its window is the model's own"
        if plain and not mask.exact:
            unread.append(name)
    if unread:
        logger.warning(
            f"hf_longattn does not recognise masks of transformers {version('transformers')} ({', '.join(unread)}): "
            "outputs are right, but memory and time grow with the square of the text."
        )
    return None
