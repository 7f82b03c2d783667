"""Layers of transformers with the same mathematics: Swin, SAM, BEiT, MPNet, DeBERTa, Reformer and Nyströmformer."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import BeitConfig, ReformerConfig, SamVisionConfig, SwinConfig
from transformers.models.beit.modeling_beit import BeitRelativePositionBias
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention
from transformers.models.reformer.modeling_reformer import LSHSelfAttention
from transformers.models.sam.modeling_sam import SamVisionLayer
from transformers.models.swin.modeling_swin import SwinLayer

import hf_longattn.families as families
from hf_longattn import attend, build_mechanism
from hf_longattn.engines.bucketed import Sorted
from hf_longattn.engines.call import AttentionCall, GatherTile, inverse_permutation
from hf_longattn.engines.gathered import gathered_attention
from hf_longattn.engines.score_terms import GridBias
from hf_longattn.engines.token_grid import Grid
from hf_longattn.errors import OptionError
from hf_longattn.mechanisms.lsh import LSH
from scripts.dev.tools.small_models import small_values
from tests.cases import every_case
from tests.reference.small_models import SHAPE, head_inputs, tokens

HEADS, DIM, WINDOW = 2, 8, 4
WIDTH = HEADS * DIM


def windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Grid,
    layer: int = 0,
    biases: tuple[Tensor, Tensor] | None = None,
    **arguments: Any,
) -> Tensor:
    """The output ``(B, N, H · D)`` of ``window2d``, with padding where the biases of keys and values are given."""
    padding = "none" if biases is None else "zeros"
    mechanism = build_mechanism(
        "window2d", num_heads=HEADS, head_dim=DIM, window=WINDOW, shift="alternate", padding=padding
    ).eval()
    mechanism.layer = layer
    if biases is not None:
        for name, bias in zip(("pad_key", "pad_value"), biases, strict=True):
            delattr(mechanism, name)
            setattr(mechanism, name, bias.view(HEADS, DIM))  # the layer's own, whose gradients are compared
    return attend(q, k, v, mechanism, grid=grid, **arguments).transpose(1, 2).flatten(2)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, DIM)).transpose(1, 2)


def random_weights(module: nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)


def same_with_gradients(
    ours: Tensor, theirs: Tensor, inputs: list[Tensor], softmax: torch.dtype = torch.double
) -> None:
    """Up to the rounding of the dtype in which they compute the softmax."""
    close = functools.partial(torch.testing.assert_close, rtol=1e-7, atol=1e-7 if softmax == torch.double else 2e-4)
    close(ours, theirs)
    weight = torch.randn_like(theirs)
    close(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (ours, theirs)))


def padding_of(projection: nn.Linear, sizes: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """The biases of keys and values in a fused projection, for sizes that are padded."""
    return None if all(size % WINDOW == 0 for size in sizes) else tuple(projection.bias.chunk(3)[1:])  # type: ignore[return-value]


PADDED = [(5, 8), (9, 11), (8, 13), (23, 19)]


@every_case("sizes", [(8, 8), (12, 20), (16, 8), (24, 28), *PADDED])
@every_case("shifted", [False, True])
def test_window2d_equals_a_layer_of_swin(sizes: tuple[int, int], shifted: bool) -> None:
    """A whole layer, its bias table and the shift included; its mask has -100 where ours has no pair, which rounds to
    the same."""
    config = SwinConfig(
        embed_dim=WIDTH,
        window_size=WINDOW,
        num_heads=[HEADS],
        depths=[2],
        attn_implementation="eager",
        drop_path_rate=0.0,
    )
    layer = SwinLayer(config, WIDTH, sizes, HEADS, shift_size=WINDOW // 2 if shifted else 0).double().eval()
    random_weights(layer)
    grid, attention = Grid(sizes), layer.attention
    hidden = torch.randn(2, grid.cells, WIDTH, dtype=torch.double, requires_grad=True)
    theirs = layer(hidden, sizes)[0]
    normed = layer.layernorm_before(hidden)
    q, k, v = (heads(projection(normed)) for projection in (attention.q_proj, attention.k_proj, attention.v_proj))
    bias = GridBias(attention.relative_position_bias.relative_position_bias_table.t(), (WINDOW, WINDOW))
    biases = None if sizes not in PADDED else (attention.k_proj.bias, attention.v_proj.bias)
    summed = hidden + attention.o_proj(windows(q, k, v, grid, int(shifted), biases, score_mod=bias))
    ours = summed + layer.mlp(layer.layernorm_after(summed))
    inputs = [
        hidden,
        attention.relative_position_bias.relative_position_bias_table,
        attention.k_proj.bias,
        attention.v_proj.bias,
    ]
    same_with_gradients(ours, theirs, inputs, torch.float)


@every_case("sizes", [(8, 8), (20, 16), (3, 2), *PADDED])
def test_window2d_equals_a_layer_of_sam(sizes: tuple[int, int]) -> None:
    """Without SAM's decomposed relative positions, which depend on the queries."""
    config = SamVisionConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        mlp_dim=32,
        use_rel_pos=False,
        window_size=WINDOW,
        attn_implementation="eager",
    )
    layer = SamVisionLayer(config, window_size=WINDOW).double().eval()
    random_weights(layer)
    hidden = torch.randn(2, *sizes, WIDTH, dtype=torch.double, requires_grad=True)
    theirs = layer(hidden)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    q, k, v = (heads(x) for x in layer.attn.qkv(layer.layer_norm1(hidden)).flatten(1, 2).chunk(3, -1))
    qkv = layer.attn.qkv
    summed = hidden + layer.attn.proj(windows(q, k, v, Grid(sizes), biases=padding_of(qkv, sizes))).unflatten(1, sizes)
    same_with_gradients(summed + layer.mlp(layer.layer_norm2(summed)), theirs, [hidden, qkv.bias], torch.float)


