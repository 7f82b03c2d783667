"""The attention and mask functions known to transformers as `longattn`, and what a mask over pairs hides."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.utils as torch_utils
from torch import Tensor, nn
from transformers import BertModel, DynamicCache, StaticCache
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from hf_longattn import enable_long_attention
from hf_longattn.engines.dense_masks import documents_in_mask, hidden_pairs, only_hides
from hf_longattn.errors import BackendError, InputError, LongAttentionError
from hf_longattn.functional import attend
from hf_longattn.mechanisms.common.registry import build_mechanism
from hf_longattn.modeling.backend import longattn_attention_forward, mechanism_mask
from tests.cases import every_case
from tests.reference.small_models import TEXT_FAMILIES, long_model, padding, plain_model, tokens

QUICK_BASES = ["esm", "deberta-v2", "layoutlm", "roberta", "bart", "t5"]


def module(mechanism: str = "longformer", *, causal: bool = False, **options: Any) -> nn.Module:
    attention = nn.Module()
    attention.is_causal = causal
    attention.long_attention = build_mechanism(mechanism, num_heads=4, head_dim=8, **options)
    return attention


def qkv(queries: int = 40, keys: int = 40, kv_heads: int = 4) -> tuple[torch.Tensor, ...]:
    return torch.randn(2, 4, queries, 8), torch.randn(2, kv_heads, keys, 8), torch.randn(2, kv_heads, keys, 8)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_function_is_attend_with_heads_and_tokens_exchanged(causal: bool, kv_heads: int) -> None:
    q, k, v = qkv(kv_heads=kv_heads)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[1, 30:] = False
    is_global = torch.zeros(2, 40, dtype=torch.long)
    is_global[:, 7] = 1
    out, weights = longattn_attention_forward(
        module(causal=causal, window=8), q, k, v, mask, scaling=0.3, global_attention_mask=is_global
    )
    expected = attend(
        q, k, v, "longformer", window=8, causal=causal, padding_mask=mask, global_mask=is_global, scaling=0.3
    )
    assert torch.equal(out, expected.transpose(1, 2))
    assert weights is None


def test_argument_is_causal_overrides_the_causality_of_the_module() -> None:
    q, k, v = qkv()
    out, _ = longattn_attention_forward(module(causal=True, window=8), q, k, v, None, is_causal=False)
    assert torch.equal(out, attend(q, k, v, "longformer", window=8).transpose(1, 2))


def test_dropout_of_the_attention_function_changes_the_output() -> None:
    q, k, v = qkv()
    kept, dropped = (longattn_attention_forward(module(window=8), q, k, v, None, dropout=p)[0] for p in (0.0, 0.5))
    assert not torch.equal(kept, dropped)


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("length", [40, 600])  # the dense and the blockwise path of the engine
def test_a_four_dimensional_mask_restricts_the_pattern(kind: str, length: int) -> None:
    q, k, v = qkv(length, length)
    chosen = torch.rand(2, 1, length, length) > 0.3
    chosen |= torch.eye(length, dtype=torch.bool)
    given = (
        chosen if kind == "bool" else torch.zeros(chosen.shape).masked_fill(~chosen, torch.finfo(torch.float32).min)
    )
    attention = module("window", window=16)
    out, _ = longattn_attention_forward(attention, q, k, v, given)
    position = torch.arange(length)
    seen = chosen & ((position[:, None] - position).abs() <= 8)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    assert (out.transpose(1, 2) - expected).abs().max() < 1e-5


@every_case("hidden", [torch.finfo(torch.float32).min, float("-inf"), -10_000.0, None])
@every_case("mechanism", ["longformer", "linear", "top_k"])
def test_mask_of_one_row_without_weights_is_padding(mechanism: str, hidden: float | None) -> None:
    q, k, v = qkv()
    real = torch.arange(40)[None] < torch.tensor([[40], [30]])
    row = real if hidden is None else torch.where(real, 0.0, hidden)
    out, _ = longattn_attention_forward(module(mechanism), q, k, v, row[:, None, None])
    expected, _ = longattn_attention_forward(module(mechanism), q, k, v, real)
    assert torch.equal(out[real], expected[real])


def test_mask_of_one_row_with_weights_changes_the_scores() -> None:
    q, k, v = qkv()
    weighing = torch.zeros(2, 1, 1, 40)
    weighing[..., 7] = -2.0
    out, _ = longattn_attention_forward(module("full"), q, k, v, weighing)
    scores = q @ k.mT * 8**-0.5 + weighing
    assert torch.allclose(out.transpose(1, 2), scores.softmax(-1) @ v, atol=1e-5)
    with pytest.raises(
        InputError, match="four-dimensional attention_mask was given, but mechanism 'linear' has no scores"
    ):
        longattn_attention_forward(module("linear"), q, k, v, weighing)


def test_mask_of_one_row_is_read_again_after_a_write() -> None:
    q, k, v = qkv()
    attention, mask = module(window=8), torch.zeros(2, 1, 1, 40)
    everything, _ = longattn_attention_forward(attention, q, k, v, mask)
    mask[..., 30:] = torch.finfo(torch.float32).min
    cut, _ = longattn_attention_forward(attention, q, k, v, mask)
    assert not torch.equal(everything[:, 29], cut[:, 29])


def test_returned_attention_weights_times_values_are_the_output() -> None:
    q, k, v = qkv()
    out, weights = longattn_attention_forward(module(window=8), q, k, v, None, output_attentions=True)
    assert weights is not None
    assert (weights @ v - out.transpose(1, 2)).abs().max() < 1e-5


def test_attention_function_refuses_weights_of_a_long_text() -> None:
    q, k, v = (torch.randn(1, 1, 5000, 2) for _ in range(3))
    attention = nn.Module()
    attention.long_attention = build_mechanism("window", num_heads=1, head_dim=2, window=8)
    with pytest.raises(InputError, match="5000 tokens"):
        longattn_attention_forward(attention, q, k, v, None, output_attentions=True)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"attention_mask": torch.ones(2, 40, 40)}, r"attention_mask has shape \(2, 40, 40\)"),
        ({"attention_mask": torch.ones(2, 1, 30, 40)}, "four-dimensional"),
        ({"attention_mask": torch.ones(2, 1, 40, 40).long()}, r"4 heads, bool \(True = visible\) or floats"),
        ({"attention_mask": torch.zeros(2, 3, 40, 40)}, r"must be \(batch, 1 or heads, queries, keys\) for 2 rows"),
        (
            {"global_attention_mask": torch.ones(2, 39)},
            r"global_attention_mask has shape \(2, 39\), but must be .* \(2, 40\)",
        ),
        ({"global_attention_mask": torch.ones(3, 40)}, r"global_attention_mask has shape \(3, 40\)"),
        ({"global_attention_mask": torch.ones(40)}, r"global_attention_mask has shape \(40,\)"),
    ],
)
def test_attention_function_refuses_masks_of_wrong_shapes(arguments: dict[str, torch.Tensor], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        longattn_attention_forward(module(window=8), *qkv(), **{"attention_mask": None, **arguments})
    assert "\n" not in str(caught.value)


ATTENTION: dict[str, Any] = {
    "stock": None,
    "full": {"mechanism": "full"},
    "window": {"mechanism": "window", "window": 16},
    "linear": {"mechanism": "linear"},
}
"""Mechanisms of a model; ``None`` for a stock model under this backend."""
ANOTHER_LENGTH = "(attention_mask has [0-9]+ columns, but the call has [0-9]+ tokens|but its mask is for)"


def model_of(base: str, attention: str) -> Any:
    if ATTENTION[attention] is not None:
        return long_model(base, None, ATTENTION[attention])
    return enable_long_attention(plain_model(base))


def masks_of_other_lengths(new: int, seen: int) -> Iterator[Tensor]:
    """Masks for two rows of ``seen`` tokens, the last ``new`` of which are new, with some tokens too few or many."""
    for width in (seen - 30, seen - 1, seen + 1, seen + 30):
        yield torch.ones(2, width).long()
        for hidden in (slice(0, 7), slice(-7, None), slice(3, 9, 2)):
            mask = torch.ones(2, width).long()
            mask[1, hidden] = 0
            yield mask
    for rows, columns in ((new - 1, seen), (new + 1, seen), (new, seen - 1), (new, seen + 1), (1, seen - 1)):
        yield torch.ones(2, 1, rows, columns).bool()


@every_case("attention", ATTENTION)
@every_case("base", ["bert", "gpt2", "llama"])
def test_masks_for_another_number_of_tokens_are_refused(base: str, attention: str) -> None:
    model, ids = model_of(base, attention), tokens(2, 100)
    for mask in masks_of_other_lengths(100, 100):
        with pytest.raises(LongAttentionError, match=f"{ANOTHER_LENGTH}|four-dimensional"), torch.no_grad():
            model(ids, attention_mask=mask)
    with pytest.raises(LongAttentionError, match=r"\(2, 100, 100\)|10000 columns"):
        model(ids, attention_mask=torch.ones(2, 100, 100))
    with pytest.raises(
        InputError, match=r"attention_mask has (3 rows for a batch of 2|150 columns)"
    ):  # GPT-2 flattens
        model(ids, attention_mask=torch.ones(3, 100))


@every_case("cache", [DynamicCache, functools.partial(StaticCache, max_cache_len=120)])
@every_case("attention", ATTENTION)
@every_case("base", ["gpt2", "llama"])
def test_masks_for_other_tokens_than_those_in_the_cache_are_refused(base: str, attention: str, cache: Any) -> None:
    model, ids = model_of(base, attention), tokens(2, 100)
    for mask in [*masks_of_other_lengths(40, 100)][::3]:
        filled = cache(config=model.config)
        with torch.no_grad():
            model(ids[:, :60], past_key_values=filled)
            with pytest.raises(LongAttentionError, match=f"{ANOTHER_LENGTH}|four-dimensional"):
                model(ids[:, 60:], attention_mask=mask, past_key_values=filled)


@every_case("attention", ATTENTION)
@every_case("base", ["gpt2", "llama"])
def test_masks_as_wide_as_a_static_cache_are_those_of_the_tokens(base: str, attention: str) -> None:
    model, ids = model_of(base, attention), tokens(2, 100)
    mask = torch.ones(2, 100).long()
    mask[1, :9] = 0
    wide, outputs = nn.functional.pad(mask, (0, 20)), []
    for masks in ((mask[:, :60], mask), (wide.clone().index_fill_(1, torch.arange(60, 100), 0), wide)):
        cache, states = StaticCache(config=model.config, max_cache_len=120), []
        for part, part_mask in zip(ids.split([60, 40], 1), masks, strict=True):
            with torch.no_grad():
                states.append(model(part, attention_mask=part_mask, past_key_values=cache).last_hidden_state)
        outputs.append(torch.cat(states, 1)[mask.bool()])
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("bases", [QUICK_BASES, pytest.param([*TEXT_FAMILIES], marks=pytest.mark.thorough)])
def test_no_long_family_takes_a_mask_of_another_length(bases: list[str]) -> None:
    """The masks of both stacks, also if the base uses a mask before its attention, or drops one of ones."""
    for base in bases:
        family, model = TEXT_FAMILIES[base], long_model(base, None, ATTENTION["window"])
        inputs = {"input_ids": tokens(2, 100), **family.spec.further_inputs(model.config, 2, 100)}
        if family.two_stacks:
            inputs["decoder_input_ids"] = tokens(2, 60)
        for stack in ("", "decoder_") if family.two_stacks else ("",):
            length = inputs[f"{stack}input_ids"].shape[1]
            for mask in masks_of_other_lengths(length, length):
                if mask.dim() == 2:
                    with pytest.raises(InputError, match=ANOTHER_LENGTH), torch.no_grad():
                        model(**inputs, **{f"{stack}attention_mask": mask})


def test_a_mask_for_another_encoder_is_refused_by_the_cross_attention() -> None:
    model = long_model("bart", None, ATTENTION["window"])
    encoded = model.encoder(tokens(2, 100))
    for width in (70, 99, 101, 130):
        with pytest.raises(InputError, match=ANOTHER_LENGTH):
            model(attention_mask=torch.ones(2, width), encoder_outputs=encoded, decoder_input_ids=tokens(2, 60))


def test_a_model_with_mechanisms_names_the_module_that_lacks_one() -> None:
    model: BertModel = plain_model("bert")
    enable_long_attention(model, {"mechanism": "window", "window": 8})
    del model.encoder.layer[1].attention.self.long_attention
    with pytest.raises(
        BackendError, match=r"BertSelfAttention of a model with mechanisms carries no mechanism; call .*enable_long"
    ):
        model(tokens())


def test_sinks_of_gpt_oss_are_a_column_of_the_softmax() -> None:
    q, k, v = qkv()
    sinks = torch.linspace(-1, 2, q.shape[1])
    found, weights = longattn_attention_forward(
        module(window=4096), q, k, v, None, s_aux=sinks, output_attentions=True
    )
    scores = torch.cat([q @ k.mT * q.shape[-1] ** -0.5, sinks.view(1, -1, 1, 1).expand(*q.shape[:3], 1)], -1)
    expected = scores.softmax(-1)[..., :-1]
    assert weights is not None
    assert (weights - expected).abs().max() < 1e-6
    assert (found.transpose(1, 2) - expected @ v).abs().max() < 1e-5


def test_a_mechanism_that_is_no_softmax_refuses_sinks() -> None:
    with pytest.raises(BackendError, match=r"s_aux.*'linear'"):
        longattn_attention_forward(module("linear"), *qkv(), None, s_aux=torch.zeros(4))


def test_softcap_of_scores_comes_before_masks() -> None:
    q, k, v = qkv()
    visible = torch.rand(2, 1, q.shape[2], k.shape[2], generator=torch.Generator().manual_seed(0)) < 0.7
    visible |= torch.eye(q.shape[2], dtype=torch.bool)
    found, _ = longattn_attention_forward(module(window=4096), q, k, v, visible, scaling=0.3, softcap=1.5)
    scores = 1.5 * torch.tanh(0.3 * q @ k.transpose(2, 3) / 1.5)
    expected = scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v
    assert (found.transpose(1, 2) - expected).abs().max() < 1e-5


class TestMaskFunction:
    def mask(self, **arguments: Any) -> torch.Tensor | None:
        defaults = {
            "batch_size": 2,
            "q_length": 10,
            "kv_length": 10,
            "mask_function": bidirectional_mask_function,
            "device": "cpu",
        }
        return mechanism_mask(**{**defaults, **arguments})

    def test_keeps_a_padding_mask_two_dimensional(self) -> None:
        given = torch.ones(2, 10, dtype=torch.bool)
        given[0, 8:] = False
        made = self.mask(attention_mask=given)
        assert made is not None
        assert torch.equal(made, given)
        # on which the layers would keep what they derive of it, while its owner writes another mask into it
        assert made is not given

    def test_makes_no_mask_without_padding(self) -> None:
        assert self.mask(attention_mask=torch.ones(2, 10, dtype=torch.bool)) is None
        assert self.mask() is None

    def test_hides_the_empty_part_of_a_static_cache(self) -> None:
        """Before the first token by the width of the mask; later in a mask that is as wide at every step."""
        first = self.mask(kv_length=64, q_offset=0, q_length=8, mask_function=causal_mask_function)
        assert first is not None
        assert first.shape == (2, 8)
        later = self.mask(kv_length=64, q_offset=torch.tensor(7), q_length=1, mask_function=causal_mask_function)
        assert later is not None
        assert torch.equal(later, (torch.arange(64) < 8).expand(2, -1))


def test_attention_function_works_without_the_private_collector_of_transformers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its private names are looked up where they are needed, and only what they are for is lost without them."""
    monkeypatch.delattr("transformers.utils.output_capturing._active_collector")
    out, weights = longattn_attention_forward(module(window=8), *qkv(), None)
    assert out.isfinite().all()
    assert weights is None
    assert longattn_attention_forward(module(window=8), *qkv(), None, output_attentions=True)[1] is not None


