"""`infini`: the equations written out segment by segment, the delta rule, and decoding from the memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_longattn import attend, build_mechanism, reference_attend
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.engines.common.sequences import advanced
from hf_longattn.errors import LongAttentionError, OptionError
from hf_longattn.mechanisms.infini import Infini
from tests.cells import every_cell

SIZE = 16


def built(delta_rule: bool, heads: int = 4) -> Infini:
    torch.manual_seed(0)
    mechanism = build_mechanism("infini", num_heads=heads, head_dim=8, segment_length=SIZE, delta_rule=delta_rule)
    assert isinstance(mechanism, Infini)
    torch.nn.init.normal_(mechanism.gate)
    return mechanism


def inputs(length: int, kv_heads: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(3, 4, length, 8, dtype=dtype), *torch.randn(2, 3, kv_heads, length, 8, dtype=dtype)


def padding(length: int) -> Tensor:
    mask = torch.ones(3, length, dtype=torch.bool)
    mask[0, : length // 3] = False
    mask[1, length - length // 4 :] = False
    mask[2, :5] = False
    mask[2, length // 2 : length // 2 + 3] = False
    return mask


def equations(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, delta_rule: bool) -> Tensor:
    """Equations 4 to 7 as they are printed, for one head: ``q, k, v (N, D)``."""
    memory, norm = torch.zeros(8, 8, dtype=q.dtype), torch.zeros(8, dtype=q.dtype)
    outs = []
    for q_s, k_s, v_s in zip(q.split(SIZE), k.split(SIZE), v.split(SIZE), strict=True):
        future = torch.ones(len(q_s), len(q_s)).triu(1).bool()
        local = (q_s @ k_s.T / 8**0.5).masked_fill(future, float("-inf")).softmax(-1) @ v_s
        features, keys = F.elu(q_s) + 1, F.elu(k_s) + 1
        if outs:
            gate = beta.sigmoid()
            local = gate * (features @ memory) / (features @ norm)[:, None] + (1 - gate) * local
        outs.append(local)
        content = v_s - (keys @ memory) / (keys @ norm)[:, None] if delta_rule and len(outs) > 1 else v_s
        memory, norm = memory + keys.T @ content, norm + keys.sum(0)
    return torch.cat(outs)


@pytest.mark.parametrize("delta_rule", [False, True])
def test_the_definition_is_the_paper_s_equations(delta_rule: bool) -> None:
    mechanism, (q, k, v) = built(delta_rule), inputs(100, kv_heads=4, dtype=torch.float64)
    found = reference_attend(q, k, v, mechanism, causal=True)
    for item in range(3):
        for head in range(4):
            expected = equations(q[item, head], k[item, head], v[item, head], mechanism.gate[head].double(), delta_rule)
            torch.testing.assert_close(found[item, head], expected, atol=1e-9, rtol=0)


@every_cell("padded", [False, True])
@every_cell("length", [15, 16, 17, 100, 300])
@every_cell("delta_rule", [False, True])
def test_outputs_and_gradients_equal_the_definition(delta_rule: bool, length: int, padded: bool) -> None:
    mechanism, (q, k, v) = built(delta_rule), inputs(length)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    mask = padding(length) if padded else None
    real = torch.ones(3, 1, length, 1, dtype=torch.bool) if mask is None else mask[:, None, :, None]
    found, expected = (of(q, k, v, mechanism, causal=True, padding_mask=mask) for of in (attend, reference_attend))
    torch.testing.assert_close(found * real, (expected * real).float(), atol=1e-5, rtol=0)
    weight = torch.randn_like(expected) * real
    wanted = [*leaves, mechanism.gate]
    for a, b in zip(*(torch.autograd.grad((x * weight).sum(), wanted) for x in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@every_cell("delta_rule", [False, True])
@every_cell("cuts", [[1] * 70, [40, 1, 1, 30], [3, 67, 1, 1], [16, 16, 16, 24]], ids=str)
def test_pieces_equal_the_whole(delta_rule: bool, cuts: list[int]) -> None:
    length = sum(cuts)
    mechanism, (q, k, v), mask = built(delta_rule), inputs(length), padding(length)
    with torch.no_grad():
        whole = attend(q, k, v, mechanism, causal=True, padding_mask=mask)
        state, outs, at, sizes = None, [], 0, set()
        for count in cuts:
            piece = slice(at, at + count)
            skipped = (mask.int().argmax(1) - at).clamp(0, count).tolist()
            call = AttentionCall.of(padding_mask=mask[:, piece])
            out, state = advanced(mechanism.advance, q[:, :, piece], k[:, :, piece], v[:, :, piece], state, call, skipped)
            outs.append(out)
            sizes.add(sum(x.numel() for x in state.values()))
            at += count
    torch.testing.assert_close(torch.cat(outs, 2) * mask[:, None, :, None], whole * mask[:, None, :, None], atol=1e-5, rtol=0)
    assert len(sizes) == 1


def test_one_segment_is_plain_softmax_attention() -> None:
    q, k, v = inputs(SIZE)
    torch.testing.assert_close(attend(q, k, v, built(False), causal=True), attend(q, k, v, "full", causal=True), atol=1e-6, rtol=0)


def test_dropped_keys_keep_the_mean() -> None:
    mechanism, (q, k, v) = built(False), inputs(200)
    dropped = torch.stack([attend(q, k, torch.ones_like(v), mechanism, causal=True, dropout_p=0.3) for _ in range(20)])
    assert abs(dropped.mean().item() - 1) < 0.03
    assert not torch.equal(dropped[0], dropped[1])


def test_bad_input_is_a_sentence() -> None:
    q, k, v = inputs(20)
    with pytest.raises(OptionError, match=r"'segment_length'.*at least 1"):
        attend(q, k, v, "infini", causal=True, segment_length=0)
    with pytest.raises(LongAttentionError, match="only with causal=True"):
        attend(q, k, v, "infini")