@pytest.mark.parametrize("sizes", [(3, 3), (6, 6)])
def test_a_grid_bias_equals_the_table_of_beit(sizes: tuple[int, int]) -> None:
    """Class token included, in which BEiT has an entry for each direction."""
    config = BeitConfig(image_size=sizes[0] * 16, patch_size=16, num_attention_heads=HEADS, hidden_size=WIDTH)
    module = BeitRelativePositionBias(config).double()
    random_weights(module)
    grid = Grid(sizes, prefix=1)
    bias = GridBias(module.relative_position_bias_table.t(), tuple(sizes)).on(grid)
    positions, nothing = torch.arange(grid.length), torch.zeros((), dtype=torch.double)
    ours = bias(nothing, torch.tensor(0), torch.arange(HEADS)[:, None, None], positions[:, None], positions)
    torch.testing.assert_close(ours[None], module(sizes))


V3 = {
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 32,
    "share_att_key": True,
    "type_vocab_size": 0,
}
VALUES: dict[str, dict[str, Any]] = {"mpnet": {}, "deberta-v2": V3}
MODEL_HEADS = [(base, head) for base in VALUES for head in families.FAMILIES[base].model_classes]
BASE_MODELS = [("mpnet", "MPNetModel"), ("deberta-v2", "DebertaV2Model")]
COVERING = {"mechanism": "window", "window": 800, "layers": {1: {"mechanism": "full"}}}


def values_of(base: str) -> dict[str, Any]:
    return {**small_values(base, SHAPE, initializer_range=0.2), **VALUES[base]}


def pair(base: str, head: str, long_attention: dict[str, Any], **changes: Any) -> tuple[Any, Any]:
    family, values = families.FAMILIES[base], {**values_of(base), **changes}
    torch.manual_seed(0)
    plain = getattr(transformers, head)(family.base_config_class(**values)).eval()
    longer = family.model_class(head)(family.config_class(**values, long_attention=long_attention)).eval()
    longer.load_state_dict(plain.state_dict())
    return plain, longer


def difference(plain: Any, longer: Any, inputs: dict[str, torch.Tensor]) -> float:
    real, found = inputs["attention_mask"].bool(), 0.0
    with torch.no_grad():
        expected, returned = plain(**inputs), longer(**inputs)
    for name, value in expected.items():
        rows = real if value.shape[: real.dim()] == real.shape else ...
        found = max(found, float((value[rows] - returned[name][rows]).abs().max()))
    return found


@every_case(("base", "head"), MODEL_HEADS, of=3, code=lambda base, head: base, ids=[head for _, head in MODEL_HEADS])
def test_every_head_of_mpnet_and_deberta_equals_transformers(base: str, head: str) -> None:
    plain, longer = pair(base, head, COVERING)
    inputs = head_inputs(head, length=150, pad_token=plain.config.pad_token_id)
    assert difference(plain, longer, inputs) < 3e-5
    longer.use_base_attention("eager")
    assert difference(plain, longer, inputs) < 3e-5