LENGTH = 40
FILLS = (float("-inf"), -3.4e38, -1e30, -1e9, -65504.0, -1e4, -2e3)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MECHANISMS: dict[str, dict[str, Any]] = {
    "window": {"window": 8},
    "sinks": {"mechanism": "window", "window": 8, "num_sinks": 2},
    "longformer": {"window": 8},
    "bigbird": {"block_size": 4},
    "fixed": {"block_size": 8, "num_summary": 2},
    "strided": {"window": 8, "stride": 8},
    "block_top_k": {"block_size": 4, "num_blocks": 3},
    "top_k": {"num_keys": 8},
    "linear": {},
}


def drawn() -> Tensor:
    """The same q, k and v at every call."""
    return torch.randn(3, 2, 4, LENGTH, 8, generator=torch.Generator().manual_seed(0)) * 2


def attended(mechanism: str, mask: Tensor | None, causal: bool) -> Tensor:
    module, options = nn.Module(), {"mechanism": mechanism, **MECHANISMS[mechanism]}
    module.long_attention = build_mechanism(
        options.pop("mechanism"), num_heads=4, head_dim=8, max_length=LENGTH, **options
    ).eval()
    q, k, v = drawn()
    return longattn_attention_forward(module, q, k, v, mask, is_causal=causal)[0]


