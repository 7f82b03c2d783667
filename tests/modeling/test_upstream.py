"""Checks of what transformers means by its masks and keywords: each finds a version that means something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers.masking_utils as masking
from transformers import LlamaConfig

from hf_longattn import enable_long_attention
from hf_longattn.errors import BackendError
from hf_longattn.modeling import declared, upstream
from hf_longattn.modeling.backend import BACKEND, mechanism_mask
from tests.cases import every_case
from tests.reference.small_models import plain_model, tokens


def masks_checked() -> str | None:
    upstream.check_masks(mechanism_mask)
    return next(iter(upstream.problems), None)


@pytest.fixture(autouse=True)
def checked_again() -> Iterator[None]:
    yield
    upstream.problems.clear()


def test_masks_of_the_installed_transformers_are_what_they_are_taken_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [name for name, *_ in upstream.mask_arguments()]
    assert len(names) == len({*names}) == 26
    assert masks_checked() is None
    assert not caplog.records


def wider_window(sliding_window: int) -> Callable[..., Any]:
    return lambda batch, head, query, key: key >= query - sliding_window


def narrower_window(sliding_window: int) -> Callable[..., Any]:
    return lambda batch, head, query, key: abs(query - key) < sliding_window


def shifted_chunks(chunk_size: int, left_padding: torch.Tensor) -> Callable[..., Any]:
    def inner_mask(batch: Any, head: Any, query: Any, key: Any) -> Any:
        before = left_padding[batch] - 1
        return (key - before) // chunk_size == (query - before) // chunk_size

    return inner_mask


def blocks_that_all_see(block_sequence_ids: torch.Tensor) -> Callable[..., Any]:
    return lambda batch, head, query, key: block_sequence_ids[batch, key] >= block_sequence_ids[batch, query]


def documents_that_follow(packed_sequence_mask: torch.Tensor) -> Callable[..., Any]:
    return lambda batch, head, query, key: packed_sequence_mask[batch, key] <= packed_sequence_mask[batch, query]


def strictly_causal(batch: Any, head: Any, query: Any, key: Any) -> Any:
    return key < query


CHANGED: dict[str, tuple[str, tuple[Any, ...], Callable[..., Any]]] = {
    "sliding_window_overlay": ("WINDOW", (1,), wider_window),
    "sliding_window_bidirectional_overlay": ("WINDOW_AROUND", (1,), narrower_window),
    "chunked_overlay": ("CHUNKS", (1, torch.zeros(1)), shifted_chunks),
    "blockwise_overlay": ("BLOCKS", (torch.zeros(1, 1),), blocks_that_all_see),
    "packed_sequence_mask_function": ("PACKED", (torch.zeros(1, 1),), documents_that_follow),
}
"""Function of transformers -> our name of its code, arguments to make it, and a function that means something else."""


@every_case("name", CHANGED)
def test_a_function_that_means_other_keys_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, arguments, changed = CHANGED[name]
    code = changed(*arguments).__code__
    monkeypatch.setattr(masking, name, changed)
    monkeypatch.setattr(declared, ours, code)
    monkeypatch.setattr(declared, "KNOWN", declared.KNOWN | {code})
    assert "shows other keys), and outputs would be wrong" in str(masks_checked())


def test_plain_functions_that_mean_other_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("causal_mask_function", "bidirectional_mask_function"):
        with monkeypatch.context() as version:
            version.setattr(masking, name, strictly_causal)
            assert "shows other keys" in str(masks_checked())


def changed_arguments(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let transformers pass other arguments to mask functions."""
    for name in dir(masking):
        if name.startswith("create_") and name.endswith("_mask") and "recurrent" not in name:
            create = getattr(masking, name)
            monkeypatch.setattr(masking, name, lambda *a, _create=create, **kw: change(_create(*a, **kw)))


@every_case(
    ("change", "problem"),
    {
        "skips": (
            lambda arguments: {**arguments, "allow_is_causal_skip": True},
            "shows other keys than in a compiled graph",
        ),
        "window": (
            lambda arguments: {"window" if name == "local_size" else name: x for name, x in arguments.items()},
            "does not say that its window is the model's own",
        ),
        "offset": (lambda arguments: {"first" if n == "q_offset" else n: x for n, x in arguments.items()}, "KeyError"),
    }.values(),
    ids=str,
)
def test_arguments_that_mean_something_else_are_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_arguments(monkeypatch, change)
    assert problem in str(masks_checked())


def test_a_problem_is_raised_by_every_call_and_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "causal_mask_function", strictly_causal)
    masks_checked()
    monkeypatch.undo()
    config = LlamaConfig(hidden_size=32, attn_implementation=BACKEND)

    def mask() -> Any:
        return masking.create_causal_mask(config, torch.zeros(1, 8, 32), None, None)

    for _ in range(2):
        with pytest.raises(BackendError, match="is not what hf_longattn takes it for"):
            mask()
    with pytest.raises(Exception, match="is not what hf_longattn takes it for"):
        torch.compile(mask, backend="eager", fullgraph=True)()


def test_a_window_that_is_not_recognised_is_logged_and_right(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(declared, "KNOWN", declared.KNOWN - {declared.WINDOW})
    monkeypatch.setattr(declared, "WINDOW", object())
    assert masks_checked() is None
    assert "does not recognise masks of transformers" in caplog.text
    assert "(sliding_window_causal, sliding_window_causal with padding)" in caplog.text


@every_case("attention", [None, {"mechanism": "window", "window": 8}])
def test_an_unknown_tensor_for_attention_is_refused_by_name(attention: Any) -> None:
    model = plain_model("llama")
    enable_long_attention(model, attention)
    ids = tokens(2, 40)
    for value in (1, None, "words"):
        model(ids, head_gates=value)
    with pytest.raises(BackendError, match="LlamaAttention of layer 0 got the tensor 'head_gates'"):
        model(ids, head_gates=torch.ones(4))
    for name in ("token_type_ids", "num_items_in_batch"):
        model(ids, **{name: torch.zeros_like(ids)})
