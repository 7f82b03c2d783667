"""What this package takes for granted about transformers' masks and attention, checked once per process.

A private name that a version lacks is noticed where it is used (:mod:`~hf_longattn.names`). A name that stays and
comes to mean something else is not: outputs would change without a word. Each check here compares what transformers
does with what this package takes it to do, before the first call, and every call raises what it found. A check costs
nothing in a call.
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

problems: dict[str, str] = {}
"""Name of a check -> the sentence to raise in every call."""


def run_check(name: str, check: Callable[[], str | None]) -> None:
    """Run ``check``, which returns what is wrong as the end of a sentence, or ``None``, for :data:`problems`.

    It runs in a thread, which no mode of the importing code reaches (``torch.device("meta")``, fake tensors).
    """
    results: list[str | None] = []

    def run() -> None:
        try:
            results.append(check())
        except Exception as error:  # such as an argument that has another name
            results.append(f"{type(error).__name__}: {error}".splitlines()[0])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    problems.pop(name, None)
    if results[0] is not None:
        lowest, highest = TESTED["transformers"]
        problems[name] = (
            f"transformers {version('transformers')} is not what hf_longattn takes it for, and outputs would be wrong "
            f"({results[0]}); install transformers {lowest} to {highest}, with which it is tested, or load the model "
            "with attn_implementation='sdpa'."
        )


# ---- masks

MASKS = "masks"
"""The name of the check of masks."""
ARGUMENTS = f"{BACKEND}_arguments"
"""The name under which transformers' functions return the arguments of a mask instead of the mask."""
TOKENS, SIZE = 8, 3
"""Tokens of a mask that is checked, and of its window or chunk."""
AttentionMaskInterface.register(ARGUMENTS, dict)


def mask_arguments() -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """For each mask its name, whether it is one document with a known band, and the arguments that transformers passes
    to a mask function."""
    sizes = {"causal": "", "sliding_window_causal": "sliding_window", "chunked_causal": "attention_chunk_size"}
    sizes |= {"bidirectional": "", "bidirectional_sliding_window": "sliding_window"}
    padding = torch.ones(1, TOKENS, dtype=torch.bool)
    padding[0, :2] = False
    blocks = torch.full((1, TOKENS), -1)
    blocks[0, 3:6] = 0

    def prefix(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query < 5) & (key < 5)

    for name, size in sizes.items():
        config = SimpleNamespace(_attn_implementation=ARGUMENTS, **({size: SIZE} if size else {}))
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
    """Whether the keys that a mask shows, ``(Nq, Nk)`` bool, are within its band, and all of those that it is read to
    show."""
    band = torch.ones(TOKENS, TOKENS).tril(min(mask.right, TOKENS)).triu(-min(mask.left, TOKENS)).bool()
    read = band if mask.padding is None else band & mask.padding[0]
    for label in mask._labels:
        read = read & (label[0, :, None] == label[0])
    return torch.equal(shown, read) if mask.exact else not bool((shown & ~band).any())


def mask_problem(mechanism_mask: Callable[..., Tensor | None]) -> str | None:
    """What is wrong with how masks of transformers are read, on masks of :data:`TOKENS` tokens.

    mechanism_mask: the function that leaves out a model's own window for mechanisms.
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
