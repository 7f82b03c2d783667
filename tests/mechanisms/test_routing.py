"""Routing attention: who meets whom, centroids that follow the tokens, the learned router and its balance, bad options."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_longattn import LongAttentionConfig, attend, build_mechanism, reference_attend
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.routing import Routing, synchronise_centroids
from tests.cells import every_cell
from tests.grids import alternately
from tests.ranks import PAIR
from tests.reference.small_models import long_config, long_like, plain_model, tokens

OPTIONS = {"num_clusters": 8, "window_per_cluster": 24}
FORMS = [
    {"window": 30},
    {"router": "learned"},
    {"router": "learned", "window": 9},
    {"num_clusters": 3, "window_per_cluster": 500},
    {"num_clusters": 40, "window_per_cluster": 1},
    {"window_per_cluster": 300},
    {"normalise": True},
    {"normalise": True, "router": "learned", "window": 9},
]


def inputs(length: int, grad: bool = False, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = [(2, 4, length, 16), (2, 2, length, 16), (2, 2, length, 16)]
    return [torch.randn(shape, dtype=dtype).requires_grad_(grad) for shape in shapes]


def routing(**options: object) -> Routing:
    return build_mechanism("routing", num_heads=4, head_dim=16, **{**OPTIONS, **options})


@every_cell(("options", "causal"), alternately(FORMS), ids=str)
def test_every_form_equals_its_definition(options: dict, causal: bool) -> None:
    module = routing(**options)
    q, k, v = inputs(320, grad=True)
    mask = torch.ones(2, 320, dtype=torch.bool)
    mask[0, :90] = False
    mask[1, 200:230] = False
    out = attend(q, k, v, module.eval(), causal=causal, padding_mask=mask)
    expected = reference_attend(q, k, v, module, causal=causal, padding_mask=mask)
    real = mask[:, None, :, None]
    torch.testing.assert_close(out.double() * real, expected * real, atol=1e-5, rtol=0)
    weight, leaves = torch.randn_like(out) * real, (q, k, v, *module.parameters())
    got, wanted = (torch.autograd.grad((x * weight).sum(), leaves) for x in (out, expected))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-4)
    few = attend(q[:, :, -250:], k, v, module, causal=causal, padding_mask=mask)
    torch.testing.assert_close(few * real[:, :, -250:], (out * real)[:, :, -250:], atol=1e-5, rtol=0)
    if causal:
        again = attend(q[:, :, :299], k[:, :, :299], v[:, :, :299], module, causal=True, padding_mask=mask[:, :299])
        torch.testing.assert_close(again * real[:, :, :299], (out * real)[:, :, :299], atol=1e-5, rtol=0)


def test_a_query_sees_the_keys_nearest_to_the_centroid_of_its_cluster() -> None:
    module = routing()
    q, k, _ = inputs(200)
    weights = module.weights(q, k)[1, 2]
    routed = [F.layer_norm(x, (16,)) @ module.centroids[2].T for x in (q[1, 2], k[1, 1])]
    for i in range(200):
        cluster = routed[0][i].argmax()
        best = routed[1][:, cluster].topk(24).indices
        assert set(weights[i].nonzero().flatten().tolist()) == set(best.tolist())


def test_normalised_scores_are_those_of_algorithm_1() -> None:
    """With one cluster of everything there is nothing to route: what is left are the scores."""
    module = routing(normalise=True, num_clusters=1, window_per_cluster=200)
    for causal in (False, True):
        q, k, v = (4 * x for x in inputs(200))
        q_hat, k_hat = ((x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() for x in (q, k))
        expected = F.scaled_dot_product_attention(q_hat, k_hat, v, is_causal=causal, enable_gqa=True)
        torch.testing.assert_close(attend(q, k, v, module, causal=causal), expected, atol=1e-5, rtol=0)
        assert not module.covers(200, causal)


@pytest.mark.thorough
@torch.no_grad()
@every_cell("options", [{}, {"normalise": True}, {"normalise": True, "router": "learned", "window": 5}], ids=str)
def test_steps_of_a_model_are_its_one_call(options: dict) -> None:
    choice = {"mechanism": "routing", "num_clusters": 3, "window_per_cluster": 12, **options}
    model, ids = long_like(plain_model("gpt2", "GPT2LMHeadModel"), "gpt2", choice).double(), tokens(2, 60)
    whole, cache, steps = model(ids, use_cache=False).logits, None, []
    for piece in ids.split([50, *[1] * 10], 1):
        out = model(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-9, rtol=1e-7)


def test_a_causal_query_sees_the_last_keys_of_its_cluster() -> None:
    module = routing(window_per_cluster=5)
    q, k, _ = inputs(200)
    weights = module.weights(q, k, causal=True)[0, 1]
    mine, theirs = ((F.layer_norm(x, (16,)) @ module.centroids[1].T).argmax(-1).tolist() for x in (q[0, 1], k[0, 0]))
    for i in range(200):
        candidates = [j for j in range(i + 1) if theirs[j] == mine[i]][-5:]
        assert weights[i].nonzero().flatten().tolist() == (candidates or [i])


@every_cell("way", ["plain", "reentrant", "not reentrant"])
def test_centroids_follow_the_tokens_once_for_each_backward_pass(way: str) -> None:
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


def test_centroids_rest_without_training_or_gradients() -> None:
    module, (q, k, v) = routing(decay=0.5), inputs(300, grad=True)
    before = module.centroids.clone()
    with torch.no_grad():
        attend(q, k, v, module)
    attend(q, k, v, module.eval()).sum().backward()
    attend(*(x.detach() for x in (q, k, v)), mechanism=module.train())
    assert torch.equal(module.centroids, before)


def test_a_cluster_of_queries_alone_moves_by_their_half() -> None:
    module, wanted = routing(num_clusters=2, decay=0.6), torch.zeros(4, 2, 16)
    module.centroids.copy_(torch.stack([torch.eye(16)[0], torch.eye(16)[1]]).expand(4, 2, 16))
    q, k = (x.expand(1, 4, 5, 16).clone().requires_grad_() for x in torch.eye(16)[:2, None, None, None])
    attend(q, k, k, module).sum().backward()
    for c, x in enumerate((q, k)):
        wanted[:, c] = F.normalize(0.6 * torch.eye(16)[c] + 0.4 / 2 * F.layer_norm(x.detach()[0, :, 0], (16,)), dim=-1)
    torch.testing.assert_close(module.centroids, wanted, atol=1e-6, rtol=0)


def test_padding_moves_no_centroid() -> None:
    first, second = routing(decay=0.5), routing(decay=0.5)
    q, k, v = inputs(100, grad=True)
    attend(q, k, v, first).sum().backward()
    padded = [F.pad(x.detach(), (0, 0, 40, 0), value=9.0).requires_grad_() for x in (q, k, v)]
    attend(*padded, mechanism=second, padding_mask=(torch.arange(140) >= 40).expand(2, -1)).sum().backward()
    torch.testing.assert_close(first.centroids, second.centroids)


@pytest.mark.thorough
def test_centroids_find_the_clusters_that_are_there() -> None:
    """Tokens around eight directions: after training, those of one direction share a cluster more than they did."""
    module = build_mechanism("routing", num_heads=1, head_dim=16, num_clusters=8, window_per_cluster=64, decay=0.7, seed=5)
    centre = torch.randn(8, 16)
    label = torch.randint(8, (1, 1, 512))

    def within() -> float:
        x = F.layer_norm(centre[label] + 0.3 * torch.randn(1, 1, 512, 16), (16,))
        return (x * module.centroids[0][module.clusters(x, None)]).sum(-1).mean().item() / 4

    before = within()
    for _ in range(30):
        x = (centre[label] + 0.3 * torch.randn(1, 1, 512, 16)).requires_grad_()
        attend(x, x, x, module).sum().backward()
    assert within() > before + 0.1


@pytest.mark.slow
def test_compiled_training_moves_the_centroids_as_well() -> None:
    plain, compiled = routing(decay=0.5), routing(decay=0.5)
    q, k, v = inputs(300, grad=True)
    attend(q, k, v, plain).sum().backward()
    torch.compile(lambda *x: attend(*x, mechanism=compiled), fullgraph=True, backend="aot_eager")(q, k, v).sum().backward()
    torch.testing.assert_close(plain.centroids, compiled.centroids)


class Layer(torch.nn.Module):
    """A layer with a parameter next to the mechanism."""

    def __init__(self, mechanism: Routing) -> None:
        super().__init__()
        self.mechanism, self.scale = mechanism, torch.nn.Parameter(torch.ones(()))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, self.mechanism) * self.scale


def centroids_of_this_process() -> dict[str, Tensor]:
    """Of a mechanism that does not meet the others, of one where the second process skips a batch, and in DistributedDataParallel."""
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
def test_centroids_of_several_processes_are_those_of_one() -> None:
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
    for centroids, expected in zip(found["parallel"] + found["skipping"], 2 * [whole] + 2 * [without_a_row], strict=True):
        torch.testing.assert_close(centroids, expected.centroids)


def test_the_learned_router_is_balanced_and_trained() -> None:
    module = routing(router="learned")
    assert [name for name, _ in module.named_parameters()] == ["router"]
    assert not list(routing().parameters())
    q, k, v = inputs(400, grad=True)
    keys = k.detach().repeat_interleave(2, 1) + 2.0 * torch.randn(16)  # a common direction: without balance few clusters get all
    offset = module.offsets(keys, AttentionCall())
    mass = module.shares(keys, offset, exact=True).exp().sum(2)
    torch.testing.assert_close(mass, torch.full_like(mass, 50.0), atol=5.0, rtol=0)
    assert module.shares(keys, None, exact=True).exp().sum(2).amax() > 100
    attend(q, k, v, module).square().sum().backward()
    assert module.router.grad.abs().sum() > 0


def test_gradients_of_the_learned_router() -> None:
    module = build_mechanism("routing", num_heads=1, head_dim=4, router="learned", num_clusters=4, window_per_cluster=40).double()
    q, k, v = (x[:1, :1, :, :4].detach().requires_grad_() for x in inputs(270, dtype=torch.float64))
    router = module.router.detach().clone().requires_grad_()

    def call(router: Tensor, *x: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"router": router}, (*x, AttentionCall(causal=True)))

    assert torch.autograd.gradcheck(call, (router, q, k, v), fast_mode=True)


def test_sizes_follow_the_longest_input() -> None:
    for max_length, clusters, size in ((4096, 64, 64), (8192, 91, 91), (1, 1, 1), (None, 64, 64)):
        module = build_mechanism("routing", num_heads=1, head_dim=8, max_length=max_length)
        assert (module.num_clusters, module.size) == (clusters, size)


@pytest.mark.thorough
@pytest.mark.parametrize("router", ["kmeans", "learned"])
def test_a_plain_checkpoint_takes_it_and_a_trained_one_comes_back(tmp_path, router: str) -> None:
    import hf_longattn.families as families

    options = {"mechanism": "routing", **OPTIONS, "router": router, "decay": 0.5}
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


@every_cell(
    ("options", "words"),
    [
        ({"num_clusters": 0}, "at least 1"),
        ({"window_per_cluster": -1}, "at least 1"),
        ({"window": -2}, "at least 0"),
        ({"router": "best"}, "one of: kmeans, learned"),
        ({"decay": 1.5}, "at most 1"),
        ({"clusters": 4}, "num_clusters"),
    ],
    ids=str,
)
def test_bad_options_are_refused_when_the_config_is_made(options: dict, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        LongAttentionConfig("routing", **options)
