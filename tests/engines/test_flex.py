"""flex_attention without a GPU: block lists, bands and tables of blocks on the CPU's kernel or in plain operations,
also compiled."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from hf_longattn import attend, build_mechanism, list_mechanisms, reference_attend
from hf_longattn.engines.batch import Batch
from hf_longattn.engines.blockwise import blockwise_attention
from hf_longattn.engines.call import AttentionCall, Pattern
from hf_longattn.engines.cuda import flex
from hf_longattn.engines.cuda.flex import BAND_BLOCK, BlockTable, Lists, band_block_mask, flex_block_table
from hf_longattn.functional import run_batch
from hf_longattn.mechanisms.common.registry import mechanism_class
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients, paths_of
from tests.engines.eager_flex import by_the_lists
from tests.reference.small_models import long_model, tokens
from tests.samples import sampled
from tests.shared_code import engine_of_form

# ---- Block lists and bands.


def pairs(lists: Lists) -> list[tuple[int, int]]:
    """What the lists say, as sorted (row, block)."""
    counts, indices = (x[0, 0] for x in lists)
    return sorted((row, int(block)) for row, count in enumerate(counts.tolist()) for block in indices[row, :count])


@every_case(
    ("left", "right", "q_len", "kv_len", "padded"),
    [
        *itertools.product([0, 64, 128, 700], [0, 64, 300], [1000], [1000], [False]),
        # one key less than whole blocks, and all of them
        *itertools.product([126, 127, 255], [126, 254], [1000], [1000], [False]),
        *[(200, 0, 300, 1000, True), (64, 64, 1000, 1000, True), (5000, 0, 640, 640, False)],
    ],
)
def test_block_lists_of_flex_attention_are_the_blocks_of_the_band(
    left: int, right: int, q_len: int, kv_len: int, padded: bool
) -> None:
    pattern = Pattern(left, right, right == 0)
    mask = torch.ones(1, kv_len, dtype=torch.bool)
    mask[:, 256:520] = not padded
    found = band_block_mask(pattern, q_len, kv_len, mask.device, key_mask=mask if padded else None)
    q_idx, kv_idx = torch.arange(q_len)[:, None] + kv_len - q_len, torch.arange(kv_len)[None]
    seen = pattern.band_mod(0, 0, q_idx, kv_idx) & mask
    missing = (0, -kv_len % BAND_BLOCK, 0, -q_len % BAND_BLOCK)
    blocks = torch.nn.functional.pad(seen, missing).unflatten(0, (-1, BAND_BLOCK)).unflatten(2, (-1, BAND_BLOCK))
    full = [tuple(x) for x in blocks.all(3).all(1).nonzero().tolist()]
    touched = [tuple(x) for x in blocks.any(3).any(1).nonzero().tolist()]
    by_query = pairs((found.kv_num_blocks, found.kv_indices)), pairs((found.full_kv_num_blocks, found.full_kv_indices))
    by_key = pairs((found.q_num_blocks, found.q_indices)), pairs((found.full_q_num_blocks, found.full_q_indices))
    assert by_query[1] == full
    assert set(touched) - set(full) <= set(by_query[0])
    if not padded:
        assert sorted(by_query[0] + by_query[1]) == touched
    assert tuple(sorted((j, i) for i, j in x) for x in by_key) == by_query


def test_block_lists_of_a_band_of_a_million_tokens_are_small() -> None:
    found = band_block_mask(Pattern.window(512, causal=False), 1 << 20, 1 << 20, torch.device("cpu"))
    for indices in (found.kv_indices, found.q_indices, found.full_kv_indices, found.full_q_indices):
        assert indices.shape == (1, 1, 8192, 6)


PATTERN = Pattern.window(160, causal=True)


def band(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, tokens: Tensor | None = None) -> Tensor:
    return flex.flex_band(q, k, v, PATTERN, AttentionCall(batch=Batch.of(mask), global_mask=tokens, scale=0.25))


def inputs(length: int) -> list[Tensor]:
    return list(torch.randn(3, 2, 2, length, 16, generator=torch.Generator().manual_seed(length)))


@every_case("globals_", [False, True])
@every_case("padded", [False, True])
def test_one_compiled_band_takes_changing_lengths(globals_: bool, padded: bool) -> None:
    """Also with global tokens, whose number depends on the data, which a graph cannot hold: it lists their blocks."""
    torch._dynamo.reset()
    compiled = torch.compile(band, backend="aot_eager", dynamic=True, fullgraph=True)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lru_cache.*")
        for length in (300, 385, 300):
            mask = torch.arange(length) < torch.tensor([[length], [length - 37]]) if padded else None
            tokens = torch.arange(length) % 290 == torch.tensor([[3], [length]]) if globals_ else None
            found = compiled(*inputs(length), mask, tokens)
            expected = blockwise_attention(
                *inputs(length), PATTERN, AttentionCall(batch=Batch.of(mask), global_mask=tokens, scale=0.25)
            )
            real = torch.ones(2, length, dtype=torch.bool) if mask is None else mask
            torch.testing.assert_close(
                found * real[:, None, :, None], expected * real[:, None, :, None], atol=1e-5, rtol=0
            )


def test_block_masks_made_in_inference_mode_serve_calls_with_gradients() -> None:
    """Tensors made under inference mode cannot be saved for a backward pass."""
    with torch.inference_mode():
        mask = flex.cached_band_block_mask(PATTERN, 384, 384, AttentionCall(), torch.device("cpu"))
    assert flex.cached_band_block_mask(PATTERN, 384, 384, AttentionCall(), torch.device("cpu")) is mask
    tensors = [x for x in vars(mask).values() if isinstance(x, Tensor)]
    assert len(tensors) > 4
    assert not any(x.is_inference() for x in tensors)


@pytest.mark.usefixtures("cuda_paths", "unfused_flex")
@every_case("causal", [False, True])
@every_case(
    "name",
    [name for engine in ("block_sparse", "gathered") for name in list_mechanisms(engine=engine, grid=False)],
    of=2,
)
@every_case("in_graph", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_mechanisms_on_paths_for_cuda_equal_definition(
    in_graph: bool, name: str, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one whole graph, too: nothing there may depend on how many tokens are global."""
    options = {"window": 64} if "window" in mechanism_class(name).about.sample else mechanism_class(name).about.sample
    module = build_mechanism(name, num_heads=2, head_dim=16, **options).eval()
    q, k, v = inputs(300)
    mask = torch.arange(300) < torch.tensor([[300], [250]])
    tokens = torch.arange(300).expand(2, -1) % 97 == 3 if module.capabilities.takes_globals else None
    call = AttentionCall(causal, Batch.of(mask), tokens)
    expected = run_batch(module, q.double(), k.double(), v.double(), call, by_definition=True) * mask[:, None, :, None]
    torch._dynamo.reset()
    if in_graph:
        run = torch.compile(run_batch, backend="aot_eager", fullgraph=True)
    else:
        run = run_batch
        monkeypatch.setattr(flex, "fused_flex", by_the_lists)
    with torch.no_grad():
        torch.testing.assert_close(
            run(module, q, k, v, call).double() * mask[:, None, :, None], expected, atol=1e-5, rtol=0
        )


