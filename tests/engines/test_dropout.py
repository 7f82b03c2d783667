"""Dropout on the CPU and in compiled training: weights are dropped independently and divided by what remains, forward
and backward."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_longattn import attend, build_mechanism, list_mechanisms
from hf_longattn.engines.cpu.kernels import BITS, Dropout, random_bits
from hf_longattn.mechanisms.common.registry import mechanism_class, mechanism_from
from tests.cases import every_case
from tests.comparisons import assert_equal_with_gradients, paths_of
from tests.reference.small_models import long_model

# ---- The CPU's tiles.


LENGTH, P = 300, 0.2
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "window": ("window", {"window": 64}),
    "narrow window": ("window", {"window": 6}),
    "causal window": ("window", {"window": 64, "causal": True}),
    "longformer": ("longformer", {"window": 32, "globals": 2}),
    "bidirectional full": ("full", {}),
    "causal full": ("full", {"causal": True}),
    "grouped heads": ("window", {"window": 64, "groups": 2}),
    "bigbird": ("bigbird", {"block_size": 16}),
    "causal strided": ("strided", {"causal": True}),
    "many globals": ("longformer", {"window": 16, "globals": 20}),
}
"""Mechanism, and its options and the call's."""


def case(name: str, padded: str) -> tuple[tuple[Tensor, ...], str, dict[str, Any], Tensor]:
    """q, k, v, the mechanism, the call's arguments, and which tokens are real."""
    torch.manual_seed(0)
    mechanism, given = CASES[name]
    arguments = dict(given)
    groups, globals = arguments.pop("groups", 4), arguments.pop("globals", 0)
    q, k, v = (torch.randn(2, heads, LENGTH, 8, dtype=torch.float64) for heads in (4, groups, groups))
    index = torch.arange(LENGTH)
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    if padded:
        arguments["padding_mask"] = real
        real[0] = {
            "left": index >= 41,
            "right": index < 280,
            "short": index < 40,
            "inside": (index < 120) | (index > 150),
        }[padded]
    if globals:
        arguments["global_mask"] = (index < globals) & real
    return (q, k, v), mechanism, arguments, real


def weights(q: Tensor, k: Tensor, mechanism: str, arguments: dict[str, Any], p: float) -> Tensor:
    """Those of every query and key, with the seed 7: the output for values that tell keys apart."""
    torch.manual_seed(7)
    keys = torch.eye(LENGTH, dtype=q.dtype).expand(2, k.shape[1], -1, -1)
    q, k = (F.pad(x, (0, LENGTH - x.shape[-1])) for x in (q, k))
    return attend(q, k, keys, mechanism, dropout_p=p, scaling=8**-0.5, **arguments)


PADDED = [
    *itertools.product(CASES, ["", "left", "right", "inside"]),
    *((name, "short") for name in CASES if "window" in name),
]
"""A window's engine runs short rows with long ones; the others run few pairs of a row by plain operations."""


