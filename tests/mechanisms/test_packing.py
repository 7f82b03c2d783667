"""Packed documents give what they give alone, by ``attend`` and in models. Padding and packing cost what real tokens
cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DataCollatorWithFlattening

from hf_longattn import Mechanism, attend, build_mechanism, enable_long_attention, list_mechanisms, reference_attend
from hf_longattn.engines.batch import Batch, documents_from
from hf_longattn.engines.dense_masks import documents_in_mask
from hf_longattn.errors import InputError
from hf_longattn.mechanisms.common import feature_map
from hf_longattn.mechanisms.common.capabilities import needs_whole_batch
from tests.cases import every_case
from tests.comparisons import paths_of
from tests.grids import quickly
from tests.reference.small_models import long_model, padding, plain_model, tokens
from tests.samples import sample_of, sampled
from tests.shared_code import engine_of_form

SIZES = [60, 45, 1, 190]
LENGTH = sum(SIZES)
FORMS = [(name, causal) for causal in (False, True) for name in list_mechanisms(causal=causal, grid=False)]
VARIANTS: dict[str, dict[str, Any]] = {
    "sinks": {"mechanism": "window", "window": 32, "num_sinks": 4},
    "asymmetric": {"mechanism": "window", "left": 40, "right": 7},
    "dilated": {"mechanism": "window", "window": 6, "dilation": [1, 2, 3, 1]},
    "global tokens": {"mechanism": "longformer", "window": 32, "global_tokens": (0, 5)},
    "alibi": {"mechanism": "window", "window": 32, "relative": "alibi"},
}
"""Options besides the mechanisms' samples, in models."""
WAYS = ("position_ids", "position_ids and ones", "documents", "cu_seq_lens_q", "seq_idx", "bool mask", "float mask")