@every_case(
    "changes",
    [
        {"share_att_key": False},
        {"pos_att_type": "c2p"},
        {"pos_att_type": "p2c", "share_att_key": False, "position_biased_input": True},
        {"relative_attention": False, "pos_att_type": None, "position_biased_input": True},
        {"position_buckets": -1, "max_relative_positions": 60, "norm_rel_ebd": "none"},
        {"conv_kernel_size": 3, "type_vocab_size": 2, "embedding_size": 24},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_form_of_disentangled_attention_equals_transformers(changes: dict[str, Any]) -> None:
    plain, longer = pair("deberta-v2", "DebertaV2Model", COVERING, **changes)
    assert difference(plain, longer, head_inputs("", length=150, pad_token=0)) < 3e-5


@every_case(("base", "head"), BASE_MODELS)
def test_attentions_of_mpnet_and_deberta_equal_transformers(base: str, head: str) -> None:
    plain, longer = pair(base, head, {"mechanism": "full"})
    with torch.no_grad():
        expected, found = (model(tokens(2, 100), output_attentions=True).attentions for model in (plain, longer))
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(expected, found, strict=True))


@every_case(("base", "head"), BASE_MODELS)
def test_gradients_of_mpnet_and_deberta_equal_transformers(base: str, head: str) -> None:
    plain, longer = pair(base, head, {"mechanism": "window", "window": 700})
    for model in (plain, longer):
        model(tokens(2, 100)).last_hidden_state.square().mul(torch.arange(plain.config.hidden_size)).mean().backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), longer.named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) or not other.grad.any(), name
        assert one.grad is None or (one.grad - other.grad).abs().max() <= 1e-4 * (1 + one.grad.abs().max()), name


@pytest.mark.parametrize("base", VALUES)
def test_mpnet_and_deberta_have_a_window_by_default(base: str) -> None:
    assert families.FAMILIES[base].config_class().long_attention.mechanism == "window"


@every_case(("base", "head"), BASE_MODELS)
def test_mpnet_and_deberta_refuse_a_mechanism_without_scores(base: str, head: str) -> None:
    with pytest.raises(OptionError, match="has no scores"):
        pair(base, head, {"mechanism": "performer"})


def test_mpnet_refuses_global_tokens() -> None:
    with pytest.raises(OptionError, match="cannot pass global tokens"):
        pair("mpnet", "MPNetModel", {"mechanism": "longformer"})


def test_longer_deberta_keeps_the_buckets_of_the_short_model() -> None:
    config = families.LongDebertaV2Config(**values_of("deberta-v2"))
    config.max_position_embeddings = 4096
    assert families.LongDebertaV2Config(**config.to_dict()).max_relative_positions == 512


REFORMER_LENGTH, CHUNK, REFORMER_HEADS, REFORMER_WIDTH, REFORMER_SEED = 320, 32, 3, 16, 11


def reformer(num_hashes: int, num_buckets: int | list[int], causal: bool = False, after: int = 0) -> LSHSelfAttention:
    config = ReformerConfig(
        hidden_size=REFORMER_HEADS * REFORMER_WIDTH,
        num_attention_heads=REFORMER_HEADS,
        attention_head_size=REFORMER_WIDTH,
        lsh_attn_chunk_length=CHUNK,
        num_hashes=num_hashes,
        num_buckets=num_buckets,
        hash_seed=REFORMER_SEED,
        is_decoder=causal,
        attn_layers=["lsh"],
        lsh_num_chunks_after=after,
        lsh_attention_probs_dropout_prob=0.0,
        max_position_embeddings=REFORMER_LENGTH,
    )
    return LSHSelfAttention(config, layer_idx=0).eval()