def pairs(first: int, second: int, last: int, causal: bool) -> tuple[Tensor, Tensor]:
    """Visible pairs ``(N, N)`` of two documents that start at ``first`` and ``second`` and end before ``last``; and
    the real tokens."""
    places = torch.arange(LENGTH)
    real, document = (places >= first) & (places < last), places >= second
    seen = (document[:, None] == document) & real
    return (seen.tril() if causal else seen), real


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hidden_pairs_are_those_without_weight_in_any_softmax(dtype: torch.dtype) -> None:
    """Also beside a score that is lower by 200. In fp64, because other dtypes give even fewer pairs a weight."""
    for fill in FILLS:
        row = torch.tensor([0.0, max(fill, torch.finfo(dtype).min)], dtype=dtype)
        assert hidden_pairs(row).tolist() == [False, True]
        assert only_hides(row)
        assert (row.double() + torch.tensor([-200.0, 0.0])).softmax(0)[1] == 0
    for visible in (-500.0, -100.0, -5.0, -0.25, 0.0, 3.0, 2000.0):
        row = torch.tensor([0.0, visible], dtype=dtype)
        assert not hidden_pairs(row)[1]
        assert only_hides(row) is (visible == 0)
    assert hidden_pairs(torch.tensor([[0.0, 2000.0]], dtype=dtype)).tolist() == [[True, False]]