def numbers(sizes: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def token_major(batch: int, heads: int, length: int, grad: bool = False) -> Tensor:
    """``(B, H, N, D)`` stored as ``(B, N, H, D)``, as models have it."""
    return torch.randn(batch, length, heads, 16).transpose(1, 2).requires_grad_(grad)


def alone(x: Tensor, row: int, first: int, last: int) -> Tensor:
    """A document in separate storage."""
    return x[row : row + 1, :, first:last].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()


def one_by_one(
    module: Mechanism, sizes: list[list[int]], tensors: list[Tensor], weight: Tensor, **arguments: Any
) -> list[Tensor]:
    """Output of every document in a separate call, and gradients of q, k, v, put together."""
    found = [torch.zeros_like(x) for x in (tensors[0], *tensors)]
    hidden, chosen = arguments.pop("hidden_states", None), arguments.pop("global_mask", None)
    for row, lengths in enumerate(sizes):
        first = 0
        for length in lengths:
            at = (slice(row, row + 1), slice(first, first + length))
            x = [alone(one, row, first, first + length) for one in tensors]
            own = (
                arguments
                | ({} if hidden is None else {"hidden_states": hidden[at]})
                | ({} if chosen is None else {"global_mask": chosen[at]})
            )
            out = attend(*x, module, **own)
            gradients = torch.autograd.grad((out * weight[row : row + 1, :, at[1]]).sum(), x, materialize_grads=True)
            for total, part in zip(found, (out, *gradients), strict=True):
                total[row : row + 1, :, at[1]] = part.detach()
            first += length
    return found


@pytest.mark.thorough
@every_case(("name", "causal"), FORMS, of=9, code=engine_of_form, ids=str)
def test_each_packed_document_is_bit_for_bit_as_alone(name: str, causal: bool) -> None:
    module = sampled(name, LENGTH)
    sizes = [SIZES, [100, LENGTH - 100]]
    tensors = [token_major(2, heads, LENGTH, grad=True) for heads in (4, 2, 2)]
    arguments: dict[str, Any] = {"causal": causal}
    if module.capabilities.takes_globals:
        arguments["global_mask"] = torch.rand(2, LENGTH) < 0.05
    if module.capabilities.takes_hidden_states:
        arguments["hidden_states"] = torch.randn(2, LENGTH, 64)
    weight = torch.randn(tensors[0].shape)
    out = attend(*tensors, module, documents=torch.stack([numbers(one) for one in sizes]), **arguments)
    gradients = torch.autograd.grad((out * weight).sum(), tensors, materialize_grads=True)
    expected = one_by_one(module, sizes, tensors, weight, **arguments)
    torch.testing.assert_close([out, *gradients], expected, atol=0, rtol=0)


@every_case("causal", [False, True])
@every_case("dtype", [torch.float32, torch.bfloat16])
@every_case("kv_heads", [1, 4])
def test_packed_linear_attention_in_pieces_beside_padding_is_as_alone(
    kv_heads: int, dtype: torch.dtype, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_map, "FEATURES_PER_PIECE", 1 << 12)  # pieces of two chunks
    module = build_mechanism("linear", num_heads=4, head_dim=16)
    sizes = [[300, 1, 20], [64, 192]]
    tensors = [token_major(2, heads, 321).detach().to(dtype).requires_grad_() for heads in (4, kv_heads, kv_heads)]
    with torch.no_grad():
        for x in tensors:
            x[1, :, 256:] = float("nan")
    weight = torch.randn(tensors[0].shape, dtype=dtype)
    documents = torch.stack([numbers(sizes[0]), numbers([64, 257])])
    mask = torch.stack([torch.ones(321), torch.arange(321) < 256]).bool()
    arguments = {"causal": causal, "documents": documents, "padding_mask": mask}
    out, paths = paths_of(lambda: attend(*tensors, module, **arguments))
    assert paths[0] == "split"
    gradients = torch.autograd.grad(
        (out * weight)[mask[:, None, :, None].expand_as(out)].sum(), tensors, materialize_grads=True
    )
    expected = one_by_one(module, sizes, tensors, weight, causal=causal)
    torch.testing.assert_close([out, *gradients], expected, atol=0, rtol=0)


@every_case("name", ["window", "bigbird", "linear", "lsh"])
def test_packed_documents_with_padding_and_few_queries_equal_the_definition(name: str) -> None:
    module = sampled(name, LENGTH)
    q, k, v = (token_major(2, heads, LENGTH) for heads in (4, 2, 2))
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :7], mask[1, -20:], mask[0, 90:110] = False, False, False
    arguments: dict[str, Any] = {"causal": True, "padding_mask": mask, "documents": numbers(SIZES).expand(2, -1)}
    whole = attend(q, k, v, module, **arguments)
    torch.testing.assert_close(
        whole.double() * mask[:, None, :, None], reference_attend(q, k, v, module, **arguments), atol=1e-5, rtol=0
    )
    last = attend(q[:, :, -200:], k, v, module, **arguments)
    torch.testing.assert_close(
        last * mask[:, None, -200:, None], whole[:, :, -200:] * mask[:, None, -200:, None], atol=1e-5, rtol=0
    )


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "descending": ({"documents": torch.tensor([[0, 0, 1, 1, 0, 0]])}, "documents must ascend"),
    "too short": ({"documents": torch.zeros(1, 5, dtype=torch.long)}, r"documents has shape \(1, 5\)"),
    "floats": ({"documents": torch.zeros(1, 6)}, "must be integers"),
    "both": (
        {"documents": torch.zeros(1, 6, dtype=torch.long), "cu_seqlens": torch.tensor([0, 6])},
        "pass one of them",
    ),
    "offsets that fall": ({"cu_seqlens": torch.tensor([0, 4, 2, 6])}, "cu_seqlens must be ascending offsets from 0"),
    "offsets that end early": ({"cu_seqlens": torch.tensor([0, 4])}, "to the number of tokens, 6"),
    "offsets that begin late": ({"cu_seqlens": torch.tensor([1, 6])}, "from 0 to the number"),
    "offsets of two rows": ({"cu_seqlens": torch.tensor([0, 6]), "rows": 2}, "for several rows pass documents"),
}


