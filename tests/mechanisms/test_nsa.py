"""Native sparse attention: the three branches against their equations by hand, the shared selection, the gates and what a cache keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.common import accelerator
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.nsa import NSA
from hf_longattn.memory import SUMMARY_LAYER
from tests.cells import every_cell
from tests.mechanisms.definition import Attention
from tests.reference.small_models import long_like, plain_model, tokens

SMALL = {"compress_size": 8, "compress_stride": 4, "block_size": 16, "num_blocks": 5, "window": 24, "hidden": 8}


def built(heads: int = 4, trained: bool = True, **options: object) -> NSA:
    module = build_mechanism("nsa", num_heads=heads, head_dim=16, **{**SMALL, **options}).double()
    if trained:
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    assert isinstance(module, NSA)
    return module


def inputs(length: int, batch: int = 1, heads: int = 4, kv_heads: int = 2, grad: bool = False) -> list[Tensor]:
    shapes = [(batch, heads, length, 16), (batch, kv_heads, length, 16), (batch, kv_heads, length, 16)]
    return [torch.randn(shape, dtype=torch.float64).requires_grad_(grad) for shape in shapes]


def only(module: NSA, branch: int) -> NSA:
    """The module with one gate open and the others closed."""
    with torch.no_grad():
        module.gate.zero_()
        module.gate_bias.fill_(-1e4)[:, branch] = 1e4
    return module


def phi(module: NSA, name: str, block: Tensor) -> Tensor:
    """Equation 7 for one block ``(l, D)``."""
    mlp = getattr(module, name)
    hidden = ((block + mlp.positions).reshape(-1) @ mlp.first.flatten(0, 1) + mlp.first_bias).relu()
    return block.mean(0) + hidden @ mlp.second + mlp.second_bias


def compressed_weights(module: NSA, q: Tensor, k: Tensor, at: int, head: int) -> Tensor:
    """Softmax of query ``at`` over the blocks that have ended, one block after the other (equation 8)."""
    size, step = module.options.compress_size, module.options.compress_stride
    blocks = [phi(module, "keys", k[0, head // 2, m * step : m * step + size]) for m in range((at + 1 - size) // step + 1)]
    return (torch.stack(blocks) @ q[0, head, at] / 4).softmax(0)


@pytest.mark.thorough
@every_cell("at", [7, 30, 149, 299])
def test_each_branch_is_its_equation(at: int) -> None:
    q, k, v = inputs(300)
    module, o = built(), built().options
    with torch.no_grad():
        for head in range(4):
            weights = compressed_weights(module, q, k, at, head)
            step, size = o.compress_stride, o.compress_size
            values = torch.stack([phi(module, "values", v[0, head // 2, m * step : m * step + size]) for m in range(len(weights))])
            found = attend(q, k, v, only(module, 0), causal=True)[0, head, at]
            torch.testing.assert_close(found, weights @ values, atol=1e-9, rtol=0)

            group = [compressed_weights(module, q, k, at, other) for other in (head // 2 * 2, head // 2 * 2 + 1)]
            own = at // o.block_size
            scores = {}
            for block in range(own):  # equation 9, blocks counted from 0, and equation 10
                met = [4 * block + m - n for m in range(4) for n in range(2)]
                scores[block] = sum(float(one[i]) for one in group for i in met if 0 <= i < len(one))
            fixed = {own, 0, max(own - 1, 0)}
            others = sorted((block for block in scores if block not in fixed), key=lambda block: (-scores[block], block))
            chosen = sorted(fixed | set(others[: o.num_blocks - 3]))
            columns = torch.tensor([j for block in chosen for j in range(block * 16, min(block * 16 + 16, at + 1))])
            seen = (k[0, head // 2, columns] @ q[0, head, at] / 4).softmax(0) @ v[0, head // 2, columns]
            torch.testing.assert_close(attend(q, k, v, only(module, 1), causal=True)[0, head, at], seen, atol=1e-9, rtol=0)
    torch.testing.assert_close(
        attend(q, k, v, only(module, 2), causal=True), attend(q, k, v, "window", window=24, causal=True), atol=1e-9, rtol=0
    )


def test_it_starts_as_the_mean_of_its_branches_with_means_of_blocks() -> None:
    q, k, v = inputs(200)
    module = built(trained=False)
    assert all(torch.allclose(gate, torch.full_like(gate, 1 / 3)) for gate in module.gates(q))
    blocks = k.unfold(2, 8, 4).transpose(-1, -2)
    real = torch.ones(1, blocks.shape[2], 8, dtype=torch.bool)
    torch.testing.assert_close(module.keys(blocks, real), blocks.mean(3), atol=1e-12, rtol=0)
    expected = sum(attend(q, k, v, only(built(trained=False), branch), causal=True) for branch in range(3)) / 3
    torch.testing.assert_close(attend(q, k, v, module, causal=True), expected, atol=1e-7, rtol=0)  # gates are initialised in float32


def test_query_heads_of_a_key_head_select_the_same_blocks() -> None:
    q, k, _ = inputs(300, heads=8)
    weights = only(built(8), 1).weights(q, k, causal=True)[0, :, :, :288] > 0
    blocks = weights.unflatten(-1, (18, 16)).any(-1).unflatten(0, (2, 4))
    assert (blocks == blocks[:, :1]).all()
    assert (blocks[0, 0] != blocks[1, 0]).any()
    own = torch.arange(300) // 16
    assert (blocks[:, 0, :288].sum(-1) == (own[:288] + 1).clamp(max=5)).all()
    assert blocks[:, 0, :, 0].all()


@every_cell("causal", [False, True])
@every_cell("length", [5, 37, 130, 330])
def test_gradients_of_every_parameter_are_those_of_the_definition(length: int, causal: bool) -> None:
    q, k, v = inputs(length, batch=2, grad=True)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, : length // 3] = False
    mask[1, length // 2 : length // 2 + length // 5] = False
    module = built()
    out, expected = (run(q, k, v, module, causal=causal, padding_mask=mask) * mask[:, None, :, None] for run in (attend, reference_attend))
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=0)
    weight = torch.randn_like(out)
    leaves = (q, k, v, *module.parameters())
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), leaves) for x in (out, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-6)


def test_gradcheck_with_parameters() -> None:
    q, k, v = inputs(40, heads=2, kv_heads=1, grad=True)
    module = built(2)
    attention = Attention(module, causal=True)
    names, leaves = zip(*attention.named_parameters(), strict=True)

    def run(q: Tensor, k: Tensor, v: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(attention, dict(zip(names, parameters, strict=True)), (q, k, v))

    assert torch.autograd.gradcheck(run, (q, k, v, *leaves), fast_mode=True)


def test_documents_of_a_row_are_what_they_are_alone() -> None:
    first, second = inputs(90), inputs(210)
    module = built()
    joined = [torch.cat(pair, 2) for pair in zip(first, second, strict=True)]
    documents = torch.cat([torch.zeros(1, 90), torch.ones(1, 210)], 1).long()
    out = attend(*joined, module, causal=True, documents=documents)
    torch.testing.assert_close(out[:, :, :90], attend(*first, module, causal=True), atol=1e-9, rtol=0)
    torch.testing.assert_close(out[:, :, 90:], attend(*second, module, causal=True), atol=1e-9, rtol=0)


def test_equal_blocks_go_to_the_earlier_one() -> None:
    q, k, v = torch.ones(1, 2, 200, 16), torch.ones(1, 1, 200, 16), torch.randn(1, 1, 200, 16)
    for run in (attend, reference_attend):
        out = run(q, k, v, only(built(2).float(), 1), causal=True)[0, 0, 199]
        seen = torch.cat([torch.arange(48), torch.arange(176, 200)])
        torch.testing.assert_close(out.float(), v[0, 0, seen].mean(0), atol=1e-5, rtol=0)


def test_a_cache_keeps_compressed_keys_and_gives_the_same_tokens() -> None:
    layers = {"num_hidden_layers": 2}
    longer = long_like(plain_model("llama", "LlamaForCausalLM", **layers), "llama", {"mechanism": "nsa", **SMALL}, **layers)
    for name, parameter in longer.named_parameters():
        if "long_attention" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    longer, ids = longer.double().eval(), tokens(2, 150)
    assert set(longer.config.layer_types) == {SUMMARY_LAYER}
    cache, steps = DynamicCache(config=longer.config), []
    with torch.no_grad():
        whole = longer(ids, use_cache=False).logits
        for begin, end in [(0, 60), (60, 67), *((i, i + 1) for i in range(67, 100))]:
            steps.append(longer(ids[:, begin:end], past_key_values=cache).logits)
        cache.crop(-13)
        for begin, end in [(87, 90), *((i, i + 1) for i in range(90, 150))]:
            steps.append(longer(ids[:, begin:end], past_key_values=cache).logits)
    found = torch.cat([torch.cat(steps[:35], 1)[:, :87], *steps[35:]], 1)
    torch.testing.assert_close(found, whole, atol=1e-8, rtol=0)
    tables = cache.layers[0].tables
    assert tables["keys"].shape[2] == tables["values"].shape[2] == -(-150 // SMALL["compress_stride"])


@every_cell(
    ("options", "sentence"),
    [
        (
            {"compress_size": 10},
            "'compress_stride' of mechanism 'nsa' is 4, but must divide compress_size=10 and block_size=16; for example compress_stride=2",
        ),
        ({"block_size": 18}, "is 4, but must divide compress_size=8 and block_size=18; for example compress_stride=2"),
        ({"num_blocks": 2}, "'num_blocks' of mechanism 'nsa' is 2, but 1 initial and 2 local blocks are always selected"),
        ({"local_blocks": 0}, "'local_blocks' of mechanism 'nsa' is 0, but must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        built(**options)


def test_blocks_that_are_always_selected_have_room() -> None:
    """In the bidirectional form an even number of local blocks is one more: half of it on each side, and the query's own."""
    narrow = {"num_blocks": 3, "initial_blocks": 1, "local_blocks": 2}
    module, (q, k, v) = built(2, **narrow), inputs(64, heads=2)
    attend(q, k, v, module, causal=True)
    with pytest.raises(OptionError, match=r"always selects 4 blocks in its bidirectional form, which this call needs.*num_blocks is 3"):
        attend(q, k, v, module)
    for more in ({"num_blocks": 4}, {"local_blocks": 1}, {"initial_blocks": 0}):
        attend(q, k, v, built(2, **narrow | more))


