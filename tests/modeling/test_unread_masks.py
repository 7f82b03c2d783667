"""Masks that no reader recognises: reduced to blocks once, and equal to sdpa attention with a mask of all pairs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers.masking_utils as masking
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_longattn import explain
from hf_longattn.engines.cpu import visible_blocks
from hf_longattn.modeling import declared
from hf_longattn.modeling.backend import longattn_attention_forward
from hf_longattn.modeling.declared import DeclaredMask
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients, paths_of
from tests.largest_tensor import LargestTensor
from tests.reference.small_models import plain_model

LENGTH = 400
BLOCKS, PAIRS = "cpu-visible-blocks", "dense-masked"
RANDOM = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(0)) < 0.3
DOCUMENTS = torch.tensor([0, 90, 91, 230, LENGTH]).diff().repeat_interleave(torch.tensor([90, 1, 139, 170]))
IMAGES = torch.full((2, LENGTH), -1)
IMAGES[0, 20:150], IMAGES[0, 300:305], IMAGES[1, 100:290] = 0, 1, 0
SAME_IMAGE = masking.blockwise_overlay(IMAGES)


def causal_or(other: Callable[..., Any]) -> Callable[..., Any]:
    return masking.or_masks(masking.causal_mask_function, other)


FUNCTIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "random blocks": (lambda b, h, q, k: RANDOM[0, q // 64, k // 64] | (q // 64 == k // 64), BLOCKS),
    "random blocks of another size": (lambda b, h, q, k: RANDOM[0, q // 60, k // 60] | (q // 60 == k // 60), PAIRS),
    "blocks of each row": (lambda b, h, q, k: RANDOM[b % 2, q // 64, k // 64], BLOCKS),
    "lengths": (lambda b, h, q, k: DOCUMENTS[q] == DOCUMENTS[k], BLOCKS),
    "prefix": (causal_or(lambda b, h, q, k: (q < 170) & (k < 170)), BLOCKS),
    "prefix of each row": (causal_or(lambda b, h, q, k: k < 50 + 100 * b), BLOCKS),
    "images": (causal_or(masking.or_masks(SAME_IMAGE, masking.sliding_window_overlay(3))), BLOCKS),
    "dilated": (lambda b, h, q, k: (k <= q) & ((q - k) % 4 == 0), BLOCKS),
    "checkerboard": (lambda b, h, q, k: (q + k) % 2 == 0, PAIRS),
    "almost everything": (lambda b, h, q, k: (q >= 0) & (k != 5), BLOCKS),
    "one key": (lambda b, h, q, k: k == (7 * q + b) % 300, PAIRS),
    "some queries hidden": (lambda b, h, q, k: (q % 5 != 0) & (q // 64 == k // 64), BLOCKS),
    "blocks of queries hidden": (lambda b, h, q, k: (q < 200) & (q // 64 >= k // 64), BLOCKS),
    "nothing": (lambda b, h, q, k: (q < 0) & (k < 0), BLOCKS),
}
"""A mask function, and the path of a call with it."""


def declare(
    function: Callable[..., Any], real: Tensor | None = None, queries: int = LENGTH, keys: int = LENGTH, **more: Any
) -> DeclaredMask:
    arguments = {"q_offset": keys - queries, "kv_offset": 0, "attention_mask": real, **more}
    return DeclaredMask(batch_size=2, q_length=queries, kv_length=keys, mask_function=function, **arguments)


def padding() -> Tensor:
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[1, :70] = real[1, 200:210] = False
    return real


def tensors(queries: int = LENGTH, keys: int = LENGTH, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Four heads of queries; keys and values of two heads."""
    shapes = (2, queries, 4, 8), (2, keys, 2, 8), (2, keys, 2, 8)
    return [torch.randn(shape).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes]


def attend(inputs: list[Tensor], mask: Any, **keywords: Any) -> tuple[Tensor, list[str]]:
    """Output ``(B, H, Nq, D)`` of a stock module, and the paths that ran."""
    run = functools.partial(longattn_attention_forward, torch.nn.Module(), *inputs, mask, scaling=0.3, **keywords)
    (out, _), paths = paths_of(run)
    return out.transpose(1, 2), paths


def sdpa(inputs: list[Tensor], mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=0.3, enable_gqa=True)