@pytest.mark.usefixtures("cuda_paths", "unfused_flex")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_the_layers_of_a_padded_batch_share_a_block_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        flex, "band_block_mask", lambda *sizes, **masks: made.append(band_block_mask(*sizes, **masks)) or made[-1]
    )
    model = long_model("bert", None, {"mechanism": "window", "window": 32}).eval()
    mask = torch.ones(2, 300, dtype=torch.long)
    mask[0, :100] = 0
    for calls in (1, 2):
        with torch.inference_mode():
            model(input_ids=tokens(2, 300), attention_mask=mask)
        assert len(made) == calls
    assert model.config.num_hidden_layers > 1


@pytest.mark.thorough
@pytest.mark.usefixtures("cuda_paths", "unfused_flex")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@every_case(
    ("name", "options", "path"),
    [
        ("window", {"window": 64}, "flex"),
        ("window", {"window": 64, "dropout_p": 0.1}, "plain"),
        ("window", {"window": 64, "relative": "shaw"}, "flex"),
        ("window", {"window": 64, "score_mod": lambda score, b, h, i, j: score.tanh()}, "flex"),
        ("window", {"window": 2000}, "dense"),
        ("window", {"window": 2000, "score_mod": lambda score, b, h, i, j: score.tanh()}, "flex"),
        ("full", {"score_mod": lambda score, b, h, i, j: score.tanh()}, "flex"),
        ("full", {"score_mod": lambda score, b, h, i, j: score.tanh(), "dropout_p": 0.1}, "dense"),
        ("longformer", {"window": 64}, "flex"),
        ("bigbird", {"block_size": 32}, "flex"),
        ("segmented", {"block_size": 128}, "plain"),
        ("block_top_k", {"block_size": 64}, "flex"),
        ("linear", {}, "linear"),
    ],
)
def test_each_call_on_cuda_takes_its_path(name: str, options: dict[str, Any], path: str) -> None:
    q, k, v = inputs(700)
    with torch.no_grad():
        _, paths = paths_of(lambda: attend(q, k, v, name, causal=name == "linear", **options))
    assert paths[-1] == path
    assert not [one for one in paths if one.startswith("cpu")]