@every_case(("name", "padded"), [*PADDED, ("longformer", "short"), ("many globals", "short")], of=6)
def test_cpu_dropout_keeps_or_zeroes_weights_with_their_gradients(name: str, padded: str) -> None:
    (q, k, v), mechanism, arguments, real = case(name, padded)
    whole, dropped = (weights(q, k, mechanism, arguments, p)[real[:, None].expand(-1, 4, -1)] for p in (0.0, P))
    seen = whole > 1e-12
    kept = 1 - Dropout(P, 0).threshold / (1 << BITS)
    zero = dropped.abs() < 1e-14
    torch.testing.assert_close(dropped[~zero], whole[~zero] / kept)
    share = zero[seen].double().mean()
    assert abs(share - (1 - kept)) < 5 * (P * (1 - P) / seen.sum()) ** 0.5
    factor = torch.zeros(2, 4, LENGTH, LENGTH, dtype=torch.float64)
    factor[real[:, None].expand(-1, 4, -1)] = (~zero).double() / kept

    inputs = [x.requires_grad_() for x in (q, k, v)]
    torch.manual_seed(7)
    out = attend(*inputs, mechanism, dropout_p=P, **arguments)
    expected = weights(q, k, mechanism, arguments, 0.0) * factor @ v.repeat_interleave(4 // v.shape[1], 1)
    assert_equal_with_gradients(out, expected, inputs, real, atol=1e-7, gradients=1e-7, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_dropout_drops_the_same_weights_in_every_precision(dtype: torch.dtype) -> None:
    """The same weights are dropped, whatever the precision."""
    (q, k, v), mechanism, arguments, _ = case("longformer", "")
    results = []
    for precision in (torch.float64, dtype):
        inputs = [x.to(precision).requires_grad_() for x in (q, k, v)]
        torch.manual_seed(7)
        out = attend(*inputs, mechanism, dropout_p=P, **arguments)
        assert out.dtype == precision
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for expected, found in zip(*results, strict=True):
        assert (found.double() - expected).norm() < tolerance * expected.norm()


def test_cpu_dropout_depends_on_the_seed_alone() -> None:
    (q, k, v), mechanism, arguments, _ = case("window", "")
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        first = attend(q, k, v, mechanism, dropout_p=P, **arguments)
        outputs += [first, attend(q, k, v, mechanism, dropout_p=P, **arguments)]
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert all(not torch.equal(outputs[0], outputs[number]) for number in (1, 4, 5))
    assert torch.equal(q, case("window", "")[0][0])
    assert not torch.equal(attend(q, k, v, mechanism, **arguments), outputs[0])


@pytest.mark.thorough
def test_the_bits_of_cpu_dropout_are_uniform_and_independent() -> None:
    """Means, neighbours, rows, tiles and seeds; five standard errors."""
    drop = Dropout(0.1, 3)
    kept = torch.stack([drop.mask(torch.empty(500, 800), (place, tile)) for place in range(4) for tile in range(4)])
    share = 1 - drop.threshold / (1 << BITS)
    z = (kept - share) / (share * (1 - share)) ** 0.5
    pairs = {f"neighbours {lag}": (z[..., :-lag], z[..., lag:]) for lag in (1, 2, 3, 4, 64)}
    pairs |= {"rows": (z[:, :-1], z[:, 1:]), "tiles": (z[:-1], z[1:]), "places": (z[:-4], z[4:])}
    wrong = {
        name: (a * b).mean().item() for name, (a, b) in pairs.items() if abs((a * b).mean()) > 5 * a.numel() ** -0.5
    }
    assert not wrong
    assert abs(z.mean()) < 5 * z.numel() ** -0.5
    counts = torch.bincount(random_bits(1 << 22, 5, (0, 0)).int() + (1 << 15), minlength=1 << 16).double()
    assert abs(((counts - 64) ** 2 / 64).mean() - 1) < 5 * (2 / (1 << 16)) ** 0.5
    seeds = torch.stack([Dropout(0.1, seed).mask(torch.empty(200), (0, 0)) for seed in range(2000)])
    assert (seeds.mean(0) - 1 + drop.threshold / (1 << BITS)).abs().max() < 5 * (0.09 / 2000) ** 0.5


def test_dropout_too_rare_for_16_bits_or_certain_uses_plain_operations() -> None:
    (q, k, v), mechanism, arguments, _ = case("window", "")
    for p in (P, 1e-4, 0.999, 1e-6, 1.0):
        out, paths = paths_of(lambda: attend(q, k, v, mechanism, dropout_p=p, **arguments))  # noqa: B023
        assert paths == ["plain" if p in (1e-6, 1.0) else "cpu-band"]
    assert not out.any()


def test_a_checkpointed_layer_drops_the_same_weights_again() -> None:
    (q, k, v), mechanism, arguments, _ = case("longformer", "left")

    def dropped(x: Tensor) -> Tensor:
        return attend(x, k, v, mechanism, dropout_p=P, **arguments)

    gradients = []
    for run in (dropped, partial(checkpoint, dropped, use_reentrant=False)):
        x = q.clone().requires_grad_()
        torch.manual_seed(7)
        gradients.append(torch.autograd.grad(run(x).square().sum(), x)[0])
    assert torch.equal(*gradients)


def test_dropout_in_cross_attention_drops_no_query_for_padded_keys() -> None:
    """Cross-attention: where a key is padding, the query of the same number is none."""
    module = mechanism_from("full", {}, num_heads=4, head_dim=8, max_length=LENGTH)
    module.is_cross_attention = True
    (q, k, v), _, arguments, _ = case("bidirectional full", "left")
    dropped, whole = (
        attend(q, k, v, module, dropout_p=p, padding_mask=arguments["padding_mask"]) for p in (1e-4, 0.0)
    )
    torch.testing.assert_close(dropped, whole, atol=0.1, rtol=0)


def test_a_training_model_drops_in_cpu_tiles_for_short_texts_too() -> None:
    attention = {"mechanism": "longformer", "window": 32, "exact_length": 300}
    model = long_model("bert", None, attention, num_hidden_layers=1, attention_probs_dropout_prob=P).train()
    for length in (300, 310):
        _, paths = paths_of(lambda: model(input_ids=torch.ones(1, length, dtype=torch.long)))  # noqa: B023
        assert paths == ["cpu-band"]


# ---- Compiled training, whose plain paths have shapes that Inductor can divide.


@pytest.fixture
def compiled_afresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_afresh")
@pytest.mark.parametrize(
    "mechanism", [*list_mechanisms(engine="block_sparse", grid=False), "full", "adaptive_span", "strided"]
)
def test_compiled_training_with_dropout_survives_changing_lengths(mechanism: str) -> None:
    options = (
        {"window": 64}
        if "window" in mechanism_class(mechanism).about.sample
        else mechanism_class(mechanism).about.sample
    )
    module = build_mechanism(mechanism, num_heads=1, head_dim=8, hidden_size=8, max_length=1024, **options)

    def call(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, hidden_states: Tensor) -> Tensor:
        more = {"hidden_states": hidden_states} if module.capabilities.takes_hidden_states else {}
        return attend(q, k, v, module, causal=module.causal is True, padding_mask=mask, dropout_p=0.1, **more)

    compiled = torch.compile(call)
    for length in (892, 717):
        q, k, v = (torch.randn(2, 1, length, 8, requires_grad=True) for _ in range(3))
        mask = torch.arange(length) < torch.tensor([[length], [length - 50]])
        out = compiled(q, k, v, mask, torch.randn(2, length, 8))
        out.square().mean().backward()
        assert all(bool(x.isfinite().all()) for x in (out, q.grad, k.grad, v.grad) if x is not None)
        assert out.shape == q.shape


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_afresh")
@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_a_model_that_trains_with_dropout_is_one_graph(
    tokens: bool, on_gpu: bool, request: pytest.FixtureRequest
) -> None:
    if on_gpu:
        request.getfixturevalue("cuda_paths")
    plan = {"mechanism": "longformer", "window": 128}
    model = long_model("bert", None, plan, attention_probs_dropout_prob=0.1, max_position_embeddings=1024).train()
    graphs: list[Any] = []

    def keep(module: Any, _: Any) -> Any:
        graphs.append(module)
        return module.forward

    ids, mask = torch.randint(5, 90, (2, 640)), torch.ones(2, 640, dtype=torch.long)
    mask[1, 500:] = 0
    arguments = {"global_attention_mask": (torch.arange(640) < 4).long().expand(2, -1)} if tokens else {}
    out = torch.compile(model, backend=keep, fullgraph=True)(ids, attention_mask=mask, **arguments)
    out[0].sum().backward()
    assert len(graphs) == 1
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