def test_hidden_pairs_are_whole_empty_rows_but_not_rows_that_are_low_everywhere() -> None:
    empty = torch.tensor(
        [[-1e4, -1e4, -1e4], [-1e9, -2e9, -1e9], [float("-inf")] * 3, [torch.finfo(torch.float32).min] * 3]
    )
    assert hidden_pairs(empty).all()
    assert hidden_pairs(torch.tensor([[-1500.0, -1501.0, -1e9]])).tolist() == [[False, False, True]]


def test_biases_of_scores_are_not_read_as_documents() -> None:
    """ALiBi far beyond the length at which it hides a pair, T5-like terms, and a bias that is low everywhere."""
    places = torch.arange(1200)
    alibi = -0.95 * (places[:, None] - places).abs().float()
    noise = torch.randn(1200, 1200, generator=torch.Generator().manual_seed(0)) * 3
    for bias in (alibi, noise, alibi - 5000, 2000 + alibi):
        assert documents_in_mask(bias[None, None]) is None
        assert not only_hides(bias)
    zero = torch.zeros(3, 3, requires_grad=True)
    assert not only_hides(zero)  # a parameter, which training changes


@every_case(("mechanism", "causal"), list(itertools.product(MECHANISMS, (False, True))), ids=str)
def test_every_fill_of_a_mask_keeps_documents_and_padding_apart(mechanism: str, causal: bool) -> None:
    """What the documents' own rows give, with padding before and behind them. One mask serves both rows of the batch.

    Every fill and dtype is tried with one mechanism: what a mask hides is decided before a mechanism runs.
    """
    for first, second, last in ((6, 20, 35), (7, 0, LENGTH), (0, 0, 31)):
        seen, real = pairs(first, second, last, causal)
        expected = attended(mechanism, seen[None, None], causal)
        for begin, end in ((first, second), (max(first, second), last)):
            if begin < end:
                alone = attended(
                    mechanism, ((torch.arange(LENGTH) >= begin) & (torch.arange(LENGTH) < end)).expand(2, -1), causal
                )
                assert (expected - alone)[:, begin:end].abs().max() < 1e-5
        filled = [*((torch.float32, fill) for fill in FILLS), *((dtype, -1e4) for dtype in DTYPES)]
        for dtype, fill in filled if mechanism == "window" else filled[:1]:
            additive = torch.zeros(1, 1, LENGTH, LENGTH, dtype=dtype).masked_fill(
                ~seen, max(fill, torch.finfo(dtype).min)
            )
            assert torch.equal(attended(mechanism, additive, causal)[:, real], expected[:, real])