def projected(module: LSHSelfAttention, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The shared vectors and the values, (B, H, N, D)."""
    return tuple(
        layer(hidden).unflatten(-1, (REFORMER_HEADS, REFORMER_WIDTH)).transpose(1, 2)
        for layer in (module.query_key, module.value)
    )


def ours(num_hashes: int, num_buckets: int, after: int = 0) -> LSH:
    return build_mechanism(
        "lsh",
        num_heads=REFORMER_HEADS,
        head_dim=REFORMER_WIDTH,
        shared_qk=True,
        count_duplicates=True,
        seed=REFORMER_SEED,
        bucket_size=CHUNK,
        num_hashes=num_hashes,
        num_buckets=num_buckets,
        num_chunks_after=after,
    )


@every_case(("num_buckets", "theirs"), [(16, 16), (64, [8, 8]), (128, [8, 16])])
def test_lsh_hashes_are_those_of_reformer(num_buckets: int, theirs: int | list[int]) -> None:
    module = reformer(3, theirs)
    x = torch.randn(2, REFORMER_HEADS, REFORMER_LENGTH, REFORMER_WIDTH)
    found = ours(3, num_buckets).hashes(x) + num_buckets * torch.arange(3)[:, None]
    assert torch.equal(found.flatten(2), module._hash_vectors(x, 3, None))


@every_case("after", [0, 1])
@every_case("num_buckets", [2, 16])
def test_one_round_of_lsh_equals_reformer_with_its_gradients(num_buckets: int, after: int) -> None:
    module = reformer(1, num_buckets, after=after)
    hidden = torch.randn(2, REFORMER_LENGTH, REFORMER_HEADS * REFORMER_WIDTH)
    expected = module(hidden).hidden_states
    x, v = projected(module, hidden)
    out = attend(x, x, v, ours(1, num_buckets, after)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
    weights = list(module.parameters())
    gradients = [torch.autograd.grad(y.square().sum(), weights) for y in (expected, out)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_rounds_of_lsh_equal_reformer_where_none_looks_into_another() -> None:
    module, mechanism = reformer(3, 8), ours(3, 8)
    hidden = torch.randn(2, REFORMER_LENGTH, REFORMER_HEADS * REFORMER_WIDTH)
    with torch.no_grad():
        expected = module(hidden).hidden_states.unflatten(-1, (REFORMER_HEADS, REFORMER_WIDTH)).transpose(1, 2)
        x, v = projected(module, hidden)
        out = attend(x, x, v, mechanism)
        first = (inverse_permutation(Sorted.of(mechanism.hashes(x), 8, None).order) < CHUNK).any(2)
    assert 0.5 < (~first).float().mean() < 0.9
    torch.testing.assert_close(out[~first], expected[~first], atol=1e-5, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_rounds_of_lsh_joined_into_one_circle_equal_reformer(causal: bool) -> None:
    module, mechanism = reformer(3, 8, causal), ours(3, 8)
    hidden = torch.randn(2, REFORMER_LENGTH, REFORMER_HEADS * REFORMER_WIDTH)
    with torch.no_grad():
        expected = module(hidden).hidden_states.unflatten(-1, (REFORMER_HEADS, REFORMER_WIDTH)).transpose(1, 2)
        x, v = projected(module, hidden)
        queries, keys = mechanism.prepared(x, x)
        chunks = Sorted.of(mechanism.hashes(x), 8, None).order.unflatten(-1, (-1, CHUNK)).flatten(2, 3)
        seen = torch.cat([chunks.roll(1, 2), chunks], -1)
        rows = [(a, b) for a, b in zip(chunks.chunk(3, 2), seen.chunk(3, 2), strict=True)]
        parts = [GatherTile(a, b, causal=causal, outside=(0, 0)) for a, b in rows]
        out = gathered_attention(queries, keys, v, parts, AttentionCall.of())
    alone = torch.zeros(2, REFORMER_HEADS, REFORMER_LENGTH, dtype=torch.bool)
    if causal:  # a token that sees nothing else sees itself
        alone = ~torch.stack([sees_another(a, b) for a, b in rows]).any(0)
        # transformers keeps it by a score of -1e5, next to which the logarithm of the number of rounds has two digits
        # in fp32.
        torch.testing.assert_close(v[alone], expected[alone], atol=0, rtol=1e-2)
    torch.testing.assert_close(out[~alone], expected[~alone], atol=1e-5, rtol=0)


def sees_another(queries: Tensor, keys: Tensor) -> Tensor:
    """Whether a row holds an earlier key for its query, (B, H, N) by position."""
    found = (keys[..., None, :] < queries[..., None]).any(-1)
    return torch.zeros(2, REFORMER_HEADS, REFORMER_LENGTH, dtype=torch.bool).scatter(
        -1, queries.flatten(2), found.flatten(2)
    )


NYSTROM_LENGTH = 256
TOLERANCE = 1e-4


def config(**changes: Any) -> transformers.NystromformerConfig:
    values = {
        "vocab_size": 300,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "max_position_embeddings": NYSTROM_LENGTH,
        "segment_means_seq_len": NYSTROM_LENGTH,
        "num_landmarks": 32,
        "conv_kernel_size": 33,
        "initializer_range": 0.1,
        "hidden_dropout_prob": 0.0,
    }
    return transformers.NystromformerConfig(**{**values, **changes})


@every_case("start", ["original", "exact"])
@every_case("landmarks", [16, 64, NYSTROM_LENGTH])
def test_nystrom_equals_the_self_attention_of_nystromformer(landmarks: int, start: str) -> None:
    theirs = NystromformerSelfAttention(config(num_landmarks=landmarks)).eval()
    theirs.init_option = start
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    ours = build_mechanism(
        "nystrom", num_heads=4, head_dim=12, num_landmarks=landmarks, conv_kernel=33, inv_coeff_init_option=start
    )
    ours.load_state_dict({"conv": theirs.conv.weight.detach()[:, 0, :, 0].clone()})
    hidden = torch.randn(2, NYSTROM_LENGTH, 48)
    results = []
    for which in ("theirs", "ours"):
        leaf = hidden.clone().requires_grad_()
        if which == "theirs":
            out = theirs(leaf)[0]
        else:
            q, k, v = (
                getattr(theirs, name)(leaf).unflatten(-1, (4, 12)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            out = attend(q, k, v, ours).transpose(1, 2).flatten(2)
        out.sin().sum().backward()
        results.append((out, leaf.grad))
    torch.testing.assert_close(*results, atol=TOLERANCE, rtol=0)
    gradients = theirs.conv.weight.grad[:, 0, :, 0], ours.conv.grad
    assert (gradients[0] - gradients[1]).abs().max() <= TOLERANCE * gradients[1].abs().max()
