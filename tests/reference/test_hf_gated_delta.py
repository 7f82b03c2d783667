"""The gated delta rule against transformers' own (Qwen3-Next), which the field's models are trained with."""

import torch
from transformers.models.qwen3_next import modeling_qwen3_next as theirs

from hf_longattn import attend, build_mechanism
from hf_longattn.engines.common.call import AttentionCall
from hf_longattn.engines.linear import gated_delta_rule
from hf_longattn.mechanisms.delta import Delta
from tests.cells import every_cell


def inputs(length: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(2, 3, length, width, generator=generator) for width in (16, 16, 24))
    g, beta = -torch.rand(2, 3, length, generator=generator) * 2, torch.rand(2, 3, length, generator=generator)
    return [q, k / k.norm(dim=-1, keepdim=True), v, g, beta]


@every_cell("function", ["torch_recurrent_gated_delta_rule", "torch_chunk_gated_delta_rule"])
@every_cell("length", [1, 63, 64, 65, 300])
def test_outputs_states_and_gradients_are_those_of_qwen3_next(function: str, length: int) -> None:
    q, k, v, g, beta = (x.requires_grad_() for x in inputs(length))
    state = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(9)).requires_grad_()
    out, after = gated_delta_rule(q * 16**-0.5, k, v, g, beta, state)
    swapped = [x.transpose(1, 2) for x in (q, k, v, g, beta)]
    expected, last = getattr(theirs, function)(*swapped[:3], g=swapped[3], beta=swapped[4], initial_state=state, output_final_state=True)
    torch.testing.assert_close(out, expected.transpose(1, 2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after, last, atol=1e-5, rtol=1e-4)
    leaves = [q, k, v, g, beta, state]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((out * weight).sum() + after.sum(), leaves)
    wanted = torch.autograd.grad((expected.transpose(1, 2) * weight).sum() + last.sum(), leaves)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_gates_from_hidden_states_are_those_of_qwen3_next() -> None:
    torch.manual_seed(0)
    module = build_mechanism("delta", num_heads=3, head_dim=16, hidden_size=40)
    assert isinstance(module, Delta)
    q, k, v, *_ = inputs(100)
    v, hidden = v[..., :16], torch.randn(2, 100, 40)
    b, a = hidden @ module.rates["beta"].weight.mT, hidden @ module.rates["decay"].weight.mT
    g = -module.log_a.exp() * torch.nn.functional.softplus(a + module.bias)
    swapped = [x.transpose(1, 2) for x in (q, k, v)]
    expected, _ = theirs.torch_recurrent_gated_delta_rule(*swapped, g=g, beta=b.sigmoid(), use_qk_l2norm_in_kernel=True)
    torch.testing.assert_close(attend(q, k, v, module, causal=True, hidden_states=hidden), expected.transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_wider_keys_are_scaled_as_in_qwen3_next() -> None:
    torch.manual_seed(0)
    module = build_mechanism("delta", num_heads=3, head_dim=16, expand=2, gate_input="key")
    q, k, v, *_ = inputs(100)
    v = v[..., :16]
    g, beta = module._rates(k, AttentionCall(), torch.float32)
    wide = [torch.nn.functional.silu(projection(x)) for projection, x in ((module.query_map, q), (module.key_map, k))]
    swapped = [x.transpose(1, 2) for x in (*wide, v, g, beta)]
    expected, _ = theirs.torch_recurrent_gated_delta_rule(*swapped[:3], g=swapped[3], beta=swapped[4], use_qk_l2norm_in_kernel=True)
    torch.testing.assert_close(attend(q, k, v, module, causal=True), expected.transpose(1, 2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attend(q, k, v, module, causal=True, scaling=0.5), expected.transpose(1, 2) * 0.5 * 4, atol=1e-5, rtol=1e-4)