# ---- A band with global tokens, padding, packed documents and grouped heads is one call.


LENGTH = 700
COMPILED = torch.compile(flex_attention, dynamic=False, fullgraph=True)
"""PyTorch's kernel for the CPU, which has a forward pass only."""
MECHANISMS: dict[str, dict[str, Any]] = {
    "longformer": {"mechanism": "longformer", "window": 128},
    "five positions": {"mechanism": "longformer", "window": 100, "global_tokens": (0, 1, 2, 7, 300)},
    "uneven window": {"mechanism": "longformer", "left": 200, "right": 30},
    "sinks": {"mechanism": "window", "window": 90, "num_sinks": 4},
}
PADDING = ("none", "right", "left", "holes", "a whole row")


def real_tokens(padding: str) -> Tensor | None:
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    if padding == "right":
        real[1, LENGTH - 200 :] = False
    elif padding == "left":
        real[1, :333] = False
    elif padding == "holes":
        real[1, :5], real[1, 300:350], real[0, 2] = False, False, False
    elif padding == "a whole row":
        real[1] = False
    return None if padding == "none" else real


def calls(
    name: str, padding: str, causal: bool, tokens: str, packed: bool, heads: int, width: int = 16
) -> tuple[Any, list[Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    options = dict(MECHANISMS[name])
    module = build_mechanism(options.pop("mechanism"), num_heads=4, head_dim=width, **options).eval()
    sizes = (4, heads, heads)
    tensors = [
        torch.randn(2, h, LENGTH, width, generator=generator, dtype=torch.float64, requires_grad=True) for h in sizes
    ]
    arguments: dict[str, Any] = {"causal": causal, "padding_mask": real_tokens(padding)}
    if tokens == "scattered":
        arguments["global_mask"] = torch.rand(2, LENGTH, generator=generator) < 0.02
    elif tokens == "question":
        arguments["global_mask"] = (torch.arange(LENGTH) < 40).expand(2, -1)
    if packed:
        arguments["documents"] = torch.bucketize(torch.arange(LENGTH), torch.tensor([[130, 384, 390]][0])).expand(
            2, -1
        )
    return module, tensors, arguments


CELLS = [
    *itertools.product(
        ["longformer"], PADDING, [False, True], ["positions", "scattered", "question"], [False, True], [4, 2]
    ),
    *itertools.product([*MECHANISMS][1:], PADDING, [False, True], ["positions"], [False, True], [2]),
]


@pytest.mark.usefixtures("cuda_paths", "unfused_flex")
@every_case(("name", "padding", "causal", "tokens", "packed", "heads"), CELLS, of=10)
def test_bands_with_global_tokens_are_one_exact_call(
    name: str, padding: str, causal: bool, tokens: str, packed: bool, heads: int
) -> None:
    module, tensors, arguments = calls(name, padding, causal, tokens, packed, heads)
    out, paths = paths_of(lambda: attend(*tensors, module, **arguments))
    assert [path for path in paths if path != "unchanged"] == ["flex"]
    expected = reference_attend(*tensors, module, **arguments)
    assert_equal_with_gradients(out, expected, tensors, real_tokens(padding))


def few_query_forms() -> list[tuple[str, bool]]:
    """Every form of a mechanism for texts that takes fewer queries than keys."""
    return [
        (name, causal)
        for causal in (False, True)
        for name in list_mechanisms(causal=causal, grid=False)
        if mechanism_class(name).capabilities.takes_fewer_queries
    ]


@pytest.mark.usefixtures("cuda_paths", "unfused_flex", "emulated_flash")
@every_case(
    ("name", "causal"), few_query_forms(), of=9, code=lambda name, causal: (engine_of_form(name), name == "full")
)
@every_case(("q_len", "padding"), [(1, "none"), (130, "left"), (300, "holes")])
def test_packed_documents_with_few_queries_on_paths_for_cuda_equal_the_definition(
    q_len: int, padding: str, name: str, causal: bool
) -> None:
    module = sampled(name, LENGTH).double()
    lengths = ((4, q_len), (2, LENGTH), (2, LENGTH))
    tensors = [torch.randn(2, heads, n, 16, dtype=torch.float64, requires_grad=True) for heads, n in lengths]
    documents = torch.bucketize(torch.arange(LENGTH), torch.tensor([130, 384, 390, 650])).expand(2, -1)
    real = real_tokens(padding)
    arguments: dict[str, Any] = {"causal": causal, "padding_mask": real, "documents": documents}
    if module.capabilities.takes_globals:
        arguments["global_mask"] = torch.rand(2, LENGTH) < 0.02
    if module.capabilities.takes_hidden_states:
        arguments["hidden_states"] = torch.randn(2, LENGTH, module.sizes.hidden_size, dtype=torch.float64)
    out, expected = (attention(*tensors, module, **arguments) for attention in (attend, reference_attend))
    assert_equal_with_gradients(out, expected, tensors, real, atol=1e-6, gradients=1e-5)


KERNELS = [
    ("longformer", "left", False, "scattered", False),
    ("longformer", "holes", True, "question", False),
    ("longformer", "right", False, "positions", True),
    ("sinks", "none", True, "positions", False),
    ("five positions", "a whole row", False, "positions", True),
    ("uneven window", "none", False, "positions", True),
]


@pytest.mark.slow
@pytest.mark.usefixtures("cuda_paths")
@pytest.mark.parametrize(("name", "padding", "causal", "tokens", "packed"), KERNELS)
def test_block_masks_of_one_call_serve_pytorchs_compiled_kernel(
    name: str, padding: str, causal: bool, tokens: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flex, "fused_flex", lambda kind, *tensors, **settings: COMPILED(*tensors, **settings))
    module, tensors, arguments = calls(name, padding, causal, tokens, packed, heads=2)
    with torch.no_grad():
        out = attend(*(x.float() for x in tensors), module, **arguments).double()
        expected, real = reference_attend(*tensors, module, **arguments), real_tokens(padding)
    rows = torch.ones_like(out) if real is None else real[:, None, :, None].double()
    torch.testing.assert_close(out * rows, expected * rows, atol=5e-6, rtol=0)


@pytest.mark.usefixtures("cuda_paths", "unfused_flex")
@every_case(("padding", "packed"), [("left", False), ("holes", False), ("right", True)])
def test_infinite_values_in_padding_change_no_output_of_one_call(padding: str, packed: bool) -> None:
    module, tensors, arguments = calls("longformer", padding, False, "positions", packed, heads=2)
    real = real_tokens(padding)
    assert real is not None
    tensors = [x.detach() for x in tensors]
    filled = [x.masked_fill(~real[:, None, :, None], float("nan")) for x in tensors]
    out, expected = (attend(*x, module, **arguments) for x in (filled, tensors))
    assert torch.equal(out[real[:, None].expand(out.shape[:3])], expected[real[:, None].expand(out.shape[:3])])


# ---- Tables of blocks: BigBird's blocks, with padding, global tokens and blocks that count twice, are one call.


OPTIONS: dict[str, dict[str, Any]] = {
    "blocks of 64": {"block_size": 64, "num_random_blocks": 1},
    "blocks of 16": {"block_size": 16},
    "blocks of 128": {"block_size": 128, "num_random_blocks": 0},
    "blocks of 256": {"block_size": 256, "num_random_blocks": 0, "num_window_blocks": 1, "num_global_blocks": 0},
    "as transformers": {"block_size": 16, "random_pattern": "hf_eval", "blocks_over": "input"},
    "counted twice": {"block_size": 32, "random_pattern": "hf_eval", "num_random_blocks": 2},
}
BLOCK_TABLES_CELLS = [
    (name, padding, causal, tokens, packed)
    for name, padding, causal, tokens, packed in itertools.product(
        OPTIONS, PADDING, [False, True], [False, True], [False, True]
    )
    if not (causal and "random_pattern" in OPTIONS[name]) and not (packed and (tokens or padding == "none"))
]


@pytest.mark.usefixtures("cuda_paths", "unfused_flex")
@every_case(("name", "padding", "causal", "tokens", "packed"), BLOCK_TABLES_CELLS, of=12)
def test_blocks_of_bigbird_are_one_exact_call(
    name: str, padding: str, causal: bool, tokens: bool, packed: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    module = build_mechanism("bigbird", num_heads=4, head_dim=16, **OPTIONS[name]).eval()
    tensors = [
        torch.randn(2, heads, LENGTH, 16, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads in (4, 2, 2)
    ]
    arguments: dict[str, Any] = {"causal": causal, "padding_mask": real_tokens(padding)}
    if tokens:
        arguments["global_mask"] = torch.rand(2, LENGTH, generator=generator) < 0.01
    if packed:
        arguments["documents"] = torch.bucketize(torch.arange(LENGTH), torch.tensor([130, 384])).expand(2, -1)
    out, paths = paths_of(lambda: attend(*tensors, module, **arguments))
    if not packed:
        assert [path for path in paths if path not in ("unchanged", "aligned", "sparse")] == ["flex"]
    expected = reference_attend(*tensors, module, **arguments)
    assert_equal_with_gradients(out, expected, tensors, real_tokens(padding), atol=1e-6, gradients=1e-5)


def test_tables_of_one_length_are_kept_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []

    def attention(
        kind: object, q: torch.Tensor, *tensors: object, block_mask: Any, **settings: object
    ) -> torch.Tensor:
        devices.append(block_mask.kv_indices.device.type)
        return q

    monkeypatch.setattr(flex, "fused_flex", attention)
    monkeypatch.setattr(flex, "same_dtype", lambda *tensors: tensors)  # autocast knows no meta device
    for device in ("cpu", "meta"):
        q = torch.zeros(1, 2, 300, 16, device=device)

        def table(device: str = device) -> BlockTable:
            return BlockTable(torch.ones(1, 1, 5, 5, dtype=torch.bool, device=device), None)

        flex_block_table(q, q, q, ("a table of each device",), table, 64, AttentionCall())
    assert devices == ["cpu", "meta"]
