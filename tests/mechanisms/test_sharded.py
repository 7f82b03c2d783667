"""A sequence sharded across real processes gives every mechanism's rows and gradients of one process, or a refusal."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from hf_longattn import build_mechanism, list_mechanisms
from hf_longattn.attend import run_batch
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.engines.common.score_terms import ScoreTerm
from hf_longattn.errors import MaskError, OptionError
from hf_longattn.mechanisms.common.feature_map import LinearMechanism
from hf_longattn.mechanisms.common.registry import mechanism_class
from hf_longattn.sharding import Shard, even_bounds, only_locality
from tests.cells import every_cell
from tests.grids import grid
from tests.ranks import PAIR, Ranks

Case = tuple[str, dict[str, Any], bool, dict[str, Any]]
"""A mechanism, its options, its form, and what the call has."""
CASES: list[Any] = []
REGISTRY: list[tuple[str, dict[str, Any], bool]] = []
for name in list_mechanisms(grid=False):
    kind = mechanism_class(name)
    for causal in (True, False):
        if kind.causal in ("both", causal):
            REGISTRY.append((name, dict(kind.sample), causal))
ENDS = ({}, {"padding": "right"})
CASES += grid(
    ((*form, given) for form in REGISTRY for given in ENDS),
    lambda name, options, causal, given: (list_mechanisms().index(name) + causal) % 2 == ENDS.index(given),
)


def in_turn(causal: bool, cases: list[Case]) -> list[Any]:
    """The cases of one form; the quick tests take every second one of them, and the others in the other form."""
    return [pytest.param(*case, marks=pytest.mark.slow if (number + causal) % 2 else ()) for number, case in enumerate(cases)]


W = {"window": 32}
HEADS = "0=window:window=32;1=linear;2=longformer:window=16;3=lsg:block_size=16,sparse_block_size=16"
L = {**W, "global_tokens": ()}
for causal in (True, False):
    CASES += in_turn(
        causal,
        [
            ("window", W, causal, {"padding": "left"}),
            ("window", W, causal, {"documents": True}),
            ("window", {"window": 250}, causal, {}),
            ("window", {"left": 90, "right": 20}, causal, {"padding": "left"}),
            ("window", {"window": 2000}, causal, {}),
            ("window", {**W, "num_sinks": 4}, causal, {}),
            ("window", {**W, "num_sinks": 4}, causal, {"padding": "right"}),
            ("window", {"window": 16, "dilation": [1, 1, 2, 3]}, causal, {}),
            ("window", {"window": 16, "dilation": [1, 1, 2, 3], "num_sinks": 4}, causal, {}),
            ("union", {"of": "window:window=16,dilation=1+1+2+3,num_sinks=4+strided:stride=16"}, causal, {}),
            ("window", {**W, "relative": "alibi"}, causal, {}),
            ("longformer", W, causal, {"globals": True}),
            ("longformer", W, causal, {"globals": True, "padding": "right"}),
            ("longformer", L, causal, {}),
            ("longformer", W, causal, {"globals": True, "scores": True}),
            ("window", W, causal, {"scores": True}),
            ("union", {"of": "window:window=8+longformer:window=32,global_tokens=0+5"}, causal, {}),
            ("union", {"of": "segmented:block_size=24+longformer:window=32,global_tokens=0+5"}, causal, {"padding": "right"}),
            ("longformer", {**W, "separate_global": True}, causal, {"globals": True}),
            ("segmented", {"block_size": 24, "integration": "previous"}, causal, {}),
            ("segmented", {"block_size": 24, "integration": "none"}, causal, {"padding": "right"}),
            ("hybrid", {"window": 100}, causal, {}),
            ("hybrid", {"window": 16, "features": "taylor"}, causal, {"padding": "right"}),
            ("linear", {}, causal, {"padding": "left"}),
            ("performer", {}, causal, {"padding": "left"}),
        ],
    )
CASES += [
    ("transformer_xl", {"segment_length": 24, "memory_length": 40}, True, {}),
]

D, LEFT, G = {"documents": True}, {"padding": "left"}, {"globals": True}
L8 = {"block_size": 16, "sparse_block_size": 16, "sparsity_factor": 4}
for causal in (True, False):  # whole sequences of some of the heads
    CASES += in_turn(
        causal,
        [
            *(
                (name, dict(mechanism_class(name).sample), causal, given)
                for name in ("top_k", "fixed", "segmented", "lsh", "bigbird")
                for given in (D, LEFT)
            ),
            ("full", {}, causal, {"scores": True}),
            ("strided", {"columns": "absolute"}, causal, {"scores": True}),
            ("bigbird", {"block_size": 8, "num_random_blocks": 2}, causal, {**G, "padding": "right"}),
            ("routing", {"num_clusters": 6, "window_per_cluster": 48, "router": "learned"}, causal, LEFT),
            ("synthesizer", {"variant": "factorized_dense+random+dot_product", "max_length": 331}, causal, D),
            ("window", {**W, "num_sinks": 4}, causal, D),
            ("union", {"of": "window:window=9+strided:stride=16"}, causal, {}),
            ("longformer", W, causal, {**G, **D}),
            ("longformer", W, causal, LEFT),
            ("segmented", {"block_size": 24}, causal, LEFT),
            ("linear", {}, causal, D),
            ("hedgehog", {}, causal, D),
            ("taylor", {"feature_dim": 8}, causal, D),
            ("performer", {}, causal, D),
            ("hybrid", {"window": 16}, causal, D),
            ("hybrid", {"window": 16, "features": "taylor"}, causal, D),
            ("top_k", {"num_keys": 8, "relative": "alibi"}, causal, {}),
        ],
    )
CASES += [
    ("nystrom", {"num_landmarks": 16, "conv_kernel": 7}, False, D),
    ("linformer", {"rank": 16, "sharing": "none"}, False, LEFT),
    ("nystrom", {"inv_coeff_init_option": "original"}, False, {}),
    ("bigbird", {"block_size": 16, "random_pattern": "hf_eval"}, False, {}),
]
T = {"contents": True}
for causal in (True, False):
    CASES += in_turn(
        causal,
        [
            *(
                (name, options, causal, {**T, **given})
                for given in ({}, {"padding": "right"})
                for name, options in (
                    ("window", W),
                    ("union", {"of": "window:window=9+strided:stride=16"}),
                )
            ),
        ],
    )
BATCH, HEADS_PER_LAYER, LENGTH, HEAD_DIM, HIDDEN_SIZE = 2, 4, 331, 8, 32
TOLERANCE = 1e-8


class Content(ScoreTerm):
    """Depends on the contents of queries and keys, as DeBERTa's term does; indices beyond the tokens are errors."""

    reads_tokens = True

    def __init__(self, q: Tensor, k: Tensor, weights: Tensor) -> None:
        self.weights = weights
        self.of_query, self.of_key = q @ weights[:, :, :1], k @ weights[:, :, 1:]

    def __call__(self, score: Tensor, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Tensor:
        row = q_idx - (self.of_key.shape[2] - self.of_query.shape[2])
        return score + self.of_query[b, h, row.clamp(min=0), 0] * torch.cos(q_idx - kv_idx) + self.of_key[b, h, kv_idx, 0]

    def of(self, q: Tensor, k: Tensor, heads: Sequence[int]) -> Content:
        return Content(q, k, self.weights[list(heads)])

    def of_heads(self, heads: Sequence[int], device: torch.device | None = None) -> Content:
        part = copy.copy(self)
        part.weights, part.of_query, part.of_key = self.weights[list(heads)], self.of_query[:, list(heads)], self.of_key[:, list(heads)]
        return part


def padding_mask(side: str | None) -> Tensor:
    mask = torch.ones(BATCH, LENGTH, dtype=torch.bool)
    if side == "right":
        mask[1, LENGTH * 2 // 3 :] = False
    if side == "left":
        mask[1, : LENGTH // 3] = False
    return mask


def global_mask(mask: Tensor) -> Tensor:
    marked = torch.zeros_like(mask)
    for row, places in enumerate(([0, 5, LENGTH // 2, LENGTH - 40], [3])):
        marked[row, places] = True
    return marked & mask


def error_in_this_process(name: str, options: dict[str, Any], causal: bool, given: dict[str, Any]) -> float | None:
    """The greatest difference of outputs and gradients from those of one process; ``None`` where the mechanism refuses."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    shape = {"num_heads": HEADS_PER_LAYER, "head_dim": HEAD_DIM, "hidden_size": HIDDEN_SIZE, "max_length": LENGTH}
    module = build_mechanism(name, **{**shape, **options}).double().train()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1 if name != "adaptive_span" else 0.0)
    q = torch.randn(BATCH, HEADS_PER_LAYER, LENGTH, HEAD_DIM)
    k, v = torch.randn(2, BATCH, HEADS_PER_LAYER if given.get("contents") else HEADS_PER_LAYER // 2, LENGTH, HEAD_DIM).unbind()
    hidden = [torch.randn(BATCH, LENGTH, HIDDEN_SIZE)] if module.traits.takes_hidden_states else []
    gradient = torch.randn(BATCH, HEADS_PER_LAYER, LENGTH, HEAD_DIM)
    mask = padding_mask(given.get("padding"))
    documents = (torch.arange(LENGTH) * 3 // LENGTH).expand(BATCH, -1) if given.get("documents") else None
    marked = global_mask(mask) if given.get("globals") else None
    padding = None if mask.all() else mask
    term: Any = None
    if given.get("scores"):
        table = torch.randn(LENGTH, LENGTH)

        def term(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return score + table[q_idx.clamp(0, LENGTH - 1), kv_idx.clamp(0, LENGTH - 1)]

    tensors = [q, k, v, *hidden]
    before = {name: x.clone() for name, x in module.state_dict().items()}  # centroids move in the backward pass
    gradient = gradient * mask[:, None, :, None]

    def gradients(out: Tensor, inputs: list[Tensor], start: int, stop: int) -> list[Tensor]:
        leaves = [*inputs, *module.parameters()]
        out.backward(gradient[:, :, start:stop])
        collected = [x.grad.clone() for x in leaves if x.grad is not None]
        for x in leaves:
            x.grad = None
        return collected

    inputs = [x.clone().requires_grad_() for x in tensors]
    weights = torch.randn(HEADS_PER_LAYER, HEAD_DIM, 2) if given.get("contents") else None
    call = AttentionCall.of(
        padding_mask=padding,
        documents=documents,
        causal=causal,
        global_mask=marked,
        score_mod=term if weights is None else Content(inputs[0], inputs[1], weights),
        hidden_states=inputs[3] if hidden else None,
    )
    expected = run_batch(module, *inputs[:3], call)
    expected_gradients = gradients(expected, inputs, 0, LENGTH)

    module.load_state_dict(before)
    shard = Shard(None, even_bounds(LENGTH, dist.get_world_size()), dist.get_rank(), run_batch, padding, documents, marked)
    here = slice(shard.start, shard.stop)
    inputs = [(x[:, :, here] if x.dim() == 4 else x[:, here]).clone().requires_grad_() for x in tensors]
    score_mod = term if weights is None else Content(inputs[0], inputs[1], weights)
    call = AttentionCall(causal=causal, score_mod=score_mod, hidden_states=inputs[3] if hidden else None)
    try:
        out = module.attend_sharded(*inputs[:3], call, shard)
    except (OptionError, MaskError):
        return None
    errors = [((out - expected[:, :, here]) * mask[:, None, here, None]).abs().max()]
    found = gradients(out, inputs, shard.start, shard.stop)
    for x, y in zip(found[: len(inputs)], expected_gradients[: len(inputs)], strict=True):
        errors.append((x - (y[:, :, here] if y.dim() == 4 else y[:, here])).abs().max())
    for x, y in zip(found[len(inputs) :], expected_gradients[len(inputs) :], strict=True):
        dist.all_reduce(x)
        errors.append((x - y).abs().max())
    return max(error.item() for error in errors)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)], ids="{} processes".format)
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    with contextlib.nullcontext(PAIR) if request.param == PAIR.count else Ranks(request.param) as processes:
        yield processes


def refuses(name: str, options: dict[str, Any], causal: bool, processes: int) -> bool:
    """Whether a mechanism needs whole sequences and its heads cannot be divided over the processes."""
    shape = {"num_heads": HEADS_PER_LAYER, "head_dim": HEAD_DIM, "hidden_size": HIDDEN_SIZE, "max_length": LENGTH}
    module = build_mechanism(name, **{**shape, **options})
    if isinstance(module, LinearMechanism) or name == "hybrid" or (module.traits.stateful and causal):
        return False
    if only_locality(module, causal) is not None:
        return False
    return module.per_head_tensors is None or module.relative is not None


@every_cell(("name", "options", "causal", "given"), CASES, ids=str, by="name", of=9, alike=lambda name, options, *rest: (name, *options))
def test_a_sharded_sequence_equals_one_process(
    name: str, options: dict[str, Any], causal: bool, given: dict[str, Any], ranks: Ranks
) -> None:
    errors = ranks.run(error_in_this_process, name, options, causal, given)
    if refuses(name, options, causal, ranks.count):
        assert errors == [None] * ranks.count
    else:
        assert max(errors) < TOLERANCE
