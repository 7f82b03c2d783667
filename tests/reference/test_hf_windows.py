"""`window2d` equals the windows of transformers' Swin and SAM wherever these pad nothing, and with ``padding=zeros`` where they do;
:class:`GridBias` equals the tables of Swin and BEiT."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BeitConfig, SamVisionConfig, SwinConfig
from transformers.models.beit.modeling_beit import BeitRelativePositionBias
from transformers.models.sam.modeling_sam import SamVisionLayer
from transformers.models.swin.modeling_swin import SwinLayer

from hf_longattn import attend, build_mechanism
from hf_longattn.engines.score_terms import GridBias
from hf_longattn.engines.token_grid import Grid
from tests.cases import every_case

HEADS, DIM, WINDOW = 2, 8, 4
WIDTH = HEADS * DIM


def windows(
    q: Tensor, k: Tensor, v: Tensor, grid: Grid, layer: int = 0, biases: tuple[Tensor, Tensor] | None = None, **arguments: Any
) -> Tensor:
    """The output ``(B, N, H · D)`` of ``window2d``, with padding where the biases of keys and values are given."""
    padding = "none" if biases is None else "zeros"
    mechanism = build_mechanism("window2d", num_heads=HEADS, head_dim=DIM, window=WINDOW, shift="alternate", padding=padding).eval()
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


def same_with_gradients(ours: Tensor, theirs: Tensor, inputs: list[Tensor], softmax: torch.dtype = torch.double) -> None:
    """Up to the rounding of the dtype in which they compute the softmax."""
    close = functools.partial(torch.testing.assert_close, rtol=1e-7, atol=1e-7 if softmax == torch.double else 2e-4)
    close(ours, theirs)
    weight = torch.randn_like(theirs)
    for got, wanted in zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (ours, theirs)), strict=True):
        close(got, wanted)


def padding_of(projection: nn.Linear, sizes: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """The biases of keys and values in a fused projection, for sizes that are padded."""
    return None if all(size % WINDOW == 0 for size in sizes) else tuple(projection.bias.chunk(3)[1:])  # type: ignore[return-value]


PADDED = [(5, 8), (9, 11), (8, 13), (23, 19)]


@every_case("sizes", [(8, 8), (12, 20), (16, 8), (24, 28), *PADDED])
@every_case("shifted", [False, True])
def test_window2d_equals_a_layer_of_swin(sizes: tuple[int, int], shifted: bool) -> None:
    """A whole layer, its bias table and the shift included; its mask has -100 where ours has no pair, which rounds to the same."""
    config = SwinConfig(embed_dim=WIDTH, window_size=WINDOW, num_heads=[HEADS], depths=[2], attn_implementation="eager", drop_path_rate=0.0)
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
    inputs = [hidden, attention.relative_position_bias.relative_position_bias_table, attention.k_proj.bias, attention.v_proj.bias]
    same_with_gradients(ours, theirs, inputs, torch.float)


@every_case("sizes", [(8, 8), (20, 16), (3, 2), *PADDED])
def test_window2d_equals_a_layer_of_sam(sizes: tuple[int, int]) -> None:
    """Without SAM's decomposed relative positions, which depend on the queries."""
    config = SamVisionConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, mlp_dim=32, use_rel_pos=False, window_size=WINDOW, attn_implementation="eager"
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
