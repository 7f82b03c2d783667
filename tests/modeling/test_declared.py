"""What a stock model's mask declares, compared with the mask that transformers makes for sdpa attention."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import transformers.masking_utils as masking
from transformers import (
    DeepseekV4Config,
    DynamicCache,
    GPT2Config,
    GPT2Model,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    StaticCache,
)
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Model
from transformers.models.llama4.modeling_llama4 import Llama4TextModel
from transformers.models.modernbert.modeling_modernbert import ModernBertModel

from hf_longattn import enable_long_attention
from hf_longattn.errors import BackendError, InputError
from hf_longattn.memory.decode_cache import CACHE
from hf_longattn.modeling import declared, stock_attention
from hf_longattn.modeling.backend import BACKEND, longattn_attention_forward, longattn_mask
from hf_longattn.modeling.declared import DeclaredMask
from tests.cases import every_case
from tests.largest_tensor import LargestTensor

LENGTH = 24
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
}
MASKS: dict[str, tuple[Callable[..., Any], Any]] = {
    "causal": (masking.create_causal_mask, LlamaConfig(**SMALL)),
    "window": (masking.create_sliding_window_causal_mask, MistralConfig(**SMALL, sliding_window=5)),
    "chunks": (masking.create_chunked_causal_mask, Llama4TextConfig(**SMALL, attention_chunk_size=7)),
    "around": (masking.create_bidirectional_sliding_window_mask, MistralConfig(**SMALL, sliding_window=5)),
    "both": (masking.create_bidirectional_mask, LlamaConfig(**SMALL)),
}


def declare(kind: str, queries: int = LENGTH, real: torch.Tensor | None = None, **arguments: Any) -> Any:
    """What ``longattn`` gets from transformers' mask function of this kind, for two rows."""
    make, config = MASKS[kind]
    config._attn_implementation = BACKEND
    arguments = {CACHE: arguments.pop("cache", None), **arguments}
    return make(config=config, inputs_embeds=torch.zeros(2, queries, 32), attention_mask=real, **arguments)


def described(mask: DeclaredMask) -> torch.Tensor:
    """The pairs that the band, padding and documents of a mask show, of the real keys in use."""
    region = mask.region()
    assert region is not None
    pattern, in_use, batch, _ = region
    keys = torch.arange(in_use)
    queries = keys[in_use - mask.queries :]
    seen = pattern.band_mod(0, 0, queries[:, None], keys[None]).expand(2, -1, -1)
    if batch is not None and batch.mask is not None:
        seen = seen & batch.mask[:, None]
    if batch is not None and batch.documents is not None:
        seen = seen & (batch.documents[:, in_use - mask.queries :, None] == batch.documents[:, None])
    return torch.nn.functional.pad(seen, (0, mask.keys - in_use))


def padded() -> Iterator[tuple[str, torch.Tensor | None]]:
    real = torch.ones(2, LENGTH, dtype=torch.long)
    yield "none", None
    yield "ones", real
    for side, hidden in (("left", slice(0, 9)), ("right", slice(15, None)), ("holes", slice(3, 12, 2))):
        row = real.clone()
        row[1, hidden] = 0
        yield side, row


@every_case(("padding", "real"), padded(), ids=str)
@every_case("kind", MASKS)
def test_band_padding_and_chunks_are_the_mask_of_transformers(
    kind: str, padding: str, real: torch.Tensor | None
) -> None:
    mask = declare(kind, real=real)
    assert isinstance(mask, DeclaredMask)
    assert mask.exact
    assert torch.equal(described(mask), mask.dense()[:, 0])
    assert (mask.padding is None) == (padding in ("none", "ones"))


@pytest.mark.parametrize("kind", ["causal", "window", "chunks"])
def test_documents_that_restart_in_positions_are_the_mask_of_transformers(kind: str) -> None:
    positions = torch.stack([torch.cat([torch.arange(10), torch.arange(14)]), torch.arange(LENGTH)])
    mask = declare(kind, position_ids=positions)
    assert mask.exact
    assert torch.equal(described(mask), mask.dense()[:, 0])