@pytest.fixture
def by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks run by their visible blocks, whatever it costs."""
    monkeypatch.setattr(visible_blocks, "SINGLE_COST", 0.0)
    monkeypatch.setattr(visible_blocks, "SHARED_COST", 0.0)


@every_case("name", FUNCTIONS)
def test_a_mask_runs_by_blocks_if_enough_pairs_are_hidden(name: str) -> None:
    function, path = FUNCTIONS[name]
    assert attend(tensors(), declare(function))[1] == [path]


@pytest.mark.usefixtures("by_blocks")
@every_case("padded", [False, True])
@every_case("name", FUNCTIONS)
def test_a_mask_function_shows_the_keys_that_it_shows_in_sdpa_attention(name: str, padded: bool) -> None:
    mask, inputs = declare(FUNCTIONS[name][0], padding() if padded else None), tensors()
    out, paths = attend(inputs, mask)
    assert paths == [BLOCKS]
    assert_equal_with_gradients(out, sdpa(inputs, mask.dense()), inputs)


@pytest.mark.usefixtures("by_blocks")
@every_case("kind", ["bool", "lowest", "-inf"])
@every_case("name", FUNCTIONS)
def test_a_tensor_of_pairs_shows_the_keys_that_it_shows_in_sdpa_attention(name: str, kind: str) -> None:
    mask, inputs = declare(FUNCTIONS[name][0]).dense().clone(), tensors()
    hides_queries = not bool(mask.any(-1).all())  # an additive mask lowers their scores alike, and hides nothing
    if kind != "bool":
        lowest = torch.finfo(torch.float64).min if kind == "lowest" else float("-inf")
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, lowest)
    out, paths = attend(inputs, mask)
    assert paths == [PAIRS if kind != "bool" and hides_queries else BLOCKS]
    assert_equal_with_gradients(out, sdpa(inputs, mask), inputs)


@every_case("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_case("name", ["random blocks", "prefix", "some queries hidden"])
def test_lower_precisions_are_as_exact_as_sdpa_attention(name: str, dtype: torch.dtype) -> None:
    mask, inputs = declare(FUNCTIONS[name][0]), tensors(dtype=dtype)
    out, paths = attend(inputs, mask)
    assert paths == [BLOCKS]
    exact = sdpa([x.double() for x in inputs], mask.dense())
    error, expected = ((x.double() - exact).abs().max() for x in (out, sdpa(inputs, mask.dense())))
    assert error <= 2 * expected + 1e-6


@pytest.mark.usefixtures("by_blocks")
@every_case(("queries", "keys", "slots"), [(200, 400, 400), (400, 400, 520), (200, 400, 520), (300, 301, 301)])
@every_case("name", ["random blocks", "prefix", "dilated"])
def test_queries_after_a_cache_and_empty_slots_of_a_static_cache(
    name: str, queries: int, keys: int, slots: int
) -> None:
    function = masking.and_masks(masking.causal_mask_function, FUNCTIONS[name][0])
    if name == "random blocks":
        function = masking.and_masks(
            masking.causal_mask_function, lambda b, h, q, k: RANDOM[0, q // 64, k % 448 // 64]
        )
    mask, inputs = declare(function, None, queries, slots, q_offset=keys - queries), tensors(queries, slots)
    out, paths = attend(inputs, mask)
    assert paths == [BLOCKS]
    assert_equal_with_gradients(out, sdpa(inputs, mask.dense()), inputs)


def test_documents_of_the_call_divide_what_a_mask_function_shows() -> None:
    documents = (torch.arange(LENGTH) // 150).expand(2, -1)
    mask, inputs = declare(FUNCTIONS["prefix"][0]), tensors()
    out, paths = attend(inputs, mask, documents=documents)
    assert paths == [BLOCKS]
    together = documents[:, None, :, None] == documents[:, None, None]
    assert_equal_with_gradients(out, sdpa(inputs, mask.dense() & together), inputs)
    assert_equal_with_gradients(attend(inputs, mask)[0], sdpa(inputs, mask.dense()), inputs)


def test_sinks_take_weight_from_the_visible_keys() -> None:
    sinks = torch.randn(4).double().requires_grad_()
    mask, inputs = declare(FUNCTIONS["some queries hidden"][0]), tensors()
    out, paths = attend(inputs, mask, s_aux=sinks)
    assert paths == [BLOCKS]
    q, k, v = inputs
    scores = (0.3 * q @ k.repeat_interleave(2, 1).mT).masked_fill(~mask.dense(), float("-inf"))
    weights = torch.cat([scores, sinks.view(1, 4, 1, 1).expand(2, -1, LENGTH, 1)], -1).softmax(-1)[..., :-1]
    assert_equal_with_gradients(out, weights @ v.repeat_interleave(2, 1), [*inputs, sinks])


def test_dropout_drops_weights_of_visible_pairs_in_both_directions() -> None:
    inputs, probability = tensors(), 0.25
    mask = declare(FUNCTIONS["prefix"][0])
    q, k, v = inputs
    values = torch.eye(LENGTH).double().expand(2, 2, -1, -1)
    wide = [F.pad(x, (0, LENGTH - 8)) for x in (q, k)]
    torch.manual_seed(7)
    dropped = attend([*wide, values], mask, dropout=probability)[0]
    scores = (0.3 * q @ k.repeat_interleave(2, 1).mT).masked_fill(~mask.dense(), float("-inf"))
    weights = scores.softmax(-1)
    kept = (dropped / weights).nan_to_num().round(decimals=6) > 0
    torch.testing.assert_close(dropped, weights * kept / (1 - probability), atol=1e-12, rtol=0)
    assert abs(float(kept[mask.dense().expand_as(kept)].double().mean()) - 0.75) < 0.01
    torch.manual_seed(7)
    out, paths = attend(inputs, mask, dropout=probability)
    assert paths == [BLOCKS]
    assert_equal_with_gradients(out, weights * kept / (1 - probability) @ v.repeat_interleave(2, 1), inputs)


def test_values_may_have_another_width_than_keys() -> None:
    q, k, v = tensors()
    for inputs in ([q, k, v[..., :5]], [q[..., :6], k[..., :6], v]):
        mask = declare(FUNCTIONS["random blocks"][0])
        out, paths = attend(inputs, mask)
        assert paths == [BLOCKS]
        torch.testing.assert_close(out, sdpa(inputs, mask.dense()), atol=1e-12, rtol=0)


def test_autocast_computes_in_its_dtype_as_sdpa_attention_does() -> None:
    mask, inputs = declare(FUNCTIONS["random blocks"][0]), tensors(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, paths = attend(inputs, mask)
        expected = sdpa(inputs, mask.dense())
    assert paths == [BLOCKS]
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, atol=0.02, rtol=0)


@every_case("keywords", [{"softcap": 2.0}, {"position_bias": torch.zeros(1)}, {"output_attentions": True}], ids=str)
def test_terms_of_scores_and_weights_are_computed_by_pairs(keywords: dict[str, Any]) -> None:
    keywords = dict(keywords)
    if "position_bias" in keywords:
        keywords["position_bias"] = torch.randn(1, 4, LENGTH, LENGTH).double()
    mask, inputs = declare(FUNCTIONS["prefix"][0]), tensors()
    out, paths = attend(inputs, mask, **keywords)
    assert paths == [PAIRS]
    torch.testing.assert_close(out, attend(inputs, mask.dense(), **keywords)[0], atol=1e-12, rtol=0)


def test_a_mask_function_is_evaluated_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "PIECE_PAIRS", 1 << 16)
    evaluated: list[int] = []

    def prefix(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        evaluated.append(q.numel() * k.numel())
        return (k <= q) | (k < 170)

    mask, inputs = declare(prefix), tensors()
    for _ in range(3):
        out, paths = attend(inputs, mask)
        assert paths == [BLOCKS]
        out.sum().backward()
    assert sum(evaluated) == LENGTH**2
    assert max(evaluated) < LENGTH**2 / 2


def test_pairs_outside_the_band_are_not_evaluated() -> None:
    evaluated: list[int] = []

    def few(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        evaluated.append(q.numel() * k.numel())
        return (q < 500) | (q - k < 50)

    length = 1024
    function = masking.and_masks(masking.causal_mask_function, masking.sliding_window_overlay(250), few)
    mask, inputs = declare(function, None, length, length), tensors(length, length)
    out, paths = attend(inputs, mask)
    assert paths == [BLOCKS]
    assert sum(evaluated) < length * 600
    assert_equal_with_gradients(out, sdpa(inputs, mask.dense()), inputs)


@every_case("name", ["random blocks", "lengths", "one key"])
def test_no_tensor_of_all_pairs_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declared, "PIECE_PAIRS", 1 << 16)
    length = 2048
    number = torch.arange(length)
    functions: dict[str, Callable[..., Any]] = {
        "random blocks": lambda b, h, q, k: (q // 64 == k // 64) | (q // 64 == (k // 64 * 5 + 3) % 32),
        "lengths": lambda b, h, q, k: number[q] // 150 == number[k] // 150,
        "one key": lambda b, h, q, k: k == (q + 700) % 2048,
    }

    inputs = tensors(length, length, torch.float32)
    mask = declare(functions[name], None, length, length)
    with LargestTensor() as largest:
        longattn_attention_forward(torch.nn.Module(), *inputs, mask, scaling=0.3)[0].sum().backward()
    assert largest.elements < length**2 / 4


def test_a_mask_of_many_mixed_blocks_keeps_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visible_blocks, "MAX_TILES", 20)
    for name, path in (("random blocks", BLOCKS), ("dilated", PAIRS)):
        mask, inputs = declare(FUNCTIONS[name][0]), tensors()
        out, paths = attend(inputs, mask)
        assert paths == [path]
        assert_equal_with_gradients(out, sdpa(inputs, mask.dense()), inputs)


@every_case("inference", [False, True])
def test_a_tensor_that_was_changed_in_place_is_read_again(inference: bool) -> None:
    with torch.inference_mode(inference):
        mask, inputs = declare(FUNCTIONS["random blocks"][0]).dense().clone(), tensors()
        for _ in range(2):
            torch.testing.assert_close(attend(inputs, mask)[0], sdpa(inputs, mask), atol=1e-12, rtol=0)
            mask[:, :, 100:200] = mask[:, :, 100:200].roll(70, -1)


def test_a_mask_that_lowers_scores_without_hiding_pairs_is_added() -> None:
    visible = declare(FUNCTIONS["random blocks"][0]).dense()
    inputs = tensors()
    for least in (-3.0, -50.0):
        mask = torch.zeros(visible.shape).double().masked_fill(~visible, least)
        out, paths = attend(inputs, mask)
        assert paths == [PAIRS]
        assert_equal_with_gradients(out, sdpa(inputs, mask), inputs)
    learned = torch.zeros(visible.shape).double().masked_fill(~visible, -1e30).requires_grad_()
    assert_equal_with_gradients(attend(inputs, learned)[0], sdpa(inputs, learned), [*inputs, learned])
    of_heads = torch.rand(2, 4, LENGTH, LENGTH) < 0.5
    out, paths = attend(inputs, of_heads)
    assert paths == [PAIRS]
    assert_equal_with_gradients(out, sdpa(inputs, of_heads), inputs)


def test_fake_tensors_need_no_values_of_the_mask() -> None:
    with FakeTensorMode():
        out = longattn_attention_forward(torch.nn.Module(), *tensors(), declare(FUNCTIONS["prefix"][0]))[0]
    assert out.shape == (2, LENGTH, 4, 8)


def test_a_stock_model_runs_and_explains_a_mask_of_its_caller() -> None:
    model = plain_model("llama", initializer_range=0.02)
    ids, visible = torch.randint(0, 99, (2, LENGTH)), declare(FUNCTIONS["prefix of each row"][0]).dense().clone()
    for mask in (visible, torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))):
        model.set_attn_implementation("sdpa")
        expected = model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        model.set_attn_implementation("longattn")
        found = model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    explained = explain(model, {"input_ids": ids, "attention_mask": visible, "use_cache": False})
    assert {path.path for path in explained} == {BLOCKS}
    board = declare(FUNCTIONS["checkerboard"][0]).dense().clone()
    (row,) = explain(model, {"input_ids": ids, "attention_mask": board, "use_cache": False})
    assert (row.path, row.reason) == (PAIRS, "no cpu-visible-blocks: its mask leaves too few pairs out")