@every_case("case", BAD)
def test_documents_that_do_not_fit_are_refused_in_one_sentence(case: str) -> None:
    arguments, message = BAD[case]
    x = torch.randn(arguments.pop("rows", 1) if "rows" in arguments else 1, 2, 6, 8)
    with pytest.raises(InputError, match=message) as caught:
        attend(x, x, x, "window", window=4, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.thorough
def test_a_traced_graph_refuses_packed_documents() -> None:
    module, x = build_mechanism("window", num_heads=2, head_dim=8, window=4), torch.randn(1, 2, 6, 8)
    with pytest.raises(Exception, match=r"neither a traced graph nor"):
        torch.compile(lambda q, ids: attend(q, q, q, module, documents=ids), backend="eager", fullgraph=True)(
            x, torch.zeros(1, 6).long()
        )


def test_a_batch_lists_the_sequences_of_padding_and_documents() -> None:
    mask = torch.tensor([[0, 1, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]]).bool()
    assert [tuple(one) for one in Batch(mask).sequences] == [(0, 1, 6, True), (2, 0, 7, False)]
    ids = torch.tensor([[0, 0, 9, 0, 2, 2, 5], [0, 1, 2, 3, 4, 5, 6], [1, 1, 1, 1, 1, 1, 3]])
    found = [tuple(one) for one in Batch(mask, ids).sequences]
    assert found == [(0, 1, 4, True), (0, 4, 6, False), (2, 0, 6, False), (2, 6, 7, False)]
    assert documents_from(None, torch.tensor([0, 3, 3, 7]), (1, 7)).tolist() == [[0, 0, 0, 2, 2, 2, 2]]  # type: ignore[union-attr]


def packed(way: str, causal: bool) -> dict[str, Any]:
    positions = torch.cat([torch.arange(size) for size in SIZES])[None]
    seen = torch.block_diag(*[torch.ones(size, size) for size in SIZES]).bool()[None, None]
    seen = seen.tril() if causal else seen
    if way == "position_ids":
        return {"position_ids": positions}
    if way == "position_ids and ones":
        return {"position_ids": positions, "attention_mask": torch.ones_like(positions)}
    if way == "documents":
        return {"documents": numbers(SIZES)[None]}
    if way == "cu_seq_lens_q":
        return {"cu_seq_lens_q": torch.tensor([0, *SIZES]).cumsum(0).int()}
    if way == "seq_idx":
        return {"seq_idx": numbers(SIZES)[None].int()}
    mask = seen if way == "bool mask" else torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return {"position_ids": positions, "attention_mask": mask}


def assert_packed_equals_alone(model: Any, arguments: dict[str, Any]) -> None:
    ids = tokens(1, LENGTH)
    with torch.no_grad():
        found = model(ids, **arguments)[0]
        expected = torch.cat([model(document)[0] for document in ids.split(SIZES, 1)], 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def forms(causal: bool) -> dict[str, dict[str, Any]]:
    names = [name for name in list_mechanisms(causal=causal, grid=False) if name != "recurrent_memory"]
    return {**{name: sample_of(name) for name in names}, **VARIANTS}


@every_case("form", forms(True), of=9, code=lambda form: form in VARIANTS or engine_of_form(form))
def test_a_decoder_keeps_documents_apart(form: str) -> None:
    model = long_model("llama", "LlamaForCausalLM", forms(True)[form]).double().eval()
    for way in WAYS if form in ("window", "linear") else ("position_ids", "bool mask"):
        assert_packed_equals_alone(model, packed(way, True) | ({"use_cache": False} if "mask" in way else {}))


@every_case("form", forms(False), of=9, code=lambda form: form in VARIANTS or engine_of_form(form))
def test_an_encoder_keeps_documents_apart(form: str) -> None:
    model = long_model("bert", None, forms(False)[form]).double().eval()
    for way in WAYS if form in ("longformer", "nystrom") else ("position_ids", "documents"):
        assert_packed_equals_alone(model, packed(way, False))


def test_no_square_mask_is_made_for_packed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import masking_utils

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a mask of N×N pairs was made")

    monkeypatch.setattr(masking_utils, "sdpa_mask", never)
    model = long_model("llama", "LlamaForCausalLM", {"mechanism": "window", "window": 32})
    model(tokens(1, LENGTH), **packed("position_ids", True))


def test_a_model_reads_what_the_flattening_collator_of_transformers_makes() -> None:
    features = [{"input_ids": document[0].tolist()} for document in tokens(1, LENGTH).split(SIZES, 1)]
    attention = sample_of("segmented")
    model = long_model("llama", "LlamaForCausalLM", attention).double()
    expected = torch.cat([model(torch.tensor([feature["input_ids"]])).logits for feature in features], 1)
    batch = DataCollatorWithFlattening(return_tensors="pt", return_flash_attn_kwargs=True, return_seq_idx=True)(
        features
    )
    batch.pop("labels")
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="with a cache nothing keeps them apart; pass use_cache=False"):
        model(**batch, use_cache=True)


def test_positions_of_one_document_do_not_count_as_packed() -> None:
    model = long_model("llama", "LlamaForCausalLM", sample_of("bigbird"))
    ids, places = tokens(2, 90), torch.arange(90)[None]
    expected = model(ids, use_cache=False).logits
    lengths = {"cu_seq_lens_k": torch.tensor([0, 90]), "seq_idx": torch.zeros(2, 90, dtype=torch.int32)}
    for arguments in (
        {"position_ids": places},
        {"position_ids": places, "use_cache": True},
        {"position_ids": places, **lengths},
    ):
        torch.testing.assert_close(model(ids, **{"use_cache": False, **arguments}).logits, expected)


def test_a_model_by_enable_long_attention_keeps_documents_apart() -> None:
    model = enable_long_attention(plain_model("llama", "LlamaForCausalLM"), {"mechanism": "linear"}).double().eval()
    assert_packed_equals_alone(model, {**packed("position_ids", True), "use_cache": False})


def test_models_refuse_packed_rows_and_masks_that_they_cannot_keep_apart() -> None:
    memory = long_model("llama", "LlamaForCausalLM", {"mechanism": "recurrent_memory"})
    with pytest.raises(InputError, match="runs in segments with memory tokens; give each document its own row"):
        memory(tokens(1, LENGTH), **packed("position_ids", True))
    without_a_pair = torch.ones(1, 1, 60, 60, dtype=torch.bool).tril()
    without_a_pair[..., 40, 3] = False
    linear = long_model("llama", "LlamaForCausalLM", {"mechanism": "linear"})
    with pytest.raises(InputError, match="A four-dimensional attention_mask was given, but mechanism"):
        linear(tokens(1, 60), attention_mask=without_a_pair, use_cache=False)
    model = long_model("llama", "LlamaForCausalLM", {"mechanism": "window", "window": 32})
    with pytest.raises(InputError, match="documents must ascend"):
        model(tokens(1, 6), documents=torch.tensor([[0, 0, 1, 1, 0, 2]]))


@pytest.mark.slow
@pytest.mark.parametrize("form", quickly(["window", "bigbird"], ["window"]))
def test_a_compiled_model_keeps_documents_apart_or_refuses(form: str) -> None:
    model = long_model("llama", "LlamaForCausalLM", forms(True)[form], num_hidden_layers=1).eval()
    torch._dynamo.reset()
    compiled, ids = torch.compile(model, backend="eager"), tokens(1, LENGTH)
    with torch.no_grad():
        whole = compiled(ids, position_ids=torch.arange(LENGTH)[None], use_cache=False).logits
        torch.testing.assert_close(whole, model(ids, use_cache=False).logits, atol=1e-4, rtol=0)
        if form == "bigbird":  # positions are values, so that the refusal comes out of the graph
            with pytest.raises(RuntimeError, match="kept apart by a mask alone"):
                compiled(ids, **packed("position_ids", True), use_cache=False)
            return
        found = compiled(ids, **packed("position_ids", True), use_cache=False).logits
        expected = torch.cat([model(document, use_cache=False).logits for document in ids.split(SIZES, 1)], 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def masks() -> dict[str, tuple[Tensor, bool]]:
    """Dense masks of 12 tokens, and whether they separate documents."""
    places = torch.arange(12)
    causal, blocks = places[:, None] >= places, torch.block_diag(torch.ones(5, 5), torch.ones(7, 7)).bool()
    left = padding(1, 12, left=True)[0].bool() & (places >= 4)
    return {
        "causal": (causal, False),
        "everything": (torch.ones(12, 12, dtype=torch.bool), False),
        "window": (causal & (places[:, None] - places < 3), False),
        "every second": ((places[:, None] - places) % 2 == 0, False),
        "left padding": (causal & left, False),
        "right padding": (causal & (places < 7), False),
        "prefix": (causal | (places < 5), False),
        "documents": (blocks, True),
        "causal documents": (blocks & causal, True),
        "documents with padding": (blocks & causal & (places < 10), True),
    }


@every_case("name", masks())
def test_a_dense_mask_tells_documents_from_other_patterns(name: str) -> None:
    mask, apart = masks()[name]
    some = torch.stack([torch.ones(12, 12, dtype=torch.bool), mask])[:, None]
    for form in (some, torch.zeros(some.shape).masked_fill(~some, float("-inf")), some.expand(-1, 4, -1, -1)):
        assert (documents_in_mask(form) is not None) is apart


def learning() -> list[str]:
    """The mechanisms that draw or learn something once per call while they are trained."""
    return [name for name in list_mechanisms(grid=False) if needs_whole_batch(sampled(name, LENGTH).train())]


@pytest.mark.parametrize("name", learning())
def test_documents_are_one_call_of_a_mechanism_that_learns_once_per_call(name: str) -> None:
    """On the CPU as on a GPU; the output is that of a call for each."""
    module = sampled(name, LENGTH)
    tensors, causal, calls = (
        [token_major(1, heads, LENGTH, grad=True) for heads in (4, 2, 2)],
        module.causal is True,
        [],
    )
    weight = torch.randn_like(tensors[0])
    expected = one_by_one(module, [SIZES], tensors, weight, causal=causal)
    module.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    out = attend(*tensors, module.train(), causal=causal, documents=numbers(SIZES)[None])
    assert calls == [len(SIZES)]
    gradients = torch.autograd.grad((out * weight).sum(), tensors, materialize_grads=True)
    torch.testing.assert_close((out, *gradients), expected, atol=1e-5, rtol=0)


TIMED_LENGTH, ROUNDS = 4096, 9
MECHANISMS: dict[str, dict[str, Any]] = {
    "window": {},
    "longformer": {"global_tokens": (0,)},
    "bigbird": {},
    "linear": {},
    "full": {},
}


def fastest(*runs: Callable[[], Any]) -> list[float]:
    """The least CPU time of each, in turns."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(ROUNDS + 1):
        for run, own in zip(runs, times, strict=True):
            begin = time.process_time()
            run()
            if number:  # the first round fills the caches
                own.append(time.process_time() - begin)
    return [min(own) for own in times]


def built(name: str) -> tuple[Mechanism, list[Tensor]]:
    module = build_mechanism(name, num_heads=4, head_dim=64, max_length=TIMED_LENGTH, **MECHANISMS[name]).eval()
    return module, [torch.randn(2, TIMED_LENGTH, 4, 64).transpose(1, 2).requires_grad_() for _ in range(3)]


def once(module: Mechanism, tensors: list[Tensor], **arguments: Any) -> Callable[[], Any]:
    """Forward and backward."""
    grad = torch.randn_like(tensors[0])
    return lambda: torch.autograd.grad(
        attend(*tensors, module, causal=module.name == "linear", **arguments), tensors, grad
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MECHANISMS)
def test_a_padded_batch_costs_what_its_real_tokens_cost(name: str) -> None:
    module, tensors = built(name)
    kept = TIMED_LENGTH * 6 // 10
    places = torch.arange(TIMED_LENGTH).expand(2, -1)
    full, right, left = fastest(
        once(module, tensors),
        once(module, tensors, padding_mask=places < kept),
        once(module, tensors, padding_mask=places >= TIMED_LENGTH - kept),
    )
    assert left <= 1.08 * right, "the tolerance is for the clock"
    assert right <= 0.7 * full