@pytest.mark.parametrize("kind", ["causal", "window", "chunks"])
def test_blocks_that_see_each_other_stay_within_the_band(kind: str) -> None:
    blocks = torch.full((2, LENGTH), -1)
    blocks[0, 4:12], blocks[1, 2:5] = 0, 1
    mask = declare(kind, block_sequence_ids=blocks)
    seen, (rows, keys) = mask.dense()[:, 0], torch.meshgrid(torch.arange(LENGTH), torch.arange(LENGTH), indexing="ij")
    assert not mask.exact
    assert mask.right == 7
    assert not (seen & ((rows - keys > mask.left) | (keys - rows > mask.right))).any()
    alone = declare(kind, block_sequence_ids=torch.full((2, LENGTH), -1))
    assert torch.equal(described(alone), alone.dense()[:, 0])


class Prefix:
    """A mask function of a model: the first tokens see each other."""

    def __call__(self, b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q < 9) & (k < 9)

    def method(self, b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return self(b, h, q, k)


def prefix_of(tokens: int, b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (q < tokens) & (k < tokens)


FUNCTIONS: dict[str, Any] = {
    "function": lambda b, h, q, k: (q < 9) & (k < 9),
    "object": Prefix(),
    "method": Prefix().method,
    "partial": functools.partial(prefix_of, 9),
    "compiled": torch.compile(functools.partial(prefix_of, 9), backend="eager"),
    "union of one": masking.or_masks(Prefix()),
}


@pytest.mark.parametrize("missing", [False, True])
@every_case("name", FUNCTIONS)
def test_functions_of_a_model_are_evaluated_by_transformers(
    name: str, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in versions of transformers that lack one of the functions that are read."""
    if missing:
        monkeypatch.setattr(declared, "MOVED", declared._code("in_no_version"))
    padding = torch.ones(2, LENGTH, dtype=torch.long)
    padding[1, :4] = 0
    packed = torch.cat([torch.arange(10), torch.arange(14)]).expand(2, -1)
    for kind in ("causal", "window"):
        for keyword in ("or_mask_function", "and_mask_function"):
            for arguments in ({}, {"real": padding}, {"position_ids": packed}):
                mask = declare(kind, **{keyword: FUNCTIONS[name]}, **arguments)
                assert not mask.exact
                if not arguments:
                    assert bool(mask.dense()[0, 0, 0, 8]) == (keyword == "or_mask_function")
                with monkeypatch.context() as under:
                    under.setattr(f"{__name__}.BACKEND", "sdpa")
                    expected = declare(kind, **{keyword: FUNCTIONS[name]}, **arguments)
                assert torch.equal(mask.dense(), expected.expand(mask.shape))
                torch.testing.assert_close(attend(mask), attend(expected), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["causal", "window"])
@pytest.mark.parametrize("static", [False, True])
def test_queries_after_a_cache_are_the_last_keys_in_use(kind: str, static: bool) -> None:
    config = MASKS[kind][1]
    cache = StaticCache(config=config, max_cache_len=40) if static else DynamicCache(config=config)
    for layer in range(2):
        cache.update(torch.zeros(2, 2, 10, 8), torch.zeros(2, 2, 10, 8), layer)
    mask = declare(kind, 6, cache=cache)
    expected = mask.dense()[:, 0]
    for layer in range(2):  # as a layer does before it attends: a static cache counts in place
        cache.update(torch.zeros(2, 2, 6, 8), torch.zeros(2, 2, 6, 8), layer)
    later = declare(kind, 6, cache=cache)
    assert torch.equal(described(mask), expected)
    assert not torch.equal(described(later), expected) or later.first_key > mask.first_key


def test_a_mask_is_evaluated_where_the_cache_was_when_it_was_declared() -> None:
    cache = StaticCache(config=MASKS["causal"][1], max_cache_len=40)
    cache.update(torch.zeros(2, 2, 10, 8), torch.zeros(2, 2, 10, 8), 0)
    masks = [declare("causal", 6, cache=cache) for _ in range(2)]
    before = masks[0].dense()
    cache.update(torch.zeros(2, 2, 6, 8), torch.zeros(2, 2, 6, 8), 0)
    assert torch.equal(masks[1].dense(), before)


def test_a_step_with_a_static_cache_is_a_tensor_for_the_compiled_graph() -> None:
    cache = StaticCache(config=MASKS["causal"][1], max_cache_len=40)
    cache.update(torch.zeros(2, 2, 10, 8), torch.zeros(2, 2, 10, 8), 0)
    step = declare("causal", 1, cache=cache)
    assert torch.equal(step, (torch.arange(40) <= 10).expand(2, 1, 1, 40))


def qkv() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, heads, LENGTH, 8).double() for heads in (4, 2, 2)]


def attend(mask: Any, causal: bool = False, **keywords: Any) -> torch.Tensor:
    module = torch.nn.Module()
    module.is_causal = causal
    return longattn_attention_forward(module, *qkv(), mask, scaling=0.3, **keywords)[0]


@every_case("few", [0, 100])  # in an engine, and by the mask
@every_case("kind", MASKS)
def test_a_module_attends_to_what_its_mask_shows_whatever_it_says_itself(
    kind: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock_attention, "FEW_QUERIES", few)
    real = torch.ones(2, LENGTH, dtype=torch.long)
    real[1, 15:] = 0
    mask = declare(kind, real=real)
    for causal in (False, True):
        out = attend(mask, causal, sliding_window=3)  # which only FlashAttention reads
        torch.testing.assert_close(out[real.bool()], attend(mask.dense(), causal)[real.bool()], atol=1e-12, rtol=0)


@every_case("few", [0, 100])
@every_case("kind", MASKS)
def test_documents_of_the_call_divide_what_a_mask_shows(kind: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock_attention, "FEW_QUERIES", few)
    documents = torch.stack([torch.arange(LENGTH) // 5, torch.zeros(LENGTH, dtype=torch.long)])
    mask, together = declare(kind), (documents[:, :, None] == documents[:, None])[:, None]
    bias = torch.randn(1, 4, LENGTH, LENGTH).double()
    seen = mask.dense() & together
    if kind == "chunks":  # which begin anew in each document, and documents of 5 tokens are within one
        seen = torch.stack([together[0] & torch.ones(LENGTH, LENGTH).tril().bool(), seen[1]])
    for keywords in ({}, {"position_bias": bias}, {"softcap": 2.0}):
        expected = attend(seen, **keywords)
        for shown in (mask, *([None] if kind == "both" else [])):
            torch.testing.assert_close(attend(shown, documents=documents, **keywords), expected, atol=1e-6, rtol=0)
        expected = attend(mask.dense() & together, **keywords)
        for shown in (mask.dense(), mask.added(torch.float64)):
            torch.testing.assert_close(attend(shown, documents=documents, **keywords), expected, atol=1e-6, rtol=0)


PACKED: list[list[list[tuple[int, int]]]] = [
    [[(0, 9), (0, 1), (0, 9), (0, 5)], [(0, 4), (0, 20)]],
    [[(5, 8), (0, 11)], [(0, 24)]],
    [[(2, 1), (3, 10), (0, 8)], [(9, 2), (0, 13)]],
]
"""For each of two rows, the documents as numbers of padding and of real tokens after it."""


@every_case("few", [0, 100])
@every_case("block", [0, 4])
@every_case("rows", PACKED)
def test_chunks_begin_with_the_first_real_token_of_each_document(
    rows: list[list[tuple[int, int]]], block: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside a block of tokens at the start that see each other."""
    monkeypatch.setattr(stock_attention, "FEW_QUERIES", few)
    real = torch.zeros(2, LENGTH, dtype=torch.bool)
    documents = torch.zeros(2, LENGTH, dtype=torch.long)
    chunks = torch.full((2, LENGTH), -1)
    for row, row_documents in enumerate(rows):
        stop = 0
        for number, (padding, tokens) in enumerate(row_documents):
            start, stop = stop, stop + padding + tokens
            documents[row, start:stop] = number
            real[row, start + padding : stop] = True
            chunks[row, start + padding : stop] = torch.arange(tokens) // 7
    blocks = torch.full((2, LENGTH), -1)
    blocks[:, :block] = 0
    seen = (chunks[:, :, None] == chunks[:, None]) & torch.ones(LENGTH, LENGTH).tril().bool()
    seen |= (blocks[:, :, None] == blocks[:, None]) & (blocks[:, None] >= 0)
    seen &= (documents[:, :, None] == documents[:, None]) & real[:, None]
    mask = declare("chunks", real=real.long(), block_sequence_ids=blocks if block else None)
    out = attend(mask, documents=documents)
    torch.testing.assert_close(out[real], attend(seen[:, None])[real], atol=1e-12, rtol=0)


DOCUMENT_LENGTHS = (10, 14, 1, 25)
NUMBERS = torch.repeat_interleave(torch.arange(4), torch.tensor(DOCUMENT_LENGTHS))[None]
OFFSETS = torch.tensor([0, 10, 24, 25, 50], dtype=torch.int32)
KEYWORDS: dict[str, dict[str, torch.Tensor]] = {
    "documents": {"documents": NUMBERS},
    "seq_idx": {"seq_idx": NUMBERS.int()},
    "offsets": {"cu_seq_lens_q": OFFSETS, "cu_seq_lens_k": OFFSETS},
}


@pytest.fixture(scope="module")
def llama4() -> Llama4TextModel:
    torch.manual_seed(0)
    config = Llama4TextConfig(
        **{**SMALL, "num_hidden_layers": 4},
        head_dim=8,
        intermediate_size=32,
        intermediate_size_mlp=32,
        attention_chunk_size=7,
        num_local_experts=2,
        pad_token_id=0,
        attn_implementation=BACKEND,
    )
    model = Llama4TextModel(config).eval()
    model.set_experts_implementation("eager")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double()


@every_case("keyword", KEYWORDS)
def test_documents_of_llama4_are_those_alone_whatever_comes_with_them(keyword: str, llama4: Llama4TextModel) -> None:
    ids = torch.randint(1, 99, (1, 50), generator=torch.Generator().manual_seed(0))
    restarting = torch.cat([torch.arange(length) for length in DOCUMENT_LENGTHS])[None]
    with torch.no_grad():
        alone = torch.cat([llama4(part).last_hidden_state for part in ids.split(DOCUMENT_LENGTHS, 1)], 1)
        for mask in (None, torch.ones(1, 50)):
            for positions in (None, restarting):
                for use_cache in (False, True):
                    arguments = {"attention_mask": mask, "position_ids": positions, "use_cache": use_cache}
                    out = llama4(ids, **KEYWORDS[keyword], **arguments).last_hidden_state
                    torch.testing.assert_close(out, alone, atol=1e-5, rtol=0)  # rotary positions are in fp32


@pytest.mark.thorough
def test_chunks_of_documents_in_a_compiled_graph_are_those_of_a_call(llama4: Llama4TextModel) -> None:
    ids = torch.randint(1, 99, (1, 50), generator=torch.Generator().manual_seed(0))
    arguments = {"attention_mask": torch.ones(1, 50), "use_cache": False, "documents": NUMBERS}
    with torch.no_grad():
        expected = llama4(ids, **arguments).last_hidden_state
        compiled = torch.compile(llama4, backend="eager", fullgraph=True)(ids, **arguments).last_hidden_state
    torch.testing.assert_close(compiled, expected, atol=1e-6, rtol=0)


@every_case("size", [1 << 26, 300])
def test_masks_in_blocks_of_queries_equal_whole_masks(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (declared, stock_attention):
        monkeypatch.setattr(module, "BLOCK_PAIRS", size)
    monkeypatch.setattr(declared, "FEWEST_ROWS", 5)
    blocks = torch.full((2, LENGTH), -1)
    blocks[0, 4:12], blocks[1, 2:5] = 0, 1
    for kind in ("causal", "window"):
        mask = declare(kind, block_sequence_ids=blocks)
        assert size > 300 or len(mask.blocks(2)) > 1
        bias = torch.randn(1, 4, LENGTH, LENGTH).double().requires_grad_()
        for keywords in ({}, {"position_bias": bias}, {"softcap": 2.0, "position_bias": bias}):
            out, expected = attend(mask, **keywords), attend(mask.dense(), **keywords)
            torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
            if keywords:
                upstream = torch.randn_like(out)
                gradients = (torch.autograd.grad(x, bias, upstream)[0] for x in (out, expected))
                torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["window", "chunks", "around"])
def test_windows_make_no_tensor_of_all_pairs(kind: str) -> None:
    length = 1024
    real = torch.ones(2, length, dtype=torch.long)
    real[1, :100] = 0
    q, k, v = (torch.randn(2, heads, length, 8, requires_grad=True) for heads in (4, 2, 2))
    with LargestTensor() as largest:
        longattn_attention_forward(torch.nn.Module(), q, k, v, declare(kind, length, real))[0].sum().backward()
    assert largest.elements < length**2 / 4


def test_sinks_caps_and_weights_of_a_stock_module_equal_their_formula() -> None:
    mask, sinks, (q, k, v) = declare("window"), torch.randn(4).double(), qkv()
    scores = 2.0 * torch.tanh(0.3 * q @ k.repeat_interleave(2, 1).mT / 2.0)
    scores = torch.cat(
        [scores.masked_fill(~mask.dense(), float("-inf")), sinks.view(1, 4, 1, 1).expand(2, -1, LENGTH, 1)], -1
    )
    weights = scores.softmax(-1)[..., :-1]
    expected = (weights @ v.repeat_interleave(2, 1)).transpose(1, 2)
    for shown in (mask, mask.dense()):
        out, found = longattn_attention_forward(
            torch.nn.Module(), q, k, v, shown, scaling=0.3, s_aux=sinks, softcap=2.0, output_attentions=True
        )
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(found, weights, atol=1e-6, rtol=0)


def test_operations_of_models_on_a_declared_mask_are_those_of_the_tensor() -> None:
    mask = declare("window")
    dense, scores = mask.dense(), torch.randn(2, 4, LENGTH, LENGTH)
    assert torch.equal(mask[:, :, -3:, :], dense[:, :, -3:, :])
    assert torch.equal(~mask, ~dense)
    assert torch.equal(mask.logical_not(), ~dense)
    assert torch.equal(mask == 0, dense == 0)
    assert torch.equal(torch.cat([mask, dense], -1), torch.cat([dense, dense], -1))
    assert torch.equal(scores.masked_fill(mask, 0), scores.masked_fill(dense, 0))
    assert (mask.shape, mask.dtype, mask.ndim, mask.dim()) == (dense.shape, torch.bool, 4, 4)
    for total in (scores + mask, mask + scores, torch.add(scores, mask)):
        assert torch.equal(total.softmax(-1) > 0, dense.expand(2, 4, -1, -1))
    assert mask.to("cpu").exact
    assert torch.equal(mask.to(torch.float32), dense.float())


def test_a_mask_for_other_queries_and_keys_is_refused_with_the_module() -> None:
    with pytest.raises(
        BackendError,
        match="Module attends from 24 queries to 24 keys, but its mask is for 10 queries and 10 keys; pass",
    ):
        attend(declare("window", 10))


def test_masks_that_may_mean_either_kind_are_refused() -> None:
    with pytest.raises(InputError, match=r"dtype torch\.int64, but must be"):
        attend(torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.long))
    with pytest.raises(InputError, match=r"attention_mask has shape \(2, 24, 24\), but must be \(batch, tokens\)"):
        declare("causal", real=torch.ones(2, LENGTH, LENGTH))


def test_a_causal_module_without_a_mask_is_refused_since_transformers_reads_it_in_two_ways() -> None:
    with pytest.raises(BackendError, match="Module is causal and got no mask, without which transformers' sdpa"):
        attend(None, True)
    shown = declare("both", real=torch.ones(2, LENGTH))
    torch.testing.assert_close(attend(None), attend(shown), atol=1e-12, rtol=0)
    torch.testing.assert_close(attend(None, True, is_causal=False), attend(shown), atol=1e-12, rtol=0)


def test_an_exported_encoder_with_windows_takes_any_length() -> None:
    config = ModernBertConfig(
        **SMALL, intermediate_size=8, local_attention=8, pad_token_id=0, attn_implementation=BACKEND
    )
    model = ModernBertModel(config).eval()
    dimensions = {"input_ids": {1: torch.export.Dim("tokens", min=2, max=99)}}
    exported = torch.export.export(
        model, (), {"input_ids": torch.ones(2, 40).long()}, dynamic_shapes=dimensions, strict=False
    )
    ids = torch.arange(9)[None].expand(2, -1)
    torch.testing.assert_close(exported.module()(input_ids=ids).last_hidden_state, model(ids).last_hidden_state)


def test_a_plan_is_not_dropped_in_silence() -> None:
    model = enable_long_attention(
        GPT2Model(GPT2Config(n_embd=8, n_layer=1, n_head=2)), {"mechanism": "window", "window": 4}
    )
    with pytest.raises(BackendError, match="GPT2Model has mechanisms already"):
        enable_long_attention(model)


def test_a_padding_mask_of_one_row_applies_to_every_row_of_the_batch() -> None:
    torch.testing.assert_close(attend(declare("both", real=torch.ones(1, LENGTH))), attend(None))


@pytest.mark.parametrize("keyword", ["indices", "block_indices", "sinks"])
def test_attention_by_an_indexer_is_refused_before_the_first_layer(keyword: str) -> None:
    with pytest.raises(BackendError, match=f"{keyword}.*attn_implementation='eager'"):
        attend(None, **{keyword: torch.zeros(1)})
    attend(None, **{keyword: None})


def test_a_config_without_a_modeling_file_on_the_interface_gets_the_eager_mask() -> None:
    assert GPT2Model.config_class is GPT2Config  # imports the modeling file

    class Mine(GPT2Config):
        __module__ = "somewhere.else"

    assert isinstance(longattn_mask(2, 4, 4, config=GPT2Config()), DeclaredMask)
    assert isinstance(longattn_mask(2, 4, 4, config=Mine()), DeclaredMask)  # as GPT2Config
    unknown = type("Config", (), {})()
    assert longattn_mask(2, 4, 4, config=unknown).dtype == torch.float32


def test_compressed_keys_of_deepseek_v4_take_masks_that_are_added_and_refuse_bools() -> None:
    config = DeepseekV4Config(
        **{**SMALL, "num_hidden_layers": 3, "num_key_value_heads": 1},
        head_dim=16,
        q_lora_rank=16,
        o_lora_rank=16,
        o_groups=2,
        sliding_window=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        index_n_heads=2,
        index_head_dim=8,
        index_topk=4,
        layer_types=["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"],
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
    )
    model, ids, index = DeepseekV4Model(config).eval(), torch.randint(1, 99, (2, 40)), torch.arange(40)
    seen = ((index[:, None] >= index) & (index[:, None] - index < 8)).expand(2, 1, 40, 40)
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = model(ids, attention_mask=added, use_cache=False).last_hidden_state
        model.set_attn_implementation(BACKEND)
        out = model(ids, attention_mask=added, use_cache=False).last_hidden_state
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
        for mask in (seen, seen | ~seen):
            with pytest.raises(BackendError, match="DeepseekV4Attention of layer 1 appends keys"):
                model(ids, attention_mask=mask, use_cache=False)


@pytest.mark.thorough
def test_only_deepseek_v4_appends_to_a_mask_before_its_attention() -> None:
    """Only such modules are known to read a mask as one that is added to the scores."""
    appending = set()
    for path in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"):
        for source in path.read_text(encoding="utf-8").split("\nclass "):
            if "attention_interface(" in source and re.search(r"attention_mask = (torch\.cat|F\.pad)\(", source):
                appending.add(path.parent.name)
    assert appending == {"deepseek_v4"}