def test_pairs_are_what_is_seen() -> None:
    q, k, _ = inputs(320, heads=2)
    module = built(2)
    near = sum(min(i + 1, 24) for i in range(320))
    ended = sum(max(0, (i + 1 - 8) // 4 + 1) for i in range(320))
    selected = int((only(module, 1).weights(q, k, causal=True)[0, 0] > 0).sum())
    assert module.pairs(320, True) == near + ended + selected
    near = sum(min(i, 12) + 1 + min(319 - i, 12) for i in range(320))
    assert module.pairs(320) == near + 320 * (320 // 4 + 5 * 16)


@every_cell("options", [{}, {"compress_size": 16, "block_size": 8}, {"compress_size": 4}], ids=str)
@every_cell("causal", [False, True])
@every_cell("heads", [2, 4])
def test_an_accelerator_chooses_in_float32_what_float64_chooses(
    options: dict[str, int], causal: bool, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With padding at both ends of rows, few queries, and blocks of equal tokens, which float32 leaves in doubt."""
    torch.manual_seed(0)
    module = built(heads, **options).float()
    q, k, _ = (x.float() for x in inputs(501, 2, heads))
    k[0, :, 64:128] = k[0, :, :1]
    for mask in (None, (torch.arange(501) < torch.tensor([[501], [420]])) & (torch.arange(501) >= 5)):
        for queries in (501, 77):
            call = AttentionCall.of(causal=causal, padding_mask=mask)
            tensors = q[:, :, -queries:], k, call
            expected = module._search(*tensors)
            with monkeypatch.context() as patch:
                patch.setattr(accelerator, "accelerated", lambda _: True)
                patch.setattr(accelerator, "STEP_BYTES", 1 << 20)
                assert torch.equal(module._search(*tensors).sort(-1).values, expected.sort(-1).values)


def test_few_queries_are_searched_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, rows = built().float(), []
    q, k, _ = (x.float() for x in inputs(501, 2))
    best = module._best
    monkeypatch.setattr(module, "_best", lambda weights, *rest: rows.append(weights.shape[2]) or best(weights, *rest))
    monkeypatch.setattr(accelerator, "accelerated", lambda _: True)
    module._search(q, k, AttentionCall(causal=True))
    assert sum(rows) < 25
