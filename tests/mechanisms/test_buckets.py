"""lsh and routing: every form against its definition, seeds, centroids, and half precision."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.call import AttentionCall
from hf_longattn.mechanisms.common.base import attention_weights
from hf_longattn.mechanisms.routing import Routing, synchronise_centroids
from tests.cases import every_case
from tests.ranks import PAIR
from tests.reference.small_models import long_config, plain_model, tokens

OPTIONS = {"num_hashes": 3, "bucket_size": 16, "num_buckets": 8}
FORMS = [
    {"shared_qk": True},
    {"shared_qk": True, "count_duplicates": True},
    {"count_duplicates": True},
    {"num_chunks_before": 0},
    {"num_chunks_after": 1},
    {"num_chunks_before": 0, "num_chunks_after": 2, "shared_qk": True},
    {"bucket_size": 7, "num_buckets": 64},
    {"bucket_size": 150, "num_buckets": 4, "num_chunks_before": 0, "shared_qk": True},
    {"bucket_size": 1, "num_buckets": 6},
]


def inputs(length: int, grad: bool = False) -> list[Tensor]:
    return [torch.randn(2, heads, length, 16).requires_grad_(grad) for heads in (4, 2, 2)]


def test_the_number_of_lsh_buckets_follows_the_longest_input() -> None:
    for max_length, expected in ((512, 16), (8192, 256), (10, 2), (None, 128)):
        module = build_mechanism("lsh", num_heads=1, head_dim=8, max_length=max_length, bucket_size=64)
        assert module.num_buckets == expected


def test_lsh_with_shared_keys_sees_its_own_token_only_if_it_sees_no_other() -> None:
    for causal in (False, True):
        module = build_mechanism("lsh", num_heads=4, head_dim=16, shared_qk=True, **OPTIONS)
        q, k, _ = inputs(300)
        weights = attention_weights(module, q, k, causal=causal)
        own = weights.diagonal(dim1=-2, dim2=-1)
        assert ((own == 0) | (own == 1)).all()
        assert (own == 1).any() == causal, "only a causal token may be the first of its bucket in all rounds"
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 300))
        out = attend(q, k, v := torch.randn(2, 2, 300, 16), module, causal=causal)
        torch.testing.assert_close(out, weights @ v.repeat_interleave(2, 1), atol=1e-5, rtol=0)


def test_lsh_with_shared_keys_in_chunks_of_one_sees_the_token_before() -> None:
    """Also the last one of a long text, which no dense call computes."""
    q, k, v = torch.randn(3, 1, 2, 1201, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    options = {"shared_qk": True, "bucket_size": 1, "num_hashes": 1}
    expected = reference_attend(q, k, v, "lsh", **options)
    torch.testing.assert_close(attend(q, k, v, "lsh", **options), expected.float())


def test_the_seed_alone_decides_the_rotations_of_lsh() -> None:
    torch.manual_seed(1)
    first = build_mechanism("lsh", num_heads=2, head_dim=8, seed=3)
    torch.manual_seed(2)
    second, other = (build_mechanism("lsh", num_heads=2, head_dim=8, seed=seed) for seed in (3, 4))
    assert torch.equal(first.rotations, second.rotations)
    assert not torch.equal(first.rotations, other.rotations)
    assert not first.state_dict(), "a checkpoint needs no rotations"
    assert torch.equal(copy.deepcopy(first).rotations, first.rotations)


def test_the_cost_of_lsh_does_not_depend_on_how_tokens_fall_into_buckets() -> None:
    """All tokens in one bucket: the rows are as many and as long as for evenly filled buckets."""
    module = build_mechanism("lsh", num_heads=1, head_dim=16, count_duplicates=True, **OPTIONS)
    even, same = torch.randn(1, 1, 500, 16), torch.ones(1, 1, 500, 16)
    for causal in (False, True):
        shapes = []
        for x in (even, same):
            tiles, _ = module.visits(x, x, 500, AttentionCall(causal))
            shapes.append([(tile.queries.shape, tile.keys.shape) for tile in tiles])
        assert shapes[0] == shapes[1]
        pairs = sum(q.numel() * k[-1] for q, k in shapes[0])
        assert pairs <= 3 * 500 * OPTIONS["num_hashes"] * 2 * OPTIONS["bucket_size"]


@pytest.mark.thorough
@every_case("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_case("options", FORMS[:2] + FORMS[-3:-1], ids=str)
@every_case("causal", [False, True])
def test_lsh_in_half_precision_hashes_the_same_on_every_path(causal: bool, options: dict, dtype: torch.dtype) -> None:
    """Few pairs are compared densely and many are not: a text alone has the buckets that it has in a padded batch."""
    q, k, v = (x.to(dtype) for x in inputs(150))
    padded = [torch.nn.functional.pad(x, (0, 0, 0, 400)) for x in (q, k, v)]
    mask = torch.zeros(2, 550, dtype=torch.bool)
    mask[:, :150] = True
    module = build_mechanism("lsh", num_heads=4, head_dim=16, **{**OPTIONS, **options})
    alone = attend(q, k, v, module, causal=causal)
    found = attend(*padded, mechanism=module, causal=causal, padding_mask=mask)[:, :, :150]
    bound = 0.03 if dtype == torch.bfloat16 else 0.004
    torch.testing.assert_close(found, alone, atol=bound, rtol=0)
    torch.testing.assert_close(alone.double(), reference_attend(q, k, v, module, causal=causal), atol=bound, rtol=0)


def test_long_keys_of_lsh_do_not_leave_the_range_of_fp16() -> None:
    q, k, v = (x.half() for x in inputs(60))
    k = (400 * k.float()).half()
    module = build_mechanism("lsh", num_heads=4, head_dim=16, shared_qk=True, **OPTIONS)
    torch.testing.assert_close(
        attend(q, k, v, module, scaling=1e-3).double(),
        reference_attend(q, k, v, module, scaling=1e-3),
        atol=0.01,
        rtol=0,
    )


ROUTING_OPTIONS = {"num_clusters": 8, "window_per_cluster": 24}


def routing(**options: object) -> Routing:
    return build_mechanism("routing", num_heads=4, head_dim=16, **{**ROUTING_OPTIONS, **options})


@every_case("way", ["plain", "reentrant", "not reentrant"])
def test_routing_centroids_follow_the_tokens_once_for_each_backward_pass(way: str) -> None:
    module, (q, k, v) = routing(decay=0.9), inputs(300, grad=True)
    before = module.centroids.clone()
    vectors = [F.layer_norm(x, (16,)) for x in (q.detach(), k.detach().repeat_interleave(2, 1))]
    expected = before.clone()
    for h in range(4):
        for c in range(8):
            chosen = [x[:, h][(x[:, h] @ before[h].T).argmax(-1) == c] for x in vectors]
            halves = sum(0.1 / 2 * x.mean(0) for x in chosen if len(x))
            expected[h, c] = F.normalize(0.9 * before[h, c] + halves, dim=0)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, module)

    out = call(q, k, v) if way == "plain" else checkpoint(call, q, k, v, use_reentrant=way == "reentrant")
    assert torch.equal(module.centroids, before)
    out.square().sum().backward()
    torch.testing.assert_close(module.centroids, expected, atol=1e-6, rtol=0)
    gradient = q.grad.clone()
    fresh = routing(decay=1.0)
    q.grad = None
    attend(q, k, v, fresh).square().sum().backward()
    torch.testing.assert_close(gradient, q.grad, atol=1e-6, rtol=0)


def test_routing_centroids_rest_without_training_or_gradients() -> None:
    module, (q, k, v) = routing(decay=0.5), inputs(300, grad=True)
    before = module.centroids.clone()
    with torch.no_grad():
        attend(q, k, v, module)
    attend(q, k, v, module.eval()).sum().backward()
    attend(*(x.detach() for x in (q, k, v)), mechanism=module.train())
    assert torch.equal(module.centroids, before)


def test_a_routing_centroid_of_queries_alone_moves_by_their_half() -> None:
    module, wanted = routing(num_clusters=2, decay=0.6), torch.zeros(4, 2, 16)
    module.centroids.copy_(torch.stack([torch.eye(16)[0], torch.eye(16)[1]]).expand(4, 2, 16))
    q, k = (x.expand(1, 4, 5, 16).clone().requires_grad_() for x in torch.eye(16)[:2, None, None, None])
    attend(q, k, k, module).sum().backward()
    for c, x in enumerate((q, k)):
        wanted[:, c] = F.normalize(0.6 * torch.eye(16)[c] + 0.4 / 2 * F.layer_norm(x.detach()[0, :, 0], (16,)), dim=-1)
    torch.testing.assert_close(module.centroids, wanted, atol=1e-6, rtol=0)


def test_padding_moves_no_routing_centroid() -> None:
    first, second = routing(decay=0.5), routing(decay=0.5)
    q, k, v = inputs(100, grad=True)
    attend(q, k, v, first).sum().backward()
    padded = [F.pad(x.detach(), (0, 0, 40, 0), value=9.0).requires_grad_() for x in (q, k, v)]
    attend(*padded, mechanism=second, padding_mask=(torch.arange(140) >= 40).expand(2, -1)).sum().backward()
    torch.testing.assert_close(first.centroids, second.centroids)


@pytest.mark.slow
def test_compiled_training_moves_the_routing_centroids_as_well() -> None:
    plain, compiled = routing(decay=0.5), routing(decay=0.5)
    q, k, v = inputs(300, grad=True)
    attend(q, k, v, plain).sum().backward()
    torch.compile(lambda *x: attend(*x, mechanism=compiled), fullgraph=True, backend="aot_eager")(
        q, k, v
    ).sum().backward()
    torch.testing.assert_close(plain.centroids, compiled.centroids)


class Layer(torch.nn.Module):
    """A layer with a parameter next to the mechanism."""

    def __init__(self, mechanism: Routing) -> None:
        super().__init__()
        self.mechanism, self.scale = mechanism, torch.nn.Parameter(torch.ones(()))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, self.mechanism) * self.scale


def centroids_of_this_process() -> dict[str, Tensor]:
    """Of a mechanism that does not meet the others, of one where the second process skips a batch, and in
    DistributedDataParallel."""
    rank = dist.get_rank()
    batches = [[x.split(1)[rank].detach().requires_grad_() for x in inputs(60)] for _ in range(3)]
    alone, skipping = routing(decay=0.5), routing(decay=0.5)
    for number, batch in enumerate(batches):
        attend(*batch, mechanism=alone).sum().backward()
        if rank == 0 or number != 1:  # the second process has nothing to learn from in one of them
            attend(*batch, mechanism=skipping).sum().backward()
        synchronise_centroids(skipping)
    synchronise_centroids(skipping)  # nothing is left to share
    parallel = torch.nn.parallel.DistributedDataParallel(Layer(routing(decay=0.5)))
    for batch in batches:
        parallel(*batch).sum().backward()
        synchronise_centroids(parallel)
    return {"alone": alone.centroids, "skipping": skipping.centroids, "parallel": parallel.module.mechanism.centroids}


@pytest.mark.slow
def test_routing_centroids_of_several_processes_are_those_of_one() -> None:
    """A process that skips a batch stops no other, and the other's tokens of that batch count."""
    first, second = PAIR.run(centroids_of_this_process)
    found = {name: [first[name], second[name]] for name in first}
    assert not torch.allclose(*found["alone"])
    torch.manual_seed(0)
    whole, without_a_row = routing(decay=0.5), routing(decay=0.5)
    for number in range(3):
        batch = inputs(60, grad=True)
        attend(*batch, whole).sum().backward()
        attend(*(x[:1] if number == 1 else x for x in batch), mechanism=without_a_row).sum().backward()
    for centroids, expected in zip(
        found["parallel"] + found["skipping"], 2 * [whole] + 2 * [without_a_row], strict=True
    ):
        torch.testing.assert_close(centroids, expected.centroids)