@every_case("mechanism", MECHANISMS)
@every_case("fill", [-5.0, -20.0, -100.0, -500.0])
def test_masks_that_hide_documents_too_little_are_exact_or_refused(mechanism: str, fill: float) -> None:
    seen, _ = pairs(0, 15, LENGTH, True)
    additive = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~seen, fill)
    if mechanism in ("window", "top_k"):  # patterns of distances and contents
        assert attended(mechanism, additive, True).isfinite().all()
    else:
        with pytest.raises(InputError, match="too little to hide them"):
            attended(mechanism, additive, True)
    if mechanism == "window":
        q, k, v = drawn()
        places = torch.arange(LENGTH)
        far = (places[:, None] - places >= 8) | (places[:, None] < places)
        expected = nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=additive.masked_fill(far, float("-inf"))
        )
        assert (attended(mechanism, additive, True).transpose(1, 2) - expected).abs().max() < 1e-5


def test_query_whose_own_key_is_hidden_keeps_its_output() -> None:
    q, k, v = drawn()
    seen = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    seen[..., 5] = False
    places = torch.arange(LENGTH)
    expected = nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=seen & ((places[:, None] - places).abs() <= 4)
    )
    for mask in (seen, torch.zeros(seen.shape).masked_fill(~seen, -1e4)):
        assert (attended("window", mask, False).transpose(1, 2) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("fill", [None, -1e4, float("-inf")])
@pytest.mark.parametrize("mechanism", ["window", "longformer", "linear"])
def test_a_mask_that_shows_later_keys_is_refused_in_a_causal_layer(mechanism: str, fill: float | None) -> None:
    """Of a prefix that sees itself, and of an encoder. A layer that is not causal takes both."""
    prefix = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    prefix[:, :10] = True
    for seen in (prefix, torch.ones(LENGTH, LENGTH, dtype=torch.bool)):
        mask = (seen if fill is None else torch.zeros(LENGTH, LENGTH).masked_fill(~seen, fill))[None, None]
        with pytest.raises(InputError, match="shows later keys to earlier queries, but this layer is causal"):
            attended(mechanism, mask, True)
    assert attended("window", mask, False).isfinite().all()


WINDOW = {"mechanism": "window", "window": 16}
TRACED = [
    ("bert", None, True),
    ("llama", None, True),
    ("bert", {"mechanism": "full"}, True),
    ("llama", {"mechanism": "full"}, True),
    ("bert", WINDOW, False),
    ("llama", WINDOW, False),
    ("bert", {"mechanism": "linear"}, False),
    ("bert", {"mechanism": "bigbird"}, False),
    ("bert", {"mechanism": "full", "exact_length": 40}, False),
    ("bert", {"mechanism": "full", "relative": "alibi"}, False),
    ("modernbert", None, False),
    ("t5", None, False),
]


class States(nn.Module):
    """The last hidden states of a model, as a function of two tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = self.model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        return states


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace:DeprecationWarning")
@every_case(("base", "attention", "fits_all_lengths"), TRACED)
def test_a_trace_equals_the_model_at_every_length_or_is_refused(
    base: str, attention: Any, fits_all_lengths: bool
) -> None:
    model = plain_model(base)
    model = model.get_encoder() if base == "t5" else model
    model.config.use_cache = False
    enable_long_attention(model, attention)
    states = States(model.eval())
    with torch.no_grad():
        if not fits_all_lengths:
            with pytest.raises(BackendError, match=r"torch.jit.trace, which .*; type longattn export MODEL"):
                torch.jit.trace(states, (tokens(2, 9), padding(2, 9)))
            return
        traced = torch.jit.trace(states, (tokens(2, 9), padding(2, 9)), check_trace=False)
        for length in (5, 60):
            ids, mask = tokens(2, length), padding(2, length)
            difference = (traced(ids, mask) - states(ids, mask))[mask.bool()]
            assert difference.abs().max() < 1e-5, length


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace:DeprecationWarning")
@every_case("causal", [False, True])
@every_case(("mechanism", "refused"), [("full", False), ("window", True)])
def test_attend_is_traced_if_it_is_one_operation_for_all_lengths(mechanism: str, refused: bool, causal: bool) -> None:
    built = build_mechanism(mechanism, num_heads=4, head_dim=8).eval()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, built, causal=causal)

    with pytest.raises(BackendError, match="longattn export"):
        torch.jit.trace(lambda q, k, v: attend(q, k, v, mechanism), qkv(9, 9))  # is built for these sizes
    if refused:
        with pytest.raises(BackendError, match="longattn export"):
            torch.jit.trace(run, qkv(9, 9))
        return
    traced, longer = torch.jit.trace(run, qkv(9, 9), check_trace=False), qkv(70, 70)
    torch.testing.assert_close(traced(*longer), run(*longer))


COMPILED = [("bert", None), ("bert", {"mechanism": "window", "window": 8}), ("llama", None)]


@every_case(("base", "attention"), COMPILED)
def test_compiled_models_have_no_cached_function_in_their_graph(base: str, attention: Any) -> None:
    """Dynamo traces through functools.cache, and warns of it once for each message."""
    model, ids = plain_model(base), tokens(2, 24)
    enable_long_attention(model, attention)
    torch.compiler.reset()
    torch_utils.warn_once_cache.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*functools")
        torch.compile(model, backend="eager")(ids, attention_mask=torch.ones_like(ids))