def test_the_learned_router_of_routing_is_balanced_and_trained() -> None:
    module = routing(router="learned")
    assert [name for name, _ in module.named_parameters()] == ["router"]
    assert not list(routing().parameters())
    q, k, v = inputs(400, grad=True)
    # a common direction: without balance few clusters get all
    keys = k.detach().repeat_interleave(2, 1) + 2.0 * torch.randn(16)
    offset = module.offsets(keys, AttentionCall())
    mass = module.shares(keys, offset, exact=True).exp().sum(2)
    torch.testing.assert_close(mass, torch.full_like(mass, 50.0), atol=5.0, rtol=0)
    assert module.shares(keys, None, exact=True).exp().sum(2).amax() > 100
    attend(q, k, v, module).square().sum().backward()
    assert module.router.grad.abs().sum() > 0


def test_the_clusters_of_routing_follow_the_longest_input() -> None:
    for max_length, clusters, size in ((4096, 64, 64), (8192, 91, 91), (1, 1, 1), (None, 64, 64)):
        module = build_mechanism("routing", num_heads=1, head_dim=8, max_length=max_length)
        assert (module.num_clusters, module.size) == (clusters, size)


@pytest.mark.thorough
@pytest.mark.parametrize("router", ["kmeans", "learned"])
def test_a_plain_checkpoint_takes_routing_and_a_trained_one_comes_back(tmp_path, router: str) -> None:
    import hf_longattn.families as families

    options = {"mechanism": "routing", **ROUTING_OPTIONS, "router": router, "decay": 0.5}
    plain_model("bert").save_pretrained(tmp_path / "plain")
    cls = families.LongBertModel
    model = cls.from_pretrained(tmp_path / "plain", config=long_config("bert", options))
    ids = tokens(2, 300)
    model.train()(ids).last_hidden_state.square().sum().backward()
    if router == "learned":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.01
    model.eval().save_pretrained(tmp_path / "long")
    again = cls.from_pretrained(tmp_path / "long").eval()
    with torch.no_grad():
        assert torch.equal(model(ids).last_hidden_state, again(ids).last_hidden_state)
    kept = [value for name, value in again.state_dict().items() if name.endswith(("centroids", "router"))]
    assert len(kept) == 3
    assert all(torch.isfinite(value).all() for value in kept)
